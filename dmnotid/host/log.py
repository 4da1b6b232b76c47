"""The log: one line an event, readable on a terminal, JSON with a journal level elsewhere.

What came from the network or from a hook is ink: no control character of it reaches a terminal or starts a new line. A
flood of discards is counted, not narrated.

Where standard output leads to the systemd journal, a record about a session or a server is sent to it with fields that
can be searched for (DMNOTID_SERVER_ID=…); all others stay lines, which cost less.
"""

import asyncio
import json
import os
import socket
import stat
import sys
import weakref
from collections import Counter
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Protocol, TextIO

import structlog

from dmnotid.errors import (
    DigestMismatch,
    DigestMissing,
    Discard,
    Duplicate,
    FromTheFuture,
    QueueFull,
    SecretNotProvisioned,
    SourceNotAllowed,
    Stale,
    TrailingOctets,
    shortened,
)
from dmnotid.host.journald import Journald, leads_to_journal

FIRST_DISCARDS: Final = 5
"""How many discards of a reason are logged one by one in each interval."""

MAX_SHOWN: Final = 256
"""How many characters of what a datagram says stand in a log line at most."""

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
JOURNAL_FIELDS: Final = (
    "session", "server_id", "notification_id", "event", "reason", "attempt", "connection", "interface", "outcome",
    "source",
)  # fmt: skip
"""What of a record becomes a field of the journal, as DMNOTID_ and the name in capitals."""

_SEARCHED_BY: Final = frozenset({"session", "server_id"})
"""A record with one of these has fields."""

_JOURNAL_LEVELS: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}

# What an operator should look at: somebody claims to be a server, or a server of ours does something odd.
_SUSPICIOUS: Final = (
    DigestMismatch,
    DigestMissing,
    FromTheFuture,
    QueueFull,
    SecretNotProvisioned,
    SourceNotAllowed,
    Stale,
    TrailingOctets,
)

EventDict = MutableMapping[str, Any]

_encode_json: Final = json.JSONEncoder(default=str).encode


class Logger(Protocol):
    """What dmnotid uses of a structlog logger."""

    def debug(self, event: str, **facts: object) -> object:
        """Log at level debug."""

    def info(self, event: str, **facts: object) -> object:
        """Log at level info."""

    def warning(self, event: str, **facts: object) -> object:
        """Log at level warning."""

    def error(self, event: str, **facts: object) -> object:
        """Log at level error."""

    def exception(self, event: str, **facts: object) -> object:
        """Log at level error, with the traceback of the exception that is being handled."""


logger: Logger = structlog.get_logger()
"""The one logger of the service."""


class _Lines:
    """Writes finished lines, and drops them where they can't be written at once.

    A reader that went away or doesn't read (a closed or full pipe, a stopped terminal, a full disk) is no reason to
    stop serving. How many lines were dropped is said by the next one that comes through. Bound: the rest of one line.
    """

    def __init__(self, stream: TextIO, journald: Journald | None = None) -> None:
        self._stream = stream
        self._journald = journald
        if journald is not None:
            weakref.finalize(self, journald.close)
        self._dropped = 0
        self._rest = b""
        self._encoding = stream.encoding or "utf-8"
        try:
            self._write: Callable[[bytes], int] = _writer(self, stream.fileno())
        except (OSError, ValueError):  # no file behind it
            self._write = self._write_text

    def msg(self, line: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        if not (fields and self._sent(fields)):
            self._write_line(line)

    debug = info = warning = error = critical = msg

    def _sent(self, fields: Sequence[tuple[str, str]]) -> bool:
        """Send a record to the journal with its fields; where it isn't taken at once, a line has to do."""
        try:
            if self._journald is not None:
                self._journald.send(fields)
                return True
        except OSError:
            pass
        return False

    def _write_line(self, line: str) -> None:
        text = line
        if self._dropped:
            text = f"{_say_dropped(self._dropped, json_lines=line.startswith('<'))}\n{line}"
        octets = (text + "\n").encode(self._encoding, "backslashreplace")
        try:
            self._stream.flush()
            # The rest of a line that was begun goes first: no two are ever glued together.
            self._rest = self._rest[self._write(self._rest) :] if self._rest else b""
            if not self._rest:
                self._rest = octets[self._write(octets) :]
                self._dropped = 0
                return
        except (OSError, ValueError):
            pass
        # The stream to a journal that was stopped stays dead when it is back, its socket doesn't.
        if not self._sent(_fields_of_line(line)):
            self._dropped += 1

    def _write_text(self, octets: bytes) -> int:
        self._stream.write(octets.decode(self._encoding))
        return len(octets)


def _writer(owner: object, descriptor: int) -> Callable[[bytes], int]:
    """Return what writes to a descriptor without ever blocking; it raises OSError instead. Raises OSError."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        sock = socket.socket(fileno=os.dup(descriptor))
        weakref.finalize(owner, sock.close)
        return lambda octets: sock.send(octets, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # Opened anew, it is ours alone: made non-blocking, the one we were given would be so for others who have it.
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)
            weakref.finalize(owner, os.close, descriptor)
    return partial(os.write, descriptor)


def _say_dropped(count: int, *, json_lines: bool) -> str:
    if json_lines:
        return _render_json(None, "warning", {"event": "log lines dropped", "level": "warning", "count": count})
    return f"{count} log lines were dropped: nobody read them"


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Send the log to `stream` (standard output by default) from `level` up.

    `form` is "text", "json", or "auto": text on a terminal, JSON lines elsewhere.
    """
    target = sys.stdout if stream is None else stream
    text = form == "text" or (form == "auto" and target.isatty())
    journald = _open_journald(target) if form == "auto" else None
    lines = _Lines(target, journald)
    structlog.configure(
        processors=_text_processors(colours=target.isatty() and not os.environ.get("NO_COLOR"))
        if text
        else [_add_time, _tidy_exception, _render_json if journald is None else _render_fields],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )


def _open_journald(target: TextIO) -> Journald | None:
    """Open a channel to the journal where a stream leads there; without one, lines do as well."""
    try:
        if leads_to_journal(target.fileno(), os.environ.get("JOURNAL_STREAM")):
            return Journald()
    except (OSError, ValueError):  # no file behind the stream, or no descriptor left
        pass
    return None


def _text_processors(*, colours: bool) -> list[structlog.typing.Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _tidy_exception,
        _make_ink,
        structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        ),
    ]


