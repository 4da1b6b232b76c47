"""The daemon ends, in whatever way, while notifications come: each is accepted, and what ran is run again."""

import time

import pytest

from tests.support import wait_until
from tests.system.device import CRASH, RUNS, STATE, Device, Run, Stream, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

STORM = 8
"""How many crashes make a storm: the default limit closes the socket for good at the sixth start within ten seconds."""


def assert_none_lost(device: Device, stream: Stream) -> None:
    """See that every notification was accepted, and that no log line says so twice."""
    device.wait_accepted(*stream.sent)
    assert sorted(device.states()) == stream.sent
    accepted = [record["notification_id"] for record in device.records("notification accepted")]
    assert len(accepted) == len(set(accepted))


def crash(device: Device, number: int, *, by: str = "") -> None:
    """End the daemon by force, and send a notification as soon as it's gone; then wait until another one is ready.

    What was read together with what makes it crash, and isn't committed, is lost: no promise covers that.
    """
    pid = device.pid
    if by:
        device.run("systemctl", "kill", f"--signal={by}", "--kill-whom=main", "dmnotid.service")
    else:
        device.send(CRASH)
    wait_until(lambda: device.pid != pid)
    device.send(notification(number))
    device.wait_for_another(pid)


def storm(device: Device) -> None:
    """Crash the daemon again and again, each time as soon as it is up, and see that no notification is lost."""
    for number in range(1, STORM + 1):
        crash(device, number)
    device.wait_accepted(*range(1, STORM + 1))
    assert device.machine.show("dmnotid.service", "NRestarts")["NRestarts"] == str(STORM)
    device.send(notification(STORM + 1))
    device.wait_run(STORM + 1)


def test_restart_loses_none(device: Device) -> None:
    device.start()
    with Stream(device) as stream:
        stream.wait_more()
        pid = device.pid
        device.run("systemctl", "restart", "dmnotid.service")
        assert device.pid != pid
        stream.wait_more()
    assert_none_lost(device, stream)


def test_crash_storm_leaves_the_socket_open(device: Device) -> None:
    # Pauses that grow would make a lull of the storm.
    steps = "RestartSteps=0\n" if device.pauses_grow else ""
    device.crash_at_will(f"[Service]\nRestartSec=100ms\n{steps}")
    device.start()
    storm(device)
    assert device.is_active("dmnotid.socket")


def test_a_service_that_cannot_start_leaves_the_socket_open(device: Device) -> None:
    """Activated again and again by what waits in the socket, which it never reads; a moment later it is mended."""
    device.drop_in("[Service]\nRestart=no\nExecStart=\nExecStart=/bin/false\n")
    device.start("dmnotid.socket")
    device.send(notification(1))

    def failed() -> int:
        return sum("Failed with result" in str(entry.fields["MESSAGE"]) for entry in device.log())

    wait_until(lambda: failed() > 60)
    assert device.is_active("dmnotid.socket")
    device.drop_in("")
    device.wait_run(1)


def test_killed_daemon_is_started_again(device: Device) -> None:
    """By itself: what waits in the socket would start it too."""
    device.start()
    pid = device.pid
    device.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "dmnotid.service")
    device.wait_for_another(pid)
    device.send(notification(1))
    device.wait_run(1)
    # docs/install.md: the count that makes pauses grow.
    assert device.machine.show("dmnotid.service", "NRestarts")["NRestarts"] == "1"
    device.run("systemctl", "reset-failed", "dmnotid.service")
    assert device.machine.show("dmnotid.service", "NRestarts")["NRestarts"] == "0"


def test_the_socket_unit_takes_the_port_over_after_a_stop(device: Device) -> None:
    device.without_socket()
    device.start("dmnotid.service")
    device.run("systemctl", "stop", "dmnotid.service")
    device.run("systemctl", "unmask", "dmnotid.socket")
    device.run("systemctl", "start", "dmnotid.service")
    assert device.is_active()
    assert device.is_active("dmnotid.socket"), [entry.fields["MESSAGE"] for entry in device.log(unit="dmnotid.socket")]


