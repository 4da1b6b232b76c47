"""Doors that systemd opens and passes beside the UDP socket: who may send, what waits, and how they are opened."""

import json
from typing import Any, Final

import pytest

from tests.support import NOWHERE, SERVER_ID, SERVERS, package, push, wait_until
from tests.system.device import CONFIG, Device, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

UNIT: Final = "dmnotid-doors.socket"
PUSH: Final = "/run/dmnotid-doors/push.sock"
PACKAGE: Final = "/run/dmnotid-doors/package.sock"
DOORS: Final = [{"path": PUSH, "holds": "push"}, {"path": PACKAGE, "holds": "package"}]

FIRST: Final[Any] = SERVERS[0]

# Prints its own number, and the answer to a datagram if there is one.
SENDER: Final = """
import os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind("")
sock.sendto(bytes.fromhex(sys.argv[2]), sys.argv[1])
print(os.getpid())
if sys.argv[3] == "answer":
    print(sock.recv(4096).decode())
"""


def hand_in(device: Device, door: str, octets: bytes, *user: str, answer: bool = True) -> tuple[int, dict[str, Any]]:
    """Send a datagram from a process in the machine; its number and the answer."""
    words = ["python3", "-c", SENDER, door, octets.hex(), "answer" if answer else "no"]
    pid, *rest = device.run(*user, *words).splitlines()
    return int(pid), json.loads(rest[0]) if rest else {}


def as_member(device: Device) -> list[str]:
    group = device.run("getent", "group", "dmnotid-doors").split(":")[2]
    return ["setpriv", "--reuid=4000", "--regid=4000", f"--groups={group}"]


STRANGER: Final = ["setpriv", "--reuid=4000", "--regid=4000", "--clear-groups"]


def test_steps_of_the_installation_page_open_doors(device: Device) -> None:
    """Also while the service runs: a restart opens them."""
    device.configure(servers=SERVERS[:1])
    device.run("systemctl", "enable", "--now", "dmnotid.service")
    device.configure(servers=SERVERS[:1], doors=DOORS)
    device.run("systemctl", "enable", UNIT)
    assert f"{PUSH} (push, source sms, passed by {UNIT})" in device.run("dmnotid", "check")
    device.run("systemctl", "restart", "dmnotid.service")
    assert device.is_active(UNIT)
    sent = device.run("dmnotid", "send", "--to", f"unix:{PUSH}", "--config", CONFIG)
    assert 'answer: {"verdict": "accepted", "session": 1}' in sent
    status = device.run("dmnotid", "status")
    assert f"{PUSH} ({UNIT}): door sms, 1 received" in status
    assert f"{PACKAGE} ({UNIT}): door local, 0 received" in status
    assert "[::]:2948 (dmnotid.socket): 0 received" in status
    # And closed again.
    device.configure(servers=SERVERS[:1])
    device.run("systemctl", "disable", "--now", UNIT)
    device.run("systemctl", "restart", "dmnotid.service")
    assert not device.machine.path(PUSH).exists()
    assert PUSH not in device.run("dmnotid", "status")


def test_members_of_the_group_alone_hand_in_and_the_log_names_them(device: Device) -> None:
    device.configure(doors=DOORS)
    device.start(UNIT, "dmnotid.socket", "dmnotid.service")
    found = device.run("stat", "--format=%a %U:%G", "/run/dmnotid-doors", PUSH, PACKAGE).splitlines()
    assert found == ["755 root:root", "660 root:dmnotid-doors", "660 root:dmnotid-doors"]
    refused = device.machine.attempt(*STRANGER, "python3", "-c", SENDER, PUSH, "00", "no")
    assert "Permission denied" in refused.stderr
    member, answer = hand_in(device, PUSH, push(1, preferred=NOWHERE), *as_member(device))
    assert answer == {"verdict": "accepted", "session": 1}
    root, answer = hand_in(device, PACKAGE, package(2, preferred=NOWHERE))
    assert answer == {"verdict": "accepted", "session": 2}
    lines = device.records("notification accepted")
    assert [(line["source"], line["pid"], line["uid"]) for line in lines] == [
        # Other users have no number in the sandbox.
        ("sms", member, 65_534),
        ("local", root, 0),
    ]


