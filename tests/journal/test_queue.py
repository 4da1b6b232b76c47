"""The durable queue and duplicate memory: real SQLite files, real processes, real crashes."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dmnotid.errors import Duplicate, JournalDamaged, JournalError, QueueFull
from dmnotid.journal.database import APPLICATION_ID, SCHEMA_VERSION
from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.queue import LOOKED_UP, PRUNE_EVERY, Journal
from dmnotid.policy.addresses import Source
from dmnotid.policy.sessions import Closed, Limits, SessionRequest
from dmnotid.wire.notification import ConnectionType
from tests.support import (
    DURABLE_KEYS,
    IS_ROOT,
    OPEN_ID,
    OTHER_ID,
    SERVER_ID,
    LogLines,
    descriptors,
    verified,
    without_privileges,
)

NOW = 1_800_000_000.0
DAY = 86_400.0
REMEMBER = 3 * DAY
LIMITS = Limits(max_pending=4, expire_after=7 * DAY)
YEARS = 10 * 365 * DAY


@contextmanager
def opened(directory: Path, *, limits: Limits = LIMITS, remember: float = REMEMBER) -> Iterator[Journal]:
    journal = Journal(directory, limits=limits, remember=remember)
    with closing(journal):
        yield journal


def admit(journal: Journal, notification_id: int = 7, **more: Any) -> SessionRequest:  # noqa: ANN401
    """Admit a notification and make it durable."""
    request = journal.admit(verified(notification_id, **{"received_at": NOW, **more}))
    journal.commit()
    return request


def durable(request: SessionRequest) -> dict[str, object]:
    return {key: getattr(request, key) for key in DURABLE_KEYS}


def sql(directory: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Look at, or change, the file while no journal has it open."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


def count_rows(directory: Path) -> int:
    count: int = sql(directory, "SELECT count(*) FROM session")[0][0]
    return count


def refusal(journal: Journal, notification_id: int = 7, **more: Any) -> type[Exception] | None:  # noqa: ANN401
    try:
        admit(journal, notification_id, **more)
    except (Duplicate, QueueFull) as error:
        return type(error)
    return None


# Durable


def test_a_request_is_what_was_admitted(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal, preferred=[ConnectionType.MOBILE], unknown=[(9, b"\0\xff")])
    assert request.session == 1
    assert request.server_id == SERVER_ID
    assert request.source == "192.0.2.7:40000"
    assert request.received_at == NOW
    assert request.attempts == 0
    assert request.notification.notification_id == 7
    assert request.notification.preferred_connections == (ConnectionType.MOBILE,)
    assert request.notification.unknown_options == ((9, b"\0\xff"),)


def test_reopening_sees_all_that_was_committed(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        requests = [admit(journal, number, unknown=[(9, bytes(4_000))]) for number in range(3)]
    with opened(tmp_path) as journal:
        assert [durable(request) for request in journal.pending()] == [durable(request) for request in requests]


def test_what_was_not_committed_is_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
        journal.admit(verified(2))
    with opened(tmp_path) as journal:
        assert [request.notification.notification_id for request in journal.pending()] == [1]


def test_commit_without_anything_admitted(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.commit()
        journal.rollback()
        assert journal.pending() == []


CHILD = """
import sys, time
from pathlib import Path
from dmnotid.policy.sessions import Limits
from dmnotid.journal.queue import Journal
from tests.support import verified
journal = Journal(Path(sys.argv[1]), limits=Limits(max_pending=1000), remember=259200)
def say(word):
    print(word, flush=True)
{body}
say("ready")
time.sleep(1000)
"""


@contextmanager
def another_process(directory: Path, body: str, *before: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that opens the journal, does something with it and stays, until it is killed."""
    command = [*before, sys.executable, "-c", CHILD.format(body=body), str(directory)]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(root)])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment, process_group=0)
    try:
        assert process.stdout is not None
        while (word := process.stdout.readline()) != "ready\n":
            assert word, "the process ended early"
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_process_that_is_killed_loses_nothing_committed(tmp_path: Path) -> None:
    """5.3.4: what was accepted is on disk before anything runs."""
    body = "[journal.admit(verified(n)) for n in range(20)]; journal.commit(); journal.admit(verified(99))"
    with another_process(tmp_path, body) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with opened(tmp_path) as journal:
            assert [request.notification.notification_id for request in journal.pending()] == list(range(20))
            assert refusal(journal, 5, received_at=time.time()) is Duplicate
            assert refusal(journal, 99, received_at=time.time(), server_id=OTHER_ID) is None


def test_killed_before_the_commit_leaves_nothing_of_it(tmp_path: Path) -> None:
    with another_process(tmp_path, "[journal.admit(verified(n)) for n in range(20)]") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with opened(tmp_path) as journal:
            assert journal.pending() == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_many_notifications_are_one_commit_and_that_reaches_the_disk(tmp_path: Path) -> None:
    """What a power cut leaves is what was synchronised: once for a batch, before `commit` returns."""
    trace, state = tmp_path / "trace", tmp_path / "state"
    state.mkdir()
    body = "say('BEGIN'); [journal.admit(verified(n)) for n in range(20)]; journal.commit(); say('COMMITTED')"
    tracer = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    with another_process(state, body, *tracer):
        text = trace.read_text()
    between = text.partition("BEGIN")[2].partition("COMMITTED")[0]
    assert text.count("COMMITTED") == 1
    assert between.count("fdatasync(") + between.count("fsync(") == 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_who_runs_a_hook_is_written_without_waiting_for_the_disk(tmp_path: Path) -> None:
    trace, state = tmp_path / "trace", tmp_path / "state"
    state.mkdir()
    body = """
requests = [journal.admit(verified(n)) for n in range(5)]; journal.commit()
say('BEGIN'); [journal.note_process(request, 'one') for request in requests]; say('NOTED')
journal.begin_attempt(requests[0], 1); say('BEGUN')
"""
    tracer = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    with another_process(state, body, *tracer):
        text = trace.read_text()
    noted, begun = text.partition("BEGIN")[2].partition("NOTED")[::2]
    assert "sync(" not in noted
    assert begun.partition("BEGUN")[0].count("sync(") == 1


