"""The DM Notification package (5, 5.1, 5.2, 5.3)."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from dmnotid.errors import DecodeError, MalformedField, TrailingOctets, Truncated, UnsupportedVersion
from dmnotid.wire.notification import CachedMo, ConnectionType, Notification, decode_notification, encode_notification
from dmnotid.wire.octets import PACKAGE
from tests.place import Place, place_of

ANY, MOBILE, WIRELESS, WIRELINE = ConnectionType
DIGEST = bytes(range(32))


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


class Vector(NamedTuple):
    """Arguments of `encode_notification`, their package, and the decoded values of the Options it has."""

    package: str
    notification_id: int
    arguments: Mapping[str, Any] = MappingProxyType({})
    facts: Mapping[str, Any] = MappingProxyType({})


ALL_FIVE = "22 80 BE EF10 02 64 6D10 02 02 0110 04 00 01 FF FF10 06 00 03 DE AD BE EF10 24 67 74 85 80" + DIGEST.hex()

VECTORS = {
    "smallest": Vector("20 00 00 00", 0),
    "notification-id-65535": Vector("20 00 FF FF", 0xFFFF),
    "notification-id-big-endian": Vector("20 00 12 34", 0x1234),
    "reserved": Vector("20 7F 00 01", 1, {"reserved": 0x7F}, {}),
    "server-id": Vector("20 80 00 01 10 02 64 6D", 1, {"server_id": "dm"}, {"server_id": "dm"}),
    "server-id-non-ascii": Vector("20 80 00 01 10 03 6D C3 B6", 1, {"server_id": "mö"}, {"server_id": "mö"}),
    "preferred-empty": Vector("20 80 00 01 20 00", 1, {"preferred_connections": []}),
    "preferred-all": Vector(
        "20 80 00 01 20 04 03 01 02 00",
        1,
        {"preferred_connections": [WIRELINE, MOBILE, WIRELESS, ANY]},
        {"preferred_connections": (WIRELINE, MOBILE, WIRELESS, ANY)},
    ),
    "req-mo-empty": Vector("20 80 00 01 30 00", 1, {"requested_mos": []}),
    "req-mo": Vector(
        "20 80 00 01 30 06 00 00 00 01 FF FF", 1, {"requested_mos": [0, 1, 65535]}, {"req_mo": octets("0000 0001 FFFF")}
    ),
    "req-mo-cv-empty": Vector("20 80 00 01 40 00", 1, {"cached_mos": []}),
    "req-mo-cv": Vector(
        "20 80 00 01 40 0C 00 03 DE AD BE EF FF FF 00 00 00 00",
        1,
        {"cached_mos": [(3, octets("DEADBEEF")), (65535, bytes(4))]},
        {"req_mo_cv": octets("0003 DEADBEEF FFFF 00000000")},
    ),
    "time-0": Vector(
        "20 80 00 01 50 24 00 00 00 00" + "00" * 32,
        1,
        {"sent_at": 0},
        {"sent_at": 0, "digest": bytes(32), "digest_at": 10},
    ),
    "time-2106": Vector(
        "20 80 00 01 50 24 FF FF FF FF" + DIGEST.hex(),
        1,
        {"sent_at": 0xFFFF_FFFF, "digest": DIGEST},
        {"sent_at": 0xFFFF_FFFF, "digest": DIGEST, "digest_at": 10},
    ),
    "all-five": Vector(
        ALL_FIVE,
        0xBEEF,
        {
            "server_id": "dm",
            "preferred_connections": [WIRELESS, MOBILE],
            "requested_mos": [1, 65535],
            "cached_mos": [(3, octets("DEADBEEF"))],
            "sent_at": 1735689600,
            "digest": DIGEST,
        },
        {
            "server_id": "dm",
            "preferred_connections": (WIRELESS, MOBILE),
            "req_mo": octets("0001 FFFF"),
            "req_mo_cv": octets("0003 DEADBEEF"),
            "sent_at": 1735689600,
            "digest": DIGEST,
            "digest_at": 32,
        },
    ),
    "unknown": Vector(
        "21 80 00 01 60 00 10 02 AB CD F0 01 FF",
        1,
        {"unknown_options": [(22, b"\xff"), (6, b""), (7, b"\xab\xcd")]},
        {"unknown_options": ((6, b""), (7, b"\xab\xcd"), (22, b"\xff"))},
    ),
    "unknown-behind-digest": Vector(
        "21 00 00 01 50 24 00 00 00 09" + "00" * 32 + "10 01 2A",
        1,
        {"sent_at": 9, "unknown_options": [(6, b"*")]},
        {"sent_at": 9, "digest": bytes(32), "digest_at": 10, "unknown_options": ((6, b"*"),)},
    ),
    "options-31": Vector(
        "2F 80 00 01" + "F0 00" * 31,
        1,
        {"unknown_options": [(number * 15, b"") for number in range(1, 32)]},
        {"unknown_options": tuple((number * 15, b"") for number in range(1, 32))},
    ),
    "length-4095": Vector(
        "20 80 00 01 6F FF" + "AA" * 4095,
        1,
        {"unknown_options": [(6, b"\xaa" * 4095)]},
        {"unknown_options": ((6, b"\xaa" * 4095),)},
    ),
}

SHORT = {name: vector for name, vector in VECTORS.items() if name != "length-4095"}


def value_of(vector: Vector) -> Notification:
    """Return the value of a vector's package, with the values of absent Options filled in."""
    absent = Notification(vector.notification_id, None, (), b"", b"", b"", None, None, 0, (), octets(vector.package))
    return absent._replace(**vector.facts)


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_package_is_encoded_and_decoded(vector: Vector) -> None:
    """5.1, 5.2, 5.3: a header of 32 bits, then Options, all big-endian."""
    assert encode_notification(vector.notification_id, **vector.arguments) == octets(vector.package)
    decoded = decode_notification(octets(vector.package))
    assert decoded == value_of(vector)
    assert decoded.signed is ("sent_at" in vector.facts)
    assert decoded.requested_mos == tuple(vector.arguments.get("requested_mos", ()))
    assert decoded.cached_mos == tuple(vector.arguments.get("cached_mos", ()))


