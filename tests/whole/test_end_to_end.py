"""A real process: `python -m dmnotid run` with a file, datagrams from `dmnotid send`, a hook, signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from dmnotid.hook.facts import PATH
from dmnotid.journal.file import FILE_NAME
from tests import forked
from tests.processes import DMNOTID, ENVIRONMENT, Run, Service
from tests.support import (
    DEADLINE,
    NOWHERE,
    OTHER_ID,
    SERVER_ID,
    SERVERS,
    WIRELINE,
    Recorder,
    further,
    push,
    wait_until,
    write_config,
    write_script,
)


def dmnotid_send(service: Service, config: Path, *arguments: str) -> str:
    host, port = service.address
    done = forked.run(["send", "--to", f"{host}:{port}", "--config", config, *arguments], ENVIRONMENT)
    done.check_returncode()
    return done.stdout.decode()


def hostile() -> list[bytes]:
    """Return datagrams of which none may start a session with `freshness.max_skew` of ten minutes."""
    good = push(77, preferred=WIRELINE)
    return [
        b"",
        b"\0",
        os.urandom(500),
        good[:-1],
        good[:20],
        good + b"\0",
        good[:30] + bytes([good[30] ^ 1]) + good[31:],
        b"\0\x07" + good[2:],
        b"GET / HTTP/1.1\r\n\r\n\x1b[31m",
        push(77, secret=b"not the secret at all"),
        push(77, server_id="nobody.example", secret=b"not the secret at all"),
        push(77, sent_at=time.time() - 10 * 86_400),
        push(77, sent_at=time.time() + 10 * 86_400),
    ]


def test_notification_starts_the_hook_with_the_documented_facts(tmp_path: Path, start: Run) -> None:
    """4, 6, 6.2: arguments, standard input and environment are exactly those of docs/hook.md."""
    recorder = Recorder(tmp_path, "print('session over'); print('to the log', file=sys.stderr)")
    arguments = ["{server_id}", "{notification_id}", "{connection}", "{interface}", "{attempt}"]
    config = write_config(tmp_path, recorder.command + arguments, hook={"environment": {"DM_PROFILE": "default"}})
    service = start(config)
    before = time.time()
    told = ["--id", "4661", "--prefer", "wireline,mobile", "--req-mo", "1,2", "--req-mo-cv", "3:deadbeef"]
    assert "NOTIFICATION-ID 4661" in dmnotid_send(service, config, "--server", SERVER_ID, *told)
    service.wait("session done")
    after = time.time()

    (run,) = recorder.runs
    assert run["argv"] == [*recorder.command, "dm.example", "4661", "wireline", "lo", "1"]
    facts = json.loads(run["stdin"])
    sent_at, received_at, source = facts.pop("sent_at"), facts.pop("received_at"), facts.pop("source")
    assert int(before) <= sent_at <= after
    assert before - 0.001 <= received_at <= after + 0.001
    assert re.fullmatch(r"127\.0\.0\.1:[0-9]+", source)
    assert facts == {
        "version": 1, "session": 1, "attempt": 1, "server_id": "dm.example", "notification_id": 4661,
        "server_id_from": "given",
        "connection": "wireline", "interface": "lo", "preferred_connections": ["wireline", "mobile"],
        "requested_mos": [1, 2], "cached_mos": [[3, "deadbeef"]], "unknown_options": [], "signed": True,
    }  # fmt: skip
    assert run["environment"] == {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": run["environment"]["HOME"],
        "DM_PROFILE": "default",
        "DMNOTID_SERVER_ID": "dm.example",
        "DMNOTID_NOTIFICATION_ID": "4661",
        "DMNOTID_CONNECTION": "wireline",
        "DMNOTID_INTERFACE": "lo",
        "DMNOTID_PREFERRED": "wireline mobile",
        "DMNOTID_REQ_MO": "1 2",
        "DMNOTID_REQ_MO_CV": "3:deadbeef",
        "DMNOTID_SENT_AT": str(sent_at),
        "DMNOTID_RECEIVED_AT": f"{received_at:.3f}",
        "DMNOTID_SIGNED": "1",
        "DMNOTID_SOURCE": source,
        "DMNOTID_ATTEMPT": "1",
        "DMNOTID_SESSION": "1",
    }
    said = {(line["stream"], line["line"], line["session"]) for line in service.of("hook output")}
    assert said == {("stdout", "session over", 1), ("stderr", "to the log", 1)}
    assert service.of("daemon ready")[0]["loop"] == ("uvloop" if find_spec("uvloop") else "asyncio")
    assert service.stop() == 0
    assert service.lines()[-1]["event"] == "daemon stopped"
    assert service.errors == ""


def test_hook_runs_once_beside_hostile_datagrams_and_after_a_restart(tmp_path: Path, start: Run) -> None:
    """5.1.4: a repeat is a duplicate in the next process too."""
    recorder = Recorder(tmp_path)
    config = write_config(tmp_path, recorder.command, freshness={"max_skew": "10m"})
    datagram = push(1, preferred=WIRELINE)
    for round_ in range(2):
        service = start(config)
        for count, huge in enumerate([b"\xff" * 65_507, bytes(65_507)], 1):
            # One by one: the buffer of the socket has room for one alone.
            service.send(huge)
            service.wait("datagram discarded", count)
        for _ in range(2):
            service.send(*hostile(), datagram)
        service.send(push(100 + round_, preferred=WIRELINE))
        service.wait("session done", 2 - round_)
        service.wait("notification accepted", 2 - round_)
        assert service.stop() == 0
        stopped = service.lines()[-1]
        assert stopped["received"] == 2 + 2 * len(hostile()) + 3
        assert "bugs" not in stopped
        assert stopped["accepted"] == 2 - round_
        assert "\x1b" not in (tmp_path / f"log{round_}").read_text()
        for reason in ("truncated", "trailing-octets", "not-a-push", "digest-mismatch", "unknown-server", "stale"):
            assert stopped[reason] >= 2, reason
    assert recorder.names == [(1, 1), (2, 1), (3, 1)]
    assert recorder.notification_ids == [1, 100, 101]
    assert service.errors == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, *further(signal.SIGINT)])
def test_signal_stops_the_daemon_after_its_running_hook(tmp_path: Path, start: Run, number: signal.Signals) -> None:
    recorder = Recorder(tmp_path, "import time; time.sleep(0.3)")
    service = start(write_config(tmp_path, recorder.command))
    service.send(push(1, preferred=WIRELINE))
    wait_until(lambda: recorder.names)
    assert service.stop(number) == 0
    assert [line["event"] for line in service.lines()][-3:] == ["daemon stopping", "session done", "daemon stopped"]


@pytest.mark.parametrize(
    "storm", [(signal.SIGHUP, signal.SIGTERM, signal.SIGINT), *further(((signal.SIGHUP,),), ((signal.SIGTERM,),))]
)
def test_signals_at_the_very_end_do_not_change_the_exit_status(
    tmp_path: Path, start: Run, storm: tuple[signal.Signals, ...]
) -> None:
    for _ in range(3):
        service = start(write_config(tmp_path), forked=False)
        service.wait("daemon ready")
        service.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + DEADLINE
        while service.process.poll() is None:
            for number in storm:
                service.process.send_signal(number)
            assert time.monotonic() < deadline
            # The process needs some time, too.
            time.sleep(0.0005)
        assert service.process.returncode == 0
        assert service.lines()[-1]["event"] == "daemon stopped"


IGNORES = """
import os, signal, sys
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_hook_does_not_inherit_ignored_or_blocked_signals(tmp_path: Path, start: Run) -> None:
    hook = write_script(tmp_path / "hook", "grep -E 'Sig(Ign|Blk):' /proc/self/status")
    service = start(write_config(tmp_path, [str(hook)]), [sys.executable, "-c", IGNORES])
    service.send(push(1, preferred=WIRELINE))
    service.wait("session done")
    assert [line["line"] for line in service.of("hook output")] == [
        f"{name}:\t{0:016x}" for name in ("SigBlk", "SigIgn")
    ]
    service.process.send_signal(signal.SIGHUP)
    service.wait("configuration reloaded")
    assert service.stop() == 0


