"""What the two codecs share: uintvar, the value classes of WSP header fields, and the text of a SERVER-ID.

A reader never reads past the octets that it is given, so the caller cuts out a block before reading it. Offsets in
errors count from the first of the octets given.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Final, TypeVar

from dmnotid.errors import MalformedField, Truncated

PUSH_PDU = "Push PDU"
PACKAGE = "DM Notification"

MAX_UINTVAR_OCTETS = 5
MAX_UINTVAR = 0xFFFF_FFFF

MAX_UNICODE = 256
"""Maximum length of a SERVER-ID that is not pure ASCII, in characters."""

MAX_COMBINING = 30
"""Maximum run of combining characters in a SERVER-ID (UAX #15, Stream-Safe Text Format).

Normalising sorts such a run in quadratic time; both bounds limit the work that the sender of a datagram can cause.
"""

# First octet of a field value (WAP-230, 8.4.1.2).
SHORT_LENGTH_MAX = 30
LENGTH_QUOTE = 31
QUOTE = 0x7F
SHORT_INTEGER = 0x80

MAX_REMEMBERED_OCTETS: Final = 64
"""Maximum size of octets whose decoded form is cached, so that strangers cannot fill the memory."""

Decoded = TypeVar("Decoded")

FieldValue = int | str | bytes
"""A field value: a short-integer, text, or the octets after a length."""

# C0, DEL and C1 controls, the line and paragraph separators, and the BOM. A SERVER-ID is shown in logs and passed to
# the hook, where these would break lines or be invisible.
_UNFIT_FOR_SERVER_ID = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF)))


def remembering(count: int) -> Callable[[Callable[[bytes], Decoded]], Callable[[bytes], Decoded]]:
    """Cache the results of a decoder for the `count` short octets that were decoded last; exceptions are not cached."""

    def decorate(decode: Callable[[bytes], Decoded]) -> Callable[[bytes], Decoded]:
        # A cache keeps its keys: the number of entries alone would not bound the memory.
        remembered = lru_cache(count)(decode)

        @wraps(decode)
        def decode_or_recall(octets: bytes) -> Decoded:
            return remembered(octets) if len(octets) <= MAX_REMEMBERED_OCTETS else decode(octets)

        return decode_or_recall

    return decorate


def read_uintvar(octets: bytes, at: int, field: str) -> tuple[int, int]:
    """Read the uintvar at `at`; return its value and the offset after it (WAP-230, 8.1.2).

        1vvvvvvv ... 0vvvvvvv      7 bits an octet, the highest first; padded forms (80 03) are legal

    Raises Truncated if the octets end first, and MalformedField above 5 octets or 32 bits.
    """
    value = 0
    for position in range(at, at + MAX_UINTVAR_OCTETS):
        if position >= len(octets):
            raise Truncated(PUSH_PDU, field, at, "the uintvar has no last octet", octets)
        octet = octets[position]
        # Five octets hold 35 bits, so the sum is bounded here and compared with 32 bits at the end.
        value = value << 7 | octet & 0x7F
        if octet < SHORT_INTEGER:
            if value > MAX_UINTVAR:
                raise MalformedField(PUSH_PDU, field, at, "the uintvar has more than 32 bits", octets)
            return value, position + 1
    raise MalformedField(PUSH_PDU, field, at, f"the uintvar has more than {MAX_UINTVAR_OCTETS} octets", octets)


def read_text(octets: bytes, at: int, field: str) -> tuple[str, int]:
    """Read text up to its NUL, without a leading quote; return the text (ISO 8859-1) and the offset after the NUL.

    Raises Truncated without a NUL, and MalformedField for a quote before a character below 128.
    """
    # find() also answers for an offset after the last octet: text that is missing is truncated like one without NUL.
    end = octets.find(0, at)
    if end < 0:
        raise Truncated(PUSH_PDU, field, at, "the text has no NUL at its end", octets)
    start = at
    if octets[at] == QUOTE:
        start += 1
        # The quote exists for characters that would be read as a short-integer; `7F 00` is the empty text.
        if 0 < octets[start] < SHORT_INTEGER:
            raise MalformedField(PUSH_PDU, field, at, "the text has a quote before a character below 128", octets)
    # Every octet is a character of ISO 8859-1, so this can't fail.
    return octets[start:end].decode("latin-1"), end + 1


def read_length(octets: bytes, at: int, field: str) -> tuple[int, int]:
    """Read the value-length at `at`; return the first and last offset (exclusive) of the octets it counts (8.4.2.2).

    Raises Truncated if it counts more octets than are left.
    """
    length, start = octets[at], at + 1
    if length == LENGTH_QUOTE:
        # A short length may be written in this form too (`1F 01 D8`).
        length, start = read_uintvar(octets, start, field)
    # Python integers do not overflow, so this comparison holds for a length of 2^32-1 as well.
    end = start + length
    if end > len(octets):
        raise Truncated(PUSH_PDU, field, at, f"needs {length} octets, {len(octets) - start} are left", octets)
    return start, end


def read_value(octets: bytes, at: int, field: str) -> tuple[FieldValue, int]:
    """Read the field value at `at`, of any class; return the value and the offset after it (8.4.1.2).

        0-30      that many octets follow          -> bytes
        31        uintvar, that many octets follow -> bytes
        32-126    text up to NUL                   -> str
        127       quote, text up to NUL            -> str     the first character is 128-255, or there is none
        128-255   the value itself in 7 bits       -> int

    Raises Truncated and MalformedField as its parts do.
    """
    if at >= len(octets):
        raise Truncated(PUSH_PDU, field, at, "the value is missing", octets)
    first = octets[at]
    # The most frequent class first.
    if first >= SHORT_INTEGER:
        return first & 0x7F, at + 1
    if first > LENGTH_QUOTE:
        return read_text(octets, at, field)
    start, end = read_length(octets, at, field)
    return octets[start:end], end


def encode_uintvar(value: int) -> bytes:
    """Encode 0 to 2^32-1 in the fewest octets; ValueError otherwise."""
    if not 0 <= value <= MAX_UINTVAR:
        message = f"a uintvar holds 0 to {MAX_UINTVAR}, not {value}"
        raise ValueError(message)
    # Made from the lowest group on; only the last octet of the result has the highest bit clear.
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F | 0x80)
    return bytes(reversed(groups))


def encode_text(text: str) -> bytes:
    """Encode text with its NUL, and with a quote if it needs one.

    Raises ValueError for text that has no encoding: outside ISO 8859-1, with a NUL, or with a first character of 1-31
    or 127, which is neither text nor allowed after a quote.
    """
    octets = text.encode("latin-1")
    if 0 in octets:
        message = f"text for a push header holds a NUL: {text!r}"
        raise ValueError(message)
    # The first octet of the empty text is its NUL, which reads as a length of 0.
    if not octets or octets[0] >= SHORT_INTEGER:
        return bytes([QUOTE]) + octets + b"\0"
    if not LENGTH_QUOTE < octets[0] < QUOTE:
        message = f"text for a push header begins with a control character: {text!r}"
        raise ValueError(message)
    return octets + b"\0"


def encode_integer(value: int) -> bytes:
    """Encode a short-integer (up to 127) or long-integer (8.4.2.1); ValueError below 0 or above 30 octets."""
    if 0 <= value < SHORT_INTEGER:
        return bytes([value | SHORT_INTEGER])
    # The fewest octets, the highest first.
    length = (value.bit_length() + 7) // 8
    if value < 0 or length > SHORT_LENGTH_MAX:
        message = f"a long-integer has 1 to {SHORT_LENGTH_MAX} octets and no sign: {value}"
        raise ValueError(message)
    return bytes([length]) + value.to_bytes(length, "big")


def encode_length(octets: bytes) -> bytes:
    """Return octets after their value-length (8.4.2.2)."""
    if len(octets) <= SHORT_LENGTH_MAX:
        return bytes([len(octets)]) + octets
    return bytes([LENGTH_QUOTE]) + encode_uintvar(len(octets)) + octets


def encode_value(value: FieldValue) -> bytes:
    """Encode an integer, text, or octets with their length, as `read_value` reads them (large integers as octets)."""
    if isinstance(value, int):
        return encode_integer(value)
    if isinstance(value, str):
        return encode_text(value)
    return encode_length(value)


def normal_server_id(text: str) -> str:
    """Return a SERVER-ID in the form in which it is compared (NFC). Raises ValueError with the problem (5.3).

    The configuration and the decoder both use this function, so every configured SERVER-ID can be received.
    """
    if not text:
        message = "is empty"
        raise ValueError(message)
    if not _UNFIT_FOR_SERVER_ID.isdisjoint(text):
        # By its code: the character itself would break the message as it would break a log line.
        unfit = next(it for it in text if it in _UNFIT_FOR_SERVER_ID)
        message = f"holds U+{ord(unfit):04X}, which no SERVER-ID may hold"
        raise ValueError(message)
    # ASCII is in NFC already, and most SERVER-IDs are ASCII.
    if text.isascii():
        return text
    if len(text) > MAX_UNICODE:
        message = f"has more than {MAX_UNICODE} characters, and not all of them are ASCII"
        raise ValueError(message)
    import unicodedata  # noqa: PLC0415 - 100 KB, and few SERVER-IDs need it

    run = 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run > MAX_COMBINING:
            message = f"has more than {MAX_COMBINING} combining characters in a row"
            raise ValueError(message)
    # Not NFKC, which would make different ids equal.
    return unicodedata.normalize("NFC", text)
