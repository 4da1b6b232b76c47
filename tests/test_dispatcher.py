"""From the queue to the hook: a real journal, real hooks; only the connections are made up."""

import asyncio
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dmnotid import dispatcher as dispatcher_module
from dmnotid.config.values import Config, ConnectionsConfig
from dmnotid.dispatcher import ENDS_AT_ONCE, Dispatcher
from dmnotid.journal.queue import Journal
from dmnotid.links.monitor import Links
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType
from tests.support import (
    OPEN_ID,
    OTHER_ID,
    SERVER_ID,
    SERVERS,
    LogLines,
    Recorder,
    eventually,
    is_alive,
    make_config,
    verified,
)

MOBILE = Connection(ConnectionType.MOBILE, "wwan0")
WIRELINE = Connection(ConnectionType.WIRELINE, "eth0")
UNTIL = "import time\nwhile not os.path.exists({file!r}): time.sleep(0.01)\n"
"""What makes a hook wait for a file."""


class MadeUpLinks(Links):
    """Connections that come and go as a test wants it."""

    def __init__(self, *connections: Connection) -> None:
        super().__init__(ConnectionsConfig())
        self.connections: Sequence[Connection] = connections

    def available(self) -> tuple[Connection, ...]:
        return tuple(self.connections)

    def still_has(self, _: Connection) -> bool:
        return False

    def read_now(self) -> bool:
        return True


class SureLinks(MadeUpLinks):
    """Connections that are there at a look, too."""

    def still_has(self, _: Connection) -> bool:
        return True


class Bench:
    """A dispatcher with what it needs, over a state directory that outlives it."""

    def __init__(self, config: Config, links: Links, kind: type[Dispatcher] = Dispatcher) -> None:
        config.state.mkdir(exist_ok=True)
        self.journal = Journal(config.state, limits=config.sessions, remember=config.remember)
        self.dispatcher = kind(config, self.journal, links)

    def accept(self, notification_id: int, server_id: str = SERVER_ID, **more: Any) -> int:  # noqa: ANN401
        """Do what the daemon does with a verified notification; the session's number."""
        request = self.journal.admit(verified(notification_id, server_id=server_id, **more))
        self.journal.commit()
        self.dispatcher.add([request])
        return request.session

    def attempts(self) -> list[int]:
        """The tries that the file has of each session."""
        return [row[0] for row in self.journal._file.ensure().execute("SELECT attempts FROM session ORDER BY session")]

    def states(self) -> dict[int, str]:
        """The state of each session in the file, by its number."""
        return dict(self.journal._file.ensure().execute("SELECT session, state FROM session").fetchall())


@asynccontextmanager
async def at_work(
    config: Config, links: Links | None = None, kind: type[Dispatcher] = Dispatcher
) -> AsyncIterator[Bench]:
    """Run a dispatcher; it is stopped in order at the end, and must have had no bug."""
    bench = Bench(config, links or MadeUpLinks(WIRELINE), kind)
    with bench.journal:
        task = asyncio.create_task(bench.dispatcher.run())
        try:
            yield bench
        finally:
            await bench.dispatcher.stop()
            await task


def has_run(recorder: Recorder, times: int) -> bool:
    return len(recorder.names) == times


def waiting_for(file: Path, status: int = 0) -> str:
    return UNTIL.format(file=str(file)) + f"sys.exit({status})"


def interfaces(recorder: Recorder) -> list[tuple[int, str]]:
    return [
        (int(run["environment"]["DMNOTID_SESSION"]), run["environment"]["DMNOTID_INTERFACE"]) for run in recorder.runs
    ]


async def test_a_session_runs_once_and_is_done(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        session = bench.accept(7)
        assert bench.dispatcher.pending == 1
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "done"}
    assert recorder.names == [(session, 1)]
    (starts,), (done,) = logged.of("session starts"), logged.of("session done")
    for line in (starts, done):
        assert (line["session"], line["server_id"], line["notification_id"]) == (session, SERVER_ID, 7)
        assert line["level"] == "info"
    assert (starts["attempt"], starts["connection"], starts["interface"]) == (1, "wireline", "eth0")
    assert (done["attempts"], done["outcome"]) == (1, "exit 0")


