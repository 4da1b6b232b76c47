"""Where datagrams come from and go to: how an address and a port are written, read and compared."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple

from dmnotid.wire.wsp import WAP_PUSH_PORT

MAX_PORT: Final = 0xFFFF

Network = IPv4Network | IPv6Network


class Source(NamedTuple):
    """The sender of a datagram.

    `address` is an IP literal, of IPv6 with its zone (`fe80::1%eth0`). The address of an IPv4 packet is written as
    IPv4, also if an IPv6 socket received the packet. For a datagram that was handed in through a door, `address` is the
    name of that door, which is never an IP literal, and `port` is None.
    """

    address: str
    port: int | None

    def __str__(self) -> str:
        """`192.0.2.1:40000`, `[2001:db8::1]:40000`, or the name of a door."""
        return self.address if self.port is None else show_address(self.address, self.port)


def show_address(host: str, port: int) -> str:
    """Write `192.0.2.1:40000` or `[2001:db8::1]:40000`."""
    # Brackets keep the port apart from the groups of an IPv6 address (RFC 3986, 3.2.2).
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str, default_port: int = WAP_PUSH_PORT) -> tuple[str, int]:
    """Read HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT; a host with several colons is an IPv6 address without a port.

    The host is returned unchecked. Raises ValueError for an empty host, unbalanced brackets and a port above 65535.
    """
    host, colon, port = text, "", ""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        colon, port = port[:1], port[1:]
        if not bracket or colon not in {"", ":"}:
            # Refused below: one place has the message for every text that is not an address.
            host = ""
    # Several colons without brackets are an IPv6 address: its last group could be read as a port otherwise.
    elif text.count(":") == 1:
        host, colon, port = text.partition(":")
    if host and not colon:
        return host, default_port
    # int() would accept a sign, spaces and the digits of other scripts.
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > MAX_PORT:
        raise ValueError(f"{text!r} is not an address, with or without a port")
    return host, int(port)


def parse_ip(text: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address of a literal, without its zone; None for anything else.

    An IPv4-mapped IPv6 address gives None: the endpoint has removed that prefix from the sender of every IPv4 packet,
    so the address may be the forged source of an IPv6 packet.
    """
    # A network has no zone, so the zone of a link-local address is left out.
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return None if isinstance(address, IPv6Address) and address.ipv4_mapped else address
