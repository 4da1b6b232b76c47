"""A datagram laid out as people read a protocol: octet ranges, field names as the specification writes them, values.

What is right and wrong is the decoders' to say; this only walks along with their own readers, as far as these come.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple, TextIO

from dmnotid.errors import DecodeError, Discard, show_time
from dmnotid.wire.notification import (
    CONNECTION_TYPES,
    HEADER_OCTETS,
    MAX_OPTION_LENGTH,
    MAX_OPTIONS,
    OPTION_HEADER_OCTETS,
    OPTION_NAMES,
    OPTION_PREFERRED_CON_TYPE,
    OPTION_REQ_MO,
    OPTION_REQ_MO_CV,
    OPTION_SERVER_ID,
    OPTION_SHA256_DIGEST,
    SHA256_DIGEST_OCTETS,
    TIME_OCTETS,
)
from dmnotid.wire.octets import PACKAGE, FieldValue
from dmnotid.wire.wsp import (
    APPLICATION_ID_DM,
    CONTENT_TYPE_DM_NOTIFICATION,
    CONTENT_TYPE_DM_NOTIFICATION_TEXT,
    TYPE_PUSH,
    Field,
    application_id,
    decode_content_type,
    field_name,
    fields,
    header_border,
    is_application_id,
)

REMEMBERED: Final = 256
"""How many parts are remembered as they are shown: in a file of many datagrams most are like those of another."""

PER_ROW: Final = 8
"""Octets of hex a row."""

ROW_WIDTH: Final = len("00 ") * PER_ROW
SPAN_WIDTH: Final = 9
NO_SPAN: Final = " " * SPAN_WIDTH


class Part(NamedTuple):
    """Octets of a datagram and where they begin, the name of what they are, and what they say."""

    start: int
    octets: bytes
    name: str
    value: str

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.start + len(self.octets)


def push_parts(datagram: bytes) -> list[Part]:
    """Lay out the push around a package, up to where its octets stop making sense."""
    parts = [Part(0, datagram[:1], "TID", str(datagram[0]))] if datagram else []
    if len(datagram) > 1:
        kind = "Push" if datagram[1] == TYPE_PUSH else "not Push"
        parts.append(Part(1, datagram[1:2], "Type", f"{kind} (0x{datagram[1]:02x})"))
    try:
        start, body = header_border(datagram)
        parts.append(Part(2, datagram[2:start], "HeadersLen", str(body - start)))
        parts += _header_parts(datagram[start:body], start)
    except Discard:
        return parts
    return parts


@lru_cache(REMEMBERED)
def _header_parts(block: bytes, base: int) -> tuple[Part, ...]:
    content_type, at = decode_content_type(block)
    parts = [Part(base, block[:at], "Content-Type", _show_content_type(content_type))]
    try:
        for field in fields(block, at):
            octets = block[field.start : field.end]
            parts.append(Part(base + field.start, octets, _show_name(field), _show_field(field)))
    except DecodeError:
        return tuple(parts)
    return tuple(parts)


def _show_content_type(content_type: int | str) -> str:
    if content_type == CONTENT_TYPE_DM_NOTIFICATION:
        return f"{CONTENT_TYPE_DM_NOTIFICATION_TEXT} (0x{content_type:02x})"
    return f"0x{content_type:02x}" if isinstance(content_type, int) else repr(content_type)


def _show_name(field: Field) -> str:
    if field.name is None:
        return "code page"
    return field_name(field.page, field.name) if isinstance(field.name, int) else repr(field.name)


def _show_field(field: Field) -> str:
    if is_application_id(field) and application_id(field.value) == APPLICATION_ID_DM:
        return f"x-wap-application:syncml.dm ({_show_value(field.value)})"
    return _show_value(field.value)


def _show_value(value: FieldValue) -> str:
    if isinstance(value, bytes):
        return f"0x{value.hex()}" if value else "(empty)"
    return str(value) if isinstance(value, int) else repr(value)


def package_parts(package: bytes, base: int) -> list[Part]:
    """Lay out a package that begins at octet `base` of its datagram, up to where its octets stop making sense."""
    if len(package) < HEADER_OCTETS:
        return [_version(package, base)] if package else []
    id_octets = package[2:4]
    parts = [
        *_beginning(package[:2], base),
        Part(base + 2, id_octets, "NOTIFICATION-ID", str(int.from_bytes(id_octets, "big"))),
    ]
    number, at = 0, HEADER_OCTETS
    for _ in range(_option_count(package)):
        start = at + OPTION_HEADER_OCTETS
        header = package[at:start]
        at = start + (int.from_bytes(header, "big") & MAX_OPTION_LENGTH)
        if len(header) < OPTION_HEADER_OCTETS or not header[0] >> 4 or at > len(package):
            return parts
        number += header[0] >> 4
        parts += _option_parts(number, header, package[start:at], base + start)
    if at < len(package):
        parts.append(Part(base + at, package[at:], "trailing octets", "belong to no Option"))
    return parts


def _version(package: bytes, base: int) -> Part:
    return Part(base, package[:1], "VER", str(package[0] >> 4))


def _option_count(package: bytes) -> int:
    return int.from_bytes(package[:2], "big") >> 7 & MAX_OPTIONS


@lru_cache(REMEMBERED)
def _beginning(octets: bytes, base: int) -> tuple[Part, ...]:
    count = _option_count(octets)
    return (
        _version(octets, base),
        Part(base, octets, "OC", f"{count} Option{'' if count == 1 else 's'}"),
        Part(base + 1, octets[1:], "RESERVED", str(octets[1] & 0x7F)),
    )


@lru_cache(REMEMBERED)
def _option_parts(number: int, header: bytes, value: bytes, at: int) -> tuple[Part, ...]:
    name = OPTION_NAMES.get(number, f"Option {number}")
    says = f"Delta {header[0] >> 4}, Length {len(value)}: Option Number {number}"
    option = Part(at - OPTION_HEADER_OCTETS, header, "Option", says)
    if number == OPTION_SHA256_DIGEST and len(value) == SHA256_DIGEST_OCTETS:
        time, digest = value[:TIME_OCTETS], value[TIME_OCTETS:]
        seconds = int.from_bytes(time, "big")
        signed_at = Part(at, time, f"{name} time", _show_seconds(seconds))
        return option, signed_at, Part(at + TIME_OCTETS, digest, f"{name} digest", "SHA-256")
    return option, Part(at, value, name, _SHOW.get(number, _show_value)(value))


@lru_cache(REMEMBERED)
def _show_seconds(seconds: int) -> str:
    return f"{show_time(seconds)} ({seconds})"


def _show_text(value: bytes) -> str:
    return repr(value.decode("utf-8", "backslashreplace"))


def _show_types(value: bytes) -> str:
    known = len(CONNECTION_TYPES)
    return ", ".join(CONNECTION_TYPES[octet] if octet < known else f"{octet}?" for octet in value) or "(empty)"


def _show_mos(value: bytes) -> str:
    return ", ".join(str(int.from_bytes(value[at : at + 2], "big")) for at in range(0, len(value), 2)) or "(empty)"


def _show_cached(value: bytes) -> str:
    entries = [value[at : at + 6] for at in range(0, len(value), 6)]
    return ", ".join(f"{int.from_bytes(entry[:2], 'big')}:{entry[2:].hex()}" for entry in entries) or "(empty)"


_SHOW: Final[dict[int, Callable[[bytes], str]]] = {
    OPTION_SERVER_ID: _show_text,
    OPTION_PREFERRED_CON_TYPE: _show_types,
    OPTION_REQ_MO: _show_mos,
    OPTION_REQ_MO_CV: _show_cached,
}


class Palette(NamedTuple):
    """What goes before and behind a piece of text on a terminal; empty elsewhere."""

    dim: str = ""
    good: str = ""
    bad: str = ""
    off: str = ""


def palette_for(stream: TextIO) -> Palette:
    """Return colours on a terminal, none elsewhere or with NO_COLOR in the environment."""
    return COLOURS if stream.isatty() and not os.environ.get("NO_COLOR") else PLAIN


COLOURS: Final = Palette("\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m")
PLAIN: Final = Palette()


def render(parts: list[Part], palette: Palette = PLAIN) -> list[str]:
    """Write parts as lines: the octets' range, the octets, the name, what they say."""
    width = max([len(part.name) for part in parts], default=0)
    lines: list[str] = []
    for part in parts:
        lines += _lines(part, width, palette)
    return lines


