"""From `systemctl start` to READY: as whom the daemon runs, and what systemd shows of it."""

import pytest

from dmnotid.events import EVENTS
from tests.support import OTHER_ID, push, wait_until
from tests.system.device import Device, notification

pytestmark = [pytest.mark.root, pytest.mark.system]


def test_start_ends_when_the_daemon_is_ready(device: Device) -> None:
    device.start()
    assert device.is_active()
    assert device.machine.show("dmnotid.service", "Type")["Type"] == "notify"
    assert device.records("daemon ready"), "started before it was ready"


def test_start_fails_at_a_bad_configuration(device: Device) -> None:
    device.configure(servers=[])
    assert device.machine.attempt("systemctl", "start", "dmnotid.service").returncode != 0


def test_status_line_tells_servers_sessions_and_discards(device: Device) -> None:
    def text() -> str:
        return device.machine.show("dmnotid.service", "StatusText")["StatusText"]

    device.write_hook("sleep 60")
    device.start()
    assert text().startswith("3 servers; sessions: 0 running, 0 pending; 0 accepted, 0 discarded")
    device.send(notification(1), notification(2), push(3, server_id=OTHER_ID, secret=b"wrong"), b"\x01")
    wait_until(lambda: "sessions: 1 running, 1 pending; 2 accepted, 2 discarded" in text())
    assert "digest-mismatch 1" in text()
    assert "junk 1" in text()


def test_nothing_runs_as_root(device: Device) -> None:
    device.start()
    status = device.status_of(device.pid)
    user = device.run("id", "--user", "dmnotid").strip()
    assert user != "0"
    assert status["Uid"].split() == [user] * 4
    assert status["Gid"].split() == [device.run("id", "--group", "dmnotid").strip()] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_systemd_journal_has_levels_and_fields(device: Device) -> None:
    device.start()
    device.send(push(5, secret=b"wrong"), notification(6))
    device.wait_run(6)
    device.wait_record("session done")
    (warning,) = device.log("DMNOTID_SERVER_ID=dm.example", "--priority=warning")
    assert warning.record["event"] == "datagram discarded"
    assert warning.fields["PRIORITY"] == "4"
    assert warning.fields["MESSAGE"].startswith("A datagram from ")
    explained = device.run("journalctl", "--catalog", f"MESSAGE_ID={EVENTS['datagram discarded'].message_id}")
    assert "Subject: Datagram discarded" in explained
    assert warning.fields["DMNOTID_REASON"] == "digest-mismatch"
    assert warning.fields["DMNOTID_NOTIFICATION_ID"] == "5"
    assert warning.fields["SYSLOG_IDENTIFIER"] == "dmnotid"
    about = device.log("DMNOTID_NOTIFICATION_ID=6")
    assert [entry.fields["DMNOTID_EVENT"] for entry in about] == [
        "notification accepted",
        "session started",
        "session done",
    ]
    (session,) = {entry.fields["DMNOTID_SESSION"] for entry in about}
    assert {entry.fields["PRIORITY"] for entry in device.log(f"DMNOTID_SESSION={session}")} == {"6"}
    assert about[1].fields["DMNOTID_INTERFACE"] == "lo"
    assert about[2].fields["DMNOTID_OUTCOME"] == "exit 0"
