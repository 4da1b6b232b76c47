"""A datagram as a table: octet ranges, field names as the specification writes them, values.

Only the decoders judge octets. This module reads them with the decoders' own readers, up to the first error.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, TextIO

from dmnotid.errors import DecodeError, Discard
from dmnotid.sentences import show_time
from dmnotid.wire import notification, wsp
from dmnotid.wire.octets import PACKAGE, FieldValue

# With more, the names and values would not fit into 80 columns.
PER_ROW: Final = 8
"""Octets in one row of hex."""

ROW_WIDTH: Final = len("00 ") * PER_ROW


class Part(NamedTuple):
    """Octets of a datagram and the offset of the first, the name of the field, and its value."""

    start: int
    octets: bytes
    name: str
    value: str

    @property
    def end(self) -> int:
        """The offset after the last octet."""
        return self.start + len(self.octets)


def push_parts(datagram: bytes) -> list[Part]:
    """Return the parts of the push around a package, up to the first error."""
    parts = [Part(0, datagram[:1], "TID", str(datagram[0]))] if datagram else []
    if len(datagram) > 1:
        # The names of other PDU types would be of no use: only a Push can carry a package.
        kind = "Push" if datagram[1] == wsp.TYPE_PUSH else "not Push"
        parts.append(Part(1, datagram[1:2], "Type", f"{kind} (0x{datagram[1]:02x})"))
    # The decoders report what is wrong; here the parts before the error are enough.
    with suppress(Discard):
        start, body = wsp.header_border(datagram)
        # HeadersLen is a uintvar of 1 to 5 octets, so its part ends where the headers begin.
        parts.append(Part(2, datagram[2:start], "HeadersLen", str(body - start)))
        block = datagram[start:body]
        content_type, at = wsp.decode_content_type(block)
        shown = f"0x{content_type:02x}" if isinstance(content_type, int) else repr(content_type)
        # The text form of the type explains itself.
        if content_type == wsp.CONTENT_TYPE_DM_NOTIFICATION:
            shown = f"{wsp.CONTENT_TYPE_DM_NOTIFICATION_TEXT} ({shown})"
        parts.append(Part(start, block[:at], "Content-Type", shown))
        for field in wsp.fields(block, at):
            # A number names different headers on different code pages.
            name = wsp.field_name(field.page, field.name) if isinstance(field.name, int) else repr(field.name)
            value = _show_value(field.value)
            # The DM client is named by its number or by its URI.
            if wsp.is_application_id(field) and wsp.application_id(field.value) == wsp.APPLICATION_ID_DM:
                value = f"x-wap-application:syncml.dm ({value})"
            octets = block[field.start : field.end]
            parts.append(Part(start + field.start, octets, "code page" if field.name is None else name, value))
    return parts


def _show_value(value: FieldValue) -> str:
    # Octets that follow a length have no type of their own, so they are shown as they are.
    if isinstance(value, bytes):
        return f"0x{value.hex()}" if value else "(empty)"
    return str(value) if isinstance(value, int) else repr(value)


def package_parts(package: bytes, base: int) -> list[Part]:
    """Return the parts of a package that begins at octet `base` of its datagram, up to the first error."""
    if not package:
        return []
    parts = [Part(base, package[:1], "VER", str(package[0] >> 4))]
    # VER alone is shown, because the other fields of the header may be cut off.
    if len(package) < notification.HEADER_OCTETS:
        return parts
    # VER has 4 bits, OC 5 and RESERVED 7.
    count = int.from_bytes(package[:2], "big") >> 7 & notification.MAX_OPTIONS
    # OC ends in the octet in which RESERVED begins.
    parts.append(Part(base, package[:2], "OC", f"{count} Option{'' if count == 1 else 's'}"))
    parts.append(Part(base + 1, package[1:2], "RESERVED", str(package[1] & 0x7F)))
    parts.append(Part(base + 2, package[2:4], "NOTIFICATION-ID", str(int.from_bytes(package[2:4], "big"))))
    number, at = 0, notification.HEADER_OCTETS
    for _ in range(count):
        start = at + notification.OPTION_HEADER_OCTETS
        header = package[at:start]
        at = start + (int.from_bytes(header, "big") & notification.MAX_OPTION_LENGTH)
        # From an Option that is cut off or has Delta 0, borders are a guess: its octets stay for `unread_part`.
        if len(header) < notification.OPTION_HEADER_OCTETS or not header[0] >> 4 or at > len(package):
            return parts
        # Delta is the upper half of the first octet: the distance to the Option before.
        number += header[0] >> 4
        parts += _option_parts(number, header, package[start:at], base + start)
    # The decoder refuses these octets; here they have a line of their own.
    if at < len(package):
        parts.append(Part(base + at, package[at:], "trailing octets", "belong to no Option"))
    return parts


def _option_parts(number: int, header: bytes, value: bytes, at: int) -> tuple[Part, ...]:
    name = notification.OPTION_NAMES.get(number, f"Option {number}")
    summary = f"Delta {header[0] >> 4}, Length {len(value)}: Option Number {number}"
    option = Part(at - notification.OPTION_HEADER_OCTETS, header, "Option", summary)
    # A digest of another length is shown as a whole, because its parts are not known.
    if number == notification.OPTION_SHA256_DIGEST and len(value) == notification.SHA256_DIGEST_OCTETS:
        time, digest = value[: notification.TIME_OCTETS], value[notification.TIME_OCTETS :]
        seconds = int.from_bytes(time, "big")
        signed_at = Part(at, time, f"{name} time", f"{show_time(seconds)} ({seconds})")
        return option, signed_at, Part(at + notification.TIME_OCTETS, digest, f"{name} digest", "SHA-256")
    if number == notification.OPTION_SERVER_ID:
        # Text that is not UTF-8 is for the decoder to report, and for this table to show.
        shown = repr(value.decode("utf-8", "backslashreplace"))
    elif number in _LISTS:
        # These Options repeat one entry up to their end.
        size, show = _LISTS[number]
        # The last entry may be cut off.
        shown = ", ".join(show(value[begin : begin + size]) for begin in range(0, len(value), size)) or "(empty)"
    else:
        shown = _show_value(value)
    return option, Part(at, value, name, shown)


_TYPES: Final[Mapping[int, str]] = dict(enumerate(notification.CONNECTION_TYPES))

_LISTS: Final[Mapping[int, tuple[int, Callable[[bytes], str]]]] = {
    # An octet without a meaning is kept by the decoder, and marked here.
    notification.OPTION_PREFERRED_CON_TYPE: (1, lambda it: _TYPES.get(it[0], f"{it[0]}?")),
    notification.OPTION_REQ_MO: (2, lambda it: str(int.from_bytes(it, "big"))),
    notification.OPTION_REQ_MO_CV: (6, lambda it: f"{int.from_bytes(it[:2], 'big')}:{it[2:].hex()}"),
}
"""The Options that are lists: the octets of one entry, and its text."""


class Palette(NamedTuple):
    """The control sequences before and after coloured text on a terminal; empty elsewhere."""

    dim: str = ""
    good: str = ""
    bad: str = ""
    off: str = ""


def palette_for(stream: TextIO) -> Palette:
    """Return COLOURS for a terminal, unless NO_COLOR is set in the environment; PLAIN otherwise."""
    # https://no-color.org: any value but the empty one turns colours off.
    return COLOURS if stream.isatty() and not os.environ.get("NO_COLOR") else PLAIN


# Faint, green, red, and normal again.
COLOURS: Final = Palette("\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m")
PLAIN: Final = Palette()


def render(parts: list[Part], palette: Palette = PLAIN) -> list[str]:
    """Return parts as lines: the range of octets, the octets, the name, the value."""
    # The values of all parts begin in the same column.
    width = max([len(part.name) for part in parts], default=0)
    lines: list[str] = []
    for part in parts:
        digits = part.octets.hex(" ")
        # A field without octets still needs a row for its name.
        rows = [digits[at : at + ROW_WIDTH - 1] for at in range(0, len(digits), ROW_WIDTH)] or [""]
        size = len(part.octets)
        # As in an editor of octets, a range includes its last octet.
        span = f"{part.start}-{part.start + size - 1}" if size > 1 else str(part.start) if size else ""
        hexadecimal = f"{palette.dim}{rows[0]:{ROW_WIDTH}}{palette.off}"
        lines.append(f"{span:>9}  {hexadecimal}  {part.name:{width}}  {part.value}".rstrip())
        lines += [f"{'':9}  {palette.dim}{row}{palette.off}" for row in rows[1:]]
    return lines


def unread_part(octets: bytes, parts: list[Part]) -> list[Part]:
    """Return the octets after the last part, if there are any, as a part of their own."""
    end = parts[-1].end if parts else 0
    return [Part(end, octets[end:], "not read", "")] if end < len(octets) else []


def place_of(discard: Discard, body_offset: int) -> int | None:
    """Return the octet of the datagram with the problem, or None for a discard that is not about an octet."""
    if not isinstance(discard, DecodeError):
        return None
    # A package is decoded by itself, so its errors count from its own first octet.
    return discard.offset + (body_offset if discard.pdu == PACKAGE else 0)
