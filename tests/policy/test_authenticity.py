"""SHA256-DIGEST (5.3.5) and age."""

import hashlib

import pytest

from dmnotid import RELEASED_AT
from dmnotid.errors import (
    DecodeError,
    DigestMismatch,
    DigestMissing,
    Discard,
    FromTheFuture,
    SecretNotProvisioned,
    Stale,
)
from dmnotid.policy import authenticity
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import (
    Clock,
    Freshness,
    VerifiedNotification,
    compute_digest,
    find_signers,
    judge_clock,
    show_time,
    sign,
    verify,
)
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import Notification, decode_notification, encode_notification

SECRET = b"seven gulls over the pier"
SERVER = Server("dm.example", SECRET)
SOURCE = Source("192.0.2.7", 40000)
NOW = 1_800_000_000.0
CLOCK = Clock(NOW)
FRESHNESS = Freshness()
DAY, SKEW = 86_400, 600


def signed(sent_at: int = int(NOW), *, secret: bytes = SECRET, server_id: str | None = "dm.example") -> Notification:
    return decode_notification(sign(encode_notification(7, server_id=server_id, sent_at=sent_at), secret))


UNSIGNED = decode_notification(encode_notification(7, server_id="dm.example"))


def reason(notification: Notification, server: Server = SERVER, clock: Clock = CLOCK) -> str | None:
    """Return the reason for which `verify` refuses, or None."""
    try:
        verify(notification, server, SOURCE, clock, FRESHNESS)
    except Discard as discard:
        return discard.reason
    return None


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_735_689_599.999, "2024-12-31T23:59:59Z"),
        (0xFFFF_FFFF, "2106-02-07T06:28:15Z"),
    ],
)
def test_times_are_shown_in_utc(seconds: float, shown: str) -> None:
    assert show_time(seconds) == shown


PACKAGES = {
    "digest-alone": ("20 80 00 01 50 24 6B 49 D2 00", ""),
    "digest-last": ("22 2A BE EF 10 02 64 6D 10 01 02 10 02 00 01 20 24 6B 49 D2 00", ""),
    "digest-inside": ("21 80 BE EF 10 02 64 6D 40 24 6B 49 D2 00", "10 02 AB CD"),
}


@pytest.mark.parametrize(("before", "behind"), PACKAGES.values(), ids=PACKAGES)
@pytest.mark.parametrize("secret", [b"", b"s", SECRET, bytes(range(256))], ids=len)
def test_digest_is_over_the_secret_and_the_package_with_zeros(before: str, behind: str, secret: bytes) -> None:
    """5.3.5: SHA-256(secret || package), zeros where the digest stands; by hashlib alone."""
    start, end = bytes.fromhex(before), bytes.fromhex(behind)
    digest = hashlib.sha256(secret + start + bytes(32) + end).digest()
    package = start + digest + end
    notification = decode_notification(package)
    assert compute_digest(notification, secret) == digest
    assert find_signers(notification, [Server("b", secret + b"!"), Server("a", secret)]) == [Server("a", secret)]
    assert sign(start + b"\xff" * 32 + end, secret) == package


@pytest.mark.parametrize("server", [Server("dm.example"), Server("dm.example", require_digest=False)])
def test_without_secret_no_digest_fits(server: Server) -> None:
    """5.3.5: nor the one made with an empty secret."""
    assert find_signers(signed(secret=b""), [server]) == []


def test_without_digest_nothing_fits() -> None:
    """5.3.5."""
    assert find_signers(UNSIGNED, [SERVER]) == []


def test_signers_are_all_whose_secret_fits() -> None:
    """5.3.5: a server without a secret is none, also not of a digest made with an empty one."""
    servers = [Server("a", b"1"), Server("b", b"2"), Server("none"), Server("c", b"1"), Server("empty", b"")]
    assert [server.id for server in find_signers(signed(secret=b"1"), servers)] == ["a", "c"]
    assert [server.id for server in find_signers(signed(secret=b""), servers)] == ["empty"]
    assert find_signers(signed(secret=b"3"), servers) == []


def test_every_secret_is_tried_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """5.3.5: also those behind the one that fits, so that the time taken tells nothing; by hmac.compare_digest."""
    asked = []

    def compare(left: bytes, right: bytes) -> bool:
        asked.append(left)
        return left == right

    monkeypatch.setattr(authenticity, "compare_digest", compare)
    notification, servers = signed(secret=b"1"), [Server("a", b"1"), Server("b", b"2"), Server("c", b"3")]
    assert find_signers(notification, servers) == servers[:1]
    assert asked == [compute_digest(notification, secret) for secret in (b"1", b"2", b"3")]


