"""From the queue to the hook: starts each session once its time and its connection have come, and settles its end."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final

from dmnotid.config import Config
from dmnotid.errors import JournalError
from dmnotid.policy.sessions import (
    NOBODY,
    Closed,
    Outcome,
    Result,
    SessionRequest,
    SessionStart,
    expired,
    next_start,
    next_wake,
    settle,
)
from dmnotid.service.hook import Hook
from dmnotid.service.journal import Journal
from dmnotid.service.links import Links
from dmnotid.service.log import logger

INTERRUPTIONS: Final = 10
"""How many tries more than `retry.attempts` a session may have when stops and crashes interrupt it."""

WRITE_AGAIN_AFTER: Final = 10
"""Pause (seconds) before the journal is tried again when it could not be written."""


class Dispatcher:
    """Runs the hook for what the journal holds; at most `sessions.concurrency` at once, never two for one server.

    `counters` holds how many sessions were `done`, `refused`, `failed` and `expired`, how many `tries` were begun, and
    how many of these a stop `interrupted`.
    """

    def __init__(self, config: Config, journal: Journal, links: Links) -> None:
        """Take up what the journal still holds from before. Raises JournalError."""
        self._config = config
        self._journal = journal
        self._links = links
        self._hook = Hook(config.hook)
        self._pending: dict[int, SessionRequest] = {}
        self._held: dict[int, SessionRequest] = {}
        self._unwritten: dict[int, tuple[SessionRequest, Closed]] = {}
        self._write_again_at = self._ends_again_at = float("-inf")
        self._running: dict[int, SessionRequest] = {}
        self._last_start: dict[str, float] = {}
        self.counters: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._stopping = False
        self._generation = 0
        self._take_up_new()
        self._give_up_interrupted()
        if config.sessions.min_interval:
            self._learn_last_starts()

    def configure(self, config: Config) -> None:
        """Go by another configuration from the next start on; what runs is let end as it began.

        Sessions of servers that are gone are held back, those of servers that are there again are taken up.
        """
        before, self._config = self._config, config
        self._hook = Hook(config.hook)
        if config.sessions.min_interval > before.sessions.min_interval:
            self._learn_last_starts()
        longer = config.sessions.expire_after - before.sessions.expire_after
        waiting = sorted({**self._pending, **self._held}.items())
        self._pending, self._held = {}, {}
        for session, request in waiting:
            if session in self._running:
                self._pending[session] = request
            else:
                self._take_up(request.with_time(longer))
        self._woken.set()

    def _take_up_new(self) -> None:
        """Take up what the journal holds, where another file than before is at its place. Raises JournalError."""
        while self._generation != self._journal.generation:
            generation = self._journal.generation
            for request in self._journal.pending():
                if request.session not in {**self._pending, **self._held, **self._unwritten}:
                    self._take_up(request)
            self._generation = generation

    def _look_for_new(self) -> None:
        try:
            self._journal.check()
            self._take_up_new()
        except JournalError as error:
            logger.error("journal not read", problem=str(error))

    def _learn_last_starts(self) -> None:
        """Take from the journal what former processes started, as far back as it matters now."""
        try:
            self._last_start = {**self._journal.last_starts(self._config.sessions.min_interval), **self._last_start}
        except JournalError as error:
            logger.error("journal not read", problem=str(error))

    def _resting(self) -> Mapping[str, float]:
        """Return the servers whose last try began within `sessions.min_interval`, each with the end of its rest."""
        interval = self._config.sessions.min_interval
        return {server_id: at + interval for server_id, at in self._last_start.items()} if interval else NOBODY

    def _take_up(self, request: SessionRequest) -> None:
        """Go on with what was left waiting, by a former process or under a former configuration."""
        if not any(server.id == request.server_id for server in self._config.servers):
            problem = f"{request.server_id!r} isn't configured any more"
            logger.error("session held back", session=request.session, problem=problem)
            self._pending.pop(request.session, None)
            self._held[request.session] = request
            return
        self._pending[request.session] = request

    def _give_up_interrupted(self) -> None:
        """Close what was interrupted again and again: a session that takes the device down must not do so for ever."""
        for request in list(self._pending.values()):
            if request.attempts >= self._config.retry.attempts + INTERRUPTIONS:
                self._close(request, Closed.FAILED, "interrupted again and again")

    @property
    def pending(self) -> int:
        """How many sessions are not closed, running ones included."""
        return len(self._pending)

    def add(self, requests: Iterable[SessionRequest]) -> None:
        """Take up what was just made durable: the journal can be written then."""
        self._write_again_at = self._ends_again_at = float("-inf")
        self._pending.update((request.session, request) for request in requests)
        self._woken.set()

    def wake(self) -> None:
        """Look again for something to start: connections changed."""
        self._woken.set()

    async def run(self) -> None:
        """Start and settle sessions until `stop`; a bug in it is raised here."""
        await self._end_left_over()
        async with asyncio.TaskGroup() as group:
            while not self._stopping:
                self._woken.clear()
                began = time.monotonic()
                self._look_for_new()
                self._write_again()
                self._expire()
                self._start_all(group)
                await self._sleep(began)

    async def _end_left_over(self) -> None:
        """End what a daemon that was killed left running; a stop doesn't wait for it any longer than for a hook."""
        left = [it for it in (*self._pending.values(), *self._held.values()) if it.session in self._journal.interrupted]
        if not left or self._stopping:
            return
        task = asyncio.ensure_future(self._hook.end_left_over(left))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
        if not task.cancelled() and task.exception() is not None:
            logger.error("hooks left over not ended", problem=repr(task.exception()))

    async def stop(self) -> None:
        """Start nothing more; give hooks `hook.stop_grace` to end. One that doesn't is run again at the next start."""
        self._stopping = True
        self._woken.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._config.hook.stop_grace)
        self.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._write_ends()

    def abort(self) -> None:
        """End running hooks now: TERM, and KILL after `hook.kill_after`."""
        for task in self._tasks:
            if not task.cancelling():  # a second one would take the hook's time after TERM away
                task.cancel()

    def _expire(self) -> None:
        for request in expired(self._pending.values(), self._running, time.monotonic()):
            self._close(request, Closed.EXPIRED, "its time to start is over")

    def _start_all(self, group: asyncio.TaskGroup) -> None:
        failed = 0
        while not self._stopping and self._write_again_at <= time.monotonic():
            available, now = self._links.available(), time.monotonic()
            concurrency = self._config.sessions.concurrency
            start = next_start(self._pending.values(), self._running, available, now, concurrency, self._resting())
            if start is None:
                return
            request = start.request
            if not self._written_down(start):
                # One row may be at fault alone; where a second one fails too, it is the journal.
                failed += 1
                self._pending[request.session] = request.later(now + WRITE_AGAIN_AFTER)
                if failed > 1:
                    self._write_again_at = now + WRITE_AGAIN_AFTER
                continue
            self._running[request.session] = request
            self._last_start[request.server_id] = now
            self.counters["tries"] += 1
            task = group.create_task(self._try(start), name=f"session {request.session}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _written_down(self, start: SessionStart) -> bool:
        request = start.request
        try:
            self._journal.begin_attempt(request, start.attempt)
        except JournalError as error:
            facts = {"session": request.session, "again_in": WRITE_AGAIN_AFTER}
            logger.error("session not started", problem=str(error), **facts)
            return False
        return True

    async def _try(self, start: SessionStart) -> None:
        request = start.request
        connection = start.connection
        logger.info("session starts", **_facts(start), connection=str(connection.type), interface=connection.interface)
        try:
            outcome = await self._hook.run(start)
        except asyncio.CancelledError:
            self.counters["interrupted"] += 1
            logger.warning("session interrupted", **_facts(start), next="at the next start of the daemon")
            return
        except Exception as error:  # noqa: BLE001 - one session's bug is no other's end
            logger.exception("session failed by a bug", session=request.session)
            outcome = Outcome(Result.FAILED, repr(error))
        finally:
            self._running.pop(request.session, None)
            self._woken.set()
        self._settle(start, outcome)

    def _settle(self, start: SessionStart, outcome: Outcome) -> None:
        request = start.request.tried(start.attempt)
        jitter = random.random()  # noqa: S311 - spreads load, guards nothing
        verdict = settle(outcome, start.attempt, self._config.retry, jitter)
        if isinstance(verdict, Closed):
            self._close(request, verdict, outcome.detail)
            return
        logger.warning("session try failed", **_facts(start), outcome=outcome.detail, again_in=round(verdict, 1))
        try:
            later = self._journal.postpone(request, verdict)
        except JournalError as error:
            logger.error("pause not written", session=request.session, problem=str(error))
            later = request.later(time.monotonic() + verdict)
        self._take_up(later)

    def _close(self, request: SessionRequest, closed: Closed, detail: str) -> None:
        del self._pending[request.session]
        self._unwritten[request.session] = request, closed
        self.counters[str(closed)] += 1
        self._write_ends()  # before it is said: a log that says done must not be ahead of the journal
        say = logger.info if closed is Closed.DONE else logger.error
        say(
            f"session {closed}",
            session=request.session,
            server_id=request.server_id,
            notification_id=request.notification.notification_id,
            attempts=request.attempts,
            outcome=detail,
        )

    def _write_again(self) -> None:
        if self._unwritten and self._ends_again_at <= time.monotonic():
            self._write_ends()

    def _write_ends(self) -> None:
        """Write down what is closed. Until then only a restart would run it again: at least once, as promised."""
        problem: JournalError | None = None
        for session, (request, closed) in list(self._unwritten.items()):
            try:
                self._journal.close_request(request, closed)
                del self._unwritten[session]
            except JournalError as error:
                problem = error
        if problem is not None:
            facts = {"sessions": len(self._unwritten), "again_in": WRITE_AGAIN_AFTER}
            logger.error("end not written", problem=str(problem), **facts)
            self._ends_again_at = time.monotonic() + WRITE_AGAIN_AFTER

    async def _sleep(self, since: float) -> None:
        """Sleep until something can be otherwise than it was at `since`."""
        wake = next_wake(self._pending.values(), self._running, since, self._resting())
        times = [wake, self._write_again_at, self._ends_again_at if self._unwritten else None]
        wake = min((at for at in times if at is not None and at > since), default=wake)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if wake is None else max(wake - time.monotonic(), 0)):
                await self._woken.wait()


def _facts(start: SessionStart) -> dict[str, object]:
    """Name a try in the log."""
    return {
        "session": start.request.session,
        "server_id": start.request.server_id,
        "notification_id": start.request.notification.notification_id,
        "attempt": start.attempt,
    }
