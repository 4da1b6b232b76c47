"""UDP sockets: octets in, batches of Datagrams out, each stamped with the time of its arrival.

The kernel's socket buffer is the only queue. Sockets are read by the loop's reader callback instead of a transport: all
that waits is then taken at once, so that one commit can serve many datagrams, and what waits at a stop is still taken.

A dual-stack socket shows an IPv4 sender as ::ffff:a.b.c.d, and a real IPv6 packet can carry the same source address.
The socket filter refuses such packets, but a socket that the service manager passes may have queued one before the
filter was attached. So the prefix is removed only if the kernel proves that the packet is IPv4: with IP_RECVTOS it adds
a record of level IPPROTO_IP to each IPv4 packet as it is read, and to no IPv6 packet. Without that record, and always
on an IPv6-only socket, the source stays ::ffff:a.b.c.d, which no `sources` admit.
"""

import asyncio
import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from math import inf
from typing import Any, Final, NamedTuple, Protocol

from dmnotid.config.values import ListenAddress
from dmnotid.errors import EndpointError
from dmnotid.host.log import logger
from dmnotid.intake import socketfilter
from dmnotid.intake.drops import NOTHING, Dropped, Drops
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram

MAX_DATAGRAM_OCTETS: Final = 65_535
BATCH: Final = 64
"""How many datagrams are taken at once at most, before hooks and timers get their turn."""

LONGEST: Final = 0.01
"""How long (seconds) datagrams are taken at once: fewer than a batch, where each takes its time to judge."""

PAUSE: Final = 1.0
"""How long a socket rests after an error of the kernel's (seconds)."""

SOON: Final = 0.05
"""How long after a datagram it is looked what was dropped (seconds): the session that it starts goes first."""

DRAIN: Final = 1.0
"""How long what waits in the socket buffers is taken at the end (seconds): a flood must not keep the daemon from it."""

DISCARD_PORT: Final = 9
MAPPED: Final = "::ffff:"

ANCILLARY_OCTETS: Final = 512
"""Room for the records of one datagram, those included that a socket unit asks for (PassPacketInfo=, Timestamping=)."""

_IPV6_PARTS: Final = 4

SO_RCVBUFFORCE: Final = 33
"""asm-generic/socket.h."""

_NOBODY: Final = Source("", 0)

Deliver = Callable[[Iterable[Datagram]], None]
"""Gets datagrams that are taken out of the socket as they are asked for, to the last."""


class Intake(NamedTuple):
    """What the kernel does with what arrives before it is read.

    `receive_buffer` is in octets, None for the kernel's own choice. Without `junk`, what can be no push is refused.
    What was dropped is looked for every `look_every` seconds while datagrams come.
    """

    receive_buffer: int | None = None
    junk: bool = True
    look_every: float = 60


UNTOUCHED: Final = Intake()
Report = Callable[[str, Dropped], None]
"""Gets the address of a socket, and what it dropped."""


class Keeper(Protocol):
    """Who holds on to sockets while this program restarts."""

    def keep(self, sock: socket.socket) -> None:
        """Hold on to it too."""

    def let_go(self, sock: socket.socket) -> None:
        """Hold on to it no longer."""


