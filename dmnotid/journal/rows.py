"""One accepted notification as a row of the table: every column list, and the way from a value to a row and back.

A damaged file can hold any value in any column, so a row is checked before a session is made of it.
"""

import hashlib
import sqlite3
import time
from collections.abc import Iterable
from types import NoneType
from typing import Final, NamedTuple
from zlib import crc32

from dmnotid import RELEASED_AT
from dmnotid.policy.sessions import Closed, LastTry, Limits, SessionRequest
from dmnotid.wire.notification import Notification, decode_notification

MAX_SESSION: Final = 1 << 52
"""Highest session number of a sound file. A higher one shows that the file is damaged."""

LAST_CHANCE: Final = 3_600
"""Shortest time, in seconds, that a session still has when its row is read, unless `sessions.expire_after` is shorter.

Without it, a clock that is years ahead at the start would expire every session."""

UNREADABLE: Final = "unreadable"
"""State of a row that can't be run. A repeat of its notification takes its place."""

PENDING: Final = "pending"

STATES: Final = frozenset({PENDING, UNREADABLE, *Closed})
"""States that a row may have; any other one shows that the file is damaged."""


REVIVABLE: Final = frozenset({Closed.FAILED, Closed.EXPIRED})
"""States of closed rows that can be opened again."""

MAX_OUTCOME: Final = 80

LATEST: Final = 253_402_300_799
"""The last second of the year 9999 (POSIX seconds): a later time is not one of a calendar."""


class Row(NamedTuple):
    """A row, with its columns in the order of the table. Times are POSIX seconds of the wall clock."""

    session: int
    server_id: str
    notification_id: int
    # Distinguishes the content from another notification with the same id.
    fingerprint: bytes
    # The octets as received, kept while the session may run: until it is closed other than as one of REVIVABLE.
    package: bytes | None
    source: str
    # Authenticated time, NULL for an unsigned notification.
    sent_at: int | None
    received_at: float
    # Whether `received_at` comes from a believed clock.
    clock_believed: int
    # One of STATES.
    state: str
    attempts: int
    not_before: float
    closed_at: float | None
    # Start of the last try.
    started_at: float | None
    # Checksum of the columns that never change.
    seal: int | None
    # How the last try ended, or why the session was closed without one: for people, MAX_OUTCOME characters at most.
    outcome: str | None
    # Type and interface of the connection of the last try.
    connection: str | None
    interface: str | None


COLUMNS: Final = Row._fields

_NAMES: Final = ", ".join(COLUMNS)
_MARKS: Final = ", ".join("?" * len(COLUMNS))

# Every column is given: the DEFAULTs of the schema are in the file, and may be damaged there.
INSERT: Final = f"INSERT INTO session ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608
REPLACE: Final = f"INSERT OR REPLACE INTO session ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608
INSERT_IF_NEW: Final = f"INSERT OR IGNORE INTO session ({_NAMES}) VALUES ({_MARKS})"  # noqa: S608

SELECT_ROW: Final = f"SELECT {_NAMES} FROM session WHERE session = ?"  # noqa: S608

# Whether a row was accepted or closed at `since` or later, and the row.
SELECT_PAGE: Final = f"""
SELECT :since IS NULL OR received_at >= :since OR ifnull(closed_at, 0) >= :since, {_NAMES} FROM session
WHERE session > :last ORDER BY session LIMIT :most
"""  # noqa: S608

# Without the package, which may have 65 kB.
SELECT_KNOWN: Final = f"""
SELECT {_NAMES.replace(" package", " NULL")} FROM session WHERE server_id = ? AND notification_id = ?
"""  # noqa: S608

# From the table itself, whatever its indexes have.
SELECT_OPEN: Final = f"""
SELECT {_NAMES} FROM session NOT INDEXED WHERE state = '{PENDING}' OR closed_at IS NULL ORDER BY session
"""  # noqa: S608

# A row that the index finds under another number, or not at all.
SELECT_MISPLACED: Final = """
SELECT session FROM session NOT INDEXED WHERE session IS NOT
    (SELECT other.session FROM session AS other
     WHERE other.server_id = session.server_id AND other.notification_id = session.notification_id)
LIMIT 1
"""

# The package is compared too: in another file, the number may belong to another session.
_KEEP: Final = """
UPDATE session SET attempts = ?
WHERE session = ? AND server_id = ? AND notification_id = ? AND package = ? AND state = 'pending'
"""
_RENUMBER: Final = "UPDATE session SET session = (SELECT max(session) FROM session) + 1 WHERE session = ?"

# Types that the first columns must have so that a session can be run or shown; the seal covers `sent_at`.
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "session": int,
    "server_id": str,
    "notification_id": int,
    "fingerprint": bytes,
    "package": (bytes, NoneType),
    "source": str,
    "sent_at": object,
    "received_at": (int, float),
    "clock_believed": int,
    "state": str,
    "attempts": int,
    "not_before": (int, float),
}


def fingerprint(package: bytes) -> bytes:
    """Return a digest that distinguishes these octets from others, in 16 octets."""
    # It only distinguishes contents with one id: authenticity was verified before.
    return hashlib.sha256(package).digest()[:16]


