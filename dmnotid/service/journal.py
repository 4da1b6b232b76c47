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
from typing import Final

from dmnotid.errors import DmnotidError, Duplicate, JournalError, QueueFull
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.sessions import Closed, Limits, SessionRequest
from dmnotid.service.log import logger
from dmnotid.wire.notification import decode_notification

FILE_NAME: Final = "journal.sqlite3"
SCHEMA_VERSION: Final = 1
PRUNE_EVERY: Final = 3_600
"""Closed rows are looked through for old ones at most this often (seconds)."""

# `package` is what came, kept while the session is open; `fingerprint` tells its content from another of the same id.
# `sent_at` is authenticated time: NULL in an unsigned notification. `not_before` and the other times are POSIX seconds.
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
    state            TEXT    NOT NULL DEFAULT 'pending',
    attempts         INTEGER NOT NULL DEFAULT 0,
    not_before       REAL    NOT NULL DEFAULT 0,
    closed_at        REAL,
    UNIQUE (server_id, notification_id)
);
CREATE INDEX pending ON session (server_id) WHERE state = 'pending';
CREATE INDEX received ON session (received_at);
PRAGMA user_version = {SCHEMA_VERSION};
"""

_INSERT: Final = """
INSERT INTO session (server_id, notification_id, fingerprint, package, source, sent_at, received_at)
VALUES (?, ?, ?, ?, ?, ?, ?)
RETURNING session, server_id, package, source, received_at, attempts, not_before
"""
_PENDING: Final = """
SELECT session, server_id, package, source, received_at, attempts, not_before
FROM session WHERE state = 'pending' ORDER BY session
"""
_Row = tuple[int, str, bytes, str, float, int, float]

UNREADABLE: Final = "unreadable"
"""The state of a row that is set aside because it can't be read."""


class Journal:
    """The open journal of a state directory; one process at a time holds it.

    Not safe to share between threads. Every method raises JournalError where the file can't be read or written.
    """

    def __init__(self, directory: Path, *, limits: Limits, remember: float) -> None:
        """Open or create the journal; `remember` is how long closed rows stay (seconds)."""
        self.file = directory / FILE_NAME
        self._limits = limits
        self._remember = remember
        self._pruned_at = float("-inf")
        with self._told("open"):
            self._database = sqlite3.connect(self.file, timeout=0, isolation_level=None)
        try:
            with self._told("open"):
                self._prepare()
                self._newest = self._read_newest()
        except BaseException:
            self._database.close()
            raise

    @property
    def newest_authenticated(self) -> int | None:
        """The newest time (POSIX seconds) that a signed notification in the journal carries."""
        return self._newest

    def admit(self, verified: VerifiedNotification) -> SessionRequest:
        """Remember a notification and queue its session, in the transaction that `commit` makes durable.

        Raises Duplicate or QueueFull, and then remembers nothing.
        """
        notification, server_id = verified.notification, verified.server_id
        fingerprint = hashlib.sha256(notification.octets).digest()[:16]
        with self._told("write"):
            self._refuse_duplicate(verified, fingerprint)
            self._refuse_overflow(verified)
            self._begin()
            self._prune(verified.received_at)
            row: _Row = self._database.execute(
                _INSERT,
                (
                    server_id,
                    notification.notification_id,
                    fingerprint,
                    notification.octets,
                    str(verified.source),
                    notification.sent_at,
                    verified.received_at,
                ),
            ).fetchone()
        if notification.sent_at is not None:
            self._newest = max(notification.sent_at, self._newest or 0)
        return self._request(row, verified.received_at)

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

    def rollback(self) -> None:
        """Forget everything admitted since the last commit."""
        with self._told("roll back"):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            self._newest = self._read_newest()

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

    def close_request(self, request: SessionRequest, closed: Closed | str) -> None:
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
        (newest,) = self._database.execute("SELECT max(sent_at) FROM session").fetchone()
        return None if newest is None else int(newest)

    def _begin(self) -> None:
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")

    def _refuse_duplicate(self, verified: VerifiedNotification, fingerprint: bytes) -> None:
        server_id, notification_id = verified.server_id, verified.notification.notification_id
        found = self._database.execute(
            "SELECT session, fingerprint, received_at, closed_at FROM session"
            " WHERE server_id = ? AND notification_id = ?",
            (server_id, notification_id),
        ).fetchone()
        if found is None:
            return
        session, remembered, received_at, closed_at = found
        if closed_at is not None and received_at < verified.received_at - self._remember:
            self._begin()
            self._database.execute("DELETE FROM session WHERE session = ?", (session,))
            return
        same = remembered == fingerprint
        message = f"accepted before as session {session}{'' if same else ', with other content'}"
        duplicate = Duplicate(message, same_content=same)
        duplicate.server_id, duplicate.notification_id = server_id, notification_id
        raise duplicate

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

    def _prune(self, now: float) -> None:
        if now - self._pruned_at < PRUNE_EVERY:
            return
        self._pruned_at = now
        # The newest authenticated time outlives its memory: it guards a device whose clock was lost.
        self._database.execute(
            "DELETE FROM session WHERE received_at < ? AND closed_at IS NOT NULL"
            " AND sent_at IS NOT (SELECT max(sent_at) FROM session)",
            (now - self._remember,),
        )

    def _readable(self, row: _Row) -> SessionRequest | None:
        try:
            return self._request(row, time.time())
        except (DmnotidError, TypeError, ValueError) as error:
            logger.error("row set aside", session=row[0], file=str(self.file), problem=str(error))
            self._write(
                "UPDATE session SET state = ?, closed_at = ? WHERE session = ?", (UNREADABLE, time.time(), row[0])
            )
            return None

    def _request(self, row: _Row, now: float) -> SessionRequest:
        session, server_id, package, source, received_at, attempts, not_before = row
        # Wall clock in the file, monotonic in memory, and no wait longer than a request's whole time: a clock that was
        # years off when either was written neither fires everything at once nor waits for years.
        monotonic, longest = time.monotonic(), self._limits.expire_after
        return SessionRequest(
            session,
            server_id,
            decode_notification(package),
            source,
            received_at,
            attempts,
            monotonic + min(max(not_before - now, 0), longest),
            monotonic + min(max(received_at + longest - now, 0), longest),
        )

    def _write(self, statement: str, values: tuple[object, ...]) -> None:
        with self._told("write"):
            self._database.execute(statement, values)

    @contextmanager
    def _told(self, action: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            message = f"{self.file}: can't {action} the journal: {error}"
            if "locked" in str(error):
                message = (
                    f"{self.file}: another dmnotid holds this journal; one process at a time for a state directory"
                )
            raise JournalError(message) from error
