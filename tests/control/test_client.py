"""The client of the commands: answers, errors, and the reasons why there is no answer."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dmnotid.control.client import Failed, Unreachable, call, stream
from dmnotid.control.varlink import MAX_CONNECTIONS
from tests import peers
from tests.control.plain import Plain, serving
from tests.support import DEADLINE, IS_ROOT, without_privileges


@contextmanager
def served(path: Path) -> Iterator[Plain]:
    """Serve plain operations in a thread of their own."""
    ready, found, loop = threading.Event(), [], asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(path) as operations:
            found.append(operations)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        assert ready.wait(DEADLINE)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_call_returns_the_one_reply(tmp_path: Path) -> None:
    with served(tmp_path / "control"):
        assert call(str(tmp_path / "control"), "Cancel", {"session": 8}) == {"was": "waiting"}


def test_stream_yields_every_reply_and_no_empty_one(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with served(tmp_path / "control") as operations:
        operations.listed = [{"session": number, "why": "x" * 300} for number in range(10_000)]
        found = [reply["session"]["session"] for reply in stream(path, "Sessions", {"states": ["done"]})]
        assert found == list(range(10_000))
        assert list(stream(path, "Discards", {"reason": "stale"})) == []


def test_error_has_its_name_and_facts(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with served(tmp_path / "control"):
        with pytest.raises(Failed, match=r"^NotPending: session 7, state done$") as caught:
            call(path, "Cancel", {"session": 7})
        assert (caught.value.error, caught.value.parameters) == ("NotPending", {"session": 7, "state": "done"})
        with pytest.raises(Failed, match=r"^org\.varlink\.service\.MethodNotFound: "):
            call(path, "Nothing")


def why(path: Path, *, patience: float = 30) -> str:
    with pytest.raises(Unreachable) as caught:
        call(str(path), "Status", patience=patience)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.why


def test_no_socket_and_a_stale_one_are_absent(tmp_path: Path) -> None:
    assert why(tmp_path / "control") == "absent"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control"))
    assert why(tmp_path / "control") == "absent"


def test_daemon_that_accepts_no_connection_is_silent(tmp_path: Path) -> None:
    with peers.listening(tmp_path / "control", backlog=0):
        assert why(tmp_path / "control", patience=0.05) == "silent"
        # This one does not even fit in the queue of connections.
        assert why(tmp_path / "control", patience=0.05) == "silent"


def test_further_client_gets_the_error_whether_or_not_it_could_send(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with served(tmp_path / "control"), ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        # More than the buffer of a socket: the client is still sending it when the connection is closed.
        for request in ({}, {"states": ["x" * 1_000_000]}):
            with pytest.raises(Failed) as caught:
                call(path, "Sessions", request)
            assert (caught.value.error, caught.value.parameters) == ("TooManyClients", {"most": MAX_CONNECTIONS})


@pytest.mark.parametrize(
    "octets",
    [
        *(b'{"parameters":{"version":1', b"SSH-2.0\0", b"\xff\0", b"[" * 9_000 + b"\0"),
        *(b"[]\0", b"7\0", b'{"parameters":[1]}\0', b'{"parameters":7}\0', b'{"error":7}\0'),
    ],
    ids=lambda octets: repr(octets[:26]),
)
def test_answer_that_is_cut_short_or_not_of_varlink_is_none(tmp_path: Path, octets: bytes) -> None:
    with peers.served(tmp_path / "control", peers.answering(octets)):
        assert why(tmp_path / "control") == "closed"


@pytest.mark.root
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to be another user")
def test_user_outside_the_group_is_forbidden(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with served(path):
        # This process keeps its groups, root's among them.
        os.chown(path, -1, 54_321)
        with without_privileges(path):
            assert why(path) == "forbidden"


def test_client_imports_neither_a_loop_nor_the_rest_of_the_program() -> None:
    script = "import __future__, sys, socket, json, typing; before = set(sys.modules); import dmnotid.control.client; "
    script += "print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "['dmnotid', 'dmnotid.control', 'dmnotid.control.client']"
