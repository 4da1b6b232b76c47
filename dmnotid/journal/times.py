"""The times of each server and the floor of the clock (policy/freshness.py), in memory and in their tables.

    committed --admitted, forget--> changed --write, committed--> committed
                                       |
                                       +--rolled_back--> committed

A server keeps its times when its rows are pruned, when it leaves the configuration, and when the file is replaced.
"""

import sqlite3
from typing import Final

from dmnotid.errors import JournalDamaged
from dmnotid.host.log import logger
from dmnotid.journal.rows import is_text, shown_time
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.freshness import MARGIN, NEVER_SIGNED, ServerTimes
from dmnotid.wire.notification import MAX_TIME

TIMES_SCHEMA: Final = """
CREATE TABLE server (
    server_id      TEXT    PRIMARY KEY,
    newest         INTEGER NOT NULL,
    forgotten      INTEGER NOT NULL,
    last_accepted  REAL
) WITHOUT ROWID;
CREATE TABLE clock (floor INTEGER NOT NULL);
"""

_SEALED: Final = """typeof(sent_at) IN ('integer', 'null') AND seal = seal(
    CAST(server_id AS BLOB), CAST(notification_id AS INTEGER), CAST(fingerprint AS BLOB), sent_at)"""

# What an older file has not, or a damaged one lost, is derived from sealed rows.
DERIVE_SERVERS: Final = f"""
INSERT INTO server SELECT server_id, ifnull(max(sent_at), {NEVER_SIGNED.newest}), {NEVER_SIGNED.forgotten},
    max(received_at) FROM session WHERE {_SEALED} GROUP BY server_id
ON CONFLICT DO UPDATE SET last_accepted = ifnull(last_accepted, excluded.last_accepted);
"""  # noqa: S608
# A row that arrived under a clock that was not believed may have got the arrival of a later row, under a believed one.
DERIVE_FLOOR: Final = f"""
INSERT INTO clock SELECT floor FROM (
    SELECT CAST(max(min(sent_at, received_at)) AS INTEGER) AS floor FROM session
    WHERE {_SEALED} AND clock_believed = 1 AND typeof(received_at) = 'real'
) WHERE floor IS NOT NULL AND NOT EXISTS (SELECT * FROM clock);
"""  # noqa: S608
COPY_SERVER: Final = "INSERT OR IGNORE INTO server VALUES (?, ?, ?, ?)"
COPY_FLOOR: Final = "INSERT INTO clock SELECT ? WHERE NOT EXISTS (SELECT * FROM clock)"
_WRITE_SERVER: Final = "INSERT OR REPLACE INTO server VALUES (?, ?, ?, ?)"
_WRITE_FLOOR: Final = "INSERT OR REPLACE INTO clock (rowid, floor) VALUES (1, ?)"


