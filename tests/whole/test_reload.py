"""Reloads of a running daemon: another configuration is applied as a whole, or refused with nothing changed."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.intake.batches import BatchReader
from tests.support import (
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    SERVER_ID,
    SERVERS,
    WIRELINE,
    LogLines,
    Recorder,
    descriptors,
    eventually,
    push,
    write_config,
)


@asynccontextmanager
async def at_work(file: Path) -> AsyncIterator[tuple[Daemon, list[Config]]]:
    """Run a daemon with a configuration file, and collect the configurations that it applies later."""
    applied: list[Config] = []
    daemon = Daemon(load_config(file, {}), on_reload=applied.append)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(daemon.run())
        await daemon.ready.wait()
        try:
            yield daemon, applied
        finally:
            if not running.done():
                daemon.stop()


def ends(logged: LogLines) -> list[dict[str, Any]]:
    """Return the last line of each reload so far."""
    return [line for line in logged.all() if line["event"] in ("configuration reloaded", "reload refused")]


async def reloaded(daemon: Daemon, logged: LogLines) -> dict[str, Any]:
    """Request a reload, and return its last line."""
    before = len(ends(logged))
    daemon.reload()
    await eventually(lambda: len(ends(logged)) > before)
    return ends(logged)[-1]


def send(endpoint: BatchReader, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, endpoint.socket.getsockname())


def only(daemon: Daemon) -> BatchReader:
    (endpoint,) = daemon.endpoints
    return endpoint


# Applied


async def test_secret_files_are_read_again(tmp_path: Path, logged: LogLines) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text("the first of two secrets\n")
    file = write_config(tmp_path, servers=[{"id": SERVER_ID, "secret": {"file": "secret"}}])
    async with at_work(file) as (daemon, _):
        endpoint = only(daemon)
        new = push(1, secret=b"the second one, much better", preferred=NOWHERE)
        send(endpoint, new, push(2, secret=b"the first of two secrets", preferred=NOWHERE))
        await eventually(lambda: daemon.counters["received"] == 2)
        assert (daemon.counters["digest-mismatch"], daemon.counters["accepted"]) == (1, 1)
        secret.write_text("the second one, much better\n")
        assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
        assert only(daemon) is endpoint
        send(endpoint, new, push(3, secret=b"the first of two secrets", preferred=NOWHERE))
        await eventually(lambda: daemon.counters["received"] == 4)
        assert (daemon.counters["digest-mismatch"], daemon.counters["accepted"]) == (2, 2)


async def test_former_secret_is_accepted_while_a_server_changes_its_secret(tmp_path: Path, logged: LogLines) -> None:
    """Nothing is lost, whichever of the two sides changes it first, and the log shows the end of the change."""
    old, new = b"the first of two secrets", b"the second one, much better"
    server: dict[str, object] = {"id": SERVER_ID, "secret": {"text": old.decode()}}
    async with at_work(write_config(tmp_path, servers=[server])) as (daemon, _):
        changing = {**server, "secret": {"text": new.decode()}, "former_secret": server["secret"]}
        write_config(tmp_path, servers=[changing])
        assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
        unnamed = push(4, server_id=None, secret=old, preferred=NOWHERE)
        send(
            only(daemon), *(push(at, secret=key, preferred=NOWHERE) for at, key in ((1, old), (2, new), (3, b"other")))
        )
        send(only(daemon), unnamed)
        await eventually(lambda: daemon.counters["received"] == 4)
        assert (daemon.counters["accepted"], daemon.counters["digest-mismatch"]) == (3, 1)
        accepted = {line["notification_id"]: line.get("secret") for line in logged.of("notification accepted")}
        assert accepted == {1: "former", 2: None, 4: "former"}
        changing["former_secret"] = {"text": old.decode(), "until": "2020-01-01"}
        write_config(tmp_path, servers=[changing])
        await reloaded(daemon, logged)
        send(only(daemon), push(5, secret=old, preferred=NOWHERE))
        await eventually(lambda: daemon.counters["digest-mismatch"] == 2)
        problem = logged.of("datagram discarded")[-1]["problem"]
        assert problem.endswith("which has not been accepted since 2020-01-02T00:00:00Z")


async def test_warnings_are_logged_once_for_each_reload_that_is_applied(tmp_path: Path, logged: LogLines) -> None:
    weak = [{"id": SERVER_ID, "secret": {"text": "short"}}]
    async with at_work(write_config(tmp_path)) as (daemon, _):
        for count in (1, 2):
            write_config(tmp_path, servers=weak)
            assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
            assert len(logged.of("configuration warning")) == count
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            write_config(tmp_path, servers=weak, listen=[f"127.0.0.1:{sock.getsockname()[1]}"])
            assert (await reloaded(daemon, logged))["event"] == "reload refused"
        assert len(logged.of("configuration warning")) == 2


async def test_every_section_is_applied(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    async with at_work(write_config(tmp_path, servers=SERVERS[:1], connections={"mobile": {}})) as (daemon, applied):
        send(only(daemon), push(1, server_id=OTHER_ID), push(2, preferred=NOWHERE))
        await eventually(lambda: daemon.counters["received"] == 2)
        assert (daemon.counters["unknown-server"], daemon.pending) == (1, 1)
        write_config(
            tmp_path,
            recorder.command,
            servers=SERVERS,
            listen=["127.0.0.1:0", "127.0.0.2:0"],
            sessions={"max_pending": 1},
            freshness={"max_age": "1h"},
            push={"max_header_octets": 3},
            connections={"mobile": {"interfaces": ["lo"]}, "wireline": {}},
            log={"level": "warning"},
        )
        line = await reloaded(daemon, logged)
        assert (line["event"], line["servers"], len(line["listen"])) == ("configuration reloaded", len(SERVERS), 2)
        await eventually(lambda: recorder.names == [(1, 1)])
        assert recorder.runs[0]["environment"]["DMNOTID_CONNECTION"] == "mobile"
        await eventually(lambda: not daemon.pending)
        _, second = daemon.endpoints
        old, long = push(3, sent_at=time.time() - 4_000), b"\0\6\4\xd8\xaf\x87\x8d" + push(4)[6:]
        waiting = [push(number, server_id=OTHER_ID, preferred=WIRELINE) for number in (5, 6)]
        send(second, old, long, *waiting)
        await eventually(lambda: daemon.counters["received"] == 6)
        for reason in ("stale", "push-header-too-long", "queue-full"):
            assert daemon.counters[reason] == 1, reason
    assert [config.log.level for config in applied] == ["warning"]


async def test_longest_datagram_is_that_of_the_reloaded_configuration(tmp_path: Path, logged: LogLines) -> None:
    """4: at the socket, and in the kernel."""
    datagram = push(1, unknown=[(6, bytes(500))], preferred=NOWHERE)
    quiet: dict[str, Any] = {"log": {"junk": False}}
    async with at_work(write_config(tmp_path, push={"max_octets": len(datagram) - 1})) as (daemon, _):
        send(only(daemon), datagram)
        await eventually(lambda: daemon.counters["push-too-long"] == 1)
        # Now the kernel drops the first; the second shows that it was passed.
        write_config(tmp_path, push={"max_octets": len(datagram) - 1}, **quiet)
        assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
        send(only(daemon), datagram, push(2, preferred=NOWHERE))
        await eventually(lambda: daemon.counters["accepted"] == 1)
        assert (daemon.counters["received"], daemon.counters["push-too-long"]) == (2, 1)
        write_config(tmp_path, push={"max_octets": len(datagram)}, **quiet)
        await reloaded(daemon, logged)
        send(only(daemon), datagram)
        await eventually(lambda: daemon.counters["accepted"] == 2)


async def test_receive_buffer_is_applied(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(write_config(tmp_path, receive_buffer=8_192)) as (daemon, _):
        sock = only(daemon).socket
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 8_192
        write_config(tmp_path, receive_buffer=16_384)
        await reloaded(daemon, logged)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 16_384
    assert not logged.of("receive buffer reduced")


async def test_junk_filter_is_applied(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(write_config(tmp_path, log={"junk": False})) as (daemon, _):
        endpoint = only(daemon)
        send(endpoint, b"junk")
        write_config(tmp_path, log={"junk": True})
        await reloaded(daemon, logged)
        assert daemon.counters["junk"] + daemon.counters["lost"] == 1
        send(endpoint, b"junk")
        await eventually(lambda: daemon.counters["not-a-push"])
        write_config(tmp_path, log={"junk": False})
        await reloaded(daemon, logged)
        send(endpoint, b"junk", push())
        await eventually(lambda: daemon.counters["accepted"])
    assert daemon.counters["not-a-push"] == 1
    assert daemon.counters["junk"] + daemon.counters["lost"] == 2


async def test_session_of_a_server_that_a_reload_removes_is_held(tmp_path: Path, logged: LogLines) -> None:
    """Its datagram arrives while the new configuration is read."""
    recorder = Recorder(tmp_path)
    async with at_work(write_config(tmp_path, recorder.command)) as (daemon, _):
        endpoint = only(daemon)
        servers = [{"id": OPEN_ID, "require_digest": False}]
        write_config(tmp_path, recorder.command, servers=servers, listen=["127.0.0.2:0"])
        daemon.reload()
        send(endpoint, push(1, preferred=NOWHERE))
        await eventually(lambda: ends(logged))
        await eventually(lambda: logged.of("sessions held") or logged.of("sessions held"))
        assert (counted(daemon), daemon.pending) == ({"received": 1, "accepted": 1}, 1)
    assert recorder.names == []


def counted(daemon: Daemon) -> dict[str, int]:
    return {word: count for word, count in daemon.counters.items() if count}


async def test_warnings_of_the_new_configuration_are_logged(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(write_config(tmp_path)) as (daemon, _):
        write_config(tmp_path, servers=[{"id": SERVER_ID, "secret": {"text": "short"}}])
        assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
        assert [line["level"] for line in logged.of("configuration warning")] == ["warning"]


async def test_hook_that_cannot_be_started_is_reported_at_start_and_reload(tmp_path: Path, logged: LogLines) -> None:
    missing = tmp_path / "none"
    async with at_work(write_config(tmp_path, [str(missing)])) as (daemon, _):
        (line,) = logged.of("hook not startable")
        assert (line["level"], line["problem"]) == ("warning", f"{missing}: No such file or directory")
        write_config(tmp_path)
        assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
        assert len(logged.of("hook not startable")) == 1
        write_config(tmp_path, [str(tmp_path)])
        assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
        assert len(logged.of("hook not startable")) == 2


async def test_other_state_directory_needs_a_restart(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(write_config(tmp_path)) as (daemon, _):
        write_config(tmp_path, state=str(tmp_path / "other"), servers=SERVERS[:1])
        line = await reloaded(daemon, logged)
        assert (line["event"], line["servers"]) == ("configuration reloaded", 1)
        assert "needs a restart" in logged.of("configuration warning")[0]["problem"]
        assert daemon.config.state == tmp_path / "state"
    assert not (tmp_path / "other").exists()


async def test_sighup_requests_a_reload(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(write_config(tmp_path)) as (daemon, _):
        write_config(tmp_path, servers=[{"id": OPEN_ID, "require_digest": False}])
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(lambda: logged.of("configuration reloaded"))
        assert [server.id for server in daemon.config.servers] == [OPEN_ID]


async def test_no_datagram_is_lost_over_reloads(tmp_path: Path, logged: LogLines) -> None:
    """Other addresses come and go; each datagram to the one that stays is accepted once."""
    file = write_config(tmp_path, sessions={"max_pending": 65_536})
    configurations: list[dict[str, Any]] = [
        {"listen": ["127.0.0.1:0"]},
        {"listen": ["127.0.0.2:0", "127.0.0.1:0"], "servers": SERVERS[::-1]},
        {"listen": ["127.0.0.1:0", "127.0.0.3:0"], "retry": {"attempts": 9}},
        {"listen": ["not an address"]},
    ]
    async with at_work(file) as (daemon, _):
        endpoint = only(daemon)
        number = 0
        for turn in range(20):
            write_config(tmp_path, sessions={"max_pending": 65_536}, **configurations[turn % 4])
            before = len(ends(logged))
            daemon.reload()
            while len(ends(logged)) == before:
                send(endpoint, push(number, preferred=NOWHERE))
                number += 1
                await asyncio.sleep(0)
        await eventually(lambda: daemon.counters["received"] == number)
        assert daemon.counters["accepted"] == number == daemon.pending
        assert endpoint in list(daemon.endpoints)
    assert (len(logged.of("configuration reloaded")), len(logged.of("reload refused"))) == (15, 5)


async def test_reloads_leave_nothing_open(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(write_config(tmp_path)) as (daemon, _):
        await reloaded(daemon, logged)
        before, threads, tasks = descriptors(), threading.active_count(), len(asyncio.all_tasks())
        for turn in range(6):
            write_config(tmp_path, listen=["127.0.0.1:0"] + ["127.0.0.2:0"] * (turn % 2))
            assert (await reloaded(daemon, logged))["event"] == "configuration reloaded"
        write_config(tmp_path)
        await reloaded(daemon, logged)
        assert descriptors() == before
        assert (threading.active_count(), len(asyncio.all_tasks())) == (threads, tasks)


# Refused


async def test_all_problems_are_logged_and_nothing_changes(tmp_path: Path, logged: LogLines) -> None:
    file = write_config(tmp_path)
    async with at_work(file) as (daemon, applied):
        endpoint, open_before = only(daemon), descriptors()
        good = file.read_text()
        file.write_text(good.replace("retry:", "retri:").replace("format: json", "format: xml"))
        line = await reloaded(daemon, logged)
        assert (line["event"], line["level"], line["problems"]) == ("reload refused", "error", 2)
        assert line["instead"] == "the configuration in force remains"
        problems = [line["problem"] for line in logged.of("configuration problem")]
        assert [problem.split(": ")[1] for problem in problems] == ["log.format", "retri"]
        assert all(problem.startswith(f"{file}:") for problem in problems)
        assert only(daemon) is endpoint
        assert descriptors() == open_before
        send(endpoint, push(1, preferred=WIRELINE))
        await eventually(lambda: logged.of("session done"))
        assert applied == []


@pytest.mark.parametrize("content", [None, "directory", "", b"\xff{{["])
async def test_file_that_cannot_be_read_changes_nothing(
    tmp_path: Path, logged: LogLines, content: str | bytes | None
) -> None:
    file = write_config(tmp_path)
    async with at_work(file) as (daemon, _):
        file.unlink()
        if content == "directory":
            file.mkdir()
        elif content is not None:
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert (await reloaded(daemon, logged))["event"] == "reload refused"
        (problem,) = logged.of("configuration problem")
        assert str(file) in problem["problem"]
        send(only(daemon), push(1, preferred=WIRELINE))
        await eventually(lambda: logged.of("session done"))


async def test_address_that_cannot_be_bound_refuses_the_whole(tmp_path: Path, logged: LogLines) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        async with at_work(write_config(tmp_path)) as (daemon, _):
            endpoint = only(daemon)
            write_config(tmp_path, servers=SERVERS[1:], listen=["127.0.0.2:0", f"127.0.0.1:{taken.getsockname()[1]}"])
            line = await reloaded(daemon, logged)
            assert line["event"] == "reload refused"
            assert "Address already in use" in line["problem"]
            assert only(daemon) is endpoint
            send(endpoint, push(1, preferred=WIRELINE))
            await eventually(lambda: daemon.counters["accepted"])


async def test_address_in_conflict_with_an_open_one_needs_a_restart(tmp_path: Path, logged: LogLines) -> None:
    # An address of this process, and a port that the kernel gives to no other one: a free port may be taken meanwhile.
    pid = os.getpid()
    address = f"127.{1 + (pid >> 16)}.{pid >> 8 & 0xFF}.{pid & 0xFF}:20948"
    async with at_work(write_config(tmp_path, listen=[address])) as (daemon, _):
        write_config(tmp_path, servers=SERVERS[:1], listen=["0.0.0.0:20948"])
        line = await reloaded(daemon, logged)
        assert line["event"] == "reload refused"
        assert "restart" in line["problem"]
        assert daemon.config.servers[1:] != ()


async def test_reload_requested_at_the_stop_changes_nothing(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.stdin.read(); import time; time.sleep(0.2)")
    async with at_work(write_config(tmp_path, recorder.command)) as (daemon, _):
        send(only(daemon), push(1, preferred=WIRELINE))
        await eventually(lambda: recorder.names)
        daemon.reload()
        daemon.stop()
        daemon.reload()
        await eventually(lambda: logged.of("daemon stopped"))
    assert logged.of("session done")
    assert logged.all()[-1]["event"] == "daemon stopped"


def test_stop_does_not_wait_for_a_file_that_is_being_read(tmp_path: Path, logged: LogLines) -> None:
    file = write_config(tmp_path)
    before = set(threading.enumerate())

    async def stop_during_a_reload() -> None:
        async with at_work(file) as (daemon, _):
            # It takes the reader a second or more, and the stop some milliseconds.
            file.write_text("servers:\n" + "- {id: x, unknown: y}\n" * 4_000)
            daemon.reload()
            await eventually(lambda: set(threading.enumerate()) - before)

    asyncio.run(stop_during_a_reload())
    still_reading = set(threading.enumerate()) - before
    assert still_reading
    assert logged.all()[-1]["event"] == "daemon stopped"
    for thread in still_reading:
        thread.join()
