"""An operator cancels sessions: whatever happens at the same time, each one ends once, and no hook is left running."""

import asyncio
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from dmnotid.dispatcher import Dispatcher
from dmnotid.errors import JournalError, NoSuchSession, NotPending
from dmnotid.journal.queue import Journal
from tests.dispatching import FOREVER, Bench, MadeUpLinks, at_work, refuse, states, waiting_for
from tests.support import (
    DEADLINE,
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    SERVER_ID,
    SHORT,
    LogLines,
    Recorder,
    eventually,
    further,
    is_alive,
    make_config,
    verified,
    wait_until,
)

BY = "root (pid 12)"
NO_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def noting_term(term: Path, ready: Path, go: Path) -> str:
    """Return the behaviour of a hook that writes to `term` at each SIGTERM, once `ready` exists, and exits at `go`."""
    note = f"open({str(term)!r}, 'a').write('term ')"
    on_term = f"import signal; signal.signal(signal.SIGTERM, lambda *_: {note}); open({str(ready)!r}, 'w')"
    return f"{on_term}\n{waiting_for(go)}"


async def test_waiting_session_is_closed_at_once(tmp_path: Path, logged: LogLines) -> None:
    """5.1.4: its id stays remembered."""
    config = make_config(tmp_path)
    async with at_work(config) as bench:
        session = bench.accept(7, preferred=NOWHERE)
        assert bench.dispatcher.cancel(session, BY) == "waiting"
        assert bench.dispatcher.pending == 0
        assert bench.dispatcher.counters == {"cancelled": 1}
    assert states(config) == {session: "cancelled"}
    (line,) = logged.of("session cancelled")
    facts = {"level": "info", "session": session, "server_id": SERVER_ID, "notification_id": 7, "attempt": 0}
    assert line.items() >= (facts | {"was": "waiting", "by": BY}).items()


async def test_running_session_is_closed_and_its_hook_gets_term(tmp_path: Path, logged: LogLines) -> None:
    """5.3.4: the next session of the server starts once the hook has ended."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        first, second = bench.accept(1), bench.accept(2)
        await eventually(lambda: recorder.names)
        assert bench.dispatcher.cancel(first, BY) == "running"
        (view,) = bench.dispatcher.views()
        assert (view.session, view.why) == (second, f"after {first} (one at a time for a server)")
        assert (bench.dispatcher.pending, bench.dispatcher.running, bench.dispatcher.durations[1]) == (1, 0, 0)
        await eventually(lambda: (second, 1) in recorder.names)
        assert not is_alive(recorder.runs[0]["pid"])
        (tmp_path / "go").touch()
        await bench.end_all()
        assert bench.dispatcher.counters == {"tries": 2, "cancelled": 1, "done": 1}
        assert bench.dispatcher.durations[1] == 2
    assert states(config) == {first: "cancelled", second: "done"}
    assert logged.of("session interrupted") == []


async def test_hook_of_a_cancelled_session_that_ignores_term_is_killed_after_kill_after(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, NO_TERM + waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, hook={"kill_after": "100ms"})
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        bench.dispatcher.cancel(session, BY)
        await bench.end_all()
    assert not is_alive(recorder.runs[0]["pid"])


async def test_connection_of_a_cancelled_session_is_closed(tmp_path: Path) -> None:
    path, config = tmp_path / "session", make_config(tmp_path)
    config = config._replace(hook=config.hook._replace(command=(), socket=path))
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        async with at_work(config) as bench:
            session = bench.accept(1)
            await eventually(lambda: bench.dispatcher.running)
            assert bench.dispatcher.cancel(session, BY) == "running"
            await bench.end_all()
        with listening.accept()[0] as connection:
            connection.settimeout(DEADLINE)
            while connection.recv(65_536):
                pass
    assert states(config) == {session: "cancelled"}


@pytest.mark.parametrize("runs", [True, False], ids=["running", "waiting"])
async def test_cancelled_session_is_not_run_again_after_a_crash(tmp_path: Path, *, runs: bool) -> None:
    """Also if the daemon is killed before the hook has ended: the files are copied as they are then."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config, None if runs else MadeUpLinks()) as bench:
        session = bench.accept(1)
        await eventually(lambda: not runs or recorder.names)
        bench.dispatcher.cancel(session, BY)
        shutil.copytree(config.state, tmp_path / "copy")
        await bench.end_all()
    with Journal(tmp_path / "copy", limits=config.sessions, remember=config.remember) as journal:
        assert [(row.session, row.state) for row in journal.rows()] == [(session, "cancelled")]
        assert journal.pending() == []


