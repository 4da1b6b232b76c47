"""Which session starts next, on which connection, and when again (5.3.4)."""

import pytest

from dmnotid.policy.sessions import (
    Closed,
    Connection,
    Limits,
    Outcome,
    Result,
    Retry,
    SessionRequest,
    SessionStart,
    choose_connection,
    expired,
    next_start,
    next_wake,
    settle,
)
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


def by_session(*requests: SessionRequest) -> dict[int, SessionRequest]:
    return {found.session: found for found in requests}


def started(
    pending: list[SessionRequest],
    *running: SessionRequest,
    available: tuple[Connection, ...] = (ETH,),
    now: float = 10,
    concurrency: int = 9,
    resting: dict[str, float] | None = None,
) -> int | None:
    """Return the number of the session that starts, if one does."""
    start = next_start(pending, by_session(*running), available, now, concurrency, resting or {})
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
    assert next_start([wanted], {}, [ETH, WLAN], 10, 1) == SessionStart(wanted, WLAN, 3)


def test_first_come_first_served() -> None:
    """5.3.4."""
    assert started([request(1, "a"), request(2, "b")]) == 1
    assert started([request(2, "b"), request(1, "a")]) == 2
    assert started([]) is None


def test_waiting_for_a_connection_does_not_block_others() -> None:
    """5.3.4: nor those of the same server."""
    waits = request(1, "a", MOBILE)
    assert started([waits, request(2, "a"), request(3, "b")]) == 2
    assert started([waits]) is None
    assert started([waits], available=(ETH, WWAN)) == 1


def test_never_two_for_one_server() -> None:
    """5.3.4."""
    first, second, other = request(1, "a"), request(2, "a"), request(3, "b")
    assert started([first, second, other], first) == 3
    assert started([first, second], first) is None
    assert started([first, second, other], first, other) is None


@pytest.mark.parametrize(
    ("concurrency", "running", "session"), [(1, 0, 1), (1, 1, None), (2, 1, 1), (2, 2, None), (2, 3, None)]
)
def test_concurrency(concurrency: int, running: int, session: int | None) -> None:
    """5.3.4: for the whole device."""
    others = [request(10 + number, f"s{number}") for number in range(running)]
    assert started([*others, request(1, "a")], *others, concurrency=concurrency) == session


@pytest.mark.parametrize(
    ("not_before", "expires_at", "session"),
    [(10, 1000, 1), (10.5, 1000, None), (0, 10, None), (0, 10.5, 1), (0, 9, None)],
)
def test_time_of_a_request(not_before: float, expires_at: float, session: int | None) -> None:
    """5.3.4: from `not_before` on, and not when it has expired (now is 10)."""
    assert started([request(not_before=not_before, expires_at=expires_at)]) == session


@pytest.mark.parametrize(
    ("not_before", "until", "session"),
    [(0, 10, 1), (0, 10.5, 2), (0, 9, 1), (10.5, 9, 2), (10.5, 11, 2)],
)
def test_a_server_rests_between_starts(not_before: float, until: float, session: int) -> None:
    """No start for one server before its rest is over; others don't wait for it (now is 10)."""
    pending = [request(1, "a", not_before=not_before), request(2, "b")]
    assert started(pending, resting={"a": until, "c": 1_000}) == session


@pytest.mark.parametrize(
    ("not_before", "until", "wake"), [(0, 20, 20), (15, 20, 20), (25, 20, 25), (0, 9, 50), (0, 60, 50)]
)
def test_wake_at_the_end_of_a_rest(not_before: float, until: float, wake: float) -> None:
    """The later of pause and rest; the expiry where that comes first (now is 10)."""
    assert next_wake([request(1, not_before=not_before, expires_at=50)], {}, 10, {"a": until}) == wake


