"""The whole daemon inside this process: real sockets, journal, links and hooks."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.errors import EndpointError, JournalError
from dmnotid.intake.drops import read_lost
from tests.support import (
    NOWHERE,
    SERVER_ID,
    WIRELINE,
    LogLines,
    Recorder,
    as_root,
    descriptors,
    eventually,
    make_config,
    push,
)


@asynccontextmanager
async def at_work(config: Config, **more: Any) -> AsyncIterator[Daemon]:  # noqa: ANN401 - what Daemon takes
    """Run a daemon; it is stopped in order at the end."""
    daemon = Daemon(config, **more)
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.run())
        await daemon.ready.wait()
        try:
            yield daemon
        finally:
            daemon.stop()


def send(daemon: Daemon, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, next(iter(daemon.endpoints)).socket.getsockname())


def counted(daemon: Daemon) -> dict[str, int]:
    return {word: count for word, count in daemon.counters.items() if count}


# Receiving


async def test_notification_is_accepted_and_its_session_runs_once(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        datagram = push(4_661, preferred=WIRELINE)
        send(daemon, datagram, datagram)
        await eventually(lambda: recorder.names and not daemon.pending)
        send(daemon, datagram)
        await eventually(lambda: daemon.counters["received"] == 3)
        assert counted(daemon) == {"received": 3, "accepted": 1, "duplicate": 2}
    assert recorder.names == [(1, 1)]
    environment = recorder.runs[0]["environment"]
    assert (environment["DMNOTID_SERVER_ID"], environment["DMNOTID_INTERFACE"]) == (SERVER_ID, "lo")
    assert logged.of("daemon stopped")[0]["sessions"] == {"tries": 1, "done": 1}


async def test_accepted_notification_is_logged_before_its_session(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(make_config(tmp_path)) as daemon:
        send(daemon, push(1, preferred=WIRELINE))
        await eventually(lambda: logged.of("session done"))
    events = [line["event"] for line in logged.all()]
    assert events.index("notification accepted") + 2 == events.index("session done")


async def test_junk_is_refused_in_the_kernel_and_counted(tmp_path: Path, logged: LogLines) -> None:
    before = read_lost()
    async with at_work(make_config(tmp_path, log={"junk": False})) as daemon:
        send(daemon, *[b"junk"] * 20, push())
        await eventually(lambda: daemon.counters["accepted"])
    counts = counted(daemon)
    assert counts.pop("junk", 0) + counts.pop("lost", 0) == 20
    assert counts == {"received": 1, "accepted": 1}
    assert not logged.of("datagram discarded")
    # Only if no other socket of this machine has lost datagrams.
    if read_lost() == before:
        assert [line["count"] for line in logged.of("junk refused")] == [20]
        assert not logged.of("datagrams lost")


async def test_lost_datagrams_are_counted_apart_from_junk(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path, log={"junk": False}, receive_buffer=4_096)
    before = read_lost()
    async with at_work(config) as daemon:
        # Nothing is read meanwhile: the loop does not run.
        send(daemon, *[push(), b"junk"] * 100)
        await eventually(lambda: daemon.counters["accepted"])
    counts = counted(daemon)
    assert counts["received"] + counts["lost"] + counts["junk"] == 200
    assert counts["lost"] > 50
    assert sum(line["count"] for line in logged.of("datagrams lost")) == counts["lost"]
    if before is not None and read_lost() == before + counts["lost"]:
        assert counts["junk"] == 100


# Starting


async def test_start_and_stop_leave_nothing_open(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path)
    # What the loop itself opens is open from here on.
    async with at_work(config):
        pass
    before = descriptors()
    async with at_work(config) as daemon:
        send(daemon, push(1))
        await eventually(lambda: daemon.counters["accepted"] == 1 and not daemon.pending)
    assert descriptors() == before
    assert [line["event"] for line in logged.all()][-2:] == ["daemon stopping", "daemon stopped"]
    ready = logged.of("daemon ready")[0]
    assert ready["loop"] in {"asyncio", "uvloop"}
    assert (ready["servers"], ready["pending"]) == (3, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_second_daemon_on_the_same_state_does_not_start(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    async with at_work(config):
        before = descriptors()
        with pytest.raises(JournalError, match="another dmnotid"):
            await Daemon(config).run()
        # SQLite keeps the descriptor of the second file until the first is closed: its locks belong to the process.
        assert len(descriptors() - before) <= 1


async def test_start_with_a_port_in_use_fails_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{sock.getsockname()[1]}"
        config = make_config(tmp_path, listen=["127.0.0.2:0", listen])
        before = descriptors()
        with pytest.raises(EndpointError, match=f"listen: {listen}: Address already in use"):
            await Daemon(config).run()
        assert descriptors() == before


async def test_state_directory_is_created_for_the_daemon_alone(tmp_path: Path) -> None:
    async with at_work(make_config(tmp_path, state=str(tmp_path / "deep" / "state"))):
        assert (tmp_path / "deep" / "state").stat().st_mode & 0o7777 == 0o700


async def test_state_directory_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"state: .*/file/state: Not a directory; a directory that .* is expected"):
        await Daemon(make_config(tmp_path, state=str(tmp_path / "file" / "state"))).run()


@as_root
@pytest.mark.parametrize("has_journal", [False, True])
def test_start_fails_on_a_read_only_file_system(tmp_path: Path, has_journal: bool) -> None:  # noqa: FBT001 - two cases
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "none", str(state)]
    done = subprocess.run(mount, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")

    async def start_and_stop() -> None:
        async with at_work(make_config(tmp_path)):
            pass

    try:
        if has_journal:
            asyncio.run(start_and_stop())
        subprocess.run(["mount", "-o", "remount,ro", state], check=True)
        with pytest.raises(JournalError, match="Read-only file system"):
            asyncio.run(Daemon(make_config(tmp_path)).run())
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


# Stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_stops_the_daemon(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    daemon = Daemon(make_config(tmp_path))
    task = asyncio.create_task(daemon.run())
    await daemon.ready.wait()
    os.kill(os.getpid(), number)
    await task
    signal.signal(number, handler)


async def test_queued_datagrams_are_accepted_at_the_stop(tmp_path: Path) -> None:
    config = make_config(tmp_path, listen=["127.0.0.1:0", "127.0.0.2:0"], sessions={"max_pending": 500})
    async with at_work(config) as daemon:
        for offset, endpoint in enumerate(daemon.endpoints):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for number in range(100):
                    sock.sendto(push(1_000 * offset + number, preferred=NOWHERE), endpoint.socket.getsockname())
        assert daemon.counters["received"] == 0, "the loop did not run"
    assert counted(daemon) == {"received": 200, "accepted": 200}
    async with at_work(config) as again:
        assert again.pending == 200


async def test_session_of_a_datagram_drained_at_the_stop_starts_in_the_next_daemon(
    tmp_path: Path, logged: LogLines
) -> None:
    """Otherwise the stop would wait for a hook that it starts itself."""
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        send(daemon, push(1, preferred=WIRELINE))
        daemon.stop()
    assert counted(daemon) == {"received": 1, "accepted": 1}
    assert logged.of("session started") == []
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        await eventually(lambda: recorder.names and not daemon.pending)
    assert recorder.names == [(1, 1)]


async def test_second_stop_ends_running_hooks(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "import time; time.sleep(1000)")
    async with at_work(make_config(tmp_path, recorder.command, hook={"stop_grace": "1h"})) as daemon:
        send(daemon, push(1))
        await eventually(lambda: recorder.names)
        daemon.stop()
        await eventually(lambda: list(daemon.endpoints) == [])
        assert logged.of("daemon stopped") == []
    assert logged.of("session interrupted")