def test_sighup_applies_a_configuration_or_reports_its_problems(tmp_path: Path, start: Run) -> None:
    """Also the level and the format of the log."""
    file = write_config(tmp_path, log={"level": "warning"})
    service = start(file)
    # Signal handlers are installed before.
    wait_until((tmp_path / "state" / FILE_NAME).exists)
    assert service.lines() == []
    write_config(tmp_path, log={"level": "debug"}, servers=SERVERS[:1])
    service.process.send_signal(signal.SIGHUP)
    assert service.wait("configuration reloaded")["servers"] == 1
    good = file.read_text()
    file.write_text(good + "more: 1\n")
    service.process.send_signal(signal.SIGHUP)
    assert service.wait("reload refused")["level"] == "error"
    assert "unknown key" in service.wait("configuration problem")["problem"]
    assert service.stop() == 0


def test_queued_datagrams_are_accepted_at_sigterm(tmp_path: Path, start: Run) -> None:
    recorder = Recorder(tmp_path)
    config = write_config(tmp_path, recorder.command, sessions={"max_pending": 1_000})
    service = start(config)
    address = service.address
    service.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for number in range(150):
            sock.sendto(push(number, preferred=NOWHERE), address)
        sock.sendto(push(5, server_id=OTHER_ID, preferred=WIRELINE), address)
    service.process.send_signal(signal.SIGTERM)
    service.process.send_signal(signal.SIGCONT)
    assert service.process.wait(DEADLINE) == 0
    assert service.lines()[-1]["accepted"] == 151
    again = start(config)
    again.wait("session done")
    assert again.of("daemon ready")[0]["pending"] == 151 - len(service.of("session done"))
    assert again.stop() == 0
    assert len(recorder.names) == 1


