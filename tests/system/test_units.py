"""The units as they are installed: what systemd itself thinks of them, and who may use the control socket."""

from typing import Final

import pytest

from tests.system.device import Device
from tests.system.test_receive import hand_over

pytestmark = [pytest.mark.root, pytest.mark.system]

UNITS: Final = (
    *("dmnotid.service", "dmnotid.socket", "dmnotid-doors.socket"),
    *("dmnotid-session.socket", "dmnotid-session@1.service"),
)
METRICS: Final = (
    "dmnotid-metrics.timer",
    "dmnotid-metrics.service",
    "dmnotid-metrics.socket",
    "dmnotid-metrics@1.service",
)
BEARERS: Final = ("dmnotid-ofono.service", "dmnotid-modemmanager.service")

MEASURED_BY: Final = "systemd 252"
"""Other versions weigh otherwise, and know settings that these units can't have."""


@pytest.mark.parametrize("handed_over", [False, True])
def test_units_are_clean(device: Device, handed_over: bool) -> None:  # noqa: FBT001 - a parameter of the test's
    if handed_over:
        hand_over(device)
    done = device.machine.attempt(
        "systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *UNITS, *METRICS, *BEARERS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("handed_over", "threshold"), [(False, 12), (True, 7)])
def test_exposure(device: Device, handed_over: bool, threshold: int) -> None:  # noqa: FBT001 - a parameter of the test's
    version = device.run("systemd-analyze", "--version")
    if not version.startswith(MEASURED_BY):
        pytest.skip(f"the figure is one of {MEASURED_BY}")
    if handed_over:
        hand_over(device)
    device.run("systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", "dmnotid.service")


OTHERS: Final = [("dmnotid-metrics.service", 9), ("dmnotid-metrics@1.service", 3), *((unit, 9) for unit in BEARERS)]


@pytest.mark.parametrize(("unit", "threshold"), OTHERS)
def test_exposure_of_the_others(device: Device, unit: str, threshold: int) -> None:
    version = device.run("systemd-analyze", "--version")
    if not version.startswith(MEASURED_BY):
        pytest.skip(f"the figure is one of {MEASURED_BY}")
    device.run("systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", unit)


@pytest.mark.parametrize("handed_over", [False, True])
def test_control_socket_is_read_by_the_group_and_used_by_root(
    device: Device,
    handed_over: bool,  # noqa: FBT001 - a parameter of the test's
) -> None:
    if handed_over:
        hand_over(device)
    device.start()
    assert device.run("stat", "--format=%a %U:%G", "/run/dmnotid", "/run/dmnotid/control").splitlines() == [
        "750 dmnotid:dmnotid",
        "660 dmnotid:dmnotid",
    ]
    group = device.run("getent", "group", "dmnotid").split(":")[2]

    def statuses(*command: str) -> list[int]:
        """Run a command as root, the daemon's user, a member of its group and a stranger."""
        own = ["setpriv", "--reuid=dmnotid", f"--regid={group}", "--clear-groups"]
        member = ["setpriv", "--reuid=4000", "--regid=4000", f"--groups={group}"]
        stranger = ["setpriv", "--reuid=4000", "--regid=4000", "--clear-groups"]
        return [device.machine.attempt(*user, *command).returncode for user in ([], own, member, stranger)]

    assert statuses("dmnotid", "status") == [0, 0, 0, 4]
    assert statuses("dmnotid", "reload") == [0, 0, 4, 4]
    (refused,) = device.records("control request refused")
    assert refused["method"] == "Reload"
