"""The database of the journal: its schemas, old and new."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dmnotid.journal.database import APPLICATION_ID, COLUMNS, SCHEMA_VERSION, seal
from dmnotid.journal.file import FILE_NAME
from tests.journal.test_file import (
    accepts,
    admit,
    kept_files,
    opened,
    sql,
)
from tests.support import LogLines, verified

SCHEMA_1 = """
CREATE TABLE session (
    session          INTEGER PRIMARY KEY AUTOINCREMENT,
    server_id        TEXT    NOT NULL,
    notification_id  INTEGER NOT NULL,
    fingerprint      BLOB    NOT NULL,
    package          BLOB,
    source           TEXT    NOT NULL,
    sent_at          INTEGER,
    received_at      REAL    NOT NULL,
    clock_believed   INTEGER NOT NULL,
    state            TEXT    NOT NULL DEFAULT 'pending',
    attempts         INTEGER NOT NULL DEFAULT 0,
    not_before       REAL    NOT NULL DEFAULT 0,
    closed_at        REAL,
    UNIQUE (server_id, notification_id)
);
CREATE INDEX pending ON session (server_id) WHERE state = 'pending';
CREATE INDEX signed ON session (sent_at);
CREATE INDEX undated ON session (session) WHERE NOT clock_believed;
CREATE INDEX unsigned ON session (received_at) WHERE sent_at IS NULL;
PRAGMA user_version = 1;
"""
"""The first schema, as it was."""


def old_journal(directory: Path) -> None:
    """Write a file of the first schema: one session that waits, one that is done."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as database:
        database.executescript(SCHEMA_1)
        for number, state, closed_at in ((1, "done", time.time()), (2, "pending", None)):
            made = verified(number)
            fingerprint = hashlib.sha256(made.notification.octets).digest()[:16]
            database.execute(
                "INSERT INTO session (server_id, notification_id, fingerprint, package, source, sent_at, received_at,"
                " clock_believed, state, attempts, closed_at) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)",
                (made.server_id, number, fingerprint, None if closed_at else made.notification.octets,
                 str(made.source), made.notification.sent_at, made.received_at, state, number, closed_at),
            )  # fmt: skip


def test_the_first_schema_becomes_the_newest(tmp_path: Path) -> None:
    old_journal(tmp_path)
    with opened(tmp_path) as journal:
        (request,) = journal.pending()
        assert (request.session, request.attempts, request.notification.notification_id) == (2, 2, 2)
        assert journal.newest_authenticated == request.notification.sent_at
        assert not accepts(journal, 1)
        assert admit(journal, 3).session == 3
    assert kept_files(tmp_path) == []
    file = tmp_path / FILE_NAME
    assert sql(file, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    assert sql(file, "PRAGMA application_id") == [(APPLICATION_ID | SCHEMA_VERSION,)]
    rows = sql(file, "SELECT server_id, notification_id, fingerprint, sent_at, seal FROM session")
    assert [seal(*row[:4]) == row[4] for row in rows] == [True] * 3


def test_a_migrated_file_has_the_columns_and_indexes_of_a_new_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        directory.mkdir()
    old_journal(old)

    def shape(directory: Path) -> tuple[object, ...]:
        with opened(directory):
            pass
        file = directory / FILE_NAME
        columns = [row[1:] for row in sql(file, "PRAGMA table_info(session)")]
        return columns, sql(file, "SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name")

    assert shape(old) == shape(new)
    assert tuple(name for name, *_ in sql(new / FILE_NAME, "SELECT name FROM pragma_table_info('session')")) == COLUMNS


def test_a_migration_that_is_interrupted_leaves_the_old_schema(tmp_path: Path) -> None:
    old_journal(tmp_path)
    sql(tmp_path / FILE_NAME, "PRAGMA journal_mode = WAL")
    killed = os.fork()
    if not killed:  # the child dies in the middle of it, before COMMIT
        database = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        database.execute("ALTER TABLE session ADD COLUMN started_at REAL")
        os._exit(0)
    os.waitpid(killed, 0)
    with opened(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [2]


def fill_old_journal(directory: Path, rows: int) -> None:
    """Write a file of the first schema in which every third session is done."""
    old_journal(directory)
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as database:
        database.execute("BEGIN")
        for number in range(3, rows + 1):
            made = verified(number)
            octets, done = made.notification.octets, number % 3 == 0
            database.execute(
                "INSERT INTO session (server_id, notification_id, fingerprint, package, source, sent_at, received_at,"
                " clock_believed, state, closed_at) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?)",
                (made.server_id, number, hashlib.sha256(octets).digest()[:16], None if done else octets,
                 str(made.source), made.notification.sent_at, made.received_at, "done" if done else "pending",
                 time.time() if done else None),
            )  # fmt: skip
        database.execute("COMMIT")


def damage_a_leaf(file: Path) -> None:
    octets = bytearray(file.read_bytes())
    leaves = [at for at in range(4_096, len(octets), 4_096) if octets[at] == 0x0D]
    at = leaves[len(leaves) // 2]
    octets[at : at + 4_096] = b"\xff" * 4_096
    file.write_bytes(octets)


def damage_the_first_page(file: Path) -> None:
    octets = bytearray(file.read_bytes())
    octets[:100] = bytes(100)
    file.write_bytes(octets)


@pytest.mark.parametrize("damage", [damage_a_leaf, damage_the_first_page])
def test_a_damaged_file_of_the_first_schema_is_rescued(
    tmp_path: Path, logged: LogLines, damage: Callable[[Path], None]
) -> None:
    fill_old_journal(tmp_path, 300)
    damage(tmp_path / FILE_NAME)
    with opened(tmp_path) as journal:
        assert len(journal.pending()) > 160
        rows = journal._database.execute("SELECT server_id, notification_id, fingerprint, sent_at, seal FROM session")
        assert all(seal(*row[:4]) == row[4] for row in rows)
        assert journal.newest_authenticated is not None
        assert not accepts(journal, 1), "done before"
    assert logged.of("journal set aside")[0]["rows_rescued"] > 250


def test_a_row_of_the_first_schema_that_is_not_what_was_written_is_not_rescued(
    tmp_path: Path, logged: LogLines
) -> None:
    fill_old_journal(tmp_path, 300)
    sql(tmp_path / FILE_NAME, "UPDATE session SET fingerprint = zeroblob(16) WHERE session IN (2, 4)")
    damage_a_leaf(tmp_path / FILE_NAME)
    with opened(tmp_path) as journal:
        assert {request.session for request in journal.pending()}.isdisjoint({2, 4})
    assert logged.of("journal set aside")[0]["rows_lost"] == 2


def test_text_of_the_first_schema_that_is_none_costs_its_row_alone(tmp_path: Path, logged: LogLines) -> None:
    fill_old_journal(tmp_path, 10)
    sql(tmp_path / FILE_NAME, "UPDATE session SET server_id = CAST(x'ff41' AS TEXT) WHERE session = 5")
    sql(tmp_path / FILE_NAME, "UPDATE session SET notification_id = CAST(x'ff41' AS TEXT) WHERE session = 7")
    with opened(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [2, 4, 8, 10]
    assert [line["session"] for line in logged.of("row set aside")] == [5, 7]
    assert kept_files(tmp_path) == []
