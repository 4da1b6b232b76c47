"""A client of the control socket for commands, without a loop: it starts in a few milliseconds."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping

# The import of typing would take a tenth of the time of `dmnotid status`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    Why = Literal["absent", "forbidden", "silent", "closed"]

INTERFACE = "io.dmnotid"

PATIENCE = 5.0
"""Maximum time to wait for octets of the daemon, in seconds."""

# Large, because the octets that have arrived before are copied with each further read.
CHUNK_OCTETS = 256 * 1024

MISSHAPEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""The errors of reading an answer that has another form than this program expects."""


class Unreachable(Exception):
    """No daemon answers at `path`; `why` is the reason in a word.

    absent: none listens there. forbidden: this user may not connect. silent: one listens and does not answer in time,
    because it is starting or stopping. closed: it closed the connection within its answer, or that is not a dmnotid's.
    """

    def __init__(self, path: str, why: Why, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.why: Why = why


class Failed(Exception):
    """The daemon answered with an error: its name, without the interface if that is dmnotid's own, and its facts."""

    def __init__(self, error: str, parameters: Mapping[str, Any]) -> None:
        super().__init__(error, parameters)
        self.error = error
        self.parameters = parameters

    def __str__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self.parameters.items())
        return f"{self.error}: {facts}" if facts else self.error


def call(
    path: str, method: str, parameters: Mapping[str, Any] | None = None, *, patience: float | None = PATIENCE
) -> dict[str, Any]:
    """Call a method of dmnotid's interface that has one reply. Raises Unreachable and Failed."""
    (reply,) = _exchange(path, {"method": f"{INTERFACE}.{method}", "parameters": parameters or {}}, patience)
    return reply


def stream(
    path: str, method: str, parameters: Mapping[str, Any] | None = None, *, patience: float | None = PATIENCE
) -> Iterator[dict[str, Any]]:
    """Call a method that has any number of replies; an empty one, which means that there are none, is left out.

    Raises Unreachable and Failed. `patience` of None waits for ever, as `Follow` needs it.
    """
    request = {"method": f"{INTERFACE}.{method}", "parameters": parameters or {}, "more": True}
    return filter(None, _exchange(path, request, patience))


def _exchange(path: str, request: Mapping[str, Any], patience: float | None) -> Iterator[dict[str, Any]]:
    """Send one request, and yield the parameters of each of its replies."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(patience)
        try:
            sock.connect(path)
            # Not contextlib.suppress: it would be an import for this line alone.
            try:
                sock.sendall(json.dumps(request).encode() + b"\0")
                # Nothing more is sent, so the daemon need not wait for it. Follow would end.
                if patience is not None:
                    sock.shutdown(socket.SHUT_WR)
            except ConnectionError:
                # With all of its clients connected, a daemon reads no request, and sends an error.
                pass
            yield from _read(sock)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            # The socket of a daemon that was killed is still there, and refuses connections.
            raise Unreachable(path, "absent", "no daemon listens there") from error
        except PermissionError as error:
            problem = "only root, the daemon's user and members of its group may connect"
            raise Unreachable(path, "forbidden", problem) from error
        # BlockingIOError: the queue of connections is full, so the daemon accepts none.
        except (TimeoutError, BlockingIOError) as error:
            raise Unreachable(path, "silent", "the daemon does not answer; it may be starting or stopping") from error
        except OSError as error:
            raise Unreachable(path, "closed", f"the connection failed: {error.strerror or error}") from error
        except EOFError as error:
            problem = "the daemon closed the connection before its answer was complete"
            raise Unreachable(path, "closed", problem) from error
        except MISSHAPEN as error:
            raise Unreachable(path, "closed", "the answer is not that of a dmnotid") from error


def _read(sock: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield the parameters of each reply. Raises Failed, OSError, EOFError, and the errors of MISSHAPEN."""
    rest = b""
    while octets := sock.recv(CHUNK_OCTETS):
        # A reply can arrive in parts, and several can arrive at once.
        *messages, rest = (rest + octets).split(b"\0")
        for message in messages:
            reply = json.loads(message)
            # The copy raises TypeError for anything but an object.
            found = {**(reply.get("parameters") or {})}
            # An error can also follow some replies, and ends them.
            if "error" in reply:
                raise Failed(reply["error"].removeprefix(f"{INTERFACE}."), found)
            yield found
            if not reply.get("continues"):
                return
    raise EOFError
