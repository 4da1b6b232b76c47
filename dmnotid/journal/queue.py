"""The durable queue, which is the duplicate memory too: one SQLite table, one row for each accepted notification.

A row is written in the transaction that accepts its notification, and stays until `duplicates.remember` ends. So there
is no moment in which a notification is remembered but not queued (lost), or queued but not remembered (run twice).
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from dmnotid import RELEASED_AT
from dmnotid.errors import DmnotidError, Duplicate, JournalDamaged, JournalError, QueueFull
from dmnotid.host.log import logger
from dmnotid.journal.database import (
    SQLITE_ERRORS,
    explain,
    fingerprint,
    is_text,
    refuse_second,
    seal,
    told,
    transaction,
)
from dmnotid.journal.file import JournalFile
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.freshness import judge_clock
from dmnotid.policy.retry import Retry
from dmnotid.policy.sessions import Closed, Limits, SessionRequest
from dmnotid.wire.notification import MAX_TIME, Notification, decode_notification

T = TypeVar("T")
_Values = tuple[object, ...] | Mapping[str, object]

PRUNE_EVERY: Final = 3_600
"""Closed rows are looked through for old ones at most this often (seconds)."""

LOOKED_UP: Final = 1_024
"""How many rows that tell duplicates are held in memory as well, until the table changes: a flood repeats itself."""

SHORT: Final = 256
"""How many octets a notification has at most that is held in memory beside its row."""

PRUNE_ROWS: Final = 1_000
"""How many rows one transaction forgets at most: a backlog must not hold up reception."""

# Nothing is left to the DEFAULTs: they stand in the file, and may be damaged there.
_INSERT: Final = """
INSERT INTO session
    (server_id, notification_id, fingerprint, package, source, sent_at, received_at, clock_believed, seal,
     state, attempts, not_before)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending', 0, 0)
"""
_KEEP: Final = """
UPDATE session SET attempts = max(attempts, ?)
WHERE session = ? AND server_id = ? AND notification_id = ? AND package = ? AND state = 'pending'
"""
_RESTORE: Final = """
INSERT OR REPLACE INTO session
    (server_id, notification_id, fingerprint, package, source, sent_at, received_at, clock_believed, seal,
     session, attempts, not_before, state)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'pending')
"""
_BEGIN: Final = "UPDATE session SET attempts = ?, started_at = ?, not_before = 0, process = NULL WHERE session = ?"
_WITHDRAW: Final = "UPDATE session SET attempts = ?, started_at = NULL WHERE session = ?"
_CLOSE: Final = "UPDATE session SET state = ?, closed_at = ?, package = NULL, process = NULL WHERE session = ?"
_PENDING: Final = """
SELECT session, server_id, package, source, received_at, clock_believed, attempts, not_before, fingerprint, state,
    notification_id, process
FROM session NOT INDEXED WHERE state = 'pending' OR closed_at IS NULL ORDER BY session
"""
_IS_FOUND: Final = "SELECT session FROM session WHERE server_id = ? AND notification_id = ?"
_COLUMNS: Final = (
    "session", "server_id", "package", "source", "received_at", "clock_believed", "attempts", "not_before",
    "fingerprint", "state", "notification_id",
)  # fmt: skip
_KINDS: Final[tuple[type | tuple[type, ...], ...]] = (
    int, str, bytes, str, (int, float), int, int, (int, float), bytes, str, int,
)  # fmt: skip
_Row = tuple[int, str, bytes, str, float, int, int, float, bytes, str, int, object]

_NEWEST: Final = """
SELECT server_id, notification_id, fingerprint, sent_at, seal FROM session
WHERE typeof(sent_at) = 'integer' AND sent_at <= ? ORDER BY sent_at DESC
"""
_DATE_STARTS: Final = "UPDATE session SET started_at = :now WHERE typeof(started_at) = 'real' AND started_at > :now"
_LAST_STARTS: Final = """
SELECT server_id, max(started_at) FROM session
WHERE typeof(started_at) = 'real' AND started_at > ? GROUP BY server_id
"""

_REMEMBERED: Final = """
SELECT session, fingerprint, sent_at, received_at, clock_believed, closed_at, state
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