def test_who_runs_a_hook_outlives_the_process(tmp_path: Path) -> None:
    body = """
from dmnotid.policy.sessions import Closed
noted = [journal.admit(verified(n)) for n in range(5)]; journal.commit()
[journal.begin_attempt(request, 1) for request in noted]
[journal.note_process(request, f'boot pid {request.session}') for request in noted]
journal.begin_attempt(noted[1], 2); journal.postpone(noted[2], 5); journal.close_requests([(noted[3], Closed.DONE)])
"""
    with another_process(tmp_path, body) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == 4
        assert journal.left_over == ("boot pid 1", "boot pid 5")
    assert sql(tmp_path, "SELECT session FROM session WHERE process IS NOT NULL") == [(1,), (3,), (5,)]


def synchronous(journal: Journal) -> int:
    level: int = journal._database.execute("PRAGMA synchronous").fetchone()[0]
    return level


FULL = 2


def test_what_comes_after_a_note_waits_for_the_disk_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal)
        for _ in range(3):
            journal.note_process(request, "one")
            assert synchronous(journal) == FULL
        journal._database.execute(
            "CREATE TEMP TRIGGER fails BEFORE UPDATE ON session BEGIN SELECT raise(FAIL, 'no'); END"
        )
        with pytest.raises(JournalError):
            journal.note_process(request, "two")
        assert synchronous(journal) == FULL
        journal._database.execute("DROP TRIGGER fails")
        journal.admit(verified(8))
        with pytest.raises(JournalError, match="something else is being written"):
            journal.note_process(request, "two")
        journal.commit()
        assert synchronous(journal) == FULL


def test_a_file_that_cannot_be_made_to_wait_for_the_disk_again_is_opened_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal)

        def forbid(_: int, name: str | None, value: str | None, *__: object) -> int:
            return sqlite3.SQLITE_DENY if (name, value) == ("synchronous", "FULL") else sqlite3.SQLITE_OK

        journal._database.set_authorizer(forbid)
        with pytest.raises(JournalError, match="not authorized"):
            journal.note_process(request, "one")
        admit(journal, 8)
        assert synchronous(journal) == FULL


@pytest.mark.parametrize("process", ["x'00'", "CAST(x'ff61' AS TEXT)", "5", "''"])
def test_a_note_that_cannot_be_read_is_passed_over(tmp_path: Path, logged: LogLines, process: str) -> None:
    with opened(tmp_path) as journal:
        journal.begin_attempt(admit(journal), 1)
    sql(tmp_path, f"UPDATE session SET process = {process}")  # noqa: S608
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == 1
        assert journal.left_over in ((), ("5",))
    assert logged.of("row set aside") == []


# Duplicates


def test_a_duplicate_is_refused_before_and_after_the_commit(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.admit(verified(received_at=NOW))
        for _ in range(2):
            with pytest.raises(Duplicate) as caught:
                journal.admit(verified(received_at=NOW))
            assert caught.value.same_content
            assert (caught.value.server_id, caught.value.notification_id) == (SERVER_ID, 7)
            assert "session 1" in str(caught.value)
            journal.commit()
        assert len(journal.pending()) == 1


@pytest.mark.parametrize("closed", [None, *Closed])
def test_a_duplicate_is_remembered_across_restarts(tmp_path: Path, closed: Closed | None) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal)
        if closed is not None:
            journal.close_requests([(request, closed)])
    with opened(tmp_path) as journal:
        with pytest.raises(Duplicate) as caught:
            admit(journal)
        assert caught.value.same_content
        assert len(journal.pending()) == (closed is None)


def test_other_content_under_the_same_id_is_a_duplicate_that_says_so(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal)
        with pytest.raises(Duplicate, match="other content") as caught:
            admit(journal, preferred=[ConnectionType.MOBILE])
        assert not caught.value.same_content


def test_ids_are_counted_for_each_server(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for server_id in (SERVER_ID, OTHER_ID, OPEN_ID):
            admit(journal, server_id=server_id)
        assert [request.server_id for request in journal.pending()] == [SERVER_ID, OTHER_ID, OPEN_ID]


def test_a_duplicate_writes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal)
        before = journal._database.total_changes
        assert refusal(journal) is Duplicate
        assert journal._database.total_changes == before
        assert not journal._database.in_transaction


@pytest.mark.parametrize("reopened", [False, True])
def test_a_closed_notification_is_forgotten_after_its_time(tmp_path: Path, reopened: bool) -> None:  # noqa: FBT001
    """5.1.4: remembered for `remember`, then the id is a new one."""
    with opened(tmp_path) as journal:
        first = admit(journal)
        journal.close_requests([(first, Closed.DONE)])
        if not reopened:
            assert refusal(journal, received_at=NOW + REMEMBER) is Duplicate
            again = admit(journal, received_at=NOW + REMEMBER + 1)
    if reopened:
        with opened(tmp_path) as journal:
            assert refusal(journal, received_at=NOW + REMEMBER) is Duplicate
            again = admit(journal, received_at=NOW + REMEMBER + 1)
    assert again.session != first.session
    with opened(tmp_path) as journal:
        assert [durable(request) for request in journal.pending()] == [durable(again)]


