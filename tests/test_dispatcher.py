"""The session's way with a real journal and real hooks; only the connections are made up."""

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dmnotid import transitions
from dmnotid.config.values import HookConfig
from dmnotid.dispatcher import INTERRUPTIONS
from dmnotid.hook.locks import Locks
from dmnotid.journal.queue import Journal
from dmnotid.policy.sessions import Connection
from dmnotid.tracking import ENDS_AT_ONCE
from dmnotid.wire.notification import ConnectionType
from tests.dispatching import (
    FOREVER,
    MOBILE,
    WIRELINE,
    Bench,
    MadeUpLinks,
    at_work,
    execute,
    execute_before,
    refuse,
    states,
    waiting_for,
)
from tests.peers import answering, served
from tests.support import (
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    SERVER_ID,
    SERVERS,
    SHORT,
    LogLines,
    Recorder,
    eventually,
    is_alive,
    make_config,
    verified,
    write_script,
)


def interfaces(recorder: Recorder) -> list[tuple[int, str]]:
    """Return session and interface of each run."""
    runs = [run["environment"] for run in recorder.runs]
    return [(int(run["DMNOTID_SESSION"]), run["DMNOTID_INTERFACE"]) for run in runs]


def sessions(lines: list[dict[str, Any]]) -> list[int]:
    return [line["session"] for line in lines]


async def test_session_is_done_after_one_run(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        session = bench.accept(7)
        assert bench.dispatcher.pending == 1
        await bench.end_all()
    assert states(config) == {session: "done"}
    assert recorder.names == [(session, 1)]
    (started,), (done,) = logged.of("session started"), logged.of("session done")
    for line in (started, done):
        assert (line["session"], line["server_id"], line["notification_id"]) == (session, SERVER_ID, 7)
        assert line["level"] == "info"
    assert (started["attempt"], started["connection"], started["interface"]) == (1, "wireline", "eth0")
    assert (done["attempts"], done["outcome"]) == (1, "exit 0")


async def test_sessions_run_one_at_a_time_in_order_of_arrival(tmp_path: Path) -> None:
    """5.3.4: a run that began before the former one had ended would write between its two words."""
    recorder, order = Recorder(tmp_path), tmp_path / "order"
    note = f"open({str(order)!r}, 'a').write"
    recorder.behave(f"import time; {note}(environment['DMNOTID_SESSION']); time.sleep(0.05); {note}(' ended ')")
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        for number, server_id in [(9, SERVER_ID), (2, OTHER_ID), (1, OPEN_ID), (5, SERVER_ID)]:
            bench.accept(number, server_id)
        await bench.end_all()
    assert order.read_text() == "1 ended 2 ended 3 ended 4 ended "


async def test_several_sessions_run_at_once_but_never_two_for_one_server(tmp_path: Path) -> None:
    """5.3.4: the session of the third server starts while those of the first two servers still queue."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, sessions={"concurrency": 4})
    async with at_work(config) as bench:
        first = [bench.accept(number) for number in range(3)]
        other = [bench.accept(number, OTHER_ID) for number in range(2)]
        open_ = bench.accept(1, OPEN_ID)
        await eventually(lambda: (open_, 1) in recorder.names)
        await eventually(lambda: len(recorder.names) == 3)
        assert recorder.names == [(first[0], 1), (other[0], 1), (open_, 1)]
        assert bench.dispatcher.running == 3
        (tmp_path / "go").touch()
        await bench.end_all()
    assert set(states(config).values()) == {"done"}


# The turns of servers


def started(logged: LogLines) -> list[int]:
    """Return the session of each try, in the order of their starts."""
    return sessions(logged.of("session started"))


async def test_server_with_many_sessions_holds_up_another_by_one_run(tmp_path: Path, logged: LogLines) -> None:
    """5.3.4."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        first, *others = [bench.accept(number) for number in range(16)]
        await eventually(lambda: recorder.names)
        late = bench.accept(1, OTHER_ID)
        (tmp_path / "go").touch()
        await bench.end_all()
    assert started(logged) == [first, late, *others]


async def test_server_whose_hook_times_out_holds_up_another_by_one_run_each_time(
    tmp_path: Path, logged: LogLines
) -> None:
    """5.3.4: whether its sessions are new or tried again."""
    hook = write_script(tmp_path / "hook", f'[ "$DMNOTID_SERVER_ID" != {SERVER_ID} ] || exec sleep 60')
    retry = {"first": "1ms", "longest": "1ms", "attempts": 2}
    config = make_config(tmp_path, [str(hook)], hook={"timeout": "300ms"}, retry=retry)
    async with at_work(config) as bench:
        for number in range(3):
            bench.accept(number)
        others = [bench.accept(number, OTHER_ID) for number in range(6)]
        await bench.end_all()
    ended = [line["outcome"][:9] for line in logged.of("session failed") if line["server_id"] == SERVER_ID]
    assert ended == ["timed out"] * 3
    # On a busy machine a hook of the other server may time out too, and its session has further tries.
    first_tries = {line["session"]: at for at, line in reversed([*enumerate(logged.of("session started"))])}
    order = [
        session for at, session in enumerate(started(logged)) if session not in others or first_tries[session] == at
    ]
    turns = [order.index(session) for session in others]
    assert turns[0] <= 1
    assert max(later - earlier for earlier, later in pairwise(turns)) <= 2


async def test_turns_of_servers_survive_a_restart(tmp_path: Path, logged: LogLines) -> None:
    """5.3.4: the server whose last try began longest ago comes first, without `min_interval` too."""
    config, links = make_config(tmp_path), MadeUpLinks()
    async with at_work(config) as bench:
        former = [bench.accept(1, OTHER_ID), bench.accept(1)]
        await bench.end_all()
    async with at_work(config, links) as bench:
        second, first, never = bench.accept(2), bench.accept(2, OTHER_ID), bench.accept(2, OPEN_ID)
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await bench.end_all()
    assert started(logged) == [*former, never, first, second]


# Connections


async def test_session_without_a_connection_does_not_block_others(tmp_path: Path) -> None:
    """5.3.4: one waits for mobile, others start."""
    recorder, links = Recorder(tmp_path), MadeUpLinks(WIRELINE)
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        waits = bench.accept(1, preferred=[ConnectionType.MOBILE])
        starts = bench.accept(2)
        other = bench.accept(3, OTHER_ID, preferred=[ConnectionType.MOBILE, ConnectionType.ANY])
        await eventually(lambda: bench.dispatcher.pending == 1)
        assert interfaces(recorder) == [(starts, "eth0"), (other, "eth0")]
        links.connections = [WIRELINE, MOBILE]
        bench.dispatcher.wake()
        await bench.end_all()
    assert interfaces(recorder)[0] == (waits, "wwan0")


async def test_missing_connection_is_logged_once_for_each_session(tmp_path: Path, logged: LogLines) -> None:
    recorder, links = Recorder(tmp_path), MadeUpLinks(WIRELINE)
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        session = bench.accept(1, preferred=[MOBILE.type, ConnectionType.WIRELESS])
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 1)
        bench.accept(3)
        await eventually(lambda: len(recorder.names) == 2)
        links.connections = []
        second = bench.accept(4)
        await eventually(lambda: len(logged.of("session waiting")) == 2)
    line, other = logged.of("session waiting")
    assert (line["session"], line["wanted"], line["available"]) == (session, "mobile wireless", "eth0(wireline)")
    assert line["missing"] == "no mobile interface; no wireless interface"
    assert (line["level"], line["server_id"], line["notification_id"]) == ("info", SERVER_ID, 1)
    assert (other["session"], other["wanted"], other["available"]) == (second, "any", "")


