"""An operator lets sessions start that would wait: it ends pauses and rests, and nothing else."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config.values import HookConfig
from dmnotid.errors import JournalError
from dmnotid.host import log
from dmnotid.host.systemd import Manager, StatusLine
from dmnotid.operations import Operations
from dmnotid.reload import Parts, Reloader
from tests.dispatching import FOREVER, WIRELINE, MadeUpLinks, at_work, refuse, states, waiting_for
from tests.peers import answering, served
from tests.support import NOWHERE, OPEN_ID, OTHER_ID, SERVER_ID, SERVERS, LogLines, Recorder, eventually, make_config

BY = "root (pid 12)"
FAILS_ONCE = "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')"


async def test_pause_of_a_session_is_ended(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, FAILS_ONCE)
    async with at_work(make_config(tmp_path, recorder.command, retry=FOREVER)) as bench:
        session = bench.accept(7)
        await eventually(lambda: bench.states() == {session: "paused"})
        assert bench.dispatcher.retry(session, BY)
        await bench.end_all()
    assert recorder.names == [(session, 1), (session, 2)]
    (line,) = logged.of("session retried")
    facts = {"level": "info", "session": session, "server_id": SERVER_ID, "notification_id": 7, "attempt": 1}
    assert line.items() >= (facts | {"was": "paused", "by": BY}).items()


async def test_ended_pause_survives_a_restart(tmp_path: Path) -> None:
    """A device whose link is away is restarted: the operator has not asked in vain."""
    recorder, links = Recorder(tmp_path, FAILS_ONCE), MadeUpLinks(WIRELINE)
    config = make_config(tmp_path, recorder.command, retry=FOREVER)
    async with at_work(config, links) as bench:
        session = bench.accept(7)
        await eventually(lambda: bench.states() == {session: "paused"})
        links.connections = []
        assert bench.dispatcher.retry(session, BY)
        assert bench.states() == {session: "waiting"}
    async with at_work(config) as bench:
        (view,) = bench.dispatcher.views()
        assert (view.outcome, view.connection, view.interface) == ("exit 1", "wireline", "eth0")
        await bench.end_all()
    assert recorder.names == [(session, 1), (session, 2)]


async def test_pause_after_a_hook_that_could_not_be_started_is_ended(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    recorder.file.rename(tmp_path / "away")
    async with at_work(make_config(tmp_path, recorder.command, retry=FOREVER)) as bench:
        session = bench.accept(7)
        await eventually(lambda: logged.of("hook not started"))
        assert bench.states() == {session: "hook"}
        (tmp_path / "away").rename(recorder.file)
        assert bench.dispatcher.retry(session, BY)
        await bench.end_all()
    assert recorder.names == [(session, 1)]


async def test_rest_of_a_server_is_ended(tmp_path: Path) -> None:
    """The one after it rests again: `min_interval` counts from the new start."""
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command, sessions={"min_interval": "1h"})) as bench:
        first, second, third = (bench.accept(number) for number in range(3))
        await eventually(lambda: bench.states() == {second: "resting", third: "resting"})
        assert bench.dispatcher.retry(second, BY)
        await eventually(lambda: bench.states() == {third: "resting"})
        other = bench.accept(4, OTHER_ID)
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert recorder.names == [(first, 1), (second, 1), (other, 1)]


async def test_server_whose_rest_was_ended_comes_after_those_that_waited_longer(
    tmp_path: Path, logged: LogLines
) -> None:
    """5.3.4: the server whose last try began longest ago comes first."""
    recorder, links = Recorder(tmp_path), MadeUpLinks(WIRELINE)
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": "1ms"})
    async with at_work(config, links) as bench:
        for server_id in (OTHER_ID, OPEN_ID, SERVER_ID):
            bench.accept(1, server_id)
        await bench.end_all()
        links.connections = []
        former = [bench.accept(2, server_id) for server_id in (SERVER_ID, OPEN_ID, OTHER_ID)]
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, sessions={"min_interval": "1h"}))
        assert bench.dispatcher.retry(former[0], BY)
        # From now on all three may start.
        bench.dispatcher.configure(config)
        links.connections = [WIRELINE]
        await bench.end_all()
    assert [line["server_id"] for line in logged.of("session started")[3:]] == [OTHER_ID, OPEN_ID, SERVER_ID]


async def test_session_that_waits_for_something_else_is_left_alone(tmp_path: Path, logged: LogLines) -> None:
    """Order, concurrency, connections and the configuration are the same after a `retry`."""
    recorder, links = Recorder(tmp_path, waiting_for(tmp_path / "go")), MadeUpLinks(WIRELINE)
    async with at_work(make_config(tmp_path, recorder.command, servers=SERVERS[:2]), links) as bench:
        runs, queued, waits, held = (
            bench.accept(1),
            bench.accept(2),
            bench.accept(3, preferred=NOWHERE),
            bench.accept(4, OPEN_ID),
        )
        await eventually(lambda: recorder.names)
        before = bench.states()
        assert before == {runs: "running", queued: "queued", waits: "waiting", held: "held"}
        assert not any(bench.dispatcher.retry(session, BY) for session in (runs, queued, waits, held))
        assert bench.states() == before
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 2)
    assert recorder.names == [(runs, 1), (queued, 1)]
    assert logged.of("session retried") == []


async def test_running_session_is_left_alone_although_its_server_will_rest(tmp_path: Path) -> None:
    """5.3.4: never two hooks for one server. The second session is the one that need not rest."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": "1h", "concurrency": 2})
    async with at_work(config) as bench:
        first, second = bench.accept(1), bench.accept(2)
        await eventually(lambda: recorder.names)
        assert not bench.dispatcher.retry(first, BY)
        assert bench.dispatcher.retry(second, BY)
        assert bench.states() == {first: "running", second: "queued"}
        (tmp_path / "go").touch()
        await bench.end_all()
    assert recorder.names == [(first, 1), (second, 1)]


