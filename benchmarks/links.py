"""How long the kernel's links take to read, and a session to start once its connection is there.

`.venv/bin/python -m benchmarks.links`, as root, from the top of the repository: it makes network namespaces of its own.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from dmnotid.config.values import ConnectionsConfig
from dmnotid.links.availability import available_connections, read_links
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType
from tests.netns import Namespace, why_not
from tests.processes import Service, processor, running
from tests.support import push, wait_until, write_config, write_script

CONFIG: Final = ConnectionsConfig(interfaces={ConnectionType.WIRELINE: ("eth*",)})
FEW: Final = 4
SETTLE: Final = 0.5
"""`connections.settle` (seconds) while starts are measured."""

QUIET: Final = 0.2
"""How long nothing changes before a connection comes (seconds)."""

HOOK: Final = 'date +%s.%N >"{file}.new" && mv "{file}.new" "{file}"'


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Measure reads of the kernel's links, and starts after one came.")
    parser.add_argument("--interfaces", type=int, default=1_000, help="how many there are: default %(default)s")
    parser.add_argument("--reads", type=int, default=51, help="default %(default)s")
    parser.add_argument("--starts", type=int, default=20, help="default %(default)s")
    arguments = parser.parse_args()
    if problem := why_not():
        print(f"not measured here: {problem}", file=sys.stderr)
        return 1
    print(f"{processor()}, Python {sys.version.split()[0]}")
    for count in (FEW, arguments.interfaces):
        print(row(f"read {count:,} interfaces, each with an address and a route", read_times(count, arguments.reads)))
    print(row("from the connection to the hook's first instruction, less settle", start_times(arguments.starts)))
    return 0


def row(what: str, times: Sequence[float]) -> str:
    """Return what was measured (seconds): the median, and the least and the most."""
    low, middle, high = (1_000 * time for time in (min(times), median(times), max(times)))
    return f"{what}: {middle:.1f} ms ({low:.1f} to {high:.1f}, {len(times)} times)"


def read_times(interfaces: int, reads: int) -> list[float]:
    """Measure reads of so many interfaces (loopback included), all of them available connections."""
    with Namespace() as namespace:
        pairs = range((interfaces - 1) // 2)
        ends = [f"eth{end}" for end in range(2 * len(pairs))]
        namespace.ip_batch([f"link add eth{2 * pair} type veth peer name eth{2 * pair + 1}" for pair in pairs])
        namespace.ip_batch([f"link set {end} up" for end in ends])
        namespace.ip_batch([f"addr add 10.{at >> 8}.{at & 255}.1/24 dev {end}" for at, end in enumerate(ends)])
        gateways = [f"via 10.{at >> 8}.{at & 255}.2 dev {end} metric {at}" for at, end in enumerate(ends)]
        namespace.ip_batch([f"route add default {gateway}" for gateway in gateways])
        wait_until(lambda: len(namespace.call(available)) == len(ends))
        return namespace.call(time_reads, reads)


def available() -> tuple[Connection, ...]:
    """Read once; what is available."""
    return available_connections(read_links(CONFIG))


def time_reads(reads: int) -> list[float]:
    """Read so many times."""
    times = []
    for _ in range(reads):
        began = time.perf_counter()
        available()
        times.append(time.perf_counter() - began)
    return times


def start_times(starts: int) -> list[float]:
    """Measure with a real daemon how long after the last step that makes a link available its hook runs.

    That step, one run of `ip`, is in it.
    """
    with tempfile.TemporaryDirectory() as name, Namespace() as namespace, running(Path(name)) as run:
        directory, file = Path(name), Path(name, "started")
        hook = write_script(directory / "hook", HOOK.format(file=file))
        connections = {
            "settle": f"{round(SETTLE * 1_000)}ms",
            "reach": "internet",
            "wireline": {"interfaces": ["eth*"]},
            "wireless": {"interfaces": ["wl*"]},
        }
        config = write_config(directory, [str(hook)], connections=connections)
        service = run(config, ["ip", "netns", "exec", namespace.name])
        namespace.add_veth("eth0")
        namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
        return [time_start(namespace, service, file, number) for number in range(starts)]


def time_start(namespace: Namespace, service: Service, file: Path, number: int) -> float:
    """Let a session wait for its connection, let that come, and measure; then take it away again."""
    namespace.call(service.send, push(number, preferred=[ConnectionType.WIRELINE]))
    service.wait("session waiting", number + 1)
    time.sleep(QUIET)
    route = ("default", "via", "192.0.2.2")
    came = time.time()
    namespace.ip("route", "add", *route)
    wait_until(file.exists)
    started = float(file.read_text())
    namespace.ip("route", "del", *route)
    service.wait("session done", number + 1)
    service.wait("connection lost", number + 1)
    file.unlink()
    return started - came - SETTLE


if __name__ == "__main__":
    sys.exit(main())
