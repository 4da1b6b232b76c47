"""A command in a process group of its own: started with the facts of a try, watched, and ended with its group."""

import asyncio
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

from structlog.typing import FilteringBoundLogger

from dmnotid.config.values import HookConfig, path_from
from dmnotid.errors import HookError
from dmnotid.hook.locks import ServerLock
from dmnotid.hook.output import CHUNK_OCTETS

GROUP_POLL: Final = 0.25
"""Interval between two checks whether a process group that got SIGTERM has ended, in seconds."""

KILL_PATIENCE: Final = 5
"""Maximum time to wait for the end of a process after SIGKILL, in seconds."""

EXIT_POLL: Final = 0.25
"""Interval between two checks whether a process has exited that can't be watched, in seconds."""

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
    lock: ServerLock | None = None,
) -> "Command":
    """Start a command with `text` as its standard input. Raises HookError.

    `kill_after` is the time between SIGTERM and SIGKILL, in seconds. Without `on_output` the command inherits standard
    output and standard error. It inherits `lock` too, and keeps it if it outlives the daemon.
    """
    command = Command(kill_after, log, on_output, lock)
    try:
        command.start(arguments, environment, text)
    except (OSError, ValueError) as error:
        problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
        # The kernel reports a missing interpreter as if the file itself were missing.
        if isinstance(error, FileNotFoundError) and path_from(arguments[0]).exists():
            problem = "its interpreter (the #! line) or its loader is missing"
        elif isinstance(error, OSError) and error.errno == errno.ENOEXEC:
            problem = "neither a program for this machine nor a script whose first line is a #! line"
        raise HookError(f"{arguments[0]}: {problem}", component=arguments[0]) from error
    return command


def check_kernel(config: HookConfig) -> None:
    """Ensure that the kernel has, and allows, the system calls that a command needs. Raises HookError."""
    # The other side of a socket is not started by this process.
    if config.socket is not None:
        return
    # Checked at the start, because no repair of the hook cures this: every session would wait until it expires.
    calls: dict[str, Callable[[], int]] = {
        "memfd_create": partial(os.memfd_create, "notification"),
        "pidfd_open": partial(os.pidfd_open, os.getpid()),
    }
    for name, call in calls.items():
        try:
            os.close(call())
        except OSError as error:
            # Both a seccomp filter and an old kernel may answer with either.
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOSYS):
                return
            message = (
                f"hook.command: {name}: {error.strerror}: Linux 5.3 or later is needed, and a seccomp filter (of a "
                "container, or SystemCallFilter= of a unit) has to allow this system call"
            )
            raise HookError(message) from error


