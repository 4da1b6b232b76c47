"""The database of the journal: its schema, how it is opened, and what SQLite's errors mean."""

import hashlib
import os
import sqlite3
from binascii import crc32
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from dmnotid.errors import JournalDamaged, JournalError

SCHEMA_VERSION: Final = 2
APPLICATION_ID: Final = 0x444D4E00
"""`DMN` and the version, in the header beside user_version: a flipped bit there is no newer program's file."""

MAX_SESSION: Final = 1 << 53
"""No session ever gets so high a number: one that stands in a file shows that it is damaged. A file that is half way
there isn't opened, so that none that is given out comes near it."""

# `package` is what came, kept while the session is open; `fingerprint` tells its content from another of the same id.
# `seal` is a checksum of what never changes. `sent_at` is authenticated time: NULL in an unsigned notification.
# `received_at`, `not_before`, `started_at` (the last try's) and `closed_at` are wall clock time, and `clock_believed`
# tells what the first is worth. All times are POSIX seconds. `process` names the one that runs the session's hook.
SCHEMA: Final = """
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
    process          TEXT,
    UNIQUE (server_id, notification_id)
);
CREATE INDEX pending ON session (server_id) WHERE state = 'pending';
CREATE INDEX signed ON session (sent_at);
CREATE INDEX undated ON session (session) WHERE NOT clock_believed;
CREATE INDEX unsigned ON session (received_at) WHERE sent_at IS NULL;
"""

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
"""
}
"""What makes the next schema out of each older one, but for its version."""

COLUMNS: Final = (
    "session", "server_id", "notification_id", "fingerprint", "package", "source", "sent_at", "received_at",
    "clock_believed", "state", "attempts", "not_before", "closed_at", "started_at", "seal",
    "process",
)  # fmt: skip
"""The columns of a row, in the order of the table."""

LATER_COLUMNS: Final = ("started_at", "seal", "process")
"""Those that the first schema has not."""

# What says of a file, rather than of the disk or of the moment, that it can't be used. A statement of ours that is
# wrong here (ERROR) is a damaged schema, a row that exists though it was not found (UNIQUE) a damaged index.
_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_SCHEMA,
        sqlite3.SQLITE_TOOBIG,
    }
)
_DAMAGE_IN_FULL: Final = frozenset(
    {
        sqlite3.SQLITE_CONSTRAINT_NOTNULL,
        sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
        sqlite3.SQLITE_CONSTRAINT_ROWID,
        sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    }
)
_UNOPENABLE: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})
_HELD: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def seal(server_id: str, notification_id: int, fingerprint: bytes, sent_at: int | None) -> int:
    """Return the checksum of what identifies a row: of a damaged file only what was once written is believed."""
    return crc32(repr((server_id, notification_id, fingerprint, sent_at)).encode("utf-8", "surrogateescape"))


def fingerprint(package: bytes) -> bytes:
    """Return what tells its content from another of the same id, and from what a damaged file makes of it."""
    return hashlib.sha256(package).digest()[:16]


def _seal_octets(server_id: bytes | None, *others: Any) -> int:  # noqa: ANN401 - what a damaged row holds
    """Seal a row of an older schema: of its text only the octets are sure."""
    return seal(read_text(server_id or b""), *others)


SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeError, MemoryError)
"""What a statement raises: UnicodeError where a damaged file has text that is none, or a message quotes it, or where a
value is none; MemoryError where SQLite has too little, and has then rolled the transaction back."""


@contextmanager
def told(file: Path, action: str) -> Iterator[None]:
    """Raise what SQLite says as a JournalError."""
    try:
        yield
    except SQLITE_ERRORS as error:
        raise explain(error, file, action) from error


@contextmanager
def transaction(database: sqlite3.Connection, file: Path) -> Iterator[None]:
    """Make one transaction of what is done in it: all of it is durable afterwards, or nothing. Raises JournalError."""
    refuse_second(database, file)
    with told(file, "write"):
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")


def refuse_second(database: sqlite3.Connection, file: Path) -> None:
    """See that no transaction is open. Raises JournalError."""
    if database.in_transaction:
        message = f"{file}: can't write the journal: something else is being written"
        raise JournalError(message)


def explain(error: Exception, file: Path, action: str) -> JournalError:
    """Make a JournalError with the file's name of what SQLite says; JournalDamaged where the file is at fault."""
    message = f"{file}: can't {action} the journal: {str(error) or 'out of memory'}"
    # What can't be encoded came from us, what can't be decoded stands in the file.
    code = sqlite3.SQLITE_CORRUPT if isinstance(error, UnicodeDecodeError) else getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF in _HELD:
        message = f"{file}: another dmnotid holds this journal; one process at a time for a state directory"
    damaged = code & 0xFF in _DAMAGE or code in _DAMAGE_IN_FULL
    if code == sqlite3.SQLITE_READONLY:  # where the system lets us write, it is the file's header that says so
        damaged = all(os.access(path, os.W_OK) for path in (file.parent, file, Path(f"{file}-wal")) if path.exists())
    return (JournalDamaged if damaged else JournalError)(message)


