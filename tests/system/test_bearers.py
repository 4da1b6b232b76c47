"""The bearers as services: on the machine's own bus, as their user, in their sandbox."""

import pytest

from tests.support import push, wait_until
from tests.system.device import Device
from tests.telephony.modem import Modem
from tests.telephony.sms import deliver

pytestmark = [pytest.mark.root, pytest.mark.system]

UNITS = {"dmnotid-ofono.service": "org.ofono", "dmnotid-modemmanager.service": "org.freedesktop.ModemManager1"}


@pytest.mark.parametrize("unit", UNITS)
def test_bearer_is_ready_when_the_bus_is_there(device: Device, unit: str) -> None:
    device.run("systemctl", "start", unit)
    assert device.machine.show(unit, "ActiveState", "StatusText") == {
        "ActiveState": "active",
        "StatusText": "connected to the system bus",
    }
    [missing] = [entry.record for entry in device.log(unit=unit) if entry.record.get("event") == "telephony missing"]
    assert missing["name"] == UNITS[unit]


@pytest.mark.parametrize("debian", ["device", "later_device"])
def test_push_by_sms_starts_a_session_through_the_shipped_units(request: pytest.FixtureRequest, debian: str) -> None:
    """oFono 1.31 or 2.16, its bearer, the door that systemd holds, the daemon and its hook, each in its sandbox."""
    device: Device = request.getfixturevalue(debian)
    bearer = "dmnotid-ofono.service"

    def wait_logged(event: str) -> None:
        wait_until(lambda: [entry for entry in device.log(unit=bearer) if entry.record.get("event") == event])

    device.configure(doors=[{"path": "/run/dmnotid-doors/push.sock", "holds": "push", "source": "sms"}])
    device.run("systemctl", "start", "dmnotid-doors.socket")
    device.start()
    with device.machine.call(Modem) as modem:
        phone = f"[phonesim]\nDriver=phonesim\nAddress=127.0.0.1\nPort={modem.port}\n"
        device.machine.write("/etc/ofono/phonesim.conf", phone)
        # It is masked, as most devices have no modem.
        device.run("rm", "/etc/systemd/system/ofono.service")
        device.run("systemctl", "daemon-reload")
        device.run("systemctl", "start", "ofono.service", bearer)
        power = ("org.ofono", "/phonesim", "org.ofono.Modem", "SetProperty", "sv", "Powered", "b", "true")
        wait_until(lambda: device.machine.attempt("busctl", "call", *power).returncode == 0)
        wait_logged("agent registered")
        modem.send(*deliver(push(7)))
        device.wait_run(7)
        wait_logged("push handed in")
        device.run("systemctl", "stop", bearer, "ofono.service")
    [accepted] = device.records("notification accepted")
    assert accepted["source"] == "sms"