def test_an_open_session_is_never_forgotten(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal)
        assert refusal(journal, received_at=NOW + YEARS) is Duplicate
        admit(journal, 8, received_at=NOW + YEARS)
        assert len(journal.pending()) == 2


def test_a_notification_received_before_the_clock_was_set_is_remembered(tmp_path: Path) -> None:
    """A device wakes in 1970, takes a notification, NTP sets its clock, the server repeats itself: run twice."""
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, received_at=60.0, sent_at=NOW, clock_believed=False), Closed.DONE)])
        assert refusal(journal, received_at=NOW + 60, sent_at=NOW) is Duplicate


# Full queue


def test_a_full_queue_is_not_remembered(tmp_path: Path) -> None:
    """5.3.4: refused without a trace, so that a repeat is taken later."""
    with opened(tmp_path) as journal:
        requests = [admit(journal, number) for number in range(LIMITS.max_pending)]
        with pytest.raises(QueueFull, match=r"^4 sessions of 'dm.example' are pending") as caught:
            admit(journal, 100)
        assert (caught.value.server_id, caught.value.notification_id) == (SERVER_ID, 100)
        assert refusal(journal, 100) is QueueFull
        assert refusal(journal, 3) is Duplicate, "duplicates are told first"
        admit(journal, 100, server_id=OTHER_ID)
        journal.close_requests([(requests[0], Closed.FAILED)])
        assert refusal(journal, 100) is None
        assert refusal(journal, 101) is QueueFull
    assert count_rows(tmp_path) == LIMITS.max_pending + 2


def test_what_is_not_committed_yet_fills_the_queue_too(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for number in range(LIMITS.max_pending):
            journal.admit(verified(number))
        with pytest.raises(QueueFull):
            journal.admit(verified(100))


def test_a_full_queue_leaves_no_transaction_open(tmp_path: Path) -> None:
    """What is written next would not be durable: a session could run again after it was done."""
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, 1, received_at=NOW - YEARS), Closed.DONE)])
        requests = [admit(journal, number, server_id=SERVER_ID) for number in range(10, 14)]
        assert refusal(journal, 1) is QueueFull
        journal.close_requests([(requests[0], Closed.DONE)])
    with opened(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [request.session for request in requests[1:]]


def test_a_full_queue_is_full_whether_its_sessions_were_read_or_not(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        assert not journal.pending()
        for number in range(LIMITS.max_pending - 1):
            admit(journal, number)
        journal.admit(verified(50))
        assert refusal(journal, 100) is QueueFull
        journal.commit()
        assert refusal(journal, 100) is QueueFull
    with opened(tmp_path) as journal:
        assert refusal(journal, 100) is QueueFull, "nothing was read yet: the table knows"
        journal.commit()
        requests = journal.pending()
        assert refusal(journal, 100) is QueueFull
        journal.close_requests([(requests[0], Closed.DONE)])
        assert refusal(journal, 100) is None
        assert refusal(journal, 101) is QueueFull


# Rollback


def test_a_rollback_forgets_what_was_admitted(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1, sent_at=NOW)
        journal.admit(verified(2, received_at=NOW, sent_at=NOW + 50))
        assert journal.newest_authenticated == NOW + 50
        journal.rollback()
        assert journal.newest_authenticated == NOW
        assert [request.notification.notification_id for request in journal.pending()] == [1]
        assert refusal(journal, 2) is None


# Sessions


def test_what_a_rollback_takes_back_is_no_duplicate_though_it_was_looked_up(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.admit(verified(7, received_at=NOW))
        with pytest.raises(Duplicate):
            journal.admit(verified(7, received_at=NOW))
        journal.rollback()
        assert admit(journal, 7).notification.notification_id == 7


def test_a_flood_of_duplicates_reads_each_row_once(tmp_path: Path) -> None:
    with opened(tmp_path, limits=Limits(max_pending=LOOKED_UP + 1)) as journal:
        many = [verified(number, received_at=NOW) for number in range(LOOKED_UP + 1)]
        for one in many:
            journal.admit(one)
        journal.commit()
        read: list[str] = []
        journal._database.set_trace_callback(read.append)
        for one in many[:3] * 100:
            with pytest.raises(Duplicate) as caught:
                journal.admit(one)
            assert caught.value.same_content
        assert len(read) == 3
        for one in many * 2:  # more than are held in memory
            with pytest.raises(Duplicate):
                journal.admit(one)
        assert len(journal._looked_up) <= LOOKED_UP
        journal._database.set_trace_callback(None)


def test_other_content_is_told_however_often_it_comes(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 7)
        for _ in range(3):
            for preferred, same in (None, True), ([ConnectionType.MOBILE], False):
                with pytest.raises(Duplicate) as caught:
                    admit(journal, 7, preferred=preferred)
                assert caught.value.same_content is same


def test_pending_is_in_the_order_of_arrival(tmp_path: Path) -> None:
    ids = random.Random(5).sample(range(65_536), 40)  # noqa: S311 - an order, no secret
    with opened(tmp_path, limits=Limits(max_pending=100)) as journal:
        requests = [
            admit(journal, number, server_id=[SERVER_ID, OTHER_ID][number % 2], received_at=NOW - at)
            for at, number in enumerate(ids)
        ]
        for request in requests[::3]:
            journal.close_requests([(request, Closed.DONE)])
    with opened(tmp_path) as journal:
        left = [request.notification.notification_id for request in journal.pending()]
    assert left == [number for at, number in enumerate(ids) if at % 3]


def test_session_numbers_are_never_used_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        last = admit(journal)
        journal.close_requests([(last, Closed.DONE)])
        admit(journal, 8, received_at=NOW + REMEMBER + 1)
    sql(tmp_path, "DELETE FROM session")
    with opened(tmp_path) as journal:
        assert admit(journal, 9).session == last.session + 2


def test_attempts_survive(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal)
        journal.begin_attempt(request, 1)
        journal.begin_attempt(request, 2)
    with opened(tmp_path) as journal:
        assert [request.attempts for request in journal.pending()] == [2]


def test_a_first_try_is_begun_with_the_admission_or_not_at_all(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for number in (7, 8):
            journal.begin_admitted(journal.admit(verified(number)))
            (journal.commit if number == 7 else journal.rollback)()
    with opened(tmp_path) as journal:
        assert [request.attempts for request in journal.pending()] == [1]
        assert list(journal.last_starts(1_000)) == ["dm.example"]


def test_a_try_that_is_withdrawn_was_none(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal)
        journal.begin_attempt(request, 1)
        journal.withdraw_attempt(request)
    with opened(tmp_path) as journal:
        assert [request.attempts for request in journal.pending()] == [0]
        assert journal.last_starts(1_000) == {}


@pytest.mark.parametrize("closed", Closed)
def test_closed_is_for_good(tmp_path: Path, closed: Closed) -> None:
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal), closed)])
        assert journal.pending() == []
    with opened(tmp_path) as journal:
        assert journal.pending() == []
    assert sql(tmp_path, "SELECT state, package FROM session") == [(str(closed), None)]


