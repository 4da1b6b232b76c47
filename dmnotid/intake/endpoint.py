"""One bound UDP socket: the filter in front of it, the buffer behind that, and the senders of its datagrams.

A dual-stack socket shows an IPv4 sender as ::ffff:a.b.c.d, and a real IPv6 packet can carry the same source address.
The socket filter refuses such packets, but a socket that the service manager passes may have queued one before the
filter was attached. So the prefix is removed only if the kernel proves that the packet is IPv4: with IP_RECVTOS it adds
a record of level IPPROTO_IP to each IPv4 packet as it is read, and to no IPv6 packet. Without that record, and always
on an IPv6-only socket, the source stays ::ffff:a.b.c.d, which no `sources` admit.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

from dmnotid.host.log import logger
from dmnotid.intake import socketfilter
from dmnotid.intake.batches import BatchReader, Deliver
from dmnotid.intake.drops import NOTHING, Dropped, Drops
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram
from dmnotid.wire.wsp import DEFAULT_MAX_OCTETS

SOON: Final = 0.05
"""Time from a datagram to the look at the drop counter, in seconds: the session that it starts goes first."""

MAPPED: Final = "::ffff:"

ANCILLARY_OCTETS: Final = 512
"""Room for the records of one datagram, also those that a socket unit requests (PassPacketInfo=, Timestamping=)."""

SO_RCVBUFFORCE: Final = 33
"""asm-generic/socket.h."""

Report = Callable[[str, Dropped], None]
"""Takes the address of a socket, and what the kernel dropped there."""


class Intake(NamedTuple):
    """What the kernel does with a datagram before it is read.

    `receive_buffer` is in octets, None to leave it unchanged. Without `junk` the kernel refuses datagrams that can't be
    a push, and those of more than `max_octets`, which are cut off after one octet more if it does not. While datagrams
    arrive, the drop counter is read at most every `look_every` seconds.
    """

    receive_buffer: int | None = None
    junk: bool = True
    look_every: float = 60
    max_octets: int = DEFAULT_MAX_OCTETS


class Endpoint(BatchReader):
    """One bound UDP socket, which the endpoint owns and closes."""

    def __init__(self, sock: socket.socket, deliver: Deliver, report: Report | None = None) -> None:
        super().__init__(sock, deliver)
        # Called if the kernel dropped datagrams.
        self._report = report
        # What was last applied to the socket.
        self._intake = Intake()
        # The socket's drop counter, as far as it was reported.
        self._drops = Drops(sock)
        # Timer of the next look at the drop counter; none runs while no datagrams arrive.
        self._look: asyncio.TimerHandle | None = None
        # Time of the last look, on the loop's clock.
        self._looked_at = float("-inf")
        # Whether IPv4 packets arrive here as well, with senders in ::ffff:0:0/96. The kernel sets IPV6_V6ONLY itself on
        # a socket that is bound to one IPv6 address.
        v6 = sock.family == socket.AF_INET6
        self._dual = v6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        # Whether the kernel refuses IPv6 packets with such a sender. Every later filter does so too.
        self._guarded = False
        if v6:
            # `configure` attaches a filter again, and logs its failure.
            with suppress(OSError):
                if self._dual:
                    sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
                socketfilter.attach(sock, junk=True)
                self._guarded = True

    def __str__(self) -> str:
        """`[::]:2948`, with the port that the kernel chose if 0 was configured."""
        return str(source_of(self.socket.getsockname()))

    @property
    def can_be_deceived(self) -> bool:
        """Whether no filter keeps IPv6 packets from passing for IPv4."""
        return self._dual and not self._guarded

    def configure(self, intake: Intake) -> None:
        """Apply `intake`; a failure is logged, and reception goes on without it."""
        # The counter is read under the filter that raised it.
        self.report_drops()
        self._intake = intake
        self.max_octets = intake.max_octets
        try:
            socketfilter.attach(self.socket, junk=intake.junk, max_octets=intake.max_octets)
        except OSError as error:
            # The decoder refuses the same datagrams.
            logger.warning("socket filter missing", listen=str(self), problem=str(error))
            self._intake = intake._replace(junk=True)
        if intake.receive_buffer is not None:
            self._set_receive_buffer(intake.receive_buffer)

    def _set_receive_buffer(self, octets: int) -> None:
        try:
            # This one may exceed net.core.rmem_max, and needs CAP_NET_ADMIN.
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, octets)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)
        # The kernel doubles the value, for its own bookkeeping.
        granted = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        if granted < octets:
            problem = "the kernel grants no more than net.core.rmem_max"
            logger.warning(
                "receive buffer reduced", listen=str(self), octets=granted, configured=octets, problem=problem
            )

    def receive(self) -> int:
        """Deliver as every reader does, and schedule a look at the drop counter."""
        taken = super().receive()
        if taken and self._look is None and self._loop is not None:
            due = max(self._loop.time() + SOON, self._looked_at + self._intake.look_every)
            self._look = self._loop.call_at(due, self._look_for_drops)
        return taken

    def read(self, now: float) -> Iterator[Datagram]:
        """Yield queued datagrams; see BatchReader."""
        receive = self._receive_proven if self._dual else self.socket.recvfrom
        sender, source = None, Source("", 0)
        # One octet too many shows the decoder that the datagram is too long.
        room = self.max_octets + 1
        while True:
            payload, address = receive(room)
            # Most datagrams of a burst have one sender.
            if address != sender:
                sender, source = address, source_of(address)
            # tuple.__new__ skips the Python-level constructor of the NamedTuple.
            yield tuple.__new__(Datagram, (payload, source, now, None))

    def _receive_proven(self, octets: int) -> tuple[bytes, tuple[Any, ...]]:
        """Receive as recvfrom does, with the sender of a proven IPv4 packet as an IPv4 socket shows it."""
        payload, records, _, sender = self.socket.recvmsg(octets, ANCILLARY_OCTETS)
        if any(level == socket.IPPROTO_IP for level, _, _ in records):
            return payload, (sender[0].removeprefix(MAPPED), sender[1])
        return payload, sender

    def _look_for_drops(self) -> None:
        # The next datagram schedules the next look: a daemon that receives nothing, or junk alone, is not woken up.
        self._look = None
        if self._loop is not None:
            self._looked_at = self._loop.time()
        self.report_drops()

    def report_drops(self) -> None:
        """Report what the kernel dropped since the last call."""
        dropped = self._drops.take(filtered=self._guarded or not self._intake.junk)
        if dropped is NOTHING:
            return
        self.dropped = Dropped(self.dropped.junk + dropped.junk, self.dropped.lost + dropped.lost)
        if self._report is not None:
            self._report(str(self), dropped)

    def drain(self, deadline: float) -> None:
        """Deliver the queued datagrams, and receive no more."""
        if self._look is not None:
            self._look.cancel()
        super().drain(deadline)
        self.report_drops()


def source_of(address: tuple[Any, ...]) -> Source:
    """Return an address of the kernel as a Source; a link-local one gets its zone."""
    match address:
        # A link-local address is ambiguous without its interface.
        case (host, port, _, scope) if scope and "%" not in host:
            try:
                zone = socket.if_indextoname(scope)
                zone.encode()
            except (OSError, UnicodeEncodeError):
                # The interface is gone, or its name is not UTF-8, which the database can't store.
                zone = str(scope)
            return Source(f"{host}%{zone}", port)
    return Source(address[0], address[1])
