"""The control socket over real connections: hostile clients are bounded, logged once, and hold up no other."""

import asyncio
import json
import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dmnotid.control.interface import answer
from dmnotid.control.varlink import MAX_CONNECTIONS, MAX_REQUEST_OCTETS, SLICE, Server
from dmnotid.errors import EndpointError
from tests.control.plain import Plain, connected, serving
from tests.support import DEADLINE, IS_ROOT, LogLines, descriptors, eventually, without_privileges

STATUS = "io.dmnotid.Status"
INFO = "org.varlink.service.GetInfo"


def request(method: str = INFO, **more: object) -> bytes:
    return json.dumps({"method": method, **more}).encode() + b"\0"


def refused(logged: LogLines) -> list[str]:
    return [line["problem"] for line in logged.of("control client refused")]


async def works(path: Path) -> bool:
    """Whether a further client gets an answer."""
    async with connected(path) as client:
        client.call(INFO)
        return bool((await client.reply())["parameters"]["product"] == "dmnotid")


# Requests and replies


async def test_requests_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path / "control"), connected(tmp_path / "control") as client:
        client.call(STATUS)
        client.call("io.dmnotid.Nothing")
        client.send(request())
        assert (await client.reply())["parameters"]["version"] == 1
        assert (await client.reply())["error"] == "org.varlink.service.MethodNotFound"
        assert "product" in (await client.reply())["parameters"]


async def test_request_in_single_octets_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path / "control"), connected(tmp_path / "control") as client:
        for octet in request():
            client.send(bytes([octet]))
            await asyncio.sleep(0)
        assert "parameters" in await client.reply()


async def test_oneway_request_gets_no_reply(tmp_path: Path) -> None:
    async with serving(tmp_path / "control") as operations, connected(tmp_path / "control") as client:
        client.call("io.dmnotid.Retry", {"all": True}, oneway=True)
        client.call("io.dmnotid.Nothing", oneway=True)
        client.call(INFO)
        assert "product" in (await client.reply())["parameters"]
        assert [call[:2] for call in operations.calls] == [(None, None)]


async def test_client_that_ends_its_side_gets_its_whole_answer(tmp_path: Path) -> None:
    async with serving(tmp_path / "control") as operations, connected(tmp_path / "control") as client:
        operations.listed = [{"session": number, "why": "x" * 100} for number in range(5_000)]
        client.call("io.dmnotid.Sessions", more=True)
        client.writer.write_eof()
        *replies, last = (await client.ended()).split(b"\0")
        assert (len(replies), last) == (5_000, b"")


class Turns:
    """Counts the iterations of the loop from now on."""

    def __init__(self) -> None:
        self.count = 0
        self._take()

    def _take(self) -> None:
        self.count += 1
        asyncio.get_running_loop().call_soon(self._take)


async def test_list_of_65536_leaves_the_loop_its_turns(tmp_path: Path) -> None:
    async with serving(tmp_path / "control") as operations, connected(tmp_path / "control") as client:
        operations.listed = ({"session": number} if number % 1_000 else None for number in range(65_536))
        client.call("io.dmnotid.Sessions", more=True)
        turns = Turns()
        client.writer.write_eof()
        found = await client.ended()
    assert found.count(b'"continues":true') == 65_536 - 66 - 1
    assert turns.count >= 65_536 // SLICE


async def test_requests_that_arrive_at_once_leave_the_loop_its_turns(tmp_path: Path) -> None:
    async with serving(tmp_path / "control"), connected(tmp_path / "control") as client:
        turns = Turns()
        client.send(request(STATUS, oneway=True) * 1_000)
        client.writer.write_eof()
        await client.ended()
    assert turns.count >= 1_000


