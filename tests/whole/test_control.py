"""The control socket of a whole daemon: what an operator's programs ask, and what they change."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config.loading import load_config
from dmnotid.control.client import Failed, Unreachable, call, stream
from dmnotid.daemon import Daemon
from dmnotid.errors import EndpointError, discard_reasons
from dmnotid.host.systemd import Manager
from tests.control.plain import connected
from tests.processes import running
from tests.support import (
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    OTHER_SECRET,
    SECRET,
    SERVER_ID,
    SERVERS,
    WIRELINE,
    LogLines,
    Recorder,
    eventually,
    push,
    write_config,
    write_script,
)


class Running:
    """A daemon in this process, and its control socket."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self.daemon = daemon
        self.path = path

    def send(self, *datagrams: bytes) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for datagram in datagrams:
                sock.sendto(datagram, next(iter(self.daemon.endpoints)).socket.getsockname())

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return await asyncio.to_thread(call, str(self.path), method, parameters)

    async def stream(self, method: str, **parameters: object) -> list[dict[str, Any]]:
        return await asyncio.to_thread(lambda: list(stream(str(self.path), method, parameters)))

    async def sessions(self, **parameters: object) -> list[dict[str, Any]]:
        return [reply["session"] for reply in await self.stream("Sessions", **parameters)]

    async def problems(self, method: str, **parameters: object) -> tuple[str, Any]:
        with pytest.raises(Failed) as caught:
            await (self.stream if method == "Sessions" else self.call)(method, **parameters)
        return caught.value.error, caught.value.parameters

    async def accept(self, *datagrams: bytes) -> None:
        wanted = self.daemon.counters["accepted"] + len(datagrams)
        self.send(*datagrams)
        await eventually(lambda: self.daemon.counters["accepted"] == wanted)


@asynccontextmanager
async def at_work(
    directory: Path,
    *command: str,
    manager: Manager | None = None,
    **sections: Any,  # noqa: ANN401 - YAML
) -> AsyncIterator[Running]:
    """Run a daemon with a control socket."""
    path = directory / "control"
    file = write_config(directory, command or ("/bin/true",), control={"socket": str(path)}, **sections)
    daemon = Daemon(load_config(file, {}), manager=manager)
    async with asyncio.TaskGroup() as group:
        group.create_task(daemon.run())
        await daemon.ready.wait()
        try:
            yield Running(daemon, path)
        finally:
            daemon.stop()


# Status


async def test_status_of_a_new_daemon_has_every_count_and_no_problem(tmp_path: Path) -> None:
    async with at_work(tmp_path) as it:
        status = await it.call("Status")
        assert (status["version"], status["pid"], status["problems"]) == (1, os.getpid(), [])
        assert status["started"] <= status["config"]["loaded"] <= status["now"]
        assert status["config"]["file"] == str(tmp_path / "dmnotid.yaml")
        assert status["hook"] == {"what": "/bin/true", "startable": True, "problem": None}
        assert status["clock"]["believed"]
        assert status["counts"]["discarded"] == dict.fromkeys(discard_reasons(), 0)
        assert status["counts"]["closed"] == dict.fromkeys(("done", "refused", "failed", "expired", "cancelled"), 0)
        states = ("running", "queued", "resting", "paused", "waiting", "held", "hook")
        assert status["counts"]["states"] == dict.fromkeys(states, 0)
        (listening,) = status["sockets"]
        assert listening == {
            "listen": str(next(iter(it.daemon.endpoints))),
            "unit": None,
            "door": None,
            "received": 0,
            "lost": 0,
            "junk": 0,
        }
        assert status["journal"]["file"] == str(tmp_path / "state/journal.sqlite3")
        assert [(server["id"], server["must_sign"], server["secrets"]) for server in status["servers"]] == [
            (SERVER_ID, True, 1),
            (OTHER_ID, True, 1),
            (OPEN_ID, False, 0),
        ]
        assert {link["interface"] for link in status["links"]} >= {"lo"}
        assert not status["stopping"]


