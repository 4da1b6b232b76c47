"""What several commands read from their arguments: times, hex, host and port, lists of what a server asks for."""

import argparse
import time
from datetime import UTC, datetime

from dmnotid.config.durations import parse_duration
from dmnotid.policy.addresses import MAX_PORT, parse_address
from dmnotid.wire.notification import CACHE_VALIDATOR_OCTETS, MAX_MO_INDEX, CachedMo, ConnectionType


def parse_time(text: str) -> float:
    """Read a time (POSIX seconds): a number, `now`, `now-2d`, `now+10m`, or ISO 8601 (UTC where it names no zone).

    Raises ArgumentTypeError.
    """
    if text == "now":
        return time.time()
    try:
        if text.startswith(("now-", "now+")):
            return time.time() + (-1 if text[3] == "-" else 1) * parse_duration(text[4:])
        if text.replace(".", "", 1).isdecimal():
            return float(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is no time: POSIX seconds, now, now-2d, now+10m or 2025-01-01T00:00:00Z is expected"
        raise argparse.ArgumentTypeError(message) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_hex(text: str) -> bytes:
    """Read octets in hex, with spaces as one likes; ValueError names the column (from 1) and what stands there."""
    digits = "".join(text.split())
    try:
        return bytes.fromhex(digits)
    except ValueError:
        pass
    for column, character in enumerate(text, 1):
        if not character.isspace() and character not in "0123456789abcdefABCDEF":
            message = f"column {column}: {character!r} is no hex digit"
            raise ValueError(message)
    message = f"column {len(text)}: an odd number of hex digits ({len(digits)}), two are an octet"
    raise ValueError(message)


def parse_to(text: str) -> tuple[str, int]:
    """Read HOST, HOST:PORT, ADDRESS or [ADDRESS]:PORT; port 2948 where none is given. Raises ArgumentTypeError."""
    try:
        host, port = parse_address(text)
    except ValueError:
        host, port = "", 0
    if not port:
        message = f"{text!r}: HOST[:PORT] or [ADDRESS]:PORT is expected, with a port from 1 to {MAX_PORT}"
        raise argparse.ArgumentTypeError(message)
    return host, port


def parse_number(text: str, highest: int) -> int:
    """Read an integer from 0 to `highest`, decimal or 0x and hex. Raises ArgumentTypeError."""
    try:
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        number = -1
    if not 0 <= number <= highest:
        message = f"{text!r}: a number from 0 to {highest} is expected"
        raise argparse.ArgumentTypeError(message)
    return number


def parse_positive(text: str) -> int:
    """Read an integer from 1 up, 1000000000 at most. Raises ArgumentTypeError."""
    number = parse_number(text, 1_000_000_000)
    if not number:
        message = "at least 1 is expected"
        raise argparse.ArgumentTypeError(message)
    return number


def parse_connection_types(text: str) -> tuple[ConnectionType, ...]:
    """Read connection types between commas, none for the empty text. Raises ArgumentTypeError."""
    try:
        return tuple(ConnectionType(word.strip()) for word in text.split(",")) if text else ()
    except ValueError:
        message = f"{text!r}: a list of {', '.join(ConnectionType)} is expected"
        raise argparse.ArgumentTypeError(message) from None


def parse_mo_indexes(text: str) -> tuple[int, ...]:
    """Read MO indexes between commas, none for the empty text. Raises ArgumentTypeError."""
    return tuple(parse_number(word.strip(), MAX_MO_INDEX) for word in text.split(",")) if text else ()


def parse_cached_mos(text: str) -> tuple[CachedMo, ...]:
    """Read INDEX:HEX between commas, none for the empty text. Raises ArgumentTypeError."""
    return tuple(_cached_mo(word.strip()) for word in text.split(",")) if text else ()


def _cached_mo(word: str) -> CachedMo:
    index, colon, validator = word.partition(":")
    try:
        octets = parse_hex(validator)
    except ValueError:
        octets = b""
    if not colon or len(octets) != CACHE_VALIDATOR_OCTETS:
        message = f"{word!r}: an MO index and {CACHE_VALIDATOR_OCTETS} octets of hex are expected, as in 3:deadbeef"
        raise argparse.ArgumentTypeError(message)
    return parse_number(index, MAX_MO_INDEX), octets
