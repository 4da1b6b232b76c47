"""What the service manager gives a service and is told by it: sockets, readiness, status, signs of life.

The protocols are those of sd_listen_fds(3) and sd_notify(3): environment variables, and lines in datagrams to a Unix
socket. Without the variables nothing is given, nobody is told, and all goes on as without systemd.
"""

import array
import asyncio
import os
import socket
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.errors import EndpointError, shortened
from dmnotid.host.log import MAX_SHOWN, logger, printable

FIRST_PASSED: Final = 3
"""SD_LISTEN_FDS_START: the number of the first descriptor that is passed."""

STORED: Final = "listen-"
"""What the names of sockets in the descriptor store begin with; their inode number follows."""

PATIENCE: Final = 5.0
"""How long the manager may take to receive what it must know (seconds)."""

STATUS_EVERY: Final = 1.0
"""The least time between two status lines (seconds)."""

_MICROSECONDS: Final = 1_000_000
_DIGITS: Final = 20
_EXPECTED: Final = "a bound UDP socket (ListenDatagram=) is expected"


class PassedSocket(NamedTuple):
    """A socket that was open before this process began; `stored` is one that a former process left to the manager."""

    socket: socket.socket
    stored: bool


class Manager:
    """The service manager that started this process, or nobody.

    `sockets` has what it passed, `watchdog` how long (seconds) it waits for a sign of life, None where it doesn't.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Take what was passed; the variables go, so that no child takes it for its own. Raises EndpointError."""
        self.sockets = _take_sockets(environ)
        self.watchdog = _take_watchdog(environ)
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        self._complained = False

    @property
    def listens(self) -> bool:
        """Whether anybody is told anything."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that all is open and datagrams are taken, by the configuration that is in force."""
        self._tell("READY=1", f"STATUS={_one_line(status)}", patience=PATIENCE)

    def reloading(self) -> None:
        """Say that a reload begins; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", patience=PATIENCE)

    def stopping(self) -> None:
        """Say that the stop begins."""
        self._tell("STOPPING=1", patience=PATIENCE)

    def status(self, text: str) -> None:
        """Say in a line how things are; a manager that is busy misses it."""
        self._tell(f"STATUS={_one_line(text)}")

    def alive(self) -> None:
        """Give a sign of life, as the watchdog wants."""
        self._tell("WATCHDOG=1")

    def keep(self, sock: socket.socket) -> None:
        """Have a socket kept over a restart: what arrives meanwhile waits in it."""
        # Not FDPOLL: an error that is pending on a socket is no reason to close it.
        self._tell("FDSTORE=1", f"FDNAME={_name(sock)}", "FDPOLL=0", sock=sock, patience=PATIENCE)

    def let_go(self, sock: socket.socket) -> None:
        """Have a socket that is kept closed by the manager as well."""
        self._tell("FDSTOREREMOVE=1", f"FDNAME={_name(sock)}", patience=PATIENCE)

    def _tell(self, *lines: str, sock: socket.socket | None = None, patience: float = 0) -> None:
        """Send one message; a manager that can't be told is no reason to stop serving, and is complained of once."""
        if self._address is None:
            return
        passed = [] if sock is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(patience)
                channel.sendmsg(["\n".join(lines).encode("utf-8", "backslashreplace")], passed, 0, self._address)
        except OSError as error:
            if isinstance(error, BlockingIOError) or self._complained:
                return
            self._complained = True
            logger.warning("service manager not notified", message=lines[0], problem=str(error))


class StatusLine:
    """Keeps the manager's status line true: once a second at most, and no timer runs while nothing changes."""

    def __init__(self, manager: Manager, describe: Callable[[], str]) -> None:
        """`describe` says how things are, in one line."""
        self._manager = manager
        self._describe = describe
        self._last = ""
        self._told_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """Tell the manager that all is open, and how things are."""
        self._last = self._describe()
        self._manager.ready(self._last)

    @property
    def is_due(self) -> bool:
        """Whether there may be something to tell that was not told yet."""
        return self._timer is not None

    def change(self) -> None:
        """Take it that something is otherwise; a running event loop is needed."""
        if self._timer is None and self._manager.listens:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self._told_at + STATUS_EVERY, loop.time()), self._tell)

    def close(self) -> None:
        """Say how things are in the end."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell()

    def _tell(self) -> None:
        self._timer = None
        self._told_at = asyncio.get_running_loop().time()
        text = self._describe()
        if text != self._last:
            self._last = text
            self._manager.status(text)


def _one_line(text: str) -> str:
    """Keep what a file or the network says from becoming a message of its own."""
    return printable(shortened(text, MAX_SHOWN))


def _take_sockets(environ: MutableMapping[str, str]) -> list[PassedSocket]:
    pid, count, names = (environ.pop(f"LISTEN_{name}", None) for name in ("PID", "FDS", "FDNAMES"))
    if count is None or pid != str(os.getpid()):  # meant for a parent that handed its environment on
        return []
    if not _is_number(count):
        message = f"LISTEN_FDS: {count!r}: how many descriptors are passed is expected"
        raise EndpointError(message)
    named = dict(enumerate((names or "").split(":"), FIRST_PASSED))
    numbers = range(FIRST_PASSED, FIRST_PASSED + int(count))
    return [PassedSocket(_socket(number, named), _is_stored(named.get(number, ""))) for number in numbers]


def _socket(number: int, names: dict[int, str]) -> socket.socket:
    """Take a descriptor for what it must be. Raises EndpointError where it is something else."""
    where = f"LISTEN_FDS: descriptor {number} ({names.get(number) or 'unnamed'})"
    try:
        os.set_inheritable(number, False)  # noqa: FBT003 - the standard library takes it by position
        sock = socket.socket(fileno=number)
    except OSError as error:
        message = f"{where}: {error.strerror}: {_EXPECTED}"
        raise EndpointError(message) from error
    udp = sock.family in {socket.AF_INET, socket.AF_INET6} and sock.type == socket.SOCK_DGRAM
    if not udp or not sock.getsockname()[1]:
        message = f"{where}: is another sort of socket: {_EXPECTED}"
        raise EndpointError(message)
    return sock


def _is_number(text: str) -> bool:
    """Tell whether this is a number in decimal, of 64 bits or so."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _name(sock: socket.socket) -> str:
    return f"{STORED}{os.fstat(sock.fileno()).st_ino}"


def _is_stored(name: str) -> bool:
    return name.startswith(STORED) and name[len(STORED) :].isdigit()


def _take_watchdog(environ: MutableMapping[str, str]) -> float | None:
    pid, microseconds = environ.pop("WATCHDOG_PID", None), environ.pop("WATCHDOG_USEC", None)
    if microseconds is None or pid not in {None, str(os.getpid())}:
        return None
    if not (_is_number(microseconds) and int(microseconds)):
        logger.warning("watchdog ignored", problem=f"WATCHDOG_USEC: {microseconds!r}: microseconds are expected")
        return None
    return int(microseconds) / _MICROSECONDS


def _address(text: str) -> str | None:
    """Return where messages go: a path, or a name in the abstract namespace, which is written with `@` for its NUL."""
    if text.startswith("@"):
        return f"\0{text[1:]}"
    if text and not Path(text).is_absolute():
        problem = f"NOTIFY_SOCKET: {text!r}: an absolute path, or a name with @ before it, is expected"
        logger.warning("service manager not notified", problem=problem)
        return None
    return text or None
