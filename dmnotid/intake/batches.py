"""Reading a socket in batches: octets in, Datagrams out, each with its source and its time of arrival.

The kernel's queue of the socket is the only one. The loop's reader callback reads the socket: one call takes every
queued datagram, so that one commit can cover them all, and shutdown can drain the queue.

    closed --open--> receiving --error of the kernel--> resting --PAUSE over--> receiving
    any of them --close: the queue is drained--> closed
"""

import asyncio
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

from dmnotid.host.log import logger
from dmnotid.intake.drops import NOTHING
from dmnotid.policy.reception import Datagram
from dmnotid.wire.wsp import DEFAULT_MAX_OCTETS

BATCH: Final = 64
"""Maximum number of datagrams taken in one turn of the loop, so that hooks, timers and other sockets get theirs."""

PAUSE: Final = 1.0
"""Time without reading after an error of the kernel, in seconds."""

Deliver = Callable[[Sequence[Datagram]], None]
"""Takes a batch, which is not empty and has one time of arrival. Must not raise."""


class BatchReader(ABC):
    """One bound datagram socket, which the reader owns and closes."""

    @property
    def door(self) -> str | None:
        """The name of the door, None for a UDP socket."""
        return None

    @property
    def lost(self) -> bool:
        """Whether it is a door that no sender can reach."""
        return False

    def __init__(self, sock: socket.socket, deliver: Deliver) -> None:
        # The bound socket, which `close` closes.
        self.socket = sock
        # Called with each batch.
        self._deliver = deliver
        # Maximum length of a datagram; a longer one is cut off after one octet more.
        self.max_octets = DEFAULT_MAX_OCTETS
        # Number of datagrams that were delivered, and of those that the kernel has reported as dropped.
        self.received = 0
        self.dropped = NOTHING
        # The loop that reads the socket, None while the reader is closed.
        self._loop: asyncio.AbstractEventLoop | None = None
        sock.setblocking(False)  # noqa: FBT003 - the standard library takes it by position

    @abstractmethod
    def read(self, now: float) -> Iterator[Datagram]:
        """Yield queued datagrams with `now` as their time of arrival (POSIX seconds). Raises OSError."""

    def open(self) -> None:
        """Receive on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.socket.fileno(), self.receive)

    def receive(self) -> int:
        """Deliver at most one batch of queued datagrams, and return their number."""
        batch: list[Datagram] = []
        try:
            # One time of arrival for the batch: no check of a datagram reads the clock. What is read before an error
            # stays in the batch.
            batch.extend(islice(self.read(time.time()), BATCH))
        except BlockingIOError:
            pass
        except OSError as error:
            logger.error("receive failed", listen=str(self), problem=str(error), again_in=PAUSE)
            # An error that persists must not keep the program busy.
            if self._loop is not None:
                self._loop.remove_reader(self.socket.fileno())
                self._loop.call_later(PAUSE, self._resume)
        if batch:
            self._deliver(batch)
            self.received += len(batch)
        return len(batch)

    def _resume(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self.socket.fileno(), self.receive)

    def close(self, deadline: float) -> None:
        """Deliver the queued datagrams, then close. At `deadline` (seconds on the monotonic clock) the rest is lost."""
        self.drain(deadline)
        self.socket.close()

    def drain(self, deadline: float) -> None:
        """Deliver the queued datagrams, and receive no more."""
        if self._loop is not None:
            self._loop.remove_reader(self.socket.fileno())
            self._loop = None
        # A flood must not keep the daemon from stopping.
        while time.monotonic() < deadline and self.receive():
            pass
