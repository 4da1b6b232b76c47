"""What holds for any octets and any notification, by Hypothesis (5, 5.3.5; WAP-230 8)."""

import hashlib
import string
import struct
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dmnotid.errors import DecodeError, Discard, TrailingOctets, Truncated
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification, verify
from dmnotid.policy.digest import compute_digest, is_signed_with, sign
from dmnotid.policy.freshness import Clock, Freshness
from dmnotid.policy.reception import Datagram, Rules, receive
from dmnotid.policy.routing import check_route
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import ConnectionType, Notification, decode_notification, encode_notification
from dmnotid.wire.octets import FieldValue, encode_uintvar, encode_value, normal_server_id, read_uintvar, read_value
from dmnotid.wire.wsp import FIELD_X_WAP_APPLICATION_ID, INTEGER_FIELDS, PushHeader, decode_push, encode_push

SECRET = b"lantern-and-rope-0042"
NOW = 1_800_000_000
SOURCE = Source("192.0.2.7", 40000)
CLOCK = Clock(NOW)
RULES = Rules(
    Servers(
        [
            Server("dm", SECRET),
            Server("open", require_digest=False),
            Server("near", b"x", sources=(ip_network("192.0.2.0/24"),)),
        ]
    ),
    max_header_octets=1000,
)

identities = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\ufeff"), min_size=1, max_size=40
) | st.just("dm")
u16 = st.integers(0, 0xFFFF)
preferences = st.lists(st.sampled_from(ConnectionType), unique=True).map(
    lambda wanted: wanted[: wanted.index(ConnectionType.ANY) + 1] if ConnectionType.ANY in wanted else wanted
)
unknown = st.dictionaries(st.integers(6, 15), st.binary(max_size=20), max_size=4)

arguments = st.fixed_dictionaries(
    {
        "notification_id": u16,
        "reserved": st.integers(0, 0x7F),
        "server_id": st.none() | identities,
        "preferred_connections": st.none() | preferences,
        "requested_mos": st.none() | st.lists(u16, max_size=20),
        "cached_mos": st.none() | st.lists(st.tuples(u16, st.binary(min_size=4, max_size=4)), max_size=10),
        "sent_at": st.none() | st.sampled_from([0, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1),
        "digest": st.binary(min_size=32, max_size=32),
        "unknown_options": unknown.map(lambda options: tuple(options.items())),
    }
)
"""Any arguments of encode_notification; Deltas above 15 can't come up."""

signed_packages = st.builds(
    lambda made: sign(encode_notification(**(made | {"server_id": "dm", "sent_at": NOW})), SECRET), arguments
)

tokens = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12)
text = st.text(st.characters(min_codepoint=1, max_codepoint=255), max_size=12).filter(
    lambda found: not found or " " <= found[0] <= "~" or found[0] >= "\x80"
)
field_values = st.integers(0, 127) | text | st.binary(max_size=40)
names = st.text(string.ascii_letters + "-", min_size=1, max_size=12)
further = st.lists(
    st.tuples(st.integers(0, 127), field_values).filter(
        lambda field: not (field[0] in INTEGER_FIELDS and isinstance(field[1], bytes) and len(field[1]) > 30)
    )
    | st.tuples(names, text)
    | st.binary(max_size=3).map(lambda octets: b"\x7f\x20" + encode_shifted(octets) + b"\x01"),
    max_size=5,
)


def encode_shifted(octets: bytes) -> bytes:
    """Encode an Application-ID on another page: nothing of interest."""
    return b"\xaf" + encode_value(octets)


def discarded(decode: Callable[[], object]) -> Discard | None:
    """Return the Discard it ends in, if it does; any other exception is a bug and comes through."""
    try:
        decode()
    except Discard as discard:
        return discard
    return None


def value_or_discard(decode: Callable[[], object]) -> None:
    """Any octets give a value or a Discard, and a Discard can be told in a line."""
    discard = discarded(decode)
    if discard is not None:
        assert len(str(discard).splitlines()) == 1
        assert discard.reason != Discard.reason


