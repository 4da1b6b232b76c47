"""Which connections there are: what each network interface is, whether it is available, and what it lacks (5.3.4).

The kernel's state is read as a whole and never patched by what a notice says: one read, one picture. Between reads a
subscription sleeps until the kernel has news.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address
from math import inf
from pathlib import Path
from typing import Final

from dmnotid.config import ConnectionsConfig, Reach
from dmnotid.policy.sessions import Connection
from dmnotid.service.log import logger
from dmnotid.service.rtnetlink import (
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
    Interface,
    Route,
    State,
    drain,
    read_state,
    subscribe,
)
from dmnotid.wire.notification import ConnectionType

SYSFS: Final = Path("/sys/class/net")

PAUSE: Final = 0.05
"""How long notices are gathered before the state is read again (seconds): so at most 20 reads a second."""

RETRY_PAUSE: Final = 1.0
"""How long after a read that failed the next one is tried (seconds)."""

IpAddress = IPv4Address | IPv6Address

_MOBILE_KINDS: Final = frozenset({"ppp", "rmnet", "wwan"})
_MOBILE_HARDWARE: Final = {ARPHRD_PPP: "point-to-point link", ARPHRD_RAWIP: "raw IP link"}
_MOBILE_NAMES: Final = ("ppp*", "wwan*", "rmnet*", "qmimux*")

# Kinds of link that are software alone: no need to look into sysfs. One that is missing here is told by having no
# `device` there; one that is hardware in spite of its kind (dsa, hv_netvsc) by having one.
# fmt: off
_SOFTWARE_KINDS: Final = frozenset({
    "bareudp", "bond", "bridge", "dummy", "erspan", "geneve", "gre", "gretap", "ifb", "ip6gre", "ip6gretap",
    "ip6tnl", "ipip", "ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "netkit", "nlmon", "openvswitch", "sit",
    "team", "tun", "veth", "vlan", "vrf", "vti", "vti6", "vxlan", "wireguard", "xfrm",
})
# fmt: on

# DEVTYPEs of Ethernet that goes over a wire: none at all, and the port of a switch.
_ETHERNET_DEVICE_TYPES: Final = frozenset({"", "dsa"})

_IPV4_OCTETS: Final = 4
_IPV4_LINK_LOCAL: Final = bytes([169, 254])
_IPV4_LOOPBACK: Final = 127
_IPV6_LINK_LOCAL: Final = 0xFE80 >> 6
_IPV6_LOOPBACK: Final = bytes(15) + b"\1"


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface, as one read of the kernel found it.

    `type` is ANY where it is none of the three, `why` says by what it is told. `addresses` are the usable ones,
    `routes` those that `connections.reach` asks for (all of them for `any`), and `metric` the lowest of these, None
    where there is none. `missing` is the first condition that isn't met, None when the connection is available.
    """

    name: str
    index: int
    type: ConnectionType
    why: str
    up: bool
    carrier: bool
    addresses: tuple[IpAddress, ...]
    routes: tuple[Route, ...]
    metric: int | None
    missing: str | None

    @property
    def available(self) -> bool:
        """Whether a session may use it."""
        return self.missing is None

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


def _longest_prefix(reach: Reach) -> int:
    """Return how long the prefix of a route may be that `reach` could ask for."""
    if reach == "internet":
        return 0
    return ANY_LENGTH if reach == "any" else max((network.prefixlen for network in reach), default=0)


def available_connections(links: Iterable[Link]) -> tuple[Connection, ...]:
    """Return the available ones, the best route first: the lowest metric, then the name."""
    ready = [link for link in links if link.available]
    ready.sort(key=lambda link: (inf if link.metric is None else link.metric, link.name))
    return tuple(Connection(link.type, link.name) for link in ready)