def seal(server_id: object, notification_id: object, content: object, sent_at: object) -> int:
    """Return the checksum of the columns that never change; `content` is the fingerprint.

    Of a damaged file, only sealed rows are believed.
    """
    # repr() keeps the columns apart, and a number from the text of its digits.
    return crc32(repr((server_id, notification_id, content, sent_at)).encode("utf-8", "surrogateescape"))


def new_row(
    server_id: str,
    notification: Notification,
    source: str,
    received_at: float,
    *,
    believed: bool,
    session: int | None = None,
    attempts: int = 0,
    not_before: float = 0.0,
) -> tuple[object, ...]:
    """Return the values of an open row, in the order of COLUMNS. Without `session`, SQLite chooses the number."""
    octets, number, sent_at = notification.octets, notification.notification_id, notification.sent_at
    content = fingerprint(octets)
    sealed = seal(server_id, number, content, sent_at)
    closed_at = started_at = outcome = connection = interface = None
    return (
        session, server_id, number, content, octets, source, sent_at, received_at, int(believed),
        PENDING, attempts, not_before, closed_at, started_at, sealed, outcome, connection, interface,
    )  # fmt: skip


def row_of(request: SessionRequest) -> tuple[object, ...]:
    """Return the values of the row of an open request, with its number."""
    return new_row(
        request.server_id,
        request.notification,
        request.source,
        request.received_at,
        # The request doesn't carry the judgement of its arrival; this is the half of it that never changes.
        believed=request.received_at >= RELEASED_AT,
        session=request.session,
        attempts=request.attempts,
        not_before=time.time() + max(request.not_before - time.monotonic(), 0),
    )


def read_request(row: Row, limits: Limits, longest_pause: float) -> SessionRequest:
    """Make the request of an open row. Raises DecodeError or ValueError if the row is not as it was written."""
    if message := _misfit(row):
        raise ValueError(message)
    if row.package is None:
        raise ValueError("package is missing")
    notification = decode_notification(row.package)
    if fingerprint(notification.octets) != row.fingerprint or notification.notification_id != row.notification_id:
        raise ValueError("package is not the one that was written")
    if row.state != PENDING:
        raise ValueError(f"state is {row.state!r}, {PENDING!r} is expected")
    # The file has wall clock times, memory has monotonic ones. The wall clock may have been wrong by years when it was
    # written, or may be now, so a pause has an upper bound and the remaining time a lower one.
    now, monotonic, whole = time.time(), time.monotonic(), limits.expire_after
    waited = max(now - row.received_at, 0) if row.clock_believed else 0
    return SessionRequest(
        row.session,
        row.server_id,
        notification,
        row.source,
        shown_time(row.received_at),
        row.attempts,
        monotonic + min(max(row.not_before - now, 0), longest_pause),
        monotonic + max(whole - waited, min(whole, LAST_CHANCE)),
        LastTry(row.connection, row.interface, row.started_at, row.outcome),
    )


def restore(database: sqlite3.Connection, requests: Iterable[SessionRequest]) -> None:
    """Write every one of these open requests that the table has not, or has with other attempts."""
    for request in requests:
        notification = request.notification
        identity = request.session, request.server_id, notification.notification_id, notification.octets
        if not database.execute(_KEEP, (request.attempts, *identity)).rowcount:
            # If another file was put in place of the journal, its row may have this number.
            database.execute(_RENUMBER, (request.session,))
            database.execute(REPLACE, row_of(request))


def make_row(values: Iterable[object]) -> Row:
    """Make a row of the columns of a file. Values that only people read become None if they are damaged."""
    row = Row._make(values)
    started_at = shown_time(row.started_at) or None if isinstance(row.started_at, float) else None
    outcome, connection, interface = (value if is_text(value) else None for value in row[-3:])
    return Row(*row[:-5], started_at, row.seal, outcome, connection, interface)


def shown(text: str) -> str | None:
    """Return text as a column for people holds it: None if empty, without what UTF-8 can't have."""
    return text.encode(errors="replace").decode()[:MAX_OUTCOME] or None


def shown_time(time_: float) -> float:
    """Return a time as people can read it (POSIX seconds): 0 for one, of a damaged file, that is in no calendar."""
    return time_ if 0 <= time_ <= LATEST else 0.0


def is_whole(row: Row) -> bool:
    """Return whether a row is as it was written, as far as checksum, state and the types of its columns show."""
    return is_sound(row) and isinstance(row.closed_at, int | float | None) and not _misfit(row)


def is_sound(row: Row) -> bool:
    """Return whether a row can decide about a repeat of its notification."""
    # If the header of a row is damaged, each of its columns may have the octets and the type of another.
    return row.state in STATES and is_sealed(row)


def _misfit(row: Row) -> str:
    """Return what is wrong with the types of a row; empty if nothing is."""
    for value, (column, kind) in zip(row, _TYPES.items(), strict=False):
        if not isinstance(value, kind) or (isinstance(value, str) and not is_text(value)):
            return f"{column} has a value of type {type(value).__name__} that cannot be used"
    return ""


def is_sealed(row: Row) -> bool:
    """Return whether the checksum of a row fits its columns."""
    return row.seal == seal(row.server_id, row.notification_id, row.fingerprint, row.sent_at)


def read_text(octets: bytes) -> str:
    """Decode a text column. Octets that are not UTF-8 are kept, so that they make one row unusable and no other."""
    return octets.decode("utf-8", "surrogateescape")


def is_text(value: object) -> bool:
    """Return whether a value is non-empty text of valid UTF-8."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False
