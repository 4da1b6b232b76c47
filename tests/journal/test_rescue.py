"""Rows out of damaged files: random octets anywhere, and what they must not cost."""

import random
import time
from contextlib import closing
from pathlib import Path

import pytest

from dmnotid.errors import JournalError
from dmnotid.journal.database import MAX_SESSION
from dmnotid.journal.file import DAMAGED_NAME, FILE_NAME, KEPT_DAMAGED
from dmnotid.journal.queue import Journal
from dmnotid.policy.sessions import Closed, Limits
from tests.journal.test_file import (
    LIMITS,
    REMEMBER,
    SESSIONS,
    accepts,
    admit,
    checkpoint,
    fill,
    kept_files,
    opened,
    sql,
)
from tests.support import LogLines, verified

VARIANTS = 100


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
    with file.open("r+b") as open_file:  # the same file, in place
        open_file.write(octets)
        open_file.truncate()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("good")
    with opened(directory) as journal:
        fill(journal)
    return (directory / FILE_NAME).read_bytes()


@pytest.mark.parametrize("seed", range(VARIANTS))
def test_a_damaged_file_keeps_no_journal_from_opening(tmp_path: Path, good: bytes, seed: int, logged: LogLines) -> None:
    (tmp_path / FILE_NAME).write_bytes(good)
    damage(tmp_path / FILE_NAME, random.Random(seed))  # noqa: S311
    with opened(tmp_path) as journal:
        left = {request.notification.notification_id for request in journal.pending()}
        taken = {number for number in range(SESSIONS) if accepts(journal, number)}
        assert not taken & left, "what waits is not taken again"
        assert accepts(journal, 1_000)
    with opened(tmp_path) as journal:
        waiting = {request.notification.notification_id for request in journal.pending()}
        undone = {number for number in range(SESSIONS) if number % 3}
        assert undone <= waiting, "every session that was not done waits, from the file or from its repeat"
    problems = [line for line in logged.all() if line["level"] == "error"]
    assert all(line["event"] in ("journal set aside", "row set aside") for line in problems), problems


def test_most_of_a_damaged_file_is_rescued(tmp_path: Path, good: bytes, logged: LogLines) -> None:
    for seed in range(VARIANTS):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / FILE_NAME).write_bytes(good)
        damage(tmp_path / str(seed) / FILE_NAME, random.Random(seed))  # noqa: S311
        with opened(tmp_path / str(seed)) as journal:
            journal.pending()
    rescued = [line["rows_rescued"] for line in logged.of("journal set aside")]
    assert len(rescued) > VARIANTS / 4, "most damage is noticed"
    assert sum(count > SESSIONS / 2 for count in rescued) > len(rescued) / 4, "and much of it is local"


@pytest.mark.parametrize("seed", range(VARIANTS))
def test_damage_under_an_open_journal_loses_no_session_that_waits(tmp_path: Path, seed: int, logged: LogLines) -> None:
    with opened(tmp_path) as journal:
        fill(journal)
        checkpoint(journal)
        damage(tmp_path / FILE_NAME, random.Random(seed))  # noqa: S311
        journal._database.execute("PRAGMA shrink_memory")  # what is cached would hide it
        waiting = dict(journal._open)
        assert len(waiting) == SESSIONS - len(range(0, SESSIONS, 3))
        done, tried, *_ = waiting.values()
        journal.begin_attempt(tried, 5)
        journal.close_requests([(done, Closed.DONE)])
        for number in range(2_000, 2_010):
            assert accepts(journal, number)
        assert len(journal._open) == len(waiting) - 1 + 10
        if not logged.of("journal set aside"):
            return  # nothing of what was read shows it
    with opened(tmp_path) as journal:
        found = {request.session: request for request in journal.pending()}
        assert waiting.keys() - {done.session} <= found.keys()
        assert found[tried.session].attempts == 5


