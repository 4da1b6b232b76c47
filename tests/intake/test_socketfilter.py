"""The socket filter: in the kernel, and in a small interpreter that is compared with the kernel."""

import json
import random
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from dmnotid.errors import Discard, NotAPush, PushTooLong, Truncated
from dmnotid.intake import socketfilter
from dmnotid.intake.socketfilter import (
    ALL_ELSE,
    ETH_P_IPV6,
    NO_FORGED_IPV4,
    UDP_HEADER_OCTETS,
    Instruction,
    attach,
    no_junk,
)
from dmnotid.wire.wsp import decode_push
from tests.support import push

VECTORS = Path(__file__).parents[1] / "proofs" / "vectors"
CORPUS = Path(__file__).parents[1] / "proofs" / "fuzz" / "corpus"
MUTANTS = 20_000
IN_THE_KERNEL = 5_000
ETH_P_IP = 0x0800
PROGRAM = NO_FORGED_IPV4 + no_junk()
MOST = 65_507
"""The push header limit here, which refuses nothing."""


def vectors() -> list[bytes]:
    lines = [line for file in sorted(VECTORS.glob("*.jsonl")) for line in file.read_text().splitlines()[1:]]
    return [bytes.fromhex(json.loads(line)["hex"]) for line in lines]


SEEDS = [*vectors(), *(file.read_bytes() for file in sorted(CORPUS.iterdir())), push(), b"", b"\0", b"\1\6", b"\1\6\1"]


def load_word(place: int, protocol: int, network_header: bytes) -> int:
    """Load from a place outside the datagram, as the kernel does."""
    if place == socketfilter.AD_PROTOCOL:
        return protocol
    start = place - socketfilter.NETWORK_HEADER
    return int.from_bytes(network_header[start : start + 4], "big")


def takes(
    datagram: bytes, program: Sequence[Instruction] = PROGRAM, protocol: int = ETH_P_IP, network_header: bytes = b""
) -> bool:
    """Run a program as the kernel does."""
    octets = bytes(UDP_HEADER_OCTETS) + datagram
    a = x = at = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == socketfilter.RETURN:
            return bool(k)
        if code == socketfilter.LOAD_LENGTH:
            a = len(octets)
        elif code == socketfilter.LOAD_WORD:
            a = load_word(k, protocol, network_header)
        elif code == socketfilter.LOAD_OCTET:
            if k >= len(octets):
                return False  # so does the kernel
            a = octets[k]
        elif code == socketfilter.ADD:
            a += k
        elif code == socketfilter.COPY:
            x = a
        else:
            holds = {
                socketfilter.IF_EQUAL: a == k,
                socketfilter.IF_AT_LEAST: a >= k,
                socketfilter.IF_AT_LEAST_X: a >= x,
            }
            at += yes if holds[code] else no


def end_of(datagram: bytes) -> Discard | None:
    """Return the Discard of the push decoder, None if it accepts the push."""
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
    """Make a sender and a receiver that has the filter."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver, socket.socket(type=socket.SOCK_DGRAM) as sender:
        attach(receiver)
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0)
        sender.connect(receiver.getsockname())
        yield sender, receiver


def kernel_takes(sender: socket.socket, receiver: socket.socket, datagram: bytes) -> bool:
    """Send over loopback, where an accepted datagram is queued on return."""
    sender.send(datagram)
    try:
        return receiver.recv(65_535) == datagram
    except BlockingIOError:
        return False


def test_filter_refuses_nothing_that_the_decoder_accepts() -> None:
    """Over every vector and many mutants of them."""
    chance, refused = random.Random(2948), 0  # noqa: S311 - repeatable
    for datagram in (*SEEDS, *(mutant(chance) for _ in range(MUTANTS))):
        if not takes(datagram):
            refused += 1
            end = end_of(datagram)
            assert isinstance(end, (NotAPush, PushTooLong, Truncated)), datagram.hex(" ")
    assert MUTANTS // 10 < refused < MUTANTS * 9 // 10, "the mutants must be of both kinds"


def test_kernel_and_interpreter_agree() -> None:
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
        (b"\1\6\x80\1\xd8", True),  # a padded uintvar is left to the decoder
        (b"\1\6\x7f" + bytes(127), True),
        (b"\1\6\x7f" + bytes(126), False),
        pytest.param(push(), True, id="signed"),
        (push() + bytes(4_096 - len(push())), True),
        (push() + bytes(4_097 - len(push())), False),
        (push() + bytes(60_000), False),
    ],
)
def test_boundaries(datagram: bytes, *, taken: bool) -> None:
    with filtered() as (sender, receiver):
        assert kernel_takes(sender, receiver, datagram) is taken
        assert takes(datagram) is taken


@pytest.mark.parametrize("most", [10, 4_096, 65_507])
def test_longest_datagram_is_that_of_the_configuration(most: int) -> None:
    longest = b"\1\6\1" + bytes(most - 3)
    with filtered() as (sender, receiver):
        attach(receiver, max_octets=most)
        assert kernel_takes(sender, receiver, longest)
        # UDP over IPv4 carries no more than the greatest limit.
        assert most == MOST or not kernel_takes(sender, receiver, longest + b"\0")
        attach(receiver, junk=True, max_octets=most)
        assert most == MOST or kernel_takes(sender, receiver, longest + b"\0")


def test_offsets_are_the_same_over_ipv6() -> None:
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


def test_refused_datagrams_are_counted() -> None:
    with filtered() as (sender, receiver):
        for _ in range(100):
            sender.send(b"junk")
        drops = struct.unpack("9I", receiver.getsockopt(socket.SOL_SOCKET, 55, 36))[8]
        assert drops == 100


def test_junk_arrives_if_it_is_wanted() -> None:
    with filtered() as (sender, receiver):
        attach(receiver, junk=True)
        assert kernel_takes(sender, receiver, b"junk")
        attach(receiver)
        assert not kernel_takes(sender, receiver, b"junk")


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        ("::ffff:127.0.0.1", False),
        ("::ffff:0.0.0.0", False),
        ("::ffff:255.255.255.255", False),
        ("::fffe:127.0.0.1", True),
        ("::1:ffff:127.0.0.1", True),
        ("::ffff:0:127.0.0.1", True),
        ("0:1::ffff:127.0.0.1", True),
        ("0:0:1::ffff:127.0.0.1", True),
        ("64:ff9b::127.0.0.1", True),
        ("::127.0.0.1", True),
        ("::1", True),
        ("fd00::1", True),
    ],
)
@pytest.mark.parametrize("rest", [no_junk(), ALL_ELSE], ids=["no-junk", "junk"])
def test_forged_ipv4_sender_is_refused_in_an_ipv6_packet_only(
    source: str, rest: tuple[Instruction, ...], *, taken: bool
) -> None:
    header = bytes(8) + IPv6Address(source).packed + IPv6Address("fd00::2").packed
    program = NO_FORGED_IPV4 + rest
    assert takes(push(), program, ETH_P_IPV6, header) is taken
    # In an IPv4 packet the same octets mean something else.
    assert takes(push(), program, ETH_P_IP, header)
    assert takes(b"junk", program) is (rest is ALL_ELSE)