class Endpoint:
    """One bound UDP socket; `deliver` gets what arrives and must not raise."""

    def __init__(self, sock: socket.socket, deliver: Deliver, report: Report | None = None) -> None:
        """`sock` is bound; the endpoint owns it from here. `report` gets what the kernel drops."""
        self.socket = sock
        self._deliver = deliver
        self._report = report
        self._intake = UNTOUCHED
        self._drops = Drops(sock)
        self._taken = 0
        self._look: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Whether IPv4 packets arrive here as well, with senders in ::ffff:0:0/96. The kernel sets IPV6_V6ONLY itself on
        # a socket that is bound to one IPv6 address.
        v6 = sock.family == socket.AF_INET6
        self._dual = v6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        # Whether the kernel refuses IPv6 packets with such a sender. Every later filter does so too.
        self._guarded = v6 and self._guard()
        sock.setblocking(False)  # noqa: FBT003 - the standard library takes it by position

    def __str__(self) -> str:
        """`[::]:2948`, with the port that the kernel chose where 0 was asked for."""
        return str(source_of(self.socket.getsockname()))

    @property
    def can_be_deceived(self) -> bool:
        """Whether no filter keeps IPv6 packets from passing for IPv4."""
        return self._dual and not self._guarded

    def _guard(self) -> bool:
        try:
            if self._dual:
                self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            socketfilter.attach(self.socket, junk=True)
        except OSError:  # `configure` tries it again, and logs it
            return False
        return True

    def configure(self, intake: Intake) -> None:
        """Let the kernel do with what arrives as `intake` says; what it can't do is logged."""
        self._tell_drops()
        self._intake = intake
        try:
            socketfilter.attach(self.socket, junk=intake.junk)
        except OSError as error:  # all of it is still refused by the decoder
            logger.warning("socket filter missing", listen=str(self), problem=str(error))
            self._intake = intake._replace(junk=True)
        if intake.receive_buffer is not None:
            self._set_receive_buffer(intake.receive_buffer)

    def _set_receive_buffer(self, octets: int) -> None:
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, octets)
        except PermissionError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)
        granted = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # it shows what it takes for itself
        if granted < octets:
            problem = "the kernel grants no more: net.core.rmem_max"
            logger.warning(
                "receive buffer reduced", listen=str(self), octets=granted, configured=octets, problem=problem
            )

    def open(self) -> None:
        """Begin to receive on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.socket.fileno(), self.receive)

    def receive(self) -> int:
        """Deliver at most one batch of what waits; how many datagrams that were."""
        self._taken = 0
        waiting = self._waiting()
        first = next(waiting, None)
        if first is not None:
            self._deliver(chain((first,), waiting))
            if self._look is None and self._loop is not None:
                self._look = self._loop.call_later(SOON, self._look_first)
        return self._taken

    def _waiting(self) -> Iterator[Datagram]:
        """Take one datagram after the other out of the socket, as they are asked for; a batch at most."""
        receive = self._receive_proven if self._dual else self.socket.recvfrom
        now, until = time.time(), time.monotonic() + LONGEST
        address, source = None, _NOBODY
        try:
            while self._taken < BATCH and (not self._taken or time.monotonic() < until):
                payload, sender = receive(MAX_DATAGRAM_OCTETS)
                self._taken += 1
                if sender != address:
                    address, source = sender, source_of(sender)
                yield Datagram(payload, source, now)
        except BlockingIOError:
            return
        except OSError as error:
            logger.error("receive failed", listen=str(self), problem=str(error), again_in=PAUSE)
            self._rest()

    def _receive_proven(self, octets: int) -> tuple[bytes, tuple[Any, ...]]:
        """Receive as recvfrom does, with the sender of a proven IPv4 packet as an IPv4 socket shows it."""
        payload, records, _, sender = self.socket.recvmsg(octets, ANCILLARY_OCTETS)
        if any(level == socket.IPPROTO_IP for level, _, _ in records):
            return payload, (sender[0].removeprefix(MAPPED), sender[1])
        return payload, sender

    def _look_first(self) -> None:
        """Tell what was dropped before the first datagram in a long time, or beside it."""
        self._tell_drops()
        if self._loop is not None:
            self._look = self._loop.call_later(self._intake.look_every, self._look_again)

    def _look_again(self) -> None:
        """Tell what was dropped since datagrams began to come; the next one that comes brings the next look.

        So nothing wakes a daemon to which nothing comes, or nothing but junk.
        """
        self._look = None
        self._tell_drops()

    def _tell_drops(self) -> None:
        dropped = self._drops.take(filtered=self._guarded or not self._intake.junk)
        if self._report is not None and dropped is not NOTHING:
            self._report(str(self), dropped)

    def _rest(self) -> None:
        """Read on in a while: an error that stays must not keep the program busy."""
        if self._loop is not None:
            self._loop.remove_reader(self.socket.fileno())
            self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        if self._loop is not None:
            self._loop.add_reader(self.socket.fileno(), self.receive)

    def turn_away(self) -> None:
        """Take no new datagram: they go to another socket that has the address, or to nobody. What waits stays.

        A connected socket gets what its peer sends, and from this one, a port of its own address, nothing ever came.
        """
        host, _, *more = self.socket.getsockname()
        with suppress(OSError):  # no route to there: then what comes until it is closed is lost
            self.socket.connect((host, DISCARD_PORT, *more))

    def close(self, deadline: float = inf) -> None:
        """Take what still waits in the socket buffer, then close.

        Bounds: about what the buffer held, and `deadline` on the monotonic clock (seconds).
        """
        if self._loop is not None:
            self._loop.remove_reader(self.socket.fileno())
            self._loop = None
        if self._look is not None:
            self._look.cancel()
        # The buffer holds at most as many datagrams as it has octets; a flood must not keep the daemon from stopping.
        room = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        while room > 0 and time.monotonic() < deadline and (taken := self.receive()):
            room -= taken
        self._tell_drops()
        self.socket.close()


def source_of(address: tuple[Any, ...]) -> Source:
    """Return an address of the kernel's as people write it: a link-local one gets its zone."""
    host, port = address[0], address[1]
    if len(address) == _IPV6_PARTS and address[3] and "%" not in host:
        return Source(f"{host}%{_zone(address[3])}", port)
    return Source(host, port)


