"""`dmnotid test-hook`: it shows what a hook receives, and runs it as the daemon does."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dmnotid.config.values import ConnectionsConfig
from dmnotid.links.availability import Link, read_links
from tests.cli.program import (
    PATIENCE,
    PROGRAM,
    SCRIPT,
    Done,
    Terminal,
    call,
    dmnotid,
    shows_secret,
    through_shell,
    write_config,
)
from tests.support import group_of, is_alive, wait_until, write_script

SERVERS = """\
- {id: dm.example.com, secret: {text: lantern-and-rope-0042}}
- {id: "b 'c'", secret: {text: another-lantern-0043}}
- {id: open, require_digest: false}
"""
LOOPBACK = "connections: {reach: any, wireline: {interfaces: [lo]}}\n"
RECORDER = f"""#!{sys.executable} -IS
import json, os, sys
octets = open("/proc/self/environ", "rb").read().decode()
environment = dict(line.split("=", 1) for line in octets.split("\\0") if line)
facts = {{"argv": sys.argv, "environment": environment, "stdin": sys.stdin.read()}}
json.dump(facts, open(environment["RECORD"], "w"))
"""


class Place(NamedTuple):
    """A configuration, and the words that name it."""

    directory: Path
    file: Path

    @property
    def words(self) -> list[str]:
        return ["test-hook", "--config", str(self.file)]

    def configure(self, hook: str, more: str = LOOPBACK, servers: str = SERVERS) -> None:
        write_config(self.directory, servers, more)
        self.file.write_text(self.file.read_text().replace("{command: ['/bin/true']}", hook))

    def script(self, text: str, hook: str = "") -> Path:
        """Let the hook be a script."""
        file = write_script(self.directory / "hook", text)
        self.configure(f"{{command: ['{file}', '{{server_id}}', '{{attempt}}'] {hook}}}")
        return file


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, write_config(tmp_path, SERVERS, LOOPBACK))


def run(place: Place, *words: str) -> Done:
    return call(*place.words, *words)


def shown(place: Place, *words: str) -> dict[str, Any]:
    """Return the object that --json prints."""
    done = run(place, "--json", *words)
    assert done.status == 0
    found = json.loads(done.out)
    return {**found, "facts": json.loads(found["stdin"])}


# --- What is shown


WISHES = ["--prefer", "mobile,any", "--req-mo", "1,0xffff", "--req-mo-cv", "3:deadbeef,4:00000000"]


def test_shown_arguments_environment_and_input_are_those_of_the_hook(place: Place) -> None:
    """Once shown as JSON, and once recorded by a hook: alike but for the clock."""
    record = place.directory / "record"
    file = place.script(RECORDER, f", environment: {{RECORD: '{record}', LANG: C}}")
    words = [*WISHES, "--attempt", "3", "--server", "b 'c'", "--interface", "lo"]
    wanted = shown(place, *words)
    done = dmnotid(*place.words, *words, "--run", SECRET_OF_THE_CALLER="x")
    assert done.status == 0, done
    found = json.loads(record.read_text())
    for told_ in (wanted, found):
        told_["input"] = json.loads(told_["stdin"])
        for clock in ("DMNOTID_SENT_AT", "DMNOTID_RECEIVED_AT"):
            assert abs(float(told_["environment"].pop(clock)) - time.time()) < PATIENCE
        for clock in ("sent_at", "received_at"):
            assert abs(told_["input"].pop(clock) - time.time()) < PATIENCE
    assert found["argv"] == wanted["argv"] == [str(file), "b 'c'", "3"]
    assert found["environment"] == wanted["environment"]
    assert found["input"] == wanted["input"]
    assert found["stdin"].endswith("}\n")
    assert wanted["stdin"].endswith("}\n")
    assert wanted["input"] == {
        "version": 1,
        "session": 0,
        "attempt": 3,
        "server_id": "b 'c'",
        "server_id_from": "given",
        "notification_id": 1,
        "connection": "wireline",
        "interface": "lo",
        "preferred_connections": ["mobile", "any"],
        "requested_mos": [1, 65_535],
        "cached_mos": [[3, "deadbeef"], [4, "00000000"]],
        "unknown_options": [],
        "signed": True,
        "source": "192.0.2.1:40000",
    }


def test_text_has_the_same_facts_as_json(place: Place) -> None:
    place.configure("""{command: [/bin/true, "a\\nb", "{server_id}"], environment: {A: "x y\\e[31m"}}""")
    words = ["--interface", "lo", "--connection", "mobile"]
    wanted = shown(place, *words)
    done = run(place, *words)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:5] == [
        "made up      a notification of 'dm.example.com', session 0, attempt 1, over lo (mobile)",
        "hook         its path is trusted",
        "arguments    '/bin/true'",
        "             'a\\nb'",
        "             'dm.example.com'",
    ]
    environment = dict(line[13:].split("=", 1) for line in lines[5:-1])
    assert list(environment) == list(wanted["environment"])
    assert environment["A"] == "'x y\\x1b[31m'"
    assert lines[5].startswith("environment  PATH='/usr/local/sbin:")
    assert lines[-1].startswith('input        {"version": 1, "session": 0, ')


def test_first_server_is_the_default(place: Place) -> None:
    assert shown(place)["facts"]["server_id"] == "dm.example.com"
    facts = shown(place, "--server", "open")["facts"]
    assert (facts["server_id"], facts["signed"], facts["sent_at"]) == ("open", False, None)


@pytest.mark.parametrize("secret", ["{credential: none}", "{file: none}", "{text: hush-hush}"])
@pytest.mark.parametrize("words", [[], ["--run"]])
def test_no_secret_is_needed(place: Place, secret: str, words: list[str]) -> None:
    """The notification is signed with a secret that is made up."""
    place.configure("{command: [/bin/true]}", LOOPBACK, f"- {{id: a, secret: {secret}, former_secret: {secret}}}")
    done = run(place, *words)
    assert (done.status, done.err) == (0, "")
    assert "DMNOTID_SIGNED='1'" in done.out


@pytest.mark.parametrize(("server", "dropped"), [("dm.example.com", True), ("open", False)])
def test_unsigned_notification_is_noted_if_the_daemon_would_discard_it(
    place: Place, server: str, *, dropped: bool
) -> None:
    done = run(place, "--unsigned", "--server", server)
    assert done.status == 0
    assert "DMNOTID_SIGNED='0'" in done.out
    assert ("the daemon would discard such a notification: digest-missing: " in done.err) == dropped


@pytest.mark.parametrize(
    ("words", "connection", "note"),
    [
        ([], ("wireline", "lo"), ""),
        (["--prefer", "mobile,wireline"], ("wireline", "lo"), ""),
        (["--prefer", "mobile"], ("mobile", "wwan0"), "no suitable connection is available now"),
        (["--connection", "wireless"], ("wireless", "wlan0"), "no suitable connection is available now"),
        (["--connection", "wireline", "--prefer", "mobile"], ("wireline", "lo"), ""),
        (["--connection", "any"], ("any", "lo"), ""),
        (["--interface", "lo", "--prefer", "mobile"], ("wireline", "lo"), ""),
        (["--interface", "none7"], ("any", "none7"), "there is no network interface none7 now"),
        # The octet FF, which is not UTF-8.
        (["--interface", "wl\udcff"], ("any", "wl\udcff"), "there is no network interface wl\udcff now"),
        (["--connection", "mobile", "--interface", "none7"], ("mobile", "none7"), ""),
    ],
)
def test_connection_is_chosen_given_or_made_up(
    place: Place, words: list[str], connection: tuple[str, str], note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that has loopback alone, as a wireline connection."""

    def read_loopback(config: ConnectionsConfig) -> list[Link]:
        return [link for link in read_links(config) if link.name == "lo"]

    monkeypatch.setattr("dmnotid.cli.try_hook.read_links", read_loopback)
    done = run(place, "--json", *words)
    found = json.loads(done.out)
    assert (found["connection"], found["interface"]) == connection
    assert found["environment"]["DMNOTID_CONNECTION"] == connection[0]
    assert done.err.startswith(f"dmnotid test-hook: {note}" if note else "")
    assert len(done.err.splitlines()) == bool(note)


