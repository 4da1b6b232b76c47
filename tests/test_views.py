"""What an operator sees of the open sessions, each in its state."""

import re
import socket
import time
from functools import partial
from pathlib import Path

from dmnotid.hook.locks import Locks
from dmnotid.policy.sessions import SessionView
from dmnotid.wire.notification import ConnectionType
from tests.dispatching import FOREVER, MOBILE, WIRELINE, Bench, MadeUpLinks, at_work, waiting_for
from tests.support import (
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    SERVER_ID,
    SERVERS,
    LogLines,
    Recorder,
    count_calls,
    eventually,
    make_config,
    verified,
)


def seen(bench: Bench) -> dict[int, SessionView]:
    return {view.session: view for view in bench.dispatcher.views()}


async def test_running_session_shows_its_connection_its_process_and_its_time(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command, hook={"timeout": "10m"})) as bench:
        before = time.time()
        session = bench.accept(7, preferred=[ConnectionType.ANY])
        await eventually(lambda: recorder.names)
        (view,) = bench.dispatcher.views()
        (tmp_path / "go").touch()
        await bench.end_all()
        assert list(bench.dispatcher.views()) == []
    pid = recorder.runs[0]["pid"]
    assert (view.session, view.server_id, view.notification_id) == (session, SERVER_ID, 7)
    assert (view.state, view.attempts, view.pid, view.outcome, view.closed_at) == ("running", 1, pid, None, None)
    assert (view.connection, view.interface, view.preferred) == ("wireline", "eth0", ("any",))
    assert (view.source, view.signed) == ("192.0.2.7:40000", True)
    assert before - 1 <= view.accepted_at <= (view.started_at or 0) <= time.time()
    assert re.fullmatch(rf"eth0 \(wireline\), pid {pid}, \d+ s of 10 min", view.why)


