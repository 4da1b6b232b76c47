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
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dmnotid.cli.process import EXIT_PROBLEM, print_problem
from dmnotid.errors import HookError, UntrustedPath
from dmnotid.hook.command import start_command
from dmnotid.hook.facts import Facts, build_arguments, build_environment, build_input, find_home
from dmnotid.hook.request import MAX_REQUEST_OCTETS, read_request
from dmnotid.host import log
from dmnotid.host.loop import reset_signals
from dmnotid.host.trust import check_trusted

KILL_AFTER: Final = 10
"""Time between SIGTERM and SIGKILL, in seconds."""

CONNECTION: Final = 0
"""The descriptor of the connection: standard input."""

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
        "{attempt} are replaced in the latter",
    )


def main(arguments: argparse.Namespace) -> int:
    """Read a session from standard input, run the command, and answer on standard output; the command's exit status."""
    reset_signals()
    # Standard output is the connection.
    log.configure("info", "text", sys.stderr)
    try:
        with open(CONNECTION, "rb", closefd=False) as connection:
            facts = read_request(connection.read(MAX_REQUEST_OCTETS + 1))
        code = asyncio.run(serve(arguments.command, facts))
    except (HookError, UntrustedPath) as error:
        code = EXIT_PROBLEM
        # One for the log of this unit; the daemon logs the other, as output before the answer.
        print_problem(error)
        print(error, flush=True)
    # The command's last line may have no newline; the daemon leaves empty lines out.
    print(f'\n{{"exit": {code}}}')
    return code


async def serve(command: Sequence[str], facts: Facts) -> int:
    """Run the command to its end and return its exit status. Raises HookError or UntrustedPath if it can't be started.

    A signal, or the end of the connection, ends its process group.
    """
    program = Path(command[0])
    if not program.is_absolute():
        message = f"{program}: an absolute path is expected"
        raise HookError(message, component=str(program))
    check_trusted(program)
    with _cancelled_when_over():
        try:
            async with start_command(
                build_arguments(command, facts),
                build_environment(facts, {}, find_home()),
                build_input(facts),
                kill_after=KILL_AFTER,
                log=log.logger,
            ) as running:
                await running.exited.wait()
        except asyncio.CancelledError:
            # However the command ended after SIGTERM, its session was cut short: neither done nor refused for good.
            return EXIT_BY_SIGNAL + signal.SIGTERM
    return running.exit_code if running.exit_code >= 0 else EXIT_BY_SIGNAL - running.exit_code


@contextmanager
def _cancelled_when_over() -> Iterator[None]:
    """Cancel this task on a signal that asks for the end, and when the daemon closes the connection."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        # A second cancellation would shorten the time between SIGTERM and SIGKILL.
        if task is not None and not task.cancelling():
            task.cancel()

    for number in _ENDING:
        loop.add_signal_handler(number, cancel)
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