def test_expired() -> None:
    """5.3.4: up to the end, the end included; one that runs is let end."""
    over, ends, runs, lives = (
        request(1, expires_at=9),
        request(2, expires_at=10),
        request(3, expires_at=9),
        request(4, expires_at=10.1),
    )
    assert expired([over, ends, runs, lives], by_session(runs), 10) == [over, ends]
    assert expired([], {}, 10) == []


@pytest.mark.parametrize(
    ("pending", "wake"),
    [
        ([], None),
        ([request(1, expires_at=50)], 50),
        ([request(1, not_before=20, expires_at=50)], 20),
        ([request(1, not_before=10, expires_at=50)], 50),
        ([request(1, expires_at=50), request(2, not_before=30)], 30),
        ([request(1, expires_at=50), request(2, expires_at=40)], 40),
        ([request(9, expires_at=12)], None),
        ([request(9, expires_at=12), request(1, expires_at=50)], 50),
    ],
)
def test_wake(pending: list[SessionRequest], wake: float | None) -> None:
    """5.3.4: when time alone changes something (now is 10; session 9 runs)."""
    assert next_wake(pending, by_session(request(9)), 10) == wake


@pytest.mark.parametrize("attempt", [1, 10, 11])
@pytest.mark.parametrize(("result", "closed"), [(Result.DONE, Closed.DONE), (Result.REFUSED, Closed.REFUSED)])
def test_settled_at_once(attempt: int, result: Result, closed: Closed) -> None:
    """5.3.4: done and refused need no further try."""
    assert settle(Outcome(result, ""), attempt, Retry(), 0) is closed


@pytest.mark.parametrize(
    ("attempt", "pause"), [(1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (9, 3600), (10, None), (11, None)]
)
def test_pauses_grow(attempt: int, pause: float | None) -> None:
    """5.3.4: doubled up to an hour, ten tries in all."""
    settled = settle(Outcome(Result.FAILED, "exit 1"), attempt, Retry(), 0)
    assert settled == (Closed.FAILED if pause is None else pause)


@pytest.mark.parametrize(("jitter", "pause"), [(0, 40), (0.5, 35), (1, 30)])
def test_pause_is_shortened_by_a_quarter_at_most(jitter: float, pause: float) -> None:
    """5.3.4: so that a fleet doesn't call its server in step."""
    assert settle(Outcome(Result.FAILED, ""), 1, Retry(first=40), jitter) == pause
    assert settle(Outcome(Result.FAILED, ""), 5, Retry(first=40, longest=40), jitter) == pause


def test_pause_of_very_many_tries() -> None:
    """5.3.4: no overflow, however many tries are configured."""
    retry = Retry(first=0.001, longest=1e300, attempts=10**9)
    assert settle(Outcome(Result.FAILED, ""), 10**6, retry, 0) == 0.001 * 2.0**63
    assert settle(Outcome(Result.FAILED, ""), 64, retry, 0) == 0.001 * 2.0**63


def test_one_try_in_all() -> None:
    """5.3.4."""
    assert settle(Outcome(Result.FAILED, ""), 1, Retry(attempts=1), 0) is Closed.FAILED


def test_limits() -> None:
    """5.3.4: one session at a time, 16 waiting for a server, a week of waiting."""
    assert Limits() == Limits(concurrency=1, max_pending=16, expire_after=604_800)
    assert Retry() == Retry(first=30, longest=3600, attempts=10)


def test_request_moves_on() -> None:
    """5.3.4: only how often it was tried, and when it is tried again."""
    first = request(1, "a", MOBILE)
    assert first.tried(4) == first._replace(attempts=4)
    assert first.later(99.5) == first._replace(not_before=99.5)


def test_more_or_less_time() -> None:
    assert request(expires_at=50).with_time(7).expires_at == 57
    assert request(expires_at=50).with_time(-7).expires_at == 43


def test_wake_at_the_expiry_within_a_pause() -> None:
    """5.3.4: `expired` answers otherwise at 50 (now is 10)."""
    assert next_wake([request(1, not_before=3600, expires_at=50)], {}, 10) == 50
