"""The bearers as services: on the machine's own bus, as their user, in their sandbox."""

import pytest

from tests.system.device import Device

pytestmark = [pytest.mark.root, pytest.mark.system]

OFONO = "dmnotid-ofono.service"


def test_bearer_is_ready_when_the_bus_is_there(device: Device) -> None:
    device.run("systemctl", "start", OFONO)
    assert device.machine.show(OFONO, "ActiveState", "StatusText") == {
        "ActiveState": "active",
        "StatusText": "connected to the system bus",
    }
    [missing] = [entry.record for entry in device.log(unit=OFONO) if entry.record.get("event") == "telephony missing"]
    assert missing["name"] == "org.ofono"