async def test_first_come_first_served(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.behave(f"open({str(tmp_path / 'order')!r}, 'a').write(environment['DMNOTID_NOTIFICATION_ID'] + ' ')")
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        for number, server_id in [(9, SERVER_ID), (2, OTHER_ID), (5, SERVER_ID), (1, OPEN_ID), (4, OTHER_ID)]:
            bench.accept(number, server_id)
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert (tmp_path / "order").read_text() == "9 2 5 1 4 "


async def test_one_at_a_time_by_default(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        for server_id in (SERVER_ID, OTHER_ID, OPEN_ID):
            bench.accept(1, server_id)
        await eventually(lambda: recorder.names)
        bench.dispatcher.wake()
        await asyncio.sleep(0.1)  # nothing may come of it
        assert recorder.names == [(1, 1)]
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1), (2, 1), (3, 1)]


async def test_several_at_once_but_never_two_for_one_server(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command, sessions={"concurrency": 3})) as bench:
        first = [bench.accept(number) for number in range(3)]
        other = [bench.accept(number, OTHER_ID) for number in range(2)]
        await eventually(lambda: len(recorder.names) == 2)
        bench.dispatcher.wake()
        await asyncio.sleep(0.1)  # nothing may come of it: a third place is free
        assert recorder.names == [(first[0], 1), (other[0], 1)]
        open_ = bench.accept(1, OPEN_ID)
        await eventually(lambda: len(recorder.names) == 3)
        assert recorder.names[-1] == (open_, 1)
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert set(bench.states().values()) == {"done"}


# Connections


async def test_waiting_for_a_connection_blocks_nobody_else(tmp_path: Path) -> None:
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
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert interfaces(recorder)[0] == (waits, "wwan0")


async def test_what_waits_for_a_connection_says_so_once(tmp_path: Path, logged: LogLines) -> None:
    recorder, links = Recorder(tmp_path), MadeUpLinks(WIRELINE)
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        session = bench.accept(1, preferred=[MOBILE.type, ConnectionType.WIRELESS])
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 1)
        bench.dispatcher.wake()
        bench.accept(3)
        await eventually(lambda: len(recorder.names) == 2)
        (line,) = logged.of("session waits")
        assert (line["session"], line["wanted"], line["available"]) == (session, "mobile wireless", "eth0(wireline)")
        assert line["missing"] == "no mobile interface; no wireless interface"
        assert (line["level"], line["server_id"]) == ("info", SERVER_ID)
        links.connections = []
        bench.accept(4)
        await eventually(lambda: len(logged.of("session waits")) == 2)
        assert logged.of("session waits")[1]["wanted"] == "any"


async def test_what_waits_again_after_a_try_says_so_again(tmp_path: Path, logged: LogLines) -> None:
    links = MadeUpLinks(WIRELINE)
    recorder = Recorder(tmp_path, f"{waiting_for(tmp_path / 'go', 1)}")
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        links.connections = []
        (tmp_path / "go").touch()
        await eventually(lambda: logged.of("session waits"))
    assert [line["session"] for line in logged.of("session waits")] == [session]


async def test_what_had_a_connection_at_first_says_later_that_it_waits(tmp_path: Path, logged: LogLines) -> None:
    """It waits for another session of its server, and then for the connection that is lost meanwhile."""
    recorder, links = Recorder(tmp_path, waiting_for(tmp_path / "go")), MadeUpLinks(WIRELINE)
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1)
        second = bench.accept(2)
        await eventually(lambda: recorder.names)
        assert logged.of("session waits") == []
        links.connections = []
        (tmp_path / "go").touch()
        await eventually(lambda: logged.of("session waits"))
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert [line["session"] for line in logged.of("session waits")] == [second]
    assert bench.dispatcher._untold == {}


class LostLinks(MadeUpLinks):
    """Connections that the last look finds gone."""

    def __init__(self, *connections: Connection, left: Sequence[Connection]) -> None:
        super().__init__(*connections)
        self.left = left
        self.looks = 0

    def read_now(self) -> bool:
        self.looks += 1
        self.connections = self.left
        return True


async def test_a_connection_lost_between_choice_and_hook_is_not_used(tmp_path: Path, logged: LogLines) -> None:
    """5.3.4: another one is taken, and no try is spent."""
    recorder, links = Recorder(tmp_path), LostLinks(WIRELINE, MOBILE, left=[MOBILE])
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1)
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert interfaces(recorder) == [(1, "wwan0")]
    assert (recorder.names, bench.dispatcher.counters) == ([(1, 1)], {"tries": 1, "done": 1})
    assert logged.of("session waits") == []


async def test_what_was_to_begin_when_the_stop_came_has_no_try_spent(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config, MadeUpLinks(WIRELINE)) as bench:
        await eventually(lambda: bench.dispatcher._group)
        bench.accept(1)
        await bench.dispatcher.stop()
        assert bench.attempts() == [0]
    assert recorder.names == []


