"""A push door in the place of the daemon's."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self


class Door:
    """Takes datagrams in a thread, and answers with the result of `answer`; closed with the block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # The datagrams so far.
        self.pushes: list[bytes] = []
        # The answer to a push; None for no answer.
        self.answer: Callable[[bytes], dict[str, Any] | None] = lambda _: {"verdict": "accepted", "session": 1}

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
                self._socket.sendto(json.dumps(answer).encode(), sender)
