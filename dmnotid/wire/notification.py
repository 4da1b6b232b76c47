"""The DM Notification package (OMA DM Notification 2.0, section 5): decode and encode.

    octet 0            octet 1            octets 2-3             then OC Options
    VVVV OOOO          O RRRRRRR          NOTIFICATION-ID u16
    VER(4) OC(5) ------^ RESERVED(7)                             Option: Delta(4) Length(12) Value

All integers are big-endian. An Option Number is the sum of the Deltas up to it.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from struct import Struct, error, unpack
from typing import Final, NamedTuple

from dmnotid.errors import MalformedField, TrailingOctets, Truncated, UnsupportedVersion
from dmnotid.wire.octets import PACKAGE, normal_server_id, remembering

VERSION: Final = 2
"""VER (5.1)."""

HEADER_OCTETS: Final = 4
OPTION_HEADER_OCTETS: Final = 2
# The most that a field holds: OC has 5 bits, Option Delta 4, Option Length 12.
MAX_OPTIONS: Final = 0x1F
MAX_OPTION_DELTA: Final = 0x0F
MAX_OPTION_LENGTH: Final = 0xFFF
MAX_NOTIFICATION_ID: Final = 0xFFFF
MAX_MO_INDEX: Final = 0xFFFF
MAX_TIME: Final = 0xFFFF_FFFF

# Option Numbers (5.3).
OPTION_SERVER_ID: Final = 1
OPTION_PREFERRED_CON_TYPE: Final = 2
OPTION_REQ_MO: Final = 3
OPTION_REQ_MO_CV: Final = 4
OPTION_SHA256_DIGEST: Final = 5
OPTION_NAMES: Final = {
    OPTION_SERVER_ID: "SERVER-ID",
    OPTION_PREFERRED_CON_TYPE: "PREFERRED-CON-TYPE",
    OPTION_REQ_MO: "REQ-MO",
    OPTION_REQ_MO_CV: "REQ-MO-CV",
    OPTION_SHA256_DIGEST: "SHA256-DIGEST",
}

MO_INDEX_OCTETS: Final = 2
CACHE_VALIDATOR_OCTETS: Final = 4
CACHED_MO_OCTETS: Final = MO_INDEX_OCTETS + CACHE_VALIDATOR_OCTETS
TIME_OCTETS: Final = 4
DIGEST_OCTETS: Final = 32
SHA256_DIGEST_OCTETS: Final = TIME_OCTETS + DIGEST_OCTETS
ZERO_DIGEST: Final = bytes(DIGEST_OCTETS)
"""The octets in place of the digest while it is computed (5.3.5)."""

_HEADER: Final = Struct(">HH")
REMEMBERED_VALUES: Final = 64
"""Number of short values that are cached for each of two Options: the same ones are received again and again."""

_OPTION_HEADER: Final = Struct(">H")
_SHA256_DIGEST: Final = Struct(f">I{DIGEST_OCTETS}s")
_CACHED_MO: Final = Struct(">H4s")


class ConnectionType(StrEnum):
    """The meaning of a PREFERRED-CON-TYPE octet (5.3.4); ANY is the octet 0, "not specified"."""

    ANY = "any"
    MOBILE = "mobile"
    WIRELESS = "wireless"
    WIRELINE = "wireline"


CONNECTION_TYPES: Final = (
    ConnectionType.ANY,
    ConnectionType.MOBILE,
    ConnectionType.WIRELESS,
    ConnectionType.WIRELINE,
)
"""The connection types by their octet, 0 to 3."""

CachedMo = tuple[int, bytes]
"""An MO index and the 4 octets of its cache validator (REQ-MO-CV)."""


class Notification(NamedTuple):
    """A decoded package.

    `server_id` is in NFC, and None if the Option is absent; `sent_at` (POSIX seconds) and `digest` are None in an
    unsigned package. `preferred_connections` holds each type once, the most wanted first, and ends at ANY.
    `skipped_connections` are octets of PREFERRED-CON-TYPE without a meaning (above 3), `req_mo` and `req_mo_cv` the
    values of those Options, of whole entries, and `unknown_options` the Option Numbers from 6 with their values.
    `octets` is the received package, and `digest_at` the offset of its digest.
    """

    notification_id: int
    server_id: str | None
    preferred_connections: tuple[ConnectionType, ...]
    skipped_connections: bytes
    req_mo: bytes
    req_mo_cv: bytes
    sent_at: int | None
    digest: bytes | None
    digest_at: int
    unknown_options: tuple[tuple[int, bytes], ...]
    octets: bytes

    @property
    def signed(self) -> bool:
        """Whether the package has a SHA256-DIGEST; this does not mean that the digest fits."""
        return self.digest is not None

    # Unpacked on request: most packages of a flood are discarded, and a list of MOs takes many times its octets.

    @property
    def requested_mos(self) -> tuple[int, ...]:
        """The MO indexes of REQ-MO, in order."""
        return unpack(f">{len(self.req_mo) // MO_INDEX_OCTETS}H", self.req_mo)

    @property
    def cached_mos(self) -> tuple[CachedMo, ...]:
        """The MO indexes of REQ-MO-CV with their cache validators, in order."""
        # The decoder has checked that the value consists of whole entries.
        return tuple(_CACHED_MO.iter_unpack(self.req_mo_cv))


# Make a Notification of a tuple of all its values; unlike the class, this calls no Python function per datagram.
_new_notification: Final = partial(tuple.__new__, Notification)


def decode_notification(octets: bytes) -> Notification:  # noqa: C901, PLR0912 - one flat loop: calls are expensive in a flood
    """Decode one package, all of its octets.

    Raises UnsupportedVersion, Truncated, MalformedField (also for an Option Delta of 0: every standard Option occurs at
    most once, in rising order) or TrailingOctets, with the offset in the package. RESERVED may have any value.
    """
    size = len(octets)
    # VER comes before every other check, because another version has another layout: an octet of DM 1.3 must not be
    # reported as a truncated package of this version.
    if size and octets[0] >> 4 != VERSION:
        raise UnsupportedVersion(PACKAGE, "VER", 0, f"is {octets[0] >> 4}, {VERSION} is expected", octets)
    if size < HEADER_OCTETS:
        raise Truncated(PACKAGE, "header", 0, f"needs {HEADER_OCTETS} octets, {size} are left", octets)
    # The 16 bits of VER, OC and RESERVED, and the NOTIFICATION-ID.
    first, notification_id = _HEADER.unpack_from(octets)
    # OC begins in octet 0 and has its last bit in octet 1.
    option_count = first >> 7 & MAX_OPTIONS
    server_id: str | None = None
    preferred: tuple[ConnectionType, ...] = ()
    skipped = requested = cached = b""
    sent_at: int | None = None
    digest: bytes | None = None
    digest_at = 0
    unknown: list[tuple[int, bytes]] = []
    number, at = 0, HEADER_OCTETS
    for _ in range(option_count):
        # Each border is compared with the size before an octet after it is read.
        start = at + OPTION_HEADER_OCTETS
        if start > size:
            raise Truncated(PACKAGE, "Option", at, f"needs {OPTION_HEADER_OCTETS} octets, {size - at} are left", octets)
        first = octets[at]
        if not first >> 4:
            raise MalformedField(
                PACKAGE, "Option Delta", at, "is 0, and each Option Number must be greater than the one before", octets
            )
        number += first >> 4
        # Length has 12 bits: the low half of this octet and the next octet.
        at = start + ((first & 0x0F) << 8 | octets[at + 1])
        if at > size:
            raise Truncated(
                PACKAGE, "Option Value", start, f"needs {at - start} octets, {size - start} are left", octets
            )
        value = octets[start:at]
        try:
            if number == OPTION_SERVER_ID:
                server_id = _server_id(value)
            elif number == OPTION_SHA256_DIGEST:
                # Struct.unpack demands exactly 36 octets. The time is unsigned, and lasts until 2106.
                sent_at, digest = _SHA256_DIGEST.unpack(value)
                # The digest is computed over the package with zeros at this place.
                digest_at = start + TIME_OCTETS
            elif number == OPTION_PREFERRED_CON_TYPE:
                preferred, skipped = _preferred_connections(value)
            elif number == OPTION_REQ_MO:
                requested = _whole_entries(value, MO_INDEX_OCTETS)
            elif number == OPTION_REQ_MO_CV:
                cached = _whole_entries(value, CACHED_MO_OCTETS)
            else:
                # Unknown Options are covered by the digest, and passed on to the hook.
                unknown.append((number, value))
        except (ValueError, error) as problem:
            raise _malformed(number, start, at, problem, octets) from None
    if at != size:
        # A security check: without the secret, the SHA-256(secret || message) of one signed package can be extended to
        # a longer message. The forgery always leaves octets after the last Option.
        raise TrailingOctets(
            PACKAGE, "end", at, f"{size - at} octets follow the last of {option_count} Options", octets
        )
    return _new_notification(
        (
            notification_id,
            server_id,
            preferred,
            skipped,
            requested,
            cached,
            sent_at,
            digest,
            digest_at,
            tuple(unknown),
            octets,
        )
    )


# The value of an Option depends on its octets alone, so decoded values can be cached. The readers raise ValueError with
# the problem; a UnicodeDecodeError also has its offset. `_malformed` makes the error of the package from it.


def _malformed(number: int, start: int, end: int, caught: Exception, octets: bytes) -> MalformedField:
    """Return the error of an Option Value at the offsets `start` to `end` of the package."""
    # Most problems concern the value as a whole.
    at, problem = start, str(caught)
    if isinstance(caught, UnicodeDecodeError):
        # The one problem that has a place of its own in the value.
        at, problem = start + caught.start, f"is not UTF-8: {caught.reason}"
    elif isinstance(caught, error):
        problem = f"has {end - start} octets, {SHA256_DIGEST_OCTETS} are expected"
    return MalformedField(PACKAGE, OPTION_NAMES[number], at, problem, octets)


@remembering(REMEMBERED_VALUES)
def _server_id(value: bytes) -> str:
    return normal_server_id(value.decode("utf-8"))


@remembering(REMEMBERED_VALUES)
def _preferred_connections(value: bytes) -> tuple[tuple[ConnectionType, ...], bytes]:
    # 0 accepts every connection, so the preferences after it have no effect.
    end = value.find(0) + 1 or len(value)
    known = [CONNECTION_TYPES[octet] for octet in value[:end] if octet < len(CONNECTION_TYPES)]
    skipped = bytes(octet for octet in value[:end] if octet >= len(CONNECTION_TYPES))
    # A repeated type counts once, at its first place.
    return tuple(dict.fromkeys(known)), skipped


def _whole_entries(value: bytes, size: int) -> bytes:
    """Return a value that consists of entries of `size` octets."""
    if len(value) % size:
        message = f"has {len(value)} octets, a multiple of {size} is expected"
        raise ValueError(message)
    return value


def encode_notification(
    notification_id: int,
    *,
    server_id: str | None = None,
    preferred_connections: Iterable[ConnectionType] | None = None,
    requested_mos: Iterable[int] | None = None,
    cached_mos: Iterable[CachedMo] | None = None,
    sent_at: int | None = None,
    digest: bytes = ZERO_DIGEST,
    unknown_options: Sequence[tuple[int, bytes]] = (),
    reserved: int = 0,
) -> bytes:
    """Build a package, without the Options whose argument is None.

    With `sent_at` (and only then) it has a SHA256-DIGEST, of zeros unless `digest` is given; `policy.digest.sign` fills
    it in. Raises ValueError for a value that does not fit its field.
    """
    # By Option Number, so that the caller's order does not matter.
    values = dict(unknown_options)
    if len(values) < len(unknown_options) or not values.keys().isdisjoint(OPTION_NAMES):
        message = "an unknown Option is given twice, or has the Option Number of a standard one"
        raise ValueError(message)
    if server_id is not None:
        # Sent in NFC: receivers that do not normalise still find it.
        try:
            values[OPTION_SERVER_ID] = normal_server_id(server_id).encode()
        except ValueError as error:
            raise ValueError(f"SERVER-ID {error}") from None
    if preferred_connections is not None:
        values[OPTION_PREFERRED_CON_TYPE] = bytes(CONNECTION_TYPES.index(wanted) for wanted in preferred_connections)
    if requested_mos is not None:
        values[OPTION_REQ_MO] = b"".join(_mo_index(index) for index in requested_mos)
    if cached_mos is not None:
        values[OPTION_REQ_MO_CV] = b"".join(_cached_mo(*entry) for entry in cached_mos)
    if len(digest) != DIGEST_OCTETS:
        message = f"a digest has {DIGEST_OCTETS} octets, not {len(digest)}"
        raise ValueError(message)
    if sent_at is not None:
        values[OPTION_SHA256_DIGEST] = _bounded("time", sent_at, MAX_TIME).to_bytes(TIME_OCTETS, "big") + digest
    _bounded("number of Options", len(values), MAX_OPTIONS)
    _bounded("RESERVED", reserved, 0x7F)
    _bounded("NOTIFICATION-ID", notification_id, MAX_NOTIFICATION_ID)
    # VER, OC and RESERVED share the first two octets: 4, 5 and 7 bits.
    header = _HEADER.pack(VERSION << 12 | len(values) << 7 | reserved, notification_id)
    return header + _encode_options(values)


def _encode_options(values: dict[int, bytes]) -> bytes:
    encoded, before = b"", 0
    # A Delta is at least 1, so the numbers have to rise.
    for number, value in sorted(values.items()):
        if not 0 < number - before <= MAX_OPTION_DELTA:
            message = f"Option Number {number} cannot follow {before}: the Delta is 1 to {MAX_OPTION_DELTA}"
            raise ValueError(message)
        _bounded(f"length of {OPTION_NAMES.get(number, number)}", len(value), MAX_OPTION_LENGTH)
        encoded += _OPTION_HEADER.pack(number - before << 12 | len(value)) + value
        before = number
    return encoded


def _mo_index(index: int) -> bytes:
    return _bounded("MO index", index, MAX_MO_INDEX).to_bytes(MO_INDEX_OCTETS, "big")


def _cached_mo(index: int, validator: bytes) -> bytes:
    if len(validator) != CACHE_VALIDATOR_OCTETS:
        message = f"a cache validator has {CACHE_VALIDATOR_OCTETS} octets, not {len(validator)}"
        raise ValueError(message)
    return _mo_index(index) + validator


def _bounded(name: str, value: int, highest: int) -> int:
    if not 0 <= value <= highest:
        message = f"{name} is 0 to {highest}, not {value}"
        raise ValueError(message)
    return value