class KnownTimes:
    """The times that a journal holds."""

    def __init__(self) -> None:
        # By SERVER-ID, with what is not committed.
        self.servers: dict[str, ServerTimes] = {}
        # Arrival of the last notification of each server that was admitted (POSIX seconds), signed or not.
        self.last_accepted: dict[str, float] = {}
        # The latest time that a believed clock and a signature have both reached; None before there is one.
        self.floor: int | None = None
        # No `newest` is later than this.
        self._latest = 0
        # The servers with a time or an arrival that has changed since the last commit.
        self._changed: set[str] = set()
        # `servers`, `last_accepted` and `_latest` as they were committed; None if they have not changed since.
        self._before: tuple[dict[str, ServerTimes], dict[str, float], int] | None = None
        # The committed floor.
        self._floor_before: int | None = None

    def admitted(self, verified: VerifiedNotification) -> None:
        """Take up the signed time of an admitted notification, and the clock of its arrival."""
        sent_at, now = verified.notification.sent_at, int(verified.received_at)
        self._save(verified.server_id)
        self.last_accepted[verified.server_id] = verified.received_at
        if sent_at is not None:
            times = self.servers.get(verified.server_id, NEVER_SIGNED)
            self._change(verified.server_id, times._replace(newest=max(times.newest, sent_at)))
            if verified.clock_believed:
                # The lesser of both, so that neither a server nor the clock alone can move it.
                self.floor = max(self.floor or 0, min(sent_at, now))
        # A time that is signed far ahead would be this server's reference under a clock that is not believed. `_latest`
        # spares looking at all servers for each notification.
        if verified.clock_believed and self._latest > now + MARGIN:
            for server_id, times in list(self.servers.items()):
                if times.newest > now + MARGIN:
                    self._change(server_id, times._replace(newest=now + MARGIN))
            self._latest = now + MARGIN

    def forget(self, server_id: str, sent_at: int) -> None:
        """Take up that a notification with this signed time is no longer remembered."""
        times = self.servers.get(server_id, NEVER_SIGNED)
        if sent_at > times.forgotten:
            self._change(server_id, times._replace(forgotten=sent_at))

    def write(self, database: sqlite3.Connection) -> None:
        """Write what has changed, in the transaction of the caller."""
        rows = [
            (server_id, *self.servers.get(server_id, NEVER_SIGNED), self.last_accepted.get(server_id))
            for server_id in self._changed
        ]
        database.executemany(_WRITE_SERVER, rows)
        if self.floor != self._floor_before:
            database.execute(_WRITE_FLOOR, (self.floor,))

    def committed(self) -> None:
        """Make what was written the state that `rolled_back` returns to."""
        self._changed.clear()
        self._before, self._floor_before = None, self.floor

    def rolled_back(self) -> None:
        """Return to the committed state."""
        if self._before is not None:
            self.servers, self.last_accepted, self._latest = self._before
        self.floor = self._floor_before
        self.committed()

    def take_up(self, database: sqlite3.Connection, *, lost: bool) -> None:
        """Unite the times in memory with those of a file that is being opened, in both places.

        If rows were `lost`, everything that a server has signed up to now, and that is not remembered, is forgotten.
        Raises JournalDamaged if a time of the file is not as it was written.
        """
        memory, arrivals, floor = self.servers, self.last_accepted, self.floor
        rows, found_floor, sound = read_times(database)
        if not sound:
            message = "a time of a server, or the floor of the clock, in the journal is not as it was written"
            raise JournalDamaged(message)
        self.servers = {server_id: times for server_id, times, _ in rows if times != NEVER_SIGNED}
        self.last_accepted = {server_id: arrival for server_id, _, arrival in rows if arrival is not None}
        self.floor = found_floor
        self.committed()
        for server_id, arrival in arrivals.items():
            self._save(server_id)
            self.last_accepted[server_id] = arrival
        for server_id, times in memory.items():
            other = self.servers.get(server_id, NEVER_SIGNED)
            self._change(server_id, ServerTimes(max(times.newest, other.newest), max(times.forgotten, other.forgotten)))
        self.floor = max((time for time in (floor, self.floor) if time is not None), default=None)
        self._latest = max((times.newest for times in self.servers.values()), default=0)
        # It is unknown which ids were remembered, so the newest signed time has to stand in for them.
        if lost and self.servers:
            for server_id, times in list(self.servers.items()):
                self.forget(server_id, times.newest)
            problem = "rows were lost: what a server has signed before, and is not remembered, is stale from now on"
            logger.error("notifications forgotten", servers=len(self.servers), problem=problem)
        self.write(database)
        self.committed()

    def _save(self, server_id: str) -> None:
        self._changed.add(server_id)
        # Copied as a whole: that takes far less than a commit, also for thousands of servers.
        if self._before is None:
            self._before = self.servers.copy(), self.last_accepted.copy(), self._latest

    def _change(self, server_id: str, times: ServerTimes) -> None:
        self._save(server_id)
        self.servers[server_id] = times
        self._latest = max(self._latest, times.newest)


def read_times(database: sqlite3.Connection) -> tuple[list[tuple[str, ServerTimes, float | None]], int | None, bool]:
    """Return the times and the last arrival of each server in a file, and the floor.

    The third value is whether all of them are as they were written; those that are not are left out. An arrival, which
    only people read, is None then.
    """
    # A file of the third schema has no arrivals.
    rows = database.execute("SELECT * FROM server").fetchall()
    servers = [
        (server_id, ServerTimes(newest, forgotten), shown_time(at) or None if isinstance(at, float) else None)
        for server_id, newest, forgotten, at, *_ in ((*row, None) for row in rows)
        if is_text(server_id) and _is_time(newest) and (_is_time(forgotten) or forgotten == NEVER_SIGNED.forgotten)
    ]
    floors = [floor for (floor,) in database.execute("SELECT floor FROM clock")]
    sound = len(servers) == len(rows) and all(_is_time(floor) for floor in floors)
    return servers, max(floors) if sound and floors else None, sound


def _is_time(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= MAX_TIME
