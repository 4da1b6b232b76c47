"""What more servers, and more remembered notifications, cost each datagram."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Figure, Scale
from benchmarks.machine import daemon, scratch
from benchmarks.walk import DIFFERENT, rate_of, timed
from dmnotid.errors import DigestMismatch
from dmnotid.journal.database import connect
from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.rows import fingerprint, seal
from dmnotid.policy.addresses import Source
from dmnotid.policy.freshness import Clock
from dmnotid.policy.reception import Datagram, Rules, receive_push
from dmnotid.policy.servers import MAX_TRIED_SECRETS, Server, Servers
from dmnotid.wire.notification import MAX_NOTIFICATION_ID
from tests.processes import memory
from tests.support import NOWHERE, SECRET, SERVER_ID, package, push

SERVER_COUNTS: Final = (1, 100, 1_000)
REMEMBERING: Final = 10
SECONDS: Final = 2

_ROW: Final = """
INSERT INTO session (server_id, notification_id, fingerprint, source, sent_at, received_at, clock_believed, seal, state,
    closed_at) VALUES (?, ?, ?, '192.0.2.1:40000', ?, ?, 1, ?, 'done', ?)
"""


def servers(number: int) -> list[dict[str, Any]]:
    """Return so many servers, the usual first one among them."""
    others = [{"id": f"dm{at}.example", "secret": {"text": f"the secret of server {at:06}"}} for at in range(1, number)]
    return [{"id": SERVER_ID, "secret": {"text": SECRET.decode()}}, *others]


def costs(scale: Scale, services: Sequence[Any], datagrams: Sequence[bytes]) -> list[list[float]]:
    """Measure what a datagram costs each of these daemons (microseconds), in turn."""
    seconds = SECONDS / 10 if scale.short else SECONDS
    found: list[list[float]] = [[] for _ in services]
    for _ in range(scale.runs):
        for service, values in zip(services, found, strict=True):
            values.append(1e6 / rate_of(service.address, datagrams, seconds))
    return found


def many_servers(scale: Scale) -> Iterator[Figure]:
    """Measure duplicates with 1, 100 and 1,000 servers configured."""
    datagrams = [push(number, preferred=NOWHERE) for number in range(DIFFERENT)]
    sessions = {"max_pending": DIFFERENT}
    with ExitStack() as stack:
        services = []
        for number in SERVER_COUNTS:
            directory = stack.enter_context(scratch())
            services.append(stack.enter_context(daemon(directory, servers=servers(number), sessions=sessions)))
            services[-1].send(*datagrams)
            services[-1].wait("notification accepted", DIFFERENT)
        found = costs(scale, services, datagrams)
        sizes = [memory(service.process.pid).rss / 1024 for service in services]
    for number, values, size in list(zip(SERVER_COUNTS, found, sizes, strict=True))[1:]:
        what = f"a duplicate with {number:,} servers (RSS {size:.1f} MB, with one {sizes[0]:.1f})"
        yield Figure(what, values, "{:.2f} µs", "with one", found[0], at_most=1.1)


def remember(state: Path, datagrams: Sequence[bytes], each: int) -> None:
    """Write a journal that holds these packages, and so many ids of each of ten servers."""
    state.mkdir(mode=0o700, exist_ok=True)
    now = int(time.time())
    with closing(connect(state / FILE_NAME)) as database:
        database.execute("BEGIN IMMEDIATE")
        known = [row(SERVER_ID, number, octets, now) for number, octets in enumerate(datagrams)]
        database.executemany(_ROW, known)
        first = len(datagrams)
        for at in range(REMEMBERING if each else 0):
            name = SERVER_ID if not at else f"dm{at}.example"
            rows = (row(name, number, b"%d" % number, now - number) for number in range(0 if at else first, each))
            database.executemany(_ROW, rows)
        database.execute("COMMIT")


def row(server_id: str, number: int, octets: bytes, sent_at: int) -> tuple[object, ...]:
    """Return what is remembered of one notification."""
    content = fingerprint(octets)
    return server_id, number, content, sent_at, float(sent_at), seal(server_id, number, content, sent_at), sent_at + 1.0


def many_remembered(scale: Scale) -> Iterator[Figure]:
    """Measure duplicates with no further and with all ids of ten servers remembered."""
    all_ids = scale.of(MAX_NOTIFICATION_ID + 1)
    packages = [package(number, preferred=NOWHERE) for number in range(DIFFERENT)]
    datagrams = [b"\x01\x06\x03\xd8\xaf\x87" + octets for octets in packages]
    with ExitStack() as stack:
        services = []
        for each in (0, all_ids):
            directory = stack.enter_context(scratch())
            remember(directory / "state", packages, each)
            services.append(stack.enter_context(daemon(directory, servers=servers(REMEMBERING))))
        without, values = costs(scale, services, datagrams)
        small, large = (memory(service.process.pid).rss / 1024 for service in services)
    what = (
        f"a duplicate with {all_ids:,} ids remembered of each of ten servers (RSS {large:.1f} MB, without {small:.1f})"
    )
    yield Figure(what, values, "{:.2f} µs", "without", without, at_most=1.1)


def by_trial(scale: Scale) -> Iterator[Figure]:
    """Measure forgeries without SERVER-ID, whose digest is tried with every secret.

    With more servers than these, none is tried.
    """
    most = MAX_TRIED_SECRETS
    forgeries = [push(number, server_id=None, secret=b"of no server at all, this one") for number in range(DIFFERENT)]
    narrowed = [servers(most)[0], *({**it, "sources": ["192.0.2.0/24"]} for it in servers(most)[1:])]
    yield trial_times(scale, forgeries[0], most)
    with ExitStack() as stack:
        services = []
        for those in (servers(1), narrowed):
            directory = stack.enter_context(scratch())
            services.append(stack.enter_context(daemon(directory, servers=those)))
        one, few = costs(scale, services, forgeries)
    what = f"a forgery without SERVER-ID through the whole daemon, `sources` leaving one of {most:,} servers"
    yield Figure(what, few, "{:.1f} µs", "one server", one)


def trial_times(scale: Scale, forgery: bytes, most: int) -> Figure:
    """Measure a forgery through the pure half, with so many servers and with one."""
    datagram, clock, found = Datagram(forgery, Source("192.0.2.1", 40_000), time.time()), Clock(time.time()), []
    for number in (most, 1):
        rules = Rules(Servers(Server(it["id"], it["secret"]["text"].encode()) for it in servers(number)))
        times = scale.of(100_000 // number)
        refuse = partial(refused, datagram, rules, clock)
        found.append([1e6 * timed(refuse, times) for _ in range(scale.runs)])
    many, one = found
    what = f"a forgery without SERVER-ID through the pure half, {most:,} servers"
    return Figure(what, many, "{:.1f} µs", "one server", one)


def refused(datagram: Datagram, rules: Rules, clock: Clock) -> None:
    """Take a forgery as far as it goes."""
    with suppress(DigestMismatch):
        receive_push(datagram, rules, clock)