STEP: Final = 1.0
"""A clock that is believed and has gone back by more than this (seconds) was ahead before."""

LAST_CHANCE: Final = 3_600
"""How long (seconds) a session whose time ran out while nobody could start it may still wait: a clock that is ahead by
years when the device starts must not end them all."""

_NO_FILE: Final = 0
"""No file has this generation."""

UNREADABLE: Final = "unreadable"
"""The state of a row that is set aside because it can't be read; a repeat of its notification takes its place."""


class _Remembered(NamedTuple):
    """What the journal holds of a server's NOTIFICATION-ID."""

    session: int
    fingerprint: bytes
    sent_at: int | None
    received_at: float
    clock_believed: int
    closed_at: float | None
    state: str


class Journal:
    """The open journal of a state directory; one process at a time holds it.

    Not safe to share between threads. Every method raises JournalError where the file can't be read or written. A file
    that turns out to be damaged, or isn't at its place any more, is replaced at once: by what can be read of it, and by
    every open request, which are held in memory as well for that. `left_over` has what `note_process` had written of
    those that were begun and not ended when `pending` read them.
    """

    def __init__(
        self, directory: Path, *, limits: Limits, remember: float, longest_pause: float = Retry().longest
    ) -> None:
        """Open or create the journal; `remember` is how long closed rows stay (seconds)."""
        self.configure(limits=limits, remember=remember, longest_pause=longest_pause)
        self._pruned_at = float("-inf")
        self.left_over: tuple[str, ...] = ()
        self._open: dict[int, SessionRequest] = {}
        self._admitted: dict[int, SessionRequest] = {}
        self._all_known = _NO_FILE
        # Rows as they were read since the table last changed, and octets that have been seen to have a fingerprint.
        self._looked_up: dict[tuple[str, int], _Remembered] = {}
        self._looked_up_at = _NO_FILE, 0
        self._same_content: dict[bytes, bytes] = {}
        self._undated = True
        self._latest = float("-inf")
        self._file = JournalFile(directory)
        self._generation = self._file.generation
        self._newest: int | None = None
        self._durable_newest: int | None = None
        try:
            self._newest = self._durable_newest = self._persist("read", self._read_newest)
        except BaseException:
            self._file.close()
            raise

    def configure(self, *, limits: Limits, remember: float, longest_pause: float) -> None:
        """Go by other limits from now on (seconds); a request that is open already keeps the time that it has."""
        self._limits = limits
        self._remember = remember
        self._longest_pause = longest_pause

    @property
    def file(self) -> Path:
        """Where it is."""
        return self._file.file

    @property
    def generation(self) -> int:
        """Counts the files that were opened: another number than before may mean other sessions in `pending`."""
        return self._file.generation

    @property
    def newest_authenticated(self) -> int | None:
        """The newest time (POSIX seconds) that a signed notification in the journal carries."""
        return self._newest

    def admit(self, verified: VerifiedNotification) -> SessionRequest:
        """Remember a notification and queue its session, in the transaction that `commit` makes durable.

        Raises Duplicate or QueueFull, and then remembers nothing of it. After JournalError nothing that was admitted
        since the last commit may be committed: `rollback` it.
        """
        try:
            request = self._admit(verified)
        except (*SQLITE_ERRORS, JournalDamaged) as error:
            raise self._mend(error, "write") from error
        except DmnotidError:
            raise
        except Exception as error:
            raise self._abandon(error) from error
        sent_at = verified.notification.sent_at
        if sent_at is not None:
            self._newest = sent_at if self._newest is None else max(sent_at, self._newest)
        return request

    def begin_admitted(self, request: SessionRequest) -> None:
        """Write in the transaction that admits a request that its first try begins: `commit` makes both durable.

        Raises JournalError as `admit` does.
        """
        try:
            self._database.execute(_BEGIN, (1, time.time(), request.session))
        except SQLITE_ERRORS as error:
            raise self._mend(error, "write") from error
        self._admitted[request.session] = request.tried(1)

    def commit(self) -> None:
        """Make everything admitted since the last commit durable, or nothing of it: then JournalError is raised."""
        if not self._in_transaction:
            self._see_that_none_is_lost()
            return
        try:
            self._database.execute("COMMIT")
        except SQLITE_ERRORS as error:
            failure = self._mend(error, "write")
            self.rollback()
            raise failure from error
        self._file.note_written()
        self._open.update(self._admitted)
        self._admitted.clear()
        self._durable_newest = self._newest

    def rollback(self) -> None:
        """Forget everything admitted since the last commit."""
        self._newest = self._durable_newest
        self._admitted.clear()
        self._looked_up.clear()  # a change that is taken back counts as none
        self._undated = True
        self._pruned_at = float("-inf")
        try:
            if self._in_transaction:
                self._database.execute("ROLLBACK")
        except SQLITE_ERRORS as error:
            failure = self._mend(error, "roll back")
            if self._in_transaction:  # it would be committed with what comes next
                self._file.reopen()
            raise failure from error

    def check(self) -> None:
        """See that the file is still at its place; where it isn't, make it anew now, not at the next write."""
        self._persist("open", lambda: None)

    def probe(self) -> None:
        """Read something: who returns from here has a journal that answers."""
        self._persist("read", lambda: self._database.execute("SELECT 1 FROM session LIMIT 1").fetchone())

    def pending(self) -> list[SessionRequest]:
        """Return every request that is not closed, in the order of arrival; what can't be read is set aside alone."""
        rows = self._persist("read", self._read_pending)
        generation = self.generation
        read = {row[0]: self._read_row(row) for row in rows}
        begun = [row for row in rows if row[6] and not row[7]]  # attempts, not_before
        self.left_over = tuple(row[-1] for row in begun if isinstance(row[-1], str) and is_text(row[-1]))
        # Known before anything is written: that may show that the file is damaged, and bring a new one.
        self._open = {session: found for session, found in read.items() if isinstance(found, SessionRequest)}
        for session, found in read.items():
            if isinstance(found, Exception):
                self._set_row_aside(session, found)
        self._all_known = generation
        return list(self._open.values())

    def last_starts(self, interval: float) -> dict[str, float]:
        """Return when (monotonic) each server's last try began, of those that did less than `interval` seconds ago."""
        now, monotonic = time.time(), time.monotonic()
        if judge_clock(now, self._newest, 0).believed:
            # Written by a clock that was ahead: it would be a start of just now, at each restart until that time.
            self._write(_DATE_STARTS, {"now": now})
        rows = self._persist("read", lambda: self._database.execute(_LAST_STARTS, (now - interval,)).fetchall())
        # What one reads that is behind began now: no rest is longer than a whole one.
        return {server_id: monotonic - max(now - began, 0) for server_id, began in rows}

    def begin_attempt(self, request: SessionRequest, attempt: int) -> None:
        """Write down that a try begins, before it does: after a crash the next one counts on."""
        values = attempt, time.time(), request.session
        self._write(_BEGIN, values)
        self._open[request.session] = request.tried(attempt)

    def withdraw_attempt(self, request: SessionRequest) -> None:
        """Write down that the try that was begun of this request was not made: the next one has its number."""
        self._write(_WITHDRAW, (request.attempts, request.session))
        self._open[request.session] = request

    def note_process(self, request: SessionRequest, process: str) -> None:
        """Write down which process runs the hook of a try that has begun, for whoever comes after a crash.

        The text is opaque here. It outlives this process, but may not outlive the machine, nor its damaged file.
        """
        self._persist("write", lambda: self._note_process(process, request.session))

    def postpone(self, request: SessionRequest, pause: float) -> SessionRequest:
        """Write down that the next try comes in `pause` seconds; the request with that time."""
        now = time.time()
        self._write("UPDATE session SET not_before = ? WHERE session = ?", (now + pause, request.session))
        later = self._open[request.session] = request.later(time.monotonic() + pause)
        return later

    def close_requests(self, ends: Sequence[tuple[SessionRequest, Closed]]) -> None:
        """Close rows for good, in one transaction: all of them, or where JournalError is raised none.

        They are never run again and go on to tell duplicates.
        """
        now = time.time()
        self._write(_CLOSE, *((str(closed), now, request.session) for request, closed in ends))
        for request, _ in ends:
            self._open.pop(request.session, None)

    def close(self) -> None:
        """Close the file; what was not committed is gone."""
        self._file.close()

    @property
    def _database(self) -> sqlite3.Connection:
        return self._file.database

    @property
    def _in_transaction(self) -> bool:
        return self._file.is_open and self._database.in_transaction

    def _admit(self, verified: VerifiedNotification) -> SessionRequest:
        if not self._file.is_open:
            self._make_ready()
        self._date(verified)
        found = self._find_forgotten(verified)
        generation = self.generation
        self._begin()
        if self.generation != generation:  # another file now, which may know it
            found = self._find_forgotten(verified)
        self._prune(verified)
        if found is not None:
            self._database.execute("DELETE FROM session WHERE session = ?", (found.session,))
        return self._insert(verified)

    def _see_that_none_is_lost(self) -> None:
        """See that nothing was admitted in a transaction that has ended without us: SQLite may roll it back itself."""
        if self._admitted:
            self.rollback()
            message = f"{self.file}: can't write the journal: the transaction was rolled back"
            raise JournalError(message)

    def _abandon(self, bug: Exception) -> Exception:
        """Roll back what a bug may have left half done, and all that shares its transaction."""
        if not self._in_transaction:
            return bug
        logger.error("bug", file=str(self.file), exc_info=bug)
        self.rollback()
        message = f"{self.file}: can't write the journal: {bug!r}"
        return JournalError(message)

    def _mend(self, error: Exception, action: str) -> JournalError:
        """Say what failed. A file that turns out to be damaged is replaced, and what was not committed is gone.

        So what was being done has failed, and may be done again.
        """
        failure = error if isinstance(error, JournalError) else explain(error, self.file, action)
        if isinstance(failure, JournalDamaged):
            self._newest = self._durable_newest
            self._file.replace(failure)
            self._restore()
            self._admitted.clear()  # last: as long as any stand there, `commit` says that they are gone
        return failure

    def _persist(self, action: str, do: Callable[[], T]) -> T:
        """Do something outside of transactions, a second time where the file turned out to be damaged."""
        try:
            return self._once(action, do)
        except JournalDamaged:
            return self._once(action, do)

    def _once(self, action: str, do: Callable[[], T]) -> T:
        try:
            self._make_ready()
            return do()
        except (*SQLITE_ERRORS, JournalDamaged) as error:
            raise self._mend(error, action) from error

    def _make_ready(self) -> None:
        """See that the right file is open, and that it holds what was promised."""
        self._file.ensure()
        if self._generation != self._file.generation:
            self._restore()

    def _restore(self) -> None:
        """Write every open request into a file that may know nothing of it."""
        with transaction(self._database, self.file):
            for request in self._open.values():
                if not self._database.execute(_KEEP, self._kept(request)).rowcount:
                    self._database.execute(_RESTORE, self._restored(request))
        self._file.note_written()
        with told(self.file, "read"):
            newest = self._read_newest()
        known = [at for at in (newest, self._newest) if at is not None]
        self._newest = self._durable_newest = max(known, default=None)
        self._undated = True
        self._generation = self._file.generation

    def _kept(self, request: SessionRequest) -> tuple[object, ...]:
        notification = request.notification
        return request.attempts, request.session, request.server_id, notification.notification_id, notification.octets

    def _restored(self, request: SessionRequest) -> tuple[object, ...]:
        not_before = time.time() + max(request.not_before - time.monotonic(), 0)
        believed = request.received_at >= RELEASED_AT  # as far as it still can be told
        facts = _facts(request.server_id, request.notification, request.source, request.received_at, believed=believed)
        return (*facts, request.session, request.attempts, not_before)

    def _read_newest(self) -> int | None:
        rows: Iterator[tuple[Any, ...]] = self._database.execute(_NEWEST, (MAX_TIME,))
        return next((row[3] for row in rows if seal(*row[:4]) == row[4]), None)

    def _begin(self) -> None:
        if not self._in_transaction:
            self._see_that_none_is_lost()
            self._make_ready()
            self._database.execute("BEGIN IMMEDIATE")

    def _date(self, verified: VerifiedNotification) -> None:
        """Give what came under a clock that was not believed, or that was ahead, the first time of a better one."""
        stepped_back = verified.received_at < self._latest - STEP
        if verified.clock_believed and (self._undated or stepped_back):
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
            self._latest = verified.received_at

    def _find_forgotten(self, verified: VerifiedNotification) -> _Remembered | None:
        """Return the row whose place the notification takes, if any. Raises Duplicate or QueueFull where it may not."""
        found = self._find(verified)
        if found is not None and not self._is_forgotten(found, verified):
            raise _duplicate(verified, found.session, same_content=self._has_content(found, verified))
        self._refuse_overflow(verified)
        return found

    def _find(self, verified: VerifiedNotification) -> _Remembered | None:
        identity = verified.server_id, verified.notification.notification_id
        changes = self.generation, self._database.total_changes
        if changes != self._looked_up_at:
            self._looked_up.clear()
            self._looked_up_at = changes
        found = self._looked_up.get(identity)
        if found is None:
            row = self._database.execute(_REMEMBERED, identity).fetchone()
            if row is None:
                return None
            found = _Remembered(*row)
            if len(self._looked_up) >= LOOKED_UP:
                self._looked_up.clear()
            self._looked_up[identity] = found
        return found

    def _has_content(self, found: _Remembered, verified: VerifiedNotification) -> bool:
        """Tell whether a notification has the octets of the one that a row is of."""
        octets = verified.notification.octets
        if self._same_content.get(found.fingerprint) == octets:
            return True
        if found.fingerprint != fingerprint(octets):
            return False
        if len(self._same_content) >= LOOKED_UP:
            self._same_content.clear()
        if len(octets) <= SHORT:
            self._same_content[found.fingerprint] = octets
        return True

    def _is_forgotten(self, found: _Remembered, verified: VerifiedNotification) -> bool:
        """Tell whether the id is a new one by now (5.1.4); between signed notifications only their own times count."""
        if found.state == UNREADABLE:
            return True  # promised, and can't be run any more: its repeat is welcome
        if found.closed_at is None:
            return False
        sent_at = verified.notification.sent_at
        if found.sent_at is not None and (sent_at is not None or found.sent_at == self._newest):
            newest = max(self._newest or 0, sent_at or 0)
            return _is_number(found.sent_at) and newest - found.sent_at > self._remember
        # A server that may leave its notifications unsigned isn't protected from replays anyway.
        dated = bool(found.clock_believed) or not verified.clock_believed
        return dated and _is_number(found.received_at) and verified.received_at - found.received_at > self._remember

    def _insert(self, verified: VerifiedNotification) -> SessionRequest:
        notification, server_id, source = verified.notification, verified.server_id, str(verified.source)
        believed, received_at = verified.clock_believed, verified.received_at
        facts = _facts(server_id, notification, source, received_at, believed=believed)
        session = self._database.execute(_INSERT, facts).lastrowid or 0
        self._undated = self._undated or not believed
        if notification.sent_at is None:
            self._latest = max(self._latest, received_at)
        row = (
            session,
            server_id,
            notification.octets,
            source,
            received_at,
            int(believed),
            0,
            0.0,
            b"",
            "pending",
            0,
            None,
        )
        request = self._admitted[session] = self._request(row, notification, received_at)
        return request

    def _refuse_overflow(self, verified: VerifiedNotification) -> None:
        server_id = verified.server_id
        # Where all of this file's sessions together are fewer, none need be counted: a long queue makes that long.
        if self._all_known == self.generation and len(self._open) + len(self._admitted) < self._limits.max_pending:
            return
        (waiting,) = self._database.execute(
            "SELECT count(*) FROM session WHERE state = 'pending' AND server_id = ?", (server_id,)
        ).fetchone()
        if waiting >= self._limits.max_pending:
            full = QueueFull(server_id, waiting, self._limits.max_pending)
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

    def _read_pending(self) -> list[_Row]:
        """Read from the table itself, and see that its index finds each row: duplicates are told by it."""
        rows: list[_Row] = []
        for row in self._database.execute(_PENDING).fetchall():
            session, server_id, *_, notification_id, _ = row
            if is_text(server_id) and isinstance(notification_id, int):
                found = self._database.execute(_IS_FOUND, (server_id, notification_id)).fetchall()
                if found != [(session,)]:
                    message = f"{self.file}: the index doesn't find session {session}"
                    raise JournalDamaged(message)
            rows.append(row)
        return rows

    def _read_row(self, row: _Row) -> SessionRequest | Exception:
        """Make a request of a row, or say why it can't be one."""
        try:
            _check_kinds(row)
            _, _, package, *_ = row
            notification = decode_notification(package)
            _check_content(row, notification)
            return self._request(row, notification, time.time())
        except (DmnotidError, TypeError, ValueError) as error:
            return error

    def _set_row_aside(self, session: int, problem: Exception) -> None:
        logger.error("row set aside", session=session, file=str(self.file), problem=str(problem))
        self._write("UPDATE session SET state = ?, closed_at = ? WHERE session = ?", (UNREADABLE, time.time(), session))

    def _request(self, row: _Row, notification: Notification, now: float) -> SessionRequest:
        session, server_id, _, source, received_at, clock_believed, attempts, not_before, *_ = row
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
            monotonic + max(whole - max(waited, 0), min(whole, LAST_CHANCE)),
        )

    def _write(self, statement: str, *rows: _Values) -> None:
        """Do a statement once for each of `rows`, in one transaction."""
        self._persist("write", lambda: self._execute(statement, rows))

    def _note_process(self, *values: object) -> None:
        """Write it without waiting for the disk: the processes end with the machine, and with them what it is for."""
        with self._unsynchronised():
            self._execute("UPDATE session SET process = ? WHERE session = ?", [values])

    @contextmanager
    def _unsynchronised(self) -> Iterator[None]:
        """Let the system write a transaction when it likes; a file that can't be set to FULL again is opened anew."""
        database = self._database
        refuse_second(database, self.file)  # the setting can't be changed in a transaction
        database.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            try:
                database.execute("PRAGMA synchronous = FULL")
            except BaseException:
                self._file.reopen()
                raise

    def _execute(self, statement: str, rows: Sequence[_Values]) -> None:
        with transaction(self._database, self.file):
            self._database.executemany(statement, rows)
        self._file.note_written()


