"""The sockets of a configuration: how they are bound, opened and closed, and those that the service manager passes."""

import errno
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from dmnotid.config.values import DoorConfig, ListenAddress
from dmnotid.errors import EndpointError
from dmnotid.host.log import logger
from dmnotid.intake import socketfilter
from dmnotid.intake.batches import BatchReader, Deliver
from dmnotid.intake.endpoint import Endpoint, Intake, Report, source_of

if TYPE_CHECKING:
    from dmnotid.intake.doors import Doors

DRAIN: Final = 1.0
"""Maximum time to drain sockets that are closed, in seconds."""

IFNAMSIZ: Final = 16
"""linux/if.h: room for the name of an interface."""


class Binding(NamedTuple):
    """How a socket is bound; `copy` distinguishes equal addresses with port 0."""

    address: ListenAddress
    ipv6_only: bool = False
    copy: int = 0


def bindings(addresses: Sequence[ListenAddress]) -> list[Binding]:
    """Return how each of the addresses of a configuration is bound beside the others."""
    found: list[Binding] = []
    for index, address in enumerate(addresses):
        # A dual-stack [::] would take the port from an IPv4 address that is listed as well. No other IPv6 address is
        # bound differently beside one, so a reload that adds or removes the IPv4 address keeps its socket.
        beside_ipv4 = any(other.port == address.port and ":" not in other.host for other in addresses)
        found.append(Binding(address, beside_ipv4 and address.host == "::", addresses[:index].count(address)))
    return found


class Endpoints:
    """The endpoints and doors of a configuration. A reload opens and closes some of them while the others go on.

    Sockets that the service manager passes are used instead of configured addresses, as long as the process runs.
    """

    def __init__(
        self,
        deliver: Deliver,
        report: Report | None = None,
        passed: Iterable[socket.socket] = (),
        passed_doors: Sequence[socket.socket] = (),
    ) -> None:
        # What each endpoint gets.
        self._deliver = deliver
        self._report = report
        # What is applied to all endpoints, also to those that a reload opens.
        self._intake = Intake()
        # Endpoints on passed sockets; if there are any, `_bound` stays empty.
        self._passed = [Endpoint(sock, deliver, report) for sock in passed]
        # Endpoints on sockets that were bound here, in the order of the configuration.
        self._bound: dict[Binding, Endpoint] = {}
        # The Unix sockets that were passed, and all doors; None until there is one.
        self._passed_doors = passed_doors
        self._doors: Doors | None = None
        # Whether `open` was called.
        self._receiving = False

    def __iter__(self) -> Iterator[BatchReader]:
        """Iterate over endpoints and then doors, in the order of the configuration."""
        return iter([*self._udp, *(self._doors or ())])

    @property
    def _udp(self) -> list[Endpoint]:
        return [*self._passed, *self._bound.values()]

    def configure(self, intake: Intake) -> None:
        """Apply `intake` to all endpoints, also to later ones. Passed sockets keep their receive buffer."""
        # A reload that changes nothing here leaves the filters of the sockets alone.
        if intake == self._intake:
            return
        self._intake = intake
        if self._doors is not None:
            self._doors.configure(intake.max_octets)
        for endpoint in self._passed:
            # The socket unit sets it (ReceiveBuffer=).
            endpoint.configure(intake._replace(receive_buffer=None))
        for endpoint in self._bound.values():
            endpoint.configure(intake)

    def bind(
        self,
        addresses: Sequence[ListenAddress],
        doors: Sequence[DoorConfig] = (),
        *,
        given: bool = True,
        ipv4_sources: bool = False,
    ) -> None:
        """Bind sockets for new addresses and doors, and close those that are gone once their queue is drained.

        Addresses that are `given`, and are no default, are ignored with a warning if there are passed sockets. Raises
        EndpointError and changes nothing if an address or door can't be bound or, with `ipv4_sources` (IPv4 networks in
        `sources`), if a dual-stack socket has no socket filter.
        """
        if self._passed:
            self._check_passed(addresses if given else (), ipv4_sources=ipv4_sources)
        wanted = [] if self._passed else bindings(addresses)
        # All new addresses are bound before anything else changes, so that a refused reload changes nothing.
        new: dict[Binding, Endpoint] = {}
        try:
            for binding in wanted:
                if binding not in self._bound:
                    new[binding] = self._new_endpoint(binding)
                if ipv4_sources:
                    _refuse_deceivable(new.get(binding) or self._bound[binding])
            # The last that may fail, because it changes the doors.
            gone: list[BatchReader] = [*self._bind_doors(doors)]
        except EndpointError:
            for endpoint in new.values():
                # Not drained: the configuration that has this address is refused.
                endpoint.socket.close()
            raise
        if self._receiving:
            for endpoint in new.values():
                _open(endpoint)
        gone += (endpoint for binding, endpoint in self._bound.items() if binding not in wanted)
        self._bound = {binding: new.get(binding) or self._bound[binding] for binding in wanted}
        _close(gone)

    def _bind_doors(self, configs: Sequence[DoorConfig]) -> Sequence[BatchReader]:
        if self._doors is None:
            if not configs and not self._passed_doors:
                return ()
            # Without a door the daemon does not load the module.
            from dmnotid.intake.doors import Doors  # noqa: PLC0415

            self._doors = Doors(self._deliver, self._passed_doors)
            self._doors.configure(self._intake.max_octets)
            if self._receiving:
                self._doors.open()
        return self._doors.bind(configs)

    def _check_passed(self, addresses: Sequence[ListenAddress], *, ipv4_sources: bool) -> None:
        passed = {tuple(source_of(endpoint.socket.getsockname())) for endpoint in self._passed}
        # [::] on a kernel without IPv6 is 0.0.0.0.
        if not all(it in passed or (it.host == "::" and ("0.0.0.0", it.port) in passed) for it in addresses):  # noqa: S104
            facts = {"configured": list(map(str, addresses)), "instead": list(map(str, self))}
            logger.warning("listen ignored", problem="the service manager passes sockets", **facts)
        for endpoint in self._passed if ipv4_sources else ():
            # A passed socket got its filter when its endpoint was made.
            _refuse_deceivable(endpoint)

    def _new_endpoint(self, binding: Binding) -> Endpoint:
        address = binding.address
        try:
            sock = bind(address, ipv6_only=binding.ipv6_only)
        except EndpointError as error:
            in_use = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            for other in (bound.address for bound in self._bound if in_use and _overlap(address, bound.address)):
                message = f"listen: {address}: this daemon has {other} open, which a restart alone can exchange for it"
                raise EndpointError(message) from error
            raise
        endpoint = Endpoint(sock, self._deliver, self._report)
        # An endpoint is made with these values.
        if self._intake != Intake():
            endpoint.configure(self._intake)
        return endpoint

    def open(self) -> None:
        """Receive on the running loop, also on endpoints that a reload opens later."""
        self._receiving = True
        for endpoint in self._udp:
            _open(endpoint)
        if self._doors is not None:
            self._doors.open()

    def report_drops(self) -> None:
        """Report what the kernel dropped, also on sockets at which junk alone arrived: it wakes no endpoint."""
        for endpoint in self._udp:
            endpoint.report_drops()

    def close(self) -> None:
        """Drain all sockets for a limited time, and close them."""
        endpoints, doors = self._udp, self._doors
        # Emptied, so that a second call, which follows each orderly stop, does nothing.
        self._passed, self._bound, self._doors = [], {}, None
        _close(endpoints if doors is None else [*endpoints, doors])


