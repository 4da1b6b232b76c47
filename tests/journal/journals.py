"""Journals in a directory, as the tests of this room need them: opened, filled, looked at, damaged."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from dmnotid.errors import Duplicate, JournalError, QueueFull, Stale
from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.queue import Journal
from dmnotid.policy.freshness import ServerTimes
from dmnotid.policy.sessions import Closed, Connection, Limits, SessionRequest
from dmnotid.wire.notification import ConnectionType
from tests.support import verified

NOW = 1_800_000_000.0
DAY = 86_400.0
REMEMBER = 3 * DAY
YEARS = 10 * 365 * DAY
LOOPBACK = Connection(ConnectionType.WIRELINE, "lo")
LIMITS = Limits(max_pending=4, expire_after=7 * DAY)
ROOMY = Limits(max_pending=10_000)
ROOT = Path(__file__).parents[2]
AHEAD = count(60)
"""How far ahead of the clock (seconds) the next notification is signed."""

SESSIONS = 40
DONE = frozenset(range(0, SESSIONS, 3))
"""The ids of `fill` whose sessions are done."""

NO_TEXT = "CAST(x'ff61' AS TEXT)"
"""Octets in SQL that are not UTF-8, of type text."""


def open_journal(directory: Path, *, limits: Limits = LIMITS, remember: float = REMEMBER) -> Journal:
    return Journal(directory, limits=limits, remember=remember)


def admit(journal: Journal, notification_id: int = 7, **more: Any) -> SessionRequest:  # noqa: ANN401
    """Admit a notification and make it durable."""
    request = journal.admit(verified(notification_id, **{"received_at": NOW, **more}))
    journal.commit()
    return request


def admit_done(journal: Journal, notification_id: int = 7, **more: Any) -> SessionRequest:  # noqa: ANN401
    """Admit a notification and close its session."""
    request = admit(journal, notification_id, **more)
    journal.close([(request, Closed.DONE, "")])
    return request


def refusal(journal: Journal, notification_id: int = 7, **more: Any) -> type[Exception] | None:  # noqa: ANN401
    """Return why a notification is refused, None if it is accepted."""
    try:
        admit(journal, notification_id, **more)
    except (Duplicate, QueueFull, Stale) as error:
        journal.commit()
        return type(error)
    return None


def accepts(journal: Journal, notification_id: int, **more: Any) -> bool:  # noqa: ANN401
    """Send a notification, and again if the journal failed once, as a server does; whether it was accepted.

    Unless given, its signed time is later than any before: what is lost with a file is stale.
    """
    facts = {"received_at": time.time(), "sent_at": time.time() + next(AHEAD), **more}
    for _ in range(2):
        with suppress(JournalError):
            return refusal(journal, notification_id, **facts) is None
    pytest.fail("refused twice because of the file")


def times(newest: float, forgotten: float = -1) -> ServerTimes:
    return ServerTimes(int(newest), int(forgotten))


def fill(journal: Journal) -> None:
    """Admit SESSIONS notifications, try each, and close the sessions of DONE."""
    for number in range(SESSIONS):
        request = admit(journal, number, received_at=time.time(), unknown=[(9, bytes(600))])
        if number in DONE:
            journal.close([(request, Closed.DONE, "exit 0")])
        elif number % 3 == 1:
            journal.begin(request, 1, LOOPBACK)
            journal.postpone(request._replace(attempts=1), 0, "exit 7")


def ids(journal: Journal) -> list[int]:
    return [request.notification.notification_id for request in journal.pending()]


def sql(directory: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Read or change the file while no journal has it open."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


def count_rows(directory: Path) -> int:
    count: int = sql(directory, "SELECT count(*) FROM session")[0][0]
    return count


def kept_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("journal-corrupt-*.sqlite3"))


def copy_of(directory: Path) -> Path:
    """Copy a directory as a crash would leave it."""
    return Path(shutil.copytree(directory, directory.with_name(f"{directory.name}-copy")))


@contextmanager
def no_room() -> Iterator[None]:
    """Let this process write to no file, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


CHILD = """
import sys, time
from pathlib import Path
from dmnotid.policy.sessions import Limits
from dmnotid.journal.queue import Journal
from tests.journal.journals import LOOPBACK
from tests.support import verified
journal = Journal(Path(sys.argv[1]), limits=Limits(max_pending=1000), remember=259200)
def say(word):
    print(word, flush=True)
{body}
say("ready")
time.sleep(1000)
"""


def environment() -> dict[str, str]:
    """Return an environment in which a child process finds what this one imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)])}


@contextmanager
def another_process(directory: Path, body: str, *before: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that opens the journal, executes `body` and stays until it is killed."""
    command = [*before, sys.executable, "-c", CHILD.format(body=body), str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), process_group=0)
    try:
        assert process.stdout is not None
        while (word := process.stdout.readline()) != "ready\n":
            assert word, "the process ended early"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
