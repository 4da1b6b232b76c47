"""The native protocol of the systemd journal: a log record with searchable fields, in one datagram.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: `NAME=value` and a newline for each field. If the value contains a newline,
the name is followed by a newline, the length of the value (64 bits, little endian), the value and a newline.
"""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

SOCKET: Final = Path("/run/systemd/journal/socket")


def leads_to_journal(descriptor: int, journal_stream: str | None) -> bool:
    """Return whether a descriptor is the stream to the journal that $JOURNAL_STREAM names (systemd.exec(5))."""
    # A process inherits the variable even if its output was redirected, so device and inode are compared.
    try:
        about = os.fstat(descriptor)
    except OSError:
        return False
    return journal_stream == f"{about.st_dev}:{about.st_ino}"


class Journald:
    """A channel to the journal, which never blocks."""

    def __init__(self, path: Path = SOCKET) -> None:
        """Open the channel. An error of the path shows when a record is sent."""
        # The address for each record: unlike a connected socket, it is valid again after the journal has restarted.
        self._path = str(path)
        # A journal that does not read must not stop the daemon.
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def close(self) -> None:
        """Close the channel."""
        self._socket.close()

    def send(self, fields: Iterable[tuple[str, str]]) -> None:
        """Send one record. Raises OSError if the journal does not take it at once."""
        self._socket.sendto(encode(fields), self._path)


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return the octets of a record; names consist of A-Z, 0-9 and _, as the journal requires."""
    record = b""
    for name, text in fields:
        value = text.encode("utf-8", "backslashreplace")
        # A line break would end the value, so its length comes before it.
        border = b"\n%b" % len(value).to_bytes(8, "little") if b"\n" in value else b"="
        record += b"%b%b%b\n" % (name.encode("ascii"), border, value)
    return record
