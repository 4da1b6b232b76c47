"""Which session starts next, and on which connection (5.3.4)."""

from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.policy.schedule import Schedule, choose_connection
from dmnotid.policy.sessions import Connection, SessionRequest, SessionStart
from dmnotid.wire.notification import ConnectionType, decode_notification, encode_notification

ANY, MOBILE, WIRELESS, WIRELINE = ConnectionType

WWAN = Connection(MOBILE, "wwan0")
WLAN = Connection(WIRELESS, "wlan0")
ETH = Connection(WIRELINE, "eth0")
ETH_1 = Connection(WIRELINE, "eth1")
TUN = Connection(ANY, "tun0")


def request(
    session: int = 1,
    server_id: str = "a",
    *preferred: ConnectionType,
    attempts: int = 0,
    not_before: float = 0,
    expires_at: float = 1000,
) -> SessionRequest:
    notification = decode_notification(encode_notification(session, preferred_connections=preferred or None))
    return SessionRequest(session, server_id, notification, "192.0.2.7:9", 5.0, attempts, not_before, expires_at)


SERVERS = frozenset("abc")


def started(
    *requests: SessionRequest,
    available: Sequence[Connection] = (ETH,),
    now: float = 10,
    servers: Iterable[str] = SERVERS,
    resting: dict[str, float] | None = None,
) -> int | None:
    """Return the number of the session that starts, if one does."""
    start = Schedule(requests).next_start(available, now, frozenset(servers), resting or {})
    return None if start is None else start.request.session


@pytest.mark.parametrize(
    ("preferred", "available", "chosen"),
    [
        ([], [], None),
        ([], [ETH], ETH),
        ([], [TUN], TUN),
        ([], [WWAN, ETH], WWAN),
        ([ANY], [], None),
        ([ANY], [TUN, ETH], TUN),
        ([ANY], [WLAN, ETH], WLAN),
        ([MOBILE], [], None),
        ([MOBILE], [ETH, WLAN, TUN], None),
        ([MOBILE], [ETH, WWAN], WWAN),
        ([MOBILE, ANY], [ETH, WWAN], WWAN),
        ([MOBILE, ANY], [ETH, WLAN], ETH),
        ([MOBILE, ANY], [TUN], TUN),
        ([WIRELESS, MOBILE], [WWAN, WLAN], WLAN),
        ([WIRELESS, MOBILE], [ETH, WWAN], WWAN),
        ([WIRELESS, MOBILE], [ETH], None),
        ([WIRELINE], [ETH_1, ETH], ETH_1),
        ([WIRELINE, WIRELESS, MOBILE], [WWAN, WLAN], WLAN),
    ],
)
def test_connection(preferred: list[ConnectionType], available: list[Connection], chosen: Connection | None) -> None:
    """5.3.4: in the order of PREFERRED-CON-TYPE; of one type the best route; no preference takes the best of all."""
    assert choose_connection(preferred, available) == chosen


def test_start_is_the_whole_try() -> None:
    """5.3.4."""
    wanted = request(3, "a", WIRELESS, attempts=2)
    assert Schedule([wanted]).next_start([ETH, WLAN], 10, SERVERS) == SessionStart(wanted, WLAN, 3)


def test_first_come_first_served() -> None:
    """5.3.4."""
    assert started(request(1, "a"), request(2, "b")) == 1
    assert started(request(2, "b"), request(1, "a")) == 1
    assert started(request(1, "a", not_before=2), request(2, "b", not_before=1)) == 2
    assert started() is None


def test_a_server_that_fails_again_and_again_holds_up_no_other() -> None:
    """What waits after a failure has its turn behind what came during its pause."""
    again, came = request(1, "a", not_before=9), request(7, "b", not_before=8)
    assert started(again, came) == 7


def test_waiting_for_a_connection_does_not_block_others() -> None:
    """5.3.4: nor those of the same server."""
    waits = request(1, "a", MOBILE)
    assert started(waits, request(2, "a"), request(3, "b")) == 2
    assert started(waits) is None
    assert started(waits, available=(ETH, WWAN)) == 1


def test_only_for_servers_that_may_have_one() -> None:
    """5.3.4: never two for one server; none for one that isn't configured."""
    first, second, other = request(1, "a"), request(2, "a"), request(3, "b")
    assert started(first, second, other, servers="b") == 3
    assert started(first, second, servers="b") is None
    assert started(first, second, other, servers="") is None


@pytest.mark.parametrize(
    ("not_before", "expires_at", "session"),
    [(10, 1000, 1), (10.5, 1000, None), (0, 10, None), (0, 10.5, 1), (0, 9, None)],
)
def test_time_of_a_request(not_before: float, expires_at: float, session: int | None) -> None:
    """5.3.4: from `not_before` on, and not when it has expired (now is 10)."""
    assert started(request(not_before=not_before, expires_at=expires_at)) == session


@pytest.mark.parametrize(
    ("not_before", "until", "session"),
    [(0, 10, 1), (0, 10.5, 2), (0, 9, 1), (10.5, 9, 2), (10.5, 11, 2)],
)
def test_a_server_rests_between_starts(not_before: float, until: float, session: int) -> None:
    """No start for one server before its rest is over; others don't wait for it (now is 10)."""
    pending = [request(1, "a", not_before=not_before), request(2, "b", not_before=5)]
    assert started(*pending, resting={"a": until, "c": 1_000}) == session


def change(*requests: SessionRequest, resting: dict[str, float] | None = None, servers: str = "abc") -> float | None:
    return Schedule(requests).next_change(10, frozenset(servers), resting or {})