@pytest.mark.parametrize("vector", SHORT.values(), ids=SHORT)
def test_every_prefix_of_a_package_is_truncated(vector: Vector) -> None:
    """5.1, 5.2: no proper prefix of a package is a package."""
    whole = octets(vector.package)
    for end in range(len(whole)):
        with pytest.raises(Truncated) as caught:
            decode_notification(whole[:end])
        assert caught.value.offset <= end


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_octets_after_a_package_are_trailing(vector: Vector) -> None:
    """5.2, 5.3.5: nothing may follow the last Option, not even an Option or another package."""
    whole = octets(vector.package)
    for more in [b"\0", b"\xff", b"\x10\0", b"\x20\x00\x00\x01"]:
        extended = partial(decode_notification, whole + more)
        assert place_of(extended, PACKAGE) == (TrailingOctets, "end", len(whole))


def test_message_of_trailing_octets_has_their_number() -> None:
    """5.2."""
    with pytest.raises(TrailingOctets) as caught:
        decode_notification(octets("20 80 00 01 10 01 61 AA BB"))
    assert str(caught.value) == "DM Notification: end at octet 7: 2 octets follow the last of 1 Options [aa bb]"


def test_message_has_pdu_field_offset_problem_and_octets() -> None:
    """5.2: with at most 16 octets."""
    package = octets("21 00 00 01 10 1B") + b"a" * 27 + octets("40 24 00 00 03 E8") + bytes(31)
    with pytest.raises(Truncated) as caught:
        decode_notification(package)
    sentence = "DM Notification: Option Value at octet 35: needs 36 octets, 35 are left"
    assert str(caught.value) == f"{sentence} [00 00 03 e8{' 00' * 12} …]"


