"""A real `dmnotid run`, and the facts about a process in /proc."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import pytest

from tests.forked import Forked
from tests.support import DEADLINE, IS_ROOT, parse_lines, wait_until

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
DMNOTID = [sys.executable, "-m", "dmnotid"]

WITHOUT_PRIVILEGES: Final = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if IS_ROOT else []
"""A prefix for which permission bits apply to root; empty for other users, to whom they apply anyway."""


class Program:
    """A running command of dmnotid, which logs JSON lines to a file.

    An interpreter of its own runs it, unless it is `forked` and begins with DMNOTID.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        *,
        forked: bool = False,
    ) -> None:
        self._log = log
        # The lines that were read, and their length in octets: each line is parsed once.
        self._lines: list[dict[str, Any]] = []
        self._octets_read = 0
        self.process: subprocess.Popen[bytes] | Forked
        with (
            open(os.devnull, "rb") as stdin,  # noqa: PTH123
            log.open("wb") as stdout,
            log.with_suffix(".err").open("wb") as stderr,
        ):
            # These change the process itself, and the template may have been changed like that before.
            prefix = WITHOUT_PRIVILEGES if command[: len(WITHOUT_PRIVILEGES)] == WITHOUT_PRIVILEGES else []
            words = command[len(prefix) + len(DMNOTID) :]
            if forked and not pass_fds and command == [*prefix, *DMNOTID, *words]:
                self.process = Forked(words, environment or ENVIRONMENT, stdin, stdout, stderr, prefix=prefix)
            else:
                self.process = subprocess.Popen(
                    command, env=environment or ENVIRONMENT, stdin=stdin, stdout=stdout, stderr=stderr, cwd="/",
                    pass_fds=pass_fds,
                )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        """Return the records logged so far, without an incomplete last line."""
        with self._log.open("rb") as log:
            log.seek(self._octets_read)
            octets = log.read()
        complete = octets[: octets.rfind(b"\n") + 1]
        self._octets_read += len(complete)
        self._lines += parse_lines(complete.decode())
        return self._lines.copy()

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == event]

    @property
    def errors(self) -> str:
        return self._log.with_suffix(".err").read_text()

    def wait(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until the log has `count` lines of an event, and return the last of them."""

        def there() -> bool:
            assert self.process.poll() is None, f"the daemon ended: {self.lines()[-2:]} {self.errors}"
            return len(self.of(event)) >= count

        wait_until(there)
        return self.of(event)[count - 1]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


class Service(Program):
    """A running `dmnotid run`.

    `prefix` is a command that becomes the program it is given, so that the process keeps its number.
    """

    def __init__(
        self,
        config: Path,
        log: Path,
        prefix: Sequence[str] = (),
        program: Sequence[str] = DMNOTID,
        environment: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        *,
        forked: bool = False,
    ) -> None:
        super().__init__([*prefix, *program, "run", "--config", config], log, environment, pass_fds, forked=forked)

    def reasons(self) -> list[str]:
        return [line["reason"] for line in self.of("datagram discarded")]

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.wait("socket listening")["listen"].rpartition(":")
        self.wait("daemon ready")
        return host, int(port)

    def send(self, *datagrams: bytes) -> None:
        address = self.address
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for datagram in datagrams:
                sock.sendto(datagram, address)

    def problem(self) -> str:
        """Wait for a start that fails, and return why: on standard error with status 78, or in the log with 1."""
        status = self.process.wait(DEADLINE)
        assert status == (78 if self.errors else 1), self.lines()
        return self.errors + "".join(line["problem"] for line in self.of("daemon not started"))


JOURNAL: Final = "journal.sqlite3"
"""The journal's file in the state directory; the name of its write-ahead log ends with `-wal`."""

needs_setpriv = pytest.mark.skipif(
    IS_ROOT and shutil.which("setpriv") is None, reason="needs setpriv (util-linux): root has every permission"
)


Run = Callable[..., Service]


@contextmanager
def running(directory: Path) -> Iterator[Run]:
    """Yield a function that starts daemons; those that still run at the end are killed."""
    services: list[Service] = []

    def start(
        config: Path,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        *,
        forked: bool = True,
    ) -> Service:
        log = directory / f"log{len(services)}"
        services.append(Service(config, log, prefix, environment=environment, pass_fds=pass_fds, forked=forked))
        return services[-1]

    try:
        yield start
    finally:
        for service in services:
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()


def journal_states(state: Path) -> dict[int, str]:
    """Return the states in a journal by NOTIFICATION-ID, from a copy, because the daemon has locked the file.

    A copy that is made during a write may be inconsistent: then nothing is returned, and the caller tries again.
    """
    with TemporaryDirectory() as directory:
        try:
            for file in state.glob(f"{JOURNAL}*"):
                shutil.copy(file, directory)
            with closing(sqlite3.connect(Path(directory, JOURNAL))) as database:
                return dict(database.execute("SELECT notification_id, state FROM session"))
        except (OSError, sqlite3.Error):
            return {}


class Memory(NamedTuple):
    """Resident memory in KiB: all pages, and with each shared page divided by its number of users."""

    rss: int
    pss: int


def memory(pid: int) -> Memory:
    """Read /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return Memory(sizes["Rss"], sizes["Pss"])


def count(pid: int, what: str) -> int:
    """Return the number of entries of `/proc/PID/WHAT`: "fd" for descriptors, "task" for threads."""
    return sum(1 for _ in Path(f"/proc/{pid}", what).iterdir())


def children(pid: int) -> list[str]:
    """Return the state letter of each child of a process, "Z" for a zombie."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = file.read_text().rpartition(")")[2].split()
        # The process has ended since.
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid:
            found.append(state)
    return found


def with_environment(line: str) -> list[int]:
    """Return the processes that were started with `NAME=value` in their environment, if this user may read it."""
    found, wanted = [], line.encode()
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
        # The process has ended since, or belongs to another user.
        except OSError:
            continue
    return found


class UdpSocket(NamedTuple):
    """An IPv4 socket in /proc/net/udp: its queued octets, and the datagrams that were dropped so far."""

    queued: int
    drops: int


def udp_socket(host: str, port: int, pid: int | str = "self") -> UdpSocket:
    """Find a bound IPv4 socket by its local address, in the network namespace of a process. Raises LookupError."""
    # The address is a 32-bit number in hex, in the byte order of the machine.
    local = f"{int.from_bytes(bytes(map(int, host.split('.'))), 'little'):08X}:{port:04X}"
    for line in Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local:
            return UdpSocket(int(fields[4].partition(":")[2], 16), int(fields[-1]))
    message = f"no UDP socket is bound to {host}:{port}"
    raise LookupError(message)


def processor() -> str:
    """Return the name of the processor, or that of the architecture if the kernel has none."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return os.uname().machine
