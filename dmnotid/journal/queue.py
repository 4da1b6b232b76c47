"""The durable queue, which is the duplicate memory too: one SQLite table, one row for each accepted notification.

A row is written in the transaction that accepts its notification, and is kept until `duplicates.remember` is over. So a
notification is never remembered without being queued (lost), nor queued without being remembered (run twice).

The journal is in one of these states:

    idle --admit--> admitting --commit--> idle
                        |
                        +--rollback, or an error of admit or commit: nothing was accepted--> idle
    idle --begin, postpone, close: a transaction for each, which an error rolls back--> idle
    idle, admitting --file damaged--> error, and a new file with the rows that can be read and all open requests--> idle
    idle --file deleted--> a new file with all open requests--> idle
    idle, admitting --file not usable--> error; each call tries to open it again--> idle

A request is open from its commit until `close`, and all open requests are in memory too.
"""

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from dmnotid.errors import Discard, JournalDamaged, JournalError, NoSuchSession, NotKept, NotPending, QueueFull
from dmnotid.host.log import logger
from dmnotid.journal.duplicates import Duplicates
from dmnotid.journal.file import JournalFile
from dmnotid.journal.listing import Listing, Values
from dmnotid.journal.rows import (
    PENDING,
    REVIVABLE,
    SELECT_MISPLACED,
    SELECT_OPEN,
    UNREADABLE,
    make_row,
    read_request,
    restore,
    shown,
)
from dmnotid.journal.times import KnownTimes
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.freshness import judge_clock
from dmnotid.policy.retry import Retry
from dmnotid.policy.sessions import Closed, Connection, Limits, SessionRequest

_BEGIN: Final = """
UPDATE session SET attempts = ?, started_at = ?, not_before = 0, outcome = ?, connection = ?, interface = ?
WHERE session = ?
"""
_POSTPONE: Final = "UPDATE session SET attempts = ?, not_before = ?, outcome = ifnull(?, outcome) WHERE session = ?"
# A repeat is compared with the fingerprint, so the package, of up to 65 kB, is kept only if it may be needed again.
_CLOSE: Final = """
UPDATE session SET state = ?, closed_at = ?, outcome = ifnull(?, outcome), package = iif(?, package, NULL)
WHERE session = ?
"""
_REVIVE: Final = f"""
UPDATE session SET state = '{PENDING}', attempts = 0, not_before = 0, closed_at = NULL WHERE session = ?
"""  # noqa: S608
_SET_ASIDE: Final = f"UPDATE session SET state = '{UNREADABLE}', closed_at = ? WHERE session = ?"  # noqa: S608
_COUNT: Final = "SELECT count(*) FROM session WHERE state = 'pending' AND server_id = ?"
_DATE_STARTS: Final = "UPDATE session SET started_at = :now WHERE typeof(started_at) = 'real' AND started_at > :now"
_LAST_STARTS: Final = """
SELECT server_id, max(started_at) FROM session WHERE typeof(started_at) = 'real' GROUP BY server_id
"""


