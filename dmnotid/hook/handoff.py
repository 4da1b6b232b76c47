"""A session handed over by one connection to a socket: the facts go there, output and an exit status come back.

What runs behind the socket belongs to somebody else (mostly a service manager): nothing of it is started or ended here.
"""

import asyncio
import json
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from dmnotid.errors import HookError
from dmnotid.hook.turn import LOGGED

MAX_ANSWER_OCTETS: Final = 1_024
"""The longest line that can be an answer; a longer one is output."""

MAX_EXIT: Final = 255
WANTED: Final = '{"exit": N}'
"""What the last line of an answer looks like."""

_SHOWN: Final = 64
_BLANKS: Final = b" \t\r"


class Answer:
    """Tells the exit status in the last line of an answer from the output before it.

    Holds one line at most, and only one that may be the exit status: what can't be goes to `output` octet for octet, as
    it comes. Empty lines are nobody's, and one of blanks alone is empty.
    """

    def __init__(self, output: Callable[[bytes], None]) -> None:
        """`output` gets the octets of the lines before the last, each line with its newline."""
        self.exit_code: int | None = None
        self._output = output
        self._held = bytearray()
        self._indent = bytearray()
        self._shown = b""
        self._length = 0
        self._ended = True
        self._may_be_answer = False

    def feed(self, octets: bytes) -> None:
        """Take what was read."""
        *whole, rest = octets.split(b"\n")
        for piece in whole:
            self._add(piece)
            self._end_line()
        self._add(rest)

    def close(self) -> None:
        """Take the end; a last line needs no newline."""
        self._end_line()

    def abandon(self) -> None:
        """Take it that the end will not come: so nothing is an answer, all that is held is output."""
        self._release()

    @property
    def problem(self) -> str:
        """Say what came instead of an exit status."""
        if not self._length:
            return f"ended without {WANTED}: nothing came"
        # A character that is cut in two at the end says nothing.
        shown = self._shown.decode("utf-8", "backslashreplace" if self._length <= _SHOWN else "ignore")
        more = f" … ({self._length} octets)" if self._length > _SHOWN else ""
        return f"ended without {WANTED}: its last line is {shown!r}{more}"

    def _add(self, piece: bytes) -> None:
        if self._ended:
            piece = self._without_indent(piece)
            if not piece:
                return
            self._begin_line(piece)
            piece = bytes(self._indent) + piece
        self._shown += piece[: _SHOWN - len(self._shown)]
        self._length += len(piece)
        if self._may_be_answer and self._length <= MAX_ANSWER_OCTETS:
            self._held += piece
        else:
            self._release()
            self._output(piece)

    def _without_indent(self, piece: bytes) -> bytes:
        """Put blanks aside until something follows them: no more than what makes a line too long for an answer."""
        rest = piece.lstrip(_BLANKS)
        room = MAX_ANSWER_OCTETS - len(self._indent)
        self._indent += piece[: min(len(piece) - len(rest), room)]
        return rest

    def _begin_line(self, begin: bytes) -> None:
        """Another line comes, so the one before was not the last."""
        self._release()
        self.exit_code, self._shown, self._length, self._ended = None, b"", 0, False
        self._may_be_answer = begin.startswith(b"{")

    def _end_line(self) -> None:
        self._indent.clear()
        if self._ended:
            return
        self.exit_code = _exit_code(bytes(self._held)) if self._held else None
        if self.exit_code is None:
            self._release()
            self._output(b"\n")
        self._ended = True

    def _release(self) -> None:
        if self._held:
            self._output(bytes(self._held) + (b"\n" if self._ended else b""))
            self._held.clear()


def _exit_code(line: bytes) -> int | None:
    """Read a line as an answer; None where it is none."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    code = found.get("exit") if isinstance(found, dict) else None
    return code if type(code) is int and 0 <= code <= MAX_EXIT else None


class Handoff:
    """One connection: writes its input, ends its writing side, and reads an `Answer` to the end.

    `ended` is set then. Leaving the context closes the connection, whatever state it is in.
    """

    def __init__(
        self,
        path: Path,
        octets: bytes,
        output: Callable[[bytes], None],
        share: Callable[[], int] = lambda: LOGGED.share,
    ) -> None:
        """Connect. Raises HookError where nobody takes the connection at once; never waits.

        `share` says how many octets may be read at a turn of the loop.
        """
        self.ended = asyncio.Event()
        self._share = share
        self.answer = Answer(output)
        self._loop = asyncio.get_running_loop()
        self._left = memoryview(octets)
        with ExitStack() as opened, _said_of(path):
            self._socket = opened.enter_context(_connect(path))
            # libuv gives up a socket that shows an error, and a peer that closes without having read all leaves one:
            # its answer would never be read. An epoll set of its own becomes readable like any other file.
            self._events = opened.enter_context(select.epoll(1))
            self._events.register(self._socket, select.EPOLLIN | select.EPOLLOUT)
            self._loop.add_reader(self._events.fileno(), self._at_event)
            LOGGED.open()
            opened.callback(LOGGED.close)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        """Go on: it is connected."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._loop.remove_reader(self._events.fileno())
        self._opened.close()
        if not self.ended.is_set():
            self.answer.abandon()

    def _at_event(self) -> None:
        for _, events in self._events.poll(0):
            if events & ~select.EPOLLOUT:
                self._read()
            if events & select.EPOLLOUT and not self.ended.is_set():
                self._write()

    def _read(self) -> None:
        """Read its share, so that a peer that writes without end takes no more than its turn."""
        try:
            octets = self._socket.recv(self._share())
        except BlockingIOError:
            return
        except OSError:  # it went away without having read all; what it had written was read before
            octets = b""
        if octets:
            self.answer.feed(octets)
            return
        self._loop.remove_reader(self._events.fileno())
        self.answer.close()
        self.ended.set()

    def _write(self) -> None:
        try:
            self._left = self._left[self._socket.send(self._left) :]
        except BlockingIOError:
            return
        except OSError:  # a peer that reads no further may answer all the same
            self._left = self._left[:0]
        if not self._left:
            self._events.modify(self._socket, select.EPOLLIN)
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)


def _connect(path: Path) -> socket.socket:
    # Not by the loop's sock_connect: it takes EAGAIN for a connection in progress, and waits for nothing.
    with ExitStack() as opened:
        sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        sock.connect(str(path))
        opened.pop_all()
    return sock


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """Raise HookError for what the kernel says against a connection."""
    try:
        yield
    except BlockingIOError as error:
        message = f"{path}: its queue of connections is full"
        raise HookError(message, component=str(path)) from error
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        raise HookError(message, component=str(path)) from error
