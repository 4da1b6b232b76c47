"""The log of SQLite, damaged between a crash and the next start."""

import os
import shutil
from pathlib import Path

import pytest

from dmnotid.errors import Duplicate
from dmnotid.policy.sessions import Closed
from dmnotid.service.journalfile import DAMAGED_NAME, FILE_NAME
from dmnotid.service.wal import PAGE, apply_frames, log_beside, read_frames
from tests.service.support import LogLines, verified
from tests.service.test_journalfile import accepts, admit, kept_files, log_of, opened, sql

FRAME = 24 + PAGE
HEADER = 32
COUNT = 60


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """What a crash leaves of a journal: COUNT sessions, every third of which is done, and all of it in the log."""
    state, left = tmp_path / "state", tmp_path / "left"
    with opened(state) as journal:
        for number in range(COUNT):
            request = admit(journal, number)
            if number % 3 == 0:
                journal.close_request(request, Closed.DONE)
        shutil.copytree(state, left)
    return left


def waiting(directory: Path) -> list[int]:
    with opened(directory) as journal:
        return [request.notification.notification_id for request in journal.pending()]


UNDONE = [number for number in range(COUNT) if number % 3]


def flip(log: Path, frame: int, at: int) -> None:
    octets = bytearray(log.read_bytes())
    octets[HEADER + (frame - 1) * FRAME + at] ^= 1
    log.write_bytes(octets)


def test_frames_are_those_that_sqlite_reads(crashed: Path) -> None:
    frames = read_frames(log_of(crashed))
    image = apply_frames((crashed / FILE_NAME).read_bytes(), log_of(crashed), frames)
    assert len(image) == frames[-1].pages * PAGE
    (crashed / "image").write_bytes(image)
    query = "SELECT * FROM session ORDER BY session"
    assert sql(crashed / "image", query) == sql(crashed / FILE_NAME, query)


@pytest.mark.parametrize("size", [0, 1, HEADER - 1, HEADER, HEADER + 23, HEADER + FRAME - 1])
def test_a_log_of_few_octets_has_no_frames(crashed: Path, size: int) -> None:
    os.truncate(log_of(crashed), size)
    assert [frame for frame in read_frames(log_of(crashed)) if frame.number > 1] == []
    log_of(crashed).unlink()
    assert read_frames(log_of(crashed)) == []


def test_frames_of_another_time_are_none_of_this(crashed: Path) -> None:
    octets = bytearray(log_of(crashed).read_bytes())
    octets[16] ^= 1  # the salt
    log_of(crashed).write_bytes(octets)
    assert read_frames(log_of(crashed)) == []
    octets[0] ^= 1  # the magic
    log_of(crashed).write_bytes(octets)
    assert read_frames(log_of(crashed)) == []


def test_a_log_is_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    assert log_beside(tmp_path / "link") == tmp_path.resolve() / "file-wal"


@pytest.mark.parametrize("frame", [1, 5, 20, 100])
@pytest.mark.parametrize("at", [4, 20, 24 + 2_000, 24 + 4_000])
def test_a_damaged_log_costs_next_to_nothing_and_is_told(crashed: Path, logged: LogLines, frame: int, at: int) -> None:
    flip(log_of(crashed), frame, at)
    with opened(crashed) as journal:
        assert [request.notification.notification_id for request in journal.pending()] == UNDONE
        assert [accepts(journal, number) for number in range(COUNT)] == [False] * COUNT
    (line,) = logged.of("journal set aside")
    assert (line["level"], line["rows_rescued"]) == ("error", COUNT)
    assert "transactions stand behind" in line["problem"]
    (kept,) = kept_files(crashed)
    assert log_of(crashed).exists() is False
    assert Path(f"{kept}-wal").stat().st_size > COUNT * FRAME, "nothing of it is thrown away"


def test_a_whole_log_is_no_matter(crashed: Path, logged: LogLines) -> None:
    assert waiting(crashed) == UNDONE
    assert logged.all() == []


@pytest.mark.parametrize("transactions", [1, 2, 3])
def test_an_end_that_a_power_cut_tore_is_no_damage(crashed: Path, logged: LogLines, transactions: int) -> None:
    commits = [frame.number for frame in read_frames(log_of(crashed)) if frame.pages]
    flip(log_of(crashed), commits[-transactions], 24)
    assert len(waiting(crashed)) >= len(UNDONE) - transactions
    assert logged.all() == []


def test_what_is_closed_in_either_is_closed(crashed: Path) -> None:
    """In the file that SQLite reads, and not in what its log makes of it: a page of the log was damaged."""
    with opened(crashed) as journal:
        journal.close_requests([(request, Closed.DONE) for request in journal.pending()[:2]])
    shutil.copy(crashed / FILE_NAME, crashed / DAMAGED_NAME)
    sql(crashed / FILE_NAME, "UPDATE session SET state = 'pending', closed_at = NULL WHERE session = 2")
    (crashed / FILE_NAME).rename(crashed / DAMAGED_NAME.replace(".", "-2."))
    with opened(crashed) as journal:
        assert 1 not in {request.notification.notification_id for request in journal.pending()}
        with pytest.raises(Duplicate):
            journal.admit(verified(1))
