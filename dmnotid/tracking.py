"""Every session that is not closed, in its state; `transitions` has the changes that are written to the journal.

A session is tracked from its admission until its row is closed, in one of these states:

    queued   --connection and turn--> running --exit 0, 78, tries used up--> ending --row closed--> closed
       ^  ^                              |  |                                   |
       |  +--daemon stops, hook ended----+  +--any other end--> paused          +--not written: again in 10 s
       +-------------- pause over, `retry` --------------------+
    queued, paused --expire_after--> ending
    queued --start can't be written, or hook can't be started--> paused
    queued, paused, running --`cancel`, row closed--> closed
    closed as failed or expired --`retry`, row opened--> queued

    queued   in the schedule
    paused   in the schedule, with a `not_before` that is ahead
    running  `running` is set
    ending   `closed` is set
    closed   not tracked; the hook of a cancelled session is being ended, and its server has no other one until then
"""

import time
from collections.abc import Sequence
from functools import partial
from math import inf
from typing import Final

from dmnotid.config.values import Config
from dmnotid.hook.tries import Try
from dmnotid.policy.schedule import Schedule
from dmnotid.policy.sessions import Closed, Connection, LastTry, Limits, SessionRequest, SessionStart

LOGGED_AT_ONCE: Final = 16
"""Maximum number of sessions whose missing connection is logged before reception gets its turn."""

ENDS_AT_ONCE: Final = 64
"""Maximum number of sessions that expire or are closed before reception gets its turn."""


class Tracked:
    """A session that is not closed."""

    # There may be tens of thousands.
    __slots__ = (
        "close_at", "closed", "failed_starts", "former_start", "outcome", "problem", "request", "running",
    )  # fmt: skip

    def __init__(self, request: SessionRequest) -> None:
        # As the journal has it, with the number of tries begun so far.
        self.request = request
        # Number of times in a row that the hook could not be started: the pauses between them grow.
        self.failed_starts = 0
        # Why it is paused, if that is not the end of its last try.
        self.problem = ""
        # The running try, and when the try for the same server before it began, on the monotonic clock.
        self.running: Try | None = None
        self.former_start = -inf
        # Why the session ended, the end of its last try in words, and when its row may be closed.
        self.closed: Closed | None = None
        self.outcome = ""
        self.close_at = -inf


