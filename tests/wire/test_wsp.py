"""The Push PDU (WAP-230, 8.2.4.1, 8.4.2.x; DM Notification 4, 6, 6.1)."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import pytest

from dmnotid.errors import DecodeError, MalformedField, NotAPush, PushHeaderTooLong, PushTooLong, Truncated
from dmnotid.wire.octets import PUSH_PDU, FieldValue
from dmnotid.wire.wsp import (
    APPLICATION_ID_DM,
    CONTENT_TYPE_DM_NOTIFICATION,
    DEFAULT_MAX_HEADER_OCTETS,
    Field,
    PushHeader,
    PushMessage,
    application_id,
    decode_content_type,
    decode_header_block,
    decode_push,
    encode_field,
    encode_push,
    field_name,
    fields,
    header_border,
    is_application_id,
    is_dm_content_type,
)
from tests.place import Place, place_of

PACKAGE = b"\x20\x00\x00\x01"
DM_TEXT = "application/vnd.syncml.dm.notification"
URI = "x-wap-application:syncml.dm"


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def block(headers: str | bytes) -> bytes:
    return octets(headers) if isinstance(headers, str) else headers


class Vector(NamedTuple):
    """Arguments of `encode_push`, their encoding, and its decoded header."""

    headers: str | bytes
    content_type: int | str = CONTENT_TYPE_DM_NOTIFICATION
    application: int | str | None = APPLICATION_ID_DM
    further: Iterable[tuple[int | str, FieldValue] | bytes] = ()
    header: PushHeader = PushHeader(0x58, (7,))


VECTORS = {
    "smallest": Vector("D8 AF 87"),
    "kannel": Vector("D8 AF 87 8D 90 C3 93", further=[(0x0D, 0x10), (0x43, 0x13)]),
    "content-type-127": Vector("FF AF 87", 127, header=PushHeader(127, (7,))),
    "content-type-128": Vector("02 01 80 AF 87", 128, header=PushHeader(128, (7,))),
    "content-type-0x310": Vector("03 02 03 10 AF 87", 0x310, header=PushHeader(0x310, (7,))),
    "content-type-text": Vector(DM_TEXT.encode() + b"\0\xaf\x87", DM_TEXT, header=PushHeader(DM_TEXT, (7,))),
    "no-application-id": Vector("D8", application=None, header=PushHeader(0x58, ())),
    "application-id-0x905c": Vector("D8 AF 02 90 5C", application=0x905C, header=PushHeader(0x58, (b"\x90\x5c",))),
    "application-id-text": Vector(b"\xd8\xaf" + URI.encode() + b"\0", application=URI, header=PushHeader(0x58, (URI,))),
    "by-name": Vector(
        b"\xd8X-Wap-Application-Id\0ab\0",
        application=None,
        further=[("X-Wap-Application-Id", "ab")],
        header=PushHeader(0x58, ("ab",)),
    ),
    "twice": Vector("D8 AF 87 AF 01 07", further=[(0x2F, b"\x07")], header=PushHeader(0x58, (7, b"\x07"))),
    "finished-octets": Vector("D8 AF 87 7F 20 AF 84 01", further=[b"\x7f\x20", b"\xaf\x84", b"\x01"]),
    "named-empty": Vector("D8 AF 87 41 00 7F 00", further=[("A", "")]),
    "octets-31": Vector("D8 AF 87 B1 1F 1F" + "AF" * 31, further=[(0x31, b"\xaf" * 31)]),
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
@pytest.mark.parametrize("tid", [0, 1, 255])
def test_push_is_encoded_and_decoded(vector: Vector, tid: int) -> None:
    """WAP-230 8.2.4.1: TID, Type, HeadersLen, headers, data; any TID."""
    headers = block(vector.headers)
    datagram = bytes([tid, 6, len(headers)]) + headers + PACKAGE
    encoded = encode_push(
        PACKAGE, tid=tid, content_type=vector.content_type, application=vector.application, further=vector.further
    )
    assert encoded == datagram
    assert decode_push(datagram) == PushMessage(tid, vector.header, 3 + len(headers), PACKAGE)


def test_push_has_the_smallest_header_by_default() -> None:
    """6, 6.1."""
    assert encode_push(PACKAGE) == octets("00 06 03 D8 AF 87 20 00 00 01")


def test_push_with_long_headers_is_encoded_and_decoded() -> None:
    """WAP-230 8.1.2: HeadersLen of two octets."""
    datagram = encode_push(PACKAGE, further=[("P", "p" * 125)])
    assert datagram[:4] == octets("00 06 81 03")
    push = decode_push(datagram, max_header_octets=131)
    assert push == PushMessage(0, PushHeader(0x58, (7,)), 4 + 131, PACKAGE)


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_every_prefix_of_a_push_header_is_truncated(vector: Vector) -> None:
    """WAP-230 8.2.4.1: HeadersLen counts more than there is; a prefix beyond the border is a push with less data."""
    headers = block(vector.headers)
    datagram = bytes([1, 6, len(headers)]) + headers + PACKAGE
    for end in range(3 + len(headers)):
        assert place_of(partial(decode_push, datagram[:end]), PUSH_PDU) == (Truncated, "HeadersLen", min(end, 2))
    assert decode_push(datagram[: 3 + len(headers)]).body == b""


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_prefix_of_a_header_block_is_decoded_if_it_ends_with_a_field(vector: Vector) -> None:
    """WAP-230 8.4.2.6: a block cut within a field is Truncated; cut between fields it is a shorter block."""
    whole = block(vector.headers)
    between = {field.start for field in fields(whole, decode_content_type(whole)[1])} | {len(whole)}
    for end in range(1, len(whole)):
        if end in between:
            assert decode_header_block(whole[:end]).content_type == vector.header.content_type
        else:
            with pytest.raises(Truncated):
                decode_header_block(whole[:end])


def test_other_types_are_not_a_push() -> None:
    """4, WAP-230 8.2.4.1: Push alone, not even ConfirmedPush."""
    for pdu_type in {*range(256)} - {6}:
        with pytest.raises(NotAPush) as caught:
            decode_push(bytes([1, pdu_type, 3]) + octets("D8 AF 87") + PACKAGE)
        assert caught.value.pdu_type == pdu_type


@pytest.mark.parametrize(
    ("header", "end"),
    [
        ("06 05 04 0B 84 23 F0", 7),
        ("0B 05 04 0B 84 23 F0 00 03 A1 02 01", 12),
        ("0B 00 03 A1 02 01 05 04 0B 84 23 F0", 12),
        ("0C 08 04 00 A1 02 01 05 04 0B 84 23 F0", 13),
        ("05 00 03 A1 02 02", 6),
        ("04 04 02 F0 F0", 5),
        ("08 05 04 0B 84 23 F0 70 00", 9),
        # Without its length.
        ("05 04 0B 84 23 F0", 6),
        # Not one: too long, elements that overrun or fall short of it, none of a push.
        ("7F 05 04 0B 84 23 F0", 0),
        ("07 05 04 0B 84 23 F0", 0),
        ("05 05 04 0B 84 23 F0", 0),
        ("03 70 01 00", 0),
        ("05 04 0B 85 23 F0", 0),
        ("00 00", 0),
        ("01 05", 0),
        ("02 05 04", 0),
    ],
)
def test_sms_user_data_header_is_recognised(header: str, end: int) -> None:
    """4: a push as an SMS has it, with the header that belongs to the SMS."""
    for after in (PACKAGE, octets("01 06 03 D8 AF 87") + PACKAGE):
        with pytest.raises(NotAPush) as caught:
            decode_push(octets(header) + after)
        assert (caught.value.pdu_type, caught.value.sms_header) == (octets(header)[1], end)


@pytest.mark.parametrize(
    ("datagram", "place", "problem"),
    [
        ("", (Truncated, "HeadersLen", 0), "the datagram ends before it"),
        ("06", (Truncated, "HeadersLen", 1), "the datagram ends before it"),
        ("01 06", (Truncated, "HeadersLen", 2), "the datagram ends before it"),
        ("01 06 00", (Truncated, "HeadersLen", 2), "is 0, and a Content-Type must follow"),
        ("01 06 00 D8 AF 87", (Truncated, "HeadersLen", 2), "is 0, and a Content-Type must follow"),
        ("01 06 80 00 D8", (Truncated, "HeadersLen", 2), "is 0, and a Content-Type must follow"),
        ("01 06 04 D8 AF 87", (Truncated, "HeadersLen", 2), "needs 4 octets, 3 are left"),
        ("01 06 81 00 D8 AF 87", (Truncated, "HeadersLen", 2), "needs 128 octets, 3 are left"),
        ("01 06 8F FF FF FF 7F D8", (Truncated, "HeadersLen", 2), "needs 4294967295 octets, 1 are left"),
        ("01 06 80", (Truncated, "HeadersLen", 2), "the uintvar has no last octet"),
        ("01 06 80 80 80 80", (Truncated, "HeadersLen", 2), "the uintvar has no last octet"),
        ("01 06 80 80 80 80 80 03", (MalformedField, "HeadersLen", 2), "the uintvar has more than 5 octets"),
        ("01 06 FF FF FF FF 7F", (MalformedField, "HeadersLen", 2), "the uintvar has more than 32 bits"),
    ],
)
def test_wrong_header_length_is_refused(datagram: str, place: Place, problem: str) -> None:
    """WAP-230 8.2.4.1: HeadersLen is at least 1, and at most the number of octets left."""
    with pytest.raises(DecodeError) as caught:
        decode_push(octets(datagram))
    assert caught.value.problem == problem
    assert place_of(partial(header_border, octets(datagram)), PUSH_PDU) == place


@pytest.mark.parametrize(
    ("datagram", "border"),
    [("01 06 03 D8 AF 87 20", (3, 6)), ("01 06 80 03 D8 AF 87 20", (4, 7)), ("01 06 80 80 80 80 01 D8", (7, 8))],
)
def test_header_length_gives_the_border(datagram: str, border: tuple[int, int]) -> None:
    """WAP-230 8.2.4.1, 8.1.2: padded forms of HeadersLen are legal."""
    assert header_border(octets(datagram)) == border


CONTENT_TYPES: list[tuple[str | bytes, int | str]] = [
    ("D8", 0x58),
    ("01 D8", 0x58),
    ("02 01 58", 0x58),
    ("03 02 00 58", 0x58),
    ("03 D8 81 EA", 0x58),
    ("1F 01 D8", 0x58),
    ("1F 80 01 D8", 0x58),
    ("04 01 58 81 EA", 0x58),
    ("80", 0),
    ("02 D8 81", 0x58),
    ("03 02 58 00", 0x5800),
    (DM_TEXT.encode() + b"\0", DM_TEXT),
    (b"\x1f\x27" + DM_TEXT.encode() + b"\0", DM_TEXT),
    (b"\x1f\x2a" + DM_TEXT.encode() + b"\0\x81\xea\0", DM_TEXT),
    (b"a/b;c=d\0", "a/b;c=d"),
]


@pytest.mark.parametrize(("encoded", "content_type"), CONTENT_TYPES)
def test_content_type_is_decoded_in_every_form(encoded: str | bytes, content_type: int | str) -> None:
    """WAP-230 8.4.2.24: constrained or general, code or text; parameters are skipped by the value-length."""
    assert decode_content_type(block(encoded)) == (content_type, len(block(encoded)))
    assert decode_header_block(block(encoded) + b"\xaf\x87") == PushHeader(content_type, (7,))


@pytest.mark.parametrize(
    "content_type", [0x58, DM_TEXT, DM_TEXT.upper(), f" {DM_TEXT}\t", f"{DM_TEXT};q=1", f"{DM_TEXT} ; a;b"]
)
def test_content_type_of_dm_is_recognised(content_type: int | str) -> None:
    """4, 6: the code and the name are one media type."""
    assert is_dm_content_type(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        *(0x44, 0x4E, 0x34, 0xD8, 0, 0x5800),
        *("", DM_TEXT + "s", f"a;{DM_TEXT}", "X", "application/*"),
        # Neither SP nor HT, which alone are stripped.
        *(f"{DM_TEXT}{space}" for space in "\n\x0b\x1c\x85\xa0"),
    ],
)
def test_other_content_type_is_not_that_of_dm(content_type: int | str) -> None:
    """4, 6: DM 1.2 (0x44), data synchronisation (0x4E), a gateway's session request (0x34)."""
    assert not is_dm_content_type(content_type)