def test_unavailable_interface_is_noted(place: Place) -> None:
    place.configure("{command: [/bin/true]}", "")
    done = run(place, "--interface", "lo")
    assert done.status == 0
    assert "over lo (any)" in done.out
    assert done.err.startswith("dmnotid test-hook: the daemon would not use it now: lo: ")


def test_unreadable_links_are_noted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise OSError(1, os.strerror(1))

    monkeypatch.setattr("dmnotid.cli.try_hook.read_links", refuse)
    done = run(place)
    assert done.status == 0
    assert "over eth0 (any)" in done.out
    assert "the network interfaces cannot be read: Operation not permitted" in done.err


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_untrusted_hook_is_shown_with_status_1(place: Place, words: list[str]) -> None:
    """All is shown the same, with exit 1."""
    file = place.script("exit 0")
    file.chmod(0o775)
    done = run(place, *words)
    why = f"{file}: writable by its group ({group_of(file)}): chmod g-w {file}"
    assert done.status == 1
    assert done.err.endswith(f"hook.command: not trusted, so no session would start: {why}\n")
    if words:
        found = json.loads(done.out)
        assert (found["trusted"], found["problem"]) == (False, why)
    else:
        assert f"hook         not trusted ({why})\n" in done.out


def test_secrets_are_not_shown(place: Place) -> None:
    place.configure("{command: [/bin/true], environment: {TOKEN: for-the-hook-to-see}}")
    for words in ([], ["--json"], ["--run"], ["--server", "other"], ["--unsigned"]):
        done = run(place, *words)
        assert not shows_secret(done.out + done.err), words
        assert "for-the-hook-to-see" in done.out or done.status == 2


