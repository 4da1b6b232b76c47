"""rtnetlink: octets that a kernel sent, and octets that no kernel would send."""

import os
import socket
import sys
from contextlib import suppress
from errno import EBADMSG, ENODEV
from ipaddress import IPv4Network, ip_network
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.links import rtnetlink
from dmnotid.links.rtnetlink import (
    IF_OPER_UP,
    IFA_F_TENTATIVE,
    IFF_LOWER_UP,
    IFF_UP,
    RT_TABLE_MAIN,
    Address,
    Interface,
    Route,
    messages,
    parse_routes,
    take_messages,
)
from tests.links.octets import address, attribute, done, link, message, route

# Answers of Linux 6.18 (x86-64) in a namespace with wlan0 (ifindex 2) and eth0 (3), veth both; of the links only eth0,
# of the routes that are not unicast one of each kind.
LINKS = bytes.fromhex("""
    700400001000020001000000181d00000000010003000000431001000000000009000300657468300000000008000d00e803000005001000
    060000000500110000000000050043000000000008000400dc050000080032004400000008003300ffff000008001b000000000008001e00
    0000000008003d000000000008001f000200000008002800ffff0000080029000000010008003a000000010008003f000000010008004000
    0000010008003b00f8ff070008003c00ffff0000080042000000000008002000020000000500210001000000080023000200000008002f00
    0100000008003000010000000600440000000000060045000000000005002700000000000a00010062acd554fb4300000a000200ffffffff
    ffff0000cc00170003000000000000000300000000000000fa00000000000000fa0000000000000000000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
    00000000000000000000000000000000000000000000000000000000000000000000000000000000640007000300000003000000fa000000
    fa00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000
    000000000000000000000000000000000000000000000000000000000c002b00050002000000000010001200090001007665746800000000
    080025000000000008000500030000000c0006006e6f717565756500c0011a008c0002008800010000000000000000000000000001000000
    0100000001000000010000000000000001000000000000000000000000000000000000000000000000000000000000000000000000000000
    000000000000000000000000000000000000000000000000000000000000000010270000e803000000000000000000000000000000000000
    0100000030010a00080001001000008014000500ffff00009b8a03006c8a0000e8030000f40002000000000040000000dc05000001000000
    010000000100000001000000ffffffffa00f0000e803000000000000803a0900805101000300000058020000100000000000000001000000
    010000000100000060ea000000000000000000000000000000000000000000000000000000000000000000000000000010270000e8030000
    010000000000000000000000010000000000000000000000010000000000000000000000000000000000000080ee36000000000000000000
    0100000000000000000000000000000000000000000000000004000000000000ffff0000ffffffff01000000000000000000000000000000
    1400070000000000000000000000000000000000050008000000000024000e00000000000000000000000000000000000000000000000000
    000000000000000004003e8004004180140000000300020001000000181d000000000000
""")

ADDRESSES = bytes.fromhex("""
    4c0000001400020001000000181d0000020880fe01000000080001007f000001080002007f000001070003006c6f00000800080080000000
    14000600ffffffffffffffff978a0300978a0300500000001400020001000000181d0000021880000200000008000100c633640108000200
    c63364010a000300776c616e30000000080008008000000014000600ffffffffffffffff9b8a03009b8a0300500000001400020001000000
    181d0000022080000300000008000100c000020208000200c0000201090003006574683000000000080008008000000014000600ffffffff
    ffffffff9b8a03009b8a0300500000001400020001000000181d00000a8080fe010000001400010000000000000000000000000000000001
    14000600ffffffffffffffff978a0300978a0300080008008000000005000b0001000000500000001400020001000000181d00000a4080fd
    0200000014000100fe80000000000000cc5523fffe9f04cd14000600ffffffffffffffff9b8a03009b8a0300080008008000000005000b00
    03000000480000001400020001000000181d00000a408000030000001400010020010db800000000000000000000000114000600ffffffff
    ffffffff9c8a03009c8a03000800080080000000500000001400020001000000181d00000a4080fd0300000014000100fe80000000000000
    60acd5fffe54fb4314000600ffffffffffffffff9b8a03009b8a0300080008008000000005000b0003000000140000000300020001000000
    181d000000000000
""")

