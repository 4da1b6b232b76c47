"""Which session starts next, and on which connection (5.3.4)."""

import tracemalloc
from collections.abc import Mapping, Sequence
from math import inf

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


SERVERS = dict.fromkeys("abc", -inf)
"""The servers that may get a session at any time."""
NOW = 10


def started(
    *requests: SessionRequest, available: Sequence[Connection] = (ETH,), servers: Mapping[str, float] = SERVERS
) -> int | None:
    """Return the number of the session that starts, or None."""
    start = Schedule(requests).next_start(available, NOW, servers.get)
    return None if start is None else start.request.session


def changed(*requests: SessionRequest, servers: Mapping[str, float] = SERVERS) -> float | None:
    return Schedule(requests).next_change(NOW, servers.get)


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


def test_start_carries_request_connection_and_attempt() -> None:
    """5.3.4."""
    wanted = request(3, "a", WIRELESS, attempts=2)
    assert Schedule([wanted]).next_start([ETH, WLAN], NOW, SERVERS.get) == SessionStart(wanted, WLAN, 3)


def test_first_request_in_turn_starts() -> None:
    """5.3.4: in order of arrival. A request that failed has its turn after those that arrived during its pause."""
    assert started(request(1, "a"), request(2, "b")) == 1
    assert started(request(2, "b"), request(1, "a")) == 1
    assert started(request(1, "a", not_before=2), request(2, "b", not_before=1)) == 2
    assert started(request(1, "a", not_before=9), request(7, "b", not_before=8)) == 7
    assert started() is None


@pytest.mark.parametrize(
    ("servers", "session"),
    [
        ({"a": 5, "b": 3}, 3),
        ({"a": 3, "b": 5}, 1),
        ({"a": 5, "b": 5}, 1),
        ({"a": -inf, "b": 3}, 1),
        ({"a": 5, "b": -inf}, 3),
        ({"a": 5, "b": 3, "c": -inf}, 4),
        ({"a": 5, "b": 11, "c": 12}, 1),
    ],
)
def test_server_whose_last_try_began_longest_ago_comes_first(servers: dict[str, float], session: int) -> None:
    """5.3.4: one that was never tried comes before all others; within a server, first come, first served."""
    pending = [request(1, "a"), request(2, "a"), request(3, "b", not_before=9), request(4, "c", not_before=9)]
    assert started(*pending, servers=servers) == session


def test_server_without_a_request_that_can_start_lets_others_have_their_turn() -> None:
    """5.3.4."""
    pending = [request(1, "a", MOBILE), request(2, "b", not_before=11), request(3, "c")]
    assert started(*pending, servers={"a": 1, "b": 2, "c": 3}) == 3


def test_request_without_a_connection_does_not_block_others() -> None:
    """5.3.4: nor those of the same server."""
    waits = request(1, "a", MOBILE)
    assert started(waits, request(2, "a"), request(3, "b")) == 2
    assert started(waits) is None
    assert started(waits, available=(ETH, WWAN)) == 1


def test_only_a_server_that_may_get_a_session_gets_one() -> None:
    """5.3.4: never two for one server; none for a server that is not configured."""
    first, second, other = request(1, "a"), request(2, "a"), request(3, "b")
    assert started(first, second, other, servers={"b": -inf}) == 3
    assert started(first, second, servers={"b": -inf}) is None
    assert started(first, second, other, servers={}) is None


@pytest.mark.parametrize(
    ("not_before", "expires_at", "session"),
    [(10, 1000, 1), (10.5, 1000, None), (0, 10, None), (0, 10.5, 1), (0, 9, None)],
)
def test_request_starts_between_its_two_times(not_before: float, expires_at: float, session: int | None) -> None:
    """5.3.4: from `not_before` on, and before it expires."""
    assert started(request(not_before=not_before, expires_at=expires_at)) == session


@pytest.mark.parametrize(
    ("not_before", "free_at", "session"), [(0, 10, 1), (0, 10.5, 2), (0, 9, 1), (10.5, 9, 2), (10.5, 11, 2)]
)
def test_server_gets_no_session_before_its_time(not_before: float, free_at: float, session: int) -> None:
    """And it does not block other servers."""
    pending = [request(1, "a", not_before=not_before), request(2, "b", not_before=5)]
    assert started(*pending, servers={"a": free_at, "b": 10, "c": 1_000}) == session


