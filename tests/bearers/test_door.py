"""The client of the push door, with real sockets."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from dmnotid.bearers.door import DoorShut, Outbox, Verdict, offer
from tests.bearers.door import MISSHAPEN, Door, forging
from tests.support import LogLines, eventually

PAUSE = 0.01


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "push.sock"


def offered(path: Path, octets: bytes = b"push") -> Verdict:
    # A bearer runs on asyncio's own loop.
    return asyncio.run(offer(path, octets))


def test_offer_returns_the_verdict_of_the_daemon(path: Path) -> None:
    with Door(path) as door:
        accepted = {"verdict": "accepted", "session": 1}
        assert offered(path) == Verdict("accepted", accepted)
        discarded = {"verdict": "discarded", "reason": "duplicate"}
        door.answer = lambda _: discarded
        assert offered(path) == Verdict("duplicate", discarded)
        assert door.pushes == [b"push", b"push"]


@pytest.mark.parametrize("answer", MISSHAPEN)
def test_offer_raises_when_the_answer_is_not_a_verdict(path: Path, answer: bytes) -> None:
    with Door(path) as door:
        door.answer = lambda _: answer
        with pytest.raises(DoorShut, match="the answer is not a verdict of dmnotid"):
            offered(path)


def test_offer_takes_the_verdict_of_the_door_alone(path: Path) -> None:
    with Door(path) as door, forging(path):
        door.answer = lambda _: {"verdict": "discarded", "reason": "stale"}
        assert offered(path).word == "stale"


def test_offer_raises_when_the_door_is_not_there(path: Path) -> None:
    with pytest.raises(DoorShut, match="No such file or directory"):
        offered(path)
    with Door(path):
        pass
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))
    with pytest.raises(DoorShut, match="Connection refused"):
        offered(path)


@pytest.mark.slow
def test_offer_raises_when_no_answer_comes(path: Path) -> None:
    with Door(path) as door:
        door.answer = lambda _: None
        with pytest.raises(DoorShut, match="no answer within 10 s"):
            offered(path)


def test_offer_waits_when_the_queue_of_the_door_is_full(path: Path) -> None:
    async def offer_into_a_full_queue(door: socket.socket, filler: socket.socket) -> Verdict:
        loop = asyncio.get_running_loop()
        filler.settimeout(0)
        queued = 0
        with suppress(BlockingIOError):
            while filler.sendto(b"filler", str(path)):
                queued += 1
        offering = asyncio.create_task(offer(path, b"push"))
        # One step of the loop runs the task up to the send that has to wait.
        await asyncio.sleep(0)
        door.settimeout(0)
        received = [await loop.sock_recvfrom(door, 100) for _ in range(queued + 1)]
        push, sender = received[-1]
        assert push == b"push"
        await loop.sock_sendto(door, b'{"verdict": "accepted", "session": 3}', sender)
        return await offering

    kind = socket.AF_UNIX, socket.SOCK_DGRAM
    with socket.socket(*kind) as door, socket.socket(*kind) as filler:
        door.bind(str(path))
        assert asyncio.run(offer_into_a_full_queue(door, filler)).answer["session"] == 3


def test_push_is_offered_until_the_door_is_there(path: Path, logged: LogLines) -> None:
    finished: list[str] = []

    async def work() -> None:
        outbox = Outbox(path, finished.append, pause=PAUSE)
        working = asyncio.create_task(outbox.run())
        # Both are offered in vain, which is one record.
        outbox.add("1", b"push 1")
        outbox.add("2", b"push 2")
        await eventually(lambda: logged.of("door shut"))
        with Door(path) as door:
            await eventually(lambda: len(finished) > 1)
            assert door.pushes == [b"push 1", b"push 2"]
        working.cancel()

    asyncio.run(work())
    assert finished == ["1", "2"]
    [shut], [opened] = logged.of("door shut"), logged.of("door open")
    assert (shut["problem"], shut["pushes"], opened["door"]) == ("No such file or directory", 2, str(path))


def test_push_that_is_not_accepted_yet_holds_up_no_other(path: Path) -> None:
    finished: list[str] = []

    async def work() -> None:
        outbox = Outbox(path, finished.append, pause=PAUSE)
        for key in "full", "other", "full":
            outbox.add(key, key.encode())
        working = asyncio.create_task(outbox.run())
        with Door(path) as door:
            full = {"verdict": "discarded", "reason": "queue-full"}
            door.answer = lambda push: full if push == b"full" else {"verdict": "accepted", "session": 1}
            await eventually(lambda: door.pushes.count(b"full") > 1)
            assert finished == ["other"]
            door.answer = lambda _: {"verdict": "discarded", "reason": "duplicate"}
            await eventually(lambda: len(finished) > 1)
        working.cancel()
        assert len(outbox) == 0

    asyncio.run(work())
    assert finished == ["other", "full"]


def test_oldest_push_is_dropped_when_too_many_wait(path: Path, logged: LogLines) -> None:
    async def work() -> None:
        outbox = Outbox(path, lambda _: None, most=2)
        for number in range(3):
            outbox.add(str(number), b"push %d" % number)
        working = asyncio.create_task(outbox.run())
        with Door(path) as door:
            await eventually(lambda: len(door.pushes) > 1)
            await eventually(lambda: not len(outbox))
            assert door.pushes == [b"push 1", b"push 2"]
        working.cancel()

    asyncio.run(work())
    [dropped] = logged.of("push dropped")
    assert bytes.fromhex(dropped["push"]) == b"push 0"
