"""`dmnotid session`: one session that a daemon hands over (hook.socket), run as the daemon's own hook.command would be.

A service manager starts it with the connection as standard input and output: dmnotid-session@.service.
"""

import argparse
import asyncio
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from structlog.typing import FilteringBoundLogger

from dmnotid.cli.process import EXIT_PROBLEM, print_error
from dmnotid.errors import HookError
from dmnotid.events import EVENTS
from dmnotid.hook.command import start_command
from dmnotid.hook.facts import Facts, build_arguments, build_environment, build_input, find_home, from_locale
from dmnotid.hook.locks import Locks, ServerLock
from dmnotid.hook.request import MAX_REQUEST_OCTETS, read_request
from dmnotid.hook.startable import check_command
from dmnotid.host.log import configure, logger
from dmnotid.host.loop import reset_signals
from dmnotid.host.systemd import Manager

KILL_AFTER: Final = 10
"""Time between SIGTERM and SIGKILL, in seconds."""

CONNECTION: Final = 0
"""The descriptor of the connection: standard input."""

EXIT_LOCKED: Final = 75
"""EX_TEMPFAIL: the answer while another process runs a session of the same server."""

EXIT_BY_SIGNAL: Final = 128
"""The answer for a command that a signal ended is this and the signal's number, as in a shell."""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid session`."""
    parser.add_argument(
        "command",
        nargs="+",
        metavar="COMMAND",
        help="an absolute path and arguments, after --; {server_id}, {notification_id}, {connection}, {interface} and "
        "{attempt} are replaced in the arguments",
    )


def main(arguments: argparse.Namespace) -> int:
    """Read a session from standard input, run the command, and answer on standard output; the command's exit status."""
    reset_signals()
    # Standard output is the connection.
    configure("info", "auto", sys.stderr, EVENTS)
    try:
        # Kept open, because the end of the connection shows later that the daemon has closed it.
        with open(CONNECTION, "rb", closefd=False) as connection:
            # One octet more than allowed, to detect a request that is too long.
            facts = read_request(connection.read(MAX_REQUEST_OCTETS + 1))
        code = asyncio.run(serve([from_locale(word) for word in arguments.command], facts))
    except HookError as error:
        code = EXIT_PROBLEM
        # One for the log of this unit; the daemon logs the other, as output before the answer.
        print_error(error)
        print(error, flush=True)
    # The command's last line may have no newline; the daemon leaves empty lines out.
    print(f'\n{{"exit": {code}}}')
    return code


async def serve(command: Sequence[str], facts: Facts) -> int:
    """Run the command to its end and return its exit status. Raises HookError if it can't be started.

    A signal, or the end of the connection, ends its process group.
    """
    # The PATH of a unit is not that of the shell in which the line was tried.
    if not Path(command[0]).is_absolute():
        message = f"{command[0]}: an absolute path is expected"
        raise HookError(message, component=command[0])
    # As in the daemon: a hook that another user can change is not started.
    check_command(command)
    state = os.environ.get("STATE_DIRECTORY") or os.environ.get("RUNTIME_DIRECTORY")
    # systemd separates several directories with colons.
    # Without a directory of the service, as in a shell, a lock has no place.
    lock = Locks(Path(state.partition(":")[0])).take(facts["server_id"]) if state else nullcontext()
    shown = {key: facts[key] for key in ("session", "server_id", "notification_id", "attempt")}
    # A daemon that was killed may have left a session, and the next daemon hands over another one.
    if lock is None:
        problem = "another process runs a session of this server"
        logger.warning("session locked", **shown, problem=problem)
        print(problem, flush=True)
        return EXIT_LOCKED
    # Not read from the environment of the process: nothing else of it is for a session.
    manager = Manager({"NOTIFY_SOCKET": os.environ.get("NOTIFY_SOCKET", "")})
    status = "session {session} for {server_id}, notification {notification_id}, attempt {attempt}"
    manager.status(status.format_map(shown))
    logger.info("session started", **shown, connection=facts["connection"], interface=facts["interface"])
    with lock as held:
        code = await _run(command, facts, held, logger.bind(**shown))
    logger.info("session ended", **shown, outcome=f"exit {code}")
    return code


async def _run(command: Sequence[str], facts: Facts, lock: ServerLock | None, log: FilteringBoundLogger) -> int:
    with _cancelled_when_over():
        try:
            async with start_command(
                build_arguments(command, facts),
                build_environment(facts, {}, find_home()),
                build_input(facts),
                kill_after=KILL_AFTER,
                log=log,
                lock=lock,
            ) as running:
                await running.exited.wait()
        except asyncio.CancelledError:
            # However the command ended after SIGTERM, its session was cut short: neither done nor refused for good.
            return EXIT_BY_SIGNAL + signal.SIGTERM
    # A process that signal N ended has the exit code -N in Python.
    return running.exit_code if running.exit_code >= 0 else EXIT_BY_SIGNAL - running.exit_code


@contextmanager
def _cancelled_when_over() -> Iterator[None]:
    """Cancel this task on a signal that asks for the end, and when the daemon closes the connection."""
    # Cancelling the task lets the context manager of the command end its process group.
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        # A second cancellation would shorten the time between SIGTERM and SIGKILL.
        if task is not None and not task.cancelling():
            task.cancel()

    for number in _ENDING:
        loop.add_signal_handler(number, cancel)
    # Standard input is a file or a terminal if the command is run by hand, and epoll refuses regular files (EPERM).
    if not stat.S_ISSOCK(os.fstat(CONNECTION).st_mode):
        yield
        return
    with select.epoll(1) as events:
        # The daemon has shut its writing side down, so reading shows nothing. With no event asked for, an epoll set
        # still reports EPOLLHUP, the end of the whole connection.
        events.register(CONNECTION, 0)
        loop.add_reader(events.fileno(), cancel)
        try:
            yield
        finally:
            loop.remove_reader(events.fileno())
