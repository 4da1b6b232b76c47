"""Which DM session starts next, on which connection, and when one that failed is tried again (5.3.4).

Times are seconds on a clock that never jumps, unless a name says otherwise.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from heapq import heappop, heappush
from operator import attrgetter
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

    def with_time(self, more: float, least: float) -> "SessionRequest":
        """Return the same request with that much more time before it expires.

        With less time, it still has until `least`, if it had.
        """
        return self._replace(expires_at=max(self.expires_at + more, min(self.expires_at, least)))


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


class Limits(NamedTuple):
    """How many sessions run at once, wait per server, and how long (seconds) a request may wait for its end.

    `min_interval` is the time in seconds that must lie between two starts for one server, tries included.
    """

    concurrency: int = 1
    max_pending: int = 16
    expire_after: float = 7 * 86_400
    min_interval: float = 0


class Retry(NamedTuple):
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


class Waiting:
    """The requests that are neither closed nor being tried, ordered so that no look goes through all of them.

    What can be asked costs about as much as there are servers with something that waits, however much that is.
    """

    def __init__(self, requests: Iterable[SessionRequest] = ()) -> None:
        """Begin with these."""
        self._requests: dict[int, SessionRequest] = {}
        # Of one server and one list of preferences all can start or none; heaps of (when it may start, session).
        # What isn't in `_requests` as it stands in a heap is gone since; it is left out when it comes to the top.
        self._groups: dict[_Group, list[_Due]] = {}
        self._expiries: list[_Due] = []
        for request in requests:
            self.add(request)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._requests)

    def __contains__(self, session: int) -> bool:
        """Whether that session is one of them."""
        return session in self._requests

    def __iter__(self) -> Iterator[SessionRequest]:
        """In the order in which they came."""
        return iter([self._requests[session] for session in sorted(self._requests)])

    def add(self, request: SessionRequest) -> None:
        """Let a request wait, in the place of what is known of the same session."""
        self._requests[request.session] = request
        self._enqueue(request)
        if len(self._expiries) > 2 * len(self._requests) + _SPARE:
            self._tidy_up()

    def remove(self, session: int) -> SessionRequest:
        """Take a request out."""
        return self._requests.pop(session)

    def next_start(
        self,
        available: Sequence[Connection],
        now: float,
        servers: Container[str],
        resting: Mapping[str, float] = NOBODY,
    ) -> SessionStart | None:
        """Return the try to begin now, or None: of those that can start the one that could first (first come).

        Only for one of `servers`, and for none before the time that `resting` has for it.
        """
        found: tuple[_Due, Connection] | None = None
        for (server_id, preferred), first in self._firsts():
            if (found is not None and found[0] < first) or server_id not in servers:
                continue
            due = max(first[0], resting.get(server_id, first[0]))
            if due > now or self._requests[first[1]].expires_at <= now:
                continue
            connection = choose_connection(preferred, available)
            if connection is not None:
                found = first, connection
        if found is None:
            return None
        request = self._requests[found[0][1]]
        return SessionStart(request, found[1], request.attempts + 1)

    def next_change(self, now: float, servers: Container[str], resting: Mapping[str, float] = NOBODY) -> float | None:
        """Return when `next_start` or `take_expired` may next answer otherwise by time alone; None: never."""
        times = [
            due
            for (server_id, _), first in self._firsts()
            if server_id in servers and (due := max(first[0], resting.get(server_id, first[0]))) > now
        ]
        if self._top(self._expiries, _expiry) is not None:
            times.append(self._expiries[0][0])
        return min(times, default=None)

    def take_expired(self, now: float, most: int) -> list[SessionRequest]:
        """Take out requests whose time is over, so many at most."""
        taken: list[SessionRequest] = []
        while len(taken) < most:
            first = self._top(self._expiries, _expiry)
            if first is None or first[0] > now:
                break
            taken.append(self.remove(first[1]))
        return taken

    def _firsts(self) -> Iterator[tuple["_Group", "_Due"]]:
        """Go through the groups, each with the first of those that wait in it."""
        for group, heap in list(self._groups.items()):
            first = self._top(heap, _start)
            if first is None:
                del self._groups[group]
            else:
                yield group, first

    def _top(self, heap: list["_Due"], time_of: Callable[[SessionRequest], float]) -> "_Due | None":
        """Return what is first in a heap and still so, None where nothing is."""
        while heap:
            at, session = heap[0]
            request = self._requests.get(session)
            if request is not None and time_of(request) == at:
                return heap[0]
            heappop(heap)
        return None

    def _enqueue(self, request: SessionRequest) -> None:
        group = request.server_id, request.notification.preferred_connections
        heappush(self._groups.setdefault(group, []), (request.not_before, request.session))
        heappush(self._expiries, (request.expires_at, request.session))

    def _tidy_up(self) -> None:
        """Forget what is gone since: tries that fail again and again must not fill the heaps."""
        self._groups.clear()
        self._expiries.clear()
        for request in self._requests.values():
            self._enqueue(request)


_Group = tuple[str, tuple[ConnectionType, ...]]
_Due = tuple[float, int]
_SPARE: Final = 64
_start: Final = attrgetter("not_before")
_expiry: Final = attrgetter("expires_at")


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
