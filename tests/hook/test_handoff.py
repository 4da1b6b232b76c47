"""A session handed over to a socket: real listeners that answer in every way, and some that misbehave."""

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.config.values import HookConfig
from dmnotid.hook.facts import build_input, session_facts
from dmnotid.hook.handoff import MAX_ANSWER_OCTETS, Answer
from dmnotid.hook.output import LEFT_OUT, LINE_ENDS
from dmnotid.hook.runner import Hook
from dmnotid.policy.sessions import Outcome, Result, SessionStart
from tests.hook import runs
from tests.hook.runs import LARGE, RICH, children, start
from tests.peers import answering, listening, read_all, served
from tests.support import (
    DEADLINE,
    TIME_OUTS,
    LogLines,
    as_root,
    descriptors,
    eventually,
    without_privileges,
    write_script,
)

DONE = Outcome(Result.DONE, "exit 0")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the listener's socket; it has room in an address."""
    return tmp_path / "session"


async def run(path: Path, try_: SessionStart | None = None, **more: Any) -> Outcome:  # noqa: ANN401
    """Run a hook to its end; no callback of the loop may raise."""
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with asyncio.timeout(DEADLINE):
        config = HookConfig((), **{"timeout": 60.0, "socket": path, **more})
        outcome = await Hook(config).run(try_ or start())
    assert problems == []
    return outcome


def output(logged: LogLines) -> list[str]:
    assert {line["stream"] for line in logged.of("hook output")} <= {"socket"}
    return runs.output(logged, "socket")


# Request and answer


async def test_listener_reads_the_same_object_as_a_command_and_then_the_end(path: Path) -> None:
    read: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        read.append(read_all(connection))
        connection.sendall(b'{"exit": 0}\n')

    with served(path, serve):
        for try_ in (start(**RICH), start(**LARGE)):
            assert await run(path, try_) == DONE
            assert read.pop() == build_input(session_facts(try_)).encode()


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b'{"exit": 0}\n', DONE),
        (b'{"exit": 0}', DONE),
        (b'{"exit": 0}\n\n\n', DONE),
        (b'\n\n {"exit":0}\r\n', DONE),
        (b'{"exit": 0}\n \t\n' + b" " * 5_000, DONE),
        (b" " * (MAX_ANSWER_OCTETS - 11) + b'{"exit": 0}', DONE),
        (b'{"exit": 0}' + b" " * (MAX_ANSWER_OCTETS - 11) + b"\n", DONE),
        (b'{"more": [1, {"exit": 3}], "exit": 0, "text": "\xc3\xa4"}\n', DONE),
        (b'{"exit": 78}\n', Outcome(Result.REFUSED, "exit 78")),
        (b'{"exit": 1}\n', Outcome(Result.FAILED, "exit 1")),
        (b'{"exit": 255}\n', Outcome(Result.FAILED, "exit 255")),
        (b'{"exit": 0}\n{"exit": 3}\n', Outcome(Result.FAILED, "exit 3", '{"exit": 0}')),
    ],
)
async def test_last_line_is_the_exit_status(path: Path, answer: bytes, outcome: Outcome) -> None:
    with served(path, answering(answer)):
        assert await run(path) == outcome


NO_ANSWER = 'ended without {"exit": N}: '


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "nothing was received"),
        (b" \r\n\t\n" + b" " * 5_000, "nothing was received"),
        (b"done\n", "the last line is 'done'"),
        (b'{"exit": 0}\ndone\n', "the last line is 'done'"),
        (b'{"exit": 0}\n {', "the last line is ' {'"),
        (b'{"exit": 0}{"exit": 0}\n', """the last line is '{"exit": 0}{"exit": 0}'"""),
        (b'{"exit": true}\n', """the last line is '{"exit": true}'"""),
        (b'{"exit": "0"}\n', """the last line is '{"exit": "0"}'"""),
        (b'{"exit": 0.0}\n', """the last line is '{"exit": 0.0}'"""),
        (b'{"exit": -1}\n', """the last line is '{"exit": -1}'"""),
        (b'{"exit": 256}\n', """the last line is '{"exit": 256}'"""),
        (b'{"Exit": 0}\n', """the last line is '{"Exit": 0}'"""),
        (b"0\n", "the last line is '0'"),
        (b'["exit", 0]\n', """the last line is '["exit", 0]'"""),
        (b'{"exit": 0, "a": "\xff"}\n', """the last line is '{"exit": 0, "a": "\\\\xff"}'"""),
        (b'{"exit"\x1b[31m\0', "the last line is '{\"exit\"\\x1b[31m\\x00'"),
        (b'{"a":' + b"[" * 1_000, 'the last line is \'{"a":' + "[" * 59 + "…'"),
        (b" " * 1_014 + b'{"exit": 0}', "the last line is '" + " " * 64 + "…'"),
        (b'{"exit": 0}' + b" " * 1_014, 'the last line is \'{"exit": 0}' + " " * 53 + "…'"),
    ],
)
async def test_try_without_an_exit_status_failed(path: Path, answer: bytes, problem: str) -> None:
    with served(path, answering(answer)):
        assert await run(path) == Outcome(Result.FAILED, NO_ANSWER + problem)


