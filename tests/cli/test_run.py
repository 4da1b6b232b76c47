"""`dmnotid run`: starts that fail, and the log. tests/whole has the daemon at work."""

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cli.program import PROGRAM, Done, Terminal, dmnotid, shows_secret, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, more=f"listen: '127.0.0.1:0'\nstate: {tmp_path}/state\n")


def test_missing_configuration_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    wanted = f"{missing}: cannot be read: No such file or directory\n"
    assert dmnotid("run", "--config", str(missing)) == Done(78, "", wanted)


def test_all_problems_of_a_configuration_are_named(tmp_path: Path) -> None:
    done = dmnotid("run", "--config", str(write_config(tmp_path, more="listen: 5\nbogus: 1\n")))
    assert (done.status, done.out) == (78, "")
    assert [line.split(": ")[1] for line in done.err.splitlines()] == ["listen", "bogus"]
    assert not shows_secret(done.err)


@pytest.mark.parametrize(("command", "status"), [("run", 78), ("check", 1)])
def test_problem_of_a_configuration_is_an_error_in_the_systemd_journal(
    command: str, status: int, tmp_path: Path
) -> None:
    """Standard error of a service is a stream socket, which $JOURNAL_STREAM names."""
    config = write_config(tmp_path, more="listen: 5\nbogus: 1\n")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        about = os.fstat(theirs.fileno())
        environ = os.environ | {"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"}
        words = [*PROGRAM, command, "--config", str(config)]
        done = subprocess.run(words, env=environ, stdout=theirs.fileno(), stderr=theirs.fileno(), check=False)
        lines = ours.recv(65_536).decode().splitlines()
    assert done.returncode == status
    assert [line.partition(":")[0] for line in lines] == [f"<3>{config}"] * 2


def events(out: str) -> list[dict[str, object]]:
    """Parse a log in a pipe: a JSON object on each line."""
    return [json.loads(line) for line in out.splitlines()]


def test_port_in_use_ends_the_start(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{sock.getsockname()[1]}"
        done = dmnotid("run", "--config", str(write_config(tmp_path, more=f"listen: '{listen}'\nstate: {tmp_path}\n")))
    assert done.status == 1
    last = events(done.out)[-1]
    problem = f"listen: {listen}: Address already in use: another process has it, or systemd for dmnotid.socket"
    assert (last["event"], last["problem"]) == ("daemon not started", problem)


def test_state_directory_that_cannot_be_created_ends_the_start(tmp_path: Path) -> None:
    done = dmnotid("run", "--config", str(write_config(tmp_path, more="listen: '127.0.0.1:0'\nstate: /dev/null/x\n")))
    assert done.status == 1
    last = events(done.out)[-1]
    assert last["event"] == "daemon not started"
    assert "/dev/null/x: Not a directory" in str(last["problem"])


def test_configuration_warnings_are_logged(tmp_path: Path) -> None:
    servers = "- {id: a, secret: {text: hush-hush}}"
    done = dmnotid("run", "--config", str(write_config(tmp_path, servers, "state: /dev/null/x\n")))
    first = events(done.out)[0]
    assert (first["event"], first["level"]) == ("configuration warning", "warning")
    assert "servers[0].secret.text: has only 9 octets" in str(first["problem"])
    assert not shows_secret(done.out, b"hush-hush")


def test_log_on_a_terminal_is_text(config: Path) -> None:
    with Terminal(*PROGRAM, "run", "--config", str(config)) as terminal:
        terminal.read_until("ready")
        assert terminal.stop(signal.SIGTERM) == 0
        assert not terminal.text.startswith("<")
        assert "\x1b[" in terminal.text