async def test_nothing_is_to_begin_after_a_stop(tmp_path: Path) -> None:
    async with at_work(make_config(tmp_path), MadeUpLinks(WIRELINE)) as bench:
        await eventually(lambda: bench.dispatcher._group)
        await bench.dispatcher.stop()
        bench.accept(1)
        assert bench.attempts() == [0]


async def test_what_waits_and_can_start_by_now_comes_before_what_is_new(tmp_path: Path) -> None:
    recorder, links = Recorder(tmp_path), MadeUpLinks()
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        await eventually(lambda: bench.dispatcher._group)
        bench.accept(1)
        links.connections = [WIRELINE]
        bench.accept(2)
        assert bench.attempts() == [0, 0]
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1), (2, 1)]


async def test_what_is_about_to_start_and_loses_its_connection_says_again_that_it_waits(
    tmp_path: Path, logged: LogLines
) -> None:
    links = LostLinks(left=[])
    async with at_work(make_config(tmp_path), links) as bench:
        session = bench.accept(1)
        await eventually(lambda: logged.of("session waits"))
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await eventually(lambda: len(logged.of("session waits")) == 2)
    assert [line["session"] for line in logged.of("session waits")] == [session, session]


async def test_a_better_connection_that_the_last_look_finds_is_used(tmp_path: Path) -> None:
    """5.3.4: the most wanted one that is there, not the most wanted one that was."""
    recorder, links = Recorder(tmp_path), LostLinks(WIRELINE, left=[WIRELINE, MOBILE])
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1, preferred=[ConnectionType.MOBILE, ConnectionType.WIRELINE])
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert interfaces(recorder) == [(1, "wwan0")]


async def test_what_is_held_back_waits_for_no_connection(tmp_path: Path, logged: LogLines) -> None:
    """It does once its server is configured again."""
    config = make_config(tmp_path)
    async with at_work(config, MadeUpLinks(WIRELINE)) as bench:
        bench.dispatcher.configure(config._replace(servers=config.servers[1:]))
        session = bench.accept(1, preferred=[ConnectionType.MOBILE])
        await asyncio.sleep(0.05)
        assert logged.of("session waits") == []
        bench.dispatcher.configure(config)
        (line,) = await eventually(lambda: logged.of("session waits"))
    assert line["session"] == session


class BlindLinks(MadeUpLinks):
    """Connections that can't be read until there are none."""

    def read_now(self) -> bool:
        return False


async def test_what_no_last_look_was_had_for_says_what_it_waits_for_once_that_is_known(
    tmp_path: Path, logged: LogLines
) -> None:
    links = BlindLinks(WIRELINE)
    async with at_work(make_config(tmp_path), links) as bench:
        session = bench.accept(1)
        await eventually(lambda: bench.dispatcher._untold)
        bench.dispatcher.wake()
        await asyncio.sleep(0.05)
        assert logged.of("session waits") == []
        links.connections = []
        bench.dispatcher.wake()
        (line,) = await eventually(lambda: logged.of("session waits"))
    assert line["session"] == session


async def test_what_loses_its_connection_just_before_its_hook_says_what_it_waits_for(
    tmp_path: Path, logged: LogLines
) -> None:
    recorder, links = Recorder(tmp_path), LostLinks(WIRELINE, left=[])
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1)
        await eventually(lambda: logged.of("session waits"))
        assert (links.looks, recorder.names, bench.dispatcher.counters["tries"]) == (1, [], 0)
        links.connections = links.left = [WIRELINE]
        bench.dispatcher.wake()
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1)]


async def test_each_try_uses_the_best_connection_there_is_then(tmp_path: Path) -> None:
    """5.3.4: the choice is made anew for each try."""
    links = MadeUpLinks(WIRELINE, MOBILE)
    recorder = Recorder(tmp_path, f"{waiting_for(tmp_path / 'go', 1)}")
    async with at_work(make_config(tmp_path, recorder.command, retry={"attempts": 2}), links) as bench:
        bench.accept(1, preferred=[ConnectionType.MOBILE, ConnectionType.WIRELINE])
        await eventually(lambda: recorder.names)
        links.connections = [WIRELINE]
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert interfaces(recorder) == [(1, "wwan0"), (1, "eth0")]


# Trying again


async def test_tried_again_until_it_is_done(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(3 if environment['DMNOTID_ATTEMPT'] == '1' else 0)")
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        session = bench.accept(7)
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "done"}
    assert recorder.names == [(session, 1), (session, 2)]
    (failed,), (done,) = logged.of("session try failed"), logged.of("session done")
    assert (failed["level"], failed["attempt"], failed["outcome"]) == ("warning", 1, "exit 3")
    assert done["attempts"] == 2
    assert bench.dispatcher.counters == {"tries": 2, "done": 1}