ROUTES = bytes.fromhex("""
    500000001800020001000000181d000002000000fe0300010000000008000f00fe0000000800060007000000240009001000000003000000
    08000500c0000202100000000200000008000500c63364022c0000001800020001000000181d000002080000fe0300060000000008000f00
    fe000000080001000a0000003c0000001800020001000000181d000002200000fe02fd010000000008000f00fe00000008000100c0000202
    08000700c000020108000400030000003c0000001800020001000000181d000002180000fe02fd010000000008000f00fe00000008000100
    c633640008000700c633640108000400020000003c0000001800020001000000181d000002080000ff02fe020000000008000f00ff000000
    080001007f000000080007007f00000108000400010000003c0000001800020001000000181d000002200000ff02fd030000000008000f00
    ff000000080001007fffffff080007007f0000010800040001000000740000001800020001000000181d00000a0000006403000100000000
    08000f0064000000080006000004000014000500fe800000000000000000000000000001080004000300000024000c000000000000000000
    0000000000000000000000000000000000000000000000000500140000000000740000001800020001000000181d00000a400000fe020001
    0000000008000f00fe0000001400010020010db80000000000000000000000000800060000010000080004000300000024000c0000000000
    000000000000000000000000000000000000000000000000000000000500140000000000740000001800020001000000181d00000a400000
    fe0200010000000008000f00fe00000014000100fe8000000000000000000000000000000800060000010000080004000300000024000c00
    00000000000000000000000000000000000000000000000000000000000000000500140000000000740000001800020001000000181d0000
    0a400000fe0200010000000008000f00fe00000014000100fe80000000000000000000000000000008000600000100000800040002000000
    24000c0000000000000000000000000000000000000000000000000000000000000000000500140000000000740000001800020001000000
    181d00000a800000ff0200020000000008000f00ff0000001400010000000000000000000000000000000001080006000000000008000400
    0100000024000c00000000000000000000000000000000000000000000000000000000000000000005001400000000007400000018000200
    01000000181d00000a080000ff0200050000000008000f00ff00000014000100ff0000000000000000000000000000000800060000010000
    080004000300000024000c000000000000000000000000000000000000000000000000000000000000000000050014000000000014000000
    0300020001000000181d000000000000
""")

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the captured octets are little-endian")

QUERIES: dict[str, Any] = {"links": rtnetlink.INTERFACES, "addresses": rtnetlink.ADDRESSES, "routes": rtnetlink.ROUTES}
CAPTURED = {"links": LINKS, "addresses": ADDRESSES, "routes": ROUTES}


OIF = attribute(4, pack("=i", 5))


def take(name: str, octets: bytes) -> tuple[list[Any], tuple[bool, bool]]:
    found: list[Any] = []
    ended = take_messages(octets, QUERIES[name], 1, found)
    return found, ended


def refused(name: str, octets: bytes) -> str:
    with pytest.raises(OSError, match="rtnetlink") as raised:
        take(name, octets)
    assert raised.value.errno == EBADMSG
    return str(raised.value)


@little_endian
def test_captured_link_is_parsed() -> None:
    found, ended = take("links", LINKS)
    assert ended == (True, True)
    flags = 0x1000 | IFF_UP | IFF_LOWER_UP | 0x42  # MULTICAST, BROADCAST, RUNNING
    assert found == [Interface(3, "eth0", 1, flags, IF_OPER_UP, "veth", 0, "")]


