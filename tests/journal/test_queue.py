"""The durable queue: real SQLite files, real processes, real crashes."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dmnotid.errors import Duplicate, JournalDamaged, JournalError, NoSuchSession, NotKept, NotPending, QueueFull
from dmnotid.journal.rows import LAST_CHANCE
from dmnotid.policy.addresses import Source
from dmnotid.policy.sessions import Closed, Limits, SessionRequest
from dmnotid.wire.notification import ConnectionType
from tests.journal.journals import (
    DAY,
    LIMITS,
    LOOPBACK,
    NO_TEXT,
    NOW,
    REMEMBER,
    ROOT,
    YEARS,
    accepts,
    admit,
    admit_done,
    another_process,
    copy_of,
    count_rows,
    environment,
    ids,
    no_room,
    open_journal,
    refusal,
    sql,
)
from tests.support import DURABLE_KEYS, OTHER_ID, SERVER_ID, LogLines, further, verified


def durable(request: SessionRequest) -> dict[str, object]:
    return {key: getattr(request, key) for key in DURABLE_KEYS}


# Durable


def test_request_has_the_facts_of_its_notification(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal, preferred=[ConnectionType.MOBILE], unknown=[(9, b"\0\xff")])
    assert (request.session, request.server_id, request.source) == (1, SERVER_ID, "192.0.2.7:40000")
    assert (request.received_at, request.attempts) == (NOW, 0)
    assert request.notification.notification_id == 7
    assert request.notification.preferred_connections == (ConnectionType.MOBILE,)
    assert request.notification.unknown_options == ((9, b"\0\xff"),)


def test_committed_requests_are_there_after_reopening(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        requests = [admit(journal, number, unknown=[(9, bytes(4_000))]) for number in range(3)]
    with open_journal(tmp_path) as journal:
        assert [durable(request) for request in journal.pending()] == [durable(request) for request in requests]


def test_uncommitted_requests_are_gone_after_reopening(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
        journal.admit(verified(2))
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [1]


def test_commit_without_an_admission_does_nothing(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.commit()
        journal.rollback()
        assert journal.pending() == []


def test_killed_process_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    """5.3.4: an accepted notification is on disk before anything runs."""
    body = "[journal.admit(verified(n)) for n in range(20)]; journal.commit(); journal.admit(verified(99))"
    with another_process(tmp_path, body) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_journal(tmp_path) as journal:
            assert ids(journal) == list(range(20))
            assert refusal(journal, 5, received_at=time.time()) is Duplicate
            assert refusal(journal, 99, received_at=time.time(), server_id=OTHER_ID) is None


def test_process_killed_before_the_commit_leaves_nothing(tmp_path: Path) -> None:
    with another_process(tmp_path, "[journal.admit(verified(n)) for n in range(20)]") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_journal(tmp_path) as journal:
            assert journal.pending() == []


def test_request_is_pending_once_its_file_holds_it(tmp_path: Path) -> None:
    """Not after `admit`: nothing may start a session whose row a crash would take away."""
    state = tmp_path / "state"
    with open_journal(state) as journal:
        journal.admit(verified(1, received_at=NOW))
        with open_journal(copy_of(state)) as copy:
            assert (ids(journal), ids(copy)) == ([], [])
        shutil.rmtree(tmp_path / "state-copy")
        journal.commit()
        with open_journal(copy_of(state)) as copy:
            assert ids(journal) == ids(copy) == [1]


def traced(state: Path, body: str) -> str:
    """Return what a process with a journal synchronises and says, in order."""
    trace = state.with_name("trace")
    state.mkdir()
    tracer = ["strace", "-f", "-e", "trace=fsync,fdatasync,write", "-o", str(trace)]
    with another_process(state, f"say('BEGIN'); {body}", *tracer):
        return trace.read_text().partition("BEGIN")[2]


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@needs_strace
def test_batch_reaches_the_disk_with_one_synchronisation(tmp_path: Path) -> None:
    """After a power cut there is what was synchronised: once for a batch, before `commit` returns."""
    body = "[journal.admit(verified(n)) for n in range(20)]; journal.commit(); say('COMMITTED')"
    between, committed, _ = traced(tmp_path / "state", body).partition("COMMITTED")
    assert committed
    assert between.count("sync(") == 1


@needs_strace
def test_try_and_end_each_reach_the_disk(tmp_path: Path) -> None:
    body = """
