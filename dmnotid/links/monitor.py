"""Which connections there are: what each network interface is, whether it is available, and what it lacks (5.3.4).

The kernel's state is read as a whole and never patched by what a notice says: one read, one picture. Between reads a
subscription sleeps until the kernel has news. What came and went between two reads shows in the second one: the kernel
counts how often a carrier changes, and knows when an address was made.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address
from math import inf
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.config.values import ConnectionsConfig, Reach
from dmnotid.host.log import logger
from dmnotid.links.rtnetlink import (
    ANY_LENGTH,
    ARPHRD_ETHER,
    ARPHRD_PPP,
    ARPHRD_RAWIP,
    IF_OPER_UNKNOWN,
    IF_OPER_UP,
    IFA_F_DADFAILED,
    IFA_F_TENTATIVE,
    IFF_LOOPBACK,
    IFF_LOWER_UP,
    IFF_UP,
    Address,
    Inquiry,
    Interface,
    Route,
    State,
    drain,
    has_news,
    read_state,
    subscribe,
)
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType

SYSFS: Final = Path("/sys/class/net")

PAUSE: Final = 0.05
"""How long after a read the next one comes at the earliest (seconds): notices are gathered meanwhile."""

REST: Final = 9
"""That pause is so many times the length of the read at least: nine tenths of the time stay for datagrams."""

MAX_REST: Final = 1.0
"""It is never longer (seconds): what took so long was the machine."""

RETRY_PAUSE: Final = 1.0
"""How long after a read that failed the next one is tried (seconds)."""

_SHORTEST: Final = 0.001
"""The shortest pause (seconds): a timer that rings early finds nothing settled yet, and must not ring at once again."""

MAX_TOLD: Final = 8
"""How many interfaces one line of the log names at most."""

IpAddress = IPv4Address | IPv6Address

_UNCONFIGURED: Final = "not configured"

_MOBILE_KINDS: Final = frozenset({"ppp", "rmnet", "wwan"})
_MOBILE_HARDWARE: Final = {ARPHRD_PPP: "point-to-point link", ARPHRD_RAWIP: "raw IP link"}
_MOBILE_NAMES: Final = ("ppp*", "wwan*", "rmnet*", "qmimux*")

# Kinds of link that are software alone: no need to look into sysfs. One that is missing here is told by having no
# `device` there, but for netdevsim, which has one; one that is hardware in spite of its kind (dsa) by having one too.
# fmt: off
_SOFTWARE_KINDS: Final = frozenset({
    "bareudp", "bond", "bridge", "dummy", "erspan", "geneve", "gre", "gretap", "ifb", "ip6gre", "ip6gretap",
    "ip6tnl", "ipip", "ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "netdevsim", "netkit", "nlmon", "openvswitch",
    "sit", "team", "tun", "veth", "vlan", "vrf", "vti", "vti6", "vxlan", "wireguard", "xfrm",
})
# fmt: on

# DEVTYPEs of Ethernet that goes over a wire: none at all, and the port of a switch.
_ETHERNET_DEVICE_TYPES: Final = frozenset({"", "dsa"})

_IPV4_OCTETS: Final = 4
_IPV4_LINK_LOCAL: Final = bytes([169, 254])
_IPV4_LOOPBACK: Final = 127
_IPV6_LINK_LOCAL: Final = 0xFE80 >> 6
_IPV6_LOOPBACK: Final = bytes(15) + b"\1"


class Life(NamedTuple):
    """What tells two reads that a link was gone in between.

    How often its carrier changed, and its usable addresses, each with the time at which it was made.
    """

    carrier_changes: int
    addresses: frozenset[tuple[bytes, int]]


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface, as one read of the kernel found it.

    `type` is ANY where it is none of the three, `why` says by what it is told. `addresses` are the usable ones,
    `routes` those that `connections.reach` asks for (all of them for `any`), the best first. `missing` is the first
    condition that isn't met, None when the connection is available.
    """

    name: str
    index: int
    type: ConnectionType
    why: str
    up: bool
    carrier: bool
    addresses: tuple[IpAddress, ...]
    routes: tuple[Route, ...]
    missing: str | None
    life: Life = field(repr=False, compare=False)

    @property
    def available(self) -> bool:
        """Whether all conditions are met."""
        return self.missing is None

    @property
    def unconfigured(self) -> bool:
        """Whether it is a loopback that nobody has named: no connection at all."""
        return self.missing == _UNCONFIGURED

    def __str__(self) -> str:
        """`wlan0: up, no address`."""
        if self.missing is None:
            return f"{self.name}: available"
        return f"{self.name}: up, {self.missing}" if self.up else f"{self.name}: {self.missing}"


