"""The messages of rtnetlink about links, addresses and routes.

A dump is one request, answered by one message for each object and one that ends the dump:

    len u32 | type u16 | flags u16 | sequence u32 | port u32 | body | attributes     nlmsghdr, linux/netlink.h
    len u16 | type u16 | value, padded to 4                                          rtattr, linux/rtnetlink.h

Each `len` counts itself and everything to its right, without the padding. Integers are in the byte order of the
machine, addresses in network byte order.

Every error is an OSError. Octets that are not such messages raise one with EBADMSG that names problem and offset.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from errno import EBADMSG
from ipaddress import IPv4Network, IPv6Network
from os import strerror
from struct import Struct, error
from typing import Final, Generic, NamedTuple, NoReturn, TypeVar

T = TypeVar("T")

_MESSAGE: Final = Struct("=IHHII")
_ATTRIBUTE: Final = Struct("=HH")
_NUMBER: Final = Struct("=I")
_CODE: Final = Struct("=i")

_MESSAGE_OCTETS: Final = _MESSAGE.size
_ATTRIBUTE_OCTETS: Final = _ATTRIBUTE.size
_unpack_attribute: Final = _ATTRIBUTE.unpack_from

# linux/netlink.h
_NLM_F_REQUEST: Final = 0x01
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 0x02
_NLMSG_DONE: Final = 0x03

# linux/rtnetlink.h
_RTM_NEWLINK: Final = 0x10
_RTM_GETLINK: Final = 0x12
_RTM_NEWADDR: Final = 0x14
_RTM_GETADDR: Final = 0x16
_RTM_NEWROUTE: Final = 0x18
_RTM_GETROUTE: Final = 0x1A

# linux/if.h: ifi_flags and IFLA_OPERSTATE
IFF_UP: Final = 0x1
IFF_LOOPBACK: Final = 0x8
IFF_LOWER_UP: Final = 0x10000
IF_OPER_UNKNOWN: Final = 0
IF_OPER_UP: Final = 6

# linux/if_arp.h: ifi_type
ARPHRD_ETHER: Final = 0x0001
ARPHRD_PPP: Final = 0x0200
ARPHRD_RAWIP: Final = 0x0207

# linux/if_addr.h: flags of an address
IFA_F_DADFAILED: Final = 0x08
IFA_F_TENTATIVE: Final = 0x40

# linux/rtnetlink.h: the table that is looked up unless a rule names another one
RT_TABLE_MAIN: Final = 254

ANY_LENGTH: Final = 128
"""The longest prefix of all, in bits: that of an IPv6 host."""

_BITS: Final = {socket.AF_INET: 32, socket.AF_INET6: 128}


class Interface(NamedTuple):
    """A network interface.

    `hardware` is its ARPHRD number, `kind` the driver that made it ("veth", "bridge"; empty for most hardware),
    `master` the ifindex of the interface that it is a member of (0 for none), `member_of` the kind of that one.
    """

    ifindex: int
    name: str
    hardware: int
    flags: int
    operstate: int
    kind: str
    master: int
    member_of: str


class Address(NamedTuple):
    """An own address of the interface `ifindex`: 4 octets or 16."""

    ifindex: int
    octets: bytes
    flags: int


class Route(NamedTuple):
    """A unicast route over the interface `ifindex`, in any table but `local`; one for each next hop.

    `bits` is 32 for IPv4 and 128 for IPv6, `destination` the address as a number, `length` the length of its prefix.
    """

    ifindex: int
    bits: int
    destination: int
    length: int
    metric: int
    table: int

    @property
    def rank(self) -> tuple[bool, int]:
        """The sort key, the best route first: those of the main table, which all traffic takes, then by metric."""
        return self.table != RT_TABLE_MAIN, self.metric

    def covers(self, network: IPv4Network | IPv6Network) -> bool:
        """Return whether every address of `network` is in this route's destination."""
        if network.max_prefixlen != self.bits or network.prefixlen < self.length:
            return False
        host_bits = self.bits - self.length
        return int(network.network_address) >> host_bits == self.destination >> host_bits

    def __str__(self) -> str:
        """`10.0.0.0/8 metric 100`; `default` for every address, and the table unless it is main."""
        kind = IPv4Network if self.bits == _BITS[socket.AF_INET] else IPv6Network
        network = kind((self.destination, self.length), strict=False) if self.length else "default"
        table = "" if self.table == RT_TABLE_MAIN else f" table {self.table}"
        return f"{network} metric {self.metric}{table}"