def test_many_ends_are_written_in_one_transaction(tmp_path: Path) -> None:
    statements: list[str] = []
    with opened(tmp_path) as journal:
        requests = [admit(journal, number) for number in range(4)]
        journal._database.set_trace_callback(statements.append)
        journal.close_requests([*zip(requests, Closed, strict=True)])
        assert statements.count("COMMIT") == 1
        journal.close_requests([])
        assert journal.pending() == []
    states = [(str(closed), None) for closed in Closed]
    assert sql(tmp_path, "SELECT state, package FROM session ORDER BY session") == states


def test_many_ends_are_written_all_or_none(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        requests = [admit(journal, number) for number in range(3)]
        journal._database.execute(
            "CREATE TEMP TRIGGER fails BEFORE UPDATE ON session WHEN new.session = 2"
            " BEGIN SELECT raise(ABORT, 'not this one'); END"
        )
        with pytest.raises(JournalError, match="not this one"):
            journal.close_requests([(request, Closed.DONE) for request in requests])
        journal._database.execute("DROP TRIGGER fails")
        assert len(journal.pending()) == 3
        journal.close_requests([(request, Closed.DONE) for request in requests])
        assert journal.pending() == []


def test_no_end_is_written_into_an_admission_that_is_not_committed(tmp_path: Path) -> None:
    """It would be as durable as that: it may be rolled back."""
    with opened(tmp_path) as journal:
        request = admit(journal, 1)
        journal.admit(verified(2))
        with pytest.raises(JournalError, match="something else is being written"):
            journal.close_requests([(request, Closed.DONE)])
        journal.commit()
        journal.close_requests([(request, Closed.DONE)])
        assert [left.session for left in journal.pending()] == [2]


# Times


def monotonic_wait(request: SessionRequest) -> tuple[float, float]:
    """How long a request waits for its next try, and for its end (seconds from now)."""
    now = time.monotonic()
    return request.not_before - now, request.expires_at - now


def test_a_new_request_may_start_at_once_and_expires_in_its_time(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        wait, end = monotonic_wait(admit(journal))
    assert -5 < wait <= 0
    assert LIMITS.expire_after - 5 < end <= LIMITS.expire_after


def test_a_pause_survives(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        postponed = journal.postpone(admit(journal, received_at=time.time()), 1_000)
        assert 990 < monotonic_wait(postponed)[0] <= 1_000
    with opened(tmp_path) as journal:
        (request,) = journal.pending()
        assert 990 < monotonic_wait(request)[0] <= 1_000.01
        assert monotonic_wait(request)[1] > LIMITS.expire_after - 10


def test_a_pause_that_is_over_is_over(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, received_at=time.time())
    sql(tmp_path, "UPDATE session SET not_before = ?", time.time() - 3)
    with opened(tmp_path) as journal:
        assert monotonic_wait(journal.pending()[0])[0] <= 0


@pytest.mark.parametrize("column", ["not_before", "received_at"])
@pytest.mark.parametrize("by", [-YEARS, YEARS, -time.time(), 1e300])
def test_no_clock_makes_a_request_wait_longer_than_its_whole_time(tmp_path: Path, column: str, by: float) -> None:
    with opened(tmp_path) as journal:
        admit(journal, received_at=time.time())
    sql(tmp_path, f"UPDATE session SET {column} = ?", time.time() + by)  # noqa: S608 - one of two words
    with opened(tmp_path) as journal:
        wait, end = monotonic_wait(journal.pending()[0])
    assert -5 < wait <= LIMITS.expire_after
    assert -5 < end <= LIMITS.expire_after


def test_a_pause_written_by_a_clock_years_ahead_ends_before_its_request(tmp_path: Path) -> None:
    """The clock jumps ahead while a session is postponed, and is right again at the next start."""
    with opened(tmp_path) as journal:
        admit(journal, received_at=time.time())
    sql(tmp_path, "UPDATE session SET not_before = ?", time.time() + YEARS)
    with opened(tmp_path) as journal:
        wait, end = monotonic_wait(journal.pending()[0])
    assert wait < end


def test_a_request_received_before_the_clock_was_set_does_not_expire_unrun(tmp_path: Path) -> None:
    """A device wakes in 1970, takes a notification, NTP sets its clock, dmnotid is restarted."""
    with opened(tmp_path) as journal:
        admit(journal, received_at=60.0, sent_at=time.time(), clock_believed=False)
    with opened(tmp_path) as journal:
        assert monotonic_wait(journal.pending()[0])[1] > 0


def test_a_start_that_a_clock_wrote_that_was_ahead_is_one_of_now_once(tmp_path: Path) -> None:
    """Not at each restart, until that time has come."""
    with opened(tmp_path) as journal:
        for number in (1, 2):
            journal.begin_attempt(admit(journal, number, sent_at=time.time() - 50), 1)
    sql(tmp_path, "UPDATE session SET started_at = ? WHERE session = 2", time.time() + YEARS)
    with opened(tmp_path) as journal:
        before = time.monotonic()
        assert journal.last_starts(1_000)[SERVER_ID] >= before
    with opened(tmp_path) as journal:
        written = journal._database.total_changes
        assert journal.last_starts(1_000)[SERVER_ID] <= time.monotonic()
        assert journal._database.total_changes == written
        assert journal.last_starts(0) == {}


def test_a_clock_that_is_not_believed_dates_no_start_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.begin_attempt(admit(journal, sent_at=time.time() + DAY), 1)
    began = time.time() + 100
    sql(tmp_path, "UPDATE session SET started_at = ?", began)
    with opened(tmp_path) as journal:
        before = time.monotonic()
        assert before <= journal.last_starts(1_000)[SERVER_ID] <= time.monotonic()
    assert sql(tmp_path, "SELECT started_at FROM session") == [(began,)]


@pytest.mark.parametrize("value", ["junk", b"junk", None])
def test_a_start_that_is_no_time_is_none(tmp_path: Path, value: object) -> None:
    with opened(tmp_path) as journal:
        journal.begin_attempt(admit(journal, sent_at=time.time()), 1)
    sql(tmp_path, "UPDATE session SET started_at = ?", value)
    with opened(tmp_path) as journal:
        assert journal.last_starts(1_000) == {}


# Forgetting


def test_old_closed_rows_are_pruned(tmp_path: Path) -> None:
    with opened(tmp_path, limits=Limits(max_pending=100)) as journal:
        for number in range(10):
            request = admit(journal, number, received_at=NOW + number)
            if number != 4:
                journal.close_requests([(request, Closed.DONE)])
        journal.close_requests([(admit(journal, 20, received_at=NOW + REMEMBER), Closed.DONE)])
        assert len(journal.pending()) == 1
    with opened(tmp_path, limits=Limits(max_pending=100)) as journal:
        admit(journal, 21, received_at=NOW + REMEMBER + 3_600)
    assert [row[0] for row in sql(tmp_path, "SELECT notification_id FROM session ORDER BY 1")] == [4, 20, 21]


def test_pruning_is_done_now_and_then(tmp_path: Path) -> None:
    """Whatever the wall clock does: the first admission prunes, and those of the next hour don't."""
    with opened(tmp_path) as journal:
        later = NOW + REMEMBER
        admit(journal, 1, received_at=later)
        journal.close_requests([(admit(journal, 2, received_at=NOW + 1), Closed.DONE)])
        admit(journal, 3, received_at=later + 2 * PRUNE_EVERY)
        rows = "SELECT count(*) FROM session WHERE notification_id = 2"
        assert journal._database.execute(rows).fetchone() == (1,)
    with opened(tmp_path) as journal:
        admit(journal, 4, received_at=later + 2 * PRUNE_EVERY)
        assert journal._database.execute(rows).fetchone() == (0,)


def test_what_a_rollback_takes_back_is_pruned_by_the_next(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, 1), Closed.DONE)])
    with opened(tmp_path) as journal:
        for end in (journal.rollback, journal.commit):
            journal.admit(verified(2, received_at=NOW + REMEMBER + 1, sent_at=NOW + REMEMBER + 1))
            end()
    assert sql(tmp_path, "SELECT notification_id FROM session") == [(2,)]