@little_endian
def test_captured_addresses_are_parsed() -> None:
    found, ended = take("addresses", ADDRESSES)
    assert ended == (True, True)
    texts = [(own.ifindex, socket.inet_ntop({4: 2, 16: 10}[len(own.octets)], own.octets)) for own in found]
    assert [text for text in texts if not text[1].startswith("fe80:")] == [
        (1, "127.0.0.1"),
        (2, "198.51.100.1"),
        (3, "192.0.2.1"),  # not its peer, 192.0.2.2
        (1, "::1"),
        (3, "2001:db8::1"),
    ]
    assert [index for index, text in texts if text.startswith("fe80:")] == [2, 3]
    assert {own.flags for own in found} == {0x80}


@little_endian
def test_captured_routes_are_parsed() -> None:
    found, ended = take("routes", ROUTES)
    assert ended == (True, True)
    assert [(found_route.ifindex, str(found_route)) for found_route in found] == [
        (3, "default metric 7"),  # one route of two next hops
        (2, "default metric 7"),
        (3, "192.0.2.2/32 metric 0"),
        (2, "198.51.100.0/24 metric 0"),
        (3, "default metric 1024 table 100"),  # IPv6
        (3, "2001:db8::/64 metric 256"),
        (3, "fe80::/64 metric 256"),
        (2, "fe80::/64 metric 256"),
    ]
    assert [found_route.bits for found_route in found] == [32] * 4 + [128] * 4


@little_endian
def test_route_is_left_out_if_its_prefix_is_too_long() -> None:
    body = next((at, end) for kind, _, _, at, end in messages(ROUTES) if kind == 24 and ROUTES[at + 1] == 24)
    assert len(parse_routes(ROUTES, *body)) == 1
    assert len(parse_routes(ROUTES, *body, longest=24)) == 1
    assert parse_routes(ROUTES, *body, longest=23) == ()


@little_endian
@pytest.mark.parametrize("name", QUERIES)
def test_prefix_of_captured_octets_is_refused_unless_messages_are_whole(name: str) -> None:
    octets = CAPTURED[name]
    whole = {end: number for number, (*_, end) in enumerate(messages(octets), 1)}
    for end in range(1, len(octets)):
        if end not in whole:
            assert "left" in refused(name, octets[:end]) or "message of" in refused(name, octets[:end])
        else:
            assert take(name, octets[:end])[1] == (False, True)


@given(st.sampled_from(sorted(QUERIES)), st.binary(max_size=200))
def test_any_octets_give_a_value_or_an_oserror(name: str, octets: bytes) -> None:
    with suppress(OSError):
        take(name, octets)


@given(st.sampled_from(sorted(QUERIES)), st.binary(max_size=200))
def test_any_body_gives_a_value_or_is_refused(name: str, body: bytes) -> None:
    found: list[object] = []
    try:
        found, _ = take(name, message(QUERIES[name].answer, body))
    except OSError as error:
        found = [] if error.errno == EBADMSG else [error]
    assert all(isinstance(item, Interface | Address | Route) for item in found)


@little_endian
@given(st.sampled_from(sorted(QUERIES)), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4))
def test_captured_octets_with_some_changed_give_values_or_an_oserror(name: str, changes: list[tuple[int, int]]) -> None:
    octets = bytearray(CAPTURED[name])
    for at, value in changes:
        octets[at % len(octets)] = value
    try:
        found, _ = take(name, bytes(octets))
    except OSError:
        return
    assert all(str(item) for item in found)


def test_link_with_a_name_alone_is_parsed() -> None:
    assert take("links", message(16, link(attribute(3, b"usb0\0"))))[0] == [Interface(5, "usb0", 1, 1, 0, "", 0, "")]


@pytest.mark.parametrize(("expires", "there"), [(0, True), (1, True), (-1, False), (-(2**31), False)])
def test_expired_route_is_left_out(expires: int, there: bool) -> None:  # noqa: FBT001 - a table of results
    info = attribute(12, pack("=IIiIIII", 1, 2, expires, 0, 0, 0, 0))
    found = take("routes", message(24, route(OIF, info, family=socket.AF_INET6)))[0]
    assert found == [Route(5, 128, 0, 0, 0, RT_TABLE_MAIN)] * there