def read_links(config: ConnectionsConfig, *, sysfs: Path = SYSFS) -> list[Link]:
    """Read the kernel's state once; loopback and all, in the order of their indexes.

    Raises OSError, as `rtnetlink.read_state` does. An entry of sysfs that is not there is no error.
    """
    return describe(read_state(_longest_prefix(config.reach)), config, sysfs=sysfs)


def describe(state: State, config: ConnectionsConfig, *, sysfs: Path = SYSFS) -> list[Link]:
    """Say what the interfaces of this state are and lack."""
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


def lasted(before: Link, now: Link, reach: Reach) -> bool:
    """Tell whether a link, available at one read and at the next, was so in between as far as can be known.

    It is called the same and is of the same type, its carrier didn't change, and an address and the ways that it takes
    are still those of before. A route that was taken away and made anew looks like one that stayed.
    """
    return (
        before.available
        and now.available
        and (before.index, before.name, before.type) == (now.index, now.name, now.type)
        and before.life.carrier_changes == now.life.carrier_changes
        and not before.life.addresses.isdisjoint(now.life.addresses)
        and (reach == "any" or _reach(_kept(before.routes, now.routes), reach)[1] is None)
    )


def _kept(before: Iterable[Route], now: Iterable[Route]) -> list[Route]:
    """Return the routes to where one went before: a metric that changes is no break."""
    ways = {(route.bits, route.destination, route.length) for route in before}
    return [route for route in now if (route.bits, route.destination, route.length) in ways]


def _longest_prefix(reach: Reach) -> int:
    """Return how long the prefix of a route may be that `reach` could ask for."""
    if reach == "internet":
        return 0
    return ANY_LENGTH if reach == "any" else max((network.prefixlen for network in reach), default=0)


def available_connections(links: Iterable[Link]) -> tuple[Connection, ...]:
    """Return the available ones, the best route first: the lowest metric, then the name.

    A route that only some traffic may take, in a table of its own, comes behind all others, and no route comes last.
    """
    ready = [link for link in links if link.available]
    ready.sort(key=lambda link: (link.routes[0].rank if link.routes else (True, inf), link.name))
    return tuple(Connection(link.type, link.name) for link in ready)


def tell_missing(links: Iterable[Link], wanted: Sequence[ConnectionType]) -> str:
    """Say why a session must wait: what the interfaces of the wanted types lack, or that there are none.

    One that lacks nothing has not yet been there for long enough. What lacks least, and has a type, comes first.
    """
    types = dict.fromkeys(wanted or (ConnectionType.ANY,))
    found = [link for link in links if {link.type, ConnectionType.ANY} & types.keys() and not link.unconfigured]
    found.sort(key=lambda link: (not link.available, link.type is ConnectionType.ANY, not link.up))
    told = [f"{link.name}: settling" if link.available else str(link) for link in found[:MAX_TOLD]]
    if len(found) > MAX_TOLD:
        told.append(f"{len(found) - MAX_TOLD} more")
    absent = [kind for kind in types if kind not in {ConnectionType.ANY, *(link.type for link in found)}]
    return "; ".join(told + [f"no {kind} interface" for kind in absent]) or "no interface"


