"""The log: one record per event, as a line of text on a terminal, in the systemd journal as fields, elsewhere as JSON.

Text from the network or a hook is escaped before it is logged: no control character of it reaches a terminal or starts
a new line.

In the journal, the message of a record is a sentence, and its keys are searchable fields (DMNOTID_SERVER_ID=…). If the
journal does not take a record, the sentence is written as a line that begins with its level (`<6>`).
"""

import json
import os
import re
import socket
import stat
import sys
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from dmnotid.host.journald import Journald, leads_to_journal
from dmnotid.host.text import printable

MAX_VALUE_OCTETS: Final = 1_024
"""Maximum number of octets of one text in a log line, escaped and encoded; a longer text ends with an ellipsis."""

# The keys of texts that are not shortened: a traceback, and a line of a hook, which was cut when it was read.
_WHOLE: Final = frozenset({"exception", "line"})

# Maximum number of octets for one character: a pair of surrogates in JSON.
_WIDEST: Final = 12

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
# The levels of syslog(3).
_JOURNAL_LEVELS: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}

# What the name of a field of the journal must not contain.
_NO_NAME: Final = re.compile("[^A-Z0-9_]")

_encode_json: Final = json.JSONEncoder(default=str).encode

logger: FilteringBoundLogger = structlog.get_logger()
"""The logger of the whole program."""

Subscriber = Callable[[Mapping[str, Any]], None]

# Functions that get each record.
_subscribers: Final[list[Subscriber]] = []


class Event(NamedTuple):
    """What the records of one event have in common.

    `sentence` is a format string over the keys of a record, and `others` are those for records without one of its keys.
    `message_id` is the event's id in the systemd journal (128 bits in hex), if it has one.
    """

    sentence: str
    message_id: str | None = None
    others: tuple[str, ...] = ()


_NO_EVENTS: Final[Mapping[str, Event]] = {}


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
            # In the form of the line after it, because one program reads both.
            report = f"{'<4>' if line[:1] == '<' else ''}log lines dropped: {self._dropped}"
            if line[:1] == "{":
                report = _encode_json({"event": "log lines dropped", "level": "warning", "count": self._dropped})
            line = f"{report}\n{line}"
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


def configure(
    level: str = "info", form: str = "auto", stream: TextIO | None = None, events: Mapping[str, Event] = _NO_EVENTS
) -> None:
    """Send the log to `stream` (standard output by default) from `level` up.

    `form` is "text", "json", or "auto": text on a terminal, JSON elsewhere. In the systemd journal both "text" and
    "auto" send records with fields. `events` has the sentences.
    """
    target = sys.stdout if stream is None else stream
    in_journal = False
    if form != "json":
        # A stream of a test may have no descriptor.
        with suppress(OSError, ValueError):
            in_journal = leads_to_journal(target.fileno(), os.environ.get("JOURNAL_STREAM"))
    journald: Journald | None = None
    rest: list[Processor]
    if in_journal:
        # Without a channel, records remain lines.
        with suppress(OSError):
            journald = Journald()
        rest = [partial(_shorten, _octets_in_json), partial(_render_fields, events)]
    elif form == "text" or (form == "auto" and target.isatty()):
        # https://no-color.org: any value but the empty one turns colours off.
        colours = target.isatty() and not os.environ.get("NO_COLOR")
        plain = structlog.dev.plain_traceback
        rest = [
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _escape,
            # The renderer quotes a text that contains a space.
            partial(_shorten, lambda text: len(repr(text).encode()) - len("''")),
            structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain, sort_keys=False),
        ]
    else:
        rest = [partial(_shorten, _octets_in_json), _render_json]
    lines = _Lines(target, journald)
    structlog.configure(
        processors=[structlog.processors.format_exc_info, partial(_publish, events), *rest],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: lines,
        # A reload may change level and format.
        cache_logger_on_first_use=False,
    )


def subscribe(callback: Subscriber) -> Callable[[], None]:
    """Call `callback` with each record that is logged from now on, until the returned function is called.

    A record has the keys `at` (POSIX seconds), `level`, `event`, `sentence`, and its own. The callback must neither
    raise nor log.
    """
    _subscribers.append(callback)
    return lambda: _subscribers.remove(callback)


def _publish(events: Mapping[str, Event], _logger: object, level: str, event: EventDict) -> EventDict:
    if _subscribers:
        facts = {"at": time.time(), "level": level, "event": event["event"], "sentence": _sentence(events, event)}
        record = _shorten(_octets_in_json, None, level, facts | dict(event))
        for callback in tuple(_subscribers):
            callback(record)
    return event


def _sentence(events: Mapping[str, Event], event: EventDict) -> str:
    name = event["event"]
    # An event without a sentence has its name, and most have a problem.
    known = events.get(name) or Event(f"{name}: {{problem}}", others=(name,))
    for sentence in (known.sentence, *known.others):
        with suppress(KeyError):
            return printable(sentence.format_map(event))
    return str(name)


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


def _render_json(_logger: object, level: str, event: EventDict) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return _encode_json({"event": event.pop("event"), "level": level, "time": now, **event})


def _render_fields(
    events: Mapping[str, Event], _logger: object, level: str, event: EventDict
) -> tuple[tuple[str], dict[str, Any]]:
    priority, sentence = _JOURNAL_LEVELS.get(level, _JOURNAL_LEVELS["error"]), _sentence(events, event)
    # A traceback is the only message of several lines.
    message = f"{sentence}\n{_escape_traceback(event['exception'])}" if "exception" in event else sentence
    fields = [("MESSAGE", message), ("PRIORITY", str(priority)), ("SYSLOG_IDENTIFIER", "dmnotid")]
    # Only events that docs/events.md explains have an id, and not all of them.
    known = events.get(event["event"])
    if known is not None and known.message_id is not None:
        fields.append(("MESSAGE_ID", known.message_id))
    for key, value in event.items():
        if value is not None:
            text = value if isinstance(value, str) else _encode_json(value)
            fields.append((f"DMNOTID_{_NO_NAME.sub('_', key.upper())}", text))
    return (f"<{priority}>{sentence}",), {"fields": fields}


def _escape_traceback(text: str) -> str:
    # Only its line breaks are kept.
    return "\n".join(map(printable, text.split("\n")))


def _escape(_logger: object, _level: str, event: EventDict) -> EventDict:
    escaped = {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}
    if "exception" in event:
        escaped["exception"] = _escape_traceback(event["exception"])
    return {key: value for key, value in escaped.items() if value is not None}