async def test_status_shows_sessions_servers_and_discards(tmp_path: Path) -> None:
    async with at_work(tmp_path) as it:
        await it.accept(push(1, preferred=WIRELINE), push(2, preferred=NOWHERE))
        await eventually(lambda: it.daemon.pending == 1)
        it.send(push(3, secret=OTHER_SECRET), push(4, server_id="stranger.example", secret=SECRET), b"junk")
        await eventually(lambda: it.daemon.counters["received"] == 5)
        status = await it.call("Status")
        counts = status["counts"]
        assert (counts["received"], counts["accepted"], counts["tries"], counts["closed"]["done"]) == (5, 2, 1, 1)
        assert (counts["states"]["waiting"], counts["duration_count"]) == (1, 1)
        assert counts["oldest_pending"] <= status["now"]
        found = {reason: count for reason, count in counts["discarded"].items() if count}
        assert found == {"digest-mismatch": 1, "unknown-server": 1, "not-a-push": 1}
        assert status["sockets"][0]["received"] == 5
        # A stranger's claim makes no server.
        server, *others = status["servers"]
        assert len(others) == 2
        assert (server["accepted"], server["discarded"], server["pending"], server["last_secret"]) == (
            2,
            1,
            1,
            "current",
        )
        assert server["last_discard"]["reason"] == "digest-mismatch"
        assert server["last_accepted"] <= status["now"]
        last = server["last_session"]
        assert (last["session"], last["state"], last["outcome"], last["interface"]) == (1, "done", "exit 0", "lo")
        assert (last["connection"], last["attempts"]) == ("wireline", 1)
        assert [other["last_session"] for other in others] == [None, None]


async def test_status_keeps_last_sessions_and_arrivals_over_a_restart(tmp_path: Path) -> None:
    async with at_work(tmp_path) as it:
        await it.accept(push(1, preferred=WIRELINE))
        await eventually(lambda: not it.daemon.pending)
        before = (await it.call("Status"))["servers"][0]
    async with at_work(tmp_path) as it:
        after = (await it.call("Status"))["servers"][0]
        assert (after["last_accepted"], after["last_session"]) == (before["last_accepted"], before["last_session"])
        assert after["accepted"] == 0


async def test_status_names_what_is_wrong(tmp_path: Path) -> None:
    hook = write_script(tmp_path / "hook", "exit 0", mode=0o644)
    async with at_work(tmp_path, str(hook)) as it:
        write_config(tmp_path, servers=[{"id": "x", "unknown": 1}, 5])
        await it.problems("Reload")
        status = await it.call("Status")
        refused, not_startable = status["problems"]
        assert refused["place"].startswith(str(tmp_path / "dmnotid.yaml"))
        assert status["config"]["reload_refused"]["problems"] > 1
        assert not_startable["place"] == "hook.command"
        assert status["hook"]["problem"] == not_startable["message"]
        assert not status["hook"]["startable"]
        hook.chmod(0o755)
        write_config(tmp_path, [str(hook)], control={"socket": str(it.path)})
        await it.call("Reload")
        assert (await it.call("Status"))["problems"] == []


async def test_status_holds_sessions_of_a_server_that_is_not_configured(tmp_path: Path) -> None:
    async with at_work(tmp_path) as it:
        await it.accept(push(1, preferred=NOWHERE))
        write_config(tmp_path, servers=SERVERS[1:], control={"socket": str(it.path)})
        await it.call("Reload")
        status = await it.call("Status")
        assert status["counts"]["states"]["held"] == 1
        held = {server["id"]: server["pending"] for server in status["servers"] if server["held_back"]}
        assert held == {SERVER_ID: 1}