@pytest.mark.parametrize(
    ("encoded", "place"),
    [
        ("04 D8 81 EA", (Truncated, "Content-Type", 0)),
        ("1F", (Truncated, "Content-Type", 1)),
        ("1F 02 D8", (Truncated, "Content-Type", 0)),
        ("1F 80 80 80 80 80 01 D8", (MalformedField, "Content-Type", 1)),
        ("00 AF 87", (Truncated, "Content-Type", 1)),
        ("02 02 58 AF 87", (Truncated, "Content-Type", 1)),
        ("1F 02 61 62 00", (Truncated, "Content-Type", 2)),
        ("01 00", (MalformedField, "Content-Type", 1)),
        ("1F 02 1F 00", (MalformedField, "Content-Type", 2)),
        (b"text/plain", (Truncated, "Content-Type", 0)),
        ("7F", (Truncated, "Content-Type", 0)),
        # No quote, before whatever character, and no length quote before an integer.
        ("7F 00", (MalformedField, "Content-Type", 0)),
        ("7F FC 00", (MalformedField, "Content-Type", 0)),
        (b"\x7f" + DM_TEXT.encode() + b"\0", (MalformedField, "Content-Type", 0)),
        ("02 7F 00", (MalformedField, "Content-Type", 1)),
        ("1F 03 7F FC 00", (MalformedField, "Content-Type", 2)),
        (b"\x1f\x28\x7f" + DM_TEXT.encode() + b"\0", (MalformedField, "Content-Type", 2)),
        ("03 1F 01 58", (MalformedField, "Content-Type", 1)),
        ("1F 03 1F 01 58", (MalformedField, "Content-Type", 2)),
        ("1F 04 1F 80 01 58", (MalformedField, "Content-Type", 2)),
    ],
)
def test_malformed_content_type_is_refused(encoded: str | bytes, place: Place) -> None:
    """WAP-230 8.4.2.24: the media type may not be read beyond the value-length."""
    assert place_of(partial(decode_content_type, block(encoded)), PUSH_PDU) == place
    datagram = bytes([1, 6, len(block(encoded))]) + block(encoded) + PACKAGE
    kind, field, offset = place
    assert place_of(partial(decode_push, datagram), PUSH_PDU) == (kind, field, offset + 3)


