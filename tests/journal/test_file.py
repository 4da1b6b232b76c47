"""The journal's file at its place: set aside if it is damaged, made anew if it is gone."""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dmnotid.errors import Duplicate, JournalError, Stale
from dmnotid.journal.file import DAMAGED_NAME, FILE_NAME, KEPT_DAMAGED, STATE_MODE
from dmnotid.policy.sessions import Closed
from tests.journal.journals import (
    DONE,
    LOOPBACK,
    NO_TEXT,
    NOW,
    REMEMBER,
    ROOMY,
    SESSIONS,
    YEARS,
    accepts,
    admit,
    admit_done,
    copy_of,
    fill,
    ids,
    kept_files,
    open_journal,
    refusal,
    sql,
    times,
)
from tests.support import OTHER_ID, SERVER_ID, LogLines, as_root, verified, without_privileges

PENDING = [number for number in range(SESSIONS) if number not in DONE]


# A file that is damaged at the start


@pytest.mark.parametrize("text", ["not a database at all\n" * 500, "SQLite format 3\0" + "\0" * 4_080])
def test_file_that_is_not_a_database_is_set_aside(tmp_path: Path, logged: LogLines, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with open_journal(tmp_path) as journal:
        assert accepts(journal, 1)
    (kept,) = kept_files(tmp_path)
    assert kept.read_text() == text
    (line,) = logged.of("journal set aside")
    assert (line["level"], line["kept_as"], line["rows_rescued"]) == ("error", str(kept), 0)
    assert str(tmp_path / FILE_NAME) in line["problem"]
    assert "cannot read the journal" in line["reading_stopped"]


def test_database_of_another_program_is_set_aside_whole(tmp_path: Path) -> None:
    sql(tmp_path, "CREATE TABLE session (elsewhere)")
    with open_journal(tmp_path) as journal:
        assert accepts(journal, 1)
    (kept,) = kept_files(tmp_path)
    kept.rename(tmp_path / FILE_NAME)
    assert sql(tmp_path, "SELECT sql FROM sqlite_schema") == [("CREATE TABLE session (elsewhere)",)]


def damage(file: Path, dice: random.Random) -> None:
    """Write random octets over a file: a few here and there, a whole stretch, or its end cut off."""
    octets = bytearray(file.read_bytes())
    match dice.randrange(4):
        case 0:
            for _ in range(dice.choice([1, 10, 1_000])):
                octets[dice.randrange(len(octets))] = dice.randrange(256)
        case 1:
            at = dice.randrange(0, len(octets), 512)
            octets[at : at + 4_096] = dice.randbytes(len(octets[at : at + 4_096]))
        case 2:
            at, length = dice.randrange(len(octets)), dice.randrange(1, 40_000)
            octets[at : at + length] = bytes(len(octets[at : at + length]))
        case _:
            del octets[dice.randrange(len(octets)) :]
    file.write_bytes(octets)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("good")
    with open_journal(directory, limits=ROOMY) as journal:
        fill(journal)
    return (directory / FILE_NAME).read_bytes()


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.slow) for first in range(10, 200, 10))])
def test_damaged_file_runs_nothing_twice_and_accepts_repeats(
    tmp_path: Path, good: bytes, first: int, logged: LogLines
) -> None:
    for seed in range(first, first + 10):
        directory = tmp_path / str(seed)
        directory.mkdir()
        (directory / FILE_NAME).write_bytes(good)
        damage(directory / FILE_NAME, random.Random(seed))  # noqa: S311
        with open_journal(directory, limits=ROOMY) as journal:
            left = set(ids(journal))
            accepted = {number for number in range(SESSIONS) if accepts(journal, number)}
            assert not accepted & left, f"a pending notification is accepted again with seed {seed}"
            assert accepts(journal, 1_000), f"seed {seed}"
            listed = {row.session for row in journal.rows()}
            assert listed >= {row.session for row in journal.last_sessions().values()}, f"seed {seed}"
            assert journal.times.last_accepted[SERVER_ID] > NOW - YEARS, f"seed {seed}"
        with open_journal(directory, limits=ROOMY) as journal:
            missing = set(PENDING) - set(ids(journal))
        assert not missing, f"neither in the file nor accepted at its repeat with seed {seed}"
    problems = [line for line in logged.all() if line["level"] == "error"]
    events = ("journal set aside", "row set aside", "notifications forgotten")
    assert all(line["event"] in events for line in problems), problems


