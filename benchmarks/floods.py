"""What a flood does to the daemon: what it costs, and whether the one true notification gets through."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import count
from typing import Any, Final

from benchmarks.figures import Figure, Scale
from benchmarks.growth import servers
from benchmarks.load import flooding
from benchmarks.machine import SENDERS, daemon, scratch, usage
from dmnotid.policy.servers import MAX_TRIED_SECRETS
from tests.processes import Service, udp_socket
from tests.support import NOWHERE, SECRET, SERVER_ID, push

TRUE_RATE: Final = 100
FORGERIES: Final = 50_000
TRIALS: Final = 10_000
SECONDS: Final = 5
MANY: Final = {"max_pending": 65_536}

JUNK: Final = {
    "random octets": [bytes([at, at | 0x80]) + os.urandom(80) for at in range(256)],
    "wrong PDU type": [bytes([at, 0x07]) + bytes(80) for at in range(64)],
    "too short": [b"\x01\x06"] * 64,
}
"""What can be no push, each kind in one size."""


def forged(number: int = 64, server_id: str | None = SERVER_ID) -> list[bytes]:
    """Build well-formed datagrams whose digest doesn't fit."""
    secret = b"not the secret of any server"
    return [push(at, server_id=server_id, secret=secret, preferred=NOWHERE) for at in range(number)]


def junk_cost(scale: Scale) -> Iterator[Figure]:
    """Measure the processor time of the daemon while junk comes at the sender's full speed."""
    seconds = SECONDS / 10 if scale.short else SECONDS / 2
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
        what = f"processor time in {seconds:g} s of junk ({kind}, {least:,.0f}/s), beyond that at rest"
        yield Figure(what, [value - other for value, other in zip(values, others, strict=True)], "{:.3f} ms", at_most=0)


def cost(service: Service, seconds: float) -> float:
    """Return the processor time that a daemon uses meanwhile (milliseconds)."""
    before = usage(service.process.pid).seconds
    time.sleep(seconds)
    return 1_000 * (usage(service.process.pid).seconds - before)


def true_share(service: Service, numbers: Iterator[int], seconds: float, server_id: str | None = SERVER_ID) -> float:
    """Send true notifications at a steady rate; how many of a hundred are accepted."""
    address, total, before = service.address, int(TRUE_RATE * seconds), len(service.of("notification accepted"))
    made = [push(next(numbers), server_id=server_id, secret=SECRET, preferred=NOWHERE) for _ in range(total)]
    began = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for at, datagram in enumerate(made):
            time.sleep(max(began + at / TRUE_RATE - time.monotonic(), 0))
            sock.sendto(datagram, address)
    time.sleep(0.5)
    return 100 * (len(service.of("notification accepted")) - before) / total


def beside(
    scale: Scale,
    datagrams: Sequence[bytes] | None,
    rate: float,
    server_id: str | None = SERVER_ID,
    **sections: Any,  # noqa: ANN401
) -> list[float]:
    """Measure the share of true notifications that is accepted beside a flood (percent)."""
    seconds = SECONDS / 5 if scale.short else SECONDS
    values, numbers = [], count()
    with scratch() as directory, daemon(directory, sessions=MANY, **sections) as service:
        address = service.address
        for _ in range(scale.runs):
            flood = nullcontext() if datagrams is None else flooding(address, datagrams, rate, SENDERS)
            with flood:
                values.append(true_share(service, numbers, seconds, server_id))
    return values


def true_beside_junk(scale: Scale) -> Iterator[Figure]:
    """Measure true notifications beside junk at the sender's full speed."""
    what = f"true notifications accepted, {TRUE_RATE}/s, beside junk at the sender's full speed"
    junk = JUNK["random octets"]
    values, others = beside(scale, junk, float("inf")), beside(scale, None, 0)
    yield Figure(what, values, "{:.1f} %", "without a flood", others, at_least=1)


def true_beside_forgeries(scale: Scale) -> Iterator[Figure]:
    """Measure true notifications beside forgeries, at the rate that is asked for and at the sender's full speed."""
    what = f"true notifications accepted, {TRUE_RATE}/s, beside {FORGERIES:,} forgeries/s"
    yield Figure(what, beside(scale, forged(), FORGERIES), "{:.1f} %", at_least=99)
    yield Figure(
        "the same beside forgeries at the sender's full speed", beside(scale, forged(), float("inf")), "{:.1f} %"
    )


def true_beside_trials(scale: Scale) -> Iterator[Figure]:
    """Measure true notifications, with SERVER-ID and without, beside forgeries that are tried with every secret."""
    most = MAX_TRIED_SECRETS
    with_id, without = (
        beside(scale, forged(1_024, server_id=None), TRIALS, server_id, servers=servers(most))
        for server_id in (SERVER_ID, None)
    )
    flood = f"{TRIALS:,} forgeries/s without SERVER-ID, {most:,} servers"
    yield Figure(f"true notifications accepted, {TRUE_RATE}/s, beside {flood}", with_id, "{:.1f} %", at_least=99)
    yield Figure("the same of true ones without SERVER-ID", without, "{:.1f} %")
