"""uintvar, value classes, text (WAP-230, 8.1.2, 8.4.1.2, 8.4.2.x) and the text of a SERVER-ID (5.3)."""

import unicodedata
from functools import partial

import pytest

from dmnotid.errors import DecodeError, MalformedField, Truncated
from dmnotid.wire.octets import (
    MAX_UINTVAR,
    PUSH_PDU,
    FieldValue,
    encode_integer,
    encode_length,
    encode_text,
    encode_uintvar,
    encode_value,
    normal_server_id,
    read_length,
    read_text,
    read_uintvar,
    read_value,
)
from tests.place import Place, place_of

UINTVARS = [
    (0, "00"),
    (1, "01"),
    (127, "7F"),
    (128, "81 00"),
    (0x87A5, "82 8F 25"),  # the example of WAP-230, 8.1.2
    (0x3FFF, "FF 7F"),
    (0x4000, "81 80 00"),
    (0x1F_FFFF, "FF FF 7F"),
    (0x0FFF_FFFF, "FF FF FF 7F"),
    (0x1000_0000, "81 80 80 80 00"),
    (MAX_UINTVAR, "8F FF FF FF 7F"),
]

VALUES: list[tuple[FieldValue, str]] = [
    (0, "80"),
    (7, "87"),
    (127, "FF"),
    ("a", "61 00"),
    (" ~", "20 7E 00"),
    ("tag", "74 61 67 00"),
    ("", "7F 00"),
    ("\x80x", "7F 80 78 00"),
    ("ÿ", "7F FF 00"),
    ("x\x80", "78 80 00"),
    (b"", "00"),
    (b"\x07", "01 07"),
    (bytes(30), "1E" + "00" * 30),
    (bytes(31), "1F 1F" + "00" * 31),
    (bytes(127), "1F 7F" + "00" * 127),
    (bytes(128), "1F 81 00" + "00" * 128),
]
"""Each value in the one form that is encoded; all three classes, and their borders (30/31, 32, 126/127/128)."""

LIBERAL: list[tuple[FieldValue, str]] = [(b"", "1F 00"), (b"\x07", "1F 01 07"), (b"\x07", "1F 80 01 07")]
"""Legal forms that are decoded and never encoded."""


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.mark.parametrize(("value", "encoded"), UINTVARS)
def test_uintvar_is_encoded_and_decoded(value: int, encoded: str) -> None:
    """WAP-230 8.1.2."""
    assert encode_uintvar(value) == octets(encoded)
    assert read_uintvar(octets(encoded), 0, "f") == (value, len(octets(encoded)))


@pytest.mark.parametrize(
    ("value", "encoded"), [(3, "80 03"), (3, "80 80 80 80 03"), (0, "80 80 00"), (128, "80 81 00")]
)
def test_padded_uintvar_is_decoded(value: int, encoded: str) -> None:
    """WAP-230 8.1.2."""
    assert read_uintvar(octets(encoded), 0, "f") == (value, len(octets(encoded)))


def test_uintvar_is_decoded_at_any_offset() -> None:
    """WAP-230 8.1.2: nothing before or after it is read."""
    assert read_uintvar(octets("FF FF 81 00 FF"), 2, "f") == (128, 4)


@pytest.mark.parametrize("encoded", [encoded for _, encoded in UINTVARS] + ["80 80 80 80 03"])
def test_every_prefix_of_a_uintvar_is_truncated(encoded: str) -> None:
    """WAP-230 8.1.2."""
    whole = octets("AA" + encoded)
    for end in range(1, len(whole)):
        assert place_of(partial(read_uintvar, whole[:end], 1, "f"), PUSH_PDU) == (Truncated, "f", 1)


@pytest.mark.parametrize(
    ("encoded", "problem"),
    [
        ("80 80 80 80 80 00", "the uintvar has more than 5 octets"),
        ("FF FF FF FF FF", "the uintvar has more than 5 octets"),
        ("90 80 80 80 00", "the uintvar has more than 32 bits"),
        ("FF FF FF FF 7F", "the uintvar has more than 32 bits"),
    ],
)
def test_uintvar_above_5_octets_or_32_bits_is_malformed(encoded: str, problem: str) -> None:
    """WAP-230 8.1.2: 5 octets and 32 bits at most."""
    with pytest.raises(MalformedField) as caught:
        read_uintvar(octets("00" + encoded), 1, "HeadersLen")
    assert (caught.value.field, caught.value.offset, caught.value.problem) == ("HeadersLen", 1, problem)
    assert caught.value.excerpt == octets(encoded)


