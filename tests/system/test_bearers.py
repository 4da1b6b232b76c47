"""The bearers as services: on the machine's own bus, as their user, in their sandbox."""

import pytest

from tests.system.device import Device

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
