"""A dispatcher for tests, with a real journal, real hooks and made-up connections."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from dmnotid.config.values import Config, ConnectionsConfig
from dmnotid.dispatcher import Dispatcher
from dmnotid.journal.queue import Journal
from dmnotid.links.monitor import Links
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType
from tests.support import SERVER_ID, eventually, verified

MOBILE = Connection(ConnectionType.MOBILE, "wwan0")
WIRELINE = Connection(ConnectionType.WIRELINE, "eth0")
FOREVER = {"first": "1h", "longest": "1h"}
"""Pauses that do not end during a test."""


class MadeUpLinks(Links):
    """Connections that a test changes; `after_read` replaces them when they are read before a start."""

    def __init__(self, *connections: Connection, after_read: Sequence[Connection] | None = None) -> None:
        super().__init__(ConnectionsConfig())
        self.connections: Sequence[Connection] = connections
        self.after_read = after_read
        self.readable = True
        self.looks = self.reads = 0

    def available(self) -> tuple[Connection, ...]:
        self.looks += 1
        return tuple(self.connections)

    def read_now(self) -> bool:
        self.reads += 1
        if self.readable and self.after_read is not None:
            self.connections = self.after_read
        return self.readable


class Bench:
    """A dispatcher with its journal; the state directory can be used again after it."""

    def __init__(self, config: Config, links: Links) -> None:
        config.state.mkdir(exist_ok=True)
        self.journal = Journal(config.state, limits=config.sessions, remember=config.remember)
        self.dispatcher = Dispatcher(config, self.journal, links)

    def accept(self, notification_id: int, server_id: str = SERVER_ID, **more: Any) -> int:  # noqa: ANN401
        """Admit a notification as the receiver does, and return the number of its session."""
        request = self.journal.admit(verified(notification_id, server_id=server_id, **more))
        self.journal.commit()
        self.dispatcher.add([request])
        return request.session

    def states(self) -> dict[int, str]:
        """Return the state of each pending session, as an operator sees it."""
        return {view.session: view.state for view in self.dispatcher.views()}

    async def end_all(self) -> None:
        """Wait until every session is closed."""
        await eventually(lambda: self.dispatcher.pending == 0)


@asynccontextmanager
async def at_work(config: Config, links: Links | None = None) -> AsyncIterator[Bench]:
    """Run a dispatcher. It is stopped in order at the end, and must not have raised."""
    bench = Bench(config, links or MadeUpLinks(WIRELINE))
    with bench.journal:
        task = asyncio.create_task(bench.dispatcher.run())
        try:
            yield bench
        finally:
            await bench.dispatcher.stop()
            await task


def execute(config: Config, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Execute a statement on the file of a journal that is closed."""
    with closing(sqlite3.connect(config.state / "journal.sqlite3")) as database, database:
        return database.execute(statement, values).fetchall()


def execute_before(config: Config, statement: str) -> None:
    """Execute a statement on the file of a journal that is made for it."""
    config.state.mkdir(exist_ok=True)
    with Journal(config.state, limits=config.sessions, remember=config.remember):
        pass
    execute(config, statement)


def states(config: Config) -> dict[int, str]:
    """Return the state of each session in the file of a journal that is closed."""
    return dict(execute(config, "SELECT session, state FROM session"))


def waiting_for(file: Path, status: int | str = 0) -> str:
    """Return the behaviour of a hook that waits until a file exists, and then exits."""
    return f"import time\nwhile not os.path.exists({str(file)!r}): time.sleep(0.01)\nsys.exit({status})"


def refuse(config: Config, change: str, condition: str) -> None:
    """Make the journal's file refuse to change a column of a row while a condition holds."""
    abort = "BEGIN SELECT RAISE(ABORT, 'refused by the test'); END"
    execute_before(config, f"CREATE TRIGGER refuse BEFORE UPDATE OF {change} ON session WHEN {condition} {abort}")