@pytest.mark.parametrize("change", [Dispatcher.cancel, Dispatcher.retry])
async def test_session_that_is_unknown_or_closed_cannot_be_changed(
    tmp_path: Path, change: Callable[[Dispatcher, int, str], object]
) -> None:
    """A failed or expired one can be retried."""
    config = make_config(tmp_path)
    async with at_work(config) as bench:
        done, cancelled = bench.accept(1), bench.accept(2, preferred=NOWHERE)
        await eventually(lambda: bench.dispatcher.pending == 1)
        bench.dispatcher.cancel(cancelled, BY)
        for session, state in ((done, "done"), (cancelled, "cancelled")):
            with pytest.raises(NotPending) as found:
                change(bench.dispatcher, session, BY)
            assert (found.value.session, found.value.state) == (session, state)
        for session in (0, -1, 99, 1 << 63, -(1 << 63), 1 << 400):
            with pytest.raises(NoSuchSession):
                change(bench.dispatcher, session, BY)
        assert bench.dispatcher.counters == {"tries": 1, "done": 1, "cancelled": 1}
    assert states(config) == {done: "done", cancelled: "cancelled"}


async def test_running_session_cannot_be_cancelled_twice(tmp_path: Path) -> None:
    """A second one would cut the time that its hook has to end in order."""
    term, ready = tmp_path / "term", tmp_path / "ready"
    recorder = Recorder(tmp_path, noting_term(term, ready, tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, hook={"kill_after": "20s"})
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(ready.exists)
        bench.dispatcher.cancel(session, BY)
        with pytest.raises(NotPending) as found:
            bench.dispatcher.cancel(session, BY)
        assert found.value.state == "cancelled"
        await eventually(term.exists)
        assert is_alive(recorder.runs[0]["pid"])
        (tmp_path / "go").touch()
        await bench.end_all()


# At the same time as something else


async def test_session_is_cancelled_before_the_first_step_of_its_try(tmp_path: Path) -> None:
    """Between the commit of a try and the start of its hook."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        session = bench.accept(1)
        while not bench.dispatcher.running:  # noqa: ASYNC110 - one iteration of the loop at a time
            await asyncio.sleep(0)
        assert bench.dispatcher.cancel(session, BY) == "running"
        (tmp_path / "go").touch()
        other = bench.accept(2)
        await bench.end_all()
    assert states(config) == {session: "cancelled", other: "done"}
    assert recorder.names == [(other, 1)], "no hook is started for a session that is closed"


async def test_cancelled_session_stays_cancelled_when_its_hook_has_just_ended(tmp_path: Path, logged: LogLines) -> None:
    """The process has exited, and its end has not been noticed."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        (tmp_path / "go").touch()
        wait_until(lambda: not is_alive(recorder.runs[0]["pid"]))
        assert bench.dispatcher.cancel(session, BY) == "running"
        await bench.end_all()
    assert states(config) == {session: "cancelled"}
    assert logged.of("session done") == []


@pytest.mark.parametrize("order", ["time-out-first", "cancel-first"])
async def test_cancelled_session_may_time_out(tmp_path: Path, logged: LogLines, order: str) -> None:
    """The time between TERM and KILL is neither shortened nor given twice, and the session is not tried again."""
    term, ready = tmp_path / "term", tmp_path / "ready"
    other = "if environment['DMNOTID_SERVER_ID'] == 'other.example': os.execv('/bin/sleep', ['sleep', '60'])\n"
    recorder = Recorder(tmp_path, other + noting_term(term, ready, tmp_path / "go"))
    times = {"timeout": f"{2 * SHORT}s", "kill_after": f"{20 * SHORT}s"}
    config = make_config(tmp_path, recorder.command, hook=times, retry=FOREVER, sessions={"concurrency": 2})
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(ready.exists)
        if order == "time-out-first":
            await eventually(term.exists)
        bench.dispatcher.cancel(session, BY)
        await eventually(term.exists)
        # The time of this one begins, and is over, after that of the first one.
        fence = bench.accept(2, OTHER_ID)
        await eventually(lambda: logged.of("session try failed"))
        assert is_alive(recorder.runs[0]["pid"])
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert term.read_text() == "term "
    assert states(config) == {session: "cancelled", fence: "pending"}
    assert [line["session"] for line in logged.of("session try failed")] == [fence]


@pytest.mark.parametrize("order", ["stop-first", "cancel-first"])
async def test_cancelled_session_is_ended_by_a_stop_too(tmp_path: Path, logged: LogLines, order: str) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, hook={"stop_grace": "1h"})
    async with at_work(config) as bench:
        session, waits = bench.accept(1), bench.accept(2)
        await eventually(lambda: recorder.names)
        if order == "cancel-first":
            bench.dispatcher.cancel(session, BY)
        stopping = asyncio.create_task(bench.dispatcher.stop())
        await asyncio.sleep(0)
        bench.dispatcher.abort()
        if order == "stop-first":
            bench.dispatcher.cancel(session, BY)
        await stopping
        assert not is_alive(recorder.runs[0]["pid"])
        # What is cancelled after the last hook has ended is closed too.
        assert bench.dispatcher.cancel(waits, BY) == "queued"
    assert states(config) == {session: "cancelled", waits: "cancelled"}
    assert logged.of("session interrupted") == []


