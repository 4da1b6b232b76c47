"""A datagram laid out for people: every octet in its place, under the name that its specification gives it."""

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dmnotid.cli.anatomy import COLOURS, PLAIN, Part, package_parts, place_of, push_parts, render
from dmnotid.cli.decode import Judge, Verdict, decide, describe
from dmnotid.errors import DecodeError, MalformedField, NotAPush, Truncated
from dmnotid.policy.addresses import Source
from dmnotid.policy.freshness import Clock
from dmnotid.policy.reception import Rules
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import ConnectionType, encode_notification
from dmnotid.wire.wsp import encode_push
from tests.proofs.test_properties import arguments, further, likely_headers, likely_packages, likely_pushes

SOURCE = Source("192.0.2.7", 40000)
PUSH = Judge(bare=False, rules=None, source=SOURCE, clock=Clock(0))
BARE = PUSH._replace(bare=True)
RULES = Rules(Servers([Server("dm", b"lantern-and-rope-0042", require_digest=False)]), max_header_octets=2000)
VERIFY = PUSH._replace(rules=RULES)


def encoded(made: dict[str, Any]) -> bytes:
    return encode_notification(**made)


good_packages = arguments.map(encoded)
good_pushes = st.builds(lambda package, more: encode_push(package, further=more), good_packages, further)
any_octets = (
    st.binary(max_size=200) | likely_pushes | likely_headers | likely_packages | likely_packages.map(encode_push)
)
hostile_text = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=20)


def lines_of(octets: bytes, judge: Judge) -> list[str]:
    return list(describe(octets, decide(octets, judge), judge))


def laid_out(octets: bytes, verdict: Verdict) -> list[Part]:
    parts = push_parts(octets)
    if verdict.body_offset is not None:
        parts += package_parts(octets[verdict.body_offset :], verdict.body_offset)
    assert all(part.octets == octets[part.start : part.end] for part in parts)
    return parts


def end_of(parts: list[Part]) -> int:
    """Walk over parts: without a gap, and without an overlap but for VER, OC and RESERVED, which share octets."""
    end = 0
    for part in parts:
        shared = 1 if part.name in {"OC", "RESERVED"} and part.end - part.start <= 2 else 0
        assert part.start == end - shared, part
        assert part.end >= part.start
        end = part.end
    return end


ROW = re.compile(r" {2,}(?:(\d+)(?:-(\d+))?)?  ((?:[0-9a-f]{2} ?)*)")


def octets_shown(lines: list[str]) -> bytes:
    """Read the octets back from the hex of the lines, each at the offset of its line."""
    found: dict[int, int] = {}
    at = 0
    for line in lines:
        row = ROW.match(line)
        if row is None:
            continue
        first, _, shown = row.groups()
        at = at if first is None else int(first)
        for octet in bytes.fromhex(shown):
            assert found.setdefault(at, octet) == octet, line
            at += 1
    assert sorted(found) == list(range(len(found)))
    return bytes(found[at] for at in sorted(found))


@given(any_octets, st.sampled_from([PUSH, BARE, VERIFY]))
@example(b"", PUSH)
@example(b"", BARE)
@example(b"\x01\x06\x01\xd8", PUSH)
def test_any_octets_give_printable_lines_and_a_verdict(octets: bytes, judge: Judge) -> None:
    """Nothing raises, nothing that a terminal acts on gets through, and the last line is the verdict."""
    lines = lines_of(octets, judge)
    assert all(line.isprintable() for line in lines)
    discard = decide(octets, judge).discard
    assert lines[-1].startswith("accepted: " if discard is None else f"discarded: {discard.reason}")
    assert octets.startswith(octets_shown(lines[:-1]))


@given(any_octets)
def test_parts_of_any_octets_leave_no_gap(octets: bytes) -> None:
    assert end_of(laid_out(octets, decide(octets, PUSH))) <= len(octets)
    assert end_of(package_parts(octets, 0)) <= len(octets)


@given(good_pushes | good_packages.map(encode_push))
def test_parts_of_an_accepted_datagram_cover_all_octets(octets: bytes) -> None:
    verdict = decide(octets, VERIFY)
    if verdict.body_offset is None:  # a generated header that names another application
        return
    assert end_of(laid_out(octets, verdict)) == len(octets)
    assert octets_shown(lines_of(octets, VERIFY)[:-1]) == octets


