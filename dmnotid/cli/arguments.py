"""Parsers of command-line arguments that several commands take.

Those for argparse raise ArgumentTypeError with the argument and what is expected instead.
"""

import argparse
import re
import time
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from dmnotid.cli.parser import UsageError
from dmnotid.config.durations import parse_duration
from dmnotid.config.kinds import DOOR_NAME
from dmnotid.config.values import Config
from dmnotid.policy.addresses import MAX_PORT, Source, parse_address
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import CACHE_VALIDATOR_OCTETS, MAX_MO_INDEX, CachedMo, ConnectionType
from dmnotid.wire.octets import normal_server_id

PACKAGE = "package"
"""The word before the hex of a package without a push, where pushes are listed too."""

MAX_COUNT = 1_000_000_000
"""The largest number for which an argument may ask, if nothing else bounds it."""


def parse_number(text: str, lowest: int, highest: int) -> int:
    """Parse an integer within bounds, decimal or 0x and hex."""
    try:
        # Not base 0, which refuses 010 and accepts 0o10.
        number = int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        # Below every lower bound, so that the message is the same.
        number = -1
    if not lowest <= number <= highest:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from {lowest} to {highest} is expected")
    return number


def parse_count(text: str) -> int:
    """Parse an integer above 0."""
    return parse_number(text, 1, MAX_COUNT)


def parse_time(text: str) -> float:
    """Parse a time into POSIX seconds: a number, `now`, `now-2d`, `now+10m`, or ISO 8601 (UTC without a zone)."""
    if text == "now":
        return time.time()
    try:
        # Without a sign, a duration could be in the past or in the future.
        if text.startswith(("now-", "now+")):
            return time.time() + (-1 if text[3] == "-" else 1) * parse_duration(text[4:])
        # float() would also accept 1e9, inf and nan.
        if text.replace(".", "", 1).isdecimal():
            return float(text)
        moment = datetime.fromisoformat(text)
    except ValueError:
        expected = "POSIX seconds, now, now-2d, now+10m or 2025-01-01T00:00:00Z is expected"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def parse_hex(text: str) -> bytes:
    """Parse octets in hex, with any white space between the digits.

    Raises ValueError, not ArgumentTypeError, with the column (from 1) and the character that is not expected.
    """
    # bytes.fromhex accepts spaces only between octets, and its errors count without them.
    digits = "".join(text.split())
    try:
        return bytes.fromhex(digits)
    except ValueError:
        pass
    for column, character in enumerate(text, 1):
        if not character.isspace() and character not in "0123456789abcdefABCDEF":
            raise ValueError(f"column {column}: {character!r} is not a hex digit")
    raise ValueError(f"column {len(text)}: the number of hex digits ({len(digits)}) is odd, two make an octet")


def parse_destination(text: str) -> tuple[str, int] | Path:
    """Parse HOST, HOST:PORT, ADDRESS, [ADDRESS]:PORT, or unix:PATH for a door; the default port is that of WAP Push."""
    # With the slash it is a path: `unix:1` is port 1 of a host called unix.
    if text.startswith("unix:/"):
        return Path(text.removeprefix("unix:"))
    try:
        host, port = parse_address(text)
    except ValueError:
        host, port = "", 0
    # Port 0 can be listened on, but is not a destination.
    if not port:
        expected = f"HOST[:PORT], [ADDRESS]:PORT or unix:/PATH is expected, with a port from 1 to {MAX_PORT}"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}")
    return host, port


def parse_sender(text: str) -> Source:
    """Parse an IPv4 or IPv6 address, or the name of a door, which may not exist."""
    if re.fullmatch(DOOR_NAME, text):
        return Source(text, None)
    try:
        ip_address(text)
    except ValueError:
        expected = "an IPv4 or IPv6 address, or the name of a door, is expected"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None
    # No check depends on the port of a sender.
    return Source(text, 0)


def parse_server_id(text: str) -> str:
    """Parse a SERVER-ID; the result is in NFC."""
    try:
        # The daemon compares ids in NFC, and a keyboard may give another form.
        return normal_server_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def find_server(config: Config, server_id: str | None) -> Server:
    """Return the configured server of a SERVER-ID, or the only one if that is None. Raises UsageError."""
    servers = {server.id: server for server in config.servers}
    if server_id is None and len(servers) == 1:
        return config.servers[0]
    # Never a default among several: it could be the wrong server, whose secret would be used.
    server = servers.get(server_id or "")
    if server is None:
        found = "is missing" if server_id is None else f"{server_id!r} is not in {config.file}"
        raise UsageError(f"--server {found}; expected one of {', '.join(map(repr, servers))}")
    return server


def add_option_arguments(group: argparse._ArgumentGroup) -> None:
    """Declare the Options with which a server asks for something."""
    types = "PREFERRED-CON-TYPE: mobile, wireless, wireline, any"
    group.add_argument("--prefer", type=parse_connection_types, metavar="TYPE,…", help=types)
    group.add_argument("--req-mo", type=parse_mo_indexes, metavar="N,…", help="REQ-MO: MO indexes")
    validators = "REQ-MO-CV: MO index, cache validator"
    group.add_argument("--req-mo-cv", type=parse_cached_mos, metavar="N:HEX,…", help=validators)


def parse_connection_types(text: str) -> tuple[ConnectionType, ...]:
    """Parse connection types separated by commas; the empty text has none."""
    try:
        return tuple(map(ConnectionType, _words(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: a list of {', '.join(ConnectionType)} is expected") from None


def parse_mo_indexes(text: str) -> tuple[int, ...]:
    """Parse MO indexes separated by commas; the empty text has none."""
    return tuple(parse_number(word, 0, MAX_MO_INDEX) for word in _words(text))


def parse_cached_mos(text: str) -> tuple[CachedMo, ...]:
    """Parse INDEX:HEX pairs separated by commas; the empty text has none."""
    found = []
    for word in _words(text):
        index, _, validator = word.partition(":")
        try:
            octets = parse_hex(validator)
        except ValueError:
            # Of no length that is expected, so that the message is the same.
            octets = b""
        if len(octets) != CACHE_VALIDATOR_OCTETS:
            expected = f"an MO index and {CACHE_VALIDATOR_OCTETS} octets of hex are expected, as in 3:deadbeef"
            raise argparse.ArgumentTypeError(f"{word!r}: {expected}")
        found.append((parse_number(index, 0, MAX_MO_INDEX), octets))
    return tuple(found)


def _words(text: str) -> list[str]:
    # Splitting the empty text would give one empty word.
    return [word.strip() for word in text.split(",")] if text else []