def test_route_table_has_32_bits() -> None:
    assert take("routes", message(24, route(OIF, table=100)))[0] == [Route(5, 32, 0, 0, 0, table=100)]
    large = route(OIF, attribute(15, pack("=I", 70_000)), table=252)
    assert take("routes", message(24, large))[0] == [Route(5, 32, 0, 0, 0, table=70_000)]


def test_link_names_the_bridge_that_it_is_a_member_of() -> None:
    info = attribute(1, b"veth\0") + attribute(4, b"bridge\0")
    body = link(attribute(3, b"p0\0"), attribute(10, pack("=I", 9)), attribute(18, info), attribute(16, b"\6"))
    assert take("links", message(16, body))[0] == [Interface(5, "p0", 1, 1, 6, "veth", 9, "bridge")]


def test_name_that_is_not_utf_8_is_decoded_reversibly() -> None:
    (found,) = take("links", message(16, link(attribute(3, b"e\xffth\0junk"))))[0]
    assert os.fsencode(found.name) == b"e\xffth"


def test_report_of_a_bridge_about_its_port_is_not_a_link() -> None:
    assert take("links", message(16, link(attribute(3, b"p0\0"), family=7)))[0] == []


def test_address_of_a_point_to_point_link_is_not_that_of_the_peer() -> None:
    body = address(attribute(1, b"\xc0\0\2\2"), attribute(2, b"\xc0\0\2\1"))
    assert take("addresses", message(20, body))[0] == [Address(5, b"\xc0\0\2\1", 0)]


def test_address_flags_of_32_bits_replace_those_of_eight() -> None:
    old = address(attribute(1, bytes(4)), flags=IFA_F_TENTATIVE)
    assert take("addresses", message(20, old))[0] == [Address(5, bytes(4), IFA_F_TENTATIVE)]
    new = old + attribute(8, pack("=I", 0x280))
    assert take("addresses", message(20, new))[0] == [Address(5, bytes(4), 0x280)]


@pytest.mark.parametrize("name", ["addresses", "routes"])
def test_other_family_is_skipped(name: str) -> None:
    body = {"addresses": address(family=12), "routes": route(OIF, family=28)}[name]
    assert take(name, message(QUERIES[name].answer, body)) == ([], (False, True))


@pytest.mark.parametrize("passed_over", [{"kind": 6}, {"table": 255}, {"flags": 0x200}])
def test_route_is_skipped_if_blackhole_local_or_cached(passed_over: dict[str, int]) -> None:
    assert take("routes", message(24, route(OIF)))[0] == [Route(5, 32, 0, 0, 0, RT_TABLE_MAIN)]
    assert take("routes", message(24, route(OIF, **passed_over)))[0] == []


def test_route_as_text() -> None:
    assert str(Route(5, 32, 10 << 24 | 7, 8, 3, RT_TABLE_MAIN)) == "10.0.0.0/8 metric 3"
    assert str(Route(5, 128, 0, 0, 1024, RT_TABLE_MAIN)) == "default metric 1024"


