"""What a socket dropped: real ones, and what is made of counters that tell too much."""

import socket
from pathlib import Path

import pytest

from dmnotid.intake import drops, socketfilter
from dmnotid.intake.drops import NOTHING, Dropped, Drops, read_drops, read_lost


@pytest.fixture
def receiver() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def send(receiver: socket.socket, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, receiver.getsockname())


def fill(receiver: socket.socket) -> int:
    """Lose at least one; how many that were."""
    before = read_drops(receiver)
    while read_drops(receiver) == before:
        send(receiver, *[bytes(1_000)] * 100)
    return read_drops(receiver) - before


def test_both_kinds(receiver: socket.socket) -> None:
    with receiver:
        socketfilter.attach(receiver)
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        found, before = Drops(receiver), read_lost()
        assert before is not None
        assert found.take(filtered=True) is NOTHING
        send(receiver, *[b"junk"] * 7)
        first = found.take(filtered=True)
        send(receiver, *[b"\1\6\1\xd8" + bytes(1_000)] * 20)
        second = found.take(filtered=True)
        assert sum(first) == 7
        assert second.lost > 10
        if read_lost() == before + second.lost:  # nobody else lost anything meanwhile
            assert first == Dropped(7, 0)
            assert second.junk == 0


def test_without_a_filter_all_is_lost(receiver: socket.socket) -> None:
    with receiver:
        found = Drops(receiver)
        assert found.take(filtered=False) is NOTHING
        assert found.take(filtered=False) is NOTHING
        lost = fill(receiver)
        assert found.take(filtered=False) == Dropped(0, lost)


def test_what_was_dropped_before_is_not_told(receiver: socket.socket) -> None:
    with receiver:
        fill(receiver)
        assert Drops(receiver).take(filtered=False) is NOTHING


@pytest.mark.parametrize("content", [None, "", "Udp: A\n", "Udp: RcvbufErrors\nUdp: x\n"])
def test_where_it_cannot_be_told_all_is_lost(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "snmp").write_text(content)
    monkeypatch.setattr(drops, "_PROC", tmp_path)
    with receiver:
        socketfilter.attach(receiver)
        found = Drops(receiver)
        send(receiver, b"junk")
        assert found.take(filtered=True) == Dropped(0, 1)


def test_losses_of_others_are_taken_for_ours_and_never_told_twice(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counters of the namespace are those of a file here: so what others lose can be chosen."""

    def say(lost: int, lost6: int = 0) -> None:
        (tmp_path / "snmp").write_text(f"Udp: InDatagrams RcvbufErrors MemErrors\nUdp: 9 {lost} 0\n")
        (tmp_path / "snmp6").write_text(f"Udp6RcvbufErrors \t{lost6}\nUdp6InErrors 77\n")

    say(1_000)
    monkeypatch.setattr(drops, "_PROC", tmp_path)
    with receiver:
        socketfilter.attach(receiver)
        found = Drops(receiver)
        send(receiver, *[b"junk"] * 10)
        say(1_002, 1)
        assert found.take(filtered=True) == Dropped(7, 3)
        send(receiver, *[b"junk"] * 10)
        assert found.take(filtered=True) == Dropped(10, 0)
        send(receiver, *[b"junk"] * 10)
        say(9_000)
        assert found.take(filtered=True) == Dropped(0, 10)
        send(receiver, *[b"junk"] * 10)
        say(1_000)
        assert found.take(filtered=True) == Dropped(10, 0)