@pytest.mark.parametrize("status", [0, 1])
async def test_missing_connection_is_logged_when_it_is_lost_during_a_run(
    tmp_path: Path, logged: LogLines, status: int
) -> None:
    """For the session that failed, and for the one that was queued after it."""
    links, recorder = MadeUpLinks(WIRELINE), Recorder(tmp_path, waiting_for(tmp_path / "go", status))
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        first, second = bench.accept(1), bench.accept(2)
        await eventually(lambda: recorder.names)
        assert logged.of("session waiting") == []
        links.connections = []
        (tmp_path / "go").touch()
        await eventually(lambda: len(logged.of("session waiting")) == 1 + status)
    assert sorted(sessions(logged.of("session waiting"))) == [first, second][-1 - status :]


@pytest.mark.parametrize("found", [(MOBILE,), (WIRELINE, MOBILE)], ids=["lost", "better"])
async def test_connection_is_chosen_again_by_the_read_before_the_start(
    tmp_path: Path, logged: LogLines, found: Sequence[Connection]
) -> None:
    """5.3.4: the connections at the start count, and no try is spent."""
    recorder, links = Recorder(tmp_path), MadeUpLinks(WIRELINE, after_read=found)
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1, preferred=[ConnectionType.MOBILE, ConnectionType.WIRELINE])
        await bench.end_all()
    assert interfaces(recorder) == [(1, "wwan0")]
    assert (recorder.names, bench.dispatcher.counters) == ([(1, 1)], {"tries": 1, "done": 1})
    assert logged.of("session waiting") == []


