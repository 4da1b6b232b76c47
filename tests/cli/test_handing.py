"""Handing in at a door: its answers, and doors that give none."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmnotid.cli.handing import open_door
from dmnotid.errors import DmnotidError
from tests.bearers.door import MISSHAPEN, forging

PATIENCE = 0.05


@pytest.fixture
def door(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "door"))
        yield sock


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [('{"verdict": "accepted", "session": 7}', "accepted"), ('{"verdict": "discarded", "reason": "stale"}', "stale")],
)
def test_answer_is_its_text_and_its_verdict(tmp_path: Path, door: socket.socket, answer: str, verdict: str) -> None:
    with open_door(tmp_path / "door") as opened:
        opened.send(b"x")
        octets, address = door.recvfrom(10)
        assert octets == b"x"
        door.sendto(answer.encode(), address)
        assert opened.answer() == (answer, verdict)


@pytest.mark.parametrize("answer", MISSHAPEN)
def test_answer_that_is_not_a_verdict_is_a_problem(tmp_path: Path, door: socket.socket, answer: bytes) -> None:
    with open_door(tmp_path / "door") as opened:
        opened.send(b"x")
        door.sendto(answer, door.recvfrom(10)[1])
        with pytest.raises(DmnotidError, match="the answer is not a verdict of dmnotid"):
            opened.answer()


def test_answer_of_another_process_is_not_taken_before_the_door_is_connected(
    tmp_path: Path, door: socket.socket
) -> None:
    with forging(tmp_path / "door"), open_door(tmp_path / "door") as opened:
        opened.send(b"x")
        door.sendto(b'{"verdict": "discarded", "reason": "stale"}', door.recvfrom(10)[1])
        assert opened.answer()[1] == "stale"


def hand_in(path: Path, count: int) -> None:
    with open_door(path, PATIENCE) as opened:
        for _ in range(count):
            opened.send(b"x")
        opened.answer()


def problem(path: Path, count: int) -> str:
    """Return why that many datagrams and an answer to them fail."""
    with pytest.raises(DmnotidError) as caught:
        hand_in(path, count)
    return str(caught.value)


@pytest.mark.usefixtures("door")
def test_door_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    reasons = "the daemon does not read it, its journal fails, or the door is in another network namespace"
    expected = f"no answer within 0.05 s: {reasons}"
    assert problem(tmp_path / "door", 1) == f"dmnotid send: unix:{tmp_path}/door: {expected}"


@pytest.mark.usefixtures("door")
def test_door_whose_queue_stays_full_is_a_problem(tmp_path: Path) -> None:
    assert problem(tmp_path / "door", 100_000) == f"dmnotid send: unix:{tmp_path}/door: its queue was full for 0.05 s"


def test_socket_that_no_process_has_open_is_a_problem(tmp_path: Path, door: socket.socket) -> None:
    door.close()
    assert problem(tmp_path / "door", 1) == f"dmnotid send: unix:{tmp_path}/door: Connection refused"


def test_path_that_is_too_long_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 200)
    assert re.fullmatch(f"dmnotid send: unix:{path}: .*too long", problem(path, 1))
