"""Writes the vectors beside it (*.jsonl). The octets are put together here by struct and hashlib alone.

    python tests/proofs/vectors/make.py

Nothing of dmnotid is imported: what this writes and what the decoder reads come from the specification on two ways.
A verdict is written down by hand in its row, never computed.
"""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]

HERE = Path(__file__).parent

AT = 1_800_000_000
"""The clock of receive.jsonl and rules.jsonl."""

SENT = AT - 20
DAY, SKEW = 86_400, 600
RELEASED = SENT - 300 * DAY

HARBOUR, HARBOUR_SECRET = "dm.harbour.example", "lantern-and-rope-0042"
GULL, GULL_SECRET = "möwe.example", "seven gulls over the pier"
GULL_NFD = "mo\u0308we.example"
SERVERS = {HARBOUR: {"secret_text": HARBOUR_SECRET}, GULL: {"secret_text": GULL_SECRET}}

HEADERS = "D8 AF 87"
KANNEL = "D8 AF 87 8D 90 C3 93"
DM_TEXT = b"application/vnd.syncml.dm.notification"
URI_TEXT = b"x-wap-application:syncml.dm"
NAME_TEXT = b"X-Wap-Application-Id"


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


def push(package: bytes, headers: str | bytes = HEADERS, *, length: str = "", tid: int = 1, pdu_type: int = 6) -> bytes:
    """TID, Type, HeadersLen (one octet unless `length` says otherwise, in hex), headers, package."""
    block = octets(headers) if isinstance(headers, str) else headers
    return bytes([tid, pdu_type]) + (octets(length) or bytes([len(block)])) + block + package


def option(delta: int, value: bytes | str, *, length: int | None = None) -> bytes:
    """Delta(4) Length(12) Value."""
    value = octets(value) if isinstance(value, str) else value
    return struct.pack(">H", delta << 12 | (len(value) if length is None else length)) + value


def package(
    notification_id: int, *options: bytes, count: int | None = None, version: int = 2, reserved: int = 0
) -> bytes:
    """VER(4) OC(5) RESERVED(7), NOTIFICATION-ID, the Options; OC tells how many unless `count` does."""
    count = len(options) if count is None else count
    return struct.pack(">HH", version << 12 | count << 7 | reserved, notification_id) + b"".join(options)


def signed(
    notification_id: int,
    *options: bytes,
    delta: int,
    after: tuple[bytes, ...] = (),
    sent_at: int = SENT,
    secret: str = HARBOUR_SECRET,
    reserved: int = 0,
) -> bytes:
    """Make a package with a SHA256-DIGEST behind `options` and before the Options `after`."""
    zero = option(delta, struct.pack(">I", sent_at) + bytes(32))
    bare = package(notification_id, *options, zero, *after, reserved=reserved)
    at = len(bare) - sum(map(len, after)) - 32
    return bare[:at] + hashlib.sha256(secret.encode() + bare).digest() + bare[at + 32 :]


def extended(forgeable: bytes, suffix: bytes, secret: str = HARBOUR_SECRET) -> bytes:
    """Extend a signed package (the digest in its last 32 octets) as a length extension does: the digest fits, too."""
    zero = forgeable[:-32] + bytes(32)
    hashed = len(secret.encode()) + len(zero)
    glue = b"\x80" + bytes((55 - hashed) % 64) + struct.pack(">Q", hashed * 8)
    digest = hashlib.sha256(secret.encode() + zero + glue + suffix).digest()
    return forgeable[:-32] + digest + glue + suffix


def accept(body_offset: int, notification_id: int, **facts: object) -> Row:
    """Every fact of an accepted package; those not given are what they are where the Option is absent."""
    return {
        "verdict": "accept",
        "reason": None,
        "body_offset": body_offset,
        "notification_id": notification_id,
        "server_id": None,
        "preferred_connections": [],
        "requested_mos": [],
        "cached_mos": [],
        "sent_at": None,
        "signed": False,
    } | facts


def discard(reason: str) -> Row:
    return {"verdict": "discard", "reason": reason}


ACCEPTED: Row = {"verdict": "accept", "reason": None}


def row(name: str, note: str, datagram: bytes, decode: Row, receive: Row | str | None = None, **rules: object) -> Row:
    """One vector; a `receive` given as a word is a reason."""
    found: Row = {"name": name, "hex": datagram.hex(), "note": note} | rules | {"decode": decode}
    if receive is not None:
        found["receive"] = discard(receive) if isinstance(receive, str) else receive
    return found


CP = b"\x1f\x2d\xb6\x91\x81\x92" + b"0F" * 20 + b"\0"
"""A provisioning document's Content-Type: application/vnd.wap.connectivity-wbxml, SEC=USERPIN, MAC."""