# Hostile clients


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"x" * (MAX_REQUEST_OCTETS + 1), f"a request has more than {MAX_REQUEST_OCTETS} octets"),
        (b"x" * (MAX_REQUEST_OCTETS + 1) + b"\0", f"a request has more than {MAX_REQUEST_OCTETS} octets"),
        (b"x" * MAX_REQUEST_OCTETS + b"\0", "a request is not JSON"),
        (b"\0", "a request is not JSON"),
        (b"\xff\0", "a request is not JSON"),
        (b"[" * 60_000 + b"\0", "a request is not JSON"),
        (b"1" * 60_000 + b"\0", "a request is not JSON"),
        (b"[]\0", "a request is not a Varlink call"),
        (b"{}\0", "a request is not a Varlink call"),
        (b'{"method": 1}\0', "a request is not a Varlink call"),
        (b'{"method": "a.b", "parameters": []}\0', "a request is not a Varlink call"),
        (b'{"method": "a.b", "more": 1}\0', "a request is not a Varlink call"),
        (b'{"method": "a.b", "upgrade": true}\0', "a request is not a Varlink call"),
    ],
    ids=lambda value: f"{len(value)}-{bytes(value[:12])!r}" if isinstance(value, bytes) else "",
)
async def test_client_that_sends_no_request_is_cut_off_and_logged_once(
    tmp_path: Path, logged: LogLines, octets: bytes, problem: str
) -> None:
    async with serving(tmp_path / "control"):
        for _ in range(3):
            async with connected(tmp_path / "control") as client:
                client.send(octets)
                assert await client.ended() == b""
        assert await works(tmp_path / "control")
    assert refused(logged) == [problem]
    assert logged.of("control client refused")[0]["pid"] == os.getpid()


async def test_request_of_65536_octets_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path / "control"), connected(tmp_path / "control") as client:
        client.send(request()[:-1].ljust(MAX_REQUEST_OCTETS) + b"\0")
        assert "product" in (await client.reply())["parameters"]


@pytest.mark.parametrize("octets", [b"", b'{"method": "org.var'])
async def test_client_without_a_complete_request_is_cut_off(tmp_path: Path, logged: LogLines, octets: bytes) -> None:
    async with serving(tmp_path / "control", patience=0.05):
        async with connected(tmp_path / "control") as client:
            client.send(octets)
            assert await client.ended() == b""
        assert await works(tmp_path / "control")
    assert refused(logged) == ["no request arrived within 0.05 s"]


async def test_connection_without_a_free_descriptor_waits_and_is_logged_once(tmp_path: Path, logged: LogLines) -> None:
    async with serving(tmp_path / "control"):
        with socket.socket(socket.AF_UNIX) as client:
            lowest = os.dup(client.fileno())
            os.close(lowest)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                client.connect(str(tmp_path / "control"))
                client.send(request())
                await eventually(logged.all)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            client.settimeout(0)
            async with asyncio.timeout(DEADLINE):
                assert b"product" in await asyncio.get_running_loop().sock_recv(client, 65_536)
    assert refused(logged) == ["a connection cannot be accepted: Too many open files"]
    assert len(logged.all()) == 1


async def test_client_that_closes_within_its_request_is_logged(tmp_path: Path, logged: LogLines) -> None:
    async with serving(tmp_path / "control"), connected(tmp_path / "control") as client:
        client.send(b'{"method":')
        client.writer.write_eof()
        assert await client.ended() == b""
    assert refused(logged) == ["the connection ended within a request"]


async def test_client_that_closes_within_its_answer_harms_no_other(tmp_path: Path, logged: LogLines) -> None:
    made = 0

    def sessions() -> Iterator[dict[str, Any]]:
        nonlocal made
        for made in range(100_000):
            yield {"session": made, "why": "x" * 1_000}

    async with serving(tmp_path / "control") as operations:
        operations.listed = sessions()
        async with connected(tmp_path / "control") as client:
            client.call("io.dmnotid.Sessions", more=True)
            await client.reply()
        assert await works(tmp_path / "control")
        # No more is made for a client that is gone.
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
    assert made < 99_999
    assert refused(logged) == []
    assert not logged.of("internal error")


async def test_client_that_never_reads_is_cut_off(tmp_path: Path, logged: LogLines) -> None:
    async with serving(tmp_path / "control", patience=0.1) as operations:
        operations.listed = [{"session": number, "why": "x" * 1_000} for number in range(5_000)]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "control"))
            client.send(request("io.dmnotid.Sessions", more=True))
            await eventually(lambda: refused(logged))
            assert await works(tmp_path / "control")
    assert refused(logged) == ["replies were not read within 0.1 s"]


