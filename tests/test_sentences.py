"""The parts of sentences: cut texts, times and suggestions."""

import pytest

from dmnotid.sentences import shortened, show_time, suggest


@pytest.mark.parametrize(
    ("text", "most", "shown"), [("", 0, ""), ("abc", 3, "abc"), ("abcd", 3, "abc…"), ("abcd", 0, "…")]
)
def test_long_text_is_shortened_for_display(text: str, most: int, shown: str) -> None:
    assert shortened(text, most) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "1970-01-01T00:00:00Z"), (1_735_689_599.999, "2024-12-31T23:59:59Z"), (0xFFFF_FFFF, "2106-02-07T06:28:15Z")],
)
def test_time_is_shown_in_utc(seconds: float, shown: str) -> None:
    assert show_time(seconds) == shown


@pytest.mark.parametrize(
    ("name", "hint"), [("statsu", "did you mean status?"), ("STATUS", "did you mean status?"), ("bogus", ""), ("", "")]
)
def test_suggestion_is_the_nearest_known_name_or_none(name: str, hint: str) -> None:
    assert suggest(name, ("status", "sessions")) == hint
