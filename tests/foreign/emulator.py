"""Correct what qemu's user emulation answers wrongly, in every Python of the foreign root.

It returns four octets of SO_MEMINFO, of which the daemon reads the ninth number, the drops of a socket; here that is 0.
"""

import socket
from typing import Any, Final

_SO_MEMINFO: Final = 55
_getsockopt: Final[Any] = socket.socket.getsockopt


def getsockopt(sock: socket.socket, level: int, option: int, *size: int) -> Any:  # noqa: ANN401 - as the original
    """Return the value of a socket option, and 0 in every octet that is missing."""
    value: Any = _getsockopt(sock, level, option, *size)
    return value.ljust(*size, b"\0") if (level, option) == (socket.SOL_SOCKET, _SO_MEMINFO) else value


socket.socket.getsockopt = getsockopt  # type: ignore[assignment, method-assign]
