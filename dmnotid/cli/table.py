"""How commands write columns, times and numbers. It imports little, for `dmnotid status`."""

import time
from collections.abc import Collection, Iterable, Iterator

from dmnotid.host.text import local_time, printable, span


def columns(rows: Iterable[Iterable[str]], right: Collection[int] = ()) -> list[str]:
    """Return rows as lines in columns; those in `right` (from 0) end at the same place. Text in them is escaped."""
    # Escaped before it is measured, because an escaped character is wider.
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def titled(title: str, lines: Iterable[str], width: int = 12) -> Iterator[str]:
    """Put a title before the first of some lines, and spaces before the others."""
    for at, line in enumerate(lines):
        yield f"{'' if at else title:{width}} {line}"


def moment(at: float, now: float | None = None) -> str:
    """Write POSIX seconds in local time: `2026-11-26 17:21:27`, and without the date if that is the day of `now`."""
    then = local_time(at)
    # Year, month and day.
    today = now is not None and then[:3] == local_time(now)[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)


def counted(count: int, noun: str) -> str:
    """Write `1 session`, `2 sessions`, `1,003 sessions`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def count_pending(count: int, oldest: float | None = None, now: float = 0) -> str:
    """Write how many sessions are pending, and for how long the oldest one (accepted at POSIX seconds) has been."""
    if not count:
        return "no session pending"
    # The age of the queue is what an operator looks for: a session that does not start.
    age = "" if oldest is None else f"{', the oldest' if count > 1 else ''} for {span(now - oldest)}"
    return f"{counted(count, 'session')} pending{age}"
