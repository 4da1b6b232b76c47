"""UDP sockets: real ones on loopback."""

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dmnotid.config.values import DEFAULT_RECEIVE_BUFFER, ListenAddress
from dmnotid.errors import EndpointError
from dmnotid.intake.drops import Dropped
from dmnotid.intake.endpoint import BATCH, Endpoint, Endpoints, Intake, bind, source_of
from dmnotid.intake.endpoint import LONGEST as LONGEST_TURN
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram
from tests.netns import Namespace, needs_namespace
from tests.support import DEADLINE, IS_ROOT, LogLines, descriptors, eventually, without_privileges

LOOPBACK = ListenAddress("127.0.0.1", 0)
LOOPBACK6 = ListenAddress("::1", 0)
SO_MEMINFO = 55  # asm-generic/socket.h
LONGEST = 65_507
"""What an IPv4 datagram has room for."""


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs ::1")


class Inbox:
    """Takes batches as the daemon does."""

    def __init__(self) -> None:
        self.batches: list[list[Datagram]] = []

    def __call__(self, batch: Iterable[Datagram]) -> None:
        self.batches.append(list(batch))

    @property
    def datagrams(self) -> list[Datagram]:
        return [datagram for batch in self.batches for datagram in batch]

    @property
    def payloads(self) -> list[bytes]:
        return [datagram.payload for datagram in self.datagrams]


def close(endpoint: Endpoint) -> None:
    endpoint.close(time.monotonic() + DEADLINE)


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def send(to: tuple[str, int], *payloads: bytes) -> Source:
    """Send from a socket of its own; the source that the receiver must see."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((to[0], 0))
        for payload in payloads:
            sock.sendto(payload, to)
        return Source(to[0], port_of(sock))


def taken_room(sock: socket.socket) -> int:
    """How much of its receive buffer is in use."""
    room: int = struct.unpack_from("I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[0]
    return room


async def fill(sock: socket.socket, count: int) -> list[bytes]:
    """Put so many datagrams of one size into a socket's buffer, and see that all of them are there."""
    payloads = [number.to_bytes(4, "big") for number in range(count)]
    send(sock.getsockname(), payloads[0])
    each = await eventually(lambda: taken_room(sock))
    send(sock.getsockname(), *payloads[1:])
    await eventually(lambda: taken_room(sock) == count * each)
    return payloads


# Receiving


async def test_a_datagram_comes_with_source_and_time() -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    endpoint.open()
    before = time.time()
    source = send(sock.getsockname(), b"\x01\x06")
    await eventually(lambda: inbox.datagrams)
    after = time.time()
    close(endpoint)
    (datagram,) = inbox.datagrams
    assert (datagram.payload, datagram.source) == (b"\x01\x06", source)
    assert before <= datagram.received_at <= after


async def test_what_waits_is_taken_at_once() -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    payloads = await fill(sock, BATCH + 6)
    endpoint.open()
    await eventually(lambda: len(inbox.datagrams) == len(payloads))
    close(endpoint)
    assert [len(batch) for batch in inbox.batches] == [BATCH, 6]
    assert inbox.payloads == payloads


async def test_others_get_their_turn_between_batches() -> None:
    """A batch ends after so many datagrams, whatever else waits."""
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    await fill(sock, 2 * BATCH)
    assert endpoint.receive() == BATCH
    assert endpoint.receive() == BATCH
    assert endpoint.receive() == 0
    close(endpoint)
    assert len(inbox.batches) == 2, "no batch is delivered that is empty"


async def test_others_get_their_turn_where_each_datagram_takes_long() -> None:
    sizes: list[int] = []

    def judge(batch: Iterable[Datagram]) -> None:
        sizes.append(0)
        for _ in batch:
            sizes[-1] += 1
            time.sleep(LONGEST_TURN / 4)

    endpoint = Endpoint(bind(LOOPBACK), judge)
    await fill(endpoint.socket, 20)
    close(endpoint)
    assert sum(sizes) == 20
    assert max(sizes[:-1]) <= 5


@pytest.mark.parametrize("payload", [b"", b"\0", bytes(LONGEST)], ids=["none", "one", "longest"])
async def test_datagrams_of_every_size(payload: bytes) -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    endpoint.open()
    send(sock.getsockname(), payload, b"next")
    await eventually(lambda: len(inbox.datagrams) == 2)
    close(endpoint)
    assert inbox.payloads == [payload, b"next"]


