"""The durable queue, which is the duplicate memory too: one SQLite table, one row for each accepted notification.

A row is written in the transaction that accepts its notification, and stays until `duplicates.remember` ends. So there
is no moment in which a notification is remembered but not queued (lost), or queued but not remembered (run twice).
"""

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.errors import DmnotidError, Duplicate, JournalError, QueueFull
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.sessions import Closed, Limits, Retry, SessionRequest
from dmnotid.service.log import logger
from dmnotid.wire.notification import MAX_TIME, Notification, decode_notification

FILE_NAME: Final = "journal.sqlite3"
SCHEMA_VERSION: Final = 1
PRUNE_EVERY: Final = 3_600
"""Closed rows are looked through for old ones at most this often (seconds)."""

PRUNE_ROWS: Final = 1_000
"""How many rows one transaction forgets at most: a backlog must not hold up reception."""

# `package` is what came, kept while the session is open; `fingerprint` tells its content from another of the same id.
# `sent_at` is authenticated time: NULL in an unsigned notification. `received_at`, `not_before` and `closed_at` are
# wall clock time, and `clock_believed` tells what the first is worth. All times are POSIX seconds.
_SCHEMA: Final = f"""
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
PRAGMA user_version = {SCHEMA_VERSION};
"""

_INSERT: Final = """
INSERT INTO session
    (server_id, notification_id, fingerprint, package, source, sent_at, received_at, clock_believed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
RETURNING session, server_id, package, source, received_at, clock_believed, attempts, not_before
"""
_PENDING: Final = """
SELECT session, server_id, package, source, received_at, clock_believed, attempts, not_before
FROM session WHERE state = 'pending' ORDER BY session
"""
_Row = tuple[int, str, bytes, str, float, int, int, float]
_COLUMNS: Final = (
    "session", "server_id", "package", "source", "received_at", "clock_believed", "attempts", "not_before"
)  # fmt: skip
_KINDS: Final[tuple[type | tuple[type, ...], ...]] = (int, str, bytes, str, (int, float), int, int, (int, float))

_REMEMBERED: Final = """
SELECT session, fingerprint, sent_at, received_at, clock_believed, closed_at
FROM session WHERE server_id = ? AND notification_id = ?
"""

# A signed row is forgotten by authenticated time alone: once a newer notification is further ahead than `remember`,
# which is no less than max_age + max_skew, a replay of the older one is stale whatever the clock says.
# An unsigned row goes by the wall clock; what came under one that was not believed is dated once one is.
_PRUNE: Final = """
DELETE FROM session WHERE session IN (
    SELECT session FROM session WHERE closed_at IS NOT NULL AND sent_at < :newest - :remember
    UNION ALL
    SELECT session FROM session
    WHERE closed_at IS NOT NULL AND sent_at IS NULL AND received_at < :now - :remember
        AND (clock_believed OR NOT :believed)
    LIMIT :rows
)
"""

UNREADABLE: Final = "unreadable"
"""The state of a row that is set aside because it can't be read."""


class _Remembered(NamedTuple):
    """What the journal holds of a server's NOTIFICATION-ID."""

    session: int
    fingerprint: bytes
    sent_at: int | None
    received_at: float
    clock_believed: int
    closed_at: float | None


