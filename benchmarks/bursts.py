"""What the receive buffer holds: many notifications at once while the daemon doesn't read."""

import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.figures import Figure, Scale
from benchmarks.floods import MANY
from benchmarks.machine import daemon, pinned, scratch
from tests.netns import Namespace, call_inside, why_not
from tests.processes import Service, udp_socket
from tests.support import NOWHERE, push, wait_until

BURST: Final = 1_000

SO_ZEROCOPY: Final = 60
"""asm-generic/socket.h; MSG_ZEROCOPY is in linux/socket.h."""
MSG_ZEROCOPY: Final = 0x4000000

Send = Callable[[tuple[str, int], Sequence[bytes]], None]


def burst(scale: Scale) -> Iterator[Figure]:
    """Measure how much of a burst is accepted with the default `receive_buffer`."""
    with scratch() as directory, daemon(directory, sessions=MANY) as service:
        yield figure(f"accepted of a burst of {BURST:,}", held(scale, service, send_all))
    if problem := why_not():
        print(f"not measured beyond loopback: {problem}", file=sys.stderr)
        return
    with far_away() as (service, send_from):
        yield figure("the same over a network device", held(scale, service, partial(send_from, send_all)))
    with far_away() as (service, send_from):
        in_pages = held(scale, service, partial(send_from, send_in_pages))
        yield figure("the same, each in a page of memory", in_pages)


class Held(NamedTuple):
    """What came of a burst: how many of a hundred were accepted, and what each took in the buffer (octets)."""

    accepted: float
    octets: float


def figure(what: str, runs: Sequence[Held]) -> Figure:
    """Return the line of the table."""
    about = f"the daemon does not read meanwhile; {median(run.octets for run in runs):,.0f} octets each in the buffer"
    return Figure(what, [run.accepted for run in runs], "{:.1f} %", at_least=100, about=about)


def held(scale: Scale, service: Service, send: Send) -> list[Held]:
    """Stop the daemon for the length of a burst, and see what it finds when it goes on."""
    address, pid, numbers, found = service.address, service.process.pid, count(), []
    for _ in range(scale.runs):
        before, datagrams = len(service.of("notification accepted")), usual(numbers)
        service.process.send_signal(signal.SIGSTOP)
        wait_until(partial(stopped, pid))
        send(address, datagrams)
        octets = udp_socket(*address, pid).queued / BURST
        service.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not udp_socket(*address, pid).queued)
        time.sleep(0.5)
        found.append(Held(100 * (len(service.of("notification accepted")) - before) / BURST, octets))
    return found


def stopped(pid: int) -> bool:
    """Tell whether a signal has stopped a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def usual(numbers: Iterator[int]) -> list[bytes]:
    """Build different notifications with all Options, of 79 octets each."""
    options = {"preferred": NOWHERE, "requested_mos": [1, 2, 3], "cached_mos": [(4, b"mark")]}
    return [push(next(numbers), **options) for _ in range(BURST)]


def send_all(address: tuple[str, int], datagrams: Sequence[bytes]) -> None:
    """Send each with a system call of its own, as fast as that goes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        for datagram in datagrams:
            sock.send(datagram)


def send_in_pages(address: tuple[str, int], datagrams: Sequence[bytes]) -> None:
    """Send each from where it stands in memory: what the kernel then counts for it is the whole page."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        sock.connect(address)
        for datagram in datagrams:
            sock.send(datagram, MSG_ZEROCOPY)


@contextmanager
def far_away() -> Iterator[tuple[Service, Callable[..., None]]]:
    """Run a daemon behind a pair of network devices; what calls a function at their other end."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        namespace.add_veth("eth0")
        namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        namespace.far_ip("addr", "add", "192.0.2.2/24", "dev", "eth0")
        inside = ["ip", "netns", "exec", namespace.name, *pinned()]
        directory = stack.enter_context(scratch())
        service = stack.enter_context(daemon(directory, inside, sessions=MANY, listen=["192.0.2.1:0"]))
        yield service, partial(call_inside, Path("/run/netns", namespace.far_name))
