"""A push door in the place of the daemon's, its wrong answers, and a process that answers in its place."""

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

MISSHAPEN: Final = (
    b"",
    b"{}",
    b"[]",
    b"\xff",
    b"[" * 4_000,
    b'{"verdict": "accepted", "session": 1, "more": "' + b"x" * 5_000 + b'"}',
    '{"verdict": "accepted"}'.encode("utf-16"),
    b'{"verdict": "discarded"}',
    b'{"verdict": "other", "reason": "stale"}',
)
"""Answers that are not a verdict."""


class Door:
    """Takes datagrams in a thread, and answers with the result of `answer`; closed with the block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The datagrams so far.
        self.pushes: list[bytes] = []
        # The answer to a push; None for no answer.
        self.answer: Callable[[bytes], dict[str, Any] | bytes | None] = lambda _: {"verdict": "accepted", "session": 1}

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink()
        # Unlike a datagram, this wakes the thread for certain.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            push, sender = self._socket.recvfrom(65_536)
            if not sender:
                return
            answer = self.answer(push)
            self.pushes.append(push)
            if answer is not None:
                self._socket.sendto(answer if isinstance(answer, bytes) else json.dumps(answer).encode(), sender)


@contextmanager
def forging(path: Path) -> Iterator[None]:
    """Let another process accept the push of each socket that has an address before it is connected to a door."""
    active = True

    def forge(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "socket.connect" and arguments[1] == str(path) and arguments[0].getsockname():
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
                stranger.sendto(b'{"verdict": "accepted", "session": 1}', arguments[0].getsockname())

    # A hook can't be removed.
    sys.addaudithook(forge)
    try:
        yield
    finally:
        active = False
