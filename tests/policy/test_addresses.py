"""Addresses and ports: written, read and compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.policy.addresses import MAX_PORT, Source, parse_address, parse_ip, show_address


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("192.0.2.1", 9, "192.0.2.1:9"),
        ("2001:db8::1", 40000, "[2001:db8::1]:40000"),
        ("fe80::1%eth0", 1, "[fe80::1%eth0]:1"),
    ],
)
def test_ipv6_address_is_written_in_brackets(host: str, port: int, text: str) -> None:
    assert show_address(host, port) == text
    assert str(Source(host, port)) == text


def test_door_is_written_as_its_name_and_is_no_address() -> None:
    assert str(Source("sms", None)) == "sms"
    assert parse_ip("sms") is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", ("192.0.2.1", 2948)),
        ("192.0.2.1:0", ("192.0.2.1", 0)),
        ("device.example:65535", ("device.example", 65535)),
        ("::1", ("::1", 2948)),
        ("::1:2948", ("::1:2948", 2948)),
        ("fe80::1%eth0", ("fe80::1%eth0", 2948)),
        ("[::1]", ("::1", 2948)),
        ("[::1]:40000", ("::1", 40000)),
    ],
)
def test_address_without_a_port_gets_that_of_wap_push(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":2948",
        "a:",
        "a:65536",
        "a:x",
        "a:-1",
        "a:+1",
        "a: 1",
        "a:\u0662",
        "[::1",
        "[::1]x",
        "[::1]2948",
        "[::1]:",
        "[]",
        "[]:1",
    ],
)
def test_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        parse_address(text)


@given(st.ip_addresses(), st.integers(0, MAX_PORT))
def test_written_address_is_read_back(host: object, port: int) -> None:
    assert parse_address(show_address(str(host), port)) == (str(host), port)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:192.0.2.1", "None"),
        ("::ffff:192.0.2.1%eth0", "None"),
        ("device.example", "None"),
        ("", "None"),
    ],
)
def test_literal_without_zone_or_ipv4_prefix_is_an_address(text: str, address: str) -> None:
    assert str(parse_ip(text)) == address
