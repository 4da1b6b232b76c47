"""A clock that is wrong by decades, and set right in between.

The daemon and its journal are real; the time at which a datagram arrives is made up.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dmnotid import RELEASED_AT
from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.policy.reception import Datagram
from dmnotid.sentences import show_time
from tests.support import NOWHERE, OPEN_ID, OTHER_ID, SERVERS, SOURCE, LogLines, Recorder, eventually, make_config, push

DAY = 86_400.0
YEAR = 365 * DAY
NOW = RELEASED_AT + YEAR
"""The true time in these tests."""
LAST = 2**32 - 1
"""The last time that can be signed, in 2106."""


@asynccontextmanager
async def at_work(config: Config) -> AsyncIterator[Daemon]:
    daemon = Daemon(config)
    task = asyncio.create_task(daemon.run())
    await daemon.ready.wait()
    try:
        yield daemon
    finally:
        daemon.stop()
        await task


def arrive(daemon: Daemon, payload: bytes, *, clock: float) -> str:
    """Let a datagram arrive at `clock`; return the counter that it moved."""
    before = dict(daemon.counters)
    daemon.receiver.deliver([Datagram(payload, SOURCE, clock)])
    (word,) = {word for word, count in daemon.counters.items() if count != before.get(word, 0)} - {"received"}
    return word


def waiting(number: int, *, sent_at: float = NOW, server_id: str | None = None) -> bytes:
    if server_id is None:
        return push(number, sent_at=sent_at, preferred=NOWHERE)
    return push(number, sent_at=sent_at, preferred=NOWHERE, server_id=server_id)


async def test_device_that_wakes_in_1970_measures_ages_from_signed_times(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path)
    async with at_work(config) as daemon:
        assert arrive(daemon, waiting(9, sent_at=RELEASED_AT - 6 * YEAR), clock=90) == "stale", "by the release"
        assert arrive(daemon, waiting(1), clock=100) == "accepted", "any later time is ahead of the clock"
        (line,) = logged.of("clock not believed")
        assert "1970-01-01T00:01:30Z" in line["problem"]
        assert line["level"] == "warning"
        assert arrive(daemon, waiting(2, sent_at=NOW - DAY + 5), clock=200) == "accepted"
        assert arrive(daemon, waiting(3, sent_at=NOW - DAY - 5), clock=300) == "stale", "by the newest time"
        assert arrive(daemon, waiting(1), clock=400) == "duplicate"
    async with at_work(config) as daemon:
        # It slept, and woke in 1970 again.
        assert arrive(daemon, waiting(1), clock=50) == "duplicate"
        assert arrive(daemon, waiting(4, sent_at=NOW - 2 * DAY), clock=60) == "stale"
        # NTP sets the clock right.
        assert arrive(daemon, waiting(5, sent_at=NOW + 60), clock=NOW + 60) == "accepted"
        assert arrive(daemon, waiting(1), clock=NOW + 60) == "duplicate"
        assert arrive(daemon, waiting(6, sent_at=NOW + 1_000), clock=NOW + 60) == "accepted"
        assert arrive(daemon, waiting(7, sent_at=NOW - DAY), clock=NOW + 61) == "stale"
        assert len(logged.of("clock not believed")) == 2, "once by each process"
        assert len(logged.of("clock believed")) == 1


LIES: dict[str, list[tuple[float, float]]] = {
    "1970": [(100.0, LAST)],
    "1970, twice": [(100.0, LAST - 3 * 86_400 - 1), (100.0, LAST)],
    "ahead for a moment": [(NOW + 30 * DAY, LAST)],
    "ahead and before": [(NOW + 30 * DAY, NOW + 40 * DAY), (NOW, LAST)],
    "right": [(NOW, LAST)],
    "right, a step back": [(NOW, NOW + 599), (NOW - 3, LAST)],
    "weeks behind": [(NOW - 60 * DAY, LAST)],
}
"""Each: the clock of the device and the time that a server signs, one after the other."""


@pytest.mark.parametrize("lies", LIES.values(), ids=LIES)
async def test_server_that_signs_2106_locks_no_other_server_out(
    tmp_path: Path, lies: list[tuple[float, float]]
) -> None:
    """At once, after NTP, after a restart in 1970 and after its removal; nor itself once it is right again."""
    config = make_config(tmp_path)
    alone = make_config(tmp_path, servers=[SERVERS[0], SERVERS[2]])
    async with at_work(config) as daemon:
        for number, (clock, sent_at) in enumerate(lies):
            assert arrive(daemon, waiting(number, sent_at=sent_at, server_id=OTHER_ID), clock=clock) == "accepted"
        if lies[-1][0] <= NOW:
            assert arrive(daemon, waiting(1), clock=lies[-1][0]) == "accepted"
        assert arrive(daemon, waiting(2), clock=NOW + 1) == "accepted"
        assert arrive(daemon, waiting(3, sent_at=NOW - DAY + 60), clock=NOW + 2) == "accepted"
        assert arrive(daemon, waiting(8, server_id=OTHER_ID), clock=NOW + 3) == "accepted"
    async with at_work(config) as daemon:
        assert arrive(daemon, waiting(4), clock=100) == "accepted"
        assert arrive(daemon, waiting(5), clock=NOW + 4) == "accepted"
        assert arrive(daemon, waiting(9, sent_at=NOW + 4, server_id=OTHER_ID), clock=NOW + 4) == "accepted"
    async with at_work(alone) as daemon:
        assert arrive(daemon, waiting(6), clock=100) == "accepted"
        assert arrive(daemon, waiting(7, sent_at=NOW + 5), clock=NOW + 5) == "accepted"
        for number in (2, 4, 6):
            assert arrive(daemon, waiting(number), clock=NOW + 6) == "duplicate"


async def test_clock_weeks_behind_keeps_true_notifications(tmp_path: Path, logged: LogLines) -> None:
    """After a power cut, the clock begins where it ended; it is after the release, so that it is believed."""
    config = make_config(tmp_path)
    behind = NOW - 60 * DAY
    async with at_work(config) as daemon:
        assert arrive(daemon, waiting(1), clock=behind) == "accepted"
        (line,) = logged.of("notification ahead")
        assert show_time(NOW) in line["problem"]
        assert show_time(behind) in line["problem"]
        assert arrive(daemon, waiting(2, sent_at=NOW + 3_600), clock=behind + 3_600) == "accepted"
    async with at_work(config) as daemon:
        assert arrive(daemon, waiting(1), clock=behind + 3_600) == "duplicate"
        assert arrive(daemon, waiting(1), clock=NOW + 7_200) == "duplicate"
        assert arrive(daemon, waiting(3, sent_at=NOW + 7_200), clock=NOW + 7_200) == "accepted"
    assert logged.of("clock not believed") == []


async def test_higher_max_age_makes_no_forgotten_notification_fresh_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as daemon:
        assert arrive(daemon, push(1, sent_at=NOW), clock=NOW) == "accepted"
        await eventually(lambda: not daemon.pending)
    async with at_work(config) as daemon:
        later = NOW + 3 * DAY + 1
        assert arrive(daemon, push(2, sent_at=later), clock=later) == "accepted"
        await eventually(lambda: not daemon.pending)
    patient = make_config(tmp_path, recorder.command, freshness={"max_age": "30d"}, duplicates={"remember": "60d"})
    async with at_work(patient) as daemon:
        for clock in (later, NOW, 100.0):
            assert arrive(daemon, push(1, sent_at=NOW), clock=clock) == "stale"
        assert arrive(daemon, push(3, sent_at=NOW + 1), clock=later) == "accepted"


async def test_clock_that_was_years_ahead_burns_no_id(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(make_config(tmp_path)) as daemon:
        ahead = NOW + 14 * YEAR
        assert arrive(daemon, waiting(1), clock=ahead) == "stale"
        unsigned = waiting(2, server_id=OPEN_ID)
        assert arrive(daemon, unsigned, clock=ahead) == "accepted"
        # NTP steps the clock back: no id was burnt, and nothing is forgotten or remembered for 14 years.
        assert arrive(daemon, waiting(1), clock=NOW) == "accepted"
        assert arrive(daemon, waiting(1), clock=NOW + 1) == "duplicate"
        assert arrive(daemon, unsigned, clock=NOW + 2) == "duplicate"
        assert logged.of("clock not believed") == []


async def test_clock_behind_a_time_that_it_has_shown_is_not_believed(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(make_config(tmp_path)) as daemon:
        assert arrive(daemon, waiting(1), clock=NOW) == "accepted"
        behind = NOW - 30 * DAY
        assert arrive(daemon, waiting(2, sent_at=NOW + 60), clock=behind) == "accepted"
        assert show_time(NOW) in logged.of("clock not believed")[0]["problem"]
        assert arrive(daemon, waiting(3, sent_at=NOW - DAY - 60), clock=behind) == "stale"
        assert arrive(daemon, waiting(5, sent_at=behind), clock=behind) == "accepted", "it agrees with the clock"
        assert arrive(daemon, waiting(4, sent_at=NOW + 120, server_id=OTHER_ID), clock=NOW + 120) == "accepted"
        assert len(logged.of("clock believed")) == 1


async def test_wall_clock_changes_no_pause(tmp_path: Path) -> None:
    """The wall clock at the arrival makes no session start later, or again and again."""
    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_ATTEMPT'] != '3')")
    config = make_config(tmp_path, recorder.command, retry={"first": "50ms", "longest": "50ms"})
    async with at_work(config) as daemon:
        for number, clock in enumerate((100.0, NOW, NOW + 50 * YEAR)):
            unsigned = push(number, server_id=OPEN_ID, secret=None)
            assert arrive(daemon, unsigned, clock=clock) == "accepted"
        await eventually(lambda: not daemon.pending)
    assert sorted(recorder.names) == [(session, attempt) for session in (1, 2, 3) for attempt in (1, 2, 3)]


async def test_session_pending_over_a_restart_under_another_clock_is_run(tmp_path: Path, logged: LogLines) -> None:
    """Written under one clock and read under another, it neither expires at once nor waits for years."""
    recorder = Recorder(tmp_path)
    nowhere = make_config(tmp_path, recorder.command, connections={"mobile": {"interfaces": ["none0"]}})
    async with at_work(nowhere) as daemon:
        for number, clock in ((1, 100.0), (2, time.time() + 50 * YEAR)):
            unsigned = push(number, server_id=OPEN_ID, secret=None, preferred=NOWHERE)
            assert arrive(daemon, unsigned, clock=clock) == "accepted"
        await eventually(lambda: len(logged.of("session waiting")) == 2)
    async with at_work(nowhere) as daemon:
        # It is logged after the search for expired sessions.
        await eventually(lambda: len(logged.of("session waiting")) == 4)
        assert daemon.pending == 2
    mobile = make_config(tmp_path, recorder.command, connections={"mobile": {"interfaces": ["lo"]}, "wireline": {}})
    async with at_work(mobile) as daemon:
        await eventually(lambda: not daemon.pending)
    assert recorder.names == [(1, 1), (2, 1)]
