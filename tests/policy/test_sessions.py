"""What a session is, from its request to its end (5.3.4)."""

import pytest

from dmnotid.policy.sessions import Limits, SessionRequest
from dmnotid.wire.notification import decode_notification, encode_notification


def request(*, attempts: int = 0, expires_at: float = 1000) -> SessionRequest:
    notification = decode_notification(encode_notification(1))
    return SessionRequest(1, "a", notification, "192.0.2.7:9", 5.0, attempts, 0, expires_at)


def test_limits() -> None:
    """5.3.4: one session at a time, 16 waiting for a server, a week of waiting."""
    assert Limits() == Limits(concurrency=1, max_pending=16, expire_after=604_800)


def test_request_moves_on() -> None:
    """5.3.4: only how often it was tried, and when it is tried again."""
    first = request()
    assert first.tried(4) == first._replace(attempts=4)
    assert first.later(99.5) == first._replace(not_before=99.5)


@pytest.mark.parametrize(("more", "least", "expires_at"), [(7, 60, 57), (-7, 9, 43), (-7, 45, 45), (-7, 60, 50)])
def test_more_or_less_time(more: float, least: float, expires_at: float) -> None:
    assert request(expires_at=50).with_time(more, least).expires_at == expires_at
