"""Age, and the clock that it is measured by (5.3.5)."""

from collections.abc import Mapping

import pytest

from dmnotid import RELEASED_AT
from dmnotid.errors import Discard, FromTheFuture, Stale
from dmnotid.policy.freshness import MARGIN, Clock, Freshness, ServerTimes, check_age, judge_clock

NOW = 1_800_000_000
DAY, YEAR = 86_400, 365 * 86_400
LAST = 2**32 - 1
RELEASED = NOW - YEAR
LATER = RELEASED_AT + 10_000_000


def reason(sent_at: int, clock: Clock, freshness: Freshness | None = None) -> str | None:
    """Return the reason for which `check_age` refuses, or None."""
    try:
        check_age(sent_at, "dm", clock, Freshness() if freshness is None else freshness)
    except Discard as discard:
        return discard.reason
    return None


def doubted(now: float, newest: int = 0, forgotten: int = -1) -> Clock:
    """Return a clock that is not believed, on a device that knows these times of the server."""
    return Clock(now, believed=False, servers={"dm": ServerTimes(newest, forgotten)}, released_at=RELEASED)


@pytest.mark.parametrize(
    ("sent_at", "answer"),
    [
        (NOW, None),
        (NOW - DAY, None),
        (NOW - DAY - 1, "stale"),
        (0, "stale"),
        (NOW + MARGIN + 1, None),
        (NOW + 60 * DAY, None),
        (LAST, None),
    ],
)
@pytest.mark.parametrize("newest", [0, NOW, LAST])
def test_age_under_a_believed_clock_is_measured_from_it(sent_at: int, answer: str | None, newest: int) -> None:
    """5.3.5: 24 h back, the limit included, and any time ahead: the clock may be the one that is behind."""
    assert reason(sent_at, Clock(NOW, servers={"dm": ServerTimes(newest)})) == answer


def test_age_counts_fractions_of_a_second() -> None:
    assert reason(NOW - DAY, Clock(NOW + 0.001)) == "stale"
    assert reason(NOW + 600, Clock(NOW - 0.001), Freshness(max_skew=600)) == "from-the-future"


@pytest.mark.parametrize(
    ("sent_at", "newest", "answer"),
    [
        (RELEASED - DAY, 0, None),
        (RELEASED - DAY - 1, 0, "stale"),
        (RELEASED - DAY - 1, RELEASED - DAY - 1, "stale"),
        (RELEASED - 6 * YEAR, 0, "stale"),
        (NOW, 0, None),
        (LAST, 0, None),
        (NOW - DAY, NOW, None),
        (NOW - DAY - 1, NOW, "stale"),
        (NOW + YEAR, NOW, None),
    ],
)
@pytest.mark.parametrize("now", [0.0, 100_000.0, 2.0**33])
def test_age_under_a_doubted_clock_is_measured_from_the_release_or_the_newest_time_of_the_server(
    now: float, sent_at: int, newest: int, answer: str | None
) -> None:
    """5.3.5: from the later of the two."""
    assert reason(sent_at, doubted(now, newest)) == answer


@pytest.mark.parametrize(
    ("sent_at", "answer"),
    [(NOW - DAY - 1, "stale"), (NOW - DAY, None), (NOW, None), (NOW + MARGIN, None), (NOW + MARGIN + 1, "stale")],
)
def test_time_that_agrees_with_a_doubted_clock_is_not_stale(sent_at: int, answer: str | None) -> None:
    """5.3.5: a server that once signed 2106 is heard again, between `max_age` before the clock and 10 minutes ahead."""
    assert reason(sent_at, doubted(NOW, LAST)) == answer


@pytest.mark.parametrize("clock", [Clock(NOW), Clock(NOW, believed=False), Clock(0.0, believed=False)])
@pytest.mark.parametrize("freshness", [Freshness(), Freshness(max_age=10 * YEAR)])
def test_forgotten_notification_is_stale_whatever_clock_and_configuration_are(
    clock: Clock, freshness: Freshness
) -> None:
    """5.1.4: nothing remembers whether it was accepted."""
    clock = clock._replace(servers={"dm": ServerTimes(NOW, NOW - 60)})
    assert reason(NOW - 60, clock, freshness) == "stale"
    assert reason(NOW - 59, clock, freshness) is None