class Links:
    """The connections of this machine, kept up to date without polling.

    A connection counts once it has been available for `connections.settle` without a break. Owns two sockets while
    open, and never wakes up while the kernel has no news and nothing settles.
    """

    def __init__(self, config: ConnectionsConfig) -> None:
        """Nothing is read yet."""
        self._config = config
        self._links: tuple[Link, ...] = ()
        self._since: dict[int, float] = {}
        self._available: tuple[Connection, ...] = ()
        self._unannounced = False
        self._unreadable = False
        self._on_change: Callable[[], None] = lambda: None
        self._watch: _Watch | None = None

    def configure(self, config: ConnectionsConfig) -> None:
        """Go by another configuration from now on."""
        self._config = config
        self.read_now()

    @property
    def links(self) -> tuple[Link, ...]:
        """Every interface, as the last read found it."""
        return self._links

    def available(self) -> tuple[Connection, ...]:
        """Return what sessions may use, as far as it was known at the last read, the best route first."""
        return self._available

    def still_has(self, connection: Connection) -> bool:
        """Tell that this connection is there at this moment, by asking for its interface alone; False: read again.

        That will do where no notice waits: of addresses and routes they come at once. Not so of a carrier, whose loss
        the kernel holds back for up to a second, and of routes that expire.
        """
        if connection not in self._available or self._unreadable or self._watch is None or self._watch.has_news():
            return False
        link = next(link for link in self._links if link.name == connection.interface)
        if not all(route.lasting for route in link.routes):
            return False
        try:
            return _is_as_before(link, self._watch.inquiry.read_interface(link.index))
        except OSError:
            return False

    def read_now(self) -> bool:
        """Read again, and call `on_change` when anything is otherwise; whether that succeeded.

        Where it fails, all stays as it was, the log says so, once for all failures that follow, and it is tried again
        each RETRY_PAUSE. The read that succeeds calls `on_change` in any case.
        """
        began = time.monotonic()
        try:
            self._read()
        except OSError as error:
            if not self._unreadable:
                logger.warning("links not readable", problem=str(error), again_every=RETRY_PAUSE)
            self._unreadable = self._unannounced = True
            if self._watch is not None:
                self._watch.retry()
            return False
        if self._unreadable:
            self._unreadable = False
            logger.info("links readable again")
        if self._watch is not None:
            self._watch.rest(min(max(PAUSE, REST * (time.monotonic() - began)), MAX_REST))
        return True

    def open(self, on_change: Callable[[], None]) -> None:
        """Read once, and again on the running loop after each change; `on_change` when anything is otherwise then.

        Raises OSError, and is closed then.
        """
        self.close()
        # Subscribed before the read: what changes in between is heard of.
        self._watch = _Watch(self.read_now, self._announce)
        try:
            self._read()
        except OSError:
            self.close()
            raise
        self._on_change = on_change

    def close(self) -> None:
        """Give the socket back; no harm when it's done twice."""
        self._on_change = lambda: None
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _read(self) -> None:
        """Read, and announce what is otherwise. Raises OSError; all stays as it was then."""
        links, now = tuple(read_links(self._config)), time.monotonic()
        before = {link.index: link for link in self._links}
        self._since = {
            link.index: self._since[link.index]
            if link.index in before and lasted(before[link.index], link, self._config.reach)
            else now
            for link in links
            if link.available
        }
        self._unannounced = self._unannounced or links != self._links
        self._links = links
        self._announce()

    def _announce(self) -> None:
        """Count what has settled by now, say what is otherwise, and come again when the next one will have settled."""
        now, settle = time.monotonic(), self._config.settle
        unsettled = {index: since + settle for index, since in self._since.items() if since + settle > now}
        settled = (link for link in self._links if link.available and link.index not in unsettled)
        former, self._available = self._available, available_connections(settled)
        if self._watch is not None and unsettled:
            self._watch.announce_in(min(unsettled.values()) - now)
        self._log(former)
        if self._unannounced or self._available != former:
            self._unannounced = False
            self._on_change()

    def _log(self, former: Sequence[Connection]) -> None:
        lost, gained = (
            [connection for connection in these if connection not in those]
            for these, those in ((former, self._available), (self._available, former))
        )
        links = {link.name: link for link in self._links}
        for kind, name in lost:
            link = links.get(name)
            why = "gone" if link is None else "interrupted" if link.available else str(link.missing)
            logger.info("connection lost", interface=name, connection=str(kind), missing=why)
        for kind, name in gained:
            logger.info("connection available", interface=name, connection=str(kind))


