"""The bearer for ModemManager, with the real ModemManager, a simulated modem and a private bus."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dmnotid.wire.wsp import encode_push
from tests.bearers.door import Door
from tests.support import package, push, wait_until
from tests.telephony.bus import Polkit, PrivateBus
from tests.telephony.conftest import StartBearer
from tests.telephony.modem import Modem
from tests.telephony.modemmanager import MESSAGING, NAME, ModemManager, needs_modemmanager
from tests.telephony.sms import deliver, text

pytestmark = [pytest.mark.telephony, needs_modemmanager]

LONG = push(8, unknown=[(9, bytes(300))])
"""A push that takes three parts."""

RECEIVING = 2
"""MMSmsState of a message with missing parts."""


def test_push_is_handed_in_and_then_deleted_when_it_comes_by_sms(
    manager: ModemManager, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    """Of one part and of several, before the start and after it."""
    stored_at_answer = []

    def answer(_: bytes) -> dict[str, object]:
        stored_at_answer.append(len(modem.stored))
        return {"verdict": "accepted", "session": 1}

    door.answer = answer
    sent = push(6)
    manager.receive(*deliver(sent))
    one = bearer("modemmanager", door.path)
    wait_until(lambda: door.pushes == [sent] and not modem.stored)
    first, *others = deliver(LONG)
    manager.receive(first)
    wait_until(lambda: [message["State"] for message in manager.messages()] == [RECEIVING])
    manager.receive(*others)
    wait_until(lambda: door.pushes == [sent, LONG] and not modem.stored)
    assert stored_at_answer == [1, 3]
    assert [line["verdict"] for line in one.of("push handed in")] == ["accepted", "accepted"]
    wait_until(lambda: not manager.messages())


def test_push_for_another_port_is_handed_in_when_it_is_a_dm_notification(
    manager: ModemManager, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    """6.1.1 without the port, which ModemManager does not pass on: the decided exception."""
    # The limit for push headers is that of the daemon's configuration.
    long_header = encode_push(package(3), further=[("X-Padding", "x" * 60)])
    sent = [push(1), push(2), long_header]
    manager.receive(*deliver(sent[0], port=2949), *deliver(sent[1], port=None), *deliver(sent[2]))
    bearer("modemmanager", door.path)
    wait_until(lambda: door.pushes == sent and not modem.stored)


def test_other_messages_are_left_alone_when_a_push_is_taken(
    manager: ModemManager, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    others = [
        text("hello"),
        # A message of MMS, a push that must be confirmed, another application, octets without a push.
        *deliver(encode_push(b"mms", content_type=0x3E, application=4)),
        *deliver(b"\x00\x07" + push()[2:]),
        *deliver(encode_push(b"xyz", application=8)),
        *deliver(b"\xff"),
    ]
    manager.receive(*others)
    # A draft of a user, whose octets are those of a push.
    manager.call(MESSAGING, "Create", "a{sv}", {"number": ("s", "+1"), "data": ("ay", push())})
    one = bearer("modemmanager", door.path)
    one.wait("message left", 4)
    sent = push(9)
    manager.receive(*others, *deliver(sent))
    wait_until(lambda: door.pushes == [sent] and len(modem.stored) == 2 * len(others))
    assert len(manager.messages()) == 2 * len(others) + 1
    reasons = [line["reason"] for line in one.of("message left")]
    assert sorted(reasons) == sorted(
        ["content-type-mismatch", "not-a-push", "application-id-mismatch", "truncated"] * 2
    )


def test_messages_passed_on_without_storing_do_not_reach_the_bearer(
    manager: ModemManager, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    """ModemManager asks the modem to store all (AT+CNMI), and does not read what a modem passes on all the same."""
    bearer("modemmanager", door.path)
    assert "AT+CNMI=2,1,2,1,0" in modem.commands
    modem.send(*deliver(push(1)))
    sent = push(2)
    manager.receive(*deliver(sent))
    wait_until(lambda: door.pushes == [sent])


@pytest.mark.parametrize(
    ("first", "offers"), [(None, 2), ("queue-full", 2), ("stale", 1)], ids=["no answer", "queue full", "stale"]
)
def test_push_is_offered_until_its_verdict_is_final_and_then_deleted(
    manager: ModemManager, modem: Modem, door: Door, bearer: StartBearer, first: str | None, offers: int
) -> None:
    """A push without an answer may have been accepted; the daemon then discards the second one as a duplicate."""
    stored = []

    def answer(_: bytes) -> dict[str, object] | None:
        stored.append(len(modem.stored))
        if len(stored) > 1:
            return {"verdict": "accepted", "session": 1}
        return None if first is None else {"verdict": "discarded", "reason": first}

    door.answer = answer
    bearer("modemmanager", door.path)
    manager.receive(*deliver(push()))
    wait_until(lambda: not modem.stored)
    assert stored == [1] * offers


@pytest.mark.parametrize("interrupted", [ModemManager.disabled, ModemManager.unplugged, ModemManager.stopped])
def test_push_is_handed_in_once_when_it_arrived_in_an_interruption(
    manager: ModemManager,
    modem: Modem,
    door: Door,
    bearer: StartBearer,
    interrupted: Callable[[ModemManager], AbstractContextManager[None]],
) -> None:
    """ModemManager reuses its object numbers, and the bearer must not mistake a push for an earlier one."""
    bearer("modemmanager", door.path).wait("bus connected")
    sent = [push(1), push(2), push(3)]
    manager.receive(*deliver(sent[0]))
    wait_until(lambda: door.pushes == sent[:1] and not modem.stored)
    with interrupted(manager):
        modem.store(*deliver(sent[1]), announce=False)
    wait_until(lambda: door.pushes == sent[:2] and not modem.stored)
    manager.receive(*deliver(sent[2]))
    wait_until(lambda: door.pushes == sent and not modem.stored)


@pytest.mark.parametrize("interrupted", [ModemManager.disabled, ModemManager.stopped])
def test_push_is_handed_in_when_the_bearer_starts_in_an_interruption(
    manager: ModemManager,
    modem: Modem,
    door: Door,
    bearer: StartBearer,
    interrupted: Callable[[ModemManager], AbstractContextManager[None]],
) -> None:
    """The list of a disabled modem is an error."""
    with interrupted(manager):
        one = bearer("modemmanager", door.path)
        one.wait("bus connected")
        assert bool(one.of("telephony missing")) is (interrupted is ModemManager.stopped)
        modem.store(*deliver(push()), announce=False)
    wait_until(lambda: len(door.pushes) == 1 and not modem.stored)


def test_push_is_not_taken_for_one_of_an_earlier_run_of_modemmanager(
    manager: ModemManager, modem: Modem, short: Path, bearer: StartBearer
) -> None:
    """The first message of each run has the same path, and the first one is still in the bearer."""
    one = bearer("modemmanager", short / "push.sock")
    sent = [push(1), push(2)]
    manager.receive(*deliver(sent[0]))
    one.wait("door shut")
    with manager.stopped():
        modem.stored.clear()
        modem.store(*deliver(sent[1]), announce=False)
    one.wait("push received", 2)
    with Door(short / "push.sock") as door:
        wait_until(lambda: sorted(door.pushes) == sorted(sent) and not modem.stored)


def test_push_is_handed_in_once_when_the_bus_is_restarted(
    bus: PrivateBus, modem: Modem, short: Path, door: Door, bearer: StartBearer
) -> None:
    """ModemManager ends with its bus."""
    one = bearer("modemmanager", door.path)
    sent = [push(1), push(2)]
    with Polkit(bus), ModemManager(bus, short, modem) as manager:
        manager.receive(*deliver(sent[0]))
        wait_until(lambda: door.pushes == sent[:1] and not modem.stored)
    bus.stop()
    one.wait("bus lost")
    modem.store(*deliver(sent[1]), announce=False)
    bus.start()
    with Polkit(bus), ModemManager(bus, short, modem):
        wait_until(lambda: door.pushes == sent and not modem.stored)


def test_push_is_handed_in_as_often_as_the_list_has_it_and_deleted(
    manager: ModemManager, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    """A modem with one memory for SM and ME: ModemManager lists each message twice."""
    modem.one_memory = True
    modem.store(*deliver(push()), announce=False)
    with manager.disabled():
        pass
    wait_until(lambda: len(manager.messages()) == 2)
    accepted, duplicate = {"verdict": "accepted", "session": 1}, {"verdict": "discarded", "reason": "duplicate"}
    door.answer = lambda _: duplicate if door.pushes else accepted
    one = bearer("modemmanager", door.path)
    one.wait("push handed in", 2)
    # The memory has only one of the two.
    one.wait("message not deleted")
    sent = push(9)
    manager.receive(*deliver(sent))
    wait_until(lambda: door.pushes[2:] == [sent] and not modem.stored)


def test_missing_permission_is_logged_once_and_pushes_stay(
    polkit: Polkit, manager: ModemManager, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    polkit.allowed = lambda action: action != f"{NAME}.Messaging"
    one = bearer("modemmanager", door.path)
    manager.receive(*deliver(push(1)), *deliver(push(2)))
    one.wait("push handed in", 2)
    wait_until(lambda: polkit.asked.count(f"{NAME}.Messaging") == 2)
    polkit.allowed = lambda _: True
    manager.receive(*deliver(push(3)))
    wait_until(lambda: len(modem.stored) == 2)
    (line,) = one.of("message not deleted")
    assert "polkit" in line["problem"]


def test_idle_bearer_waits_without_a_timer_and_is_not_woken_by_the_state_of_a_modem(
    manager: ModemManager, door: Door, bearer: StartBearer
) -> None:
    one = bearer("modemmanager", door.path)
    manager.receive(*deliver(push()))
    wait_until(lambda: not manager.messages() and waits_without_a_timer(one.process.pid))
    counts = []
    # The first round gives the process time for the reply to its Delete.
    for _ in range(2):
        with manager.disabled():
            pass
        counts.append(wake_ups(one.process.pid))
    assert counts[0] == counts[1]


def waits_without_a_timer(pid: int) -> bool:
    """Whether the process is in epoll_wait(2) with a timeout of -1."""
    # The number of the call, and its arguments; "running" if there is none.
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return len(words) > 4 and int(words[4], 16) & 0xFFFF_FFFF == 0xFFFF_FFFF


def wake_ups(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
