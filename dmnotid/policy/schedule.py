"""Which DM session starts next, and on which connection (5.3.4).

Times are seconds on a clock that never jumps.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final

from dmnotid.policy.sessions import Connection, SessionRequest, SessionStart
from dmnotid.wire.notification import ConnectionType

_Group = tuple[str, tuple[ConnectionType, ...]]
_Due = tuple[float, int]
_start: Final = attrgetter("not_before")
_expiry: Final = attrgetter("expires_at")

_SPARE: Final = 64
"""Number of stale heap entries that are kept in any case, so that a short queue is not rebuilt all the time."""


def choose_connection(preferred: Sequence[ConnectionType], available: Sequence[Connection]) -> Connection | None:
    """Return the available connection that is preferred most, or None if no available one fits.

    `available` has the best route first. ANY, like an empty preference, takes the first connection of any type.
    """
    for wanted in preferred or (ConnectionType.ANY,):
        for connection in available:
            if wanted in (ConnectionType.ANY, connection.type):
                return connection
    return None


class Schedule:
    """The requests that are queued or paused between two tries, in the order of their turn (5.3.4).

    Of the servers that have a request that can start, the one whose last try began longest ago comes first. So no
    server holds up another by more than one run. Within a server, first come, first served.

    The cost of `next_start` and `next_change` grows with the number of servers, not with the number of requests.

    `servers` is the same in both: the servers that may get a session, each with the time from which it may. That is a
    fixed interval after the start of its last try, and -inf if there was none.
    """

    def __init__(self, requests: Iterable[SessionRequest] = ()) -> None:
        # The requests by session. A heap entry whose time differs from the request's is stale, and is dropped once it
        # comes to the top: an entry in the middle of a heap can't be removed cheaply.
        self._requests: dict[int, SessionRequest] = {}
        # Heaps of (not_before, session). In a group, either every request has a connection or none has.
        self._groups: dict[_Group, list[_Due]] = {}
        # One heap of (expires_at, session) for all requests.
        self._expiries: list[_Due] = []
        for request in requests:
            self.add(request)

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: SessionRequest) -> None:
        """Add a request, or replace the one of the same session."""
        self._requests[request.session] = request
        self._push(request)
        if len(self._expiries) > 2 * len(self._requests) + _SPARE:
            # Requests that are tried again and again would otherwise fill the heaps with stale entries.
            self._groups.clear()
            self._expiries.clear()
            for kept in self._requests.values():
                self._push(kept)

    def remove(self, session: int) -> SessionRequest:
        """Remove a session and return its request. Raises KeyError if there is none."""
        return self._requests.pop(session)

    def next_start(
        self, available: Sequence[Connection], now: float, servers: Mapping[str, float]
    ) -> SessionStart | None:
        """Return the try to begin now, or None: of the requests that can start, the one whose turn it is."""
        found: tuple[tuple[float, _Due], Connection] | None = None
        for (server_id, preferred), first in self._firsts():
            if server_id not in servers:
                continue
            # Tuples compare from the left: the server that has waited longest, then its earliest request.
            turn = servers[server_id], first
            if found is not None and found[0] < turn:
                continue
            # An expired request is left to take_expired, so that its end is recorded.
            if max(first[0], servers[server_id]) > now or self._requests[first[1]].expires_at <= now:
                continue
            connection = choose_connection(preferred, available)
            if connection is not None:
                found = turn, connection
        if found is None:
            return None
        ((_, (_, session)), connection) = found
        request = self._requests[session]
        return SessionStart(request, connection, request.attempts + 1)

    def next_change(self, now: float, servers: Mapping[str, float]) -> float | None:
        """Return when the passing of time alone next lets a session start or expire, or None if it never does."""
        # A request that is due already waits for a connection or a running session, not for time.
        times = [
            due
            for (server_id, _), first in self._firsts()
            if server_id in servers and (due := max(first[0], servers[server_id])) > now
        ]
        expiry = self._first(self._expiries, _expiry)
        if expiry is not None:
            times.append(expiry[0])
        return min(times, default=None)

    def take_expired(self, now: float, most: int) -> list[SessionRequest]:
        """Remove and return at most `most` requests that have expired, the one that expired first in front."""
        taken: list[SessionRequest] = []
        while len(taken) < most:
            first = self._first(self._expiries, _expiry)
            if first is None or first[0] > now:
                break
            taken.append(self.remove(first[1]))
        return taken

    def _push(self, request: SessionRequest) -> None:
        group = request.server_id, request.notification.preferred_connections
        heappush(self._groups.setdefault(group, []), (request.not_before, request.session))
        heappush(self._expiries, (request.expires_at, request.session))

    def _firsts(self) -> Iterator[tuple[_Group, _Due]]:
        """Yield each group with the first entry of its heap, and drop empty groups."""
        # A copy, because empty groups are deleted on the way.
        for group, heap in list(self._groups.items()):
            first = self._first(heap, _start)
            if first is None:
                del self._groups[group]
            else:
                yield group, first

    def _first(self, heap: list[_Due], time_of: Callable[[SessionRequest], float]) -> _Due | None:
        """Return the first entry of a heap that is not stale, and drop those above it."""
        while heap:
            at, session = heap[0]
            request = self._requests.get(session)
            if request is not None and time_of(request) == at:
                return heap[0]
            heappop(heap)
        return None