@needs_ipv6
async def test_the_longest_datagram_over_ipv6_is_whole() -> None:
    inbox, sock = Inbox(), bind(LOOPBACK6)
    endpoint = Endpoint(sock, inbox)
    endpoint.open()
    payload = os.urandom(65_527)
    source = send(("::1", port_of(sock)), payload)
    await eventually(lambda: inbox.datagrams)
    close(endpoint)
    assert inbox.payloads == [payload]
    assert inbox.datagrams[0].source == source


@needs_ipv6
async def test_ipv4_over_an_ipv6_socket_reads_as_ipv4() -> None:
    inbox, sock = Inbox(), bind(ListenAddress("::", 0))
    endpoint = Endpoint(sock, inbox)
    endpoint.open()
    assert str(endpoint) == f"[::]:{port_of(sock)}"
    source = send(("127.0.0.1", port_of(sock)), b"4")
    source6 = send(("::1", port_of(sock)), b"6")
    await eventually(lambda: len(inbox.datagrams) == 2)
    close(endpoint)
    assert {datagram.payload: datagram.source for datagram in inbox.datagrams} == {b"4": source, b"6": source6}
    assert source.address == "127.0.0.1"
    assert source6.address == "::1"


@pytest.mark.parametrize(
    ("address", "source"),
    [
        (("192.0.2.1", 5), Source("192.0.2.1", 5)),
        (("::ffff:192.0.2.1", 5, 0, 0), Source("::ffff:192.0.2.1", 5)),
        (("2001:db8::1", 5, 0, 0), Source("2001:db8::1", 5)),
        (("fe80::1", 5, 0, 1), Source("fe80::1%lo", 5)),
        (("fe80::1", 5, 0, 999_999), Source("fe80::1%999999", 5)),
        (("::ffff:0:1", 5, 0, 0), Source("::ffff:0:1", 5)),
    ],
)
def test_source_of(address: tuple[object, ...], source: Source) -> None:
    assert source_of(address) == source


@pytest.mark.root
@needs_namespace
def test_an_interface_whose_name_is_no_text_is_told_by_its_number() -> None:
    with Namespace() as namespace:
        namespace.ip("link", "add", os.fsdecode(b"e\xff"), "type", "veth", "peer", "name", "fine")
        names = {name: index for index, name in namespace.call(socket.if_nameindex)}
        index = names[os.fsdecode(b"e\xff")]
        assert namespace.call(source_of, ("fe80::1", 5, 0, index)) == Source(f"fe80::1%{index}", 5)
        assert namespace.call(source_of, ("fe80::1", 5, 0, names["fine"])) == Source("fe80::1%fine", 5)


# Stopping


@pytest.mark.parametrize("opened", [True, False])
async def test_what_waits_at_close_is_taken(opened: bool) -> None:  # noqa: FBT001 - two cases
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    if opened:
        endpoint.open()
    before = taken_room(sock)
    send(sock.getsockname(), *(number.to_bytes(2, "big") for number in range(2 * BATCH + 1)))
    while taken_room(sock) == before:
        time.sleep(0.001)  # noqa: ASYNC251 - the loop must not run: nothing of it may be taken yet
    close(endpoint)
    assert [int.from_bytes(payload, "big") for payload in inbox.payloads] == list(range(2 * BATCH + 1))
    assert sock.fileno() == -1


async def test_after_close_nothing_comes_and_nothing_is_left() -> None:
    inbox = Inbox()
    before = descriptors()
    sock = bind(LOOPBACK)
    address = sock.getsockname()
    endpoint = Endpoint(sock, inbox)
    endpoint.open()
    close(endpoint)
    assert descriptors() - before == {found for found in descriptors() - before if "socket" not in found}
    send(address, b"late")
    for _ in range(5):
        await asyncio.sleep(0)
    assert inbox.batches == []


# Binding


def bind_all(addresses: list[ListenAddress]) -> list[socket.socket]:
    endpoints = Endpoints(Inbox())
    endpoints.bind(addresses)
    return [endpoint.socket for endpoint in endpoints]


async def test_several_addresses() -> None:
    inbox = Inbox()
    sockets = bind_all([LOOPBACK, ListenAddress("127.0.0.2", 0), LOOPBACK])
    endpoints = [Endpoint(sock, inbox) for sock in sockets]
    for number, endpoint in enumerate(endpoints):
        endpoint.open()
        send(endpoint.socket.getsockname(), bytes([number]))
    await eventually(lambda: len(inbox.datagrams) == 3)
    assert [str(endpoint).rpartition(":")[0] for endpoint in endpoints] == ["127.0.0.1", "127.0.0.2", "127.0.0.1"]
    for endpoint in endpoints:
        close(endpoint)
    assert sorted(inbox.payloads) == [b"\0", b"\1", b"\2"]


