"""What an operator sees of a journal: its rows, the last session of each server, and how much there is."""

import time
from pathlib import Path

import pytest

from dmnotid.errors import JournalError
from dmnotid.journal.file import DAMAGED_NAME, FILE_NAME
from dmnotid.journal.listing import ROWS_AT_ONCE, view_of
from dmnotid.journal.rows import LATEST, MAX_OUTCOME
from dmnotid.policy.sessions import Closed, Connection
from dmnotid.wire.notification import ConnectionType
from tests.journal.journals import (
    DAY,
    LOOPBACK,
    NO_TEXT,
    NOW,
    ROOMY,
    admit,
    admit_done,
    ids,
    kept_files,
    no_room,
    open_journal,
    sql,
)
from tests.support import OPEN_ID, OTHER_ID, SERVER_ID, verified

SHOWN = "outcome", "connection", "interface"


def test_rows_are_open_and_closed_ones_by_number(tmp_path: Path) -> None:
    total = ROWS_AT_ONCE + 3
    with open_journal(tmp_path, limits=ROOMY) as journal:
        requests = [journal.admit(verified(number)) for number in range(total)]
        journal.commit()
        journal.close([(requests[1], Closed.REFUSED, "")])
        rows = list(journal.rows())
        assert [len(page) for page in journal.pages()] == [ROWS_AT_ONCE, 3]
    assert [row.session for row in rows] == list(range(1, total + 1))
    assert [row.notification_id for row in rows] == list(range(total))
    assert [row.state for row in rows[:3]] == ["pending", "refused", "pending"]
    assert rows[1].closed_at is not None


def test_rows_since_a_time_are_those_accepted_or_closed_since(tmp_path: Path) -> None:
    now = time.time()
    with open_journal(tmp_path, limits=ROOMY) as journal:
        old = [admit(journal, number, received_at=now - 2 * DAY) for number in range(ROWS_AT_ONCE + 2)]
        new = admit(journal, 1_000, received_at=now)
        journal.close([(old[1], Closed.DONE, "")])
        assert [row.session for row in journal.rows(now - DAY)] == [old[1].session, new.session]
        assert [len(page) for page in journal.pages(now - DAY)] == [1, 1]
        assert list(journal.rows(now + DAY)) == []


@pytest.mark.parametrize(
    "damage",
    ["server_id = 5", f"source = {NO_TEXT}", "state = 'dome'", "closed_at = 'junk'", "attempts = 'many'", "seal = 7"],
)
def test_row_that_is_not_as_written_is_not_listed(tmp_path: Path, damage: str) -> None:
    with open_journal(tmp_path) as journal:
        for number in (1, 2, 3):
            admit_done(journal, number)
    sql(tmp_path, f"UPDATE session SET {damage} WHERE session = 2")  # noqa: S608
    with open_journal(tmp_path) as journal:
        assert [row.session for row in journal.rows()] == [1, 3]
        assert journal.last_sessions()[SERVER_ID].session == 3


def test_try_and_end_are_written_with_connection_and_outcome(tmp_path: Path) -> None:
    def shown() -> tuple[str | None, ...]:
        (row,) = journal.rows()
        return row.state, row.outcome, row.connection, row.interface

    with open_journal(tmp_path) as journal:
        request = admit(journal)
        assert shown() == ("pending", None, None, None)
        journal.begin(request, 1, LOOPBACK)
        assert shown() == ("pending", None, "wireline", "lo")
        request = journal.postpone(request, 5, "exit 7")
        assert shown() == ("pending", "exit 7", "wireline", "lo")
        journal.begin(request, 2, Connection(ConnectionType.ANY, "wwan0"))
        assert shown() == ("pending", None, "any", "wwan0"), "not the end of the try before"
        request = journal.postpone(request, 5, "exit 3")
        journal.postpone(request, 0)
    with open_journal(tmp_path) as journal:
        assert shown() == ("pending", "exit 3", "any", "wwan0")
        (request,) = journal.pending()
        assert request.last_try[:2] == ("any", "wwan0")
        assert request.last_try.started_at == pytest.approx(time.time(), abs=60)
        assert request.last_try.outcome == "exit 3"
        journal.close([(request, Closed.FAILED, "exit 3, given up")])
        assert shown() == ("failed", "exit 3, given up", "any", "wwan0")


