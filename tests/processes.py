"""A real `dmnotid run`, and what the kernel tells of a process in /proc."""

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

from tests.support import IS_ROOT, parse_lines, wait_until

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
DMNOTID = [sys.executable, "-m", "dmnotid"]


class Program:
    """A running command of dmnotid; its log is a file, as lines for the journal."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._log = log
        # Lines of the log that were read, and the octets they take: each line is parsed once.
        self._lines: list[dict[str, Any]] = []
        self._octets_read = 0
        with log.open("wb") as stdout, log.with_suffix(".err").open("wb") as stderr:
            self.process = subprocess.Popen(
                command, env=environment or ENVIRONMENT, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL,
                cwd="/", pass_fds=pass_fds,
            )  # fmt: skip

    def lines(self) -> list[dict[str, Any]]:
        """Return the records that this process has logged so far, without a line that is not complete."""
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
        """Wait for a line of the log; the last of so many."""

        def there() -> bool:
            assert self.process.poll() is None, f"it ended: {self.lines()[-2:]} {self.errors}"
            return len(self.of(event)) >= count

        wait_until(there)
        return self.of(event)[count - 1]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


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
    ) -> None:
        super().__init__([*prefix, *program, "run", "--config", config], log, environment, pass_fds)

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
        status = self.process.wait(60)
        assert status == (78 if self.errors else 1), self.lines()
        return self.errors + "".join(line["problem"] for line in self.of("daemon not started"))


JOURNAL: Final = "journal.sqlite3"
"""The journal's file in the state directory; its write-ahead log is called the same with -wal behind it."""

WITHOUT_PRIVILEGES: Final = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if IS_ROOT else []
"""What makes root a user like any other: the owner's permission bits count again. Others are that already."""

needs_setpriv = pytest.mark.skipif(
    IS_ROOT and shutil.which("setpriv") is None, reason="needs setpriv (util-linux) as root: permissions don't bind it"
)


Run = Callable[..., Service]


@contextmanager
def running(directory: Path) -> Iterator[Run]:
    """Give a function that starts daemons; whatever still runs at the end is killed."""
    services: list[Service] = []

    def start(
        config: Path,
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Service:
        log = directory / f"log{len(services)}"
        services.append(Service(config, log, prefix, environment=environment, pass_fds=pass_fds))
        return services[-1]

    try:
        yield start
    finally:
        for service in services:
            if service.process.poll() is None:
                service.process.kill()
                service.process.wait()


def journal_states(state: Path) -> dict[int, str]:
    """What stands in a journal by NOTIFICATION-ID: read from a copy, for the daemon lets nobody else at the file.

    A copy taken while it writes may be torn; then nothing is told, and whoever waits asks again.
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
    """Resident memory in KiB: all of it, and with shared pages counted by their share."""

    rss: int
    pss: int


def memory(pid: int) -> Memory:
    """Read /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return Memory(sizes["Rss"], sizes["Pss"])


def count(pid: int, what: str) -> int:
    """How many entries `/proc/PID/WHAT` has: "fd" for descriptors, "task" for threads."""
    return sum(1 for _ in Path(f"/proc/{pid}", what).iterdir())


def children(pid: int) -> list[str]:
    """The state letters of a process's children, "Z" for a zombie."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # gone since
            continue
        if int(parent) == pid:
            found.append(state)
    return found


def with_environment(line: str) -> list[int]:
    """Find the processes that were started with `NAME=value` in their environment, as far as they may be looked at."""
    found, wanted = [], line.encode()
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
        except OSError:  # gone since, or somebody else's
            continue
    return found


class UdpSocket(NamedTuple):
    """What /proc/net/udp tells of an IPv4 socket: octets that wait in it, and datagrams dropped so far."""

    queued: int
    drops: int


def udp_socket(host: str, port: int, pid: int | str = "self") -> UdpSocket:
    """Find a bound IPv4 socket by its local address, in the network namespace of a process. Raises LookupError."""
    # The address stands there as the machine's own 32-bit number, in hex.
    local = f"{int.from_bytes(bytes(map(int, host.split('.'))), 'little'):08X}:{port:04X}"
    for line in Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local:
            return UdpSocket(int(fields[4].partition(":")[2], 16), int(fields[-1]))
    message = f"no UDP socket is bound to {host}:{port}"
    raise LookupError(message)


def processor() -> str:
    """Name the processor, as far as the kernel does."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return os.uname().machine