class Journal(Listing):
    """The open journal of a state directory; one process at a time can hold it.

    Not safe to share between threads. Every method raises JournalError if the file can't be read or written.
    """

    def __init__(
        self, directory: Path, *, limits: Limits, remember: float, longest_pause: float = Retry().longest
    ) -> None:
        """Open or create the journal. `remember` and `longest_pause` are in seconds."""
        # The file at its place. Opening it calls `_take_up`.
        self._file = JournalFile(directory, self._take_up, self.rollback)
        super().__init__(self._file.file, self._file.read)
        # Bounds of the queue, and of the times of a request whose row is read.
        self._limits = limits
        self._longest_pause = longest_pause
        # Durable requests that are not closed, by session.
        self._open: dict[int, SessionRequest] = {}
        # Sessions with a try that this process has begun and that has not ended: they do not wait.
        self._running: set[int] = set()
        # Requests of the transaction that `commit` will end.
        self._admitted: dict[int, SessionRequest] = {}
        # Signed times and last arrival of each server, and the floor of the clock, with what is not committed.
        self.times = KnownTimes()
        # Decides which rows make a notification a duplicate.
        self._duplicates = Duplicates(remember, self.times)
        self._file.ensure()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def configure(self, *, limits: Limits, remember: float, longest_pause: float) -> None:
        """Use other limits from now on (seconds). An open request keeps its time."""
        self._limits, self._longest_pause = limits, longest_pause
        self._duplicates.remember = remember

    @property
    def errors(self) -> int:
        """Number of times that the file could not be read or written."""
        return self._file.errors

    def admit(self, verified: VerifiedNotification) -> SessionRequest:
        """Remember a notification and queue its session, in the transaction that `commit` makes durable.

        Raises Duplicate, QueueFull or Stale, and then remembers nothing of it. After JournalError, nothing that was
        admitted since the last commit is accepted.
        """
        server_id, notification, most = verified.server_id, verified.notification, self._limits.max_pending
        try:
            # Before the file is touched: a flood of signed repeats is then decided without SQLite.
            self._duplicates.refuse_cached(verified)
            with self._file.use("write") as database:
                replaced = self._duplicates.find_replaced(database, verified)
                # Most queues are short: if all servers together have fewer, no count is needed.
                if len(self._open) + len(self._admitted) >= most:
                    (count,) = database.execute(_COUNT, (server_id,)).fetchone()
                    # Those that run do not wait.
                    waiting = count - sum(self._open[session].server_id == server_id for session in self._running)
                    if waiting >= most:
                        raise QueueFull(server_id, waiting, most)
                session = self._duplicates.insert(database, verified, replaced)
        except Discard as discard:
            discard.server_id, discard.notification_id = server_id, notification.notification_id
            raise
        source, received_at, now = str(verified.source), verified.received_at, time.monotonic()
        expires_at = now + self._limits.expire_after
        request = SessionRequest(session, server_id, notification, source, received_at, 0, now, expires_at)
        self._admitted[session] = request
        return request

    def commit(self) -> None:
        """Make everything admitted since the last commit durable. After JournalError, nothing of it is accepted."""
        with self._file.use("write") as database:
            if database.in_transaction:
                # In the transaction of the rows, so that neither is durable without the other.
                self.times.write(database)
                database.execute("COMMIT")
        self.times.committed()
        # Not before the commit: only a durable request may start a session.
        self._open.update(self._admitted)
        self._admitted.clear()

    def rollback(self) -> None:
        """Forget everything admitted since the last commit."""
        self.times.rolled_back()
        self._admitted.clear()
        self._duplicates.reset()
        self._file.rollback()

    def pending(self) -> list[SessionRequest]:
        """Return every request that is not closed, in the order of arrival."""
        return [self._open[session] for session in sorted(self._open)]

    def begin(self, request: SessionRequest, attempt: int, connection: Connection) -> None:
        """Write that a try begins, before it does: after a crash the next one counts on."""
        # The name of an interface may be octets that are not UTF-8, which the database can't store.
        place = str(connection.type), shown(connection.interface)
        self._write(_BEGIN, [(attempt, time.time(), None, *place, request.session)], request)
        self._open[request.session] = request._replace(attempts=attempt)
        self._running.add(request.session)

    def postpone(self, request: SessionRequest, pause: float, outcome: str = "") -> SessionRequest:
        """Write the number of tries of a request, how the last one ended, and that the next comes in `pause` seconds.

        Returns the request that waits. Without an `outcome`, the one that is written stays.
        """
        # The try has ended, whether the pause can be written or not.
        self._running.discard(request.session)
        self._write(_POSTPONE, [(request.attempts, time.time() + pause, shown(outcome), request.session)], request)
        later = self._open[request.session] = request._replace(not_before=time.monotonic() + pause)
        return later

    def take_back(self, request: SessionRequest) -> None:
        """Write a request as it was before a try that did not begin after all; it can start at once."""
        self._running.discard(request.session)
        last = request.last_try
        values = request.attempts, last.started_at, last.outcome, last.connection, last.interface, request.session
        self._write(_BEGIN, [values], request)
        self._open[request.session] = request

    def close(self, ends: Sequence[tuple[SessionRequest, Closed, str]]) -> None:
        """Close requests with their outcomes, in one transaction: all of them, or none if JournalError is raised.

        They are not run again, unless `revive` opens one, and still make repeats duplicates.
        """
        now = time.time()
        rows = [
            (str(closed), now, shown(outcome), closed in REVIVABLE, request.session)
            for request, closed, outcome in ends
        ]
        self._write(_CLOSE, rows, *(request for request, *_ in ends))
        for request, *_ in ends:
            self._open.pop(request.session, None)
            self._running.discard(request.session)

    def revive(self, session: int) -> SessionRequest:
        """Open a failed or expired session again, as one that has not been tried yet and has all of its time.

        Raises NoSuchSession, NotPending if it is in another state, and NotKept if it can't be run again.
        """
        row = self.find(session)
        if row is None:
            raise NoSuchSession(session)
        if row.state not in REVIVABLE:
            raise NotPending(session, str(row.state))
        try:
            request = read_request(row._replace(state=PENDING, attempts=0), self._limits, self._longest_pause)
        except (Discard, ValueError) as error:
            # An older dmnotid kept no package of such a session, and a damaged file may have any.
            raise NotKept(session, row.state) from error
        self._write(_REVIVE, [(session,)], request)
        now = time.monotonic()
        self._open[session] = request._replace(not_before=now, expires_at=now + self._limits.expire_after)
        return self._open[session]

    def last_starts(self) -> dict[str, float]:
        """Return the start (monotonic) of each server's last try, as far as its row is kept."""
        now, monotonic = time.time(), time.monotonic()
        if judge_clock(now, self.times.floor).believed:
            # A clock that was ahead has written starts that would seem recent until that time.
            self._write(_DATE_STARTS, [{"now": now}])
        # If the clock is behind now, a start seems to lie ahead; it counts as one of this moment.
        return {server_id: monotonic - max(now - began, 0) for server_id, began in self._query(_LAST_STARTS, ())}

    def _write(self, statement: str, rows: Sequence[Values], *changed: SessionRequest) -> None:
        """Execute a statement once for each of `rows`, in one transaction; it changes the rows of these requests."""
        if self._admitted:
            # COMMIT would include the admission, before the caller has decided about it.
            raise JournalError(f"{self.file}: cannot write the journal: an admission is not committed")
        self._file.write(statement, rows)
        self._duplicates.note_change()
        self._changed.update((request.server_id, request.session) for request in changed)

    def _take_up(self, database: sqlite3.Connection, *, lost: bool) -> None:
        """Make a file that is being opened hold every open request, and read what it holds.

        Rows of an earlier file may be `lost`.
        """
        self._duplicates.reset()
        self.times.take_up(database, lost=lost)
        # Before the rows are read: every accepted request has to be in the file that is used from now on.
        restore(database, self._open.values())
        # Repeats are looked up by the index, and one that it does not find would be taken for a new notification.
        for (session,) in database.execute(SELECT_MISPLACED):
            raise JournalDamaged(f"{self.file}: the index does not find session {session}")
        for row in map(make_row, database.execute(SELECT_OPEN).fetchall()):
            if row.session in self._open:
                continue
            try:
                self._open[row.session] = read_request(row, self._limits, self._longest_pause)
            except (Discard, ValueError) as error:
                # It alone is set aside, and a repeat of its notification is accepted.
                logger.error("row set aside", session=row.session, file=str(self.file), problem=str(error))
                database.execute(_SET_ASIDE, (time.time(), row.session))