def test_signed_rows_are_pruned_by_authenticated_time(tmp_path: Path) -> None:
    """Once something newer is further ahead than `remember`, a replay is stale whatever the wall clock says."""
    with opened(tmp_path) as journal:
        for number, sent_at in ((1, NOW), (2, NOW + 5), (3, NOW + 1)):
            journal.close_requests([(admit(journal, number, sent_at=sent_at), Closed.DONE)])
    with opened(tmp_path) as journal:
        admit(journal, 9, server_id=OPEN_ID, received_at=NOW + YEARS)
        assert journal.newest_authenticated == NOW + 5
        admit(journal, 10, sent_at=NOW + REMEMBER + 5, received_at=NOW)
    assert sql(tmp_path, "SELECT notification_id FROM session ORDER BY 1") == [(1,), (2,), (3,), (9,), (10,)], (
        "the first admission since the start has pruned, and found nothing"
    )
    with opened(tmp_path) as journal:
        admit(journal, 11, sent_at=NOW + REMEMBER, received_at=60.0, clock_believed=False)
        assert journal.newest_authenticated == NOW + REMEMBER + 5
    assert sql(tmp_path, "SELECT notification_id FROM session ORDER BY 1") == [(2,), (9,), (10,), (11,)]


def test_an_unsigned_notification_does_not_forget_a_signed_one(tmp_path: Path) -> None:
    """Were the signed one forgotten, its replay would be new to a device whose clock is lost."""
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, sent_at=NOW), Closed.DONE)])
        unsigned = verified(server_id=OPEN_ID, received_at=NOW + YEARS)._replace(server_id=SERVER_ID)
        with pytest.raises(Duplicate):
            journal.admit(unsigned)
        assert journal.newest_authenticated == NOW