@pytest.mark.parametrize(
    ("package", "place", "problem"),
    [
        ("", (Truncated, "header", 0), "needs 4 octets, 0 are left"),
        ("20", (Truncated, "header", 0), "needs 4 octets, 1 are left"),
        ("20 80 00", (Truncated, "header", 0), "needs 4 octets, 3 are left"),
        ("10", (UnsupportedVersion, "VER", 0), "is 1, 2 is expected"),
        ("30 00 00 01", (UnsupportedVersion, "VER", 0), "is 3, 2 is expected"),
        ("00 00 00 01", (UnsupportedVersion, "VER", 0), "is 0, 2 is expected"),
        ("F0 00 00 01 FF", (UnsupportedVersion, "VER", 0), "is 15, 2 is expected"),
        ("20 80 00 01", (Truncated, "Option", 4), "needs 2 octets, 0 are left"),
        ("20 80 00 01 10", (Truncated, "Option", 4), "needs 2 octets, 1 are left"),
        ("21 00 00 01 60 01 AA", (Truncated, "Option", 7), "needs 2 octets, 0 are left"),
        ("20 80 00 01 10 02 61", (Truncated, "Option Value", 6), "needs 2 octets, 1 are left"),
        ("20 80 00 01 1F FF 61", (Truncated, "Option Value", 6), "needs 4095 octets, 1 are left"),
        (
            "20 80 00 01 00 01 61",
            (MalformedField, "Option Delta", 4),
            "is 0, and each Option Number must be greater than the one before",
        ),
        (
            "20 80 00 01 00 09",
            (MalformedField, "Option Delta", 4),
            "is 0, and each Option Number must be greater than the one before",
        ),
        (
            "21 00 00 01 10 01 61 00 01 62",
            (MalformedField, "Option Delta", 7),
            "is 0, and each Option Number must be greater than the one before",
        ),
        ("20 80 00 01 10 00", (MalformedField, "SERVER-ID", 6), "is empty"),
        ("20 80 00 01 10 02 61 FF", (MalformedField, "SERVER-ID", 7), "is not UTF-8: invalid start byte"),
        ("20 80 00 01 10 02 C0 AF", (MalformedField, "SERVER-ID", 6), "is not UTF-8: invalid start byte"),
        ("20 80 00 01 10 03 ED A0 80", (MalformedField, "SERVER-ID", 6), "is not UTF-8: invalid continuation byte"),
        ("20 80 00 01 10 03 61 62 C3", (MalformedField, "SERVER-ID", 8), "is not UTF-8: unexpected end of data"),
        ("20 80 00 01 10 04 F4 90 80 80", (MalformedField, "SERVER-ID", 6), "is not UTF-8: invalid continuation byte"),
        ("20 80 00 01 10 02 61 0A", (MalformedField, "SERVER-ID", 6), "holds U+000A, which no SERVER-ID may hold"),
        (
            "20 80 00 01 10 04 EF BB BF 61",
            (MalformedField, "SERVER-ID", 6),
            "holds U+FEFF, which no SERVER-ID may hold",
        ),
        ("20 80 00 01 30 01 07", (MalformedField, "REQ-MO", 6), "has 1 octets, a multiple of 2 is expected"),
        ("20 80 00 01 30 03 00 01 00", (MalformedField, "REQ-MO", 6), "has 3 octets, a multiple of 2 is expected"),
        (
            "20 80 00 01 40 04 00 03 DE AD",
            (MalformedField, "REQ-MO-CV", 6),
            "has 4 octets, a multiple of 6 is expected",
        ),
        ("20 80 00 01 40 07" + "00" * 7, (MalformedField, "REQ-MO-CV", 6), "has 7 octets, a multiple of 6 is expected"),
        ("20 80 00 01 50 00", (MalformedField, "SHA256-DIGEST", 6), "has 0 octets, 36 are expected"),
        ("20 80 00 01 50 20" + "00" * 32, (MalformedField, "SHA256-DIGEST", 6), "has 32 octets, 36 are expected"),
        ("20 80 00 01 50 25" + "00" * 37, (MalformedField, "SHA256-DIGEST", 6), "has 37 octets, 36 are expected"),
    ],
)
def test_malformed_package_is_refused_with_field_and_offset(package: str, place: Place, problem: str) -> None:
    """5.1, 5.2, 5.3: each error by its type, field and offset."""
    with pytest.raises(DecodeError) as caught:
        decode_notification(octets(package))
    assert caught.value.problem == problem
    assert caught.value.excerpt == octets(package)[place[2] : place[2] + 16]
    assert place_of(partial(decode_notification, octets(package)), PACKAGE) == place


