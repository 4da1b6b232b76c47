"""`dmnotid session`: one session that a daemon hands over (hook.socket), run as its own hook.command would be.

A service manager starts it with the connection as standard input and output: dmnotid-session@.service.
"""

import argparse
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from dmnotid.cli.process import EXIT_PROBLEM
from dmnotid.errors import HookError, UntrustedPath
from dmnotid.hook.facts import (
    MAX_INPUT_OCTETS,
    Facts,
    as_file,
    build_arguments,
    build_environment,
    build_input,
    find_home,
    read_facts,
)
from dmnotid.host.loop import reset_signals
from dmnotid.host.trust import check_trusted

KILL_AFTER: Final = 10
"""How long (seconds) a command has to end after SIGTERM, before SIGKILL."""

CONNECTION: Final = 0
"""Standard input: the connection."""

EXIT_BY_SIGNAL: Final = 128
"""A command that a signal ended is answered for as a shell does: this and the signal's number."""

_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what follows `dmnotid session`."""
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
    try:
        with open(CONNECTION, "rb", closefd=False) as connection:
            code = serve(arguments.command, read_facts(connection.read(MAX_INPUT_OCTETS + 1)))
    except (HookError, UntrustedPath) as error:
        code = EXIT_PROBLEM
        # The first is this unit's own log; who handed the session over logs what comes before the answer.
        print(error, file=sys.stderr)
        print(error, flush=True)
    # The command's last line may have no end. Empty lines are nobody's.
    print(f'\n{{"exit": {code}}}')
    return code


def serve(command: Sequence[str], facts: Facts) -> int:
    """Run the command to its end; its exit status. Raises HookError or UntrustedPath if it can't be started."""
    program = Path(command[0])
    if not program.is_absolute():
        message = f"{program}: an absolute path is expected"
        raise HookError(message, component=str(program))
    check_trusted(program)
    with _Wake() as wake:
        try:
            with as_file(build_input(facts)) as standard_input:
                process = subprocess.Popen(  # noqa: S603 - the unit's own list, and its file was just checked
                    build_arguments(command, facts),
                    stdin=standard_input,
                    cwd="/",
                    env=build_environment(facts, {}, find_home()),
                    process_group=0,
                )
        except (OSError, ValueError) as error:
            message = f"{program}: {getattr(error, 'strerror', None) or error}"
            raise HookError(message, component=str(program)) from error
        return _wait(process, wake)


def _wait(process: subprocess.Popen[bytes], wake: "_Wake") -> int:
    """Wait for the command; when its time is over, end its process group.

    However it ends then, it was cut short: that is never done, and never refused for good.
    """
    pidfd = os.pidfd_open(process.pid)
    try:
        cut_short = wake.before(pidfd)
        if cut_short:
            _end(process.pid, pidfd, signal.SIGTERM)
            _ends(pidfd, KILL_AFTER)
            _end(process.pid, pidfd, signal.SIGKILL)  # not reaped yet: the number is nobody else's
        code = process.wait()
    finally:
        os.close(pidfd)
    if cut_short:
        code = -signal.SIGTERM
    return code if code >= 0 else EXIT_BY_SIGNAL - code


class _Wake:
    """Tells when the command's time is over: a signal asks for the end, or who handed the session over has gone."""

    def __enter__(self) -> Self:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in _ENDING:
            signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()

    def before(self, pidfd: int) -> bool:
        """Wait for one or the other: whether that comes before the end of the process."""
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(self._read, select.POLLIN)
        if stat.S_ISSOCK(os.fstat(CONNECTION).st_mode):
            # Its writing side is shut down already, so that reading tells nothing: the whole connection's end does.
            poller.register(CONNECTION, 0)
        return pidfd not in dict(poller.poll())


def _ends(pidfd: int, patience: float) -> None:
    """Wait for the end of a process, for so many seconds at most."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(patience * 1000)


def _end(pid: int, pidfd: int, number: signal.Signals) -> None:
    """Send a signal to the command's process group, and to the command itself where it has left that."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
    with suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) != pid:
            signal.pidfd_send_signal(pidfd, number)
