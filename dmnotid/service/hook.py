"""One run of the session starter: a child of the daemon, started without a shell and never waited for blindly."""

import asyncio
import json
import os
import pwd
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Self

from dmnotid.config import HookConfig
from dmnotid.errors import HookError
from dmnotid.policy.sessions import Outcome, Result, SessionStart
from dmnotid.service.log import logger

INPUT_VERSION: Final = 1
"""The `version` of the JSON object on the hook's standard input."""

EXIT_REFUSED: Final = 78
"""EX_CONFIG: the hook refuses this session for good."""

EXIT_UNKNOWN: Final = 255
"""Taken for the exit status where the kernel doesn't tell."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_LINE_OCTETS: Final = 1_024
MAX_OUTPUT_OCTETS: Final = 65_536
GROUP_POLL: Final = 0.25
"""How often it is looked whether a process group that got SIGTERM has ended (seconds)."""

KILLED_AFTER: Final = 5
"""How long the end of a process is waited for after SIGKILL (seconds)."""

MAX_LINKS: Final = 40
"""How many symbolic links a hook's path may lead through: as many as the kernel follows."""

_CHUNK: Final = 4_096
_PLACEHOLDER: Final = re.compile(r"(?<!\$)\{(server_id|notification_id|connection|interface|attempt)\}")
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class Hook:
    """The configured session starter."""

    def __init__(self, config: HookConfig) -> None:
        """Nothing is started or looked at yet."""
        self.config = config

    async def run(self, start: SessionStart) -> Outcome:
        """Run the hook for one try and say how it ended; it is killed when it outlives `hook.timeout`.

        Whatever keeps it from being started is an Outcome too. Cancelling ends the process group, then raises.
        """
        session = start.request.session
        try:
            check_trusted(Path(self.config.command[0]))
            run = self._start(start)
        except HookError as error:
            logger.error("hook not started", session=session, problem=str(error))
            return Outcome(Result.FAILED, f"not started: {error}")
        with run:
            return await self._wait(run)

    def _start(self, start: SessionStart) -> "_Run":
        arguments = build_arguments(self.config, start)
        try:
            return _Run(self._spawn(arguments, start), start.request.session)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            message = f"{arguments[0]}: {error}"
            raise HookError(message, component=arguments[0]) from error

    def _spawn(self, arguments: list[str], start: SessionStart) -> subprocess.Popen[bytes]:
        with _as_file(build_input(start)) as standard_input:
            return subprocess.Popen(  # noqa: S603 - the list is the configuration's, its file was just checked
                arguments,
                stdin=standard_input,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=build_environment(self.config, start),
                process_group=0,
            )

    async def _wait(self, run: "_Run") -> Outcome:
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

    async def _end_in_any_case(self, run: "_Run") -> None:
        """End it with all the time that it is given, also when the daemon is stopped meanwhile."""
        ending = asyncio.ensure_future(self._end(run))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _end(self, run: "_Run") -> None:
        """TERM to the whole process group, KILL to what of it is left after `hook.kill_after`."""
        run.signal(signal.SIGTERM)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.config.kill_after):
                    await run.ended.wait()
                    while run.group_lives():  # noqa: ASYNC110 - no event tells of a process group's end
                        await asyncio.sleep(GROUP_POLL)
        finally:
            run.signal(signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(KILLED_AFTER):
                await run.ended.wait()


class _Run:
    """A started hook: a pidfd tells its end, its output is logged as it comes. Leaving the context lets go of it."""

    def __init__(self, process: subprocess.Popen[bytes], session: int) -> None:
        self.ended = asyncio.Event()
        self.exit_code = 0
        self._session = session
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._output = OutputLog(lambda stream, line, cut: _log_output(session, stream, line, cut=cut))
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except OSError:
            process.kill()
            process.wait()
            raise
        self._loop.add_reader(self._pidfd, self._at_end)
        self._pipes: dict[str, IO[bytes]] = {}
        for stream, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            if pipe is not None:
                self._pipes[stream] = pipe
                os.set_blocking(pipe.fileno(), False)
                self._loop.add_reader(pipe.fileno(), self._at_output, stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        for stream in list(self._pipes):
            self._let_go(stream)
        self._output.flush()
        if self._process.poll() is None:
            self._kill()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group; the leader is not reaped before its group had its signals."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _kill(self) -> None:
        """End what is still there where the wait for it was broken off; blocks for a fifth of a second at most."""
        self.signal(signal.SIGKILL)
        try:
            self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            # Another user's, or stuck in the kernel. subprocess reaps it when another hook is started.
            logger.error("hook can't be ended", session=self._session, pid=self._process.pid)

    def group_lives(self) -> bool:
        """Tell whether anything of the process group is left that has not ended."""
        files = list(Path("/proc").glob("[0-9]*/stat"))
        return not files or any(_is_alive_in(file, self._process.pid) for file in files)

    def _at_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self.exit_code = _exit_code(self._pidfd)
        self._drain(MAX_OUTPUT_OCTETS // _CHUNK)

    def _drain(self, chunks: int) -> None:
        """Take what the hook left in its pipes, a chunk at a time; a child that still holds them delays nothing."""
        more = [self._at_output(stream) for stream in list(self._pipes)]
        if any(more) and chunks:
            self._loop.call_soon(self._drain, chunks - 1)
        else:
            self.ended.set()

    def _at_output(self, stream: str) -> bool:
        try:
            octets = os.read(self._pipes[stream].fileno(), _CHUNK)
        except BlockingIOError:
            return False
        if octets:
            self._output.feed(stream, octets)
        else:
            self._let_go(stream)
        return bool(octets)

    def _let_go(self, stream: str) -> None:
        with self._pipes.pop(stream) as pipe:
            self._loop.remove_reader(pipe.fileno())


def _exit_code(pidfd: int) -> int:
    """Return how the process ended (a signal's number below 0) and leave it to be reaped."""
    try:
        status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # somebody ignores SIGCHLD: its end is known, how it ended is not
        return EXIT_UNKNOWN
    if status is None:
        return EXIT_UNKNOWN
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def _is_alive_in(stat_file: Path, group: int) -> bool:
    """Read /proc/PID/stat: state, parent and process group stand behind the name and its last parenthesis."""
    try:
        state, _parent, pgrp = stat_file.read_bytes().rpartition(b")")[2].split()[:3]
    except (OSError, ValueError):  # gone since
        return False
    return int(pgrp) == group and state not in (b"Z", b"X")


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


def _log_output(session: int, stream: str, line: str, *, cut: bool) -> None:
    facts = {"cut": True} if cut else {}
    logger.info("hook output", session=session, stream=stream, line=line, **facts)


@contextmanager
def _as_file(text: str) -> Iterator[int]:
    """Put text into a file without a name: unlike a pipe it takes any length without blocking. Gives its number."""
    descriptor = os.memfd_create("notification")
    try:
        octets = text.encode()
        while octets:
            octets = octets[os.write(descriptor, octets) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def build_arguments(config: HookConfig, start: SessionStart) -> list[str]:
    """Return the argument list with the placeholders inside its arguments replaced."""
    values = {
        "server_id": start.request.server_id,
        "notification_id": str(start.request.notification.notification_id),
        "connection": str(start.connection.type),
        "interface": start.connection.interface,
        "attempt": str(start.attempt),
    }
    return [_PLACEHOLDER.sub(lambda found: values[found[1]], argument) for argument in config.command]


def build_environment(config: HookConfig, start: SessionStart) -> dict[str, str]:
    """Return the hook's whole environment: nothing of the daemon's own is handed on."""
    request, notification = start.request, start.request.notification
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": _home(),
        **config.environment,
        "DMNOTID_SERVER_ID": request.server_id,
        "DMNOTID_NOTIFICATION_ID": str(notification.notification_id),
        "DMNOTID_CONNECTION": str(start.connection.type),
        "DMNOTID_INTERFACE": start.connection.interface,
        "DMNOTID_PREFERRED": " ".join(notification.preferred_connections),
        "DMNOTID_REQ_MO": " ".join(map(str, notification.requested_mos)),
        "DMNOTID_REQ_MO_CV": " ".join(f"{index}:{validator.hex()}" for index, validator in notification.cached_mos),
        "DMNOTID_SENT_AT": "" if notification.sent_at is None else str(notification.sent_at),
        "DMNOTID_RECEIVED_AT": f"{request.received_at:.3f}",
        "DMNOTID_SIGNED": "1" if notification.signed else "0",
        "DMNOTID_SOURCE": request.source,
        "DMNOTID_ATTEMPT": str(start.attempt),
        "DMNOTID_SESSION": str(request.session),
    }


def build_input(start: SessionStart) -> str:
    """Return what stands on the hook's standard input: one JSON object and a newline."""
    request, notification = start.request, start.request.notification
    facts = {
        "version": INPUT_VERSION,
        "session": request.session,
        "attempt": start.attempt,
        "server_id": request.server_id,
        "notification_id": notification.notification_id,
        "connection": str(start.connection.type),
        "interface": start.connection.interface,
        "preferred_connections": list(map(str, notification.preferred_connections)),
        "requested_mos": list(notification.requested_mos),
        "cached_mos": [[index, validator.hex()] for index, validator in notification.cached_mos],
        "unknown_options": [[number, value.hex()] for number, value in notification.unknown_options],
        "sent_at": notification.sent_at,
        "received_at": round(request.received_at, 3),
        "signed": notification.signed,
        "source": request.source,
    }
    return json.dumps(facts) + "\n"


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a user of a container or a unit that no file lists
        return "/"


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


def check_trusted(file: Path) -> None:
    """See that nobody but root and the daemon's user can change what is run: the file, and every directory on its path.

    Links are followed, and each target is checked in its turn. Raises HookError with the component and what is wrong.
    """
    if not file.is_absolute():
        message = f"{file}: not an absolute path"
        raise HookError(message, component=str(file))
    target = None
    for component, found in _components(file):
        _check_owner(component, found)
        target = component, found
    if target is None or not stat.S_ISREG(target[1].st_mode):
        message = f"{file}: not a regular file"
        raise HookError(message, component=str(file))
    if not os.access(target[0], os.X_OK):
        message = f"{target[0]}: not executable"
        raise HookError(message, component=str(target[0]))


def _components(file: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Walk a path from the root, link by link: each component as it stands in the file system, and what lstat says."""
    parts, at, links = list(reversed(file.parts[1:])), Path("/"), 0
    yield at, _lstat(at)
    while parts:
        part = parts.pop()
        if part == "..":
            at = at.parent
            continue
        found = _lstat(at / part)
        yield at / part, found
        if not stat.S_ISLNK(found.st_mode):
            at = at / part
            continue
        links += 1
        if links > MAX_LINKS:
            message = f"{file}: more than {MAX_LINKS} symbolic links"
            raise HookError(message, component=str(file))
        target = Path(os.readlink(at / part))  # noqa: PTH115 - read as it stands, not resolved
        at = Path("/") if target.is_absolute() else at
        parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _lstat(component: Path) -> os.stat_result:
    try:
        return component.lstat()
    except OSError as error:
        message = f"{component}: {error.strerror}"
        raise HookError(message, component=str(component)) from error


def _check_owner(component: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        message = f"{component}: belongs to user {found.st_uid}, only root and the daemon's own user are trusted"
        raise HookError(message, component=str(component))
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & _WRITABLE_BY_OTHERS:
        return
    # In a sticky directory of root's (a shared temporary one) nobody can replace another's file.
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX and found.st_uid == 0:
        return
    message = f"{component}: writable by {'others' if found.st_mode & stat.S_IWOTH else 'its group'}"
    raise HookError(message, component=str(component))
