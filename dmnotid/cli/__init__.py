"""The command line: `dmnotid COMMAND`. Each command is a module of its own, which is imported when it is called.

A plain `dmnotid status`, which monitors run every minute, does not even import argparse, nor does the daemon.
"""

import gc
import io
import os
import sys
from collections.abc import Sequence

_STANDARD_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    0 is success, 1 a problem (explained on standard error), 2 a wrong command line.
    """
    words = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    try:
        try:
            return _run(words)
        finally:
            # Flush also when --help or --version raises SystemExit: a write error must be seen here, not at exit.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe (`dmnotid decode … | head`), so there is nothing to report.
        return _lose_output()
    except OSError as error:
        # Output was lost, such as on a full disk, so the status must not be 0.
        return _lose_output(f"dmnotid: {error}")
    except KeyboardInterrupt:
        # No traceback: Ctrl-C is the usual end of `links --watch`.
        from dmnotid.cli.process import EXIT_INTERRUPTED  # noqa: PLC0415 - as below

        return EXIT_INTERRUPTED


def _run(words: Sequence[str]) -> int:
    # Each import costs a share of a command that takes 50 ms, and of the daemon's start.
    # Only these two forms: argparse reads everything else, and reports what is wrong with it.
    match [*words]:
        case ["status"]:
            from dmnotid.cli.status_text import show_status  # noqa: PLC0415

            return show_status()
        case ["run"] | ["run", "--config", _] if not words[-1].startswith("-"):
            # A collection during the imports finds no garbage, and all of them together are a twentieth of the start.
            # The first one after them would look at every imported object, which takes a twelfth of it.
            gc.disable()
            from dmnotid.cli.run import run_daemon  # noqa: PLC0415

            gc.freeze()
            gc.enable()
            return run_daemon(*words[2:])
    from dmnotid.cli.parser import run_command  # noqa: PLC0415

    return run_command(words)


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
    # A stream that a caller has put in its place may have no encoding.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A locale without UTF-8 cannot encode every SERVER-ID, nor an ellipsis.
            stream.reconfigure(errors="backslashreplace")


def _lose_output(problem: str = "") -> int:
    """Report the problem, and redirect standard output to /dev/null so that the flush at exit reports no error."""
    from contextlib import suppress  # noqa: PLC0415 - as above

    from dmnotid.cli.process import EXIT_PROBLEM, print_error  # noqa: PLC0415

    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if problem:
        print_error(problem)
    return EXIT_PROBLEM