async def test_session_waits_again_when_the_read_before_the_start_finds_no_connection(
    tmp_path: Path, logged: LogLines
) -> None:
    """5.3.4: what is missing is logged each time, and no try is spent."""
    recorder, links = Recorder(tmp_path), MadeUpLinks(WIRELINE, after_read=[])
    config = make_config(tmp_path, recorder.command)
    async with at_work(config, links) as bench:
        session = bench.accept(1)
        for times in (1, 2):
            await eventually(lambda times=times: len(logged.of("session waiting")) == times)  # type: ignore[misc]
            links.connections = [WIRELINE]
            bench.dispatcher.wake()
        await eventually(lambda: len(logged.of("session waiting")) == 3)
        assert (recorder.names, bench.dispatcher.counters) == ([], {})
        links.connections = links.after_read = [WIRELINE]
        bench.dispatcher.wake()
        await bench.end_all()
    assert recorder.names == [(session, 1)]
    assert sessions(logged.of("session waiting")) == [session] * 3


async def test_session_starts_only_after_a_read_that_succeeds(tmp_path: Path, logged: LogLines) -> None:
    """A connection that was available is not reported as missing because it can't be confirmed."""
    recorder, links = Recorder(tmp_path), MadeUpLinks(WIRELINE)
    links.readable = False
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1)
        waits = bench.accept(2, preferred=NOWHERE)
        await eventually(lambda: logged.of("session waiting"))
        assert links.reads == 1
        assert (recorder.names, sessions(logged.of("session waiting"))) == ([], [waits])
        links.readable = True
        bench.dispatcher.wake()
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert recorder.names == [(1, 1)]


async def test_session_whose_pause_ends_starts_while_others_are_logged_that_wait(
    tmp_path: Path, logged: LogLines
) -> None:
    config = make_config(tmp_path, sessions={"max_pending": 2_000})
    async with at_work(config) as bench:
        requests = [bench.journal.admit(verified(number, preferred=NOWHERE)) for number in range(2_000)]
        last = bench.journal.admit(verified(0, server_id=OTHER_ID))
        bench.journal.commit()
        # Long before all of the others are logged.
        bench.dispatcher.add([*requests, last._replace(not_before=time.monotonic() + 0.01)])
        await eventually(lambda: logged.of("session done"))
        await eventually(lambda: len(logged.of("session waiting")) == len(requests))
    events = [line["event"] for line in logged.all()]
    assert "session waiting" in events[events.index("session started") :]


async def test_each_try_uses_the_best_connection_of_its_time(tmp_path: Path) -> None:
    """5.3.4."""
    links = MadeUpLinks(WIRELINE, MOBILE)
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go", 1))
    async with at_work(make_config(tmp_path, recorder.command, retry={"attempts": 2}), links) as bench:
        bench.accept(1, preferred=[ConnectionType.MOBILE, ConnectionType.WIRELINE])
        await eventually(lambda: recorder.names)
        links.connections = [WIRELINE]
        (tmp_path / "go").touch()
        await bench.end_all()
    assert interfaces(recorder) == [(1, "wwan0"), (1, "eth0")]


async def test_idle_dispatcher_does_not_turn(tmp_path: Path, logged: LogLines) -> None:
    links = MadeUpLinks()
    async with at_work(make_config(tmp_path), links) as bench:
        bench.accept(1)
        await eventually(lambda: logged.of("session waiting"))
        looks = links.looks
        for _ in range(100):  # iterations of the event loop
            await asyncio.sleep(0)
        assert links.looks == looks


# Trying again


@pytest.mark.parametrize(
    ("behaviour", "tries", "state", "level", "outcome"),
    [
        ("sys.exit(3 if environment['DMNOTID_ATTEMPT'] == '1' else 0)", 2, "done", "info", "exit 0"),
        ("sys.exit(78)", 1, "refused", "error", "exit 78"),
        ("os.kill(os.getpid(), 9)", 3, "failed", "error", "killed by SIGKILL"),
    ],
)
async def test_session_is_tried_until_it_is_closed(
    tmp_path: Path, logged: LogLines, behaviour: str, tries: int, state: str, level: str, outcome: str
) -> None:
    """5.3.4: until it is done or refused, or its tries are used up."""
    recorder = Recorder(tmp_path, behaviour)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        session = bench.accept(7)
        await bench.end_all()
    assert states(config) == {session: state}
    assert recorder.names == [(session, attempt) for attempt in range(1, tries + 1)]
    (line,) = logged.of(f"session {state}")
    assert (line["level"], line["attempts"], line["outcome"]) == (level, tries, outcome)
    failed = [(line["level"], line["attempt"]) for line in logged.of("session try failed")]
    assert failed == [("warning", attempt) for attempt in range(1, tries)]
    assert bench.dispatcher.counters == {"tries": tries, state: 1}


