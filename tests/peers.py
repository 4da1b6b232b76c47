"""Servers on Unix stream sockets, for tests of the programs that connect to them."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import DEADLINE

Serve = Callable[[socket.socket], object]
"""Serves one connection, which is closed after it."""


@contextmanager
def listening(path: Path, backlog: int = 8) -> Iterator[socket.socket]:
    """Listen on a Unix stream socket; connections are accepted by the caller, if at all."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def served(path: Path, serve: Serve) -> Iterator[None]:
    """Serve each connection in a thread, one after the other."""
    with listening(path) as listener:

        def accept() -> None:
            # The listener is shut down below.
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(ConnectionError):
                        connection.settimeout(DEADLINE)
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)
            assert not thread.is_alive()


def read_all(connection: socket.socket) -> bytes:
    """Read to the end of the connection."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def answering(answer: bytes) -> Serve:
    """Return a server that reads the request to its end, and then answers."""

    def serve(connection: socket.socket) -> None:
        read_all(connection)
        connection.sendall(answer)

    return serve
