"""IPv6 packets whose source is in ::ffff:0:0/96 must not pass for IPv4: raw frames on real links, and no filter."""

import asyncio
import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final

import pytest

from dmnotid.config.loading import load_config
from dmnotid.config.values import ListenAddress
from dmnotid.daemon import Daemon
from dmnotid.errors import EndpointError
from dmnotid.host.systemd import Manager
from dmnotid.intake.drops import read_drops
from dmnotid.intake.endpoint import Intake
from dmnotid.intake.sockets import Endpoints, bind
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram
from dmnotid.policy.servers import Server
from tests.netns import Namespace, in_namespace
from tests.support import DEADLINE, OPEN_ID, LogLines, eventually, push, write_config

PORT: Final = 2948
WIDE: Final = ListenAddress("::", PORT)
BOTH: Final = (WIDE, ListenAddress("0.0.0.0", PORT))  # noqa: S104 - in a namespace
LISTEN: Final = pytest.mark.parametrize("listen", [(WIDE,), BOTH], ids=["dual-stack", "beside-ipv4"])
JUNK: Final = pytest.mark.parametrize("junk", [False, True], ids=["no-junk", "junk"])

FORGED: Final = "::ffff:127.0.0.1"
LOCAL: Final = Server("local", require_digest=False, sources=(ip_network("127.0.0.0/8"),))

SO_LOCK_FILTER: Final = 44  # asm-generic/socket.h


def notification(number: int) -> bytes:
    """Build a datagram that an unsigned server could send, the same at every call."""
    return push(number, server_id=OPEN_ID)


def checksum(octets: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(octets) + 1) // 2}H", octets + bytes(len(octets) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


class Packet:
    """A UDP datagram in an IPv4 or IPv6 packet: its EtherType and its octets."""

    def __init__(self, source: str, destination: str, payload: bytes) -> None:
        sender, receiver = ip_address(source), ip_address(destination)
        addresses, length = sender.packed + receiver.packed, 8 + len(payload)
        udp = struct.pack("!HHHH", 40_000, PORT, length, 0) + payload
        udp = udp[:6] + checksum(addresses + struct.pack("!IHH", length, 0, socket.IPPROTO_UDP) + udp) + udp[8:]
        if isinstance(sender, IPv6Address):
            self.type = 0x86DD
            self.octets = struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + addresses + udp
        else:
            self.type = 0x0800
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
            self.octets = header[:10] + checksum(header) + header[12:] + udp


def emit(interface: str, next_hop: bytes, packets: Iterable[Packet]) -> None:
    """Put packets on a link, in order; `next_hop` is a link-layer address."""
    # On one processor: the kernel queues frames for each processor separately.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface, 0))
        own = sock.getsockname()[4]
        for packet in packets:
            sock.send(next_hop + own + packet.type.to_bytes(2, "big") + packet.octets)


class Device:
    """A namespace with two links, and a host behind a router on the first one."""

    def __init__(self, stack: ExitStack) -> None:
        self.namespace = stack.enter_context(Namespace())
        self.outside = stack.enter_context(Namespace())
        near, far, outside = self.namespace.ip, self.namespace.far_ip, self.outside.ip
        self.namespace.add_veth("e0")
        self.namespace.add_veth("e1")
        for address in ("198.51.100.1/24", "fd00::1/64", "2001:db8::1/64", "fe80::1/64"):
            near("address", "add", address, "dev", "e0")
        near("address", "add", "192.0.2.1/24", "dev", "e1")
        far("address", "add", "fd00::2/64", "dev", "e0")
        far("link", "add", "up0", "type", "veth", "peer", "name", "e0", "netns", self.outside.name)
        far("link", "set", "up0", "up")
        outside("link", "set", "e0", "up")
        self.outside.wait_up("e0")
        far("-6", "route", "add", "2001:db8::/64", "dev", "e0")
        self.namespace.far_call(Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text, "1")

    def send(self, *packets: Packet) -> None:
        """Send from the link's far end."""
        self.namespace.far_call(emit, "e0", hardware_address(self.namespace.ip("link", "show", "e0")), packets)

    def send_through_router(self, *packets: Packet) -> None:
        """Send from a host whose only way to the device is the far end, which forwards."""
        self.outside.call(emit, "e0", hardware_address(self.namespace.far_ip("link", "show", "up0")), packets)

    def send_inside(self, host: str, payload: bytes) -> None:
        """Send over loopback; the datagram is queued on return."""
        self.namespace.call(send_inside, host, payload)


