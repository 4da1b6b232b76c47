"""`dmnotid session`: what a daemon hands over is run as its own hook would be, and the answer goes back."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config.values import HookConfig
from dmnotid.hook.facts import MAX_INPUT_OCTETS, build_facts
from dmnotid.hook.runner import Hook
from dmnotid.policy.sessions import Outcome, Result
from tests.cli.program import PROGRAM
from tests.hook.test_handoff import served
from tests.hook.test_runner import RICH, config, output, start
from tests.support import DEADLINE, LogLines, Recorder, is_alive, wait_until, write_script

FACTS = json.dumps(build_facts(start(**RICH)))


def spawn(connection: socket.socket, *command: str, errors: Path = Path(os.devnull)) -> "subprocess.Popen[bytes]":
    """Do as dmnotid-session.socket does: one process for a connection."""
    words: list[str] = [*PROGRAM, "session", "--", *command]
    with errors.open("wb") as stderr:
        return subprocess.Popen(words, stdin=connection.fileno(), stdout=connection.fileno(), stderr=stderr, cwd="/")


class Session:
    """A `dmnotid session` with this end of its connection."""

    def __init__(self, *command: str, errors: Path = Path(os.devnull)) -> None:
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(DEADLINE)
        with theirs:
            self.process = spawn(theirs, *command, errors=errors)

    def tell(self, octets: bytes) -> None:
        self._ours.sendall(octets)
        self._ours.shutdown(socket.SHUT_WR)

    def answer(self) -> str:
        """Read to the end."""
        return b"".join(iter(lambda: self._ours.recv(65_536), b"")).decode()

    def hang_up(self) -> None:
        self._ours.close()

    def end(self) -> None:
        self._ours.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def session(*command: str, errors: Path = Path(os.devnull)) -> Iterator[Session]:
    session = Session(*command, errors=errors)
    try:
        yield session
    finally:
        session.end()


def answer(octets: str | bytes, *command: str) -> tuple[list[str], dict[str, Any], int]:
    """Hand a session over; its output, its answer, and the exit status of the command line."""
    with session(*command) as handed:
        handed.tell(octets.encode() if isinstance(octets, str) else octets)
        *lines, last = [line for line in handed.answer().split("\n") if line]
        return lines, json.loads(last), handed.process.wait(DEADLINE)


def hand_over(path: Path, *command: str, **more: Any) -> Outcome:  # noqa: ANN401 - keys of HookConfig
    with served(path, lambda connection: spawn(connection, *command).wait(DEADLINE)):
        return asyncio.run(Hook(HookConfig((), socket=path, **more)).run(start(**RICH)))


def test_it_is_told_what_a_command_of_the_daemon_is_told(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    words = ["--server={server_id}", "{notification_id}/{connection}/{interface}/{attempt}", "${server_id} {other}", ""]
    assert asyncio.run(Hook(config(recorder.command + words)).run(start(**RICH))).result is Result.DONE
    (own,) = recorder.runs
    assert hand_over(tmp_path / "session", *recorder.command, *words) == Outcome(Result.DONE, "exit 0")
    (handed,) = recorder.runs
    for run in (own, handed):
        assert run.pop("pid") == run.pop("group")
    assert handed == own
    assert json.loads(own["stdin"]) == json.loads(FACTS)
    assert not output(logged)


@pytest.mark.parametrize("code", [0, 1, 78, 255])
def test_its_exit_status_is_the_answer(tmp_path: Path, code: int) -> None:
    script = write_script(tmp_path / "hook", f"exit {code}")
    assert answer(FACTS, str(script)) == ([], {"exit": code}, code)


def test_a_signal_is_answered_as_by_a_shell(tmp_path: Path) -> None:
    script = write_script(tmp_path / "hook", "kill -KILL $$")
    assert answer(FACTS, str(script)) == ([], {"exit": 137}, 137)


def test_output_comes_before_the_answer(tmp_path: Path, logged: LogLines) -> None:
    script = write_script(
        tmp_path / "hook", "echo one; echo; echo this goes to the journal >&2; printf 'no end'; exit 3"
    )
    assert answer(FACTS, str(script)) == (["one", "no end"], {"exit": 3}, 3)
    assert hand_over(tmp_path / "session", str(script)) == Outcome(Result.FAILED, "exit 3")
    assert output(logged, "socket") == ["one", "no end"]


WRONG = {
    "": "is empty",
    " \n": "is empty",
    "{": "is no JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    b"\xff": "is no JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
    "[" * 100_000: "is no JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string",
    "[]": f"is no JSON object of {MAX_INPUT_OCTETS} octets at most",
    f'"{"x" * MAX_INPUT_OCTETS}"': f"is no JSON object of {MAX_INPUT_OCTETS} octets at most",
    "{}": "is of version None, 1 is expected",
    '{"version": 2}': "is of version 2, 1 is expected",
    '{"version": 1}': "session: is missing",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_session_is_told_to_both_sides(tmp_path: Path, wrong: str | bytes) -> None:
    errors = tmp_path / "errors"
    with session("/bin/true", errors=errors) as handed:
        handed.tell(wrong.encode() if isinstance(wrong, str) else wrong)
        line = f"the session on standard input {WRONG[wrong]}\n"
        assert handed.answer() == f'{line}\n{{"exit": 1}}\n'
        assert handed.process.wait(DEADLINE) == 1
    assert errors.read_text() == line


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("session", -1, "-1: a whole number is expected"),
        ("attempt", True, "True: a whole number is expected"),
        ("server_id", 5, "5: text is expected"),
        ("server_id", "a\0b", "'a\\x00b': text is expected"),
        ("interface", None, "None: text is expected"),
        ("preferred_connections", "mobile", "'mobile': a list of texts is expected"),
        ("preferred_connections", [1], "[1]: a list of texts is expected"),
        ("requested_mos", ["1"], "['1']: a list of whole numbers is expected"),
        ("cached_mos", [[1]], "[[1]]: a list of pairs of a number and hex is expected"),
        ("unknown_options", [["6", ""]], "[['6', '']]: a list of pairs of a number and hex is expected"),
        ("sent_at", "now", "'now': a whole number or null is expected"),
        ("received_at", "1", "'1': POSIX seconds are expected"),
        ("received_at", 10**400, f"{10**400}: POSIX seconds are expected"),
        ("received_at", float("nan"), "nan: POSIX seconds are expected"),
        ("signed", 1, "1: true or false is expected"),
    ],
)
def test_a_fact_of_another_kind_is_named(key: str, value: object, problem: str) -> None:
    facts = {**json.loads(FACTS), key: value}
    (line,), _, status = answer(json.dumps(facts), "/bin/true")
    assert line == f"the session on standard input {key}: {problem}"
    assert status == 1


def test_keys_of_a_later_daemon_are_no_problem() -> None:
    assert answer(json.dumps({**json.loads(FACTS), "more": [1]}), "/bin/true")[2] == 0


def test_a_command_that_can_not_be_started_is_named(tmp_path: Path) -> None:
    def problem(command: Path | str) -> str:
        (line,), said, status = answer(FACTS, str(command))
        assert said == {"exit": status} == {"exit": 1}
        return line

    assert problem("true") == "true: an absolute path is expected"
    assert problem(tmp_path / "none") == f"{tmp_path}/none: No such file or directory"
    assert problem(write_script(tmp_path / "hook", "", 0o644)) == f"{tmp_path}/hook: not executable"
    assert "writable by" in problem(write_script(tmp_path / "hook", "", 0o777))
    assert problem(write_script(tmp_path / "other", "#!/no/such/interpreter\n")).startswith(f"{tmp_path}/other: ")


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    """Return a hook with a child, both of which write down who they are and then wait."""
    return write_script(tmp_path / "hook", f"cd {tmp_path}; sleep 600 & echo $! > child; echo $$ > leader; wait")


def pids(directory: Path) -> list[int]:
    return [int((directory / name).read_text()) for name in ("leader", "child")]


def begin(handed: Session, directory: Path) -> list[int]:
    handed.tell(FACTS.encode())
    wait_until(lambda: (directory / "leader").exists() and (directory / "leader").read_text())
    return pids(directory)


def test_when_the_daemon_hangs_up_the_whole_group_is_ended(tmp_path: Path, stubborn: Path) -> None:
    with session(str(stubborn)) as handed:
        group = begin(handed, tmp_path)
        assert all(map(is_alive, group))
        handed.hang_up()
        handed.process.wait(DEADLINE)
        wait_until(lambda: not any(map(is_alive, group)))


def test_a_command_that_has_left_its_group_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "hook"
    script.write_text(
        "#!/usr/bin/python3\n"
        "import os, time\n"
        "os.setpgid(0, os.getpgid(os.getppid()))\n"
        f"open({str(tmp_path / 'new')!r}, 'w').write(str(os.getpid()))\n"
        f"os.rename({str(tmp_path / 'new')!r}, {str(tmp_path / 'leader')!r})\n"
        "time.sleep(600)\n"
    )
    script.chmod(0o755)
    with session(str(script)) as handed:
        handed.tell(FACTS.encode())
        wait_until((tmp_path / "leader").exists)
        leader = int((tmp_path / "leader").read_text())
        try:
            handed.hang_up()
            handed.process.wait(DEADLINE)
            assert not is_alive(leader)
        finally:
            if is_alive(leader):
                os.kill(leader, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_whole_group(tmp_path: Path, stubborn: Path, number: signal.Signals) -> None:
    with session(str(stubborn)) as handed:
        group = begin(handed, tmp_path)
        handed.process.send_signal(number)
        assert json.loads(handed.answer()) == {"exit": 143}
        assert handed.process.wait(DEADLINE) == 143
        wait_until(lambda: not any(map(is_alive, group)))


@pytest.mark.parametrize("code", [0, 78])
def test_a_command_that_was_told_to_end_is_not_done(tmp_path: Path, code: int) -> None:
    """Its time is over (RuntimeMaxSec=), or the device goes down: however it ends then, its session was cut short."""
    ready = tmp_path / "ready"
    script = write_script(tmp_path / "hook", f"trap 'exit {code}' TERM; touch {ready}; while :; do sleep 0.05; done")
    with session(str(script)) as handed:
        handed.tell(FACTS.encode())
        wait_until(ready.exists)
        handed.process.send_signal(signal.SIGTERM)
        assert json.loads(handed.answer())["exit"] not in {0, 78}


def test_a_daemon_that_gives_up_waiting_ends_the_command(tmp_path: Path, stubborn: Path) -> None:
    outcome = hand_over(tmp_path / "session", str(stubborn), timeout=1.0)
    assert outcome == Outcome(Result.FAILED, "timed out after 1 s")
    wait_until(lambda: not any(map(is_alive, pids(tmp_path))))


def test_on_a_pipe_its_end_is_no_reason_to_stop(tmp_path: Path) -> None:
    script = write_script(tmp_path / "hook", "sleep 0.2; cat")
    done = subprocess.run([*PROGRAM, "session", "--", script], input=FACTS, capture_output=True, text=True, check=True)
    assert done.stdout == f'{FACTS}\n\n{{"exit": 0}}\n'


def test_nothing_to_read_from_is_an_empty_session() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *PROGRAM, "session", "/bin/true"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "the session on standard input is empty\n")


def test_a_command_is_needed() -> None:
    done = subprocess.run([*PROGRAM, "session"], input=FACTS, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr
