"""The file of the journal at its place: opened, read and written, set aside if damaged, recreated if it is gone.

    closed --ensure--> open --error of SQLite--> closed, or still open after a rollback
                        |--damaged--> set aside, and a new file with the rows that can be read--> open
                        +--deleted--> a new file--> open

A damaged file is renamed to DAMAGED_NAME, the rows that can be read are copied into a new file, and then it is renamed
to journal-corrupt-DATE.sqlite3. If the process ends in between, the next start finds DAMAGED_NAME and copies again.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from dmnotid.errors import Discard, JournalDamaged, JournalError, UntrustedPath
from dmnotid.host.log import logger
from dmnotid.host.trust import check_trusted_directory, check_trusted_if_there
from dmnotid.journal.database import SQLITE_ERRORS, connect, explain, journal_errors
from dmnotid.journal.listing import Values
from dmnotid.journal.rows import COLUMNS, INSERT_IF_NEW, MAX_SESSION, Row, is_whole, make_row, read_text, seal
from dmnotid.journal.times import COPY_FLOOR, COPY_SERVER, DERIVE_FLOOR, DERIVE_SERVERS, read_times

FILE_NAME: Final = "journal.sqlite3"

DAMAGED_NAME: Final = "journal-damaged.sqlite3"
"""Name of a file that was set aside, until its rows are in the new one."""

LOSSES: Final = frozenset({"rows_lost", "reading_stopped", "times_lost"})
"""Facts about a damaged file that show that it had more than was copied."""

KEPT_DAMAGED: Final = 3
"""Maximum number of damaged files that are kept, so that a failing disk is not filled with them."""

STATE_MODE: Final = 0o700
PARENT_MODE: Final = 0o755
"""Modes of a state directory, and of the directories above it, that dmnotid creates."""

# Files of a database, in the order of renaming: a log must never be beside the file of another database.
_SIDE_FILES: Final = ("-wal", "-journal", "")


class OnOpen(Protocol):
    """A function that opening a file calls."""

    def __call__(self, database: sqlite3.Connection, *, lost: bool) -> None:
        """Use the file from now on; if `lost`, rows were lost since a file was last opened."""


class JournalFile:
    """The file in a state directory, held by one process at a time.

    Every call opens it if it is closed, also after an error.
    """

    def __init__(self, directory: Path, on_open: OnOpen, on_error: Callable[[], None]) -> None:
        """`on_open` is called in the transaction that opens a file. If it raises JournalDamaged, the file is set aside.

        `on_error` is called after an error of `use`; it has to call `rollback`.
        """
        # The path of the file.
        self.file = directory / FILE_NAME
        # Called with each file that is opened, before anything else uses it.
        self._on_open = on_open
        # Called after an error, before the file is replaced.
        self._on_error = on_error
        # Number of times that the file could not be read or written.
        self.errors = 0
        # None before the file is opened, and after an error.
        self._database: sqlite3.Connection | None = None
        # Device and inode of the open file.
        self._identity = (0, 0)
        # Whether the file that was open is gone, and no other one was opened since.
        self._lost = False
        # After `close`, the file stays closed.
        self._closed = False

    @contextmanager
    def use(self, action: str) -> Iterator[sqlite3.Connection]:
        """Give the open database to a block that will read or write it (`action`).

        Every error but a Discard becomes JournalError, after a rollback; a file that is damaged is replaced.
        """
        try:
            yield self.ensure()
        except Discard:
            raise
        except Exception as error:
            # The caller may have admitted others in this transaction, so a bug too has to be a JournalError.
            if not isinstance(error, (JournalError, OSError, *SQLITE_ERRORS)):
                logger.error("internal error", file=str(self.file), exc_info=error)
            self._on_error()
            self.errors += 1
            failure = error if isinstance(error, JournalError) else explain(error, self.file, action)
            if isinstance(failure, JournalDamaged):
                self._drop()
                _set_aside(self.file)
                self._open(str(failure))
            if failure is error:
                raise
            raise failure from error

    def read(self, statement: str, values: Values = ()) -> list[tuple[Any, ...]]:
        """Return all rows that a query finds. Raises JournalError."""
        with self.use("read") as database:
            return database.execute(statement, values).fetchall()

    def write(self, statement: str, rows: Sequence[Values], *, again: bool = True) -> None:
        """Execute a statement once for each of `rows`, and commit. Raises JournalError, and then none is written."""
        try:
            with self.use("write") as database:
                if not database.in_transaction:
                    database.execute("BEGIN IMMEDIATE")
                database.executemany(statement, rows)
                database.execute("COMMIT")
        except JournalDamaged:
            # The file was replaced. An end that is not written now would be run again after a stop.
            if not again:
                raise
            self.write(statement, rows, again=False)

    def ensure(self) -> sqlite3.Connection:
        """Return the open database, after opening a closed file or recreating a deleted one.

        Creates a missing directory. Raises JournalError.
        """
        if self._closed:
            raise JournalError(f"{self.file}: cannot use the journal: it is closed")
        database = self._database
        if database is None:
            return self._open()
        # An open transaction would be lost with the connection; the file is checked before the next one.
        if database.in_transaction or self._is_at_its_place():
            return database
        self._drop()
        self._lost = True
        problem = "another file was put in its place while it was in use"
        if os.path.lexists(self.file):
            _set_aside(self.file)
        else:
            problem = "it was deleted while it was in use"
            logger.error("journal recreated", file=str(self.file), problem=problem)
        return self._open(problem)

    def rollback(self) -> None:
        """Undo the open transaction, if there is one."""
        try:
            if self._database is not None and self._database.in_transaction:
                self._database.execute("ROLLBACK")
        except SQLITE_ERRORS:
            # A transaction ends with its connection, too.
            self._drop()

    def close(self) -> None:
        """Close the file for good, without what is not committed."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(*SQLITE_ERRORS):
                database.close()

    def _is_at_its_place(self) -> bool:
        try:
            found = self.file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # Without permission to look at it, the open file can still be used.
            return True
        return (found.st_dev, found.st_ino) == self._identity

    def _open(self, problem: str = "an earlier start has not finished setting it aside") -> sqlite3.Connection:
        _make_directory(self.file.parent)
        # Before each opening, because the directory may be another one by now.
        check_state(self.file.parent)
        try:
            return self._connect(problem)
        except JournalDamaged as damage:
            # A new file is made in its place, and takes the rows that can be read.
            _set_aside(self.file)
            return self._connect(str(damage))

    def _connect(self, problem: str) -> sqlite3.Connection:
        """Open the file at its place, with the rows of one that was set aside; `problem` is the reason for that."""
        damaged = self.file.with_name(DAMAGED_NAME)
        database = connect(self.file)
        try:
            with journal_errors(self.file, "open"):
                database.execute("BEGIN IMMEDIATE")
                facts = rescue(damaged, database) if os.path.lexists(damaged) else None
                self._on_open(database, lost=self._lost or (facts is not None and not LOSSES.isdisjoint(facts)))
                database.execute("COMMIT")
                found = self.file.stat()
            # Only after the commit: until then, the next start has to find DAMAGED_NAME and copy again.
            if facts is not None:
                logger.error("journal set aside", kept_as=str(_keep(damaged)), problem=problem, **facts)
        except BaseException:
            database.close()
            raise
        self._database, self._identity = database, (found.st_dev, found.st_ino)
        self._lost = False
        return database