def hardware_address(shown: str) -> bytes:
    """Read the link-layer address from what `ip link show` prints."""
    return bytes.fromhex(shown.split("link/ether ")[1].split(maxsplit=1)[0].replace(":", ""))


def send_inside(host: str, payload: bytes) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, 0))
        sock.sendto(payload, (host, PORT))


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with ExitStack() as stack:
        yield Device(stack)


class Receiver:
    """The sockets of a configuration inside a device."""

    def __init__(self, endpoints: Endpoints, datagrams: list[Datagram]) -> None:
        self.endpoints = endpoints
        self._datagrams = datagrams

    def receive(self) -> None:
        for endpoint in self.endpoints:
            endpoint.receive()

    def until(self, fence: bytes) -> dict[bytes, str]:
        """Receive until a datagram that arrives last is there; the senders of all by their payloads."""
        while fence not in (found := {it.payload: it.source.address for it in self._datagrams}):
            sockets = [endpoint.socket for endpoint in self.endpoints]
            assert select.select(sockets, [], [], DEADLINE)[0], f"{fence!r} never arrived"
            self.receive()
        # Another socket may have been read just before its datagram arrived.
        self.receive()
        found = {it.payload: it.source.address for it in self._datagrams}
        del found[fence]
        return found


@contextmanager
def receiving(device: Device, listen: Sequence[ListenAddress], *, junk: bool) -> Iterator[Receiver]:
    datagrams: list[Datagram] = []
    with closing(Endpoints(datagrams.extend)) as endpoints:
        device.namespace.call(endpoints.bind, listen, ipv4_sources=True)
        endpoints.configure(Intake(junk=junk))
        yield Receiver(endpoints, datagrams)


FENCE: Final = notification(99)


def fence(destination: str = "fd00::1") -> Packet:
    return Packet("fd00::2", destination, FENCE)


# With the filter


@in_namespace
@JUNK
@LISTEN
@pytest.mark.parametrize("destination", ["2001:db8::1", "fe80::1"], ids=["global", "link-local"])
def test_forged_loopback_sender_is_refused(
    device: Device, listen: Sequence[ListenAddress], destination: str, *, junk: bool
) -> None:
    """5.3.5: `sources` of 127.0.0.0/8 admit this device alone."""
    with receiving(device, listen, junk=junk) as receiver:
        before = [read_drops(endpoint.socket) for endpoint in receiver.endpoints]
        device.send(Packet(FORGED, destination, notification(1)), fence(destination))
        assert receiver.until(FENCE) == {}
        # Refused by the filter, not lost on its way.
        after = [read_drops(endpoint.socket) for endpoint in receiver.endpoints]
        assert sum(after) - sum(before) == 1


@in_namespace
@JUNK
@LISTEN
def test_forged_sender_is_refused_when_reverse_path_filter_is_on(
    device: Device, listen: Sequence[ListenAddress], *, junk: bool
) -> None:
    """192.0.2.0/24 is on the other link: rp_filter drops its true IPv4 packets here."""
    for interface in ("all", "e0"):
        device.namespace.sysctl(f"ipv4/conf/{interface}/rp_filter", "1")
    with receiving(device, listen, junk=junk) as receiver:
        true = Packet("192.0.2.10", "198.51.100.1", notification(1))
        forged = Packet("::ffff:192.0.2.10", "fd00::1", notification(2))
        on_link = Packet("198.51.100.10", "198.51.100.1", notification(3))
        device.send(true, forged, on_link, fence())
        assert receiver.until(FENCE) == {notification(3): "198.51.100.10"}


