"""A whole daemon with doors: `send`, the log, `sessions`, `discards`, the hook, reload, a kill, and hostile senders."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmnotid.wire.wsp import encode_push
from tests import forked
from tests.processes import ENVIRONMENT, ROOT, Run
from tests.support import (
    DEADLINE,
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    SECRET,
    SECRETS,
    SERVER_ID,
    Recorder,
    further,
    package,
    push,
    wait_until,
    write_config,
)

SMS_HEADER = bytes.fromhex("0605040b8423f0")


def door_config(directory: Path, **sections: Any) -> Path:  # noqa: ANN401
    """Configure a door for pushes and one for packages; one server may use the first, one any, one none."""
    doors = [
        {"path": str(directory / "push"), "holds": "push"},
        {"path": str(directory / "package"), "holds": "package", "mode": "0600"},
    ]
    servers = [
        {"id": SERVER_ID, "secret": {"text": SECRET.decode()}},
        {"id": OTHER_ID, "secret": {"text": SECRETS[OTHER_ID].decode()}, "sources": ["192.0.2.0/24", "sms"]},
        {"id": OPEN_ID, "require_digest": False, "sources": ["127.0.0.0/8"]},
    ]
    control = {"socket": str(directory / "control")}
    whole: dict[str, Any] = {"doors": doors, "servers": servers, "control": control, **sections}
    return write_config(directory, **whole)


def dmnotid(*words: object, given: str = "", directory: Path) -> subprocess.CompletedProcess[str]:
    done = forked.run(list(map(str, words)), ENVIRONMENT | {"XDG_STATE_HOME": str(directory)}, given.encode())
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


class Sender:
    """A process with an address at a door."""

    def __init__(self, door: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(DEADLINE)
        self.socket.bind("")
        self._door = str(door)

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.socket.sendto(payload, self._door)

    def ask(self, payload: bytes) -> dict[str, Any]:
        self.send(payload)
        found: dict[str, Any] = json.loads(self.socket.recv(4_096))
        return found

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def senders(tmp_path: Path) -> Iterator[dict[str, Sender]]:
    """One sender for each door of `door_config`."""
    found = {name: Sender(tmp_path / name) for name in ("push", "package")}
    yield found
    for sender in found.values():
        sender.close()


# Operating it


def test_operator_sends_through_both_doors_and_finds_them_everywhere(start: Run, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    config = door_config(tmp_path, hook={"command": recorder.command})
    service = start(config)
    service.wait("daemon ready")
    to_server = ("--config", config, "--server", SERVER_ID)
    sent = dmnotid("send", "--to", f"unix:{tmp_path}/push", *to_server, "--id", 1, directory=tmp_path)
    assert (sent.returncode, sent.stderr) == (0, "")
    first, answer, warning = sent.stdout.splitlines()
    assert first.startswith(f"sent {len(push(1))} octets to unix:{tmp_path}/push: NOTIFICATION-ID 1, ")
    assert answer == 'answer: {"verdict": "accepted", "session": 1}'
    assert "remembers NOTIFICATION-ID 1" in warning
    door = f"unix:{tmp_path}/package"
    sent = dmnotid("send", "--to", door, "--package", *to_server, "--id", 2, directory=tmp_path)
    assert 'answer: {"verdict": "accepted", "session": 2}' in sent.stdout
    again = dmnotid("send", "--to", door, "--package", *to_server, "--id", 2, directory=tmp_path)
    assert again.stdout.splitlines()[1:] == ['answer: {"verdict": "discarded", "reason": "duplicate"}']
    broken = ("--package", "--break", "trailing-octets")
    assert dmnotid("send", "--to", door, *to_server, *broken, directory=tmp_path).returncode == 0
    # The hook, the log and the journal.
    service.wait("session done", 2)
    assert [run["environment"]["DMNOTID_SOURCE"] for run in recorder.runs] == ["sms", "local"]
    lines = service.of("notification accepted")
    assert [(line["source"], line["uid"]) for line in lines] == [("sms", os.geteuid()), ("local", os.geteuid())]
    shown = dmnotid("sessions", 2, "--config", config, directory=tmp_path).stdout
    assert "from local" in shown
    # What was discarded, as decode reads it.
    status = dmnotid("status", "--config", config, directory=tmp_path).stdout
    assert f"{tmp_path}/push: door sms, 1 received" in status
    assert f"{tmp_path}/package: door local, 3 received" in status
    discards = dmnotid("discards", "--config", config, directory=tmp_path).stdout
    assert " trailing-octets from local: " in discards
    assert "\npackage 21" in discards
    decoded = dmnotid("decode", "--config", config, given=discards, directory=tmp_path).stdout
    assert "discarded: trailing-octets at octet " in decoded
    assert "accepted: signed by 'dm.example'" in decoded, "the duplicate, as decode has no journal"
    assert service.stop() == 0
    sent = dmnotid("send", "--to", door, *to_server, directory=tmp_path)
    assert (sent.returncode, sent.stdout) == (1, "")
    assert sent.stderr == f"dmnotid send: {door}: No such file or directory\n"


def test_many_are_sent_with_a_summary_of_the_answers(start: Run, tmp_path: Path) -> None:
    config = door_config(tmp_path)
    start(config).wait("daemon ready")
    words = ("send", "--to", f"unix:{tmp_path}/push", "--config", config, "--server", SERVER_ID, "--prefer", "mobile")
    done = dmnotid(*words, "--count", 20, "--id", 65_530, directory=tmp_path)
    assert done.returncode == 0
    summary = next(line for line in done.stdout.splitlines() if "in all" in line)
    assert summary == "sent 20 datagrams in all, NOTIFICATION-ID 65530 to 13: 16 accepted, 4 queue-full"


def test_sources_of_a_server_decide_which_doors_reach_it(
    start: Run, tmp_path: Path, senders: dict[str, Sender]
) -> None:
    service = start(door_config(tmp_path))
    service.wait("daemon ready")
    elsewhere = {"verdict": "discarded", "reason": "source-not-allowed"}
    assert senders["push"].ask(push(1, server_id=OTHER_ID))["verdict"] == "accepted"
    assert senders["package"].ask(package(2, server_id=OTHER_ID)) == elsewhere
    assert senders["push"].ask(push(3, server_id=OPEN_ID)) == elsewhere
    service.send(push(4, server_id=OTHER_ID), push(5, server_id=OPEN_ID))
    wait_until(lambda: service.reasons().count("source-not-allowed") == 3)
    problems = [line["problem"] for line in service.of("datagram discarded")]
    assert problems[0] == f"local is not among the sources of {OTHER_ID!r}"
    assert service.wait("notification accepted", 2)["notification_id"] == 5


@pytest.mark.parametrize("doors", [True, False])
def test_code_of_doors_is_loaded_only_if_there_is_one(tmp_path: Path, *, doors: bool) -> None:
    """4: no figure changes for a device without another bearer."""
    program = (
        "import asyncio, sys\n"
        "from dmnotid.config.loading import load_config\nfrom dmnotid.daemon import Daemon\n"
        "from pathlib import Path\n"
        "async def run():\n"
        "    daemon = Daemon(load_config(Path(sys.argv[1]), {}))\n"
        "    task = asyncio.create_task(daemon.run())\n"
        "    await daemon.ready.wait()\n"
        "    daemon.stop()\n"
        "    await task\n"
        "    return 'dmnotid.intake.doors' in sys.modules\n"
        "sys.exit(3 + asyncio.run(run()))\n"
    )
    file = door_config(tmp_path) if doors else write_config(tmp_path)
    command = [sys.executable, "-c", program, str(file)]
    assert subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, timeout=DEADLINE, check=False).returncode == 3 + doors


def test_reload_opens_a_first_door_and_closes_it_again(start: Run, tmp_path: Path) -> None:
    service = start(door_config(tmp_path, doors=[{"path": str(tmp_path / "other"), "holds": "push"}]))
    service.wait("daemon ready")
    inode = (tmp_path / "other").stat().st_ino
    both = [{"path": str(tmp_path / name), "holds": "push"} for name in ("push", "other")]
    door_config(tmp_path, doors=both)
    service.process.send_signal(signal.SIGHUP)
    service.wait("configuration reloaded")
    sender = Sender(tmp_path / "push")
    assert sender.ask(push(1))["verdict"] == "accepted"
    assert (tmp_path / "other").stat().st_ino == inode
    # A reload that is refused changes nothing.
    (tmp_path / "blocked").write_text("in the way")
    door_config(tmp_path, doors=[{"path": str(tmp_path / "blocked"), "holds": "push", "source": "sms"}])
    service.process.send_signal(signal.SIGHUP)
    refused = service.wait("reload refused")
    assert "blocked: exists and is not a socket" in refused["problem"]
    assert sender.ask(push(2))["verdict"] == "accepted"
    door_config(tmp_path, doors=both[1:])
    service.process.send_signal(signal.SIGHUP)
    service.wait("configuration reloaded", 2)
    assert not (tmp_path / "push").exists()
    with pytest.raises(OSError, match="No such file"):
        sender.send(b"x")
    sender.close()


def test_door_whose_file_was_removed_is_a_problem_until_a_reload(start: Run, tmp_path: Path) -> None:
    config = door_config(tmp_path)
    start(config).wait("daemon ready")
    (tmp_path / "push").unlink()
    found = dmnotid("status", "--config", config, directory=tmp_path)
    assert f"PROBLEM   doors: {tmp_path}/push: its file was removed, so no sender reaches it" in found.stdout
    assert found.returncode == 1
    assert dmnotid("reload", "--config", config, directory=tmp_path).returncode == 0
    assert dmnotid("status", "--config", config, directory=tmp_path).returncode == 0
    assert (tmp_path / "push").is_socket()


def test_socket_of_a_killed_daemon_is_replaced_and_a_repeat_is_a_duplicate(
    start: Run, tmp_path: Path, senders: dict[str, Sender]
) -> None:
    """A bearer that got no answer offers the push again."""
    config = door_config(tmp_path)
    first = start(config)
    first.wait("daemon ready")
    octets = push(1)
    assert senders["push"].ask(octets)["verdict"] == "accepted"
    first.process.kill()
    first.process.wait()
    assert (tmp_path / "push").is_socket()
    second = start(config)
    second.wait("daemon ready")
    assert senders["push"].ask(octets) == {"verdict": "discarded", "reason": "duplicate"}


def test_second_daemon_leaves_the_door_of_the_first_alone(
    start: Run, tmp_path: Path, senders: dict[str, Sender]
) -> None:
    start(door_config(tmp_path)).wait("daemon ready")
    (tmp_path / "second").mkdir()
    config = door_config(tmp_path / "second", doors=[{"path": str(tmp_path / "push"), "holds": "push"}])
    assert f"doors: {tmp_path / 'push'}: another process listens there" in start(config).problem()
    assert senders["push"].ask(push(1))["verdict"] == "accepted"


def test_push_with_the_header_of_an_sms_is_refused_with_a_hint(
    start: Run, tmp_path: Path, senders: dict[str, Sender]
) -> None:
    """6.1.1: in the log as in `decode`."""
    service = start(door_config(tmp_path))
    service.wait("daemon ready")
    assert senders["push"].ask(SMS_HEADER + push(1)) == {"verdict": "discarded", "reason": "not-a-push"}
    (line,) = service.of("datagram discarded")
    assert "the octets before octet 7 look like an SMS user data header, leave them out" in line["problem"]


# Hostile senders


def test_datagram_of_a_wrong_size_is_discarded(start: Run, tmp_path: Path, senders: dict[str, Sender]) -> None:
    start(door_config(tmp_path)).wait("daemon ready")
    # VER is in the first octet of a package.
    found = {b"": ("truncated", "truncated"), b"\0": ("truncated", "unsupported-version")}
    # As large as the kernel takes it, and one octet too many.
    largest = senders["push"].socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
    found |= dict.fromkeys((bytes(4_097), os.urandom(largest)), ("push-too-long", "push-too-long"))
    for payload, reasons in found.items():
        verdicts = [{"verdict": "discarded", "reason": reason} for reason in reasons]
        assert [senders[name].ask(payload) for name in ("push", "package")] == verdicts


FLOOD = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
if sys.argv[2] == "named":
    sock.bind("")
sent = 0
# Its parent ends it; an orphan ends by itself.
while os.getppid() == int(sys.argv[3]):
    try:
        sock.sendto(bytes.fromhex(sys.argv[4]), sys.argv[1])
    except ConnectionError:
        break
    sent += 1
"""