class Sessions:
    """Every session that is not closed, in its state."""

    def __init__(self) -> None:
        # The ids of the configured servers: sessions of other servers are held.
        self.configured: frozenset[str] = frozenset()
        # The limits in force.
        self._limits = Limits()
        # Every session, by its number.
        self.tracked: dict[int, Tracked] = {}
        # The tries whose hook runs, by the server: it has one at most.
        self.running: dict[str, Try] = {}
        # Those whose row is to be closed, by their number.
        self.ending: dict[int, Tracked] = {}
        # The requests of those that are queued or paused.
        self._schedule = Schedule()
        # When the last try for each server began, on the monotonic clock.
        self.last_start: dict[str, float] = {}
        # The values of `last_start` after which a server need not rest, because an operator has asked for a try.
        self._rested: dict[str, float] = {}
        # When the lock of a server that another process holds is looked at again, on the monotonic clock.
        self.locked_until: dict[str, float] = {}

    def configure(self, config: Config) -> None:
        """Use another configuration from the next start on."""
        self.configured = frozenset(server.id for server in config.servers)
        self._limits = config.sessions

    @property
    def waiting(self) -> list[Tracked]:
        """The queued and paused sessions."""
        return [it for it in self.tracked.values() if it.running is None and it.closed is None]

    def queue(self, request: SessionRequest) -> None:
        """Let a session, a new one or one after a try, have its turn from `not_before` on."""
        self.tracked.setdefault(request.session, Tracked(request)).request = request
        self._schedule.add(request)

    def look_again(self) -> None:
        """Let the sessions whose hook could not be started have their turn now."""
        for tracked in self.waiting:
            if tracked.failed_starts:
                tracked.failed_starts = 0
                self.queue(tracked.request._replace(not_before=time.monotonic()))

    def begin(self, run: Try) -> None:
        """Take a session out of the schedule: its try is committed, and its hook starts."""
        start = run.start
        tracked, server_id = self.tracked[start.request.session], start.request.server_id
        request = self._schedule.remove(start.request.session)
        last_try = LastTry(str(start.connection.type), start.connection.interface, run.started_at)
        tracked.request = request._replace(attempts=start.attempt, last_try=last_try)
        tracked.running = self.running[server_id] = run
        tracked.former_start = self.last_start.get(server_id, -inf)
        self.last_start[server_id] = time.monotonic()

    def stop(self, run: Try) -> Tracked | None:
        """Let a session leave the state `running`: its hook has ended. None if the session was cancelled meanwhile."""
        request = run.start.request
        del self.running[request.server_id]
        if run.is_cancelled:
            return None
        tracked = self.tracked[request.session]
        tracked.running = None
        return tracked

    def take_back(self, tracked: Tracked, former: SessionRequest) -> None:
        """Forget a try that did not begin after all; `former` is the request before it."""
        tracked.request = tracked.request._replace(attempts=former.attempts, last_try=former.last_try)
        # It was not a turn of its server, which need not rest after it.
        self.last_start[former.server_id] = tracked.former_start

    def end(self, request: SessionRequest, closed: Closed, outcome: str) -> None:
        """Let a session end that is not in the schedule."""
        tracked = self.ending[request.session] = self.tracked.setdefault(request.session, Tracked(request))
        tracked.closed, tracked.outcome = closed, outcome

    def expire(self, now: float) -> None:
        """Let sessions end that have expired, at most ENDS_AT_ONCE of them."""
        for request in self._schedule.take_expired(now, ENDS_AT_ONCE):
            self.end(request, Closed.EXPIRED, "not started within sessions.expire_after")

    def forget(self, session: int) -> None:
        """Stop tracking a session whose row is closed."""
        tracked = self.tracked.pop(session)
        if tracked.closed is not None:
            del self.ending[session]
        elif tracked.running is None:
            self._schedule.remove(session)

    def add_time(self, more: float, least: float) -> None:
        """Change when sessions expire, as `SessionRequest.with_time` does."""
        for tracked in self.tracked.values():
            tracked.request = tracked.request.with_time(more, least)
        # A schedule holds the requests themselves, so it is made again from the changed ones.
        self._schedule = Schedule(tracked.request for tracked in self.waiting)

    def end_rest(self, server_id: str) -> None:
        """Let a server have its next try as if `min_interval` after its last one were over."""
        self._rested[server_id] = self.last_start.get(server_id, -inf)

    def next_start(self, available: Sequence[Connection]) -> SessionStart | None:
        """Return the try to begin now, if there is one and `sessions.concurrency` allows it."""
        if len(self.running) >= self._limits.concurrency:
            return None
        now = time.monotonic()
        return self._schedule.next_start(available, now, partial(self._free_at, now))

    def without_connection(self, available: Sequence[Connection]) -> list[SessionRequest]:
        """Return at most LOGGED_AT_ONCE requests that have no connection, each once after it was queued."""
        return self._schedule.without_connection(available, self.configured, LOGGED_AT_ONCE)

    def next_change(self, since: float) -> float | None:
        """Return when time alone, after `since`, lets a session start or expire, or its row be closed."""
        change = self._schedule.next_change(since, partial(self._free_at, since))
        times = [tracked.close_at for tracked in self.ending.values()]
        return min(times if change is None else [*times, change], default=None)

    def _free_at(self, now: float, server_id: str) -> float | None:
        """Return the time from which a server may get a session; None if it runs one or is not configured."""
        if server_id in self.running or server_id not in self.configured:
            return None
        return max(self.rested_at(server_id, now), self.locked_until.get(server_id, -inf))

    def rested_at(self, server_id: str, now: float) -> float:
        """Return the time from which a server need not rest any more after its last try."""
        last = self.last_start.get(server_id, -inf)
        rested_at = last + self._limits.min_interval
        # The present, and not an earlier time: it does not come before servers that have waited longer.
        return min(rested_at, now) if self._rested.get(server_id) == last else rested_at