LENGTH_QUOTED = "the integer has a length quote, a short length is expected"

FIELDS: list[tuple[str | bytes, list[Field]]] = [
    ("", []),
    ("AF 87", [Field(0, 2, 1, 0x2F, 7)]),
    ("AF 01 07 B4 84", [Field(0, 3, 1, 0x2F, b"\x07"), Field(3, 5, 1, 0x34, 4)]),
    ("92 04 6B 49 D1 EC", [Field(0, 6, 1, 0x12, b"\x6b\x49\xd1\xec")]),
    ("02 AF 87", [Field(0, 1, 2, None, 2), Field(1, 3, 2, 0x2F, 7)]),
    ("1F AF 87", [Field(0, 1, 31, None, 31), Field(1, 3, 31, 0x2F, 7)]),
    ("7F 20 AF 87", [Field(0, 2, 32, None, 32), Field(2, 4, 32, 0x2F, 7)]),
    ("7F FF AF 87 01", [Field(0, 2, 255, None, 255), Field(2, 4, 255, 0x2F, 7), Field(4, 5, 1, None, 1)]),
    ("7F 01 AF 87", [Field(0, 2, 1, None, 1), Field(2, 4, 1, 0x2F, 7)]),
    ("02 03 80 80", [Field(0, 1, 2, None, 2), Field(1, 2, 3, None, 3), Field(2, 4, 3, 0, 0)]),
    (b"X-A\0ok\0", [Field(0, 7, 1, "X-A", "ok")]),
    (b"\x02 A\0~\0\xaf\x80", [Field(0, 1, 2, None, 2), Field(1, 6, 2, " A", "~"), Field(6, 8, 2, 0x2F, 0)]),
    (b"A\0\x7f\0", [Field(0, 4, 1, "A", "")]),
    (b"A\0\x7f\xe4\0", [Field(0, 5, 1, "A", "ä")]),
    ("02 92 1F 01 07", [Field(0, 1, 2, None, 2), Field(1, 5, 2, 0x12, b"\x07")]),
    (b"A\0\0\xaf\x87", [Field(0, 3, 1, "A", ""), Field(3, 5, 1, 0x2F, 7)]),
    ("B1 7F 00 B1 00", [Field(0, 3, 1, 0x31, ""), Field(3, 5, 1, 0x31, b"")]),
]


