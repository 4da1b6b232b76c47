"""Start `dmnotid` by a fork of a process that has imported it: a new interpreter would import it for 0.2 s.

Each process of pytest has one such template (tests/template.py). A forked daemon is a process of
its own, with its own descriptors, signals, environment and exit status; only its imports have happened before.
"""

import atexit
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
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

from tests.support import DEADLINE
from tests.template import Request


class HasFileno(Protocol):
    """A file or a socket."""

    def fileno(self) -> int:
        """Return the descriptor."""


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
        prefix: Sequence[str] = (),
    ) -> None:
        request = Request(words=list(map(str, words)), environ=dict(environ), directory=str(directory))
        reading, writing = os.pipe()
        # The lines of its keeper: the process number, and at its end the exit status.
        self._lines = os.fdopen(reading)
        self.returncode: int | None = None
        streams = [stream if isinstance(stream, int) else stream.fileno() for stream in (stdin, stdout, stderr)]
        try:
            socket.send_fds(_template(os.getpid(), *prefix), [json.dumps(request).encode()], [*streams, writing])
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
    words: Sequence[str | Path],
    environ: Mapping[str, str],
    given: bytes = b"",
    directory: str | Path = "/",
    prefix: Sequence[str] = (),
) -> "subprocess.CompletedProcess[bytes]":
    """Run `dmnotid WORDS` to its end with `given` on standard input, as `subprocess.run` does."""
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        process = Forked(words, environ, stdin, stdout, stderr, directory, prefix)
        try:
            status = process.wait(2 * DEADLINE)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(list(words), status, stdout.read(), stderr.read())


@cache
def _template(_of: int, *prefix: str) -> socket.socket:
    """Start the template of a process, and return the socket for requests. It ends when the socket is closed.

    `prefix` is a command that becomes the program it is given, such as setpriv: each has a template of its own.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [*prefix, sys.executable, "-m", "tests.template", str(theirs.fileno())]
        subprocess.run(
            command, pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1], check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    atexit.register(ours.close)
    return ours
