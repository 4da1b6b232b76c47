"""The WSP connectionless Push PDU (WAP-230, 8.2.4.1), as a push gateway sends it to UDP port 2948.

    TID u8 | Type u8 | HeadersLen uintvar | ContentType | Headers | Data
                                          '-- HeadersLen octets --'

Nothing in it has a fixed place: gateways put fields before and after the ones that matter here.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

from dmnotid.errors import DecodeError, MalformedField, NotAPush, PushHeaderTooLong, PushTooLong, Truncated
from dmnotid.wire.octets import (
    LENGTH_QUOTE,
    PUSH_PDU,
    QUOTE,
    SHORT_INTEGER,
    SHORT_LENGTH_MAX,
    FieldValue,
    encode_integer,
    encode_length,
    encode_text,
    encode_uintvar,
    encode_value,
    read_length,
    read_text,
    read_uintvar,
    read_value,
    remembering,
)

WAP_PUSH_PORT: Final = 2948
"""The UDP port of connectionless WAP Push (WAP-259)."""

TYPE_PUSH: Final = 0x06
"""PDU type Push (WAP-230, table 34)."""

DEFAULT_MAX_OCTETS: Final = 4_096
"""The longest datagram that is read: nothing in the draft needs more."""

DEFAULT_MAX_HEADER_OCTETS: Final = 48
"""The push header limit (DM Notification 6.1)."""

CONTENT_TYPE_DM_NOTIFICATION: Final = 0x58
"""application/vnd.syncml.dm.notification among the WSP content types."""
CONTENT_TYPE_DM_NOTIFICATION_TEXT: Final = "application/vnd.syncml.dm.notification"

APPLICATION_ID_DM: Final = 0x07
"""x-wap-application:syncml.dm among the WAP push application ids."""
APPLICATION_ID_DM_TEXT: Final = "x-wap-application:syncml.dm"

DEFAULT_PAGE: Final = 1
"""The header code page on which every header block begins (WAP-230, 8.4.2.6)."""

FIELD_X_WAP_APPLICATION_ID: Final = 0x2F
X_WAP_APPLICATION_ID: Final = "X-Wap-Application-Id"
FIELD_NAMES: Final = {
    0x07: "Authorization",
    0x0B: "Content-Encoding",
    0x0D: "Content-Length",
    0x0E: "Content-Location",
    0x12: "Date",
    0x14: "Expires",
    0x1D: "Last-Modified",
    0x26: "Server",
    0x29: "User-Agent",
    0x2F: X_WAP_APPLICATION_ID,
    0x30: "X-Wap-Content-URI",
    0x31: "X-Wap-Initiator-URI",
    0x33: "Bearer-Indication",
    0x34: "Push-Flag",
    0x36: "Profile-Diff",
    0x43: "Encoding-Version",
}
"""Well-known field names of the default code page (WAP-230, table 39), for display; only 0x2F is interpreted."""

INTEGER_FIELDS: Final = frozenset(
    {0x05, 0x06, 0x0D, 0x12, 0x14, 0x17, 0x1A, 0x1B, 0x1D, 0x1E, 0x2F, 0x32, 0x33, 0x34, 0x3F}
)
"""Fields of the default code page whose value is an integer, which dates are too, or text (WAP-230, 8.4.2).