@pytest.mark.parametrize(("encoded", "found"), FIELDS)
@pytest.mark.parametrize("before", [0, 1, 5])
def test_fields_are_decoded_with_their_page(encoded: str | bytes, found: list[Field], before: int) -> None:
    """WAP-230 8.4.2.6: names by number and by text, and code pages that hold until the next shift."""
    moved = [field._replace(start=field.start + before, end=field.end + before) for field in found]
    assert list(fields(b"\xd8" * before + block(encoded), before)) == moved


@pytest.mark.parametrize(
    ("encoded", "place", "problem"),
    [
        ("AF", (Truncated, "X-Wap-Application-Id", 1), "the value is missing"),
        ("92 04 6B 49", (Truncated, "Date", 1), "needs 4 octets, 2 are left"),
        ("A9 61", (Truncated, "User-Agent", 1), "the text has no NUL at its end"),
        ("CC", (Truncated, "field 0x4c", 1), "the value is missing"),
        ("02 AF", (Truncated, "field 0x2f on page 0x02", 2), "the value is missing"),
        ("AF 87 2D 61", (Truncated, "field name", 2), "the text has no NUL at its end"),
        ("41 00", (Truncated, "'A'", 2), "the value is missing"),
        ("41 0A 00 61", (Truncated, r"'A\n'", 3), "the text has no NUL at its end"),
        ("41 00 87", (MalformedField, "'A'", 2), "the value of a field named by text must be text"),
        ("41 00 01 07", (MalformedField, "'A'", 2), "the value of a field named by text must be text"),
        ("41 00 02 07", (Truncated, "'A'", 2), "needs 2 octets, 1 are left"),
        ("AF 87 00", (MalformedField, "code page", 2), "is 0, which is neither a field nor a page"),
        ("AF 87 7F", (Truncated, "code page", 2), "the page number is missing"),
        ("7F 00", (MalformedField, "code page", 0), "is 0, which is neither a field nor a page"),
        ("B1 1F 80 80 80 80 80 00", (MalformedField, "X-Wap-Initiator-URI", 2), "the uintvar has more than 5 octets"),
        ("A9 7F 61 00", (MalformedField, "User-Agent", 1), "the text has a quote before a character below 128"),
        ("41 00 7F 61 00", (MalformedField, "'A'", 2), "the text has a quote before a character below 128"),
        ("AF 1F 01 07", (MalformedField, "X-Wap-Application-Id", 1), LENGTH_QUOTED),
        ("AF 1F 00", (MalformedField, "X-Wap-Application-Id", 1), LENGTH_QUOTED),
        ("92 1F 04 6B 49 D1 EC", (MalformedField, "Date", 1), LENGTH_QUOTED),
        ("AF 87 8D 1F 80 01 10", (MalformedField, "Content-Length", 3), LENGTH_QUOTED),
    ],
)
def test_malformed_field_is_refused_with_offset(encoded: str, place: Place, problem: str) -> None:
    """WAP-230 8.4.2.6, 8.4.2.1, 8.4.1.2: by field, and by the octet of the datagram."""
    kind, field, offset = place
    datagram = octets("01 06") + bytes([1 + len(octets(encoded))]) + b"\xd8" + octets(encoded) + PACKAGE
    with pytest.raises(DecodeError) as caught:
        decode_push(datagram)
    assert caught.value.problem == problem
    assert place_of(partial(decode_push, datagram), PUSH_PDU) == (kind, field, offset + 4)
    assert caught.value.excerpt == octets(encoded)[offset : offset + 16]


