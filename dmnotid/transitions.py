"""The changes of a session's state, in memory and in the journal: starts and ends of tries, and ends of sessions.

`tracking` has the states. A row is written before its hook starts and after it ends. So after a crash a session is run
again, at least once, and never again once its row is closed.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from dmnotid.config.values import Config
from dmnotid.errors import HookError, JournalError, NoSuchSession, NotPending
from dmnotid.hook.locks import LOCK_POLL, Locks
from dmnotid.hook.runner import Hook
from dmnotid.hook.tries import Try
from dmnotid.host.log import logger
from dmnotid.journal.queue import Journal
from dmnotid.policy.retry import after_try
from dmnotid.policy.sessions import Closed, Outcome, Result, SessionStart
from dmnotid.tracking import Sessions, Tracked

WRITE_AGAIN_AFTER: Final = 10
"""Pause before a start or an end that could not be written is tried again, in seconds."""


class Transitions:
    """Leads sessions from one state to the next, in memory and in the journal."""

    def __init__(self, config: Config, sessions: Sessions, journal: Journal, on_end: Callable[[], None]) -> None:
        # The tries that were begun, those that were interrupted, and the sessions that were closed, by their end.
        self.counters: Counter[str] = Counter()
        # The time that ended tries took, in seconds.
        self.duration_sum = 0.0
        # Why the hook could not be started when that was last tried or looked at; empty if it could.
        self.hook_problem = ""
        # The states.
        self._sessions = sessions
        # The rows.
        self._journal = journal
        # Called after each end of a try.
        self._on_end = on_end
        # The locks of the servers: a hook that outlives a killed daemon keeps its lock.
        self._locks = Locks(config.state)
        # The configuration for the next start, and the hook made from it.
        self._config, self._hook = config, Hook(config.hook)

    def configure(self, config: Config) -> None:
        """Use another configuration from the next start on; a running try ends as it began."""
        self._config, self._hook = config, Hook(config.hook)
        self.hook_problem = ""
        try:
            # Reported now, and not only at each start.
            self._hook.check()
        except HookError as error:
            self.hook_problem = str(error)
            logger.warning("hook not startable", problem=str(error), consequence="no session can be started")
        self._sessions.look_again()

    def begin(self, start: SessionStart, group: asyncio.TaskGroup) -> bool:
        """Begin a try in a task of `group`, or let its session wait; False if the try can't be written."""
        request, server_id = start.request, start.request.server_id
        tracked = self._sessions.tracked[request.session]
        try:
            # Before the try is committed, so that a hook that can't be started spends none.
            self._hook.check()
            lock = self._locks.take(server_id, self._config.hook.timeout)
        except HookError as error:
            self._settle(tracked, Outcome(Result.NOT_STARTED, str(error)))
            return True
        # A hook of a former daemon runs for this server. No event reports its end, and no try is spent.
        if lock is None:
            self._sessions.locked_until[server_id] = time.monotonic() + LOCK_POLL
            return True
        try:
            # Before its hook is started: after a crash, the next try has the next number.
            self._journal.begin(request, start.attempt, start.connection)
        except JournalError as error:
            lock.free()
            facts = {"problem": str(error), "again_in": WRITE_AGAIN_AFTER}
            logger.error("session not started", **request.log_facts(start.attempt), **facts)
            tracked.problem = f"its start could not be written: {error}"
            self._sessions.queue(request._replace(not_before=time.monotonic() + WRITE_AGAIN_AFTER))
            return False
        self.counters["tries"] += 1
        run = Try(self._hook, start, lock)
        self._sessions.begin(run)
        run.begin(group, self._end)
        return True

    def _end(self, run: Try) -> None:
        """Lead a session whose hook has ended to its next state."""
        self.duration_sum += time.monotonic() - run.began
        tracked, outcome = self._sessions.stop(run), run.outcome
        # However the hook of a cancelled session ended, its row is closed already.
        if tracked is not None and outcome is None:
            self.counters["interrupted"] += 1
            logger.warning("session interrupted", **tracked.request.log_facts(), next="at the next start of the daemon")
            self._sessions.queue(tracked.request)
        elif tracked is not None and outcome is not None:
            if outcome.result is Result.NOT_STARTED:
                # The try that was written did not begin after all.
                self.counters["tries"] -= 1
                self._sessions.take_back(tracked, run.start.request)
                try:
                    # The pause is not written: after a restart the hook is looked at again at once.
                    self._journal.take_back(tracked.request)
                except JournalError as error:
                    logger.error("pause not written", **tracked.request.log_facts(), problem=str(error))
            self._settle(tracked, outcome)
        self._on_end()

    def _settle(self, tracked: Tracked, outcome: Outcome) -> None:
        """End a session after its try, or pause it until the next one."""
        not_started = outcome.result is Result.NOT_STARTED
        tracked.failed_starts = tracked.failed_starts + 1 if not_started else 0
        tracked.problem = self.hook_problem = outcome.detail if not_started else ""
        count = tracked.failed_starts or tracked.request.attempts
        # Jitter from the kernel: devices of one image that start together must not share it.
        verdict = after_try(outcome, count, self._config.retry, jitter=os.urandom(1)[0] / 0xFF)
        if isinstance(verdict, Closed):
            self._sessions.end(tracked.request, verdict, outcome.summary)
            return
        # A try that did not begin is not one of `attempts`.
        facts = {**tracked.request.log_facts(tracked.request.attempts + not_started), "again_in": round(verdict, 1)}
        later = tracked.request._replace(not_before=time.monotonic() + verdict)
        if not_started:
            logger.error("hook not started", **facts, problem=outcome.detail)
        else:
            logger.warning("session try failed", **facts, outcome=outcome.detail)
            later = later._replace(last_try=later.last_try._replace(outcome=outcome.summary))
            try:
                later = self._journal.postpone(later, verdict, outcome.summary)
            except JournalError as error:
                # The pause then holds in this process only; after a restart the next try begins at once.
                logger.error("pause not written", **tracked.request.log_facts(), problem=str(error))
        self._sessions.queue(later)

    def close(self, now: float = inf, most: int | None = None) -> bool:
        """Close the rows of ended sessions that may be closed by `now`; return whether there were any."""
        ended = [tracked for tracked in self._sessions.ending.values() if tracked.close_at <= now][:most]
        self._close(ended)
        return bool(ended)

    def _close(self, ended: Sequence[Tracked]) -> None:
        """Close these rows in one transaction, and log the sessions as closed once it is committed."""
        if not ended:
            return
        try:
            self._journal.close([(it.request, it.closed, it.outcome) for it in ended if it.closed is not None])
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

    def cancel(self, session: int, was: str, by: str) -> None:
        """Close a session as cancelled, at once and durably, and end its hook if one runs. `was` is its state.

        Raises NoSuchSession, NotPending or JournalError, and changes nothing then.
        """
        tracked = self._sessions.tracked.get(session)
        if tracked is None:
            row = self._journal.find(session)
            raise NoSuchSession(session) if row is None else NotPending(session, row.state)
        if tracked.closed is not None:
            raise NotPending(session, str(tracked.closed))
        # Before its hook is ended: whatever happens from here on, no process runs it again.
        self._journal.close([(tracked.request, Closed.CANCELLED, f"cancelled by {by}")])
        self.counters[Closed.CANCELLED] += 1
        logger.info("session cancelled", **tracked.request.log_facts(), was=was, by=by)
        self._sessions.forget(session)
        if tracked.running is not None:
            tracked.running.is_cancelled = True
            tracked.running.end()

    def retry(self, session: int, was: str, by: str) -> bool:
        """End the pause of a session and the rest of its server, or open a failed or expired one again.

        Order, concurrency and connections are as for any other session. False if there is nothing to end. Raises
        NoSuchSession, NotPending or JournalError, and changes nothing then.
        """
        tracked, now = self._sessions.tracked.get(session), time.monotonic()
        if tracked is None:
            request = self._journal.revive(session)
        else:
            request = tracked.request
            rested_at = self._sessions.rested_at(request.server_id, now)
            if tracked.running is not None or tracked.closed is not None or max(request.not_before, rested_at) <= now:
                return False
            # Written, because after a restart the pause in the row would apply again.
            if request.not_before > now:
                request = self._journal.postpone(request, 0)
            tracked.failed_starts, tracked.problem = 0, ""
        self._sessions.end_rest(request.server_id)
        self._sessions.queue(request)
        logger.info("session retried", **request.log_facts(), was=was or "closed", by=by)
        return True
