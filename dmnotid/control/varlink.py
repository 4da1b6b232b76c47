"""The server's side of Varlink (https://varlink.org): each message is a JSON object and a NUL, on a Unix socket.

A connection is in one of these states:

    reading --request--> answering --last reply--> reading
    reading --nothing for 5 s, a request that is too long or not one, end of the connection--> closed
    answering --replies not read for 5 s, end of the connection--> closed

The kernel's buffers are the only queues of replies. Nothing runs while no client is connected.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from dmnotid.control.client import INTERFACE
from dmnotid.host.log import logger
from dmnotid.host.unixsocket import bind_unix

MAX_CONNECTIONS: Final = 8
"""Maximum number of connections at a time of root and the daemon's own user, and of all others; a further one gets an
error, and is closed at once."""

MAX_REQUEST_OCTETS: Final = 64 * 1024
"""Longest request, without its NUL."""

PATIENCE: Final = 5.0
"""Maximum time for a request to arrive, and for a client to read, in seconds."""

SLICE: Final = 16
"""Number of items of a list that are made before reception gets its turn."""

LOG_EVERY: Final = 60.0
"""Minimum time between two log lines about connections that were closed for the same reason, in seconds."""

PAUSE: Final = 1.0
"""Time without accepting connections after an error of the kernel, in seconds."""

# The owner and the group may ask; the permission to change something is checked for each call.
SOCKET_MODE: Final = 0o660

# struct ucred of unix(7): pid, uid, gid.
_UCRED: Final = struct.Struct("3i")

T = TypeVar("T")

_KINDS: Final = {"method": str, "parameters": dict, "more": bool, "oneway": bool, "upgrade": bool}

# NaN and infinity are not JSON, so they are an error here and not one of the client. No reply contains itself.
_encode: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode


class Peer(NamedTuple):
    """The process at the other end, as the kernel reports it (SO_PEERCRED)."""

    pid: int
    uid: int

    @property
    def is_own(self) -> bool:
        """Whether it is root's, or of the daemon's own user."""
        return self.uid in {0, os.geteuid()}


class Request(NamedTuple):
    """A call as its client has sent it; with `more`, several replies may be sent, and with `oneway` none."""

    method: str
    parameters: Mapping[str, Any]
    more: bool
    oneway: bool


class VarlinkError(Exception):
    """A reply that is an error of an interface; `name` has the interface in it."""

    def __init__(self, name: str, **parameters: object) -> None:
        super().__init__(name, parameters)
        self.name = name
        self.parameters = parameters

    def encode(self) -> bytes:
        """Return the message."""
        return _encode({"error": self.name, "parameters": self.parameters}).encode() + b"\0"


Answer = Callable[[Request, "Client"], Awaitable[None]]
"""Makes the replies to a request, up to the last one unless the client is gone. May raise VarlinkError."""


class Server:
    """Serves one socket: MAX_CONNECTIONS clients of each kind, and requests of at most MAX_REQUEST_OCTETS."""

    def __init__(self, path: Path, answer: Answer, *, patience: float = PATIENCE) -> None:
        """Listen at `path`, in place of a socket that no process listens at; connections wait until `open`.

        `patience` (seconds) bounds how long a client may take to send a request, and to read. Raises EndpointError.
        """
        # The path of the socket.
        self.path = path
        # Answers the requests.
        self.answer = answer
        # The time for a request to arrive, and for a client to read.
        self.patience = patience
        # The clients whose connection is open.
        self.clients: set[Client] = set()
        # Time of the last log line for each reason to close a connection, on the clock of the loop.
        self._logged: dict[str, float] = {}
        # The listening socket; None once it is closed.
        self._socket: socket.socket | None = bind_unix("control.socket", path, socket.SOCK_STREAM, SOCKET_MODE)
        # The kernel queues connections until `open`, so a client that asks early gets its answer.
        self._socket.listen()

    def open(self) -> None:
        """Accept connections on the running loop."""
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def close(self) -> None:
        """Remove the socket, and end every connection. Closing twice is harmless."""
        if self._socket is not None:
            # Before it is closed, so that the next daemon never finds a socket that no process listens at.
            with suppress(OSError):
                self.path.unlink()
            # Without a loop, it was never opened.
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        for client in list(self.clients):
            client.close()

    async def stop(self) -> None:
        """Close, and wait until every connection has ended."""
        self.close()
        if self.clients:
            await asyncio.wait([client.task for client in self.clients if client.task is not None])

    def _accept(self, listening: socket.socket) -> None:
        try:
            sock, _ = listening.accept()
        except (BlockingIOError, ConnectionError):
            # The client is gone already.
            return
        except OSError as error:
            # No descriptor is left: an error that persists must not keep the program busy.
            loop = asyncio.get_running_loop()
            loop.remove_reader(listening)
            loop.call_later(PAUSE, self.open)
            self.log_refusal(f"a connection cannot be accepted: {error.strerror}")
            return
        sock.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
        pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        client = Client(sock, Peer(pid, uid), self)
        # No other user can keep root from asking.
        if sum(it.peer.is_own == client.peer.is_own for it in self.clients) < MAX_CONNECTIONS:
            self.clients.add(client)
            client.read()
            return
        with sock, suppress(OSError):
            sock.send(VarlinkError(f"{INTERFACE}.TooManyClients", most=MAX_CONNECTIONS).encode())
        self.log_refusal(f"{MAX_CONNECTIONS} clients are connected, the maximum", client.peer)

    def log_refusal(self, problem: str, peer: Peer | None = None) -> None:
        """Log why a connection was closed, or could not be accepted."""
        now = asyncio.get_running_loop().time()
        # A client that connects again and again must not flood the log.
        if now - self._logged.get(problem, float("-inf")) >= LOG_EVERY:
            self._logged[problem] = now
            facts = {} if peer is None else {"pid": peer.pid, "uid": peer.uid}
            logger.warning("control client refused", problem=problem, **facts)


class Client:
    """A client and its connection: a request is read and answered in a task of its own, then the next one is read."""

    def __init__(self, sock: socket.socket, peer: Peer, server: Server) -> None:
        # The connected socket, which `close` closes.
        self._socket = sock
        # The process at the other end.
        self.peer = peer
        # Answers the requests, and counts the clients.
        self._server = server
        # The loop of the reader and the timer.
        self._loop = asyncio.get_running_loop()
        # Octets of requests that were not answered yet.
        self._received = b""
        # Whether the request that is being answered expects a reply, and whether its last one was made.
        self._expects_reply = self._is_answered = False
        # Answers a request; None while one is read.
        self.task: asyncio.Task[str | None] | None = None
        # Closes the connection if no request arrives in time; None unless the loop reads the socket.
        self._timer: asyncio.TimerHandle | None = None

    def close(self, problem: str = "") -> None:
        """End the connection, and log the problem if there is one."""
        if problem:
            self._server.log_refusal(problem, self.peer)
        if self.task is not None:
            # The task may still use the socket, so `_answered` closes it.
            self.task.cancel()
            return
        self._pause()
        self._socket.close()
        self._server.clients.discard(self)

    def read(self) -> None:
        """Read what has arrived, and answer the next request or wait for the rest of it."""
        # Several requests may have arrived at once.
        if b"\0" not in self._received:
            try:
                octets = self._socket.recv(MAX_REQUEST_OCTETS)
                if not octets:
                    self.close("the connection ended within a request" if self._received else "")
                    return
                self._received += octets
            except BlockingIOError:
                # No octets have arrived yet.
                pass
            except OSError:
                # The client closed the connection before it had read all replies.
                self.close()
                return
        message, nul, rest = self._received.partition(b"\0")
        if len(message) > MAX_REQUEST_OCTETS:
            self.close(f"a request has more than {MAX_REQUEST_OCTETS} octets")
        elif nul:
            self._pause()
            self._received = rest
            self.task = self._loop.create_task(self._answer(message), name=f"control {self.peer.pid}")
            self.task.add_done_callback(self._answered)
        elif self._timer is None:
            problem = f"no request arrived within {self._server.patience:g} s"
            self._timer = self._loop.call_later(self._server.patience, self.close, problem)
            # Only here, because most clients have sent their whole request already and need no reader.
            self._loop.add_reader(self._socket, self.read)

    def _pause(self) -> None:
        """Read no more until `read` is called again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._loop.remove_reader(self._socket)

    async def leave(self) -> None:
        """Wait until the client ends its side, or sends something that is not expected during a call."""
        with suppress(OSError):
            await self._loop.sock_recv(self._socket, 1)

    async def _answer(self, message: bytes) -> str | None:
        """Answer a request; return None if another one may follow, else why the connection ends."""
        try:
            request = _parse(message)
        except ValueError as error:
            return str(error)
        self._expects_reply, self._is_answered = not request.oneway, False
        try:
            try:
                await self._server.answer(request, self)
            except VarlinkError as error:
                self._is_answered = True
                if self._expects_reply:
                    await self._send(error.encode())
        except TimeoutError:
            return f"replies were not read within {self._server.patience:g} s"
        except ConnectionError:
            # The client closed the connection before the last reply.
            return ""
        except Exception:  # noqa: BLE001 - a bug in answering one call must not stop the daemon
            logger.exception("internal error", pid=self.peer.pid)
            return ""
        return None if self._is_answered else ""

    def _answered(self, task: asyncio.Task[str | None]) -> None:
        self.task = None
        problem = "" if task.cancelled() else task.result()
        if problem is None:
            self.read()
        else:
            self.close(problem)

    async def reply(
        self,
        parameters: Mapping[str, object],
        items: tuple[str, Iterator[object]] | None = None,
        *,
        continues: bool = False,
        waits: bool = False,
    ) -> None:
        """Send a reply, the last one unless it `continues`.

        `items` is one more parameter, a list whose items are made in slices, beside others. With `waits`, the client
        may read the reply whenever it likes. Raises ConnectionError, and TimeoutError if it does not read it in time.
        """
        self._is_answered = not continues
        if self._expects_reply:
            text = _encode({"continues": True, "parameters": parameters} if continues else {"parameters": parameters})
            if items is not None:
                text = await _insert(text, *items)
            await self._send(text.encode() + b"\0", waits=waits)

    async def _send(self, octets: bytes, *, waits: bool = False) -> None:
        try:
            sent = self._socket.send(octets)
        except BlockingIOError:
            sent = 0
        # A client that keeps up with the replies costs no timer.
        if sent < len(octets):
            async with asyncio.timeout(None if waits else self._server.patience):
                # A view, because a copy of a long reply would take as much memory again.
                await self._loop.sock_sendall(self._socket, memoryview(octets)[sent:])


