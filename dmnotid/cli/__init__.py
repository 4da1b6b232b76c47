"""The command line: `dmnotid COMMAND`. Each command has a module of its own, imported when it is called."""

import argparse
import gc
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Final

from dmnotid import __version__
from dmnotid.errors import DmnotidError, UsageError

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_INTERRUPTED: Final = 128 + 2

_STANDARD_ERROR: Final = 2

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
"""Each is a module of this package (with _ for -) with `add_arguments(parser)` and `main(arguments) -> exit status`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 all is well, 1 a problem (told on standard error), 2 a wrong command line."""
    words = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    with _no_rubbish() if argv is None else nullcontext():
        parser = build_parser(words)
    try:
        try:
            status = _run(parser.parse_args(words))
        finally:
            sys.stdout.flush()  # --help and --version leave by SystemExit
    except BrokenPipeError:
        # The reader went away (`dmnotid decode … | head`): nothing is left to say.
        _give_up_output()
        return EXIT_PROBLEM
    except OSError as error:
        _give_up_output()
        print(f"dmnotid: {error}", file=sys.stderr)
        return EXIT_PROBLEM
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


@contextmanager
def _no_rubbish() -> Iterator[None]:
    """Import without looking for rubbish, nor later in what was imported: it stays to the end, and it is a lot."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _run(arguments: argparse.Namespace) -> int:
    try:
        status: int = arguments.main(arguments)
    except UsageError as error:
        arguments.parser.error(str(error))
    except DmnotidError as error:
        print(error, file=sys.stderr)
        return EXIT_PROBLEM
    return status


def _prepare_streams() -> None:
    """Make the standard streams fit for anything: none of their numbers is free, and what can't be shown is escaped."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass  # a socket that got such a number would be taken for a stream
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open("/dev/full", "w")  # noqa: PTH123, SIM115 - what is said there must not seem heard
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _give_up_output() -> None:
    """Let what is still buffered lead nowhere, so that nothing complains at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
            module = importlib.import_module(f"dmnotid.cli.{name.replace('-', '_')}")
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
