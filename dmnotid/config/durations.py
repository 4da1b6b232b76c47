"""Durations as the configuration and the command line write them: `500ms`, `30s`, `10m`, `24h`, `7d`."""

import re
from typing import Final

from dmnotid.sentences import MAX_SHOWN, shortened

MAX_DURATION: Final = 3_650 * 86_400.0
"""Longest duration that a key accepts, in seconds."""

DURATION_EXPECTED: Final = "a whole number with its unit: 500ms, 30s, 10m, 24h or 7d"

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def parse_duration(text: str) -> float:
    """Return the seconds of `500ms`, `30s`, `10m`, `24h` or `7d`; 0 needs no unit. ValueError for any other text."""
    if text == "0":
        return 0.0
    # A number of 13 digits exceeds MAX_DURATION in any unit. \d would also match the digits of other scripts.
    found = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", text)
    if found is None:
        raise ValueError(f"{shortened(text, MAX_SHOWN)!r} is not a duration; expected {DURATION_EXPECTED}")
    return int(found[1]) * _UNITS[found[2]]


def spell(seconds: float) -> str:
    """Write seconds as a duration, in the largest unit that has no fraction."""
    # Whole milliseconds, because fractions such as 0.001 are not exact as floats.
    milliseconds = round(seconds * 1_000)
    for unit, size in reversed(_UNITS.items()):
        count, rest = divmod(milliseconds, round(size * 1_000))
        if count and not rest:
            return f"{count}{unit}"
    return "0"
