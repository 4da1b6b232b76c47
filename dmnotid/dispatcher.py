"""The session's way: from its row in the journal through the hook to the end of its row (5.3.4).

`tracking` has the states of a session. Only the loop in `run` starts tries and closes rows. The end of a hook
changes the state of its session and wakes the loop.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from dmnotid.config.values import Config
from dmnotid.errors import HookError, JournalError
from dmnotid.hook.locks import LOCK_POLL, Locks, ServerLock
from dmnotid.hook.runner import Hook
from dmnotid.host.log import logger
from dmnotid.journal.queue import Journal
from dmnotid.journal.rows import LAST_CHANCE
from dmnotid.links.availability import explain_missing
from dmnotid.links.monitor import Links
from dmnotid.policy.retry import after_try
from dmnotid.policy.schedule import choose_connection
from dmnotid.policy.sessions import Closed, Outcome, Result, SessionRequest, SessionStart
from dmnotid.tracking import ENDS_AT_ONCE, Sessions, Tracked
from dmnotid.wire.notification import ConnectionType

INTERRUPTIONS: Final = 10
"""Number of tries beyond `retry.attempts` that a session may have because stops and crashes interrupted it."""

WRITE_AGAIN_AFTER: Final = 10
"""Pause before a start or an end that could not be written is tried again, in seconds."""


class Dispatcher:
    """Runs the hook for the sessions in the journal: at most `sessions.concurrency` at once, never two for one server.

    `counters` counts the sessions that were closed as `done`, `refused`, `failed` and `expired`, the `tries` that were
    begun, and the tries that a stop of the daemon `interrupted`.
    """

    def __init__(
        self, config: Config, journal: Journal, links: Links, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Track every open session of the journal; `on_change` is called after each start and end.

        Raises JournalError.
        """
        # Logged when the daemon stops.
        self.counters: Counter[str] = Counter()
        # Has each session's row, which is written before its hook starts and after it ends.
        self._journal = journal
        # Read as a whole before each start.
        self._links = links
        # Called after each start and end, and updates the status line.
        self._on_change = on_change
        # The configuration for the next start, and the hook made from it.
        self._config = config
        self._hook = Hook(config.hook)
        # Why the hook could not be started when that was last tried or looked at; empty if it could.
        self.hook_problem = ""
        # The locks of the servers: a hook that outlives a killed daemon keeps its lock.
        self._locks = Locks(config.state)
        # The states of all sessions.
        self._sessions = Sessions()
        # Set if there is something to do for the loop in `run`.
        self._woken = asyncio.Event()
        # Whether no further try may begin.
        self._stopping = False
        try:
            # Tries that former processes began count for the turn of a server and for `sessions.min_interval`.
            self._sessions.last_start = journal.last_starts()
        except JournalError as error:
            logger.error("journal unreadable", problem=str(error))
        self.add(journal.pending())
        self.configure(config)

    @property
    def pending(self) -> int:
        """Number of sessions that are not closed, running ones included."""
        return len(self._sessions.tracked)

    @property
    def running(self) -> int:
        """Number of sessions whose hook runs."""
        return len(self._sessions.running)

    def configure(self, config: Config) -> None:
        """Use another configuration from the next start on; a running try ends as it began.

        Sessions of a server that is not configured are held: they start once it is, or expire.
        """
        limits, former = config.sessions, self._config.sessions
        self._config, self._hook = config, Hook(config.hook)
        self._check_hook()
        # A shorter `expire_after` leaves a session as much time as the journal gives one after a wrong clock.
        least = time.monotonic() + min(limits.expire_after, LAST_CHANCE)
        self._sessions.add_time(limits.expire_after - former.expire_after, least)
        _log_held(self._sessions, config)
        self.wake()

    def _check_hook(self) -> None:
        """Report now what would be reported at each start, and let sessions start that it kept from starting."""
        self.hook_problem = ""
        try:
            self._hook.check()
        except HookError as error:
            self.hook_problem = str(error)
            logger.warning("hook not startable", problem=str(error), consequence="no session can be started")
        self._sessions.look_again()

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

    async def run(self) -> None:
        """Start and close sessions until `start_no_more` was called and no hook runs any more."""
        async with asyncio.TaskGroup() as group:
            while not self._stopping or self.running:
                # Cleared first, so that an event during this turn leads to another one.
                self._woken.clear()
                now = time.monotonic()
                self._sessions.expire(now)
                # If more rows than these are to be closed, the loop turns again at once.
                self._close([tracked for tracked in self._sessions.ending if tracked.close_at <= now][:ENDS_AT_ONCE])
                if not self._stopping:
                    await self._start_all(group)
                    _log_waiting(self._sessions, self._links, self._config)
                change = self._sessions.next_change(now, self._config)
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
        tasks = [tracked.task for tracked in self._sessions.running if tracked.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=self._config.hook.stop_grace)
            self.abort()
            # Bounded by `hook.kill_after` and the patience of hook/command.py after SIGKILL.
            await asyncio.wait(tasks)
        # An end that could not be written is tried once more: the next process would run its session again.
        self._close(self._sessions.ending)

    def abort(self) -> None:
        """End running hooks now: TERM, and KILL after `hook.kill_after`."""
        # A task cancelled before its first step never runs its cleanup, so cancel in the next iteration of the loop.
        asyncio.get_running_loop().call_soon(self._cancel_tries)

    def _cancel_tries(self) -> None:
        for tracked in self._sessions.running:
            # A second cancellation would cut the time that a hook has between TERM and KILL.
            if tracked.task is not None and not tracked.task.cancelling():
                tracked.task.cancel()

    async def _start_all(self, group: asyncio.TaskGroup) -> None:
        """Begin every try that can begin now."""
        failures = 0
        while not self._stopping and (start := self._next_start()) is not None:
            lock = self._prepare(start)
            if lock is not None:
                # The try is committed before its hook is started: after a crash, the next try has the next number.
                try:
                    self._journal.begin(start.request, start.attempt)
                except JournalError as error:
                    lock.free()
                    facts = {"problem": str(error), "again_in": WRITE_AGAIN_AFTER}
                    logger.error("session not started", **start.request.log_facts(start.attempt), **facts)
                    self._sessions.queue(start.request.later(time.monotonic() + WRITE_AGAIN_AFTER))
                    failures += 1
                    # A damaged row fails alone and must not stop the others; two failures show that the journal fails.
                    if failures > 1:
                        return
                else:
                    self.counters["tries"] += 1
                    tracked = self._sessions.begin(start)
                    tracked.task = group.create_task(
                        self._try(start, tracked, self._hook, lock), name=f"try {start.request.session}"
                    )
            self._on_change()
            # Starting a process holds up the loop for about a millisecond, so let reception have its turn.
            await asyncio.sleep(0)

    def _prepare(self, start: SessionStart) -> ServerLock | None:
        """Lock the server of a try; None if the session has to wait. A hook that can't be started spends no try."""
        server_id = start.request.server_id
        try:
            # Before the try is committed, so that a hook that can't be started spends none.
            self._hook.check()
            lock = self._locks.take(server_id, self._config.hook.timeout)
        except HookError as error:
            tracked = self._sessions.tracked[start.request.session]
            self._settle(tracked, Outcome(Result.NOT_STARTED, str(error)), start.attempt)
            return None
        if lock is None:
            self._sessions.locked_until[server_id] = time.monotonic() + LOCK_POLL
        return lock

    def _next_start(self) -> SessionStart | None:
        """Return the try to begin now, over a connection that the kernel has confirmed just now."""
        start = self._sessions.next_start(self._links.available(), self._config)
        if start is None:
            return None
        # This session had a connection. If the read shows that it is gone, `session waiting` is logged again.
        self._sessions.tracked[start.request.session].announced = False
        if not self._links.read_now():
            # The next read that succeeds calls `wake`.
            return None
        return self._sessions.next_start(self._links.available(), self._config)

    async def _try(self, start: SessionStart, tracked: Tracked, hook: Hook, lock: ServerLock) -> None:
        """Run the hook, then lead the session from running to its next state."""
        facts, connection = start.request.log_facts(start.attempt), start.connection
        logger.info("session started", **facts, connection=str(connection.type), interface=connection.interface)
        outcome: Outcome | None = None
        try:
            with lock:
                outcome = await hook.run(start, lock)
        except asyncio.CancelledError:
            # Not raised again: the row stays open, and the next process repeats the try.
            self.counters["interrupted"] += 1
            logger.warning("session interrupted", **facts, next="at the next start of the daemon")
        except Exception as error:  # noqa: BLE001 - a bug in one session must not end the others
            logger.exception("internal error", **facts)
            outcome = Outcome(Result.FAILED, repr(error))
        tracked.task = None
        if outcome is None:
            self._sessions.queue(tracked.request)
        else:
            if outcome.result is Result.NOT_STARTED:
                self._take_back(tracked)
            self._settle(tracked, outcome, start.attempt)
        self.wake()
        self._on_change()

    def _take_back(self, tracked: Tracked) -> None:
        """Write that a try which was written did not begin after all."""
        self.counters["tries"] -= 1
        request = tracked.request.tried(tracked.request.attempts - 1)
        try:
            # The pause is not written: after a restart the hook is looked at again at once.
            tracked.request = self._journal.postpone(request, 0)
        except JournalError as error:
            logger.error("pause not written", **request.log_facts(), problem=str(error))
            tracked.request = request

    def _settle(self, tracked: Tracked, outcome: Outcome, attempt: int) -> None:
        """End a session after its try, or let it rest until the next one."""
        request, not_started = tracked.request, outcome.result is Result.NOT_STARTED
        tracked.failed_starts = tracked.failed_starts + 1 if not_started else 0
        self.hook_problem = outcome.detail if not_started else ""
        count = tracked.failed_starts or attempt
        verdict = after_try(outcome, count, self._config.retry, jitter=os.urandom(1)[0] / 0xFF)
        if isinstance(verdict, Closed):
            self._sessions.end(request, verdict, outcome.detail)
            return
        facts = {**request.log_facts(attempt), "again_in": round(verdict, 1)}
        later = request.later(time.monotonic() + verdict)
        if not_started:
            logger.error("hook not started", **facts, problem=outcome.detail)
        else:
            logger.warning("session try failed", **facts, outcome=outcome.detail)
            try:
                later = self._journal.postpone(request, verdict)
            except JournalError as error:
                # The pause then holds in this process only; after a restart the next try begins at once.
                logger.error("pause not written", **request.log_facts(attempt), problem=str(error))
        self._sessions.queue(later)

    def _close(self, ended: Sequence[Tracked]) -> None:
        """Close the rows of these sessions in one transaction, and log them as closed once it is committed.

        Until then they are not run again by this process, but by the next one: at least once.
        """
        if not ended:
            return
        try:
            self._journal.close([(it.request, it.closed) for it in ended if it.closed is not None])
        except JournalError as error:
            if len(ended) > 1:
                # One row may be damaged: the others are closed without it.
                for tracked in ended:
                    self._close([tracked])
                return
            ended[0].close_at = time.monotonic() + WRITE_AGAIN_AFTER
            facts = {**ended[0].request.log_facts(), "outcome": ended[0].outcome, "again_in": WRITE_AGAIN_AFTER}
            consequence = "session ended, not written: a restart of the daemon may run it again"
            logger.error("session end not written", **facts, problem=str(error), consequence=consequence)
            return
        for tracked in ended:
            request, closed = tracked.request, tracked.closed
            self._sessions.forget(request.session)
            self.counters[str(closed)] += 1
            log = logger.info if closed is Closed.DONE else logger.error
            log(f"session {closed}", **request.log_facts(), attempts=request.attempts, outcome=tracked.outcome)
        self._on_change()


def _log_held(sessions: Sessions, config: Config) -> None:
    """Log the number of sessions of each server that is not configured."""
    configured = {server.id for server in config.servers}
    for server_id, count in Counter(it.request.server_id for it in sessions.waiting + sessions.running).items():
        if server_id not in configured:
            problem = "the server of these sessions is not configured"
            logger.error("sessions held", server_id=server_id, sessions=count, problem=problem)


def _log_waiting(sessions: Sessions, links: Links, config: Config) -> None:
    """Log what is missing, once for each session that has no connection."""
    available = links.available()
    present = " ".join(f"{connection.interface}({connection.type})" for connection in available)
    configured = {server.id for server in config.servers}
    for tracked in sessions.waiting:
        request, preferred = tracked.request, tracked.request.notification.preferred_connections
        if tracked.announced or request.server_id not in configured:
            continue
        if choose_connection(preferred, available) is None:
            tracked.announced = True
            wanted, missing = " ".join(preferred) or str(ConnectionType.ANY), explain_missing(links.links, preferred)
            logger.info("session waiting", **request.log_facts(), wanted=wanted, available=present, missing=missing)