# Output


async def test_lines_before_the_last_are_output(path: Path, logged: LogLines) -> None:
    answer = b'one\n\n{"event": "two"}\n{"exit": 9}\n\n  three\n\x1b[31m\0\xff\n{"exit": 0}\n'
    with served(path, answering(answer)):
        assert await run(path) == DONE
    assert output(logged) == ["one", '{"event": "two"}', '{"exit": 9}', "  three", "\x1b[31m\0\\xff"]
    assert {line["session"] for line in logged.of("hook output")} == {12}


@pytest.mark.parametrize("last", [b"no answer", b"no answer\n", b'{"exit": 999}', b'{"exit": 999}\n'])
async def test_last_line_that_is_not_an_answer_is_output(path: Path, logged: LogLines, last: bytes) -> None:
    with served(path, answering(b"one\n" + last)):
        assert (await run(path)).result is Result.FAILED
    assert output(logged) == ["one", last.decode().strip()]


async def test_output_is_logged_while_the_session_runs(path: Path, logged: LogLines) -> None:
    go = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b'started\n{"event": "begun"}\n')
        go.wait(DEADLINE)
        connection.sendall(b'ended\n{"exit": 0}\n')

    with served(path, serve):
        task = asyncio.create_task(run(path))
        await eventually(lambda: output(logged) == ["started", '{"event": "begun"}'])
        go.set()
        assert await task == DONE
    assert output(logged) == ["started", '{"event": "begun"}', "ended"]


async def test_long_line_is_output_and_cut(path: Path, logged: LogLines) -> None:
    answer = b"x" * 1_024 + b"\n" + b"y" * 5_000 + b"\n" + b'{"exit": 0, "a": "' + b"z" * 5_000 + b'"}\n{"exit": 3}\n'
    with served(path, answering(answer)):
        # The last line is shortened for the outcome.
        assert await run(path) == Outcome(Result.FAILED, "exit 3", '{"exit": 0, "a": "' + 62 * "z" + "…")
    lines = logged.of("hook output")
    assert [line["line"] for line in lines] == ["x" * 1_024, "y" * 1_024, ('{"exit": 0, "a": "' + "z" * 5_000)[:1_024]]
    assert [line.get("cut") for line in lines] == [None, True, True]


async def test_carriage_return_ends_a_line_of_an_answer(path: Path, logged: LogLines) -> None:
    states = [f"{percent}% [=====>            ]" for percent in range(100)]
    text = "\r".join([*states, "failed: no space left on device"]) + '\r\n{"exit": 3}\r\n'
    with served(path, answering(text.encode())):
        assert await run(path) == Outcome(Result.FAILED, "exit 3", "failed: no space left on device")
    assert output(logged) == [*states, "failed: no space left on device"]


async def test_answer_is_found_after_more_output_than_is_logged(path: Path, logged: LogLines) -> None:
    with served(path, answering(b"123456789\n" * 20_000 + b'{"exit": 78}\n')):
        assert await run(path) == Outcome(Result.REFUSED, "exit 78", "123456789")
    assert output(logged) == [*(384 * ["123456789"]), LEFT_OUT, *(128 * ["123456789"])]


