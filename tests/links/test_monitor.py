"""Which connections there are: what an interface lacks, and real kernel links in namespaces."""

import asyncio
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from errno import ENODEV
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self, cast

import pytest

from dmnotid.config.values import ConnectionsConfig, Reach
from dmnotid.links import monitor as links_module
from dmnotid.links.monitor import (
    Life,
    Link,
    Links,
    available_connections,
    describe,
    lasted,
    read_links,
    tell_missing,
)
from dmnotid.links.rtnetlink import (
    ARPHRD_ETHER,
    IF_OPER_UP,
    IFA_F_DADFAILED,
    IFA_F_TENTATIVE,
    IFF_LOOPBACK,
    IFF_LOWER_UP,
    IFF_UP,
    RT_TABLE_MAIN,
    Address,
    Interface,
    Route,
    State,
)
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType
from tests.netns import Namespace, needs_namespace
from tests.support import LogLines, eventually, wait_until

ANY, MOBILE, WIRELESS, WIRELINE = (
    ConnectionType.ANY,
    ConnectionType.MOBILE,
    ConnectionType.WIRELESS,
    ConnectionType.WIRELINE,
)
NEVER = Life(0, frozenset())
RUNNING = IFF_UP | IFF_LOWER_UP
DEADLINE = 20.0
"""How long a test waits for what must happen (seconds); it never takes that long."""

SETTLE = 0.4
"""`connections.settle` (seconds) where a test waits for it."""

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


def config(reach: Reach = "internet", *, settle: float = 0, **interfaces: str) -> ConnectionsConfig:
    """A configuration with patterns as `mobile="usb0 wwan*"`; what is there counts at once."""
    named = {ConnectionType(name): tuple(text.split()) for name, text in interfaces.items()}
    return ConnectionsConfig(reach=reach, interfaces=named, settle=settle)


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
    made = Interface(5, name, ARPHRD_ETHER, RUNNING, IF_OPER_UP, "", 0, "", 0)
    return made._replace(**fields)  # type: ignore[arg-type]


def address(octets: bytes = bytes([192, 0, 2, 1]), flags: int = 0) -> Address:
    return Address(5, octets, flags, 0)


V6 = bytes.fromhex("20010db8") + bytes(11) + b"\1"
DEFAULT = Route(5, 32, 0, 0, 100, RT_TABLE_MAIN)
DEFAULT6 = Route(5, 128, 0, 0, 1024, RT_TABLE_MAIN)


def missing(
    *, of: Interface | None = None, own: list[Address] | None = None, routes: list[Route] | None = None,
    reach: Reach = "internet", wireline: str = "",
) -> str | None:  # fmt: skip
    state = State(
        [interface() if of is None else of],
        [address()] if own is None else own,
        [DEFAULT] if routes is None else routes,
    )
    (link,) = describe(state, config(reach, wireline=wireline), sysfs=Path("/nonexistent"))
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
    assert missing(routes=[Route(5, 32, 0, 1, 0, RT_TABLE_MAIN)]) == "no route"


def test_every_network_of_the_list_must_be_reached() -> None:
    reach = (ip_network("10.0.0.0/8"), ip_network("192.0.2.0/24"))
    ten = Route(5, 32, 10 << 24, 8, 0, RT_TABLE_MAIN)
    assert missing(routes=[ten], reach=reach) == "no route to 192.0.2.0/24"
    assert missing(routes=[ten, Route(5, 32, 192 << 24 | 2 << 8, 24, 0, RT_TABLE_MAIN)], reach=reach) is None
    assert missing(routes=[DEFAULT], reach=reach) is None
    assert missing(routes=[Route(5, 32, 10 << 24, 9, 0, RT_TABLE_MAIN)], reach=reach[:1]) == "no route to 10.0.0.0/8"


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
    link = Link("wlan0", 5, WIRELESS, "", up=True, carrier=True, addresses=(), routes=(), missing=None, life=NEVER)
    assert (str(link), link.available) == ("wlan0: available", True)
    assert str(Link("a", 1, ANY, "", True, True, (), (), "no address", NEVER)) == "a: up, no address"  # noqa: FBT003
    assert str(Link("a", 1, ANY, "", False, False, (), (), "down", NEVER)) == "a: down"  # noqa: FBT003