@lru_cache(REMEMBERED)
def _lines(part: Part, width: int, palette: Palette) -> tuple[str, ...]:
    digits = part.octets.hex(" ")
    span, row = _show_span(part.start, len(part.octets)), digits[: ROW_WIDTH - 1].ljust(ROW_WIDTH)
    said = f"{part.name.ljust(width)}  {part.value}"
    first = f"{span.rjust(SPAN_WIDTH)}  {palette.dim}{row}{palette.off}  {said}".rstrip()
    if len(digits) < ROW_WIDTH:
        return (first,)
    rows = [digits[at : at + ROW_WIDTH - 1] for at in range(ROW_WIDTH, len(digits), ROW_WIDTH)]
    return first, *[f"{NO_SPAN}  {palette.dim}{row}{palette.off}" for row in rows]


def _show_span(start: int, size: int) -> str:
    return f"{start}-{start + size - 1}" if size > 1 else str(start) if size else ""


def unread_part(octets: bytes, parts: list[Part]) -> list[Part]:
    """Return what stands behind the last part, if anything does: octets that nobody could or would read."""
    end = parts[-1].end if parts else 0
    return [Part(end, octets[end:], "not read", "")] if end < len(octets) else []


def place_of(discard: Discard, body_offset: int) -> int | None:
    """Return the octet of the datagram at which a discard found its problem, or None where it has no place."""
    if not isinstance(discard, DecodeError):
        return None
    return discard.offset + (body_offset if discard.pdu == PACKAGE else 0)