def _facts(
    server_id: str, notification: Notification, source: str, received_at: float, *, believed: bool
) -> tuple[object, ...]:
    """Return the columns that a row begins with."""
    content, sent_at = fingerprint(notification.octets), notification.sent_at
    sealed = seal(server_id, notification.notification_id, content, sent_at)
    return (
        server_id,
        notification.notification_id,
        content,
        notification.octets,
        source,
        sent_at,
        received_at,
        believed,
        sealed,
    )


def _check_kinds(row: _Row) -> None:
    for column, kind, value in zip(_COLUMNS, _KINDS, row[:-1], strict=True):
        if not isinstance(value, kind):
            message = f"{column} is of type {type(value).__name__}"
            raise TypeError(message)
        if isinstance(value, str) and not is_text(value):
            message = f"{column} is no text"
            raise ValueError(message)


def _check_content(row: _Row, notification: Notification) -> None:
    *_, content, state, notification_id, _ = row
    if fingerprint(notification.octets) != content or notification.notification_id != notification_id:
        message = "package is not what was written"
        raise ValueError(message)
    if state != "pending":
        message = f"state is {state!r}"
        raise ValueError(message)


def _is_number(value: object) -> bool:
    """Tell whether a row's time is one; a column may hold anything once the file was damaged."""
    return isinstance(value, (int, float))


def _duplicate(verified: VerifiedNotification, session: int, *, same_content: bool) -> Duplicate:
    duplicate = Duplicate(session, same_content=same_content)
    duplicate.server_id = verified.server_id
    duplicate.notification_id = verified.notification.notification_id
    return duplicate
