"""The protocol between a service and its manager: passed sockets, readiness, the status line, the watchdog.

sd_listen_fds(3) and sd_notify(3): environment variables, and lines in datagrams to a Unix socket. Without the variables
nothing is passed and nothing is sent.
"""

import asyncio
import os
import re
import socket
import time
from collections.abc import Callable, MutableMapping
from typing import Final

from dmnotid.errors import EndpointError
from dmnotid.host.log import fitted, logger
from dmnotid.host.text import printable

FIRST_PASSED: Final = 3
"""SD_LISTEN_FDS_START: the number of the first descriptor that is passed."""

PATIENCE: Final = 5.0
"""Maximum time to wait for the manager to take a message that it must have, in seconds."""

STATUS_EVERY: Final = 1.0
"""Minimum time between two status lines, in seconds."""

MAX_STATUS_OCTETS: Final = 256
"""Maximum length of a status line in octets, as it is sent."""

_MICROSECONDS: Final = 1_000_000
_EXPECTED: Final = "a bound UDP socket, or a Unix datagram socket at a path, is expected (ListenDatagram=)"


class Manager:
    """The service manager, if one started this process."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        """Read the variables and remove them, so that no child process uses them. Raises EndpointError."""
        # The sockets that it passed, and the names of their units by descriptor.
        passed, self.units = _passed_sockets(environ)
        # The UDP sockets among them, and the Unix datagram sockets.
        self.sockets = [sock for sock in passed if sock.family != socket.AF_UNIX]
        self.doors = [sock for sock in passed if sock.family == socket.AF_UNIX]
        # Within so many seconds it expects a ping; None without a watchdog.
        self.watchdog = _watchdog(environ)
        # The Unix socket that takes messages; None if it wants none.
        address = environ.pop("NOTIFY_SOCKET", "")
        # systemd writes `@` for the NUL that begins a name in the abstract namespace.
        self._address = (f"\0{address[1:]}" if address.startswith("@") else address) or None
        # Whether a failure to send was logged: one line is enough.
        self._complained = False

    @property
    def listens(self) -> bool:
        """Whether the manager takes messages."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Report that sockets are open and a configuration is in force; this also ends a reload."""
        self._notify("READY=1", f"STATUS={_one_line(status)}", patience=PATIENCE)

    def reloading(self) -> None:
        """Report that a reload begins."""
        # The manager needs this time to match the message with its own request to reload (sd_notify(3)).
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", patience=PATIENCE)

    def stopping(self) -> None:
        """Report that the stop begins."""
        self._notify("STOPPING=1", patience=PATIENCE)

    def status(self, text: str) -> bool:
        """Set the status line; return whether the manager took it, which a busy one does not."""
        return self._notify(f"STATUS={_one_line(text)}")

    def alive(self) -> None:
        """Ping the watchdog."""
        self._notify("WATCHDOG=1")

    def _notify(self, *lines: str, patience: float = 0) -> bool:
        """Send one message; return whether it was sent. A failure is logged once, and the service continues."""
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                # A timeout of 0 makes the socket non-blocking.
                channel.settimeout(patience)
                channel.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), self._address)
        except BlockingIOError:
            # The queue of the manager is full. Only a status line or a ping has no patience, and another one follows.
            return False
        except OSError as error:
            if not self._complained:
                self._complained = True
                logger.warning("service manager not notified", message=lines[0], problem=str(error))
            return False
        return True


class StatusLine:
    """Keeps the manager's status line up to date: once a second at most, without a timer while nothing changes."""

    def __init__(self, manager: Manager, describe: Callable[[], str]) -> None:
        # The service manager that the status line is for.
        self._manager = manager
        # Returns the current status in one line.
        self._describe = describe
        # The text that the manager has.
        self._last = ""
        # Time at which it got that text, on the loop's clock.
        self._sent_at = float("-inf")
        # Timer of the next status line; None while nothing has changed.
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """Report readiness together with the current status."""
        self._last = self._describe()
        self._manager.ready(self._last)

    def change(self) -> None:
        """Schedule a new status line, for something may have changed; a running event loop is needed."""
        if self._timer is None and self._manager.listens:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self._sent_at + STATUS_EVERY, loop.time()), self._send)

    def close(self) -> None:
        """Send the last status line, if one is scheduled."""
        if self._timer is not None:
            self._timer.cancel()
            self._send()

    def _send(self) -> None:
        self._timer = None
        self._sent_at = asyncio.get_running_loop().time()
        text = self._describe()
        # A text that the manager did not take is sent again after the next change, even if it is the same then.
        if text != self._last and self._manager.status(text):
            self._last = text


def _one_line(text: str) -> str:
    # A line break from a file or from the network would begin another assignment.
    return fitted(printable(text), MAX_STATUS_OCTETS, lambda line: len(line.encode("utf-8", "backslashreplace")))


def _passed_sockets(environ: MutableMapping[str, str]) -> tuple[list[socket.socket], dict[int, str]]:
    pid, count, names = (environ.pop(f"LISTEN_{name}", None) for name in ("PID", "FDS", "FDNAMES"))
    if count is None:
        return [], {}
    # The variables are meant for a parent process, such as a shell script that runs the daemon as its child.
    if pid != str(os.getpid()):
        problem = f"LISTEN_PID: the sockets were passed to process {pid}, this is {os.getpid()}: start it with exec"
        logger.warning("passed sockets ignored", problem=problem)
        return [], {}
    # Names are in the order of the descriptors, and a manager before systemd 227 passes none.
    named = dict(enumerate((names or "").split(":"), FIRST_PASSED))
    numbers = range(FIRST_PASSED, FIRST_PASSED + _number("LISTEN_FDS", count))
    sockets = [_passed_socket(number, named.get(number) or "unnamed") for number in numbers]
    return sockets, {number: named[number] for number in numbers if named.get(number)}


def _passed_socket(number: int, name: str) -> socket.socket:
    where = f"LISTEN_FDS: descriptor {number} ({name})"
    try:
        # The manager passes descriptors without FD_CLOEXEC, and a hook must not inherit the sockets.
        os.set_inheritable(number, False)  # noqa: FBT003 - the standard library takes it by position
        sock = socket.socket(fileno=number)
    except OSError as error:
        raise EndpointError(f"{where}: {error.strerror}: {_EXPECTED}") from error
    name = sock.getsockname()
    known = sock.family in {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX} and sock.type == socket.SOCK_DGRAM
    # A UDP socket that is not bound has port 0. A Unix socket without a path has an empty or an abstract name (octets).
    bound = known and (isinstance(name, str) and name if sock.family == socket.AF_UNIX else name[1])
    if not bound:
        raise EndpointError(f"{where}: is another kind of socket: {_EXPECTED}")
    return sock


def _watchdog(environ: MutableMapping[str, str]) -> float | None:
    pid, microseconds = environ.pop("WATCHDOG_PID", None), environ.pop("WATCHDOG_USEC", None)
    # As LISTEN_PID, it may name a parent process.
    if microseconds is None or pid not in {None, str(os.getpid())}:
        return None
    # 0 stands for no watchdog.
    return _number("WATCHDOG_USEC", microseconds) / _MICROSECONDS or None


def _number(variable: str, text: str) -> int:
    # 64 bits: systemd passes the highest of these numbers for WatchdogSec=infinity.
    if not re.fullmatch("[0-9]{1,20}", text):
        raise EndpointError(f"{variable}: {text!r}: a number is expected, as systemd passes it")
    return int(text)