class _Watch:
    """Calls `on_news` once the kernel has news, and `on_settled` when that was asked for, on the loop that runs now."""

    def __init__(self, on_news: Callable[[], object], on_settled: Callable[[], object]) -> None:
        """Subscribe. Raises OSError."""
        self._on_news = on_news
        self._on_settled = on_settled
        self._loop = asyncio.get_running_loop()
        self._not_before = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self.inquiry = Inquiry()
        try:
            self._subscription = subscribe()
        except BaseException:
            self.inquiry.close()
            raise
        self._loop.add_reader(self._subscription, self._wake)

    def retry(self) -> None:
        """Call `on_news` in RETRY_PAUSE, unless that is to come anyhow."""
        if self._timer is None:
            self._call_in(RETRY_PAUSE)

    def announce_in(self, pause: float) -> None:
        """Call `on_settled` in `pause` seconds, instead of when that was asked for before."""
        if self._settling is not None:
            self._settling.cancel()
        self._settling = self._loop.call_later(max(pause, _SHORTEST), self._on_settled)

    def has_news(self) -> bool:
        """Tell whether there are news that `on_news` was not called for."""
        return has_news(self._subscription)

    def rest(self, pause: float) -> None:
        """Let the next notice call `on_news` after `pause` seconds at the earliest."""
        self._not_before = time.monotonic() + pause

    def close(self) -> None:
        """Close the sockets; nothing is called any more."""
        self._loop.remove_reader(self._subscription)
        for timer in (self._timer, self._settling):
            if timer is not None:
                timer.cancel()
        self._subscription.close()
        self.inquiry.close()

    def _call_in(self, pause: float) -> None:
        """Call `on_news` in `pause` seconds.

        Until then nobody listens: a link that flaps can't wake the program for each notice. That listening begins anew
        also matters after an overrun: libuv gives up a socket that has shown an error.
        """
        self._loop.remove_reader(self._subscription)
        self._timer = self._loop.call_later(pause, self._ring)

    def _wake(self) -> None:
        self._call_in(max(self._not_before - time.monotonic(), 0))

    def _ring(self) -> None:
        self._timer = None
        # Drained before the state is read: what comes later rings again.
        drain(self._subscription)
        self._loop.add_reader(self._subscription, self._wake)
        self._on_news()


def _describe(
    interface: Interface,
    addresses: Iterable[Address],
    routes: Iterable[Route],
    config: ConnectionsConfig,
    sysfs: Path,
) -> Link:
    named = configured_type(interface.name, config)
    kind, why = named or detected_type(interface, sysfs)
    up, carrier = _is_up(interface), _has_carrier(interface)
    loopback = bool(interface.flags & IFF_LOOPBACK)
    own = [address for address in addresses if _is_usable(address, loopback=loopback)]
    usable = tuple([_ip_address(address.octets) for address in own])
    # A route is of no use without an address to send from.
    bits = {address.max_prefixlen for address in usable}
    counted, unreached = _reach([route for route in routes if route.bits in bits], config.reach)
    missing = (
        (_UNCONFIGURED if loopback and named is None else None)
        or (None if up else "down")
        or (None if carrier else "no carrier")
        or (None if usable else "no address")
        or unreached
    )
    life = Life(interface.carrier_changes, frozenset([(address.octets, address.created) for address in own]))
    ranked = tuple(sorted(counted, key=attrgetter("rank")))
    return Link(interface.name, interface.ifindex, kind, why, up, carrier, usable, ranked, missing, life)


def _is_up(interface: Interface) -> bool:
    return bool(interface.flags & IFF_UP)


def _has_carrier(interface: Interface) -> bool:
    """Tell what the kernel calls running: an interface of unknown state is one whose driver never tells."""
    return bool(interface.flags & IFF_LOWER_UP) and interface.operstate in (IF_OPER_UP, IF_OPER_UNKNOWN)


def _is_as_before(link: Link, interface: Interface) -> bool:
    """Tell whether an interface says of itself what it said at the last read, and no carrier went in between."""
    said = interface.name, _is_up(interface), _has_carrier(interface), interface.carrier_changes
    return said == (link.name, link.up, link.carrier, link.life.carrier_changes)


def _ip_address(octets: bytes) -> IpAddress:
    return IPv4Address(octets) if len(octets) == _IPV4_OCTETS else IPv6Address(octets)