def _add_time(_logger: object, level: str, event: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"event": event.pop("event"), "level": level, "time": now, **event}


def _tidy_exception(logger_: object, level: str, event: EventDict) -> EventDict:
    return structlog.processors.format_exc_info(logger_, "error" if level == "exception" else level, event)


def _render_json(_logger: object, level: str, event: EventDict) -> str:
    priority = _JOURNAL_LEVELS.get(level, _JOURNAL_LEVELS["error"])
    return f"<{priority}>{_encode_json(event)}"


def _render_fields(_logger: object, level: str, event: EventDict) -> str | tuple[tuple[str], dict[str, Any]]:
    line = _render_json(_logger, level, event)
    if _SEARCHED_BY.isdisjoint(event):
        return line
    named = [(f"DMNOTID_{name.upper()}", str(event[name])) for name in JOURNAL_FIELDS if event.get(name) is not None]
    return (line,), {"fields": _fields_of_line(line) + named}


def _fields_of_line(line: str) -> list[tuple[str, str]]:
    """Return the fields that a line `<6>{…}` becomes when the journal reads it."""
    priority, _, message = line[1:].partition(">")
    return [("MESSAGE", message), ("PRIORITY", priority), ("SYSLOG_IDENTIFIER", "dmnotid")]


def _make_ink(_logger: object, _level: str, event: EventDict) -> EventDict:
    ink = {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
    if "exception" in event:
        ink["exception"] = "\n".join(map(printable, event["exception"].split("\n")))
    return {key: value for key, value in ink.items() if value is not None}


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal would act on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DiscardLog:
    """Tells the first few events of a kind in each interval (seconds), and counts the rest into one line at its end.

    Bound: one counter for each kind (a reason word, a problem). The timer runs only while there is something to say.
    """

    def __init__(self, interval: float) -> None:
        """Nothing is logged or scheduled before the first event."""
        self.interval = interval
        self._seen: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, discard: Discard, source: object, times: int = 1) -> None:
        """Log or count a discard, or so many alike; a running event loop is needed."""
        for _ in range(self.tells(discard.reason, times)):
            _level_of(discard)(
                "datagram discarded",
                reason=discard.reason,
                server_id=None if discard.server_id is None else shortened(discard.server_id, MAX_SHOWN),
                notification_id=discard.notification_id,
                source=str(source),
                problem=shortened(str(discard), MAX_SHOWN),
            )

    def tells(self, reason: str, times: int = 1) -> int:
        """Count events of a kind, and say how many are to be told one by one; a running event loop is needed."""
        before = self._seen[reason]
        self._seen[reason] = before + times
        self._begin()
        return max(min(times, FIRST_DISCARDS - before), 0)

    def _begin(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self.flush)

    def flush(self) -> None:
        """End the interval: say how many were only counted, if any."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for reason, count in sorted(self._seen.items()):
            if count > FIRST_DISCARDS:
                logger.warning(
                    "datagrams discarded", reason=reason, count=count - FIRST_DISCARDS, interval=self.interval
                )
        self._seen.clear()


def _level_of(discard: Discard) -> Callable[..., object]:
    odd = isinstance(discard, Duplicate) and not discard.same_content
    return logger.warning if odd or isinstance(discard, _SUSPICIOUS) else logger.info