@pytest.mark.parametrize(
    ("package", "place"),
    [
        ("10", (UnsupportedVersion, "VER", 0)),  # VER, then the header's length
        ("11 80 00 01 00", (UnsupportedVersion, "VER", 0)),  # and all else
        ("21 00 00 01 10 00 10", (MalformedField, "SERVER-ID", 6)),  # an Option, then the next one
        ("20 80 00 01 30 01 07 AA", (MalformedField, "REQ-MO", 6)),  # an Option, then the end
        ("20 80 00 01 00 09 61", (MalformedField, "Option Delta", 4)),  # Delta, then Length
        ("20 80 00 01 10 03 FF FF", (Truncated, "Option Value", 6)),  # Length, then Value
    ],
)
def test_first_failed_check_gives_the_error(package: str, place: Place) -> None:
    """5.1, 5.2: VER before anything else, then from left to right."""
    assert place_of(partial(decode_notification, octets(package)), PACKAGE) == place


@pytest.mark.parametrize("version", [number for number in range(16) if number != 2])
def test_other_versions_are_unsupported(version: int) -> None:
    """5.1: DM 1.3 shares Content-Type and Application-ID and begins with a digest."""
    octet = bytes([version << 4 | 0x0F])
    for package in (octet, octet + bytes(3), octet + bytes(40)):
        assert place_of(partial(decode_notification, package), PACKAGE) == (UnsupportedVersion, "VER", 0)


def test_reserved_bits_have_any_value() -> None:
    """5.1: the 7 bits after OC, which change no value."""
    for reserved in range(128):
        package = bytes([0x20, 0x80 | reserved, 0, 1]) + octets("10 01 61")
        assert decode_notification(package) == value_of(Vector(package.hex(), 1, {}, {"server_id": "a"}))


def test_package_has_as_many_options_as_it_declares() -> None:
    """5.1: OC is 5 bits, 4 of them in the first octet."""
    for count in range(32):
        package = bytes([0x20 | count >> 1, (count & 1) << 7 | 0x7F, 0, 9]) + octets("F0 00") * count
        assert decode_notification(package).unknown_options == tuple((15 * at, b"") for at in range(1, count + 1))


def test_option_number_is_the_sum_of_the_deltas() -> None:
    """5.2: the sum of the Deltas so far."""
    package = octets("21 80 00 00 70 00 F0 01 AA 20 00")
    assert decode_notification(package).unknown_options == ((7, b""), (22, b"\xaa"), (24, b""))


@pytest.mark.parametrize(
    ("value", "preferred", "skipped"),
    [
        ("", (), ()),
        ("00", (ANY,), ()),
        ("01", (MOBILE,), ()),
        ("02", (WIRELESS,), ()),
        ("03", (WIRELINE,), ()),
        ("03 02 01", (WIRELINE, WIRELESS, MOBILE), ()),
        ("01 00", (MOBILE, ANY), ()),
        ("00 01", (ANY,), ()),
        ("01 00 02 09", (MOBILE, ANY), ()),
        ("02 02 01 02", (WIRELESS, MOBILE), ()),
        ("04 01 FF 01 04", (MOBILE,), (4, 255, 4)),
        ("04", (), (4,)),
        ("FF FE", (), (255, 254)),
        ("02 09 02 07 03", (WIRELESS, WIRELINE), (9, 7)),
    ],
)
def test_preferred_connections_are_decoded_in_order(
    value: str, preferred: tuple[ConnectionType, ...], skipped: tuple[int, ...]
) -> None:
    """5.3.4: most wanted first, each once; 0 is any and ends the list; above 3 is skipped and kept for the log.

    If nothing known is left, the Option is as absent.
    """
    package = octets("20 80 00 01") + bytes([0x20, len(octets(value))]) + octets(value)
    notification = decode_notification(package)
    assert notification.preferred_connections == preferred
    assert tuple(notification.skipped_connections) == skipped


def test_each_connection_type_has_its_octet() -> None:
    """5.3.4: 0 not specified, 1 mobile, 2 wireless, 3 wireline."""
    assert [member.value for member in ConnectionType] == ["any", "mobile", "wireless", "wireline"]


def test_server_id_is_normalised_to_nfc() -> None:
    """5.3: compared after NFC; the octets are kept."""
    decomposed = octets("20 80 00 01 10 04 6D 6F CC 88")
    notification = decode_notification(decomposed)
    assert notification.server_id == "mö"
    assert notification.octets == decomposed
    assert encode_notification(1, server_id="mo\u0308") == octets("20 80 00 01 10 03 6D C3 B6")


