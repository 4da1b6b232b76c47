"""A control socket in front of a plain object, and clients as rough as they come."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dmnotid.control.interface import answer
from dmnotid.control.varlink import Server
from dmnotid.errors import ConfigError, ConfigProblem, NoSuchSession, NotKept, NotPending
from tests.support import DEADLINE

WARNING = ConfigProblem("/etc/dmnotid/dmnotid.yaml", 4, 5, "servers[1].secret", "is missing")


class Plain:
    """Operations without a daemon: they answer from attributes, and write down how they were called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.problems: tuple[ConfigProblem, ...] = ()
        self.listed: Iterable[Mapping[str, object] | None] = [{"session": 1}, None, {"session": 2}]
        self.followers: list[Callable[[Mapping[str, Any]], None]] = []

    async def status(self) -> tuple[dict[str, object], tuple[str, Iterator[object]]]:
        return {"version": 1}, ("servers", iter([{"id": f"server {number}"} for number in range(200)]))

    def sessions(self, *wanted: object) -> Iterator[Mapping[str, object] | None]:
        self.calls.append(wanted)
        return iter(self.listed)

    def discards(self, reason: str | None) -> Iterator[Mapping[str, object]]:
        return iter([] if reason else [{"reason": "truncated"}])

    def subscribe(self, callback: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        self.followers.append(callback)
        return lambda: self.followers.remove(callback)

    def log(self, **record: object) -> None:
        for follower in self.followers:
            follower(record)

    async def retry(self, session: int | None, server: str | None, by: str) -> list[int]:
        self.calls.append((session, server, by))
        return [7]

    def cancel(self, session: int, by: str) -> str:
        self.calls.append((session, by))
        if session == 7:
            raise NotPending(session, "done")
        if session == 6:
            raise NotKept(session, "failed")
        if session != 8:
            raise NoSuchSession(session)
        return "waiting"

    async def reload(self, by: str) -> tuple[ConfigProblem, ...]:
        self.calls.append(by)
        if self.problems:
            raise ConfigError(self.problems)
        return (WARNING,)


@asynccontextmanager
async def serving(path: Path, *, patience: float = DEADLINE) -> AsyncIterator[Plain]:
    """Serve plain operations at a path."""
    operations = Plain()
    server = Server(path, partial(answer, operations), patience=patience)
    server.open()
    try:
        yield operations
    finally:
        await server.stop()


class Client:
    """A connection that writes what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    def call(self, method: str, parameters: object = None, **flags: object) -> None:
        self.send(json.dumps({"method": method, "parameters": parameters or {}, **flags}).encode() + b"\0")

    async def reply(self) -> Any:  # noqa: ANN401 - JSON
        async with asyncio.timeout(DEADLINE):
            return json.loads((await self.reader.readuntil(b"\0"))[:-1])

    async def ended(self) -> bytes:
        """Read to the end of the connection; the octets before it."""
        async with asyncio.timeout(DEADLINE):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_unix_connection(path, limit=2**24))
    try:
        yield client
    finally:
        client.writer.transport.abort()