def test_digest_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """5.3.5: by hmac.compare_digest, whatever it says."""
    asked = []

    def compare(left: bytes, right: bytes) -> bool:
        asked.append((left, right))
        return False

    monkeypatch.setattr(authenticity, "compare_digest", compare)
    notification = signed()
    with pytest.raises(DigestMismatch):
        verify(notification, SERVER, SOURCE, CLOCK, FRESHNESS)
    assert asked == [(notification.digest, notification.digest)]


def test_sign_needs_the_option() -> None:
    """5.3.5."""
    with pytest.raises(ValueError, match=r"^the package has no SHA256-DIGEST Option to put the digest into$"):
        sign(encode_notification(1), SECRET)


def test_sign_needs_a_package() -> None:
    with pytest.raises(DecodeError):
        sign(encode_notification(1, sent_at=0) + b"\0", SECRET)


def test_verified() -> None:
    """5.3.5: the one way to a VerifiedNotification."""
    notification = signed()
    assert verify(notification, SERVER, SOURCE, CLOCK, FRESHNESS) == VerifiedNotification(
        notification, "dm.example", SOURCE, NOW, clock_believed=True
    )
    lost = Clock(60.0, believed=False)
    assert verify(notification, SERVER, SOURCE, lost, FRESHNESS) == VerifiedNotification(
        notification, "dm.example", SOURCE, 60.0, clock_believed=False
    )


def test_verified_without_server_id_is_the_servers() -> None:
    """5.3.5: where SERVER-ID is absent, the server found stands in."""
    verified = verify(signed(server_id=None), SERVER, SOURCE, CLOCK, FRESHNESS)
    assert verified.notification.server_id is None
    assert verified.server_id == "dm.example"


def test_digest_mismatch() -> None:
    """5.3.5."""
    with pytest.raises(DigestMismatch, match=r"^the digest was not made with the secret of 'dm.example' over these"):
        verify(signed(secret=b"other"), SERVER, SOURCE, CLOCK, FRESHNESS)


def test_zero_digest_is_a_mismatch() -> None:
    """5.3.5: the zeros that stand in while it is computed are no digest."""
    zero = decode_notification(encode_notification(7, server_id="dm.example", sent_at=int(NOW)))
    assert reason(zero) == "digest-mismatch"


@pytest.mark.parametrize("require_digest", [True, False])
def test_secret_not_provisioned(*, require_digest: bool) -> None:
    """5.3.5: a digest nobody can check is refused even where none is required."""
    server = Server("dm.example", require_digest=require_digest)
    with pytest.raises(SecretNotProvisioned, match=r"^signed, and no secret is provisioned for 'dm.example'$"):
        verify(signed(), server, SOURCE, CLOCK, FRESHNESS)


def test_wrong_digest_is_refused_where_none_is_required() -> None:
    """5.3.5."""
    server = Server("dm.example", SECRET, require_digest=False)
    assert reason(signed(secret=b"other"), server) == "digest-mismatch"
    assert reason(signed(), server) is None


def test_digest_missing() -> None:
    """5.3.5: required by default, else anyone signs off by leaving the Option out."""
    with pytest.raises(DigestMissing, match=r"^'dm.example' must sign, and SHA256-DIGEST is absent$"):
        verify(UNSIGNED, SERVER, SOURCE, CLOCK, FRESHNESS)
    assert reason(UNSIGNED, Server("dm.example")) == "digest-missing"


@pytest.mark.parametrize("clock", [CLOCK, Clock(0.0), Clock(0.0, believed=False, newest=2**32 - 1)])
def test_unsigned_has_no_age(clock: Clock) -> None:
    """5.3.5: where none is required; the time is in the digest's Option."""
    assert reason(UNSIGNED, Server("dm.example", SECRET, require_digest=False), clock) is None


@pytest.mark.parametrize(
    ("sent_at", "answer"),
    [
        (NOW, None),
        (NOW - DAY, None),
        (NOW - DAY - 1, "stale"),
        (NOW + SKEW, None),
        (NOW + SKEW + 1, "from-the-future"),
        (0, "stale"),
        (2**31, "from-the-future"),
        (2**32 - 1, "from-the-future"),
    ],
)
@pytest.mark.parametrize("newest", [None, 0, int(NOW), 2**32 - 1])
def test_age_by_a_believed_clock(sent_at: float, answer: str | None, newest: int | None) -> None:
    """5.3.5: 24 h back and 10 min ahead, the borders included; the time is unsigned; `newest` has no say."""
    assert reason(signed(int(sent_at)), clock=Clock(NOW, believed=True, newest=newest)) == answer


