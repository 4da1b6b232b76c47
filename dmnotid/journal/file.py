"""The journal's file: one SQLite database, opened for this process alone, and replaced where it is damaged or gone.

What the rows mean is the journal's business; here they only have to be whole. A file that SQLite can't make sense of is
set aside under another name, and every row that can still be read goes into a new one. Nothing is ever deleted but the
oldest of several such files.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.errors import JournalDamaged, JournalError, UntrustedPath
from dmnotid.host.log import logger
from dmnotid.host.trust import check_trusted_directory, check_trusted_if_there
from dmnotid.journal.database import connect, told
from dmnotid.journal.rescue import Copied, merge, rescue

FILE_NAME: Final = "journal.sqlite3"
DAMAGED_NAME: Final = "journal-damaged.sqlite3"
"""A file that was set aside, until all that it holds is in the new one; -2 and so on where there are several."""

KEPT_DAMAGED: Final = 3
"""How many damaged files stay for somebody to look at: a disk that goes bad must not be filled with them."""

STATE_MODE: Final = 0o700
PARENT_MODE: Final = 0o755
"""What the state directory, and those above it, are made with where they don't exist."""

SLOW: Final = 0.05
RESTS: Final = 20
"""An attempt to get a file again that took longer than SLOW (seconds) and failed is followed by a pause that is so many
times as long: reception goes on meanwhile, and can accept nothing."""

_SIDE_FILES: Final = ("-wal", "-journal", "")
"""What belongs to a database, in the order in which it is moved: a log must never be found beside another's file."""


_NEVER_CLOSED: Final[list[sqlite3.Connection]] = []
"""Connections that are kept to the end of the process: it takes a mount over the state directory for each."""


class _Place(NamedTuple):
    """What tells the files that are open from others at their place: device and inode, and how long the log was."""

    file: tuple[int, int]
    log: tuple[int, int] | None
    log_octets: int


