"""The bearers on a private bus without a telephony daemon, or with one that is not as it should be."""

import shutil
from typing import Any

import pytest
from jeepney import DBusAddress, HeaderFields, new_signal
from jeepney.wrappers import DBusErrorResponse

from dmnotid.bearers.modemmanager import MESSAGING, NAME
from tests.bearers.door import Door
from tests.support import push
from tests.telephony.bus import PrivateBus, Service, call
from tests.telephony.conftest import StartBearer

pytestmark = [
    pytest.mark.telephony,
    pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon"),
]

_BUS = "org.freedesktop.DBus"


@pytest.mark.parametrize("telephony", ["ofono", "modemmanager"])
def test_signal_of_a_stranger_is_ignored_when_it_is_sent_to_the_bearer(
    bus: PrivateBus, door: Door, bearer: StartBearer, telephony: str
) -> None:
    """Every user of the system bus may send one, with any contents."""
    with bus.connect() as stranger:

        def ask(name: str, method: str) -> tuple[Any, ...]:
            return call(stranger, name, "/", _BUS, method, None)

        before = set(ask(_BUS, "ListNames")[0])
        running = bearer(telephony, door.path)
        running.wait("bus connected")
        (name,) = set(ask(_BUS, "ListNames")[0]) - before
        for member, signature, *body in (("ModemAdded", "oa{sv}", "/modem", {}), ("Added", "ib", 1, True)):
            signal = new_signal(DBusAddress("/", None, "org.example"), member, signature, tuple(body))
            signal.header.fields[HeaderFields.destination] = name
            stranger.send(signal)
        # Read after the signals.
        with pytest.raises(DBusErrorResponse, match="UnknownMethod"):
            ask(name, "None")
    assert running.stop() == 0


MESSAGE = {"State": ("u", 3), "PduType": ("u", 1), "Text": ("s", ""), "Number": ("s", "1")}


@pytest.mark.parametrize("odd", [{"State": ("u", 3)}, {**MESSAGE, "Data": ("s", "text")}], ids=["missing", "type"])
def test_push_is_handed_in_when_the_properties_of_another_message_are_odd(
    bus: PrivateBus, door: Door, bearer: StartBearer, odd: dict[str, tuple[str, Any]]
) -> None:
    sent, asked = push(), 0

    def answer(member: str, *_: object) -> tuple[str, tuple[Any, ...]] | None:
        nonlocal asked
        match member:
            case "GetManagedObjects":
                messages = {MESSAGING: {"Messages": ("ao", ["/sms/1", "/sms/2"])}}
                return "a{oa{sa{sv}}}", ({"/modem": messages},)
            case "GetAll":
                asked += 1
                return "a{sv}", (odd if asked == 1 else {**MESSAGE, "Data": ("ay", sent)},)
        return "", ()

    with Service(bus, NAME, answer):
        running = bearer("modemmanager", door.path)
        running.wait("push handed in")
        assert running.stop() == 0
    assert door.pushes == [sent]
