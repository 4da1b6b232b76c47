"""The log: one line per event, as text on a terminal, as JSON elsewhere.

Text from the network or a hook is escaped before it is logged: no control character of it reaches a terminal or starts
a new line.

If standard output leads to the systemd journal, each line begins with its level (`<6>`), and a record about a session
or a server is sent with searchable fields instead (DMNOTID_SERVER_ID=…). Lines cost less.
"""

import json
import os
import socket
import stat
import sys
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from dmnotid.host.journald import Journald, leads_to_journal
from dmnotid.host.text import printable

MAX_VALUE_OCTETS: Final = 1_024
"""Maximum number of octets of one text in a log line, escaped and encoded; a longer text ends with an ellipsis."""

_WHOLE: Final = frozenset({"exception", "line"})
"""The keys of texts that are not shortened: a traceback, and a line of a hook, which was cut when it was read."""

_WIDEST: Final = 12
"""Maximum number of octets for one character: a pair of surrogates in JSON."""

JOURNAL_FIELDS: Final = (
    "session", "server_id", "notification_id", "event", "reason", "attempt", "connection", "interface", "outcome",
    "source",
)  # fmt: skip
"""The keys of a record that become fields of the journal, as DMNOTID_ and the key in capitals."""

_SEARCHED_BY: Final = frozenset({"session", "server_id"})
"""A record that has one of these keys is sent with fields."""

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# The levels of syslog(3).
_JOURNAL_LEVELS: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}

_encode_json: Final = json.JSONEncoder(default=str).encode

logger: FilteringBoundLogger = structlog.get_logger()
"""The logger of the whole program."""


class _Lines:
    """Writes finished lines without blocking, and drops lines that can't be written at once.

    A reader that is gone or does not read (a closed or full pipe, a stopped terminal, a full disk) must not stop the
    daemon. The next line that is written reports how many were dropped.
    """

    def __init__(self, stream: TextIO, journald: Journald | None = None) -> None:
        # The stream that lines go to, past its buffer.
        self._stream = stream
        # Takes records that have fields; None if the stream does not lead to the journal.
        self._journald = journald
        if journald is not None:
            # A reload replaces this object, and its channel must not stay open.
            weakref.finalize(self, journald.close)
        # Number of lines dropped since the last one that was written.
        self._dropped = 0
        # The unwritten rest of one line.
        self._rest = b""
        # Lines do not pass the text layer of the stream, so they are encoded as it would do it.
        self._encoding = stream.encoding or "utf-8"
        try:
            # Writes octets without blocking and returns the number of octets written.
            self._write: Callable[[bytes], int] = _writer(self, stream.fileno())
        except (OSError, ValueError):
            # A stream without a descriptor, as tests use.
            self._write = lambda octets: stream.write(octets.decode(self._encoding)) and len(octets)

    def msg(self, line: str, fields: Sequence[tuple[str, str]] = ()) -> None:
        """Write a line, or send its fields instead if the journal takes them."""
        if fields and self._journald is not None:
            with suppress(OSError):
                self._journald.send(fields)
                return
        if self._dropped:
            line = f"{_report_dropped(self._dropped, before=line)}\n{line}"
        octets = f"{line}\n".encode(self._encoding, "backslashreplace")
        try:
            # Text that was printed to the stream before goes first.
            self._stream.flush()
            # The rest of an earlier line goes first, so that lines never merge.
            if self._rest:
                self._rest = self._rest[self._write(self._rest) :]
            if not self._rest:
                self._rest = octets[self._write(octets) :]
                self._dropped = 0
                return
        except (OSError, ValueError):
            pass
        self._dropped += 1

    debug = info = warning = error = critical = msg


