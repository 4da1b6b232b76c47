"""`dmnotid check`: every problem of a configuration, or its meaning on this machine."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dmnotid.cli.hook_report import describe_problem, find_problem, print_problem, section
from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.cli.run import DEFAULT_CONFIG
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.errors import HookError
from dmnotid.host.trust import check_trusted_path
from dmnotid.journal.file import check_state
from dmnotid.links.availability import read_links
from dmnotid.policy.servers import Server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid check`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    parser.add_argument(
        "--skip-credentials",
        action="store_true",
        help="do not read secrets that are systemd credentials: only the daemon has them",
    )


def main(arguments: argparse.Namespace) -> int:
    """Print a summary and return 0, or print all problems and return 1. No secret is ever shown."""
    config = load_config(arguments.config, os.environ, check_trusted_path, credentials=not arguments.skip_credentials)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    problem = find_problem(config.hook)
    for line in summary(config, problem, secrets_read=not arguments.skip_credentials):
        print(line)
    if problem is not None:
        print_problem(config.hook, problem)
        return EXIT_PROBLEM
    if is_own(config.state):
        check_state(config.state)
    return EXIT_OK


def is_own(state: Path) -> bool:
    """Return whether a state directory exists and belongs to this user: only its owner can judge it."""
    try:
        return state.stat().st_uid == os.geteuid()
    except OSError:
        return False


def summary(config: Config, problem: HookError | None, *, secrets_read: bool = True) -> Iterator[str]:
    """Describe a configuration, one fact a line; `problem` is why its hook would not be started."""
    yield f"{config.file}: well-formed"
    yield from section("servers", (_describe_server(server, secrets_read) for server in config.servers))
    yield f"listen       {', '.join(map(str, config.listen))} (UDP)"
    yield f"state        {config.state}"
    socket = f"socket {str(config.hook.socket)!r}"
    hook = " ".join(map(repr, config.hook.command)) if config.hook.socket is None else socket
    yield f"hook         {hook}: {describe_problem(problem)}"
    yield from section("connections", map(str, _links(config)))


def _describe_server(server: Server, secret_read: bool) -> str:  # noqa: FBT001 - of one caller
    length = "" if server.secret is None or not secret_read else f" of {len(server.secret)} octets"
    secret = "no secret" if server.secret is None else f"a secret{length}"
    signed = "must sign" if server.require_digest else "may come unsigned"
    sources = ", ".join(map(str, server.sources)) or "anywhere"
    return f"{server.id!r}: {secret}, {signed}, from {sources}"


def _links(config: Config) -> Iterator[str]:
    try:
        found = read_links(config.connections)
    except OSError as error:
        yield f"unknown: the network interfaces can't be read: {error.strerror}"
        return
    for link in found:
        yield f"{link} ({link.type}: {link.why})"
    if not found:
        yield "no network interface at all"
