"""Hooks of a real daemon under trouble: other locales, kernels that refuse, locks that outlive a daemon."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.processes import DMNOTID, ENVIRONMENT, Run, Service
from tests.support import (
    OTHER_ID,
    SECRET,
    SERVER_ID,
    WIRELINE,
    Recorder,
    further,
    push,
    wait_until,
    write_config,
    write_script,
)

CYRILLIC = "dm.пример.рф"


# The locale


@pytest.fixture
def latin_1(tmp_path: Path) -> dict[str, str]:
    """An environment with a locale of ISO 8859-1, which is made for this test."""
    locales = tmp_path / "locales"
    locales.mkdir()
    command = ["localedef", "-i", "de_DE", "-f", "ISO-8859-1", str(locales / "de_DE.ISO-8859-1")]
    # Its exit status is 1 for warnings too.
    if shutil.which("localedef") is None or not (subprocess.run(command, check=False), any(locales.iterdir()))[1]:
        pytest.skip("needs localedef with the sources of its locales")
    return {**ENVIRONMENT, "LOCPATH": str(locales), "LANG": "de_DE.ISO-8859-1", "LC_ALL": "de_DE.ISO-8859-1"}


def test_hook_gets_utf_8_in_any_locale(tmp_path: Path, start: Run, latin_1: dict[str, str]) -> None:
    """Arguments, environment and input; the paths of the configuration are UTF-8 as well."""
    home = tmp_path / "хук"
    home.mkdir()
    recorder = Recorder(home)
    servers = [{"id": CYRILLIC, "secret": {"text": SECRET.decode()}}]
    sections = {"servers": servers, "state": str(tmp_path / "состояние")}
    command = [*recorder.command, "{server_id}", "ключ"]
    config = write_config(tmp_path, command, **sections, hook={"environment": {"DM_KEY": "ключ"}})
    encoding = "import locale; print(locale.getpreferredencoding(False))"
    shown = subprocess.run([DMNOTID[0], "-c", encoding], env=latin_1, check=True, capture_output=True, text=True)
    assert shown.stdout == "ISO-8859-1\n"
    service = start(config, environment=latin_1, forked=False)
    service.send(push(7, server_id=CYRILLIC, secret=SECRET, preferred=WIRELINE))
    assert service.wait("session done")["server_id"] == CYRILLIC
    (found,) = recorder.runs
    assert found["argv"] == [*recorder.command, CYRILLIC, "ключ"]
    assert (found["environment"]["DMNOTID_SERVER_ID"], found["environment"]["DM_KEY"]) == (CYRILLIC, "ключ")
    assert json.loads(found["stdin"])["server_id"] == CYRILLIC
    assert (tmp_path / "состояние" / "journal.sqlite3").exists()


# Kernels that refuse


@pytest.fixture
def injected(tmp_path: Path) -> Iterator[Run]:
    """Start daemons under strace, which makes a system call fail."""
    strace = ["strace", "-f", "-qq", "-o", "/dev/null"]
    probe = [*strace, "-e", "trace=pidfd_open", "true"]
    if shutil.which("strace") is None or subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("needs strace, and the right to trace")
    services: list[Service] = []

    def start(config: Path, injection: Sequence[str]) -> Service:
        call = injection[0].partition(":")[0]
        words = [*strace, "-e", f"trace={call}", *(word for one in injection for word in ("-e", f"inject={one}"))]
        services.append(Service(config, tmp_path / "log", words))
        return services[-1]

    yield start
    for service in services:
        # A tracer that is killed kills nothing: end what it traces.
        for pid in children_of(service.process.pid):
            os.kill(pid, signal.SIGKILL)
        service.process.wait()


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


@pytest.mark.parametrize("call", ["pidfd_open", "memfd_create"])
@pytest.mark.parametrize("error", ["EPERM", *further("ENOSYS")])
def test_kernel_without_a_needed_call_is_an_error_at_the_start(
    tmp_path: Path, injected: Run, call: str, error: str
) -> None:
    service = injected(write_config(tmp_path), [f"{call}:error={error}"])
    problem = service.problem()
    assert f"hook.command: {call}: " in problem
    assert "Linux 5.3" in problem
    assert "seccomp" in problem
    assert service.of("daemon ready") == []


def test_hook_socket_needs_no_such_call(tmp_path: Path, injected: Run) -> None:
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("command:\n  - /bin/true", f"socket: {tmp_path}/session"))
    text = config.read_text().replace("  kill_after: 5s\n", "")
    config.write_text(text)
    service = injected(config, ["pidfd_open:error=EPERM"])
    assert service.wait("daemon ready")


@pytest.mark.parametrize("error", ["EMFILE", *further("ENOMEM", "EPERM")])
def test_hook_whose_exit_cannot_be_watched_runs_once_to_its_end(tmp_path: Path, injected: Run, error: str) -> None:
    """The first call is the look at the start of the daemon."""
    ran = tmp_path / "ran"
    hook = write_script(tmp_path / "hook", f"echo begun >>{ran}; sleep 0.3; echo ended >>{ran}; echo fine; exit 0")
    service = injected(write_config(tmp_path, [str(hook)]), [f"pidfd_open:error={error}:when=2+"])
    service.send(push(7, preferred=WIRELINE))
    done = service.wait("session done")
    assert (done["attempts"], done["outcome"]) == (1, "exit 0")
    assert ran.read_text() == "begun\nended\n"
    assert [line["line"] for line in service.of("hook output")] == ["fine"]


@pytest.mark.parametrize("error", ["EMFILE", *further("ENFILE", "ENOMEM")])
def test_hook_whose_input_cannot_be_made_is_started_later_by_its_first_try(
    tmp_path: Path, injected: Run, error: str
) -> None:
    ran = tmp_path / "ran"
    hook = write_script(tmp_path / "hook", f"echo $DMNOTID_ATTEMPT >>{ran}")
    config = write_config(tmp_path, [str(hook)], retry={"attempts": 1})
    service = injected(config, [f"memfd_create:error={error}:when=2..5"])
    service.send(push(7, preferred=WIRELINE))
    assert service.wait("session done")["attempts"] == 1
    assert [line["attempt"] for line in service.of("hook not started")] == [1, 1, 1, 1]
    assert service.of("session try failed") == []
    assert ran.read_text() == "1\n"


# Locks


def test_next_daemon_waits_for_a_hook_that_outlived_the_last_one(tmp_path: Path, start: Run) -> None:
    go, trace = tmp_path / "go", tmp_path / "trace"
    text = f"""
        echo $DMNOTID_SERVER_ID $DMNOTID_ATTEMPT begins >>{trace}
        [ $DMNOTID_ATTEMPT = 1 ] && while [ ! -e {go} ]; do sleep 0.05; done
        echo $DMNOTID_SERVER_ID $DMNOTID_ATTEMPT ends >>{trace}
    """
    config = write_config(tmp_path, [str(write_script(tmp_path / "hook", text))])
    first = start(config)
    first.send(push(1, preferred=WIRELINE))
    wait_until(lambda: trace.exists() and trace.read_text())
    first.process.kill()
    first.process.wait()

    second = start(config)
    held = second.wait("lock held")
    assert (held["level"], held["server_id"]) == ("warning", SERVER_ID)
    # A session of another server starts meanwhile, and comes after a look at the lock.
    second.send(push(2, server_id=OTHER_ID, preferred=WIRELINE))
    second.wait("session started")
    go.touch()
    second.wait("session done", 2)
    lines = [line for line in trace.read_text().splitlines() if SERVER_ID in line.split()]
    assert lines == [f"{SERVER_ID} {number} {what}" for number in (1, 2) for what in ("begins", "ends")]
    assert OTHER_ID in trace.read_text()
    assert second.stop() == 0
    assert list((tmp_path / "state" / "locks").iterdir()) == []


def test_child_that_a_hook_leaves_behind_holds_no_lock(tmp_path: Path, start: Run) -> None:
    hook = write_script(tmp_path / "hook", f"sleep 1000 >/dev/null 2>&1 & echo $! >>{tmp_path}/pids")
    service = start(write_config(tmp_path, [str(hook)]))
    try:
        service.send(push(1, preferred=WIRELINE), push(2, preferred=WIRELINE))
        service.wait("session done", 2)
        assert service.of("lock held") == []
    finally:
        for pid in (tmp_path / "pids").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
