"""The server's side of Varlink (https://varlink.org): each message is a JSON object and a NUL, on a Unix socket.

A connection is in one of these states:

    reading --request--> answering --last reply--> reading
    reading --nothing for 5 s, a request that is too long or not one, end of the connection--> closed
    answering --replies not read for 5 s, end of the connection--> closed

Nothing runs while no client is connected.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from dmnotid.errors import EndpointError
from dmnotid.host.log import logger

MAX_CONNECTIONS: Final = 8
"""Maximum number of connections at a time of root and the daemon's own user, and of all others; a further one is closed
at once."""

MAX_REQUEST_OCTETS: Final = 64 * 1024
"""Longest request, without its NUL."""

PATIENCE: Final = 5.0
"""Maximum time for a request to arrive, and for a client to read, in seconds."""

MAX_UNSENT_OCTETS: Final = 64 * 1024
"""Maximum number of octets of replies that wait for a client before the next reply is made."""

SLICE: Final = 32
"""Number of items of a list that are made before reception gets its turn."""

LOG_EVERY: Final = 60.0
"""Minimum time between two log lines about connections that were closed for the same reason, in seconds."""

SOCKET_MODE: Final = 0o660

# struct ucred of unix(7): pid, uid, gid.
_UCRED: Final = struct.Struct("3i")

T = TypeVar("T")

_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class Peer(NamedTuple):
    """The process at the other end, as the kernel reports it (SO_PEERCRED)."""

    pid: int
    uid: int


class Call(NamedTuple):
    """One request. `more` is whether several replies may be sent; `ended` returns when the client is gone."""

    method: str
    parameters: Mapping[str, Any]
    more: bool
    peer: Peer
    ended: Callable[[], Awaitable[object]]


class Reply(NamedTuple):
    """One reply. An iterator among `parameters` becomes a list, made in slices.

    With `waits`, the client may read it whenever it likes.
    """

    parameters: Mapping[str, object]
    continues: bool = False
    waits: bool = False


class VarlinkError(Exception):
    """A reply that is an error of an interface; `name` has the interface in it."""

    def __init__(self, name: str, **parameters: object) -> None:
        super().__init__(name, parameters)
        self.name = name
        self.parameters = parameters


class Service(Protocol):
    """Answers calls."""

    def answer(self, call: Call) -> AsyncGenerator[Reply, None]:
        """Yield the replies, of which only the last does not continue. The iterator may raise VarlinkError."""


class _Broken(Exception):
    """The connection is closed; the message is the reason."""


class Server:
    """Serves one socket: MAX_CONNECTIONS clients of each kind, and requests of at most MAX_REQUEST_OCTETS."""

    def __init__(self, path: Path, service: Service, *, patience: float = PATIENCE) -> None:
        """Listen at `path`, in place of a socket that no process listens at; connections wait until `open`.

        `patience` (seconds) bounds how long a client may take to send a request, and to read. Raises EndpointError.
        """
        # The path of the socket.
        self.path = path
        # Answers the calls.
        self._service = service
        # The time for a request to arrive, and for a client to read.
        self._patience = patience
        # One task for each connection, and whether its client is root or the daemon's own user.
        self._tasks: dict[asyncio.Task[None], bool] = {}
        # Accepts connections; None before `open`.
        self._server: asyncio.Server | None = None
        # When a connection that was closed for a reason was last logged, on the clock of the loop.
        self._logged: dict[str, float] = {}
        # The listening socket; None once it is closed.
        self._socket: socket.socket | None = _listen(path)

    async def open(self) -> None:
        """Accept connections on the running loop."""
        self._server = await asyncio.start_unix_server(self._accept, sock=self._socket, limit=MAX_REQUEST_OCTETS)

    def close(self) -> None:
        """Remove the socket, and end every connection. Closing twice is harmless."""
        if self._socket is not None:
            # Before it is closed, so that the next daemon never finds a socket that no process listens at.
            with suppress(OSError):
                self.path.unlink()
            if self._server is not None:
                self._server.close()
            self._socket.close()
            self._socket = None
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Close, and wait until every connection has ended."""
        self.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        pid, uid, _ = _UCRED.unpack(credentials)
        peer = Peer(pid, uid)
        writer.transport.set_write_buffer_limits(high=MAX_UNSENT_OCTETS)
        # No other user can keep root from asking.
        is_own = uid in {0, os.geteuid()}
        if list(self._tasks.values()).count(is_own) >= MAX_CONNECTIONS:
            writer.transport.abort()
            self._log(peer, f"{MAX_CONNECTIONS} clients are connected, the maximum")
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer, peer), name=f"control {pid}")
        self._tasks[task] = is_own
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        """Answer the calls of one connection until its end."""
        try:
            while (request := await self._read(reader)) is not None:
                if not await self._answer(request, reader, writer, peer):
                    break
                # The next request may be in the buffer already, and reading it from there would not wait.
                await asyncio.sleep(0)
            # Replies may still be in the buffer.
            writer.close()
            async with asyncio.timeout(self._patience):
                await writer.wait_closed()
        except _Broken as broken:
            self._log(peer, str(broken))
        except TimeoutError:
            self._log(peer, f"replies were not read within {self._patience:g} s")
        except ConnectionError:
            # The client closed the connection in the middle.
            pass
        except Exception:  # noqa: BLE001 - a bug in answering one call must not stop the daemon
            logger.exception("internal error", pid=peer.pid)
        finally:
            # Also if the task is cancelled; a transport that is closed ignores it.
            writer.transport.abort()

    async def _answer(
        self, request: Mapping[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer
    ) -> bool:
        """Write the replies to one request; return whether they ended, so that another request may follow."""
        # During a call, a client has nothing to send but the end of the connection.
        call = Call(request["method"], request["parameters"], request["more"], peer, lambda: reader.read(1))
        ended = False
        try:
            async with aclosing(self._service.answer(call)) as replies:
                async for reply in replies:
                    ended = not reply.continues
                    if not request["oneway"]:
                        await self._write(writer, await _encode_reply(reply), waits=reply.waits)
        except VarlinkError as error:
            ended = True
            if not request["oneway"]:
                await self._write(writer, _encode({"error": error.name, "parameters": error.parameters}))
        return ended

    async def _read(self, reader: asyncio.StreamReader) -> dict[str, Any] | None:
        """Return the next request; None at the end of the connection. Raises _Broken."""
        try:
            async with asyncio.timeout(self._patience):
                return _parse((await reader.readuntil(b"\0"))[:-1])
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise _Broken("the connection ended within a request") from None
            return None
        except asyncio.LimitOverrunError:
            raise _Broken(f"a request has more than {MAX_REQUEST_OCTETS} octets") from None
        except TimeoutError:
            raise _Broken(f"no request arrived within {self._patience:g} s") from None

    async def _write(self, writer: asyncio.StreamWriter, message: str, *, waits: bool = False) -> None:
        """Write one message. Raises TimeoutError if the client does not read."""
        writer.write(message.encode() + b"\0")
        # A client that reads as fast as it is written to costs no timer.
        if writer.transport.get_write_buffer_size() > MAX_UNSENT_OCTETS or writer.transport.is_closing():
            async with asyncio.timeout(None if waits else self._patience):
                await writer.drain()

    def _log(self, peer: Peer, problem: str) -> None:
        now = asyncio.get_running_loop().time()
        # A client that connects again and again must not flood the log.
        if now - self._logged.get(problem, float("-inf")) >= LOG_EVERY:
            self._logged[problem] = now
            logger.warning("control client refused", problem=problem, pid=peer.pid, uid=peer.uid)


async def sliced(values: Iterable[T]) -> AsyncIterator[T]:
    """Yield the same values; after every SLICE of them the loop has its turn."""
    for count, value in enumerate(values, 1):
        yield value
        if not count % SLICE:
            await asyncio.sleep(0)


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens at a path, in place of one that a killed daemon left there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path.is_socket():
            _remove_stale(path)
        sock.bind(os.fspath(path))
        # Before it listens: until then, no process can connect.
        path.chmod(SOCKET_MODE)
        sock.listen()
    except OSError as error:
        sock.close()
        exists = path.exists() and not path.is_socket()
        # A path that is too long for an address is an error without a strerror.
        found = error.strerror or str(error)
        problem = "exists and is not a socket; remove it, or configure another path" if exists else found
        raise EndpointError(f"control.socket: {path}: {problem}") from error
    except EndpointError:
        sock.close()
        raise
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that no process listens at. Raises OSError, and EndpointError if one does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            # Its queue of connections is full, so a process listens.
            pass
    raise EndpointError(f"control.socket: {path}: another process listens there")


def _parse(message: bytes) -> dict[str, Any]:
    """Return a request with the defaults of what it leaves out. Raises _Broken."""
    try:
        found = json.loads(message)
    # RecursionError: brackets that are nested deeper than Python allows.
    except (ValueError, RecursionError):
        raise _Broken("a request is not JSON") from None
    request: dict[str, Any] = {"parameters": {}, "more": False, "oneway": False, "upgrade": False}
    expected = {"method": str, "parameters": dict, **dict.fromkeys(("more", "oneway", "upgrade"), bool)}
    if isinstance(found, dict):
        # null means absent.
        request |= {name: value for name, value in found.items() if value is not None}
    if not all(isinstance(request.get(name), kind) for name, kind in expected.items()) or request["upgrade"]:
        raise _Broken("a request is not a Varlink call")
    return request


async def _encode_reply(reply: Reply) -> str:
    """Encode a reply whose parameters may be iterators."""
    lists = {name: value for name, value in reply.parameters.items() if isinstance(value, Iterator)}
    facts: dict[str, object] = {"continues": True} if reply.continues else {}
    # One call for all of them: a call costs more than a small value.
    text = _encode({**facts, "parameters": {name: it for name, it in reply.parameters.items() if name not in lists}})
    parts = [text.removesuffix("}}")]
    for name, values in lists.items():
        parts.append(f'{"" if parts[-1].endswith("{") else ","}"{name}":[')
        comma = ""
        while items := list(islice(values, SLICE)):
            parts += comma, _encode(items)[1:-1]
            comma = ","
            if len(items) == SLICE:
                await asyncio.sleep(0)
        parts.append("]")
    return "".join((*parts, "}}")) if lists else text