class Links:
    """The connections of this machine, kept up to date without polling.

    Owns one socket while open, and never wakes up while the kernel has no news.
    """

    def __init__(self, config: ConnectionsConfig) -> None:
        """Nothing is read before `open` or `refresh`."""
        self._config = config
        self._links: tuple[Link, ...] = ()
        self._available: tuple[Connection, ...] = ()
        self._news = False
        self._on_change: Callable[[], None] = lambda: None
        self._watch: _Watch | None = None

    def configure(self, config: ConnectionsConfig) -> None:
        """Go by another configuration from now on. Raises OSError, and then goes by the former one."""
        former, self._config = self._config, config
        try:
            self.refresh()
        except OSError:
            self._config = former
            raise

    @property
    def links(self) -> tuple[Link, ...]:
        """Every interface, as the last read found it."""
        return self._links

    def available(self) -> tuple[Connection, ...]:
        """Return what was available at the last read, the best route first."""
        return self._available

    def open(self, on_change: Callable[[], None]) -> None:
        """Read once, and again on the running loop after each change; `on_change` when `available` is another then.

        Raises OSError, and is closed then.
        """
        self.close()
        # Subscribed before the read: what changes in between is heard of.
        self._watch = _Watch(self._read_again)
        try:
            self.refresh()
        except OSError:
            self.close()
            raise
        self._news = False
        self._on_change = on_change

    def refresh(self) -> None:
        """Read again now; `on_change` comes later, with the notice of what this read has found.

        Raises OSError; `available` stays as it was then.
        """
        self._links = tuple(read_links(self._config))
        available = available_connections(self._links)
        self._news = self._news or available != self._available
        self._available = available

    def close(self) -> None:
        """Give the socket back; no harm when it's done twice."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _read_again(self) -> None:
        """Read, after a notice; OSError goes to the log, and the read is tried again."""
        try:
            self.refresh()
        except OSError as error:
            logger.warning("links not readable", problem=str(error), again_in=RETRY_PAUSE)
            if self._watch is not None:
                self._watch.later(RETRY_PAUSE)
            return
        if self._news:
            self._news = False
            self._on_change()


class _Watch:
    """Calls `on_news` a short pause after the kernel has had news, however many, on the loop that runs now."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        """Subscribe. Raises OSError."""
        self._on_news = on_news
        self._loop = asyncio.get_running_loop()
        self._subscription = subscribe()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._subscription, self._wake)

    def later(self, pause: float) -> None:
        """Call in `pause` seconds. Until then nobody listens: a link that flaps can't wake the program for each notice.

        That listening begins anew also matters after an overrun: libuv gives up a socket that has shown an error.
        """
        self._loop.remove_reader(self._subscription)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(pause, self._ring)

    def close(self) -> None:
        """Close the socket; `on_news` is not called again."""
        self._loop.remove_reader(self._subscription)
        if self._timer is not None:
            self._timer.cancel()
        self._subscription.close()

    def _wake(self) -> None:
        self.later(PAUSE)

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
    up = bool(interface.flags & IFF_UP)
    # What the kernel calls running: an interface of unknown state is one whose driver never tells.
    carrier = bool(interface.flags & IFF_LOWER_UP) and interface.operstate in (IF_OPER_UP, IF_OPER_UNKNOWN)
    loopback = bool(interface.flags & IFF_LOOPBACK)
    usable = tuple([_ip_address(own.octets) for own in addresses if _is_usable(own, loopback=loopback)])
    # A route is of no use without an address to send from.
    bits = {address.max_prefixlen for address in usable}
    counted, unreached = _reach([route for route in routes if route.bits in bits], config.reach)
    missing = (
        ("not configured" if loopback and named is None else None)
        or (None if up else "down")
        or (None if carrier else "no carrier")
        or (None if usable else "no address")
        or unreached
    )
    metric = min((route.metric for route in counted), default=None)
    return Link(interface.name, interface.ifindex, kind, why, up, carrier, usable, counted, metric, missing)


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
    if not (entry / "device").exists():
        return ConnectionType.ANY, f"no device behind it{interface.kind and f', kind {interface.kind}'}"
    return ConnectionType.WIRELINE, "Ethernet with a device behind it"


def _device_type(entry: Path) -> str:
    """Return DEVTYPE; empty where there is none, or where the interface has gone since the kernel told of it."""
    try:
        lines = (entry / "uevent").read_bytes().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(b"=")
        if name == b"DEVTYPE":
            return value.decode("ascii", "replace")
    return ""
