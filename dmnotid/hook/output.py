"""Output of a hook as log lines: a line is cut at 1 KiB, a run at 64 KiB."""

from typing import Final

from structlog.typing import FilteringBoundLogger

MAX_LINE_OCTETS: Final = 1_024
MAX_OUTPUT_OCTETS: Final = 65_536

CHUNK_OCTETS: Final = 4_096
"""Maximum size of one read: each octet may be a line, and the loop stops while lines are logged."""


class OutputLog:
    """Logs the output of one run line by line. Empty lines are left out.

    Bound: one line for each stream.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        # Carries the facts of the session.
        self._log = log
        # Octets of this run that may still be logged, of all streams together.
        self._left = MAX_OUTPUT_OCTETS
        # The unfinished line of each stream, at most one octet longer than a log line.
        self._lines: dict[str, bytes] = {}

    def feed(self, stream: str, octets: bytes) -> None:
        """Log the lines that are now complete. Octets beyond the limit of the run are dropped."""
        if not self._left:
            return
        octets = octets[: self._left]
        self._left -= len(octets)
        *lines, rest = (self._lines.get(stream, b"") + octets).split(b"\n")
        for line in lines:
            self._write(stream, line)
        # One octet more than is logged shows that the line was cut.
        self._lines[stream] = rest[: MAX_LINE_OCTETS + 1]
        if not self._left:
            self.flush()
            limit = f"output ends here: {MAX_OUTPUT_OCTETS} octets of one run are logged"
            self._log.info("hook output", stream=stream, line=limit, cut=True)

    def flush(self) -> None:
        """Log the lines that have no newline."""
        for stream, line in self._lines.items():
            self._write(stream, line)
        self._lines.clear()

    def _write(self, stream: str, line: bytes) -> None:
        if line:
            text = line[:MAX_LINE_OCTETS].decode("utf-8", "backslashreplace")
            cut = {"cut": True} if len(line) > MAX_LINE_OCTETS else {}
            self._log.info("hook output", stream=stream, line=text, **cut)
