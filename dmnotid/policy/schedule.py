"""Which DM session starts next, and on which connection (5.3.4).

Times are seconds on a clock that never jumps.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice
from operator import attrgetter
from typing import Final

from dmnotid.policy.sessions import Connection, SessionRequest, SessionStart
from dmnotid.wire.notification import ConnectionType

_Group = tuple[str, tuple[ConnectionType, ...]]
_Due = tuple[float, int]
_start: Final = attrgetter("not_before")
_expiry: Final = attrgetter("expires_at")

# Number of stale heap entries that are kept in any case, so that a short queue is not rebuilt all the time.
_SPARE: Final = 64


def choose_connection(preferred: Sequence[ConnectionType], available: Sequence[Connection]) -> Connection | None:
    """Return the available connection that is preferred most, or None if no available one fits.

    `available` has the best route first. ANY, like an empty preference, takes the first connection of any type.
    """
    for wanted in preferred or (ConnectionType.ANY,):
        for connection in available:
            if wanted in (ConnectionType.ANY, connection.type):
                return connection
    return None


def _group(request: SessionRequest) -> _Group:
    return request.server_id, request.notification.preferred_connections


class Schedule:
    """The requests that are queued or paused between two tries, in the order of their turn (5.3.4).

    Of the servers that have a request that can start, the one whose last try began longest ago comes first. So no
    server holds up another by more than one run. Within a server, first come, first served.

    The cost of a question grows with the number of servers, not with the number of requests: only the first request of
    a server and a preference is looked at.

    `free_at` returns the time from which a server may get a session, or None if it may not. That time is a fixed
    interval after the start of its last try, and -inf if there was none.
    """

    def __init__(self, requests: Iterable[SessionRequest] = ()) -> None:
        # The requests by session. A heap entry whose time differs from the request's is stale, and is dropped once it
        # comes to the top: an entry in the middle of a heap can't be removed cheaply.
        self._requests: dict[int, SessionRequest] = {}
        # Heaps of (not_before, session). In a group, either every request has a connection or none has.
        self._groups: dict[_Group, list[_Due]] = {}
        # The requests that `without_connection` has not returned since they were added, in that order.
        self._fresh: dict[_Group, dict[int, None]] = {}
        # One heap of (expires_at, session) for all requests.
        self._expiries: list[_Due] = []
        for request in requests:
            self.add(request)

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: SessionRequest) -> None:
        """Add a request, or replace the one of the same session."""
        self._requests[request.session] = request
        self._fresh.setdefault(_group(request), {})[request.session] = None
        self._push(request)
        if len(self._expiries) > 2 * len(self._requests) + _SPARE:
            # Requests that are tried again and again would otherwise fill the heaps with stale entries.
            self._groups.clear()
            self._expiries.clear()
            for kept in self._requests.values():
                self._push(kept)

    def remove(self, session: int) -> SessionRequest:
        """Remove a session and return its request. Raises KeyError if there is none."""
        # Its entries in the heaps are stale from now on.
        request = self._requests.pop(session)
        self._look_at(_group(request), [session])
        return request

    def without_connection(
        self, available: Sequence[Connection], servers: Container[str], most: int
    ) -> list[SessionRequest]:
        """Return at most `most` requests of `servers` that have no connection, each once after it was added."""
        found: list[SessionRequest] = []
        # A copy, because `_look_at` deletes groups without fresh requests.
        for group, sessions in list(self._fresh.items()):
            if len(found) == most:
                break
            if group[0] in servers and choose_connection(group[1], available) is None:
                first = list(islice(sessions, most - len(found)))
                found += map(self._requests.__getitem__, first)
                self._look_at(group, first)
        return found

    def next_start(
        self, available: Sequence[Connection], now: float, free_at: Callable[[str], float | None]
    ) -> SessionStart | None:
        """Return the try to begin now, or None: of the requests that can start, the one whose turn it is."""
        found: tuple[tuple[float, _Due], Connection] | None = None
        for (server_id, preferred), first in self._firsts():
            free = free_at(server_id)
            if free is None:
                continue
            # Tuples compare from the left: the server that has waited longest, then its earliest request.
            turn = free, first
            if found is not None and found[0] < turn:
                continue
            # An expired request is left to take_expired, so that its end is recorded.
            if max(first[0], free) > now or self._requests[first[1]].expires_at <= now:
                continue
            connection = choose_connection(preferred, available)
            if connection is not None:
                found = turn, connection
        if found is None:
            return None
        ((_, (_, session)), connection) = found
        request = self._requests[session]
        return SessionStart(request, connection, request.attempts + 1)

    def next_change(self, now: float, free_at: Callable[[str], float | None]) -> float | None:
        """Return when the passing of time alone next lets a session start or expire, or None if it never does."""
        # A request that is due already waits for a connection or a running session, not for time.
        times = [
            due
            for (server_id, _), first in self._firsts()
            if (free := free_at(server_id)) is not None and (due := max(first[0], free)) > now
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
        heappush(self._groups.setdefault(_group(request), []), (request.not_before, request.session))
        heappush(self._expiries, (request.expires_at, request.session))

    def _look_at(self, group: _Group, sessions: Iterable[int]) -> None:
        fresh = self._fresh.get(group, {})
        for session in sessions:
            fresh.pop(session, None)
        if not fresh:
            self._fresh.pop(group, None)

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
