"""What an interface lacks: states as values, and the conditions on real kernel links."""

import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from dmnotid.config.values import ConnectionsConfig, Reach
from dmnotid.links.availability import Link, available_connections, describe, explain_missing, read_links
from dmnotid.links.kernel import State
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
)
from dmnotid.wire.notification import ConnectionType
from tests.netns import Namespace, in_namespace
from tests.support import wait_until

ANY, MOBILE, WIRELESS, WIRELINE = (
    ConnectionType.ANY,
    ConnectionType.MOBILE,
    ConnectionType.WIRELESS,
    ConnectionType.WIRELINE,
)
RUNNING = IFF_UP | IFF_LOWER_UP
V4, V6 = bytes([192, 0, 2, 1]), bytes.fromhex("20010db8") + bytes(11) + b"\1"
DEFAULT, DEFAULT6 = Route(5, 32, 0, 0, 100, RT_TABLE_MAIN), Route(5, 128, 0, 0, 1024, RT_TABLE_MAIN)
TEN = Route(5, 32, 10 << 24, 8, 1, RT_TABLE_MAIN)
INTERFACE = Interface(5, "eth0", ARPHRD_ETHER, RUNNING, IF_OPER_UP, "", 0, "")
DOWN = INTERFACE._replace(flags=0, operstate=2)
LOOPBACK = INTERFACE._replace(name="lo", flags=RUNNING | IFF_LOOPBACK, hardware=772, operstate=0)


def config(reach: Reach = "internet", **interfaces: str) -> ConnectionsConfig:
    """A configuration with patterns as `mobile="usb0 wwan*"`."""
    named = {ConnectionType(name): tuple(text.split()) for name, text in interfaces.items()}
    return ConnectionsConfig(reach=reach, interfaces=named)


def described(
    of: Interface = INTERFACE,
    own: list[Address] | None = None,
    routes: list[Route] | None = None,
    configured: ConnectionsConfig | None = None,
) -> Link:
    addresses = [address(V4)] if own is None else own
    state = State([of], addresses, [DEFAULT] if routes is None else routes)
    (link,) = describe(state, configured or config(), sysfs=Path("/nonexistent"))
    return link


def address(octets: bytes, flags: int = 0) -> Address:
    return Address(5, octets, flags)


def link(
    name: str,
    kind: ConnectionType = ANY,
    missing: str | None = None,
    *,
    up: bool = True,
    routes: tuple[Route, ...] = (),
) -> Link:
    return Link(name, 1, kind, "", up=up, carrier=True, addresses=(), routes=routes, missing=missing)


# The conditions


@pytest.mark.parametrize(
    ("of", "own", "routes", "missing"),
    [
        (INTERFACE, [address(V4)], [DEFAULT], None),
        (INTERFACE, [address(V6)], [DEFAULT6], None),
        (DOWN, [], [], "down"),
        (DOWN._replace(flags=IFF_UP), [], [], "no carrier"),
        (INTERFACE._replace(flags=IFF_UP), [address(V4)], [DEFAULT], "no carrier"),
        (INTERFACE, [], [], "no address"),
        (INTERFACE, [address(V4)], [], "no route"),
        (INTERFACE, [address(V4)], [DEFAULT6], "no route"),
        (INTERFACE, [address(V6)], [DEFAULT], "no route"),
        (INTERFACE, [address(V4)], [DEFAULT._replace(length=1)], "no route"),
        *((INTERFACE._replace(operstate=state), [address(V4)], [DEFAULT], "no carrier") for state in range(1, 6)),
        (INTERFACE._replace(operstate=0), [address(V4)], [DEFAULT], None),
    ],
)
def test_first_missing_condition_is_reported(
    of: Interface, own: list[Address], routes: list[Route], missing: str | None
) -> None:
    assert described(of, own, routes).missing == missing


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
@pytest.mark.parametrize("reach", ["internet", "any"])
def test_unusable_address_does_not_count(reach: Reach, unusable: Address) -> None:
    routes = [DEFAULT, DEFAULT6]
    assert described(own=[unusable], routes=routes, configured=config(reach)).missing == "no address"
    assert described(own=[unusable, address(V4)], routes=routes, configured=config(reach)).missing is None