@in_namespace
@JUNK
@LISTEN
def test_forged_sender_is_refused_when_a_router_forwards_it(
    device: Device, listen: Sequence[ListenAddress], *, junk: bool
) -> None:
    with receiving(device, listen, junk=junk) as receiver:
        before = [read_drops(endpoint.socket) for endpoint in receiver.endpoints]
        forwarded = Packet("2001:db8:1::2", "2001:db8::1", FENCE)
        device.send_through_router(Packet(FORGED, "2001:db8::1", notification(1)), forwarded)
        assert receiver.until(FENCE) == {}
        after = [read_drops(endpoint.socket) for endpoint in receiver.endpoints]
        assert sum(after) - sum(before) == 1


@in_namespace
@JUNK
@LISTEN
def test_true_senders_arrive_with_their_addresses(
    device: Device, listen: Sequence[ListenAddress], *, junk: bool
) -> None:
    with receiving(device, listen, junk=junk) as receiver:
        device.send_inside("127.0.0.1", notification(1))
        device.send_inside("::1", notification(2))
        device.send(
            Packet("198.51.100.10", "198.51.100.1", notification(3)),
            Packet("fd00::2", "fd00::1", notification(4)),
            Packet("fe80::2", "fe80::1", notification(5)),
            fence(),
        )
        found = receiver.until(FENCE)
        assert [found.get(notification(number)) for number in range(1, 5)] == [
            "127.0.0.1",
            "::1",
            "198.51.100.10",
            "fd00::2",
        ]
        assert found[notification(5)].startswith("fe80::2%")


@in_namespace
@pytest.mark.parametrize("ipv6_only", [False, True], ids=["dual-stack", "ipv6-only"])
def test_forged_sender_is_refused_as_soon_as_the_socket_is_bound(device: Device, *, ipv6_only: bool) -> None:
    with device.namespace.call(bind, WIDE, ipv6_only=ipv6_only) as sock:
        device.send(Packet(FORGED, "fd00::1", notification(1)), fence())
        assert select.select([sock], [], [], DEADLINE)[0]
        assert sock.recv(65_535) == FENCE


# Without it


