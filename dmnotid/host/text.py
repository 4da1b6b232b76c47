"""Text for people. A module of its own, because `dmnotid status` imports little."""

import time

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def printable(text: str) -> str:
    """Return text with everything escaped that a terminal would interpret."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def span(seconds: float) -> str:
    """Write a length of time in one or two units: `12 s`, `3 min`, `2 h 11 min`, `5 d`."""
    # A clock that was set back makes the past the future.
    whole = max(int(seconds), 0)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        hours, minutes = divmod(whole // _MINUTE, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{whole // _DAY} d"


def local_time(seconds: float) -> time.struct_time:
    """Return POSIX seconds as local time; as UTC if time_t has 32 bits and ends before them, in 2038."""
    try:
        return time.localtime(seconds)
    except OverflowError:
        from datetime import UTC, datetime, timedelta  # noqa: PLC0415 - hardly ever needed

        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)).timetuple()
