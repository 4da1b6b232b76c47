"""`dmnotid session` runs a session that a daemon hands over as the daemon's own hook would, and answers."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmnotid.cli.session import KILL_AFTER
from dmnotid.config.values import HookConfig
from dmnotid.hook.command import KILL_PATIENCE
from dmnotid.hook.facts import build_input, session_facts
from dmnotid.hook.runner import Hook
from dmnotid.policy.sessions import Outcome, Result
from tests import forked
from tests.cli.program import PROGRAM, through_shell
from tests.hook.runs import RICH, WRITE_PIDS, output, pids_of, run, start
from tests.host.test_systemd import ManagersEnd
from tests.peers import served
from tests.processes import ROOT
from tests.support import (
    DEADLINE,
    SERVER_ID,
    TIME_OUTS,
    LogLines,
    Recorder,
    eventually,
    further,
    is_alive,
    wait_until,
    write_script,
)

REQUEST = build_input(session_facts(start(**RICH))).encode()

Environ = Mapping[str, str]
"""Variables that are added to the environment."""

NOTHING: Environ = {}

CUT_SHORT = 128 + signal.SIGTERM


class Session:
    """A `dmnotid session` and this end of its connection."""

    def __init__(self, *command: str, errors: Path, environ: Environ) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(DEADLINE)
        with theirs:
            self.process = spawn(theirs, *command, errors=errors, environ=environ)

    def send(self, octets: bytes) -> None:
        self.connection.sendall(octets)
        self.connection.shutdown(socket.SHUT_WR)

    def answer(self) -> str:
        """Read to the end."""
        return b"".join(iter(lambda: self.connection.recv(65_536), b"")).decode()


def spawn(
    connection: socket.socket, *command: str, errors: Path = Path(os.devnull), environ: Environ = NOTHING
) -> forked.Forked:
    """Start one process for a connection, as dmnotid-session.socket does."""
    with errors.open("wb") as stderr:
        return forked.Forked(["session", "--", *command], {**os.environ, **environ}, connection, connection, stderr)


@contextmanager
def session(*command: str, errors: Path = Path(os.devnull), environ: Environ = NOTHING) -> Iterator[Session]:
    session = Session(*command, errors=errors, environ=environ)
    try:
        yield session
    finally:
        session.connection.close()
        session.process.kill()
        session.process.wait()


def answer(octets: bytes, *command: str, environ: Environ = NOTHING) -> tuple[list[str], dict[str, Any], int]:
    """Hand a session over; return its output, its answer, and the exit status of the command line."""
    with session(*command, environ=environ) as handed:
        handed.send(octets)
        *lines, last = [line for line in handed.answer().split("\n") if line]
        return lines, json.loads(last), handed.process.wait(DEADLINE)


async def hand_over(path: Path, *command: str, **more: Any) -> Outcome:  # noqa: ANN401 - keys of HookConfig
    """Hand a session over as the daemon does."""
    with served(path, lambda connection: spawn(connection, *command).wait(DEADLINE)):
        return await Hook(HookConfig((), socket=path, **more)).run(start(**RICH))


async def test_command_gets_the_same_as_a_hook_of_the_daemon(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    words = ["--server={server_id}", "{notification_id}/{connection}/{interface}/{attempt}", "${server_id} {other}", ""]
    assert (await run(recorder.command + words, start(**RICH))).result is Result.DONE
    (own,) = recorder.runs
    assert await hand_over(tmp_path / "session", *recorder.command, *words) == Outcome(Result.DONE, "exit 0")
    (handed,) = recorder.runs
    for found in (own, handed):
        assert found.pop("pid") == found.pop("group")
    assert handed == own
    assert own["stdin"].encode() == REQUEST
    assert logged.all() == []


@pytest.mark.parametrize(
    ("text", "code"), [("exit 78", 78), ("kill -KILL $$", 137), *further(("exit 0", 0), ("exit 255", 255))]
)
def test_answer_is_the_exit_status_of_a_shell(tmp_path: Path, text: str, code: int) -> None:
    assert answer(REQUEST, str(write_script(tmp_path / "hook", text))) == ([], {"exit": code}, code)


async def test_output_is_written_before_the_answer(tmp_path: Path, logged: LogLines) -> None:
    hook = write_script(tmp_path / "hook", "echo one; echo; echo for the log of the unit >&2; printf two; exit 3")
    assert answer(REQUEST, str(hook)) == (["one", "two"], {"exit": 3}, 3)
    assert await hand_over(tmp_path / "session", str(hook)) == Outcome(Result.FAILED, "exit 3", "two")
    assert output(logged, "socket") == ["one", "two"]


def test_request_that_is_not_a_session_is_reported_to_both_sides(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    with session("/bin/true", errors=errors) as handed:
        handed.send(b"{}")
        line = "the session on standard input has version None, 1 is expected\n"
        assert handed.answer() == f'{line}\n{{"exit": 1}}\n'
        assert handed.process.wait(DEADLINE) == 1
    assert errors.read_text() == line


def test_command_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    def problem(command: Path | str) -> str:
        (line,), found, status = answer(REQUEST, str(command))
        assert found == {"exit": status} == {"exit": 1}
        return line

    assert problem("true") == "true: an absolute path is expected"
    assert "writable by" in problem(write_script(tmp_path / "hook", "", 0o777))
    bad = write_script(tmp_path / "bad", "#!/no/such/interpreter\n")
    assert problem(bad) == f"{bad}: its interpreter '/no/such/interpreter' (the #! line) is missing"


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    """A file for the process ids of a command and its child."""
    return tmp_path / "pids"


@pytest.fixture
def waiting(tmp_path: Path, pids: Path) -> str:
    """A command with a child that both wait for ever."""
    return str(write_script(tmp_path / "hook", f"sleep 1000 & {WRITE_PIDS.format(pids=pids)}; wait"))


def test_closed_connection_ends_the_whole_group(pids: Path, waiting: str) -> None:
    with session(waiting) as handed:
        handed.send(REQUEST)
        wait_until(pids.exists)
        handed.connection.close()
        # No answer can be written.
        assert handed.process.wait(DEADLINE) == 1
    assert not any(map(is_alive, pids_of(pids)))


@pytest.mark.parametrize("number", [signal.SIGTERM, *further(signal.SIGINT, signal.SIGHUP)])
def test_signal_ends_the_whole_group(pids: Path, waiting: str, number: signal.Signals) -> None:
    with session(waiting) as handed:
        handed.send(REQUEST)
        wait_until(pids.exists)
        handed.process.send_signal(number)
        assert json.loads(handed.answer()) == {"exit": CUT_SHORT}
        assert handed.process.wait(DEADLINE) == CUT_SHORT
    assert not any(map(is_alive, pids_of(pids)))


@pytest.mark.parametrize("code", [0, *further(78)])
def test_command_that_was_cut_short_is_neither_done_nor_refused(tmp_path: Path, pids: Path, code: int) -> None:
    """RuntimeMaxSec= or a shutdown cuts it short; its exit status does not count then."""
    text = f"trap 'exit {code}' TERM; {WRITE_PIDS.format(pids=pids)}; while :; do sleep 0.05; done"
    with session(str(write_script(tmp_path / "hook", text))) as handed:
        handed.send(REQUEST)
        wait_until(pids.exists)
        handed.process.send_signal(signal.SIGTERM)
        assert json.loads(handed.answer()) == {"exit": CUT_SHORT}


def test_second_signal_leaves_the_command_its_time_to_clean_up(tmp_path: Path, pids: Path) -> None:
    """A stop of the unit may follow the end of the connection."""
    term, go = tmp_path / "term", tmp_path / "go"
    clean_up = f"touch {term}; while [ ! -e {go} ]; do sleep 0.02; done; echo clean; exit 0"
    text = f"trap '{clean_up}' TERM; {WRITE_PIDS.format(pids=pids)}; while :; do sleep 0.02; done"
    with session(str(write_script(tmp_path / "hook", text))) as handed:
        handed.send(REQUEST)
        wait_until(pids.exists)
        for number in (signal.SIGTERM, signal.SIGHUP):
            handed.process.send_signal(number)
            wait_until(term.exists)
        go.touch()
        assert handed.answer() == f'clean\n\n{{"exit": {CUT_SHORT}}}\n'


async def test_time_out_of_the_daemon_ends_the_command(tmp_path: Path, pids: Path, waiting: str) -> None:
    for timeout in TIME_OUTS:
        outcome = await hand_over(tmp_path / "session", waiting, timeout=timeout)
        assert outcome == Outcome(Result.FAILED, f"timed out after {timeout:g} s")
        if pids.exists():  # noqa: ASYNC240
            break
    await eventually(lambda: not any(map(is_alive, pids_of(pids))))


def test_end_of_a_pipe_is_not_a_reason_to_stop(tmp_path: Path) -> None:
    script = write_script(tmp_path / "hook", "sleep 0.2; cat")
    done = subprocess.run([*PROGRAM, "session", "--", script], input=REQUEST, capture_output=True, check=True)
    assert done.stdout == REQUEST + b'\n{"exit": 0}\n'


def test_closed_standard_input_is_an_empty_session() -> None:
    done = through_shell('"$@" session /bin/true <&-')
    assert (done.status, done.err) == (1, "the session on standard input is empty\n")


def test_missing_command_is_a_wrong_command_line() -> None:
    done = forked.run(["session"], os.environ, REQUEST)
    assert done.returncode == 2
    assert b"COMMAND" in done.stderr


# One session for a server at once


@pytest.mark.parametrize("name", ["RUNTIME_DIRECTORY", *further("STATE_DIRECTORY")])
def test_second_session_of_a_server_is_answered_with_75_at_once(tmp_path: Path, name: str) -> None:
    go = tmp_path / "go"
    hook = str(write_script(tmp_path / "hook", f"echo begun; while [ ! -e {go} ]; do sleep 0.02; done"))
    state = {name: f"{tmp_path}:/nonexistent/second"}
    with session(hook, environ=state) as first:
        first.send(REQUEST)
        assert first.connection.recv(6) == b"begun\n"
        locked = (["another process runs a session of this server"], {"exit": 75}, 75)
        assert answer(REQUEST, "/bin/true", environ=state) == locked
        other = build_input(session_facts(start(server_id="other.example", secret=b"x" * 16))).encode()
        assert answer(other, "/bin/true", environ=state) == ([], {"exit": 0}, 0)
        go.touch()
        assert json.loads(first.answer()) == {"exit": 0}
    assert answer(REQUEST, "/bin/true", environ=state) == ([], {"exit": 0}, 0)
    assert list((tmp_path / "locks").iterdir()) == []


def test_command_that_outlives_its_session_keeps_the_lock(tmp_path: Path, pids: Path, waiting: str) -> None:
    state = {"STATE_DIRECTORY": str(tmp_path)}
    with session(waiting, environ=state) as first:
        first.send(REQUEST)
        wait_until(pids.exists)
        first.process.kill()
        first.process.wait()
    assert answer(REQUEST, "/bin/true", environ=state)[1] == {"exit": 75}
    for pid in pids_of(pids):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids_of(pids))))
    assert answer(REQUEST, "/bin/true", environ=state)[1] == {"exit": 0}


def test_session_is_named_in_the_status_and_in_records_at_its_start_and_end(tmp_path: Path) -> None:
    end, errors = ManagersEnd(str(tmp_path / "notify")), tmp_path / "errors"
    try:
        with session("/bin/false", errors=errors, environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as handed:
            handed.send(REQUEST)
            assert json.loads(handed.answer()) == {"exit": 1}
            handed.process.wait(DEADLINE)
        assert end.next() == [f"STATUS=session 12 for {SERVER_ID}, notification 4661, attempt 2"]
    finally:
        end.close()
    begun, ended = [json.loads(line[line.index("{") :]) for line in errors.read_text().splitlines()]
    facts = {"level": "info", "session": 12, "server_id": SERVER_ID, "notification_id": 4_661, "attempt": 2}
    assert begun.items() >= {**facts, "event": "session started", "interface": "wlan0"}.items()
    assert ended.items() >= {**facts, "event": "session ended", "outcome": "exit 1"}.items()


def test_unit_leaves_a_command_its_time_between_term_and_kill() -> None:
    unit = (ROOT / "systemd" / "dmnotid-session@.service").read_text()
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert int(seconds) > KILL_AFTER + KILL_PATIENCE
    assert "\nNotifyAccess=main\n" in unit