# A hook that can't be started


async def test_hook_that_cannot_be_started_spends_no_try(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    recorder.file.chmod(0o777)
    problem = f"{recorder.file}: writable by others: chmod go-w {recorder.file}"
    config = make_config(tmp_path, recorder.command, retry={"attempts": 1, "longest": "80ms"})
    async with at_work(config) as bench:
        session = bench.accept(7)
        lines = await eventually(lambda: (lines := logged.of("hook not started"))[5:] and lines)
        assert bench.dispatcher.hook_problem == problem
        assert [request.attempts for request in bench.journal.pending()] == [0]
        recorder.file.chmod(0o755)
        await bench.end_all()
        assert bench.dispatcher.hook_problem == ""
    assert recorder.names == [(session, 1)]
    assert states(config) == {session: "done"}
    facts = {"level": "error", "session": session, "server_id": SERVER_ID, "notification_id": 7, "attempt": 1}
    assert all(line.items() >= facts.items() and line["problem"] == problem for line in lines)
    # 10, 20, 40, 80, 80 ms less a quarter at most: rounded to tenths of a second in the log.
    assert [line["again_in"] for line in lines[:1] + lines[4:6]] == [0.0, 0.1, 0.1]
    assert logged.of("session started")[0]["attempt"] == 1
    assert logged.of("session try failed") == []
    assert bench.dispatcher.counters == {"tries": 1, "done": 1}


async def test_try_that_was_written_is_taken_back_if_the_hook_cannot_be_started(
    tmp_path: Path, logged: LogLines
) -> None:
    """Only connecting to the socket shows that no process listens on it."""
    path, retry = tmp_path / "session", {"attempts": 1}
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
    config = make_config(tmp_path, retry=retry)
    config = config._replace(hook=HookConfig((), socket=path))
    async with at_work(config) as bench:
        session = bench.accept(7)
        await eventually(lambda: len(logged.of("hook not started")) > 3)
        assert bench.dispatcher.hook_problem == f"{path}: Connection refused"
        await eventually(lambda: bench.dispatcher.counters["tries"] == 0)
    assert execute(config, "SELECT attempts FROM session") == [(0,)]
    async with at_work(config) as bench:
        path.unlink()
        with served(path, answering(b'{"exit": 0}')):
            await bench.end_all()
    assert states(config) == {session: "done"}
    assert {line["attempt"] for line in logged.of("session started")} == {1}


async def test_session_whose_hook_cannot_be_started_is_looked_at_again_at_a_reload(
    tmp_path: Path, logged: LogLines
) -> None:
    recorder = Recorder(tmp_path)
    recorder.file.rename(tmp_path / "away")
    config = make_config(tmp_path, recorder.command, retry=FOREVER)
    async with at_work(config) as bench:
        sessions = [bench.accept(7), bench.accept(8)]
        await eventually(lambda: len(logged.of("hook not started")) == 2)
        assert logged.of("hook not startable")[0]["problem"] == f"{recorder.file}: No such file or directory"
        # A reload alone is a look, and not a try.
        bench.dispatcher.configure(config)
        await eventually(lambda: len(logged.of("hook not started")) == 4)
        (tmp_path / "away").rename(recorder.file)
        bench.dispatcher.configure(config)
        await bench.end_all()
    assert recorder.names == [(session, 1) for session in sessions]


async def test_session_whose_hook_cannot_be_started_expires(tmp_path: Path, logged: LogLines) -> None:
    command = [str(tmp_path / "none")]
    config = make_config(tmp_path, command, retry=FOREVER)
    async with at_work(config) as bench:
        session = bench.accept(7)
        await eventually(lambda: logged.of("hook not started"))
        # A reload is a look at the hook too, and the session expires after it.
        bench.dispatcher.configure(make_config(tmp_path, command, retry=FOREVER, sessions={"expire_after": "1ms"}))
        await bench.end_all()
    assert states(config) == {session: "expired"}


async def test_session_rests_for_a_lock_of_its_server_alone(tmp_path: Path, logged: LogLines) -> None:
    """A hook of a killed daemon has the lock; `attempts` of the next try is not raised by the wait."""
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    config.state.mkdir()
    former = Locks(config.state).take(SERVER_ID)
    assert former is not None
    async with at_work(config) as bench:
        waits, starts = bench.accept(1), bench.accept(2, OTHER_ID)
        await eventually(lambda: bench.dispatcher.pending == 1 and logged.of("lock held"))
        assert recorder.names == [(starts, 1)]
        former.free()
        await bench.end_all()
    assert recorder.names == [(waits, 1), (starts, 1)]
    (line,) = logged.of("lock held")
    assert (line["level"], line["server_id"]) == ("warning", SERVER_ID)
    assert list((config.state / "locks").iterdir()) == []


async def test_lock_is_waited_for_no_longer_than_the_time_out_of_a_hook(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path, hook={"timeout": f"{SHORT}s"})
    config.state.mkdir()
    former = Locks(config.state).take(SERVER_ID)
    assert former is not None
    async with at_work(config) as bench:
        session = bench.accept(1)
        await bench.end_all()
    former.free()
    assert states(config) == {session: "done"}
    assert [(line["level"], line["waited"]) for line in logged.of("lock ignored")] == [("warning", SHORT)]


async def test_pause_blocks_no_other_session_and_survives_a_restart(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_NOTIFICATION_ID'] == '1')")
    config = make_config(tmp_path, recorder.command, retry=FOREVER)
    async with at_work(config) as bench:
        fails = bench.accept(1)
        await eventually(lambda: logged.of("session try failed"))
        bench.accept(2)
        bench.accept(3, OTHER_ID)
        await eventually(lambda: bench.dispatcher.pending == 1)
    async with at_work(config) as bench:
        bench.accept(4)
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert recorder.names == [(1, 1), (2, 1), (3, 1), (4, 1)]
    assert states(config)[fails] == "pending"
    assert 2_700 <= logged.of("session try failed")[0]["again_in"] <= 3_600


async def test_pauses_differ_from_session_to_session(tmp_path: Path, logged: LogLines) -> None:
    """Else a fleet of devices would call its server in step."""
    recorder = Recorder(tmp_path, "sys.exit(1)")
    async with at_work(make_config(tmp_path, recorder.command, retry=FOREVER)) as bench:
        for number in range(4):
            bench.accept(number)
        await eventually(lambda: len(logged.of("session try failed")) == 4)
    assert len({line["again_in"] for line in logged.of("session try failed")}) > 1


async def test_pause_that_ends_while_the_dispatcher_works_is_not_slept_through(tmp_path: Path) -> None:
    """It would sleep until another event, or until the session expires."""

    class SlowLinks(MadeUpLinks):
        def available(self) -> tuple[Connection, ...]:
            time.sleep(0.05)
            return super().available()

    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')")
    # The pause ends after the search for a session to start, and before the dispatcher sleeps.
    config = make_config(tmp_path, recorder.command, retry={"first": "80ms", "longest": "80ms"})
    async with at_work(config, SlowLinks(WIRELINE)) as bench:
        bench.accept(1)
        await bench.end_all()
    assert recorder.names == [(1, 1), (1, 2)]


# Expiry


@pytest.mark.parametrize("servers", [SERVERS, SERVERS[1:]], ids=["configured", "held"])
async def test_session_expires_when_it_did_not_start_in_time(
    tmp_path: Path, logged: LogLines, servers: list[dict[str, Any]]
) -> None:
    config, links = make_config(tmp_path, sessions={"expire_after": "50ms"}, servers=servers), MadeUpLinks()
    async with at_work(config, links) as bench:
        session = bench.accept(1)
        await bench.end_all()
    assert states(config) == {session: "expired"}
    (line,) = logged.of("session expired")
    assert (line["level"], line["session"], line["attempts"]) == ("error", session, 0)
    assert bench.dispatcher.counters == {"expired": 1}


async def test_sessions_that_expire_together_are_closed_in_few_transactions(tmp_path: Path) -> None:
    limits = {"expire_after": "1d", "max_pending": 1_000}
    config = make_config(tmp_path, sessions=limits)
    async with at_work(config, MadeUpLinks()) as bench:
        bench.dispatcher.add([bench.journal.admit(verified(number)) for number in range(300)])
        bench.journal.commit()
        bench.dispatcher.configure(make_config(tmp_path, sessions={**limits, "expire_after": "1ms"}))
        await bench.end_all()
    assert set(states(config).values()) == {"expired"}
    ((transactions,),) = execute(config, "SELECT count(DISTINCT closed_at) FROM session")
    assert transactions <= 300 // ENDS_AT_ONCE + 1
    assert bench.dispatcher.counters == {"expired": 300}


@pytest.mark.parametrize(("status", "state"), [(0, "done"), (1, "expired")])
async def test_running_session_does_not_expire(tmp_path: Path, logged: LogLines, status: int, state: str) -> None:
    """Its time counts again once its try has failed."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go", status))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        bench.accept(1)
        bench.accept(2)
        await eventually(lambda: recorder.names)
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, sessions={"expire_after": "1ms"}))
        await eventually(lambda: logged.of("session expired"))
        assert bench.dispatcher.pending == 1
        (tmp_path / "go").touch()
        await bench.end_all()
    assert states(config) == {1: state, 2: "expired"}


async def test_shorter_expiry_leaves_a_session_its_last_chance(tmp_path: Path) -> None:
    """A session whose time seems to be over at the start, because the clock is ahead, has an hour left."""
    recorder, config = Recorder(tmp_path), make_config(tmp_path)
    async with at_work(config, MadeUpLinks()) as bench:
        bench.accept(1, preferred=NOWHERE)
    execute(config, "UPDATE session SET received_at = received_at - 3 * 365 * 86400.0")
    async with at_work(config) as bench:
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, sessions={"expire_after": "6d"}))
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert states(config) == {1: "pending", 2: "done"}


# The interval between starts for one server


async def test_interval_lies_between_starts_for_one_server(tmp_path: Path, logged: LogLines) -> None:
    """Repeated tries count too, and other servers are not held up."""
    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')")
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": "200ms"})
    # A row has the time of its last start alone, and a start is logged later than it is dated.
    execute_before(config, "CREATE TABLE start (server_id, at)")
    note = "INSERT INTO start VALUES (new.server_id, new.started_at)"
    execute_before(config, f"CREATE TRIGGER note AFTER UPDATE OF started_at ON session BEGIN {note}; END")
    async with at_work(config) as bench:
        bench.accept(1)
        bench.accept(2)
        bench.accept(3, OTHER_ID)
        await bench.end_all()
    assert [line["server_id"] for line in logged.of("session started")[:2]] == [SERVER_ID, OTHER_ID]
    times = [at for (at,) in execute(config, "SELECT at FROM start WHERE server_id = ?", SERVER_ID)]
    assert len(times) == 4
    # The wall clock may run a little slower than the interval's.
    assert min(later - earlier for earlier, later in pairwise(times)) > 0.19


@pytest.mark.parametrize("before", ["1h", "0"], ids=["as-before", "new"])
async def test_interval_counts_starts_of_former_processes(tmp_path: Path, before: str) -> None:
    """The other server's session starts although it came later."""
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": before})
    async with at_work(config) as bench:
        bench.accept(1)
        await bench.end_all()
    async with at_work(config) as bench:
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, sessions={"min_interval": "1h"}))
        bench.accept(2)
        other = bench.accept(3, OTHER_ID)
        await eventually(lambda: bench.dispatcher.pending == 1)
        assert recorder.names == [(1, 1), (other, 1)]
        bench.dispatcher.configure(make_config(tmp_path, recorder.command))
        await bench.end_all()