def test_warnings_of_the_configuration_are_shown(place: Place) -> None:
    place.configure("{command: [/bin/true], environment: {PATH: $PATH}}")
    assert run(place).err.startswith("warning: ")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--server", "other"], "; expected one of 'dm.example.com', \"b 'c'\", 'open'"),
        (["--server", ""], "--server: ''"),
        (["--run", "--json"], "not allowed with argument"),
        (["--prefer", "wlan"], "a list of any, mobile, wireless, wireline is expected"),
        (["--connection", "wlan"], "invalid choice: 'wlan'"),
        (["--attempt", "0"], "a number from 1 to 1000000000 is expected"),
        (["--interface", "a b"], "'a b': the name of a network interface is expected"),
        (["--interface", "ä" * 8], "the name of a network interface is expected"),
    ],
)
def test_malformed_argument_is_refused(place: Place, words: list[str], wanted: str) -> None:
    done = run(place, *words)
    assert done.status == 2
    assert wanted in done.err


def test_value_above_the_size_of_an_option_is_refused(place: Place) -> None:
    done = run(place, "--req-mo", ",".join(["1"] * 3_000))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith("dmnotid test-hook: ")
    assert len(done.err.splitlines()) == 1


# --- A run


@pytest.mark.parametrize(
    ("text", "words", "status", "outcome", "follows"),
    [
        ("exit 0", [], 0, "done: exit 0", "nothing: the session is done"),
        ("exit 78", [], 1, "refused: exit 78", "nothing: a refused session is not tried again"),
        ("exit 3", [], 1, "failed: exit 3", "another try in about 30s"),
        ("exit 3", ["--attempt", "4"], 1, "failed: exit 3", "another try in about 4m"),
        ("kill -9 $$", ["--attempt", "9"], 1, "failed: killed by SIGKILL", "another try in about 1h"),
        (
            *("exit 3", ["--attempt", "10"], 1, "failed: exit 3"),
            "nothing: the session has failed after 10 tries (retry.attempts)",
        ),
    ],
)
def test_run_shows_the_outcome_and_what_follows(
    place: Place, text: str, words: list[str], status: int, outcome: str, follows: str
) -> None:
    place.script(f"echo over $DMNOTID_INTERFACE; echo trouble >&2; {text}")
    done = run(place, "--run", *words, "--interface", "lo")
    assert (done.status, done.err) == (status, "")
    lines = done.out.splitlines()
    assert lines[-2:] == [f"outcome      {outcome}", f"next         {follows}"]
    logged = [line for line in lines if "hook output" in line]
    assert {line.split("stream=")[1] for line in logged} == {"stdout line='over lo'", "stderr line=trouble"}
    assert all("session=0" in line for line in logged)


def test_run_is_bounded_by_the_configured_times(place: Place) -> None:
    place.script("trap '' TERM; while :; do sleep 0.05; done", ", timeout: 200ms, kill_after: 100ms")
    done = dmnotid(*place.words, "--run")
    assert done.status == 1
    assert "outcome      failed: timed out after 0.2 s, killed by SIGKILL\n" in done.out


def test_run_resets_signals_as_the_daemon_does(place: Place) -> None:
    """Whatever the parent ignores or blocks."""
    place.script("grep -E 'Sig(Ign|Blk):' /proc/self/status; exit 3")
    spoil = "signal.signal(signal.SIGCHLD, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])"
    code = f"import os, signal, sys; {spoil}; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", code, *PROGRAM, *place.words, "--run", "--interface", "lo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert "outcome      failed: exit 3\n" in done.stdout
    assert done.stdout.count("0" * 16) == 2


