"""Which connections there are: real kernel links in namespaces, and what tells one sort of hardware from another."""

import asyncio
import os
import resource
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from errno import ENODEV
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Self, cast

import pytest

from dmnotid.config import ConnectionsConfig, Reach
from dmnotid.policy.sessions import Connection
from dmnotid.service import links as links_module
from dmnotid.service.links import Link, Links, available_connections, describe, detected_type, read_links
from dmnotid.service.rtnetlink import (
    ARPHRD_ETHER,
    ARPHRD_PPP,
    ARPHRD_RAWIP,
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
)
from dmnotid.wire.notification import ConnectionType
from tests.service.netns import Namespace, needs_namespace

ANY, MOBILE, WIRELESS, WIRELINE = (
    ConnectionType.ANY,
    ConnectionType.MOBILE,
    ConnectionType.WIRELESS,
    ConnectionType.WIRELINE,
)
RUNNING = IFF_UP | IFF_LOWER_UP
DEADLINE = 20.0
"""How long a test waits for what must happen (seconds); it never takes that long."""

Scenario = Callable[[], Awaitable[None]]


def run_asyncio(scenario: Scenario) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())


def run_uvloop(scenario: Scenario) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


on_both_loops = pytest.mark.parametrize("run", [run_asyncio, run_uvloop])


def in_namespace(test: Callable[..., None]) -> Callable[..., None]:
    return cast("Callable[..., None]", pytest.mark.root(needs_namespace(test)))


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


def config(reach: Reach = "internet", **interfaces: str) -> ConnectionsConfig:
    """A configuration with patterns as `mobile="usb0 wwan*"`."""
    return ConnectionsConfig(
        reach=reach, interfaces={ConnectionType(name): tuple(text.split()) for name, text in interfaces.items()}
    )


def read(namespace: Namespace, configured: ConnectionsConfig | None = None) -> dict[str, Link]:
    return {link.name: link for link in namespace.call(read_links, configured or config())}


def connections(namespace: Namespace, configured: ConnectionsConfig) -> list[tuple[str, str]]:
    return [(str(of), name) for of, name in available_connections(namespace.call(read_links, configured))]


def add_uplink(namespace: Namespace, name: str, number: int = 1, metric: int = 100) -> None:
    """Add an interface with an IPv4 address and a default route."""
    namespace.add_veth(name)
    namespace.ip("addr", "add", f"198.51.{number}.1/24", "dev", name)
    namespace.ip("route", "append", "default", "via", f"198.51.{number}.254", "dev", name, "metric", str(metric))


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


# What an interface lacks


def interface(name: str = "eth0", **fields: object) -> Interface:
    made = Interface(5, name, ARPHRD_ETHER, RUNNING, IF_OPER_UP, "", 0, "")
    return made._replace(**fields)  # type: ignore[arg-type]


def address(octets: bytes = bytes([192, 0, 2, 1]), flags: int = 0) -> Address:
    return Address(5, octets, flags)


V6 = bytes.fromhex("20010db8") + bytes(11) + b"\1"
DEFAULT = Route(5, 32, 0, 0, 100)
DEFAULT6 = Route(5, 128, 0, 0, 1024)


def missing(
    *, of: Interface | None = None, own: list[Address] | None = None, routes: list[Route] | None = None,
    reach: Reach = "internet", **interfaces: str,
) -> str | None:  # fmt: skip
    state = State(
        [interface() if of is None else of],
        [address()] if own is None else own,
        [DEFAULT] if routes is None else routes,
    )
    (link,) = describe(state, config(reach, **interfaces), sysfs=Path("/nonexistent"))
    return link.missing


def test_nothing_is_missing_from_an_interface_with_address_and_default_route() -> None:
    assert missing() is None
    assert missing(own=[address(V6)], routes=[DEFAULT6]) is None


@pytest.mark.parametrize(("operstate", "carrier"), [(0, True), (6, True), *((state, False) for state in range(1, 6))])
def test_carrier_by_operstate(operstate: int, carrier: bool) -> None:  # noqa: FBT001 - a table of results
    assert missing(of=interface(operstate=operstate)) == (None if carrier else "no carrier")


