"""Whether an interface is an available connection, and the first condition that it lacks (5.3.4)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.config.values import ConnectionsConfig, Reach
from dmnotid.links.kernel import State, read_state
from dmnotid.links.rtnetlink import (
    ANY_LENGTH,
    IF_OPER_UNKNOWN,
    IF_OPER_UP,
    IFA_F_DADFAILED,
    IFA_F_TENTATIVE,
    IFF_LOOPBACK,
    IFF_LOWER_UP,
    IFF_UP,
    Address,
    Interface,
    Route,
)
from dmnotid.links.types import SYSFS, configured_type, find_type
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType

MAX_NAMED: Final = 8
"""Maximum number of interfaces that `explain_missing` names: a host of containers has hundreds."""

UNCONFIGURED: Final = "not configured"
"""What loopback lacks that no configuration names."""

_IPV4_OCTETS: Final = 4
_IPV4_LINK_LOCAL: Final = bytes([169, 254])
_IPV4_LOOPBACK: Final = 127
# fe80::/10: the prefix ends inside the second octet, so ten bits are compared.
_IPV6_LINK_LOCAL: Final = 0xFE80 >> 6
_IPV6_LOOPBACK: Final = bytes(15) + b"\1"


class Link(NamedTuple):
    """A network interface, as one read of the kernel found it.

    `type` is ANY if it is none of the three; `why` is the fact that decided. `addresses` are the usable ones, `routes`
    those that `connections.reach` asks for (all of them for `any`), the best first. `missing` is the first condition
    that is not met, None if the connection is available.
    """

    name: str
    ifindex: int
    type: ConnectionType
    why: str
    up: bool
    carrier: bool
    addresses: tuple[IPv4Address | IPv6Address, ...]
    routes: tuple[Route, ...]
    missing: str | None

    @property
    def available(self) -> bool:
        """Whether all conditions are met."""
        return self.missing is None

    @property
    def connection(self) -> Connection:
        """What a session is started over, if it is available."""
        return Connection(self.type, self.name)

    def __str__(self) -> str:
        """`wlan0: up, no address`."""
        if self.missing is None:
            return f"{self.name}: available"
        return f"{self.name}: up, {self.missing}" if self.up else f"{self.name}: {self.missing}"


def read_links(config: ConnectionsConfig) -> list[Link]:
    """Read the kernel's state once and return every interface, loopback included, in the order of the indexes.

    Raises OSError, as `read_state` does. An interface without an entry in sysfs is not an error.
    """
    # A full routing table has a million routes, of which most are too specific to count.
    if config.reach == "internet":
        longest = 0
    elif config.reach == "any":
        longest = ANY_LENGTH
    else:
        # A longer prefix does not cover any of the networks.
        longest = max((network.prefixlen for network in config.reach), default=0)
    return describe(read_state(longest), config)


def describe(state: State, config: ConnectionsConfig, *, sysfs: Path = SYSFS) -> list[Link]:
    """Return the interfaces of this state, with type, usable addresses and what each lacks."""
    # Grouped once: a router has thousands of routes, and each would be compared with each interface.
    addresses: defaultdict[int, list[Address]] = defaultdict(list)
    for address in state.addresses:
        addresses[address.ifindex].append(address)
    routes: defaultdict[int, list[Route]] = defaultdict(list)
    for route in state.routes:
        routes[route.ifindex].append(route)
    return [
        _describe(interface, addresses.get(interface.ifindex, ()), routes.get(interface.ifindex, ()), config, sysfs)
        for interface in sorted(state.interfaces)
    ]


def _describe(
    interface: Interface, addresses: Iterable[Address], routes: Iterable[Route], config: ConnectionsConfig, sysfs: Path
) -> Link:
    kind, why = find_type(interface, config, sysfs)
    up = bool(interface.flags & IFF_UP)
    # A driver that never reports an operational state leaves it unknown.
    carrier = bool(interface.flags & IFF_LOWER_UP) and interface.operstate in (IF_OPER_UP, IF_OPER_UNKNOWN)
    loopback = bool(interface.flags & IFF_LOOPBACK)
    usable = tuple([ip_address(address.octets) for address in addresses if _is_usable(address, loopback=loopback)])
    # A route is useless without an address of its family to send from.
    bits = {address.max_prefixlen for address in usable}
    counted, unreached = find_reach([route for route in routes if route.bits in bits], config.reach)
    missing = (
        # Traffic over loopback reaches no server, so only a configuration (for tests) makes it a connection.
        (UNCONFIGURED if loopback and configured_type(interface.name, config) is None else None)
        or (None if up else "down")
        or (None if carrier else "no carrier")
        or (None if usable else "no address")
        or unreached
    )
    ranked = tuple(sorted(counted, key=attrgetter("rank")))
    return Link(interface.name, interface.ifindex, kind, why, up, carrier, usable, ranked, missing)


def _is_usable(address: Address, *, loopback: bool) -> bool:
    """Whether the interface can send from this address to other hosts (on loopback: to itself)."""
    octets = address.octets
    # Duplicate address detection has not ended, or has found that another host has the address.
    if address.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED):
        return False
    if len(octets) == _IPV4_OCTETS:
        return octets[:2] != _IPV4_LINK_LOCAL and (loopback or octets[0] != _IPV4_LOOPBACK)
    return int.from_bytes(octets[:2], "big") >> 6 != _IPV6_LINK_LOCAL and (loopback or octets != _IPV6_LOOPBACK)


def find_reach(routes: Sequence[Route], reach: Reach) -> tuple[Sequence[Route], str | None]:
    """Return the routes that `reach` asks for, and what is missing; None if nothing is."""
    if reach == "any":
        return routes, None
    if reach == "internet":
        # `0.0.0.0/1` beside `128.0.0.0/1`, as VPNs set them, is not a default route.
        default = [route for route in routes if not route.length]
        return default, None if default else "no route"
    # One route has to cover a whole network: two /9 are not a route to their /8.
    covering = [route for route in routes if any(map(route.covers, reach))]
    for network in reach:
        if not any(route.covers(network) for route in covering):
            return covering, f"no route to {network}"
    return covering, None


def available_connections(links: Iterable[Link]) -> tuple[Connection, ...]:
    """Return the available ones, the best route first: the lowest metric, then the name.

    A route in a table of its own, which only some traffic takes, comes after those of the main table; no route at all
    comes last.
    """
    ready = [link for link in links if link.available]
    ready.sort(key=lambda link: (link.routes[0].rank if link.routes else (True, inf), link.name))
    return tuple([link.connection for link in ready])


def explain_missing(links: Iterable[Link], wanted: Sequence[ConnectionType]) -> str:
    """Return why a session has to wait: what each interface of the wanted types lacks, or that there is none.

    An interface that lacks nothing is settling. The interface closest to being available comes first.
    """
    # Without a preference, every type is wanted, and no type at all.
    types = dict.fromkeys(wanted or (ConnectionType.ANY,))
    found = [link for link in links if {link.type, ConnectionType.ANY} & types.keys() and link.missing != UNCONFIGURED]
    found.sort(key=lambda link: (not link.available, link.type is ConnectionType.ANY, not link.up))
    parts = [f"{link.name}: settling" if link.available else str(link) for link in found[:MAX_NAMED]]
    if len(found) > MAX_NAMED:
        parts.append(f"{len(found) - MAX_NAMED} more")
    # Every interface serves ANY, so none of that type can be absent.
    absent = types.keys() - {ConnectionType.ANY, *(link.type for link in found)}
    return "; ".join(parts + [f"no {kind} interface" for kind in types if kind in absent]) or "no interface"
