"""One run of the session starter for one try: a command as a child of the daemon, or a session handed to a socket."""

import asyncio
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from dmnotid.config.values import HookConfig
from dmnotid.errors import HookError
from dmnotid.hook.command import Command, start_command
from dmnotid.hook.facts import build_arguments, build_environment, build_input, find_home, session_facts
from dmnotid.hook.handoff import hand_over
from dmnotid.hook.locks import ServerLock
from dmnotid.hook.output import OutputLog
from dmnotid.hook.startable import check_hook
from dmnotid.host.log import logger
from dmnotid.policy.sessions import Outcome, Result, SessionStart
from dmnotid.sentences import shortened

MAX_LAST_LINE: Final = 80
"""Maximum number of characters of a hook's last line of output in the outcome of a run; a row keeps no more."""

EXIT_REFUSED: Final = 78
"""EX_CONFIG: the hook refuses this session for good."""


class Hook:
    """The configured session starter."""

    def __init__(self, config: HookConfig) -> None:
        # A reload makes another Hook, so a running try ends by the configuration that it began with.
        self._config = config
        # Read once: a name service may be far away, and the loop waits for it.
        self._home = find_home()

    def check(self) -> None:
        """Ensure that the hook could be started now. Raises HookError."""
        check_hook(self._config)

    @property
    def timeout(self) -> float:
        """Maximum time of a run, in seconds."""
        return self._config.timeout

    async def run(
        self, start: SessionStart, lock: ServerLock | None = None, on_start: Callable[[int], None] = lambda _: None
    ) -> Outcome:
        """Run the hook for one try and return how it ended.

        A hook that outlives `hook.timeout` is ended. Cancelling ends the process group (or closes the connection). A
        command inherits `lock`, the lock of the server; `on_start` gets its process id.
        """
        session_log = logger.bind(**start.request.log_facts(start.attempt))
        output = OutputLog(session_log)
        try:
            # Before each run: the path may have changed since the configuration was read.
            self.check()
            if self._config.socket is not None:
                return await self._hand_over(self._config.socket, start, output)
            return await self._run_command(start, output, session_log, lock, on_start)
        except HookError as error:
            return Outcome(Result.NOT_STARTED, str(error))
        finally:
            output.flush()

    async def _run_command(
        self,
        start: SessionStart,
        output: OutputLog,
        log: FilteringBoundLogger,
        lock: ServerLock | None,
        on_start: Callable[[int], None],
    ) -> Outcome:
        facts = session_facts(start)
        # Leaving the context by a cancellation ends the command.
        async with start_command(
            build_arguments(self._config.command, facts),
            build_environment(facts, self._config.environment, self._home),
            build_input(facts),
            kill_after=self._config.kill_after,
            log=log,
            on_output=output.feed,
            lock=lock,
        ) as command:
            on_start(command.pid)
            try:
                async with asyncio.timeout(self._config.timeout):
                    await command.exited.wait()
            except TimeoutError:
                await _end_in_full_time(command)
                ended = command.exited.is_set()
                end = describe_exit(command.exit_code) if ended else "SIGKILL did not end it"
                return _with_reason(
                    Outcome(Result.FAILED, f"timed out after {self._config.timeout:g} s, {end}"), output
                )
        return _with_reason(judge(command.exit_code), output)

    async def _hand_over(self, path: Path, start: SessionStart, output: OutputLog) -> Outcome:
        # The other side has no lock of the daemon's: a connection can't hand one over.
        octets = build_input(session_facts(start)).encode()
        try:
            async with asyncio.timeout(self._config.timeout):
                answer = await hand_over(path, octets, partial(output.feed, "socket"))
        except TimeoutError:
            # Cancelling `hand_over` has closed the connection, which is all that the daemon can end on the other side.
            return _with_reason(Outcome(Result.FAILED, f"timed out after {self._config.timeout:g} s"), output)
        if answer.exit_code is None:
            # The problem quotes the last line.
            return Outcome(Result.FAILED, answer.problem)
        return _with_reason(judge(answer.exit_code), output)


async def _end_in_full_time(command: Command) -> None:
    """End a command; a first cancellation does not shorten the time between SIGTERM and SIGKILL."""
    # The daemon's stop cancels a run, and this hook has had its SIGTERM already.
    ending = asyncio.ensure_future(command.end())
    try:
        await asyncio.shield(ending)
    except asyncio.CancelledError:
        await ending
        raise


def _with_reason(outcome: Outcome, output: OutputLog) -> Outcome:
    """Add the last line of output to the outcome of a run that failed."""
    # The last line may lack its newline until now.
    output.flush()
    done = outcome.result is Result.DONE
    return outcome if done else outcome._replace(last_line=shortened(output.last_line, MAX_LAST_LINE))


def judge(exit_code: int) -> Outcome:
    """Return the meaning of a hook's exit status; a negative number is the signal that ended it."""
    if not exit_code:
        return Outcome(Result.DONE, describe_exit(exit_code))
    return Outcome(Result.REFUSED if exit_code == EXIT_REFUSED else Result.FAILED, describe_exit(exit_code))


def describe_exit(exit_code: int) -> str:
    """Return `exit 3` or `killed by SIGKILL`."""
    if exit_code >= 0:
        return f"exit {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:  # a real-time signal has no name
        return f"killed by signal {-exit_code}"
