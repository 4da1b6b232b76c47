"""The journal's file: schemas, damage of every kind, and a place that is taken away under the program."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmnotid.errors import Duplicate, JournalError
from dmnotid.journal import file as journalfile
from dmnotid.journal.file import DAMAGED_NAME, FILE_NAME, KEPT_DAMAGED, STATE_MODE
from dmnotid.journal.queue import LAST_CHANCE, Journal
from dmnotid.policy.sessions import Closed, Limits, SessionRequest
from tests.support import IS_ROOT, LogLines, verified, without_privileges

LIMITS = Limits(max_pending=100)
REMEMBER = 259_200.0


@contextmanager
def opened(directory: Path) -> Iterator[Journal]:
    with closing(Journal(directory, limits=LIMITS, remember=REMEMBER)) as journal:
        yield journal


def admit(journal: Journal, notification_id: int, **more: Any) -> SessionRequest:  # noqa: ANN401
    request = journal.admit(verified(notification_id, **more))
    journal.commit()
    return request


def sql(file: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Look at, or change, a file that no journal has open."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        return database.execute(statement, values).fetchall()


def kept_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("journal-corrupt-*.sqlite3"))


def accepts(journal: Journal, notification_id: int, **more: Any) -> bool:  # noqa: ANN401
    """Send a notification, and again where the journal failed once, as a server does; whether it was taken."""
    for _ in range(2):
        try:
            admit(journal, notification_id, **more)
        except JournalError:
            journal.rollback()
        except Duplicate:
            return False
        else:
            return True
    pytest.fail("refused twice because of the file")


def checkpoint(journal: Journal) -> None:
    """Write all that is in the log into the file, so that it is read from there."""
    journal._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    journal._file._place = journal._file._look()


SESSIONS = 40


def fill(journal: Journal) -> None:
    """Admit sessions, a third of which are done."""
    for number in range(SESSIONS):
        request = admit(journal, number, unknown=[(9, bytes(600))])
        if number % 3 == 0:
            journal.close_requests([(request, Closed.DONE)])


# A file that is no journal


@pytest.mark.parametrize("text", ["not a database at all\n" * 500, "SQLite format 3\0" + "\0" * 4_080])
def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path, logged: LogLines, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with opened(tmp_path) as journal:
        assert accepts(journal, 1)
    (kept,) = kept_files(tmp_path)
    assert kept.read_text() == text
    (line,) = logged.of("journal set aside")
    assert (line["level"], line["kept_as"], line["rows_rescued"]) == ("error", str(kept), 0)
    assert str(tmp_path / FILE_NAME) in line["problem"]


def test_a_database_of_others_is_set_aside_whole(tmp_path: Path) -> None:
    sql(tmp_path / FILE_NAME, "CREATE TABLE session (elsewhere)")
    with opened(tmp_path) as journal:
        assert accepts(journal, 1)
    (kept,) = kept_files(tmp_path)
    assert sql(kept, "SELECT sql FROM sqlite_schema") == [("CREATE TABLE session (elsewhere)",)]


@pytest.mark.parametrize("change", ["PRAGMA user_version = 77", "PRAGMA user_version = -5", "PRAGMA application_id = 7",
                                    "DROP INDEX signed", "ALTER TABLE session DROP COLUMN started_at",
                                    "ALTER TABLE session DROP COLUMN seal"])  # fmt: skip
def test_a_header_or_schema_that_was_damaged_costs_no_more_than_it_must(
    tmp_path: Path, logged: LogLines, change: str
) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
    sql(tmp_path / FILE_NAME, change)
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == 1
        assert not accepts(journal, 1)
    assert len(logged.of("journal set aside")) == len(kept_files(tmp_path)) == (0 if "INDEX" in change else 1)


def test_what_was_set_aside_and_not_taken_over_is_taken_over_by_the_next_start(
    tmp_path: Path, logged: LogLines
) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with opened(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [1]
        assert not accepts(journal, 1)
    assert len(kept_files(tmp_path)) == len(logged.of("journal set aside")) == 1
    assert not (tmp_path / DAMAGED_NAME).exists()


@pytest.mark.root
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to be somebody else for a while")
def test_a_damaged_file_is_taken_over_in_a_directory_that_cannot_be_listed(tmp_path: Path, logged: LogLines) -> None:
    state = tmp_path / "state"
    with opened(state) as journal:
        for number in range(3):
            admit(journal, number)
    sql(state / FILE_NAME, "PRAGMA user_version = 77")
    for path in (state / FILE_NAME, state):
        os.chown(path, 65_534, 65_534)
    state.chmod(0o300)
    with without_privileges(state), opened(state) as journal:
        assert len(journal.pending()) == 3
    assert logged.of("journal set aside")[0]["rows_rescued"] == 3


def test_only_the_last_few_damaged_files_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT_DAMAGED + 3):
        (tmp_path / FILE_NAME).write_text(f"damaged {number}")
        os.utime(tmp_path / FILE_NAME, (number, number))
        with opened(tmp_path):
            pass
    texts = sorted(file.read_text() for file in kept_files(tmp_path))
    assert texts == [f"damaged {number}" for number in range(3, KEPT_DAMAGED + 3)]


# A place that is taken away


def take_away(directory: Path) -> None:
    shutil.rmtree(directory)


def take_the_files_away(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def move_away(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


@pytest.mark.parametrize("take", [take_away, take_the_files_away, move_away])
def test_a_file_that_is_taken_away_is_made_anew_with_all_that_it_held(
    tmp_path: Path, logged: LogLines, take: Callable[[Path], None]
) -> None:
    state = tmp_path / "state"
    with opened(state) as journal:
        fill(journal)
        take(state)
        assert not accepts(journal, 1), "known, and nothing need be written for it"
        assert not state.exists() or not list(state.iterdir())
        assert accepts(journal, 500)
        assert [accepts(journal, number) for number in range(SESSIONS)] == [False] * SESSIONS
        (line,) = logged.of("journal opened anew")
        assert (line["level"], line["rows_kept"]) == ("error", SESSIONS)
    assert state.stat().st_mode & 0o777 == STATE_MODE
    with opened(state) as journal:
        assert len(journal.pending()) == SESSIONS - len(range(0, SESSIONS, 3)) + 1
        assert [accepts(journal, number) for number in range(SESSIONS)] == [False] * SESSIONS


def test_a_try_and_an_end_are_written_into_the_new_file_too(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with opened(state) as journal:
        first, second = admit(journal, 1), admit(journal, 2)
        take_away(state)
        journal.begin_attempt(first, 3)
        take_away(state)
        journal.close_requests([(second, Closed.DONE)])
    with opened(state) as journal:
        assert [(request.session, request.attempts) for request in journal.pending()] == [(first.session, 3)]
        assert not accepts(journal, 2)


def test_a_backup_that_is_put_in_its_place_is_taken_up(tmp_path: Path) -> None:
    """What the open journal knows is newer than what the backup says of the same sessions."""
    state, backup = tmp_path / "state", tmp_path / "backup"
    with opened(state) as journal:
        admit(journal, 1)
        admit(journal, 2)
    shutil.copytree(state, backup)
    with opened(state) as journal:
        (first, _) = journal.pending()
        journal.close_requests([(first, Closed.DONE)])
        os.rename(backup / FILE_NAME, state / FILE_NAME)  # noqa: PTH104
        assert accepts(journal, 3)
    with opened(state) as journal:
        assert [request.notification.notification_id for request in journal.pending()] == [2, 3]


def test_what_a_file_knows_that_is_put_in_its_place_is_no_damage(tmp_path: Path, logged: LogLines) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    with opened(other) as journal:
        admit(journal, 5)
    with opened(state) as journal:
        admit(journal, 1)
        os.rename(other / FILE_NAME, state / FILE_NAME)  # noqa: PTH104
        with pytest.raises(Duplicate):
            admit(journal, 5)
        journal.commit()
        assert accepts(journal, 2)
        assert [request.notification.notification_id for request in journal.pending()] == [1, 5, 2]
    assert not logged.of("journal set aside")


def test_a_file_of_another_process_in_its_place_is_not_touched(tmp_path: Path, logged: LogLines) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    with opened(state) as journal:
        admit(journal, 1)
        with opened(other) as held:
            state.rename(tmp_path / "away")
            other.rename(state)
            with pytest.raises(JournalError, match="another dmnotid holds this journal"):
                admit(journal, 2)
            journal.rollback()
            assert admit(held, 50).session == 1
        assert accepts(journal, 2), "once it is given free, it is taken over"
        assert not accepts(journal, 1)
        assert not accepts(journal, 50) or logged.of("journal opened anew"), "ids may meet: ours win"


def test_a_place_that_cannot_be_made_is_tried_again_each_time(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with opened(state) as journal:
        request = admit(journal, 1)
        take_away(state)
        state.write_text("in the way")
        for _ in range(3):
            with pytest.raises(JournalError, match="a directory that dmnotid may write to is expected"):
                admit(journal, 2)
            journal.rollback()
            with pytest.raises(JournalError):
                journal.close_requests([(request, Closed.DONE)])
            with pytest.raises((Duplicate, JournalError)):
                admit(journal, 1)
        state.unlink()
        assert accepts(journal, 2)
        journal.close_requests([(request, Closed.DONE)])
    with opened(state) as journal:
        assert [request.notification.notification_id for request in journal.pending()] == [2]


def test_a_damaged_file_that_cannot_be_set_aside_is_tried_again(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
        (tmp_path / FILE_NAME).write_bytes(b"\xff" * 100_000)
        checkpoint(journal)
        journal._database.execute("PRAGMA shrink_memory")
        (tmp_path / DAMAGED_NAME).mkdir()
        (tmp_path / DAMAGED_NAME / "full").touch()
        for number in range(2, 5):
            try:
                admit(journal, number)
            except JournalError:
                journal.rollback()
        shutil.rmtree(tmp_path / DAMAGED_NAME, ignore_errors=True)
        assert accepts(journal, 10)
        assert not accepts(journal, 1)


# A log that is taken away, and one that lies beside another's file


def log_of(directory: Path) -> Path:
    return directory / f"{FILE_NAME}-wal"


@pytest.mark.parametrize("cut", [False, True])
def test_a_log_that_is_deleted_or_cut_off_is_noticed(tmp_path: Path, logged: LogLines, cut: bool) -> None:  # noqa: FBT001
    """What is written from then on would be gone with the process."""
    with opened(tmp_path) as journal:
        for number in range(3):
            admit(journal, number)
        if cut:
            os.truncate(log_of(tmp_path), 0)
        else:
            log_of(tmp_path).unlink()
        for number in range(3, 6):
            assert accepts(journal, number)
        assert "deleted or cut off" in logged.of("journal set aside")[0]["problem"]
        shutil.copytree(tmp_path, tmp_path / "copy")  # as a crash would leave it
    with opened(tmp_path / "copy") as journal:
        assert [request.notification.notification_id for request in journal.pending()] == list(range(6))


def test_the_log_of_a_file_behind_a_link_is_beside_that_file(tmp_path: Path, logged: LogLines) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir()
    elsewhere.mkdir()
    (state / FILE_NAME).symlink_to(elsewhere / "database")
    with opened(state) as journal:
        admit(journal, 1)
        (elsewhere / "database-wal").unlink()
        assert accepts(journal, 2)
        assert "deleted or cut off" in logged.of("journal set aside")[0]["problem"]
        shutil.copytree(state, tmp_path / "copy")
    with opened(tmp_path / "copy") as journal:
        assert [request.notification.notification_id for request in journal.pending()] == [1, 2]


@pytest.mark.parametrize("last", ["admitted", "begun", "closed", "noted"])
def test_a_log_that_is_cut_off_right_after_a_write_is_noticed(tmp_path: Path, logged: LogLines, last: str) -> None:
    """Even to what it was before that write."""
    with opened(tmp_path) as journal:
        request = admit(journal, 0)
        whole = log_of(tmp_path).stat().st_size
        match last:
            case "admitted":
                admit(journal, 1)
            case "begun":
                journal.begin_attempt(request, 1)
            case "closed":
                journal.close_requests([(request, Closed.DONE)])
            case _:
                journal.note_process(request, "one")
        assert log_of(tmp_path).stat().st_size > whole
        os.truncate(log_of(tmp_path), whole)
        for number in range(3, 6):
            assert accepts(journal, number)
        assert "deleted or cut off" in logged.of("journal set aside")[0]["problem"]
        shutil.copytree(tmp_path, tmp_path / "copy")  # as a crash would leave it
    with opened(tmp_path / "copy") as journal:
        assert {request.notification.notification_id for request in journal.pending()} >= {3, 4, 5}


def test_the_log_of_the_open_file_is_not_taken_for_that_of_a_backup(tmp_path: Path) -> None:
    with closing(Journal(tmp_path, limits=Limits(max_pending=10_000), remember=REMEMBER)) as journal:
        for number in range(1_500):
            journal.admit(verified(number))
        journal.commit()
    backup = shutil.copy(tmp_path / FILE_NAME, tmp_path / "backup")
    with closing(Journal(tmp_path, limits=Limits(max_pending=10_000), remember=REMEMBER)) as journal:
        for request in journal.pending():
            journal.close_requests([(request, Closed.DONE)])
        os.rename(backup, tmp_path / FILE_NAME)  # noqa: PTH104
        assert accepts(journal, 2_000)
    with opened(tmp_path) as journal:
        assert [request.notification.notification_id for request in journal.pending()] == [2_000]


def test_what_takes_long_and_fails_is_not_done_for_every_datagram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journalfile, "SLOW", 0.0)
    monkeypatch.setattr(journalfile, "RESTS", 1_000_000)
    state = tmp_path / "state"
    with opened(state) as journal:
        admit(journal, 1)
        take_away(state)
        state.write_text("in the way")
        with pytest.raises(JournalError, match="a directory that dmnotid may write to is expected"):
            admit(journal, 2)
        journal.rollback()
        state.unlink()
        with pytest.raises(JournalError, match="a directory that dmnotid may write to is expected"):
            admit(journal, 2)
        assert not state.exists(), "it rests"
        journal._file._again_at = float("-inf")
        assert accepts(journal, 2)


def test_the_time_of_the_last_try_is_kept_where_the_file_is_made_anew(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with opened(state) as journal:
        journal.begin_attempt(admit(journal, 1), 1)
        take_away(state)
        journal.check()
        assert list(journal.last_starts(1_000)) == ["dm.example"]
    with opened(state) as journal:
        assert list(journal.last_starts(1_000)) == ["dm.example"]


def test_a_try_that_was_begun_with_its_admission_counts_where_the_file_has_lost_it(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        _, second = requests = [journal.admit(verified(number)) for number in (1, 2)]
        for request in requests:
            journal.begin_admitted(request)
        journal.commit()
        journal.withdraw_attempt(second)
        journal._database.execute("DELETE FROM session")
        journal._file.reopen()
        journal.check()
        assert [request.attempts for request in journal.pending()] == [1, 0]


def test_what_was_begun_and_not_ended_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        _, runs, failed = (admit(journal, number) for number in range(3))
        for request, process in ((runs, "runs"), (failed, "failed")):
            journal.begin_attempt(request, 1)
            journal.note_process(request, process)
        journal.postpone(failed.tried(1), 5)
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == 3
        assert journal.left_over == ("runs",)


def test_a_clock_that_is_ahead_at_the_start_leaves_a_last_chance(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1, received_at=time.time() - 50 * 365 * 86_400)
    with opened(tmp_path) as journal:
        (request,) = journal.pending()
        assert LAST_CHANCE - 60 < request.expires_at - time.monotonic() <= LAST_CHANCE


@pytest.mark.root
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to mount a file system")
def test_a_file_system_that_is_mounted_over_the_directory(tmp_path: Path) -> None:
    """Its files may have the very inode numbers of those below, by which SQLite tells that a file is its own."""
    script = f"""
import os, signal, sys
from pathlib import Path
from dmnotid.policy.sessions import Limits
from dmnotid.journal.queue import Journal
from tests.support import verified
state = Path({str(tmp_path)!r})
mount = lambda: os.system(f"mount -t tmpfs -o size=6m,mode=700 none {{state}}") and sys.exit(77)
mount()
journal = Journal(state, limits=Limits(max_pending=1000), remember=259200)
for number in range(3):
    journal.admit(verified(number))
journal.commit()
below = journal.file.stat()
mount()
journal.check()
above = journal.file.stat()
assert above.st_dev != below.st_dev
for number in range(3, 6):
    journal.admit(verified(number))
    journal.commit()
sys.exit(0 if above.st_ino != below.st_ino or (state / "journal.sqlite3-wal").exists() else 1)
"""
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(root)])}
    command = ["unshare", "--mount", sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 1) and "mount" in ended.stderr:
        pytest.skip(ended.stderr)
    assert ended.returncode == 0, ended.stderr
