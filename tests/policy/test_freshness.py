"""Age, and the clock that it is measured by (5.3.5)."""

import pytest

from dmnotid import RELEASED_AT
from dmnotid.errors import Discard, FromTheFuture, Stale
from dmnotid.policy.freshness import Clock, Freshness, check_age, judge_clock

NOW = 1_800_000_000
DAY, SKEW = 86_400, 600
LATER = RELEASED_AT + 10_000_000


def reason(sent_at: int, clock: Clock, freshness: Freshness | None = None) -> str | None:
    """Return the reason for which `check_age` refuses, or None."""
    try:
        check_age(sent_at, clock, Freshness() if freshness is None else freshness)
    except Discard as discard:
        return discard.reason
    return None


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
@pytest.mark.parametrize("newest", [None, 0, NOW, 2**32 - 1])
def test_age_under_a_believed_clock_is_measured_from_it(sent_at: int, answer: str | None, newest: int | None) -> None:
    """5.3.5: 24 h back and 10 min ahead, limits included; the signed time is unsigned, and `newest` has no effect."""
    assert reason(sent_at, Clock(NOW, believed=True, newest=newest)) == answer


def test_age_counts_fractions_of_a_second() -> None:
    assert reason(NOW - DAY, Clock(NOW + 0.001)) == "stale"
    assert reason(NOW + SKEW, Clock(NOW - 0.001)) == "from-the-future"


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
def test_age_under_a_doubted_clock_is_measured_from_the_newest_time(
    now: float, sent_at: int, newest: int | None, answer: str | None
) -> None:
    """5.3.5: if there is one; nothing is from the future."""
    assert reason(sent_at, Clock(now, believed=False, newest=newest)) == answer


def test_refusals_carry_the_times() -> None:
    with pytest.raises(Stale) as stale:
        check_age(NOW - DAY - 1, Clock(NOW), Freshness())
    assert (stale.value.age, stale.value.max_age, stale.value.newest) == (DAY + 1, DAY, None)
    with pytest.raises(Stale) as stale:
        check_age(NOW - DAY - 2, Clock(5.0, believed=False, newest=NOW), Freshness())
    assert (stale.value.age, stale.value.max_age, stale.value.newest) == (DAY + 2, DAY, NOW)
    with pytest.raises(FromTheFuture) as future:
        check_age(NOW + SKEW + 1, Clock(NOW), Freshness())
    assert (future.value.ahead, future.value.max_skew) == (SKEW + 1, SKEW)


@pytest.mark.parametrize(
    ("sent_at", "answer"), [(NOW - 10, None), (NOW - 11, "stale"), (NOW, None), (NOW + 1, "from-the-future")]
)
def test_limits_are_those_of_the_configuration(sent_at: int, answer: str | None) -> None:
    assert reason(sent_at, Clock(NOW), Freshness(max_age=10, max_skew=0)) == answer


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
def test_clock_before_the_release_or_the_newest_time_is_doubted(
    now: float, newest: int | None, *, believed: bool
) -> None:
    """5.3.5: more than the skew before the newest authenticated time."""
    assert judge_clock(now, newest, SKEW) == Clock(now, believed, newest)


@pytest.mark.parametrize(("now", "believed"), [(99, False), (100, True)])
def test_release_date_is_an_argument(now: int, *, believed: bool) -> None:
    assert judge_clock(now, None, SKEW, released_at=100) == Clock(now, believed, None)