def test_carrier_gone_before_operstate_says_so() -> None:
    assert missing(of=interface(flags=IFF_UP)) == "no carrier"


@pytest.mark.parametrize(
    "unusable",
    [
        address(bytes([169, 254, 7, 7])),
        address(bytes([127, 0, 0, 1])),
        address(bytes.fromhex("fe80") + bytes(14)),
        address(bytes.fromhex("febf") + bytes(14)),
        address(bytes(15) + b"\1"),
        address(V6, IFA_F_TENTATIVE),
        address(V6, IFA_F_DADFAILED),
        address(V6, IFA_F_TENTATIVE | IFA_F_DADFAILED),
    ],
)
def test_addresses_that_are_no_use(unusable: Address) -> None:
    routes = [DEFAULT, DEFAULT6]
    for reach in ("internet", "any"):
        assert missing(own=[unusable], routes=routes, reach=reach) == "no address"
        assert missing(own=[unusable, address()], routes=routes, reach=reach) is None


@pytest.mark.parametrize("octets", [bytes([169, 253, 0, 1]), bytes([10, 0, 0, 1]), bytes.fromhex("fd00") + bytes(14)])
def test_private_addresses_are_of_use(octets: bytes) -> None:
    assert missing(own=[address(octets)], routes=[DEFAULT, DEFAULT6]) is None


def test_route_counts_only_with_an_address_to_send_from() -> None:
    assert missing(own=[address()], routes=[DEFAULT6]) == "no route"
    assert missing(own=[address(V6)], routes=[DEFAULT]) == "no route"


def test_route_that_is_not_default_is_no_way_to_the_internet() -> None:
    assert missing(routes=[Route(5, 32, 0, 1, 0)]) == "no route"


def test_every_network_of_the_list_must_be_reached() -> None:
    reach = (ip_network("10.0.0.0/8"), ip_network("192.0.2.0/24"))
    ten = Route(5, 32, 10 << 24, 8, 0)
    assert missing(routes=[ten], reach=reach) == "no route to 192.0.2.0/24"
    assert missing(routes=[ten, Route(5, 32, 192 << 24 | 2 << 8, 24, 0)], reach=reach) is None
    assert missing(routes=[DEFAULT], reach=reach) is None
    assert missing(routes=[Route(5, 32, 10 << 24, 9, 0)], reach=reach[:1]) == "no route to 10.0.0.0/8"


def test_first_missing_condition_is_told() -> None:
    down = interface(flags=0, operstate=2)
    assert missing(of=down, own=[], routes=[]) == "down"
    assert missing(of=down._replace(flags=IFF_UP), own=[], routes=[]) == "no carrier"
    assert missing(own=[], routes=[]) == "no address"
    assert missing(routes=[]) == "no route"


def test_loopback_counts_when_named() -> None:
    loopback = interface("lo", flags=RUNNING | IFF_LOOPBACK, hardware=772, operstate=0)
    own = [address(bytes([127, 0, 0, 1])), address(bytes(15) + b"\1")]
    assert missing(of=loopback, own=own, reach="any") == "not configured"
    assert missing(of=loopback, own=own, reach="any", wireline="lo") is None
    assert missing(of=loopback, own=own, routes=[], wireline="lo") == "no route"


def test_sentences() -> None:
    link = Link("wlan0", 5, WIRELESS, "", up=True, carrier=True, addresses=(), routes=(), metric=None, missing=None)
    assert (str(link), link.available) == ("wlan0: available", True)
    assert str(Link("a", 1, ANY, "", True, True, (), (), None, "no address")) == "a: up, no address"  # noqa: FBT003
    assert str(Link("a", 1, ANY, "", False, False, (), (), None, "down")) == "a: down"  # noqa: FBT003


def test_best_route_first_then_the_name() -> None:
    def link(name: str, metric: int | None) -> Link:
        return Link(name, 1, ANY, "", up=True, carrier=True, addresses=(), routes=(), metric=metric, missing=None)

    order = available_connections([link("d", None), link("c", 9), link("b", 5), link("a", 9), link("e", 0)])
    assert [connection.interface for connection in order] == ["e", "b", "a", "c", "d"]


