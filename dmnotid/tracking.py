"""Every session that is not closed, in its state.

A session is tracked from its admission until its row is closed, in one of these states:

    queued   --connection and turn--> running --exit 0, 78, tries used up--> ending --row closed--> closed
       ^  ^                              |  |                                   |
       |  +--daemon stops, hook ended----+  +--any other end--> resting         +--not written: again in 10 s
       +-------------- pause over -----------------------------+
    queued, resting --expire_after--> ending
    queued --start can't be written, or hook can't be started--> resting

    queued   in the schedule
    resting  in the schedule, with a `not_before` that is ahead
    running  `task` is set
    ending   `closed` is set
    closed   not tracked
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from dmnotid.config.values import Config
from dmnotid.policy.schedule import Schedule
from dmnotid.policy.sessions import Closed, Connection, SessionRequest, SessionStart

ENDS_AT_ONCE: Final = 64
"""Maximum number of sessions that expire or are closed before reception gets its turn."""


@dataclass(slots=True, eq=False)
class Tracked:
    """A session that is not closed."""

    # As the journal has it, with the number of tries begun so far.
    request: SessionRequest
    # Whether `session waiting` was logged since the session last had a connection.
    announced: bool = False
    # Number of times in a row that the hook could not be started: the pauses between them grow.
    failed_starts: int = 0
    # The running try.
    task: asyncio.Task[None] | None = None
    # Why the session ended, the end of its last try in words, and when its row may be closed.
    closed: Closed | None = None
    outcome: str = ""
    close_at: float = -inf


class Sessions:
    """Every session that is not closed, in its state."""

    def __init__(self) -> None:
        # Every session, by its number.
        self.tracked: dict[int, Tracked] = {}
        # Those that run or end. They are few, and asked for at every turn, while tens of thousands may wait.
        self._active: dict[int, Tracked] = {}
        # The requests of those that are queued or resting.
        self._schedule = Schedule()
        # When the last try for each server began, on the monotonic clock.
        self.last_start: dict[str, float] = {}
        # When the lock of a server that another process holds is looked at again, on the monotonic clock.
        self.locked_until: dict[str, float] = {}

    @property
    def waiting(self) -> list[Tracked]:
        """The queued and resting sessions."""
        return [it for session, it in self.tracked.items() if session not in self._active]

    @property
    def running(self) -> list[Tracked]:
        """The sessions whose hook runs."""
        return [it for it in self._active.values() if it.task is not None]

    @property
    def ending(self) -> list[Tracked]:
        """The sessions whose row is to be closed."""
        return [it for it in self._active.values() if it.closed is not None]

    def queue(self, request: SessionRequest) -> None:
        """Let a session, a new one or one after a try, have its turn from `not_before` on."""
        self.tracked.setdefault(request.session, Tracked(request)).request = request
        self._active.pop(request.session, None)
        self._schedule.add(request)

    def look_again(self) -> None:
        """Let the sessions whose hook could not be started have their turn now."""
        for tracked in self.waiting:
            if tracked.failed_starts:
                tracked.failed_starts = 0
                self.queue(tracked.request.later(time.monotonic()))

    def begin(self, start: SessionStart) -> Tracked:
        """Take a session that is about to run out of the schedule."""
        request = self._schedule.remove(start.request.session)
        tracked = self._active[request.session] = self.tracked[request.session]
        tracked.request = request.tried(start.attempt)
        self.last_start[request.server_id] = time.monotonic()
        return tracked

    def end(self, request: SessionRequest, closed: Closed, outcome: str) -> None:
        """Let a session end that is not in the schedule."""
        tracked = self._active[request.session] = self.tracked.setdefault(request.session, Tracked(request))
        tracked.closed, tracked.outcome = closed, outcome

    def forget(self, session: int) -> None:
        """Stop tracking a session whose row is closed."""
        del self.tracked[session], self._active[session]

    def expire(self, now: float) -> None:
        """Let sessions end that have expired, at most ENDS_AT_ONCE of them."""
        for request in self._schedule.take_expired(now, ENDS_AT_ONCE):
            self.end(request, Closed.EXPIRED, "not started within sessions.expire_after")

    def add_time(self, more: float, least: float) -> None:
        """Change when sessions expire, as `SessionRequest.with_time` does."""
        for tracked in self.tracked.values():
            tracked.request = tracked.request.with_time(more, least)
        # A schedule holds the requests themselves, so it is made again from the changed ones.
        self._schedule = Schedule(tracked.request for tracked in self.waiting)

    def next_start(self, available: Sequence[Connection], config: Config) -> SessionStart | None:
        """Return the try to begin now, if there is one and `sessions.concurrency` allows it."""
        if len(self.running) >= config.sessions.concurrency:
            return None
        return self._schedule.next_start(available, time.monotonic(), self._startable(config))

    def next_change(self, since: float, config: Config) -> float | None:
        """Return when time alone, after `since`, lets a session start or expire, or its row be closed."""
        change = self._schedule.next_change(since, self._startable(config))
        times = [tracked.close_at for tracked in self.ending]
        return min(times if change is None else [*times, change], default=None)

    def _startable(self, config: Config) -> dict[str, float]:
        """Return each configured server without a running session, with the time from which it may get one."""
        busy = {tracked.request.server_id for tracked in self.running}
        free = [server.id for server in config.servers if server.id not in busy]
        interval = config.sessions.min_interval
        return {
            server_id: max(self.last_start.get(server_id, -inf) + interval, self.locked_until.get(server_id, -inf))
            for server_id in free
        }
