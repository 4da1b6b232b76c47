"""One run of the session starter: a child of the daemon, or a connection to a socket; never waited for blindly."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from math import inf
from pathlib import Path
from typing import IO, Final, Self

from dmnotid.config.values import HookConfig
from dmnotid.errors import DmnotidError, HookError, UntrustedPath
from dmnotid.hook.facts import (
    Facts,
    as_file,
    build_arguments,
    build_environment,
    build_facts,
    build_input,
    find_home,
)
from dmnotid.hook.handoff import Handoff
from dmnotid.hook.processes import Identity, LeftOver, group_lives, identify
from dmnotid.hook.turn import LOGGED
from dmnotid.host.log import logger
from dmnotid.host.trust import check_trusted, check_trusted_socket
from dmnotid.policy.sessions import Outcome, Result, SessionStart

EXIT_REFUSED: Final = 78
"""EX_CONFIG: the hook refuses this session for good."""

EXIT_UNKNOWN: Final = 255
"""Taken for the exit status where the kernel doesn't tell."""

MAX_LINE_OCTETS: Final = 1_024
MAX_OUTPUT_OCTETS: Final = 65_536
GROUP_POLL: Final = 0.25
"""How often it is looked whether a process group that got SIGTERM has ended (seconds)."""

LOOK_SPARINGLY: Final = 20
"""It is looked less often where a look is long: the pause is so many times as long at least."""

KILLED_AFTER: Final = 5
"""How long the end of a process is waited for after SIGKILL (seconds)."""

_CHUNK_UNLOGGED: Final = 65_536
"""How much output is read at once that is not logged any more."""

_CHUNK_LOOKED_AT: Final = 4_096
"""The same from a socket, where each line is still looked at: the last one is the answer."""

_NONE: Final = -1


