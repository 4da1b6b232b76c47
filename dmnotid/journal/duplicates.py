"""The row that makes a notification a duplicate (5.1.4), its insertion, and the pruning of rows that no longer do.

    open --closed--> remembered --`remember` seconds later--> pruned, or replaced by a notification with the same id

For a signed row, that time is over when its signed time is that long before the floor, which neither a clock nor a
server alone can move, or before the signed time of the notification that replaces it. Its own time is forgotten then
(`ServerTimes.forgotten`), so that a replay of it is stale. For an unsigned row, the time counts from its arrival. An
arrival under a clock that was not believed, or was ahead, is corrected as soon as a notification arrives under a better
clock.
"""

import sqlite3
import time
from typing import Final

from dmnotid.errors import Duplicate, JournalDamaged, QueueFull
from dmnotid.journal.rows import INSERT, REPLACE, SELECT_KNOWN, UNREADABLE, Row, fingerprint, is_sound, new_row
from dmnotid.journal.times import KnownTimes
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.freshness import NEVER_SIGNED, check_forgotten

PRUNE_EVERY: Final = 3_600
"""Minimum time between two prunings, in seconds."""

PRUNE_ROWS: Final = 1_000
"""Maximum number of rows that one admission deletes, so that a backlog does not delay reception."""

CACHED_ROWS: Final = 1_024
"""Maximum number of rows that are cached for a flood of duplicates."""

CLOCK_STEP: Final = 1.0
"""A believed clock that goes back by more than this, in seconds, was ahead before."""

# Without a floor, the comparison is NULL and nothing signed is deleted.
_PRUNE: Final = """
DELETE FROM session WHERE session IN (
    SELECT session FROM session WHERE closed_at IS NOT NULL AND sent_at < :floor - :remember
    UNION ALL
    SELECT session FROM session
    WHERE closed_at IS NOT NULL AND sent_at IS NULL AND received_at < :now - :remember
        AND (clock_believed OR NOT :believed)
    LIMIT :rows
) RETURNING server_id, sent_at
"""
_DATE_UNBELIEVED: Final = "UPDATE session SET received_at = ?, clock_believed = 1 WHERE NOT clock_believed"
_DATE_AHEAD: Final = "UPDATE session SET received_at = :now WHERE sent_at IS NULL AND received_at > :now"