def wsp_discards() -> Iterator[Row]:
    """Pushes that the WSP codec or the routing ends (WAP-230; 6, 6.1)."""
    bare = package(1)
    for name, reason, note, datagram in [
        ("empty-datagram", "truncated", "no octet at all", b""),
        ("tid-alone", "truncated", "", octets("2A")),
        ("no-headers-len", "truncated", "", octets("2A 06")),
        ("type-alone-not-push", "not-a-push", "a Reply, cut behind its Type", octets("2A 04")),
        ("confirmed-push", "not-a-push", "asks for an answer; none is given", push(bare, pdu_type=7)),
        ("type-connect", "not-a-push", "Type comes before all else: its HeadersLen is wrong too", octets("2A 01 7F")),
        ("headers-len-0", "truncated", "a Content-Type must follow", push(bare, "", length="00")),
        ("headers-len-padded-0", "truncated", "", push(bare, "", length="80 00")),
        ("headers-len-beyond", "truncated", "127 octets of headers in a short datagram", push(bare, length="7F")),
        ("headers-len-cut", "truncated", "a uintvar that goes on at the end", octets("2A 06 80 80")),
        ("headers-len-6-octets", "malformed-field", "", push(bare, length="80 80 80 80 80 03")),
        ("headers-len-33-bits", "malformed-field", "", push(bare, length="90 80 80 80 00")),
        ("headers-len-32-bits", "truncated", "2^32-1, the highest legal one", push(bare, length="8F FF FF FF 7F")),
        ("octets-4097", "push-too-long", "one octet above the limit", push(bare + bytes(4_087))),
        ("octets-4097-not-a-push", "push-too-long", "the length comes before Type", octets("2A 07") + bytes(4_095)),
        ("headers-49", "push-header-too-long", "one octet above the limit", push(bare, filled(49))),
        ("headers-49-malformed", "push-header-too-long", "the limit comes before syntax", push(bare, bytes(49))),
        ("headers-beyond-and-49", "truncated", "HeadersLen comes before the limit", push(bare, length="49")),
        ("content-type-length-overruns", "truncated", "", push(bare, "04 D8 AF 87")),
        ("content-type-length-only", "truncated", "value-length 0: no media", push(bare, "00 AF 87")),
        ("content-type-no-nul", "truncated", "", push(bare, b"application/x")),
        ("content-type-empty-integer", "malformed-field", "", push(bare, "01 00 AF 87")),
        ("content-type-quote-cut", "truncated", "31 and nothing behind", push(bare, "1F")),
        ("field-value-missing", "truncated", "", push(bare, "D8 AF")),
        ("field-value-overruns", "truncated", "into the package: not over the border", push(bare, "D8 AF 02 07")),
        ("field-text-no-nul", "truncated", "the NUL in the package is behind the border", push(bare, "D8 AF 78 2D")),
        ("field-name-no-nul", "truncated", "", push(bare, b"\xd8X-Wap")),
        ("field-name-no-value", "truncated", "", push(bare, b"\xd8X-A\0")),
        ("field-name-integer-value", "malformed-field", "text names take text", push(bare, b"\xd8X-A\0\x87")),
        ("field-name-0", "malformed-field", "", push(bare, "D8 00 AF 87")),
        ("page-number-missing", "truncated", "", push(bare, "D8 AF 87 7F")),
        ("page-number-0", "malformed-field", "", push(bare, "D8 7F 00 AF 87")),
        ("malformed-and-other-content", "malformed-field", "syntax comes before Content-Type", push(bare, "C4 00")),
        ("content-type-dm-1-2", "content-type-mismatch", "0x44", push(octets("00" * 16 + "02 F8"), "C4 AF 87")),
        ("content-type-ds", "content-type-mismatch", "0x4E, data synchronisation", push(bare, "CE AF 87")),
        ("content-type-wbxml", "content-type-mismatch", "0x34, a gateway's session request", push(bare, "B4 AF 87")),
        ("content-type-0x0310", "content-type-mismatch", "two octets", push(bare, "03 02 03 10 AF 87")),
        ("content-type-0x5800", "content-type-mismatch", "0x58 must be all", push(bare, "03 02 58 00 AF 87")),
        ("content-type-mms-text", "content-type-mismatch", "", push(bare, b"application/x-mms\0\xaf\x87")),
        ("content-type-prefix-text", "content-type-mismatch", "", push(bare, DM_TEXT + b"s\0\xaf\x87")),
        ("content-type-text-nbsp", "content-type-mismatch", "U+00A0", push(bare, DM_TEXT + b"\xa0\0\xaf\x87")),
        ("content-type-empty-text", "malformed-field", "no quote here", push(bare, "7F 00 AF 87")),
        ("content-type-text-quote", "malformed-field", "", push(bare, b"\x7f" + DM_TEXT + b"\0\xaf\x87")),
        ("content-type-quote-252", "malformed-field", "not even before 252", push(bare, "7F FC 00 AF 87")),
        ("content-type-general-quote", "malformed-field", "", push(bare, "1F 03 7F FC 00 AF 87")),
        ("content-type-integer-length-quote", "malformed-field", "", push(bare, "03 1F 01 58 AF 87")),
        ("content-type-both-length-quotes", "malformed-field", "", push(bare, "1F 03 1F 01 58 AF 87")),
        ("application-id-length-quote", "malformed-field", "", push(bare, "D8 AF 1F 01 07")),
        ("application-id-length-quote-0", "malformed-field", "", push(bare, "D8 AF 1F 00")),
        ("application-id-uri-quoted", "malformed-field", "", push(bare, b"\xd8\xaf\x7f" + URI_TEXT + b"\0")),
        ("application-id-name-quoted", "malformed-field", "", push(bare, named(b"\x7fsyncml.dm"))),
        ("date-length-quote", "malformed-field", "skipped by its class", push(bare, "D8 92 1F 04 6B 49 D1 EC AF 87")),
        ("content-length-length-quote", "malformed-field", "", push(bare, "D8 AF 87 8D 1F 01 10")),
        ("quote-before-a", "malformed-field", "in a skipped header", push(bare, "D8 A9 7F 61 00 AF 87")),
        ("quote-before-quote", "malformed-field", "", push(bare, "D8 A9 7F 7F 80 00 AF 87")),
        ("quote-before-31", "malformed-field", "", push(bare, "D8 A9 7F 1F 78 00 AF 87")),
        ("quote-on-page-2", "malformed-field", "on any page", push(bare, "D8 02 A9 7F 61 00 01 AF 87")),
        ("content-type-and-id-other", "content-type-mismatch", "Content-Type comes first", push(bare, "AE AF 82")),
        (
            "content-type-cp",
            "content-type-mismatch",
            "SEC and MAC parameters behind a length quote",
            push(b"\x03\x0b", CP),
        ),
        (
            "content-type-mail",
            "content-type-mismatch",
            "with a long Application-ID",
            push(b"\x03", "03 02 03 0A AF 02 90 5C"),
        ),
        ("content-type-rights", "content-type-mismatch", "0x4B, Application-ID 8", push(b"\x03\x0e", "CB AF 88")),
        ("content-type-lwm2m", "content-type-mismatch", "0x44 in a quoted length, 0x1A", push(bare, "1F 01 C4 AF 9A")),
        (
            "content-type-si",
            "content-type-mismatch",
            "with an initiator URI",
            push(b"\2\5", b"\xae\xb1sender\0\xaf\x82"),
        ),
        ("content-type-other-no-body", "content-type-mismatch", "no octet behind the headers", push(b"", "BE AF 84")),
        ("headers-len-all-ff", "malformed-field", "five octets that go on", octets("FF 06 FF FF FF FF FF")),
        ("application-id-none", "application-id-missing", "", push(bare, "D8")),
        ("application-id-other-field", "application-id-missing", "0x2E", push(bare, "D8 AE 87")),
        ("application-id-page-2", "application-id-missing", "a short shift", push(bare, "D8 02 AF 87")),
        ("application-id-page-0x20", "application-id-missing", "", push(bare, "D8 7F 20 AF 87")),
        ("application-id-page-holds", "application-id-missing", "", push(bare, "D8 03 B0 81 AF 87 AF 87")),
        ("application-id-any", "application-id-mismatch", "0, any application", push(bare, "D8 AF 80")),
        ("application-id-any-text", "application-id-mismatch", "*", push(bare, "D8 AF 2A 00")),
        ("application-id-mms", "application-id-mismatch", "4", push(bare, "D8 AF 84")),
        ("application-id-0x0107", "application-id-mismatch", "two octets", push(bare, "D8 AF 02 01 07")),
        ("application-id-no-octets", "application-id-mismatch", "the empty text", push(bare, "D8 AF 00")),
        ("application-id-empty-text", "application-id-mismatch", "", push(bare, "D8 AF 7F 00")),
        ("application-id-empty-twice", "application-id-mismatch", "one value", push(bare, "D8 AF 00 AF 7F 00")),
        ("application-id-and-empty", "application-id-conflict", "", push(bare, "D8 AF 87 AF 00")),
        ("application-id-uri-space", "application-id-mismatch", "", push(bare, b"\xd8\xaf" + URI_TEXT + b" \0")),
        ("application-id-digit-text", "application-id-mismatch", "the text 7", push(bare, "D8 AF 37 00")),
        ("application-id-uri-other", "application-id-mismatch", "", push(bare, b"\xd8\xaf" + URI_TEXT + b"s\0")),
        ("application-id-conflict", "application-id-conflict", "7 first", push(bare, "D8 AF 87 AF 84")),
        ("application-id-conflict-last", "application-id-conflict", "7 last", push(bare, "D8 AF 80 AF 87")),
        ("application-id-conflict-other", "application-id-conflict", "neither is 7", push(bare, "D8 AF 82 AF 84")),
        ("application-id-conflict-name", "application-id-conflict", "", push(bare, named(b"x", b"\xd8\xaf\x87"))),
        ("application-id-and-package", "application-id-missing", "and VER 1 too", push(package(1, version=1), "D8")),
    ]:
        yield row(name, note, datagram, discard(reason))


