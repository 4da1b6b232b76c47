"""The journal of a daemon that does not run, read from a copy.

The file is never opened where it is: its lock, held at the wrong moment, would keep the daemon from starting.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from dmnotid.errors import JournalError
from dmnotid.journal.database import connect, journal_errors
from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.listing import Listing, Values
from dmnotid.journal.times import read_times


class JournalCopy(Listing):
    """What a journal had when it was last written, at `written_at` (POSIX seconds)."""

    def __init__(self, file: Path, database: sqlite3.Connection, written_at: float) -> None:
        super().__init__(file, self._read)
        # The copy.
        self._database = database
        self.written_at = written_at
        with journal_errors(file, "read"):
            servers, _, _ = read_times(database)
        # Arrival of the last notification of each server (POSIX seconds), by SERVER-ID.
        self.last_accepted = {server_id: arrival for server_id, _, arrival in servers if arrival is not None}

    def _read(self, statement: str, values: Values) -> list[tuple[Any, ...]]:
        with journal_errors(self.file, "read"):
            return self._database.execute(statement, values).fetchall()


@contextmanager
def read_copy(directory: Path) -> Iterator[JournalCopy]:
    """Copy the journal of a state directory to a private place ($TMPDIR, /tmp), and read it there.

    Raises JournalError, whose cause is a PermissionError if this user may not read it.
    """
    file = directory / FILE_NAME
    with tempfile.TemporaryDirectory(prefix="dmnotid-") as place:
        copy = Path(place) / FILE_NAME
        try:
            written_at = _copy(file, copy)
            # Also converts the copy of an older schema.
            database = connect(copy)
        except PermissionError as error:
            message = f"{file}: {error.strerror}; root and the user of the daemon can read the journal"
            raise JournalError(message) from error
        except OSError as error:
            raise JournalError(f"{file}: cannot copy the journal: {error.strerror}") from error
        except JournalError as error:
            # The copy is removed before an operator reads the message.
            raise type(error)(str(error).replace(str(copy), str(file))) from error
        with closing(database):
            yield JournalCopy(file, database, written_at)


def _copy(file: Path, copy: Path) -> float:
    """Copy a database and its log; return the time of the last write."""
    # The user of the daemon can exchange the file, and root may be reading it.
    if file.is_symlink() or not file.is_file():
        raise JournalError(f"{file}: there is no journal; a regular file is expected")
    shutil.copyfile(file, copy)
    log = Path(f"{file}-wal")
    if log.is_symlink() or not log.is_file():
        # The daemon was stopped in order: SQLite has written the log back.
        return file.stat().st_mtime
    shutil.copyfile(log, f"{copy}-wal")
    return max(file.stat().st_mtime, log.stat().st_mtime)
