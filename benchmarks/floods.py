"""The cost of a flood, and the share of true notifications that is accepted beside it."""

import os
import socket
import time
from collections.abc import Iterator
from itertools import count
from statistics import median
from typing import Final

from benchmarks.figures import Figure, Scale
from benchmarks.load import flooding
from benchmarks.machine import SENDERS, daemon, scratch, usage
from benchmarks.walk import rate_of
from tests.processes import Service, udp_socket
from tests.support import NOWHERE, push

TRUE_RATE: Final = 100
SECONDS: Final = 5
MANY: Final = {"max_pending": 65_536}

JUNK: Final = {
    "random octets": [bytes([at, at | 0x80]) + os.urandom(80) for at in range(256)],
    "wrong PDU type": [bytes([at, 0x07]) + bytes(80) for at in range(64)],
    "too short": [b"\x01\x06"] * 64,
}
"""Datagrams that are not a push, each kind in one size."""


def forged(number: int = 64) -> list[bytes]:
    """Build well-formed datagrams with a wrong digest."""
    return [push(at, secret=b"not the secret of any server", preferred=NOWHERE) for at in range(number)]


def junk_cost(scale: Scale) -> Iterator[Figure]:
    """Measure the processor time of the daemon while junk comes at the sender's full speed."""
    seconds = scale.seconds(SECONDS / 2)
    for kind, datagrams in JUNK.items():
        values, others, rates = [], [], []
        for _ in range(scale.runs):
            with scratch() as directory, daemon(directory) as service:
                address = service.address
                time.sleep(0.3)
                others.append(cost(service, seconds))
                before = udp_socket(*address).drops
                with flooding(address, datagrams, processors=SENDERS) as flood:
                    values.append(cost(service, seconds))
                rates.append(flood.sent / seconds)
                if udp_socket(*address).drops - before != flood.sent:
                    values[-1] = float("nan")
        least = min(rates)
        about = f"processor time in {seconds:g} s of it, at {least:,.0f}/s, beyond that at rest"
        beyond = [value - other for value, other in zip(values, others, strict=True)]
        yield Figure(f"junk: {kind}", beyond, "{:.3f} ms", at_most=0, about=about)


def cost(service: Service, seconds: float) -> float:
    """Return the processor time that a daemon uses in so many seconds, in milliseconds."""
    before = usage(service.process.pid).seconds
    time.sleep(seconds)
    return 1_000 * (usage(service.process.pid).seconds - before)


def true_share(service: Service, numbers: Iterator[int], seconds: float) -> float:
    """Send true notifications at a steady rate; return the percentage that is accepted."""
    address, total, before = service.address, int(TRUE_RATE * seconds), len(service.of("notification accepted"))
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for at, datagram in enumerate([push(next(numbers), preferred=NOWHERE) for _ in range(total)]):
            time.sleep(max(began + at / TRUE_RATE - time.monotonic(), 0))
            sock.sendto(datagram, address)
    time.sleep(0.5)
    return 100 * (len(service.of("notification accepted")) - before) / total


def true_beside_junk(scale: Scale) -> Iterator[Figure]:
    """Measure true notifications beside junk at the sender's full speed."""
    seconds, junk, numbers = scale.seconds(SECONDS), JUNK["random octets"], count()
    values, others = [], []
    with scratch() as directory, daemon(directory, sessions=MANY) as service:
        for _ in range(scale.runs):
            with flooding(service.address, junk, processors=SENDERS):
                values.append(true_share(service, numbers, seconds))
            others.append(true_share(service, numbers, seconds))
    about = f"true notifications, {TRUE_RATE}/s, beside junk at the sender's full speed"
    yield Figure("accepted beside junk", values, "{:.1f} %", "without a flood", others, at_least=1, about=about)


def true_beside_forgeries(scale: Scale) -> Iterator[Figure]:
    """Measure true notifications beside half of the forgeries that the daemon can judge, and beside all that come."""
    seconds, forgeries, numbers, rates = scale.seconds(SECONDS), forged(), count(), []
    half, all_of_them = [], []
    with scratch() as directory, daemon(directory, sessions=MANY) as service:
        for _ in range(scale.runs):
            rates.append(rate_of(service.address, forgeries, seconds) / 2)
            with flooding(service.address, forgeries, rates[-1], SENDERS):
                half.append(true_share(service, numbers, seconds))
            with flooding(service.address, forgeries, processors=SENDERS):
                all_of_them.append(true_share(service, numbers, seconds))
    about = f"half of what the daemon can judge: {median(rates):,.0f}/s"
    yield Figure("accepted beside half of the forgeries", half, "{:.1f} %", at_least=99, about=about)
    about = "at the sender's full speed"
    yield Figure("accepted beside all forgeries", all_of_them, "{:.1f} %", about=about)
