"""Durations: read strictly, and written in the largest unit."""

import re

import pytest

from dmnotid.config.durations import parse_duration, spell


@pytest.mark.parametrize(
    ("text", "seconds", "spelled"),
    [
        ("0", 0, "0"),
        ("0s", 0, "0"),
        ("500ms", 0.5, "500ms"),
        ("30s", 30, "30s"),
        ("600s", 600, "10m"),
        ("24h", 86_400, "1d"),
        ("25h", 90_000, "25h"),
        ("007d", 604_800, "7d"),
    ],
)
def test_duration_is_read_and_spelled(text: str, seconds: float, spelled: str) -> None:
    assert parse_duration(text) == seconds
    assert spell(seconds) == spelled
    assert parse_duration(spelled) == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "s", "-1s", "+1s", "1.5h", "1 s", "1S", "1h30m", "1w", "1s\n", "٣s", "1e3s", "9" * 13 + "s"]
)
def test_duration_is_refused_with_examples_of_others(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("500ms, 30s, 10m, 24h or 7d")):
        parse_duration(text)