async def test_refused_for_good(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(78)")
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        session = bench.accept(7)
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "refused"}
    assert recorder.names == [(session, 1)]
    (line,) = logged.of("session refused")
    assert (line["level"], line["outcome"]) == ("error", "exit 78")
    assert bench.dispatcher.counters == {"tries": 1, "refused": 1}


async def test_given_up_after_all_attempts(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "os.kill(os.getpid(), 9)")
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        session = bench.accept(7)
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "failed"}
    assert recorder.names == [(session, 1), (session, 2), (session, 3)]
    (line,) = logged.of("session failed")
    assert (line["level"], line["attempts"], line["outcome"]) == ("error", 3, "killed by SIGKILL")
    assert bench.dispatcher.counters == {"tries": 3, "failed": 1}


async def test_what_cannot_be_started_is_tried_again_too(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    recorder.file.chmod(0o777)
    async with at_work(make_config(tmp_path, recorder.command, retry={"attempts": 1000})) as bench:
        bench.accept(7)
        await eventually(lambda: logged.of("session try failed"))
        recorder.file.chmod(0o755)
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert len(recorder.names) == 1
    assert "writable by others" in logged.of("hook not started")[0]["problem"]


async def test_a_pause_blocks_nobody_else(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_NOTIFICATION_ID'] == '1')")
    pause = {"first": "1h", "longest": "1h"}
    async with at_work(make_config(tmp_path, recorder.command, retry=pause)) as bench:
        fails = bench.accept(1)
        await eventually(lambda: logged.of("session try failed"))
        bench.accept(2)
        bench.accept(3, OTHER_ID)
        await eventually(lambda: bench.dispatcher.pending == 1)
        assert bench.states()[fails] == "pending"
    assert len(recorder.names) == 3
    assert 2_700 <= logged.of("session try failed")[0]["again_in"] <= 3_600


async def test_pauses_differ_so_that_a_fleet_does_not_call_in_step(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(1)")
    config = make_config(tmp_path, recorder.command, retry={"first": "1h", "longest": "1h"})
    async with at_work(config) as bench:
        for number in range(4):
            bench.accept(number)
        await eventually(lambda: len(logged.of("session try failed")) == 4)
    assert len({line["again_in"] for line in logged.of("session try failed")}) > 1


async def test_a_pause_survives_a_restart(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(1)")
    config = make_config(tmp_path, recorder.command, retry={"first": "1h", "longest": "1h"})
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: logged.of("session try failed"))
    async with at_work(config) as bench:
        bench.accept(2, OTHER_ID)
        await eventually(lambda: len(logged.of("session try failed")) == 2)
        assert [run["environment"]["DMNOTID_SERVER_ID"] for run in recorder.runs] == [SERVER_ID, OTHER_ID]
        assert bench.dispatcher.pending == 2


class SlowDispatcher(Dispatcher):
    """A dispatcher on a machine where time passes between its look for work and its sleep."""

    async def _start_all(self) -> None:
        await super()._start_all()
        time.sleep(0.05)  # noqa: ASYNC251 - what is slow here is the machine


async def test_a_pause_that_ends_while_the_dispatcher_looks_is_not_slept_through(tmp_path: Path) -> None:
    """It would sleep until something else wakes it, or the request expires."""
    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')")
    async with at_work(make_config(tmp_path, recorder.command), kind=SlowDispatcher) as bench:
        bench.accept(1)
        async with asyncio.timeout(3):
            await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1), (1, 2)]


async def test_expired(tmp_path: Path, logged: LogLines) -> None:
    recorder, links = Recorder(tmp_path), MadeUpLinks()
    async with at_work(make_config(tmp_path, recorder.command, sessions={"expire_after": "50ms"}), links) as bench:
        session = bench.accept(1)
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "expired"}
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await asyncio.sleep(0.05)
    assert recorder.names == []
    (line,) = logged.of("session expired")
    assert (line["level"], line["session"], line["attempts"]) == ("error", session, 0)
    assert bench.dispatcher.counters == {"expired": 1}


async def test_what_waits_for_a_server_that_is_gone_expires_too(tmp_path: Path, logged: LogLines) -> None:
    limits = {"expire_after": "200ms"}
    async with at_work(make_config(tmp_path, sessions=limits), MadeUpLinks()) as bench:
        session = bench.accept(1)
        bench.dispatcher.configure(make_config(tmp_path, sessions=limits, servers=SERVERS[1:]))
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "expired"}
    assert logged.of("sessions held back")