def test_mo_indexes_keep_order_and_repeats() -> None:
    """5.3: there is no registry, so any number is legal, in any order."""
    assert decode_notification(octets("20 80 00 01 30 06 00 09 00 01 00 09")).requested_mos == (9, 1, 9)


def test_unknown_option_has_any_value() -> None:
    """5.3: from 6 on, skipped by their Length and passed on."""
    package = octets("21 00 00 01 60 04 FF 00 C0 AF 10 00")
    assert decode_notification(package).unknown_options == ((6, octets("FF 00 C0 AF")), (7, b""))


class Unfit(NamedTuple):
    """Arguments of `encode_notification` that do not fit their field."""

    message: str
    notification_id: int = 1
    server_id: str | None = None
    preferred_connections: Iterable[ConnectionType] | None = None
    requested_mos: Iterable[int] | None = None
    cached_mos: Iterable[CachedMo] | None = None
    sent_at: int | None = None
    unknown_options: Sequence[tuple[int, bytes]] = ()
    reserved: int = 0


@pytest.mark.parametrize(
    "unfit",
    [
        Unfit("NOTIFICATION-ID is 0 to 65535, not 65536", notification_id=65536),
        Unfit("NOTIFICATION-ID is 0 to 65535, not -1", notification_id=-1),
        Unfit("RESERVED is 0 to 127, not 128", reserved=128),
        Unfit("RESERVED is 0 to 127, not -1", reserved=-1),
        Unfit("SERVER-ID is empty", server_id=""),
        Unfit(r"SERVER-ID holds U\+0000", server_id="\0"),
        Unfit("codec can't encode", server_id="\ud800"),
        Unfit("length of SERVER-ID is 0 to 4095, not 4096", server_id="a" * 4096),
        Unfit("MO index is 0 to 65535, not 65536", requested_mos=[1, 65536]),
        Unfit("MO index is 0 to 65535, not -1", cached_mos=[(-1, bytes(4))]),
        Unfit("a cache validator has 4 octets, not 3", cached_mos=[(1, bytes(3))]),
        Unfit("length of REQ-MO is 0 to 4095, not 4096", requested_mos=[0] * 2048),
        Unfit("time is 0 to 4294967295, not 4294967296", sent_at=2**32),
        Unfit("time is 0 to 4294967295, not -1", sent_at=-1),
        Unfit("length of 6 is 0 to 4095, not 4096", unknown_options=[(6, bytes(4096))]),
        Unfit("Option Number 16 cannot follow 0: the Delta is 1 to 15", unknown_options=[(16, b"")]),
        Unfit("Option Number 0 cannot follow 0", unknown_options=[(0, b"")]),
        Unfit("Option Number 22 cannot follow 6", unknown_options=[(22, b""), (6, b"")]),
        Unfit("an unknown Option is given twice", unknown_options=[(6, b""), (6, b"a")]),
        Unfit(
            "an unknown Option is given twice, or has the Option Number of a standard one", unknown_options=[(1, b"a")]
        ),
        Unfit("number of Options is 0 to 31, not 32", unknown_options=[(number, b"") for number in range(6, 38)]),
    ],
    ids=lambda unfit: unfit.message,
)
def test_value_that_does_not_fit_its_field_is_not_encoded(unfit: Unfit) -> None:
    """5.1, 5.2, 5.3: ValueError, rather than other octets."""
    with pytest.raises(ValueError, match=unfit.message):
        encode_notification(
            unfit.notification_id,
            server_id=unfit.server_id,
            preferred_connections=unfit.preferred_connections,
            requested_mos=unfit.requested_mos,
            cached_mos=unfit.cached_mos,
            sent_at=unfit.sent_at,
            unknown_options=unfit.unknown_options,
            reserved=unfit.reserved,
        )


@pytest.mark.parametrize("length", [0, 31, 33])
def test_digest_of_another_length_is_not_encoded(length: int) -> None:
    """5.3.5: 32 octets."""
    with pytest.raises(ValueError, match="32"):
        encode_notification(1, sent_at=0, digest=bytes(length))