def bound_at_one_port(addresses: Callable[[int], list[ListenAddress]]) -> list[socket.socket]:
    """Bind at a port that is free in both families."""
    for _ in range(20):
        with bind(LOOPBACK) as probe:
            port = port_of(probe)
        try:
            return bind_all(addresses(port))
        except EndpointError:
            continue
    pytest.fail("no port is free twice")


@needs_ipv6
@pytest.mark.parametrize("turned", [False, True])
async def test_all_of_ipv6_beside_an_ipv4_address_at_one_port(turned: bool) -> None:  # noqa: FBT001 - two cases
    inbox, inbox6 = Inbox(), Inbox()

    def addresses(port: int) -> list[ListenAddress]:
        both = [ListenAddress("::", port), ListenAddress("127.0.0.1", port)]
        return both[::-1] if turned else both

    sockets = bound_at_one_port(addresses)
    port = port_of(sockets[0])
    assert [port_of(sock) for sock in sockets] == [port, port]
    endpoints = [Endpoint(sock, inbox6 if sock.family == socket.AF_INET6 else inbox) for sock in sockets]
    for endpoint in endpoints:
        endpoint.open()
    send(("127.0.0.1", port), b"4")
    send(("::1", port), b"6")
    await eventually(lambda: inbox.datagrams and inbox6.datagrams)
    for endpoint in endpoints:
        close(endpoint)
    assert (inbox.payloads, inbox6.payloads) == ([b"4"], [b"6"])


@pytest.mark.parametrize("address", [LOOPBACK, pytest.param(LOOPBACK6, marks=needs_ipv6)], ids=str)
def test_a_port_in_use_is_named(address: ListenAddress) -> None:
    with bind(address) as first:
        second = ListenAddress(address.host, port_of(first))
        with pytest.raises(EndpointError) as caught:
            bind(second)
    assert str(caught.value) == f"listen: {second}: Address already in use"


