"""The kernel's links, addresses and routes, read over a raw rtnetlink socket, and its notices of changes.

Needs no privilege, and no address family other than AF_NETLINK. Every error is an OSError.
"""

import socket
from contextlib import suppress
from errno import EINTR
from functools import partial
from typing import Final, NamedTuple, TypeVar

from dmnotid.links.rtnetlink import (
    ADDRESSES,
    ANY_LENGTH,
    INTERFACES,
    ROUTES,
    Address,
    Interface,
    Query,
    Route,
    parse_routes,
    take_messages,
)

T = TypeVar("T")

MAX_DUMPS: Final = 8
"""Maximum number of requests for one dump. The kernel marks a dump during which the state changed."""

MAX_MESSAGES: Final = 65_536
"""Maximum size of one answer, in octets. The kernel sends at most 32,768 octets of a dump at once."""

MAX_DRAINED: Final = 4_096
"""Maximum number of notices that one `drain` discards. If more are queued, the socket stays readable."""

# linux/netlink.h
_NETLINK_ROUTE: Final = 0
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_NETLINK_GET_STRICT_CHK: Final = 12

# linux/rtnetlink.h
_RTMGRP_LINK: Final = 0x01
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV4_ROUTE: Final = 0x40
_RTMGRP_IPV6_IFADDR: Final = 0x100
_RTMGRP_IPV6_ROUTE: Final = 0x400
_RTNLGRP_NEXTHOP: Final = 32
_GROUPS: Final = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE


class State(NamedTuple):
    """Everything that was read, in the order of the kernel."""

    interfaces: list[Interface]
    addresses: list[Address]
    routes: list[Route]


def read_state(longest: int = ANY_LENGTH) -> State:
    """Read links, addresses and routes of this network namespace, IPv4 and IPv6.

    Routes whose prefix is longer than `longest` bits are left out: 0 for default routes only.

    Raises OSError: PermissionError and the like from the kernel, InterruptedError if the state changed during each of
    MAX_DUMPS dumps, EBADMSG for malformed octets.
    """
    routes = ROUTES._replace(parse=partial(parse_routes, longest=longest))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE) as kernel:
        # The kernel chooses the port, because the process may have other netlink sockets.
        kernel.bind((0, 0))
        # Before Linux 4.20 the kernel ignores the filters of a request, and the parsers skip the rest.
        with suppress(OSError):
            kernel.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        # Interfaces first: one that is removed meanwhile has neither address nor route in the dumps that follow.
        return State(dump(kernel, INTERFACES), dump(kernel, ADDRESSES), dump(kernel, routes))


def subscribe() -> socket.socket:
    """Open a non-blocking socket that becomes readable when a link, an address or a route changes. Raises OSError."""
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    subscription = socket.socket(socket.AF_NETLINK, flags, _NETLINK_ROUTE)
    try:
        subscription.bind((0, _GROUPS))
        # A route that is removed with its next hop object causes no notice of its own. Linux has them since 5.3.
        with suppress(OSError):
            subscription.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _RTNLGRP_NEXTHOP)
    except BaseException:
        subscription.close()
        raise
    return subscription


def drain(subscription: socket.socket) -> None:
    """Discard the queued notices: each is only a reason to read the whole state again, whatever its content.

    An overrun of the socket's buffer (ENOBUFS, reported once) is another such reason.
    """
    # Bounded, because links that flap may add notices as fast as they are discarded.
    for _ in range(MAX_DRAINED):
        try:
            # The kernel discards the rest of a message that is longer than the buffer.
            subscription.recv(1)
        except BlockingIOError:
            return
        # ENOBUFS: older notices were lost, and others may follow.
        except OSError:
            continue


def dump(kernel: socket.socket, query: Query[T]) -> list[T]:
    """Request a dump until it is consistent, and return its objects. Raises OSError, as `read_state` does."""
    for sequence in range(1, MAX_DUMPS + 1):
        # The answers of one socket come in order, and each dump is read to its end.
        kernel.send(query.encode(sequence))
        found: list[T] = []
        if _read_answer(kernel, query, sequence, found):
            return found
    raise InterruptedError(EINTR, f"rtnetlink: the state changed during each of {MAX_DUMPS} dumps")


def _read_answer(kernel: socket.socket, query: Query[T], sequence: int, found: list[T]) -> bool:
    """Read one dump to its end; return False if the state changed during it."""
    ended, whole = False, True
    while not ended:
        # The kernel has answered before the request returned, so this does not block.
        octets, sender = kernel.recvfrom(MAX_MESSAGES)
        # Any process may send to this socket; the kernel has port 0.
        if sender[0]:
            continue
        ended, undisturbed = take_messages(octets, query, sequence, found)
        whole = whole and undisturbed
    return whole
