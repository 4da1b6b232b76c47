"""Run dmnotid as people do: as a process, on a terminal, with a configuration."""

import base64
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final, NamedTuple, Self

import pytest

from dmnotid.cli import main
from tests import forked
from tests.support import DEADLINE

PATIENCE: Final = DEADLINE
"""Maximum time for anything, in seconds; only a program that hangs takes as long."""

PROGRAM: Final = (sys.executable, "-m", "dmnotid")
SCRIPT: Final = str(Path(sys.executable).with_name("dmnotid"))

COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")

SECRET: Final = b"lantern-and-rope-0042"
SERVER_ID: Final = "dm.example.com"
ONE_SERVER: Final = "- {id: dm.example.com, secret: {text: lantern-and-rope-0042}}"


class Done(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


def dmnotid(*words: str, given: bytes = b"", **environ: str) -> Done:
    """Run a command to its end, in a forked process, with `given` on standard input."""
    done = forked.run(words, os.environ | environ, given)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def interpreted(*words: str, given: bytes = b"", **environ: str) -> Done:
    """Do the same in an interpreter of its own."""
    return through_shell('exec "$@"', *words, given=given, **environ)


def through_shell(line: str, *words: str, given: bytes = b"", **environ: str) -> Done:
    """Run a line of shell in which "$@" is dmnotid with these words."""
    argv = ["/bin/sh", "-c", line, "sh", *PROGRAM, *words]
    done = subprocess.run(
        argv, input=given, capture_output=True, env=os.environ | environ, timeout=PATIENCE, check=False
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def without_reader(*words: str) -> Done:
    """Run a command whose standard output is a pipe that no process reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        argv = [*PROGRAM, *words]
        done = subprocess.run(argv, stdout=pipe, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
    return Done(done.returncode, "", done.stderr.decode())


def call(*words: str, given: bytes = b"", **environ: str) -> Done:
    """Run a command to its end in this process, which takes a tenth of the time of a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryFile("w+") as stdin, pytest.MonkeyPatch.context() as patch:
        stdin.buffer.write(given)
        stdin.seek(0)
        patch.setattr(sys, "stdin", stdin)
        for name, value in environ.items():
            patch.setenv(name, value)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main(words)
            except SystemExit as ended:
                status = int(ended.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


class Terminal:
    """A process whose standard output and error are a terminal; ended with the block at the latest.

    PROGRAM is forked, and SCRIPT is run by an interpreter of its own.
    """

    def __init__(self, *argv: str, given: Path = Path(os.devnull), **environ: str) -> None:
        """Start it; `given` is its standard input."""
        self.process: subprocess.Popen[bytes] | forked.Forked
        self._master, slave = pty.openpty()
        try:
            with given.open("rb") as stdin:
                if argv[: len(PROGRAM)] == PROGRAM:
                    words = argv[len(PROGRAM) :]
                    self.process = forked.Forked(words, os.environ | environ, stdin, slave, slave)
                else:
                    environment = os.environ | environ
                    self.process = subprocess.Popen(argv, stdin=stdin, stdout=slave, stderr=slave, env=environment)
        finally:
            os.close(slave)
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def read_until(self, wanted: str) -> str:
        """Read until `wanted` is in the text; return all text so far. Colours are left out of both.

        Raises AssertionError if the output ends first, or pauses for too long.
        """
        while wanted not in (plain := COLOUR.sub("", self.text)):
            assert self._read(), f"no {wanted!r} in:\n{plain}"
        return plain

    def read_all(self) -> str:
        """Read to the end; all text."""
        while self._read():
            pass
        return self.text

    def _read(self) -> bool:
        readable, _, _ = select.select([self._master], [], [], PATIENCE)
        assert readable, f"nothing more in {PATIENCE} s, after:\n{self.text}"
        try:
            octets = os.read(self._master, 65_536)
        except OSError:  # EIO: no process has the terminal open
            return False
        self.text += octets.decode(errors="replace").replace("\r\n", "\n")
        return bool(octets)

    def stop(self, number: signal.Signals) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        self.read_all()
        return self.process.wait(PATIENCE)


def write_config(directory: Path, servers: str = ONE_SERVER, more: str = "", hook: str = "/bin/true") -> Path:
    """Write a configuration; `servers` is a YAML list, `more` further keys. The state is beside it unless given."""
    file = directory / "dmnotid.yaml"
    file.touch(mode=0o600)
    listed = textwrap.indent(textwrap.dedent(servers), "  ")
    state = "" if "state:" in more else f"state: {directory}/state\n"
    file.write_text(f"servers:\n{listed}\nhook: {{command: ['{hook}']}}\n{more}{state}")
    return file


def shows_secret(text: str, secret: bytes = SECRET) -> bool:
    """Return whether a text contains a secret, as it is or in a usual encoding of secrets."""
    forms = {
        secret.decode(),
        secret.hex(),
        secret.hex(" "),
        base64.b64encode(secret).decode().rstrip("="),
        repr(secret),
    }
    return any(form.lower() in text.lower() for form in forms)