@pytest.mark.parametrize("octets", [bytes([169, 253, 0, 1]), bytes([10, 0, 0, 1]), bytes.fromhex("fd00") + bytes(14)])
def test_private_address_counts(octets: bytes) -> None:
    assert described(own=[address(octets)], routes=[DEFAULT, DEFAULT6]).missing is None


@pytest.mark.parametrize(
    ("routes", "networks", "missing"),
    [
        ([TEN], "10.0.0.0/8 192.0.2.0/24", "no route to 192.0.2.0/24"),
        ([TEN, Route(5, 32, 192 << 24 | 2 << 8, 24, 0, RT_TABLE_MAIN)], "10.0.0.0/8 192.0.2.0/24", None),
        ([DEFAULT], "10.0.0.0/8 192.0.2.0/24", None),
        ([TEN._replace(length=9)], "10.0.0.0/8", "no route to 10.0.0.0/8"),
    ],
)
def test_every_network_of_reach_needs_a_route(routes: list[Route], networks: str, missing: str | None) -> None:
    reach = tuple(ip_network(text) for text in networks.split())
    assert described(routes=routes, configured=config(reach)).missing == missing


@pytest.mark.parametrize(
    ("configured", "routes", "missing"),
    [
        (config("any"), [DEFAULT], "not configured"),
        (config("any", wireline="lo"), [DEFAULT], None),
        (config("internet", wireline="lo"), [], "no route"),
    ],
)
def test_loopback_counts_only_if_named(configured: ConnectionsConfig, routes: list[Route], missing: str | None) -> None:
    own = [address(bytes([127, 0, 0, 1])), address(bytes(15) + b"\1")]
    assert described(LOOPBACK, own, routes, configured).missing == missing


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (link("wlan0"), "wlan0: available"),
        (link("a", missing="no address"), "a: up, no address"),
        (link("a", missing="down", up=False), "a: down"),
    ],
)
def test_link_as_text(of: Link, text: str) -> None:
    assert (str(of), of.available) == (text, text.endswith("available"))


# Order


def test_connections_are_ordered_by_best_route_then_name() -> None:
    def routes(*metrics: int, table: int = RT_TABLE_MAIN) -> tuple[Route, ...]:
        return tuple(DEFAULT._replace(metric=metric, table=table) for metric in metrics)

    links = [
        link("d"),
        link("c", routes=routes(9)),
        link("b", routes=routes(5, 7)),
        link("a", routes=routes(9)),
        link("e", routes=routes(0)),
        link("f", routes=routes(0, table=101)),
        link("g", routes=routes(3) + routes(0, table=101)),
    ]
    assert "".join(connection.interface for connection in available_connections(links)) == "egbacfd"


def test_best_route_of_a_link_comes_first() -> None:
    some = [DEFAULT._replace(metric=0, table=101), DEFAULT._replace(metric=30), DEFAULT._replace(metric=20)]
    texts = ["default metric 20", "default metric 30", "default metric 0 table 101"]
    assert [str(route) for route in described(routes=some).routes] == texts


@pytest.mark.parametrize(
    ("reach", "metric"),
    [("internet", 700), ("any", 1), ((ip_network("10.1.0.0/16"),), 1), ((ip_network("192.0.2.0/24"),), 700)],
)
def test_only_routes_of_reach_decide_the_order(reach: Reach, metric: int) -> None:
    found = described(
        own=[address(V4), address(V6)], routes=[DEFAULT._replace(metric=700), TEN, DEFAULT6], configured=config(reach)
    )
    assert found.routes[0].metric == metric


# The explanation for a session that has to wait