async def test_many_that_expire_at_once_are_closed_in_a_few_transactions(tmp_path: Path) -> None:
    limits = {"expire_after": "1d", "max_pending": 1_000}
    async with at_work(make_config(tmp_path, sessions=limits), MadeUpLinks()) as bench:
        bench.dispatcher.add([bench.journal.admit(verified(number)) for number in range(300)])
        bench.journal.commit()
        commits = count_commits(bench)
        bench.dispatcher.configure(make_config(tmp_path, sessions={**limits, "expire_after": "1ms"}))
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert 0 < len(commits) <= 10
        assert set(bench.states().values()) == {"expired"}
        assert bench.dispatcher.counters["expired"] == 300


def count_commits(bench: Bench) -> list[str]:
    """Watch the statements that end a transaction."""
    commits: list[str] = []
    bench.journal._file.ensure().set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    return commits


async def test_what_runs_does_not_expire(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command, sessions={"expire_after": "500ms"})) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        ((expires_at),) = [request.expires_at for request in bench.dispatcher._running.values()]
        await eventually(lambda: time.monotonic() > expires_at)
        bench.dispatcher.wake()
        await asyncio.sleep(0.05)
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "done"}


# The interval between starts for one server


def gaps(recorder: Recorder, server_id: str = SERVER_ID) -> list[float]:
    """How much time lies between the starts for one server."""
    files = [file for file in recorder.records.iterdir() if f'"DMNOTID_SERVER_ID": "{server_id}"' in file.read_text()]
    return [later - earlier for earlier, later in pairwise(sorted(file.stat().st_mtime for file in files))]


INTERVAL = 0.4


async def test_the_interval_between_starts_for_one_server(tmp_path: Path) -> None:
    """Tries after failures count too, and other servers don't wait."""
    recorder = Recorder(tmp_path, "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')")
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": "400ms"})
    async with at_work(config) as bench:
        bench.accept(1)
        bench.accept(2)
        began = time.monotonic()
        other = bench.accept(1, OTHER_ID)
        await eventually(lambda: (other, 2) in recorder.names or len(recorder.names) > 3)
        assert (other, 1) in recorder.names
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert time.monotonic() - began < 3 * INTERVAL + 5, "all that was due was done"
    assert len(gaps(recorder)) == 3
    assert min(gaps(recorder)) > INTERVAL - 0.1


async def test_the_interval_survives_a_restart(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": "1h"})
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: bench.dispatcher.pending == 0)
    async with at_work(config) as bench:
        bench.accept(2)
        other = bench.accept(3, OTHER_ID)
        await eventually(partial(has_run, recorder, 2))
        await asyncio.sleep(0.1)  # nothing may come of it
        assert recorder.names == [(1, 1), (other, 1)]
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        await eventually(lambda: bench.dispatcher.pending == 0)


async def test_an_interval_that_is_configured_later_counts_what_former_processes_started(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: bench.dispatcher.pending == 0)
    async with at_work(config) as bench:
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, sessions={"min_interval": "1h"}))
        bench.accept(2)
        other = bench.accept(3, OTHER_ID)
        await eventually(partial(has_run, recorder, 2))
        assert recorder.names == [(1, 1), (other, 1)]


@pytest.mark.parametrize("wrong_by", [-1e9, 1e9])
async def test_no_clock_makes_a_rest_longer_than_the_interval(tmp_path: Path, wrong_by: float) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command, sessions={"min_interval": "400ms"})
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: bench.dispatcher.pending == 0)
        bench.journal._file.ensure().execute("UPDATE session SET started_at = started_at + ?", (wrong_by,))
    async with at_work(config) as bench:
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert len(recorder.names) == 2


# Another configuration