def filled(length: int) -> bytes:
    """Headers of this many octets: Content-Type, Application-ID, and a text field named P that fills the rest."""
    start = b"\xd8\xaf\x87P\0"
    return start + b"p" * (length - len(start) - 1) + b"\0"


def named(value: bytes, start: bytes = b"\xd8", name: bytes = NAME_TEXT) -> bytes:
    return start + name + b"\0" + value + b"\0"


def wsp_accepts() -> Iterator[Row]:
    """Every legal way to write what matters, and what gateways add."""
    table: list[tuple[str, str, str | bytes]] = [
        ("minimal", "the smallest push", HEADERS),
        ("kannel", "Content-Length and Encoding-Version behind", KANNEL),
        ("content-length-wrong", "says 5; the body is not cut by it", "D8 AF 87 8D 85"),
        ("content-length-long", "as long-integer", "D8 AF 87 8D 02 01 00"),
        ("content-type-01-d8", "general form", "01 D8 AF 87"),
        ("content-type-02-01-58", "general form, long-integer", "02 01 58 AF 87"),
        ("content-type-03-02-00-58", "a padded long-integer", "03 02 00 58 AF 87"),
        ("content-type-charset", "parameter charset=utf-8", "03 D8 81 EA AF 87"),
        ("content-type-quoted-length", "length quote", "1F 01 D8 AF 87"),
        ("content-type-quoted-padded-length", "length quote, padded uintvar", "1F 80 03 D8 81 EA AF 87"),
        ("content-type-odd-parameters", "skipped by the value-length", "04 D8 00 00 00 AF 87"),
        ("content-type-text", "", DM_TEXT + b"\0\xaf\x87"),
        ("content-type-text-tab", "SP and HT are cut off", b" " + DM_TEXT + b"\t;q=1\0\xaf\x87"),
        ("content-type-text-upper", "compared without case", DM_TEXT.upper() + b"\0\xaf\x87"),
        ("content-type-text-parameter", "cut at the semicolon", DM_TEXT + b" ;q=1\0\xaf\x87"),
        ("content-type-text-general", "31 and 41 octets", b"\x1f\x29" + DM_TEXT + b"\0\x81\xea\xaf\x87"),
        ("application-id-long", "", "D8 AF 01 07"),
        ("application-id-long-padded", "", "D8 AF 02 00 07"),
        ("application-id-uri", "", b"\xd8\xaf" + URI_TEXT + b"\0"),
        ("application-id-uri-upper", "", b"\xd8\xaf" + URI_TEXT.upper() + b"\0"),
        ("application-id-twice", "the same, in two forms", "D8 AF 87 AF 01 07"),
        ("application-id-thrice", "uri, long and short", b"\xd8\xaf" + URI_TEXT + b"\0\xaf\x01\x07\xaf\x87"),
        ("application-id-last", "behind Push-Flag and Date", "D8 B4 84 92 04 6B 49 D1 EC AF 87"),
        ("application-id-page-1", "shift to the page that is current", "D8 01 AF 87"),
        ("application-id-page-7f-01", "the same in two octets", "D8 7F 01 AF 87"),
        ("application-id-page-and-back", "", "D8 7F 20 AF 84 01 AF 87"),
        ("application-id-both-pages", "AF on page 3 is another field", "D8 AF 87 03 AF 84"),
        ("page-shift-last", "a shift and then the end", "D8 AF 87 05"),
        ("authorization", "Basic, leaked from the gateway's HTTP side", "D8 87 09 80 66 6F 6F 00 62 61 72 00 AF 87"),
        ("user-agent", "text", b"\xd8\xa9gw/1.0\0\xaf\x87"),
        ("quoted-text", "a character above 127 behind the quote", "D8 A9 7F FC 62 00 AF 87"),
        ("quoted-empty-text", "7F 00", "D8 B1 7F 00 AF 87"),
        ("value-of-no-octets", "value-length 0 in a field of no interest", "D8 B1 00 AF 87"),
        ("value-with-fields-inside", "AF 84 within a value is no field", "D8 B1 02 AF 84 AF 87"),
        ("value-quoted-length", "", "D8 B1 1F 02 AF 84 AF 87"),
        ("length-quote-on-page-2", "0x12 is Date on page 1 alone", "D8 02 92 1F 01 07 01 AF 87"),
        ("field-unknown", "0x7F", "D8 FF 85 AF 87"),
        ("field-named-by-text", "", b"\xd8X-Gateway\0north\0\xaf\x87"),
        ("field-named-empty-text", "", b"\xd8X-Gateway\0\x7f\0\xaf\x87"),
        ("field-named-lone-nul", "the empty text of some gateways", b"\xd8X-Gateway\0\0\xaf\x87"),
        ("headers-48", "the limit", filled(48)),
    ]
    for name, note, headers in table:
        block = octets(headers) if isinstance(headers, str) else headers
        yield row(name, note, push(package(0x51), block), accept(3 + len(block), 0x51))
    yield row("headers-len-padded", "80 03", push(package(2), length="80 03"), accept(7, 2))
    yield row("headers-len-5-octets", "", push(package(2), length="80 80 80 80 03"), accept(10, 2))
    yield row("tid-0", "", push(package(3), tid=0), accept(6, 3))
    yield row("tid-255", "", push(package(3), tid=255), accept(6, 3))
    limit = "48 octets are the default limit: the name and the URI together take 50"
    by_name = named(URI_TEXT)
    yield row("application-id-name-and-uri", limit, push(package(4), by_name), discard("push-header-too-long"))
    short = named(b"7")
    yield row(
        "application-id-name-digit", "text is no integer", push(package(4), short), discard("application-id-mismatch")
    )


