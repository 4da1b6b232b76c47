"""A command in a process group of its own: started with the facts of a try, watched, and ended with its group."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, Self

from structlog.typing import FilteringBoundLogger

from dmnotid.errors import HookError
from dmnotid.hook.output import CHUNK_OCTETS

GROUP_POLL: Final = 0.25
"""Interval between two checks whether a process group that got SIGTERM has ended, in seconds."""

KILL_PATIENCE: Final = 5
"""Maximum time to wait for the end of a process after SIGKILL, in seconds."""

PIPE_OCTETS: Final = 65_536
"""Capacity of a pipe. See pipe(7)."""

OnOutput = Callable[[str, bytes], None]
"""Gets the name of a stream (`stdout`, `stderr`) and octets that were read from it."""


def start_command(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    text: str,
    *,
    kill_after: float,
    log: FilteringBoundLogger,
    on_output: OnOutput | None = None,
) -> "Command":
    """Start a command with `text` as its standard input. Raises HookError.

    `kill_after` is the time between SIGTERM and SIGKILL, in seconds. Without `on_output` the command inherits standard
    output and standard error.
    """
    output = None if on_output is None else subprocess.PIPE
    try:
        with _as_file(text) as standard_input:
            process = subprocess.Popen(  # noqa: S603 - the caller has just checked that the file is trusted
                arguments,
                stdin=standard_input,
                stdout=output,
                stderr=output,
                cwd="/",
                env=environment,
                process_group=0,
            )
        return Command(process, kill_after, log.bind(pid=process.pid), on_output)
    except (OSError, ValueError) as error:
        message = f"{arguments[0]}: {_why_not_started(Path(arguments[0]), error)}"
        raise HookError(message, component=arguments[0]) from error


@contextmanager
def _as_file(text: str) -> Iterator[int]:
    """Put text into an anonymous file and give its descriptor. Unlike a pipe it takes any length without blocking."""
    with os.fdopen(os.memfd_create("notification"), "wb") as file:
        file.write(text.encode())
        file.flush()
        file.seek(0)
        yield file.fileno()


def _why_not_started(file: Path, error: Exception) -> str:
    # The kernel reports a missing interpreter as if the file itself were missing.
    if isinstance(error, FileNotFoundError) and file.exists():
        return "its interpreter (the #! line) or its loader is missing"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class Command:
    """A started command: the leader of a process group, and its output. Leaving the context ends and reaps it.

    running --pidfd readable--> exited --end of the context--> reaped

    An exited leader is not reaped before its group got its last signal: until then its number can't belong to another
    process. A child that the leader leaves behind is neither waited for nor killed.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], kill_after: float, log: FilteringBoundLogger, on_output: OnOutput | None
    ) -> None:
        # Set when the leader has exited and its output has been read.
        self.exited = asyncio.Event()
        # Exit status of the leader; the negative number of a signal that ended it.
        self.exit_code = 0
        # The leader; its pid is the number of the group.
        self._process = process
        # Seconds between SIGTERM and SIGKILL.
        self._kill_after = kill_after
        # Carries the facts of the session.
        self._log = log
        # None if the command inherits its output.
        self._on_output = on_output
        # The loop that watches the descriptors below.
        self._loop = asyncio.get_running_loop()
        # Whether `end` has been called: leaving the context does not repeat it.
        self._is_ending = False
        # The pipes that the output is read from, by the name of the stream.
        self._pipes: dict[str, IO[bytes]] = {}
        # Descriptors and the loop's readers of them.
        self._opened = ExitStack()
        try:
            # Becomes readable when the leader exits.
            self._pidfd = self._watch()
        except OSError:
            # No descriptor or no epoll watch is left. The command has just begun, so nothing delays its end.
            self._opened.close()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise

    def _watch(self) -> int:
        for stream, pipe in {"stdout": self._process.stdout, "stderr": self._process.stderr}.items():
            if pipe is not None:
                self._pipes[stream] = self._opened.enter_context(pipe)
        pidfd = os.pidfd_open(self._process.pid)
        self._opened.callback(os.close, pidfd)
        self._add_reader(pidfd, self._on_exit)
        for stream, pipe in self._pipes.items():
            os.set_blocking(pipe.fileno(), False)
            self._add_reader(pipe.fileno(), partial(self._read, stream))
        return pidfd

    def _add_reader(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._loop.add_reader(descriptor, callback)
        self._opened.callback(self._loop.remove_reader, descriptor)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            # A task that is cancelled, or that fails, leaves the context while the command runs.
            if not (self.exited.is_set() or self._is_ending):
                await self.end()
        finally:
            self._pipes.clear()
            self._opened.close()
            # If SIGKILL did not end it, subprocess reaps it when it starts another process.
            self._process.poll()

    async def end(self) -> None:
        """Send SIGTERM to the process group, and SIGKILL when `kill_after` is over or this call is cancelled."""
        self._is_ending = True
        self._signal(signal.SIGTERM)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._kill_after):
                    await self.exited.wait()
                    # No event reports the end of a process group.
                    while group_is_alive(self._process.pid):  # noqa: ASYNC110 - as said, no event
                        await asyncio.sleep(GROUP_POLL)
        finally:
            # Also when the group seems to have ended: /proc may hide processes.
            self._signal(signal.SIGKILL)
            with suppress(TimeoutError):
                async with asyncio.timeout(KILL_PATIENCE):
                    await self.exited.wait()
            if not self.exited.is_set():
                # It belongs to another user, or it is stuck in the kernel.
                self._log.error("hook not ended", problem=f"it runs {KILL_PATIENCE} s after SIGKILL")

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, and to a leader that has left its group."""
        pid = self._process.pid
        sends: list[Callable[[signal.Signals], None]] = [partial(os.killpg, pid)]
        # setpgid(2) moves a leader into another group of its session.
        if os.getpgid(pid) != pid:
            sends.append(partial(signal.pidfd_send_signal, self._pidfd))
        for send in sends:
            try:
                send(number)
            except ProcessLookupError:  # the group has ended
                continue
            except PermissionError as error:
                self._log.error("hook not signalled", problem=error.strerror, signal=number.name)

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # WNOWAIT leaves the leader a zombie, so that its group can still be signalled. Only WNOHANG would give None.
        status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOWAIT)
        if status is not None:
            self.exit_code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        self._drain(PIPE_OCTETS // CHUNK_OCTETS)

    def _drain(self, reads: int) -> None:
        """Read the output left in the pipes, one chunk an iteration of the loop."""
        # No more than a pipe holds, and not to its end: a child that is left behind may write to it for any time.
        found = [self._read(stream) for stream in self._pipes]
        if reads and any(found):
            self._loop.call_soon(self._drain, reads - 1)
        else:
            self.exited.set()

    def _read(self, stream: str) -> bool:
        """Pass a chunk of output on; False if there is none."""
        descriptor = self._pipes[stream].fileno()
        try:
            octets = os.read(descriptor, CHUNK_OCTETS)
        except BlockingIOError:
            return False
        if not octets:
            self._loop.remove_reader(descriptor)
        elif self._on_output is not None:
            self._on_output(stream, octets)
        return bool(octets)


def group_is_alive(group: int) -> bool:
    """Check whether a process of this group has not ended; a zombie has. See proc_pid_stat(5)."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            # The second field is the process's name in parentheses, and may contain anything.
            state, _, process_group, *_ = file.read_bytes().rpartition(b")")[2].split()
            if int(process_group) == group and state not in b"ZX":
                return True
    return False