class Hook:
    """The configured session starter."""

    def __init__(self, config: HookConfig) -> None:
        """Nothing is started or looked at yet, but where the daemon's user is at home: that may ask the network."""
        self.config = config
        self._home = find_home()

    async def run(self, start: SessionStart, on_started: Callable[[str], None] | None = None) -> Outcome:
        """Run the hook for one try, as `begin` and `follow` do."""
        return await self.follow(start, self.begin(start, on_started))

    def begin(self, start: SessionStart, on_started: Callable[[str], None] | None = None) -> "Begun":
        """Start the command for one try, now: whatever else there is to do can be done while it begins.

        `on_started` gets what `end_left_over` knows it by, as soon as it is started; should it raise, that is logged.
        Whatever keeps the command from being started is returned, for `follow` to tell.
        """
        try:
            check_hook(self.config)
            if self.config.socket is not None:
                return self.config.socket
            run = self._start(start)
        except Exception as error:  # noqa: BLE001 - one session's bug is no other's end
            return error
        if on_started is not None:
            run.note(on_started)
        return run

    async def follow(self, start: SessionStart, begun: "Begun") -> Outcome:
        """Say how a try ended that has begun; a command is killed when it outlives `hook.timeout`.

        Whatever keeps the hook from being started is an Outcome too. Cancelling ends the process group (or closes the
        connection), then raises.
        """
        try:
            if isinstance(begun, Exception):
                raise begun
            if isinstance(begun, Path):
                return await self._hand_over(begun, start)
        except HookError as error:
            logger.error("hook not started", session=start.request.session, problem=str(error))
            return Outcome(Result.FAILED, f"not started: {error}")
        with begun as run:
            return await self._wait(run)

    async def end_left_over(self, processes: Iterable[str]) -> None:
        """End what a daemon left behind when it was killed, as `run` told its `on_started`: never two for one server.

        As after a time-out: TERM, and KILL after `hook.kill_after`, or at once when this is cancelled. Passed over is
        what has ended, what is of another boot, and what can't be read. What runs behind a socket is not to be seen.
        """
        with ExitStack() as stack:
            left = [stack.enter_context(found) for found in _find_left_over(processes)]
            if not left:
                return
            groups = [found.group for found in left]
            logger.warning("hooks left over", groups=groups, problem="their daemon was killed; they are ended first")
            _signal_left_over(left, signal.SIGTERM)
            try:
                await _until_ended(partial(_any_lives, left), self.config.kill_after)
            finally:
                _signal_left_over(left, signal.SIGKILL)
            await _until_ended(partial(_any_lives, left), KILLED_AFTER)
            for found in left:
                if found.lives():
                    logger.error("hook can't be ended", group=found.group)

    async def _hand_over(self, path: Path, start: SessionStart) -> Outcome:
        """Let whoever listens on a socket run the session. Raises HookError where nobody takes it."""
        output = _output_log(start.request.session)

        def share() -> int:
            return _CHUNK_LOOKED_AT if output.is_full else LOGGED.share

        try:
            with Handoff(
                path, build_input(build_facts(start)).encode(), partial(output.feed, "socket"), share
            ) as handoff:
                async with asyncio.timeout(self.config.timeout):
                    await handoff.ended.wait()
        except TimeoutError:
            return Outcome(Result.FAILED, f"timed out after {self.config.timeout:g} s")
        finally:
            output.flush()
        code = handoff.answer.exit_code
        return Outcome(Result.FAILED, handoff.answer.problem) if code is None else judge(code)

    def _start(self, start: SessionStart) -> "Run":
        facts = build_facts(start)
        arguments = build_arguments(self.config.command, facts)
        try:
            return Run(self._spawn(arguments, facts), start.request.session)
        except (OSError, ValueError, MemoryError, subprocess.SubprocessError) as error:
            message = f"{arguments[0]}: {_why_not_started(Path(arguments[0]), error)}"
            raise HookError(message, component=arguments[0]) from error

    def _spawn(self, arguments: list[str], facts: Facts) -> subprocess.Popen[bytes]:
        with as_file(build_input(facts)) as standard_input:
            process = subprocess.Popen(  # noqa: S603 - the list is the configuration's, its file was just checked
                arguments,
                stdin=standard_input,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=build_environment(facts, self.config.environment, self._home),
                process_group=0,
            )
        os.sched_yield()  # it begins now, not once all that follows here is done: there may be one processor
        return process

    async def _wait(self, run: "Run") -> Outcome:
        try:
            async with asyncio.timeout(self.config.timeout):
                await run.ended.wait()
        except TimeoutError:
            await self._end_in_any_case(run)
            end = describe(run.exit_code) if run.ended.is_set() else "can't be ended: not even by SIGKILL"
            return Outcome(Result.FAILED, f"timed out after {self.config.timeout:g} s, {end}")
        except asyncio.CancelledError:
            await self._end(run)
            raise
        return judge(run.exit_code)

    async def _end_in_any_case(self, run: "Run") -> None:
        """End it with all the time that it is given, also when the daemon is stopped meanwhile."""
        ending = asyncio.ensure_future(self._end(run))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _end(self, run: "Run") -> None:
        """TERM to the whole process group, KILL to what of it is left after `hook.kill_after`."""
        run.signal(signal.SIGTERM)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.config.kill_after):
                    await run.ended.wait()
                    await _until_ended(run.group_lives)
        finally:
            run.signal(signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(KILLED_AFTER):
                await run.ended.wait()


def _why_not_started(file: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and file.exists():
        return "its interpreter (the #! line) or its loader is missing"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)


class Run:
    """A started hook: a pidfd tells its end, its output is logged as it comes. Leaving the context closes it."""

    def __init__(self, process: subprocess.Popen[bytes], session: int) -> None:
        """Watch it on the loop that runs now; it is ended where it can't be watched."""
        self.ended = asyncio.Event()
        self.exit_code = 0
        self._session = session
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._output = _output_log(session)
        self._killed_at = inf
        self._closed = False
        pipes = {"stdout": process.stdout, "stderr": process.stderr}
        self._pipes: dict[str, IO[bytes]] = {stream: pipe for stream, pipe in pipes.items() if pipe is not None}
        for _ in self._pipes:
            LOGGED.open()
        self._pidfd = _NONE
        try:
            self._watch()
        except BaseException:
            self._abandon()
            raise

    def _watch(self) -> None:
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._at_end)
        for stream, pipe in self._pipes.items():
            os.set_blocking(pipe.fileno(), False)
            self._loop.add_reader(pipe.fileno(), self._at_output, stream)

    def _abandon(self) -> None:
        """Leave nothing of a hook that can't be watched. It was just started: nothing keeps it from ending at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(PermissionError):
            self._process.kill()
        for stream in list(self._pipes):
            self._let_go(stream)
        if self._pidfd != _NONE:
            self._let_go_of_process()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)

    def __enter__(self) -> Self:
        """Return it; it runs since it was made."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it where the wait for it was broken off."""
        self.close()

    def close(self) -> None:
        """End it where that is still to be done, and let go of it; a second time is no harm."""
        if self._closed:
            return
        self._closed = True
        for stream in list(self._pipes):
            self._let_go(stream)
        self._output.flush()
        if self._process.poll() is None:
            self._kill()
        else:
            self._let_go_of_process()

    def note(self, on_started: Callable[[str], None]) -> None:
        """Tell what the hook is known by when this daemon is no more; without it the hook runs all the same."""
        facts = {"session": self._session, "pid": self._process.pid}
        try:
            on_started(str(identify(self._process.pid)))
        except (DmnotidError, OSError) as error:
            logger.error("hook not noted", problem=str(error), **facts)
        except Exception:  # noqa: BLE001 - a bug in it is not the hook's
            logger.exception("hook not noted", **facts)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, and to a leader that has left it.

        The leader is not reaped before its group had its signals: its number is nobody else's.
        """
        if number == signal.SIGKILL:
            self._killed_at = min(self._killed_at, self._loop.time())
        pid, facts = self._process.pid, {"session": self._session, "pid": self._process.pid}
        _send(partial(os.killpg, pid), number, **facts)
        with suppress(ProcessLookupError):
            if os.getpgid(pid) != pid:
                _send(partial(signal.pidfd_send_signal, self._pidfd), number, **facts)

    def _kill(self) -> None:
        """End what is still there where the wait for it was broken off; it is reaped whenever it ends."""
        self.signal(signal.SIGKILL)
        # Another user's, or stuck in the kernel.
        complain = partial(logger.error, "hook can't be ended", session=self._session, pid=self._process.pid)
        complaint = self._loop.call_at(self._killed_at + KILLED_AFTER, complain)
        self._loop.add_reader(self._pidfd, self._reap, complaint)

    def _reap(self, complaint: asyncio.TimerHandle) -> None:
        complaint.cancel()
        self._process.wait()
        self._let_go_of_process()

    def _let_go_of_process(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def group_lives(self) -> bool:
        """Tell whether anything of the process group is left that has not ended."""
        return group_lives(self._process.pid)

    def _at_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.exit_code = _exit_code(self._pidfd)
        self._drain()

    def _drain(self) -> None:
        """Take what the hook left in its pipes, turn by turn; a child that still holds them delays nothing for long."""
        more = [self._at_output(stream) for stream in list(self._pipes)]
        if any(more) and not self._output.is_full:
            self._loop.call_soon(self._drain)
        else:
            self.ended.set()

    def _at_output(self, stream: str) -> bool:
        try:
            octets = os.read(self._pipes[stream].fileno(), _CHUNK_UNLOGGED if self._output.is_full else LOGGED.share)
        except BlockingIOError:
            return False
        if octets:
            self._output.feed(stream, octets)
        else:
            self._let_go(stream)
        return bool(octets)

    def _let_go(self, stream: str) -> None:
        LOGGED.close()
        with self._pipes.pop(stream) as pipe:
            self._loop.remove_reader(pipe.fileno())


Begun = Run | Path | Exception
"""A try that has begun: its process, the socket that it is to be handed to, or why there is neither."""


def _find_left_over(processes: Iterable[str]) -> Iterator[LeftOver]:
    """Hold on to those of these processes that have not ended."""
    for leader in filter(None, map(Identity.parse, dict.fromkeys(processes))):
        try:
            yield LeftOver(leader)
        except ProcessLookupError:
            continue
        except OSError as error:
            logger.error("hook left over not ended", group=leader.pid, problem=str(error))


def _any_lives(left: Iterable[LeftOver]) -> bool:
    # Each is looked at: who is in a group at this look tells at the next that its number is still the group's.
    return bool([found for found in left if found.lives()])


def _signal_left_over(left: Iterable[LeftOver], number: signal.Signals) -> None:
    for found in left:
        _send(found.signal, number, group=found.group)


def _send(send: Callable[[signal.Signals], None], number: signal.Signals, **facts: object) -> None:
    """Send a signal to what may have ended, or have become another user's."""
    with suppress(ProcessLookupError):
        try:
            send(number)
        except PermissionError as error:
            logger.error("hook can't be signalled", problem=error.strerror, signal=number.name, **facts)