async def test_no_answer_has_a_secret_in_it(tmp_path: Path) -> None:
    servers = [
        {
            "id": SERVER_ID,
            "secret": {"text": SECRET.decode()},
            "former_secret": {"text": "a former secret, which ends"},
        },
        *SERVERS[1:],
    ]
    hook = {"command": ["/bin/true"], "environment": {"TOKEN": "the hook's own token"}}
    async with at_work(tmp_path, servers=servers, hook=hook) as it:
        await it.accept(push(1, preferred=NOWHERE))
        it.send(push(3, secret=OTHER_SECRET))
        await eventually(lambda: it.daemon.counters["digest-mismatch"])
        status = await it.call("Status")
        assert status["servers"][0]["secrets"] == 2
        found = json.dumps([status, await it.sessions(), await it.stream("Discards")])
        for secret in (SECRET, OTHER_SECRET, b"a former secret, which ends", b"the hook's own token"):
            assert secret.decode() not in found
            assert secret.hex() not in found


# Lists


async def test_sessions_are_those_that_match(tmp_path: Path) -> None:
    async with at_work(tmp_path) as it:
        await it.accept(push(1, preferred=WIRELINE))
        await eventually(lambda: not it.daemon.pending)
        between = (await it.call("Status"))["now"]
        await it.accept(push(2, preferred=NOWHERE), push(3, server_id=OTHER_ID, preferred=NOWHERE))
        await it.accept(push(4, server_id=OTHER_ID, preferred=WIRELINE))
        await eventually(lambda: it.daemon.pending == 2)

        async def numbers(**wanted: object) -> list[int]:
            return [session["notification_id"] for session in await it.sessions(**wanted)]

        assert await numbers() == [2, 3]
        assert await numbers(server=OTHER_ID) == [3]
        assert await numbers(states=["done"]) == [1, 4]
        assert await numbers(states=["waiting", "done"], server=OTHER_ID) == [3, 4]
        assert await numbers(since=0) == [1, 2, 3, 4]
        assert await numbers(since=between) == [2, 3, 4]
        assert await numbers(since=between, states=["done"]) == [4]
        assert await numbers(session=1) == [1]
        assert await numbers(session=2) == [2]
        assert await numbers(server="stranger.example") == []
        assert await it.problems("Sessions", session=99) == ("NoSuchSession", {"session": 99})
        (waiting,) = await it.sessions(session=2)
        assert (waiting["state"], waiting["preferred"], waiting["signed"]) == ("waiting", ["mobile"], True)
        assert "no mobile interface" in waiting["why"]
        assert waiting["expires"] > between


async def test_discards_have_the_octets_of_the_last_datagrams(tmp_path: Path) -> None:
    async with at_work(tmp_path) as it:
        forged = push(3, secret=OTHER_SECRET)
        it.send(forged, b"junk")
        await eventually(lambda: it.daemon.counters["received"] == 2)
        first, second = [reply["discard"] for reply in await it.stream("Discards")]
        assert (first["reason"], first["octets"], first["server"]) == ("digest-mismatch", forged.hex(), SERVER_ID)
        assert (second["reason"], second["octets"], second["count"]) == ("not-a-push", b"junk".hex(), 1)
        assert len(await it.stream("Discards", reason="not-a-push")) == 1
        assert await it.stream("Discards", reason="stale") == []


