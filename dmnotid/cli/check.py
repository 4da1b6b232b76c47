"""`dmnotid check`: is this configuration good, and what does it mean on this machine, now."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dmnotid.cli import EXIT_OK, EXIT_PROBLEM
from dmnotid.cli.run import DEFAULT_CONFIG
from dmnotid.config import Config, load_config
from dmnotid.errors import HookError
from dmnotid.policy.servers import Server
from dmnotid.service.hook import check_trusted
from dmnotid.service.links import read_links


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what follows `dmnotid check`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")


def main(arguments: argparse.Namespace) -> int:
    """Print a summary and return 0, or print all problems and return 1. No secret is ever shown."""
    config = load_config(arguments.config, os.environ)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    distrust = _distrust(config)
    for line in summary(config, distrust):
        print(line)
    if distrust is not None:
        print(f"hook.command: not trusted, so no session would start: {distrust}", file=sys.stderr)
        return EXIT_PROBLEM
    return EXIT_OK


def summary(config: Config, distrust: HookError | None) -> Iterator[str]:
    """Say what a configuration means here, a line a fact; `distrust` is why its hook would not be run."""
    yield f"{config.file}: well-formed"
    yield from _section("servers", map(_describe_server, config.servers))
    yield f"listen       {', '.join(map(str, config.listen))} (UDP)"
    yield f"state        {config.state}"
    trust = "its path is trusted" if distrust is None else f"not trusted ({distrust})"
    yield f"hook         {' '.join(map(repr, config.hook.command))}: {trust}"
    yield from _section("connections", map(str, _links(config)))


def _section(name: str, lines: Iterator[str]) -> Iterator[str]:
    title = name
    for line in lines:
        yield f"{title:<12} {line}"
        title = ""


def _describe_server(server: Server) -> str:
    secret = "no secret" if server.secret is None else f"a secret of {len(server.secret)} octets"
    signed = "must sign" if server.require_digest else "may come unsigned"
    sources = ", ".join(map(str, server.sources)) or "anywhere"
    return f"{server.id!r}: {secret}, {signed}, from {sources}"


def _distrust(config: Config) -> HookError | None:
    try:
        check_trusted(Path(config.hook.command[0]))
    except HookError as error:
        return error
    return None


def _links(config: Config) -> Iterator[str]:
    try:
        found = read_links(config.connections)
    except OSError as error:
        yield f"unknown: {error.strerror}"
        return
    for link in found:
        yield f"{link} ({link.type}: {link.why})"
    if not found:
        yield "no network interface at all"
