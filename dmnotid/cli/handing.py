"""Handing in notifications at a door, whose daemon answers each with its verdict."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dmnotid.errors import DmnotidError
from dmnotid.host.text import printable

PATIENCE: Final = 10.0
"""Maximum time to wait for room in the queue of a door, and for an answer, in seconds."""

_ANSWER_OCTETS: Final = 4_096


class Door:
    """A connection to a door."""

    def __init__(self, path: Path, sock: socket.socket, patience: float) -> None:
        # For messages.
        self._path, self._patience = path, patience
        # Has an address of its own, for the answers.
        self._socket = sock

    def __str__(self) -> str:
        """`unix:/run/dmnotid-doors/push.sock`."""
        return f"unix:{self._path}"

    def send(self, octets: bytes) -> None:
        """Send one datagram, and wait while the queue of the door is full. Raises DmnotidError."""
        try:
            self._socket.send(octets)
        except OSError as error:
            raise _problem(self, error, f"its queue was full for {self._patience:g} s") from error

    def answer(self) -> tuple[str, str]:
        """Wait for an answer; return its text, and the verdict in one word. Raises DmnotidError."""
        try:
            text = self._socket.recv(_ANSWER_OCTETS).decode()
            answer = json.loads(text)
        except OSError as error:
            reasons = "the daemon does not read it, its journal fails, or the door is in another network namespace"
            problem = f"no answer within {self._patience:g} s: {reasons}"
            raise _problem(self, error, problem) from error
        except (RecursionError, ValueError):
            answer = None
        match answer:
            case {"verdict": "accepted" as verdict} | {"verdict": "discarded", "reason": str(verdict)}:
                return printable(text), verdict
        raise DmnotidError(f"dmnotid send: {self}: the answer is not a verdict of dmnotid")


@contextmanager
def open_door(path: Path, patience: float = PATIENCE) -> Iterator[Door]:
    """Connect to a door, and wait so many seconds for room or an answer. Raises DmnotidError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience)
        door = Door(path, sock, patience)
        try:
            # Connected before it has a name, which others could guess: from then on the door alone can answer.
            sock.connect(str(path))
            # The kernel chooses a free name: a sender without one gets no answer.
            sock.bind("")
        except OSError as error:
            raise _problem(door, error) from error
        yield door


def _problem(door: Door, error: OSError, timed_out: str = "") -> DmnotidError:
    # A timeout has no strerror, and neither has a path that is too long for an address.
    problem = timed_out if isinstance(error, TimeoutError) else error.strerror or str(error)
    return DmnotidError(f"dmnotid send: {door}: {problem}")