@pytest.mark.parametrize(
    ("not_before", "until", "wake"), [(0, 20, 20), (15, 20, 20), (25, 20, 25), (0, 9, 50), (0, 60, 50)]
)
def test_wake_at_the_end_of_a_rest(not_before: float, until: float, wake: float) -> None:
    """The later of pause and rest; the expiry where that comes first (now is 10)."""
    assert change(request(1, not_before=not_before, expires_at=50), resting={"a": until}) == wake


@pytest.mark.parametrize(
    ("requests", "wake"),
    [
        ([], None),
        ([request(1, expires_at=50)], 50),
        ([request(1, not_before=20, expires_at=50)], 20),
        ([request(1, not_before=10, expires_at=50)], 50),
        ([request(1, not_before=3600, expires_at=50)], 50),
        ([request(1, expires_at=50), request(2, not_before=30)], 50),
        ([request(1, "a", expires_at=50), request(2, "b", not_before=30)], 30),
        ([request(1, expires_at=50), request(2, expires_at=40)], 40),
        ([request(1, "x", not_before=20, expires_at=50)], 50),
    ],
)
def test_wake(requests: list[SessionRequest], wake: float | None) -> None:
    """5.3.4: when time alone changes something (now is 10); a server that isn't configured has only its expiry."""
    assert change(*requests) == wake


def test_expired() -> None:
    """5.3.4: up to the end, the end included; whether the server is configured or not; some at a time."""
    over, ends, gone, lives = (
        request(1, expires_at=9),
        request(2, expires_at=10),
        request(3, "x", expires_at=9.5),
        request(4, expires_at=10.1),
    )
    waiting = Schedule([over, ends, gone, lives])
    assert waiting.take_expired(10, 2) == [over, gone]
    assert waiting.take_expired(10, 2) == [ends]
    assert waiting.take_expired(10, 2) == []
    assert list(waiting) == [lives]
    assert Schedule().take_expired(10, 2) == []


def test_what_waits() -> None:
    first, second = request(1), request(2, "b")
    waiting = Schedule([second, first])
    assert (len(waiting), 1 in waiting, 3 in waiting, list(waiting)) == (2, True, False, [first, second])
    assert waiting.remove(1) == first
    assert (len(waiting), 1 in waiting, list(waiting)) == (1, False, [second])
    with pytest.raises(KeyError):
        waiting.remove(1)


def test_what_is_added_again_takes_its_own_place() -> None:
    """As after a failed try, or with more time."""
    waiting = Schedule([request(1, not_before=1, expires_at=20), request(2, not_before=2)])
    waiting.add(request(1, not_before=30, expires_at=40))
    start = waiting.next_start([ETH], 10, SERVERS)
    assert start is not None
    assert start.request.session == 2
    assert waiting.take_expired(25, 9) == []
    waiting.remove(2)
    assert waiting.next_start([ETH], 10, SERVERS) is None
    assert waiting.next_change(10, SERVERS) == 30
    assert [found.session for found in waiting.take_expired(40, 9)] == [1]


def test_what_was_tried_a_thousand_times_fills_nothing() -> None:
    waiting = Schedule()
    for at in range(1_000):
        waiting.add(request(1, not_before=at))
        waiting.remove(1)
    waiting.add(request(1, not_before=5))
    assert len(waiting._expiries) < 100
    assert sum(map(len, waiting._groups.values())) < 100
    assert waiting.next_change(4, SERVERS) == 5


def of_thirty(session: int, not_before: int, expires_at: int) -> SessionRequest:
    """A session is always the same server's, and asks for the same."""
    server_id, preferred = "abcx"[session % 4], (MOBILE, WIRELINE, ANY)[session % 3]
    return request(session, server_id, preferred, not_before=not_before, expires_at=expires_at)


REQUESTS = st.lists(st.builds(of_thirty, st.integers(1, 30), st.integers(0, 20), st.integers(5, 30)), max_size=60)


@given(
    REQUESTS,
    st.lists(st.integers(1, 30)),
    st.lists(st.sampled_from([ETH, WWAN, TUN]), unique=True),
    st.sets(st.sampled_from("abc")),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 20)),
)
def test_it_is_what_a_look_at_all_of_them_says(
    added: list[SessionRequest],
    removed: list[int],
    available: list[Connection],
    servers: set[str],
    resting: dict[str, float],
) -> None:
    """However it came to be as it is, by additions in any order, second ones and removals."""
    now, waiting, left = 10, Schedule(), dict[int, SessionRequest]()
    for found in added:
        waiting.add(found)
        left[found.session] = found
    for session in set(removed) & left.keys():
        waiting.remove(session)
        del left[session]
    over = sorted((it for it in left.values() if it.expires_at <= now), key=lambda it: (it.expires_at, it.session))
    assert waiting.take_expired(now, 99) == over
    alive = [it for it in left.values() if it.expires_at > now]
    may = {it: max(it.not_before, resting.get(it.server_id, 0)) for it in alive if it.server_id in servers}
    ready = [it for it, at in may.items() if at <= now]
    able = [it for it in ready if choose_connection(it.notification.preferred_connections, available)]
    start = waiting.next_start(available, now, servers, resting)
    first = min(able, key=lambda it: (it.not_before, it.session), default=None)
    assert (None if start is None else start.request) == first
    # Until then nothing is otherwise by time alone.
    change = waiting.next_change(now, servers, resting)
    assert change is None or change > now
    for later in range(now, 40 if change is None else int(change)):
        assert waiting.next_start(available, later, servers, resting) == start
        assert not [it for it in alive if it.expires_at <= later]
