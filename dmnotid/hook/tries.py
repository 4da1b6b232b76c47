"""One try of a session: a run of the hook in a task of its own, under the lock of its server.

made --begin--> running --hook ended--> ended
                   +--end--> ending: SIGTERM, SIGKILL after `hook.kill_after` --hook ended--> ended
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial

from dmnotid.hook.locks import ServerLock
from dmnotid.hook.runner import Hook
from dmnotid.host.log import logger
from dmnotid.policy.sessions import Outcome, Result, SessionStart


class Try:
    """One try. It frees the lock of its server when its hook has ended."""

    # Set by `begin`.
    task: asyncio.Task[None]

    def __init__(self, hook: Hook, start: SessionStart, lock: ServerLock) -> None:
        # The request as it was before this try, the connection, and the number of the try.
        self.start = start
        # How the hook ended; None until then, and also if the try was ended before.
        self.outcome: Outcome | None = None
        # Whether the session was cancelled: its row is closed, and the try is of no more consequence.
        self.is_cancelled = False
        # The process of the hook, once it runs and if it is a command.
        self.pid: int | None = None
        # When the try was made, on the wall clock (POSIX seconds) and on the monotonic one.
        self.started_at, self.began = time.time(), time.monotonic()
        # As configured when the try began: a reload changes neither its time-out nor its way to end.
        self.hook = hook
        # The lock of the server.
        self._lock = lock
        # Whether `end` has been called.
        self._is_ending = False

    def begin(self, group: asyncio.TaskGroup, on_end: Callable[["Try"], None]) -> None:
        """Run the hook in a task of `group`, and call `on_end` once it has ended."""
        self.task = group.create_task(self._run(on_end), name=f"try {self.start.request.session}")

    def end(self) -> None:
        """End the hook now: TERM, and KILL after `hook.kill_after`. Ending twice is harmless."""
        # A second cancellation would cut the time that a hook has between TERM and KILL.
        if not self._is_ending:
            self._is_ending = True
            # A task cancelled before its first step never runs its cleanup: cancel in the loop's next iteration.
            asyncio.get_running_loop().call_soon(self.task.cancel)

    async def _run(self, on_end: Callable[["Try"], None]) -> None:
        facts = self.start.request.log_facts(self.start.attempt)
        try:
            with self._lock:
                # A try that is ended before this first step starts no hook.
                if not self._is_ending:
                    kind, interface = self.start.connection
                    logger.info("session started", **facts, connection=str(kind), interface=interface)
                    self.outcome = await self.hook.run(self.start, self._lock, partial(setattr, self, "pid"))
        except asyncio.CancelledError:
            # Not raised again: that the task ended early shows in the missing outcome.
            pass
        except Exception as error:  # noqa: BLE001 - a bug in one session must not end the others
            logger.exception("internal error", **facts)
            self.outcome = Outcome(Result.FAILED, repr(error))
        on_end(self)
