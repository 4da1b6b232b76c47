"""Sends datagrams faster than any receiver takes them: UDP segmentation offload makes many of one system call."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Final, Self

UDP_SEGMENT: Final = 103
"""The option of linux/udp.h: what is sent is cut into datagrams of so many octets, the last may be shorter."""

SEGMENTS: Final = 64
"""How many datagrams one call sends at most; kernels since 6.9 take more."""

MAX_OCTETS: Final = 65_000
TICK: Final = 0.001
"""At a given rate, so often (seconds) a share is sent."""

_FORK: Final = get_context("fork")
_FOR_EVER: Final = float("inf")


class Sender:
    """A connected socket; all its datagrams have one size."""

    def __init__(self, address: tuple[str, int], datagrams: Sequence[bytes]) -> None:
        """`datagrams` are sent in turn, again and again."""
        size = len(datagrams[0])
        if any(len(datagram) != size for datagram in datagrams):
            message = "segmentation needs datagrams of one size"
            raise ValueError(message)
        self._at_once = min(SEGMENTS, MAX_OCTETS // size)
        self._size = size
        self._datagrams = list(datagrams)
        repeated = self._datagrams * (1 + self._at_once // len(self._datagrams))
        steps = range(0, len(repeated) - self._at_once + 1, self._at_once)
        self._blocks = [b"".join(repeated[at : at + self._at_once]) for at in steps]
        self._next = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(address)
        self._socket.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)

    def __enter__(self) -> Self:
        """Send with it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._socket.close()

    def send(self, count: int = SEGMENTS) -> int:
        """Send at most so many; how many that were."""
        count = min(count, self._at_once)
        block = self._blocks[self._next]
        self._next = (self._next + 1) % len(self._blocks)
        with suppress(ConnectionRefusedError):  # what an earlier one found
            self._socket.send(block if count == self._at_once else block[: count * self._size])
            return count
        return 0

    def flood(self, seconds: float, rate: float = _FOR_EVER, until: Connection | None = None) -> int:
        """Send for so long, or until something comes from `until`; how many that were."""
        began, sent = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds and not (until is not None and until.poll()):
            due = SEGMENTS if rate == _FOR_EVER else int(rate * passed) - sent
            if due <= 0:
                time.sleep(TICK)
            while due > 0:
                done = self.send(due)
                sent, due = sent + done, due - max(done, 1)
        return sent


class Flood:
    """A flood that another process sends; `sent` is known once it is over."""

    sent = 0


@contextmanager
def flooding(
    address: tuple[str, int], datagrams: Sequence[bytes], rate: float = _FOR_EVER, processors: Sequence[int] = ()
) -> Iterator[Flood]:
    """Send for as long as the context lasts, from these processors."""
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_flood, args=(theirs, address, datagrams, rate, processors), daemon=True)
    process.start()
    found = Flood()
    try:
        yield found
    finally:
        ours.send(None)
        found.sent = ours.recv()
        process.join()


def _flood(
    control: Connection, address: tuple[str, int], datagrams: Sequence[bytes], rate: float, processors: Sequence[int]
) -> None:
    if processors:
        os.sched_setaffinity(0, processors)
    with Sender(address, datagrams) as sender:
        control.send(sender.flood(_FOR_EVER, rate, control))
