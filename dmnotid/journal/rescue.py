"""Rows out of another database: one that is damaged anywhere, or one that has lost its place."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from dmnotid.errors import JournalDamaged
from dmnotid.journal.database import (
    COLUMNS,
    LATER_COLUMNS,
    MAX_SESSION,
    SCHEMA,
    SQLITE_ERRORS,
    explain,
    fingerprint,
    is_text,
    read_text,
    seal,
    told,
    transaction,
)

PAGE: Final = 4_096
"""The size of a page, the first of which has header and schema: the same in every journal (SQLite's default)."""

MAX_REPAIRED: Final = 64 * 1024 * 1024
"""How large a file (octets) may be that is read as a whole, to be given another first page."""

MAX_PROBES: Final = 20_000
"""How often it is looked for the next row that can be read, in one file: so the time that it takes is bounded."""

_NAMES: Final = ", ".join(COLUMNS)
_MARKS: Final = ", ".join("?" * len(COLUMNS))
_AT_ONCE: Final = 500
_READ: Final = "SELECT {} FROM session NOT INDEXED WHERE session >= ? ORDER BY session LIMIT ?"
_PROBE: Final = "SELECT session FROM session NOT INDEXED WHERE session >= ? ORDER BY session LIMIT 1"


STEP: Final = 16
SMALL_STEPS: Final = 1024
"""How far (rows) and how often it is looked behind what can't be read before the steps get longer. A page has some
forty rows, and the page above it some four hundred pages: the next one that is intact must not be jumped over."""


class Copied(NamedTuple):
    """How many rows were copied, how many were not what was once written, and how many places couldn't be read.

    Nobody knows how many rows those had.
    """

    whole: int
    lost: int
    places: int


def rescue(source: Path, target: sqlite3.Connection, file: Path) -> Copied:
    """Copy what can be read of a damaged database to `target`, the one of `file`; rows that it has stay as they are.

    Raises JournalError where that can't be done now: for want of room, of descriptors, or of a disk that answers.
    """
    with told(source, "read"):
        opened = sqlite3.connect(source, timeout=0, isolation_level=None)
    with closing(opened) as damaged:
        copied = _copy(damaged, target, file, "IGNORE")
    if copied.whole or not PAGE < source.stat().st_size <= MAX_REPAIRED:
        return copied
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as repaired:
        repaired.deserialize(_with_first_page(source.read_bytes()))
        return _copy(repaired, target, file, "IGNORE")


def merge(source: sqlite3.Connection, target: sqlite3.Connection, file: Path) -> Copied:
    """Copy every whole row over what `target` has of the same notification. Raises JournalError.

    The numbers of `source` are in use: other sessions of `target` get higher ones.
    """
    highest = max(_highest(source), _highest(target))
    return _copy(source, target, file, "REPLACE", shift=highest)


def _with_first_page(octets: bytes) -> bytes:
    """Put the first page of a new journal in the place of one that makes no sense: it is the same in all of them."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        fresh.executescript(SCHEMA)
        page = bytearray(fresh.serialize()[:PAGE])
    pages = max(len(octets) // PAGE, 1)
    page[28:32] = pages.to_bytes(4, "big")
    page[32:40] = bytes(8)  # no free pages
    page[92:96] = page[24:28]  # the count of pages is of this version
    return bytes(page) + octets[PAGE : pages * PAGE]


def _highest(database: sqlite3.Connection) -> int:
    try:
        (highest,) = database.execute("SELECT max(session) FROM session").fetchone()
    except SQLITE_ERRORS:
        return 0
    return highest if isinstance(highest, int) else 0


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, file: Path, conflict: str, shift: int = 0) -> Copied:
    """Copy the rows of one database, in one transaction."""
    insert = f"INSERT OR {conflict} INTO session ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608
    whole = lost = 0
    with transaction(target, file):
        if shift:
            target.execute("UPDATE session SET session = session + ?", (shift,))
        table = _Rows(source)
        for row in table:
            found = _sealed(dict(zip(COLUMNS, row, strict=True)))
            if _is_whole(found):
                whole += 1
                _insert(target, insert, *found.values())
            else:
                lost += 1
    return Copied(whole, lost, table.places)


def _insert(target: sqlite3.Connection, insert: str, session: int, *others: object) -> None:
    """Insert a row that isn't there, under another number where its own is another row's or too high to count on."""
    if session > MAX_SESSION // 2 or target.execute(insert, (session, *others)).rowcount < 1:
        target.execute(insert, (None, *others))


class _Rows:
    """Reads a table by its numbers, and goes around what can't be read; `places` counts how often it did."""

    def __init__(self, source: sqlite3.Connection) -> None:
        self._source = source
        self._probes = MAX_PROBES
        self.places = 0
        source.text_factory = read_text
        try:
            source.execute("PRAGMA locking_mode = EXCLUSIVE")  # else it leaves a shared-memory file
            source.execute("PRAGMA writable_schema = ON")  # an index that makes no sense is passed over then
        except SQLITE_ERRORS as error:
            _raise_if_passing(error)
        self._read = _READ.format(", ".join(self._columns()))

    def _columns(self) -> list[str]:
        """Return what to read: all columns, but for those that a file of an older schema has not."""
        try:
            found = {name for _, name, *_ in self._source.execute("PRAGMA table_info(session)")}
        except SQLITE_ERRORS as error:
            _raise_if_passing(error)
            found = set()
        older = found.issuperset(set(COLUMNS) - set(LATER_COLUMNS))
        return ["NULL" if older and name in LATER_COLUMNS and name not in found else name for name in COLUMNS]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        at: int | None = 1
        count = _AT_ONCE
        while at is not None:
            rows, failed = self._read_on(at, count)
            yield from rows
            at = rows[-1][0] + 1 if rows else at
            if not (rows or failed):
                return
            if failed and count == 1:
                self.places += 1
                at = self._next_readable(at)
            # An error takes the row before it along (Python is one row ahead): that is read alone.
            count = 1 if failed and count > 1 else _AT_ONCE

    def _read_on(self, at: int, count: int) -> tuple[list[tuple[Any, ...]], bool]:
        """Return the next rows, and whether an error ended them. An error that is not damage is raised, told."""
        rows: list[tuple[Any, ...]] = []
        try:
            for row in self._source.execute(self._read, (at, count)):
                if not isinstance(row[0], int) or row[0] < (rows[-1][0] + 1 if rows else at):
                    return rows, True
                rows.append(row)
        except SQLITE_ERRORS as error:
            _raise_if_passing(error)
            return rows, True
        return rows, False

    def _next_readable(self, at: int) -> int | None:
        """Return the number from which it is worth to read on, None at the end.

        Where the next row can be found and not be read, that is the one behind it. Where it can't even be found, as
        behind a damaged page, numbers are tried by small steps, then by doubling ones, and what was stepped over by
        halving.
        """
        found = self._probe(at)
        if not self._probes or found == []:
            return None
        if found:
            return found[0] + 1
        bad, steps = at, 0
        while self._probe(good := bad + (STEP << max(steps - SMALL_STEPS, 0))) is None:
            if good > MAX_SESSION or not self._probes:
                return None
            bad, steps = good, steps + 1
        while good - bad > 1:
            middle = (good + bad) // 2
            good, bad = (good, middle) if self._probe(middle) is None else (middle, bad)
        return good

    def _probe(self, at: int) -> list[int] | None:
        """Look for the next row's number: a list with it, an empty one at the end, None where that can't be read."""
        self._probes = max(self._probes - 1, 0)
        try:
            found = [number for (number,) in self._source.execute(_PROBE, (at,))]
        except SQLITE_ERRORS as error:
            _raise_if_passing(error)
            return None
        return found if all(isinstance(number, int) and number >= at for number in found) else None


def _raise_if_passing(error: Exception) -> None:
    """Raise what says nothing of the file: it may be read another time."""
    failure = explain(error, Path("a damaged journal"), "read")
    if not isinstance(failure, JournalDamaged):
        raise failure from error


def _sealed(found: dict[str, Any]) -> dict[str, Any]:
    """Give a row of an older schema the checksum that it had none of, where anything else says that it is whole."""
    if not is_text(found["process"]):
        found["process"] = None  # it is worth no row
    if found["seal"] is None and (found["closed_at"] is not None or _has_its_package(found)):
        found["seal"] = seal(*_identity(found))
    return found


def _has_its_package(found: dict[str, Any]) -> bool:
    return isinstance(found["package"], bytes) and fingerprint(found["package"]) == found["fingerprint"]


def _identity(found: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    return found["server_id"], found["notification_id"], found["fingerprint"], found["sent_at"]


def _is_whole(found: dict[str, Any]) -> bool:
    """Tell whether a row is what was once written, as far as its checksum tells."""
    sealed = found["seal"] == seal(*_identity(found)) and 0 < found["session"] < MAX_SESSION
    texts = [found["source"], found["state"], *(value for value in found.values() if isinstance(value, str))]
    return sealed and all(is_text(text) for text in texts)