def test_the_port_is_shared_with_nobody() -> None:
    with bind(LOOPBACK) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            assert sock.getsockopt(socket.SOL_SOCKET, option) == 0
            thief.setsockopt(socket.SOL_SOCKET, option, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind(sock.getsockname())


def test_sockets_are_not_handed_on_to_hooks() -> None:
    with bind(LOOPBACK) as sock:
        assert not sock.get_inheritable()


@pytest.mark.parametrize(
    "address",
    [
        ListenAddress("192.0.2.1", 2948),
        pytest.param(ListenAddress("2001:db8::1", 2948), marks=needs_ipv6),
        pytest.param(ListenAddress("fe80::1%nosuch0", 2948), marks=needs_ipv6),
        ListenAddress("not-an-address", 2948),
    ],
    ids=str,
)
def test_an_address_that_is_not_ours_is_named(address: ListenAddress) -> None:
    with pytest.raises(EndpointError) as caught:
        bind(address)
    text = str(caught.value)
    assert text.startswith(f"listen: {address}: ")
    assert not text.endswith(": ")


def test_all_addresses_or_none() -> None:
    before = descriptors()
    with bind(LOOPBACK) as probe:
        port = port_of(probe)
    with pytest.raises(EndpointError, match=r"192\.0\.2\.1"):
        bind_all([ListenAddress("127.0.0.1", port), ListenAddress("192.0.2.1", port)])
    assert descriptors() == before
    with closing(bind(ListenAddress("127.0.0.1", port))) as again:
        assert port_of(again) == port


# A socket that fails


async def test_a_receive_that_fails_is_logged_and_tried_again(logged: LogLines) -> None:
    """A connected socket hears of ports where nobody listens; what waits behind that is delivered all the same."""
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    with bind(LOOPBACK) as gone:
        sock.connect(gone.getsockname())
        gone.sendto(b"before", sock.getsockname())
        await eventually(lambda: taken_room(sock))
    sock.send(b"into the void")
    endpoint.open()
    try:
        await eventually(lambda: inbox.datagrams)
    finally:
        close(endpoint)
    assert inbox.payloads == [b"before"]
    assert logged.of("receive failed")[0]["problem"] == "[Errno 111] Connection refused"
    assert logged.of("receive failed")[0]["level"] == "error"


# Exchanging sockets


def at(host: str, port: int) -> ListenAddress:
    return ListenAddress(host, port)


class SlowInbox(Inbox):
    """Takes its time, as a commit does."""

    def __call__(self, datagrams: Iterable[Datagram]) -> None:
        super().__call__(datagrams)
        time.sleep(0.001)


@contextmanager
def receiving(*addresses: ListenAddress, kind: type[Inbox] = Inbox) -> Iterator[tuple[Endpoints, Inbox]]:
    """Receive on some addresses; all that is left is closed at the end."""
    inbox = kind()
    endpoints = Endpoints(inbox)
    endpoints.bind(addresses)
    endpoints.open()
    yield endpoints, inbox
    endpoints.close()
    assert list(endpoints) == []


def free_port() -> int:
    with bind(LOOPBACK) as probe:
        return port_of(probe)


def addresses_of(endpoints: Endpoints) -> list[str]:
    return [str(endpoint) for endpoint in endpoints]


async def test_what_stays_is_not_touched(logged: LogLines) -> None:
    with receiving(LOOPBACK, at("127.0.0.2", 0)) as (endpoints, inbox):
        stays, goes = endpoints
        endpoints.bind([at("127.0.0.3", 0), LOOPBACK])
        new, same = endpoints
        assert same is stays
        assert goes.socket.fileno() == -1
        for endpoint in endpoints:
            send(endpoint.socket.getsockname(), str(endpoint).encode())
        await eventually(lambda: len(inbox.datagrams) == 2)
        assert set(inbox.payloads) == {str(stays).encode(), str(new).encode()}
    assert len(logged.of("socket listening")) == 3


async def test_what_waits_in_a_socket_that_goes_is_taken() -> None:
    with receiving(LOOPBACK) as (endpoints, inbox):
        (goes,) = endpoints
        payloads = await fill(goes.socket, 100)
        endpoints.bind([at("127.0.0.2", 0)])
        assert inbox.payloads == payloads


async def test_the_same_address_twice_with_any_port() -> None:
    with receiving(LOOPBACK, LOOPBACK) as (endpoints, _):
        first, second = endpoints
        endpoints.bind([LOOPBACK])
        assert list(endpoints) == [first]
        assert second.socket.fileno() == -1
        endpoints.bind([LOOPBACK, LOOPBACK])
        assert next(iter(endpoints)) is first


async def test_one_that_cannot_be_bound_changes_nothing() -> None:
    with bind(LOOPBACK) as taken, receiving(LOOPBACK) as (endpoints, inbox):
        before, open_before = list(endpoints), descriptors()
        with pytest.raises(EndpointError, match="Address already in use"):
            endpoints.bind([at("127.0.0.2", 0), at("127.0.0.1", port_of(taken))])
        assert list(endpoints) == before
        assert descriptors() == open_before
        send(before[0].socket.getsockname(), b"still here")
        await eventually(lambda: inbox.payloads == [b"still here"])


@needs_ipv6
@pytest.mark.parametrize("turned", [False, True])
async def test_an_address_takes_over_from_one_that_is_in_its_way(turned: bool) -> None:  # noqa: FBT001 - two cases
    """All of a port and one address of it: neither can be bound beside the other."""
    port = free_port()
    wide, narrow = at("::", port), at("127.0.0.1", port)
    old, new = (narrow, wide) if turned else (wide, narrow)
    with receiving(old) as (endpoints, inbox):
        payloads = await fill_from(("127.0.0.1", port), next(iter(endpoints)), 5)
        endpoints.bind([new])
        assert addresses_of(endpoints) == [str(new)]
        assert inbox.payloads == payloads, "what waited in the old one is taken"
        send(("127.0.0.1", port), b"new")
        await eventually(lambda: inbox.payloads == [*payloads, b"new"])


async def fill_from(to: tuple[str, int], endpoint: Endpoint, count: int) -> list[bytes]:
    """Send so many datagrams, and see that they wait in an endpoint's socket."""
    payloads = [bytes([number]) for number in range(count)]
    send(to, payloads[0])
    each = taken_room(endpoint.socket)
    send(to, *payloads[1:])
    assert taken_room(endpoint.socket) == count * each > 0
    return payloads


@needs_ipv6
async def test_ipv4_beside_all_of_ipv6_and_back() -> None:
    """[::] gives its port's IPv4 up to an address that is added, and has it again when that goes."""
    port = free_port()
    wide, narrow = at("::", port), at("127.0.0.1", port)
    with receiving(wide) as (endpoints, inbox):
        for number, addresses in enumerate([[wide, narrow], [wide], [narrow, wide]]):
            endpoints.bind(addresses)
            assert addresses_of(endpoints) == list(map(str, addresses))
            send(("127.0.0.1", port), bytes([number]))
            send(("::1", port), bytes([number]))
            await eventually(lambda many=2 * (number + 1): len(inbox.datagrams) == many)  # type: ignore[misc]


@needs_ipv6
async def test_nothing_is_lost_while_one_address_takes_over_from_another() -> None:
    """What comes in between goes to one of the two."""
    port = free_port()
    narrow, wide = [at("127.0.0.1", port), at("127.0.0.2", port)], [at("::", port)]
    sent, ended = 0, threading.Event()

    def stream() -> None:
        nonlocal sent
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not ended.wait(0.0002):
                sock.sendto(sent.to_bytes(4, "big"), ("127.0.0.1", port))
                sent += 1

    with receiving(*narrow, kind=SlowInbox) as (endpoints, inbox):
        sender = threading.Thread(target=stream)
        sender.start()
        try:
            for turn in range(100):
                endpoints.bind(narrow if turn % 2 else wide)
                await asyncio.sleep(0.002)
        finally:
            ended.set()
            sender.join()
        await eventually(lambda: len(inbox.datagrams) == sent)
        assert sorted(inbox.payloads) == [number.to_bytes(4, "big") for number in range(sent)]
        assert sent > 100


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "0.0.0.0",  # noqa: S104 - for a moment
        pytest.param("::1", marks=needs_ipv6),
        pytest.param("::", marks=needs_ipv6),
    ],
)
async def test_what_is_turned_away_goes_to_nobody_and_what_waits_stays(host: str) -> None:
    with receiving(at(host, 0)) as (endpoints, inbox):
        (endpoint,) = endpoints
        family, port = endpoint.socket.family, port_of(endpoint.socket)
        endpoint._loop.remove_reader(endpoint.socket.fileno())  # type: ignore[union-attr]
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
            sock.send(b"waits")
            endpoint.turn_away()
            sock.settimeout(10)
            sock.send(b"too late")
            with pytest.raises(ConnectionRefusedError):
                sock.recv(1)
    assert inbox.payloads == [b"waits"]