def test_no_field_reads_past_the_border() -> None:
    """WAP-230 8.2.4.1: octets after the border are data, even if a field seems to continue there."""
    datagram = octets("01 06 04 D8 AF 02 07") + octets("07 00")
    assert place_of(partial(decode_push, datagram), PUSH_PDU) == (Truncated, "X-Wap-Application-Id", 5)
    text = octets("01 06 05 D8 AF 87 A9 61") + b"\0"
    assert place_of(partial(decode_push, text), PUSH_PDU) == (Truncated, "User-Agent", 7)


def test_nothing_past_the_border_is_a_header() -> None:
    """WAP-230 8.2.4.1."""
    push = decode_push(octets("01 06 01 D8 AF 87"))
    assert push.header.application_ids == ()
    assert push.body == octets("AF 87")


def test_content_length_does_not_cut_the_data() -> None:
    """6: Content-Length says 2, four octets of data follow."""
    assert decode_push(octets("01 06 05 D8 AF 87 8D 82") + PACKAGE).body == PACKAGE


@pytest.mark.parametrize(("length", "limit"), [(48, DEFAULT_MAX_HEADER_OCTETS), (3, 3), (49, 49), (200, 200)])
def test_headers_above_the_limit_are_refused(length: int, limit: int) -> None:
    """6.1: as many octets of headers as the limit pass, one more does not."""
    filler = octets("D8 AF 87") + b"\x05" * (length - 3)
    border = bytes([length]) if length < 128 else bytes([0x80 | length >> 7, length & 0x7F])
    passing = b"\x01\x06" + border + filler + PACKAGE
    assert decode_push(passing, max_header_octets=limit).body == PACKAGE
    with pytest.raises(PushHeaderTooLong) as caught:
        decode_push(passing, max_header_octets=limit - 1)
    assert (caught.value.octets, caught.value.most) == (length, limit - 1)