@pytest.mark.parametrize("named", ["named", *further("nameless")])
def test_flooded_doors_leave_udp_its_turn(start: Run, tmp_path: Path, named: str) -> None:
    """4: at full speed, by senders that never read an answer; no notification over UDP is lost or kept waiting."""
    service = start(door_config(tmp_path, sessions={"max_pending": 1_000}, log={"discards": "50ms"}))
    address = service.address
    floods = [
        subprocess.Popen([sys.executable, "-c", FLOOD, tmp_path / door, named, str(os.getpid()), payload.hex()])
        for door, payload in (("push", push(9, secret=b"forged")), ("package", package(9) + b"\0"))
    ]
    try:
        # Flooded for as long as UDP sends: the summaries of each interval show it.
        service.wait("datagrams discarded", 4)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(200):
                sock.sendto(push(number, preferred=NOWHERE), address)
        service.wait("notification accepted", 200)
        seen = len(service.of("datagrams discarded"))
        service.wait("datagrams discarded", seen + 4)
        assert all(flood.poll() is None for flood in floods)
    finally:
        for flood in floods:
            flood.kill()
            flood.wait()
    assert [line["source"] for line in service.of("notification accepted")] != []
    assert not service.of("datagrams lost")
    assert {line["reason"] for line in service.of("datagrams discarded")} == {"digest-mismatch", "trailing-octets"}
    assert service.stop() == 0