async def test_session_that_was_handed_over_shows_no_process(tmp_path: Path) -> None:
    path = tmp_path / "session"
    config = make_config(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        async with at_work(config._replace(hook=config.hook._replace(command=(), socket=path))) as bench:
            bench.accept(7)
            await eventually(lambda: bench.dispatcher.running)
            (view,) = bench.dispatcher.views()
            # The end of the connection ends the try at once.
            listening.accept()[0].close()
            await eventually(lambda: not bench.dispatcher.running)
    assert view.pid is None
    assert re.fullmatch(r"eth0 \(wireline\), \d+ s of 10 min", view.why)


async def test_queued_session_names_the_one_before_it(tmp_path: Path) -> None:
    """5.3.4: of its own server, or the one that has the only place."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        first, second, third = bench.accept(1), bench.accept(2), bench.accept(3, OTHER_ID)
        await eventually(lambda: recorder.names)
        views = seen(bench)
        (tmp_path / "go").touch()
        await bench.end_all()
    assert [views[session].state for session in (first, second, third)] == ["running", "queued", "queued"]
    assert views[second].why == f"after {first} (one at a time for a server)"
    assert views[third].why == f"after {first} (sessions.concurrency is 1)"
    assert (views[second].next_at, views[second].attempts, views[second].pid) == (None, 0, None)


async def test_queued_session_waits_for_one_of_several_places(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command, sessions={"concurrency": 2})) as bench:
        *_, last = [bench.accept(1, server_id) for server_id in (SERVER_ID, OTHER_ID, OPEN_ID)]
        await eventually(lambda: len(recorder.names) == 2)
        view = seen(bench)[last]
        (tmp_path / "go").touch()
        await bench.end_all()
    assert (view.state, view.why) == ("queued", "after one of 2 that run (sessions.concurrency is 2)")


async def test_session_that_can_start_is_next(tmp_path: Path) -> None:
    """Until the loop of the dispatcher turns."""
    async with at_work(make_config(tmp_path)) as bench:
        bench.accept(1)
        (view,) = bench.dispatcher.views()
        await bench.end_all()
    assert (view.state, view.why) == ("queued", "its turn is next")


async def test_session_is_queued_after_a_hook_of_a_former_daemon(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path)
    config.state.mkdir()
    former = Locks(config.state).take(SERVER_ID)
    assert former is not None
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: logged.of("lock held"))
        (view,) = bench.dispatcher.views()
        former.free()
        await bench.end_all()
    assert view.state == "queued"
    assert view.why == "after a hook of a former daemon, which still runs for this server"


async def test_resting_session_shows_when_its_server_may_be_called_again(tmp_path: Path) -> None:
    async with at_work(make_config(tmp_path, sessions={"min_interval": "1h"})) as bench:
        bench.accept(1)
        await bench.end_all()
        bench.accept(2)
        (view,) = bench.dispatcher.views()
    assert (view.state, view.why) == ("resting", "1 h between two tries for a server (sessions.min_interval)")
    assert 3_000 < (view.next_at or 0) - time.time() <= 3_600


async def test_paused_session_shows_how_its_last_try_ended(tmp_path: Path) -> None:
    # Without a newline at its end, which a hook that dies may not write.
    recorder = Recorder(tmp_path, "print('connects'); sys.stderr.write('no route to host'); sys.exit(7)")
    async with at_work(make_config(tmp_path, recorder.command, retry=FOREVER)) as bench:
        bench.accept(1)
        await eventually(lambda: bench.states() == {1: "paused"})
        (view,) = bench.dispatcher.views()
        row = bench.journal.find(1)
    ended = "exit 7: no route to host"
    assert (view.why, view.outcome, view.attempts, view.interface) == (ended, ended, 1, "eth0")
    assert row is not None
    assert row.outcome == ended
    assert 2_600 < (view.next_at or 0) - time.time() <= 3_600


async def test_waiting_session_shows_what_is_missing_and_until_when_it_waits(tmp_path: Path) -> None:
    links = MadeUpLinks(WIRELINE)
    async with at_work(make_config(tmp_path, sessions={"expire_after": "7d"}), links) as bench:
        waits = bench.accept(1, preferred=[ConnectionType.MOBILE, ConnectionType.WIRELESS])
        view = seen(bench)[waits]
        links.connections = [MOBILE]
        assert bench.states() == {waits: "queued"}
    assert (view.state, view.preferred, view.next_at) == ("waiting", ("mobile", "wireless"), None)
    expiry = time.strftime("%Y-%m-%d", time.localtime(view.expires_at))
    assert view.why == f"no mobile interface; no wireless interface; expires on {expiry}"
    assert 6.9 * 86_400 < (view.expires_at or 0) - time.time() <= 7 * 86_400


async def test_session_of_a_server_that_is_not_configured_is_held(tmp_path: Path) -> None:
    async with at_work(make_config(tmp_path, servers=SERVERS[1:])) as bench:
        bench.accept(1)
        (view,) = bench.dispatcher.views()
    assert (view.state, view.why) == ("held", "this server is not configured")


async def test_session_whose_hook_cannot_be_started_shows_the_problem(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(make_config(tmp_path, [str(tmp_path / "none")], retry=FOREVER)) as bench:
        bench.accept(1)
        await eventually(lambda: logged.of("hook not started"))
        (view,) = bench.dispatcher.views()
    assert (view.state, view.why) == ("hook", f"{tmp_path / 'none'}: No such file or directory")
    assert (view.attempts, view.connection, view.outcome) == (0, None, None)
    assert (view.next_at or 0) > time.time()


async def test_session_that_has_just_ended_shows_that_this_is_not_written_yet(tmp_path: Path) -> None:
    """Until the loop of the dispatcher turns; all times are finite, as JSON needs them."""
    async with at_work(make_config(tmp_path)) as bench:
        before = time.time()
        request = bench.journal.admit(verified(1))
        bench.journal.commit()
        bench.dispatcher.add([request._replace(attempts=999)])
        (view,) = bench.dispatcher.views()
        await bench.end_all()
    assert (view.state, view.why) == ("paused", "failed: interrupted too often; not written to the journal yet")
    assert before - 1 <= (view.next_at or 0) <= time.time()


async def test_views_follow_sessions_that_come_and_go_while_they_are_taken(tmp_path: Path) -> None:
    links = MadeUpLinks()
    async with at_work(make_config(tmp_path), links) as bench:
        bench.accept(1, preferred=NOWHERE)
        bench.accept(2)
        last = bench.accept(3, OTHER_ID, preferred=NOWHERE)
        views = bench.dispatcher.views()
        first = next(views)
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await eventually(lambda: bench.dispatcher.pending == 2)
        rest = list(views)
    assert (first.session, [view.session for view in rest]) == (1, [last])


async def test_view_of_a_session_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    """A caller takes some at a time, so that a long list delays no datagram."""
    servers = [f"server {number}" for number in range(100)]
    listed = [{"id": server_id, "require_digest": False} for server_id in servers]
    config = make_config(tmp_path, servers=listed, sessions={"max_pending": 1_000})
    most = []
    async with at_work(config, MadeUpLinks()) as bench:
        for many in (1, 10):
            requests = [
                bench.journal.admit(verified(many * 1_000 + number, server_id=server_id))
                for number in range(many)
                for server_id in servers
            ]
            bench.journal.commit()
            bench.dispatcher.add(requests)
            views = bench.dispatcher.views()
            # The first one explains which connections are missing.
            next(views)
            most.append(max(count_calls(partial(next, views)) for _ in range(bench.dispatcher.pending - 1)))
    assert most[0] == most[1] < 100
