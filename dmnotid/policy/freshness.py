"""Age: how old a signed notification may be, and whether the clock that measures it is believed."""

from typing import NamedTuple

from dmnotid import RELEASED_AT
from dmnotid.errors import FromTheFuture, Stale


class Freshness(NamedTuple):
    """How old (`max_age`) and how far ahead (`max_skew`) a signed notification may be, in seconds."""

    max_age: float = 86_400
    max_skew: float = 600


class Clock(NamedTuple):
    """The device's clock at the arrival of a datagram, in POSIX seconds.

    `newest` is the newest authenticated time known, None before there is one. If the clock is not `believed`, age is
    measured from `newest`, and nothing is refused as from the future.
    """

    now: float
    believed: bool = True
    newest: int | None = None


def judge_clock(now: float, newest: int | None, max_skew: float, *, released_at: int = RELEASED_AT) -> Clock:
    """Decide whether the clock is believed.

    It is believed unless it is before the program's release or more than `max_skew` seconds before the newest
    authenticated time: a device without a battery-backed clock starts in 1970.
    """
    # Within `max_skew` the clocks of servers differ without any of them being wrong.
    behind_newest = newest is not None and now < newest - max_skew
    return Clock(now, now >= released_at and not behind_newest, newest)


def check_age(sent_at: int, clock: Clock, freshness: Freshness) -> None:
    """Check the signed time of a notification (POSIX seconds). Raises Stale or FromTheFuture."""
    reference = clock.now if clock.believed else clock.newest
    # An unbelieved clock without any authenticated time to replace it leaves nothing to measure from.
    if reference is None:
        return
    # Negative if the signed time is ahead of the reference.
    age = reference - sent_at
    if age > freshness.max_age:
        raise Stale(age, freshness.max_age, None if clock.believed else reference)
    if -age > freshness.max_skew and clock.believed:
        raise FromTheFuture(-age, freshness.max_skew)