@pytest.mark.parametrize("limit", [10, 4_096, 65_507])
def test_datagram_above_the_limit_is_refused(limit: int) -> None:
    """4: as many octets as the limit pass, one more does not, whatever it is."""
    longest = octets("01 06 03 D8 AF 87") + bytes(limit - 6)
    assert len(decode_push(longest, max_octets=limit).body) == limit - 6
    for datagram in (longest + b"\0", bytes(limit + 1)):
        with pytest.raises(PushTooLong) as caught:
            decode_push(datagram, max_octets=limit)
        assert caught.value.most == limit


def test_datagram_limit_is_4096_by_default() -> None:
    """4: of the whole datagram."""
    assert decode_push(octets("01 06 03 D8 AF 87") + bytes(4_090)).body == bytes(4_090)
    with pytest.raises(PushTooLong):
        decode_push(octets("01 06 03 D8 AF 87") + bytes(4_091))


def test_header_limit_is_48_by_default() -> None:
    """6.1."""
    with pytest.raises(PushHeaderTooLong):
        decode_push(octets("01 06 31 D8 AF 87") + b"\x05" * 46 + PACKAGE)


def test_header_limit_does_not_count_padding() -> None:
    """6.1: the limit applies to the value of HeadersLen, not to its own octets."""
    assert decode_push(octets("01 06 80 80 80 80 03 D8 AF 87"), max_header_octets=3).body == b""


@pytest.mark.parametrize(
    ("datagram", "kind"),
    [
        (octets("01 07 00") + bytes(4_094), PushTooLong),  # length, then Type
        (octets("01 07 00"), NotAPush),  # Type, then HeadersLen
        (octets("01 07"), NotAPush),
        (octets("01 06 7F") + bytes(60), Truncated),  # HeadersLen, then the limit
        (octets("01 06 31") + bytes(49), PushHeaderTooLong),  # the limit, then syntax
        (octets("01 06 02 C4 00"), MalformedField),  # syntax, whatever the Content-Type
    ],
)
def test_first_failed_check_gives_the_error(datagram: bytes, kind: type[Exception]) -> None:
    """4, 6.1: length, Type, HeadersLen, limit, header syntax."""
    with pytest.raises(kind):
        decode_push(datagram)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        (Field(0, 2, 1, 0x2F, 7), True),
        (Field(0, 2, 1, "X-Wap-Application-Id", ""), True),
        (Field(0, 2, 1, "x-wap-APPLICATION-ID", ""), True),
        (Field(0, 2, 9, "X-Wap-Application-Id", ""), True),
        (Field(0, 2, 2, 0x2F, 7), False),
        (Field(0, 2, 1, 0x2E, 7), False),
        (Field(0, 1, 0x2F, None, 0x2F), False),
        (Field(0, 2, 1, "X-Wap-Application-Id ", ""), False),
    ],
)
def test_application_id_is_found_by_number_and_name(field: Field, told: bool) -> None:  # noqa: FBT001
    """6, WAP-230 8.4.2.6: by its number on the default page, or by its name without case."""
    assert is_application_id(field) is told


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ("D8", ()),
        ("D8 AF 87", (7,)),
        ("D8 B4 84 AF 87", (7,)),
        ("D8 AF 87 AF 80", (7, 0)),
        ("D8 02 AF 84 01 AF 87", (7,)),
        ("D8 AF 84 7F 02 AF 87", (4,)),
        ("D8 B1 02 AF 84 AF 87", (7,)),
        (b"\xd8x-wap-application-id\0" + URI.encode() + b"\0\xaf\x01\x07", (URI, b"\x07")),
    ],
)
def test_application_ids_are_decoded_in_order(headers: str | bytes, found: tuple[FieldValue, ...]) -> None:
    """6, WAP-230 8.4.2.6: all of them, in order; a field on another page is not one."""
    assert decode_header_block(block(headers)).application_ids == found