def _writer(owner: object, descriptor: int) -> Callable[[bytes], int]:
    """Return a function that writes octets to a descriptor and never blocks. It and this raise OSError."""
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        # A socket cannot be opened once more through /proc (ENXIO), but each call can be non-blocking.
        sock = socket.socket(fileno=os.dup(descriptor))
        weakref.finalize(owner, sock.close)
        return lambda octets: sock.send(octets, socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # Other processes share the open file, and O_NONBLOCK would apply to them too: open it once more.
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            descriptor = os.open(f"/proc/self/fd/{descriptor}", flags)
            weakref.finalize(owner, os.close, descriptor)
    # A regular file has no reader to wait for.
    return partial(os.write, descriptor)


def _report_dropped(count: int, *, before: str) -> str:
    """Return a line in the form of the one that it is written before."""
    if before[:1] not in {"<", "{"}:
        return f"log lines dropped: {count}"
    render = _render_json if before[0] == "{" else _render_fields
    return str(render(None, "warning", {"event": "log lines dropped", "level": "warning", "count": count}))


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Send the log to `stream` (standard output by default) from `level` up.

    `form` is "text", "json", or "auto": text on a terminal, records with levels in the systemd journal, JSON elsewhere.
    """
    target = sys.stdout if stream is None else stream
    in_journal = form == "auto" and _is_journal(target)
    lines = _Lines(target, _open_journald() if in_journal else None)
    if form == "text" or (form == "auto" and target.isatty()):
        # https://no-color.org: any value but the empty one turns colours off.
        processors = _text_processors(colours=target.isatty() and not os.environ.get("NO_COLOR"))
    else:
        shorten = partial(_shorten, _octets_in_json)
        processors = [_add_time, _format_exception, shorten, _render_fields if in_journal else _render_json]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: lines,
        # A reload may change level and format.
        cache_logger_on_first_use=False,
    )


def _is_journal(target: TextIO) -> bool:
    # A stream of a test may have no descriptor.
    with suppress(OSError, ValueError):
        return leads_to_journal(target.fileno(), os.environ.get("JOURNAL_STREAM"))
    return False


def _open_journald() -> Journald | None:
    # Without a channel, records remain lines.
    with suppress(OSError):
        return Journald()
    return None


def _text_processors(*, colours: bool) -> list[Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _format_exception,
        _escape,
        partial(_shorten, _octets_in_text),
        structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        ),
    ]


def _add_time(_logger: object, level: str, event: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"event": event.pop("event"), "level": level, "time": now, **event}


def _format_exception(logger_: object, level: str, event: EventDict) -> EventDict:
    return structlog.processors.format_exc_info(logger_, "error" if level == "exception" else level, event)


def _shorten(size: Callable[[str], int], _logger: object, _level: str, event: EventDict) -> EventDict:
    """Shorten the texts of a record, the only place that does: `size` is their number of octets in a line."""
    for key, value in event.items():
        # Most texts are so short that they fit in any case.
        if isinstance(value, str) and len(value) * _WIDEST > MAX_VALUE_OCTETS and key not in _WHOLE:
            event[key] = fitted(value, MAX_VALUE_OCTETS, size)
    return event


def fitted(text: str, most: int, size: Callable[[str], int]) -> str:
    """Return text, or as much of its beginning as has a size of `most` together with an ellipsis.

    Each character must have a size of at least 1.
    """
    if len(text) <= most and size(text) <= most:
        return text
    # Escapes have different sizes, so the cut is searched: the size grows with the length of the text.
    kept = bisect_right(range(most), most, key=lambda length: size(f"{text[:length]}…")) - 1
    return f"{text[:kept]}…"


def _octets_in_json(text: str) -> int:
    return len(_encode_json(text)) - len('""')


def _octets_in_text(text: str) -> int:
    # The renderer quotes a text that contains a space.
    return len(repr(text).encode()) - len("''")


def _render_json(_logger: object, _level: str, event: EventDict) -> str:
    return _encode_json(event)


def _render_fields(_logger: object, level: str, event: EventDict) -> str | tuple[tuple[str], dict[str, Any]]:
    priority, message = _JOURNAL_LEVELS.get(level, _JOURNAL_LEVELS["error"]), _encode_json(event)
    line = f"<{priority}>{message}"
    if _SEARCHED_BY.isdisjoint(event):
        return line
    # The same three fields that the journal makes of a line `<6>{…}`.
    fields = [("MESSAGE", message), ("PRIORITY", str(priority)), ("SYSLOG_IDENTIFIER", "dmnotid")]
    fields += [(f"DMNOTID_{name.upper()}", str(event[name])) for name in JOURNAL_FIELDS if event.get(name) is not None]
    return (line,), {"fields": fields}


def _escape(_logger: object, _level: str, event: EventDict) -> EventDict:
    escaped = {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
    if "exception" in event:
        # Only the line breaks of a traceback are kept.
        escaped["exception"] = "\n".join(map(printable, event["exception"].split("\n")))
    return {key: value for key, value in escaped.items() if value is not None}