async def test_another_configuration_counts_from_the_next_start_on(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = Recorder(tmp_path / "one", waiting_for(tmp_path / "go")), Recorder(tmp_path / "two")
    config = make_config(tmp_path, one.command, sessions={"concurrency": 1})
    async with at_work(config) as bench:
        first = bench.accept(1)
        second, third = bench.accept(2), bench.accept(3, OTHER_ID)
        await eventually(lambda: one.names)
        bench.dispatcher.configure(make_config(tmp_path, two.command, sessions={"concurrency": 2}))
        await eventually(lambda: two.names)
        assert (one.names, two.names) == ([(first, 1)], [(third, 1)]), "what runs is let end; never two for one server"
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert two.names == [(second, 1), (third, 1)]


async def test_sessions_of_servers_that_come_and_go(tmp_path: Path, logged: LogLines) -> None:
    recorder, links = Recorder(tmp_path), MadeUpLinks()
    config = make_config(tmp_path, recorder.command)
    async with at_work(config, links) as bench:
        first, second, third = bench.accept(1), bench.accept(2, OTHER_ID), bench.accept(3)
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, servers=SERVERS[1:]))
        (line,) = logged.of("sessions held back")
        assert (line["level"], line["server_id"], line["sessions"]) == ("error", SERVER_ID, 2)
        links.connections = [WIRELINE]
        await eventually(lambda: bench.dispatcher.pending == 2)
        assert recorder.names == [(second, 1)]
        bench.dispatcher.configure(config)
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert set(bench.states().values()) == {"done"}
    assert recorder.names == [(first, 1), (second, 1), (third, 1)]


async def test_a_session_whose_server_goes_while_it_runs_is_not_tried_again(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go", 1))
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, servers=SERVERS[1:]))
        assert logged.of("sessions held back")[0]["sessions"] == 1
        (tmp_path / "go").touch()
        await eventually(lambda: logged.of("session try failed"))
        await asyncio.sleep(0.2)
        assert bench.dispatcher.pending == 1
        assert bench.states() == {session: "pending"}
    assert recorder.names == [(session, 1)]


async def test_another_time_to_expire_counts_for_what_waits(tmp_path: Path) -> None:
    async with at_work(make_config(tmp_path), MadeUpLinks()) as bench:
        session = bench.accept(1)
        bench.dispatcher.configure(make_config(tmp_path, sessions={"expire_after": "1ms"}))
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "expired"}


async def test_another_time_to_expire_counts_for_what_runs_as_well(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go", 1))
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        bench.dispatcher.configure(make_config(tmp_path, recorder.command, sessions={"expire_after": "1ms"}))
        await asyncio.sleep(0.05)
        assert bench.dispatcher.pending == 1, "it is let end"
        (tmp_path / "go").touch()
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {session: "expired"}


async def test_a_last_chance_outlives_a_shorter_time_to_expire(tmp_path: Path) -> None:
    """What a clock that is ahead has left it."""
    async with at_work(make_config(tmp_path), MadeUpLinks()) as bench:
        bench.accept(1)
    long_ago = time.time() - 3 * 365 * 86_400
    with closing(sqlite3.connect(tmp_path / "state" / "journal.sqlite3")) as database, database:
        database.execute("UPDATE session SET received_at = ?", (long_ago,))
    async with at_work(make_config(tmp_path), MadeUpLinks()) as bench:
        bench.dispatcher.configure(make_config(tmp_path, sessions={"expire_after": "6d"}))
        await asyncio.sleep(0.1)
        assert bench.dispatcher.pending == 1


async def test_nothing_to_do_is_no_work(tmp_path: Path) -> None:
    """A dispatcher that waits for a connection, a pause and nothing at all is not a loop that turns."""
    recorder, links = Recorder(tmp_path), MadeUpLinks()
    looks = 0

    def available() -> tuple[Connection, ...]:
        nonlocal looks
        looks += 1
        return ()

    links.available = available  # type: ignore[method-assign]
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1)
        await asyncio.sleep(0.1)
        assert looks <= 3


# Stopping


