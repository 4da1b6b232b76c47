"""`systemctl reload`: a good file takes over, a bad one changes nothing and is told of."""

import re

import pytest

from tests.support import OTHER_ID, OTHER_SECRET, SECRET, SERVER_ID, push, wait_until
from tests.system.device import CONFIG, Device, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

ONE = [{"id": SERVER_ID, "secret": {"text": SECRET.decode()}}]
BOTH = [*ONE, {"id": OTHER_ID, "secret": {"text": OTHER_SECRET.decode()}}]


def test_reload_takes_a_new_server(device: Device) -> None:
    device.configure(servers=ONE)
    device.start()
    pid = device.pid
    device.send(push(1, server_id=OTHER_ID))
    assert device.wait_record("datagram discarded")["reason"] == "unknown-server"
    device.configure(servers=BOTH)
    device.run("systemctl", "reload", "dmnotid.service")
    device.send(push(1, server_id=OTHER_ID))
    device.wait_accepted(1)
    assert device.pid == pid


def test_warnings_are_logged_once_for_a_reload(device: Device) -> None:
    """By the daemon alone: the command that asks for the reload prints them on a terminal only."""
    device.start()
    device.configure(servers=[{"id": SERVER_ID, "secret": {"text": "short"}}])
    device.run("systemctl", "reload", "dmnotid.service")
    device.wait_record("configuration reloaded")
    assert sum("can be guessed" in str(entry.fields["MESSAGE"]) for entry in device.log()) == 1


def test_reload_of_a_bad_file_fails_changes_nothing_and_shows_in_the_status_line(device: Device) -> None:
    """The status line keeps the refusal, whatever comes, until a reload succeeds."""

    def text() -> str:
        return device.machine.show("dmnotid.service", "StatusText")["StatusText"]

    device.start()
    pid = device.pid
    device.machine.write(CONFIG, "servers:\n  - id: dm.example\n    secrets: {text: x}\n", mode=0o600, owner="dmnotid:")
    done = device.machine.attempt("systemctl", "reload", "dmnotid.service")
    assert done.returncode != 0
    said = "\n".join(str(entry.fields["MESSAGE"]) for entry in device.log())
    assert re.search(rf"{re.escape(CONFIG)}:3:5: .*secrets", said), said
    device.send(notification(1))
    device.wait_run(1)
    wait_until(lambda: text().startswith(f"reload refused: {CONFIG}:") and "1 accepted" in text())
    assert device.is_active()
    assert device.pid == pid
    device.configure()
    device.run("systemctl", "reload", "dmnotid.service")
    wait_until(lambda: "reload refused" not in text())


def test_hangup_with_a_bad_file_is_told_in_the_status_line(device: Device) -> None:
    def text() -> str:
        return device.machine.show("dmnotid.service", "StatusText")["StatusText"]

    device.start()
    device.machine.write(CONFIG, "servers: 5\n", mode=0o600, owner="dmnotid:")
    device.run("systemctl", "kill", "--signal=HUP", "dmnotid.service")
    wait_until(lambda: "reload refused" in text())
    problems = [record["problem"] for record in device.records("configuration problem")]
    assert f"{CONFIG}:1:10: servers: is a number; expected a list of servers" in problems
    device.configure()
    device.run("systemctl", "reload", "dmnotid.service")
    device.wait_record("configuration reloaded")
    wait_until(lambda: "reload refused" not in text())


def test_systemd_is_told_that_a_reload_begins_and_ends(device: Device) -> None:
    """What the daemon sends, as strace sees it: in this order, and the first before the file is read."""
    device.start()
    device.run("mkdir", "-p", "/run/trace")
    with device.machine.popen(
        "strace", "--follow-forks", "--trace=sendmsg,sendto,openat", "--string-limit=200", "--output=/run/trace/out",
        "--attach", str(device.pid),
    ) as strace:  # fmt: skip
        file = device.machine.path("/run/trace/out")
        try:
            wait_until(lambda: device.status_of(device.pid)["TracerPid"] != "0")
            device.run("systemctl", "reload", "dmnotid.service")
            wait_until(lambda: "READY=1" in file.read_text())
        finally:
            strace.terminate()
    told = [
        word
        for line in file.read_text().splitlines()
        for word in ("RELOADING=1", "MONOTONIC_USEC=", CONFIG, "READY=1")
        if word in line
    ]
    assert told == ["RELOADING=1", "MONOTONIC_USEC=", CONFIG, "READY=1"]
