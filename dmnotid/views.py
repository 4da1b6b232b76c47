"""What an operator sees of the sessions that are not closed: the state of each, and why it is in that state."""

import time
from collections.abc import Iterator
from typing import NamedTuple

from dmnotid.config.values import Config
from dmnotid.hook.tries import Try
from dmnotid.host.text import local_time, span
from dmnotid.links.availability import explain_missing
from dmnotid.links.monitor import Links
from dmnotid.policy.schedule import choose_connection
from dmnotid.policy.sessions import PendingState, SessionView
from dmnotid.tracking import Sessions, Tracked
from dmnotid.wire.notification import ConnectionType


class _Explanation(NamedTuple):
    """The state of a session, why it is in that state, and when time alone ends it, on the monotonic clock."""

    state: PendingState
    why: str
    until: float | None = None


class Views:
    """The sessions as an operator sees them, by the configuration and the connections of one moment."""

    def __init__(self, sessions: Sessions, links: Links, config: Config) -> None:
        # Followed while they change: a caller takes one view at a time.
        self._sessions = sessions
        # The limits and the links of the moment.
        self._limits = config.sessions
        self._links, self._available = links.links, links.available()
        # What is missing for each preference that was asked for; None if a connection is available.
        self._missing: dict[tuple[ConnectionType, ...], str | None] = {}

    def all(self) -> Iterator[SessionView]:
        """Yield every session by its number, as it is when it is asked for; each costs some microseconds."""
        # Sorted once, which is quick: only sessions that were opened again are out of order.
        for session in sorted(self._sessions.tracked):
            # The caller may have let other tasks run since the last one.
            if (tracked := self._sessions.tracked.get(session)) is not None:
                yield self.of(tracked)

    def state_of(self, session: int) -> str:
        """Return the state of one session; empty if it is not tracked."""
        tracked = self._sessions.tracked.get(session)
        return "" if tracked is None else self.of(tracked).state

    def of(self, tracked: Tracked) -> SessionView:
        """Return one session."""
        request, last, run = tracked.request, tracked.request.last_try, tracked.running
        # Read together, because their difference turns a monotonic time into one of a calendar.
        now, wall = time.monotonic(), time.time()
        explanation = self._describe_run(run, now) if run is not None else self._explain(tracked, now)
        notification = request.notification
        return SessionView(
            session=request.session,
            server_id=request.server_id,
            notification_id=notification.notification_id,
            state=explanation.state,
            accepted_at=request.received_at,
            source=request.source,
            signed=notification.signed,
            preferred=tuple(map(str, notification.preferred_connections)),
            attempts=request.attempts,
            next_at=None if explanation.until is None else wall + explanation.until - now,
            expires_at=wall + request.expires_at - now,
            why=explanation.why,
            connection=last.connection,
            interface=last.interface,
            started_at=last.started_at,
            pid=None if run is None else run.pid,
            outcome=last.outcome,
        )

    def _describe_run(self, run: Try, now: float) -> _Explanation:
        connection, spent = run.start.connection, span(now - run.began)
        facts = [f"{connection.interface} ({connection.type})"]
        # Another process runs a session that is handed over.
        if run.pid is not None:
            facts.append(f"pid {run.pid}")
        facts.append(f"{spent} of {_exact(run.hook.timeout)}")
        return _Explanation(PendingState.RUNNING, ", ".join(facts))

    def _explain(self, tracked: Tracked, now: float) -> _Explanation:
        """Return why a session does not run; of several reasons, the one that an operator has to remove first."""
        request = tracked.request
        if tracked.closed is not None:
            # The journal fails, or the loop of the dispatcher has not had its turn: the word `closed` is not true yet.
            why = f"{tracked.closed}: {tracked.outcome}; not written to the journal yet"
            return _Explanation(PendingState.PAUSED, why, max(tracked.close_at, now))
        if request.server_id not in self._sessions.configured:
            return _Explanation(PendingState.HELD, "this server is not configured")
        # Before the connection, because the pause passes with or without one.
        if request.not_before > now:
            why = tracked.problem or request.last_try.outcome or "its last try failed"
            state = PendingState.HOOK if tracked.failed_starts else PendingState.PAUSED
            return _Explanation(state, why, request.not_before)
        preferred = request.notification.preferred_connections
        # There are few preferences, while tens of thousands of sessions may wait.
        if preferred not in self._missing:
            available = choose_connection(preferred, self._available) is not None
            self._missing[preferred] = None if available else explain_missing(self._links, preferred)
        if missing := self._missing[preferred]:
            expiry = time.strftime("%Y-%m-%d", local_time(time.time() + request.expires_at - now))
            return _Explanation(PendingState.WAITING, f"{missing}; expires on {expiry}")
        return self._explain_order(request.server_id, now)

    def _explain_order(self, server_id: str, now: float) -> _Explanation:
        """Return why a session does not run that could run now."""
        running, limits = self._sessions.running, self._limits
        if (busy := running.get(server_id)) is not None:
            return _Explanation(PendingState.QUEUED, f"after {busy.start.request.session} (one at a time for a server)")
        rested_at = self._sessions.rested_at(server_id, now)
        if rested_at > now:
            why = f"{_exact(limits.min_interval)} between two tries for a server (sessions.min_interval)"
            return _Explanation(PendingState.RESTING, why, rested_at)
        if self._sessions.locked_until.get(server_id, now) > now:
            return _Explanation(
                PendingState.QUEUED, "after a hook of a former daemon, which still runs for this server"
            )
        if len(running) < limits.concurrency:
            return _Explanation(PendingState.QUEUED, "its turn is next")
        first = next(iter(running.values())).start.request.session
        after = str(first) if len(running) == 1 else f"one of {len(running)} that run"
        return _Explanation(PendingState.QUEUED, f"after {after} (sessions.concurrency is {limits.concurrency})")


def _exact(seconds: float) -> str:
    """Write a configured time, which is not cut to whole minutes."""
    return f"{seconds:g} s" if seconds % 60 else span(seconds)