A long-integer has a short length (8.4.2.1), so none of their values begins with a length quote.
"""

REMEMBERED_BLOCKS: Final = 128
"""Number of short push header blocks that are cached: a gateway sends the same block with every push."""


class Field(NamedTuple):
    """One part of a push header block, at the offsets `start` to `end` of the block.

    `name` is the well-known field's number, a text field's name, or None for a shift of the code page (`value` is then
    the page).
    """

    start: int
    end: int
    page: int
    name: int | str | None
    value: FieldValue


class PushHeader(NamedTuple):
    """The interpreted fields of a push header block: the content type, and every X-Wap-Application-Id in order."""

    content_type: int | str
    application_ids: tuple[FieldValue, ...]


class PushMessage(NamedTuple):
    """A decoded Push PDU; `body_offset` is the offset of its data in the datagram."""

    tid: int
    header: PushHeader
    body_offset: int
    body: bytes


# Make a PushMessage of a tuple of all its values; unlike the class, this calls no Python function per datagram.
_new_message: Final = partial(tuple.__new__, PushMessage)


def decode_push(
    datagram: bytes, *, max_octets: int = DEFAULT_MAX_OCTETS, max_header_octets: int = DEFAULT_MAX_HEADER_OCTETS
) -> PushMessage:
    """Decode a Push PDU.

    Raises PushTooLong, NotAPush, PushHeaderTooLong, or a DecodeError with the offset in the datagram; the order of
    these checks is length, Type, HeadersLen, limit, header syntax.
    """
    # First, because it costs nothing: a stranger chooses the size of what all later checks read.
    if len(datagram) > max_octets:
        raise PushTooLong(max_octets)
    start, body_offset = header_border(datagram)
    if body_offset - start > max_header_octets:
        raise PushHeaderTooLong(body_offset - start, max_header_octets)
    try:
        # The headers are cut out once, so that no field can read past the border.
        header = decode_header_block(datagram[start:body_offset])
    except DecodeError as error:
        raise error.moved(start) from None
    # The TID is for display: nothing is answered, and a gateway repeats a push under another one. The body is the rest,
    # whatever Content-Length states.
    return _new_message((datagram[0], header, body_offset, datagram[body_offset:]))


def header_border(datagram: bytes) -> tuple[int, int]:
    """Return the offsets at which the push headers begin and end; errors as for `decode_push`."""
    if len(datagram) < 3:  # noqa: PLR2004 - TID, Type, and at least one octet of HeadersLen
        # Type comes before HeadersLen: a short PDU of another type is not a truncated push.
        _refuse_type(datagram)
        raise Truncated(PUSH_PDU, "HeadersLen", len(datagram), "the datagram ends before it", datagram)
    if datagram[1] != TYPE_PUSH:
        _refuse_type(datagram)
    # Nearly every HeadersLen is one octet, which needs no call.
    length = datagram[2]
    start = 3
    if length >= SHORT_INTEGER:
        length, start = read_uintvar(datagram, 2, "HeadersLen")
    # Compared before it is used, as every length from the wire.
    if not length:
        raise Truncated(PUSH_PDU, "HeadersLen", 2, "is 0, and a Content-Type must follow", datagram)
    if length > len(datagram) - start:
        raise Truncated(PUSH_PDU, "HeadersLen", 2, f"needs {length} octets, {len(datagram) - start} are left", datagram)
    return start, start + length


def _refuse_type(datagram: bytes) -> None:
    if len(datagram) > 1 and datagram[1] != TYPE_PUSH:
        raise NotAPush(datagram[1], sms_header_end(datagram))


# Information elements of an SMS user data header (3GPP TS 23.040, 9.2.3.24), each with its length: the ports, and the
# number of a part. A push by SMS has one of them, and tools show it together with the push.
_SMS_ELEMENTS: Final = frozenset({b"\x05\x04", b"\x04\x02", b"\x00\x03", b"\x08\x04"})

# The element of a push without the octet for the length of the header: destination port 2948.
_SMS_PORTS: Final = b"\x05\x04" + WAP_PUSH_PORT.to_bytes(2, "big")


def sms_header_end(datagram: bytes) -> int:
    """Return the offset after the SMS user data header with which a datagram seems to begin; 0 if it has none.

    UDHL u8 | (IEI u8 | length u8 | value) ...
    """
    # Without UDHL, the datagram begins with the element.
    if datagram.startswith(_SMS_PORTS):
        return len(_SMS_PORTS) + 2
    at, end = 1, 1 + datagram[0]
    known = False
    while at + 1 < end <= len(datagram):
        # Any two octets may look like an element, so one that pushes have must be among them.
        known |= datagram[at : at + 2] in _SMS_ELEMENTS
        at += 2 + datagram[at + 1]
    return end if known and at == end else 0


# An exception is not cached, so each error gets the offset of its own datagram.
@remembering(REMEMBERED_BLOCKS)
def decode_header_block(block: bytes) -> PushHeader:
    """Decode the octets that HeadersLen counts; DecodeErrors count their offset from the block's start."""
    content_type, at = decode_content_type(block)
    # Every field is read, also after the one that matters: a malformed one makes the whole push untrustworthy.
    found = tuple(field.value for field in fields(block, at) if is_application_id(field))
    return PushHeader(content_type, found)