def test_run_is_refused_if_others_can_write_the_configuration(place: Place) -> None:
    ran = place.directory / "ran"
    place.script(f"touch '{ran}'")
    place.file.chmod(0o666)
    problem = f"{place.file}: {place.file}: writable by others: chmod go-w {place.file}\n"
    assert run(place, "--run") == Done(1, "", problem)
    assert not ran.exists()


def test_run_of_an_untrusted_hook_is_refused(place: Place) -> None:
    file = place.script("exit 0")
    file.chmod(0o757)
    done = run(place, "--run")
    assert done.status == 1
    assert f"outcome      not started: {file}: writable by others: chmod go-w {file}\n" in done.out


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_process_group(place: Place, number: signal.Signals, status: int) -> None:
    pids = place.directory / "pids"
    place.script(f"sleep 60 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; echo waiting; wait")
    with Terminal(SCRIPT, *place.words, "--run") as terminal:
        terminal.read_until("waiting")
        children = [int(word) for word in pids.read_text().split()]
        assert all(map(is_alive, children))
        assert terminal.stop(number) == status
        assert f"dmnotid test-hook: interrupted by {number.name}: its process group was ended\n" in terminal.text
        assert "Traceback" not in terminal.text
        wait_until(lambda: not any(map(is_alive, children)))


def test_second_signal_kills(place: Place) -> None:
    place.script("trap 'echo no' TERM; echo waiting; while :; do sleep 0.05; done")
    with Terminal(SCRIPT, *place.words, "--run") as terminal:
        terminal.read_until("waiting")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_until("line=no")
        assert terminal.stop(signal.SIGINT) == 130


def test_ctrl_c_reaches_the_hook_as_term_alone(place: Place) -> None:
    """A terminal sends it to the whole group in front; the hook has one of its own, and time to tidy up."""
    place.script("trap 'echo tidy; exit 0' TERM; trap 'echo torn' INT; echo wait; while :; do sleep 0.05; done")
    with subprocess.Popen(
        [*PROGRAM, *place.words, "--run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout is not None
        while "line=wait" not in process.stdout.readline():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "line=tidy" in out
    assert "torn" not in out
    assert err.endswith("interrupted by SIGINT: its process group was ended\n")


def test_run_ends_when_its_reader_does(place: Place) -> None:
    done = through_shell('"$@" | head -n 1', *place.words)
    assert done.out.startswith("made up")
    assert "Traceback" not in done.err


# --- hook.socket


@pytest.fixture
def listener(place: Place) -> Iterator[socket.socket]:
    place.configure("{socket: session, timeout: 300ms}")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place.directory / "session"))
        sock.listen()
        yield sock


def test_socket_is_shown(place: Place, listener: socket.socket) -> None:
    found = shown(place)
    assert found["socket"] == listener.getsockname()
    assert "argv" not in found
    assert "environment" not in found
    assert found["trusted"] is True
    lines = run(place).out.splitlines()
    assert lines[1:3] == ["hook         its path is trusted", f"socket       '{listener.getsockname()}'"]
    assert lines[3].startswith('input        {"version": 1, ')
    assert len(lines) == 4


def test_missing_socket_is_shown_with_status_1(place: Place) -> None:
    place.configure("{socket: session}")
    done = run(place)
    assert done.status == 1
    why = f"{place.directory}/session: No such file or directory"
    assert done.err == f"hook.socket: not startable, so no session would start: {why}\n"


def test_run_hands_the_session_over(place: Place, listener: socket.socket) -> None:
    read: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            read.append(stream.read())
            connection.sendall(b'hello\n{"exit": 0}\n')

    thread = threading.Thread(target=serve)
    thread.start()
    done = dmnotid(*place.words, "--run")
    thread.join(PATIENCE)
    assert done.status == 0
    assert "stream=socket line=hello" in done.out
    assert "outcome      done: exit 0\n" in done.out
    assert json.loads(read[0])["session"] == 0
    assert f"input        {read[0].decode()}" in done.out


def test_run_of_a_socket_without_an_answer_fails(place: Place, listener: socket.socket) -> None:
    assert listener.fileno() >= 0
    done = dmnotid(*place.words, "--run")
    assert done.status == 1
    assert "outcome      failed: timed out after 0.3 s\nnext         another try in about 30s\n" in done.out