def test_metric_is_that_of_the_routes_that_count() -> None:
    other = Route(5, 32, 10 << 24, 8, 1)
    state = State([interface()], [address(), address(V6)], [DEFAULT._replace(metric=700), other, DEFAULT6])
    metrics = [
        describe(state, config(reach), sysfs=Path("/nonexistent"))[0].metric
        for reach in ("internet", "any", (ip_network("10.1.0.0/16"),), (ip_network("192.0.2.0/24"),))
    ]
    assert metrics == [700, 1, 1, 700]


# What an interface is


def sysfs_entry(root: Path, name: str, *, uevent: str = "", entries: str = "") -> Path:
    """Make what `/sys/class/net/NAME` has to say; `entries` are directories in it."""
    entry = root / name
    entry.mkdir()
    (entry / "uevent").write_text(f"{uevent}INTERFACE={name}\nIFINDEX=5\n")
    for directory in entries.split():
        (entry / directory).mkdir()
    return root


@pytest.mark.parametrize(
    ("found", "uevent", "entries", "kind", "why"),
    [
        (interface("eth0"), "", "device", WIRELINE, "Ethernet with a device behind it"),
        (interface("wan", kind="dsa"), "DEVTYPE=dsa\n", "device", WIRELINE, "Ethernet with a device behind it"),
        (interface("eth0", kind="hv_netvsc"), "", "device", WIRELINE, "Ethernet with a device behind it"),
        (interface("eth0", master=9, member_of="vrf"), "", "device", WIRELINE, "Ethernet with a device behind it"),
        (interface("eth0", master=9, member_of="bridge"), "", "device", ANY, "member of a bridge"),
        (interface("eth0", master=9, member_of="bond"), "", "device", ANY, "member of a bond"),
        (interface("eth0", master=9), "", "device", ANY, "member of a master"),
        (interface("eth0"), "", "", ANY, "no device behind it"),
        (interface("new0", kind="new"), "", "", ANY, "no device behind it, kind new"),
        (interface("wlp3s0"), "DEVTYPE=wlan\n", "device phy80211 wireless", WIRELESS, "sysfs phy80211"),
        (interface("old0"), "", "device wireless", WIRELESS, "sysfs wireless"),
        (interface("wwan7"), "DEVTYPE=wlan\n", "device phy80211", WIRELESS, "sysfs phy80211"),
        (interface("wwp0s20u4"), "DEVTYPE=wwan\n", "device", MOBILE, "DEVTYPE=wwan"),
        (interface("wwan0"), "", "device", MOBILE, "named wwan*"),
        (interface("wwan0", kind="wwan"), "", "", MOBILE, "kind wwan"),
        (interface("rmnet_data0", kind="rmnet"), "", "", MOBILE, "kind rmnet"),
        (interface("rmnet0", hardware=65534), "", "", MOBILE, "named rmnet*"),
        (interface("qmimux0", hardware=65534), "", "", MOBILE, "named qmimux*"),
        (interface("ppp0", kind="ppp", hardware=ARPHRD_PPP), "", "", MOBILE, "kind ppp"),
        (interface("lte", hardware=ARPHRD_PPP), "", "", MOBILE, "point-to-point link"),
        (interface("lte", hardware=ARPHRD_RAWIP), "", "device", MOBILE, "raw IP link"),
        (interface("bnep0"), "DEVTYPE=bluetooth\n", "device", ANY, "DEVTYPE=bluetooth"),
        (interface("ib0", hardware=32), "", "device", ANY, "hardware type 32"),
        (interface("lo", flags=IFF_LOOPBACK), "", "device", ANY, "loopback"),
        *[
            (interface("wwan0", kind=kind), "", "device phy80211", ANY, f"kind {kind}")
            for kind in ("bridge", "bond", "vlan", "veth", "tun", "dummy", "wireguard")
        ],
    ],
)
def test_types_that_are_detected(
    tmp_path: Path, found: Interface, uevent: str, entries: str, kind: ConnectionType, why: str
) -> None:
    assert detected_type(found, sysfs_entry(tmp_path, found.name, uevent=uevent, entries=entries)) == (kind, why)