async def _until_ended(lives: Callable[[], bool], patience: float | None = None) -> None:
    """Wait until it lives no more, for so many seconds at most; no event tells of a process group's end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while pause := _pause_after_look(lives):  # noqa: ASYNC110 - as said, no event
                await asyncio.sleep(pause)


def _pause_after_look(lives: Callable[[], bool]) -> float:
    """Look whether it lives: 0 when it doesn't, else how long to wait until the next look."""
    began = time.monotonic()
    # A device with many processes takes its time to list them, and the loop stands still meanwhile.
    found = lives()
    return max(GROUP_POLL, LOOK_SPARINGLY * (time.monotonic() - began)) if found else 0


def _exit_code(pidfd: int) -> int:
    """Return how the process ended (a signal's number below 0) and leave it to be reaped."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # somebody ignores SIGCHLD: its end is known, how it ended is not
        return EXIT_UNKNOWN
    if status is None:
        return EXIT_UNKNOWN
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


class OutputLog:
    """Cuts a hook's output into lines: a line at 1 KiB, a run at 64 KiB; empty lines are left out.

    Never holds more than one line a stream.
    """

    def __init__(self, emit: Callable[[str, str, bool], None]) -> None:
        """`emit` gets the stream's name, the line as text, and whether the line was cut."""
        self._emit = emit
        self._left = MAX_OUTPUT_OCTETS
        self._lines: dict[str, bytearray] = {}
        self._cut: dict[str, bool] = {}

    @property
    def is_full(self) -> bool:
        """Whether nothing more of this run is logged."""
        return self._left <= 0

    def feed(self, stream: str, octets: bytes) -> None:
        """Take what a stream gave."""
        if self._left <= 0:
            return
        octets = octets[: self._left]
        self._left -= len(octets)
        *whole, rest = octets.split(b"\n")
        for piece in whole:
            self._add(stream, piece)
            self._finish(stream)
        self._add(stream, rest)
        if not self._left:
            self.flush()
            self._emit(stream, f"output ends here: {MAX_OUTPUT_OCTETS} octets of one run are logged", True)  # noqa: FBT003

    def flush(self) -> None:
        """Log the lines that have no newline."""
        for stream, line in self._lines.items():
            if line:
                self._finish(stream)

    def _add(self, stream: str, piece: bytes) -> None:
        line = self._lines.setdefault(stream, bytearray())
        room = MAX_LINE_OCTETS - len(line)
        line += piece[:room]
        if len(piece) > room:
            self._cut[stream] = True

    def _finish(self, stream: str) -> None:
        line, cut = self._lines[stream], self._cut.pop(stream, False)
        if line:
            self._emit(stream, line.decode("utf-8", "backslashreplace"), cut)
        line.clear()


def _output_log(session: int) -> OutputLog:
    def emit(stream: str, line: str, cut: bool) -> None:  # noqa: FBT001 - as OutputLog calls it
        facts = {"cut": True} if cut else {}
        logger.info("hook output", session=session, stream=stream, line=line, **facts)

    return OutputLog(emit)


def judge(exit_code: int) -> Outcome:
    """Say what a hook's end means; a negative number is the signal that ended it."""
    if not exit_code:
        return Outcome(Result.DONE, describe(exit_code))
    return Outcome(Result.REFUSED if exit_code == EXIT_REFUSED else Result.FAILED, describe(exit_code))


def describe(exit_code: int) -> str:
    """`exit 3` or `killed by SIGKILL`."""
    if exit_code >= 0:
        return f"exit {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def check_hook(config: HookConfig) -> None:
    """Ensure that the configured hook, a file or a socket, is trusted. Raises HookError with the component."""
    try:
        if config.socket is not None:
            check_trusted_socket(config.socket)
        else:
            check_trusted(Path(config.command[0]))
    except UntrustedPath as error:
        raise HookError(str(error), component=error.component) from error