def test_a_replay_is_a_duplicate_whatever_the_clock_says(tmp_path: Path) -> None:
    """A device that starts in 1970 again and again: the same signed octets are taken once, not once a `remember`."""
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, sent_at=NOW, received_at=60.0, clock_believed=False), Closed.DONE)])
        for received_at in (61.0, 60.0 + 2 * REMEMBER, 1.0, NOW + YEARS):
            believed = received_at >= NOW
            assert refusal(journal, sent_at=NOW, received_at=received_at, clock_believed=believed) is Duplicate
        assert refusal(journal, sent_at=NOW + REMEMBER + 1, received_at=NOW + REMEMBER + 2) is None


def test_a_clock_that_was_ahead_forgets_nothing_signed(tmp_path: Path) -> None:
    """Four days ahead for a moment, and an unsigned notification of another server comes just then."""
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, sent_at=NOW), Closed.DONE)])
    with opened(tmp_path) as journal:
        admit(journal, 1, server_id=OPEN_ID, received_at=NOW + 4 * DAY)
        assert refusal(journal, sent_at=NOW, received_at=NOW + 60) is Duplicate


def test_unsigned_rows_are_dated_once_the_clock_is_believed(tmp_path: Path) -> None:
    """Received in 1970, an unsigned notification is remembered for `remember` from the first believed time on."""
    with opened(tmp_path) as journal:
        request = admit(journal, server_id=OPEN_ID, received_at=60.0, clock_believed=False)
        journal.close_requests([(request, Closed.DONE)])
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER + 1) is None


def test_a_server_that_stops_signing_may_use_its_ids_again(tmp_path: Path) -> None:
    """It takes anybody's unsigned notification, so nothing is won by refusing its own; only the newest time is kept."""
    with opened(tmp_path) as journal:
        for number in (7, 8):
            journal.close_requests([(admit(journal, number, sent_at=NOW + number), Closed.DONE)])
        later = [
            verified(it, server_id=OPEN_ID, received_at=NOW + YEARS)._replace(server_id=SERVER_ID) for it in (7, 8)
        ]
        journal.admit(later[0])
        journal.commit()
        with pytest.raises(Duplicate):
            journal.admit(later[1])
        assert journal.newest_authenticated == NOW + 8


def test_unsigned_ids_are_forgotten_where_no_clock_is_ever_believed(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal, server_id=OPEN_ID, received_at=60.0, clock_believed=False)
        journal.close_requests([(request, Closed.DONE)])
        lost = partial(refusal, journal, server_id=OPEN_ID, clock_believed=False)
        assert lost(received_at=60.0 + REMEMBER) is Duplicate
        assert lost(received_at=61.0 + REMEMBER) is None


def test_unsigned_rows_of_a_clock_that_was_ahead_are_dated_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, server_id=OPEN_ID, received_at=NOW + 10 * YEARS), Closed.DONE)])
    with opened(tmp_path) as journal:
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER + 1) is None


@pytest.mark.parametrize("ahead", [14 * YEARS, 60])
def test_unsigned_rows_of_a_clock_that_was_ahead_a_moment_ago_are_dated_again(tmp_path: Path, ahead: float) -> None:
    """NTP steps it back while the daemon runs."""
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, server_id=OPEN_ID, received_at=NOW + ahead), Closed.DONE)])
        for back in (NOW, NOW + REMEMBER):
            assert refusal(journal, server_id=OPEN_ID, received_at=back) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER + 1) is None


def test_a_clock_that_goes_on_dates_nothing_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for number in range(3):
            admit(journal, number, server_id=OPEN_ID, received_at=NOW + number / 2)
        before = journal._database.total_changes
        assert refusal(journal, 2, server_id=OPEN_ID, received_at=NOW + 0.1) is Duplicate
        assert journal._database.total_changes == before