@needs_ipv6
async def test_the_port_is_shared_with_nobody_after_a_takeover() -> None:
    port = free_port()
    with receiving(at("127.0.0.1", port)) as (endpoints, _):
        endpoints.bind([at("::", port)])
        for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.setsockopt(socket.SOL_SOCKET, option, 1)
                with pytest.raises(OSError, match="Address already in use"):
                    other.bind(("127.0.0.1", port))


@needs_ipv6
async def test_one_that_fails_closes_nothing_that_another_takes_over_from() -> None:
    port = free_port()
    with bind(LOOPBACK) as taken, receiving(at("::", port), LOOPBACK) as (endpoints, inbox):
        before = list(endpoints)
        with pytest.raises(EndpointError, match="Address already in use"):
            endpoints.bind([at("127.0.0.1", port), at("127.0.0.1", port_of(taken))])
        assert list(endpoints) == before
        send(("127.0.0.1", port), b"still here")
        await eventually(lambda: inbox.payloads == [b"still here"])
        with bind(at("127.0.0.3", 0)) as other, pytest.raises(EndpointError, match="Address already in use"):
            bind(at("127.0.0.3", port_of(other)), rivals=[before[1].socket])


async def test_a_new_address_that_does_not_exist_closes_nothing() -> None:
    """192.0.2.1 is an address of documentation: nothing that goes is in its way."""
    port = free_port()
    with receiving(at("127.0.0.1", port)) as (endpoints, _):
        before = list(endpoints)
        for wrong in (at("192.0.2.1", port), at("192.0.2.1", 0)):
            with pytest.raises(EndpointError, match="Cannot assign requested address"):
                endpoints.bind([wrong])
            with pytest.raises(EndpointError, match="Cannot assign requested address"):
                endpoints.bind([at("127.0.0.2", 0), wrong])
            assert list(endpoints) == before
            assert before[0].socket.fileno() > 0


@needs_ipv6
async def test_one_that_fails_is_found_before_anything_is_closed_for_another() -> None:
    port = free_port()
    with receiving(at("127.0.0.1", port)) as (endpoints, _):
        before = list(endpoints)
        with pytest.raises(EndpointError, match="Cannot assign requested address"):
            endpoints.bind([at("::", port), at("192.0.2.1", 5_000)])
        assert list(endpoints) == before
        assert before[0].socket.fileno() > 0


