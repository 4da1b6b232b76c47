"""Which DM session starts next, on which connection, and when one that failed is tried again (5.3.4).

Times are seconds on a clock that never jumps, unless a name says otherwise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from dmnotid.wire.notification import ConnectionType, Notification

NOBODY: Final[Mapping[str, float]] = MappingProxyType({})
"""No server rests."""


class Connection(NamedTuple):
    """A connection that is available: its type (ANY where it is none of the three) and its network interface."""

    type: ConnectionType
    interface: str


class SessionRequest(NamedTuple):
    """A session that was accepted and is not closed: made by the journal, from its row, and by nothing else.

    `session` is the number that log lines and the hook carry. `attempts` counts the tries begun so far. `received_at`
    is wall clock time (POSIX seconds). (The command line makes some up to show them; they are never run from a queue.)
    """

    session: int
    server_id: str
    notification: Notification
    source: str
    received_at: float
    attempts: int
    not_before: float
    expires_at: float

    def tried(self, attempts: int) -> "SessionRequest":
        """Return the same request after that many tries."""
        return self._replace(attempts=attempts)

    def later(self, not_before: float) -> "SessionRequest":
        """Return the same request, not to be tried before that time."""
        return self._replace(not_before=not_before)

    def with_time(self, more: float) -> "SessionRequest":
        """Return the same request with that much more time before it expires."""
        return self._replace(expires_at=self.expires_at + more)


class SessionStart(NamedTuple):
    """One try: this request over this connection; `attempt` counts from 1."""

    request: SessionRequest
    connection: Connection
    attempt: int


class Result(StrEnum):
    """How one try ended, as far as trying again goes."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class Outcome(NamedTuple):
    """How one try ended; `detail` is for people ("exit 3", "killed by SIGKILL")."""

    result: Result
    detail: str


class Closed(StrEnum):
    """Why a request needs no further try."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many sessions run at once, wait per server, and how long (seconds) a request may wait for its end.

    `min_interval` is the time in seconds that must lie between two starts for one server, tries included.
    """

    concurrency: int = 1
    max_pending: int = 16
    expire_after: float = 7 * 86_400
    min_interval: float = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """Pauses between tries (seconds): `first`, doubled up to `longest`; `attempts` tries in all."""

    first: float = 30
    longest: float = 3_600
    attempts: int = 10


def choose_connection(preferred: Sequence[ConnectionType], available: Sequence[Connection]) -> Connection | None:
    """Return the available connection that is wanted most, or None to wait for one.

    `available` has the best route first. ANY, and no preference at all, take the best of whatever type.
    """
    for wanted in preferred or (ConnectionType.ANY,):
        for connection in available:
            if wanted in (ConnectionType.ANY, connection.type):
                return connection
    return None


def next_start(
    pending: Iterable[SessionRequest],
    running: Mapping[int, SessionRequest],
    available: Sequence[Connection],
    now: float,
    concurrency: int,
    resting: Mapping[str, float] = NOBODY,
) -> SessionStart | None:
    """Return the try to begin now, or None: first come, first served among those that can start.

    `pending` comes in the order of arrival and may hold what is running; `running` is by session number. Never two at
    once for one server, and none for one before the time that `resting` has for it.
    """
    if len(running) >= concurrency:
        return None
    busy = {request.server_id for request in running.values()}
    for request in pending:
        if request.server_id in busy or not _earliest(request, resting) <= now < request.expires_at:
            continue
        connection = choose_connection(request.notification.preferred_connections, available)
        if connection is not None:
            return SessionStart(request, connection, request.attempts + 1)
    return None


def _earliest(request: SessionRequest, resting: Mapping[str, float]) -> float:
    return max(request.not_before, resting.get(request.server_id, request.not_before))


def expired(
    pending: Iterable[SessionRequest], running: Mapping[int, SessionRequest], now: float
) -> list[SessionRequest]:
    """Return the requests whose time is over; one that runs is let end first."""
    return [request for request in pending if request.expires_at <= now and request.session not in running]


def next_wake(
    pending: Iterable[SessionRequest],
    running: Mapping[int, SessionRequest],
    now: float,
    resting: Mapping[str, float] = NOBODY,
) -> float | None:
    """Return when `next_start` or `expired` may next answer otherwise by the passing of time alone; None: never."""
    times = [
        earliest if now < (earliest := _earliest(request, resting)) < request.expires_at else request.expires_at
        for request in pending
        if request.session not in running
    ]
    return min(times, default=None)


def settle(outcome: Outcome, attempt: int, retry: Retry, jitter: float) -> Closed | float:
    """Say what follows a try: why the request is closed, or the pause before the next one in seconds.

    `jitter`, 0 to 1, shortens the pause by up to a quarter, so that a fleet doesn't call its server in step.
    """
    if outcome.result is Result.DONE:
        return Closed.DONE
    if outcome.result is Result.REFUSED:
        return Closed.REFUSED
    if attempt >= retry.attempts:
        return Closed.FAILED
    doublings = min(attempt - 1, 63)
    return min(retry.first * 2.0**doublings, retry.longest) * (1 - jitter / 4)