def test_a_rollback_takes_back_that_rows_were_dated(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        unsigned = partial(refusal, journal, server_id=OPEN_ID)
        journal.close_requests(
            [(admit(journal, server_id=OPEN_ID, received_at=60.0, clock_believed=False), Closed.DONE)]
        )
        with pytest.raises(Duplicate):
            journal.admit(verified(server_id=OPEN_ID, received_at=NOW))
        journal.rollback()
        assert unsigned(received_at=NOW + 5) is Duplicate
        assert unsigned(received_at=NOW + REMEMBER + 6) is None


def test_pending_rows_do_not_keep_old_ones_from_being_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmnotid.journal.queue.PRUNE_ROWS", 3)
    with opened(tmp_path, limits=Limits(max_pending=100)) as journal:
        for number in range(10):
            admit(journal, number, sent_at=NOW)
        journal.close_requests([(admit(journal, 10, sent_at=NOW), Closed.DONE)])
    with opened(tmp_path, limits=Limits(max_pending=100)) as journal:
        admit(journal, 20, sent_at=NOW + REMEMBER + 1)
    assert sql(tmp_path, "SELECT count(*) FROM session WHERE notification_id = 10") == [(0,)]


def test_a_time_that_no_notification_holds_is_nobodys_newest(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1, sent_at=NOW)
    sql(tmp_path, "UPDATE session SET sent_at = ?", 2**62)
    with opened(tmp_path) as journal:
        assert journal.newest_authenticated is None


def test_newest_authenticated(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1, server_id=OPEN_ID)
        assert journal.newest_authenticated is None
    with opened(tmp_path) as journal:
        admit(journal, 2, sent_at=NOW)
        admit(journal, 3, sent_at=NOW - 100)
        assert journal.newest_authenticated == NOW
        admit(journal, 4, sent_at=NOW + 100, server_id=OTHER_ID)
        assert journal.newest_authenticated == NOW + 100
    with opened(tmp_path) as journal:
        assert journal.newest_authenticated == NOW + 100


# Files that can't be used


def open_error(directory: Path) -> str:
    before = descriptors()
    with pytest.raises(JournalError) as caught:
        Journal(directory, limits=LIMITS, remember=REMEMBER)
    assert descriptors() == before
    text = str(caught.value)
    assert text.startswith(f"{directory / FILE_NAME}: ")
    return text


def test_a_second_process_is_told(tmp_path: Path) -> None:
    with another_process(tmp_path, "") as process:
        assert "another dmnotid holds this journal" in open_error(tmp_path)
        process.kill()
        process.wait()
        with opened(tmp_path) as journal:
            assert journal.pending() == []


def test_a_second_journal_in_the_same_process_is_told_and_the_first_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        with pytest.raises(JournalError, match="another dmnotid holds this journal"):
            Journal(tmp_path, limits=LIMITS, remember=REMEMBER)
        admit(journal)
    assert count_rows(tmp_path) == 1


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal)
    sql(tmp_path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    sql(tmp_path, f"PRAGMA application_id = {APPLICATION_ID | (SCHEMA_VERSION + 1)}")
    octets = (tmp_path / FILE_NAME).read_bytes()
    assert f"schema {SCHEMA_VERSION + 1} was written by a newer dmnotid, {SCHEMA_VERSION} is known" in open_error(
        tmp_path
    )
    assert (tmp_path / FILE_NAME).read_bytes() == octets


def test_an_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    with opened(tmp_path) as journal:
        admit(journal)
    assert sql(tmp_path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_a_directory_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert "can't open the journal: unable to open database file" in open_error(tmp_path)


@pytest.mark.root
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to be somebody else for a while")
@pytest.mark.parametrize("what", ["directory", "file", "file-unreadable"])
def test_permission_denied(tmp_path: Path, what: str) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    if what != "directory":
        with opened(state) as journal:
            admit(journal)
        (state / FILE_NAME).chmod(0o644 if what == "file" else 0o600)
    with without_privileges(state):
        text = open_error(state)
    assert "can't open the journal: " in text
    assert "another dmnotid" not in text


# Rows that can't be read

NO_TEXT = "CAST(x'ff61' AS TEXT)"
"""Octets that are no UTF-8, where text should be."""


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("package", None),
        ("package", b""),
        ("package", b"\x21\x80junk"),
        ("package", "text"),
        ("package", 5),
        ("received_at", "yesterday"),
        ("received_at", b"\0"),
        ("not_before", "tomorrow"),
        ("clock_believed", "yes"),
        ("attempts", "many"),
        ("source", b"\xff"),
        ("source", NO_TEXT),
        ("server_id", NO_TEXT),
        ("state", NO_TEXT),
        ("notification_id", NO_TEXT),
        ("notification_id", 77),
    ],
)
def test_a_row_that_cannot_be_read_is_set_aside_alone(
    tmp_path: Path, logged: LogLines, column: str, value: object
) -> None:
    with opened(tmp_path) as journal:
        for number in range(3):
            admit(journal, number, received_at=time.time())
    new, values = (NO_TEXT, ()) if value is NO_TEXT else ("?", (value,))
    sql(tmp_path, f"UPDATE session SET {column} = {new} WHERE session = 2", *values)  # noqa: S608 - of a few words
    with opened(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [1, 3]
        (line,) = logged.of("row set aside")
        assert line["session"] == 2
        assert line["level"] == "error"
        assert line["problem"]
        assert [request.session for request in journal.pending()] == [1, 3]
        assert refusal(journal, 0, received_at=time.time()) is Duplicate
        assert refusal(journal, 1, received_at=time.time()) is None, (
            "it was promised and can't be run: a repeat is taken"
        )
        assert refusal(journal, 1, received_at=time.time()) is Duplicate
    assert len(logged.of("row set aside")) == 1, "said once"
    states = dict(sql(tmp_path, "SELECT session, state FROM session"))
    assert states.pop(2, "unreadable") == "unreadable", "where the repeat could not take its place"
    assert states == {1: "pending", 3: "pending", 4: "pending"}


def test_an_authenticated_time_that_cannot_be_read_stops_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
        admit(journal, 2)
    sql(tmp_path, "UPDATE session SET sent_at = 'junk' WHERE session = 2")
    with opened(tmp_path) as journal:
        assert len(journal.pending()) >= 1


# A file that can't be written any more


def full(journal: Journal) -> Callable[[], object]:
    """Let the file grow no more; call what comes back, and it may again."""
    (pages,) = journal._database.execute("PRAGMA page_count").fetchone()
    journal._database.execute(f"PRAGMA max_page_count = {pages}")
    return lambda: journal._database.execute("PRAGMA max_page_count = 1000000")


def test_no_room_means_not_accepted_and_a_repeat_is_taken_later(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1, sent_at=NOW)
        room_again = full(journal)
        for _ in range(2):
            journal_full = verified(
                2, received_at=NOW, sent_at=NOW + 5, unknown=[(9, bytes(4_000)), (10, bytes(4_000))]
            )
            with pytest.raises(JournalError, match=r"can't write the journal: database or disk is full"):
                journal.admit(journal_full)
            journal.rollback()
            assert journal.newest_authenticated == NOW
        room_again()
        assert [request.notification.notification_id for request in journal.pending()] == [1]
        assert refusal(journal, 2) is None
    assert count_rows(tmp_path) == 2


def test_a_transaction_that_was_rolled_back_by_sqlite_is_not_taken_for_a_commit(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1, sent_at=NOW)
        for go_on in (journal.commit, lambda: journal.admit(verified(3))):
            journal.admit(verified(2, sent_at=NOW + 5))
            journal._database.execute("ROLLBACK")
            with pytest.raises(JournalError, match="rolled back"):
                go_on()
            assert journal.newest_authenticated == NOW
        journal.commit()
        assert refusal(journal, 2) is None, "it was not accepted, so its repeat is"
    assert count_rows(tmp_path) == 2


SHORT_OF_MEMORY = """
import os, sqlite3, sys
from contextlib import suppress
from pathlib import Path
from dmnotid.errors import JournalError
from dmnotid.policy.sessions import Limits
from dmnotid.journal.queue import Journal
from tests.support import verified
journal = Journal(Path(sys.argv[1]), limits=Limits(max_pending=1000), remember=259200)
made = [verified(n, unknown=[(9 + it, bytes(4_000)) for it in range(15)] if n == 2 else ()) for n in range(4)]
accepted = []
for one in made:
    if one.notification.notification_id == 2:
        with suppress(MemoryError):
            journal._database.execute(f"PRAGMA hard_heap_limit = {sys.argv[2]}")
    try:
        accepted.append(journal.admit(one).session)
    except JournalError as error:
        assert type(error) is JournalError, repr(error)
        accepted.clear()
        with suppress(JournalError):
            journal.rollback()
try:
    journal.commit()
except JournalError as error:
    assert type(error) is JournalError, repr(error)
    accepted.clear()
os.write(1, repr(accepted).encode())
os._exit(0)
"""


@pytest.mark.parametrize("limit", range(200_000, 460_000, 20_000))
def test_what_sqlite_has_no_memory_for_is_not_accepted(tmp_path: Path, limit: int) -> None:
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(root)])}
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path), str(limit)]
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sql(tmp_path, "SELECT session FROM session") == [(session,) for session in json.loads(ended.stdout)]