def test_what_was_not_committed_is_gone_with_a_damaged_file_and_said(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for number in range(SESSIONS):
            admit(journal, number, unknown=[(9, bytes(600))])
        checkpoint(journal)
        newest = journal.newest_authenticated
        journal.admit(verified(100, sent_at=time.time() + 500))
        (tmp_path / FILE_NAME).write_bytes(b"\xff" * 100_000)
        journal._database.execute("PRAGMA shrink_memory")

        def admit_more() -> None:
            for number in range(SESSIONS, 2 * SESSIONS):
                journal.admit(verified(number, unknown=[(9, bytes(3_000))]))
            journal.commit()

        with pytest.raises(JournalError):
            admit_more()
        journal.rollback()
        assert journal.newest_authenticated == newest
        assert accepts(journal, 100)
        assert not accepts(journal, 0), "every open session is in the new file"


def test_a_damaged_time_sets_no_clock(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
        request = admit(journal, 2)
    sql(tmp_path / FILE_NAME, "UPDATE session SET sent_at = 4000000000 WHERE session = 1")
    with opened(tmp_path) as journal:
        assert journal.newest_authenticated == request.notification.sent_at


def test_an_index_that_has_lost_a_row_is_found_out(tmp_path: Path, logged: LogLines) -> None:
    """The row isn't found by its id any more: a repeat of it would be taken for new."""
    with opened(tmp_path) as journal:
        for number in range(3):
            admit(journal, number)
    file = tmp_path / FILE_NAME
    ((page,),) = sql(file, "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_session_1'")
    ((size,),) = sql(file, "PRAGMA page_size")
    octets = bytearray(file.read_bytes())
    at = octets.rindex(b"dm.example", (page - 1) * size, page * size)
    octets[at] ^= 0x20  # "Dm.example" stands in the wrong place of the order
    file.write_bytes(octets)
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == 3
        assert [accepts(journal, number) for number in range(3)] == [False] * 3
    assert "the index doesn't find session" in logged.of("journal set aside")[0]["problem"]


@pytest.mark.parametrize("column", ["server_id", "source", "received_at", "attempts", "package", "closed_at"])
def test_text_that_is_none_keeps_no_other_row_from_being_rescued(tmp_path: Path, logged: LogLines, column: str) -> None:
    with opened(tmp_path) as journal:
        for number in range(3):
            admit(journal, number)
    sql(tmp_path / FILE_NAME, f"UPDATE session SET {column} = CAST(x'ff61' AS TEXT) WHERE session = 2")  # noqa: S608
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with opened(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [1, 3]
    assert logged.of("journal set aside")[0]["rows_lost"] == 1


def test_a_rescue_keeps_what_is_written_of_processes(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        for number in range(2):
            request = admit(journal, number)
            journal.begin_attempt(request, 1)
            journal.note_process(request, f"process {number}")
    sql(tmp_path / FILE_NAME, "UPDATE session SET process = CAST(x'ff61' AS TEXT) WHERE session = 2")
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == 2
        assert journal.left_over == ("process 0",)


def fill_many(directory: Path) -> list[int]:
    """Admit 2,000 notifications; where the pages of their table begin in the file, in the order of the rows."""
    with closing(Journal(directory, limits=Limits(max_pending=10_000), remember=REMEMBER)) as journal:
        for number in range(2_000):
            journal.admit(verified(number))
        journal.commit()
    octets = (directory / FILE_NAME).read_bytes()
    return [at for at in range(4_096, len(octets), 4_096) if octets[at] == 13 and b"dm.example" in octets[at:][:4_096]]


def overwrite(file: Path, pages: list[int]) -> None:
    octets = bytearray(file.read_bytes())
    for at in pages:
        octets[at : at + 4_096] = b"\xff" * 4_096
    file.write_bytes(octets)


def test_a_rescue_goes_around_damaged_pages(tmp_path: Path, logged: LogLines) -> None:
    leaves = fill_many(tmp_path)
    overwrite(tmp_path / FILE_NAME, [leaves[3], leaves[len(leaves) // 2], leaves[-4]])
    with closing(Journal(tmp_path, limits=Limits(max_pending=10_000), remember=REMEMBER)) as journal:
        assert len(journal.pending()) > 1_900
    (line,) = logged.of("journal set aside")
    assert (line["rows_rescued"] > 1_900, line["places_unreadable"]) == (True, 3)


@pytest.mark.parametrize("seed", range(5))
def test_a_rescue_jumps_over_no_page_between_two_damaged_ones(tmp_path: Path, logged: LogLines, seed: int) -> None:
    dice, leaves = random.Random(seed), fill_many(tmp_path)  # noqa: S311
    damaged = [at for at in leaves if dice.random() < 0.6]
    overwrite(tmp_path / FILE_NAME, damaged)
    with opened(tmp_path) as journal:
        journal.pending()
    rows = 2_000 / len(leaves)
    (line,) = logged.of("journal set aside")
    assert line["rows_rescued"] > 0.95 * rows * (len(leaves) - len(damaged) - 2)
    assert len(damaged) / 5 < line["places_unreadable"] <= len(damaged)


@pytest.mark.parametrize("at", [0, 16, 18, 19, 20, 28, 44, 56, 100, 103, 105, 108, 4_000, 4_090])
def test_a_damaged_first_page_costs_no_session(tmp_path: Path, good: bytes, at: int) -> None:
    """It is the same in every journal, so that it can be replaced."""
    (tmp_path / FILE_NAME).write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
    with opened(tmp_path) as journal:
        waiting = {request.notification.notification_id for request in journal.pending()}
        assert waiting >= {number for number in range(SESSIONS) if number % 3}
        assert accepts(journal, 1_000)


def test_text_in_the_schema_that_is_none_keeps_no_start_from_succeeding(tmp_path: Path, good: bytes) -> None:
    at = good.index(b"notification_id", 0, 4_096)
    (tmp_path / FILE_NAME).write_bytes(good[:at] + b"\x8a" + good[at + 1 :])
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == SESSIONS - len(range(0, SESSIONS, 3))


def test_a_default_that_is_damaged_in_the_schema_is_given_to_no_session(tmp_path: Path, good: bytes) -> None:
    at = good.index(b"DEFAULT 'pending'", 0, 4_096)
    (tmp_path / FILE_NAME).write_bytes(good[:at] + b"DEFAULT 'p\x5ending'" + good[at + 17 :])
    with opened(tmp_path) as journal:
        assert accepts(journal, 1_000)
    with opened(tmp_path) as journal:
        assert journal.pending()[-1].notification.notification_id == 1_000


def test_a_rescue_that_fails_for_a_passing_reason_is_done_by_the_next_start(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
    (tmp_path / FILE_NAME).rename(tmp_path / "good")
    (tmp_path / DAMAGED_NAME).mkdir()  # it can't be opened, as without a free descriptor
    with pytest.raises(JournalError, match="unable to open database file"):
        Journal(tmp_path, limits=LIMITS, remember=REMEMBER)
    (tmp_path / DAMAGED_NAME).rmdir()
    (tmp_path / "good").rename(tmp_path / DAMAGED_NAME)
    with opened(tmp_path) as journal:
        assert len(journal.pending()) == 1


def test_two_files_that_were_set_aside_are_both_taken_over(tmp_path: Path) -> None:
    with opened(tmp_path) as journal:
        admit(journal, 1)
    (tmp_path / FILE_NAME).rename(tmp_path / DAMAGED_NAME)
    (tmp_path / FILE_NAME).write_text("junk" * 1_000)
    with opened(tmp_path) as journal:
        assert [request.notification.notification_id for request in journal.pending()] == [1]
    assert len(kept_files(tmp_path)) == 2


def test_a_link_that_leads_nowhere_among_the_kept_files(tmp_path: Path) -> None:
    (tmp_path / "journal-corrupt-20200101T000000Z.sqlite3").symlink_to("nowhere")
    for _ in range(KEPT_DAMAGED):
        (tmp_path / FILE_NAME).write_text("junk" * 1_000)
        with opened(tmp_path) as journal:
            assert journal.pending() == []
    assert len([file for file in kept_files(tmp_path) if not file.is_symlink()]) >= KEPT_DAMAGED - 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sqlite_sequence SET seq = 9223372036854775807",
        "UPDATE sqlite_sequence SET seq = 9007199254740991",
        "UPDATE session SET session = 9000000000000000000",
    ],
)
def test_session_numbers_that_have_come_to_an_end(tmp_path: Path, change: str) -> None:
    """SQLite would say that the disk is full, for ever."""
    with opened(tmp_path) as journal:
        admit(journal, 1)
    sql(tmp_path / FILE_NAME, change)
    with opened(tmp_path) as journal:
        assert accepts(journal, 2)
        assert all(request.session < 1_000 for request in journal.pending())
    with opened(tmp_path) as journal:
        assert not accepts(journal, 2)


def test_a_row_whose_number_is_too_high_gets_another(tmp_path: Path, logged: LogLines) -> None:
    """Else the file that it is rescued into would be set aside at each start."""
    with opened(tmp_path) as journal:
        admit(journal, 1)
        admit(journal, 2)
    high = MAX_SESSION // 2 + 5
    sql(tmp_path / FILE_NAME, f"UPDATE session SET session = {high} WHERE notification_id = 2")  # noqa: S608
    for _ in range(3):
        with opened(tmp_path) as journal:
            assert sorted(it.notification.notification_id for it in journal.pending()) == [1, 2]
    assert len(logged.of("journal set aside")) == 1


def test_a_row_whose_number_is_that_of_another_gets_another(tmp_path: Path) -> None:
    """As where two files were set aside, and the numbers of one are damaged."""
    for number, name in ((1, DAMAGED_NAME), (2, FILE_NAME)):
        with opened(tmp_path / str(number)) as journal:
            admit(journal, number)
        (tmp_path / str(number) / FILE_NAME).rename(tmp_path / name)
    with opened(tmp_path) as journal:
        assert sorted(it.notification.notification_id for it in journal.pending()) == [1, 2]