async def test_nothing_is_received_before_it_is_opened() -> None:
    inbox = Inbox()
    endpoints = Endpoints(inbox)
    endpoints.bind([LOOPBACK])
    endpoints.bind([LOOPBACK, at("127.0.0.2", 0)])
    first, second = endpoints
    send(first.socket.getsockname(), b"1")
    send(second.socket.getsockname(), b"2")
    await asyncio.sleep(0.05)
    assert inbox.payloads == []
    endpoints.open()
    await eventually(lambda: sorted(inbox.payloads) == [b"1", b"2"])
    endpoints.close()


# What the kernel does


def rmem_max() -> int:
    return int(Path("/proc/sys/net/core/rmem_max").read_text())


@pytest.mark.skipif(not IS_ROOT, reason="needs root, to be somebody else")
async def test_a_receive_buffer_that_is_not_granted_is_told(tmp_path: Path, logged: LogLines) -> None:
    most = rmem_max()
    with closing(bind(LOOPBACK)) as sock, without_privileges(tmp_path):
        endpoint = Endpoint(sock, Inbox())
        endpoint.configure(Intake(most))
        assert not logged.of("receive buffer reduced")
        endpoint.configure(Intake(most + 4_096))
    (line,) = logged.of("receive buffer reduced")
    assert (line["octets"], line["configured"]) == (most, most + 4_096)
    assert "rmem_max" in line["problem"]


@pytest.mark.skipif(not IS_ROOT, reason="needs CAP_NET_ADMIN")
async def test_a_receive_buffer_beyond_what_others_may_have(logged: LogLines) -> None:
    most = rmem_max()
    with closing(bind(LOOPBACK)) as sock:
        Endpoint(sock, Inbox()).configure(Intake(2 * most))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 4 * most
    assert not logged.all()


PAGE_EACH = 4_928
"""What the kernel counts for a datagram whose driver gives it a page of its own."""


async def test_the_default_buffer_holds_a_thousand_notifications() -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    endpoint.configure(Intake(min(DEFAULT_RECEIVE_BUFFER, rmem_max())))
    send(sock.getsockname(), *[bytes(150)] * 500)
    each = taken_room(sock) / 500
    close(endpoint)
    assert len(inbox.datagrams) == 500
    assert 1_000 * max(each, PAGE_EACH) < 2 * DEFAULT_RECEIVE_BUFFER


async def test_what_is_dropped_is_told_while_datagrams_come() -> None:
    told: list[Dropped] = []
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox, lambda _, dropped: told.append(dropped))
    endpoint.configure(Intake(junk=False, look_every=0.05))
    endpoint.open()
    send(sock.getsockname(), b"junk")
    await asyncio.sleep(0.15)
    assert not told, "nothing wakes us for junk alone"
    send(sock.getsockname(), b"\1\6\1\xd8")
    assert endpoint.receive() == 1
    assert not told, "what came may start a session, which goes first"
    await eventually(lambda: told)
    assert sum(map(sum, told)) == 1
    send(sock.getsockname(), b"junk", b"junk")
    await eventually(lambda: len(told) == 2)
    assert sum(told[1]) == 2
    send(sock.getsockname(), b"junk")
    close(endpoint)
    assert sum(map(sum, told)) == 4


async def test_an_endpoint_looks_once_more_and_then_rests() -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    endpoint = Endpoint(sock, inbox)
    endpoint.configure(Intake(look_every=0.02))
    endpoint.open()
    send(sock.getsockname(), b"one")
    await eventually(lambda: inbox.datagrams)
    assert endpoint._look is not None
    await eventually(lambda: endpoint._look is None)
    close(endpoint)


async def test_a_socket_of_others_keeps_its_buffer_and_gets_the_filter_that_is_wanted() -> None:
    inbox, sock = Inbox(), bind(LOOPBACK)
    before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with closing(Endpoints(inbox)) as endpoints:
        endpoints.take_over(sock)
        endpoints.bind([LOOPBACK])
        endpoints.configure(Intake(8_192, junk=False))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
        (endpoint,) = endpoints
        send(sock.getsockname(), b"junk")
        assert endpoint.receive() == 0
        # As a former process left it, with a filter that is not wanted any more.
        endpoints.configure(Intake(8_192, junk=True))
        send(sock.getsockname(), b"junk")
        assert endpoint.receive() == 1