class Query(NamedTuple, Generic[T]):
    """A dump to request, and the parser of one message of the answer (octets, begin and end of the body)."""

    request: int
    answer: int
    body: bytes
    parse: Callable[[bytes, int, int], Iterable[T]]

    def encode(self, sequence: int) -> bytes:
        """Return the request as a message."""
        length = _MESSAGE_OCTETS + len(self.body)
        return _MESSAGE.pack(length, self.request, _NLM_F_REQUEST | _NLM_F_DUMP, sequence, 0) + self.body


def take_messages(octets: bytes, query: Query[T], sequence: int, found: list[T]) -> tuple[bool, bool]:
    """Add the objects of these messages to `found`; return whether the dump has ended, and whether it is consistent.

    Raises OSError: the error that the kernel answers instead, or EBADMSG.
    """
    whole = True
    answer, parse = query.answer, query.parse
    for kind, flags, number, at, end in messages(octets):
        if number != sequence:
            continue
        if flags & _NLM_F_DUMP_INTR:
            # The rest is read all the same, so that the next dump begins with its own answer.
            whole = False
        if kind == answer:
            found += parse(octets, at, end)
        elif kind in (_NLMSG_DONE, _NLMSG_ERROR):
            _need(_CODE.size, at, end, "error number")
            (code,) = _CODE.unpack_from(octets, at)
            # The end of a dump is a message with a number too, which is not negative.
            if code < 0:
                raise OSError(-code, f"rtnetlink: {strerror(-code)}")
            return True, whole
    return False, whole


