"""The socket filter: in the kernel, and in a small interpreter that is held against the kernel."""

import json
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmnotid.errors import Discard, NotAPush, Truncated
from dmnotid.service import socketfilter
from dmnotid.service.socketfilter import PROGRAM, UDP_HEADER_OCTETS, attach, detach
from dmnotid.wire.wsp import decode_push
from tests.service.support import push

VECTORS = Path(__file__).parent.parent / "vectors"
CORPUS = Path(__file__).parent.parent / "fuzz" / "corpus"
MUTANTS = 1_000_000
IN_THE_KERNEL = 20_000
MOST = 65_507
"""Of push headers: nothing is refused for their length here."""


def vectors() -> list[bytes]:
    lines = [line for file in sorted(VECTORS.glob("*.jsonl")) for line in file.read_text().splitlines()[1:]]
    return [bytes.fromhex(json.loads(line)["hex"]) for line in lines]


SEEDS = [*vectors(), *(file.read_bytes() for file in sorted(CORPUS.iterdir())), push(), b"", b"\0", b"\1\6", b"\1\6\1"]


def takes(datagram: bytes) -> bool:
    """Run the program as the kernel does."""
    octets = bytes(UDP_HEADER_OCTETS) + datagram
    a = x = at = 0
    while True:
        code, yes, no, k = PROGRAM[at]
        at += 1
        if code == socketfilter.RETURN:
            return bool(k)
        if code == socketfilter.LOAD_LENGTH:
            a = len(octets)
        elif code == socketfilter.LOAD_OCTET:
            if k >= len(octets):
                return False  # so does the kernel
            a = octets[k]
        elif code == socketfilter.ADD:
            a += k
        elif code == socketfilter.COPY:
            x = a
        elif code == socketfilter.IF_EQUAL:
            at += yes if a == k else no
        elif code == socketfilter.IF_AT_LEAST:
            at += yes if a >= k else no
        else:
            assert code == socketfilter.IF_AT_LEAST_X
            at += yes if a >= x else no


def end_of(datagram: bytes) -> Discard | None:
    """What the decoder makes of the push around the package."""
    try:
        decode_push(datagram, max_header_octets=MOST)
    except Discard as discard:
        return discard
    return None


def mutant(chance: random.Random) -> bytes:
    """Change a good or a bad datagram, mostly where the filter looks."""
    octets = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randrange(1, 4)):
        where, kind = chance.randrange(6), chance.randrange(5)
        if kind == 0:
            del octets[chance.randrange(len(octets) + 1) :]
        elif kind == 1:
            octets[where:where] = chance.randbytes(chance.randrange(1, 4))
        elif kind == 2:
            del octets[where : where + chance.randrange(1, 4)]
        elif where < len(octets):
            octets[where] = chance.choice(
                (0, 1, 3, 6, 7, 0x7F, 0x80, 0x81, 0xFF, len(octets) & 0xFF, octets[where] ^ 1)
            )
    return bytes(octets)


@contextmanager
def filtered() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give a sender and a receiver with the filter."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        attach(receiver)
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0)
        sender.connect(receiver.getsockname())
        yield sender, receiver


def kernel_takes(sender: socket.socket, receiver: socket.socket, datagram: bytes) -> bool:
    """Send over loopback: what was taken is there at once."""
    sender.send(datagram)
    try:
        return receiver.recv(65_535) == datagram
    except BlockingIOError:
        return False


def test_nothing_is_refused_that_the_decoder_takes() -> None:
    """The one property that counts, over every vector and a million mutants of them."""
    chance, refused = random.Random(2948), 0  # noqa: S311 - repeatable
    for datagram in (*SEEDS, *(mutant(chance) for _ in range(MUTANTS))):
        if not takes(datagram):
            refused += 1
            end = end_of(datagram)
            assert isinstance(end, (NotAPush, Truncated)), datagram.hex(" ")
    assert MUTANTS // 10 < refused < MUTANTS * 9 // 10, "the mutants are no test of it"


def test_the_kernel_does_as_the_program_says() -> None:
    chance = random.Random(7)  # noqa: S311 - repeatable
    with filtered() as (sender, receiver):
        for datagram in (*SEEDS, *(mutant(chance) for _ in range(IN_THE_KERNEL))):
            if len(datagram) <= MOST:
                assert kernel_takes(sender, receiver, datagram) == takes(datagram), datagram.hex(" ")


@pytest.mark.parametrize(
    ("datagram", "taken"),
    [
        (b"", False),
        (b"\1\6", False),
        (b"\1\6\0", False),
        (b"\1\6\1", False),
        (b"\1\6\1\xd8", True),
        (b"\1\6\2\xd8", False),
        (b"\1\7\1\xd8", False),
        (b"\1\6\x80\1\xd8", True),  # a padded uintvar: the decoder's
        (b"\1\6\x7f" + bytes(127), True),
        (b"\1\6\x7f" + bytes(126), False),
        (push(), True),
        (push() + bytes(60_000), True),
    ],
)
def test_borders(datagram: bytes, *, taken: bool) -> None:
    with filtered() as (sender, receiver):
        assert kernel_takes(sender, receiver, datagram) is taken
        assert takes(datagram) is taken


def test_ipv6_has_the_same_offsets() -> None:
    try:
        receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        receiver.bind(("::1", 0))
    except OSError:
        pytest.skip("needs ::1")
    with receiver, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        attach(receiver)
        receiver.settimeout(0)
        sender.connect(receiver.getsockname())
        for datagram in (b"", b"\1\6\1", b"\1\6\1\xd8", b"\1\7\1\xd8", push()):
            assert kernel_takes(sender, receiver, datagram) == takes(datagram), datagram.hex(" ")


def test_what_is_refused_is_counted() -> None:
    with filtered() as (sender, receiver):
        for _ in range(100):
            sender.send(b"junk")
        drops = struct.unpack("9I", receiver.getsockopt(socket.SOL_SOCKET, 55, 36))[8]
        assert drops == 100


def test_detached_it_lets_everything_through() -> None:
    with filtered() as (sender, receiver):
        detach(receiver)
        assert kernel_takes(sender, receiver, b"junk")
        detach(receiver)
        attach(receiver)
        assert not kernel_takes(sender, receiver, b"junk")
