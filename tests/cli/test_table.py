"""Columns, times and numbers."""

import calendar
import time

import pytest

from dmnotid.cli.table import columns, count_pending, counted, moment
from dmnotid.host.text import span


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [("SERVER", "N", "WHY"), ("a", "1,000", "x"), ("dm.example.com", "2", "")]
    assert columns(rows, right=[1]) == [
        "SERVER              N  WHY",
        "a               1,000  x",
        "dm.example.com      2",
    ]


def test_text_in_a_column_cannot_drive_the_terminal() -> None:
    assert columns([("\x1b[2J\n", "a")]) == ["\\x1b[2J\\n  a"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3_599, "59 min"), (3_600, "1 h"),
        (7_920, "2 h 12 min"), (86_399, "23 h 59 min"), (86_400, "1 d"), (1e7, "115 d"),
    ],
)  # fmt: skip
def test_span_has_one_or_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_moment_has_a_date_unless_it_is_of_today() -> None:
    noon = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))
    assert moment(noon, noon + 3_600) == "12:00:00"
    assert moment(noon, noon + 86_400) == "2026-11-29 12:00:00"
    assert moment(noon) == "2026-11-29 12:00:00"


def test_moment_after_2038_is_written_even_if_time_t_has_32_bits() -> None:
    # Noon in UTC, which is a time of that day or the next one in every zone.
    assert moment(calendar.timegm((2090, 6, 15, 12, 0, 0))).startswith(("2090-06-15 ", "2090-06-16 "))


def test_count_has_the_plural_of_its_noun() -> None:
    assert [counted(count, "session") for count in (0, 1, 1_003)] == ["0 sessions", "1 session", "1,003 sessions"]


def test_pending_sessions_have_the_age_of_the_oldest() -> None:
    assert [count_pending(count, 100, 160) for count in (0, 1, 2)] == [
        "no session pending",
        "1 session pending for 1 min",
        "2 sessions pending, the oldest for 1 min",
    ]
    assert count_pending(2) == "2 sessions pending"
