"""How fast new notifications become durable, in bursts and one by one."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Final

from benchmarks.figures import Figure, Scale
from benchmarks.machine import scratch
from dmnotid.intake.batches import BATCH
from dmnotid.journal.queue import Journal
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification, verify
from dmnotid.policy.freshness import Clock, Freshness
from dmnotid.policy.servers import Server
from dmnotid.policy.sessions import Limits
from dmnotid.wire.notification import decode_notification
from tests.support import SECRET, SERVER_ID, package

ROWS: Final = 2_048
SOURCE: Final = Source("192.0.2.1", 40_000)

PLAIN: Final = """
PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -512;
CREATE TABLE session (id INTEGER PRIMARY KEY, server_id TEXT NOT NULL, notification_id INTEGER NOT NULL, package BLOB,
    UNIQUE (server_id, notification_id));
"""


def group_commit(scale: Scale) -> Iterator[Figure]:
    """Measure admissions in bursts of a batch beside commits of single rows."""
    rows = scale.of(ROWS, 2 * BATCH)
    numbers = count()
    values, others = [], []
    with scratch() as directory:
        for run in range(scale.runs):
            made = [new(next(numbers)) for _ in range(rows)]
            values.append(admit(directory / str(run), made))
            others.append(insert(directory / f"{run}.sqlite3", made[: rows // 4]))
    what = f"new notifications, in bursts of {BATCH}"
    yield Figure(what, values, "{:,.0f}/s", "single rows committed", others, at_least=5)


def new(notification_id: int) -> VerifiedNotification:
    """Make a notification as `verify` passes it."""
    octets, now = package(notification_id), time.time()
    return verify(decode_notification(octets), Server(SERVER_ID, SECRET), SOURCE, Clock(now), Freshness())


def admit(directory: Path, made: list[VerifiedNotification]) -> float:
    """Admit them all, as the daemon does; how many a second."""
    limits = Limits(max_pending=65_536)
    with Journal(directory, limits=limits, remember=3 * 86_400) as journal:
        began = time.perf_counter()
        for start in range(0, len(made), BATCH):
            for verified in made[start : start + BATCH]:
                journal.admit(verified)
            journal.commit()
        return len(made) / (time.perf_counter() - began)


def insert(file: Path, made: list[VerifiedNotification]) -> float:
    """Write each into a plain table by a transaction of its own; how many a second."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.executescript(PLAIN)
        began = time.perf_counter()
        for it in made:
            values = it.server_id, it.notification.notification_id, it.notification.octets
            database.execute("INSERT INTO session (server_id, notification_id, package) VALUES (?, ?, ?)", values)
        return len(made) / (time.perf_counter() - began)