@pytest.mark.parametrize("value", [-1, MAX_UINTVAR + 1])
def test_integer_outside_32_bits_is_not_a_uintvar(value: int) -> None:
    with pytest.raises(ValueError, match=f"a uintvar holds 0 to 4294967295, not {value}"):
        encode_uintvar(value)


@pytest.mark.parametrize(("value", "encoded"), VALUES)
def test_value_is_encoded_and_decoded(value: FieldValue, encoded: str) -> None:
    """WAP-230 8.4.1.2."""
    assert encode_value(value) == octets(encoded)
    assert read_value(octets(encoded), 0, "f") == (value, len(octets(encoded)))


@pytest.mark.parametrize(("value", "encoded"), VALUES + LIBERAL)
def test_value_is_decoded_at_any_offset(value: FieldValue, encoded: str) -> None:
    """WAP-230 8.4.1.2: nothing before or after it is read."""
    assert read_value(octets("80 61" + encoded + "FF FF"), 2, "f") == (value, 2 + len(octets(encoded)))


@pytest.mark.parametrize("encoded", [encoded for _, encoded in VALUES + LIBERAL])
def test_every_prefix_of_a_value_is_truncated(encoded: str) -> None:
    """WAP-230 8.4.1.2."""
    whole = octets(encoded)
    for end in range(len(whole)):
        with pytest.raises(Truncated) as caught:
            read_value(whole[:end], 0, "f")
        assert caught.value.field == "f"


@pytest.mark.parametrize(
    ("encoded", "place", "problem"),
    [
        ("", (Truncated, "Date", 1), "the value is missing"),
        ("04 01 02", (Truncated, "Date", 1), "needs 4 octets, 2 are left"),
        ("1E 00", (Truncated, "Date", 1), "needs 30 octets, 1 are left"),
        ("1F 03 01", (Truncated, "Date", 1), "needs 3 octets, 1 are left"),
        ("1F 8F FF FF FF 7F", (Truncated, "Date", 1), "needs 4294967295 octets, 0 are left"),
        ("1F", (Truncated, "Date", 2), "the uintvar has no last octet"),
        ("1F 80", (Truncated, "Date", 2), "the uintvar has no last octet"),
        ("1F 80 80 80 80 80 00", (MalformedField, "Date", 2), "the uintvar has more than 5 octets"),
        ("61 62", (Truncated, "Date", 1), "the text has no NUL at its end"),
        ("7F", (Truncated, "Date", 1), "the text has no NUL at its end"),
        ("7F 61", (Truncated, "Date", 1), "the text has no NUL at its end"),
        ("7F 61 00", (MalformedField, "Date", 1), "a quote before a character below 128"),
        ("7F 01 00", (MalformedField, "Date", 1), "a quote before a character below 128"),
        ("7F 7F 80 00", (MalformedField, "Date", 1), "a quote before a character below 128"),
    ],
)
def test_malformed_value_is_refused_with_field_and_offset(encoded: str, place: Place, problem: str) -> None:
    """WAP-230 8.4.1.2: every length is compared with the octets left before it is used."""
    with pytest.raises(DecodeError, match=problem):
        read_value(octets("AA" + encoded), 1, "Date")
    assert place_of(lambda: read_value(octets("AA" + encoded), 1, "Date"), PUSH_PDU) == place


def test_text_ends_at_its_first_nul() -> None:
    """WAP-230 8.4.1.2."""
    assert read_text(b"-ab\0cd\0", 1, "f") == ("ab", 4)


def test_text_loses_one_quote_alone() -> None:
    """WAP-230 8.4.1.2: a quote inside the text is a character."""
    assert read_text(b"\x7f\x80\x7f\0", 0, "f") == ("\x80\x7f", 4)


def test_quote_is_legal_before_128_to_255_alone() -> None:
    """WAP-230 8.4.1.2."""
    for first in range(1, 128):
        quoted = bytes([0x7F, first, 0x61, 0])
        assert place_of(partial(read_value, quoted, 0, "f"), PUSH_PDU) == (MalformedField, "f", 0), first
    for first in range(128, 256):
        assert read_value(bytes([0x7F, first, 0x61, 0]), 0, "f") == (chr(first) + "a", 4)


