"""The sockets of a configuration: bound, exchanged at a reload, or passed by the service manager."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from dmnotid.config.values import ListenAddress
from dmnotid.errors import EndpointError
from dmnotid.intake.endpoint import Intake
from dmnotid.intake.sockets import Binding, Endpoints, bind, bindings
from tests.intake.support import LOOPBACK, LOOPBACK6, Inbox, fill, needs_ipv6, port_of, send
from tests.support import LogLines, descriptors, eventually


def at(host: str, port: int = 0) -> ListenAddress:
    return ListenAddress(host, port)


def free_port() -> int:
    with bind(LOOPBACK) as probe:
        return port_of(probe)


@contextmanager
def receiving(*addresses: ListenAddress) -> Iterator[tuple[Endpoints, Inbox]]:
    """Receive on addresses; all endpoints are closed at the end."""
    inbox = Inbox()
    with closing(Endpoints(inbox)) as endpoints:
        endpoints.bind(addresses)
        endpoints.open()
        yield endpoints, inbox


def shown(endpoints: Endpoints) -> list[str]:
    return [str(endpoint) for endpoint in endpoints]


# One socket


@pytest.mark.parametrize("address", [LOOPBACK, pytest.param(LOOPBACK6, marks=needs_ipv6)], ids=str)
def test_port_in_use_is_named(address: ListenAddress) -> None:
    with bind(address) as first:
        second = at(address.host, port_of(first))
        with pytest.raises(EndpointError) as caught:
            bind(second)
    owner = "another process has it, or systemd for dmnotid.socket"
    assert str(caught.value) == f"listen: {second}: Address already in use: {owner}"


def test_port_is_shared_with_no_other_process() -> None:
    with bind(LOOPBACK) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            assert sock.getsockopt(socket.SOL_SOCKET, option) == 0
            thief.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(sock.getsockname())


def test_socket_is_not_inherited_by_hooks() -> None:
    with bind(LOOPBACK) as sock:
        assert not sock.get_inheritable()


@pytest.mark.parametrize(
    "address",
    [
        at("192.0.2.1", 2948),
        pytest.param(at("2001:db8::1", 2948), marks=needs_ipv6),
        pytest.param(at("fe80::1%nosuch0", 2948), marks=needs_ipv6),
        at("not-an-address", 2948),
    ],
    ids=str,
)
def test_address_of_no_interface_is_named(address: ListenAddress) -> None:
    with pytest.raises(EndpointError) as caught:
        bind(address)
    text = str(caught.value)
    assert text.startswith(f"listen: {address}: ")
    assert not text.endswith(": ")


# All sockets of a configuration


def test_ipv6_wildcard_is_ipv6_only_beside_ipv4_at_its_port() -> None:
    addresses = [at("::", 5), at("127.0.0.1", 5), at("::", 6), LOOPBACK, LOOPBACK]
    assert bindings(addresses) == [
        Binding(addresses[0], ipv6_only=True),
        Binding(addresses[1]),
        Binding(addresses[2]),
        Binding(LOOPBACK),
        Binding(LOOPBACK, copy=1),
    ]


async def test_several_addresses_receive() -> None:
    with receiving(LOOPBACK, at("127.0.0.2"), LOOPBACK) as (endpoints, inbox):
        for number, endpoint in enumerate(endpoints):
            send(endpoint.socket.getsockname(), bytes([number]))
        await eventually(lambda: len(inbox.datagrams) == 3)
        assert [text.rpartition(":")[0] for text in shown(endpoints)] == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    assert sorted(inbox.payloads) == [b"\0", b"\1", b"\2"]
    assert list(endpoints) == []


@needs_ipv6
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["ipv6-first", "ipv4-first"])
async def test_ipv6_wildcard_and_ipv4_address_share_a_port(order: slice) -> None:
    port = free_port()
    with receiving(*[at("::", port), at("127.0.0.1", port)][order]) as (endpoints, inbox):
        sources = {send(("127.0.0.1", port), b"4"), send(("::1", port), b"6")}
        await eventually(lambda: len(inbox.datagrams) == 2)
        assert len(shown(endpoints)) == 2
    assert {datagram.source for datagram in inbox.datagrams} == sources


def test_no_socket_remains_if_one_address_cannot_be_bound() -> None:
    before, port = descriptors(), free_port()
    with closing(Endpoints(Inbox())) as endpoints:
        with pytest.raises(EndpointError, match=r"192\.0\.2\.1"):
            endpoints.bind([at("127.0.0.1", port), at("192.0.2.1", port)])
        assert descriptors() == before
        endpoints.bind([at("127.0.0.1", port)])


async def test_datagrams_stay_queued_until_endpoints_are_opened() -> None:
    inbox = Inbox()
    with closing(Endpoints(inbox)) as endpoints:
        endpoints.bind([LOOPBACK])
        endpoints.bind([LOOPBACK, at("127.0.0.2")])
        payloads = [payload for endpoint in endpoints for payload in await fill(endpoint.socket, 3)]
        assert inbox.payloads == []
        endpoints.open()
        await eventually(lambda: sorted(inbox.payloads) == sorted(payloads))


# Reload


async def test_kept_address_keeps_its_socket_at_a_reload(logged: LogLines) -> None:
    with receiving(LOOPBACK, at("127.0.0.2")) as (endpoints, inbox):
        stays, goes = endpoints
        endpoints.bind([at("127.0.0.3"), LOOPBACK])
        new, same = endpoints
        assert same is stays
        assert goes.socket.fileno() == -1
        for endpoint in endpoints:
            send(endpoint.socket.getsockname(), str(endpoint).encode())
        await eventually(lambda: len(inbox.datagrams) == 2)
        assert set(inbox.payloads) == {str(stays).encode(), str(new).encode()}
    assert len(logged.of("socket listening")) == 3


@needs_ipv6
async def test_ipv6_address_keeps_its_socket_when_a_reload_adds_an_ipv4_address() -> None:
    port = free_port()
    with receiving(at("::1", port)) as (endpoints, _):
        (kept,) = endpoints
        for addresses in ([at("127.0.0.1", port), at("::1", port)], [at("::1", port)]):
            endpoints.bind(addresses)
            assert list(endpoints)[-1] is kept


async def test_one_of_two_equal_addresses_is_closed_at_a_reload() -> None:
    with receiving(LOOPBACK, LOOPBACK) as (endpoints, _):
        first, second = endpoints
        endpoints.bind([LOOPBACK])
        assert list(endpoints) == [first]
        assert second.socket.fileno() == -1
        endpoints.bind([LOOPBACK, LOOPBACK])
        assert next(iter(endpoints)) is first


async def test_queue_of_a_closed_socket_is_drained_at_a_reload() -> None:
    with receiving(LOOPBACK) as (endpoints, inbox):
        (goes,) = endpoints
        payloads = await fill(goes.socket, 100)
        endpoints.bind([at("127.0.0.2")])
        assert inbox.payloads == payloads


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (lambda taken: at("127.0.0.1", port_of(taken)), "Address already in use"),
        (lambda _: at("192.0.2.1", 5_000), "Cannot assign requested address"),
    ],
    ids=["in-use", "not-ours"],
)
async def test_reload_changes_nothing_if_an_address_cannot_be_bound(
    wrong: Callable[[socket.socket], ListenAddress], problem: str
) -> None:
    with bind(LOOPBACK) as taken, receiving(LOOPBACK) as (endpoints, inbox):
        before, open_before = list(endpoints), descriptors()
        with pytest.raises(EndpointError, match=problem):
            endpoints.bind([at("127.0.0.2"), wrong(taken)])
        assert list(endpoints) == before
        assert descriptors() == open_before
        send(before[0].socket.getsockname(), b"still here")
        await eventually(lambda: inbox.payloads == [b"still here"])


def swapped(port: int) -> tuple[list[ListenAddress], list[ListenAddress]]:
    return [at("127.0.0.1", port)], [at("0.0.0.0", port)]  # noqa: S104


def widened(port: int) -> tuple[list[ListenAddress], list[ListenAddress]]:
    return [at("127.0.0.1", port)], [at("::", port)]


def narrowed(port: int) -> tuple[list[ListenAddress], list[ListenAddress]]:
    return [at("::", port)], [at("127.0.0.1", port)]


def added(port: int) -> tuple[list[ListenAddress], list[ListenAddress]]:
    """[::] must become IPv6-only."""
    return [at("::", port)], [at("::", port), at("127.0.0.1", port)]


@pytest.mark.parametrize(
    "change", [swapped, *(pytest.param(change, marks=needs_ipv6) for change in (widened, narrowed, added))]
)
async def test_reload_to_a_conflicting_address_needs_a_restart(
    change: Callable[[int], tuple[list[ListenAddress], list[ListenAddress]]],
) -> None:
    port = free_port()
    old, new = change(port)
    with receiving(*old) as (endpoints, inbox):
        before = list(endpoints)
        with pytest.raises(EndpointError) as caught:
            endpoints.bind(new)
        assert str(caught.value) == (
            f"listen: {new[0]}: this daemon has {old[0]} open, which a restart alone can exchange for it"
        )
        assert list(endpoints) == before
        send(("127.0.0.1", port), b"still here")
        await eventually(lambda: inbox.payloads == [b"still here"])


@needs_ipv6
async def test_address_in_use_elsewhere_is_not_blamed_on_an_ipv4_socket_of_ours() -> None:
    with bind(at("::1")) as taken:
        port = port_of(taken)
        with receiving(at("0.0.0.0", port)) as (endpoints, _), pytest.raises(EndpointError) as caught:  # noqa: S104
            endpoints.bind([at("0.0.0.0", port), at("::1", port)])  # noqa: S104
    assert "another process has it" in str(caught.value)


# Passed sockets


async def test_passed_socket_replaces_configured_addresses(logged: LogLines) -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    own, other = at("127.0.0.1", port_of(sock)), at("127.0.0.2", 2949)
    with closing(Endpoints(inbox, passed=[sock])) as endpoints:
        endpoints.bind([own])
        # A default is not a setting that could be ignored.
        endpoints.bind([other], given=False)
        assert not logged.all()
        endpoints.bind([other])
        (line,) = logged.of("listen ignored")
        assert (line["configured"], line["instead"]) == ([str(other)], [str(own)])
        assert [endpoint.socket for endpoint in endpoints] == [sock]
        endpoints.open()
        send(sock.getsockname(), b"here")
        await eventually(lambda: inbox.payloads == [b"here"])


async def test_socket_that_is_bound_to_an_interface_is_logged_with_it(logged: LogLines) -> None:
    with bind(LOOPBACK) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        with closing(Endpoints(Inbox(), passed=[sock])) as endpoints:
            endpoints.open()
    (line,) = logged.of("socket listening")
    assert line["device"] == "lo"


def test_passed_ipv4_wildcard_serves_a_configured_ipv6_wildcard(logged: LogLines) -> None:
    """As systemd binds on a kernel without IPv6."""
    sock = bind(at("0.0.0.0"))  # noqa: S104
    with closing(Endpoints(Inbox(), passed=[sock])) as endpoints:
        endpoints.bind([at("::", port_of(sock))])
    assert not logged.all()


async def test_passed_socket_keeps_its_buffer_and_gets_the_configured_filter() -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with closing(Endpoints(inbox, passed=[sock])) as endpoints:
        endpoints.bind([LOOPBACK])
        (endpoint,) = endpoints
        endpoints.configure(Intake(8_192, junk=False))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
        send(sock.getsockname(), b"junk")
        assert endpoint.receive() == 0
        endpoints.configure(Intake(8_192, junk=True))
        send(sock.getsockname(), b"junk")
        assert endpoint.receive() == 1
