"""Drops of real sockets, and of counters that include the losses of other sockets."""

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
    """Send until at least one datagram is lost, and return how many were."""
    before = read_drops(receiver)
    while read_drops(receiver) == before:
        send(receiver, *[bytes(1_000)] * 100)
    return read_drops(receiver) - before


def test_junk_and_losses_are_told_apart(receiver: socket.socket) -> None:
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
        # Only if no other socket of this machine has lost datagrams.
        if read_lost() == before + second.lost:
            assert first == Dropped(7, 0)
            assert second.junk == 0


def test_all_drops_are_losses_without_a_filter(receiver: socket.socket) -> None:
    with receiver:
        found = Drops(receiver)
        assert found.take(filtered=False) is NOTHING
        assert found.take(filtered=False) is NOTHING
        lost = fill(receiver)
        assert found.take(filtered=False) == Dropped(0, lost)


def test_earlier_drops_are_not_reported(receiver: socket.socket) -> None:
    with receiver:
        fill(receiver)
        assert Drops(receiver).take(filtered=False) is NOTHING


@pytest.mark.parametrize("content", [None, "", "Udp: A\n", "Udp: RcvbufErrors\nUdp: x\n"])
def test_all_drops_are_losses_if_proc_cannot_be_read(
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


def test_losses_of_other_sockets_count_as_ours_and_once(
    receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file replaces the counters of the namespace, so that the losses of other sockets can be chosen."""

    def count(lost: int, lost6: int = 0) -> None:
        (tmp_path / "snmp").write_text(f"Udp: InDatagrams RcvbufErrors MemErrors\nUdp: 9 {lost} 0\n")
        (tmp_path / "snmp6").write_text(f"Udp6RcvbufErrors \t{lost6}\nUdp6InErrors 77\n")

    count(1_000)
    monkeypatch.setattr(drops, "_PROC", tmp_path)
    with receiver:
        socketfilter.attach(receiver)
        found = Drops(receiver)
        send(receiver, *[b"junk"] * 10)
        count(1_002, 1)
        assert found.take(filtered=True) == Dropped(7, 3)
        send(receiver, *[b"junk"] * 10)
        assert found.take(filtered=True) == Dropped(10, 0)
        send(receiver, *[b"junk"] * 10)
        count(9_000)
        assert found.take(filtered=True) == Dropped(0, 10)
        send(receiver, *[b"junk"] * 10)
        count(1_000)
        assert found.take(filtered=True) == Dropped(10, 0)