def _zone(index: int) -> str:
    try:
        name = socket.if_indextoname(index)
        name.encode()
    except (OSError, UnicodeEncodeError):  # gone since, or of octets that are no text: the journal could not hold it
        return str(index)
    return name


class Binding(NamedTuple):
    """What a socket is bound to; `copy` tells addresses with port 0 apart that are given more than once."""

    address: ListenAddress
    ipv6_only: bool = False
    copy: int = 0


def bindings(addresses: Sequence[ListenAddress]) -> list[Binding]:
    """Say how each of the addresses of a configuration is bound beside the others."""
    found: list[Binding] = []
    for at, address in enumerate(addresses):
        # A dual-stack [::] would take the port from an IPv4 address that is listed as well.
        alone = any(other.port == address.port and ":" not in other.host for other in addresses)
        found.append(Binding(address, alone and ":" in address.host, addresses[:at].count(address)))
    return found


class Endpoints:
    """The sockets of a configuration; they can be exchanged one by one while the others go on.

    Sockets that somebody else has bound for this program are used instead, as long as it runs.
    """

    def __init__(self, deliver: Deliver, keeper: Keeper | None = None, report: Report | None = None) -> None:
        """Nothing is bound yet; what is bound here is handed to `keeper` as well, and what is dropped to `report`."""
        self._deliver = deliver
        self._report = report
        self._intake = UNTOUCHED
        self._keeper = keeper
        self._open: dict[Binding, Endpoint] = {}
        self._fixed: list[Binding] = []
        self._receiving = False

    def __iter__(self) -> Iterator[Endpoint]:
        """In the order of the configuration."""
        return iter(list(self._open.values()))

    def configure(self, intake: Intake) -> None:
        """Let all sockets, also those that come later, go by this; passed ones keep the receive buffer they have."""
        if intake != self._intake:
            self._intake = intake
            for binding, endpoint in self._open.items():
                endpoint.configure(self._intake_of(binding))

    def _intake_of(self, binding: Binding) -> Intake:
        return self._intake._replace(receive_buffer=None) if binding in self._fixed else self._intake

    def take_over(self, sock: socket.socket) -> None:
        """Use a socket that another process has bound for this one: no configuration exchanges it."""
        self._fixed.append(self._adopt(sock))

    def resume(self, sock: socket.socket) -> None:
        """Use a socket that was kept: `bind` lets it stay, or exchanges it."""
        self._adopt(sock)

    def _adopt(self, sock: socket.socket) -> Binding:
        binding = _binding_of(sock)
        while binding in self._open:
            binding = binding._replace(copy=binding.copy + 1)
        self._open[binding] = Endpoint(sock, self._deliver, self._report)
        return binding

    def bind(self, addresses: Sequence[ListenAddress], *, ipv4_sources: bool = False) -> None:
        """Bind a socket for each of these addresses, and close those that are for others.

        What stands in both stays open, and where sockets were taken over, these addresses don't count. All or nothing:
        EndpointError leaves everything as it was. Where an old address is in the way of a new one (`[::]` of one of the
        same port in IPv4), no datagram is lost between the two. With `ipv4_sources` (IPv4 networks in `sources`),
        EndpointError for a dual-stack socket that takes no socket filter.
        """
        wanted = self._fixed or bindings(addresses)
        if self._fixed and not _same_places(addresses, self._fixed):
            facts = {"configured": list(map(str, addresses)), "instead": list(map(str, self))}
            logger.warning("listen ignored", problem="sockets are passed by the service manager", **facts)
        gone = [binding for binding in self._open if binding not in wanted]
        new: dict[Binding, Endpoint] = {}
        try:
            for binding in wanted:
                if binding not in self._open:
                    new[binding] = self._bound(binding, gone)
                if ipv4_sources:
                    _refuse_deceivable(new.get(binding) or self._open[binding])
        except EndpointError:
            for endpoint in new.values():
                endpoint.close()
            raise
        self._add(new)
        deadline = time.monotonic() + DRAIN
        for binding in gone:
            endpoint = self._open.pop(binding)
            if self._keeper is not None:
                self._keeper.let_go(endpoint.socket)
            endpoint.turn_away()
            endpoint.close(deadline)
        self._open = {binding: self._open[binding] for binding in wanted}

    def open(self) -> None:
        """Begin to receive on the running loop, on these and on all that come later."""
        self._receiving = True
        for endpoint in self:
            endpoint.open()
            logger.info("socket listening", listen=str(endpoint))

    def close(self) -> None:
        """Take what still waits in the sockets, for a limited time, and close them."""
        deadline = time.monotonic() + DRAIN
        while self._open:
            self._open.popitem()[1].close(deadline)

    def _add(self, endpoints: dict[Binding, Endpoint]) -> None:
        self._open.update(endpoints)
        if self._keeper is not None:
            for endpoint in endpoints.values():
                self._keeper.keep(endpoint.socket)
        if self._receiving:
            for endpoint in endpoints.values():
                endpoint.open()
                logger.info("socket listening", listen=str(endpoint))

    def _bound(self, binding: Binding, gone: Iterable[Binding]) -> Endpoint:
        rivals = [self._open[it].socket for it in gone if it.address.port == binding.address.port]
        sock = bind(binding.address, ipv6_only=binding.ipv6_only, rivals=rivals)
        endpoint = Endpoint(sock, self._deliver, self._report)
        if self._intake != UNTOUCHED:
            endpoint.configure(self._intake)
        return endpoint


