"""The options and the keys of the configuration by which a command finds the daemon."""

import argparse
import os
from pathlib import Path
from typing import Any

from dmnotid.cli.asking import default_socket
from dmnotid.cli.process import DEFAULT_CONFIG
from dmnotid.config.loading import load_keys
from dmnotid.config.values import DEFAULT_STATE
from dmnotid.errors import ConfigError


def add_places(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name another daemon than the usual one."""
    socket = f"the daemon's control socket (default: {default_socket()}, else that of the configuration)"
    parser.add_argument("--socket", type=Path, metavar="PATH", help=socket)
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")


def find_socket(arguments: argparse.Namespace) -> str:
    """Return the path of the control socket."""
    if arguments.socket is not None:
        return str(arguments.socket)
    usual = default_socket()
    # The configuration is read only if it is needed: that takes longer than the answer of the daemon.
    # Unlike Path.exists, this is False if the directory is closed to this user.
    if arguments.config is None and os.path.exists(usual):  # noqa: PTH110
        return usual
    # With `control: off` there is none, and the message names the usual path.
    return str(_read(arguments.config, "control") or usual)


def find_state(arguments: argparse.Namespace) -> Path:
    """Return the directory of the journal."""
    return Path(_read(arguments.config, "state") or DEFAULT_STATE)


def _read(file: Path | None, name: str) -> Any:  # noqa: ANN401
    """Return the value of a key of the configuration, None if the usual file cannot be read."""
    try:
        return load_keys(file or DEFAULT_CONFIG, name)[name]
    except ConfigError:
        # A file that was named must be good; the usual one is often readable for the daemon alone.
        if file is not None:
            raise
        return None
