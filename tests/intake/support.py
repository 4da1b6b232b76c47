"""Shared by the tests of intake: an inbox, and sockets whose queues can be looked at."""

import socket
import struct
from collections.abc import Iterable

import pytest

from dmnotid.config.values import ListenAddress
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram
from tests.support import eventually

LOOPBACK = ListenAddress("127.0.0.1", 0)
LOOPBACK6 = ListenAddress("::1", 0)

SO_MEMINFO = 55  # asm-generic/socket.h


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs ::1")


class Inbox:
    """Takes batches as the receiver does."""

    def __init__(self) -> None:
        self.batches: list[list[Datagram]] = []

    def __call__(self, batch: Iterable[Datagram]) -> None:
        self.batches.append(list(batch))

    @property
    def datagrams(self) -> list[Datagram]:
        return [datagram for batch in self.batches for datagram in batch]

    @property
    def payloads(self) -> list[bytes]:
        return [datagram.payload for datagram in self.datagrams]


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def send(to: tuple[str, int], *payloads: bytes) -> Source:
    """Send from a new socket on the same host, and return the source that the receiver must see."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((to[0], 0))
        for payload in payloads:
            sock.sendto(payload, to)
        return Source(to[0], port_of(sock))


def used_room(sock: socket.socket) -> int:
    """Return how many octets of the receive buffer are in use."""
    room: int = struct.unpack_from("I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[0]
    return room


async def fill(sock: socket.socket, count: int) -> list[bytes]:
    """Queue datagrams of one size in a socket, and return their payloads once all of them are there."""
    payloads = [number.to_bytes(4, "big") for number in range(count)]
    send(sock.getsockname(), payloads[0])
    each = await eventually(lambda: used_room(sock))
    send(sock.getsockname(), *payloads[1:])
    await eventually(lambda: used_room(sock) == count * each)
    return payloads
