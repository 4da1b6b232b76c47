"""From an SMS to the hook, each id once: a telephony daemon, its bearer, the door, and the daemon."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmnotid.wire.wsp import encode_push
from tests.processes import Run, Service, running
from tests.support import SECRET, SERVER_ID, Recorder, push, wait_until, write_config
from tests.telephony.conftest import StartBearer
from tests.telephony.modem import Modem
from tests.telephony.modemmanager import ModemManager, needs_modemmanager
from tests.telephony.ofonod import needs_ofono
from tests.telephony.sms import deliver

pytestmark = pytest.mark.telephony

LONG = push(8, unknown=[(9, bytes(300))])
"""A push that takes three parts."""
MMS = encode_push(b"mms", content_type=0x3E, application=4)
FORGED = push(9, secret=b"forged")


class Device:
    """A door, a server that may send through it alone, and a hook."""

    def __init__(self, directory: Path, run: Run) -> None:
        self.hook = Recorder(directory)
        self.door = directory / "push.sock"
        server = {"id": SERVER_ID, "secret": {"text": SECRET.decode()}, "sources": ["sms"]}
        doors = [{"path": str(self.door), "holds": "push", "source": "sms"}]
        self._file = write_config(directory, self.hook.command, servers=[server], doors=doors)
        self._run = run

    def start(self) -> Service:
        daemon = self._run(self._file)
        daemon.wait("daemon ready")
        return daemon


@pytest.fixture
def device(short: Path) -> Iterator[Device]:
    with running(short) as run:
        yield Device(short, run)


@needs_ofono
@pytest.mark.usefixtures("ofono")
def test_notification_starts_its_hook_once_when_ofono_receives_it(
    modem: Modem, device: Device, bearer: StartBearer
) -> None:
    """It waits in the bearer while the daemon is down."""
    daemon = device.start()
    one = bearer("ofono", device.door)
    one.wait("agent registered")
    first = push(7)
    modem.send(*deliver(first), *deliver(LONG), *deliver(MMS), *deliver(FORGED))
    modem.store(*deliver(push(10)), *deliver(first))
    verdicts = ["accepted", "accepted", "content-type-mismatch", "digest-mismatch", "accepted", "duplicate"]
    one.wait("push handed in", len(verdicts))
    assert [record["verdict"] for record in one.of("push handed in")] == verdicts
    daemon.wait("session done", 3)
    assert {run["environment"]["DMNOTID_SOURCE"] for run in device.hook.runs} == {"sms"}
    daemon.stop()
    modem.send(*deliver(push(11)), *deliver(push(12)))
    one.wait("door shut")
    one.wait("push received", len(verdicts) + 2)
    device.start().wait("session done", 2)
    assert sorted(device.hook.notification_ids) == [7, 8, 10, 11, 12]


@needs_modemmanager
def test_notification_starts_its_hook_once_when_modemmanager_receives_it(
    manager: ModemManager, modem: Modem, device: Device, bearer: StartBearer
) -> None:
    """Whatever is restarted meanwhile."""
    daemon = device.start()
    one = bearer("modemmanager", device.door)
    first = push(7)
    for octets in (first, LONG, FORGED, first):
        manager.receive(*deliver(octets))
        wait_until(lambda: not modem.stored)
    verdicts = [line["verdict"] for line in one.of("push handed in")]
    assert verdicts == ["accepted", "accepted", "digest-mismatch", "duplicate"]
    daemon.wait("session done", 2)
    daemon.stop()
    manager.receive(*deliver(push(10)))
    one.wait("door shut")
    with manager.stopped():
        one.stop()
        modem.store(*deliver(push(11)), announce=False)
    bearer("modemmanager", device.door).wait("door shut")
    assert len(modem.stored) == 2
    device.start().wait("session done", 2)
    wait_until(lambda: not modem.stored)
    assert sorted(device.hook.notification_ids) == [7, 8, 10, 11]
