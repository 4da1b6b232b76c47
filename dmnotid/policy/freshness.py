"""Age: how old a signed notification may be, and whether the clock that measures it is believed (5.3.5).

The device's clock may be wrong in either direction, and a server may sign any time. So the age of a server's
notifications depends on the clock and on its own times (`ServerTimes`), never on those of another server. All servers
share the floor alone: the latest time that a believed clock and a signature have both reached.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from dmnotid import RELEASED_AT
from dmnotid.errors import FromTheFuture, Stale

MARGIN: Final = 600
"""Difference, in seconds, up to which two clocks count as equal."""


class Freshness(NamedTuple):
    """How old (`max_age`) and how far ahead (`max_skew`, None: any time) a signed notification may be, in seconds."""

    max_age: float = 86_400
    # Off, because a device whose clock is behind after a power cut would drop true notifications.
    max_skew: float | None = None


class ServerTimes(NamedTuple):
    """Times that one server has signed, in POSIX seconds.

    `newest` is the latest of them, 0 before there is one; `forgotten` is the latest one of the notifications that are
    no longer remembered, -1 if all are.
    """

    newest: int = 0
    # Not 0, which is a time that a server can sign.
    forgotten: int = -1


NEVER_SIGNED: Final = ServerTimes()


class Clock(NamedTuple):
    """The device's clock at the arrival of a datagram, in POSIX seconds, and what replaces it if it is not `believed`.

    `servers` has the times of each server that has signed, by SERVER-ID.
    """

    now: float
    believed: bool = True
    servers: Mapping[str, ServerTimes] = MappingProxyType({})
    released_at: int = RELEASED_AT


def judge_clock(
    now: float,
    floor: int | None,
    servers: Mapping[str, ServerTimes] = MappingProxyType({}),
    *,
    released_at: int = RELEASED_AT,
) -> Clock:
    """Decide whether the clock is believed.

    It is believed unless it is before the program's release or more than MARGIN before the floor: a device without a
    battery-backed clock starts in 1970, or when it was last switched off.
    """
    # With a margin: time synchronisation may set a clock that is right back by a little.
    behind_floor = floor is not None and now < floor - MARGIN
    return Clock(now, now >= released_at and not behind_floor, servers, released_at)


def check_age(sent_at: int, server_id: str, clock: Clock, freshness: Freshness) -> None:
    """Check the signed time of a notification (POSIX seconds). Raises Stale or FromTheFuture."""
    times, now, max_age = clock.servers.get(server_id, NEVER_SIGNED), clock.now, freshness.max_age
    # First, because neither a clock nor a setting makes a forgotten notification fresh.
    check_forgotten(sent_at, times, now)
    ahead = sent_at - now
    if clock.believed:
        if ahead < -max_age:
            # The message has the clock in any case, because the clock may be what is wrong.
            raise Stale(sent_at, now, max_age)
        # The clock may be weeks behind after a power cut, and a signature is worth more. So this limit is optional.
        if freshness.max_skew is not None and ahead > freshness.max_skew:
            raise FromTheFuture(sent_at, now, freshness.max_skew)
        return
    # The latest time known replaces the clock: the release, or a time that this server signed. A server that once
    # signed a wrong time far ahead is still heard if its time now and the clock agree.
    reference = max(clock.released_at, times.newest)
    if reference - sent_at > max_age and not -max_age <= ahead <= MARGIN:
        raise Stale(sent_at, now, max_age, reference=reference)


def check_forgotten(sent_at: int, times: ServerTimes, now: float) -> None:
    """Check that a notification can't be one that was accepted and is no longer remembered. Raises Stale.

    Neither a clock nor a configuration makes such a notification fresh again; `now` is for the message.
    """
    if sent_at <= times.forgotten:
        raise Stale(sent_at, now, forgotten=times.forgotten)