def test_interface_that_vanished_before_sysfs_was_read(tmp_path: Path) -> None:
    assert detected_type(interface("eth0"), tmp_path) == (ANY, "no device behind it")


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("usb0", MOBILE, "configured: usb0"),
        ("wwan3", MOBILE, "configured: wwan*"),
        ("lo", WIRELINE, "configured: l[o]"),
        ("WWAN3", ANY, "no device behind it"),
        ("eth0", ANY, "no device behind it"),
    ],
)
def test_patterns_come_first(tmp_path: Path, name: str, kind: ConnectionType, why: str) -> None:
    state = State([interface(name, flags=RUNNING | (IFF_LOOPBACK if name == "lo" else 0))], [], [])
    (link,) = describe(state, config(mobile="usb0 wwan*", wireline="l[o]"), sysfs=tmp_path)
    assert (link.type, link.why) == (kind, why)


# The kernel itself


@in_namespace
def test_conditions_one_after_the_other(namespace: Namespace) -> None:
    """5.3.4: available is up, with carrier, address and route."""

    def eth0() -> str | None:
        return read(namespace)["eth0"].missing

    namespace.add_veth("eth0", up=False)
    assert eth0() == "down"
    namespace.far_ip("link", "set", "eth0", "down")
    namespace.ip("link", "set", "eth0", "up")
    assert eth0() == "no carrier"
    namespace.far_ip("link", "set", "eth0", "up")
    namespace.wait_up("eth0")
    assert eth0() == "no address"  # for it has a link-local one of IPv6
    namespace.ip("addr", "add", "169.254.1.1/16", "dev", "eth0")
    namespace.ip("route", "add", "default", "via", "169.254.1.2")
    assert eth0() == "no address"
    namespace.ip("route", "del", "default")
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    assert eth0() == "no route"
    namespace.ip("route", "add", "blackhole", "default")
    assert eth0() == "no route"
    namespace.ip("route", "add", "default", "via", "192.0.2.2", "metric", "5")
    link = read(namespace)["eth0"]
    assert (link.missing, link.type, link.why, link.metric) == (None, ANY, "kind veth", 5)
    assert [str(own) for own in link.addresses] == ["192.0.2.1", "169.254.1.1"][: len(link.addresses)]
    namespace.ip("link", "set", "eth0", "down")
    assert eth0() == "down"