class Command:
    """A command in a process group of its own, and its output. Leaving the context ends and reaps it.

    made --start--> running --pidfd readable--> exited --end of the context--> reaped

    An exited leader is not reaped before its group got its last signal: until then its number can't belong to another
    process. A child that the leader leaves behind is neither waited for nor killed.
    """

    # The leader, once `start` has returned; its pid is the number of the group.
    _process: "subprocess.Popen[bytes]"

    def __init__(
        self, kill_after: float, log: FilteringBoundLogger, on_output: OnOutput | None, lock: ServerLock | None
    ) -> None:
        # Set when the leader has exited and its output has been read.
        self.exited = asyncio.Event()
        # Exit status of the leader; the negative number of a signal that ended it.
        self.exit_code = 0
        # Seconds between SIGTERM and SIGKILL.
        self._kill_after = kill_after
        # Carries the facts of the session.
        self._log = log
        # None if the command inherits its output.
        self._on_output = on_output
        # The lock of the server, which the command inherits.
        self._lock = lock
        # The loop that watches the descriptors below.
        self._loop = asyncio.get_running_loop()
        # Whether `end` has been called: leaving the context does not repeat it.
        self._is_ending = False
        # The pipes that the output is read from, by the name of the stream.
        self._pipes: dict[str, int] = {}
        # Descriptors, and what the loop has to do with them.
        self._opened = ExitStack()

    @property
    def pid(self) -> int:
        """The process id of the leader, and of its group."""
        return self._process.pid

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], text: str) -> None:
        """Start the command. After OSError or ValueError it does not run, and nothing is left open."""
        # What a run needs is acquired before the command is started, so that no lack of it ends a running command.
        with ExitStack() as failed, ExitStack() as theirs:
            failed.callback(self._opened.close)
            # An anonymous file, unlike a pipe, takes text of any length without blocking.
            standard_input = theirs.enter_context(os.fdopen(os.memfd_create("notification"), "wb"))
            standard_input.write(text.encode())
            standard_input.flush()
            standard_input.seek(0)
            is_read = self._on_output is not None
            stdout, stderr = (self._open_pipe(name, theirs) if is_read else None for name in ("stdout", "stderr"))
            # Not the loop's own: uvloop's refuses process_group=, and blocks the loop for milliseconds, this for less.
            self._process = subprocess.Popen(  # noqa: S603 - the caller has just checked that the file is trusted
                # UTF-8 in any locale, as a hook's LANG has it.
                [argument.encode("utf-8", "surrogateescape") for argument in arguments],
                stdin=standard_input,
                stdout=stdout,
                stderr=stderr,
                cwd="/",
                env={name.encode(): value.encode("utf-8", "surrogateescape") for name, value in environment.items()},
                # The lock belongs to the open file, so the command keeps it if the daemon is killed.
                pass_fds=() if self._lock is None else (self._lock.descriptor,),
                # One signal then reaches every process that the hook has started.
                process_group=0,
            )
            # From here on, `__aexit__` closes what was opened.
            failed.pop_all()
        self._log = self._log.bind(pid=self._process.pid)
        self._watch()

    def _open_pipe(self, stream: str, theirs: ExitStack) -> int:
        """Read a stream of output from now on; return the end that the command writes to, which `theirs` closes."""
        reading, writing = os.pipe()
        self._opened.callback(os.close, reading)
        theirs.callback(os.close, writing)
        # `_read` is called at the end of a run too, when there may be nothing to read.
        os.set_blocking(reading, False)
        self._loop.add_reader(reading, self._read, stream)
        self._opened.callback(self._loop.remove_reader, reading)
        self._pipes[stream] = reading
        return writing

    def _watch(self) -> None:
        """Notice the exit of the leader."""
        try:
            # A pidfd is readable once its process has exited, on either loop, and needs no handler of SIGCHLD.
            pidfd = os.pidfd_open(self._process.pid)
            self._opened.callback(os.close, pidfd)
            self._loop.add_reader(pidfd, self._on_exit, pidfd)
            self._opened.callback(self._loop.remove_reader, pidfd)
        except OSError as error:
            # The kernel is short of memory at this moment; the command runs, and is not ended for that.
            self._log.warning("hook polled", problem=f"pidfd_open: {error.strerror}")
            self._poll()

    def _poll(self) -> None:
        # There is a return code only if subprocess has reaped the leader after the context was left.
        if self._process.returncode is None and not self._find_exit():
            self._loop.call_later(EXIT_POLL, self._poll)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            # A task that is cancelled, or that fails, leaves the context while the command runs.
            if not (self.exited.is_set() or self._is_ending):
                await self.end()
        finally:
            # A planned `_drain` must not read descriptors that are closed by then.
            self._pipes.clear()
            self._opened.close()
            if self._lock is not None and not self.exited.is_set():
                # SIGKILL did not end it: it runs on, and no other may run beside it.
                self._lock.keep()
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
            sends.append(partial(os.kill, pid))
        for send in sends:
            try:
                send(number)
            except ProcessLookupError:  # the group has ended
                continue
            except PermissionError as error:
                self._log.error("hook not signalled", problem=error.strerror, signal=number.name)

    def _on_exit(self, pidfd: int) -> None:
        # A pidfd stays readable after the exit, and would call this in each iteration of the loop.
        self._loop.remove_reader(pidfd)
        self._find_exit()

    def _find_exit(self) -> bool:
        """Take the exit status of the leader and the rest of its output; False if it has not exited."""
        # WNOWAIT leaves the leader a zombie, so that its group can still be signalled.
        status = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if status is None:
            return False
        # For CLD_KILLED and CLD_DUMPED, the status is the number of the signal.
        self.exit_code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
        self._drain(PIPE_OCTETS // CHUNK_OCTETS)
        return True

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
        descriptor = self._pipes[stream]
        try:
            octets = os.read(descriptor, CHUNK_OCTETS)
        except BlockingIOError:
            return False
        if not octets:
            # A pipe at its end stays readable: watching it would keep the loop busy.
            self._loop.remove_reader(descriptor)
        elif self._on_output is not None:
            self._on_output(stream, octets)
        return bool(octets)


def group_is_alive(group: int) -> bool:
    """Check whether a process of this group has not ended; a zombie has. See proc_pid_stat(5)."""
    # killpg() with signal 0 also finds zombies, which remain until their parent reaps them.
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            # The second field is the process's name in parentheses, and may contain anything.
            state, _, process_group, *_ = file.read_bytes().rpartition(b")")[2].split()
            if int(process_group) == group and state not in b"ZX":
                return True
    return False