def package_discards() -> Iterator[Row]:
    """Packages that the DM codec ends (5, 5.1, 5.2, 5.3)."""
    name = option(1, b"a")
    valid = signed(9, delta=5)
    for title, reason, note, body in [
        ("body-empty", "truncated", "", b""),
        ("body-1-octet", "truncated", "VER alone", octets("20")),
        ("body-3-octets", "truncated", "", octets("20 00 00")),
        ("version-1", "unsupported-version", "", package(1, version=1)),
        ("version-3", "unsupported-version", "", package(1, version=3)),
        ("version-0-one-octet", "unsupported-version", "VER comes before the length", octets("00")),
        ("version-15-and-trailing", "unsupported-version", "VER comes first", package(1, version=15) + b"x"),
        ("dm-1-3", "unsupported-version", "shares 0x58 and 7", octets("00" * 16 + "03 38 00 00 00 01 04 64 65 6D 6F")),
        (
            "header-2-octets",
            "truncated",
            "no NOTIFICATION-ID, as if VER and OC were all",
            octets("20 80") + option(1, b"ab"),
        ),
        ("oc-2-of-1", "truncated", "", package(1, name, count=2)),
        ("oc-31-of-0", "truncated", "", package(1, count=31)),
        ("oc-0-of-1", "trailing-octets", "", package(1, name, count=0)),
        ("oc-1-of-2", "trailing-octets", "", package(1, name, option(1, "01"), count=1)),
        ("one-octet-more", "trailing-octets", "", package(1) + b"\0"),
        ("option-header-cut", "truncated", "", package(1, count=1) + b"\x10"),
        ("option-value-overruns", "truncated", "", package(1, option(1, b"ab", length=3))),
        ("option-value-4095", "truncated", "the highest Length", package(1, option(1, b"ab", length=0xFFF))),
        ("option-number-0", "malformed-field", "", package(1, option(0, b"a"))),
        ("option-delta-0", "malformed-field", "SERVER-ID twice", package(1, name, option(0, b"b"))),
        ("option-delta-0-overruns", "malformed-field", "the Delta comes first", package(1, option(0, b"", length=9))),
        ("server-id-empty", "malformed-field", "", package(1, option(1, b""))),
        ("server-id-overlong", "malformed-field", "C0 AF", package(1, option(1, "C0 AF"))),
        ("server-id-surrogate", "malformed-field", "U+D800", package(1, option(1, "ED A0 80"))),
        ("server-id-cut-character", "malformed-field", "", package(1, option(1, "61 C3"))),
        ("server-id-above-10ffff", "malformed-field", "", package(1, option(1, "F4 90 80 80"))),
        ("server-id-latin-1", "malformed-field", "", package(1, option(1, "6D F6 77 65"))),
        ("server-id-bom", "malformed-field", "", package(1, option(1, "EF BB BF 61"))),
        ("server-id-bom-inside", "malformed-field", "", package(1, option(1, "61 EF BB BF"))),
        ("server-id-nul", "malformed-field", "", package(1, option(1, b"a\0"))),
        ("server-id-line-feed", "malformed-field", "", package(1, option(1, b"a\nb"))),
        ("server-id-del", "malformed-field", "", package(1, option(1, b"a\x7f"))),
        ("server-id-c1", "malformed-field", "U+0085", package(1, option(1, "61 C2 85"))),
        ("server-id-line-separator", "malformed-field", "U+2028", package(1, option(1, "61 E2 80 A8"))),
        ("server-id-paragraph", "malformed-field", "U+2029", package(1, option(1, "61 E2 80 A9"))),
        ("req-mo-1", "malformed-field", "", package(1, option(3, "07"))),
        ("req-mo-5", "malformed-field", "", package(1, option(3, "00 01 00 02 00"))),
        ("req-mo-cv-5", "malformed-field", "", package(1, option(4, "00 01 AA BB CC"))),
        ("req-mo-cv-8", "malformed-field", "", package(1, option(4, "00 01 AA BB CC DD 00 02"))),
        ("digest-0", "malformed-field", "", package(1, option(5, b""))),
        ("digest-32", "malformed-field", "without the time", package(1, option(5, bytes(32)))),
        ("digest-35", "malformed-field", "", package(1, option(5, bytes(35)))),
        ("digest-37", "malformed-field", "", package(1, option(5, bytes(37)))),
        ("bad-option-then-trailing", "malformed-field", "the Option comes first", package(1, option(3, "07")) + b"x"),
        ("bad-option-then-cut", "malformed-field", "", package(1, option(1, b"\xff"), option(9, b"", length=1))),
        ("signed-then-octet", "trailing-octets", "", valid + b"\0"),
        ("signed-cut", "truncated", "", valid[:-1]),
        ("length-extension", "trailing-octets", "the digest fits", extended(valid, b"\x10\x01a")),
        ("length-extension-empty", "trailing-octets", "padding alone", extended(valid, b"")),
    ]:
        yield row(title, note, push(body), discard(reason) | {"body_offset": 6})