async def test_follower_gets_records_of_the_log(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(tmp_path) as it, connected(it.path) as client:
        client.call("io.dmnotid.Follow", {"server": SERVER_ID}, more=True)
        # Answered after the other request, which was sent before.
        await it.call("Status")
        await it.accept(push(1, server_id=OTHER_ID, preferred=NOWHERE), push(2, preferred=NOWHERE))
        event = (await client.reply())["parameters"]["event"]
        (_, accepted) = logged.of("notification accepted")
        assert {**event, "time": accepted["time"]} == {**accepted, "at": event["at"], "sentence": event["sentence"]}
        assert event["at"] <= (await it.call("Status"))["now"]


# Changes


async def test_retry_starts_a_paused_session_now(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "sys.exit(1)")
    async with at_work(tmp_path, *recorder.command, retry={"first": "1h", "longest": "1h"}) as it:
        await it.accept(push(1, preferred=WIRELINE), push(2, server_id=OTHER_ID, preferred=WIRELINE))
        await eventually(lambda: len(logged.of("session try failed")) == 2)
        assert {session["state"] for session in await it.sessions()} == {"paused"}
        recorder.behave("")
        assert await it.call("Retry", session=1) == {"sessions": [1]}
        await eventually(lambda: it.daemon.pending == 1)
        assert await it.call("Retry", server=SERVER_ID) == {"sessions": []}
        assert await it.call("Retry", all=True) == {"sessions": [2]}
        await eventually(lambda: not it.daemon.pending)
        assert await it.problems("Retry", session=9) == ("NoSuchSession", {"session": 9})
        assert await it.problems("Retry", session=1) == ("NotPending", {"session": 1, "state": "done"})


async def test_retry_opens_a_failed_session_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "sys.exit(1)")
    async with at_work(tmp_path, *recorder.command, retry={"attempts": 1}) as it:
        await it.accept(push(1, preferred=WIRELINE))
        await eventually(lambda: not it.daemon.pending)
        recorder.behave("")
        assert await it.call("Retry", session=1) == {"sessions": [1]}
        await eventually(lambda: not it.daemon.pending)
        (session,) = await it.sessions(session=1)
        assert (session["state"], session["attempts"]) == ("done", 1)