from dmnotid.policy.sessions import Closed
requests = [journal.admit(verified(n)) for n in range(5)]; journal.commit()
say('ADMITTED'); journal.begin(requests[0], 1, LOOPBACK); say('BEGUN')
journal.close([(request, Closed.DONE, "") for request in requests]); say('CLOSED')
"""
    begun, _, closed = traced(tmp_path / "state", body).partition("ADMITTED")[2].partition("BEGUN")
    assert begun.count("sync(") == 1
    assert closed.partition("CLOSED")[0].count("sync(") == 1


# Full queue


def test_full_queue_refuses_and_remembers_nothing(tmp_path: Path) -> None:
    """5.3.4: refused without a trace, so that a repeat is accepted later."""
    with open_journal(tmp_path) as journal:
        requests = [admit(journal, number) for number in range(LIMITS.max_pending)]
        with pytest.raises(QueueFull, match=r"4 sessions of 'dm.example' .* sessions.max_pending is 4") as caught:
            admit(journal, 100)
        assert (caught.value.server_id, caught.value.notification_id) == (SERVER_ID, 100)
        assert refusal(journal, 100) is QueueFull
        assert refusal(journal, 3) is Duplicate, "a duplicate is detected first"
        admit(journal, 100, server_id=OTHER_ID)
        journal.close([(requests[0], Closed.FAILED, "")])
        assert refusal(journal, 100) is None
        assert refusal(journal, 101) is QueueFull
    assert count_rows(tmp_path) == LIMITS.max_pending + 2


def test_running_session_does_not_count_towards_max_pending(tmp_path: Path) -> None:
    """5.3.4: until its try has ended; a session of another server never counts."""
    with open_journal(tmp_path) as journal:
        journal.begin(admit(journal, 200, server_id=OTHER_ID), 1, LOOPBACK)
        first, *_ = [admit(journal, number) for number in range(LIMITS.max_pending)]
        assert refusal(journal, 100) is QueueFull
        journal.begin(first, 1, LOOPBACK)
        assert refusal(journal, 100) is None
        assert refusal(journal, 101) is QueueFull
        journal.postpone(first, 1_000)
        assert refusal(journal, 101) is QueueFull
        journal.begin(first, 2, LOOPBACK)
        journal.close([(first, Closed.DONE, "")])
        assert refusal(journal, 101) is QueueFull
        journal.close([(journal.pending()[-1], Closed.DONE, "")])
        assert refusal(journal, 101) is None
    with open_journal(tmp_path) as journal:
        assert refusal(journal, 102) is QueueFull, "a session that a crash has interrupted waits"


def test_session_whose_pause_cannot_be_written_counts_towards_max_pending_again(tmp_path: Path) -> None:
    with open_journal(tmp_path, limits=Limits(max_pending=1)) as journal:
        request = admit(journal, 1)
        journal.begin(request, 1, LOOPBACK)
        with no_room(), pytest.raises(JournalError):
            journal.postpone(request, 1_000)
        assert refusal(journal, 2) is QueueFull


def test_uncommitted_requests_fill_the_queue_too(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for number in range(LIMITS.max_pending):
            journal.admit(verified(number))
        with pytest.raises(QueueFull):
            journal.admit(verified(100))


def test_write_after_a_refusal_is_durable(tmp_path: Path) -> None:
    """If the refusal left a transaction open, a session could run again after it was done."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1, received_at=NOW - YEARS)
        requests = [admit(journal, number) for number in range(10, 14)]
        with pytest.raises(QueueFull):
            journal.admit(verified(1, received_at=NOW))
        journal.close([(requests[0], Closed.DONE, "")])
    with open_journal(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [request.session for request in requests[1:]]


def test_full_queue_is_full_after_reopening(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for number in range(LIMITS.max_pending):
            admit(journal, number)
    with open_journal(tmp_path) as journal:
        assert refusal(journal, 100) is QueueFull
        journal.close([(journal.pending()[0], Closed.DONE, "")])
        assert refusal(journal, 100) is None
        assert refusal(journal, 101) is QueueFull


# Rollback


def test_rollback_forgets_what_was_admitted(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1, sent_at=NOW)
        journal.admit(verified(2, received_at=NOW, sent_at=NOW + 50))
        assert journal.times.servers[SERVER_ID].newest == NOW + 50
        journal.rollback()
        assert journal.times.servers[SERVER_ID].newest == NOW
        assert ids(journal) == [1]
        assert refusal(journal, 2) is None


# Sessions


def test_pending_is_in_the_order_of_arrival(tmp_path: Path) -> None:
    numbers = random.Random(5).sample(range(65_536), 40)  # noqa: S311 - an order, no secret
    with open_journal(tmp_path, limits=Limits(max_pending=100)) as journal:
        requests = [
            admit(journal, number, server_id=[SERVER_ID, OTHER_ID][number % 2], received_at=NOW - at)
            for at, number in enumerate(numbers)
        ]
        for request in requests[::3]:
            journal.close([(request, Closed.DONE, "")])
        left = [number for at, number in enumerate(numbers) if at % 3]
        assert ids(journal) == left
    with open_journal(tmp_path) as journal:
        assert ids(journal) == left


def test_session_number_is_never_used_again(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        last = admit_done(journal)
        admit(journal, 8, received_at=NOW + REMEMBER + 1)
    sql(tmp_path, "DELETE FROM session")
    with open_journal(tmp_path) as journal:
        assert admit(journal, 9).session == last.session + 2


def test_attempts_are_counted_across_restarts(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal)
        journal.begin(request, 1, LOOPBACK)
        journal.begin(request, 2, LOOPBACK)
        assert [request.attempts for request in journal.pending()] == [2]
    with open_journal(tmp_path) as journal:
        assert [request.attempts for request in journal.pending()] == [2]


@pytest.mark.parametrize("closed", Closed)
def test_closed_request_is_never_pending_again(tmp_path: Path, closed: Closed) -> None:
    with open_journal(tmp_path) as journal:
        journal.close([(admit(journal), closed, "")])
        assert journal.pending() == []
    with open_journal(tmp_path) as journal:
        assert journal.pending() == []
    assert sql(tmp_path, "SELECT state, closed_at IS NOT NULL FROM session") == [(str(closed), True)]


def test_many_ends_are_written_together(tmp_path: Path) -> None:
    with open_journal(tmp_path, limits=Limits()) as journal:
        journal.close([(admit(journal, number), closed, f"as {closed}") for number, closed in enumerate(Closed)])
        journal.close([])
        assert journal.pending() == []
    states = [(str(closed), f"as {closed}") for closed in Closed]
    assert sql(tmp_path, "SELECT state, outcome FROM session ORDER BY session") == states


def test_package_is_kept_only_while_its_session_may_run(tmp_path: Path) -> None:
    with open_journal(tmp_path, limits=Limits()) as journal:
        journal.close([(admit(journal, number), closed, "") for number, closed in enumerate(Closed)])
        kept = {row.state for row in journal.rows() if row.package is not None}
    assert kept == {Closed.FAILED, Closed.EXPIRED}


def test_many_ends_are_written_all_or_none(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        requests = [admit(journal, number) for number in range(3)]
    sql(
        tmp_path,
        "CREATE TRIGGER fails BEFORE UPDATE ON session WHEN new.session = 2 BEGIN SELECT raise(ABORT, 'not two'); END",
    )
    with open_journal(tmp_path) as journal:
        with pytest.raises(JournalError, match="not two"):
            journal.close([(request, Closed.DONE, "") for request in requests])
        assert len(journal.pending()) == 3
    sql(tmp_path, "DROP TRIGGER fails")
    with open_journal(tmp_path) as journal:
        assert len(journal.pending()) == 3
        journal.close([(request, Closed.DONE, "") for request in requests])
        assert journal.pending() == []


def test_end_is_not_written_into_an_admission_that_is_not_committed(tmp_path: Path) -> None:
    """It would be as durable as that: it may be rolled back."""
    with open_journal(tmp_path) as journal:
        request = admit(journal, 1)
        journal.admit(verified(2))
        with pytest.raises(JournalError, match="an admission is not committed"):
            journal.close([(request, Closed.DONE, "")])
        journal.commit()
        journal.close([(request, Closed.DONE, "")])
        assert ids(journal) == [2]


# A session that an operator opens again


@pytest.mark.parametrize("closed", [Closed.FAILED, Closed.EXPIRED])
@pytest.mark.parametrize("reopened", [False, True])
def test_revived_session_is_pending_without_tries_and_with_all_of_its_time(
    tmp_path: Path, closed: Closed, *, reopened: bool
) -> None:
    with open_journal(tmp_path) as journal:
        former = admit(journal, received_at=time.time() - YEARS)
        journal.begin(former, 5, LOOPBACK)
        former = journal.postpone(former._replace(attempts=5), 1_000, "exit 7")
        journal.close([(former, closed, "given up")])
        if not reopened:
            request = journal.revive(former.session)
            assert ids(journal) == [7]
    with open_journal(tmp_path) as journal:
        if reopened:
            request = journal.revive(former.session)
        assert durable(journal.pending()[0]) == durable(former) | {"attempts": 0}
        assert refusal(journal, received_at=former.received_at) is Duplicate
    assert request.not_before == pytest.approx(time.monotonic(), abs=60)
    assert request.expires_at == pytest.approx(time.monotonic() + LIMITS.expire_after, abs=60)
    assert sql(tmp_path, "SELECT state, closed_at, outcome FROM session") == [("pending", None, "given up")]


@pytest.mark.parametrize("closed", [None, Closed.DONE, Closed.REFUSED, Closed.CANCELLED])
def test_session_that_did_not_fail_or_expire_is_not_revived(tmp_path: Path, closed: Closed | None) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal)
        if closed:
            journal.close([(request, closed, "")])
        with pytest.raises(NotPending, match=f"session 1 is {closed or 'pending'}"):
            journal.revive(1)
        assert ids(journal) == ([] if closed else [7])


@pytest.mark.parametrize("damage", ["package = NULL", "package = 'text'", "source = x'00'", "fingerprint = x'00'"])
def test_session_whose_package_is_not_as_written_is_not_revived(tmp_path: Path, damage: str) -> None:
    """An older dmnotid kept no package of a failed session."""
    with open_journal(tmp_path) as journal:
        journal.close([(admit(journal), Closed.FAILED, "")])
    sql(tmp_path, f"UPDATE session SET {damage}")  # noqa: S608
    with open_journal(tmp_path) as journal:
        with pytest.raises(NotKept, match="session 1 is failed, and its notification was not kept"):
            journal.revive(1)
        assert ids(journal) == []


def test_session_that_the_journal_has_not_is_not_revived(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal, pytest.raises(NoSuchSession, match="no session 5"):
        journal.revive(5)


# Times


def monotonic_wait(request: SessionRequest) -> tuple[float, float]:
    """Return the time until the next try and until the end, in seconds."""
    now = time.monotonic()
    return request.not_before - now, request.expires_at - now


def test_new_request_may_start_at_once_and_has_its_whole_time(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        before = time.monotonic()
        request = admit(journal)
        assert before <= request.not_before <= time.monotonic()
        assert request.expires_at == request.not_before + LIMITS.expire_after


def test_pause_is_kept_across_restarts(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        postponed = journal.postpone(admit(journal, received_at=time.time()), 1_000)
        assert 0 < monotonic_wait(postponed)[0] <= 1_000
    with open_journal(tmp_path) as journal:
        wait, end = monotonic_wait(journal.pending()[0])
    assert 0 < wait <= 1_000.01
    assert wait < end <= LIMITS.expire_after


def test_pause_that_is_over_is_over(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, received_at=time.time())
    sql(tmp_path, "UPDATE session SET not_before = ?", time.time() - 3)
    with open_journal(tmp_path) as journal:
        assert monotonic_wait(journal.pending()[0])[0] <= 0


@pytest.mark.parametrize("column", ["not_before", "received_at"])
@pytest.mark.parametrize("by", [-YEARS, YEARS, -time.time(), 1e300], ids=["behind", "ahead", "1970", "no time"])
def test_wrong_clock_makes_no_request_wait_longer_than_its_whole_time(tmp_path: Path, column: str, by: float) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, received_at=time.time())
    sql(tmp_path, f"UPDATE session SET {column} = ?", time.time() + by)  # noqa: S608 - one of two words
    with open_journal(tmp_path) as journal:
        wait, end = monotonic_wait(journal.pending()[0])
    assert wait < end <= LIMITS.expire_after


def test_request_received_before_the_clock_was_set_has_its_whole_time(tmp_path: Path) -> None:
    """A device wakes in 1970, accepts a notification, NTP sets its clock, dmnotid is restarted."""
    with open_journal(tmp_path) as journal:
        admit(journal, received_at=60.0, sent_at=time.time(), clock_believed=False)
    with open_journal(tmp_path) as journal:
        assert monotonic_wait(journal.pending()[0])[1] > LIMITS.expire_after - DAY


def test_clock_that_is_ahead_at_the_start_leaves_a_last_chance(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1, received_at=time.time() - 5 * YEARS)
    before = time.monotonic()
    with open_journal(tmp_path) as journal:
        (request,) = journal.pending()
    assert before + LAST_CHANCE <= request.expires_at <= time.monotonic() + LAST_CHANCE


def test_start_written_by_a_clock_that_was_ahead_is_corrected_once(tmp_path: Path) -> None:
    """Otherwise it would seem recent at each restart, until that time has come."""
    with open_journal(tmp_path) as journal:
        for number in (1, 2):
            journal.begin(admit(journal, number, sent_at=time.time() - 50), 1, LOOPBACK)
    sql(tmp_path, "UPDATE session SET started_at = ? WHERE session = 2", time.time() + YEARS)
    with open_journal(tmp_path) as journal:
        before = time.monotonic()
        assert journal.last_starts()[SERVER_ID] >= before
    written = sql(tmp_path, "SELECT started_at FROM session")
    with open_journal(tmp_path) as journal:
        assert journal.last_starts()[SERVER_ID] <= time.monotonic()
    assert sql(tmp_path, "SELECT started_at FROM session") == written


def test_clock_that_is_not_believed_corrects_no_start(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.begin(admit(journal, sent_at=time.time() + DAY), 1, LOOPBACK)
    began = time.time() + 100
    sql(tmp_path, "UPDATE session SET started_at = ?", began)
    with open_journal(tmp_path) as journal:
        before = time.monotonic()
        assert before <= journal.last_starts()[SERVER_ID] <= time.monotonic()
    assert sql(tmp_path, "SELECT started_at FROM session") == [(began,)]


@pytest.mark.parametrize("value", ["junk", b"junk", None])
def test_start_that_is_not_a_time_is_ignored(tmp_path: Path, value: object) -> None:
    with open_journal(tmp_path) as journal:
        journal.begin(admit(journal, sent_at=time.time()), 1, LOOPBACK)
    sql(tmp_path, "UPDATE session SET started_at = ?", value)
    with open_journal(tmp_path) as journal:
        assert journal.last_starts() == {}


# Rows that can't be read


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("package", None),
        ("package", b"\x21\x80junk"),
        ("package", "text"),
        ("received_at", "yesterday"),
        ("not_before", "tomorrow"),
        ("clock_believed", "yes"),
        ("attempts", "many"),
        ("source", NO_TEXT),
        ("server_id", NO_TEXT),
        ("state", NO_TEXT),
        ("notification_id", NO_TEXT),
        ("notification_id", 77),
    ],
)
def test_row_that_cannot_be_read_is_set_aside_alone(
    tmp_path: Path, logged: LogLines, column: str, value: object
) -> None:
    with open_journal(tmp_path) as journal:
        for number in range(3):
            admit(journal, number, received_at=time.time())
    new, values = (NO_TEXT, ()) if value is NO_TEXT else ("?", (value,))
    sql(tmp_path, f"UPDATE session SET {column} = {new} WHERE session = 2", *values)  # noqa: S608 - of a few words
    with open_journal(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [1, 3]
        (line,) = logged.of("row set aside")
        assert (line["session"], line["level"]) == (2, "error")
        assert line["problem"]
        assert not accepts(journal, 0)
        assert accepts(journal, 1), "it was accepted and can't be run, so a repeat is accepted"
        assert not accepts(journal, 1)
    with open_journal(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [1, 3, 4]
    assert len(logged.of("row set aside")) == 1, "once"


# A file that can't be written


def test_notification_without_room_is_not_accepted_and_its_repeat_is(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal, 1, sent_at=NOW)
        with no_room():
            for _ in range(2):
                journal.admit(verified(2, received_at=NOW, sent_at=NOW + 5))
                with pytest.raises(JournalError, match="cannot write the journal") as caught:
                    journal.commit()
                assert not isinstance(caught.value, JournalDamaged)
                assert journal.times.servers[SERVER_ID].newest == NOW
            with pytest.raises(JournalError):
                journal.close([(request, Closed.DONE, "")])
        assert ids(journal) == [1]
        assert refusal(journal, 2) is None
        journal.close([(request, Closed.DONE, "")])
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [2]


def test_error_of_an_admission_takes_back_the_whole_batch(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
    sql(
        tmp_path,
        "CREATE TRIGGER fails BEFORE INSERT ON session WHEN new.notification_id = 3"
        " BEGIN SELECT raise(ABORT, 'not three'); END",
    )
    with open_journal(tmp_path) as journal:
        journal.admit(verified(2, received_at=NOW))
        with pytest.raises(JournalError, match="not three"):
            journal.admit(verified(3, received_at=NOW))
        journal.commit()
        assert ids(journal) == [1]
        assert refusal(journal, 2) is None


def test_source_that_cannot_be_encoded_is_not_taken_for_damage(tmp_path: Path, logged: LogLines) -> None:
    """An interface may have any name, and it is part of a link-local address."""
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
        strange = verified(2)._replace(source=Source("fe80::1%\udcff", 40_000))
        with pytest.raises(JournalError, match="can't encode") as caught:
            journal.admit(strange)
        assert not isinstance(caught.value, JournalDamaged)
        assert ids(journal) == [1]
        assert logged.all() == []


def test_bug_in_an_admission_takes_back_the_whole_batch_and_is_logged(tmp_path: Path, logged: LogLines) -> None:
    """The forgotten row is deleted by then, and the batch must not make that durable."""
    later = NOW + REMEMBER + 1
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1)
        first, second = (verified(number, received_at=later, sent_at=later) for number in (2, 1))
        journal.admit(first)
        broken: Any = object()
        with pytest.raises(JournalError, match="object"):
            journal.admit(second._replace(received_at=broken))
        assert "TypeError" in logged.of("internal error")[0]["exception"]
        journal.commit()
        assert refusal(journal, 1) is Duplicate
        assert refusal(journal, 2) is None


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
            sqlite3.connect(":memory:").execute(f"PRAGMA hard_heap_limit = {sys.argv[2]}")
    try:
        accepted.append(journal.admit(one).session)
    except JournalError as error:
        assert type(error) is JournalError, repr(error)
        accepted.clear()
try:
    journal.commit()
except JournalError as error:
    assert type(error) is JournalError, repr(error)
    accepted.clear()
os.write(1, repr(accepted).encode())
os._exit(0)
"""


@pytest.mark.parametrize("limit", [200_000, 420_000, *further(300_000, 340_000, 380_000, 450_000)])
def test_notification_without_memory_is_not_accepted(tmp_path: Path, limit: int) -> None:
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path), str(limit)]
    ended = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sql(tmp_path, "SELECT session FROM session") == [(session,) for session in json.loads(ended.stdout)]


def test_every_method_fails_once_the_journal_is_closed(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal)
    for call in (
        lambda: journal.admit(verified(8)),
        journal.commit,
        journal.probe,
        lambda: list(journal.rows()),
        journal.last_starts,
        journal.last_sessions,
        journal.extent,
        lambda: journal.revive(request.session),
        lambda: journal.begin(request, 1, LOOPBACK),
        lambda: journal.postpone(request, 1),
        lambda: journal.close([(request, Closed.DONE, "")]),
    ):
        with pytest.raises(JournalError, match="it is closed"):
            call()