def package_accepts() -> Iterator[Row]:
    """Packages as they may come."""
    body = package(0xBEEF, option(1, HARBOUR.encode()))
    yield row("server-id", "alone", push(body), accept(6, 0xBEEF, server_id=HARBOUR))
    all_five = signed(
        0x0102,
        option(1, HARBOUR.encode()),
        option(1, "03 01"),
        option(1, "00 05 FF FF"),
        option(1, "00 07 CA FE BA BE 00 08 00 00 00 00"),
        delta=1,
    )
    facts: Row = {
        "server_id": HARBOUR,
        "preferred_connections": ["wireline", "mobile"],
        "requested_mos": [5, 65535],
        "cached_mos": [[7, "cafebabe"], [8, "00000000"]],
        "sent_at": SENT,
        "signed": True,
    }
    yield row("all-options", "all five, signed", push(all_five), accept(6, 0x0102, **facts))
    yield row("all-options-kannel", "", push(all_five, KANNEL, tid=0), accept(10, 0x0102, **facts))
    for name, note, value, preferred in [
        ("mobile", "waits for mobile", "01", ["mobile"]),
        ("all-three", "", "02 03 01", ["wireless", "wireline", "mobile"]),
        ("any", "not specified", "00", ["any"]),
        ("mobile-else-any", "", "01 00", ["mobile", "any"]),
        ("any-ends-the-list", "nothing behind 0 counts", "00 01 02", ["any"]),
        ("repeated", "counts once", "02 01 02 02 01", ["wireless", "mobile"]),
        ("unknown-types", "4, 9 and 255 are skipped", "04 03 09 01 FF", ["wireline", "mobile"]),
        ("unknown-types-only", "reads as absent", "04 05", []),
        ("empty", "reads as absent", "", []),
    ]:
        found = accept(6, 0x20, preferred_connections=preferred)
        yield row(f"preferred-{name}", note, push(package(0x20, option(2, value))), found)
    table: list[tuple[str, str, bytes, Row]] = [
        ("notification-id-0", "", package(0), {}),
        ("notification-id-65535", "", package(0xFFFF), {"notification_id": 0xFFFF}),
        ("reserved-127", "any value is taken", package(0, reserved=0x7F), {}),
        ("req-mo-empty", "", package(0, option(3, "")), {}),
        ("req-mo-repeated", "as it came", package(0, option(3, "00 02 00 02")), {"requested_mos": [2, 2]}),
        ("req-mo-cv-empty", "", package(0, option(4, "")), {}),
        ("req-mo-cv", "", package(0, option(4, "FF FE 01 02 03 04")), {"cached_mos": [[65534, "01020304"]]}),
        ("time-0", "1970", package(0, option(5, bytes(36))), {"sent_at": 0, "signed": True}),
        ("time-2038", "", package(0, option(5, "80 00 00 00" + "00" * 32)), {"sent_at": 2**31, "signed": True}),
        ("time-2106", "", package(0, option(5, "FF FF FF FF" + "11" * 32)), {"sent_at": 2**32 - 1, "signed": True}),
        ("server-id-nfc", "ö as one character", package(0, option(1, GULL.encode())), {"server_id": GULL}),
        ("server-id-nfd", "o and U+0308", package(0, option(1, GULL_NFD.encode())), {"server_id": GULL}),
        ("server-id-case", "kept as it is", package(0, option(1, b"DM.Example")), {"server_id": "DM.Example"}),
        ("server-id-blank", "a blank is no control", package(0, option(1, b" a b ")), {"server_id": " a b "}),
        ("server-id-4-octets", "U+1F4E1", package(0, option(1, "F0 9F 93 A1")), {"server_id": "\U0001f4e1"}),
        ("unknown-option-6", "", package(0, option(6, b"next")), {}),
        ("unknown-option-empty", "", package(0, option(15, b"")), {}),
        (
            "unknown-between",
            "7 and 22",
            package(0, option(1, b"a"), option(6, "00"), option(15, "")),
            {"server_id": "a"},
        ),
        ("options-31", "numbers 6 to 36", package(0, option(6, b""), *[option(1, b"")] * 30), {}),
        ("option-number-465", "31 Deltas of 15", package(0, *[option(15, b"")] * 31), {}),
        ("option-value-4084-full", "4096 octets in all", package(0, option(6, bytes(4084))), {}),
    ]
    for name, note, body, facts in table:
        yield row(name, note, push(body), accept(6, 0) | facts)


