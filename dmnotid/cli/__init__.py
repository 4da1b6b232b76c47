"""The command line: `dmnotid COMMAND`. Each command is a module of its own, which is imported when it is called."""

import gc
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from dmnotid.cli.parser import build_parser
from dmnotid.cli.process import EXIT_INTERRUPTED, EXIT_PROBLEM, print_error
from dmnotid.errors import DmnotidError, UsageError

_STANDARD_ERROR: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 is success, 1 a problem (explained on standard error), 2 a wrong command line.
    """
    words = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    try:
        try:
            status = _run(words)
        # Inside the outer `try`, because writing to standard error can fail too.
        except DmnotidError as error:
            print_error(error)
            status = EXIT_PROBLEM
        finally:
            # Flush also when --help or --version raises SystemExit: a write error must be seen here, not at exit.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe (`dmnotid decode … | head`), so there is nothing to report.
        _discard_output()
        return EXIT_PROBLEM
    except OSError as error:
        # Output was lost, such as on a full disk, so the status must not be 0.
        _discard_output()
        print_error(f"dmnotid: {error}")
        return EXIT_PROBLEM
    except KeyboardInterrupt:
        # No traceback: Ctrl-C is the usual end of `links --watch`.
        return EXIT_INTERRUPTED
    return status


def _run(words: Sequence[str]) -> int:
    # A collection during the imports finds no garbage, and all of them together are a twentieth of the daemon's start.
    gc.disable()
    parser = build_parser(words)
    gc.enable()
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.main(arguments)
    except UsageError as error:
        # Prints the usage of that command and exits with status 2.
        arguments.parser.error(str(error))
    return status


def _prepare_streams() -> None:
    """Ensure that the standard streams are open, and that they escape characters they can't encode."""
    # A socket that got the number of a closed standard stream would be taken for that stream.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STANDARD_ERROR:
        pass
    os.close(descriptor)
    # Python sets a standard stream to None if its descriptor was closed at the start.
    if sys.stdout is None:
        # Writes fail there, as they must: the output of the command is lost.
        sys.stdout = open("/dev/full", "w")  # noqa: PTH123, SIM115
    # print(file=None) writes to standard output, which is not the place for errors.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without UTF-8 cannot encode every SERVER-ID, nor an ellipsis.
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Redirect standard output to /dev/null, so that the interpreter's flush at exit reports no error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