def _is_usable(address: Address, *, loopback: bool) -> bool:
    """Whether one can send from it to others (on loopback: to oneself)."""
    octets = address.octets
    if address.flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED):
        return False
    if len(octets) == _IPV4_OCTETS:
        return octets[:2] != _IPV4_LINK_LOCAL and (loopback or octets[0] != _IPV4_LOOPBACK)
    return int.from_bytes(octets[:2], "big") >> 6 != _IPV6_LINK_LOCAL and (loopback or octets != _IPV6_LOOPBACK)


def _reach(routes: Sequence[Route], reach: Reach) -> tuple[tuple[Route, ...], str | None]:
    """Return the routes that `reach` asks for, and what is missing."""
    if reach == "any":
        return tuple(routes), None
    if reach == "internet":
        default = tuple([route for route in routes if not route.length])
        return default, None if default else "no route"
    covering = tuple([route for route in routes if any(map(route.covers, reach))])
    for network in reach:
        if not any(route.covers(network) for route in covering):
            return covering, f"no route to {network}"
    return covering, None


def configured_type(name: str, config: ConnectionsConfig) -> tuple[ConnectionType, str] | None:
    """Return the type whose patterns name this interface, and which; None where none does."""
    for kind, patterns in config.interfaces.items():
        for pattern in patterns:
            if fnmatchcase(name, pattern):
                return kind, f"configured: {pattern}"
    return None


def detected_type(interface: Interface, sysfs: Path) -> tuple[ConnectionType, str]:
    """Tell what an interface is that nobody has named, and by what it is told.

    What rtnetlink says comes first, so that sysfs is asked about hardware only.
    """
    if interface.flags & IFF_LOOPBACK:
        return ConnectionType.ANY, "loopback"
    if interface.kind in _MOBILE_KINDS:
        return ConnectionType.MOBILE, f"kind {interface.kind}"
    if interface.kind in _SOFTWARE_KINDS:
        return ConnectionType.ANY, f"kind {interface.kind}"
    if interface.master and interface.member_of != "vrf":
        return ConnectionType.ANY, f"member of a {interface.member_of or 'master'}"
    if interface.hardware in _MOBILE_HARDWARE:
        return ConnectionType.MOBILE, _MOBILE_HARDWARE[interface.hardware]
    return _hardware_type(interface, sysfs / interface.name)


def _hardware_type(interface: Interface, entry: Path) -> tuple[ConnectionType, str]:
    try:
        return _type_by_sysfs(interface, entry)
    except PermissionError:
        return ConnectionType.ANY, "sysfs can't be read"


def _type_by_sysfs(interface: Interface, entry: Path) -> tuple[ConnectionType, str]:
    for wireless in ("phy80211", "wireless"):
        if (entry / wireless).exists():
            return ConnectionType.WIRELESS, f"sysfs {wireless}"
    device_type = _device_type(entry)
    if device_type == "wwan":
        return ConnectionType.MOBILE, "DEVTYPE=wwan"
    for pattern in _MOBILE_NAMES:
        if fnmatchcase(interface.name, pattern):
            return ConnectionType.MOBILE, f"named {pattern}"
    return _wired_type(interface, device_type, entry)


def _wired_type(interface: Interface, device_type: str, entry: Path) -> tuple[ConnectionType, str]:
    if interface.hardware != ARPHRD_ETHER:
        return ConnectionType.ANY, f"hardware type {interface.hardware}"
    if device_type not in _ETHERNET_DEVICE_TYPES:
        return ConnectionType.ANY, f"DEVTYPE={device_type}"
    if not entry.exists():
        return ConnectionType.ANY, "not in sysfs"
    if not (entry / "device").exists():
        return ConnectionType.ANY, f"no device behind it{interface.kind and f', kind {interface.kind}'}"
    return ConnectionType.WIRELINE, "Ethernet with a device behind it"


def _device_type(entry: Path) -> str:
    """Return DEVTYPE; empty where there is none, or where the interface has gone since the kernel told of it."""
    try:
        lines = (entry / "uevent").read_bytes().splitlines()
    except PermissionError:
        raise
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(b"=")
        if name == b"DEVTYPE":
            return value.decode("ascii", "replace")
    return ""