OWN = option(1, HARBOUR.encode())
SIGNED: Row = {"server_id": HARBOUR, "sent_at": SENT, "signed": True}


def case(name: str, note: str, body: bytes, facts: Row, receive: Row | str) -> Row:
    return row(name, note, push(body, KANNEL), accept(10, 0x700) | facts, receive)


def received() -> Iterator[Row]:
    """What two configured servers and a believed clock make of it (5.1.4, 5.3.5)."""
    own, gull, base = OWN, option(1, GULL.encode()), SIGNED
    yield case("signed", "", signed(0x700, own, delta=4), base, ACCEPTED)
    no_id = base | {"server_id": None}
    yield case("signed-no-server-id", "found by what verifies", signed(0x700, delta=5), no_id, ACCEPTED)
    by_gull = signed(0x700, delta=5, secret=GULL_SECRET)
    yield case("signed-no-server-id-second", "", by_gull, no_id, ACCEPTED)
    body = signed(0x700, gull, delta=4, secret=GULL_SECRET)
    yield case("server-id-nfc", "", body, base | {"server_id": GULL}, ACCEPTED)
    body = signed(0x700, option(1, GULL_NFD.encode()), delta=4, secret=GULL_SECRET)
    yield case("server-id-nfd", "the digest is over the octets received", body, base | {"server_id": GULL}, ACCEPTED)
    body = signed(0x700, own, delta=4, after=(option(2, "AA BB"), option(15, b"")))
    yield case("unknown-options-covered", "7 and 22 behind the digest", body, base, ACCEPTED)
    swapped = body.replace(octets("AA BB"), octets("AA BC"))
    yield case("unknown-option-changed", "", swapped, base, "digest-mismatch")
    body = signed(0x700, own, delta=4, reserved=0x2A)
    yield case("reserved-covered", "", body, base, ACCEPTED)
    yield case("reserved-changed", "", body[:1] + b"\x2b" + body[2:], base, "digest-mismatch")
    body = signed(0x701, own, delta=4)
    yield case("notification-id-changed", "", body[:2] + b"\x07\0" + body[4:], base, "digest-mismatch")
    body = signed(0x700, own, delta=4, sent_at=SENT - 1)
    later = body[:-36] + struct.pack(">I", SENT) + body[-32:]
    yield case("time-changed", "the time is covered", later, base, "digest-mismatch")
    body = signed(0x700, own, delta=4)
    yield case("digest-changed", "its last bit", body[:-1] + bytes([body[-1] ^ 1]), base, "digest-mismatch")
    zero = package(0x700, own, option(4, struct.pack(">I", SENT) + bytes(32)))
    yield case("digest-zero", "not signed at all", zero, base, "digest-mismatch")
    other = signed(0x700, own, delta=4, secret=GULL_SECRET)
    yield case("secret-of-another", "", other, base, "digest-mismatch")
    nobody = signed(0x700, delta=5, secret="nobody's own secret")
    yield case("no-server-id-no-secret-fits", "", nobody, no_id, "digest-mismatch")
    unsigned = {"server_id": None, "sent_at": None, "signed": False}
    yield case("unsigned", "", package(0x700, own), base | unsigned | {"server_id": HARBOUR}, "digest-missing")
    yield case("unsigned-no-server-id", "", package(0x700), unsigned, "server-undiscovered")
    upper = option(1, HARBOUR.upper().encode())
    body = signed(0x700, upper, delta=4)
    yield case("server-id-other-case", "", body, base | {"server_id": HARBOUR.upper()}, "unknown-server")
    body = signed(0x700, option(1, b"dm.elsewhere.example"), delta=4)
    yield case("server-id-unknown", "", body, base | {"server_id": "dm.elsewhere.example"}, "unknown-server")
    body = signed(0x700, own, delta=4, sent_at=0, secret=GULL_SECRET)
    yield case("stale-and-forged", "the digest comes before the age", body, base | {"sent_at": 0}, "digest-mismatch")
    forged = push(extended(signed(0x700, own, delta=4), package(0x701)), KANNEL)
    trailing = discard("trailing-octets") | {"body_offset": 10}
    yield row("length-extension", "", forged, trailing, "trailing-octets")
    forged = push(extended(signed(0x700, delta=5), b"x"), KANNEL)
    yield row("length-extension-no-server-id", "", forged, trailing, "trailing-octets")
    body = signed(0x700, own, delta=4)
    dm12 = push(body, "C4 AF 87")
    yield row("dm-1-2-type-signed", "", dm12, discard("content-type-mismatch"), "content-type-mismatch")


