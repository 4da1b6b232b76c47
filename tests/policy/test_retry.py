"""Whether a session is tried again, and when (5.3.4)."""

import pytest

from dmnotid.policy.retry import Retry, after_try
from dmnotid.policy.sessions import Closed, Outcome, Result

FAILED = Outcome(Result.FAILED, "exit 1")


@pytest.mark.parametrize("attempt", [1, 10, 11])
@pytest.mark.parametrize(("result", "closed"), [(Result.DONE, Closed.DONE), (Result.REFUSED, Closed.REFUSED)])
def test_done_and_refused_end_a_session(attempt: int, result: Result, closed: Closed) -> None:
    """5.3.4."""
    assert after_try(Outcome(result, ""), attempt, Retry(), 0) is closed


@pytest.mark.parametrize(
    ("attempt", "pause"), [(1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (9, 3600), (10, None), (11, None)]
)
def test_pauses_grow_until_the_tries_are_used_up(attempt: int, pause: float | None) -> None:
    """5.3.4: half a minute, doubled up to an hour, ten tries in all."""
    assert after_try(FAILED, attempt, Retry(), 0) == (Closed.FAILED if pause is None else pause)


@pytest.mark.parametrize(("jitter", "pause"), [(0, 40), (0.5, 35), (1, 30)])
def test_pause_is_shortened_by_a_quarter_at_most(jitter: float, pause: float) -> None:
    """5.3.4: so that a fleet does not call its server in step."""
    assert after_try(FAILED, 1, Retry(first=40), jitter) == pause
    assert after_try(FAILED, 5, Retry(first=40, longest=40), jitter) == pause


@pytest.mark.parametrize("attempt", [64, 10**6])
def test_pause_does_not_overflow_after_very_many_tries(attempt: int) -> None:
    """5.3.4."""
    retry = Retry(first=0.001, longest=1e300, attempts=10**9)
    assert after_try(FAILED, attempt, retry, 0) == 0.001 * 2.0**63


def test_single_try_is_not_repeated() -> None:
    """5.3.4."""
    assert after_try(FAILED, 1, Retry(attempts=1), 0) is Closed.FAILED
