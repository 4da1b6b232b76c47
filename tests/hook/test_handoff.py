"""A session handed over to a socket: real listeners that answer in every way, and some that don't."""

import asyncio
import errno
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.config.values import HookConfig
from dmnotid.errors import UntrustedPath
from dmnotid.hook.facts import build_facts, build_input
from dmnotid.hook.handoff import MAX_ANSWER_OCTETS, Answer, Handoff
from dmnotid.hook.runner import MAX_OUTPUT_OCTETS, Hook
from dmnotid.hook.turn import LOGGED
from dmnotid.host.trust import check_trusted_socket
from dmnotid.policy.sessions import Outcome, Result, SessionStart
from tests.hook.test_runner import RICH, big, children, start
from tests.support import DEADLINE, IS_ROOT, LogLines, descriptors, eventually, is_alive, write_script

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root, to give files away")
DONE = Outcome(Result.DONE, "exit 0")

Serve = Callable[[socket.socket], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the listener is; shorter than what an address holds."""
    return tmp_path / "session"


@contextmanager
def listening(path: Path, backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def served(path: Path, serve: Serve) -> Iterator[None]:
    """Let a thread treat each connection in its way, one after the other."""
    with listening(path) as listener:

        def accept() -> None:
            with suppress(OSError):  # shut down below
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(ConnectionError, BrokenPipeError):
                        connection.settimeout(DEADLINE)
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)
            assert not thread.is_alive()


def read_all(connection: socket.socket) -> bytes:
    octets = b""
    while more := connection.recv(65_536):
        octets += more
    return octets


def answering(answer: bytes) -> Serve:
    """Read all, then answer."""

    def serve(connection: socket.socket) -> None:
        read_all(connection)
        connection.sendall(answer)

    return serve


def config(path: Path, **more: Any) -> HookConfig:  # noqa: ANN401
    return HookConfig((), **{"timeout": 60.0, "socket": path, **more})


async def run(path: Path, try_: SessionStart | None = None, **more: Any) -> Outcome:  # noqa: ANN401
    """Run a hook to its end, within bounds of time; nothing on the way may surprise the loop."""
    surprises: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: surprises.append(context))
    async with asyncio.timeout(DEADLINE):
        outcome = await Hook(config(path, **more)).run(try_ or start())
    assert surprises == []
    return outcome


def output(logged: LogLines) -> list[str]:
    assert {line["stream"] for line in logged.of("hook output")} <= {"socket"}
    return [line["line"] for line in logged.of("hook output")]


# What is written, and what the answer means


async def test_the_listener_reads_the_same_object_as_a_command_and_then_the_end(path: Path) -> None:
    read: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        read.append(read_all(connection))
        connection.sendall(b'{"exit": 0}\n')

    with served(path, serve):
        try_ = start(**RICH)
        assert await run(path, try_) == DONE
    assert read == [build_input(build_facts(try_)).encode()]
    assert json.loads(read[0])["requested_mos"] == [1, 2, 65_535]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b'{"exit": 0}\n', DONE),
        (b'{"exit": 0}', DONE),
        (b'{"exit": 0}\n\n\n', DONE),
        (b'\n\n {"exit":0}\r\n', DONE),
        (b'{"exit": 0}\r\n\r\n', DONE),
        (b'{"exit": 0}\n \t\n' + b" " * 5_000, DONE),
        (b" " * (MAX_ANSWER_OCTETS - 11) + b'{"exit": 0}', DONE),
        (b'{"more": [1, {"exit": 3}], "exit": 0, "text": "\xc3\xa4"}\n', DONE),
        (b'{"exit": 78}\n', Outcome(Result.REFUSED, "exit 78")),
        (b'{"exit": 1}\n', Outcome(Result.FAILED, "exit 1")),
        (b'{"exit": 255}\n', Outcome(Result.FAILED, "exit 255")),
        (b'{"exit": 0}\n{"exit": 3}\n', Outcome(Result.FAILED, "exit 3")),
        (b'{"exit": 0}' + b" " * (MAX_ANSWER_OCTETS - 11) + b"\n", DONE),
    ],
)
async def test_answers(path: Path, answer: bytes, outcome: Outcome) -> None:
    with served(path, answering(answer)):
        assert await run(path) == outcome


NOTHING = 'ended without {"exit": N}: '


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "nothing came"),
        (b"\n\n", "nothing came"),
        (b" \r\n\t\n" + b" " * 5_000, "nothing came"),
        (b"done\n", "its last line is 'done'"),
        (b'{"exit": 0}\ndone\n', "its last line is 'done'"),
        (b'{"exit": 0}\n {', "its last line is ' {'"),
        (b'{"exit": 0}{"exit": 0}\n', """its last line is '{"exit": 0}{"exit": 0}'"""),
        (b'{"exit": true}\n', """its last line is '{"exit": true}'"""),
        (b'{"exit": "0"}\n', """its last line is '{"exit": "0"}'"""),
        (b'{"exit": 0.0}\n', """its last line is '{"exit": 0.0}'"""),
        (b'{"exit": -1}\n', """its last line is '{"exit": -1}'"""),
        (b'{"exit": 256}\n', """its last line is '{"exit": 256}'"""),
        (b'{"exit": null}\n', """its last line is '{"exit": null}'"""),
        (b'{"Exit": 0}\n', """its last line is '{"Exit": 0}'"""),
        (b"0\n", "its last line is '0'"),
        (b'["exit", 0]\n', """its last line is '["exit", 0]'"""),
        (b'{"exit": 0, "a": "\xff"}\n', """its last line is '{"exit": 0, "a": "\\\\xff"}'"""),
        (b'{"exit"\x1b[31m\0', "its last line is '{\"exit\"\\x1b[31m\\x00'"),
        (b'{"a":' + b"[" * 1_000, 'its last line is \'{"a":' + "[" * 59 + "' … (1005 octets)"),
        (b" " * 1_014 + b'{"exit": 0}', "its last line is '" + " " * 64 + "' … (1025 octets)"),
        (b"x" * 63 + "ä".encode(), "its last line is '" + "x" * 63 + "' … (65 octets)"),
        (
            b'{"exit": 0}' + b" " * (MAX_ANSWER_OCTETS - 10),
            'its last line is \'{"exit": 0}' + " " * 53 + "' … (1025 octets)",
        ),
    ],
)
async def test_what_is_no_answer(path: Path, answer: bytes, said: str) -> None:
    with served(path, answering(answer)):
        assert await run(path) == Outcome(Result.FAILED, NOTHING + said)


async def test_what_runs_behind_a_socket_is_no_process_of_ours(path: Path) -> None:
    told: list[str] = []
    with served(path, answering(b'{"exit": 0}')):
        assert await Hook(config(path)).run(start(), told.append) == DONE
    assert told == []


async def test_a_listener_that_accepts_and_goes_away(path: Path) -> None:
    with served(path, lambda _: None):
        assert await run(path) == Outcome(Result.FAILED, NOTHING + "nothing came")


# Output


async def test_lines_before_the_last_are_output(path: Path, logged: LogLines) -> None:
    answer = b'one\n\n{"event": "two"}\n{"exit": 9}\n\n  three\n\x1b[31m\0\xff\n{"exit": 0}\n'
    with served(path, answering(answer)):
        assert await run(path) == DONE
    assert output(logged) == ["one", '{"event": "two"}', '{"exit": 9}', "  three", "\x1b[31m\0\\xff"]
    assert {line["session"] for line in logged.of("hook output")} == {12}
    assert all("cut" not in line for line in logged.of("hook output"))


@pytest.mark.parametrize("last", [b"no answer", b"no answer\n", b'{"exit": 999}', b'{"exit": 999}\n'])
async def test_a_last_line_that_is_no_answer_is_output_too(path: Path, logged: LogLines, last: bytes) -> None:
    with served(path, answering(b"one\n" + last)):
        assert (await run(path)).result is Result.FAILED
    assert output(logged) == ["one", last.decode().strip()]


async def test_output_comes_while_the_session_runs(path: Path, logged: LogLines) -> None:
    go = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b'started\n{"event": "begun"}\n')
        go.wait(DEADLINE)
        connection.sendall(b'ended\n{"exit": 0}\n')

    with served(path, serve):
        task = asyncio.create_task(run(path))
        await eventually(lambda: output(logged) == ["started", '{"event": "begun"}'])
        assert not task.done()
        go.set()
        assert await task == DONE
    assert output(logged) == ["started", '{"event": "begun"}', "ended"]


async def test_a_connection_has_its_share_of_each_turn_while_it_is_open(path: Path) -> None:
    with listening(path):
        with Handoff(path, b"", lambda _: None), Handoff(path, b"", lambda _: None):
            assert LOGGED.share == 256
        assert LOGGED.share == 512


async def test_long_lines_are_cut_and_a_long_one_that_looks_like_an_answer_is_output(
    path: Path, logged: LogLines
) -> None:
    answer = b"x" * 1_024 + b"\n" + b"y" * 5_000 + b"\n" + b'{"exit": 0, "a": "' + b"z" * 5_000 + b'"}\n{"exit": 3}\n'
    with served(path, answering(answer)):
        assert await run(path) == Outcome(Result.FAILED, "exit 3")
    lines = logged.of("hook output")
    assert [line["line"] for line in lines] == ["x" * 1_024, "y" * 1_024, ('{"exit": 0, "a": "' + "z" * 5_000)[:1_024]]
    assert [line.get("cut") for line in lines] == [None, True, True]


async def test_the_answer_is_found_behind_more_output_than_is_logged(path: Path, logged: LogLines) -> None:
    with served(path, answering(b"123456789\n" * 20_000 + b'{"exit": 78}\n')):
        assert await run(path) == Outcome(Result.REFUSED, "exit 78")
    *lines, last = output(logged)
    assert "".join(f"{line}\n" for line in lines) == ("123456789\n" * 7_000)[:MAX_OUTPUT_OCTETS] + "\n"
    assert last == "output ends here: 65536 octets of one run are logged"


@pytest.mark.parametrize("line", [b"x" * 65_536, b"0123456\n" * 8_192, b'{"exit": 0}\n' * 5_000, b"\n" * 65_536])
async def test_a_flood_is_neither_held_nor_held_up(path: Path, logged: LogLines, line: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        for _ in range(32):
            connection.sendall(line)
        connection.sendall(b'\n{"exit": 0}')

    with served(path, serve):
        tracemalloc.start()
        try:
            assert await run(path) == DONE
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
    assert len(logged.getvalue()) < 2_000_000


async def test_an_answer_in_single_octets(path: Path, logged: LogLines) -> None:
    def serve(connection: socket.socket) -> None:
        for octet in b'one\n{"exit": 3}\n\xe2\x98\x83\n\n {"exit" : 0 }\n\n':
            connection.sendall(bytes([octet]))
            time.sleep(0.001)

    with served(path, serve):
        assert await run(path) == DONE
    assert output(logged) == ["one", '{"exit": 3}', "\u2603"]


# The answer by itself


def answered(pieces: list[bytes]) -> tuple[int | None, bytes, str]:
    """Return the exit status, the output and the problem of an answer that comes in pieces; bounds are looked at."""
    given = bytearray()
    answer = Answer(given.extend)
    for piece in pieces:
        answer.feed(piece)
        assert len(answer._held) <= MAX_ANSWER_OCTETS
        assert len(answer._indent) <= MAX_ANSWER_OCTETS
    answer.close()
    answer.close()
    return answer.exit_code, bytes(given), answer.problem


def expected(octets: bytes) -> tuple[int | None, list[bytes]]:
    """Say the same of the whole at once."""
    lines = [line for line in octets.split(b"\n") if line.strip(b" \t\r")]
    if not lines:
        return None, []
    try:
        code = json.loads(lines[-1].decode())["exit"]
    except (ValueError, KeyError, TypeError, RecursionError):
        code = None
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
def test_an_answer_is_the_same_in_whatever_pieces_it_comes(scraps: list[bytes], size: int) -> None:
    octets = b"".join(scraps)
    code, lines = expected(octets)
    for step in (1, size, 4_096):
        found, given_out, problem = answered([octets[at : at + step] for at in range(0, len(octets), step)])
        assert found == code
        assert [line for line in given_out.split(b"\n") if line] == list(map(shorten_indent, lines))
        assert problem.isprintable()


@given(st.binary(max_size=300))
def test_any_octets_are_an_answer_or_none(octets: bytes) -> None:
    code, lines = expected(octets)
    found, given_out, _ = answered([octets])
    assert (found, [line for line in given_out.split(b"\n") if line]) == (code, lines)


def shorten_indent(line: bytes) -> bytes:
    """Cut what stands before a line: of a kilobyte of blanks and more no log line shows anything else."""
    indent = len(line) - len(line.lstrip(b" \t\r"))
    return line[: min(indent, MAX_ANSWER_OCTETS)] + line[indent:]


# Peers that don't behave


async def test_a_peer_that_reads_nothing_and_answers(path: Path) -> None:
    """Its input was larger than the kernel takes for it; closing with unread input looks like a reset."""
    for try_ in (start(), big()):
        with served(path, lambda connection: connection.sendall(b'{"exit": 0}\n')):
            assert await run(path, try_) == DONE


async def test_a_peer_that_reads_no_further_and_answers_later(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(10)
        connection.shutdown(socket.SHUT_RD)
        time.sleep(0.1)
        connection.sendall(b'{"exit": 0}\n')

    with served(path, serve):
        assert await run(path, big()) == DONE


async def test_a_peer_that_answers_before_it_reads(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(b'early\n{"exit": 0}\n')
        read_all(connection)

    with served(path, serve):
        assert await run(path, big()) == DONE


async def test_input_larger_than_the_buffers_arrives_whole(path: Path) -> None:
    lengths: list[int] = []

    def serve(connection: socket.socket) -> None:
        time.sleep(0.05)
        lengths.append(len(read_all(connection)))
        connection.sendall(b'{"exit": 0}')

    try_ = start(unknown=[(number, os.urandom(4_095)) for number in range(6, 35)])
    assert len(build_input(build_facts(try_))) > 230_000
    with served(path, serve):
        assert await run(path, try_) == DONE
    assert lengths == [len(build_input(build_facts(try_)))]


@pytest.mark.parametrize("said", [b"", b"half of an ans", b'{"exit": 0}\nsorry\n'])
async def test_a_peer_that_resets(path: Path, logged: LogLines, said: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(said)  # and closes with input unread

    with served(path, serve):
        outcome = await run(path, big())
    assert outcome.result is Result.FAILED
    assert outcome.detail.startswith(NOTHING)
    assert "".join(output(logged)).endswith(said.decode().strip().rpartition("\n")[2])


async def test_a_peer_that_never_reads_times_out_while_the_loop_goes_on(path: Path) -> None:
    gone = threading.Event()

    def serve(_: socket.socket) -> None:
        gone.wait(DEADLINE)

    with served(path, serve):
        begin = time.monotonic()
        ticks = asyncio.create_task(tick())
        assert await run(path, big(), timeout=0.3) == Outcome(Result.FAILED, "timed out after 0.3 s")
        assert 0.3 <= time.monotonic() - begin < 5
        ticks.cancel()
        assert len(await ticks) > 3
        gone.set()


async def tick() -> list[float]:
    """Note that the loop turns."""
    times: list[float] = []
    with suppress(asyncio.CancelledError):
        while True:
            times.append(time.monotonic())
            await asyncio.sleep(0.005)
    return times


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
    """Start a listener in a process of its own; it says when it is ready."""
    argv = [sys.executable, "-c", script, *words]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


async def test_a_peer_that_writes_without_end_times_out(path: Path, logged: LogLines) -> None:
    """Another process does, so that nothing but its octets could hold up the loop."""
    with listening_process(FLOOD, str(path)) as process:
        ticks = asyncio.create_task(tick())
        assert await run(path, timeout=1) == Outcome(Result.FAILED, "timed out after 1 s")
        ticks.cancel()
        assert len(await ticks) > 3
        await eventually(lambda: process.poll() == 1)  # its connection was closed
    assert any(line.startswith("output ends here") for line in output(logged))


@pytest.mark.parametrize("said", ["working", "working\n", '{"exit": 0}\n', '{"exit": 0'])
async def test_a_time_out_closes_the_connection_and_what_was_said_is_logged(
    path: Path, logged: LogLines, said: str
) -> None:
    """Also where the exit status was said, and the end never came: the other side may still do anything."""
    read: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(said.encode())
        read_all(connection)
        while not read:
            with suppress(BrokenPipeError):
                connection.send(b" ")
                time.sleep(0.01)
                continue
            read.append(b"closed")

    with served(path, serve):
        assert await run(path, timeout=0.3) == Outcome(Result.FAILED, "timed out after 0.3 s")
    assert read == [b"closed"]
    assert output(logged)[0].strip() == said.strip()


async def test_cancelling_closes_the_connection(path: Path, logged: LogLines) -> None:
    read: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"ready\nand then")
        with suppress(BrokenPipeError):
            while True:
                connection.send(b".")
                time.sleep(0.005)
        read.append(read_all(connection))

    before = descriptors()
    with served(path, serve):
        task = asyncio.create_task(run(path))
        await eventually(lambda: output(logged) == ["ready"])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert descriptors() == before
    assert read
    assert output(logged)[1].startswith("and then.")


# What can't be connected to


def nowhere(_: Path) -> AbstractAsyncContextManager[None]:
    @asynccontextmanager
    async def nothing() -> AsyncIterator[None]:
        yield

    return nothing()


@asynccontextmanager
async def nobody_listens(path: Path) -> AsyncIterator[None]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        yield


@asynccontextmanager
async def full(path: Path) -> AsyncIterator[None]:
    """Nobody accepts, and as many wait as may."""
    with listening(path, backlog=0), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        yield


@asynccontextmanager
async def datagrams(path: Path) -> AsyncIterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        yield


@asynccontextmanager
async def a_file(path: Path) -> AsyncIterator[None]:
    write_script(path, "exit 0")
    yield


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (nowhere, "No such file or directory"),
        (nobody_listens, "Connection refused"),
        (full, "its queue of connections is full"),
        (datagrams, "Protocol wrong type for socket"),
        (a_file, "not a socket"),
    ],
)
async def test_what_cannot_be_connected_to_is_a_failed_try(
    path: Path, logged: LogLines, make: Callable[[Path], AbstractAsyncContextManager[None]], why: str
) -> None:
    async with make(path):
        before = descriptors()
        assert await run(path) == Outcome(Result.FAILED, f"not started: {path}: {why}")
        assert descriptors() == before
    (line,) = logged.of("hook not started")
    assert (line["level"], line["session"], line["problem"]) == ("error", 12, f"{path}: {why}")


@pytest.mark.parametrize("free", [0, 1])
async def test_without_descriptors_it_is_a_failed_try(path: Path, free: int) -> None:
    """None for the socket, or none for what watches it."""
    with listening(path):
        lowest = os.dup(0)
        os.close(lowest)
        before = descriptors()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
        try:
            outcome = await Hook(config(path)).run(start())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert outcome == Outcome(Result.FAILED, f"not started: {path}: Too many open files")
        assert descriptors() == before


async def test_a_socket_that_can_not_be_watched_is_a_failed_try(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the user's epoll sets may hold no more."""

    class Full:
        def __init__(self, _: int) -> None:
            self._epoll = epoll(1)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self._epoll.close()

        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    epoll = select.epoll
    with listening(path):
        before = descriptors()
        monkeypatch.setattr(select, "epoll", Full)
        outcome = await run(path)
        monkeypatch.undo()
        assert outcome == Outcome(Result.FAILED, f"not started: {path}: No space left on device")
        assert descriptors() == before


async def test_a_loop_that_takes_no_more_is_a_failed_try(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with listening(path):
        before = descriptors()
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", refuse)
        outcome = await run(path)
        monkeypatch.undo()
        assert outcome == Outcome(Result.FAILED, f"not started: {path}: No space left on device")
        assert descriptors() == before


async def test_a_queue_that_empties_takes_the_next_try(path: Path) -> None:
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


@pytest.mark.root
@needs_root
async def test_a_socket_that_may_not_be_connected_to(path: Path) -> None:
    modes = {above: above.stat().st_mode for above in path.parents}
    with served(path, answering(b'{"exit": 0}')):
        for above, mode in modes.items():
            above.chmod(mode | 0o011)
        os.chmod(path, 0o600)  # noqa: PTH101
        os.seteuid(65_534)
        try:
            # Only what others may not do is in question here, so the directories are root's.
            found = await run(path)
        finally:
            os.seteuid(0)
            for above, mode in modes.items():
                above.chmod(mode)
        assert found == Outcome(Result.FAILED, f"not started: {path}: Permission denied")


# Trust


def refusal(path: Path) -> tuple[str | None, str]:
    """Return the component and the sentence of a refusal; nothing of either where the socket is trusted."""
    try:
        check_trusted_socket(path)
    except UntrustedPath as error:
        return error.component, str(error)
    return None, ""


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
async def test_who_may_connect_does_not_matter(path: Path, mode: int) -> None:
    with served(path, answering(b'{"exit": 0}')):
        os.chmod(path, mode)  # noqa: PTH101
        assert refusal(path) == (None, "")
        assert await run(path) == DONE


@pytest.mark.parametrize(("mode", "by"), [(0o775, "its group"), (0o757, "others")])
async def test_a_directory_where_others_could_put_another_socket(tmp_path: Path, mode: int, by: str) -> None:
    directory = tmp_path / "a"
    directory.mkdir()
    path = directory / "session"
    with served(path, answering(b'{"exit": 0}')):
        directory.chmod(mode)
        assert await run(path) == Outcome(
            Result.FAILED, f"not started: {directory}: writable by {by}: chmod go-w {directory}"
        )
        directory.chmod(0o755)
        assert await run(path) == DONE, "it is looked at before each run"


@pytest.mark.root
@needs_root
async def test_a_socket_of_somebody_else(path: Path) -> None:
    with served(path, answering(b'{"exit": 0}')):
        os.chown(path, 65_534, -1)
        text = f"{path}: belongs to user 65534, only root and the daemon's own user are trusted"
        text += f": chown root {path}, or run dmnotid as user 65534"
        assert await run(path) == Outcome(Result.FAILED, f"not started: {text}")


@pytest.mark.root
@needs_root
async def test_a_sticky_directory_of_root_passes(path: Path) -> None:
    with served(path, answering(b'{"exit": 0}')):
        path.parent.chmod(0o1777)
        assert await run(path) == DONE


async def test_a_link_to_a_socket_is_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("session")
    with served(path, answering(b'{"exit": 0}')):
        assert await run(tmp_path / "link") == DONE


@pytest.mark.parametrize("kind", ["file", "directory", "relative", "dangling"])
def test_what_is_no_socket(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "dangling").symlink_to("none")
    at, why = {
        "file": (tmp_path / "file", f"{tmp_path}/file: not a socket"),
        "directory": (tmp_path / "directory", f"{tmp_path}/directory: not a socket"),
        "relative": (Path("session"), "session: not an absolute path"),
        "dangling": (tmp_path / "dangling", f"{tmp_path}/none: No such file or directory"),
    }[kind]
    assert refusal(at)[1] == why


# Nothing is left


async def test_nothing_is_left_open(path: Path) -> None:
    serves: list[tuple[Serve, float]] = [
        (answering(b'{"exit": 0}\n'), 60),
        (answering(b""), 60),
        (lambda _: None, 60),
        (lambda _: time.sleep(0.2), 0.05),
    ]
    with served(path, serves[0][0]):
        await run(path)
    before, tasks = descriptors(), asyncio.all_tasks()
    for serve, timeout in serves:
        with served(path, serve):
            await run(path, big(), timeout=timeout)
    assert descriptors() == before
    assert asyncio.all_tasks() == tasks


async def test_no_epoll_set_left_is_no_connection(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> None:
        raise OSError(24, os.strerror(24))

    before = descriptors()
    with served(path, lambda _: None), monkeypatch.context() as patched:
        patched.setattr("select.epoll", none_left)
        assert "Too many open files" in (await run(path)).detail
    assert descriptors() == before


async def test_many_at_once(path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        facts = json.loads(await reader.read())
        await asyncio.sleep(0.01)
        writer.write(b'{"exit": %d}\n' % facts["attempt"])
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        found = await asyncio.gather(*[run(path, start(attempt=attempt)) for attempt in range(1, 60)])
    assert [outcome.detail for outcome in found] == [f"exit {attempt}" for attempt in range(1, 60)]


async def test_a_handoff_may_be_left_before_its_end(path: Path) -> None:
    given = bytearray()
    with listening(path) as listener, Handoff(path, b"facts\n", given.extend) as handoff:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b'half\n{"exit": 0}\n')
            await eventually(lambda: bytes(given) == b"half\n")
            assert read_all(connection) == b"facts\n"
            assert not handoff.ended.is_set()
    assert bytes(given) == b'half\n{"exit": 0}\n', "without the end it is no answer"


# As a service manager does it

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
def manager(path: Path, tmp_path: Path) -> Iterator[Path]:
    """Start the service manager; the script that it runs."""
    script = tmp_path / "script"
    script.touch(mode=0o755)
    with listening_process(ACCEPT, str(path), str(script)):
        yield script


async def test_a_script_behind_a_service_manager(path: Path, manager: Path, tmp_path: Path, logged: LogLines) -> None:
    read = tmp_path / "read"
    text = f"cat > {read}; echo session for $CALLER; echo trouble >&2"
    write_script(manager, text + f"; exit $(grep -o '\"attempt\": [0-9]*' {read} | tr -dc 0-9)")
    before = set(children())
    for attempt, result in ((3, Result.FAILED), (78, Result.REFUSED)):
        try_ = start(attempt=attempt)
        assert await run(path, try_) == Outcome(result, f"exit {attempt}")
        assert read.read_text() == build_input(build_facts(try_))
    write_script(manager, "exit 0")
    assert await run(path, big()) == DONE, "input that the script leaves unread"
    assert output(logged) == [f"session for {os.geteuid()}", "trouble"] * 2
    assert {pid for pid in set(children()) - before if is_alive(pid)} == set(), "it has no child of its own"


async def test_a_script_that_outlives_the_time_out_goes_on(
    path: Path, manager: Path, tmp_path: Path, logged: LogLines
) -> None:
    """It is not the daemon's to kill."""
    go, ended = tmp_path / "go", tmp_path / "ended"
    write_script(manager, f"echo begun; while [ ! -e {go} ]; do sleep 0.01; done; touch {ended}")
    assert await run(path, timeout=1) == Outcome(Result.FAILED, "timed out after 1 s")
    assert output(logged) == ["begun"]
    go.touch()
    await eventually(ended.exists)