@pytest.mark.parametrize(
    ("text", "written"),
    [("x" * 200, "x" * MAX_OUTCOME), ("a\udcff\0b", "a?\0b"), ("", None)],
    ids=["long", "odd", "no"],
)
def test_text_of_a_hook_or_of_the_kernel_keeps_no_try_from_being_written(
    tmp_path: Path, text: str, written: str | None
) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal)
        journal.begin(request, 1, Connection(ConnectionType.MOBILE, text))
        assert [row.interface for row in journal.rows()] == [written]
        journal.postpone(request, 5, text)
        journal.close([(request, Closed.DONE, text)])
        assert [row.outcome for row in journal.rows()] == [written]


@pytest.mark.parametrize("column", [*SHOWN, "started_at"])
@pytest.mark.parametrize("value", ["x'ff61'", NO_TEXT, "5", "''"])
@pytest.mark.parametrize("rescued", [False, True])
def test_damaged_value_that_only_people_read_harms_nothing(
    tmp_path: Path, column: str, value: str, *, rescued: bool
) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal, 1)
        journal.begin(request, 1, LOOPBACK)
        journal.postpone(request, 5, "exit 7")
        admit_done(journal, 2)
    sql(tmp_path, f"UPDATE session SET {column} = {value}")  # noqa: S608
    if rescued:
        (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [1]
        assert [row.session for row in journal.rows()] == [1, 2]
        assert len(journal.last_starts()) <= 1
        shown = getattr(journal.last_sessions()[SERVER_ID], column)
        assert shown is None or isinstance(shown, float if column == "started_at" else str)
    assert len(kept_files(tmp_path)) == rescued
    for file in kept_files(tmp_path):
        file.unlink()
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [1]


@pytest.mark.parametrize("value", ["9e999", "-9e999", "1e18", "-1.0"])
def test_damaged_time_is_shown_as_one_of_a_calendar(tmp_path: Path, value: str) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
        admit_done(journal, 2)
    sql(tmp_path, f"UPDATE session SET received_at = {value}, started_at = {value}, not_before = {value}")  # noqa: S608
    sql(tmp_path, f"UPDATE session SET closed_at = {value} WHERE session = 2")  # noqa: S608
    sql(tmp_path, f"UPDATE server SET last_accepted = {value}")  # noqa: S608
    with open_journal(tmp_path) as journal:
        views = list(map(view_of, journal.rows()))
        times = [time for it in views for time in (it.accepted_at, it.started_at, it.next_at, it.closed_at)]
        times += [
            journal.extent()[1],
            *journal.times.last_accepted.values(),
            *(it.received_at for it in journal.pending()),
        ]
    assert [view.session for view in views] == [1, 2]
    assert all(0 <= time <= LATEST for time in times if time is not None)


# The last session of each server


@pytest.mark.parametrize("asked_before", [False, True])
def test_last_session_of_a_server_is_the_one_tried_or_closed_last(tmp_path: Path, *, asked_before: bool) -> None:
    def last() -> dict[str, tuple[int, str, str | None]]:
        return {id_: (row.session, row.state, row.outcome) for id_, row in journal.last_sessions().items()}

    with open_journal(tmp_path) as journal:
        if asked_before:
            assert last() == {}
        first, second = admit(journal, 1), admit(journal, 2)
        other = admit(journal, 1, server_id=OTHER_ID)
        admit(journal, 2, server_id=OTHER_ID)
        admit(journal, 1, server_id=OPEN_ID)
        journal.begin(second, 1, LOOPBACK)
        second = journal.postpone(second, 50, "exit 7")
        if asked_before:
            assert last() == {SERVER_ID: (2, "pending", "exit 7")}
        journal.close([(first, Closed.EXPIRED, "expired"), (other, Closed.DONE, "exit 0")])
        expected: dict[str, tuple[int, str, str | None]]
        expected = {SERVER_ID: (1, "expired", "expired"), OTHER_ID: (3, "done", "exit 0")}
        assert last() == expected
    with open_journal(tmp_path) as journal:
        assert last() == expected
        journal.begin(second, 2, LOOPBACK)
        expected[SERVER_ID] = (2, "pending", None)
        assert last() == last() == expected
        assert all(row.package is None for row in journal.last_sessions().values())


def test_last_session_that_could_not_be_written_is_the_one_before(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1)
        request = admit(journal, 2)
        assert journal.last_sessions()[SERVER_ID].session == 1
        with no_room(), pytest.raises(JournalError):
            journal.begin(request, 1, LOOPBACK)
        assert journal.last_sessions()[SERVER_ID].session == 1


# When each server was last heard


def test_last_accepted_is_the_last_arrival_of_each_server(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        assert journal.times.last_accepted == {}
        admit(journal, 1, received_at=NOW)
        admit(journal, 2, received_at=NOW + 7.5)
        admit(journal, 1, server_id=OPEN_ID, received_at=NOW + 9)
        expected = {SERVER_ID: NOW + 7.5, OPEN_ID: NOW + 9}
        assert journal.times.last_accepted == expected
    sql(tmp_path, "DELETE FROM session")
    with open_journal(tmp_path) as journal:
        assert journal.times.last_accepted == expected
        assert OPEN_ID not in journal.times.servers, "it has signed nothing"


def test_last_accepted_of_a_batch_that_is_rolled_back_is_the_one_before(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1, received_at=NOW)
        journal.admit(verified(2, received_at=NOW + 5))
        journal.admit(verified(1, server_id=OPEN_ID, received_at=NOW + 5))
        journal.rollback()
        assert journal.times.last_accepted == {SERVER_ID: NOW}
        assert OPEN_ID not in journal.times.servers
        admit(journal, 3, received_at=NOW + 6)
    with open_journal(tmp_path) as journal:
        assert journal.times.last_accepted == {SERVER_ID: NOW + 6}


def test_last_accepted_is_written_into_a_file_that_is_recreated(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1, server_id=OPEN_ID, received_at=NOW)
        (tmp_path / FILE_NAME).unlink()
        admit(journal, 1, server_id=OTHER_ID, received_at=NOW + 5)
    with open_journal(tmp_path) as journal:
        assert journal.times.last_accepted == {OPEN_ID: NOW, OTHER_ID: NOW + 5}


@pytest.mark.parametrize("value", ["'junk'", "x'00'", "9e999", "NULL"])
@pytest.mark.parametrize("rescued", [False, True])
def test_damaged_last_accepted_harms_nothing(tmp_path: Path, value: str, *, rescued: bool) -> None:
    with open_journal(tmp_path) as journal:
        for server_id in (SERVER_ID, OTHER_ID):
            admit(journal, 1, server_id=server_id, received_at=NOW)
        times = dict(journal.times.servers)
    sql(tmp_path, f"UPDATE server SET last_accepted = {value} WHERE server_id = '{SERVER_ID}'")  # noqa: S608
    if rescued:
        (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with open_journal(tmp_path) as journal:
        assert journal.times.last_accepted == {OTHER_ID: NOW}
        assert journal.times.servers == times
        admit(journal, 2, received_at=NOW + 5)
        assert journal.times.last_accepted == {OTHER_ID: NOW, SERVER_ID: NOW + 5}
    assert len(kept_files(tmp_path)) == rescued


# How much there is


def test_count_oldest_and_octets_are_those_of_the_file(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        assert journal.extent() == (0, None)
        admit_done(journal, 1, received_at=NOW + 5)
        admit(journal, 2, received_at=NOW + 9)
        assert journal.extent() == (2, NOW + 5)
        assert journal.octets == sum(file.stat().st_size for file in tmp_path.iterdir())
    sql(tmp_path, "UPDATE session SET received_at = 'junk'")
    with open_journal(tmp_path) as journal:
        assert journal.extent() == (2, None)
