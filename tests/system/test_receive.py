"""What comes to the passed socket, and both kinds of hook: inside the daemon's sandbox, and handed over."""

import json
from typing import Final

import pytest

from dmnotid.wire.notification import ConnectionType
from tests.support import SERVER_ID, push, wait_until
from tests.system.device import HOOK, STATE, Device, Run, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

SESSION_STATE: Final = "/var/lib/dmnotid-session"
REPORT: Final = "report.json"

# What a hook can do, as it finds by trying.
PROBE: Final = """#!/usr/bin/python3
import json, os, socket, subprocess, sys
def tries(what):
    try:
        what()
    except OSError as error:
        return error.strerror
    return "yes"
def say(where):
    return lambda: open(where, "w").close()
report = {
    "user": os.getuid(),
    "stdin": json.load(sys.stdin)["server_id"],
    "inet": tries(lambda: socket.socket(socket.AF_INET).close()),
    "inet6": tries(lambda: socket.socket(socket.AF_INET6).close()),
    "netlink": tries(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()),
    "packet": tries(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "temporary": tries(say("/tmp/file")),
    "elsewhere": [tries(say(f"{place}/file")) for place in ("/etc/open", "/srv/open", "/home/open")],
    "root by sudo": "yes" if subprocess.run(["/usr/local/bin/become-root", "-u"], capture_output=True).stdout == b"0\\n"
    else "no",
    "status": dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line),
}
where = PLACE
json.dump(report, open(where + ".new", "w"))
os.rename(where + ".new", where)
"""


def probe(device: Device, place: str) -> None:
    """Write a hook that reports what it can do, directories that are open to all, and a program that makes one root."""
    device.run("install", "--directory", "--mode=777", "/etc/open", "/srv/open", "/home/open")
    device.machine.write(HOOK, PROBE.replace("PLACE", repr(f"{place}/{REPORT}")), mode=0o755)
    device.run("install", "--mode=4755", "/usr/bin/id", "/usr/local/bin/become-root")


def report_of(device: Device, place: str) -> dict[str, object]:
    file = device.machine.path(f"{place}/{REPORT}")
    wait_until(file.exists)
    report: dict[str, object] = json.loads(file.read_text())
    return report


def hand_over(device: Device) -> None:
    """Have sessions handed to dmnotid-session.socket, as the drop-in's comment says."""
    device.configure(hook={"socket": "/run/dmnotid-session.sock", "stop_grace": "1s"})
    device.run("mkdir", "-p", "/etc/systemd/system/dmnotid.service.d")
    device.run("ln", "-s", "/usr/share/dmnotid/handoff.conf", "/etc/systemd/system/dmnotid.service.d/handoff.conf")
    device.run("systemctl", "daemon-reload")


def test_a_burst_waits_in_the_passed_socket(device: Device) -> None:
    """More than the kernel's own buffer holds, while the daemon takes none of it."""
    device.start()
    burst = range(1, 1_001)
    device.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "dmnotid.service")
    device.send(*map(notification, burst))
    device.run("systemctl", "kill", "--signal=CONT", "--kill-whom=main", "dmnotid.service")
    device.wait_accepted(*burst)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_receives_by_the_passed_socket(device: Device, host: str) -> None:
    device.start("dmnotid.socket")
    device.send(notification(1), host=host)  # nothing runs yet: it waits in the socket, and starts the daemon
    device.wait_run(1)
    device.send(notification(2), host=host)
    device.wait_run(2)
    (listening,) = device.records("socket listening")
    assert listening["listen"] == "[::]:2948"
    assert [entry["source"].rpartition(":")[0].strip("[]") for entry in device.records("notification accepted")] == [
        host
    ] * 2
    held = device.run("ls", "-l", f"/proc/{device.pid}/fd")
    assert held.count("socket:") >= 1


def test_the_port_is_systemds(device: Device) -> None:
    device.start()
    ours = [line.split() for line in device.run("cat", "/proc/net/udp6").splitlines()[1:]]
    assert [fields[1].endswith(":0B84") for fields in ours] == [True], "the daemon bound one of its own"
    assert ours[0][7] == "0", "it belongs to root, for systemd made it"


def test_a_hook_in_the_sandbox(device: Device) -> None:
    probe(device, STATE)
    device.start()
    device.send(notification(1))
    report = report_of(device, STATE)
    status = report["status"]
    assert isinstance(status, dict)
    assert report["user"] == int(device.run("id", "--user", "dmnotid"))
    assert report["stdin"] == SERVER_ID
    assert [report[name] for name in ("inet", "inet6", "netlink", "temporary")] == ["yes"] * 4
    assert report["packet"] == "Address family not supported by protocol"
    assert report["elsewhere"] == ["Read-only file system"] * 2 + ["Permission denied"]
    assert report["root by sudo"] == "no"
    assert (status["NoNewPrivs"], status["CapBnd"], status["Seccomp"]) == ("1", "0000000000000000", "2")
    assert not device.machine.path("/tmp/file").exists(), "its /tmp is its own"  # noqa: S108 - in the machine


def test_a_session_is_handed_over(device: Device) -> None:
    hand_over(device)
    probe(device, SESSION_STATE)
    device.start()
    device.send(notification(1))
    report = report_of(device, SESSION_STATE)
    assert report["user"] == int(device.run("id", "--user", "dmnotid-session"))
    assert report["stdin"] == SERVER_ID
    assert [report[name] for name in ("inet", "inet6", "netlink", "temporary")] == ["yes"] * 4
    assert report["packet"] == "Address family not supported by protocol"
    assert report["elsewhere"] == ["Read-only file system"] * 2 + ["Permission denied"]
    assert report["root by sudo"] == "no"
    assert device.wait_record("session done")["outcome"] == "exit 0"
    assert not device.processes_of("dmnotid-session")


