"""One endpoint: real sockets on loopback."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmnotid.config.values import DEFAULT_RECEIVE_BUFFER, ListenAddress
from dmnotid.intake.batches import BATCH
from dmnotid.intake.drops import Dropped
from dmnotid.intake.endpoint import Endpoint, Intake, source_of
from dmnotid.intake.sockets import bind
from dmnotid.policy.addresses import Source
from dmnotid.wire.wsp import DEFAULT_MAX_OCTETS
from tests.intake.support import LOOPBACK, LOOPBACK6, Inbox, fill, needs_ipv6, port_of, send, used_room
from tests.netns import Namespace, in_namespace
from tests.support import DEADLINE, LogLines, as_root, descriptors, eventually, without_privileges

LONGEST = 65_507
"""The octets of the longest IPv4 datagram."""


@contextmanager
def endpoint_at(
    address: ListenAddress = LOOPBACK, report: Callable[[str, Dropped], None] | None = None
) -> Iterator[tuple[Endpoint, Inbox]]:
    """Make an endpoint, which is closed at the end."""
    inbox = Inbox()
    endpoint = Endpoint(bind(address), inbox, report)
    yield endpoint, inbox
    close(endpoint)


def close(endpoint: Endpoint) -> None:
    if endpoint.socket.fileno() != -1:
        endpoint.close(time.monotonic() + DEADLINE)


# Receiving


async def test_datagram_arrives_with_source_and_time() -> None:
    with endpoint_at() as (endpoint, inbox):
        endpoint.open()
        before = time.time()
        source = send(endpoint.socket.getsockname(), b"\x01\x06")
        await eventually(lambda: inbox.datagrams)
        after = time.time()
    (datagram,) = inbox.datagrams
    assert (datagram.payload, datagram.source) == (b"\x01\x06", source)
    assert before <= datagram.received_at <= after


async def test_queued_datagrams_are_delivered_in_batches() -> None:
    with endpoint_at() as (endpoint, inbox):
        payloads = await fill(endpoint.socket, BATCH + 6)
        endpoint.open()
        await eventually(lambda: len(inbox.datagrams) == len(payloads))
    assert [len(batch) for batch in inbox.batches] == [BATCH, 6]
    assert inbox.payloads == payloads


async def test_batch_is_never_empty() -> None:
    with endpoint_at() as (endpoint, inbox):
        await fill(endpoint.socket, 2 * BATCH)
        assert [endpoint.receive() for _ in range(3)] == [BATCH, BATCH, 0]
    assert len(inbox.batches) == 2


@pytest.mark.parametrize(
    ("length", "most"), [(0, 10), (1, 10), (LONGEST, LONGEST), (LONGEST, 10), (LONGEST, DEFAULT_MAX_OCTETS)]
)
@pytest.mark.parametrize("listen", [LOOPBACK, pytest.param(LOOPBACK6, marks=needs_ipv6)], ids=["IPv4", "IPv6"])
async def test_datagram_is_whole_or_cut_one_octet_after_the_limit(
    listen: ListenAddress, length: int, most: int
) -> None:
    """4: the decoder sees that it is too long, and nothing is kept of the rest."""
    payload = os.urandom(length)
    with endpoint_at(listen) as (endpoint, inbox):
        endpoint.configure(Intake(max_octets=most))
        endpoint.open()
        send((listen.host, port_of(endpoint.socket)), payload, b"next")
        await eventually(lambda: len(inbox.datagrams) == 2)
    assert inbox.payloads == [payload[: most + 1], b"next"]


@needs_ipv6
async def test_ipv4_sender_reads_as_ipv4_on_a_dual_stack_socket() -> None:
    with endpoint_at(ListenAddress("::", 0)) as (endpoint, inbox):
        endpoint.open()
        port = port_of(endpoint.socket)
        assert str(endpoint) == f"[::]:{port}"
        source, source6 = send(("127.0.0.1", port), b"4"), send(("::1", port), b"6")
        await eventually(lambda: len(inbox.datagrams) == 2)
    assert {datagram.payload: datagram.source for datagram in inbox.datagrams} == {b"4": source, b"6": source6}


@pytest.mark.parametrize(
    ("address", "source"),
    [
        (("192.0.2.1", 5), Source("192.0.2.1", 5)),
        (("::ffff:192.0.2.1", 5, 0, 0), Source("::ffff:192.0.2.1", 5)),
        (("2001:db8::1", 5, 0, 0), Source("2001:db8::1", 5)),
        (("fe80::1", 5, 0, 1), Source("fe80::1%lo", 5)),
        (("fe80::1", 5, 0, 999_999), Source("fe80::1%999999", 5)),
    ],
)
def test_source_has_the_zone_of_a_link_local_address(address: tuple[object, ...], source: Source) -> None:
    assert source_of(address) == source


@in_namespace
def test_source_has_the_number_of_an_interface_whose_name_is_not_utf8() -> None:
    with Namespace() as namespace:
        namespace.ip("link", "add", os.fsdecode(b"e\xff"), "type", "veth", "peer", "name", "fine")
        names = {name: index for index, name in namespace.call(socket.if_nameindex)}
        index = names[os.fsdecode(b"e\xff")]
        assert namespace.call(source_of, ("fe80::1", 5, 0, index)) == Source(f"fe80::1%{index}", 5)
        assert namespace.call(source_of, ("fe80::1", 5, 0, names["fine"])) == Source("fe80::1%fine", 5)


# Stopping


@pytest.mark.parametrize("opened", [True, False])
async def test_queued_datagrams_are_delivered_at_close(opened: bool) -> None:  # noqa: FBT001 - two cases
    with endpoint_at() as (endpoint, inbox):
        if opened:
            endpoint.open()
        # The loop does not run before `close`.
        payloads = [number.to_bytes(2, "big") for number in range(2 * BATCH + 1)]
        send(endpoint.socket.getsockname(), *payloads)
    assert inbox.payloads == payloads
    assert endpoint.socket.fileno() == -1


async def test_datagrams_are_left_in_the_queue_after_the_deadline() -> None:
    with endpoint_at() as (endpoint, inbox):
        await fill(endpoint.socket, 5)
        endpoint.close(time.monotonic())
    assert inbox.payloads == []


async def test_close_leaves_no_descriptor_open() -> None:
    with endpoint_at() as (first, _):
        # What the loop itself opens is open from here on.
        first.open()
        before = descriptors()
        with endpoint_at() as (endpoint, _):
            endpoint.open()
        assert descriptors() == before


# Errors


async def test_receive_failure_is_logged_and_reception_goes_on(logged: LogLines) -> None:
    """A connected socket reports a port without listener; the datagram that is queued after that is delivered."""
    with endpoint_at() as (endpoint, inbox):
        sock = endpoint.socket
        with bind(LOOPBACK) as gone:
            sock.connect(gone.getsockname())
            gone.sendto(b"queued", sock.getsockname())
            await eventually(lambda: used_room(sock))
        sock.send(b"into the void")
        endpoint.open()
        await eventually(lambda: inbox.datagrams)
    assert inbox.payloads == [b"queued"]
    line = logged.of("receive failed")[0]
    assert (line["level"], line["problem"]) == ("error", "[Errno 111] Connection refused")


# Receive buffer and filter


def rmem_max() -> int:
    return int(Path("/proc/sys/net/core/rmem_max").read_text())


@as_root
async def test_reduced_receive_buffer_is_logged(tmp_path: Path, logged: LogLines) -> None:
    most = rmem_max()
    with endpoint_at() as (endpoint, _), without_privileges(tmp_path):
        endpoint.configure(Intake(most))
        assert not logged.of("receive buffer reduced")
        endpoint.configure(Intake(most + 4_096))
    (line,) = logged.of("receive buffer reduced")
    assert (line["octets"], line["configured"]) == (most, most + 4_096)
    assert "rmem_max" in line["problem"]


@as_root
async def test_receive_buffer_exceeds_rmem_max_with_cap_net_admin(logged: LogLines) -> None:
    with endpoint_at() as (endpoint, _):
        endpoint.configure(Intake(2 * rmem_max()))
        assert endpoint.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 4 * rmem_max()
    assert not logged.all()


PAGE_EACH = 4_928
"""The octets that the kernel counts for a datagram if the network driver gives each one a page."""


async def test_default_receive_buffer_holds_a_thousand_notifications() -> None:
    with endpoint_at() as (endpoint, inbox):
        endpoint.configure(Intake(min(DEFAULT_RECEIVE_BUFFER, rmem_max())))
        send(endpoint.socket.getsockname(), *[bytes(150)] * 500)
        each = used_room(endpoint.socket) / 500
    assert len(inbox.datagrams) == 500
    assert 1_000 * max(each, PAGE_EACH) < 2 * DEFAULT_RECEIVE_BUFFER


async def test_drops_are_reported_beside_datagrams_and_at_close() -> None:
    reports: list[Dropped] = []
    with endpoint_at(report=lambda _, dropped: reports.append(dropped)) as (endpoint, _):
        endpoint.configure(Intake(junk=False, look_every=0.01))
        endpoint.open()
        address = endpoint.socket.getsockname()
        send(address, b"junk", b"\1\6\1\xd8")
        await eventually(lambda: reports)
        send(address, b"junk", b"junk", b"\1\6\1\xd8")
        await eventually(lambda: len(reports) == 2)
        send(address, b"junk")
    assert [sum(dropped) for dropped in reports] == [1, 2, 1]
