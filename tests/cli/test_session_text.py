"""Sessions as rows of a table, and all facts of one."""

from typing import Any

import pytest

from dmnotid.cli.session_text import MAX_WHY, after_retry, facts, next_try, not_retried, row, why
from tests.cli.examples import DONE, NOW, RUNNING, SESSION, WAITING

pytestmark = pytest.mark.usefixtures("utc")


def test_row_of_a_pending_session_has_its_age() -> None:
    assert row(SESSION, NOW) == ("607", "acme.example", "2000", "3 min", "paused", "1/10", "in 12 s", "exit 7")


def test_row_of_a_closed_session_has_its_end() -> None:
    cells = ("609", "acme.example", "2000", "19:50:00", "done", "1/10", "19:52:20", "exit 0 over eth0 (wireline)")
    assert row(DONE, NOW, times=True) == cells


def test_last_column_is_shortened() -> None:
    assert row(SESSION | {"why": "x" * 200}, NOW)[-1] == f"{'x' * MAX_WHY}…"


@pytest.mark.parametrize(
    ("session", "text"),
    [
        (SESSION, "exit 7"),
        (RUNNING, "eth0 (wireline), pid 2045, 4 s of 10 min"),
        (WAITING, "no mobile interface; expires on 2026-12-06"),
        (DONE, "exit 0 over eth0 (wireline)"),
        (WAITING | {"state": "expired", "closed": NOW, "why": "", "outcome": "not started"}, "not started"),
        (WAITING | {"state": "cancelled", "closed": NOW, "why": ""}, "-"),
        (DONE | {"state": "cancelled", "outcome": "cancelled by pid 7, uid 0"}, "cancelled by pid 7, uid 0"),
        (DONE | {"state": "failed", "outcome": "exit 7, given up"}, "exit 7, given up over eth0 (wireline)"),
    ],
)
def test_why_explains_the_state(session: dict[str, Any], text: str) -> None:
    assert why(session) == text


@pytest.mark.parametrize(("at", "text"), [(NOW + 90, "in 1 min"), (NOW - 1, "-"), (None, "-")])
def test_next_try_is_shown_if_time_alone_decides_it(at: float | None, text: str) -> None:
    assert next_try(SESSION | {"next": at}, NOW) == text


def test_facts_of_a_session_end_with_the_commands_for_its_log() -> None:
    assert list(facts(SESSION | {"server": "it's"})) == [
        ("session", "607"),
        ("server", "it's"),
        ("NOTIFICATION-ID", "2000"),
        ("accepted", "2026-11-29 19:50:00 from 192.0.2.1:40000"),
        ("signed", "yes"),
        ("prefers", "mobile, wireless"),
        ("state", "paused"),
        ("because", "exit 7"),
        ("tries", "1 of 10"),
        ("last try", "2026-11-29 19:52:32 over eth0 (wireline)"),
        ("next try", "2026-11-29 19:53:32"),
        ("expires", "2026-12-06 18:33:20"),
        ("log", "journalctl -u dmnotid DMNOTID_SESSION=607"),
        ("with repeats", """journalctl -u dmnotid 'DMNOTID_SERVER_ID=it'"'"'s' DMNOTID_NOTIFICATION_ID=2000"""),
    ]


def test_facts_of_a_session_without_a_try_have_no_connection() -> None:
    names = [name for name, _ in facts(WAITING | {"preferred": [], "expires": None})]
    assert not {"prefers", "last try", "outcome", "next try", "expires", "closed"}.intersection(names)


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (
            SESSION,
            RUNNING,
            f"session 611 of acme.example: running, {RUNNING['why']} (was paused until 19:53:32)",
        ),
        (DONE | {"state": "failed"}, SESSION, "session 607 of acme.example: paused, exit 7 (was failed)"),
    ],
)
def test_retry_shows_what_it_changed(before: dict[str, Any], after: dict[str, Any], text: str) -> None:
    assert after_retry(before, after, NOW) == text


def test_retry_of_a_session_that_is_not_paused_shows_its_state() -> None:
    text = "session 608 of dm.example.com is not paused: waiting, no mobile interface; expires on 2026-12-06"
    assert not_retried(WAITING) == text


def test_facts_have_an_outcome_that_is_not_the_reason() -> None:
    assert ("outcome", "exit 7") in list(facts(RUNNING))
