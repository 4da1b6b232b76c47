"""Correct a wrong answer of qemu's user emulation, in every Python process of the foreign root.

For SO_MEMINFO, qemu returns four octets instead of 36. The daemon and its tests read two of its numbers, which
/proc/net/udp has too.
"""

import os
import socket
import struct
from pathlib import Path
from typing import Any, Final

_SO_MEMINFO: Final = 55
_NUMBERS: Final = 9
_getsockopt: Final[Any] = socket.socket.getsockopt


def getsockopt(sock: socket.socket, level: int, option: int, *size: int) -> Any:  # noqa: ANN401 - as the original
    """Return the value of a socket option; in that of SO_MEMINFO, the numbers that nothing here reads are 0."""
    if (level, option) != (socket.SOL_SOCKET, _SO_MEMINFO):
        return _getsockopt(sock, level, option, *size)
    queued, drops = _queued_and_drops(sock)
    return struct.pack(f"={_NUMBERS}I", queued, *[0] * (_NUMBERS - 2), drops)[: size[0]]


def _queued_and_drops(sock: socket.socket) -> tuple[int, int]:
    """Return the memory of queued datagrams and the number of drops; 0 and 0 for a socket that is not a UDP socket."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    for table in ("udp", "udp6"):
        # /proc/net would be that of the first thread, which may be in another network namespace.
        for line in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] == inode:
                return int(fields[4].partition(":")[2], 16), int(fields[12])
    return 0, 0


socket.socket.getsockopt = getsockopt  # type: ignore[assignment, method-assign]
