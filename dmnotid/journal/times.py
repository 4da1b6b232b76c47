"""The two times of each server and the floor of the clock (policy/freshness.py), in memory and in their tables.

    committed --admitted, forget--> changed --write, committed--> committed
                                       |
                                       +--rolled_back--> committed

A server keeps its times when its rows are pruned, when it leaves the configuration, and when the file is replaced.
"""

import sqlite3
from typing import Final

from dmnotid.errors import JournalDamaged
from dmnotid.host.log import logger
from dmnotid.journal.rows import is_text
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.freshness import MARGIN, NEVER_SIGNED, ServerTimes
from dmnotid.wire.notification import MAX_TIME

TIMES_SCHEMA: Final = """
CREATE TABLE server (
    server_id  TEXT    PRIMARY KEY,
    newest     INTEGER NOT NULL,
    forgotten  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE clock (floor INTEGER NOT NULL);
"""

_SEALED: Final = """typeof(sent_at) = 'integer' AND seal = seal(
    CAST(server_id AS BLOB), CAST(notification_id AS INTEGER), CAST(fingerprint AS BLOB), sent_at)"""

# If an older file has no tables, or a damaged one lost them, they are filled from sealed rows.
DERIVE_SERVERS: Final = f"""
INSERT INTO server SELECT server_id, max(sent_at), -1 FROM session WHERE {_SEALED} GROUP BY server_id
ON CONFLICT DO NOTHING;
"""  # noqa: S608
# A row that arrived under a clock that was not believed may have got the arrival of a later row, under a believed one.
DERIVE_FLOOR: Final = f"""
INSERT INTO clock SELECT floor FROM (
    SELECT CAST(max(min(sent_at, received_at)) AS INTEGER) AS floor FROM session
    WHERE {_SEALED} AND clock_believed = 1 AND typeof(received_at) = 'real'
) WHERE floor IS NOT NULL AND NOT EXISTS (SELECT * FROM clock);
"""  # noqa: S608
COPY_SERVER: Final = "INSERT OR IGNORE INTO server VALUES (?, ?, ?)"
COPY_FLOOR: Final = "INSERT INTO clock SELECT ? WHERE NOT EXISTS (SELECT * FROM clock)"
_WRITE_SERVER: Final = "INSERT OR REPLACE INTO server VALUES (?, ?, ?)"
_WRITE_FLOOR: Final = "INSERT OR REPLACE INTO clock (rowid, floor) VALUES (1, ?)"


class KnownTimes:
    """The times that a journal holds."""

    def __init__(self) -> None:
        # By SERVER-ID, with what is not committed.
        self.servers: dict[str, ServerTimes] = {}
        # The latest time that a believed clock and a signature have both reached; None before there is one.
        self.floor: int | None = None
        # The committed times of each server whose times have changed since; None for a server without any.
        self._before: dict[str, ServerTimes | None] = {}
        # The committed floor.
        self._floor_before: int | None = None
        # No `newest` is later than this.
        self._latest = 0

    def admitted(self, verified: VerifiedNotification) -> None:
        """Take up the signed time of an admitted notification, and the clock of its arrival."""
        sent_at, now = verified.notification.sent_at, int(verified.received_at)
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
        database.executemany(_WRITE_SERVER, [(server_id, *self.servers[server_id]) for server_id in self._before])
        if self.floor != self._floor_before:
            database.execute(_WRITE_FLOOR, (self.floor,))

    def committed(self) -> None:
        """Make what was written the state that `rolled_back` returns to."""
        self._before.clear()
        self._floor_before = self.floor

    def rolled_back(self) -> None:
        """Return to the committed state."""
        for server_id, times in self._before.items():
            if times is None:
                del self.servers[server_id]
            else:
                self.servers[server_id] = times
                # A `newest` that was lowered is late again.
                self._latest = max(self._latest, times.newest)
        self.floor = self._floor_before
        self._before.clear()

    def take_up(self, database: sqlite3.Connection, *, lost: bool) -> None:
        """Unite the times in memory with those of a file that is being opened, in both places.

        If rows were `lost`, everything that a server has signed up to now, and that is not remembered, is forgotten.
        Raises JournalDamaged if a time of the file is not as it was written.
        """
        memory, floor = self.servers, self.floor
        found, found_floor, sound = read_times(database)
        if not sound:
            message = "a time of a server, or the floor of the clock, in the journal is not as it was written"
            raise JournalDamaged(message)
        self.servers, self.floor = found, found_floor
        self.committed()
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

    def _change(self, server_id: str, times: ServerTimes) -> None:
        # The first change since the commit alone has the committed times.
        self._before.setdefault(server_id, self.servers.get(server_id))
        self.servers[server_id] = times
        self._latest = max(self._latest, times.newest)


def read_times(database: sqlite3.Connection) -> tuple[dict[str, ServerTimes], int | None, bool]:
    """Return the times and the floor of a file, and whether each of them is as it was written.

    Those that are not are left out.
    """
    rows = database.execute("SELECT server_id, newest, forgotten FROM server").fetchall()
    servers = {
        server_id: ServerTimes(newest, forgotten)
        for server_id, newest, forgotten in rows
        if is_text(server_id) and _is_time(newest) and (_is_time(forgotten) or forgotten == NEVER_SIGNED.forgotten)
    }
    floors = [floor for (floor,) in database.execute("SELECT floor FROM clock")]
    sound = len(servers) == len(rows) and all(_is_time(floor) for floor in floors)
    return servers, max(floors) if sound and floors else None, sound


def _is_time(value: object) -> bool:
    return isinstance(value, int) and 0 <= value <= MAX_TIME