async def test_a_hook_has_its_grace_at_stop(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        first, second = bench.accept(1), bench.accept(2)
        await eventually(lambda: recorder.names)
        stopping = asyncio.create_task(bench.dispatcher.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        (tmp_path / "go").touch()
        await stopping
        assert bench.states() == {first: "done", second: "pending"}
    assert recorder.names == [(first, 1)], "nothing more is started"


@pytest.mark.parametrize("how", ["grace", "abort"])
async def test_what_does_not_end_in_its_grace_is_run_again(tmp_path: Path, logged: LogLines, how: str) -> None:
    """5.3.4: at least once, whatever interrupts it."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, hook={"stop_grace": "50ms" if how == "grace" else "1h"})
    async with at_work(config) as bench:
        session = bench.accept(1)
        await eventually(lambda: recorder.names)
        stopping = asyncio.create_task(bench.dispatcher.stop())
        if how == "abort":
            await asyncio.sleep(0.05)
            assert not stopping.done()
            bench.dispatcher.abort()
        await stopping
        assert bench.states() == {session: "pending"}
        assert bench.dispatcher.counters == {"tries": 1, "interrupted": 1}
    assert not is_alive(recorder.runs[0]["pid"])
    (line,) = logged.of("session interrupted")
    assert (line["level"], line["attempt"]) == ("warning", 1)
    (tmp_path / "go").touch()
    async with at_work(config) as bench:
        assert bench.dispatcher.pending == 1
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(session, 1), (session, 2)]
    async with at_work(config) as bench:
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(session, 1), (session, 2), (session + 1, 1)], "never again once it is done"


async def test_interrupted_again_and_again(tmp_path: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is interrupted in its last try is run again; what takes the device down each time is given up one day."""
    monkeypatch.setattr(dispatcher_module, "INTERRUPTIONS", 1)
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command, retry={"attempts": 1}, hook={"stop_grace": "0"})
    for tries in (1, 2):
        async with at_work(config) as bench:
            if tries == 1:
                bench.accept(1)
            await eventually(partial(has_run, recorder, tries))
    async with at_work(config) as bench:
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {1: "failed"}
    assert recorder.names == [(1, 1), (1, 2)]
    assert logged.of("session failed")[0]["attempts"] == 2


def start_group(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, process_group=0)


async def test_a_session_of_a_server_that_is_no_longer_configured_is_held_back(
    tmp_path: Path, logged: LogLines
) -> None:
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config, MadeUpLinks()) as bench:
        bench.accept(1)
        bench.accept(2, OTHER_ID)
    async with at_work(make_config(tmp_path, recorder.command, servers=SERVERS[1:])) as bench:
        await eventually(lambda: bench.dispatcher.pending == 1)
        assert bench.states() == {1: "pending", 2: "done"}
    assert logged.of("sessions held back")[0]["server_id"] == SERVER_ID
    async with at_work(config) as bench:
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1), (2, 1)]


async def test_a_dispatcher_that_is_cancelled_leaves_no_hook_behind(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    bench = Bench(make_config(tmp_path, recorder.command), MadeUpLinks(WIRELINE))
    with bench.journal:
        task = asyncio.create_task(bench.dispatcher.run())
        bench.accept(1)
        await eventually(lambda: recorder.names)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not is_alive(recorder.runs[0]["pid"])
        assert bench.states() == {1: "pending"}


# A journal that can't be written


def read_only(bench: Bench) -> Callable[[], object]:
    """Let nothing be written; call what comes back, and it may again."""
    database, refuse = bench.journal._file.ensure(), "BEGIN SELECT RAISE(ABORT, 'it is read-only'); END"
    database.execute(f"CREATE TRIGGER no_update BEFORE UPDATE ON session {refuse}")
    database.execute(f"CREATE TRIGGER no_insert BEFORE INSERT ON session {refuse}")
    return lambda: database.executescript("DROP TRIGGER no_update; DROP TRIGGER no_insert")


async def test_what_cannot_be_written_down_is_not_started(
    tmp_path: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_module, "WRITE_AGAIN_AFTER", 0.05)
    recorder, links = Recorder(tmp_path), MadeUpLinks()
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1)
        writable = read_only(bench)
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await eventually(lambda: len(logged.of("session not started")) == 2)
        assert recorder.names == []
        writable()
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1)]
    assert logged.of("session not started")[0]["level"] == "error"


async def test_a_row_that_cannot_be_written_holds_up_no_other(tmp_path: Path, logged: LogLines) -> None:
    recorder, links = Recorder(tmp_path), MadeUpLinks()
    async with at_work(make_config(tmp_path, recorder.command), links) as bench:
        bench.accept(1)
        bench.accept(2, OTHER_ID)
        refuse = "SELECT RAISE(ABORT, 'this row is damaged')"
        bench.journal._file.ensure().execute(
            f"CREATE TRIGGER damaged BEFORE UPDATE ON session WHEN old.session = 1 BEGIN {refuse}; END"
        )
        links.connections = [WIRELINE]
        bench.dispatcher.wake()
        await eventually(lambda: bench.dispatcher.pending == 1)
    assert [name for name, _ in recorder.names] == [2]
    assert logged.of("session not started")[0]["session"] == 1


async def test_an_end_that_cannot_be_written_is_not_run_again_by_this_process(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: recorder.names)
        writable = read_only(bench)
        (tmp_path / "go").touch()
        await eventually(lambda: logged.of("end not written"))
        assert bench.dispatcher.pending == 0
        writable()
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1), (2, 1)]
    async with at_work(config) as bench:
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1), (2, 1)], "what was written later is not run again by the next one either"