@in_namespace
def test_tentative_and_duplicate_addresses() -> None:
    with Namespace(dad=True) as namespace:
        namespace.sysctl("ipv6/conf/default/dad_transmits", "600")  # one a second: none ends in this test
        namespace.add_veth("eth0")
        namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
        namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        assert "tentative" in namespace.ip("addr", "show", "dev", "eth0")
        assert read(namespace)["eth0"].missing == "no address"
        namespace.ip("addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
        assert [str(own) for own in read(namespace)["eth0"].addresses] == ["2001:db8::2"]


@in_namespace
def test_duplicate_address() -> None:
    with Namespace(dad=True) as namespace:
        namespace.add_veth("eth0")
        namespace.far_ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
        namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
        namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        patience = threading.Event()
        for _ in range(int(DEADLINE * 10)):
            if "dadfailed" in namespace.ip("addr", "show", "dev", "eth0"):
                break
            patience.wait(0.1)
        assert "dadfailed" in namespace.ip("addr", "show", "dev", "eth0")
        assert read(namespace)["eth0"].missing == "no address"


@in_namespace
def test_ipv6_alone_is_enough(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
    assert read(namespace)["eth0"].missing == "no route"
    namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
    assert (read(namespace)["eth0"].missing, read(namespace)["eth0"].metric) == (None, 1024)


@in_namespace
def test_default_route_of_another_table_or_of_several_next_hops(namespace: Namespace) -> None:
    for number, name in enumerate(("eth0", "eth1", "eth2"), 1):
        namespace.add_veth(name)
        namespace.ip("addr", "add", f"198.51.{number}.1/24", "dev", name)
    namespace.ip("route", "add", "default", "table", "1000", "via", "198.51.1.2")
    namespace.ip("route", "add", "default", "nexthop", "via", "198.51.2.2", "nexthop", "via", "198.51.3.2")
    assert {name: link.missing for name, link in read(namespace).items() if name != "lo"} == {
        "eth0": None,
        "eth1": None,
        "eth2": None,
    }
    namespace.ip("route", "del", "default")
    assert {name for name, link in read(namespace).items() if link.missing is None} == {"eth0"}


@in_namespace
def test_order_by_metric_then_name(namespace: Namespace) -> None:
    for number, (name, metric) in enumerate([("wlan0", 600), ("eth1", 100), ("eth0", 100), ("wwan0", 50)], 1):
        add_uplink(namespace, name, number, metric)
    found = connections(namespace, config(wireline="eth*", wireless="wlan*"))
    assert found == [("any", "wwan0"), ("wireline", "eth0"), ("wireline", "eth1"), ("wireless", "wlan0")]


@in_namespace
def test_reach(namespace: Namespace) -> None:
    add_uplink(namespace, "eth0", 1)
    namespace.add_veth("eth1")
    namespace.ip("addr", "add", "10.1.0.1/16", "dev", "eth1")

    def names(reach: Reach) -> list[str]:
        return [name for _, name in connections(namespace, config(reach))]

    assert names("internet") == ["eth0"]
    assert names("any") == ["eth0", "eth1"] or names("any") == ["eth1", "eth0"]
    assert names((ip_network("10.1.2.0/24"),)) == ["eth1", "eth0"]
    assert names((ip_network("10.1.2.0/24"), ip_network("192.0.2.0/24"))) == ["eth0"]
    assert names((ip_network("2001:db8::/32"),)) == []


@in_namespace
def test_loopback_when_it_is_named(namespace: Namespace) -> None:
    assert connections(namespace, config("any")) == []
    assert connections(namespace, config("any", wireline="lo")) == [("wireline", "lo")]
    assert connections(namespace, config("internet", wireline="lo")) == []
    namespace.ip("link", "set", "lo", "down")
    assert str(read(namespace, config("any", wireline="lo"))["lo"]) == "lo: down"


@in_namespace
def test_interface_that_is_renamed_or_removed(namespace: Namespace) -> None:
    add_uplink(namespace, "eth0")
    patterns = config(wireline="eth*", wireless="wlan*")
    assert connections(namespace, patterns) == [("wireline", "eth0")]
    namespace.ip("link", "set", "eth0", "down")  # before Linux 6.2 nothing is renamed that is up
    namespace.ip("link", "set", "eth0", "name", "wlan0")
    assert connections(namespace, patterns) == []
    namespace.ip("link", "set", "wlan0", "up")
    namespace.wait_up("wlan0")
    namespace.ip("route", "add", "default", "via", "198.51.1.254")
    assert connections(namespace, patterns) == [("wireless", "wlan0")]
    namespace.ip("link", "del", "wlan0")
    assert connections(namespace, patterns) == []


@in_namespace
def test_bridge_serves_requests_without_preference_and_its_member_none(namespace: Namespace) -> None:
    namespace.ip("link", "add", "br0", "type", "bridge")
    namespace.ip("link", "set", "br0", "up")
    namespace.add_veth("eth0")
    namespace.ip("link", "set", "eth0", "master", "br0")
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "br0")
    namespace.ip("route", "add", "default", "via", "192.0.2.2")
    assert connections(namespace, config()) == [("any", "br0")]


@in_namespace
def test_real_sysfs_of_the_namespace(namespace: Namespace) -> None:
    """A process inside, as the daemon is: what it reads with its own sysfs."""
    add_uplink(namespace, "eth0")
    program = (
        "from dmnotid.config import ConnectionsConfig; from dmnotid.service.links import read_links\n"
        "for link in read_links(ConnectionsConfig()): print(link.name, link.type, link.why, link.missing, sep=', ')"
    )
    done = namespace.run(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["eth0, any, kind veth, None", "lo, any, loopback, not configured"]


# Events


class Watched:
    """Links that are open, and how often `on_change` was called."""

    def __init__(self, configured: ConnectionsConfig) -> None:
        self.links = Links(configured)
        self.changes = 0
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        self.links.open(self._on_change)
        return self

    def __exit__(self, *_: object) -> None:
        self.links.close()

    def names(self) -> list[str]:
        return [connection.interface for connection in self.links.available()]

    async def until(self, names: list[str]) -> None:
        """Wait for a change after which these are available."""
        async with asyncio.timeout(DEADLINE):
            while self.names() != names:
                self._changed.clear()
                await self._changed.wait()

    async def change(self) -> None:
        """Wait for a change."""
        async with asyncio.timeout(DEADLINE):
            await self._changed.wait()

    def _on_change(self) -> None:
        self.changes += 1
        self._changed.set()


async def follow(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    with Watched(config(wireline="eth*")) as watched:
        assert watched.links.available() == ()
        namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        namespace.ip("route", "add", "default", "via", "192.0.2.2")
        await watched.until(["eth0"])
        assert watched.changes == 1
        assert watched.links.available() == (Connection(WIRELINE, "eth0"),)
        assert [link.name for link in watched.links.links] == ["lo", "eth0"]
        namespace.ip("addr", "del", "192.0.2.1/24", "dev", "eth0")
        await watched.until([])
        namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
        namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        await watched.until(["eth0"])
        namespace.far_ip("link", "set", "eth0", "down")
        await watched.until([])
        namespace.far_ip("link", "set", "eth0", "up")
        await watched.until(["eth0"])
        namespace.ip("link", "del", "eth0")
        await watched.until([])


@in_namespace
@on_both_loops
def test_changes_are_followed(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    namespace.call(run, partial(follow, namespace))


async def stay_asleep(namespace: Namespace) -> None:
    with Watched(config()) as watched:
        # After a notice too, here one that changes nothing for anybody.
        namespace.ip("addr", "add", "192.0.2.9/32", "dev", "lo")
        await asyncio.sleep(links_module.PAUSE * 5)
        before = resource.getrusage(resource.RUSAGE_THREAD)
        await asyncio.sleep(2)
        after = resource.getrusage(resource.RUSAGE_THREAD)
        assert watched.changes == 0
    # The one sleep itself, and what the interpreter's lock may cost: a poll of any use would show as tens.
    assert after.ru_nvcsw - before.ru_nvcsw <= 5


@in_namespace
@on_both_loops
def test_nothing_wakes_up_while_nothing_changes(run: Callable[[Scenario], None]) -> None:
    with Namespace(ipv6=False) as namespace:
        add_uplink(namespace, "eth0")
        namespace.call(run, partial(stay_asleep, namespace))


def drops() -> int:
    """What the kernel had to throw away for the netlink sockets of this process, in the thread's namespace."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
    own = {os.stat(entry).st_ino for entry in Path("/proc/self/fd").iterdir() if entry.exists()}  # noqa: PTH116
    return sum(int(line.split()[-2]) for line in lines if int(line.split()[-1]) in own)


async def be_overrun(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    with Watched(config()) as watched:
        namespace.ip_batch([f"addr add 10.0.{n >> 8}.{n & 255}/32 dev lo" for n in range(2000)])
        assert drops() > 0
        namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        namespace.ip("route", "add", "default", "via", "192.0.2.2")
        await watched.until(["eth0"])
        namespace.ip("route", "del", "default")
        await watched.until([])


@in_namespace
@on_both_loops
def test_overrun_is_only_another_notice(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    namespace.call(run, partial(be_overrun, namespace))


class Reads:
    """Counts the reads of the kernel's state."""

    def __init__(self) -> None:
        self.count = 0
        self._read = asyncio.Event()

    def __call__(self, *args: ConnectionsConfig) -> list[Link]:
        self.count += 1
        self._read.set()
        return read_links(*args)

    async def next(self) -> None:
        """Wait for one more."""
        self._read.clear()
        async with asyncio.timeout(DEADLINE):
            await self._read.wait()


async def flap(namespace: Namespace) -> None:
    reads = Reads()
    with Watched(config()) as watched, pytest.MonkeyPatch.context() as patch:
        patch.setattr(links_module, "read_links", reads)
        patch.setattr(links_module, "PAUSE", 1.0)
        for _ in range(10):
            namespace.ip_batch(["addr add 192.0.2.7/24 dev eth0", "addr del 192.0.2.7/24 dev eth0"])
            await asyncio.sleep(0.001)  # the loop has time to hear of it
        namespace.ip("route", "del", "default")
        await watched.until([])
    assert (reads.count, watched.changes) == (1, 1)


@in_namespace
@on_both_loops
def test_many_notices_are_one_read(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(flap, namespace))


async def change_nothing(namespace: Namespace) -> None:
    reads = Reads()
    with Watched(config()) as watched, pytest.MonkeyPatch.context() as patch:
        patch.setattr(links_module, "read_links", reads)
        namespace.ip("addr", "add", "192.0.2.9/32", "dev", "lo")
        await reads.next()
        await asyncio.sleep(0)
        assert watched.changes == 0
        namespace.ip("route", "del", "default")
        await watched.until([])
        namespace.ip("addr", "del", "192.0.2.9/32", "dev", "lo")
        await reads.next()
        await asyncio.sleep(0)
        assert watched.changes == 1


@in_namespace
@on_both_loops
def test_notice_that_changes_no_connection_is_not_announced(
    namespace: Namespace, run: Callable[[Scenario], None]
) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(change_nothing, namespace))


async def refresh_first(namespace: Namespace) -> None:
    with Watched(config()) as watched:
        assert watched.names() == ["eth0"]
        namespace.ip("link", "set", "eth0", "down")
        watched.links.refresh()
        assert (watched.names(), watched.changes) == ([], 0)
        await watched.change()
        assert (watched.names(), watched.changes) == ([], 1)


@in_namespace
@on_both_loops
def test_change_that_only_a_refresh_saw_is_announced(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(refresh_first, namespace))


async def fail_once(namespace: Namespace) -> None:
    with Watched(config()) as watched, pytest.MonkeyPatch.context() as patch:
        failures = [OSError(ENODEV, "a read that fails")]

        def fail(*args: ConnectionsConfig) -> list[Link]:
            if failures:
                raise failures.pop()
            return read_links(*args)

        patch.setattr(links_module, "RETRY_PAUSE", 0.01)
        patch.setattr(links_module, "read_links", fail)
        namespace.ip("link", "set", "eth0", "down")
        await watched.until([])
        assert not failures
        namespace.ip("link", "set", "eth0", "up")
        namespace.ip("route", "add", "default", "dev", "eth0")
        await watched.until(["eth0"])


@in_namespace
@on_both_loops
def test_read_that_fails_is_tried_again(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(fail_once, namespace))


async def close_in_the_middle(namespace: Namespace) -> None:
    before = descriptors()
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    with Watched(config()) as watched:
        namespace.ip("link", "set", "eth0", "down")
        await asyncio.sleep(0.01)
        assert watched.links._watch is not None
        assert watched.links._watch._timer is not None, "the pause after the notice has begun"
        watched.links.close()
        watched.links.close()
        await asyncio.sleep(links_module.PAUSE * 3)
        assert (watched.changes, troubles) == (0, [])
        watched.links.open(lambda: None)
        assert watched.names() == []
        watched.links.open(lambda: None)
    assert descriptors() == before


@in_namespace
@on_both_loops
def test_close_ends_it_at_any_time(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(close_in_the_middle, namespace))


@on_both_loops
def test_open_that_fails_leaves_nothing_behind(
    run: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: ConnectionsConfig) -> list[Link]:
        raise OSError(ENODEV, "a read that fails")

    async def scenario() -> None:
        before = descriptors()
        with pytest.raises(OSError, match="a read that fails"):
            Links(config()).open(lambda: None)
        assert descriptors() == before

    monkeypatch.setattr(links_module, "read_links", fail)
    run(scenario)