def messages(octets: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield type, flags, sequence, begin and end of the body of each message. Raises OSError, EBADMSG."""
    at, size = 0, len(octets)
    while at < size:
        if size - at < _MESSAGE_OCTETS:
            _refuse(f"message of {size - at} octets", at)
        length, kind, flags, sequence, _port = _MESSAGE.unpack_from(octets, at)
        if not _MESSAGE_OCTETS <= length <= size - at:
            _refuse(f"message length {length}, {size - at} left", at)
        yield kind, flags, sequence, at + _MESSAGE_OCTETS, at + length
        at += length + 3 & ~3


def attributes(octets: bytes, at: int, end: int, wanted: frozenset[int]) -> dict[int, bytes]:
    """Return the values of the wanted attributes, the last one of each kind. Raises OSError, EBADMSG."""
    found: dict[int, bytes] = {}
    length = 0
    # An interface has about forty attributes, so the end of the last one is checked once, after the loop.
    while at < end:
        try:
            length, kind = _unpack_attribute(octets, at)
        except error:
            _refuse(f"attribute of {end - at} octets", at)
        if length < _ATTRIBUTE_OCTETS:
            _refuse(f"attribute length {length}", at)
        if kind in wanted:
            found[kind] = octets[at + _ATTRIBUTE_OCTETS : at + length]
        at += length + 3 & ~3
    last = at - (length + 3 & ~3)
    if last + length > end:
        _refuse(f"attribute length {length}, {end - last} left", last)
    return found


# struct ifinfomsg, linux/rtnetlink.h; its attributes (IFLA_) are in linux/if_link.h
#
#     family u8 | pad u8 | hardware u16 | index i32 | flags u32 | change u32
_LINK: Final = Struct("=BxHII4x")
_IFLA_IFNAME: Final = 3
_IFLA_MASTER: Final = 10
_IFLA_OPERSTATE: Final = 16
_IFLA_LINKINFO: Final = 18
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_SLAVE_KIND: Final = 4
_LINK_ATTRIBUTES: Final = frozenset({_IFLA_IFNAME, _IFLA_MASTER, _IFLA_OPERSTATE, _IFLA_LINKINFO})
_LINKINFO_ATTRIBUTES: Final = frozenset({_IFLA_INFO_KIND, _IFLA_INFO_SLAVE_KIND})

# The request excludes the counters of IPv6, which the kernel would have to add up over all processors.
_IFLA_EXT_MASK: Final = 29
_RTEXT_FILTER_SKIP_STATS: Final = 0x08
_SKIP_STATS: Final = _ATTRIBUTE.pack(8, _IFLA_EXT_MASK) + _NUMBER.pack(_RTEXT_FILTER_SKIP_STATS)


def parse_interface(octets: bytes, at: int, end: int) -> tuple[Interface, ...]:
    """Read the body of an RTM_NEWLINK. Raises OSError, EBADMSG."""
    _need(_LINK.size, at, end, "ifinfomsg")
    family, hardware, ifindex, flags = _LINK.unpack_from(octets, at)
    # A bridge reports its ports once more, as messages of family AF_BRIDGE.
    if family != socket.AF_UNSPEC:
        return ()
    found = attributes(octets, at + _LINK.size, end, _LINK_ATTRIBUTES)
    if _IFLA_IFNAME not in found:
        _refuse("link without IFLA_IFNAME", at)
    info = found.get(_IFLA_LINKINFO, b"")
    kinds = attributes(info, 0, len(info), _LINKINFO_ATTRIBUTES) if info else {}
    interface = Interface(
        ifindex,
        _text(found[_IFLA_IFNAME]),
        hardware,
        flags,
        # A u8. Its absence means IF_OPER_UNKNOWN.
        int.from_bytes(found.get(_IFLA_OPERSTATE, b"")[:1], "little"),
        _text(kinds.get(_IFLA_INFO_KIND, b"")),
        _number(found, _IFLA_MASTER, at),
        _text(kinds.get(_IFLA_INFO_SLAVE_KIND, b"")),
    )
    return (interface,)


# struct ifaddrmsg, linux/if_addr.h
#
#     family u8 | prefix length u8 | flags u8 | scope u8 | index u32
_ADDRESS: Final = Struct("=BxBxI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_ADDRESS_ATTRIBUTES: Final = frozenset({_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS})


def parse_address(octets: bytes, at: int, end: int) -> tuple[Address, ...]:
    """Read the body of an RTM_NEWADDR; empty for families other than IPv4 and IPv6. Raises OSError, EBADMSG."""
    _need(_ADDRESS.size, at, end, "ifaddrmsg")
    family, flags, ifindex = _ADDRESS.unpack_from(octets, at)
    bits = _BITS.get(family)
    if bits is None:
        return ()
    found = attributes(octets, at + _ADDRESS.size, end, _ADDRESS_ATTRIBUTES)
    # On a point-to-point link IFA_ADDRESS is the address of the peer.
    address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    if len(address) * 8 != bits:
        _refuse(f"address of {len(address)} octets, family {family}", at)
    # IFA_FLAGS has 32 bits, of which the header holds eight.
    return (Address(ifindex, address, _number(found, _IFA_FLAGS, at, flags)),)


# struct rtmsg, linux/rtnetlink.h
#
#     family u8 | dst_len u8 | src_len u8 | tos u8 | table u8 | protocol u8 | scope u8 | type u8 | flags u32
#
# and struct rtnexthop, each followed by attributes of its own, in RTA_MULTIPATH
#
#     len u16 | flags u8 | hops u8 | index i32
#
# and the beginning of struct rta_cacheinfo, in RTA_CACHEINFO
#
#     references u32 | last use u32 | expires i32
_ROUTE: Final = Struct("=BB6xI")
_NEXT_HOP: Final = Struct("=HxxI")
_EXPIRES: Final = Struct("=8xi")
_RT_TABLE_LOCAL: Final = 255
_RTN_UNICAST: Final = 1
# A struct rtmsg of zeros but for the type: with strict checking, the kernel sends unicast routes alone.
_UNICAST_ROUTES: Final = bytes([0, 0, 0, 0, 0, 0, 0, _RTN_UNICAST, 0, 0, 0, 0])
_RTM_F_CLONED: Final = 0x200
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_PRIORITY: Final = 6
_RTA_MULTIPATH: Final = 9
_RTA_CACHEINFO: Final = 12
_RTA_TABLE: Final = 15
_ROUTE_ATTRIBUTES: Final = frozenset({_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_CACHEINFO, _RTA_TABLE})


def parse_routes(octets: bytes, at: int, end: int, longest: int = ANY_LENGTH) -> tuple[Route, ...]:
    """Read the body of an RTM_NEWROUTE: one Route for each next hop. Raises OSError, EBADMSG.

    Empty for a prefix of more than `longest` bits, a route that is not unicast (a blackhole), the table `local`, an
    expired route (of IPv6; the kernel removes it up to half a minute later) and an exception cached for one
    destination. A route that names only a next hop object (`net.ipv4.nexthop_compat_mode` 0, not the default) is not
    found.
    """
    _need(_ROUTE.size, at, end, "rtmsg")
    # Most routes end here.
    if octets[at + 7] != _RTN_UNICAST or octets[at + 4] == _RT_TABLE_LOCAL or octets[at + 1] > longest:
        return ()
    family, length, flags = _ROUTE.unpack_from(octets, at)
    bits = _BITS.get(family)
    if bits is None or flags & _RTM_F_CLONED:
        return ()
    found = attributes(octets, at + _ROUTE.size, end, _ROUTE_ATTRIBUTES)
    address = found.get(_RTA_DST, b"")
    if length > bits or len(address) * 8 not in ((bits,) if length else (0, bits)):
        _refuse(f"destination of {len(address)} octets, prefix {length}, family {family}", at)
    cache_info = found.get(_RTA_CACHEINFO)
    if cache_info is not None:
        if len(cache_info) < _EXPIRES.size:
            _refuse(f"rta_cacheinfo of {len(cache_info)} octets", at)
        # The time left, in ticks: negative after the end, 0 for a route that does not expire.
        if _EXPIRES.unpack_from(cache_info)[0] < 0:
            return ()
    destination, metric = int.from_bytes(address, "big"), _number(found, _RTA_PRIORITY, at)
    table = _number(found, _RTA_TABLE, at, octets[at + 4])
    hops = _next_hops(found[_RTA_MULTIPATH]) if _RTA_MULTIPATH in found else (_number(found, _RTA_OIF, at),)
    # A route without an interface names a next hop object only.
    return tuple([Route(hop, bits, destination, length, metric, table) for hop in hops if hop])


def _next_hops(octets: bytes) -> Iterator[int]:
    at, size = 0, len(octets)
    while at < size:
        _need(_NEXT_HOP.size, at, size, "rtnexthop")
        length, ifindex = _NEXT_HOP.unpack_from(octets, at)
        if not _NEXT_HOP.size <= length <= size - at:
            _refuse(f"next hop length {length}, {size - at} left", at)
        yield ifindex
        at += length + 3 & ~3


# One dump covers all families: a kernel without IPv6 sends less.
INTERFACES: Final = Query(_RTM_GETLINK, _RTM_NEWLINK, bytes(_LINK.size) + _SKIP_STATS, parse_interface)
ADDRESSES: Final = Query(_RTM_GETADDR, _RTM_NEWADDR, bytes(_ADDRESS.size), parse_address)
ROUTES: Final = Query(_RTM_GETROUTE, _RTM_NEWROUTE, _UNICAST_ROUTES, parse_routes)


def _number(found: dict[int, bytes], kind: int, at: int, absent: int = 0) -> int:
    value = found.get(kind)
    if value is None:
        return absent
    if len(value) != _NUMBER.size:
        _refuse(f"attribute {kind} of {len(value)} octets, not {_NUMBER.size}", at)
    number: int = _NUMBER.unpack(value)[0]
    return number


def _text(value: bytes) -> str:
    """Return the text up to its NUL. A name is any octets without slash and space, so it is decoded reversibly."""
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _need(octets: int, at: int, end: int, what: str) -> None:
    if end - at < octets:
        _refuse(f"{what} needs {octets}, {end - at} left", at)


def _refuse(problem: str, at: int) -> NoReturn:
    raise OSError(EBADMSG, f"rtnetlink: {problem}, at octet {at}")