@pytest.mark.parametrize(("piece", "times"), [(b"x" * 65_536, 64), (b'{"exit": 0}\n' * 500, 8), (b"\n" * 8_192, 8)])
async def test_flood_is_neither_held_in_memory_nor_held_up(
    path: Path, logged: LogLines, piece: bytes, times: int
) -> None:
    def serve(connection: socket.socket) -> None:
        for _ in range(times):
            connection.sendall(piece)
        connection.sendall(b'\n{"exit": 0}')

    with served(path, serve):
        tracemalloc.start()
        try:
            assert await run(path) == DONE
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
    assert len(logged.getvalue()) < 2_000_000


def answered(pieces: list[bytes]) -> tuple[int | None, list[bytes], str]:
    """Return the exit status, the lines of output and the problem of an answer that is read in pieces."""
    passed_on = bytearray()
    answer = Answer(passed_on.extend)
    for piece in pieces:
        answer.feed(piece)
    answer.end()
    return answer.exit_code, [line for line in bytes(passed_on).split(b"\n") if line], answer.problem


def expected(octets: bytes) -> tuple[int | None, list[bytes]]:
    """Return the exit status and the lines of output of a whole answer."""
    # A line is cut as the log cuts it; one octet more shows that it was longer.
    lines = [line[: MAX_ANSWER_OCTETS + 1] for line in LINE_ENDS.split(octets)]
    lines = [line for line in lines if line.strip()]
    try:
        code = json.loads(lines[-1].decode())["exit"]
    except (IndexError, ValueError, KeyError, TypeError, RecursionError):
        return None, lines
    if type(code) is not int or not 0 <= code <= 255 or len(lines[-1]) > MAX_ANSWER_OCTETS:
        return None, lines
    return code, lines[:-1]


SCRAPS = st.sampled_from(
    [
        *(b"\n", b"\n\n", b'{"exit": 0}', b'{"exit": 7, "a": 1}', b'{"exit"', b": 1}", b"x", b" ", b" " * 60, b"{"),
        *(b"y" * 1_024, b" " * 1_013, b'{"exit": 256}', b"[" * 1_000, "\u2603".encode(), b"\r", b"\xff"),
    ]
)


@given(st.lists(SCRAPS, max_size=12), st.integers(1, 50))
def test_answer_does_not_depend_on_how_it_is_read(scraps: list[bytes], size: int) -> None:
    octets = b"".join(scraps)
    code, lines = expected(octets)
    for step in (size, 4_096):
        found, passed_on, problem = answered([octets[at : at + step] for at in range(0, len(octets), step)])
        assert (found, passed_on) == (code, lines)
        assert problem.isprintable()


@given(st.binary(max_size=300))
def test_any_octets_are_an_answer_or_output(octets: bytes) -> None:
    found, passed_on, _ = answered([octets])
    assert (found, passed_on) == expected(octets)


# Peers that misbehave


@pytest.mark.parametrize("more", [{}, LARGE], ids=["small", "large"])
async def test_peer_that_answers_and_reads_nothing(path: Path, more: dict[str, Any]) -> None:
    """A connection that is closed with unread input ends like a reset."""
    with served(path, lambda connection: connection.sendall(b'{"exit": 0}\n')):
        assert await run(path, start(**more)) == DONE