async def _insert(text: str, name: str, items: Iterator[object]) -> str:
    """Insert a list into an encoded reply, after its last parameter."""
    # The text ends with the braces of the parameters and of the reply.
    parts, comma = [f'{text.removesuffix("}}")},"{name}":['], ""
    while some := list(islice(items, SLICE)):
        # Without the brackets of the slice.
        parts += comma, _encode(some)[1:-1]
        comma = ","
        if len(some) == SLICE:
            await asyncio.sleep(0)
    return "".join((*parts, "]}}"))


async def sliced(values: Iterable[T]) -> AsyncIterator[T]:
    """Yield the same values; after every SLICE of them the loop has its turn."""
    for count, value in enumerate(values, 1):
        yield value
        if not count % SLICE:
            await asyncio.sleep(0)


def _parse(message: bytes) -> Request:
    """Return a request with the defaults of what it leaves out. Raises ValueError with the reason."""
    try:
        found = json.loads(message)
    # RecursionError: brackets that are nested deeper than Python allows.
    except (ValueError, RecursionError):
        raise ValueError("a request is not JSON") from None
    facts: dict[str, Any] = {"parameters": {}, "more": False, "oneway": False, "upgrade": False}
    if isinstance(found, dict):
        # null means absent.
        facts |= {name: value for name, value in found.items() if value is not None}
    # An upgrade would replace the protocol of the connection, and there is no other one.
    if not all(isinstance(facts.get(name), kind) for name, kind in _KINDS.items()) or facts["upgrade"]:
        raise ValueError("a request is not a Varlink call")
    return Request(*(facts[name] for name in Request._fields))