def test_best_route_first_then_the_name() -> None:
    def link(name: str, *routes: Route) -> Link:
        return Link(name, 1, ANY, "", up=True, carrier=True, addresses=(), routes=routes, missing=None, life=NEVER)

    def route(metric: int, table: int = RT_TABLE_MAIN) -> Route:
        return DEFAULT._replace(metric=metric, table=table)

    links = [
        link("d"),
        link("c", route(9)),
        link("b", route(5), route(7)),
        link("a", route(9)),
        link("e", route(0)),
        link("f", route(0, 101)),
        link("g", route(3), route(0, 101)),
    ]
    found = [connection.interface for connection in available_connections(links)]
    assert found == ["e", "g", "b", "a", "c", "f", "d"]


def test_best_route_of_a_link_comes_first() -> None:
    some = [DEFAULT._replace(metric=0, table=101), DEFAULT._replace(metric=30), DEFAULT._replace(metric=20)]
    state = State([interface()], [address()], some)
    (link,) = describe(state, config(), sysfs=Path("/nonexistent"))
    texts = ["default metric 20", "default metric 30", "default metric 0 table 101"]
    assert [str(route) for route in link.routes] == texts


def test_metric_is_that_of_the_routes_that_count() -> None:
    other = Route(5, 32, 10 << 24, 8, 1, RT_TABLE_MAIN)
    state = State([interface()], [address(), address(V6)], [DEFAULT._replace(metric=700), other, DEFAULT6])
    metrics = [
        describe(state, config(reach), sysfs=Path("/nonexistent"))[0].routes[0].metric
        for reach in ("internet", "any", (ip_network("10.1.0.0/16"),), (ip_network("192.0.2.0/24"),))
    ]
    assert metrics == [700, 1, 1, 700]


# Whether it was there all the time

CREATED = 100
THERE = interface(carrier_changes=4)
OWN = [Address(5, bytes([192, 0, 2, 1]), 0, CREATED), Address(5, V6, 0, CREATED)]


def seen(
    *, of: Interface = THERE, own: list[Address] | None = None, routes: list[Route] | None = None,
    reach: Reach = "internet",
) -> Link:  # fmt: skip
    state = State([of], OWN if own is None else own, [DEFAULT] if routes is None else routes)
    (link,) = describe(state, config(reach), sysfs=Path("/nonexistent"))
    return link


@pytest.mark.parametrize(
    ("now", "held"),
    [
        (seen(), True),
        (seen(own=OWN[:1]), True),
        (seen(own=[*OWN, address(bytes([10, 0, 0, 1]))]), True),
        (seen(own=[OWN[0]._replace(flags=0x20), OWN[1]]), True),
        (seen(routes=[DEFAULT, DEFAULT6]), True),
        (seen(of=THERE._replace(name="eth9")), False),
        (seen(of=THERE._replace(carrier_changes=6)), False),
        (seen(own=[own._replace(created=CREATED + 1) for own in OWN]), False),
        (seen(own=[OWN[0]._replace(created=CREATED + 1), OWN[1]]), True),
        (seen(own=[address(bytes([10, 0, 0, 1]))]), False),
        (seen(routes=[DEFAULT._replace(metric=101)]), True),
        (seen(routes=[DEFAULT6]), False),
        (seen(routes=[]), False),
        (seen(of=THERE._replace(operstate=2)), False),
    ],
)
def test_breaks_between_two_reads(now: Link, held: bool) -> None:  # noqa: FBT001 - a table of results
    assert lasted(seen(), now, "internet") == held


def test_no_break_is_told_of_another_interface() -> None:
    state = State([THERE._replace(ifindex=6)], [own._replace(ifindex=6) for own in OWN], [DEFAULT._replace(ifindex=6)])
    (other,) = describe(state, config(), sysfs=Path("/nonexistent"))
    assert not lasted(seen(), other, "internet")


def test_another_type_is_a_break() -> None:
    state = State([THERE], OWN, [DEFAULT])
    (wired,) = describe(state, config(wireline="eth*"), sysfs=Path("/nonexistent"))
    assert lasted(wired, wired, "internet")
    assert not lasted(seen(), wired, "internet")