@pytest.mark.parametrize("damage", ["state = 'dome', closed_at = 0.0", "seal = NULL", "seal = seal + 1"])
def test_row_that_is_not_as_written_keeps_no_repeat_from_being_accepted(
    tmp_path: Path, logged: LogLines, damage: str
) -> None:
    """Octets in the header of a row give each column the value of another one, and the index still finds the row."""
    with open_journal(tmp_path) as journal:
        for number in (1, 2, 3):
            admit_done(journal, number, received_at=time.time())
        admit(journal, 4, received_at=time.time())
    sql(tmp_path, f"UPDATE session SET {damage} WHERE session = 2")  # noqa: S608
    with open_journal(tmp_path) as journal:
        assert accepts(journal, 2), "at the second time, after the file was set aside"
        assert [accepts(journal, number) for number in (1, 3, 4)] == [False] * 3
        assert ids(journal) == [4, 2]
    (line,) = logged.of("journal set aside")
    assert "session 2: its row in the journal is not as it was written" in line["problem"]
    assert (line["rows_rescued"], line["rows_lost"]) == (3, 1)
    assert len(logged.of("notifications forgotten")) == 1


@pytest.mark.parametrize("at", [0, 16, 18, 19, 28, 44, 56, 100, 103, 105, 108])
def test_damaged_first_page_keeps_no_journal_from_opening(
    tmp_path: Path, good: bytes, logged: LogLines, at: int
) -> None:
    (tmp_path / FILE_NAME).write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert accepts(journal, 1_000)
    assert len(kept_files(tmp_path)) == len(logged.of("journal set aside"))


def leaves(octets: bytes) -> list[int]:
    """Return the offsets of the pages that hold the rows of the table."""
    return [at for at in range(4_096, len(octets), 4_096) if octets[at] == 13 and b"192.0.2.7" in octets[at:][:4_096]]


@pytest.mark.parametrize("which", [0, -1, slice(2, 4)])
def test_rows_before_and_after_the_damage_are_rescued(
    tmp_path: Path, logged: LogLines, good: bytes, which: int | slice
) -> None:
    octets, pages = bytearray(good), leaves(good)
    damaged = pages[which] if isinstance(which, slice) else [pages[which]]
    for at in damaged:
        octets[at : at + 4_096] = b"\xff" * 4_096
    (tmp_path / FILE_NAME).write_bytes(octets)
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert len(list(journal.rows())) == logged.of("journal set aside")[0]["rows_rescued"]
    (line,) = logged.of("journal set aside")
    # The reader is one row ahead, so each end may cost a readable row.
    rows = SESSIONS / len(pages)
    assert line["rows_rescued"] >= SESSIONS - 2 * rows * len(damaged) - 2
    assert "malformed" in line["reading_stopped"]


def test_file_that_an_operator_recovered_is_copied_though_its_numbers_are_taken(
    tmp_path: Path, logged: LogLines, good: bytes
) -> None:
    """As docs/journal.md shows it: the journal has gone on since its damaged file was set aside."""
    pages = leaves(good)
    first, last = pages[1], pages[-1] + 4_096
    (tmp_path / FILE_NAME).write_bytes(good[:first] + b"\xff" * (last - first) + good[last:])
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert logged.of("journal set aside")[0]["rows_rescued"] < SESSIONS - 10
        new = [number for number in range(1_000, 1_000 + SESSIONS) if accepts(journal, number)]
    (tmp_path / DAMAGED_NAME).write_bytes(good)
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert sorted(row.notification_id for row in journal.rows()) == [*range(SESSIONS), *new]
        assert set(ids(journal)) == {*PENDING, *new}


