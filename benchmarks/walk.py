"""What one datagram costs: in the pure half, in the whole daemon, and in `dmnotid decode`."""

import hashlib
import hmac
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from benchmarks.figures import Figure, Scale
from benchmarks.load import Sender
from benchmarks.machine import ENVIRONMENT, daemon, pinned, program, scratch, taken_of, usage
from dmnotid.policy.addresses import Source
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import Clock
from dmnotid.policy.reception import Datagram, Rules, receive
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import ConnectionType, encode_notification
from dmnotid.wire.wsp import encode_push
from tests.processes import udp_socket
from tests.support import NOWHERE, SECRET, SERVER_ID, push

SECONDS: Final = 2
"""Length of a flood, in seconds."""

DIFFERENT: Final = 1_024

COUNTER: Final = """
import asyncio, uvloop

class Counter(asyncio.DatagramProtocol):
    count = 0

    def datagram_received(self, data, addr):
        self.count += 1

async def main():
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Counter, local_addr=("127.0.0.1", 0))
    print(transport.get_extra_info("sockname")[1], flush=True)
    await asyncio.Event().wait()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
"""A bare uvloop datagram endpoint that only counts."""

PRINTER: Final = "import sys\nfor line in sys.stdin:\n    print(line, end='')"
"""The least that a program does that reads lines and prints them."""


def five_options(notification_id: int = 7) -> bytes:
    """Build a signed package with each of the five standard Options."""
    package = encode_notification(
        notification_id,
        server_id=SERVER_ID,
        preferred_connections=[ConnectionType.MOBILE, ConnectionType.WIRELESS],
        requested_mos=[1, 2, 3],
        cached_mos=[(1, b"\x01\x02\x03\x04"), (2, b"\x05\x06\x07\x08")],
        sent_at=int(time.time()),
    )
    return sign(package, SECRET)


def timed(do: Callable[[], object], times: int) -> float:
    """Return how long it takes (seconds)."""
    began = time.perf_counter()
    for _ in range(times):
        do()
    return (time.perf_counter() - began) / times


def pure_half(scale: Scale) -> Iterator[Figure]:
    """Measure decode and verify in process."""
    package = five_options()
    datagram = Datagram(encode_push(package), Source("192.0.2.1", 40_000), time.time())
    rules = Rules(Servers([Server(SERVER_ID, SECRET)]))
    clock = Clock(time.time())
    octets, digest = SECRET + package, hashlib.sha256(SECRET + package).digest()
    times, values, others = scale.of(50_000, 2_000), [], []
    for _ in range(scale.runs):
        values.append(1e6 * timed(lambda: receive(datagram, rules, clock), times))
        others.append(1e6 * timed(lambda: hmac.compare_digest(hashlib.sha256(octets).digest(), digest), times))
    yardstick, about = "SHA-256 of the same octets, compared", "signed, with five Options"
    yield Figure("a package through the pure half", values, "{:.2f} µs", yardstick, others, about=about)


def flooded(address: tuple[str, int], datagrams: Sequence[bytes], seconds: float) -> int:
    """Send a socket's owner far more than it can take, and return how many datagrams it took."""
    before = udp_socket(*address).drops
    with Sender(address, datagrams) as sender:
        sent = sender.flood(seconds)
    return taken_of(address, sent, before)


def rate_of(address: tuple[str, int], datagrams: Sequence[bytes], seconds: float) -> float:
    """Return how many datagrams a second a socket's owner takes when it could have far more."""
    began = time.monotonic()
    taken = flooded(address, datagrams, seconds)
    return taken / (time.monotonic() - began)


def cost_of(pid: int, address: tuple[str, int], datagrams: Sequence[bytes], seconds: float) -> float:
    """Return the processor time that a process spends on a datagram in a flood, in seconds.

    Other processes prolong the time of a clock more than this one.
    """
    before = usage(pid).seconds
    taken = flooded(address, datagrams, seconds)
    return (usage(pid).seconds - before) / taken


def duplicates(scale: Scale) -> Iterator[Figure]:
    """Measure different signed duplicates through the whole daemon: decoding, digest and a look at the journal each."""
    seconds = scale.seconds(SECONDS)
    values, others = [], []
    many = [push(number, preferred=NOWHERE) for number in range(DIFFERENT)]
    sessions = {"max_pending": DIFFERENT}
    with scratch() as directory, program(COUNTER) as (counter, port), daemon(directory, sessions=sessions) as service:
        service.send(*many)
        service.wait("notification accepted", DIFFERENT)
        for _ in range(scale.runs):
            values.append(1 / cost_of(service.process.pid, service.address, many, seconds))
            others.append(1 / cost_of(counter.pid, ("127.0.0.1", int(port)), many, seconds))
    yardstick, about = "a uvloop endpoint that only counts", f"signed, of {DIFFERENT:,} notifications"
    what = "duplicates through the whole daemon"
    yield Figure(what, values, "{:,.0f}/s", yardstick, others, at_least=0.1, about=about)


def decode_lines(scale: Scale) -> Iterator[Figure]:
    """Measure `dmnotid decode` of lines in hex beside an interpreter that prints each line as it is."""
    lines = scale.of(100_000)
    text = "\n".join(encode_push(five_options(number & 0xFFFF)).hex() for number in range(lines)).encode()
    decode = ["-m", "dmnotid", "decode"]
    for form, arguments in (("text", decode), ("--json", [*decode, "--json"])):
        runs = [(lines_rate(arguments, text), lines_rate(["-c", PRINTER], text)) for _ in range(scale.runs)]
        values, others = zip(*runs, strict=True)
        yardstick, about = "an interpreter that prints the lines", f"lines a second, of {lines:,}"
        yield Figure(f"`dmnotid decode`, {form}", values, "{:,.0f}/s", yardstick, others, about=about)


def lines_rate(arguments: Sequence[str], text: bytes) -> float:
    """Return how many lines of a text a Python program processes in a second, its start included."""
    began = time.monotonic()
    command = [*pinned(), sys.executable, *arguments]
    subprocess.run(command, input=text, stdout=subprocess.DEVNULL, env=ENVIRONMENT, check=True)
    return (text.count(b"\n") + 1) / (time.monotonic() - began)
