"""What more servers, and more remembered notifications, cost each datagram."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

from benchmarks.figures import Figure, Scale
from benchmarks.journal_size import fill
from benchmarks.machine import daemon, scratch
from benchmarks.walk import DIFFERENT, cost_of
from dmnotid.wire.notification import MAX_NOTIFICATION_ID
from tests.processes import Service, memory
from tests.support import NOWHERE, OTHER_ID, OTHER_SECRET, SECRET, SERVER_ID, push

SERVER_COUNTS: Final = (1, 100, 1_000)
SECONDS: Final = 2
SESSIONS: Final = {"max_pending": DIFFERENT}


def servers(number: int) -> list[dict[str, Any]]:
    """Return the configuration of so many servers, the usual first one among them."""
    others = [{"id": f"dm{at}.example", "secret": {"text": f"the secret of server {at:06}"}} for at in range(1, number)]
    return [{"id": SERVER_ID, "secret": {"text": SECRET.decode()}}, *others]


def costs(scale: Scale, services: Sequence[Service]) -> list[list[float]]:
    """Measure what a duplicate costs each of these daemons, in turn, in microseconds."""
    datagrams = [push(number, preferred=NOWHERE) for number in range(DIFFERENT)]
    for service in services:
        service.send(*datagrams)
        service.wait("notification accepted", DIFFERENT)
    found: list[list[float]] = [[] for _ in services]
    for _ in range(scale.runs):
        for service, values in zip(services, found, strict=True):
            values.append(1e6 * cost_of(service.process.pid, service.address, datagrams, scale.seconds(SECONDS)))
    return found


def many_servers(scale: Scale) -> Iterator[Figure]:
    """Measure duplicates with 1, 100 and 1,000 servers configured."""
    with ExitStack() as stack:
        directories = [stack.enter_context(scratch()) for _ in SERVER_COUNTS]
        services = [
            stack.enter_context(daemon(directory, servers=servers(number), sessions=SESSIONS))
            for directory, number in zip(directories, SERVER_COUNTS, strict=True)
        ]
        found = costs(scale, services)
        sizes = [memory(service.process.pid).rss / 1024 for service in services]
    for number, values, size in list(zip(SERVER_COUNTS, found, sizes, strict=True))[1:]:
        about = f"RSS {size:.1f} MB, with one {sizes[0]:.1f}"
        what = f"a duplicate, {number:,} servers"
        yield Figure(what, values, "{:.2f} µs", "with one", found[0], at_most=1.1, about=about)


def many_remembered(scale: Scale) -> Iterator[Figure]:
    """Measure duplicates with no further id and with all ids of another server remembered."""
    all_ids = scale.of(MAX_NOTIFICATION_ID + 1)
    with ExitStack() as stack:
        services = []
        for ids in (0, all_ids):
            directory = stack.enter_context(scratch())
            if ids:
                fill(directory / "state", ids, close=True, server_id=OTHER_ID, secret=OTHER_SECRET)
            services.append(stack.enter_context(daemon(directory, sessions=SESSIONS)))
        without, values = costs(scale, services)
        small, large = (memory(service.process.pid).rss / 1024 for service in services)
    about = f"the ids are of another server; RSS {large:.1f} MB, without them {small:.1f}"
    what = f"a duplicate, {all_ids:,} ids remembered"
    yield Figure(what, values, "{:.2f} µs", "without them", without, at_most=1.1, about=about)
