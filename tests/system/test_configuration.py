"""A configuration that can't be used: systemd starts the daemon again and again, without harm, until it is mended."""

from itertools import pairwise

import pytest

from tests.support import wait_until
from tests.system.device import CONFIG, Device, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

MICROSECONDS = 1_000_000


def break_configuration(device: Device) -> None:
    """Write a file with several problems."""
    device.configure(servers=5, listen=7, bogus=1, push={"max_header_octets": "many"})


def restarts(device: Device) -> int:
    return int(device.machine.show("dmnotid.service", "NRestarts")["NRestarts"])


def status_text(device: Device) -> str:
    return device.machine.show("dmnotid.service", "StatusText")["StatusText"]


def socket_opened(device: Device) -> str:
    name = "ActiveEnterTimestampMonotonic"
    return device.machine.show("dmnotid.socket", name)[name]


def starts(device: Device) -> list[float]:
    """The times of all starts so far, in seconds."""
    lines = [entry.fields for entry in device.log() if "Starting dmnotid.service" in str(entry.fields["MESSAGE"])]
    return [int(fields["__MONOTONIC_TIMESTAMP"]) / MICROSECONDS for fields in lines]


def test_a_bad_configuration_costs_few_starts_and_lines_and_no_datagram(device: Device) -> None:
    break_configuration(device)
    device.start("dmnotid.socket")
    opened = socket_opened(device)
    # Starts the service, and waits in the socket.
    device.send(notification(1))
    # With restart-steps.conf the third would come a minute and a half later.
    enough = 1 if device.pauses_grow else 3
    wait_until(lambda: restarts(device) >= enough)
    failed = {"ExecMainStatus": "78", "Result": "exit-code"}
    wait_until(lambda: device.machine.show("dmnotid.service", *failed) == failed)
    assert status_text(device).startswith(f"configuration: {CONFIG}:")
    times = starts(device)
    # At least 5 s from one start to the next: 12 in a minute.
    assert min(later - earlier for earlier, later in pairwise(times)) >= 5
    # Each start writes one line of level error. systemd adds one warning and one error (and four informal lines).
    own = [entry.fields for entry in device.log("_SYSTEMD_UNIT=dmnotid.service")]
    assert [fields["PRIORITY"] for fields in own] == ["3"] * len(times)
    assert str(own[0]["MESSAGE"]).startswith(f"{CONFIG}:")
    assert len(device.log("--priority=warning")) <= 3 * len(times)

    device.configure()
    device.wait_run(1)
    assert socket_opened(device) == opened


def test_pauses_grow_with_systemd_254(later_device: Device) -> None:
    """5 s, 20 s, 77 s, and then 5 min: tests/project counts 15 starts in the first hour."""
    device = later_device
    break_configuration(device)
    device.start("dmnotid.socket")
    device.send(notification(1))
    wait_until(lambda: restarts(device) >= 2)
    first, second, third = starts(device)
    assert 5 <= second - first < third - second
    assert device.machine.show("dmnotid.service", "RestartUSecNext")["RestartUSecNext"].startswith("1min 16.6")
    wait_until(lambda: status_text(device).startswith(f"configuration: {CONFIG}:"))
    device.configure()
    device.run("systemctl", "restart", "dmnotid.service")
    device.wait_run(1)


def test_preset_leaves_the_units_disabled(device: Device) -> None:
    device.run("systemctl", "preset-all")
    units = ("dmnotid.service", "dmnotid.socket", "dmnotid-session.socket")
    assert device.machine.attempt("systemctl", "is-enabled", *units).stdout.split() == ["disabled"] * 3
