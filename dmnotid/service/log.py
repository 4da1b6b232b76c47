"""The log: one line an event, readable on a terminal, JSON with a journal level elsewhere.

What came from the network or from a hook is ink: no control character of it reaches a terminal or starts a new line. A
flood of discards is counted, not narrated.
"""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
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
)

FIRST_DISCARDS: Final = 5
"""How many discards of a reason are logged one by one in each interval."""

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
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
    """Writes finished lines. A reader that went away (a closed pipe, a full disk) is no reason to stop serving."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError:
            pass

    debug = info = warning = error = critical = msg


def configure(level: str = "info", form: str = "auto", stream: TextIO | None = None) -> None:
    """Send the log to `stream` (standard output by default) from `level` up.

    `form` is "text", "json", or "auto": text on a terminal, JSON lines elsewhere.
    """
    target = sys.stdout if stream is None else stream
    text = form == "text" or (form == "auto" and target.isatty())
    structlog.configure(
        processors=_text_processors(colours=target.isatty() and not os.environ.get("NO_COLOR"))
        if text
        else [_add_time, _tidy_exception, _render_json],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: _Lines(target),
        cache_logger_on_first_use=False,
    )


def _text_processors(*, colours: bool) -> list[structlog.typing.Processor]:
    return [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
        _make_ink,
        structlog.dev.ConsoleRenderer(
            colors=colours, exception_formatter=structlog.dev.plain_traceback, pad_event=18, sort_keys=False
        ),
    ]


def _add_time(_logger: object, level: str, event: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"event": event.pop("event"), "level": level, "time": now, **event}


def _tidy_exception(logger_: object, level: str, event: EventDict) -> EventDict:
    return structlog.processors.format_exc_info(logger_, "error" if level == "exception" else level, event)


def _render_json(_logger: object, level: str, event: EventDict) -> str:
    priority = _JOURNAL_LEVELS.get(level, _JOURNAL_LEVELS["error"])
    return f"<{priority}>{json.dumps(event, default=str)}"


def _make_ink(_logger: object, _level: str, event: EventDict) -> EventDict:
    known = {key: value for key, value in event.items() if value is not None}
    return {key: printable(value) if isinstance(value, str) else value for key, value in known.items()}


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal would act on."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DiscardLog:
    """Logs the first few discards of a reason in each interval (seconds), and counts the rest into one line at its end.

    Bound: one counter for each reason word. The timer runs only while there is something to say.
    """

    def __init__(self, interval: float) -> None:
        """Nothing is logged or scheduled before the first discard."""
        self.interval = interval
        self._seen: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def note(self, discard: Discard, source: object) -> None:
        """Log or count one discard; a running event loop is needed."""
        self._seen[discard.reason] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self.flush)
        if self._seen[discard.reason] <= FIRST_DISCARDS:
            _level_of(discard)(
                "discarded",
                reason=discard.reason,
                server_id=discard.server_id,
                notification_id=discard.notification_id,
                source=str(source),
                problem=str(discard),
            )

    def flush(self) -> None:
        """End the interval: say how many discards were only counted, if any."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for reason, count in sorted(self._seen.items()):
            if count > FIRST_DISCARDS:
                logger.warning("discards", reason=reason, count=count - FIRST_DISCARDS, interval=self.interval)
        self._seen.clear()


def _level_of(discard: Discard) -> Callable[..., object]:
    odd = isinstance(discard, Duplicate) and not discard.same_content
    return logger.warning if odd or isinstance(discard, _SUSPICIOUS) else logger.info