def test_breaks_in_what_must_be_reached() -> None:
    ten, other = Route(5, 32, 10 << 24, 8, 0, RT_TABLE_MAIN), Route(5, 32, 8 << 24, 6, 7, RT_TABLE_MAIN)
    reach = (ip_network("10.0.0.0/8"),)
    assert lasted(seen(routes=[ten, other], reach=reach), seen(routes=[other], reach=reach), reach)
    assert not lasted(seen(routes=[ten], reach=reach), seen(routes=[other], reach=reach), reach)
    assert lasted(seen(routes=[ten], reach="any"), seen(routes=[], reach="any"), "any")


def test_a_new_life_alone_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that was made anew, where nothing need settle."""
    found = [Link("eth0", 5, WIRELINE, "", up=True, carrier=True, addresses=(), routes=(), missing=None, life=NEVER)]
    monkeypatch.setattr(links_module, "read_links", lambda _: found)
    links, told = Links(ConnectionsConfig(settle=0)), list[int]()
    links._on_change = lambda: told.append(len(told))
    links.read_now()
    assert told == [0]
    found[0] = replace(found[0], life=Life(2, frozenset()))
    links.read_now()
    assert (told, links.links[0].life) == ([0], Life(2, frozenset()))
    found[0] = replace(found[0], why="its name")
    links.read_now()
    assert told == [0, 1]


# What a session that waits is told of


def test_why_none_of_the_wanted_is_there() -> None:
    def link(name: str, kind: ConnectionType, missing: str | None, *, up: bool = True) -> Link:
        return Link(name, 1, kind, "", up=up, carrier=True, addresses=(), routes=(), missing=missing, life=NEVER)

    links = [
        link("lo", ANY, "not configured"),
        link("wlan0", WIRELESS, "no address"),
        link("wlan1", WIRELESS, None),
        link("eth0", WIRELINE, "down", up=False),
        link("br0", ANY, "no route"),
        link("dummy0", ANY, "down", up=False),
        link("wlan2", WIRELESS, "no route"),
    ]
    wireless = "wlan1: settling; wlan0: up, no address; wlan2: up, no route"
    assert tell_missing(links, [WIRELESS]) == wireless
    assert tell_missing(links, [WIRELESS, MOBILE, MOBILE]) == f"{wireless}; no mobile interface"
    everything = f"{wireless}; eth0: down; br0: up, no route; dummy0: down"
    assert tell_missing(links, []) == tell_missing(links, [ANY]) == everything
    assert tell_missing(links, [MOBILE, ANY]) == f"{everything}; no mobile interface"
    assert tell_missing(links[:1], []) == tell_missing([], [ANY]) == "no interface"
    many = [link(f"eth{n}", WIRELINE, "down", up=False) for n in range(10)]
    told = tell_missing(many, [WIRELINE])
    assert (told.startswith("eth0: down; eth1: down; "), told.endswith("eth7: down; 2 more")) == (True, True)


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
    assert (link.missing, link.type, link.why, link.routes[0].metric) == (None, ANY, "kind veth", 5)
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
    link = read(namespace)["eth0"]
    assert (link.missing, link.routes[0].metric) == (None, 1024)


@in_namespace
def test_route_that_has_expired(namespace: Namespace) -> None:
    """Of IPv6, from a router that is heard no more: the kernel still lists it, and takes it no more."""
    namespace.add_veth("eth0")
    namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
    namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "expires", "1")
    assert read(namespace)["eth0"].missing is None
    wait_until(lambda: "expires -" in namespace.ip("-6", "route", "show", "default"))
    assert read(namespace)["eth0"].missing == "no route"


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
        "from dmnotid.config.values import ConnectionsConfig; from dmnotid.links.monitor import read_links\n"
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


async def lose_next_hop(namespace: Namespace) -> None:
    with Watched(config()) as watched:
        assert watched.names() == ["eth0"]
        namespace.ip("nexthop", "del", "id", "1")
        await watched.until([])


@in_namespace
@on_both_loops
def test_route_that_goes_with_its_next_hop(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    """The kernel tells of the next hop alone."""
    namespace.add_veth("eth0")
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    namespace.ip("nexthop", "add", "id", "1", "via", "192.0.2.2", "dev", "eth0")
    namespace.ip("route", "add", "default", "nhid", "1")
    namespace.call(run, partial(lose_next_hop, namespace))


async def flap_by_route(namespace: Namespace) -> None:
    route = ("default", "via", "198.51.1.254", "dev", "eth0", "metric", "100")
    with Watched(config(settle=SETTLE)) as watched:
        ends = time.monotonic() + 3 * SETTLE
        while time.monotonic() < ends:
            namespace.ip("route", "del", *route)
            await asyncio.sleep(links_module.PAUSE * 0.8)
            assert watched.names() == []
            namespace.ip("route", "add", *route)
            await asyncio.sleep(links_module.PAUSE * 1.2)
        await watched.until(["eth0"])


@in_namespace
@on_both_loops
def test_route_that_is_there_at_every_second_look_settles_never(
    namespace: Namespace, run: Callable[[Scenario], None]
) -> None:
    """5.3.4: a notice is followed by a read at once, so that what comes back soon is seen to be gone."""
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(flap_by_route, namespace))


async def stay_asleep(namespace: Namespace) -> None:
    with Watched(config()) as watched:
        # After a notice too, here one that changes nothing for anybody.
        namespace.ip("link", "set", "lo", "mtu", "9000")
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
    assert reads.count <= 2  # at the first notice, and at the end of the pause that begins with it
    assert watched.changes <= 3


@in_namespace
@on_both_loops
def test_many_notices_are_one_read(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(flap, namespace))


async def change_nothing(namespace: Namespace) -> None:
    reads = Reads()
    with Watched(config()) as watched, pytest.MonkeyPatch.context() as patch:
        patch.setattr(links_module, "read_links", reads)
        namespace.ip("link", "set", "lo", "mtu", "9000")
        await reads.next()
        await asyncio.sleep(0)
        assert watched.changes == 0
        namespace.ip("route", "del", "default")
        await watched.until([])
        namespace.ip("link", "set", "lo", "mtu", "8000")
        await reads.next()
        await asyncio.sleep(0)
        assert watched.changes == 1


@in_namespace
@on_both_loops
def test_notice_that_changes_nothing_here_is_not_announced(
    namespace: Namespace, run: Callable[[Scenario], None]
) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(change_nothing, namespace))


async def look(namespace: Namespace) -> None:
    connection = Connection(WIRELINE, "eth0")
    with Watched(config(wireline="eth*")) as watched:
        assert watched.links.read_now()
        assert (watched.links.available(), watched.changes) == ((connection,), 0)
        namespace.ip("link", "set", "eth0", "down")
        assert watched.links.available() == (connection,), "nobody has looked yet"
        assert watched.links.read_now()
        assert (watched.names(), watched.changes) == ([], 1)


@in_namespace
@on_both_loops
def test_last_look_sees_what_no_notice_has_told_yet(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    """5.3.4: a connection is there when the session starts over it, not only when it was chosen."""
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(look, namespace))


@pytest.mark.parametrize("said", [{"name": "eth1"}, {"flags": 0}, {"operstate": 2}, {"carrier_changes": 2}])
def test_an_interface_that_says_anything_else_is_not_as_before(said: dict[str, Any]) -> None:
    before = interface()
    (link,) = describe(State([before], [], []), config())
    assert links_module._is_as_before(link, before)
    assert not links_module._is_as_before(link, interface(**said))


async def look_at_one(namespace: Namespace) -> None:
    connection = Connection(WIRELINE, "eth0")
    reads = Reads()
    with Watched(config(wireline="eth*")) as watched, pytest.MonkeyPatch.context() as patch:
        await eventually(lambda: watched.links.still_has(connection))
        patch.setattr(links_module, "read_links", reads)
        assert watched.links.still_has(connection)
        assert reads.count == 0
        assert not watched.links.still_has(Connection(WIRELINE, "eth1"))
        namespace.ip("route", "add", "2001:db8::/32", "dev", "eth0", "expires", "1000")
        assert not watched.links.still_has(connection), "a notice waits"
        await reads.next()
        assert watched.links.still_has(connection)
        watched.links._unreadable = True
        assert not watched.links.still_has(connection), "what is known may be old"
        watched.links._unreadable = False
        assert watched.links.still_has(connection)
        assert watched.links._watch is not None
        watched.links._watch.inquiry.close()
        assert not watched.links.still_has(connection), "the kernel can't be asked"
    assert not watched.links.still_has(connection), "nobody listens any more"


@in_namespace
@on_both_loops
def test_last_look_asks_for_one_interface_where_nothing_else_can_have_changed(
    namespace: Namespace, run: Callable[[Scenario], None]
) -> None:
    """5.3.4: any change asks for more."""
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(look_at_one, namespace))


async def expire() -> None:
    with Watched(config(wireline="eth*")) as watched:
        await eventually(watched.names)
        await asyncio.sleep(0.2)
        assert watched.links._watch is not None
        assert not watched.links._watch.has_news()
        assert not watched.links.still_has(Connection(WIRELINE, "eth0"))


@in_namespace
@on_both_loops
def test_route_that_expires_needs_a_whole_last_look(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    """Of its end the kernel tells up to half a minute later."""
    namespace.add_veth("eth0")
    namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    namespace.ip("route", "add", "::/0", "via", "fe80::1", "dev", "eth0", "expires", "1000")
    namespace.call(run, expire)


async def look_blindly() -> None:
    with Watched(config()) as watched, pytest.MonkeyPatch.context() as patch:

        def fail(*_: ConnectionsConfig) -> list[Link]:
            raise OSError(ENODEV, "a read that fails")

        patch.setattr(links_module, "RETRY_PAUSE", 0.05)
        patch.setattr(links_module, "read_links", fail)
        assert not watched.links.read_now()
        assert (watched.names(), watched.changes) == (["eth0"], 0)
        patch.setattr(links_module, "read_links", read_links)
        await watched.change()
        assert watched.links.read_now()
        assert watched.changes == 1


@in_namespace
@on_both_loops
def test_last_look_that_fails_is_announced_once_it_succeeds(
    namespace: Namespace, run: Callable[[Scenario], None]
) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, look_blindly)


async def fail_for_a_while(namespace: Namespace) -> None:
    with Watched(config()) as watched, pytest.MonkeyPatch.context() as patch:
        failures = [OSError(ENODEV, "a read that fails")] * 3

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
def test_read_that_fails_is_tried_again(
    namespace: Namespace, run: Callable[[Scenario], None], logged: LogLines
) -> None:
    """It is told once, however often that takes."""
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(fail_for_a_while, namespace))
    told = [line for line in logged.all() if not line["event"].startswith("connection")]
    assert [line["event"] for line in told] == ["links not readable", "links readable again"]
    assert told[0]["problem"] == f"[Errno {ENODEV}] a read that fails"


async def settle(namespace: Namespace, logged: LogLines) -> None:
    with Watched(config(wireline="eth*", settle=SETTLE)) as watched:
        assert watched.names() == [], "nobody knows since when it is there"
        opened = time.monotonic()
        await watched.until(["eth0"])
        assert time.monotonic() >= opened + SETTLE - 0.01
        gone = time.monotonic()
        namespace.ip("addr", "del", "198.51.1.1/24", "dev", "eth0")
        await watched.until([])
        namespace.ip("addr", "add", "198.51.1.1/24", "dev", "eth0")
        namespace.ip("route", "add", "default", "via", "198.51.1.254")
        back = time.monotonic()
        await watched.until(["eth0"])
        assert time.monotonic() >= back + SETTLE - 0.01
        assert gone < back
        namespace.ip("link", "del", "eth0")
        await watched.until([])
    found = [(line["event"], line["interface"], line["connection"], line.get("missing")) for line in logged.all()]
    there, address, gone_ = (
        ("connection available", "eth0", "wireline", None),
        ("connection lost", "eth0", "wireline", "no address"),
        ("connection lost", "eth0", "wireline", "gone"),
    )
    assert found == [there, address, there, gone_]


@in_namespace
@on_both_loops
def test_connection_counts_once_it_has_held(
    namespace: Namespace, run: Callable[[Scenario], None], logged: LogLines
) -> None:
    """5.3.4: available for `connections.settle` without a break; what comes and goes stands in the log."""
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(settle, namespace, logged))


async def settle_one_after_the_other(namespace: Namespace) -> None:
    with Watched(config(settle=SETTLE)) as watched:
        await asyncio.sleep(SETTLE / 2)
        add_uplink(namespace, "eth1", 2, metric=50)
        await watched.until(["eth0"])
        await watched.until(["eth1", "eth0"])


@in_namespace
@on_both_loops
def test_each_connection_settles_by_itself(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(settle_one_after_the_other, namespace))


async def blink(namespace: Namespace, logged: LogLines) -> None:
    with Watched(config(settle=SETTLE)) as watched:
        await watched.until(["eth0"])
        # All of it within the pause that follows the first notice: both reads find the connection there.
        namespace.ip_batch(["addr add 198.51.1.7/24 dev eth0"])
        namespace.ip_batch([
            "addr flush dev eth0", "addr add 198.51.1.1/24 dev eth0", "route add default via 198.51.1.254",
        ])  # fmt: skip
        before = time.monotonic()
        await watched.until([])
        await watched.until(["eth0"])
        assert time.monotonic() >= before + SETTLE - 0.01
    assert [line["missing"] for line in logged.of("connection lost")] == ["interrupted"]


@in_namespace
@on_both_loops
def test_connection_that_went_between_two_reads_settles_anew(
    namespace: Namespace, run: Callable[[Scenario], None], logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links_module, "PAUSE", 1.0)
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(blink, namespace, logged))


async def settle_by_configuration() -> None:
    with Watched(config(settle=3600)) as watched:
        assert watched.names() == []
        watched.links.configure(config(settle=0))
        assert (watched.names(), watched.changes) == (["eth0"], 1)
        watched.links.configure(config(settle=3600))
        assert (watched.names(), watched.changes) == ([], 2)


@in_namespace
@on_both_loops
def test_another_configuration_counts_at_once(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, settle_by_configuration)


async def stand_still(namespace: Namespace) -> None:
    with Watched(config()) as watched, pytest.MonkeyPatch.context() as patch:

        def read_after_a_stop(*args: ConnectionsConfig) -> list[Link]:
            time.sleep(0.2)
            patch.setattr(links_module, "read_links", read_links)
            return read_links(*args)

        patch.setattr(links_module, "MAX_REST", 0.1)
        patch.setattr(links_module, "REST", 1_000_000)
        patch.setattr(links_module, "read_links", read_after_a_stop)
        namespace.ip("link", "set", "eth0", "down")
        await watched.until([])
        namespace.ip("link", "set", "eth0", "up")
        namespace.ip("route", "add", "default", "via", "198.51.1.254")
        await watched.until(["eth0"])


@in_namespace
@on_both_loops
def test_machine_that_stood_still_during_a_read_is_no_reason_for_a_long_rest(
    namespace: Namespace, run: Callable[[Scenario], None]
) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(stand_still, namespace))


async def read_slowly(namespace: Namespace) -> None:
    reads = Reads()

    def read_long(*args: ConnectionsConfig) -> list[Link]:
        time.sleep(0.1)  # as with very many interfaces
        return reads(*args)

    with Watched(config()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(links_module, "read_links", read_long)
        ends = time.monotonic() + 2.5
        while time.monotonic() < ends:
            namespace.ip_batch(["addr add 192.0.2.7/24 dev eth0", "addr del 192.0.2.7/24 dev eth0"])
            await asyncio.sleep(0.01)
    # Without a rest behind each there would be fifteen.
    assert 2 <= reads.count <= 4


@in_namespace
@on_both_loops
def test_long_reads_leave_time_for_everything_else(namespace: Namespace, run: Callable[[Scenario], None]) -> None:
    add_uplink(namespace, "eth0")
    namespace.call(run, partial(read_slowly, namespace))


async def close_in_the_middle(namespace: Namespace) -> None:
    before = descriptors()
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    with Watched(config()) as watched:
        assert watched.links._watch is not None
        watched.links._watch.rest(links_module.PAUSE)
        namespace.ip("link", "set", "eth0", "down")
        await asyncio.sleep(0.01)
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