@pytest.mark.parametrize("wrong_by", [-1e9, 1e9])
async def test_wrong_clock_makes_no_rest_longer_than_the_interval(tmp_path: Path, wrong_by: float) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": "400ms"})
    async with at_work(config) as bench:
        bench.accept(1)
        await bench.end_all()
    execute(config, "UPDATE session SET started_at = started_at + ?", wrong_by)
    async with at_work(config) as bench:
        bench.accept(2)
        await bench.end_all()
    assert len(recorder.names) == 2


# Another configuration


async def test_configuration_counts_from_the_next_start_on(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = Recorder(tmp_path / "one", waiting_for(tmp_path / "go")), Recorder(tmp_path / "two")
    async with at_work(make_config(tmp_path, one.command)) as bench:
        first, second, third = bench.accept(1), bench.accept(2), bench.accept(3, OTHER_ID)
        await eventually(lambda: one.names)
        bench.dispatcher.configure(make_config(tmp_path, two.command, sessions={"concurrency": 2}))
        await eventually(lambda: bench.dispatcher.pending == 2)
        assert (one.names, two.names) == ([(first, 1)], [(third, 1)]), "the running hook must not be ended"
        (tmp_path / "go").touch()
        await bench.end_all()
    assert two.names == [(second, 1), (third, 1)]


async def test_sessions_are_held_until_their_server_is_configured_again(tmp_path: Path, logged: LogLines) -> None:
    """Also across a restart. A session that is held does not log that it lacks a connection."""
    recorder, links = Recorder(tmp_path), MadeUpLinks()
    config = make_config(tmp_path, recorder.command)
    without = make_config(tmp_path, recorder.command, servers=SERVERS[1:])
    async with at_work(without, links) as bench:
        first, second, third = bench.accept(1), bench.accept(2, OTHER_ID), bench.accept(3)
        await eventually(lambda: logged.of("session waiting"))
    async with at_work(without, links) as bench:
        (line,) = logged.of("sessions held")
        assert (line["level"], line["server_id"], line["sessions"]) == ("error", SERVER_ID, 2)
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await eventually(lambda: bench.dispatcher.pending == 2)
        assert recorder.names == [(second, 1)]
        assert set(sessions(logged.of("session waiting"))) == {second}
        bench.dispatcher.configure(config)
        await bench.end_all()
    assert recorder.names == [(first, 1), (second, 1), (third, 1)]


async def test_session_is_not_tried_again_when_its_server_was_removed_during_a_try(
    tmp_path: Path, logged: LogLines
) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go", "environment['DMNOTID_SERVER_ID'] == 'dm.example'"))
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, servers=SERVERS[1:], retry={"first": "1ms"}))
        assert logged.of("sessions held")[0]["sessions"] == 1
        (tmp_path / "go").touch()
        await eventually(lambda: logged.of("session try failed"))
        other = [bench.accept(number, OTHER_ID) for number in range(2)]
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert recorder.names == [(session, 1), (other[0], 1), (other[1], 1)]


