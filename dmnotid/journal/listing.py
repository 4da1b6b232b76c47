"""Queries for an operator: the rows of a journal, the last session of each server, and how much there is.

Their values come from a file that may be damaged: a row that is not as it was written is left out.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from dmnotid.journal.rows import MAX_SESSION, PENDING, SELECT_PAGE, SELECT_ROW, Row, is_whole, make_row, shown_time
from dmnotid.policy.sessions import SessionView

ROWS_AT_ONCE: Final = 32
"""Number of rows that a page is made of: no reader holds up the loop, or keeps the log from being written back."""

_EXTENT: Final = "SELECT count(*), (SELECT received_at FROM session ORDER BY session LIMIT 1) FROM session"
# Of each server, the session that was tried or closed last; the order of the table is the quickest way to all rows.
_LAST_SESSIONS: Final = """
SELECT session, max(ifnull(closed_at, started_at)) FROM session NOT INDEXED
WHERE typeof(ifnull(closed_at, started_at)) = 'real' GROUP BY server_id
"""

Values = Sequence[object] | Mapping[str, object]
"""The values of the parameters of a statement."""

Query = Callable[[str, Values], list[tuple[Any, ...]]]
"""A function that runs a query. Raises JournalError."""


class Listing:
    """A journal as an operator sees it. Every member raises JournalError if the file can't be read."""

    def __init__(self, file: Path, query: Query) -> None:
        # The path of the file, for messages.
        self.file = file
        # Runs a query in it.
        self._query = query
        # The row of each server's last session; None until they are asked for.
        self._last_rows: dict[str, Row] | None = None
        # Sessions that were changed since those rows were read, by server.
        self._changed: dict[str, int] = {}

    def rows(self, since: float | None = None) -> Iterator[Row]:
        """Yield all rows by session number, or those accepted or closed at `since` (POSIX seconds) or later."""
        for page in self.pages(since):
            yield from page

    def pages(self, since: float | None = None) -> Iterator[list[Row]]:
        """Yield the same rows in parts, so that a caller can do something else in between; some are empty."""
        values: dict[str, object] = {"last": 0, "since": since, "most": ROWS_AT_ONCE}
        while found := self._query(SELECT_PAGE, values):
            # Rows that are not wanted are read too, so that each page takes the same short time.
            yield [row for wanted, *columns in found if wanted and is_whole(row := make_row(columns))]
            values["last"] = found[-1][1]

    def find(self, session: int) -> Row | None:
        """Return the row of one session, open or closed; None if there is none."""
        # SQLite has no integers of more than 64 bits.
        found = self._query(SELECT_ROW, (session,)) if 0 < session <= MAX_SESSION else []
        return make_row(found[0]) if found else None

    def last_sessions(self) -> Mapping[str, Row]:
        """Return the session of each server that was tried or closed last, without its package.

        The first call reads the whole table, each later one only the sessions that were changed since.
        """
        if self._last_rows is None:
            sessions, last = [session for session, _ in self._query(_LAST_SESSIONS, ())], {}
        else:
            sessions, last = [*self._changed.values()], self._last_rows
        for session in sessions:
            row = self.find(session)
            # It may have been pruned meanwhile, or be damaged.
            if row is not None and is_whole(row):
                last[row.server_id] = row._replace(package=None)
        self._last_rows = last
        self._changed.clear()
        return last

    def probe(self) -> None:
        """Run a trivial query to check that the journal is readable."""
        self._query("SELECT 1 FROM session LIMIT 1", ())

    @property
    def octets(self) -> int:
        """Size of the file and its log; 0 if there is none."""
        total = 0
        for side in ("", "-wal"):
            with suppress(OSError):
                # Making a Path takes longer than the call.
                total += os.stat(f"{self.file}{side}").st_size  # noqa: PTH116
        return total

    def extent(self) -> tuple[int, float | None]:
        """Return how many notifications are remembered, and the arrival of the first of them (POSIX seconds)."""
        ((count, oldest),) = self._query(_EXTENT, ())
        return count, shown_time(oldest) or None if isinstance(oldest, float) else None


def view_of(row: Row) -> SessionView:
    """Return a row as an operator sees it, without what only a running daemon decides."""
    return SessionView(
        session=row.session,
        server_id=row.server_id,
        notification_id=row.notification_id,
        state=row.state,
        accepted_at=shown_time(row.received_at),
        source=row.source,
        signed=row.sent_at is not None,
        attempts=row.attempts,
        # Not the pause that was before the session was closed.
        next_at=shown_time(row.not_before) or None if row.state == PENDING else None,
        connection=row.connection,
        interface=row.interface,
        started_at=row.started_at,
        outcome=row.outcome,
        closed_at=None if row.closed_at is None else shown_time(row.closed_at),
    )