@given(good_packages)
def test_parts_of_a_bare_package_cover_all_octets(octets: bytes) -> None:
    lines = lines_of(octets, BARE)
    assert lines[-1].startswith("accepted: ")
    assert octets_shown(lines[:-1]) == octets


@given(good_packages, st.binary(min_size=1, max_size=20))
def test_trailing_octets_are_shown(package: bytes, more: bytes) -> None:
    octets = encode_push(package) + more
    parts = laid_out(octets, decide(octets, PUSH))
    assert end_of(parts) == len(octets)
    assert parts[-1] == Part(len(octets) - len(more), more, "trailing octets", "belong to no Option")


@pytest.mark.parametrize(
    "octets", ["010703d8af8720000001", "000681eeb80ae8ce", "010602d800aabbcc", "010603d8af8720800001100564"]
)
def test_octets_after_the_problem_are_shown(octets: str) -> None:
    datagram = bytes.fromhex(octets)
    assert octets_shown(lines_of(datagram, PUSH)[:-1]) == datagram


@given(any_octets | good_pushes.flatmap(lambda octets: st.integers(0, len(octets)).map(lambda cut: octets[:cut])))
def test_place_of_a_problem_is_in_the_datagram(octets: bytes) -> None:
    """The octets in the error, up to the end of the slice it read, are at the offset in the verdict."""
    verdict = decide(octets, VERIFY)
    last = lines_of(octets, VERIFY)[-1]
    if not isinstance(verdict.discard, DecodeError):
        assert f" of {len(octets)}:" not in last
        return
    place = place_of(verdict.discard, verdict.body_offset or 0)
    assert place is not None
    assert octets[place:].startswith(verdict.discard.excerpt)
    assert f" at octet {place} of {len(octets)}: " in last


def test_place_is_counted_from_the_datagram() -> None:
    assert place_of(Truncated("Push PDU", "HeadersLen", 2, "0"), 6) == 2
    assert place_of(MalformedField("DM Notification", "SERVER-ID", 6, "is empty"), 6) == 12
    assert place_of(NotAPush(7), 0) is None


EVERYTHING = encode_push(
    encode_notification(
        0xC350,
        server_id="münchen.example",
        preferred_connections=[ConnectionType.MOBILE, ConnectionType.ANY],
        requested_mos=[1, 65535],
        cached_mos=[(3, b"\xde\xad\xbe\xef"), (4, bytes(4))],
        sent_at=1_735_689_600,
        unknown_options=[(9, b"\x00\xff"), (10, b"")],
        reserved=0x55,
    ),
    tid=0x2A,
    content_type="application/vnd.syncml.dm.notification",
    further=[(0x34, 1), ("X-Note", "hello"), (0x0D, b"\x01\x2c"), (0x11, 3), b"\x7f\x02\xaf\x81"],
)


def test_names_are_those_of_the_specifications() -> None:
    """Octet ranges, octets, names and values of every kind of part."""
    parts = laid_out(EVERYTHING, decide(EVERYTHING, VERIFY))
    assert [(part.name, part.value) for part in parts] == [
        ("TID", "42"),
        ("Type", "Push (0x06)"),
        ("HeadersLen", "66"),
        ("Content-Type", "'application/vnd.syncml.dm.notification'"),
        ("X-Wap-Application-Id", "x-wap-application:syncml.dm (7)"),
        ("Push-Flag", "1"),
        ("'X-Note'", "'hello'"),
        ("Content-Length", "0x012c"),
        ("field 0x11", "3"),
        ("code page", "2"),
        ("field 0x2f on page 0x02", "1"),
        ("VER", "2"),
        ("OC", "7 Options"),
        ("RESERVED", "85"),
        ("NOTIFICATION-ID", "50000"),
        ("Option", "Delta 1, Length 16: Option Number 1"),
        ("SERVER-ID", "'münchen.example'"),
        ("Option", "Delta 1, Length 2: Option Number 2"),
        ("PREFERRED-CON-TYPE", "mobile, any"),
        ("Option", "Delta 1, Length 4: Option Number 3"),
        ("REQ-MO", "1, 65535"),
        ("Option", "Delta 1, Length 12: Option Number 4"),
        ("REQ-MO-CV", "3:deadbeef, 4:00000000"),
        ("Option", "Delta 1, Length 36: Option Number 5"),
        ("SHA256-DIGEST time", "2025-01-01T00:00:00Z (1735689600)"),
        ("SHA256-DIGEST digest", "SHA-256"),
        ("Option", "Delta 4, Length 2: Option Number 9"),
        ("Option 9", "0x00ff"),
        ("Option", "Delta 1, Length 0: Option Number 10"),
        ("Option 10", "(empty)"),
    ]


