"""From an SMS to the hook: ofonod, the bearer, the door, and the daemon."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Run, running
from tests.support import SECRET, SERVER_ID, Recorder, push, wait_until, write_config
from tests.telephony.conftest import StartBearer, why_no_ofono
from tests.telephony.modem import Modem
from tests.telephony.sms import deliver

pytestmark = [
    pytest.mark.telephony,
    pytest.mark.skipif(bool(why_no_ofono()), reason=why_no_ofono()),
    pytest.mark.usefixtures("ofono"),
]

# Content-Type application/vnd.wap.mms-message, X-Wap-Application-Id mms.ua, and how an m-notification-ind begins.
MMS = bytes.fromhex("01 06 03 be af 84 8c 82 98 31 00 8d 92")


@pytest.fixture
def run(short: Path) -> Iterator[Run]:
    with running(short) as run:
        yield run


def configured(directory: Path, recorder: Recorder) -> tuple[Path, Path]:
    """Configure a server that may send through the door alone; the file, and the path of the door."""
    path = directory / "push.sock"
    server = {"id": SERVER_ID, "secret": {"text": SECRET.decode()}, "sources": ["sms"]}
    door = {"path": str(path), "holds": "push", "source": "sms"}
    return write_config(directory, recorder.command, servers=[server], doors=[door]), path


def ids(recorder: Recorder) -> list[int]:
    return sorted(int(one["environment"]["DMNOTID_NOTIFICATION_ID"]) for one in recorder.runs)


def test_notification_by_sms_starts_its_hook_once(modem: Modem, short: Path, run: Run, bearer: StartBearer) -> None:
    recorder = Recorder(short)
    file, door = configured(short, recorder)
    daemon = run(file)
    daemon.wait("daemon ready")
    sms = bearer("ofono", door)
    sms.wait("agent registered")
    long = push(8, unknown=[(9, bytes(300))])
    first = push(7)
    modem.send(*deliver(first), *deliver(long), *deliver(MMS), *deliver(push(9, secret=b"forged")))
    modem.store(*deliver(push(10)), *deliver(first))
    verdicts = ["accepted", "accepted", "content-type-mismatch", "digest-mismatch", "accepted", "duplicate"]
    sms.wait("push handed in", len(verdicts))
    assert [record["verdict"] for record in sms.of("push handed in")] == verdicts
    daemon.wait("session done", 3)
    assert ids(recorder) == [7, 8, 10]
    assert {one["environment"]["DMNOTID_SOURCE"] for one in recorder.runs} == {"sms"}


def test_notification_waits_in_the_bearer_while_the_daemon_is_down(
    modem: Modem, short: Path, run: Run, bearer: StartBearer
) -> None:
    recorder = Recorder(short)
    file, door = configured(short, recorder)
    daemon = run(file)
    daemon.wait("daemon ready")
    sms = bearer("ofono", door)
    sms.wait("agent registered")
    modem.send(*deliver(push(7)))
    daemon.wait("session done")
    assert daemon.stop() == 0
    modem.send(*deliver(push(8)), *deliver(push(9)))
    sms.wait("door shut")
    sms.wait("push received", 3)
    daemon = run(file)
    daemon.wait("session done", 2)
    sms.wait("door open")
    wait_until(lambda: len(sms.of("push handed in")) == 3)
    assert ids(recorder) == [7, 8, 9]
