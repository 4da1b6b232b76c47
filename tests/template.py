"""The process from which tests fork `dmnotid`: it has imported it, and runs no thread and no event loop."""

import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn, TypedDict

from dmnotid.cli import main as dmnotid

PRELOADED: Final = (
    "dmnotid.cli.run", "dmnotid.cli.parser", "dmnotid.cli.check", "dmnotid.cli.demo", "dmnotid.cli.send",
    "dmnotid.cli.session", "dmnotid.cli.status_text", "dmnotid.cli.try_hook", "dmnotid.config.tree", "uvloop",
)  # fmt: skip
"""The modules that the template imports; others are imported by the command that needs them."""

LONGEST: Final = 200_000
"""Maximum length of a request, in octets: a socket's buffer has room for it."""


class Request(TypedDict):
    """How a process is started; its three standard streams and the pipe for its status are passed beside it."""

    words: list[str]
    environ: dict[str, str]
    directory: str


def main() -> None:
    """Be the template, and in its forks what was asked for."""
    # Tests look at the children of their process, so the template is not one of them.
    if os.fork():
        os._exit(0)
    for module in PRELOADED:
        # Without uvloop the daemon runs on asyncio's loop.
        with suppress(ImportError):
            import_module(module)
    # A collection would copy every page of the template.
    gc.collect()
    gc.freeze()
    # An error of the imports is shown, but the standard error of pytest is not held open from here on.
    os.dup2(0, 2)
    # Ctrl-C is for pytest, which then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        while True:
            octets, descriptors, *_ = socket.recv_fds(requests, LONGEST, 4)
            if not octets:
                return
            if os.fork() == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            # Keepers that have ended.
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    if pid := os.fork():
        _keep(pid, descriptors)
    _become(json.loads(octets), descriptors)


def _keep(pid: int, descriptors: Sequence[int]) -> NoReturn:
    """Report the number of a process and its exit status, as its parent."""
    *streams, report = descriptors
    for stream in streams:
        os.close(stream)
    os.write(report, b"%d\n" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(report, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: Request, descriptors: Sequence[int]) -> NoReturn:
    """Run the command, with all that a new process has of its own."""
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    # The streams of the template are /dev/null, which differs from a pipe, a socket and a terminal.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", 1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environ"])
    # As "-m dmnotid" sets it.
    sys.argv = [str(Path(__file__).parents[1] / "dmnotid/__main__.py"), *request["words"]]
    try:
        status = dmnotid()
    except SystemExit as ended:
        # A wrong command line, or --help.
        status = int(ended.code or 0)
    sys.stdout.flush()
    # The end of an interpreter would touch, and so copy, all that the template has imported.
    os._exit(status)


if __name__ == "__main__":
    main()
