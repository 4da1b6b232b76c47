"""Floods by strangers: 44,000 datagrams of the kinds that would fill the memory of a daemon that kept them."""

import os
import random
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from dmnotid.policy.digest import sign
from dmnotid.wire.notification import encode_notification
from dmnotid.wire.wsp import encode_push
from tests.processes import Run, Service, memory, udp_socket
from tests.support import SERVER_ID, push, wait_until, write_config

DATAGRAMS: Final = 44_000
GROWTH: Final = 1_024
"""What the resident memory may gain, in KiB. The datagrams of most kinds have 8,000 together."""

BATCH: Final = 32
SENDERS: Final = 200
"""Number of addresses and ports that the datagrams come from."""

CHANCE: Final = random.Random(15)  # noqa: S311 - repeatable

DM: Final = b"\xd8\xaf\x87"


def forged(number: int, **options: Any) -> bytes:  # noqa: ANN401 - what encode_notification takes
    """Sign with another secret: the digest is computed, and does not fit."""
    whole: dict[str, Any] = {"server_id": SERVER_ID, "sent_at": int(time.time()), **options}
    return encode_push(sign(encode_notification(number & 0xFFFF, **whole), os.urandom(20)))


def header(block: bytes) -> bytes:
    return b"\x01\x06" + bytes([0x80 | len(block) >> 7, len(block) & 0x7F]) + block + b"\x20\x00\x00\x01"


REPLAY: Final = push(0x1234)

KINDS: Final[dict[str, Callable[[int], bytes]]] = {
    "4 KB of REQ-MO": lambda at: forged(at, requested_mos=struct.unpack(">1980H", os.urandom(3_960))),
    "4 KB of REQ-MO-CV": lambda at: forged(at, cached_mos=[(at & 0xFFFF, os.urandom(4))] * 660),
    "4 KB of SERVER-ID": lambda at: forged(at, server_id=f"{at:08d}" * 490),
    "SERVER-ID of combining characters": lambda at: forged(at, server_id=f"{at}" + "e\u0301" * 120),
    "short SERVER-IDs": lambda at: forged(at, server_id=f"dm{at}.example"),
    "connection types": lambda at: encode_push(b"\x21\0\0\1" + b"\x10\1%d\x1f\0" % (at % 10) + os.urandom(3_840)),
    "unknown Options": lambda at: forged(at, unknown_options=[(6 + it, os.urandom(120)) for it in range(28)]),
    "no SERVER-ID": lambda at: forged(at, server_id=None),
    "no SERVER-ID, too long to try": lambda at: forged(at, server_id=None, requested_mos=[at & 0xFFFF] * 1_900),
    "replays": lambda _at: REPLAY,
    "stale": lambda at: push(at & 0xFFFF, sent_at=CHANCE.randrange(10**9)),
    "trailing octets": lambda _: REPLAY + os.urandom(3_800),
    "application ids": lambda _at: header(DM + b"\xaf\x1e" + os.urandom(30)),
    "text application ids": lambda at: header(b"\xd8\xaf" + b"x%011d" % at + b"\0"),
    "headers of the DM client": lambda at: header(DM + b"P\0" + b"%011d" % at + b"\0"),
    "4 KB of headers": lambda at: header(DM + b"P\0" + b"%08d" % at * 470 + b"\0"),
    "content types": lambda at: header(b"a/%011d" % at + b"\0"),
    "parameters of the content type": lambda at: header(
        b"application/vnd.syncml.dm.notification;%08d" % at * 60 + b"\0" + b"\xaf\x87"
    ),
    "other PDUs": lambda at: bytes([at & 0xFF, CHANCE.randrange(256)]) + os.urandom(3_000),
    "too long": lambda _: os.urandom(60_000),
    "noise": lambda at: b"\x01\x06" + os.urandom(at % 2_000),
    "noise after the headers": lambda at: b"\x01\x06\x03" + DM + b"\x22" + os.urandom(at % 2_000),
}
"""Each kind makes the datagram of a number."""


def flood(service: Service, kind: Callable[[int], bytes], count: int) -> None:
    """Send datagrams as fast as the daemon takes them: no more than the receive buffer has room for."""
    address = service.address
    # The number of the sender is part of the address, as far as 127.0.0.0/8 allows.
    senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(SENDERS)]
    try:
        for at, sender in enumerate(senders, 1):
            sender.bind((f"127.0.1.{at}", 0))
        for at in range(count):
            senders[at % SENDERS].sendto(kind(at), address)
            if at % BATCH == 0:
                wait_until(lambda: not udp_socket(*address).queued)
        wait_until(lambda: not udp_socket(*address).queued)
    finally:
        for sender in senders:
            sender.close()


def fence(service: Service, number: int) -> None:
    """Wait until everything sent so far has been judged."""
    accepted = len(service.of("notification accepted"))
    service.send(push(number))
    service.wait("notification accepted", accepted + 1)
    service.wait("session done", accepted + 1)


@pytest.mark.slow
@pytest.mark.parametrize("junk", [False, True], ids=["filter", "log.junk"])
def test_memory_is_the_same_after_a_flood_by_strangers(start: Run, tmp_path: Path, *, junk: bool) -> None:
    """5.3.5: nothing of what strangers send is kept; all kinds together, then RSS is compared."""
    service = start(write_config(tmp_path, log={"junk": junk, "discards": "1s"}, push={"max_header_octets": 4_000}))
    service.send(REPLAY)
    service.wait("session done")
    fence(service, 1)
    # Each kind once: modules that are imported and statements that are prepared at their first use hold no datagram.
    for kind in KINDS.values():
        flood(service, kind, 1)
    fence(service, 2)
    before = memory(service.process.pid).rss
    grown: dict[str, int] = {}
    for number, (name, kind) in enumerate(KINDS.items(), 3):
        flood(service, kind, DATAGRAMS // len(KINDS))
        fence(service, number)
        grown[name] = memory(service.process.pid).rss - before
    assert max(grown.values()) <= GROWTH, grown