def aged() -> Iterator[Row]:
    """Ages at their borders: max_age back, max_skew ahead."""
    table: list[tuple[str, str, int, Row | str]] = [
        ("age-24h", "exactly max_age old", AT - DAY, ACCEPTED),
        ("age-24h-1s", "", AT - DAY - 1, "stale"),
        ("age-1970", "", 0, "stale"),
        ("ahead-10min", "exactly max_skew ahead", AT + SKEW, ACCEPTED),
        ("ahead-10min-1s", "", AT + SKEW + 1, "from-the-future"),
        ("ahead-2106", "", 2**32 - 1, "from-the-future"),
    ]
    for name, note, sent_at, receive in table:
        yield case(name, note, signed(0x700, OWN, delta=4, sent_at=sent_at), SIGNED | {"sent_at": sent_at}, receive)


def ruled() -> Iterator[Row]:
    """What other rules make of it: each row brings its servers, source and clock."""
    own = OWN
    both = {"secret_text": HARBOUR_SECRET}
    near = both | {"sources": ["192.0.2.0/24", "2001:db8::/32"]}
    open_ = {"require_digest": False}
    full, bare, sole = signed(0x800, own, delta=4), package(0x800, own), package(0x800)
    nameless = signed(0x800, delta=5)
    old = signed(0x800, own, delta=4, sent_at=RELEASED - DAY - 1)
    table: list[tuple[str, str, bytes, Row | str, Row]] = [
        ("source-v4", "", full, ACCEPTED, {"servers": {HARBOUR: near}}),
        ("source-v6", "", full, ACCEPTED, {"servers": {HARBOUR: near}, "source": "2001:db8::7"}),
        ("source-other", "", full, "source-not-allowed", {"servers": {HARBOUR: near}, "source": "198.51.100.9"}),
        ("source-nameless", "", nameless, "source-not-allowed", {"servers": {HARBOUR: near}, "source": "::1"}),
        (
            "source-before-digest",
            "unsigned, from elsewhere",
            bare,
            "source-not-allowed",
            {"servers": {HARBOUR: near}, "source": "198.51.100.9"},
        ),
        ("secret-none", "", full, "secret-not-provisioned", {"servers": {HARBOUR: {}}}),
        ("secret-none-open", "", full, "secret-not-provisioned", {"servers": {HARBOUR: open_}}),
        ("secret-none-nameless", "", nameless, "secret-not-provisioned", {"servers": {HARBOUR: {}}}),
        ("secret-shared", "", nameless, "server-undiscovered", {"servers": {HARBOUR: both, GULL: both}}),
        ("secret-shared-named", "SERVER-ID tells", full, ACCEPTED, {"servers": {GULL: both, HARBOUR: both}}),
        ("no-servers", "", full, "unknown-server", {"servers": {}}),
        ("no-servers-nameless", "", nameless, "secret-not-provisioned", {"servers": {}}),
        ("unsigned-open", "", bare, ACCEPTED, {"servers": {HARBOUR: open_}}),
        ("unsigned-open-nameless", "", sole, ACCEPTED, {"servers": {HARBOUR: open_, GULL: both}}),
        ("unsigned-two-open", "", sole, "server-undiscovered", {"servers": {HARBOUR: open_, GULL: open_}}),
        (
            "unsigned-two-open-one-near",
            "",
            sole,
            ACCEPTED,
            {"servers": {HARBOUR: open_ | {"sources": ["192.0.2.0/24"]}, GULL: open_ | {"sources": ["::/0"]}}},
        ),
        ("unsigned-closed-other-open", "", bare, "digest-missing", {"servers": {HARBOUR: both, GULL: open_}}),
        ("signed-wrongly-open", "", full, "digest-mismatch", {"servers": {HARBOUR: open_ | {"secret_text": "x"}}}),
        ("clock-1970", "not believed", full, ACCEPTED, {"servers": SERVERS, "at": 100, "believed": False}),
        (
            "clock-1970-newest",
            "age from the server's newest time",
            full,
            ACCEPTED,
            {"servers": SERVERS, "at": 100, "believed": False, "newest": SENT + DAY},
        ),
        (
            "clock-1970-newest-stale",
            "",
            full,
            "stale",
            {"servers": SERVERS, "at": 100, "believed": False, "newest": SENT + DAY + 1},
        ),
        (
            "clock-1970-before-release",
            "age from the release",
            old,
            "stale",
            {"servers": SERVERS, "at": 100, "believed": False},
        ),
        (
            "clock-agrees",
            "once 2106, and now what the clock says",
            full,
            ACCEPTED,
            {"servers": SERVERS, "believed": False, "newest": 2**32 - 1},
        ),
        ("clock-believed-newest", "", full, ACCEPTED, {"servers": SERVERS, "newest": SENT + DAY + 1}),
        ("clock-behind", "weeks, and believed", full, ACCEPTED, {"servers": SERVERS, "at": SENT - 60 * DAY}),
        ("forgotten", "", full, "stale", {"servers": SERVERS, "forgotten": SENT}),
        ("forgotten-before", "", full, ACCEPTED, {"servers": SERVERS, "forgotten": SENT - 1}),
        (
            "forgotten-max-age",
            "whatever the configuration is",
            full,
            "stale",
            {"servers": SERVERS, "forgotten": SENT, "max_age": 300 * DAY},
        ),
        ("clock-1970-forged", "", nameless, "digest-mismatch", {"servers": {GULL: {"secret_text": "x"}}, "at": 0}),
        ("max-age-10", "", full, "stale", {"servers": SERVERS, "max_age": 10}),
        ("max-skew-0", "", full, "from-the-future", {"servers": SERVERS, "at": SENT - 1, "max_skew": 0}),
        ("headers-3", "", full, ACCEPTED, {"servers": SERVERS, "max_header_octets": 3}),
        ("octets-exact", "", full, ACCEPTED, {"servers": SERVERS, "max_octets": len(push(full))}),
        ("octets-too-few", "", full, "push-too-long", {"servers": SERVERS, "max_octets": len(push(full)) - 1}),
        ("headers-2", "", full, "push-header-too-long", {"servers": SERVERS, "max_header_octets": 2}),
    ]
    for name, note, body, receive, rules in table:
        facts: Row = {"server_id": None if body in (nameless, sole) else HARBOUR}
        if body in (full, nameless):
            facts |= {"sent_at": SENT, "signed": True}
        if body == old:
            facts |= {"sent_at": RELEASED - DAY - 1, "signed": True}
        yield row(name, note, push(body), accept(6, 0x800) | facts, receive, **rules)


