"""What the kernel dropped of a socket's datagrams, and why: refused as junk, or lost because the buffer was full.

The socket's drop counter has both. Lost ones are counted a second time for all sockets of the network namespace
together (RcvbufErrors and MemErrors): where another socket loses datagrams too, more of ours are taken for lost than
were. So `junk` is never too high, and no loss stays hidden.
"""

import re
import socket
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

SO_MEMINFO: Final = 55
"""asm-generic/socket.h: nine numbers, what the buffer holds first and the drops last."""

_MEMINFO: Final = Struct("=9I")
_WRAP: Final = 1 << 32

_PROC: Final = Path("/proc/self/net")
_LOST: Final = frozenset({"RcvbufErrors", "MemErrors"})
_LOST6: Final = r"(?m)^Udp6(?:RcvbufErrors|MemErrors)\s+(\d+)$"


class Dropped(NamedTuple):
    """How many datagrams were dropped: `junk` at least, `lost` at most."""

    junk: int
    lost: int


NOTHING: Final = Dropped(0, 0)


class Drops:
    """Tells what a socket dropped since it was asked last; what was before is none of its business."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` may have dropped something for another process, or for one before this."""
        self._socket = sock
        self._counter = read_drops(sock)
        self._all = self._told_junk = self._told_lost = 0
        self._lost_before = read_lost()

    def take(self, *, filtered: bool) -> Dropped:
        """Return what is new. Without a filter nothing was refused, and all was lost (or had a wrong checksum)."""
        counter = read_drops(self._socket)
        new = (counter - self._counter) % _WRAP
        if not new:
            return NOTHING
        self._counter = counter
        self._all += new
        # Of all that there ever was: what was told stays told, one way or the other.
        junk = min(self._all - self._lost_at_most(), self._all - self._told_lost) if filtered else 0
        told = Dropped(max(junk - self._told_junk, 0), 0)
        self._told_junk += told.junk
        told = told._replace(lost=self._all - self._told_junk - self._told_lost)
        self._told_lost += told.lost
        return told

    def _lost_at_most(self) -> int:
        # Read after the socket's own counter: nothing that was lost is missing.
        now = read_lost()
        return self._all if now is None or self._lost_before is None else (now - self._lost_before)


def read_drops(sock: socket.socket) -> int:
    """Return a socket's drop counter, which wraps at 32 bits."""
    drops: int = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))[-1]
    return drops


def read_lost() -> int | None:
    """Return how many UDP datagrams found a full buffer in this network namespace; None where that can't be read."""
    try:
        udp = [line.split()[1:] for line in (_PROC / "snmp").read_text().splitlines() if line.startswith("Udp:")]
        names, numbers = udp
        lost = sum(int(number) for name, number in zip(names, numbers, strict=True) if name in _LOST)
    except (OSError, ValueError):
        return None
    try:
        lost += sum(int(number) for number in re.findall(_LOST6, (_PROC / "snmp6").read_text()))
    except OSError:  # a kernel without IPv6
        return lost
    return lost
