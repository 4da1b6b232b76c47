"""What a session is, from its request to its end (5.3.4)."""

import pytest

from dmnotid.policy.sessions import Limits, Outcome, Result, SessionRequest
from dmnotid.wire.notification import decode_notification, encode_notification

REQUEST = SessionRequest(1, "a", decode_notification(encode_notification(1)), "192.0.2.7:9", 5.0, 0, 0, 50)


def test_limits_have_their_defaults() -> None:
    """5.3.4: one session at a time, 16 queued for a server, a week of waiting."""
    assert Limits() == Limits(concurrency=1, max_pending=16, expire_after=604_800)


def test_server_id_is_given_or_discovered() -> None:
    """5.3."""
    named = decode_notification(encode_notification(1, server_id="a"))
    assert REQUEST.server_id_from == "discovered"
    assert REQUEST._replace(notification=named).server_id_from == "given"


def test_log_facts_have_the_last_try_unless_given() -> None:
    facts = {"session": 1, "server_id": "a", "notification_id": 1, "attempt": 3}
    assert REQUEST._replace(attempts=3).log_facts() == facts
    assert REQUEST._replace(attempts=3).log_facts(4) == facts | {"attempt": 4}


@pytest.mark.parametrize(("more", "least", "expires_at"), [(7, 60, 57), (-7, 9, 43), (-7, 45, 45), (-7, 60, 50)])
def test_time_is_added_and_taken_away(more: float, least: float, expires_at: float) -> None:
    assert REQUEST.with_time(more, least).expires_at == expires_at


@pytest.mark.parametrize(("last_line", "summary"), [("", "exit 7"), ("no route to host", "exit 7: no route to host")])
def test_summary_has_the_last_line_of_output_if_there_is_one(last_line: str, summary: str) -> None:
    assert Outcome(Result.FAILED, "exit 7", last_line).summary == summary