def test_text_after_the_last_octet_is_truncated() -> None:
    assert place_of(lambda: read_text(b"\0ab", 3, "f"), PUSH_PDU) == (Truncated, "f", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\0b", r"holds a NUL: 'a\\x00b'"),
        ("Ω", "'latin-1' codec can't encode"),
        ("\x1fa", "begins with a control character"),
        ("\x7fa", "begins with a control character"),
    ],
)
def test_text_that_no_reader_takes_is_not_encoded(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_text(text)


@pytest.mark.parametrize(
    ("encoded", "bounds"), [("00", (1, 1)), ("02 AA BB CC", (1, 3)), ("1F 02 AA BB", (2, 4)), ("1F 80 01 AA", (3, 4))]
)
def test_length_gives_the_bounds_of_its_octets(encoded: str, bounds: tuple[int, int]) -> None:
    """WAP-230 8.4.2.2."""
    assert read_length(octets(encoded), 0, "f") == bounds


@pytest.mark.parametrize(("length", "start"), [(0, "00"), (30, "1E"), (31, "1F 1F"), (200, "1F 81 48")])
def test_length_above_30_is_quoted(length: int, start: str) -> None:
    """WAP-230 8.4.2.2."""
    assert encode_length(bytes(length)) == octets(start) + bytes(length)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "80"), (127, "FF"), (128, "01 80"), (255, "01 FF"), (256, "02 01 00"), (2**240 - 1, "1E" + "FF" * 30)],
)
def test_integer_is_encoded_in_the_fewest_octets(value: int, encoded: str) -> None:
    """WAP-230 8.4.2.1: short-integer to 127, long-integer of up to 30 octets above."""
    assert encode_integer(value) == octets(encoded)
    assert encode_value(value) == octets(encoded)


@pytest.mark.parametrize("value", [-1, -(2**300), 2**240])
def test_negative_or_huge_integer_is_not_encoded(value: int) -> None:
    """WAP-230 8.4.2.1."""
    with pytest.raises(ValueError, match="a long-integer has 1 to 30 octets and no sign"):
        encode_integer(value)


@pytest.mark.parametrize(
    "text", ["dm.example", "a b", "~", "ä", "\u00a0", "\u200b", "漢", "\U0001f4e1", "\u2027", "\u202a", "\ufffe", "ﬁ"]
)
def test_normal_server_id_is_unchanged(text: str) -> None:
    """5.3: every other character is legal, and case is kept."""
    assert normal_server_id(text) == text
    assert normal_server_id(text.upper()) == unicodedata.normalize("NFC", text.upper())


@pytest.mark.parametrize(
    ("text", "normal"),
    [("mo\u0308we", "möwe"), ("\u212b", "Å"), ("\u1100\u1161", "가"), ("q\u0323\u0307", "q\u0323\u0307")],
)
def test_server_id_is_normalised_to_nfc(text: str, normal: str) -> None:
    """5.3: compared after NFC on both sides; not NFKC, which would make "ﬁ" and "fi" the same."""
    assert normal_server_id(text) == normal
    assert normal_server_id(normal) == normal


def test_server_id_with_too_many_combining_characters_is_refused() -> None:
    """5.3: normalising takes quadratic time, so a run has at most 30."""
    assert normal_server_id("a" + "\u0315" * 15 + "\u0321" * 15).startswith("a\u0321")
    with pytest.raises(ValueError, match="more than 30 combining characters in a row"):
        normal_server_id("a" + "\u0315" * 16 + "\u0321" * 15)
    assert normal_server_id(("e" + "\u0301" * 30) * 8) == ("é" + "\u0301" * 29) * 8
    assert normal_server_id("ä" * 256) == "ä" * 256
    with pytest.raises(ValueError, match="more than 256 characters, and not all of them are ASCII"):
        normal_server_id("ä" + "a" * 256)
    assert normal_server_id("a" * 4_095) == "a" * 4_095


@pytest.mark.parametrize(
    "around", [("", ""), ("a", ""), ("", "b"), ("ä", "b")], ids=["alone", "last", "first", "inside"]
)
def test_server_id_with_a_forbidden_character_is_refused(around: tuple[str, str]) -> None:
    """5.3: no C0, DEL, C1, line or paragraph separator, and no BOM, at any place."""
    before, after = around
    for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF]:
        with pytest.raises(ValueError, match=rf"holds U\+{code:04X}, which no SERVER-ID may hold"):
            normal_server_id(before + chr(code) + after)


def test_empty_server_id_is_refused() -> None:
    """5.3."""
    with pytest.raises(ValueError, match="is empty"):
        normal_server_id("")