async def test_ninth_client_is_refused_until_another_one_leaves(tmp_path: Path, logged: LogLines) -> None:
    path = tmp_path / "control"

    async def error() -> object:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.settimeout(0)
            # The server may have closed the connection already.
            with suppress(BrokenPipeError):
                client.send(request())
            async with asyncio.timeout(DEADLINE):
                reply = await asyncio.get_running_loop().sock_recv(client, 65_536)
            return json.loads(reply[:-1]).get("error")

    async with serving(path), AsyncExitStack() as stack:
        async with connected(path) as first:
            clients = [first, *[await stack.enter_async_context(connected(path)) for _ in range(MAX_CONNECTIONS - 1)]]
            for client in clients:
                client.call(INFO)
                await client.reply()
            assert await error() == "io.dmnotid.TooManyClients"
            assert await error() == "io.dmnotid.TooManyClients"
            assert refused(logged) == ["8 clients are connected, the maximum"]
            # The others are served as before.
            first.call(INFO)
            assert "parameters" in await first.reply()
        async with asyncio.timeout(DEADLINE):
            while await error():
                pass


@pytest.mark.root
async def test_root_is_served_while_another_user_has_all_connections(tmp_path: Path, logged: LogLines) -> None:
    path = tmp_path / "control"
    async with serving(path):
        with ExitStack() as stack:
            # They are accepted only afterwards, by a server that is root again.
            with without_privileges(path):
                for _ in range(MAX_CONNECTIONS + 1):
                    stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
            await eventually(lambda: refused(logged) == ["8 clients are connected, the maximum"])
            assert await works(path)


async def test_bug_in_an_answer_is_logged_and_ends_that_connection_alone(tmp_path: Path, logged: LogLines) -> None:
    async with serving(tmp_path / "control") as operations:
        operations.listed = [{"session": object()}, None]
        async with connected(tmp_path / "control") as client:
            client.call("io.dmnotid.Sessions", more=True)
            assert await client.ended() == b""
        assert await works(tmp_path / "control")
    (line,) = logged.of("internal error")
    assert "object is not JSON serializable" in line["exception"]


# The socket


async def test_socket_is_for_its_owner_and_group_alone(tmp_path: Path) -> None:
    former = os.umask(0)
    try:
        async with serving(tmp_path / "control"):
            assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o660
    finally:
        os.umask(former)
    assert not (tmp_path / "control").exists()


async def test_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control"))
        stale.listen()
    async with serving(tmp_path / "control"):
        assert await works(tmp_path / "control")


async def test_socket_of_a_running_process_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "control"):
        with pytest.raises(EndpointError, match="another process listens there"):
            Server(tmp_path / "control", partial(answer, Plain()))
        assert await works(tmp_path / "control")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("notes", "/notes: exists and is not a socket; remove it"),
        ("link", "/link: exists and is not a socket; remove it"),
        ("none/control", "/none/control: No such file or directory"),
        ("x" * 108, "/x{108}: AF_UNIX path too long"),
    ],
)
def test_path_that_cannot_be_bound_is_named_and_kept(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "notes").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(EndpointError, match=rf"control\.socket: .*{problem}"):
        Server(tmp_path / name, partial(answer, Plain()))
    assert (tmp_path / "notes").read_text() == "kept"
    assert (tmp_path / "link").is_symlink()


def test_path_in_a_directory_that_cannot_be_entered_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with (
        without_privileges(tmp_path / "closed") if IS_ROOT else nullcontext(),
        pytest.raises(EndpointError, match=r"^control\.socket: .*/closed/control: Permission denied$"),
    ):
        Server(tmp_path / "closed" / "control", partial(answer, Plain()))


async def test_stop_ends_connections_and_leaves_nothing_open(tmp_path: Path) -> None:
    async with serving(tmp_path / "warm up"):
        # libuv opens a descriptor for itself with the first stream.
        _, first = await asyncio.open_unix_connection(tmp_path / "warm up")
        first.close()
        await first.wait_closed()
    before = descriptors()
    reader, writer = None, None
    async with serving(tmp_path / "control"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control")
        writer.write(request("io.dmnotid.Follow", more=True))
        idle = await asyncio.open_unix_connection(tmp_path / "control")
        await works(tmp_path / "control")
    assert await reader.read() == await idle[0].read() == b""
    for end in (writer, idle[1]):
        end.close()
        await end.wait_closed()
    await eventually(lambda: descriptors() == before)


def test_socket_is_removed_if_it_was_never_opened(tmp_path: Path) -> None:
    server = Server(tmp_path / "control", partial(answer, Plain()))
    assert (tmp_path / "control").is_socket()
    server.close()
    server.close()
    assert not (tmp_path / "control").exists()
