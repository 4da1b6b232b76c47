"""The bearer for oFono, with the real ofonod, a simulated modem and a private bus."""

import pytest

from tests.bearers.door import Door
from tests.support import push
from tests.telephony.conftest import StartBearer, why_no_ofono
from tests.telephony.modem import Modem
from tests.telephony.sms import deliver

pytestmark = [
    pytest.mark.telephony,
    pytest.mark.skipif(bool(why_no_ofono()), reason=why_no_ofono()),
]

LONG = push(8, unknown=[(9, bytes(300))])
"""A push that takes three parts."""


@pytest.mark.usefixtures("ofono")
def test_push_is_handed_in_once_when_it_comes_by_sms(modem: Modem, door: Door, bearer: StartBearer) -> None:
    """Of one part and of several, stored (+CMTI) and direct (+CMT)."""
    one = bearer("ofono", door.path)
    one.wait("agent registered")
    sent = [push(7), LONG, push(9), push(10, unknown=[(9, bytes(300))])]
    modem.send(*deliver(sent[0]))
    modem.send(*deliver(sent[1], reference=1))
    modem.store(*deliver(sent[2]))
    modem.store(*deliver(sent[3], reference=2))
    one.wait("push handed in", 4)
    assert door.pushes == sent
