"""`dmnotid run`: how it begins and how it ends; what it does between is in the end-to-end tests."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from dmnotid.host.loop import loop_factory
from tests.cli.program import PATIENCE, PROGRAM, Done, Terminal, dmnotid, shows_secret, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path, more=f"listen: '127.0.0.1:0'\nstate: {tmp_path}/state\n")


def test_no_configuration(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    wanted = f"{missing}: {missing} cannot be read: No such file or directory\n"
    assert dmnotid("run", "--config", str(missing)) == Done(1, "", wanted)


def test_wrong_configuration(tmp_path: Path) -> None:
    done = dmnotid("run", "--config", str(write_config(tmp_path, more="listen: 5\nbogus: 1\n")))
    assert (done.status, done.out) == (1, "")
    assert [line.split(": ")[1] for line in done.err.splitlines()] == ["listen", "bogus"]
    assert not shows_secret(done.err)


def events(out: str) -> list[dict[str, object]]:
    """Read a log for the journal: every line a level and an object."""
    lines = out.splitlines()
    assert all(line[:3] in {"<3>", "<4>", "<6>"} for line in lines), out
    return [json.loads(line[3:]) for line in lines]


def test_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{sock.getsockname()[1]}"
        done = dmnotid("run", "--config", str(write_config(tmp_path, more=f"listen: '{listen}'\nstate: {tmp_path}\n")))
    assert done.status == 1
    last = events(done.out)[-1]
    assert (last["event"], last["problem"]) == ("daemon not started", f"listen: {listen}: Address already in use")


def test_state_that_cannot_be_kept(tmp_path: Path) -> None:
    done = dmnotid("run", "--config", str(write_config(tmp_path, more="listen: '127.0.0.1:0'\nstate: /dev/null/x\n")))
    assert done.status == 1
    last = events(done.out)[-1]
    assert last["event"] == "daemon not started"
    assert "/dev/null/x: Not a directory" in str(last["problem"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_in_order(number: signal.Signals, config: Path) -> None:
    with subprocess.Popen([*PROGRAM, "run", "--config", str(config)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        out = ""
        while '"daemon ready"' not in out:
            line = process.stdout.readline()
            assert line, out
            out += line
        process.send_signal(number)
        out += process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0
    assert [found["event"] for found in events(out)][-2:] == ["daemon stopping", "daemon stopped"]


def test_warnings_are_logged(tmp_path: Path) -> None:
    servers = "- {id: a, secret: {text: hush-hush}}"
    done = dmnotid("run", "--config", str(write_config(tmp_path, servers, "state: /dev/null/x\n")))
    first = events(done.out)[0]
    assert (first["event"], first["level"]) == ("configuration warning", "warning")
    assert "servers[0].secret.text: has only 9 octets" in str(first["problem"])
    assert not shows_secret(done.out, b"hush-hush")


def test_log_is_readable_on_a_terminal(config: Path) -> None:
    with Terminal(*PROGRAM, "run", "--config", str(config)) as terminal:
        terminal.read_until("ready")
        assert terminal.stop(signal.SIGTERM) == 0
        assert not terminal.text.startswith("<")
        assert "\x1b[" in terminal.text


def test_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so once, and runs on asyncio."""
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with structlog.testing.capture_logs() as logs:
        factory = loop_factory()
    assert factory is asyncio.new_event_loop
    assert [(log["event"], log["log_level"]) for log in logs] == [("uvloop missing", "warning")]


@pytest.fixture
def no_uvloop(tmp_path: Path) -> dict[str, str]:
    """Provide the environment of a machine that has no uvloop."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "uvloop.py").write_text("raise ImportError('no wheel here')\n")
    path = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{hidden}{os.pathsep}{path}" if path else str(hidden)}


def test_runs_without_uvloop(config: Path, no_uvloop: dict[str, str]) -> None:
    with subprocess.Popen(
        [*PROGRAM, "run", "--config", str(config)], stdout=subprocess.PIPE, text=True, env=os.environ | no_uvloop
    ) as process:
        assert process.stdout is not None
        out = ""
        while '"daemon ready"' not in out:
            line = process.stdout.readline()
            assert line, out
            out += line
        process.terminate()
        out += process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0
    found = events(out)
    assert [log["problem"] for log in found if log["event"] == "uvloop missing"] == ["no wheel here"]
    assert [log["loop"] for log in found if log["event"] == "daemon ready"] == ["asyncio"]
