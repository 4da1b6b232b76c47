"""The database of the journal: its schema, how it is opened, and what SQLite's errors mean."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dmnotid.errors import JournalDamaged, JournalError
from dmnotid.journal.rows import COLUMNS, MAX_SESSION, is_text, read_text, seal
from dmnotid.journal.times import DERIVE_FLOOR, DERIVE_SERVERS, TIMES_SCHEMA

SCHEMA_VERSION: Final = 4

APPLICATION_ID: Final = 0x444D4E00
"""`DMN` and the version, in the header beside user_version.

With both, a flipped bit in the version is not mistaken for the file of a newer program."""

# The columns are explained at `rows.Row`.
# AUTOINCREMENT never uses the number of a deleted row again. The indexes serve the count of a server's queue
# (`pending`), the pruning (`signed`, `unsigned`) and the correction of arrivals (`undated`).
SCHEMA: Final = f"""
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
    started_at       REAL,
    seal             INTEGER,
    outcome          TEXT,
    connection       TEXT,
    interface        TEXT,
    UNIQUE (server_id, notification_id)
);
CREATE INDEX pending ON session (server_id) WHERE state = 'pending';
CREATE INDEX signed ON session (sent_at);
CREATE INDEX undated ON session (session) WHERE NOT clock_believed;
CREATE INDEX unsigned ON session (received_at) WHERE sent_at IS NULL;
{TIMES_SCHEMA}
"""

# In a damaged file, either of the two may be wrong.
_HIGHEST: Final = """
SELECT max(ifnull((SELECT max(seq) FROM sqlite_sequence), 0), ifnull((SELECT max(session) FROM session), 0))
"""

_MIGRATIONS: Final = {
    1: """
ALTER TABLE session ADD COLUMN started_at REAL;
ALTER TABLE session ADD COLUMN seal INTEGER;
ALTER TABLE session ADD COLUMN process TEXT;
UPDATE session SET seal = seal(
    CAST(server_id AS BLOB), CAST(notification_id AS INTEGER), CAST(fingerprint AS BLOB), CAST(sent_at AS INTEGER));
""",
    2: f"""