def rescue(damaged: Path, database: sqlite3.Connection) -> dict[str, object]:
    """Copy the rows of a damaged file that can be read and are whole. Return what the log reports of it.

    Raises JournalError if reading fails for another reason than damage.
    """
    rescued, lost, stopped = 0, set(), ""
    with journal_errors(damaged, "read"):
        source = sqlite3.connect(damaged, timeout=0, isolation_level=None)
    with closing(source):
        # Reading stops at the first damaged page. From both ends, only the rows between the first and the last such
        # page are missed.
        for order in ("ASC", "DESC"):
            try:
                for row in _read(source, damaged, order):
                    if not is_whole(row):
                        lost.add(row.session)
                        continue
                    # Under a number that is too high, SQLite could give out no higher one.
                    sound = isinstance(row.session, int) and 0 < row.session <= MAX_SESSION
                    added = database.execute(INSERT_IF_NEW, row if sound else (None, *row[1:])).rowcount > 0
                    if not added:
                        # Another row may have its number. If it is the same notification, nothing is added.
                        added = database.execute(INSERT_IF_NEW, (None, *row[1:])).rowcount > 0
                    rescued += added
                break
            except JournalDamaged as damage:
                stopped = str(damage)
        # After the rows, from which times that can't be read are derived.
        times = _copy_times(source, damaged, database)
    facts: dict[str, object] = {"rows_rescued": rescued}
    if not times:
        facts["times_lost"] = True
    if lost:
        facts["rows_lost"] = len(lost)
    if stopped:
        facts["reading_stopped"] = stopped
    return facts


