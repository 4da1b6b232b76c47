"""Which DM session starts next, and on which connection (5.3.4).

Times are seconds on a clock that never jumps.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter
from types import MappingProxyType
from typing import Final

from dmnotid.policy.sessions import Connection, SessionRequest, SessionStart
from dmnotid.wire.notification import ConnectionType

NOBODY: Final[Mapping[str, float]] = MappingProxyType({})
"""No server rests."""


def choose_connection(preferred: Sequence[ConnectionType], available: Sequence[Connection]) -> Connection | None:
    """Return the available connection that is wanted most, or None to wait for one.

    `available` has the best route first. ANY, and no preference at all, take the best of whatever type.
    """
    for wanted in preferred or (ConnectionType.ANY,):
        for connection in available:
            if wanted in (ConnectionType.ANY, connection.type):
                return connection
    return None


class Schedule:
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
