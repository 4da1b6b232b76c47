"""The systemd journal's native protocol: a log record with fields of its own, in one datagram.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: `NAME=value` and a newline; a value with a newline in it stands behind its
name, a newline and its length (64 bits, little endian) instead.
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")


def leads_to_journal(descriptor: int, journal_stream: str | None) -> bool:
    """Tell whether a descriptor is the stream to the journal that $JOURNAL_STREAM names (systemd.exec(5))."""
    try:
        about = os.fstat(descriptor)
    except OSError:
        return False
    return journal_stream == f"{about.st_dev}:{about.st_ino}"


class Journald:
    """A channel to the journal. Nothing waits: what isn't taken at once has to go another way."""

    def __init__(self, path: Path = SOCKET) -> None:
        """Nobody need listen there yet: that shows at each record."""
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        """Close the channel."""
        self._socket.close()

    def send(self, fields: Iterable[tuple[str, str]]) -> None:
        """Send one record. Raises OSError where the journal doesn't take it, or not at once."""
        self._socket.sendto(encode(fields), self._path)


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a record's octets; names are of A-Z, 0-9 and _, as the journal wants them."""
    return b"".join(
        _encode_field(name.encode("ascii"), value.encode("utf-8", "backslashreplace")) for name, value in fields
    )


def _encode_field(name: bytes, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name, len(value).to_bytes(8, "little"), value)
    return b"%b=%b\n" % (name, value)