def test_line_has_range_octets_name_and_value() -> None:
    server_id = bytes(range(1, 11))
    parts = [Part(0, b"\0", "TID", "0"), Part(1, server_id, "SERVER-ID", "'x'"), Part(11, b"", "REQ-MO", "(empty)")]
    assert render(parts) == [
        "        0  00                        TID        0",
        "     1-10  01 02 03 04 05 06 07 08   SERVER-ID  'x'",
        "           09 0a",
        "                                     REQ-MO     (empty)",
    ]


def test_octets_are_dimmed() -> None:
    (line,) = render([Part(0, b"\x01", "TID", "1")], COLOURS)
    assert line.startswith("        0  \x1b[2m01 ")
    assert line.endswith("\x1b[0m  TID  1")
    assert "".join(render([Part(0, b"\x01", "TID", "1")], PLAIN)).isprintable()


def test_empty_datagram_has_no_parts() -> None:
    assert push_parts(b"") == []
    assert package_parts(b"", 6) == []
    assert render([]) == []


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("1002 0103", "mobile, wireline"),
        ("1003 020400", "wireless, 4?, any"),
        ("1000", "(empty)"),
    ],
)
def test_unknown_connection_type_has_a_question_mark(value: str, wanted: str) -> None:
    octets = bytes.fromhex("20800001" + "2" + value[1:])
    assert package_parts(octets, 0)[-1][2:] == ("PREFERRED-CON-TYPE", wanted)


@pytest.mark.parametrize(
    ("type_", "wanted"), [("06", "Push (0x06)"), ("07", "not Push (0x07)"), ("40", "not Push (0x40)")]
)
def test_other_pdu_type_is_named(type_: str, wanted: str) -> None:
    octets = bytes.fromhex(f"01{type_}")
    assert push_parts(octets)[1] == Part(1, octets[1:], "Type", wanted)


@pytest.mark.parametrize(
    ("block", "wanted"),
    [
        ("c4", "0x44"),
        ("020158", "application/vnd.syncml.dm.notification (0x58)"),
        ("746578742f706c61696e00", "'text/plain'"),
        ("02d8ea", "application/vnd.syncml.dm.notification (0x58)"),
    ],
)
def test_content_type_is_named(block: str, wanted: str) -> None:
    octets = bytes.fromhex(block)
    assert push_parts(bytes([1, 6, len(octets)]) + octets)[3] == Part(3, octets, "Content-Type", wanted)


@given(hostile_text)
@example("\x1b]0;owned\x07\x1b[2J")
@example("\x9b31m\r\n\x08")
def test_hostile_header_text_is_escaped(text: str) -> None:
    # The first character of a text is never a control character.
    text = "A" + text
    push = encode_push(encode_notification(1), further=[(0x31, text), (text, text)])
    lines = lines_of(push, VERIFY)
    assert all(line.isprintable() for line in lines)
    assert any(repr(text) in line for line in lines)


@given(st.binary(min_size=1, max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "replace")))
@example(b"\x1b]0;owned\x07")
@example("\u202egnp.exe\u2028".encode())
@example(b"\xed\xa0\x80")
def test_hostile_server_id_is_escaped(server_id: bytes) -> None:
    package = bytes.fromhex("20800001") + (0x1000 | len(server_id)).to_bytes(2, "big") + server_id
    for judge in (PUSH, VERIFY):
        lines = lines_of(encode_push(package), judge)
        assert all(line.isprintable() for line in lines)
        assert any("SERVER-ID" in line for line in lines)
