"""The command line: `dmnotid COMMAND`. Each command has a module of its own, imported when it is called."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from dmnotid import __version__
from dmnotid.errors import DmnotidError

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_USAGE: Final = 2

COMMANDS: Final = {
    "run": "receive notifications and start DM sessions",
    "check": "check a configuration and show what it means here",
    "decode": "show what a datagram says, or what is wrong with it",
    "send": "send a notification, as a DM server does",
    "demo": "see it all work on this machine, without any set-up",
}
"""Each is a module of this package with `add_arguments(parser)` and `main(arguments) -> exit status`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 all is well, 1 a problem (told on standard error), 2 a wrong command line."""
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.main(arguments)
    except DmnotidError as error:
        print(error, file=sys.stderr)
        return EXIT_PROBLEM
    except BrokenPipeError:
        # The reader went away (`dmnotid decode … | head`): nothing is left to say, nor to flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PROBLEM
    except KeyboardInterrupt:
        return 128 + 2
    return status


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the command that `words` call is imported, so that the others cost nothing."""
    parser = argparse.ArgumentParser(
        prog="dmnotid",
        description="Receives OMA DM 2.0 notifications (WAP Push on UDP 2948) and starts the DM sessions they ask for.",
    )
    parser.add_argument("--version", action="version", version=f"dmnotid {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name in words:
            module = importlib.import_module(f"dmnotid.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(main=module.main)
    return parser