def test_a_bug_in_the_middle_of_an_admission_leaves_nothing_half_done(
    tmp_path: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old row is deleted by then: its neighbours' commit must not make that durable."""
    later = NOW + REMEMBER + 1
    with opened(tmp_path) as journal:
        journal.close_requests([(admit(journal, 1), Closed.DONE)])
        first, second = (verified(number, received_at=later, sent_at=later) for number in (2, 1))
        journal.admit(first)
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_request", lambda *_: 1 // 0)
            with pytest.raises(JournalError, match="ZeroDivisionError"):
                journal.admit(second)
        assert "ZeroDivisionError" in logged.of("internal error")[0]["exception"]
        journal.commit()
        assert refusal(journal, 1) is Duplicate
        assert refusal(journal, 2) is None


def test_a_bug_that_touches_no_transaction_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as journal:
        monkeypatch.setattr(journal, "_find", lambda _: 1 // 0)
        journal._undated = False
        with pytest.raises(ZeroDivisionError):
            journal.admit(verified(1))


def test_a_source_that_is_no_text_is_no_damage(tmp_path: Path, logged: LogLines) -> None:
    """An interface may have any name, and it is part of a link-local address."""
    with opened(tmp_path) as journal:
        request = admit(journal, 1)
        strange = verified(2)._replace(source=Source("fe80::1%\udcff", 40_000))
        with pytest.raises(JournalError, match="can't encode") as caught:
            journal.admit(strange)
        assert not isinstance(caught.value, JournalDamaged)
        journal.rollback()
        assert journal.pending()[0].session == request.session
        assert logged.all() == []


def test_every_method_tells_of_a_file_that_is_closed(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        request = admit(journal)
    for call in (
        lambda: journal.admit(verified(8)),
        journal.pending,
        lambda: journal.begin_admitted(request),
        lambda: journal.begin_attempt(request, 1),
        lambda: journal.withdraw_attempt(request),
        lambda: journal.postpone(request, 1),
        lambda: journal.close_requests([(request, Closed.DONE)]),
    ):
        with pytest.raises(JournalError, match="closed database"):
            call()