def decode_content_type(block: bytes) -> tuple[int | str, int]:
    """Read the Content-Type at the start of a block; return its code or text, and the offset after it (8.4.2.24).

    A text keeps its parameters; the value-length of the general form skips those.
    """
    general = block[0] <= LENGTH_QUOTE
    # The media type is cut out as well: it may not be read beyond the value-length.
    start, end = read_length(block, 0, "Content-Type") if general else (0, len(block))
    media = block[start:end]
    try:
        value, size = read_value(media, 0, "Content-Type")
    except DecodeError as error:
        raise error.moved(start) from None
    # Extension-Media has no quote, and a long-integer no length quote: both would be a second way to write the same.
    if media[0] in {LENGTH_QUOTE, QUOTE}:
        raise MalformedField(PUSH_PDU, "Content-Type", start, "the media type begins with a quote", block)
    if isinstance(value, bytes):
        if not value:
            raise MalformedField(PUSH_PDU, "Content-Type", start, "the media type has no octets", block)
        value = int.from_bytes(value, "big")
    return value, end if general else size


def fields(block: bytes, at: int) -> Iterator[Field]:
    """Read the fields of a header block from offset `at` to its end, shifts of the code page included (8.4.2.6).

    128-255   a well-known field of the current page, then its value, no length quote before an integer
    32-126    a field named by text, then its value, which must be text
    1-31      shift to that page          127 PAGE   the same, for any page
    """
    page = DEFAULT_PAGE
    end = len(block)
    # A generator: `decode` shows the fields before a malformed one.
    while at < end:
        start, first = at, block[at]
        if first >= SHORT_INTEGER:
            number = first & 0x7F
            value, at = read_value(block, at + 1, field_name(page, number))
            if page == DEFAULT_PAGE and number in INTEGER_FIELDS and block[start + 1] == LENGTH_QUOTE:
                problem = "the integer has a length quote, a short length is expected"
                raise MalformedField(PUSH_PDU, field_name(page, number), start + 1, problem, block)
            yield Field(start, at, page, number, value)
        elif LENGTH_QUOTE < first < QUOTE:
            # Text has no code page, so the shift in force is irrelevant to it.
            name, at = read_text(block, at, "field name")
            value, at = _text_value(block, at, name)
            yield Field(start, at, page, name, value)
        else:
            page, at = _shifted_page(block, at)
            yield Field(start, at, page, None, page)


def _text_value(block: bytes, at: int, name: str) -> tuple[str, int]:
    value, end = read_value(block, at, repr(name))
    if block[at : at + 1] == b"\0":
        # By its class a lone NUL is a value of zero octets; some gateways write the empty text like that.
        value = ""
    if not isinstance(value, str):
        raise MalformedField(PUSH_PDU, repr(name), at, "the value of a field named by text must be text", block)
    return value, end


def _shifted_page(block: bytes, at: int) -> tuple[int, int]:
    page, end = block[at], at + 1
    # A shift of one octet reaches pages 1 to 31 only.
    if page == QUOTE:
        if end >= len(block):
            raise Truncated(PUSH_PDU, "code page", at, "the page number is missing", block)
        page, end = block[end], end + 1
    if not page:
        raise MalformedField(PUSH_PDU, "code page", at, "is 0, which is neither a field nor a page", block)
    return page, end


def is_application_id(field: Field) -> bool:
    """Return whether a field is X-Wap-Application-Id, by its number on the default page or by its name."""
    # Without case, as HTTP compares field names; gateways copy them from there.
    if isinstance(field.name, str):
        return field.name.lower() == X_WAP_APPLICATION_ID.lower()
    return field.name == FIELD_X_WAP_APPLICATION_ID and field.page == DEFAULT_PAGE


