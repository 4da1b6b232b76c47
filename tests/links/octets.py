"""Messages of rtnetlink, as the kernel builds them."""

import socket
from struct import pack

from dmnotid.links.rtnetlink import IFF_UP


def attribute(kind: int, value: bytes) -> bytes:
    return pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes, *, flags: int = 0, sequence: int = 1) -> bytes:
    return pack("=IHHII", len(body) + 16, kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def done(code: int = 0, *, flags: int = 0, sequence: int = 1) -> bytes:
    return message(3, pack("=i", code), flags=flags, sequence=sequence)


def link(*attributes: bytes, family: int = 0) -> bytes:
    return pack("=BxHiII", family, 1, 5, IFF_UP, 0) + b"".join(attributes)


def address(*attributes: bytes, family: int = socket.AF_INET, flags: int = 0) -> bytes:
    return pack("=4BI", family, 24, flags, 0, 5) + b"".join(attributes)


def route(
    *attributes: bytes, family: int = socket.AF_INET, length: int = 0, table: int = 254, kind: int = 1, flags: int = 0
) -> bytes:
    return pack("=8BI", family, length, 0, 0, table, 0, 0, kind, flags) + b"".join(attributes)
