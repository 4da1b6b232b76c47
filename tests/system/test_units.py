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

EXPOSURES: Final = (
    ("dmnotid.service", False, {252: 12, 257: 11}),
    ("dmnotid.service", True, {252: 7, 257: 7}),
    ("dmnotid-metrics.service", False, {252: 9, 257: 9}),
    ("dmnotid-metrics@1.service", False, {252: 3, 257: 2}),
    *((unit, False, {252: 9, 257: 7}) for unit in BEARERS),
)
"""Units, without and with handoff.conf, and by version ten times the exposure that `systemd-analyze security` may find.

Other versions weigh otherwise, and have settings that the units cannot have.
"""


@pytest.mark.parametrize("handed_over", [False, True])
def test_units_are_clean(device: Device, handed_over: bool) -> None:  # noqa: FBT001 - a parameter of the test's
    if handed_over:
        hand_over(device)
    done = device.machine.attempt(
        "systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *UNITS, *METRICS, *BEARERS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("unit", "handed_over", "limits"), EXPOSURES)
def test_exposure(device: Device, unit: str, handed_over: bool, limits: dict[int, int]) -> None:  # noqa: FBT001 - as above
    version = device.machine.systemd
    if version not in limits:
        pytest.skip(f"the figures are those of systemd {', '.join(map(str, limits))}")
    if handed_over:
        hand_over(device)
    device.run("systemd-analyze", "security", "--offline=true", f"--threshold={limits[version]}", unit)


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