# Stopping


async def test_stop_gives_hooks_time_to_end(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        first, second = bench.accept(1), bench.accept(2)
        await eventually(lambda: recorder.names)
        stopping = asyncio.create_task(bench.dispatcher.stop())
        await asyncio.sleep(0)
        third = bench.accept(3, OTHER_ID)
        (tmp_path / "go").touch()
        await stopping
    assert states(config) == {first: "done", second: "pending", third: "pending"}
    assert recorder.names == [(first, 1)], "nothing more is started"


@pytest.mark.parametrize("how", ["grace", "abort"])
async def test_interrupted_session_is_run_again_by_the_next_process(tmp_path: Path, logged: LogLines, how: str) -> None:
    """5.3.4: at least once, and never again once it is done."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, hook={"stop_grace": "50ms" if how == "grace" else "1h"})
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        stopping = asyncio.create_task(bench.dispatcher.stop())
        if how == "abort":
            await asyncio.sleep(0)
            bench.dispatcher.abort()
        await stopping
        assert bench.dispatcher.counters == {"tries": 1, "interrupted": 1}
    assert states(config) == {session: "pending"}
    assert not is_alive(recorder.runs[0]["pid"])
    (line,) = logged.of("session interrupted")
    assert (line["level"], line["attempt"]) == ("warning", 1)
    (tmp_path / "go").touch()
    async with at_work(config) as bench:
        assert bench.dispatcher.pending == 1
        await bench.end_all()
    async with at_work(config) as bench:
        bench.accept(2)
        await bench.end_all()
    assert recorder.names == [(session, 1), (session, 2), (session + 1, 1)]


async def test_second_abort_leaves_a_hook_its_time_after_term(tmp_path: Path) -> None:
    ready, term, ended = (tmp_path / name for name in ("ready", "term", "ended"))
    on_term = f"(open({str(term)!r}, 'w'), time.sleep(0.2), open({str(ended)!r}, 'w'), sys.exit())"
    behaviour = f"import signal, time; signal.signal(signal.SIGTERM, lambda *_: {on_term}); open({str(ready)!r}, 'w')"
    # Short sleeps: Python handles a signal that arrives right before one only after it.
    recorder = Recorder(tmp_path, f"{behaviour}\nwhile True: time.sleep(0.01)")
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        bench.accept(1)
        await eventually(ready.exists)
        bench.dispatcher.abort()
        await eventually(term.exists)
        bench.dispatcher.abort()
        await eventually(lambda: bench.dispatcher.counters["interrupted"])
    assert ended.exists()


@pytest.mark.parametrize(("beyond", "state"), [(INTERRUPTIONS - 1, "done"), (INTERRUPTIONS, "failed")])
async def test_session_that_was_interrupted_too_often_is_failed(
    tmp_path: Path, logged: LogLines, beyond: int, state: str
) -> None:
    """An interrupted last try is repeated, but a session that takes the device down must not do so for ever."""
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config, MadeUpLinks()) as bench:
        bench.accept(1)
    attempts = config.retry.attempts + beyond
    execute(config, "UPDATE session SET attempts = ?", attempts)
    async with at_work(config) as bench:
        await bench.end_all()
    assert states(config) == {1: state}
    assert recorder.names == ([(1, attempts + 1)] if state == "done" else [])
    assert [line["attempts"] for line in logged.of("session failed")] == ([] if state == "done" else [attempts])


async def test_cancelled_dispatcher_leaves_no_hook(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    bench = Bench(config, MadeUpLinks(WIRELINE))
    with bench.journal:
        task = asyncio.create_task(bench.dispatcher.run())
        bench.accept(1)
        await eventually(lambda: recorder.names)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not is_alive(recorder.runs[0]["pid"])
    assert states(config) == {1: "pending"}


async def test_bug_in_one_session_does_not_end_others(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command, retry={"attempts": 1})
    async with at_work(config) as bench:
        bad = bench.journal.admit(verified(1))._replace(source=b"\xff")  # type: ignore[arg-type]
        bench.journal.commit()
        bench.dispatcher.add([bad])
        bench.accept(2)
        await bench.end_all()
    assert states(config) == {1: "failed", 2: "done"}
    assert recorder.names == [(2, 1)]
    (line,) = logged.of("internal error")
    assert line["session"] == 1
    assert "Traceback" in line["exception"]


# A journal that can't be written


ONLY_ONE = "(SELECT count(*) FROM session) = 1"
"""The condition that holds until a second notification is accepted."""


async def test_start_that_cannot_be_written_is_tried_again_later(
    tmp_path: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transitions, "WRITE_AGAIN_AFTER", 0.05)
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    refuse(config, "attempts", ONLY_ONE)
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: len(logged.of("session not started")) == 2)
        assert recorder.names == [], "a hook must not be started before its try is committed"
        bench.accept(2, preferred=NOWHERE)
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert recorder.names == [(1, 1)]
    assert logged.of("session not started")[0]["level"] == "error"


async def test_hook_starts_after_its_try_and_its_notification_are_durable(tmp_path: Path) -> None:
    """A crash at that moment loses nothing: the hook copies the files as they are then."""
    copy = tmp_path / "copy"
    config = make_config(tmp_path, [str(write_script(tmp_path / "hook", f"cp -r {tmp_path / 'state'} {copy}"))])
    async with at_work(config) as bench:
        bench.accept(1)
        await bench.end_all()
    with Journal(copy, limits=config.sessions, remember=config.remember) as journal:
        assert [(request.session, request.attempts) for request in journal.pending()] == [(1, 1)]


async def test_row_that_cannot_be_written_does_not_stop_others(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    refuse(config, "attempts", "old.session = 1")
    async with at_work(config) as bench:
        bench.accept(1)
        bench.accept(2, OTHER_ID)
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert recorder.names == [(2, 1)]
    assert sessions(logged.of("session not started")) == [1]


async def test_journal_that_fails_is_not_tried_for_each_session(tmp_path: Path, logged: LogLines) -> None:
    """Two failures end a turn; the next one begins with the sessions that did not have theirs."""
    config, links = make_config(tmp_path), MadeUpLinks()
    refuse(config, "attempts", "true")
    async with at_work(config, links) as bench:
        for number in range(8):
            bench.accept(number)
        links.connections = [WIRELINE]
        for failures in (2, 4):
            bench.dispatcher.wake()
            await eventually(lambda failures=failures: len(logged.of("session not started")) == failures)  # type: ignore[misc]
    assert sessions(logged.of("session not started")) == [1, 2, 3, 4]


@pytest.mark.parametrize("when", ["after-a-while", "at-the-stop"])
async def test_end_that_cannot_be_written_is_written_later(
    tmp_path: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Until then the session is not logged as done, and it is not run again."""
    if when == "after-a-while":
        monkeypatch.setattr(transitions, "WRITE_AGAIN_AFTER", 0.05)
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    refuse(config, "state", ONLY_ONE)
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: logged.of("session end not written"))
        assert (bench.dispatcher.pending, logged.of("session done")) == (1, [])
        bench.accept(2, preferred=NOWHERE)
        if when == "after-a-while":
            await eventually(lambda: logged.of("session done"))
    assert states(config) == {1: "done", 2: "pending"}
    line = logged.of("session end not written")[0]
    assert (line["level"], line["session"], line["outcome"]) == ("error", 1, "exit 0")
    assert sessions(logged.of("session done")) == [1]
    assert recorder.names == [(1, 1)]


async def test_end_that_cannot_be_written_does_not_stop_others(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path)
    refuse(config, "state", "old.session = 2")
    async with at_work(config, MadeUpLinks()) as bench:
        for number in range(3):
            bench.accept(number)
        bench.dispatcher.configure(make_config(tmp_path, sessions={"expire_after": "1ms"}))
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert states(config) == {1: "expired", 2: "pending", 3: "expired"}
    assert set(sessions(logged.of("session end not written"))) == {2}


async def test_pause_that_cannot_be_written_holds_in_this_process(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')")
    config = make_config(tmp_path, recorder.command)
    refuse(config, "not_before", "new.not_before > 0")
    async with at_work(config) as bench:
        bench.accept(1)
        await bench.end_all()
    assert recorder.names == [(1, 1), (1, 2)]
    assert sessions(logged.of("pause not written")) == [1]