def pushes_of(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


likely_pushes = pushes_of(
    st.sampled_from([b"\x01\x06", b"\x00\x06\x80", b"\x01\x07"]),
    st.binary(max_size=60).flatmap(lambda block: st.just(bytes([len(block)]) + block)),
    st.binary(max_size=60),
)
likely_headers = pushes_of(
    st.lists(
        st.sampled_from(
            [b"\xaf\x87", b"\x7f\x02", b"\x01", b"\xaf\x02\x00\x07", b"a\0", b"\x7f\0", b"\x1f", b"\xb1", b"\x03"]
        )
        | st.binary(max_size=3),
        max_size=10,
    ).map(b"".join)
).map(lambda block: b"\x01\x06" + encode_uintvar(len(block) + 1) + b"\xd8" + block + b"\x20\x00\x00\x01")
likely_packages = pushes_of(
    st.sampled_from([b"\x20", b"\x21", b"\x22"]),
    st.binary(min_size=3, max_size=3),
    st.lists(
        st.tuples(st.integers(0, 7), st.binary(max_size=40)).map(
            lambda option: struct.pack(">H", option[0] << 12 | len(option[1])) + option[1]
        ),
        max_size=6,
    ).map(b"".join),
    st.binary(max_size=3),
)


@given(st.binary(max_size=200) | likely_pushes | likely_headers)
@example(b"")
@example(b"\x01\x06\x02\x01\x00")
def test_any_octets_are_a_push_or_a_discard(octets: bytes) -> None:
    """WAP-230 8.2.4.1."""
    value_or_discard(lambda: check_route(decode_push(octets, max_header_octets=100).header))


@given(st.binary(max_size=200) | likely_packages)
@example(b"")
def test_any_octets_are_a_notification_or_a_decode_error(octets: bytes) -> None:
    """5: and the offset lies within the octets."""
    error = discarded(lambda: decode_notification(octets))
    if error is None:
        assert decode_notification(octets).octets == octets
        return
    assert isinstance(error, DecodeError)
    assert 0 <= error.offset <= len(octets)
    assert error.excerpt == octets[error.offset : error.offset + 16]
    assert len(str(error).splitlines()) == 1


@given(
    st.binary(max_size=200)
    | likely_pushes
    | likely_headers
    | likely_packages.map(encode_push)
    | signed_packages.map(encode_push)
)
def test_any_octets_are_verified_or_discarded(octets: bytes) -> None:
    """4, 5, 6: the whole pure walk."""
    value_or_discard(lambda: receive(Datagram(octets, SOURCE, NOW), RULES, CLOCK))


@given(st.integers(0, 0xFFFF_FFFF), st.integers(0, 4), st.binary(max_size=3))
def test_uintvars_survive(value: int, padding: int, behind: bytes) -> None:
    """WAP-230 8.1.2: padded, too, as long as they fit in 5 octets."""
    encoded = encode_uintvar(value)
    encoded = b"\x80" * min(padding, 5 - len(encoded)) + encoded
    assert read_uintvar(b"\xff" + encoded + behind, 1, "f") == (value, 1 + len(encoded))


@given(field_values, st.binary(max_size=3))
def test_values_survive(value: int | str | bytes, behind: bytes) -> None:
    """WAP-230 8.4.1.2."""
    encoded = encode_value(value)
    assert read_value(b"\0" + encoded + behind, 1, "f") == (value, 1 + len(encoded))


@given(st.text(max_size=20))
def test_server_ids_are_one_after_nfc(identity: str) -> None:
    """5.3: what is fit to be one stays so, in whatever form it is written."""
    with suppress(ValueError):
        normal = normal_server_id(identity)
        assert normal_server_id(normal) == normal
        assert normal_server_id(unicodedata.normalize("NFD", identity)) == normal


def wanted(made: dict[str, Any], octets: bytes) -> Notification:
    """Say what a package made of these arguments means, by other means than the decoder's."""
    signed = made["sent_at"] is not None
    identity = made["server_id"]
    requested, cached = made["requested_mos"] or (), made["cached_mos"] or ()
    behind = sum(2 + len(value) for _, value in made["unknown_options"])
    return Notification(
        made["notification_id"],
        None if identity is None else unicodedata.normalize("NFC", identity),
        tuple(made["preferred_connections"] or ()),
        b"",
        struct.pack(f">{len(requested)}H", *requested),
        b"".join(struct.pack(">H", index) + validator for index, validator in cached),
        made["sent_at"],
        made["digest"] if signed else None,
        len(octets) - behind - 32 if signed else 0,
        tuple(sorted(made["unknown_options"])),
        octets,
    )


@given(arguments)
def test_notifications_survive(made: dict[str, Any]) -> None:
    """5.1, 5.2, 5.3: encode, then decode."""
    octets = encode_notification(**made)
    notification = decode_notification(octets)
    assert notification == wanted(made, octets)
    assert notification.requested_mos == tuple(made["requested_mos"] or ())
    assert notification.cached_mos == tuple(made["cached_mos"] or ())


@given(arguments, st.data())
def test_prefixes_and_extensions_are_refused(made: dict[str, Any], data: st.DataObject) -> None:
    """5.1, 5.2: a package ends where its last Option ends."""
    octets = encode_notification(**made)
    cut = data.draw(st.integers(0, len(octets) - 1))
    more = data.draw(st.binary(min_size=1, max_size=80))
    assert fails(octets[:cut]) is Truncated
    assert fails(octets + more) is TrailingOctets


def fails(octets: bytes) -> type[Discard] | None:
    """Return the class of the Discard a package ends in."""
    discard = discarded(lambda: decode_notification(octets))
    return None if discard is None else type(discard)


@given(
    st.integers(0, 255),
    st.binary(max_size=20),
    st.integers(0, 2**16) | tokens,
    st.none() | st.integers(0, 127) | text,
    further,
)
def test_pushes_survive(
    tid: int,
    package: bytes,
    content_type: int | str,
    application: int | str | None,
    more: list[tuple[int | str, int | str | bytes] | bytes],
) -> None:
    """WAP-230 8.2.4.1, 8.4.2.x: encode, then decode."""
    octets = encode_push(package, tid=tid, content_type=content_type, application=application, further=more)
    push = decode_push(octets, max_header_octets=1000)
    ids: list[FieldValue] = [] if application is None else [application]
    ids += [field[1] for field in more if isinstance(field, tuple) and field[0] == FIELD_X_WAP_APPLICATION_ID]
    assert (push.tid, push.header, push.body) == (tid, PushHeader(content_type, tuple(ids)), package)
    assert octets[push.body_offset :] == package


def accepts(octets: bytes, servers: Servers = RULES.servers) -> VerifiedNotification | None:
    """Take a package as far as it goes, whatever the age: the digest alone decides."""
    try:
        notification = decode_notification(octets)
        server = servers.find(notification, SOURCE)
        return verify(notification, server, SOURCE, Clock(0, believed=False), Freshness())
    except Discard:
        return None


ONE_SERVER = Servers([Server("dm", SECRET)])


@given(signed_packages, st.data())
def test_any_flipped_bit_is_refused(octets: bytes, data: st.DataObject) -> None:
    """5.3.5: the digest covers the header, RESERVED, every Option and the time."""
    assert accepts(octets, ONE_SERVER)
    bit = data.draw(st.integers(0, len(octets) * 8 - 1))
    flipped = bytearray(octets)
    flipped[bit // 8] ^= 1 << bit % 8
    assert accepts(bytes(flipped), ONE_SERVER) is None


def test_every_flipped_bit_of_one_package_is_refused() -> None:
    """5.3.5."""
    octets = sign(
        encode_notification(
            0x1234,
            server_id="dm",
            preferred_connections=[ConnectionType.MOBILE, ConnectionType.ANY],
            requested_mos=[1],
            cached_mos=[(2, b"\xde\xad\xbe\xef")],
            sent_at=NOW,
            unknown_options=[(9, b"\0")],
        ),
        SECRET,
    )
    assert accepts(octets, ONE_SERVER)
    for bit in range(len(octets) * 8):
        flipped = bytearray(octets)
        flipped[bit // 8] ^= 1 << bit % 8
        assert accepts(bytes(flipped), ONE_SERVER) is None, f"octet {bit // 8}, bit {bit % 8}"


@given(signed_packages, st.data())
def test_no_prefix_and_no_extension_of_a_signed_package_passes(octets: bytes, data: st.DataObject) -> None:
    """5.3.5."""
    assert accepts(octets[: data.draw(st.integers(0, len(octets) - 1))], ONE_SERVER) is None
    assert accepts(octets + data.draw(st.binary(min_size=1, max_size=200)), ONE_SERVER) is None


# SHA-256 length extension: who holds a digest of secret || message goes on from it, without the secret.
PRIMES = [number for number in range(2, 312) if all(number % below for below in range(2, number))]
MASK = 0xFFFF_FFFF


def root_bits(number: int, power: int) -> int:
    """Return the first 32 bits of the fraction of a number's square or cube root (FIPS 180-4, 4.2.2 and 5.3.3)."""
    low, high = 0, number << 32
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle**power <= number << 32 * power else (low, middle)
    return low & MASK


ROUND_CONSTANTS = [root_bits(prime, 3) for prime in PRIMES]
INITIAL = tuple(root_bits(prime, 2) for prime in PRIMES[:8])


def rotated(word: int, *by: int) -> int:
    """Return the sum (xor) of a word rotated to the right by each number."""
    found = 0
    for count in by:
        found ^= word >> count | word << 32 - count
    return found & MASK


def compress(state: tuple[int, ...], block: bytes) -> tuple[int, ...]:
    """Return the state after one block of 64 octets (FIPS 180-4, 6.2.2)."""
    words = list(struct.unpack(">16I", block))
    for at in range(16, 64):
        near, far = words[at - 2], words[at - 15]
        small = (rotated(near, 17, 19) ^ near >> 10) + (rotated(far, 7, 18) ^ far >> 3)
        words.append(small + words[at - 7] + words[at - 16] & MASK)
    a, b, c, d, e, f, g, h = state
    for word, constant in zip(words, ROUND_CONSTANTS, strict=True):
        one = h + rotated(e, 6, 11, 25) + (e & f ^ ~e & g) + constant + word
        two = rotated(a, 2, 13, 22) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = one + two & MASK, a, b, c, d + one & MASK, e, f, g
    return tuple(old + new & MASK for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True))


def padding(length: int) -> bytes:
    """Return what SHA-256 puts behind a message of this length (FIPS 180-4, 5.1.1)."""
    return b"\x80" + bytes((55 - length) % 64) + struct.pack(">Q", length * 8)


def go_on(state: tuple[int, ...], octets: bytes) -> bytes:
    """Hash whole blocks from a state on."""
    for at in range(0, len(octets), 64):
        state = compress(state, octets[at : at + 64])
    return struct.pack(">8I", *state)


def forged(package: bytes, secret_length: int, suffix: bytes) -> bytes:
    """Extend a signed package by `suffix`, knowing only its octets and the length of the secret."""
    at = decode_notification(package).digest_at
    glue = padding(secret_length + len(package))
    hashed = secret_length + len(package) + len(glue)
    digest = go_on(struct.unpack(">8I", package[at : at + 32]), suffix + padding(hashed + len(suffix)))
    return package[:at] + digest + package[at + 32 :] + glue + suffix


@given(st.binary(max_size=150))
def test_this_sha256_is_sha256(octets: bytes) -> None:
    assert go_on(INITIAL, octets + padding(len(octets))) == hashlib.sha256(octets).digest()


@settings(max_examples=60)
@given(signed_packages, st.binary(max_size=100), st.binary(min_size=1, max_size=70))
@example(sign(encode_notification(7, server_id="dm", sent_at=NOW), SECRET), b"", SECRET)
def test_length_extension_is_refused(package: bytes, suffix: bytes, secret: bytes) -> None:
    """5.3.5: the forged digest fits the octets; what refuses them is that they go on behind the last Option."""
    package = sign(package, secret)
    forgery = forged(package, len(secret), suffix)
    at = decode_notification(package).digest_at
    zeroed = forgery[:at] + bytes(32) + forgery[at + 32 :]
    assert hashlib.sha256(secret + zeroed).digest() == forgery[at : at + 32]
    assert fails(forgery) is TrailingOctets


@given(signed_packages, st.integers(0, 31), st.binary(max_size=40))
def test_length_extension_with_other_option_counts_is_refused(package: bytes, count: int, suffix: bytes) -> None:
    """5.3.5: a forger who changes OC to take the suffix in changes what was hashed."""
    forgery = forged(package, len(SECRET), suffix)
    first = struct.unpack_from(">H", forgery)[0] & ~(0x1F << 7) | count << 7
    assert accepts(struct.pack(">H", first) + forgery[2:], ONE_SERVER) is None


@given(arguments, st.binary(max_size=40), st.binary(max_size=40))
def test_digests_fit_their_secret_alone(made: dict[str, Any], secret: bytes, other: bytes) -> None:
    """5.3.5."""
    notification = decode_notification(sign(encode_notification(**(made | {"sent_at": 0})), secret))
    assert is_signed_with(notification, secret)
    assert is_signed_with(notification, other) is (secret == other)
    assert compute_digest(notification, secret) == notification.digest