def _refuse_deceivable(endpoint: Endpoint) -> None:
    """Raise EndpointError for an endpoint on which no filter keeps IPv6 packets from passing for IPv4."""
    if endpoint.can_be_deceived:
        port = endpoint.socket.getsockname()[1]
        message = (
            f"listen: {endpoint}: the kernel takes no socket filter here, so an IPv6 packet could pass for one from the"
            f" IPv4 networks in `sources`: list both 0.0.0.0:{port} and [::]:{port}, or in a socket unit set"
            f" BindIPv6Only=ipv6-only and add ListenDatagram=0.0.0.0:{port}"
        )
        raise EndpointError(message)


def _binding_of(sock: socket.socket) -> Binding:
    """Say how a socket is bound that is bound already."""
    host, port = source_of(sock.getsockname())
    v6 = sock.family == socket.AF_INET6
    alone = v6 and bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY))
    return Binding(ListenAddress(host, port), alone)


def _same_places(addresses: Iterable[ListenAddress], fixed: Iterable[Binding]) -> bool:
    """Tell whether sockets are bound where a configuration wants it; `[::]` without IPv6 is 0.0.0.0."""
    there = {(binding.address.host, binding.address.port) for binding in fixed}
    return all(
        (host, port) in there or (host == "::" and ("0.0.0.0", port) in there)  # noqa: S104
        for host, port in addresses
    )


def bind(address: ListenAddress, *, ipv6_only: bool = False, rivals: Sequence[socket.socket] = ()) -> socket.socket:
    """Bind one UDP socket; `[::]` takes IPv4 too unless `ipv6_only`, and is 0.0.0.0 on a kernel without IPv6.

    Raises EndpointError. The port is never shared with another process; `rivals` are sockets of this one that may have
    the address, and are closed next.
    """
    try:
        return _bind(address, ipv6_only=ipv6_only, rivals=rivals)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT and address.host == "::" and not ipv6_only:
            logger.warning("IPv6 missing", listen=str(address), instead=f"0.0.0.0:{address.port}")
            return bind(ListenAddress("0.0.0.0", address.port), rivals=rivals)  # noqa: S104 - [::] without IPv6
        message = f"listen: {address}: {error.strerror or error}"
        raise EndpointError(message) from error


def _bind(address: ListenAddress, *, ipv6_only: bool, rivals: Sequence[socket.socket]) -> socket.socket:
    family, where = _place_of(address)
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(ipv6_only))
            # Before the first datagram can arrive. Endpoint attaches it to passed sockets too, and handles a failure.
            with suppress(OSError):
                socketfilter.attach(sock, junk=True)
        _take(sock, where, rivals)
    except OSError:
        sock.close()
        raise
    return sock


def _place_of(address: ListenAddress) -> tuple[int, tuple[Any, ...]]:
    """Return the family and the kernel's form of an address; a zone (fe80::1%eth0) gets its number. Raises OSError.

    Only literals get here: the resolver, which would be loaded for it, knows no more.
    """
    host, _, zone = address.host.partition("%")
    if ":" not in host:
        return socket.AF_INET, (host, address.port)
    index = 0 if not zone else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return socket.AF_INET6, (host, address.port, 0, index)


def _take(sock: socket.socket, where: tuple[Any, ...], rivals: Sequence[socket.socket]) -> None:
    try:
        sock.bind(where)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not rivals:
            raise
        # For the length of one call, and with sockets of this user alone: closing the rivals first would leave the
        # port to anybody for as long as it takes to empty them, and lose what comes meanwhile.
        shared = sock, *rivals
        try:
            _set_reuse_port(shared, 1)
            sock.bind(where)
        finally:
            _set_reuse_port(shared, 0)


def _set_reuse_port(sockets: Iterable[socket.socket], value: int) -> None:
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)