@pytest.mark.parametrize(
    "others", [{}, {"other": ServerTimes(LAST, LAST)}, {"other": ServerTimes(0, LAST), "third": ServerTimes(LAST)}]
)
@pytest.mark.parametrize("believed", [True, False])
def test_times_of_another_server_have_no_effect(others: Mapping[str, ServerTimes], *, believed: bool) -> None:
    """5.3.5: no server can shut out another."""
    clock = Clock(NOW if believed else 100.0, believed=believed, servers=others, released_at=RELEASED)
    assert reason(NOW, clock) is None


@pytest.mark.parametrize(
    ("sent_at", "max_skew", "answer"),
    [
        (NOW + 600, 600, None),
        (NOW + 601, 600, "from-the-future"),
        (LAST, 600, "from-the-future"),
        (NOW, 0, None),
        (NOW + 1, 0, "from-the-future"),
    ],
)
def test_skew_is_limited_if_it_is_configured_and_the_clock_is_believed(
    sent_at: int, max_skew: float, answer: str | None
) -> None:
    """5.3.5: otherwise any time ahead is accepted."""
    assert reason(sent_at, Clock(NOW), Freshness(max_skew=max_skew)) == answer
    assert reason(sent_at, doubted(NOW), Freshness(max_skew=max_skew)) is None


def test_limits_are_those_of_the_configuration() -> None:
    assert [reason(NOW - age, Clock(NOW), Freshness(max_age=10)) for age in (10, 11)] == [None, "stale"]


def test_refusals_carry_the_times() -> None:
    with pytest.raises(Stale) as stale:
        check_age(NOW - DAY - 1, "dm", Clock(NOW), Freshness())
    assert (stale.value.sent_at, stale.value.now, stale.value.max_age) == (NOW - DAY - 1, NOW, DAY)
    assert (stale.value.reference, stale.value.forgotten) == (None, None)
    with pytest.raises(Stale) as stale:
        check_age(NOW - DAY - 2, "dm", doubted(5.0, NOW), Freshness())
    assert (stale.value.now, stale.value.max_age, stale.value.reference) == (5.0, DAY, NOW)
    with pytest.raises(Stale) as stale:
        check_age(NOW, "dm", doubted(5.0, NOW, NOW), Freshness())
    assert (stale.value.sent_at, stale.value.now, stale.value.forgotten) == (NOW, 5.0, NOW)
    with pytest.raises(FromTheFuture) as future:
        check_age(NOW + 601, "dm", Clock(NOW), Freshness(max_skew=600))
    assert (future.value.sent_at, future.value.now, future.value.max_skew) == (NOW + 601, NOW, 600)


@pytest.mark.parametrize(
    ("now", "floor", "believed"),
    [
        (RELEASED_AT, None, True),
        (RELEASED_AT - 1, None, False),
        (0, None, False),
        (LATER, None, True),
        (LATER, LATER, True),
        (LATER, LATER + MARGIN, True),
        (LATER, LATER + MARGIN + 1, False),
        (RELEASED_AT - 1, RELEASED_AT - 1, False),
    ],
)
def test_clock_before_the_release_or_the_floor_is_doubted(now: float, floor: int | None, *, believed: bool) -> None:
    """5.3.5: more than 10 minutes before the latest time that a believed clock and a signature have both reached."""
    times = {"dm": ServerTimes(LAST, LAST)}
    assert judge_clock(now, floor, times) == Clock(now, believed, times)


@pytest.mark.parametrize(("now", "believed"), [(99, False), (100, True)])
def test_release_date_is_an_argument(now: int, *, believed: bool) -> None:
    assert judge_clock(now, None, released_at=100) == Clock(now, believed, released_at=100)
