"""The database of the journal: its schemas, old and new, and files that can't be opened."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from subprocess import PIPE

import pytest

from dmnotid.errors import JournalError
from dmnotid.journal.database import APPLICATION_ID, SCHEMA_VERSION
from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.rows import COLUMNS, fingerprint, is_sealed, seal
from dmnotid.policy.freshness import ServerTimes
from tests.journal.journals import (
    NO_TEXT,
    NOW,
    ROOMY,
    accepts,
    admit,
    another_process,
    count_rows,
    ids,
    kept_files,
    open_journal,
    refusal,
    sql,
)
from tests.support import OPEN_ID, OTHER_ID, SERVER_ID, LogLines, as_root, descriptors, verified, without_privileges

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

SCHEMA_2 = f"""
{SCHEMA_1}
ALTER TABLE session ADD COLUMN started_at REAL;
ALTER TABLE session ADD COLUMN seal INTEGER;
ALTER TABLE session ADD COLUMN process TEXT;
PRAGMA user_version = 2;
PRAGMA application_id = {APPLICATION_ID | 2};
"""
SCHEMA_3 = f"""
{SCHEMA_2}
ALTER TABLE session DROP COLUMN process;
CREATE TABLE server (
    server_id  TEXT    PRIMARY KEY,
    newest     INTEGER NOT NULL,
    forgotten  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE clock (floor INTEGER NOT NULL);
PRAGMA user_version = 3;
PRAGMA application_id = {APPLICATION_ID | 3};
"""
OLD = {1: SCHEMA_1, 2: SCHEMA_2, 3: SCHEMA_3}


def old_journal(directory: Path, schema: str = SCHEMA_1, rows: int = 2) -> None:
    """Write a file of an older schema, in which every odd session is done."""
    with closing(sqlite3.connect(directory / FILE_NAME, isolation_level=None)) as database:
        database.executescript(schema)
        database.execute("BEGIN")
        for number in range(1, rows + 1):
            made, done = verified(number), number % 2
            octets = made.notification.octets
            database.execute(
                "INSERT INTO session (server_id, notification_id, fingerprint, package, source, sent_at, received_at,"
                " clock_believed, state, attempts, closed_at) VALUES (?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)",
                (made.server_id, number, fingerprint(octets), None if done else octets, str(made.source),
                 made.notification.sent_at, made.received_at, "done" if done else "pending", number,
                 time.time() if done else None),
            )  # fmt: skip
            if schema != SCHEMA_1:
                sealed = seal(made.server_id, number, fingerprint(octets), made.notification.sent_at)
                database.execute("UPDATE session SET seal = ? WHERE session = ?", (sealed, number))
        database.execute("COMMIT")


@pytest.mark.parametrize("version", OLD)
def test_older_schema_becomes_the_newest(tmp_path: Path, version: int) -> None:
    old_journal(tmp_path, OLD[version])
    if version == 2:
        sql(tmp_path, "UPDATE session SET process = 'boot 5 pid 77', started_at = 5.0 WHERE session = 2")
    with open_journal(tmp_path) as journal:
        (request,) = journal.pending()
        assert (request.session, request.attempts, request.notification.notification_id) == (2, 2, 2)
        assert not accepts(journal, 1)
        assert admit(journal, 3).session == 3
        if version == 1:
            assert all(is_sealed(row) for row in journal.rows())
    assert kept_files(tmp_path) == []
    assert sql(tmp_path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
    assert sql(tmp_path, "PRAGMA application_id") == [(APPLICATION_ID | SCHEMA_VERSION,)]


@pytest.mark.parametrize("version", OLD)
def test_last_accepted_of_an_older_schema_is_the_last_arrival_of_its_rows(tmp_path: Path, version: int) -> None:
    old_journal(tmp_path, OLD[version], rows=3)
    ((last,),) = sql(tmp_path, "SELECT max(received_at) FROM session")
    with open_journal(tmp_path) as journal:
        assert journal.times.last_accepted == {SERVER_ID: last}
        assert [(row.outcome, row.connection, row.interface) for row in journal.rows()] == [(None, None, None)] * 3
        assert journal.last_sessions()[SERVER_ID].session == 3


def test_times_of_the_third_schema_are_kept(tmp_path: Path) -> None:
    """A server that has no row any more, and one whose rows are unsigned, as well."""
    old_journal(tmp_path, SCHEMA_3)
    sql(tmp_path, "UPDATE session SET server_id = ?, sent_at = NULL, seal = NULL", OPEN_ID)
    for session, content in sql(tmp_path, "SELECT session, fingerprint FROM session"):
        sealed = seal(OPEN_ID, session, content, None)
        sql(tmp_path, "UPDATE session SET seal = ? WHERE session = ?", sealed, session)
    sql(tmp_path, "INSERT INTO server VALUES (?, 7000, 5000)", OTHER_ID)
    sql(tmp_path, "INSERT INTO clock VALUES (6000)")
    for _ in range(2):
        with open_journal(tmp_path) as journal:
            assert journal.times.servers == {OTHER_ID: ServerTimes(7_000, 5_000)}
            assert journal.times.floor == 6_000
            assert set(journal.times.last_accepted) == {OPEN_ID}


@pytest.mark.parametrize("version", [1, 2])
def test_times_of_an_older_schema_are_those_of_sealed_rows_and_the_floor_is_that_of_believed_arrivals(
    tmp_path: Path, version: int
) -> None:
    now = int(NOW)
    old_journal(tmp_path, OLD[version], rows=6)
    for session, (server_id, sent_at, received_at, believed) in enumerate(
        [
            (SERVER_ID, now - 90, now - 80.5, 1),
            (SERVER_ID, now + 599, now - 70.5, 1),
            (SERVER_ID, 2**32 - 1, 60.0, 0),
            (OTHER_ID, now - 50, now - 40.5, 1),
            (OTHER_ID, now - 5, now + 0.5, 1),
            (OPEN_ID, None, now + 50.0, 1),
        ],
        start=1,
    ):
        facts = "server_id = ?, sent_at = ?, received_at = ?, clock_believed = ?"
        values = server_id, sent_at, received_at, believed, session
        sql(tmp_path, f"UPDATE session SET {facts} WHERE session = ?", *values)  # noqa: S608
        if version == 2 and session != 5:
            (row,) = sql(tmp_path, "SELECT fingerprint FROM session WHERE session = ?", session)
            sealed = seal(server_id, session, row[0], sent_at)
            sql(tmp_path, "UPDATE session SET seal = ? WHERE session = ?", sealed, session)
    with open_journal(tmp_path) as journal:
        # The first schema has no seals, so that all of its rows are believed.
        newest = now - 5 if version == 1 else now - 50
        assert journal.times.servers == {SERVER_ID: ServerTimes(2**32 - 1), OTHER_ID: ServerTimes(newest)}
        assert journal.times.floor == (now - 5 if version == 1 else now - 50)


@pytest.mark.parametrize("version", OLD)
def test_migrated_file_has_the_columns_and_indexes_of_a_new_one(tmp_path: Path, version: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        directory.mkdir()
    old_journal(old, OLD[version])

    def shape(directory: Path) -> tuple[object, ...]:
        with open_journal(directory):
            pass
        tables = ("session", "server", "clock")
        columns = [row[1:] for table in tables for row in sql(directory, f"PRAGMA table_info({table})")]
        return columns, sql(directory, "SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name")

    assert shape(old) == shape(new)
    assert tuple(name for (name,) in sql(new, "SELECT name FROM pragma_table_info('session')")) == COLUMNS


def test_interrupted_migration_leaves_the_old_schema(tmp_path: Path) -> None:
    old_journal(tmp_path)
    sql(tmp_path, "PRAGMA journal_mode = WAL")
    killed = os.fork()
    if not killed:
        # The child ends in the middle of the migration, before COMMIT.
        database = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
        database.execute("BEGIN IMMEDIATE")
        database.execute("ALTER TABLE session ADD COLUMN started_at REAL")
        os._exit(0)
    os.waitpid(killed, 0)
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [2]


def damage_the_middle(file: Path) -> None:
    octets = bytearray(file.read_bytes())
    leaves = [at for at in range(4_096, len(octets), 4_096) if octets[at] == 0x0D]
    at = leaves[len(leaves) // 2]
    octets[at : at + 4_096] = b"\xff" * 4_096
    file.write_bytes(octets)


def damage_the_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA user_version = 77")


@pytest.mark.parametrize("damage", [damage_the_middle, damage_the_version])
@pytest.mark.parametrize("version", OLD)
def test_damaged_file_of_an_older_schema_is_rescued(
    tmp_path: Path, logged: LogLines, damage: Callable[[Path], None], version: int
) -> None:
    old_journal(tmp_path, OLD[version], rows=300)
    damage(tmp_path / FILE_NAME)
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert len(journal.pending()) > 120
        assert not accepts(journal, 1), "done before"
    assert logged.of("journal set aside")[0]["rows_rescued"] > 250


def test_row_of_the_first_schema_that_is_not_as_written_is_set_aside_after_the_rescue(
    tmp_path: Path, logged: LogLines
) -> None:
    old_journal(tmp_path, rows=10)
    sql(tmp_path, "UPDATE session SET fingerprint = zeroblob(16) WHERE session IN (2, 4)")
    damage_the_version(tmp_path / FILE_NAME)
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert ids(journal) == [6, 8, 10]
    assert logged.of("journal set aside")[0]["rows_rescued"] == 10
    assert [line["session"] for line in logged.of("row set aside")] == [2, 4]


def test_text_of_the_first_schema_that_is_not_utf8_costs_its_row_alone(tmp_path: Path, logged: LogLines) -> None:
    old_journal(tmp_path, rows=10)
    sql(tmp_path, f"UPDATE session SET server_id = {NO_TEXT} WHERE session = 4")  # noqa: S608
    sql(tmp_path, f"UPDATE session SET notification_id = {NO_TEXT} WHERE session = 6")  # noqa: S608
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert ids(journal) == [2, 8, 10]
    assert [line["session"] for line in logged.of("row set aside")] == [4, 6]
    assert kept_files(tmp_path) == []


# Files that can't be opened


def open_error(directory: Path) -> str:
    before = descriptors()
    with pytest.raises(JournalError) as caught:
        open_journal(directory)
    assert descriptors() == before
    text = str(caught.value)
    assert text.startswith(f"{directory / FILE_NAME}: ")
    return text


def test_second_process_is_refused(tmp_path: Path) -> None:
    with another_process(tmp_path, "") as process:
        assert "another process has it open" in open_error(tmp_path)
        process.kill()
        process.wait()
        with open_journal(tmp_path) as journal:
            assert journal.pending() == []


@pytest.mark.parametrize("program", ["sqlite3", "python"])
@pytest.mark.parametrize("statement", ["SELECT count(*) FROM session", "DELETE FROM session"], ids=["read", "write"])
def test_journal_in_an_open_transaction_of_another_program_is_refused_until_that_ends(
    tmp_path: Path, program: str, statement: str
) -> None:
    """As a backup does. The message must not blame a second dmnotid alone."""
    with open_journal(tmp_path) as journal:
        admit(journal)
    command = {"sqlite3": ["sqlite3", "-batch"], "python": [sys.executable, "-uc", READER]}[program]
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    with subprocess.Popen([*command, tmp_path / FILE_NAME], stdin=PIPE, stdout=PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write(f"BEGIN; {statement}; SELECT 'begun';\n")
        reader.stdin.flush()
        while "begun" not in (line := reader.stdout.readline()):
            assert line
        assert "another process has it open (another dmnotid, or sqlite3)" in open_error(tmp_path)
        reader.communicate("ROLLBACK;\n")
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [7]


READER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
for line in sys.stdin:
    for statement in line.split(";"):
        print(database.execute(statement).fetchall())
"""
"""The shell of sqlite3, as far as the test needs it."""


def test_second_journal_in_the_same_process_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        with pytest.raises(JournalError, match="another process has it open"):
            open_journal(tmp_path)
        admit(journal)
    assert count_rows(tmp_path) == 1


def test_newer_schema_is_left_alone(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal)
    newer = SCHEMA_VERSION + 1
    sql(tmp_path, f"PRAGMA user_version = {newer}")
    sql(tmp_path, f"PRAGMA application_id = {APPLICATION_ID | newer}")
    octets = (tmp_path / FILE_NAME).read_bytes()
    expected = f"schema {newer} was written by a newer dmnotid; at most {SCHEMA_VERSION} is expected"
    assert expected in open_error(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == octets


def test_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    with open_journal(tmp_path) as journal:
        admit(journal)
    assert sql(tmp_path, "PRAGMA user_version") == [(SCHEMA_VERSION,)]


def test_directory_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    assert "cannot open the journal: unable to open database file" in open_error(tmp_path)


@as_root
@pytest.mark.parametrize("what", ["directory", "file", "file-unreadable"])
def test_permission_denied_is_reported_with_its_reason(tmp_path: Path, what: str) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    if what != "directory":
        with open_journal(state) as journal:
            admit(journal)
        (state / FILE_NAME).chmod(0o644 if what == "file" else 0o600)
    with without_privileges(state):
        text = open_error(state)
    assert "cannot open the journal: " in text
    assert "another dmnotid" not in text


# Damage that a header or the schema shows


@pytest.mark.parametrize("change", ["PRAGMA user_version = 77", "PRAGMA user_version = -5", "PRAGMA application_id = 7",
                                    "DROP INDEX signed", "ALTER TABLE session DROP COLUMN started_at",
                                    "ALTER TABLE session DROP COLUMN seal"])  # fmt: skip
def test_damaged_header_or_schema_loses_no_row(tmp_path: Path, logged: LogLines, change: str) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
    sql(tmp_path, change)
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [1]
        assert not accepts(journal, 1)
    assert len(logged.of("journal set aside")) == len(kept_files(tmp_path)) == (0 if "INDEX" in change else 1)


def test_default_that_is_damaged_in_the_schema_is_given_to_no_row(tmp_path: Path) -> None:
    with open_journal(tmp_path):
        pass
    file = tmp_path / FILE_NAME
    octets = file.read_bytes()
    at = octets.index(b"DEFAULT 'pending'", 0, 4_096)
    file.write_bytes(octets[:at] + b"DEFAULT 'pAnding'" + octets[at + 17 :])
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
    with open_journal(tmp_path) as journal:
        assert ids(journal) == [1]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sqlite_sequence SET seq = 9223372036854775807",
        "UPDATE sqlite_sequence SET seq = 9007199254740991",
        "UPDATE session SET session = 9000000000000000000",
    ],
)
def test_session_number_that_is_too_high_is_damage(tmp_path: Path, logged: LogLines, change: str) -> None:
    """SQLite would report a full disk for ever."""
    with open_journal(tmp_path) as journal:
        admit(journal, 1)
    sql(tmp_path, change)
    for _ in range(2):
        with open_journal(tmp_path) as journal:
            assert refusal(journal, 1) is not None
            assert ids(journal)[0] == 1
            assert all(request.session < 1_000 for request in journal.pending())
            accepts(journal, 2)
    assert len(logged.of("journal set aside")) == 1
