"""Whether a session is tried again, and when (5.3.4)."""

import pytest

from dmnotid.policy.retry import Retry, after_try
from dmnotid.policy.sessions import Closed, Outcome, Result


@pytest.mark.parametrize("attempt", [1, 10, 11])
@pytest.mark.parametrize(("result", "closed"), [(Result.DONE, Closed.DONE), (Result.REFUSED, Closed.REFUSED)])
def test_settled_at_once(attempt: int, result: Result, closed: Closed) -> None:
    """5.3.4: done and refused need no further try."""
    assert after_try(Outcome(result, ""), attempt, Retry(), 0) is closed


@pytest.mark.parametrize(
    ("attempt", "pause"), [(1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (9, 3600), (10, None), (11, None)]
)
def test_pauses_grow(attempt: int, pause: float | None) -> None:
    """5.3.4: doubled up to an hour, ten tries in all."""
    settled = after_try(Outcome(Result.FAILED, "exit 1"), attempt, Retry(), 0)
    assert settled == (Closed.FAILED if pause is None else pause)


@pytest.mark.parametrize(("jitter", "pause"), [(0, 40), (0.5, 35), (1, 30)])
def test_pause_is_shortened_by_a_quarter_at_most(jitter: float, pause: float) -> None:
    """5.3.4: so that a fleet doesn't call its server in step."""
    assert after_try(Outcome(Result.FAILED, ""), 1, Retry(first=40), jitter) == pause
    assert after_try(Outcome(Result.FAILED, ""), 5, Retry(first=40, longest=40), jitter) == pause


def test_pause_of_very_many_tries() -> None:
    """5.3.4: no overflow, however many tries are configured."""
    retry = Retry(first=0.001, longest=1e300, attempts=10**9)
    assert after_try(Outcome(Result.FAILED, ""), 10**6, retry, 0) == 0.001 * 2.0**63
    assert after_try(Outcome(Result.FAILED, ""), 64, retry, 0) == 0.001 * 2.0**63


def test_one_try_in_all() -> None:
    """5.3.4."""
    assert after_try(Outcome(Result.FAILED, ""), 1, Retry(attempts=1), 0) is Closed.FAILED


def test_retry_by_default() -> None:
    """5.3.4: half a minute, doubled up to an hour, ten tries in all."""
    assert Retry() == Retry(first=30, longest=3600, attempts=10)
