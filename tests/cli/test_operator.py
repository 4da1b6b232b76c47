"""The commands that ask a running daemon, as an operator types them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dmnotid import __version__
from tests import forked
from tests.cli.program import PATIENCE, PROGRAM, Done, Terminal, call
from tests.processes import ENVIRONMENT, WITHOUT_PRIVILEGES, Service, needs_setpriv, running
from tests.support import NOWHERE, SERVER_ID, configuration, further, push, wait_until, write_config, write_script


class Operator(NamedTuple):
    """A daemon, and an operator who asks it."""

    service: Service
    config: Path

    def type(self, *words: str) -> Done:
        """Run a command; the plain environment leads it to the daemon."""
        return call(*words, RUNTIME_DIRECTORY=str(self.config.parent))

    def sessions(self, *words: str) -> dict[int, Any]:
        """List sessions as JSON, by number."""
        done = self.type("sessions", "--json", *words)
        assert (done.status, done.err) == (0, "")
        return {session["session"]: session for session in map(json.loads, done.out.splitlines())}

    def wait_for(self, session: int, state: str) -> dict[str, Any]:
        """Wait until a session is in a state."""
        return wait_until(lambda: (it := self.sessions(str(session))[session])["state"] == state and it)


@contextmanager
def operated(directory: Path, hook: str = "exit 0", **sections: Any) -> Iterator[Operator]:  # noqa: ANN401
    """Run a daemon with a hook in shell."""
    command = [str(write_script(directory / "hook", hook))]
    config = write_config(directory, command, **sections)
    environment = ENVIRONMENT | {"RUNTIME_DIRECTORY": str(directory)}
    with running(directory) as start:
        service = start(config, environment=environment)
        service.wait("daemon ready")
        yield Operator(service, config)


@contextmanager
def busy(directory: Path) -> Iterator[Operator]:
    """Run a daemon whose hook fails, with session 1 paused, session 2 without a connection, and two discards."""
    with operated(directory, "exit 7", retry={"first": "1h", "longest": "1h", "attempts": 10}) as it:
        it.service.send(push(1), push(2, preferred=NOWHERE), b"\x01\x06\x00", push(3)[:-1] + b"x")
        it.service.wait("session try failed")
        yield it


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """Run a busy daemon for a test that changes something."""
    with busy(tmp_path) as it:
        yield it


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """Run a busy daemon that no test changes."""
    with busy(tmp_path_factory.mktemp("reader")) as it:
        yield it


def test_status_shows_servers_discards_and_what_is_pending(reader: Operator) -> None:
    done = reader.type("status")
    assert (done.status, done.err) == (0, "")
    assert f", pid {reader.service.process.pid}\n" in done.out
    assert "PROBLEM" not in done.out
    (line,) = (line for line in done.out.splitlines() if line.startswith(f"{SERVER_ID} "))
    assert re.fullmatch(rf"{SERVER_ID} +\d+ s ago +2 +1 +2  paused .*, exit 7", line)
    assert "discarded: digest-mismatch 1 (last " in done.out
    assert "truncated 1" in done.out
    total = done.out.splitlines()[-1]
    assert re.fullmatch(r"2 sessions pending, the oldest for \d+ s: 1 paused, 1 waiting \(dmnotid sessions\)", total)


def test_status_as_json_is_the_reply_of_the_daemon(reader: Operator) -> None:
    done = reader.type("status", "--json")
    status = json.loads(done.out)
    assert (done.status, status["version"], status["pid"]) == (0, 1, reader.service.process.pid)
    assert [server["id"] for server in status["servers"]] == ["dm.example", "other.example", "open.example"]


def test_check_of_a_good_daemon_is_ok(reader: Operator) -> None:
    done = reader.type("status", "--check")
    assert (done.status, done.err) == (0, "")
    assert re.match(r"OK 2 sessions pending, the oldest for \d+ s\|pending=2 accepted=2c discarded=2c ", done.out)


IMPORTED = """
import sys, socket, json
before = set(sys.modules)
from dmnotid.cli import main
status = main(["status"])
print(*sorted(set(sys.modules) - before), file=sys.stderr)
sys.exit(status)
"""


def test_plain_status_imports_little(reader: Operator) -> None:
    """Neither argparse nor typing, nor what starts a daemon: these would be most of its time."""
    environment = ENVIRONMENT | {"RUNTIME_DIRECTORY": str(reader.config.parent)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    shared = {f"dmnotid.cli.{name}" for name in ("asking", "status_text", "table")}
    commands = {"__future__", "dmnotid", "dmnotid.cli", *shared}
    assert set(done.stderr.split()) <= commands | {
        "gc",
        *("dmnotid.control", "dmnotid.control.client", "dmnotid.host", "dmnotid.host.text"),
    }


def test_reload_prints_every_problem_and_status_keeps_the_first(operator: Operator) -> None:
    good = operator.config.read_text()
    operator.config.write_text(f"{good}\nbogus: 1\nlog: 5\n")
    done = operator.type("reload")
    assert (done.status, done.out) == (1, "")
    problems = done.err.splitlines()
    assert len(problems) == 2
    assert all(line.startswith(f"{operator.config}:") for line in problems)
    done = operator.type("status")
    assert done.status == 1
    assert "PROBLEM   reload refused " in done.out
    assert f"          {problems[0]} (1 of 2, dmnotid check has all)\n" in done.out
    assert operator.type("status", "--check").out.startswith(f"WARNING reload refused: {problems[0]}; ")
    operator.config.write_text(good)
    assert operator.type("reload") == Done(0, "", "")
    assert operator.type("status").status == 0


def test_reload_prints_warnings(operator: Operator) -> None:
    warned = configuration(operator.config.parent) | {"servers": [{"id": "a\u200b", "require_digest": False}]}
    operator.config.write_text(yaml.safe_dump(warned, allow_unicode=True))
    done = operator.type("reload")
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith("warning: ")
    assert "which is invisible" in done.err


def test_sessions_lists_the_pending_ones_with_why(reader: Operator) -> None:
    done = reader.type("sessions")
    assert (done.status, done.err) == (0, "")
    titles, paused, waiting, total = done.out.splitlines()
    assert titles.split() == ["SESSION", "SERVER", "ID", "AGE", "STATE", "TRY", "NEXT", "WHY"]
    assert paused.split()[:3] == ["1", SERVER_ID, "1"]
    # Pauses are shortened at random.
    assert re.search(r"paused   1/10  in \d+ min  exit 7$", paused)
    assert "waiting  0/10  -" in waiting
    assert "no mobile interface" in waiting
    assert total == "2 sessions pending"


def test_sessions_of_a_server_or_a_time_are_listed(reader: Operator) -> None:
    assert set(reader.sessions("--server", SERVER_ID)) == {1, 2}
    assert reader.sessions("--server", "other.example") == {}
    assert set(reader.sessions("--since", "-1d")) == {1, 2}
    assert reader.sessions("--since", "now+1d") == {}
    assert reader.type("sessions", "--since", "now+1d").out == "no session pending\n"


def test_one_session_is_shown_with_all_its_facts(reader: Operator) -> None:
    done = reader.type("sessions", "1")
    assert done.status == 0
    assert "\nbecause          exit 7\n" in done.out
    assert done.out.splitlines()[-2:] == [
        "log              journalctl -u dmnotid DMNOTID_SESSION=1",
        f"with repeats     journalctl -u dmnotid DMNOTID_SERVER_ID={SERVER_ID} DMNOTID_NOTIFICATION_ID=1",
    ]
    done = reader.type("sessions", "99")
    assert (done.status, done.out) == (1, "")
    assert done.err == "session 99 does not exist, or is forgotten; dmnotid sessions --all lists the others\n"


@pytest.mark.parametrize("which", [["--server", SERVER_ID], *further(["1"], ["--all"])], ids=" ".join)
def test_retry_ends_a_pause(operator: Operator, which: list[str]) -> None:
    done = operator.type("sessions", "retry", *which)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"session 1 of {SERVER_ID}: ")
    assert " (was paused until " in done.out
    assert len(done.out.splitlines()) == 1
    wait_until(lambda: operator.sessions("1")[1]["attempts"] == 2)


def test_retry_that_changes_nothing_shows_why(reader: Operator) -> None:
    done = reader.type("sessions", "retry", "2")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"session 2 of {SERVER_ID} is not paused: waiting, no mobile interface")
    assert reader.type("sessions", "retry", "--server", "other.example").out == "no session is paused or resting\n"


def test_failed_session_runs_again_after_a_retry(tmp_path: Path) -> None:
    with operated(tmp_path, "exit 7", retry={"first": "10ms", "longest": "10ms", "attempts": 1}) as operator:
        operator.service.send(push(1))
        operator.wait_for(1, "failed")
        write_script(tmp_path / "hook", "exit 0")
        done = operator.type("sessions", "retry", "1")
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith(f"session 1 of {SERVER_ID}: ")
        operator.wait_for(1, "done")
        done = operator.type("sessions", "retry", "1")
        assert (done.status, done.out) == (1, "")
        assert done.err == "session 1 is not pending (done), so nothing has changed\n"


def test_cancel_closes_a_session_and_a_repeat_starts_nothing(operator: Operator) -> None:
    done = operator.type("sessions", "cancel", "2")
    remembered = "its id stays remembered, a repeat starts nothing"
    assert done == Done(0, f"session 2 of {SERVER_ID}: cancelled (was waiting); {remembered}\n", "")
    operator.wait_for(2, "cancelled")
    operator.service.send(push(2, preferred=NOWHERE))
    wait_until(lambda: "duplicate" in operator.service.reasons())
    assert set(operator.sessions()) == {1}
    assert set(operator.sessions("--all")) == {1, 2}
    done = operator.type("sessions", "cancel", "2")
    assert done == Done(1, "", "session 2 is not pending (cancelled), so nothing has changed\n")
    operator.service.stop()
    for words, listed in (([], ["1"]), (["--all"], ["1", "2"])):
        stopped = operator.type("sessions", "--config", str(operator.config), *words)
        assert [line.split()[0] for line in stopped.out.splitlines()[1:-1]] == listed


def test_cancel_ends_a_running_hook(tmp_path: Path) -> None:
    with operated(tmp_path, "exec sleep 1000") as operator:
        operator.service.send(push(1))
        operator.wait_for(1, "running")
        wait_until(lambda: operator.sessions("1")[1]["pid"])
        done = operator.type("sessions", "cancel", "1")
        assert "1 of dm.example: cancelled (was running); " in done.out
        operator.wait_for(1, "cancelled")


@pytest.mark.parametrize(
    "words",
    [["1", "2"], ["retry"], ["retry", "1", "--all"], ["cancel"], ["cancel", "--all"], ["cancel", "x"], ["0"]],
    ids=" ".join,
)
def test_wrong_session_is_exit_status_2(words: list[str], tmp_path: Path) -> None:
    done = call("sessions", *words, "--socket", str(tmp_path / "control"))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("usage: dmnotid sessions [OPTION...] [N]\n")


def test_watch_shows_what_changes_until_it_is_interrupted(operator: Operator) -> None:
    words = [*PROGRAM, "sessions", "--watch"]
    with Terminal(*words, RUNTIME_DIRECTORY=str(operator.config.parent)) as terminal:
        before = terminal.read_until("2 sessions pending\n")
        assert "--- " not in before
        operator.type("sessions", "cancel", "2")
        text = terminal.read_until("cancelled  0/10")
        assert re.search(rf"^--- .*\n +2  {SERVER_ID} .* cancelled  0/10", text, re.MULTILINE)
        assert terminal.stop(signal.SIGINT) == 130


def test_watch_does_not_repeat_a_session_that_runs(tmp_path: Path) -> None:
    with operated(tmp_path, "exec sleep 1000") as operator:
        operator.service.send(push(1), push(2, preferred=NOWHERE))
        operator.wait_for(1, "running")
        with Terminal(*PROGRAM, "sessions", "--watch", RUNTIME_DIRECTORY=str(tmp_path)) as terminal:
            terminal.read_until("2 sessions pending\n")
            operator.type("sessions", "cancel", "2")
            assert terminal.read_until("cancelled  0/3").count("running") == 1
            assert terminal.stop(signal.SIGINT) == 130
        # The hook would outlive a daemon that is killed.
        operator.type("sessions", "cancel", "1")
        operator.wait_for(1, "cancelled")


@pytest.mark.parametrize(
    ("form", "wanted"),
    [([], r"\d\d:\d\d:\d\d (?!warning: |error: )\S"), (["--json"], r'\{.*"level": "info".*"session": 1\b')],
    ids=["text", "json"],
)
def test_follow_prints_records_of_the_next_daemon_too(operator: Operator, form: list[str], wanted: str) -> None:
    words = [*PROGRAM, "follow", "--level", "info", "--session", "1", *form]
    # An empty PYTHONUNBUFFERED is none.
    environment = os.environ | {"RUNTIME_DIRECTORY": str(operator.config.parent), "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.set_blocking(process.stdout.fileno(), False)
        try:
            # Only what is logged once it follows is printed, so there must be something again and again.
            def line() -> bool:
                operator.type("sessions", "retry", "1")
                return process.stdout is not None and any(re.match(wanted, line) for line in process.stdout.readlines())

            wait_until(line)
            operator.service.stop()
            ended = "the daemon has ended; its records continue once it answers again\n"
            assert process.stderr.readline() == ended
            with running(operator.config.parent) as start:
                service = start(
                    operator.config, environment=ENVIRONMENT | {"RUNTIME_DIRECTORY": environment["RUNTIME_DIRECTORY"]}
                )
                assert process.stderr.readline() == f"dmnotid {__version__} answers, pid {service.process.pid}\n"
                wait_until(line)
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE) == 130
        finally:
            process.kill()


def test_discards_are_explained_by_decode(reader: Operator) -> None:
    done = reader.type("discards")
    assert (done.status, done.err) == (0, "")
    assert re.findall(r"(?m)^# .* ([a-z-]+) from 127.0.0.1:", done.out) == ["truncated", "digest-mismatch"]
    explained = call("decode", "--json", "--config", str(reader.config), given=done.out.encode())
    assert [json.loads(line)["reason"] for line in explained.out.splitlines()] == ["truncated", "digest-mismatch"]
    only = reader.type("discards", "truncated")
    assert only.out.splitlines()[1:] == ["010600"]
    assert reader.type("discards", "stale") == Done(0, "", "")


def test_reason_that_does_not_exist_is_exit_status_2(tmp_path: Path) -> None:
    done = call("discards", "truncatde", "--socket", str(tmp_path / "control"))
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        "dmnotid discards: error: 'truncatde' is not a reason; did you mean truncated?"
    )


def test_stopped_daemon_leaves_its_journal_to_read(operator: Operator) -> None:
    operator.service.stop()
    config = ["--config", str(operator.config)]
    done = operator.type("status", *config)
    assert (done.status, done.err) == (3, "")
    first, journal, _, titles, row, _, pending = done.out.splitlines()
    assert first == f"dmnotid does not run ({operator.config.parent}/control: no daemon listens there)"
    assert journal.startswith(f"journal   {operator.config.parent}/state/journal.sqlite3 as of ")
    assert titles.split() == ["SERVER", "HEARD", "PENDING", "LAST", "SESSION"]
    assert row.startswith(f"{SERVER_ID}  ")
    assert row.endswith(", exit 7")
    assert re.fullmatch(r"2 sessions pending, the oldest for \d+ s", pending)
    done = operator.type("sessions", *config)
    assert (done.status, done.err) == (3, f"{first}\n")
    assert [line.split()[:3] for line in done.out.splitlines()[1:3]] == [["1", SERVER_ID, "1"], ["2", SERVER_ID, "2"]]
    done = operator.type("sessions", "1", "--json", *config)
    assert (done.status, json.loads(done.out)["outcome"]) == (3, "exit 7")
    assert operator.type("sessions", "99", *config).status == 1
    assert operator.type("sessions", "--server", "other.example", *config).out == "no session pending\n"


@needs_setpriv
def test_journal_that_this_user_may_not_read_is_exit_status_4(operator: Operator) -> None:
    operator.service.stop()
    (operator.config.parent / "state/journal.sqlite3").chmod(0)
    for command in ("status", "sessions"):
        words = [command, "--config", operator.config]
        environment = os.environ | {"RUNTIME_DIRECTORY": str(operator.config.parent)}
        done = forked.run(words, environment, prefix=WITHOUT_PRIVILEGES)
        assert done.returncode == 4
        assert b"Permission denied; root and the user of the daemon can read the journal" in done.stderr