async def test_cancel_closes_a_session_for_good(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(tmp_path) as it:
        await it.accept(push(1, preferred=NOWHERE))
        assert await it.call("Cancel", session=1) == {"was": "waiting"}
        assert await it.problems("Cancel", session=1) == ("NotPending", {"session": 1, "state": "cancelled"})
        assert await it.problems("Cancel", session=9) == ("NoSuchSession", {"session": 9})
        assert [session["state"] for session in await it.sessions(session=1)] == ["cancelled"]
        assert (await it.call("Status"))["counts"]["closed"]["cancelled"] == 1
        assert str(os.getpid()) in logged.of("session cancelled")[0]["by"]


async def test_cancel_ends_a_running_hook(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "import time; time.sleep(600)")
    async with at_work(tmp_path, *recorder.command) as it:
        await it.accept(push(1, preferred=WIRELINE))
        await eventually(lambda: recorder.names)
        (session,) = await it.sessions()
        assert (session["state"], session["pid"]) == ("running", recorder.runs[0]["pid"])
        assert await it.call("Cancel", session=1) == {"was": "running"}
        await eventually(lambda: not it.daemon.pending)


# Reload


async def test_reload_returns_once_the_configuration_is_in_force(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(tmp_path) as it:
        assert await it.call("Reload") == {"warnings": []}
        write_config(tmp_path, servers=SERVERS[:1], state=str(tmp_path / "other"), control=False)
        warnings = (await it.call("Reload"))["warnings"]
        assert [server.id for server in it.daemon.config.servers] == [SERVER_ID]
        place, used = tmp_path / "dmnotid.yaml", {"state": tmp_path / "state", "control": it.path}
        assert [(warning["place"], warning["message"].partition("; ")[2]) for warning in warnings] == [
            (f"{place}: {key}", f"{path} stays in use") for key, path in used.items()
        ]
        assert f"pid {os.getpid()}" in logged.of("configuration reloaded")[-1]["by"]


async def test_reload_is_refused_with_every_problem_and_changes_nothing(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(tmp_path) as it:
        before = it.daemon.config
        write_config(tmp_path, servers=[{"id": "x"}, {"unknown": 1}], listen="nonsense")
        error, facts = await it.problems("Reload")
        assert error == "Refused"
        assert len(facts["problems"]) == len(logged.of("configuration problem")) == 5
        assert facts["problems"][-1]["place"].endswith("listen") or facts["problems"][0]["place"].endswith("listen")
        assert it.daemon.config is before
        assert f"pid {os.getpid()}" in logged.of("reload refused")[0]["by"]


async def test_reload_that_cannot_open_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        async with at_work(tmp_path) as it:
            write_config(tmp_path, listen=[f"127.0.0.1:{taken.getsockname()[1]}"], control={"socket": str(it.path)})
            error, facts = await it.problems("Reload")
            assert error == "Refused"
            assert "listen: 127.0.0.1" in facts["problems"][0]["message"]


async def test_reloads_at_once_are_served_one_after_the_other(tmp_path: Path, logged: LogLines) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        async with at_work(tmp_path, manager=Manager({"NOTIFY_SOCKET": str(tmp_path / "notify")})) as it:
            await asyncio.gather(*(it.call("Reload") for _ in range(4)))
        assert len(logged.of("configuration reloaded")) == 4
        notices: list[str] = []
        while not notices or notices[-1] != "STOPPING=1":
            notices.append(manager.recv(4_096).decode().partition("\n")[0])
    # The service manager gets one notice at a time.
    assert [it for it in notices if "STATUS" not in it] == ["READY=1", *["RELOADING=1", "READY=1"] * 4, "STOPPING=1"]


# Hostile clients


async def test_hostile_clients_keep_no_notification_waiting(tmp_path: Path, logged: LogLines) -> None:
    async with at_work(tmp_path, sessions={"max_pending": 65_536}) as it, AsyncExitStack() as stack:
        await it.accept(*(push(number, preferred=NOWHERE) for number in range(500)))
        # Of eight clients, some never read, one has sent half a request, and one sends what is not JSON.
        silent = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(6)]
        for client in silent:
            client.connect(str(it.path))
            client.send(b'{"method": "io.dmnotid.Sessions", "more": true}\0' * 100)
        half = await stack.enter_async_context(connected(it.path))
        half.send(b'{"method": "io.dm')
        noise = await stack.enter_async_context(connected(it.path))
        noise.send(b"x" * 60_000 + b"\0")
        assert await noise.ended() == b""
        await it.accept(push(600, preferred=WIRELINE))
        await eventually(lambda: logged.of("session done"))
        assert "a request is not JSON" in [line["problem"] for line in logged.of("control client refused")]


# Start and stop


async def test_socket_of_a_killed_daemon_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control"
    file = write_config(tmp_path, control={"socket": str(path)})
    with running(tmp_path) as run:
        service = run(file)
        service.wait("daemon ready")
        service.process.kill()
        service.process.wait()
        assert path.is_socket()
        with pytest.raises(Unreachable) as caught:
            call(str(path), "Status")
        assert caught.value.why == "absent"
        service = run(file)
        service.wait("daemon ready")
        assert call(str(path), "Status")["pid"] == service.process.pid
        assert service.stop() == 0
    assert not path.exists()


async def test_path_that_is_not_a_socket_keeps_the_daemon_from_starting(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("notes")
    file = write_config(tmp_path, control={"socket": str(tmp_path / "control")})
    with pytest.raises(EndpointError, match="is not a socket"):
        await Daemon(load_config(file, {})).run()
    assert (tmp_path / "control").read_text() == "notes"


async def test_status_is_answered_while_the_daemon_stops_and_changes_are_not(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, f"import time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)")
    async with at_work(tmp_path, *recorder.command) as it:
        await it.accept(push(1, preferred=WIRELINE))
        await eventually(lambda: recorder.names)
        it.daemon.stop()
        await eventually(lambda: not list(it.daemon.endpoints))
        status = await it.call("Status")
        assert status["stopping"]
        assert status["counts"]["states"]["running"] == 1
        assert await it.problems("Reload") == (
            "Refused",
            {"problems": [{"place": "", "message": "the daemon is stopping"}]},
        )
        (tmp_path / "go").touch()
        await eventually(lambda: not it.path.exists())
