"""The journal of a daemon that does not run, read from a copy."""

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dmnotid.errors import JournalDamaged, JournalError
from dmnotid.journal.database import SCHEMA_VERSION
from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.reading import read_copy
from dmnotid.policy.sessions import Closed
from tests.journal.journals import LOOPBACK, NOW, admit, admit_done, another_process, copy_of, open_journal, sql
from tests.support import OTHER_ID, SERVER_ID, as_root, without_privileges


def content(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "killed"])
def test_copy_has_what_was_committed_and_the_file_stays_as_it_was(tmp_path: Path, *, stopped: bool) -> None:
    state = tmp_path / "state"
    with open_journal(state) as journal:
        failed = admit(journal, 1, received_at=NOW)
        journal.begin(failed, 1, LOOPBACK)
        journal.close([(failed, Closed.FAILED, "exit 3")])
        admit(journal, 2, received_at=NOW + 5)
        admit_done(journal, 1, server_id=OTHER_ID, received_at=NOW + 9)
        expected = (
            list(journal.rows()),
            dict(journal.last_sessions()),
            dict(journal.times.last_accepted),
            journal.extent(),
        )
        killed = copy_of(state)
    directory = state if stopped else killed
    before = content(directory)
    assert (f"{FILE_NAME}-wal" in before) is not stopped
    with read_copy(directory) as copy:
        assert (list(copy.rows()), dict(copy.last_sessions()), copy.last_accepted, copy.extent()) == expected
        assert copy.extent()[1] == NOW
        assert copy.octets == sum(len(octets) for octets, _ in before.values())
        assert copy.written_at == pytest.approx(max(changed for _, changed in before.values()) / 1e9, abs=1e-3)
    assert content(directory) == before


def test_reader_of_a_copy_keeps_no_daemon_from_starting(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal)
    with read_copy(tmp_path) as copy, another_process(tmp_path, "journal.probe()"):
        assert copy.extent()[0] == 1


def test_copy_is_private_and_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_journal(tmp_path / "state"):
        pass
    with read_copy(tmp_path / "state"):
        (place,) = tmp_path.glob("dmnotid-*")
        assert place.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.glob("dmnotid-*")) == []


def test_file_of_an_older_schema_is_read_and_not_converted(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1, received_at=NOW)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        database.executescript("""
            ALTER TABLE session DROP COLUMN outcome; ALTER TABLE session DROP COLUMN connection;
            ALTER TABLE session DROP COLUMN interface; ALTER TABLE server DROP COLUMN last_accepted;
            PRAGMA user_version = 3; PRAGMA application_id = 0x444D4E03;
        """)
    before = content(tmp_path)
    with read_copy(tmp_path) as copy:
        assert [row.state for row in copy.rows()] == ["done"]
        assert copy.last_accepted == {SERVER_ID: NOW}
    assert content(tmp_path) == before


def link_elsewhere(file: Path) -> None:
    file.rename(file.with_name("other"))
    file.symlink_to("other")


def set_version(file: Path) -> None:
    sql(file.parent, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


@pytest.mark.parametrize(
    ("damage", "error", "problem"),
    [
        (Path.unlink, JournalError, "there is no journal"),
        (lambda file: shutil.rmtree(file.parent), JournalError, "there is no journal"),
        (link_elsewhere, JournalError, "a regular file is expected"),
        (lambda file: file.write_text("junk" * 2_000), JournalDamaged, "cannot open the journal: file is not"),
        (set_version, JournalDamaged, "not a journal of dmnotid"),
    ],
    ids=["deleted", "no directory", "symbolic link", "junk", "other version"],
)
def test_file_that_cannot_be_read_is_an_error_with_its_path(
    tmp_path: Path, damage: Callable[[Path], object], error: type[JournalError], problem: str
) -> None:
    state = tmp_path / "state"
    with open_journal(state):
        pass
    damage(state / FILE_NAME)
    with pytest.raises(error, match=f"^{state / FILE_NAME}: .*{problem}"), read_copy(state):
        pass


@as_root
def test_user_without_the_right_to_read_it_gets_an_error_that_names_who_can(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with open_journal(state):
        pass
    with (
        without_privileges(tmp_path),
        pytest.raises(JournalError, match="Permission denied; root and the user of the daemon can") as caught,
        read_copy(state),
    ):
        pass
    assert isinstance(caught.value.__cause__, PermissionError)