class Journal:
    """The open journal of a state directory; one process at a time holds it.

    Not safe to share between threads. Every method raises JournalError where the file can't be read or written.
    """

    def __init__(
        self, directory: Path, *, limits: Limits, remember: float, longest_pause: float = Retry().longest
    ) -> None:
        """Open or create the journal; `remember` is how long closed rows stay (seconds)."""
        self.file = directory / FILE_NAME
        self._limits = limits
        self._remember = remember
        self._longest_pause = longest_pause
        self._pruned_at = float("-inf")
        with self._told("open"):
            self._database = sqlite3.connect(self.file, timeout=0, isolation_level=None)
        try:
            with self._told("open"):
                self._prepare()
                self._newest = self._durable_newest = self._read_newest()
                self._undated = True
        except BaseException:
            self._database.close()
            raise

    @property
    def newest_authenticated(self) -> int | None:
        """The newest time (POSIX seconds) that a signed notification in the journal carries."""
        return self._newest

    def admit(self, verified: VerifiedNotification) -> SessionRequest:
        """Remember a notification and queue its session, in the transaction that `commit` makes durable.

        Raises Duplicate or QueueFull, and then remembers nothing of it.
        """
        fingerprint = hashlib.sha256(verified.notification.octets).digest()[:16]
        with self._told("write"):
            self._date(verified)
            found = self._find(verified)
            if found is not None and not self._is_forgotten(found, verified):
                raise _duplicate(verified, found.session, same_content=found.fingerprint == fingerprint)
            self._refuse_overflow(verified)
            self._begin()
            self._prune(verified)
            if found is not None:
                self._database.execute("DELETE FROM session WHERE session = ?", (found.session,))
            row = self._insert(verified, fingerprint)
        sent_at = verified.notification.sent_at
        if sent_at is not None:
            self._newest = sent_at if self._newest is None else max(sent_at, self._newest)
        return self._request(row, verified.notification, verified.received_at)

    def commit(self) -> None:
        """Make everything admitted since the last commit durable, or nothing of it: then JournalError is raised."""
        if not self._database.in_transaction:
            return
        try:
            with self._told("write"):
                self._database.execute("COMMIT")
        except JournalError:
            self.rollback()
            raise
        self._durable_newest = self._newest

    def rollback(self) -> None:
        """Forget everything admitted since the last commit."""
        self._newest = self._durable_newest
        self._undated = True
        with self._told("roll back"):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def pending(self) -> list[SessionRequest]:
        """Return every request that is not closed, in the order of arrival; what can't be read is set aside alone."""
        with self._told("read"):
            rows: list[_Row] = self._database.execute(_PENDING).fetchall()
        return [request for row in rows if (request := self._readable(row)) is not None]

    def begin_attempt(self, request: SessionRequest, attempt: int) -> None:
        """Write down that a try begins, before it does: after a crash the next one counts on."""
        self._write("UPDATE session SET attempts = ? WHERE session = ?", (attempt, request.session))

    def postpone(self, request: SessionRequest, pause: float) -> SessionRequest:
        """Write down that the next try comes in `pause` seconds; the request with that time."""
        now = time.time()
        self._write("UPDATE session SET not_before = ? WHERE session = ?", (now + pause, request.session))
        return request.later(time.monotonic() + pause)

    def close_request(self, request: SessionRequest, closed: Closed) -> None:
        """Close a row for good: it is never run again and goes on to tell duplicates."""
        self._write(
            "UPDATE session SET state = ?, closed_at = ?, package = NULL WHERE session = ?",
            (str(closed), time.time(), request.session),
        )

    def close(self) -> None:
        """Close the file; what was not committed is gone."""
        with self._told("close"):
            self._database.close()

    def _prepare(self) -> None:
        database = self._database
        database.text_factory = lambda octets: octets.decode("utf-8", "surrogateescape")  # one bad row stays one
        # Held by one process, and no shared-memory file; a second process is told at its first read.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            message = f"{self.file}: schema {version} was written by a newer dmnotid, {SCHEMA_VERSION} is known"
            raise JournalError(message)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if not version:
            database.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        # Taken now, not at the first notification.
        database.execute("BEGIN IMMEDIATE")
        database.execute("COMMIT")

    def _read_newest(self) -> int | None:
        newest: int | None = self._database.execute(
            "SELECT max(sent_at) FROM session WHERE typeof(sent_at) = 'integer' AND sent_at <= ?", (MAX_TIME,)
        ).fetchone()[0]
        return newest

    def _begin(self) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")

    def _date(self, verified: VerifiedNotification) -> None:
        """Give what came under a clock that was not believed the first time of one that is."""
        if self._undated and verified.clock_believed:
            self._begin()
            self._database.execute(
                "UPDATE session SET received_at = ?, clock_believed = 1 WHERE NOT clock_believed",
                (verified.received_at,),
            )
            # And what came under one that was ahead: it would be remembered until that time has come.
            self._database.execute(
                "UPDATE session SET received_at = :now WHERE sent_at IS NULL AND received_at > :now",
                {"now": verified.received_at},
            )
            self._undated = False

    def _find(self, verified: VerifiedNotification) -> _Remembered | None:
        identity = verified.server_id, verified.notification.notification_id
        row = self._database.execute(_REMEMBERED, identity).fetchone()
        return None if row is None else _Remembered(*row)

    def _is_forgotten(self, found: _Remembered, verified: VerifiedNotification) -> bool:
        """Tell whether the id is a new one by now (5.1.4); between signed notifications only their own times count."""
        if found.closed_at is None:
            return False
        sent_at = verified.notification.sent_at
        if found.sent_at is not None and (sent_at is not None or found.sent_at == self._newest):
            newest = max(self._newest or 0, sent_at or 0)
            return _is_number(found.sent_at) and newest - found.sent_at > self._remember
        # A server that may leave its notifications unsigned isn't protected from replays anyway.
        dated = bool(found.clock_believed) or not verified.clock_believed
        return dated and _is_number(found.received_at) and verified.received_at - found.received_at > self._remember

    def _insert(self, verified: VerifiedNotification, fingerprint: bytes) -> _Row:
        notification = verified.notification
        row: _Row = self._database.execute(
            _INSERT,
            (
                verified.server_id,
                notification.notification_id,
                fingerprint,
                notification.octets,
                str(verified.source),
                notification.sent_at,
                verified.received_at,
                verified.clock_believed,
            ),
        ).fetchone()
        self._undated = self._undated or not verified.clock_believed
        return row

    def _refuse_overflow(self, verified: VerifiedNotification) -> None:
        server_id = verified.server_id
        (waiting,) = self._database.execute(
            "SELECT count(*) FROM session WHERE state = 'pending' AND server_id = ?", (server_id,)
        ).fetchone()
        if waiting >= self._limits.max_pending:
            message = f"{waiting} sessions of {server_id!r} wait, sessions.max_pending is {self._limits.max_pending}"
            full = QueueFull(message)
            full.server_id, full.notification_id = server_id, verified.notification.notification_id
            raise full

    def _prune(self, verified: VerifiedNotification) -> None:
        now = time.monotonic()
        if now - self._pruned_at < PRUNE_EVERY:
            return
        forgotten = self._database.execute(
            _PRUNE,
            {
                "newest": max(self._newest or 0, verified.notification.sent_at or 0),
                "remember": self._remember,
                "believed": verified.clock_believed,
                "now": verified.received_at,
                "rows": PRUNE_ROWS,
            },
        ).rowcount
        if forgotten < PRUNE_ROWS:
            self._pruned_at = now

    def _readable(self, row: _Row) -> SessionRequest | None:
        try:
            for column, kind, value in zip(_COLUMNS, _KINDS, row, strict=True):
                if not isinstance(value, kind):
                    message = f"{column} is of type {type(value).__name__}"
                    raise TypeError(message)  # noqa: TRY301 - one way out for all that can be wrong with a row
            _, _, package, *_ = row
            return self._request(row, decode_notification(package), time.time())
        except (DmnotidError, TypeError, ValueError) as error:
            logger.error("row set aside", session=row[0], file=str(self.file), problem=str(error))
            self._write(
                "UPDATE session SET state = ?, closed_at = ? WHERE session = ?", (UNREADABLE, time.time(), row[0])
            )
            return None

    def _request(self, row: _Row, notification: Notification, now: float) -> SessionRequest:
        session, server_id, _, source, received_at, clock_believed, attempts, not_before = row
        # Wall clock in the file, monotonic in memory. Where the one was off by years when it was written, or is now, a
        # pause is no longer than any pause, and a request has its whole time still before it.
        monotonic, whole = time.monotonic(), self._limits.expire_after
        waited = now - received_at if clock_believed else 0
        return SessionRequest(
            session,
            server_id,
            notification,
            source,
            received_at,
            attempts,
            monotonic + min(max(not_before - now, 0), self._longest_pause),
            monotonic + max(whole - max(waited, 0), 0),
        )

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with self._told("write"):
            self._database.execute(statement, values)

    @contextmanager
    def _told(self, action: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where SQLite's own message quotes junk
            message = f"{self.file}: can't {action} the journal: {error}"
            if "locked" in str(error):
                message = (
                    f"{self.file}: another dmnotid holds this journal; one process at a time for a state directory"
                )
            raise JournalError(message) from error


def _is_number(value: object) -> bool:
    """Tell whether a row's time is one; a column may hold anything once the file was damaged."""
    return isinstance(value, (int, float))


def _duplicate(verified: VerifiedNotification, session: int, *, same_content: bool) -> Duplicate:
    message = f"accepted before as session {session}{'' if same_content else ', with other content'}"
    duplicate = Duplicate(message, same_content=same_content)
    duplicate.server_id = verified.server_id
    duplicate.notification_id = verified.notification.notification_id
    return duplicate