def test_session_interrupted_by_a_crash_runs_again(tmp_path: Path, start: Run) -> None:
    recorder = Recorder(tmp_path, "import time; time.sleep(1000)")
    config = write_config(tmp_path, recorder.command)
    service = start(config)
    service.send(push(1, preferred=WIRELINE), push(2, preferred=WIRELINE))
    service.wait("notification accepted", 2)
    wait_until(lambda: recorder.names)
    assert service.stop(signal.SIGKILL) == -signal.SIGKILL
    # Under systemd the control group ends before the next start.
    os.killpg(recorder.runs[0]["group"], signal.SIGKILL)
    recorder.behave("")
    again = start(config)
    again.wait("session done", 2)
    assert again.stop() == 0
    assert recorder.names == [(1, 1), (1, 2), (2, 1)]
    assert [run["environment"]["DMNOTID_ATTEMPT"] for run in recorder.runs] == ["1", "2", "1"]


def test_damaged_journal_is_set_aside_and_reception_goes_on(tmp_path: Path, start: Run) -> None:
    recorder = Recorder(tmp_path)
    config = write_config(tmp_path, recorder.command)
    service = start(config)
    service.send(push(1, preferred=WIRELINE), push(2, preferred=NOWHERE))
    service.wait("session done")
    service.wait("notification accepted", 2)
    assert service.stop() == 0
    journal = tmp_path / "state" / FILE_NAME
    with journal.open("r+b") as file:
        file.write(b"junk over the header")
    again = start(config)
    again.send(push(3, preferred=WIRELINE))
    again.wait("session done")
    line = again.wait("journal set aside")
    assert line["level"] == "error"
    assert Path(line["kept_as"]).read_bytes().startswith(b"junk over the header")
    again.send(push(3, preferred=WIRELINE))
    assert again.wait("datagram discarded")["reason"] == "duplicate"
    assert again.stop() == 0


def test_daemon_runs_without_uvloop(tmp_path: Path, start: Run) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "uvloop.py").write_text("raise ImportError('not built for this machine')\n")
    recorder = Recorder(tmp_path)
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{shadow}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    service = start(write_config(tmp_path, recorder.command), environment=environment, forked=False)
    service.send(push(1, preferred=WIRELINE))
    service.wait("session done")
    (line,) = service.of("uvloop missing")
    assert line["level"] == "warning"
    assert line["problem"] == "not built for this machine"
    assert service.of("daemon ready")[0]["loop"] == "asyncio"
    assert service.stop() == 0
    assert service.errors == ""
    assert len(recorder.names) == 1


def test_second_process_on_the_same_state_does_not_start(tmp_path: Path, start: Run) -> None:
    config = write_config(tmp_path)
    first = start(config)
    first.wait("daemon ready")
    second = start(config)
    assert second.process.wait(DEADLINE) == 1
    assert "another process has it open" in second.of("daemon not started")[0]["problem"]
    first.send(push(1))
    first.wait("notification accepted")
    assert first.stop() == 0


def test_closed_log_pipe_changes_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    config = write_config(tmp_path, recorder.command)
    process = subprocess.Popen(
        [*DMNOTID, "run", "--config", config], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        while (line := json.loads(process.stdout.readline()))["event"] != "daemon ready":
            if line["event"] == "socket listening":
                host, _, port = line["listen"].rpartition(":")
        process.stdout.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(push(1, preferred=WIRELINE), (host, int(port)))
        wait_until(lambda: recorder.names)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