def _copy_times(source: sqlite3.Connection, damaged: Path, database: sqlite3.Connection) -> bool:
    """Copy the times of a damaged file; return whether all could be read. Others are derived from its rows."""
    try:
        with journal_errors(damaged, "read"):
            servers, floor, sound = read_times(source)
    except JournalDamaged:
        servers, floor, sound = [], None, False
    database.executemany(COPY_SERVER, [(server_id, *times, arrival) for server_id, times, arrival in servers])
    database.executemany(COPY_FLOOR, [] if floor is None else [(floor,)])
    if not sound:
        database.execute(DERIVE_SERVERS)
        database.execute(DERIVE_FLOOR)
    return sound


def _read(source: sqlite3.Connection, damaged: Path, order: str) -> Iterator[Row]:
    """Yield the rows of any schema. Raises JournalDamaged at the first one that cannot be read."""
    source.text_factory = read_text
    with journal_errors(damaged, "read"):
        # Without this, SQLite leaves a shared-memory file.
        source.execute("PRAGMA locking_mode = EXCLUSIVE")
        # With this, SQLite ignores an index whose definition is damaged.
        source.execute("PRAGMA writable_schema = ON")
        found = source.execute(f"SELECT * FROM session NOT INDEXED ORDER BY session {order}")  # noqa: S608
        names = [name for name, *_ in found.description]
        # An older schema has fewer columns, and other ones.
        places = [names.index(name) if name in names else None for name in COLUMNS]
        for values in found:
            row = make_row([None if place is None else values[place] for place in places])
            # The first schema had no checksum. As in a migration, its rows are believed.
            if "seal" not in names:
                row = row._replace(seal=seal(row.server_id, row.notification_id, row.fingerprint, row.sent_at))
            yield row


def check_state(state: Path) -> None:
    """Ensure that only root and the daemon's user can write to a journal: a row in it is as good as a signature.

    Raises JournalError.
    """
    directory = state.absolute()
    # A directory that is missing is made below one that must be trusted too.
    nearest = next(it for it in (directory, *directory.parents) if os.path.lexists(it))
    try:
        check_trusted_directory(nearest)
        for name in (FILE_NAME, DAMAGED_NAME):
            for side in _SIDE_FILES:
                check_trusted_if_there(directory / f"{name}{side}")
    except UntrustedPath as error:
        raise JournalError(f"state: {error}; a directory that no other user can write to is expected") from error


def _make_directory(directory: Path) -> None:
    try:
        # Not with parents=True: their modes would come from the umask, and might not be trusted.
        for above in reversed(directory.parents):
            if not above.exists():
                above.mkdir(mode=PARENT_MODE, exist_ok=True)
        directory.mkdir(mode=STATE_MODE, exist_ok=True)
    except OSError as error:
        message = f"state: {directory}: {error.strerror}; a directory that dmnotid can write to is expected"
        raise JournalError(message) from error


def _set_aside(file: Path) -> None:
    """Rename a damaged database to DAMAGED_NAME. Raises JournalError."""
    damaged = file.with_name(DAMAGED_NAME)
    if os.path.lexists(damaged):
        # Its rows are not in a new file yet, and replacing it would lose them.
        message = f"{file}: damaged, and {damaged.name} exists from before: move it away to continue without its rows"
        raise JournalError(message)
    _rename(file, damaged)


def _keep(damaged: Path) -> Path:
    """Give a damaged file its last name, and delete the oldest files of that kind beyond KEPT_DAMAGED."""
    # The names have the date, so they sort by age.
    others = sorted(damaged.parent.glob("journal-corrupt-*.sqlite3"))
    kept = damaged.with_name(f"journal-corrupt-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.sqlite3")
    _rename(damaged, kept)
    for old in others[: max(len(others) + 1 - KEPT_DAMAGED, 0)]:
        for side in _SIDE_FILES:
            with suppress(OSError):
                Path(f"{old}{side}").unlink()
    return kept


def _rename(file: Path, to: Path) -> None:
    try:
        for side in _SIDE_FILES:
            # SQLite deletes the log of a database that is closed in order.
            with suppress(FileNotFoundError):
                Path(f"{file}{side}").rename(f"{to}{side}")
    except OSError as error:
        raise JournalError(f"{file}: damaged, and cannot be renamed to {to.name}: {error.strerror}") from error
