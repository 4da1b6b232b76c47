"""Start `dmnotid` by a fork of a process that has imported it: a new interpreter would import it for 0.2 s.

Each process of pytest has one such template, which runs no thread and no event loop. A forked daemon is a process of
its own, with its own descriptors, signals, environment and exit status; only its imports have happened before.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, NoReturn, Protocol, TypedDict

from dmnotid.cli import main as dmnotid

PRELOADED: Final = (
    "dmnotid.cli.run", "dmnotid.cli.parser", "dmnotid.cli.check", "dmnotid.cli.demo", "dmnotid.cli.send",
    "dmnotid.cli.session", "dmnotid.cli.status_text", "dmnotid.cli.try_hook", "dmnotid.config.tree", "uvloop",
)  # fmt: skip
"""The modules that the template imports; others are imported by the command that needs them."""

PATIENCE: Final = 60.0
"""Maximum time for a command, in seconds; only one that hangs takes as long."""

LONGEST: Final = 200_000
"""Maximum length of a request, in octets: a socket's buffer has room for it."""


class HasFileno(Protocol):
    """A file or a socket."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Request(TypedDict):
    """How a process is started; its three standard streams and the pipe for its status are passed beside it."""

    words: list[str]
    environ: dict[str, str]
    directory: str


class Forked:
    """A running `dmnotid WORDS`, with the methods of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        words: Sequence[str | Path],
        environ: Mapping[str, str],
        stdin: int | HasFileno,
        stdout: int | HasFileno,
        stderr: int | HasFileno,
        directory: str | Path = "/",
    ) -> None:
        request = Request(words=list(map(str, words)), environ=dict(environ), directory=str(directory))
        reading, writing = os.pipe()
        # The lines of its keeper: the process number, and at its end the exit status.
        self._lines = os.fdopen(reading)
        self.returncode: int | None = None
        streams = [stream if isinstance(stream, int) else stream.fileno() for stream in (stdin, stdout, stderr)]
        try:
            socket.send_fds(_template(os.getpid()), [json.dumps(request).encode()], [*streams, writing])
        finally:
            os.close(writing)
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, as Popen does. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._lines], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("dmnotid", timeout or 0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        # Its keeper may have reaped it and not reported that yet.
        with suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    words: Sequence[str | Path], environ: Mapping[str, str], given: bytes = b"", directory: str | Path = "/"
) -> "subprocess.CompletedProcess[bytes]":
    """Run `dmnotid WORDS` to its end with `given` on standard input, as `subprocess.run` does."""
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        process = Forked(words, environ, stdin, stdout, stderr, directory)
        try:
            status = process.wait(PATIENCE)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(list(words), status, stdout.read(), stderr.read())


@cache
def _template(_of: int) -> socket.socket:
    """Start the template of a process, and return the socket for requests. It ends when the socket is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-c", "from tests.forked import main; main()", str(theirs.fileno())]
        subprocess.run(
            command, pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1], check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    return ours


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
    sys.exit(dmnotid())