ALTER TABLE session DROP COLUMN process;
CREATE TABLE server (
    server_id TEXT PRIMARY KEY, newest INTEGER NOT NULL, forgotten INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE clock (floor INTEGER NOT NULL);
{DERIVE_FLOOR}
""",
    3: f"""
ALTER TABLE session ADD COLUMN outcome TEXT;
ALTER TABLE session ADD COLUMN connection TEXT;
ALTER TABLE session ADD COLUMN interface TEXT;
ALTER TABLE server ADD COLUMN last_accepted REAL;
{DERIVE_SERVERS}
""",
}
"""Statements that turn each older schema into the next one."""

# Error codes that blame the file, not the disk or the moment. Our statements are correct, so ERROR means a damaged
# schema, and a UNIQUE conflict with a row that a SELECT has not found means a damaged index.
_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT_NOTNULL,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    }
)
_UNOPENABLE: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})
_HELD: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeError, MemoryError)
"""Exceptions of a statement: UnicodeError for invalid text in a damaged file, MemoryError if SQLite has too little."""


@contextmanager
def journal_errors(file: Path, action: str) -> Iterator[None]:
    """Raise the errors of SQLite and of the system as JournalError, or as JournalDamaged if the file is at fault."""
    try:
        yield
    except (*SQLITE_ERRORS, OSError) as error:
        raise explain(error, file, action) from error


def explain(error: Exception, file: Path, action: str) -> JournalError:
    """Return the JournalError for an error of SQLite, JournalDamaged if the file is at fault."""
    message = f"{file}: cannot {action} the journal: {str(error) or 'out of memory'}"
    # Text that can't be encoded comes from the caller, text that can't be decoded from the file.
    code = sqlite3.SQLITE_CORRUPT if isinstance(error, UnicodeDecodeError) else getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF in _HELD:
        message = f"{file}: another process has it open (another dmnotid, or sqlite3); one at a time can use a journal"
    # An extended code has the plain one in its lowest octet.
    damaged = code in _DAMAGE or code & 0xFF in _DAMAGE
    if code == sqlite3.SQLITE_READONLY:
        # If the system allows writing, SQLite has this from the header of the file.
        damaged = all(os.access(path, os.W_OK) for path in (file.parent, file, Path(f"{file}-wal")) if path.exists())
    return (JournalDamaged if damaged else JournalError)(message)


def connect(file: Path) -> sqlite3.Connection:
    """Open or create a journal of the newest schema and lock it for this process. Raises JournalError."""
    # SQLite takes an empty file for an empty database, and gives the log the permissions of the file.
    with suppress(OSError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    database: sqlite3.Connection | None = None
    try:
        # No wait for a lock, which another dmnotid keeps while it runs. Transactions begin only as written here.
        database = sqlite3.connect(file, timeout=0, isolation_level=None)
        _prepare(database, file)
    # Also for an interrupt: a connection that stays open keeps its lock.
    except BaseException as error:
        if database is not None:
            database.close()
        if not isinstance(error, SQLITE_ERRORS):
            raise
        failure = explain(error, file, "open")
        unopenable = getattr(error, "sqlite_errorcode", 0) & 0xFF in _UNOPENABLE
        raise _name_cause(failure, file) if unopenable else failure from error
    return database


def _name_cause(failure: JournalError, file: Path) -> JournalError:
    """Add the system's reason why a file can't be opened, which SQLite does not report."""
    for side in ("", "-wal"):
        path = Path(f"{file}{side}")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            expected = "files that dmnotid can read and write are expected"
            return type(failure)(f"{failure} ({path}: {error.strerror}; {expected})")
    return failure


def _prepare(database: sqlite3.Connection, file: Path) -> None:
    database.text_factory = read_text
    database.create_function("seal", 4, _seal_octets, deterministic=True)
    # One process holds the file, without a shared-memory file beside it. A second process fails at its first read.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    # Pages are checked when they are read from the disk, so that damage is found before it spreads.
    database.execute("PRAGMA cell_size_check = ON")
    # In KiB; the kernel caches the file too.
    database.execute("PRAGMA cache_size = -512")
    # Before the first write, which setting WAL is: the file of a newer version is left alone.
    version = _version(database, file)
    database.execute("PRAGMA journal_mode = WAL")
    # With NORMAL, SQLite syncs the log only at a checkpoint, and a power cut would take back the last commits.
    database.execute("PRAGMA synchronous = FULL")
    if version != SCHEMA_VERSION:
        steps = [_MIGRATIONS[older] for older in range(version, SCHEMA_VERSION)] if version else [SCHEMA]
        marks = f"PRAGMA application_id = {APPLICATION_ID | SCHEMA_VERSION}; PRAGMA user_version = {SCHEMA_VERSION};"
        database.executescript(f"BEGIN IMMEDIATE; {''.join(steps)} {marks} COMMIT;")
    # The first write takes the lock; without one here, that would be the first notification.
    database.execute("BEGIN IMMEDIATE")
    database.execute("COMMIT")
    if tuple(name for _, name, *_ in database.execute("PRAGMA table_info(session)")) != COLUMNS:
        raise JournalDamaged(f"{file}: the table of the journal has other columns than {', '.join(COLUMNS)}")
    # With its highest number used up, SQLite would report a full disk for ever.
    (highest,) = database.execute(_HIGHEST).fetchone()
    if not isinstance(highest, int) or highest > MAX_SESSION:
        raise JournalDamaged(f"{file}: the session number {highest!r} is too high")


def _seal_octets(server_id: bytes | None, *others: Any) -> int | None:  # noqa: ANN401 - any value of a damaged row
    """Return the seal of a row of the first schema; None if its server is not text."""
    text = read_text(server_id or b"")
    return seal(text, *others) if is_text(text) else None


def _version(database: sqlite3.Connection, file: Path) -> int:
    """Return the version of the schema, 0 for an empty file.

    Raises JournalError for a newer one, JournalDamaged for the file of another program.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    # The first schema had no application_id.
    known = {0: 0, 1: 0}.get(version, APPLICATION_ID | version) if 0 <= version <= 0xFF else None  # noqa: PLR2004
    if application != known or bool(tables) != bool(version):
        raise JournalDamaged(f"{file}: not a journal of dmnotid (version {version}, application {application:#x})")
    if version > SCHEMA_VERSION:
        message = f"{file}: schema {version} was written by a newer dmnotid; at most {SCHEMA_VERSION} is expected"
        raise JournalError(message)
    return int(version)