def field_name(page: int, number: int) -> str:
    """Return the name of a well-known field for display."""
    # The same number on another page is another field, of which nothing is known here.
    known = FIELD_NAMES.get(number) if page == DEFAULT_PAGE else None
    if known is not None:
        return known
    return f"field 0x{number:02x}" if page == DEFAULT_PAGE else f"field 0x{number:02x} on page 0x{page:02x}"


def is_dm_content_type(content_type: int | str) -> bool:
    """Return whether a content type, as a code or as text with or without parameters, is that of a DM Notification."""
    if isinstance(content_type, int):
        return content_type == CONTENT_TYPE_DM_NOTIFICATION
    # SP and HT alone: strip() without an argument would also remove controls and U+00A0.
    return content_type.partition(";")[0].strip(" \t").lower() == CONTENT_TYPE_DM_NOTIFICATION_TEXT


def application_id(value: FieldValue) -> int | str:
    """Return an X-Wap-Application-Id in the form in which it is compared: an integer, or else text in lower case.

    The URI of OMA DM becomes its number, and a value of no octets the empty text.
    """
    if isinstance(value, str):
        folded = value.lower()
        return APPLICATION_ID_DM if folded == APPLICATION_ID_DM_TEXT else folded
    # A padded long-integer (02 00 07) is the same number. No octets at all are what some senders write for "".
    if isinstance(value, bytes):
        return int.from_bytes(value, "big") if value else ""
    return value


def encode_push(
    package: bytes,
    *,
    tid: int = 0,
    content_type: int | str = CONTENT_TYPE_DM_NOTIFICATION,
    application: int | str | None = APPLICATION_ID_DM,
    further: Iterable[tuple[int | str, FieldValue] | bytes] = (),
) -> bytes:
    """Build a Push PDU as a gateway does: Content-Type, X-Wap-Application-Id (none for None), then `further` fields.

    A further field is a (well-known number or name, value), or encoded octets. Raises ValueError for a value that can't
    be encoded.
    """
    block = encode_integer(content_type) if isinstance(content_type, int) else encode_text(content_type)
    if block[0] == QUOTE:
        message = f"a Content-Type begins with a character of 32 to 126: {content_type!r}"
        raise ValueError(message)
    if block[0] <= LENGTH_QUOTE:
        # A code above 127 is a long-integer, which only the general form can hold.
        block = encode_length(block)
    # Right after the Content-Type, where receivers that look at a fixed place expect it.
    if application is not None:
        block += encode_field(FIELD_X_WAP_APPLICATION_ID, application)
    for field in further:
        block += field if isinstance(field, bytes) else encode_field(*field)
    if not 0 <= tid <= 0xFF:  # noqa: PLR2004 - one octet
        message = f"TID is 0 to 255, not {tid}"
        raise ValueError(message)
    return bytes([tid, TYPE_PUSH]) + encode_uintvar(len(block)) + block + package


def encode_field(name: int | str, value: FieldValue) -> bytes:
    """Encode one header field on the default page; a field named by text needs a text. Raises ValueError otherwise."""
    if isinstance(name, int):
        if not 0 <= name < SHORT_INTEGER:
            message = f"a well-known field has 7 bits, not {name}"
            raise ValueError(message)
        # More octets would need a length quote, which the decoder refuses in these fields.
        if name in INTEGER_FIELDS and isinstance(value, bytes) and len(value) > SHORT_LENGTH_MAX:
            message = f"{field_name(DEFAULT_PAGE, name)} holds an integer of at most {SHORT_LENGTH_MAX} octets"
            raise ValueError(message)
        return encode_integer(name) + encode_value(value)
    if not (isinstance(value, str) and name and LENGTH_QUOTE < ord(name[0]) < QUOTE):
        message = f"a field named by text needs a name and text, not {name!r}: {value!r}"
        raise ValueError(message)
    return encode_text(name) + encode_text(value)
