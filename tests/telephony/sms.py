"""SMS-DELIVER, as a network sends it (3GPP TS 23.040): parts with a user data header of ports."""

from typing import Final

PUSH_PORT: Final = 2948
"""The port of connectionless WAP Push."""

MAX_USER_DATA: Final = 140
"""Octets of one SMS, its user data header included."""

# The data coding schemes (3GPP TS 23.038).
_OCTETS: Final = 0x04
_UCS2: Final = 0x08

# 2026-11-30 01:02:03 +00, each octet with its digits swapped.
_SENT_AT: Final = bytes.fromhex("62110310203000")
# Number of digits, an international number, and the digits swapped in the same way.
_SENDER: Final = bytes.fromhex("0791515501f7")
SENDER: Final = "+1555107"


def deliver(data: bytes, *, port: int | None = PUSH_PORT, source_port: int = 9200, reference: int = 1) -> list[bytes]:
    """Return the TPDUs that carry 8-bit data to a port (None: without a header), in as many parts as it needs."""
    ports = b"" if port is None else b"\x05\x04%b%b" % (port.to_bytes(2), source_port.to_bytes(2))
    room = MAX_USER_DATA - len(ports) - 1
    if len(data) <= room:
        return [_tpdu(ports, data)]
    room -= 5
    pieces = [data[start : start + room] for start in range(0, len(data), room)]
    return [
        _tpdu(b"%b\x00\x03%b" % (ports, bytes([reference, len(pieces), number])), piece)
        for number, piece in enumerate(pieces, 1)
    ]


def text(characters: str) -> bytes:
    """Return the TPDU of a short text (UCS-2)."""
    return _tpdu(b"", characters.encode("utf-16-be"), _UCS2)


def _tpdu(header: bytes, data: bytes, coding: int = _OCTETS) -> bytes:
    user_data = bytes([len(header)]) + header + data if header else data
    # SMS-DELIVER without more messages to send; 0x40: a user data header is there.
    first = 0x44 if header else 0x04
    return bytes([first]) + _SENDER + bytes([0, coding]) + _SENT_AT + bytes([len(user_data)]) + user_data
