"""The command line that all commands share."""

import argparse
import importlib
from collections.abc import Sequence
from functools import partial
from typing import Final

from dmnotid import __version__
from dmnotid.cli.process import EXIT_PROBLEM, print_error
from dmnotid.errors import DmnotidError
from dmnotid.sentences import suggest

COMMANDS: Final = {
    "run": "receive notifications and start DM sessions",
    "status": "show the state of the running daemon",
    "sessions": "list the sessions, start one again, or cancel one",
    "follow": "show the log of the running daemon as it is written",
    "discards": "show the last discarded datagrams, for dmnotid decode",
    "reload": "apply a changed configuration",
    "metrics": "print what the daemon counts, for Prometheus",
    "check": "check a configuration and show what it means here",
    "decode": "show the fields of a datagram, or its error",
    "send": "send a notification, as a DM server does",
    "links": "show the connections, and the one that would be used",
    "test-hook": "show arguments, environment and input of the hook, and try it",
    "session": "run a session that the daemon hands over (for systemd)",
    "bearer": "hand in pushes that came by SMS at the push door (for systemd)",
    "demo": "run the daemon and send it notifications, without any set-up",
    "help": "explain a command",
}
"""The commands. Each is a module of this package that has `add_arguments(parser)` and `main(arguments)`."""

# pytest would collect a module called test_hook.
_MODULES: Final = {"test-hook": "try_hook"}
"""The modules of commands that are not called like their command."""


# To find the width of the terminal, argparse would import shutil at each start, even if no help is shown.
_FORMATTER: Final = partial(argparse.HelpFormatter, width=78)
"""Fits help into 80 columns, whatever the width of the terminal."""


class UsageError(DmnotidError):
    """Command-line arguments that contradict one another: the usage is printed, and the exit status is 2."""


def run_command(words: Sequence[str]) -> int:
    """Run the command of a command line and return its exit status; a problem is printed on standard error."""
    arguments = parse(words)
    try:
        status: int = arguments.main(arguments)
    except UsageError as error:
        # Prints the usage of that command and exits with status 2.
        arguments.parser.error(str(error))
    except DmnotidError as error:
        print_error(error)
        return EXIT_PROBLEM
    return status


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Exits with status 2 if it is wrong, and with 0 after --help or --version."""
    parser = build_parser(words)
    # argparse would list all commands instead of the one that was meant.
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        hint = suggest(words[0], COMMANDS) or "dmnotid help lists the commands"
        parser.error(f"{words[0]!r} is not a command; {hint}")
    return parser.parse_args(words)


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser for a command line. Only the modules of commands that occur in `words` are imported."""
    parser = argparse.ArgumentParser(
        prog="dmnotid",
        formatter_class=_FORMATTER,
        description="Receives OMA DM 2.0 notifications (WAP Push on UDP 2948) and starts the DM sessions they ask for.",
        epilog="dmnotid help COMMAND explains a command. dmnotid demo shows the daemon at work, without any set-up.",
    )
    parser.add_argument("--version", action="version", version=f"dmnotid {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    # A parser for each command takes longer than the import of some; help and errors alone need them all.
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        summary = COMMANDS[name]
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", formatter_class=_FORMATTER
        )
        # A device that decodes a datagram should not pay for the import of the daemon.
        if name in words:
            module = importlib.import_module(f"dmnotid.cli.{_MODULES.get(name, name)}")
            module.add_arguments(command)
            command.set_defaults(main=module.main, parser=command)
    return parser