def test_any_octets_through_a_door_end_in_a_verdict(start: Run, tmp_path: Path, senders: dict[str, Sender]) -> None:
    service = start(door_config(tmp_path, log={"discards": "50ms"}))
    service.wait("daemon ready")
    good = package(1)
    for at in range(len(good)):
        for octets in (good[:at], good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :]):
            assert senders["package"].ask(octets)["verdict"] == "discarded"
            assert senders["push"].ask(encode_push(octets))["verdict"] == "discarded"
    assert senders["package"].ask(good)["verdict"] == "accepted"
    assert service.stop() == 0
    assert service.of("daemon stopped")[0].get("bugs", 0) == 0


def test_stop_drains_the_doors_and_answers(start: Run, tmp_path: Path) -> None:
    """What is queued when the daemon stops is in the journal for its next start."""
    config = door_config(tmp_path)
    first = start(config)
    first.wait("daemon ready")
    sender = Sender(tmp_path / "push")
    first.process.send_signal(signal.SIGSTOP)
    sender.send(*(push(number, preferred=NOWHERE) for number in range(5)))
    first.process.send_signal(signal.SIGTERM)
    first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(DEADLINE) == 0
    assert [json.loads(sender.socket.recv(100))["session"] for _ in range(5)] == [1, 2, 3, 4, 5]
    sender.close()
    second = start(config)
    assert second.wait("daemon ready")["pending"] == 5
