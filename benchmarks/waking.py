"""Time from a datagram to the first instruction of the hook, beside the trap daemon of net-snmp."""

import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, Scale, quantile
from benchmarks.load import flooding
from benchmarks.machine import SENDERS, daemon, pinned, scratch
from tests.processes import udp_socket
from tests.support import OTHER_ID, WIRELINE, push, wait_until

TIMES: Final = 500
COMMUNITY: Final = b"public"

HOOK: Final = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Tells the time of its first instruction by one datagram; with SLOW in the environment it goes on for a while. */
int main(int count, char **arguments) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct sockaddr_un to = { .sun_family = AF_UNIX };
    strncpy(to.sun_path, arguments[1], sizeof to.sun_path - 1);
    int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(sock, &now, sizeof now, 0, (struct sockaddr *) &to, sizeof to);
    return 0;
}
"""


class Hook:
    """A hook compiled on the spot, and the socket on which it tells when it began."""

    def __init__(self, directory: Path) -> None:
        """Compile it into this directory."""
        source, self.file, self.path = directory / "hook.c", directory / "hook", directory / "told"
        source.write_text(HOOK)
        subprocess.run(["/usr/bin/cc", "-O2", "-o", str(self.file), str(source)], check=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.settimeout(30)

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [str(self.file), str(self.path)]

    def began(self) -> float:
        """Wait for the next run; when it began, on the monotonic clock."""
        octets = self._socket.recv(16)
        return int.from_bytes(octets[:8], "little") + int.from_bytes(octets[8:16], "little") / 1e9

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def ber(tag: int, content: bytes) -> bytes:
    """Encode one value of at most 127 octets."""
    return bytes([tag, len(content)]) + content


def trap() -> bytes:
    """Build an SNMPv2 trap: coldStart, with its uptime."""
    names = ("1.3.6.1.2.1.1.3.0", "1.3.6.1.6.3.1.1.4.1.0", "1.3.6.1.6.3.1.1.5.1")
    uptime, trap_oid, cold_start = (ber(6, bytes([0x2B, *map(int, name.split(".")[2:])])) for name in names)
    bindings = ber(0x30, ber(0x30, uptime + ber(0x43, b"\0")) + ber(0x30, trap_oid + cold_start))
    pdu = ber(0xA7, ber(2, b"\x01") + ber(2, b"\0") + ber(2, b"\0") + bindings)
    return ber(0x30, ber(2, b"\x01") + ber(4, COMMUNITY) + pdu)


@contextmanager
def snmptrapd(directory: Path, hook: Hook) -> Iterator[tuple[str, int]]:
    """Run a trap daemon that runs the hook for each trap; where it listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    config = directory / "snmptrapd.conf"
    config.write_text(f"authCommunity execute {COMMUNITY.decode()}\ntraphandle default {' '.join(hook.command)}\n")
    options = ["-f", "-n", "-C", "-c", str(config), "-Ln", "-M", "/nonexistent", "-m", ""]
    command = [*pinned(), "snmptrapd", *options, f"udp:127.0.0.1:{address[1]}"]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SNMP_PERSISTENT_DIR": str(directory / "snmp")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: bound(address[1]))
            yield address
        finally:
            process.kill()


def bound(port: int) -> bool:
    """Tell whether anybody has this UDP port."""
    return any(f":{port:04X} " in line for line in Path("/proc/net/udp").read_text().splitlines()[1:])


def fresh(first: int, times: int) -> Iterator[bytes]:
    """Make new notifications, each just before it is sent."""
    return (push(number, preferred=WIRELINE) for number in range(first, first + times))


def latencies(hook: Hook, address: tuple[str, int], datagrams: Iterable[bytes]) -> list[float]:
    """Send one datagram after the other, each once the hook of the one before has begun and ended (milliseconds)."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        for datagram in datagrams:
            sent = time.monotonic()
            sock.send(datagram)
            found.append(1_000 * (hook.began() - sent))
            time.sleep(0.01)
    return found


def waking(scale: Scale) -> Iterator[Figure]:
    """Measure a datagram to its hook, at rest, beside the trap daemon."""
    times = scale.of(TIMES)
    ours, theirs = [], []
    with ExitStack() as stack:
        directory = stack.enter_context(scratch())
        hook = Hook(directory)
        stack.callback(hook.close)
        service = stack.enter_context(daemon(directory, command=hook.command))
        other = stack.enter_context(snmptrapd(directory, hook))
        address, octets = service.address, trap()
        latencies(hook, address, fresh(60_000, 5))
        for run in range(scale.runs):
            ours.append(latencies(hook, address, fresh(run * times, times)))
            theirs.append(latencies(hook, other, [octets] * times))
    for part, name in ((0.5, "p50"), (0.99, "p99")):
        values, others = ([quantile(run, part) for run in runs] for runs in (ours, theirs))
        about = f"to its first instruction; {name} of {times} datagrams"
        yield Figure(f"from the datagram to the hook, {name}", values, "{:.2f} ms", "snmptrapd", others, about=about)


def waking_busy(scale: Scale) -> Iterator[Figure]:
    """Measure the same beside a hook that runs and a flood of duplicates."""
    times = scale.of(TIMES)
    with ExitStack() as stack:
        directory = stack.enter_context(scratch())
        hook = Hook(directory)
        stack.callback(hook.close)
        command = [
            "/bin/sh",
            "-c",
            f'[ "$0" = {OTHER_ID} ] && exec sleep 3600; exec {" ".join(hook.command)}',
            "{server_id}",
        ]
        service = stack.enter_context(daemon(directory, command=command, sessions={"concurrency": 2}))
        address = service.address
        service.send(push(1, server_id=OTHER_ID))
        service.wait("session started")
        duplicate = push(1, server_id=OTHER_ID, sent_at=time.time() - 60)
        rest, busy = [], []
        # In turn: how long a commit waits for the disk changes within minutes, and decides most of the slowest values.
        # That hook sleeps, which costs the daemon at rest nothing.
        for run in range(scale.runs):
            rest.append(latencies(hook, address, fresh(run * times, times)))
            with flooding(address, [duplicate], 10_000, SENDERS):
                time.sleep(0.2)
                busy.append(latencies(hook, address, fresh(30_000 + run * times, times)))
            wait_until(lambda: not udp_socket(*address).queued)
    for part, name in ((0.5, "p50"), (0.99, "p99")):
        values, others = ([quantile(run, part) for run in runs] for runs in (busy, rest))
        about = "beside a hook that runs and 10,000 duplicates/s"
        what = f"the same under load, {name}"
        yield Figure(what, values, "{:.2f} ms", "itself at rest", others, at_most=1.5, about=about)