def _create(file: Path) -> None:
    """Make it for its owner alone: an empty file is an empty database, and the log gets its permissions from it."""
    with suppress(OSError):  # there is one; or SQLite will say why not
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def connect(file: Path) -> sqlite3.Connection:
    """Open or create a journal of the newest schema and hold it alone. Raises JournalError."""
    database: sqlite3.Connection | None = None
    _create(file)
    try:
        database = sqlite3.connect(file, timeout=0, isolation_level=None)
        _prepare(database, file)
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
    """Add what the system says of a file that can't be opened: SQLite says no more than that."""
    for side in ("", "-wal"):
        path = Path(f"{file}{side}")
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # an empty one means nothing
        except OSError as error:
            expected = "files that dmnotid may read and write are expected"
            return type(failure)(f"{failure} ({path}: {error.strerror}; {expected})")
    return failure


def _prepare(database: sqlite3.Connection, file: Path) -> None:
    database.text_factory = read_text
    database.create_function("seal", 4, _seal_octets, deterministic=True)
    # Held by one process, and no shared-memory file; a second process is told at its first read.
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("PRAGMA cell_size_check = ON")
    database.execute("PRAGMA cache_size = -512")  # KiB; the kernel has a cache too
    version = _version(database, file)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if version != SCHEMA_VERSION:
        steps = [_MIGRATIONS[older] for older in range(version, SCHEMA_VERSION)] if version else [SCHEMA]
        marks = f"PRAGMA application_id = {APPLICATION_ID | SCHEMA_VERSION}; PRAGMA user_version = {SCHEMA_VERSION};"
        database.executescript(f"BEGIN IMMEDIATE; {''.join(steps)} {marks} COMMIT;")
    # Taken now, not at the first notification.
    database.execute("BEGIN IMMEDIATE")
    database.execute("COMMIT")
    if tuple(name for _, name, *_ in database.execute("PRAGMA table_info(session)")) != COLUMNS:
        message = f"{file}: the journal's table has other columns than {', '.join(COLUMNS)}"
        raise JournalDamaged(message)
    (highest,) = database.execute(_HIGHEST).fetchone()
    if not isinstance(highest, int) or highest > MAX_SESSION // 2:
        message = f"{file}: session numbers have come to an end ({highest!r})"
        raise JournalDamaged(message)


def _version(database: sqlite3.Connection, file: Path) -> int:
    """Return the schema's version, 0 for a file without any. Raises JournalError for a newer one, or for nonsense."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    known = {0: 0, 1: 0}.get(version, APPLICATION_ID | version) if 0 <= version <= 0xFF else None  # noqa: PLR2004
    if application != known or bool(tables) != bool(version):
        message = f"{file}: not a journal of dmnotid (version {version}, application {application:#x})"
        raise JournalDamaged(message)
    if version > SCHEMA_VERSION:
        message = f"{file}: schema {version} was written by a newer dmnotid, {SCHEMA_VERSION} is known"
        raise JournalError(message)
    return int(version)


def read_text(octets: bytes) -> str:
    """Read a column as text; octets that are none stay what they are, so that one bad row stays one."""
    return octets.decode("utf-8", "surrogateescape")


def is_text(value: object) -> bool:
    """Tell whether a column can be written as it was read: octets that are no UTF-8 can't."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False