def test_route_without_interface_is_skipped() -> None:
    assert take("routes", message(24, route()))[0] == []


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        ("links", bytes(15), "ifinfomsg needs 16, 15 left"),
        ("links", link(), "link without IFLA_IFNAME"),
        ("links", link(attribute(3, b"a\0"), attribute(10, bytes(3))), "attribute 10 of 3 octets, not 4"),
        ("links", link(attribute(3, b"a\0"), attribute(18, b"\5\0")), "attribute of 2 octets"),
        ("links", link(b"\3\0\3\0"), "attribute length 3"),
        ("links", link(b"\0\0\3\0"), "attribute length 0"),
        ("links", link(b"\7\0\3\0ab"), "attribute length 7, 6 left"),
        ("links", link(b"\4\0"), "attribute"),
        ("addresses", bytes(7), "ifaddrmsg needs 8, 7 left"),
        ("addresses", address(), "address of 0 octets, family 2"),
        ("addresses", address(attribute(1, bytes(16))), "address of 16 octets, family 2"),
        ("addresses", address(attribute(1, bytes(4)), family=10), "address of 4 octets, family 10"),
        ("routes", bytes(11), "rtmsg needs 12, 11 left"),
        ("routes", route(OIF, length=8), "destination of 0 octets, prefix 8, family 2"),
        ("routes", route(OIF, attribute(1, bytes(4)), length=33), "destination of 4 octets, prefix 33, family 2"),
        ("routes", route(OIF, attribute(1, bytes(16))), "destination of 16 octets, prefix 0, family 2"),
        ("routes", route(attribute(4, b"\5")), "attribute 4 of 1 octets, not 4"),
        ("routes", route(OIF, attribute(12, bytes(8)), family=10), "rta_cacheinfo of 8 octets"),
        ("routes", route(attribute(9, bytes(7))), "rtnexthop needs 8, 7 left"),
        ("routes", route(attribute(9, bytes(8))), "next hop length 0, 8 left"),
        ("routes", route(attribute(9, b"\x0c\0" + bytes(6))), "next hop length 12, 8 left"),
    ],
)
@little_endian
def test_malformed_body_is_refused(name: str, body: bytes, problem: str) -> None:
    assert problem in refused(name, message(QUERIES[name].answer, body))


def test_attribute_is_refused_if_it_ends_in_the_next_message() -> None:
    octets = message(16, link(attribute(3, b"a\0"), pack("=HH", 12, 99))) + done()
    assert "attribute length 12, 4 left" in refused("links", octets)


def test_message_of_another_request_is_skipped() -> None:
    octets = message(16, bytes(1), sequence=7) + done(-1, sequence=7)
    assert take("links", octets) == ([], (False, True))


def test_error_of_the_kernel_is_raised() -> None:
    with pytest.raises(OSError, match="No such device") as raised:
        take("links", done(-ENODEV))
    assert raised.value.errno == ENODEV
    with pytest.raises(PermissionError):
        take("links", message(2, pack("=i", -1) + bytes(16)))
    assert "error number needs 4, 2 left" in refused("links", message(3, bytes(2)))


def test_dump_is_marked_if_the_state_changed_during_it() -> None:
    first = message(16, link(attribute(3, b"a\0")), flags=0x10)
    assert take("links", first)[1] == (False, False)
    assert take("links", first + done())[1] == (True, False)
    assert take("links", done(flags=0x10))[1] == (True, False)


@pytest.mark.parametrize(
    ("destination", "covered", "not_covered"),
    [
        ("0.0.0.0/0", ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1/32"], ["::/0", "2001:db8::/32"]),
        ("10.0.0.0/8", ["10.0.0.0/8", "10.9.0.0/16"], ["10.0.0.0/7", "11.0.0.0/8", "0.0.0.0/0", "a00::/8"]),
        ("2001:db8::/32", ["2001:db8::/32", "2001:db8:1::/48"], ["2001:db9::/32", "::/0", "32.1.13.184/32"]),
        ("192.0.2.1/32", ["192.0.2.1/32"], ["192.0.2.0/32", "192.0.2.0/31"]),
    ],
)
def test_route_covers_part_of_its_destination(destination: str, covered: list[str], not_covered: list[str]) -> None:
    network = ip_network(destination)
    bits = 32 if isinstance(network, IPv4Network) else 128
    path = Route(5, bits, int(network.network_address), network.prefixlen, 0, RT_TABLE_MAIN)
    assert [text for text in covered + not_covered if path.covers(ip_network(text))] == covered