class Duplicates:
    """Decides about duplicates in the database of a journal, in the transaction of its caller."""

    def __init__(self, remember: float, times: KnownTimes) -> None:
        # Time for which a closed row makes a notification a duplicate, in seconds.
        self.remember = remember
        # Signed times of each server, and the floor of the clock.
        self._times = times
        # Monotonic time of the last pruning that deleted all it could.
        self._pruned_at = float("-inf")
        # Whether the table may have arrival times to correct.
        self._undated = True
        # Latest arrival of an unsigned notification since then; a believed clock that is earlier was ahead.
        self._latest = float("-inf")
        # Rows by server and id, as read since the table was last changed. A flood of signed repeats needs them: without
        # a cache, it costs twice as much.
        self._cache: dict[tuple[str, int], Row] = {}

    def reset(self) -> None:
        """Assume nothing of the table: changes were rolled back, or there is another file."""
        self._pruned_at = float("-inf")
        self._undated = True
        self._cache.clear()

    def note_change(self) -> None:
        """Forget cached rows, because the table was changed."""
        self._cache.clear()

    def refuse_cached(self, verified: VerifiedNotification) -> None:
        """Raise Duplicate or QueueFull if a cached row decides that."""
        row = self._cache.get((verified.server_id, verified.notification.notification_id))
        # A better clock corrects the rows first; the cache has their arrivals from before.
        if row is not None and not self._corrects(verified):
            self._refuse(row, verified)

    def find_replaced(self, database: sqlite3.Connection, verified: VerifiedNotification) -> Row | None:
        """Return the row whose place a notification takes, None if there is no row.

        Raises Duplicate, QueueFull or Stale, JournalDamaged if the row is not as it was written.
        """
        if self._corrects(verified):
            self._correct_arrivals(database, verified.received_at)
        row = self._find(database, verified)
        # If the file was just recreated, without the row of this notification, its age was checked too early.
        sent_at = verified.notification.sent_at
        if sent_at is not None:
            times = self._times.servers.get(verified.server_id, NEVER_SIGNED)
            check_forgotten(sent_at, times, verified.received_at)
        return row

    def insert(self, database: sqlite3.Connection, verified: VerifiedNotification, replaced: Row | None) -> int:
        """Insert the row of a notification, or put it in the place of `replaced`. Returns its session."""
        if not database.in_transaction:
            database.execute("BEGIN IMMEDIATE")
        self._times.admitted(verified)
        if replaced is not None and isinstance(replaced.sent_at, int) and replaced.state != UNREADABLE:
            # No row makes a replay of the replaced one a duplicate any more, so its time has to make it stale.
            self._times.forget(verified.server_id, replaced.sent_at)
        self._prune(database, verified)
        notification, received_at, believed = verified.notification, verified.received_at, verified.clock_believed
        row = new_row(verified.server_id, notification, str(verified.source), received_at, believed=believed)
        session = database.execute(INSERT if replaced is None else REPLACE, row).lastrowid or 0
        self.note_change()
        if not believed:
            self._undated = True
        if notification.sent_at is None:
            self._latest = max(self._latest, received_at)
        return session

    def _correct_arrivals(self, database: sqlite3.Connection, now: float) -> None:
        """Give rows with the arrival of a worse clock the arrival of a notification whose clock is believed."""
        if not database.in_transaction:
            database.execute("BEGIN IMMEDIATE")
        database.execute(_DATE_UNBELIEVED, (now,))
        database.execute(_DATE_AHEAD, {"now": now})
        self._undated = False
        self._latest = now
        self.note_change()

    def _find(self, database: sqlite3.Connection, verified: VerifiedNotification) -> Row | None:
        identity = verified.server_id, verified.notification.notification_id
        found = database.execute(SELECT_KNOWN, identity).fetchone()
        if found is None:
            return None
        row = Row._make(found)
        # Such a row can't decide: it might keep its notification from being accepted, and not have its session either.
        if row.state != UNREADABLE and not is_sound(row):
            raise JournalDamaged(f"session {row.session}: its row in the journal is not as it was written")
        if len(self._cache) >= CACHED_ROWS:
            self._cache.clear()
        self._cache[identity] = row
        self._refuse(row, verified)
        return row

    def _prune(self, database: sqlite3.Connection, verified: VerifiedNotification) -> None:
        """Delete rows that are remembered no longer, if PRUNE_EVERY is over, and forget their signed times."""
        now = time.monotonic()
        if now - self._pruned_at < PRUNE_EVERY:
            return
        facts = {
            "floor": self._times.floor,
            "remember": self.remember,
            "believed": verified.clock_believed,
            "now": verified.received_at,
            "rows": PRUNE_ROWS,
        }
        pruned = database.execute(_PRUNE, facts).fetchall()
        for server_id, sent_at in pruned:
            if sent_at is not None:
                self._times.forget(server_id, int(sent_at))
        # Otherwise rows may be left, and the next admission continues.
        if len(pruned) < PRUNE_ROWS:
            self._pruned_at = now

    def _corrects(self, verified: VerifiedNotification) -> bool:
        """Return whether this notification arrived under a better clock than rows may have."""
        is_behind = verified.received_at < self._latest - CLOCK_STEP
        return verified.clock_believed and (self._undated or is_behind)

    def _refuse(self, row: Row, verified: VerifiedNotification) -> None:
        if is_replaceable(row, verified, self.remember):
            return
        if row.sent_at is None and verified.notification.sent_at is not None:
            # Anyone may have sent the unsigned one. As queue-full, a repeat of the signed one is accepted once it is
            # closed.
            raise QueueFull(verified.server_id, 1, 1, blocked_by=row.session)
        content = fingerprint(verified.notification.octets)
        raise Duplicate(row.session, same_content=row.fingerprint == content)


def is_replaceable(row: Row, verified: VerifiedNotification, remember: float) -> bool:
    """Return whether a notification may take the place of the row that has its id (5.1.4)."""
    if row.state == UNREADABLE:
        # It was accepted and can't be run, so a repeat is welcome.
        return True
    if row.closed_at is None:
        return False
    sent_at = verified.notification.sent_at
    # The columns of a damaged file may hold anything.
    if row.sent_at is not None:
        # A later signed time shows that the server's counter has wrapped, also on a device that never has the time.
        return sent_at is not None and isinstance(row.sent_at, int) and sent_at - row.sent_at > remember
    # Anyone may have sent the unsigned one, so it can't stand in the way of a signed one.
    if sent_at is not None:
        return True
    dated = bool(row.clock_believed) or not verified.clock_believed
    is_number = isinstance(row.received_at, int | float)
    return dated and is_number and verified.received_at - row.received_at > remember