async def test_peer_that_reads_no_further_and_then_answers(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(10)
        connection.shutdown(socket.SHUT_RD)
        connection.sendall(b'{"exit": 0}\n')

    with served(path, serve):
        assert await run(path, start(**LARGE)) == DONE


async def test_peer_that_answers_before_it_reads(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b'early\n{"exit": 0}\n')
        read_all(connection)

    with served(path, serve):
        assert await run(path, start(**LARGE)) == DONE


@pytest.mark.parametrize("answer", [b"", b"half of an ans", b'{"exit": 0}\nsorry\n'])
async def test_peer_that_resets_the_connection(path: Path, logged: LogLines, answer: bytes) -> None:
    with served(path, lambda connection: connection.sendall(answer)):
        outcome = await run(path, start(**LARGE))
    assert outcome.result is Result.FAILED
    assert outcome.detail.startswith(NO_ANSWER)
    assert "".join(output(logged)).endswith(answer.decode().strip().rpartition("\n")[2])


async def test_peer_that_never_reads_times_out(path: Path) -> None:
    with listening(path):
        assert await run(path, start(**LARGE), timeout=0.3) == Outcome(Result.FAILED, "timed out after 0.3 s")


FLOOD = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("listening", flush=True)
    connection, _ = listener.accept()
    while True:
        connection.sendall(b'{"exit": 0}\\nmore\\n' * 1_000)
"""


@contextmanager
def listening_process(script: str, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Start a listener in a process of its own and wait until it listens."""
    argv = [sys.executable, "-c", script, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


async def test_peer_that_writes_without_end_leaves_the_loop_to_others(path: Path, logged: LogLines) -> None:
    with listening_process(FLOOD, str(path)) as process:
        task = asyncio.create_task(run(path))
        await eventually(lambda: LEFT_OUT in output(logged))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Its connection was closed.
        await eventually(lambda: process.poll() == 1)


@pytest.mark.parametrize("answer", ["working", '{"exit": 0}\n'])
async def test_time_out_closes_the_connection_and_logs_the_answer_so_far(
    path: Path, logged: LogLines, answer: str
) -> None:
    """An exit status without the end of the connection does not count: the peer may still be at work."""
    closed: list[bool] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer.encode())
        read_all(connection)
        # Without other events, poll waits for the hang-up: the other end is closed.
        hang_up = select.poll()
        hang_up.register(connection, 0)
        closed.append(bool(hang_up.poll(1_000 * DEADLINE)))

    with served(path, serve):
        for timeout in TIME_OUTS:
            outcome = await run(path, timeout=timeout)
            if output(logged):
                break
    assert outcome == Outcome(Result.FAILED, f"timed out after {timeout:g} s", answer.strip())
    assert set(closed) == {True}
    assert output(logged)[0].strip() == answer.strip()


async def test_cancelling_closes_the_connection_and_logs_the_answer_so_far(path: Path, logged: LogLines) -> None:
    before = descriptors()
    with listening(path) as listener:
        task = asyncio.create_task(run(path))
        connection, _ = await asyncio.to_thread(listener.accept)
        with connection:
            connection.sendall(b"ready\nand then")
            await eventually(lambda: output(logged) == ["ready"])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert read_all(connection).endswith(b"}\n")
            with pytest.raises(BrokenPipeError):
                connection.send(b".")
    assert output(logged) == ["ready", "and then"]
    assert descriptors() == before


# Sockets that can't be connected to


def missing(_: Path) -> AbstractContextManager[object]:
    return nullcontext()


@contextmanager
def without_listener(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        yield


@contextmanager
def with_full_queue(path: Path) -> Iterator[None]:
    with listening(path, backlog=0), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        yield


of_datagrams = partial(without_listener, kind=socket.SOCK_DGRAM)


@contextmanager
def a_file(path: Path) -> Iterator[None]:
    write_script(path, "exit 0")
    yield


@contextmanager
def in_a_writable_directory(path: Path) -> Iterator[None]:
    with listening(path):
        path.parent.chmod(0o757)
        yield
        path.parent.chmod(0o755)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (missing, "{path}: No such file or directory"),
        (without_listener, "{path}: Connection refused"),
        (with_full_queue, "{path}: its queue of connections is full"),
        (of_datagrams, "{path}: Protocol wrong type for socket"),
        (a_file, "{path}: not a socket"),
        (in_a_writable_directory, "{path.parent}: writable by others: chmod go-w {path.parent}"),
    ],
)
async def test_socket_that_cannot_be_connected_to_is_not_a_try(
    path: Path, logged: LogLines, make: Callable[[Path], AbstractContextManager[object]], problem: str
) -> None:
    problem = problem.format(path=path)
    with make(path):
        before = descriptors()
        assert await run(path) == Outcome(Result.NOT_STARTED, problem)
        assert descriptors() == before
    assert logged.all() == []


@pytest.mark.parametrize("free", [0, 1])
async def test_missing_descriptors_open_no_connection(
    path: Path, few_descriptors: Callable[[int], AbstractContextManager[None]], free: int
) -> None:
    """None is left for the socket, or none for the epoll set."""
    with listening(path) as listener:
        listener.settimeout(0)
        before = descriptors()
        with few_descriptors(free):
            outcome = await Hook(HookConfig((), socket=path)).run(start())
        assert outcome == Outcome(Result.NOT_STARTED, f"{path}: Too many open files")
        assert descriptors() == before
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_queue_with_room_again_takes_the_next_try(path: Path) -> None:
    with listening(path, backlog=0) as listener:
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(path))
            assert (await run(path)).detail.endswith("its queue of connections is full")
        listener.accept()[0].close()
        task = asyncio.create_task(run(path))
        connection, _ = await asyncio.to_thread(listener.accept)
        with connection:
            connection.sendall(b'{"exit": 0}')
        assert await task == DONE