@pytest.mark.parametrize(
    ("value", "compared"),
    [
        (7, 7),
        (b"\x07", 7),
        (b"\x00\x07", 7),
        (URI, 7),
        (URI.upper(), 7),
        (0, 0),
        (4, 4),
        (b"\x90\x5c", 0x905C),
        (b"", ""),
        ("*", "*"),
        ("7", "7"),
        ("", ""),
        (f" {URI}", f" {URI}"),
        (f"{URI}\t", f"{URI}\t"),
        ("X-Wap-Application:wml.ua", "x-wap-application:wml.ua"),
    ],
)
def test_application_id_is_compared_in_one_form(value: FieldValue, compared: FieldValue) -> None:
    """6: short-integer, long-integer and URI are one value; nothing is stripped, and no octets are the empty text."""
    assert application_id(value) == compared


def test_field_has_a_name_for_display() -> None:
    assert field_name(1, 0x2F) == "X-Wap-Application-Id"
    assert field_name(1, 0x7E) == "field 0x7e"
    assert field_name(2, 0x2F) == "field 0x2f on page 0x02"


@pytest.mark.parametrize(
    ("name", "value", "encoded"),
    [
        (0, 0, "80 80"),
        (0x34, 4, "B4 84"),
        (0x0D, 256, "8D 02 01 00"),
        (0x29, "gw", "A9 67 77 00"),
        (0x31, b"", "B1 00"),
        (0x7F, "", "FF 7F 00"),
        ("A", "b", "41 00 62 00"),
        (" ", "ä", "20 00 7F E4 00"),
    ],
)
def test_field_is_encoded(name: int | str, value: FieldValue, encoded: str) -> None:
    """WAP-230 8.4.2.6."""
    assert encode_field(name, value) == octets(encoded)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A", 7),
        ("A", b""),
        ("", "a"),
        ("\x7fA", "a"),
        ("äA", "a"),
        ("\nA", "a"),
        (-1, 7),
        ("A\0", ""),
        (0x2F, bytes(31)),
    ],
)
def test_field_that_does_not_fit_is_not_encoded(name: int | str, value: FieldValue) -> None:
    """WAP-230 8.4.2.6: a field named by text needs a text, and a legal name; an integer has no length quote."""
    with pytest.raises(
        ValueError, match=r"field named by text needs|has 7 bits|no sign|holds a NUL|of at most 30 octets"
    ):
        encode_field(name, value)


@pytest.mark.parametrize("content_type", ["", "ü", "\x7fa/b"])
def test_content_type_that_needs_a_quote_is_not_encoded(content_type: str) -> None:
    """WAP-230 8.4.2.24: Extension-Media has no quote."""
    with pytest.raises(ValueError, match=r"a Content-Type begins with|begins with a control character"):
        encode_push(PACKAGE, content_type=content_type)


@pytest.mark.parametrize("tid", [-1, 256])
def test_push_that_does_not_fit_is_not_encoded(tid: int) -> None:
    with pytest.raises(ValueError, match=f"^TID is 0 to 255, not {tid}$"):
        encode_push(PACKAGE, tid=tid)


def test_cached_header_block_fails_at_its_own_offset() -> None:
    """A header block that is decoded twice has the same error twice, at the offset of its own datagram."""
    short, padded = octets("01 06 02 D8 AF"), octets("01 06 80 02 D8 AF")
    for _ in range(2):
        assert place_of(partial(decode_push, short), PUSH_PDU) == (Truncated, "X-Wap-Application-Id", 5)
        assert place_of(partial(decode_push, padded), PUSH_PDU) == (Truncated, "X-Wap-Application-Id", 6)


@pytest.mark.parametrize("number", [128, 200, 256])
def test_field_number_above_127_is_not_encoded(number: int) -> None:
    """WAP-230 8.4.2.6: 7 bits name a field."""
    with pytest.raises(ValueError, match=str(number)):
        encode_field(number, 1)


def test_quoted_length_of_0_is_not_text() -> None:
    """WAP-230 8.4.2.6: the empty text is a lone NUL or 7F 00."""
    with pytest.raises(MalformedField):
        decode_header_block(octets("D8 41 00 1F 00"))
