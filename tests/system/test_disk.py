"""A full disk under the running service."""

import pytest

from tests.system.device import STATE, Device, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

RUNS = "/run/dmnotid/runs"
BALLAST = f"{STATE}/ballast"


def test_a_full_disk_stops_nothing(device: Device) -> None:
    device.write_hook(runs=RUNS)
    device.run("mkdir", "-p", STATE)
    device.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", STATE)
    device.start()
    pid = device.pid
    device.send(notification(1))
    device.wait_run(1, file=RUNS)
    assert device.machine.attempt("dd", "if=/dev/zero", f"of={BALLAST}", "bs=4k").returncode != 0, "it isn't full"
    for number in range(100, 200):
        device.send(notification(number))
    refused = device.wait_record("notification not accepted")
    assert "full" in refused["problem"]
    assert device.log("DMNOTID_EVENT=notification not accepted", "PRIORITY=3")
    device.run("rm", BALLAST)
    device.send(notification(199), notification(200))  # the server sends again what it has no session for
    device.wait_run(199, file=RUNS)
    device.wait_run(200, file=RUNS)
    assert device.pid == pid
    assert device.is_active()