def test_datagram_starts_the_service_and_waits_while_it_restarts(device: Device) -> None:
    """The number of a process is known even if it is gone."""
    device.configure(doors=DOORS)
    device.start(UNIT, "dmnotid.socket")
    pid, _ = hand_in(device, PUSH, notification(1), answer=False)
    device.wait_run(1)
    assert device.records("notification accepted")[0]["pid"] == pid
    device.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "dmnotid.service")
    for number in range(2, 12):
        hand_in(device, PACKAGE, package(number, preferred=NOWHERE), answer=False)
    device.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "dmnotid.service")
    device.wait_accepted(*range(1, 12))
    for number in range(12, 15):
        hand_in(device, PUSH, push(number, preferred=NOWHERE), answer=False)
        device.run("systemctl", "restart", "dmnotid.service")
    device.wait_accepted(*range(1, 15))
    _, answer = hand_in(device, PUSH, push(14, sent_at=0))
    assert answer == {"verdict": "discarded", "reason": "stale"}


def test_door_without_an_entry_is_not_read_until_a_reload_adds_it(device: Device) -> None:
    device.configure(doors=DOORS[:1], servers=[{**FIRST, "sources": ["sms"]}])
    device.start(UNIT, "dmnotid.socket", "dmnotid.service")
    assert [line["door"] for line in device.records("door ignored")] == [PACKAGE]
    hand_in(device, PACKAGE, package(1, preferred=NOWHERE), answer=False)
    assert hand_in(device, PUSH, push(2, preferred=NOWHERE))[1]["verdict"] == "accepted"
    # By another path to it.
    wanted = [DOORS[0], {**DOORS[1], "path": f"/var{PACKAGE}"}]
    device.configure(doors=wanted, servers=[{**FIRST, "sources": ["sms", "local"]}])
    device.run("systemctl", "reload", "dmnotid.service")
    device.wait_accepted(1, 2)


def test_door_whose_file_was_removed_is_opened_again_as_the_reload_says(device: Device) -> None:
    device.configure(doors=DOORS)
    device.run("systemctl", "enable", "--now", UNIT)
    device.start()
    device.run("rm", PUSH)
    problem = f"doors: {PUSH}: No such file or directory: stop {UNIT} and restart dmnotid"
    assert problem in device.machine.attempt("dmnotid", "reload").stderr
    device.run("systemctl", "stop", UNIT)
    device.run("systemctl", "restart", "dmnotid.service")
    assert hand_in(device, PUSH, push(1, preferred=NOWHERE))[1]["verdict"] == "accepted"


def test_door_works_for_a_daemon_without_network(device: Device) -> None:
    """With handoff.conf; and a server that is reached through the door alone."""
    device.configure(
        doors=DOORS,
        servers=[{**FIRST, "sources": ["sms"]}],
        hook={"socket": "/run/dmnotid-session.sock", "stop_grace": "1s"},
    )
    device.run("mkdir", "-p", "/etc/systemd/system/dmnotid.service.d")
    device.run("ln", "-s", "/usr/share/dmnotid/handoff.conf", "/etc/systemd/system/dmnotid.service.d/handoff.conf")
    device.run("systemctl", "daemon-reload")
    device.start(UNIT, "dmnotid.socket", "dmnotid.service")
    assert hand_in(device, PUSH, push(1, preferred=NOWHERE))[1]["verdict"] == "accepted"
    device.send(push(2, preferred=NOWHERE))
    wait_until(lambda: device.records("datagram discarded"))
    assert device.records("datagram discarded")[0]["reason"] == "source-not-allowed"
    assert device.records("notification accepted")[0]["server_id"] == SERVER_ID


@pytest.mark.parametrize(
    ("drop_in", "problem"),
    [
        ("SocketMode=0666", f"doors: {PUSH}: every user may send through it"),
        ("DirectoryMode=0777", "doors: /run/dmnotid-doors: writable by others"),
    ],
)
def test_door_that_is_open_to_all_keeps_the_daemon_from_starting(device: Device, drop_in: str, problem: str) -> None:
    device.configure(doors=DOORS)
    device.drop_in(f"[Socket]\n{drop_in}\n", UNIT)
    device.run("rm", "-rf", "/run/dmnotid-doors")
    device.start(UNIT, "dmnotid.socket")
    device.machine.attempt("systemctl", "start", "dmnotid.service")
    assert problem in device.wait_record("daemon not started")["problem"]
    device.run("rm", "-rf", "/run/dmnotid-doors")