async def test_an_end_that_could_not_be_written_is_written_once_there_is_room(tmp_path: Path, logged: LogLines) -> None:
    """Until then the row counts among those that wait: a few of them, and the server's queue is full for good."""
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    async with at_work(make_config(tmp_path, recorder.command)) as bench:
        bench.accept(1)
        await eventually(lambda: recorder.names)
        writable = read_only(bench)
        (tmp_path / "go").touch()
        await eventually(lambda: logged.of("end not written"))
        writable()
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 0)
        await asyncio.sleep(0.1)
        assert set(bench.states().values()) == {"done"}


@pytest.mark.parametrize(("pause", "waits"), [(0.1, False), (3_600, True)], ids=["after-a-while", "at-the-stop"])
async def test_an_end_is_written_again(
    tmp_path: Path,
    logged: LogLines,
    monkeypatch: pytest.MonkeyPatch,
    pause: float,
    waits: bool,  # noqa: FBT001 - two cases
) -> None:
    """Whether anything comes meanwhile or not."""
    monkeypatch.setattr(dispatcher_module, "WRITE_AGAIN_AFTER", pause)
    recorder = Recorder(tmp_path, waiting_for(tmp_path / "go"))
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as bench:
        bench.accept(1)
        await eventually(lambda: recorder.names)
        writable = read_only(bench)
        (tmp_path / "go").touch()
        await eventually(lambda: len(logged.of("end not written")) > (not waits))
        writable()
        await asyncio.sleep(0.3)
        assert bench.states() == {1: "pending" if waits else "done"}
    async with at_work(config, MadeUpLinks()) as bench:
        assert bench.states() == {1: "done"}


async def test_an_end_that_cannot_be_written_keeps_no_other_from_being(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(make_config(tmp_path), MadeUpLinks()) as bench:
        bench.accept(1)
        bench.accept(2)
        bench.accept(3)
        refuse = "SELECT RAISE(ABORT, 'this row is damaged')"
        bench.journal._file.ensure().execute(
            f"CREATE TRIGGER damaged BEFORE UPDATE ON session WHEN old.session = 2 BEGIN {refuse}; END"
        )
        bench.dispatcher.configure(make_config(tmp_path, sessions={"expire_after": "1ms"}))
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {1: "expired", 2: "pending", 3: "expired"}
    assert logged.of("end not written")[0]["sessions"] == 1


async def test_many_ends_that_cannot_be_written_are_not_tried_one_by_one(tmp_path: Path, logged: LogLines) -> None:
    limits = {"expire_after": "1d", "max_pending": 1_000}
    async with at_work(make_config(tmp_path, sessions=limits), MadeUpLinks()) as bench:
        bench.dispatcher.add([bench.journal.admit(verified(number)) for number in range(300)])
        bench.journal.commit()
        read_only(bench)
        updates: list[str] = []
        bench.journal._file.ensure().set_trace_callback(lambda sql: updates.append(sql) if "UPDATE" in sql else None)
        bench.dispatcher.configure(make_config(tmp_path, sessions={**limits, "expire_after": "1ms"}))
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert len(logged.of("session expired")) == 300
    # A transaction and two rows alone for each slice, and once more at the stop; a trigger has each told three times.
    assert len(updates) / 3 <= 3 * (300 // ENDS_AT_ONCE + 2)
    assert len(logged.of("end not written")) <= 300 // ENDS_AT_ONCE + 2


async def test_a_pause_that_cannot_be_written_is_kept_in_memory(tmp_path: Path, logged: LogLines) -> None:
    behaviour = UNTIL.format(file=str(tmp_path / "go")) + "sys.exit(environment['DMNOTID_ATTEMPT'] == '1')"
    recorder = Recorder(tmp_path, behaviour)
    async with at_work(make_config(tmp_path, recorder.command, retry={"first": "300ms", "longest": "300ms"})) as bench:
        bench.accept(1)
        await eventually(lambda: recorder.names)
        writable = read_only(bench)
        (tmp_path / "go").touch()
        await eventually(lambda: logged.of("pause not written"))
        writable()
        await eventually(lambda: bench.dispatcher.pending == 0)
    assert recorder.names == [(1, 1), (1, 2)]


async def test_a_bug_in_one_session_is_not_the_end_of_others(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command, retry={"attempts": 1})) as bench:
        bad = bench.journal.admit(verified(1))._replace(source=b"\xff")  # type: ignore[arg-type]
        bench.journal.commit()
        bench.dispatcher.add([bad])
        bench.accept(2)
        await eventually(lambda: bench.dispatcher.pending == 0)
        assert bench.states() == {1: "failed", 2: "done"}
    assert recorder.names == [(2, 1)]
    assert "Traceback" in logged.of("session failed by a bug")[0]["exception"]
