"""Output of a hook as log lines: a line is cut at 1 KiB, and of a long run the middle is left out."""

import re
from collections import deque
from typing import Final

from structlog.typing import FilteringBoundLogger

MAX_LINE_OCTETS: Final = 1_024
MAX_OUTPUT_OCTETS: Final = 65_536
MAX_OUTPUT_LINES: Final = 512

# The first three quarters show how a run began; the last quarter, from its end, shows why it failed.
_HEAD_OCTETS: Final = MAX_OUTPUT_OCTETS * 3 // 4
_HEAD_LINES: Final = MAX_OUTPUT_LINES * 3 // 4

LEFT_OUT: Final = (
    f"output is left out here: more than {MAX_OUTPUT_OCTETS} octets or {MAX_OUTPUT_LINES} lines; the last quarter of "
    "that follows at the end of the run"
)

CHUNK_OCTETS: Final = 4_096
"""Maximum size of one read: each octet may be a line, and the loop stops while lines are logged."""

LINE_ENDS: Final = re.compile(rb"[\r\n]")
"""A progress bar writes over its line after a carriage return: each of its states is a line."""


class OutputLog:
    """Logs the output of one run line by line, without empty lines.

    first 3/4 --3/4 of 64 KiB or of 512 lines are logged--> last 1/4: the newest lines, logged by `flush`

    Bound: one unfinished line for each stream, and a quarter of a run.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        # Carries the facts of the session.
        self._log = log
        # Octets and lines of this run that are still logged at once, of all streams together.
        self._octets, self._lines = _HEAD_OCTETS, _HEAD_LINES
        # The lines after those, with their streams, and their octets. Why a run failed is in its last lines.
        self._last: deque[tuple[str, bytes]] = deque()
        self._last_octets = 0
        # Whether lines were dropped from `_last`.
        self._is_cut = False
        # The last line that was taken, of any stream; of a run that failed, it often has the reason.
        self.last_line = ""
        # The unfinished line of each stream, at most one octet longer than a log line.
        self._unfinished: dict[str, bytes] = {}

    def feed(self, stream: str, octets: bytes) -> None:
        """Take octets that were read, and log or keep the lines that are now complete."""
        *lines, rest = LINE_ENDS.split(self._unfinished.get(stream, b"") + octets)
        for line in lines:
            self._take(stream, line)
        # One octet more than is logged shows that the line was cut.
        self._unfinished[stream] = rest[: MAX_LINE_OCTETS + 1]

    def flush(self) -> None:
        """Log the rest, at the end of the run: lines without an end, and the last lines of a long run."""
        for stream, line in self._unfinished.items():
            self._take(stream, line)
        self._unfinished.clear()
        for stream, line in self._last:
            self._write(stream, line)
        self._last.clear()

    def _take(self, stream: str, line: bytes) -> None:
        if not line:
            return
        line = line[: MAX_LINE_OCTETS + 1]
        self.last_line = _text(line)
        # The end of the line counts too.
        size = len(line) + 1
        if self._lines and size <= self._octets:
            self._octets -= size
            self._lines -= 1
            self._write(stream, line)
            return
        # A shorter line after this one must not be logged before it.
        self._lines = 0
        self._last.append((stream, line))
        self._last_octets += size
        while len(self._last) > MAX_OUTPUT_LINES - _HEAD_LINES or self._last_octets > MAX_OUTPUT_OCTETS - _HEAD_OCTETS:
            self._last_octets -= len(self._last.popleft()[1]) + 1
            if not self._is_cut:
                self._is_cut = True
                self._log.info("hook output", stream=stream, line=LEFT_OUT, cut=True)

    def _write(self, stream: str, line: bytes) -> None:
        cut = {"cut": True} if len(line) > MAX_LINE_OCTETS else {}
        self._log.info("hook output", stream=stream, line=_text(line), **cut)


def _text(line: bytes) -> str:
    return line[:MAX_LINE_OCTETS].decode("utf-8", "backslashreplace")
