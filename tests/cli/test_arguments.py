"""What several commands read from their arguments."""

import argparse
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.cli.arguments import parse_destination, parse_hex, parse_number, parse_time
from dmnotid.sentences import show_time


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0),
        ("1800000000", 1_800_000_000),
        ("1800000000.25", 1_800_000_000.25),
        ("1970-01-01T00:00:10Z", 10),
        ("1970-01-01T00:00:10", 10),
        ("1970-01-01 02:00:10+02:00", 10),
        ("1970-01-02", 86_400),
        ("2106-02-07T06:28:15Z", 0xFFFF_FFFF),
    ],
)
def test_time_is_parsed_in_every_form(text: str, wanted: float) -> None:
    assert parse_time(text) == wanted


@pytest.mark.parametrize(
    ("text", "ahead"),
    [("now", 0), ("now+10m", 600), ("now-2d", -172_800), ("now+500ms", 0.5), ("now-0", 0), ("now+24h", 86_400)],
)
def test_time_may_be_relative_to_now(text: str, ahead: float) -> None:
    before = time.time()
    found = parse_time(text)
    assert before + ahead <= found <= time.time() + ahead


@pytest.mark.parametrize("text", ["", "x", "-", "+", "-2", "+1y", "--1d", "1e9", "1.2.3", ".", "2025-13-01", "Now"])
def test_malformed_time_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is expected") as caught:
        parse_time(text)
    assert str(caught.value).startswith(f"{text!r}: ")


@given(st.integers(0, 0xFFFF_FFFF))
def test_shown_time_is_parsed_back(seconds: int) -> None:
    assert parse_time(show_time(seconds)) == seconds


def test_shown_time_is_utc_in_any_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Chatham")
    time.tzset()
    try:
        assert show_time(1_735_689_600.9) == "2025-01-01T00:00:00Z"
        assert parse_time("2025-01-01T00:00:00") == 1_735_689_600
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


@given(st.binary(max_size=40), st.sampled_from(["", " ", "\t", "  "]), st.booleans())
def test_hex_with_any_spacing_is_parsed(octets: bytes, between: str, upper: bool) -> None:  # noqa: FBT001 - hypothesis draws it
    text = between.join(f"{octet:02x}" for octet in octets)
    assert parse_hex(text.upper() if upper else text) == octets


def test_space_between_two_digits_is_ignored() -> None:
    assert parse_hex(" 0 1 060\t3") == b"\x01\x06\x03"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", "column 1: the number of hex digits (1) is odd, two make an octet"),
        ("01 06 0", "column 7: the number of hex digits (5) is odd, two make an octet"),
        ("zz", "column 1: 'z' is not a hex digit"),
        ("01 0g 0h", "column 5: 'g' is not a hex digit"),
        ("01 g", "column 4: 'g' is not a hex digit"),
        ("0x01", "column 2: 'x' is not a hex digit"),
        ("01,06", "column 3: ',' is not a hex digit"),
        ("\u0660\u0661", "column 1: '\u0660' is not a hex digit"),
        ("01\x1b[31m", "column 3: '\\x1b' is not a hex digit"),
    ],
)
def test_malformed_hex_is_refused_with_its_column(text: str, wanted: str) -> None:
    with pytest.raises(ValueError, match="column") as caught:
        parse_hex(text)
    assert str(caught.value) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("192.0.2.1", ("192.0.2.1", 2948)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("device.example:65535", ("device.example", 65535)),
        ("::1", ("::1", 2948)),
        ("fe80::1%eth0", ("fe80::1%eth0", 2948)),
        ("[::1]", ("::1", 2948)),
        ("[::1]:40000", ("::1", 40000)),
    ],
)
def test_destination_has_a_host_and_a_port(text: str, wanted: tuple[str, int]) -> None:
    assert parse_destination(text) == wanted


@pytest.mark.parametrize(
    "text", ["", ":2948", "a:", "a:0", "a:65536", "a:x", "a:-1", "a:\u0662", "[::1", "[::1]x", "[::1]2948", "[]:1"]
)
def test_malformed_destination_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is expected, with a port from 1 to 65535") as caught:
        parse_destination(text)
    assert str(caught.value).startswith(repr(text))


@pytest.mark.parametrize(("text", "wanted"), [("0", 0), ("255", 255), ("0xff", 255), ("0X10", 16)])
def test_number_is_decimal_or_hex(text: str, wanted: int) -> None:
    assert parse_number(text, 0, 255) == wanted


@pytest.mark.parametrize("text", ["", "-1", "256", "0x100", "x", "1.0", "1e1", "ff"])
def test_malformed_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="a number from 0 to 255 is expected") as caught:
        parse_number(text, 0, 255)
    assert str(caught.value).startswith(repr(text))
