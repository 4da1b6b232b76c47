"""Verification of digest and age, in this order (5.3.5)."""

import pytest

from dmnotid.errors import DigestMismatch, Discard
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification, verify
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import Clock, Freshness, ServerTimes
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import Notification, decode_notification, encode_notification

SECRET = b"seven gulls over the pier"
SERVER = Server("dm.example", SECRET)
SOURCE = Source("192.0.2.7", 40000)
NOW = 1_800_000_000
CLOCK = Clock(NOW)
FRESHNESS = Freshness(max_skew=600)


def signed(sent_at: int = NOW, *, secret: bytes = SECRET, server_id: str | None = "dm.example") -> Notification:
    return decode_notification(sign(encode_notification(7, server_id=server_id, sent_at=sent_at), secret))


UNSIGNED = decode_notification(encode_notification(7, server_id="dm.example"))
ZERO_DIGEST = decode_notification(encode_notification(7, server_id="dm.example", sent_at=NOW))


def reason(notification: Notification, server: Server = SERVER, clock: Clock = CLOCK) -> str | None:
    """Return the reason for which `verify` refuses, or None."""
    try:
        verify(notification, server, SOURCE, clock, FRESHNESS)
    except Discard as discard:
        return discard.reason
    return None


@pytest.mark.parametrize("clock", [CLOCK, Clock(60.0, believed=False)])
def test_signed_notification_is_verified(clock: Clock) -> None:
    """5.3.5: the only way to a VerifiedNotification."""
    notification = signed()
    assert verify(notification, SERVER, SOURCE, clock, FRESHNESS) == VerifiedNotification(
        notification, "dm.example", SOURCE, clock.now, clock_believed=clock.believed, secret="current"
    )


def test_notification_without_server_id_gets_that_of_its_server() -> None:
    verified = verify(signed(server_id=None), SERVER, SOURCE, CLOCK, FRESHNESS)
    assert verified.notification.server_id is None
    assert verified.server_id == "dm.example"


@pytest.mark.parametrize("require_digest", [True, False])
@pytest.mark.parametrize(
    ("notification", "secret", "answer"),
    [
        (signed(), SECRET, None),
        (signed(secret=b"other"), SECRET, "digest-mismatch"),
        (ZERO_DIGEST, SECRET, "digest-mismatch"),
        (signed(), None, "secret-not-provisioned"),
        # An absent secret is not the empty one.
        (signed(secret=b""), None, "secret-not-provisioned"),
        (signed(secret=b""), b"", None),
    ],
)
def test_digest_is_checked_even_if_none_is_required(
    notification: Notification, secret: bytes | None, answer: str | None, *, require_digest: bool
) -> None:
    """5.3.5."""
    assert reason(notification, Server("dm.example", secret, require_digest=require_digest)) == answer


FORMER = b"eight gulls over the quay"
CHANGING = Server("dm.example", SECRET, former_secret=FORMER, former_until=NOW + 1.0)


@pytest.mark.parametrize(
    ("server", "clock", "secret", "answer"),
    [
        (CHANGING, CLOCK, SECRET, "current"),
        (CHANGING, CLOCK, FORMER, "former"),
        (CHANGING, Clock(NOW + 0.999), FORMER, "former"),
        (CHANGING, Clock(NOW + 1.0), FORMER, "digest-mismatch"),
        (CHANGING, Clock(NOW + 1.0), SECRET, "current"),
        # A clock that is not believed ends nothing.
        (CHANGING, Clock(NOW + 1.0, believed=False), FORMER, "former"),
        (CHANGING._replace(former_until=None), Clock(NOW + 1.0), FORMER, "former"),
        # The current one may be missing where it could not be read.
        (CHANGING._replace(secret=None), CLOCK, FORMER, "former"),
        (CHANGING._replace(secret=None), CLOCK, SECRET, "digest-mismatch"),
        (CHANGING, CLOCK, b"another", "digest-mismatch"),
    ],
)
def test_notification_is_verified_with_either_secret_while_a_server_changes_them(
    server: Server, clock: Clock, secret: bytes, answer: str
) -> None:
    """5.3.5."""
    notification = signed(secret=secret)
    found = reason(notification, server, clock) or verify(notification, server, SOURCE, clock, FRESHNESS).secret
    assert found == answer


def test_unsigned_notification_has_no_secret() -> None:
    server = CHANGING._replace(require_digest=False)
    assert verify(UNSIGNED, server, SOURCE, CLOCK, FRESHNESS).secret is None


def test_discard_names_the_former_secret_after_its_end() -> None:
    with pytest.raises(DigestMismatch) as caught:
        verify(signed(secret=FORMER), CHANGING, SOURCE, Clock(NOW + 1.0), FRESHNESS)
    assert caught.value.former_until == CHANGING.former_until
    assert "former secret of 'dm.example'" in str(caught.value)


@pytest.mark.parametrize("server", [SERVER, Server("dm.example")])
def test_unsigned_notification_is_refused_by_default(server: Server) -> None:
    """5.3.5: otherwise anyone could leave the Option out."""
    assert reason(UNSIGNED, server) == "digest-missing"


@pytest.mark.parametrize("clock", [CLOCK, Clock(0.0), Clock(0.0, servers={"dm.example": ServerTimes(0, 2**32 - 1)})])
def test_unsigned_notification_has_no_age(clock: Clock) -> None:
    """5.3.5: the time is in the Option of the digest."""
    assert reason(UNSIGNED, Server("dm.example", SECRET, require_digest=False), clock) is None


@pytest.mark.parametrize(
    ("notification", "server", "answer"),
    [
        (signed(0), Server("dm.example"), "secret-not-provisioned"),
        (signed(0, secret=b"other"), SERVER, "digest-mismatch"),
        (signed(2**32 - 1, secret=b"other"), SERVER, "digest-mismatch"),
        (signed(0), SERVER, "stale"),
        (signed(2**32 - 1), SERVER, "from-the-future"),
    ],
)
def test_age_is_checked_after_the_digest(notification: Notification, server: Server, answer: str) -> None:
    """5.3.5: a forger learns nothing about the clock."""
    assert reason(notification, server) == answer
