"""The command line that any command has: its words, its help, its complaints."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from dmnotid import __version__

COMMANDS: Final = {
    "run": "receive notifications and start DM sessions",
    "check": "check a configuration and show what it means here",
    "decode": "show what a datagram says, or what is wrong with it",
    "send": "send a notification, as a DM server does",
    "links": "show which connections there are, and which would be used",
    "test-hook": "show what the hook would be told, and try it",
    "session": "run a session that a daemon hands over (for systemd)",
    "demo": "see it all work on this machine, without any set-up",
}
"""The commands. Each is a module of this package with `add_arguments(parser)` and `main(arguments) -> exit status`."""

# pytest would collect a module called test_hook.
_MODULES: Final = {"test-hook": "try_hook"}
"""The modules of commands that are not called like their command."""


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the command that `words` call is imported, so that the others cost nothing."""
    parser = argparse.ArgumentParser(
        formatter_class=_Formatter,
        prog="dmnotid",
        description="Receives OMA DM 2.0 notifications (WAP Push on UDP 2948) and starts the DM sessions they ask for.",
    )
    parser.add_argument("--version", action="version", version=f"dmnotid {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # A parser for each takes its time, and is for help and mistakes alone.
    called = words[:1] if words and words[0] in COMMANDS else COMMANDS
    for name in called:
        summary = COMMANDS[name]
        description = summary[0].upper() + summary[1:] + "."
        command = commands.add_parser(name, help=summary, description=description, formatter_class=_Formatter)
        if name in words:
            module = importlib.import_module(f"dmnotid.cli.{_MODULES.get(name, name)}")
            module.add_arguments(command)
            command.set_defaults(main=module.main, parser=command)
    return parser


class _Formatter(argparse.HelpFormatter):
    """Knows the terminal's width without shutil, which it would import for each argument: that brings bz2 and lzma."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """Return what `shutil.get_terminal_size` says of the columns."""
    columns = 0
    with suppress(KeyError, ValueError):
        columns = int(os.environ["COLUMNS"])
    if columns <= 0 and sys.__stdout__ is not None:
        with suppress(ValueError, OSError):
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns
    return columns if columns > 0 else 80