@pytest.mark.parametrize(
    ("requests", "change"),
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
def test_next_change_is_the_end_of_a_pause_or_an_expiry(requests: list[SessionRequest], change: float | None) -> None:
    """5.3.4: a server that is not configured has only its expiry."""
    assert changed(*requests) == change


@pytest.mark.parametrize(
    ("not_before", "free_at", "change"), [(0, 20, 20), (15, 20, 20), (25, 20, 25), (0, 9, 50), (0, 60, 50)]
)
def test_next_change_respects_the_time_of_the_server(not_before: float, free_at: float, change: float) -> None:
    assert changed(request(1, not_before=not_before, expires_at=50), servers={"a": free_at}) == change


def test_request_without_a_connection_is_returned_once_until_it_is_added_again() -> None:
    """For the log: some at a time, and none of a server that is not configured."""
    pending = [request(session, server_id, MOBILE) for session, server_id in enumerate("aabx", 1)]
    schedule = Schedule([*pending, request(9, "a", WIRELINE)])
    assert schedule.without_connection([ETH, WWAN], SERVERS, 99) == []
    schedule.remove(2)
    assert schedule.without_connection([ETH], SERVERS, 1) == [pending[0]]
    assert schedule.without_connection([ETH], SERVERS, 1) == [pending[2]]
    assert schedule.without_connection([ETH], SERVERS, 1) == []
    schedule.add(pending[0])
    assert schedule.without_connection([ETH], {"a", "b", "x"}, 9) == [pending[3], pending[0]]


def test_expired_requests_are_taken_in_order_and_not_all_at_once() -> None:
    """5.3.4: the end itself included, whether the server is configured or not."""
    over, ends, held, lives = (
        request(1, expires_at=9),
        request(2, expires_at=10),
        request(3, "x", expires_at=9.5),
        request(4, expires_at=10.1),
    )
    schedule = Schedule([over, ends, held, lives])
    assert schedule.take_expired(NOW, 2) == [over, held]
    assert schedule.take_expired(NOW, 2) == [ends]
    assert schedule.take_expired(NOW, 2) == []
    assert len(schedule) == 1


def test_removed_request_is_returned_once() -> None:
    first = request(1)
    schedule = Schedule([first, request(2, "b")])
    assert (schedule.remove(1), len(schedule)) == (first, 1)
    with pytest.raises(KeyError):
        schedule.remove(1)


def test_request_that_is_added_again_replaces_the_former_one() -> None:
    """As after a failed try, or with more time."""
    schedule = Schedule([request(1, not_before=1, expires_at=20), request(2, not_before=2)])
    schedule.add(request(1, not_before=30, expires_at=40))
    start = schedule.next_start([ETH], NOW, SERVERS.get)
    assert start is not None
    assert start.request.session == 2
    assert schedule.take_expired(25, 9) == []
    schedule.remove(2)
    assert schedule.next_start([ETH], NOW, SERVERS.get) is None
    assert schedule.next_change(NOW, SERVERS.get) == 30
    assert [found.session for found in schedule.take_expired(40, 9)] == [1]


def test_request_that_is_tried_again_and_again_takes_no_memory() -> None:
    schedule = Schedule()
    tracemalloc.start()
    try:
        for at in range(10_000):
            schedule.add(request(1, not_before=at))
            schedule.remove(1)
        octets, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert octets < 200_000  # about 2.5 million if each one left its entries
    schedule.add(request(1, not_before=5))
    assert schedule.next_change(4, SERVERS.get) == 5


def of_thirty(session: int, not_before: int, expires_at: int) -> SessionRequest:
    """Return a request; a session always has the same server and preference."""
    server_id, preferred = "abcx"[session % 4], (MOBILE, WIRELINE, ANY)[session % 3]
    return request(session, server_id, preferred, not_before=not_before, expires_at=expires_at)


REQUESTS = st.lists(st.builds(of_thirty, st.integers(1, 30), st.integers(0, 20), st.integers(5, 30)), max_size=60)


@given(
    REQUESTS,
    st.lists(st.integers(1, 30)),
    st.lists(st.sampled_from([ETH, WWAN, TUN]), unique=True),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 20)),
)
def test_schedule_answers_like_a_search_through_all_requests(
    added: list[SessionRequest], removed: list[int], available: list[Connection], servers: dict[str, float]
) -> None:
    """After additions in any order, replacements and removals."""
    schedule, left = Schedule(), dict[int, SessionRequest]()
    for found in added:
        schedule.add(found)
        left[found.session] = found
    for session in set(removed) & left.keys():
        schedule.remove(session)
        del left[session]
    over = sorted((it for it in left.values() if it.expires_at <= NOW), key=lambda it: (it.expires_at, it.session))
    assert schedule.take_expired(NOW, 99) == over
    alive = [it for it in left.values() if it.expires_at > NOW]
    ready = [it for it in alive if max(it.not_before, servers.get(it.server_id, inf)) <= NOW]
    able = [it for it in ready if choose_connection(it.notification.preferred_connections, available)]
    start = schedule.next_start(available, NOW, servers.get)
    first = min(able, key=lambda it: (servers[it.server_id], it.not_before, it.session), default=None)
    assert (None if start is None else start.request) == first
    # Until the next change, time alone changes nothing.
    change = schedule.next_change(NOW, servers.get)
    assert change is None or change > NOW
    for later in range(NOW, 40 if change is None else int(change)):
        assert schedule.next_start(available, later, servers.get) == start
        assert not [it for it in alive if it.expires_at <= later]