def test_steps_of_the_installation_page_hand_sessions_over(device: Device) -> None:
    """The socket of the sessions is there before `check` and the daemon look for it."""
    hand_over(device)
    device.write_hook(runs=f"{SESSION_STATE}/runs")
    device.run("systemctl", "enable", "--now", "dmnotid-session.socket")
    device.run("systemctl", "try-restart", "dmnotid.service")
    assert not device.is_active()
    device.run("dmnotid", "check")
    device.run("systemctl", "enable", "--now", "dmnotid.service")
    device.send(notification(1))
    device.wait_run(1, file=f"{SESSION_STATE}/runs")


def test_a_handed_over_unit_names_its_session(device: Device) -> None:
    """In its status while it runs, and in records with fields at its start and end."""
    hand_over(device)
    text = f"#!/bin/sh\nwhile [ ! -e {SESSION_STATE}/go ]; do sleep 0.1; done\n"
    device.machine.write(HOOK, text, mode=0o755)
    device.start()
    device.send(notification(1))

    def units() -> list[str]:
        words = ["list-units", "--plain", "--no-legend", "dmnotid-session@*"]
        return [line.split()[0] for line in device.run("systemctl", *words).splitlines()]

    shown = f"session 1 for {SERVER_ID}, notification 1, attempt 1"
    wait_until(lambda: [device.machine.show(unit, "StatusText")["StatusText"] for unit in units()] == [shown])
    device.run("touch", f"{SESSION_STATE}/go")
    device.wait_record("session done")
    found = device.run("journalctl", "-o", "json", f"DMNOTID_SERVER_ID={SERVER_ID}", "_COMM=dmnotid").splitlines()
    records = [json.loads(line) for line in found]
    # The machine keeps the records of former tests.
    own = [record for record in records if record["_SYSTEMD_UNIT"].startswith("dmnotid-session@")][-2:]
    assert [record["DMNOTID_EVENT"] for record in own] == ["session started", "session ended"]
    fields = [[record[f"DMNOTID_{name}"] for name in ("SESSION", "NOTIFICATION_ID", "ATTEMPT")] for record in own]
    assert fields == [["1", "1", "1"]] * 2


def test_a_session_has_limits_of_its_own(device: Device) -> None:
    """One that hangs is ended by systemd, and is told of as failed; the daemon's time-out is far away."""
    hand_over(device)
    device.write_hook("[ $DMNOTID_ATTEMPT != 1 ] || exec sleep 600", runs=f"{SESSION_STATE}/runs")
    device.drop_in("[Service]\nRuntimeMaxSec=1s\nTimeoutStopSec=1s\n", "dmnotid-session@.service")
    device.start()
    device.send(notification(1))
    device.wait_run(1, 2, f"{SESSION_STATE}/runs")
    assert device.wait_record("session done")["attempts"] == 2
    assert not device.processes_of("dmnotid-session")


def test_who_hands_over_needs_no_network(device: Device) -> None:
    """The same sandbox lets a program before the daemon make no socket of the Internet; without the drop-in it does."""
    tries = (
        "python3 -c 'import socket; "
        "[socket.socket(family, kind).close() for family, kind in ((socket.AF_UNIX, 1), (socket.AF_NETLINK, 3))]; "
        "socket.socket(socket.AF_INET)'"
    )
    device.drop_in(f"[Service]\nExecStartPre={tries}\n")
    device.start()
    device.run("systemctl", "stop", "dmnotid.service")
    hand_over(device)
    assert device.machine.attempt("systemctl", "start", "dmnotid.service").returncode != 0
    said = [str(entry.fields["MESSAGE"]) for entry in device.log()]
    assert any("Address family not supported by protocol" in line for line in said), said


def test_who_hands_over_sees_links_come_and_go(device: Device) -> None:
    hand_over(device)
    device.configure(
        hook={"socket": "/run/dmnotid-session.sock"},
        connections={"reach": "any", "settle": 0, "mobile": {"interfaces": ["wwan0"]}},
    )
    device.write_hook(runs=f"{SESSION_STATE}/runs")
    device.run("ip", "link", "add", "wwan0", "type", "veth", "peer", "name", "far0")
    device.run("ip", "link", "set", "wwan0", "up")
    device.run("ip", "address", "add", "192.0.2.1/24", "dev", "wwan0", "noprefixroute")
    device.start()
    for number in (1, 2):
        device.send(push(number, preferred=[ConnectionType.MOBILE]))
        device.wait_accepted(number)
        device.wait_record("session waiting", number)
        assert Run(number, 1) not in device.runs(f"{SESSION_STATE}/runs")
        device.run("ip", "link", "set", "far0", "up")  # and so wwan0 has carrier
        device.wait_run(number, file=f"{SESSION_STATE}/runs")
        device.run("ip", "link", "set", "far0", "down")
        wait_until(lambda: "NO-CARRIER" in device.run("ip", "link", "show", "wwan0"))


def test_sessions_that_end_at_once_leave_their_socket_open(device: Device) -> None:
    """A template that can't be started (a user that isn't there) ends as soon as it is asked for, hundreds of times."""
    hand_over(device)
    device.configure(hook={"socket": "/run/dmnotid-session.sock"}, retry={"first": "1s", "attempts": 3})
    device.drop_in("[Service]\nUser=nobody-of-that-name\n", "dmnotid-session@.service")
    device.start()
    device.send(*map(notification, range(1, 301)))
    device.wait_record("session try failed", 250)
    assert device.is_active("dmnotid-session.socket"), device.machine.show("dmnotid-session.socket", "Result")