def _open(endpoint: Endpoint) -> None:
    endpoint.open()
    # A socket unit may bind it to an interface (BindToDevice=), which no address shows.
    device = endpoint.socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, IFNAMSIZ)
    facts = {"device": device.rstrip(b"\0").decode(errors="backslashreplace")} if device else {}
    logger.info("socket listening", listen=str(endpoint), **facts)


def _close(endpoints: Iterable["BatchReader | Doors"]) -> None:
    # One deadline for all, so that floods on several sockets do not add up.
    deadline = time.monotonic() + DRAIN
    for endpoint in endpoints:
        endpoint.close(deadline)


def _overlap(one: ListenAddress, other: ListenAddress) -> bool:
    """Return whether two addresses can't be bound at once: [::] may take IPv4 too, 0.0.0.0 never takes IPv6."""
    hosts = {one.host, other.host}
    both_ipv4 = not any(":" in host for host in hosts)
    return one.port == other.port and (len(hosts) == 1 or "::" in hosts or (both_ipv4 and "0.0.0.0" in hosts))  # noqa: S104


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


def bind(address: ListenAddress, *, ipv6_only: bool = False) -> socket.socket:
    """Bind one UDP socket; [::] takes IPv4 too unless `ipv6_only`, and is 0.0.0.0 on a kernel without IPv6.

    Raises EndpointError. SO_REUSEADDR and SO_REUSEPORT are never set: they would let another process take the port.
    """
    try:
        return _bind(address, ipv6_only=ipv6_only)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT and address.host == "::" and not ipv6_only:
            instead = ListenAddress("0.0.0.0", address.port)  # noqa: S104
            logger.warning("IPv6 missing", listen=str(address), instead=str(instead))
            return bind(instead)
        in_use = error.errno == errno.EADDRINUSE
        owner = ": another process has it, or systemd for dmnotid.socket" if in_use else ""
        raise EndpointError(f"listen: {address}: {error.strerror or error}{owner}") from error


def _bind(address: ListenAddress, *, ipv6_only: bool) -> socket.socket:
    # Literals alone get here, so the resolver is not needed.
    host, _, zone = address.host.partition("%")
    family, place = socket.AF_INET, cast("tuple[Any, ...]", (host, address.port))
    if ":" in host:
        index = 0 if not zone else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
        family, place = socket.AF_INET6, (host, address.port, 0, index)
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            # Set in both cases, because net.ipv6.bindv6only decides the default.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(ipv6_only))
            # Before the first datagram can arrive. Endpoint attaches it to passed sockets too, and handles a failure.
            with suppress(OSError):
                socketfilter.attach(sock, junk=True)
        sock.bind(place)
    except OSError:
        sock.close()
        raise
    return sock