def test_without_the_socket_unit_a_stop_closes_the_port(device: Device) -> None:
    device.without_socket()
    device.start("dmnotid.service")
    assert ":0B84" in device.run("cat", "/proc/net/udp6")
    device.run("systemctl", "stop", "dmnotid.service")
    wait_until(lambda: ":0B84" not in device.run("cat", "/proc/net/udp6"))


def test_watchdog_restarts_a_daemon_that_hangs(device: Device) -> None:
    assert "WatchdogSec=3min" in device.run("systemctl", "cat", "dmnotid.service")  # too long for a test
    device.drop_in("[Service]\nWatchdogSec=1s\nRestartSec=100ms\n")
    device.start()
    pid = device.pid
    device.run("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "dmnotid.service")
    device.wait_for_another(pid)
    device.send(notification(1))
    device.wait_run(1)
    said = "\n".join(str(entry.fields["MESSAGE"]) for entry in device.log())
    assert "Watchdog timeout" in said
    assert "status=6/ABRT" in said


def test_watchdog_leaves_an_idle_daemon_alone(device: Device) -> None:
    device.drop_in("[Service]\nWatchdogSec=2s\n")
    device.start()
    pid = device.pid
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() - begun > 5)
    assert device.pid == pid
    device.send(notification(1))
    device.wait_run(1)


def test_stop_gives_a_hook_its_grace_and_runs_it_again(device: Device) -> None:
    grace = 2
    device.configure(hook={"command": ["/etc/dmnotid/start-dm-session"], "kill_after": "1s", "stop_grace": f"{grace}s"})
    device.write_hook(
        f"trap 'echo 0 0 >>{RUNS}; exit 1' TERM\n[ $DMNOTID_ATTEMPT != 1 ] || while :; do sleep 0.1; done"
    )
    device.start()
    device.send(notification(1))
    device.wait_run(1)
    begun = time.monotonic()
    device.run("systemctl", "stop", "dmnotid.service")
    assert grace <= time.monotonic() - begun < 20
    assert device.runs() == [Run(1, 1), Run(0, 0)], "the hook didn't get its TERM"
    assert not device.processes_of("dmnotid")
    result = device.machine.show("dmnotid.service", "Result", "ActiveState")
    assert result == {"Result": "success", "ActiveState": "inactive"}
    device.start("dmnotid.service")
    device.wait_run(1, 2)


def test_stop_waits_for_a_hook_that_ends_in_time(device: Device) -> None:
    device.write_hook(f"while [ ! -e {RUNS}.end ]; do sleep 0.1; done")
    device.start()
    device.send(notification(1))
    device.wait_run(1)
    stop = device.machine.popen("systemctl", "stop", "dmnotid.service")
    device.wait_record("daemon stopping")
    device.machine.write(f"{RUNS}.end", "")
    assert stop.wait(20) == 0
    assert device.states() == {1: "done"}


FIND_HOOK = f"""#!/bin/sh
[ ! -e {STATE}/hook ] || for pid in $(cat {STATE}/hook); do
    kill -0 $pid && echo "$pid runs" || echo "$pid is gone"
done >{STATE}/found
"""
"""A program that the service manager runs before each start of the daemon: it looks for the former hook's processes."""

STUBBORN_HOOK = f"""
[ $DMNOTID_ATTEMPT = 1 ] || exit 0
trap '' TERM
setsid sleep 600 &
echo $$ $! >{STATE}/hook.new; mv {STATE}/hook.new {STATE}/hook
while :; do sleep 0.1; done
"""
"""A hook, and a child outside its process group, that ignore SIGTERM."""


def test_hook_of_a_killed_daemon_is_gone_before_the_next_start(device: Device) -> None:
    """The service manager ends the whole control group, so no try runs beside the next one."""
    device.machine.write("/usr/local/lib/find-hook", FIND_HOOK, mode=0o755)
    device.drop_in("[Service]\nExecStartPre=/usr/local/lib/find-hook\n")
    device.write_hook(STUBBORN_HOOK)
    device.start()
    device.send(notification(1))
    file = device.machine.path(f"{STATE}/hook")
    wait_until(file.exists)
    pids = file.read_text().split()
    device.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "dmnotid.service")
    device.wait_run(1, 2)
    # The program ran outside the daemon: nothing that the daemon does at its start can be the reason.
    assert device.run("cat", f"{STATE}/found").splitlines() == [f"{pid} is gone" for pid in pids]