LINKS = [
    link("lo", ANY, "not configured"),
    link("wlan0", WIRELESS, "no address"),
    link("wlan1", WIRELESS),
    link("eth0", WIRELINE, "down", up=False),
    link("br0", ANY, "no route"),
    link("dummy0", ANY, "down", up=False),
    link("wlan2", WIRELESS, "no route"),
]
WIRELESS_ONES = "wlan1: settling; wlan0: up, no address; wlan2: up, no route"
EVERYTHING = f"{WIRELESS_ONES}; eth0: down; br0: up, no route; dummy0: down"
MANY = [link(f"eth{n}", WIRELINE, "down", up=False) for n in range(10)]


@pytest.mark.parametrize(
    ("links", "wanted", "text"),
    [
        (LINKS, [WIRELESS], WIRELESS_ONES),
        (LINKS, [WIRELESS, MOBILE, MOBILE], f"{WIRELESS_ONES}; no mobile interface"),
        (LINKS, [], EVERYTHING),
        (LINKS, [ANY], EVERYTHING),
        (LINKS, [MOBILE, ANY], f"{EVERYTHING}; no mobile interface"),
        (LINKS[:1], [], "no interface"),
        ([], [ANY], "no interface"),
        (MANY, [WIRELINE], "; ".join([*(f"eth{n}: down" for n in range(8)), "2 more"])),
    ],
)
def test_explanation_names_what_each_wanted_interface_lacks(
    links: list[Link], wanted: list[ConnectionType], text: str
) -> None:
    assert explain_missing(links, wanted) == text


# Real kernel links


def read(configured: ConnectionsConfig | None = None) -> dict[str, Link]:
    return {found.name: found for found in read_links(configured or config())}


def connections(configured: ConnectionsConfig) -> list[tuple[str, str]]:
    return [(str(of), name) for of, name in available_connections(read_links(configured))]


@in_namespace
def test_conditions_are_met_one_after_the_other(namespace: Namespace) -> None:
    """5.3.4: available is up, with carrier, address and route."""

    def missing() -> str | None:
        return read()["eth0"].missing

    namespace.add_veth("eth0", up=False)
    assert missing() == "down"
    namespace.far_ip("link", "set", "eth0", "down")
    namespace.ip("link", "set", "eth0", "up")
    assert missing() == "no carrier"
    namespace.far_ip("link", "set", "eth0", "up")
    namespace.wait_up("eth0")
    # It has a link-local address of IPv6.
    assert missing() == "no address"
    namespace.ip_batch(["addr add 169.254.1.1/16 dev eth0", "route add default via 169.254.1.2"])
    assert missing() == "no address"
    namespace.ip_batch(["route del default", "addr add 192.0.2.1/24 dev eth0"])
    assert missing() == "no route"
    namespace.ip("route", "add", "blackhole", "default")
    assert missing() == "no route"
    namespace.ip("route", "add", "default", "via", "192.0.2.2", "metric", "5")
    found = read()["eth0"]
    assert (found.missing, found.type, found.why, found.routes[0].metric) == (None, ANY, "kind veth", 5)
    assert [str(own) for own in found.addresses] == ["192.0.2.1"]
    namespace.ip("link", "set", "eth0", "down")
    assert missing() == "down"


@in_namespace
def test_tentative_address_does_not_count() -> None:
    with Namespace(dad=True) as namespace, namespace.entered():
        # One probe a second: duplicate address detection does not end during this test.
        namespace.sysctl("ipv6/conf/default/dad_transmits", "600")
        namespace.add_veth("eth0")
        namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
        namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        assert "tentative" in namespace.ip("addr", "show", "dev", "eth0")
        assert read()["eth0"].missing == "no address"
        namespace.ip("addr", "add", "2001:db8::2/64", "dev", "eth0", "nodad")
        assert [str(own) for own in read()["eth0"].addresses] == ["2001:db8::2"]


@in_namespace
def test_duplicate_address_does_not_count() -> None:
    with Namespace(dad=True) as namespace, namespace.entered():
        namespace.add_veth("eth0")
        namespace.far_ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
        namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
        namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        wait_until(lambda: "dadfailed" in namespace.ip("addr", "show", "dev", "eth0"))
        assert read()["eth0"].missing == "no address"