@pytest.mark.parametrize("end", ["failed", "expired"])
async def test_closed_session_is_opened_again_with_all_of_its_tries(tmp_path: Path, logged: LogLines, end: str) -> None:
    recorder, links = Recorder(tmp_path, "sys.exit(1)"), MadeUpLinks(WIRELINE)
    limits = {"expire_after": "1ms"} if end == "expired" else {}
    config = make_config(tmp_path, recorder.command, sessions=limits, retry={"attempts": 1, "first": "1ms"})
    if end == "expired":
        links.connections = []
    async with at_work(config, links) as bench:
        session = bench.accept(7)
        await bench.end_all()
    assert states(config) == {session: end}
    recorder.behave("")
    config = make_config(tmp_path, recorder.command, sessions={"expire_after": "7d"})
    async with at_work(config) as bench:
        assert bench.dispatcher.pending == 0
        assert bench.dispatcher.retry(session, BY)
        assert bench.dispatcher.pending == 1
        await bench.end_all()
    assert states(config) == {session: "done"}
    assert recorder.names[-1] == (session, 1)
    assert [line["attempts"] for line in logged.of("session done")] == [1]
    assert logged.of("session retried")[0]["was"] == "closed"


async def test_session_stays_paused_when_its_retry_cannot_be_written(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, FAILS_ONCE)
    config = make_config(tmp_path, recorder.command, retry=FOREVER)
    refuse(config, "not_before", "old.not_before > new.not_before AND new.not_before > 0")
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(lambda: bench.states() == {session: "paused"})
        with pytest.raises(JournalError, match="refused by the test"):
            bench.dispatcher.retry(session, BY)
        assert bench.states() == {session: "paused"}
    assert logged.of("session retried") == []


@pytest.mark.usefixtures("logged")
async def test_session_that_is_cancelled_during_a_retry_of_all_is_left_out(tmp_path: Path) -> None:
    """The control socket retries one after the other, so that a long list delays no datagram."""
    recorder = Recorder(tmp_path, FAILS_ONCE)
    config = make_config(tmp_path, recorder.command, retry=FOREVER)
    async with at_work(config) as bench:
        first, second, third = (bench.accept(1, server_id) for server_id in (SERVER_ID, OTHER_ID, OPEN_ID))
        await eventually(lambda: set(bench.states().values()) == {"paused"})
        manager = Manager({})
        reloader = Reloader(config, manager, StatusLine(manager, str), None)
        operations = Operations(Parts._make([None, bench.dispatcher, bench.journal, None, None]), reloader, {})

        def cancel_second(record: Mapping[str, Any]) -> None:
            if record["event"] == "session retried" and record["session"] == first:
                asyncio.get_running_loop().call_soon(bench.dispatcher.cancel, second, BY)

        unsubscribe = log.subscribe(cancel_second)
        assert await operations.retry(None, None, BY) == [first, third]
        unsubscribe()
        await bench.end_all()
    assert states(config) == {first: "done", second: "cancelled", third: "done"}


async def test_retried_session_runs_once_at_a_time(tmp_path: Path) -> None:
    """5.3.4: whatever is asked while its try begins, runs and ends."""
    overlap, busy = tmp_path / "overlap", tmp_path / "busy"
    begin = f"os.path.exists({str(busy)!r}) and open({str(overlap)!r}, 'w'); open({str(busy)!r}, 'w')"
    recorder = Recorder(
        tmp_path, f"{begin}; os.unlink({str(busy)!r}); sys.exit(int(environment['DMNOTID_ATTEMPT']) < 6)"
    )
    config = make_config(tmp_path, recorder.command, retry={**FOREVER, "attempts": 9})
    async with at_work(config) as bench:
        session = bench.accept(1)
        while bench.dispatcher.pending:
            bench.dispatcher.retry(session, BY)
            await asyncio.sleep(0)
    assert recorder.names == [(session, attempt) for attempt in range(1, 7)]
    assert not overlap.exists()
    assert states(config) == {session: "done"}


# A try that was taken back


async def test_try_that_was_taken_back_is_not_a_turn_of_its_server(tmp_path: Path) -> None:
    """5.3.4: it did not begin, so `min_interval` does not count from it, in the next process either."""
    path = tmp_path / "session"
    with socket.socket(socket.AF_UNIX) as former:
        former.bind(str(path))
    config = make_config(tmp_path, retry=FOREVER, sessions={"min_interval": "1h"})
    config = config._replace(hook=HookConfig((), socket=path))
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(lambda: bench.states() == {session: "hook"})
        assert bench.dispatcher.hook_problem == f"{path}: Connection refused"
        row = bench.journal.find(session)
        assert row is not None
        assert (row.attempts, row.started_at, row.connection, row.interface) == (0, None, None, None)
        path.unlink()
        with served(path, answering(b'{"exit": 0}')):
            second = bench.accept(2)
            await eventually(lambda: bench.states() == {session: "hook"})
    assert states(config) == {session: "pending", second: "done"}
