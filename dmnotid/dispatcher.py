"""The session's way: from its row in the journal through the hook to the end of its row (5.3.4).

`tracking` has the states of a session, `transitions` the changes of these states. Only the loop in `run` starts tries
and closes rows of ended sessions. The end of a hook changes the state of its session and wakes the loop.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from math import inf
from typing import Final

from dmnotid.config.values import Config
from dmnotid.errors import JournalError
from dmnotid.host.log import logger
from dmnotid.journal.queue import Journal
from dmnotid.journal.rows import LAST_CHANCE
from dmnotid.links.availability import explain_missing
from dmnotid.links.monitor import Links
from dmnotid.policy.sessions import Closed, SessionRequest, SessionStart, SessionView
from dmnotid.tracking import ENDS_AT_ONCE, Sessions
from dmnotid.transitions import Transitions
from dmnotid.views import Views
from dmnotid.wire.notification import ConnectionType

INTERRUPTIONS: Final = 10
"""Number of tries beyond `retry.attempts` that a session may have because stops and crashes interrupted it."""

UNWRITTEN_STARTS: Final = 2
"""Number of starts that could not be written after which no other one is begun in the same turn."""


class Dispatcher:
    """Runs the hook for the sessions in the journal: at most `sessions.concurrency` at once, never two for one server.

    `counters` counts the sessions that were closed, by the value of `Closed`, the `tries` that were begun, and the
    tries that a stop of the daemon `interrupted`.
    """

    def __init__(
        self, config: Config, journal: Journal, links: Links, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Track every open session of the journal; `on_change` is called after each start and end.

        Raises JournalError.
        """
        # Read as a whole before each start.
        self._links = links
        # Called after each start and end, and updates the status line.
        self._on_change = on_change
        # The configuration in force.
        self._config = config
        # The states of all sessions.
        self._sessions = Sessions()
        # The changes of these states, which are written to the journal.
        self._transitions = Transitions(config, self._sessions, journal, self._changed)
        # Logged when the daemon stops.
        self.counters = self._transitions.counters
        # Set if there is something to do for the loop in `run`.
        self._woken = asyncio.Event()
        # Whether no further try may begin.
        self._stopping = False
        try:
            # Tries that former processes began count for the turn of a server and for `sessions.min_interval`.
            self._sessions.last_start = journal.last_starts()
        except JournalError as error:
            # Not fatal: a server may get its next try too early, and no session is lost.
            logger.error("journal unreadable", problem=str(error))
        self.add(journal.pending())
        self.configure(config)

    @property
    def hook_problem(self) -> str:
        """Why the hook could not be started when that was last tried or looked at; empty if it could."""
        return self._transitions.hook_problem

    @property
    def durations(self) -> tuple[float, int]:
        """The time that ended tries took in seconds, and their number, interrupted and cancelled ones included."""
        return self._transitions.duration_sum, self.counters["tries"] - len(self._sessions.running)

    @property
    def pending(self) -> int:
        """Number of sessions that are not closed, running ones included."""
        return len(self._sessions.tracked)

    @property
    def running(self) -> int:
        """Number of sessions that are not closed and whose hook runs."""
        return sum(not run.is_cancelled for run in self._sessions.running.values())

    def configure(self, config: Config) -> None:
        """Use another configuration from the next start on; a running try ends as it began.

        Sessions of a server that is not configured are held: they start once it is, or expire.
        """
        limits, former = config.sessions, self._config.sessions
        self._config = config
        self._transitions.configure(config)
        self._sessions.configure(config)
        if limits.expire_after != former.expire_after:
            # A shorter `expire_after` leaves a session as much time as the journal gives one after a wrong clock.
            least = time.monotonic() + min(limits.expire_after, LAST_CHANCE)
            self._sessions.add_time(limits.expire_after - former.expire_after, least)
        # Running ones count too: another try of theirs would be held.
        waiting = (tracked.request.server_id for tracked in self._sessions.waiting)
        for server_id, count in Counter([*waiting, *self._sessions.running]).items():
            if server_id not in self._sessions.configured:
                problem = "the server of these sessions is not configured"
                logger.error("sessions held", server_id=server_id, sessions=count, problem=problem)
        self.wake()

    def add(self, requests: Iterable[SessionRequest]) -> None:
        """Queue sessions whose rows are committed."""
        for request in requests:
            if request.attempts < self._config.retry.attempts + INTERRUPTIONS:
                self._sessions.queue(request)
            else:
                # A session that crashes the device in each of its tries must not do so for ever.
                self._sessions.end(request, Closed.FAILED, "interrupted too often")
        self.wake()

    def wake(self) -> None:
        """Look for sessions to start: connections have changed."""
        self._woken.set()

    def views(self) -> Iterator[SessionView]:
        """Yield every session that is not closed, by its number. Each is as it is when it is asked for."""
        return self._views().all()

    def retry(self, session: int, by: str) -> bool:
        """Let a session start as soon as it can: see `Transitions.retry`."""
        changed = self._transitions.retry(session, self._views().state_of(session), by)
        self._changed()
        return changed

    def cancel(self, session: int, by: str) -> str:
        """Close a session, and return the state that it had: see `Transitions.cancel`."""
        was = self._views().state_of(session)
        self._transitions.cancel(session, was, by)
        self._changed()
        return was

    def _views(self) -> Views:
        return Views(self._sessions, self._links, self._config)

    async def run(self) -> None:
        """Start and close sessions until `start_no_more` was called and no hook runs any more."""
        async with asyncio.TaskGroup() as group:
            while not self._stopping or self._sessions.running:
                # Cleared first, so that an event during this turn leads to another one.
                self._woken.clear()
                now = time.monotonic()
                self._sessions.expire(now)
                # If more rows than these are to be closed, the loop turns again at once.
                if self._transitions.close(now, ENDS_AT_ONCE):
                    self._on_change()
                if not self._stopping:
                    await self._start_all(group)
                change = self._sessions.next_change(now)
                if not self._stopping:
                    await self._log_waiting(inf if change is None else change)
                pause = None if change is None else max(change - time.monotonic(), 0)
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()

    def start_no_more(self) -> None:
        """Begin no further try: sessions that are added from now on are left to the next process."""
        self._stopping = True
        self.wake()

    async def stop(self) -> None:
        """Begin no further try, and give hooks `hook.stop_grace` to end; the next process repeats interrupted tries."""
        self.start_no_more()
        tasks = [run.task for run in self._sessions.running.values()]
        if tasks:
            await asyncio.wait(tasks, timeout=self._config.hook.stop_grace)
            self.abort()
            # Bounded by `hook.kill_after` and the patience of hook/command.py after SIGKILL.
            await asyncio.wait(tasks)
        # An end that could not be written is tried once more: the next process would run its session again.
        self._transitions.close()
        self._on_change()

    def abort(self) -> None:
        """End running hooks now: TERM, and KILL after `hook.kill_after`."""
        for run in self._sessions.running.values():
            run.end()

    async def _start_all(self, group: asyncio.TaskGroup) -> None:
        """Begin every try that can begin now."""
        # A damaged row fails alone and must not stop the others; more failures show that the journal fails.
        failures = 0
        while failures < UNWRITTEN_STARTS and not self._stopping and (start := self._next_start()) is not None:
            failures += not self._transitions.begin(start, group)
            self._on_change()
            # Starting a process holds up the loop for about a millisecond, so let reception have its turn.
            await asyncio.sleep(0)

    def _next_start(self) -> SessionStart | None:
        """Return the try to begin now, over a connection that the kernel has confirmed just now."""
        before = self._links.available()
        start = self._sessions.next_start(before)
        if start is None:
            return None
        # After a read that fails, the next one that succeeds calls `wake`.
        readable = self._links.read_now()
        if readable and self._links.available() == before:
            return start
        # This session had a connection. If that is gone, `session waiting` is logged again.
        self._sessions.queue(start.request)
        return self._sessions.next_start(self._links.available()) if readable else None

    async def _log_waiting(self, until: float) -> None:
        """Log once for each session without a connection what is missing, until a wake or a monotonic time."""
        available, over = self._links.available(), False
        present = " ".join(f"{connection.interface}({connection.type})" for connection in available)
        while not over and (requests := self._sessions.without_connection(available)):
            for request in requests:
                preferred = request.notification.preferred_connections
                wanted = " ".join(preferred) or str(ConnectionType.ANY)
                facts = {"available": present, "missing": explain_missing(self._links.links, preferred)}
                logger.info("session waiting", **request.log_facts(), wanted=wanted, **facts)
            # There may be tens of thousands, so reception has its turn in between.
            await asyncio.sleep(0)
            over = self._woken.is_set() or time.monotonic() >= until

    def _changed(self) -> None:
        self.wake()
        self._on_change()
