"""Datagrams that the kernel dropped from a socket: refused by the filter as junk, or lost because the buffer was full.

The drop counter of the socket includes both. The kernel counts lost datagrams once more, for all sockets of the network
namespace together (RcvbufErrors and MemErrors): if another socket loses datagrams too, more of ours are taken for lost
than were. So `junk` is never too high, and no loss stays hidden.
"""

import socket
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

SO_MEMINFO: Final = 55
"""asm-generic/socket.h: nine numbers, first the octets in the receive buffer, last the drops."""

_MEMINFO: Final = Struct("=9I")
_WRAP: Final = 1 << 32

_PROC: Final = Path("/proc/self/net")
_LOST: Final = frozenset({"RcvbufErrors", "MemErrors"})
_LOST6: Final = frozenset({"Udp6RcvbufErrors", "Udp6MemErrors"})


class Dropped(NamedTuple):
    """Numbers of dropped datagrams: `junk` at least, `lost` at most."""

    junk: int
    lost: int


NOTHING: Final = Dropped(0, 0)


class Drops:
    """The drops of a socket since the previous call of `take`."""

    def __init__(self, sock: socket.socket) -> None:
        # The endpoint owns it.
        self._socket = sock
        # The socket's counter at the last call. Its earlier drops belong to the process that passed the socket.
        self._counter = read_drops(sock)
        # All drops so far, and those of them that were reported as junk and as lost.
        self._all = self._reported_junk = self._reported_lost = 0
        # The namespace's counter at the beginning.
        self._lost_before = read_lost()

    def take(self, *, filtered: bool) -> Dropped:
        """Return the new drops. Without a filter all of them were lost (or had a wrong checksum)."""
        counter = read_drops(self._socket)
        # The counter has 32 bits.
        new = (counter - self._counter) % _WRAP
        if not new:
            return NOTHING
        self._counter = counter
        self._all += new
        # Read after the socket's own counter, so that it includes every loss that the other one does.
        lost = read_lost() if filtered else None
        most = self._all if lost is None or self._lost_before is None else lost - self._lost_before
        # Computed from the totals, because a report can't be taken back: what was reported as lost stays lost.
        junk = min(self._all - most, self._all - self._reported_lost) if filtered else 0
        new_junk = max(junk - self._reported_junk, 0)
        self._reported_junk += new_junk
        new_lost = self._all - self._reported_junk - self._reported_lost
        self._reported_lost += new_lost
        return Dropped(new_junk, new_lost)


def read_drops(sock: socket.socket) -> int:
    """Return the drop counter of a socket, which wraps at 32 bits."""
    drops: int = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _MEMINFO.size))[-1]
    return drops


def read_lost() -> int | None:
    """Return how many UDP datagrams found a full buffer in this network namespace; None if /proc can't be read."""
    try:
        udp = [line.split()[1:] for line in (_PROC / "snmp").read_text().splitlines() if line.startswith("Udp:")]
        # The file has two lines for each protocol.
        names, numbers = udp
        lost = sum(int(number) for name, number in zip(names, numbers, strict=True) if name in _LOST)
    except (OSError, ValueError):
        return None
    try:
        udp6 = map(str.split, (_PROC / "snmp6").read_text().splitlines())
        return lost + sum(int(number) for name, number in udp6 if name in _LOST6)
    except OSError:
        # A kernel without IPv6.
        return lost
