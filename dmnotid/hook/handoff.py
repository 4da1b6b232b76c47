"""A session handed over to a socket: the facts are written, output and an exit status are read.

The process behind the socket belongs to a service manager or another user; it is neither started nor ended here.
"""

import asyncio
import json
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from dmnotid.errors import HookError
from dmnotid.hook.output import CHUNK_OCTETS, LINE_ENDS
from dmnotid.sentences import MAX_SHOWN, shortened

MAX_ANSWER_OCTETS: Final = 1_024
"""Maximum length of a line with an exit status; a longer line is output."""

# The exit status of a process has eight bits.
MAX_EXIT: Final = 255
EXPECTED: Final = '{"exit": N}'
"""The last line of an answer."""


class Answer:
    """Separates the exit status in the last line from the output before it. Empty and blank lines are left out.

    Bound: two lines of 1 KiB, the last complete one and the one that is being read.
    """

    def __init__(self, output: Callable[[bytes], None]) -> None:
        # The exit status in the last line; None if that line is output.
        self.exit_code: int | None = None
        # Gets the lines of output, each with its newline.
        self._output = output
        # The last complete line. If it has an exit status, it is held back.
        self._last = b""
        # The line that is being read, at most one octet longer than an answer.
        self._unfinished = b""

    def feed(self, octets: bytes) -> None:
        """Take octets that were read."""
        *lines, rest = LINE_ENDS.split(self._unfinished + octets)
        # The log cuts a line at the same length, so the rest of a longer one has no use.
        for line in lines:
            self._end_line(line[: MAX_ANSWER_OCTETS + 1])
        self._unfinished = rest[: MAX_ANSWER_OCTETS + 1]

    def end(self) -> None:
        """Take the end of the answer; the last line needs no newline."""
        self._end_line(self._unfinished)
        self._unfinished = b""

    def abandon(self) -> None:
        """Pass on as output whatever is held back: an answer without an end has no exit status."""
        self._release()
        if self._unfinished:
            self._output(self._unfinished + b"\n")

    @property
    def problem(self) -> str:
        """What was received instead of an exit status."""
        if not self._last:
            return f"ended without {EXPECTED}: nothing was received"
        text = shortened(self._last.decode("utf-8", "backslashreplace"), MAX_SHOWN)
        return f"ended without {EXPECTED}: the last line is {text!r}"

    def _end_line(self, line: bytes) -> None:
        if not line.strip():
            return
        self._release()
        self._last, self.exit_code = line, _read_exit_code(line)
        if self.exit_code is None:
            self._output(line + b"\n")

    def _release(self) -> None:
        """Pass the last line on if it was held back: another one follows it."""
        if self.exit_code is not None:
            self._output(self._last + b"\n")
            self.exit_code = None


def _read_exit_code(line: bytes) -> int | None:
    """Read a line as an answer; None if it is not one."""
    if len(line) > MAX_ANSWER_OCTETS:
        return None
    try:
        # RecursionError: brackets that are nested deeper than Python allows.
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    # JSON's true is an int for isinstance(), and not an exit status.
    code = found.get("exit") if isinstance(found, dict) else None
    return code if type(code) is int and 0 <= code <= MAX_EXIT else None


async def hand_over(path: Path, octets: bytes, output: Callable[[bytes], None]) -> Answer:
    """Connect, write `octets`, and read the answer to the end of the connection; cancelling closes the connection.

    Raises HookError if the connection can't be made at once.
    """
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    with ExitStack() as opened:
        try:
            # libuv stops watching a socket with an error, and a peer that closes without having read everything
            # causes one: its answer would be lost. An epoll set stays readable like any other file.
            events = opened.enter_context(select.epoll(1))
            loop.add_reader(events.fileno(), ready.set)
            opened.callback(loop.remove_reader, events.fileno())
            sock = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            events.register(sock, select.EPOLLIN | select.EPOLLOUT)
            # Last, because the peer runs a session for a connection. The loop's own sock_connect takes a full queue of
            # connections (EAGAIN) for a connection in progress.
            sock.connect(str(path))
        except OSError as error:
            full = isinstance(error, BlockingIOError)
            problem = "its queue of connections is full" if full else error.strerror or str(error)
            raise HookError(f"{path}: {problem}", component=str(path)) from error
        answer = Answer(output)
        try:
            await _exchange(sock, events, ready, memoryview(octets), answer)
        except asyncio.CancelledError:
            answer.abandon()
            raise
    return answer


async def _exchange(
    sock: socket.socket, events: select.epoll, ready: asyncio.Event, unsent: memoryview, answer: Answer
) -> None:
    """Write and read as the socket is ready, until the peer ends the connection."""
    while True:
        await ready.wait()
        # Cleared before the poll, so that no readiness after it is missed.
        ready.clear()
        for _, event in events.poll(0):
            # A hang-up and an error count as readable: recv() returns the octets left, then the end.
            if event & ~select.EPOLLOUT and not _receive(sock, answer):
                answer.end()
                return
            if event & select.EPOLLOUT:
                unsent = _send(sock, unsent)
                if not unsent:
                    # A socket is writable at nearly any time, and would keep the loop busy.
                    events.modify(sock, select.EPOLLIN)


def _receive(sock: socket.socket, answer: Answer) -> bool:
    """Read once; False at the end of the connection."""
    try:
        octets = sock.recv(CHUNK_OCTETS)
    except BlockingIOError:
        return True
    except OSError:  # the peer closed without having read everything; its answer has been read
        return False
    answer.feed(octets)
    return bool(octets)


def _send(sock: socket.socket, unsent: memoryview) -> memoryview:
    """Write once, and end the writing side after the last octet; return the rest."""
    try:
        unsent = unsent[sock.send(unsent) :]
    except BlockingIOError:
        return unsent
    except OSError:  # a peer that reads no further may still answer
        unsent = unsent[:0]
    if not unsent:
        with suppress(OSError):
            # The peer may have closed the connection meanwhile.
            sock.shutdown(socket.SHUT_WR)
    return unsent