async def test_reload_does_not_revive_a_cancelled_session(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, NO_TERM + waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        first, second, third = bench.accept(1), bench.accept(2, preferred=NOWHERE), bench.accept(3)
        await eventually(lambda: recorder.names)
        bench.dispatcher.cancel(first, BY)
        bench.dispatcher.cancel(second, BY)
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, sessions={"expire_after": "6d"}))
        (tmp_path / "go").touch()
        await bench.end_all()
    assert states(config) == {first: "cancelled", second: "cancelled", third: "done"}
    assert recorder.names == [(first, 1), (third, 1)]


@pytest.mark.parametrize("runs", [True, False], ids=["running", "paused"])
async def test_session_goes_on_when_its_cancellation_cannot_be_written(tmp_path: Path, *, runs: bool) -> None:
    behaviour = waiting_for(tmp_path / "go") if runs else "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')"
    recorder = Recorder(tmp_path, behaviour)
    config = make_config(tmp_path, recorder.command, retry=FOREVER)
    refuse(config, "state", "new.state = 'cancelled'")
    async with at_work(config) as bench:
        session = bench.accept(1)
        state = "running" if runs else "paused"
        await eventually(lambda: recorder.names and [view.state for view in bench.dispatcher.views()] == [state])
        with pytest.raises(JournalError, match="refused by the test"):
            bench.dispatcher.cancel(session, BY)
        assert [view.state for view in bench.dispatcher.views()] == [state]
        assert not runs or is_alive(recorder.runs[0]["pid"])
        (tmp_path / "go").touch()
        bench.dispatcher.retry(session, BY)
        await bench.end_all()
    assert states(config) == {session: "done"}
    assert bench.dispatcher.counters["cancelled"] == 0


async def test_ended_session_cannot_be_cancelled_while_its_end_is_not_written(tmp_path: Path, logged: LogLines) -> None:
    """5.3.4: it is done, and the next process must not run it again."""
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    refuse(config, "state", "(SELECT count(*) FROM session) = 1")
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(lambda: logged.of("session end not written"))
        with pytest.raises(NotPending) as found:
            bench.dispatcher.cancel(session, BY)
        assert found.value.state == "done"
        assert not bench.dispatcher.retry(session, BY)
        (view,) = bench.dispatcher.views()
        assert view.state == "paused"
        assert view.why == "done: exit 0; not written to the journal yet"
        bench.accept(2, OTHER_ID, preferred=NOWHERE)
    assert states(config)[session] == "done"


async def test_repeat_of_a_cancelled_notification_waits_for_the_end_of_its_hook(tmp_path: Path) -> None:
    """5.3.4: a signed notification takes the place of a closed unsigned row. Never two hooks for one server."""
    busy, overlap = tmp_path / "busy", tmp_path / "overlap"
    fence = f"if environment['DMNOTID_SERVER_ID'] == {OTHER_ID!r}: sys.exit()"
    begin = f"os.path.exists({str(busy)!r}) and open({str(overlap)!r}, 'w'); open({str(busy)!r}, 'w')"
    end = f"os.unlink({str(busy)!r})"
    recorder = Recorder(tmp_path, f"{fence}\n{NO_TERM}{begin}\n{waiting_for(tmp_path / 'go', end)}")
    config = make_config(tmp_path, recorder.command, sessions={"concurrency": 3})
    async with at_work(config) as bench:
        unsigned = bench.journal.admit(verified(7, server_id=OPEN_ID)._replace(server_id=SERVER_ID))
        bench.journal.commit()
        bench.dispatcher.add([unsigned])
        await eventually(busy.exists)
        bench.dispatcher.cancel(unsigned.session, BY)
        signed = bench.accept(7)
        other = bench.accept(8, OTHER_ID)
        await eventually(lambda: (other, 1) in recorder.names and bench.dispatcher.pending == 1)
        (view,) = bench.dispatcher.views()
        assert (view.session, view.state) == (signed, "queued")
        (tmp_path / "go").touch()
        await bench.end_all()
        assert bench.dispatcher.counters == {"tries": 3, "cancelled": 1, "done": 2}
    assert not overlap.exists()
    assert states(config) == {signed: "done", other: "done"}


async def cancel_at(bench: Bench, session: int, turn: int) -> None:
    """Cancel a session after so many iterations of the event loop, if it is still pending then."""
    for _ in range(turn):
        await asyncio.sleep(0)
    try:
        bench.dispatcher.cancel(session, BY)
    except NotPending:
        return


@pytest.mark.parametrize("turn", [*range(0, 60, 6), *further(*range(3, 60, 6))])
async def test_session_ends_once_whenever_it_is_cancelled(tmp_path: Path, logged: LogLines, turn: int) -> None:
    """Its hook exits at once, so it is cancelled before, while and after its hook runs."""
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        first, second = bench.accept(1), bench.accept(2)
        await cancel_at(bench, first, turn)
        await bench.end_all()
        counters = bench.dispatcher.counters
        assert counters["done"] + counters["cancelled"] == 2
    assert set(states(config)) == {first, second}
    assert states(config)[second] == "done"
    ends = [line["session"] for event in ("session done", "session cancelled") for line in logged.of(event)]
    assert sorted(ends) == [first, second]
    assert not any(is_alive(run["pid"]) for run in recorder.runs)