def sent() -> Iterator[Row]:
    """What a DM server asks for, and the octets of it."""
    everything: Row = {
        "server_id": HARBOUR,
        "preferred_connections": ["mobile", "any"],
        "requested_mos": [1, 0xFFFF],
        "cached_mos": [[3, "deadbeef"], [4, "00000000"]],
    }
    options = (OWN, option(1, "01 00"), option(1, "00 01 FF FF"), option(1, "00 03 DE AD BE EF 00 04 00 00 00 00"))
    others = (option(1, "00"), option(15, "AB CD"))
    unknown = {"unknown_options": [[21, "abcd"], [6, "00"]]}
    named: Row = {"server_id": HARBOUR}
    nfd: Row = {"server_id": GULL_NFD}
    wireless: Row = {"preferred_connections": ["wireless", "wireline"]}
    empty: Row = {"preferred_connections": [], "requested_mos": [], "cached_mos": []}
    gateway = [[0x0D, 16], [0x43, 0x13], ["X-Gateway", "north"]]
    table: list[tuple[str, str, Row, bytes, str | bytes, Row]] = [
        ("smallest", "no Option", {}, package(1), HEADERS, {}),
        ("server-id", "", named, package(1, OWN), HEADERS, {}),
        ("server-id-nfd", "encoded in NFC", nfd, package(1, option(1, GULL.encode())), HEADERS, {}),
        ("no-server-id", "", wireless, package(1, option(2, "02 03")), HEADERS, {}),
        ("empty-options", "", empty, package(1, option(2, ""), option(1, ""), option(1, "")), HEADERS, {}),
        ("everything", "", everything, package(1, *options), HEADERS, {}),
        ("signed", "", named | {"sent_at": SENT}, signed(1, OWN, delta=4), HEADERS, {}),
        ("signed-no-server-id", "", {"sent_at": SENT}, signed(1, delta=5), HEADERS, {}),
        ("signed-everything", "", everything | {"sent_at": SENT}, signed(1, *options, delta=1), HEADERS, {}),
        ("signed-in-2106", "", {"sent_at": 2**32 - 1}, signed(1, delta=5, sent_at=2**32 - 1), HEADERS, {}),
        ("unknown-options", "in any order", {"sent_at": SENT} | unknown, signed(1, delta=5, after=others), HEADERS, {}),
        ("reserved", "", {"sent_at": 0, "reserved": 127}, signed(1, delta=5, sent_at=0, reserved=127), HEADERS, {}),
        ("tid", "", {}, package(1), HEADERS, {"tid": 255}),
        ("gateway", "", {}, package(1), octets(KANNEL) + b"X-Gateway\0north\0", {"headers": gateway}),
    ]
    for name, note, build, body, headers, pushed in table:
        block = octets(headers) if isinstance(headers, str) else headers
        facts = {key: build[key] for key in (*everything, "sent_at") if key in build} | {"signed": "sent_at" in build}
        facts |= {"server_id": GULL} if build == nfd else {}
        secret: Row = {"secret_text": HARBOUR_SECRET} if "sent_at" in build else {}
        rules = {"build": {"notification_id": 1} | build} | secret | {"push": pushed}
        datagram = push(body, block, tid=pushed.get("tid", 0))
        yield row(name, note, datagram, accept(3 + len(block), 1, **facts), None, **rules)


FILES: dict[str, tuple[Row, tuple[Any, ...]]] = {
    "decode.jsonl": (
        {"about": "what the codecs and the routing of a push say, with no server in sight"},
        (wsp_discards, wsp_accepts, package_discards, package_accepts),
    ),
    "receive.jsonl": (
        {"about": "receive = with these servers and this clock", "servers": SERVERS, "at": AT, "max_skew": SKEW},
        (received, aged),
    ),
    "rules.jsonl": (
        {
            "about": "receive = with the servers, source and clock of the row",
            "default_at": AT,
            "source": "192.0.2.1",
            "released_at": RELEASED,
        },
        (ruled,),
    ),
    "send.jsonl": (
        {"about": "hex = push of the package that build makes, signed with the secret if there is one"},
        (sent,),
    ),
}
"""Each file: its first row, and where its other rows come from."""


def lines(name: str) -> list[str]:
    """Return the lines of a file."""
    head, groups = FILES[name]
    return [json.dumps(found) for found in (head, *(row for group in groups for row in group()))]


def main() -> None:
    for name in FILES:
        (HERE / name).write_text("\n".join(lines(name)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
