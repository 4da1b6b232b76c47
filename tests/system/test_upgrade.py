"""The ways to install dmnotid on a running system, and to take it away: the Debian package, and systemd/install."""

import re
import shutil
from pathlib import Path
from typing import Final

import pytest

import dmnotid
from tests.project.packaging import copy_sources, repacked
from tests.system.device import CONFIG, PORT, STATE, Device, Stream, notification
from tests.system.machine import Machine
from tests.system.test_restart import assert_none_lost

pytestmark = [pytest.mark.root, pytest.mark.system]

BEARER: Final = "dmnotid-ofono.service"
FORMER: Final = "0.0.1"
NEWER: Final = "9.9.9"
COMMENT: Final = "\n# A comment that only the former version has.\n"


@pytest.fixture
def former(package: Path, tmp_path: Path) -> Path:
    """The package as a former version, with another example of a configuration."""
    return repacked(package, FORMER, tmp_path, {CONFIG: COMMENT})


def bring(machine: Machine, source: Path) -> str:
    """Copy a file or directory into the machine; its path there."""
    target = machine.path("/srv") / source.name
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)
    return f"/srv/{source.name}"


def port_is_open(device: Device) -> bool:
    return f":{PORT:04X} " in device.run("cat", "/proc/net/udp6", "/proc/net/udp")


def units(device: Device) -> str:
    """What systemd knows of dmnotid's units; its exit status is 1 where that's nothing."""
    return device.machine.attempt("systemctl", "list-unit-files", "--no-legend", "dmnotid*").stdout


def users(device: Device) -> list[str]:
    return re.findall(r"(?m)^(dmnotid[\w-]*):", device.run("cat", "/etc/passwd"))


def socket_opened(device: Device) -> str:
    return device.machine.show("dmnotid.socket", "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"]


def environment(device: Device, unit: str) -> Path:
    """Return the virtual environment whose Python runs the main process of a service."""
    pid = device.machine.show(unit, "MainPID")["MainPID"]
    return Path(device.run("cat", f"/proc/{pid}/cmdline").partition("\0")[0]).parents[1]


def test_the_package_is_upgraded_under_a_stream(bare_machine: Machine, former: Path, package: Path) -> None:
    device = Device(bare_machine)
    device.run("dpkg", "--install", bring(bare_machine, former))
    assert not port_is_open(device), "installation opened the port"
    device.configure()
    device.run("systemctl", "enable", "--now", "dmnotid.service")
    configured = device.machine.path(CONFIG).read_bytes()
    opened, pid = socket_opened(device), device.pid
    with Stream(device) as stream:
        stream.wait_more()
        # As an unattended upgrade has it; asked, the administrator sees both.
        device.run("dpkg", "--force-confold", "--install", bring(bare_machine, package))
        stream.wait_more()
    assert_none_lost(device, stream)
    assert [record["version"] for record in device.records("daemon ready")] == [FORMER, dmnotid.__version__]
    assert device.pid != pid
    assert socket_opened(device) == opened
    assert device.machine.path(CONFIG).read_bytes() == configured
    assert COMMENT not in device.machine.path(f"{CONFIG}.dpkg-dist").read_text()

    device.run("dpkg", "--remove", "dmnotid")
    assert not port_is_open(device)
    assert not device.processes_of("dmnotid")
    assert not units(device)
    assert device.machine.path(CONFIG).read_bytes() == configured
    assert device.states().keys() == set(stream.sent)

    device.run("dpkg", "--purge", "dmnotid")
    assert not device.machine.path(CONFIG).exists()
    assert not device.machine.path(STATE).exists()
    assert users(device) == ["dmnotid", "dmnotid-session"]


def test_the_virtual_environment_is_upgraded_under_a_stream(
    bare_machine: Machine, wheels: Path, tmp_path: Path
) -> None:
    device = Device(bare_machine)
    offline = ("--find-links", bring(bare_machine, wheels))
    install = f"{bring(bare_machine, copy_sources(tmp_path / 'sources'))}/systemd/install"
    newer = f"{bring(bare_machine, copy_sources(tmp_path / 'newer', NEWER))}/systemd/install"
    device.run(install, "--sms", *offline)
    assert not port_is_open(device), "installation opened the port"
    device.configure()
    device.run("systemctl", "enable", "--now", "dmnotid.service", BEARER)
    first = environment(device, BEARER)
    device.send(notification(1))
    device.wait_run(1)
    configured, opened = device.machine.path(CONFIG).read_bytes(), socket_opened(device)
    with Stream(device) as stream:
        stream.wait_more()
        # A bearer that is installed is upgraded too, without the option.
        device.run(newer, *offline)
        stream.wait_more()
    device.wait_accepted(*stream.sent)
    assert device.is_active(BEARER)
    assert environment(device, BEARER) == environment(device, "dmnotid.service") != first
    assert [record["version"] for record in device.records("daemon ready")] == [dmnotid.__version__, NEWER]
    assert socket_opened(device) == opened
    assert device.machine.path(CONFIG).read_bytes() == configured

    device.run(newer, "--uninstall")
    assert not port_is_open(device)
    assert not device.processes_of("dmnotid")
    assert not units(device)
    assert device.machine.path(CONFIG).read_bytes() == configured
    assert device.states().keys() == {1, *stream.sent}