class JournalFile:
    """The open file of a state directory; one process at a time holds it.

    Raises JournalError where it can't be opened, and from any statement that fails: JournalDamaged where that is the
    file's own fault. `generation` counts the files that stood in this place so far.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create it, and the directory; what is damaged is set aside first."""
        self.file = directory / FILE_NAME
        self.generation = 0
        self._log = Path(f"{self.file}-wal")
        self._database: sqlite3.Connection | None = None
        self._place: _Place | None = None
        self._closed = False
        self._again_at = float("-inf")
        self._problem = ""
        with self._paced():
            self._open()

    @property
    def database(self) -> sqlite3.Connection:
        """The open database; without one, because none could be opened, JournalError is raised."""
        if self._database is None:
            message = f"{self.file}: can't use the journal: it is a closed database"
            raise JournalError(message)
        return self._database

    @property
    def is_open(self) -> bool:
        """Whether there is one."""
        return self._database is not None

    def ensure(self) -> None:
        """See that the file at its place is the one that is open, and open the one that is there where it is not.

        Raises JournalDamaged where its log was taken away, and with it what will be written from now on.
        """
        if self._database is None:
            if not self._closed:
                with self._paced():
                    self._open()
        elif self._is_elsewhere():
            with self._paced():
                self._move()

    def note_written(self) -> None:
        """Take down how long the log is after a commit: one that is cut off to what it was before is noticed then."""
        place = self._place
        with suppress(OSError):
            log = self._log.stat()
            # Another one, or a shorter one, is left for `ensure` to find.
            if place is not None and place.log == (log.st_dev, log.st_ino) and log.st_size > place.log_octets:
                self._place = place._replace(log_octets=log.st_size)

    def replace(self, problem: JournalError) -> None:
        """Set the open file aside because of `problem`, and go on with a new one that has what can still be read."""
        self.reopen()
        with self._paced():
            _set_aside(self.file)
            self._open(problem)

    def reopen(self) -> None:
        """Close it for now, whatever is being written: `ensure` opens it again."""
        with suppress(JournalError):
            self._drop()

    def close(self) -> None:
        """Close it for good; what was not committed is gone."""
        self._closed = True
        self._drop()

    @contextmanager
    def _paced(self) -> Iterator[None]:
        """Keep what takes long and fails from being done for every datagram; it fails at once meanwhile."""
        began = time.monotonic()
        if began < self._again_at:
            raise JournalError(self._problem)
        try:
            yield
        except (OSError, MemoryError, JournalError) as error:
            took = time.monotonic() - began
            self._again_at = time.monotonic() + RESTS * took if took > SLOW else float("-inf")
            self._problem = str(error)
            if not isinstance(error, JournalError):
                message = f"{self.file}: {error or 'not enough memory'}"
                raise JournalError(message) from error
            raise

    def _drop(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with told(self.file, "close"):
                database.close()

    def _open(self, problem: JournalError | None = None) -> None:
        _make_directory(self.file.parent)
        see_who_may_write(self.file.parent)
        try:
            database = connect(self.file)
        except JournalDamaged as error:
            problem = error
            _set_aside(self.file)
            database = connect(self.file)
        try:
            self._take_over(database, problem)
            self._log = _log_of(database)
        except BaseException:
            database.close()
            raise
        self._database, self._place = database, self._look()
        self.generation += 1

    def _take_over(self, database: sqlite3.Connection, problem: JournalError | None) -> None:
        """Copy what files hold that were set aside just now, or by a process that didn't come to the end of it."""
        for damaged in reversed([name for name in _damaged_names(self.file) if _is_taken(name)]):  # the newest first
            rescued = rescue(damaged, database, self.file)
            said = "one that was damaged earlier was left behind" if problem is None else str(problem)
            _tell_of_rescue(_keep(damaged), rescued, said)

    def _look(self) -> _Place:
        file = self.file.stat()
        try:
            log = self._log.stat()
        except FileNotFoundError:
            return _Place((file.st_dev, file.st_ino), None, 0)
        return _Place((file.st_dev, file.st_ino), (log.st_dev, log.st_ino), log.st_size)

    def _is_elsewhere(self) -> bool:
        """Tell whether the file that is open is not the one at its place; where that can't be told, it is."""
        before = self._place
        try:
            place = self._look()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:  # a permission that was taken away closes no file that is open
            return False
        if before is None or place.file != before.file:
            return True
        if before.log is not None and (place.log != before.log or place.log_octets < before.log_octets):
            message = f"{self._log}: it was deleted or cut off while it was in use"
            raise JournalDamaged(message)
        self._place = place
        return False

    def _move(self) -> None:
        """Take everything into the file that is now at this one's place: somebody deleted it, or put another there."""
        old, place, log = self.database, self._place, self._log
        self._database = None
        try:
            self._take_log_away(place)
            merged = self._open_and_merge(old)
        except BaseException:
            self.reopen()
            self._database, self._place, self._log = old, place, log
            raise
        self._close_moved(old, place)
        problem = "the file that was open isn't there any more"
        logger.error("journal opened anew", file=str(self.file), rows_kept=merged.whole, problem=problem)

    def _close_moved(self, old: sqlite3.Connection, place: _Place | None) -> None:
        """Close what isn't at its place any more.

        SQLite goes by the inode's number alone there: where the new file has the same one, on another device, it would
        take that for its own and delete its log. Such a connection is never closed.
        """
        if place is not None and self._place is not None and place.file[1] == self._place.file[1]:
            _NEVER_CLOSED.append(old)
            return
        with suppress(sqlite3.Error):
            old.close()

    def _take_log_away(self, place: _Place | None) -> None:
        """Unlink the log of the file that is open: it would be taken for that of the file which stands there now."""
        with suppress(FileNotFoundError, NotADirectoryError):
            log = self._log.stat()
            if place is not None and place.log == (log.st_dev, log.st_ino):
                self._log.unlink()

    def _open_and_merge(self, old: sqlite3.Connection) -> Copied:
        try:
            self._open()
            return merge(old, self.database, self.file)
        except JournalDamaged as error:  # what was put there; the one that is open is good
            self._drop()
            _set_aside(self.file)
            self._open(error)
            return merge(old, self.database, self.file)


def _log_of(database: sqlite3.Connection) -> Path:
    """Return where SQLite keeps the log: beside the file itself, where a symbolic link leads to that."""
    ((_, _, file),) = database.execute("PRAGMA database_list")
    return Path(f"{file}-wal")


def _tell_of_rescue(kept: Path, rescued: Copied, problem: str) -> None:
    lost = {"rows_lost": rescued.lost} if rescued.lost else {}
    places = {"places_unreadable": rescued.places} if rescued.places else {}
    logger.error("journal set aside", kept_as=str(kept), rows_rescued=rescued.whole, **lost, **places, problem=problem)


def _make_directory(directory: Path) -> None:
    try:
        # Not with parents=True: they would be made as the umask likes, and then not be trusted.
        for above in reversed(directory.parents):
            if not above.exists():
                above.mkdir(mode=PARENT_MODE, exist_ok=True)
        directory.mkdir(mode=STATE_MODE, exist_ok=True)
    except OSError as error:
        message = f"state: {directory}: {error.strerror}; a directory that dmnotid may write to is expected"
        raise JournalError(message) from error


def see_who_may_write(state: Path) -> None:
    """See that nobody but root and the daemon's user can write to a journal: a row in it is as good as a signature.

    Raises JournalError.
    """
    file = state.absolute() / FILE_NAME
    try:
        check_trusted_directory(file.parent)
        for name in (file, *_damaged_names(file)):
            for side in _SIDE_FILES:
                check_trusted_if_there(Path(f"{name}{side}"))
    except UntrustedPath as error:
        message = f"state: {error}; a directory that nobody else may write to is expected"
        raise JournalError(message) from error


def _set_aside(file: Path) -> None:
    """Give a damaged database a name under which its rows are looked for."""
    names = _damaged_names(file)
    free = next((name for name in names if not _is_taken(name)), None)
    if free is None:
        message = f"{file}: damaged, and can't be set aside: {len(names)} files wait to be read ({names[0]}, …)"
        raise JournalError(message)
    _rename(file, free)


def _damaged_names(file: Path) -> list[Path]:
    """Return the names that files are set aside under, in this order: so no directory need be listed to find them."""
    first = file.with_name(DAMAGED_NAME)
    return [first, *(_numbered(first, number) for number in range(2, 10))]


def _is_taken(name: Path) -> bool:
    """Tell whether anything is there, were it a link that leads nowhere. Raises OSError where that can't be told."""
    try:
        name.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _numbered(file: Path, number: int) -> Path:
    return file.with_name(f"{file.stem}-{number}{file.suffix}")


def _keep(damaged: Path) -> Path:
    """Give what was set aside its last name, with the date, and let the oldest of several go."""
    first = damaged.with_name(f"journal-corrupt-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.sqlite3")
    kept, number = first, 1
    while _is_taken(kept):
        number += 1
        kept = _numbered(first, number)
    _rename(damaged, kept)
    # In a directory that can't be listed none is found, and none goes.
    others = [other for other in damaged.parent.glob("journal-corrupt-*.sqlite3") if other != kept]
    others.sort(key=lambda other: other.lstat().st_mtime)
    for old in others[: max(len(others) + 1 - KEPT_DAMAGED, 0)]:
        for side in _SIDE_FILES:
            with suppress(OSError):
                Path(f"{old}{side}").unlink()
    return kept


def _rename(file: Path, to: Path) -> None:
    try:
        for side in _SIDE_FILES:
            with suppress(FileNotFoundError):
                Path(f"{file}{side}").rename(f"{to}{side}")
    except OSError as error:
        message = f"{file}: damaged, and can't be set aside as {to.name}: {error.strerror}"
        raise JournalError(message) from error