def test_age_counts_fractions_of_a_second() -> None:
    """5.3.5: the clock has them."""
    assert reason(signed(int(NOW) - DAY), clock=Clock(NOW + 0.001)) == "stale"
    assert reason(signed(int(NOW) + SKEW), clock=Clock(NOW - 0.001)) == "from-the-future"


@pytest.mark.parametrize("now", [0.0, 100.0, NOW, 2.0**33])
@pytest.mark.parametrize(
    ("sent_at", "newest", "answer"),
    [
        (NOW, None, None),
        (0, None, None),
        (2**32 - 1, None, None),
        (NOW, NOW, None),
        (NOW + 2**28, NOW, None),
        (NOW - DAY, NOW, None),
        (NOW - DAY - 1, NOW, "stale"),
        (0, 0, None),
    ],
)
def test_age_by_a_clock_that_is_not_believed(now: float, sent_at: float, newest: float | None, answer: str) -> None:
    """5.3.5: from the newest authenticated time, if there is one; nothing is from the future."""
    clock = Clock(now, believed=False, newest=None if newest is None else int(newest))
    assert reason(signed(int(sent_at)), clock=clock) == answer


def test_age_messages() -> None:
    with pytest.raises(Stale, match=r"^sent 86401 s before the clock, at most 86400 are taken$"):
        verify(signed(int(NOW) - DAY - 1), SERVER, SOURCE, CLOCK, FRESHNESS)
    clock = Clock(5.0, believed=False, newest=int(NOW))
    newest = r"the newest authenticated time \(2027-01-15T08:00:00Z\)"
    with pytest.raises(Stale, match=rf"^sent 86402 s before {newest}, at most 86400 are taken$"):
        verify(signed(int(NOW) - DAY - 2), SERVER, SOURCE, clock, FRESHNESS)
    with pytest.raises(FromTheFuture, match=r"^sent 601 s ahead of the clock, at most 600 are taken$"):
        verify(signed(int(NOW) + SKEW + 1), SERVER, SOURCE, CLOCK, FRESHNESS)


def test_freshness_is_configured() -> None:
    """5.3.5."""
    narrow = Freshness(max_age=10, max_skew=0)
    verify(signed(int(NOW) - 10), SERVER, SOURCE, CLOCK, narrow)
    with pytest.raises(Stale):
        verify(signed(int(NOW) - 11), SERVER, SOURCE, CLOCK, narrow)
    with pytest.raises(FromTheFuture):
        verify(signed(int(NOW) + 1), SERVER, SOURCE, CLOCK, narrow)


@pytest.mark.parametrize(
    ("notification", "server", "answer"),
    [
        (signed(0), Server("dm.example"), "secret-not-provisioned"),
        (signed(0, secret=b"other"), SERVER, "digest-mismatch"),
        (signed(2**32 - 1, secret=b"other"), SERVER, "digest-mismatch"),
        (signed(0), SERVER, "stale"),
    ],
)
def test_order_of_checks(notification: Notification, server: Server, answer: str) -> None:
    """5.3.5: secret, digest, age: a forger learns nothing of the clock."""
    assert reason(notification, server) == answer


LATER = float(RELEASED_AT + 10_000_000)


@pytest.mark.parametrize(
    ("now", "newest", "believed"),
    [
        (RELEASED_AT, None, True),
        (RELEASED_AT - 1, None, False),
        (0, None, False),
        (LATER, None, True),
        (LATER, 0, True),
        (LATER, LATER, True),
        (LATER, LATER + SKEW, True),
        (LATER, LATER + SKEW + 1, False),
        (RELEASED_AT - 1, 0, False),
        (RELEASED_AT - 1, RELEASED_AT - 1, False),
    ],
)
def test_clock_is_judged(now: float, newest: float | None, *, believed: bool) -> None:
    """5.3.5: not behind the release, nor behind the newest authenticated time by more than the skew."""
    at_newest = None if newest is None else int(newest)
    assert judge_clock(now, at_newest, SKEW) == Clock(now, believed, at_newest)


def test_clock_is_judged_by_another_release() -> None:
    assert judge_clock(99, None, SKEW, released_at=100) == Clock(99, believed=False, newest=None)
    assert judge_clock(100, None, SKEW, released_at=100) == Clock(100, believed=True, newest=None)