@as_root
async def test_socket_that_the_daemon_may_not_write_to_is_not_a_try(path: Path) -> None:
    with listening(path):
        os.chmod(path, 0o600)  # noqa: PTH101
        with without_privileges(path):
            outcome = await run(path)
    assert outcome == Outcome(Result.NOT_STARTED, f"{path}: Permission denied")


@pytest.mark.parametrize("mode", [0o600, 0o666])
async def test_mode_of_a_trusted_socket_does_not_matter(path: Path, mode: int) -> None:
    with served(path, answering(b'{"exit": 0}')):
        os.chmod(path, mode)  # noqa: PTH101
        assert await run(path) == DONE


async def test_link_to_a_socket_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("session")
    with served(path, answering(b'{"exit": 0}')):
        assert await run(tmp_path / "link") == DONE


async def test_no_descriptor_and_no_task_is_left(path: Path) -> None:
    with served(path, answering(b'{"exit": 0}')):
        await run(path)
    before, tasks = descriptors(), asyncio.all_tasks()
    for serve in (answering(b'{"exit": 0}\n'), answering(b""), lambda _: None):
        with served(path, serve):
            await run(path, start(**LARGE))
    with listening(path):
        await run(path, timeout=0.05)
    assert descriptors() == before
    assert asyncio.all_tasks() == tasks


async def test_many_sessions_are_handed_over_at_once(path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        facts = json.loads(await reader.read())
        writer.write(b'{"exit": %d}\n' % facts["attempt"])
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        found = await asyncio.gather(*[run(path, start(attempt=attempt)) for attempt in range(1, 60)])
    assert [outcome.detail for outcome in found] == [f"exit {attempt}" for attempt in range(1, 60)]


# A service manager

ACCEPT = """
import json, socket, struct, subprocess, sys
path, script = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    user = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
    with connection:
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), connection)
        done = subprocess.run([script], **streams, env={"CALLER": str(user)})
        connection.sendall(json.dumps({"exit": done.returncode}).encode() + b"\\n")
"""
"""One process for each connection, with the connection as its standard streams, as for a unit with Accept=yes."""


@pytest.fixture
def script(path: Path, tmp_path: Path) -> Iterator[Path]:
    """A script that a service manager runs for each connection."""
    script = tmp_path / "script"
    script.touch(mode=0o755)
    with listening_process(ACCEPT, str(path), str(script)):
        yield script


async def test_script_of_a_service_manager_is_handed_the_session(
    path: Path, script: Path, tmp_path: Path, logged: LogLines
) -> None:
    read = tmp_path / "read"
    text = f"cat > {read}; echo session for $CALLER; echo trouble >&2"
    write_script(script, text + f"; exit $(grep -o '\"attempt\": [0-9]*' {read} | tr -dc 0-9)")
    before = set(children())
    for attempt, result in ((3, Result.FAILED), (78, Result.REFUSED)):
        try_ = start(attempt=attempt)
        assert await run(path, try_) == Outcome(result, f"exit {attempt}", "trouble")
        assert read.read_text() == build_input(session_facts(try_))
    # This one leaves its input unread.
    write_script(script, "exit 0")
    assert await run(path, start(**LARGE)) == DONE
    assert output(logged) == [f"session for {os.geteuid()}", "trouble"] * 2
    assert set(children()) <= before


async def test_script_that_outlives_the_time_out_is_not_ended(
    path: Path, script: Path, tmp_path: Path, logged: LogLines
) -> None:
    go, ended = tmp_path / "go", tmp_path / "ended"
    write_script(script, f"echo begun; while [ ! -e {go} ]; do sleep 0.01; done; touch {ended}")
    try:
        for timeout in TIME_OUTS:
            outcome = await run(path, timeout=timeout)
            if output(logged):
                break
        assert outcome == Outcome(Result.FAILED, f"timed out after {timeout:g} s", "begun")
        assert output(logged) == ["begun"]
    finally:
        # The script belongs to no hook any more, so it would outlive a test that fails.
        go.touch()
    await eventually(ended.exists)