def test_rescue_leaves_nothing_open_that_was_closed(tmp_path: Path, good: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(good)
    sql(tmp_path, "PRAGMA user_version = 77")
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert ids(journal) == PENDING
        assert [accepts(journal, number) for number in range(SESSIONS)] == [False] * SESSIONS


@pytest.mark.parametrize("closed", [False, True])
def test_row_that_the_index_does_not_find_is_damage(tmp_path: Path, logged: LogLines, *, closed: bool) -> None:
    """A repeat of it would be taken for new."""
    with open_journal(tmp_path) as journal:
        for number in range(3):
            (admit_done if closed else admit)(journal, number)
    ((page,),) = sql(tmp_path, "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_session_1'")
    file = tmp_path / FILE_NAME
    octets = bytearray(file.read_bytes())
    # "Dm.example" is in the wrong place of the order.
    octets[octets.rindex(b"dm.example", (page - 1) * 4_096, page * 4_096)] ^= 0x20
    file.write_bytes(octets)
    with open_journal(tmp_path) as journal:
        assert ids(journal) == ([] if closed else [0, 1, 2])
        assert [accepts(journal, number) for number in range(3)] == [False] * 3
    assert "the index does not find session" in logged.of("journal set aside")[0]["problem"]


@pytest.mark.parametrize("column", ["server_id", "source", "attempts", "package", "closed_at"])
def test_text_that_is_not_utf8_costs_its_row_alone(tmp_path: Path, logged: LogLines, column: str) -> None:
    with open_journal(tmp_path) as journal:
        for number in range(3):
            admit(journal, number)
    sql(tmp_path, f"UPDATE session SET {column} = {NO_TEXT} WHERE session = 2")  # noqa: S608
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with open_journal(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [1, 3]
    assert logged.of("journal set aside")[0]["rows_lost"] == 1


def test_file_that_an_earlier_start_set_aside_is_copied_by_the_next(tmp_path: Path, logged: LogLines) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with open_journal(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [1]
        assert not accepts(journal, 1)
    assert len(kept_files(tmp_path)) == len(logged.of("journal set aside")) == 1
    assert not (tmp_path / DAMAGED_NAME).exists()


def test_rescue_that_fails_for_a_passing_reason_is_repeated_by_the_next_start(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
    (tmp_path / FILE_NAME).rename(tmp_path / "good")
    # It can't be opened, as without a free descriptor.
    (tmp_path / DAMAGED_NAME).mkdir()
    with pytest.raises(JournalError, match="unable to open database file"):
        open_journal(tmp_path)
    (tmp_path / DAMAGED_NAME).rmdir()
    (tmp_path / "good").rename(tmp_path / DAMAGED_NAME)
    with open_journal(tmp_path) as journal:
        assert len(journal.pending()) == 1


def test_damaged_file_beside_one_that_was_set_aside_before_is_an_error(tmp_path: Path) -> None:
    (tmp_path / DAMAGED_NAME).write_text("damaged before")
    (tmp_path / FILE_NAME).write_text("junk" * 1_000)
    with pytest.raises(JournalError, match=f"{DAMAGED_NAME} exists from before: move it away"):
        open_journal(tmp_path)
    (tmp_path / DAMAGED_NAME).unlink()
    with open_journal(tmp_path) as journal:
        assert accepts(journal, 1)


@as_root
def test_damaged_file_is_rescued_in_a_directory_that_cannot_be_listed(tmp_path: Path, logged: LogLines) -> None:
    state = tmp_path / "state"
    with open_journal(state) as journal:
        for number in range(3):
            admit(journal, number)
    sql(state, "PRAGMA user_version = 77")
    for path in (state / FILE_NAME, state):
        os.chown(path, 65_534, 65_534)
    state.chmod(0o300)
    with without_privileges(state), open_journal(state) as journal:
        assert len(journal.pending()) == 3
    assert logged.of("journal set aside")[0]["rows_rescued"] == 3


def test_only_the_last_damaged_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "journal-corrupt-20200101T000000Z.sqlite3").symlink_to("nowhere")
    for number in range(KEPT_DAMAGED + 3):
        (tmp_path / FILE_NAME).write_text(f"damaged {number}")
        with open_journal(tmp_path):
            pass
    texts = [file.read_text() for file in kept_files(tmp_path)]
    assert texts == [f"damaged {number}" for number in range(3, KEPT_DAMAGED + 3)]


# A file that is damaged while it is in use


def fill_file(directory: Path, total: int) -> Path:
    """Write a journal of so many pending sessions, and return its file. A thousand are more than SQLite caches."""
    with open_journal(directory, limits=ROOMY) as journal:
        for number in range(total):
            journal.admit(verified(number, unknown=[(9, bytes(1_000))]))
        journal.commit()
    return directory / FILE_NAME


def overwrite(file: Path) -> None:
    """Overwrite every page but the first."""
    with file.open("r+b") as stream:
        stream.seek(4_096)
        stream.write(b"\xff" * (file.stat().st_size - 4_096))


def test_damage_under_an_open_journal_loses_no_pending_session(tmp_path: Path, logged: LogLines) -> None:
    total = 1_000
    file = fill_file(tmp_path, total)
    with open_journal(tmp_path, limits=ROOMY) as journal:
        overwrite(file)
        done, tried, *_ = journal.pending()
        journal.begin(tried, 5, LOOPBACK)
        journal.close([(done, Closed.DONE, "")])
        for number in range(2_000, 2_010):
            assert accepts(journal, number)
        assert len(logged.of("journal set aside")) == 1
        assert len(journal.pending()) == total - 1 + 10
    with open_journal(copy_of(tmp_path), limits=ROOMY) as journal:
        found = {request.session: request for request in journal.pending()}
        assert len(found) == total - 1 + 10
        assert done.session not in found
        assert found[tried.session].attempts == 5


def test_admission_in_a_file_that_turns_out_damaged_is_not_accepted(tmp_path: Path) -> None:
    total = 1_000
    file = fill_file(tmp_path, total)
    with open_journal(tmp_path, limits=ROOMY) as journal:
        newest = journal.times.servers[SERVER_ID].newest
        journal.admit(verified(5_000, sent_at=2_000_000_000))
        overwrite(file)

        def admit_all() -> None:
            for number in range(total, 2 * total):
                journal.admit(verified(number))

        with pytest.raises(JournalError):
            admit_all()
        journal.commit()
        assert journal.times.servers[SERVER_ID].newest == newest
        assert ids(journal) == list(range(total))
        assert accepts(journal, 5_000)
        assert not accepts(journal, 0, unknown=[(9, bytes(1_000))])


# Times of the servers


@pytest.mark.parametrize("lost", ["UPDATE session SET seal = seal + 1 WHERE session = 3", "DROP TABLE server"])
def test_rescue_that_lost_rows_forgets_each_server_up_to_its_newest_time(
    tmp_path: Path, logged: LogLines, lost: str
) -> None:
    """A repeat of a lost one looks like a new one, so everything up to then is stale unless it is remembered."""
    with open_journal(tmp_path) as journal:
        for number, server_id in ((1, SERVER_ID), (2, OTHER_ID), (3, SERVER_ID), (4, SERVER_ID)):
            admit_done(journal, number, server_id=server_id, sent_at=NOW + number)
    sql(tmp_path, lost)
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    for _ in range(2):
        with open_journal(tmp_path) as journal:
            assert journal.times.servers == {SERVER_ID: times(NOW + 4, NOW + 4), OTHER_ID: times(NOW + 2, NOW + 2)}
            assert journal.times.floor == NOW
            assert refusal(journal, 1, sent_at=NOW + 1) is Duplicate
            assert refusal(journal, 9, sent_at=NOW + 3) is Stale
    (line,) = logged.of("notifications forgotten")
    assert (line["level"], line["servers"]) == ("error", 2)


def test_rescue_without_a_loss_keeps_the_times(tmp_path: Path, logged: LogLines) -> None:
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1, sent_at=NOW)
        admit_done(journal, 1, sent_at=NOW + REMEMBER + 1, received_at=60.0, clock_believed=False)
        known, floor = dict(journal.times.servers), journal.times.floor
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with open_journal(tmp_path) as journal:
        assert journal.times.servers == known == {SERVER_ID: times(NOW + REMEMBER + 1, NOW)}
        assert journal.times.floor == floor == NOW
    assert logged.of("notifications forgotten") == []


@pytest.mark.parametrize("table", ["server", "clock"])
def test_table_of_times_that_is_lost_is_derived_from_sealed_rows(tmp_path: Path, table: str) -> None:
    """A damaged time must set neither a newest time nor the floor."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1, sent_at=NOW - 50, received_at=NOW)
        admit_done(journal, 2, sent_at=NOW - 40, received_at=NOW)
        admit_done(journal, 3, sent_at=NOW, received_at=NOW + 7, clock_believed=False)
    sql(tmp_path, f"DROP TABLE {table}")
    sql(tmp_path, "UPDATE session SET sent_at = ? WHERE session = 2", 4_000_000_000)
    with open_journal(tmp_path) as journal:
        assert journal.times.servers == {SERVER_ID: times(NOW, NOW)}
        assert journal.times.floor == NOW - 50


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE server SET newest = 1 << 40",
        "UPDATE server SET newest = -5",
        "UPDATE server SET forgotten = 'junk'",
        f"UPDATE server SET server_id = {NO_TEXT}",  # noqa: S608
        "UPDATE clock SET floor = 1 << 40",
        "UPDATE clock SET floor = 'junk'",
    ],
)
def test_time_that_is_not_as_written_is_derived_from_sealed_rows(tmp_path: Path, logged: LogLines, damage: str) -> None:
    """The times of the other server are as they were written, and are kept though it has no row any more."""
    with open_journal(tmp_path) as journal:
        for server_id in (OTHER_ID, SERVER_ID):
            admit_done(journal, 1, server_id=server_id, sent_at=NOW + 5)
    sql(tmp_path, "DELETE FROM session WHERE server_id = ?", OTHER_ID)
    sql(tmp_path, f"{damage} WHERE server_id = '{SERVER_ID}'" if "server" in damage else damage)
    with open_journal(tmp_path) as journal:
        assert journal.times.servers == dict.fromkeys((SERVER_ID, OTHER_ID), times(NOW + 5, NOW + 5))
        assert journal.times.floor == NOW
        assert refusal(journal, 1, sent_at=NOW + 5) is Duplicate
        assert refusal(journal, 2, sent_at=NOW + 5) is Stale
    assert "is not as it was written" in logged.of("journal set aside")[0]["problem"]
    assert logged.of("journal set aside")[0]["times_lost"] is True
    assert len(logged.of("notifications forgotten")) == 1


# A file that is gone while it is in use


def delete_directory(directory: Path) -> None:
    shutil.rmtree(directory)


def delete_files(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def delete_database(directory: Path) -> None:
    (directory / FILE_NAME).unlink()


def move_away(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


@pytest.mark.parametrize("take", [delete_directory, delete_files, delete_database, move_away])
def test_deleted_file_is_made_anew_with_every_open_session(
    tmp_path: Path, logged: LogLines, take: Callable[[Path], None]
) -> None:
    state = tmp_path / "state"
    with open_journal(state, limits=ROOMY) as journal:
        fill(journal)
        newest, floor = journal.times.servers[SERVER_ID].newest, journal.times.floor
        take(state)
        assert accepts(journal, 500)
        assert [accepts(journal, number) for number in PENDING] == [False] * len(PENDING)
        assert refusal(journal, min(DONE), sent_at=newest) is Stale, "closed ones are forgotten"
        assert accepts(journal, min(DONE)), "their ids are new"
        assert journal.times.servers[SERVER_ID].forgotten == newest
        assert floor is not None
        assert journal.times.floor is not None
        assert journal.times.floor >= floor
        (line,) = logged.of("journal recreated")
        assert line["level"] == "error"
        assert "deleted" in line["problem"]
    assert state.stat().st_mode & 0o777 == STATE_MODE
    with open_journal(state, limits=ROOMY) as journal:
        assert ids(journal) == [*PENDING, 500, min(DONE)]
    assert logged.of("journal set aside") == []


def test_try_and_end_are_written_into_the_new_file(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_journal(state) as journal:
        first, second = admit(journal, 1), admit(journal, 2)
        shutil.rmtree(state)
        journal.begin(first, 3, LOOPBACK)
        shutil.rmtree(state)
        journal.close([(second, Closed.DONE, "")])
    with open_journal(state) as journal:
        assert [(request.session, request.attempts) for request in journal.pending()] == [(first.session, 3)]
        assert not accepts(journal, 2)


def test_duplicate_is_refused_by_a_file_that_was_made_anew(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_journal(state) as journal:
        admit(journal, 1)
        shutil.rmtree(state)
        assert refusal(journal, 1) is Duplicate


def test_batch_begun_before_the_deletion_is_kept_by_the_next_write(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_journal(state) as journal:
        journal.admit(verified(1))
        shutil.rmtree(state)
        journal.admit(verified(2))
        journal.commit()
        assert accepts(journal, 3)
    with open_journal(state) as journal:
        assert ids(journal) == [1, 2, 3]


def test_place_that_cannot_be_made_is_tried_again_by_each_write(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_journal(state) as journal:
        request = admit(journal, 1)
        shutil.rmtree(state)
        state.write_text("in the way")
        for _ in range(3):
            with pytest.raises(JournalError, match="a directory that dmnotid can write to is expected"):
                admit(journal, 2)
            with pytest.raises(JournalError):
                journal.close([(request, Closed.DONE, "")])
        state.unlink()
        assert accepts(journal, 2, sent_at=NOW + 1)
        journal.close([(request, Closed.DONE, "")])
    with open_journal(state) as journal:
        assert ids(journal) == [2]


def test_file_put_in_its_place_is_set_aside_and_its_rows_are_taken_up(tmp_path: Path, logged: LogLines) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    with open_journal(other) as journal:
        for number in (50, 51):
            admit(journal, number)
    with open_journal(state) as journal:
        admit(journal, 1)
        state.rename(tmp_path / "beneath")
        other.rename(state)
        assert accepts(journal, 2, sent_at=NOW + 1)
        assert not accepts(journal, 51)
        assert "another file was put in its place" in logged.of("journal set aside")[0]["problem"]
    with open_journal(state) as journal:
        assert set(ids(journal)) == {1, 2, 50, 51}