def passed_socket(*, ipv6_only: bool = False, port: int = PORT, locked: bool = False) -> socket.socket:
    """Bind a socket as a service manager does; `locked`, the kernel takes no filter for it."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(ipv6_only))
    sock.bind(("::", port))
    if locked:
        sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
    return sock


@contextmanager
def receiving_passed(sock: socket.socket, *, ipv4_sources: bool) -> Iterator[Receiver]:
    datagrams: list[Datagram] = []
    with closing(Endpoints(datagrams.extend, passed=[sock])) as endpoints:
        endpoints.bind([WIDE], ipv4_sources=ipv4_sources)
        endpoints.configure(Intake(junk=False))
        yield Receiver(endpoints, datagrams)


@in_namespace
@pytest.mark.parametrize("record", [None, socket.IPV6_RECVPKTINFO], ids=["plain", "with-packet-info"])
def test_forged_sender_in_the_queue_of_a_passed_socket_keeps_its_prefix(device: Device, record: int | None) -> None:
    sock = device.namespace.call(passed_socket)
    if record is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, record, 1)
    device.send(Packet(FORGED, "fd00::1", notification(1)))
    assert select.select([sock], [], [], DEADLINE)[0]
    device.send_inside("127.0.0.1", notification(2))
    with receiving_passed(sock, ipv4_sources=True) as receiver:
        device.send(Packet(FORGED, "fd00::1", notification(3)), fence())
        found = receiver.until(FENCE)
    assert found == {notification(1): FORGED, notification(2): "127.0.0.1"}
    assert [LOCAL.allows(Source(address, 40_000)) for address in found.values()] == [False, True]


@in_namespace
@pytest.mark.parametrize("ipv6_only", [False, True], ids=["dual-stack", "ipv6-only"])
def test_forged_sender_keeps_its_prefix_when_the_kernel_takes_no_filter(device: Device, *, ipv6_only: bool) -> None:
    sock = device.namespace.call(passed_socket, ipv6_only=ipv6_only, locked=True)
    with receiving_passed(sock, ipv4_sources=ipv6_only) as receiver:
        device.send(Packet(FORGED, "fd00::1", notification(1)), fence())
        found = receiver.until(FENCE)
    assert found == {notification(1): FORGED}
    assert not LOCAL.allows(Source(found[notification(1)], 40_000))


def has_ipv6() -> bool:
    try:
        with passed_socket(port=0):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")


@needs_ipv6
@pytest.mark.parametrize(
    ("ipv6_only", "locked", "ipv4_sources", "refused"),
    [(False, True, True, True), (False, True, False, False), (False, False, True, False), (True, True, True, False)],
)
def test_dual_stack_socket_without_filter_is_refused_beside_ipv4_sources(
    *, ipv6_only: bool, locked: bool, ipv4_sources: bool, refused: bool
) -> None:
    sock = passed_socket(ipv6_only=ipv6_only, port=0, locked=locked)
    port = sock.getsockname()[1]
    with closing(Endpoints(lambda _: None, passed=[sock])) as endpoints:
        if refused:
            with pytest.raises(EndpointError) as caught:
                endpoints.bind([WIDE], ipv4_sources=ipv4_sources)
            assert str(caught.value).startswith(f"listen: [::]:{port}: the kernel takes no socket filter")
            assert f"list both 0.0.0.0:{port} and [::]:{port}" in str(caught.value)
        else:
            endpoints.bind([WIDE], ipv4_sources=ipv4_sources)


@needs_ipv6
def test_ipv6_address_without_filter_is_accepted_beside_ipv4_sources() -> None:
    """No IPv4 packet arrives at ::1, though the socket is not IPv6-only."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::1", 0))
    sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
    with closing(Endpoints(lambda _: None, passed=[sock])) as endpoints:
        endpoints.bind([WIDE], ipv4_sources=True)


def manager_with(sock: socket.socket) -> Manager:
    manager = Manager({})
    manager.sockets.append(sock)
    return manager


def open_server(*sources: str) -> list[dict[str, object]]:
    return [{"id": OPEN_ID, "require_digest": False, "sources": list(sources)}]


@needs_ipv6
async def test_daemon_does_not_start_when_ipv4_senders_could_be_forged(tmp_path: Path) -> None:
    file = write_config(tmp_path, servers=open_server("127.0.0.0/8"))
    with passed_socket(port=0, locked=True) as sock:
        daemon = Daemon(load_config(file, {}), manager=manager_with(sock))
        with pytest.raises(EndpointError, match="takes no socket filter"):
            # A daemon that starts would run for ever.
            await asyncio.wait_for(daemon.run(), DEADLINE)


@needs_ipv6
async def test_reload_is_refused_when_ipv4_senders_could_be_forged(tmp_path: Path, logged: LogLines) -> None:
    file = write_config(tmp_path, servers=open_server("::/0"))
    daemon = Daemon(load_config(file, {}), manager=manager_with(passed_socket(port=0, locked=True)))
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.run())
        await daemon.ready.wait()
        write_config(tmp_path, servers=open_server("127.0.0.0/8"))
        daemon.reload()
        line = (await eventually(lambda: logged.of("reload refused") or logged.of("configuration reloaded")))[0]
        write_config(tmp_path, servers=open_server("fd00::/8"))
        daemon.reload()
        await eventually(lambda: logged.of("configuration reloaded"))
        daemon.stop()
    assert line["event"] == "reload refused"
    assert "takes no socket filter" in line["problem"]
