"""From the queue to the hook: starts each session once its time and its connection have come, and settles its end."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Final

from dmnotid.config.values import Config
from dmnotid.errors import JournalError
from dmnotid.hook.runner import Begun, Hook, Run
from dmnotid.host.log import logger
from dmnotid.journal.queue import Journal
from dmnotid.journal.rows import LAST_CHANCE
from dmnotid.links.availability import explain_missing
from dmnotid.links.monitor import Links
from dmnotid.policy.retry import after_try
from dmnotid.policy.schedule import NOBODY, Schedule, choose_connection
from dmnotid.policy.sessions import Closed, Connection, Outcome, Result, SessionRequest, SessionStart
from dmnotid.wire.notification import ConnectionType

INTERRUPTIONS: Final = 10
"""How many tries more than `retry.attempts` a session may have when stops and crashes interrupt it."""

WRITE_AGAIN_AFTER: Final = 10
"""Pause (seconds) before the journal is tried again when it could not be written."""

ENDS_AT_ONCE: Final = 64
"""How many sessions are closed in one transaction at most, before reception gets its turn."""

_End = tuple[SessionRequest, Closed]


class Dispatcher:
    """Runs the hook for what the journal holds; at most `sessions.concurrency` at once, never two for one server.

    `counters` holds how many sessions were `done`, `refused`, `failed` and `expired`, how many `tries` were begun, and
    how many of these a stop `interrupted`.
    """

    def __init__(
        self, config: Config, journal: Journal, links: Links, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """Take up what the journal still holds from before. Raises JournalError.

        `on_change` is called when a session begins or ends.
        """
        self._on_change = on_change
        self._journal = journal
        self._links = links
        self._waiting = Schedule()
        # What waits and hasn't said for what: all of it, and what wasn't there yet when it was gone through last.
        self._untold: dict[int, SessionRequest] = {}
        self._unseen: list[SessionRequest] = []
        self._seen_with: tuple[Connection, ...] = ()
        self._running: dict[int, SessionRequest] = {}
        self._unwritten: dict[int, _End] = {}
        self._write_again_at = self._ends_again_at = float("-inf")
        self._last_start: dict[str, float] = {}
        self.counters: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._stopping = False
        self._go_by(config)
        for request in self._journal.pending():
            self._take_up(request)
        self._tell_of_held_back()
        if config.sessions.min_interval:
            self._learn_last_starts()

    def configure(self, config: Config) -> None:
        """Go by another configuration from the next start on; what runs is let end as it began.

        Sessions of servers that are gone are held back, those of servers that are there again may start.
        """
        before = self._config.sessions
        self._go_by(config)
        if config.sessions.min_interval > before.min_interval:
            self._learn_last_starts()
        whole = config.sessions.expire_after
        # What has had its last chance from the journal keeps it.
        longer, least = whole - before.expire_after, time.monotonic() + min(whole, LAST_CHANCE)
        self._waiting = Schedule(request.with_time(longer, least) for request in self._waiting)
        self._running = {session: request.with_time(longer, least) for session, request in self._running.items()}
        self._tell_of_held_back()
        self._unseen = list(self._untold.values())
        self._woken.set()

    def _go_by(self, config: Config) -> None:
        self._config = config
        self._servers = frozenset(server.id for server in config.servers)
        self._hook = Hook(config.hook)

    def _take_up(self, request: SessionRequest) -> None:
        self._waiting.add(request)
        self._tell_of(request)

    def _tell_of(self, request: SessionRequest) -> None:
        """Let a session that waits say for what, once there is no connection for it."""
        self._untold[request.session] = request
        self._unseen.append(request)

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

    def _startable(self) -> frozenset[str]:
        """Return the servers for which a session may start: the configured ones but for those that have one now."""
        return self._servers.difference(request.server_id for request in self._running.values())

    def _tell_of_held_back(self) -> None:
        """Say which sessions were left waiting whose server isn't configured: they stay until it is, or they expire."""
        left = Counter(request.server_id for request in (*self._waiting, *self._running.values()))
        for server_id, sessions in left.items():
            if server_id not in self._servers:
                problem = "this server isn't configured any more"
                logger.error("sessions held back", server_id=server_id, sessions=sessions, problem=problem)

    def _give_up_interrupted(self) -> None:
        """Close what was interrupted again and again: a session that takes the device down must not do so for ever."""
        most = self._config.retry.attempts + INTERRUPTIONS
        given_up = [request for request in self._waiting if request.attempts >= most]
        for request in given_up:
            self._waiting.remove(request.session)
            self._untold.pop(request.session, None)
        if given_up:
            self._close(given_up, Closed.FAILED, "interrupted again and again")

    @property
    def pending(self) -> int:
        """How many sessions are not closed, running ones included."""
        return len(self._waiting) + len(self._running)

    @property
    def running(self) -> int:
        """How many sessions have a hook that runs."""
        return len(self._running)

    def add(self, requests: Iterable[SessionRequest]) -> None:
        """Take up what was just made durable: the journal can be written then."""
        self._write_again_at = self._ends_again_at = float("-inf")
        for request in requests:
            self._take_up(request)
        self._woken.set()

    def wake(self) -> None:
        """Look again for something to start: connections changed."""
        self._woken.set()

    async def run(self) -> None:
        """Start and settle sessions until `stop`; a bug in it is raised here."""
        self._give_up_interrupted()
        async with asyncio.TaskGroup() as self._group:
            while not self._stopping:
                self._woken.clear()
                began = time.monotonic()
                self._write_again()
                await self._expire()
                await self._start_all()
                self._tell_of_waiting()
                await self._sleep(began)

    def start_no_more(self) -> None:
        """Let what runs be the last of this process: what comes now is for the next one."""
        self._stopping = True
        self._woken.set()

    async def stop(self) -> None:
        """Start nothing more; give hooks `hook.stop_grace` to end. One that doesn't is run again at the next start."""
        self.start_no_more()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._config.hook.stop_grace)
        self.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._write_ends(list(self._unwritten.values()))

    def abort(self) -> None:
        """End running hooks now: TERM, and KILL after `hook.kill_after`."""
        # Not before the first step of a task that was made just now: it does nothing at all else.
        asyncio.get_running_loop().call_soon(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in self._tasks:
            if not task.cancelling():  # a second one would take the hook's time after TERM away
                task.cancel()

    async def _expire(self) -> None:
        while not self._stopping and (over := self._waiting.take_expired(time.monotonic(), ENDS_AT_ONCE)):
            for request in over:
                self._untold.pop(request.session, None)
            self._close(over, Closed.EXPIRED, "its time to start is over")
            await asyncio.sleep(0)

    async def _start_all(self) -> None:
        """Start all that can be, one after the other: each spawn holds up reception for a moment."""
        failed = 0
        while not self._stopping and self._write_again_at <= time.monotonic():
            start = self._look_and_choose()
            if start is None:
                return
            if not self._start(start):
                # One row may be at fault alone; where a second one fails too, it is the journal.
                failed += 1
                again_at = time.monotonic() + WRITE_AGAIN_AFTER
                self._waiting.add(start.request.later(again_at))
                if failed > 1:
                    self._write_again_at = again_at
            await asyncio.sleep(0)

    def _start(self, start: SessionStart) -> bool:
        """Begin a try, if that can be written down."""
        if self._group is None or not self._begin(start):
            return False
        begun = self._hook.begin(start, lambda _: None)
        trying = self._try(start, self._hook, begun)
        try:
            task = self._group.create_task(trying, name=f"session {start.request.session}")
        except BaseException:  # the group has ended, by a bug
            trying.close()
            _close(begun)
            raise
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: _close(begun))  # one that is cancelled with its group may not have begun
        return True

    def _tell_of_waiting(self) -> None:
        """Say once of each session what connection it waits for, and again where it was about to have one."""
        available = self._links.available()
        unseen = self._unseen if available == self._seen_with else list(self._untold.values())
        self._unseen, self._seen_with = [], available
        there = " ".join(f"{connection.interface}({connection.type})" for connection in available)
        missing = cache(partial(explain_missing, self._links.links))
        for request in unseen:
            preferred, server_id = request.notification.preferred_connections, request.server_id
            if request.session not in self._untold or server_id not in self._servers:
                continue
            if choose_connection(preferred, available) is None:
                del self._untold[request.session]
                wanted = " ".join(preferred) or str(ConnectionType.ANY)
                facts = {"wanted": wanted, "available": there, "missing": missing(preferred)}
                logger.info("session waits", session=request.session, server_id=server_id, **facts)

    def _look_and_choose(self) -> SessionStart | None:
        """Return the try to begin now, over a connection that is there at this moment; None where there is none."""
        start = self._next_start(self._waiting)
        if start is None or self._links.still_has(start.connection):
            return start
        # What was known may be as old as the last notice. Where links can't be read, a read that succeeds wakes us.
        found = self._next_start(self._waiting) if self._links.read_now() else None
        if found is None:
            self._tell_of(start.request)
        return found

    def _next_start(self, waiting: Schedule) -> SessionStart | None:
        if len(self._running) >= self._config.sessions.concurrency:
            return None
        available = self._links.available()
        return waiting.next_start(available, time.monotonic(), self._startable(), self._resting())

    def _begin(self, start: SessionStart) -> bool:
        """Write down that a try begins; whether it may."""
        request = start.request
        try:
            self._journal.begin(request, start.attempt)
        except JournalError as error:
            facts = {"session": request.session, "again_in": WRITE_AGAIN_AFTER}
            logger.error("session not started", problem=str(error), **facts)
            return False
        self._running[request.session] = self._waiting.remove(request.session)
        self._untold.pop(request.session, None)
        self._last_start[request.server_id] = time.monotonic()
        self.counters["tries"] += 1
        self._on_change()
        return True

    async def _try(self, start: SessionStart, hook: Hook, begun: Begun) -> None:
        connection = start.connection
        logger.info("session starts", **_facts(start), connection=str(connection.type), interface=connection.interface)
        try:
            outcome = await hook.follow(start, begun)
        except asyncio.CancelledError:
            self.counters["interrupted"] += 1
            logger.warning("session interrupted", **_facts(start), next="at the next start of the daemon")
            self._waiting.add(self._take_back(start))
            return
        except Exception as error:  # noqa: BLE001 - one session's bug is no other's end
            logger.exception("session failed by a bug", session=start.request.session)
            outcome = Outcome(Result.FAILED, repr(error))
        finally:
            self._woken.set()
        self._settle(start, self._take_back(start), outcome)

    def _take_back(self, start: SessionStart) -> SessionRequest:
        """Return the request as it is after this try; its time may have changed meanwhile."""
        self._on_change()
        return self._running.pop(start.request.session).tried(start.attempt)

    def _settle(self, start: SessionStart, request: SessionRequest, outcome: Outcome) -> None:
        jitter = os.urandom(1)[0] / 0xFF
        verdict = after_try(outcome, start.attempt, self._config.retry, jitter)
        if isinstance(verdict, Closed):
            self._close([request], verdict, outcome.detail)
            return
        logger.warning("session try failed", **_facts(start), outcome=outcome.detail, again_in=round(verdict, 1))
        try:
            later = self._journal.postpone(request, verdict)
        except JournalError as error:
            logger.error("pause not written", session=request.session, problem=str(error))
            later = request.later(time.monotonic() + verdict)
        self._take_up(later)

    def _close(self, requests: Sequence[SessionRequest], closed: Closed, detail: str) -> None:
        ends = [(request, closed) for request in requests]
        self._unwritten.update((request.session, end) for request, end in zip(requests, ends, strict=True))
        self._write_ends(ends)  # before it is said: a log that says done must not be ahead of the journal
        self.counters[str(closed)] += len(requests)
        self._on_change()
        say = logger.info if closed is Closed.DONE else logger.error
        for request in requests:
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
            self._write_ends(list(self._unwritten.values()))

    def _write_ends(self, ends: Sequence[_End]) -> None:
        """Write down what is closed. Until then only a restart would run it again: at least once, as promised."""
        failed: list[JournalError] = []
        for at in range(0, len(ends), ENDS_AT_ONCE):
            failed += self._write_together(ends[at : at + ENDS_AT_ONCE])
            if len(failed) > 1:
                break
        if failed:
            facts = {"sessions": len(self._unwritten), "again_in": WRITE_AGAIN_AFTER}
            logger.error("end not written", problem=str(failed[-1]), **facts)
            self._ends_again_at = time.monotonic() + WRITE_AGAIN_AFTER

    def _write_together(self, ends: Sequence[_End]) -> list[JournalError]:
        """Close some in one transaction, or else one by one: a row may be at fault alone. Returns what failed then."""
        failed: list[JournalError] = []
        try:
            self._journal.close(ends)
        except JournalError as error:
            if len(ends) == 1:
                return [error]
        else:
            for request, _ in ends:
                del self._unwritten[request.session]
            return []
        for end in ends:
            failed += self._write_together([end])
            if len(failed) > 1:  # it is the journal
                break
        return failed

    async def _sleep(self, since: float) -> None:
        """Sleep until something can be otherwise than it was at `since`."""
        wake = self._waiting.next_change(since, self._startable(), self._resting())
        times = [wake, self._write_again_at, self._ends_again_at if self._unwritten else None]
        wake = min((at for at in times if at is not None and at > since), default=wake)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if wake is None else max(wake - time.monotonic(), 0)):
                await self._woken.wait()


def _close(begun: Begun) -> None:
    if isinstance(begun, Run):
        begun.close()


def _facts(start: SessionStart) -> dict[str, object]:
    """Name a try in the log."""
    return {
        "session": start.request.session,
        "server_id": start.request.server_id,
        "notification_id": start.request.notification.notification_id,
        "attempt": start.attempt,
    }
