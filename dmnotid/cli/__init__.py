"""The command line: `dmnotid COMMAND`. Each command has a module of its own, imported when it is called.

`dmnotid run` stays for months, and argparse would with it (400 KB): plain words of it are read without.
"""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Final

from dmnotid.cli.process import EXIT_INTERRUPTED, EXIT_PROBLEM, no_rubbish
from dmnotid.errors import DmnotidError, UsageError

_STANDARD_ERROR: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0 all is well, 1 a problem (told on standard error), 2 a wrong command line."""
    words = sys.argv[1:] if argv is None else argv
    _prepare_streams()
    try:
        try:
            status = _run(words, nullcontext if argv is not None else no_rubbish)
        except DmnotidError as error:
            print(error, file=sys.stderr)
            status = EXIT_PROBLEM
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


def _run(words: Sequence[str], importing: Callable[[], AbstractContextManager[None]]) -> int:
    if words[:1] == ["run"]:
        with importing():
            from dmnotid.cli import run  # noqa: PLC0415 - of all commands this one

        file = run.plain_file(words[1:])
        if file is not None:
            return run.run(file)
    with importing():
        from dmnotid.cli.parser import build_parser  # noqa: PLC0415 - where it is needed

        parser = build_parser(words)
    arguments = parser.parse_args(words)
    try:
        status: int = arguments.main(arguments)
    except UsageError as error:
        arguments.parser.error(str(error))
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