@in_namespace
def test_ipv6_alone_is_enough_until_its_route_expires(namespace: Namespace) -> None:
    """The kernel still lists a route that has expired, and no longer uses it."""
    namespace.add_veth("eth0")
    namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
    assert read()["eth0"].missing == "no route"
    namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "expires", "1")
    assert [str(route) for route in read()["eth0"].routes] == ["default metric 1024"]
    wait_until(lambda: "expires -" in namespace.ip("-6", "route", "show", "default"))
    assert read()["eth0"].missing == "no route"


@in_namespace
def test_default_route_counts_in_any_table_and_for_each_next_hop(namespace: Namespace) -> None:
    for number, name in enumerate(("eth0", "eth1", "eth2"), 1):
        namespace.add_veth(name)
        namespace.ip("addr", "add", f"198.51.{number}.1/24", "dev", name)
    namespace.ip("route", "add", "default", "table", "1000", "via", "198.51.1.2")
    namespace.ip("route", "add", "default", "nexthop", "via", "198.51.2.2", "nexthop", "via", "198.51.3.2")
    assert {name for name, found in read().items() if found.available} == {"eth0", "eth1", "eth2"}
    namespace.ip("route", "del", "default")
    assert {name for name, found in read().items() if found.available} == {"eth0"}


@in_namespace
def test_real_links_are_ordered_by_metric_then_name(namespace: Namespace) -> None:
    for number, (name, metric) in enumerate([("wlan0", 600), ("eth1", 100), ("eth0", 100), ("wwan0", 50)], 1):
        namespace.add_uplink(name, number, metric)
    found = connections(config(wireline="eth*", wireless="wlan*"))
    assert found == [("any", "wwan0"), ("wireline", "eth0"), ("wireline", "eth1"), ("wireless", "wlan0")]


@in_namespace
def test_reach_selects_connections(namespace: Namespace) -> None:
    namespace.add_uplink("eth0")
    namespace.add_veth("eth1")
    namespace.ip("addr", "add", "10.1.0.1/16", "dev", "eth1")

    def names(*reach: str) -> list[str]:
        networks = tuple(ip_network(text) for text in reach)
        return [name for _, name in connections(config(networks))]

    assert connections(config("internet")) == [("any", "eth0")]
    assert sorted(connections(config("any"))) == [("any", "eth0"), ("any", "eth1")]
    assert names("10.1.2.0/24") == ["eth1", "eth0"]
    assert names("10.1.2.0/24", "192.0.2.0/24") == ["eth0"]
    assert names("2001:db8::/32") == []


@in_namespace
def test_real_loopback_counts_only_if_named(namespace: Namespace) -> None:
    assert connections(config("any")) == []
    assert connections(config("any", wireline="lo")) == [("wireline", "lo")]
    assert connections(config("internet", wireline="lo")) == []
    namespace.ip("link", "set", "lo", "down")
    assert str(read(config("any", wireline="lo"))["lo"]) == "lo: down"


@in_namespace
def test_bridge_is_a_connection_and_its_member_is_not(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    namespace.ip_batch(
        [
            "link add br0 type bridge",
            "link set br0 up",
            "link set eth0 master br0",
            "addr add 192.0.2.1/24 dev br0",
            "route add default via 192.0.2.2",
        ]
    )
    assert connections(config()) == [("any", "br0")]


@in_namespace
def test_process_inside_reads_the_sysfs_of_its_namespace(namespace: Namespace) -> None:
    namespace.add_uplink("eth0")
    program = (
        "from dmnotid.config.values import ConnectionsConfig; from dmnotid.links.availability import read_links\n"
        "for link in read_links(ConnectionsConfig()): print(link.name, link.type, link.why, link.missing, sep=', ')"
    )
    done = namespace.run(sys.executable, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["eth0, any, kind veth, None", "lo, any, loopback, not configured"]
