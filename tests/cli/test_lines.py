"""The lines of `follow` and `discards`, without a daemon."""

import pytest

from dmnotid.cli.discards import lines_of as lines_of_discard
from dmnotid.cli.follow import line_of
from dmnotid.discards import MAX_KEPT_OCTETS
from tests.cli.examples import DISCARD, NOW


@pytest.mark.parametrize(("level", "prefix"), [("info", ""), ("warning", "warning: "), ("error", "error: ")])
def test_record_is_a_sentence_with_its_time_and_an_unusual_level(level: str, prefix: str) -> None:
    record = {"at": NOW, "level": level, "event": "session started", "sentence": "Session 7 has started"}
    time, _, rest = line_of(record).partition(" ")
    assert len(time) == len("19:53:20")
    assert rest == f"{prefix}Session 7 has started"


def test_discard_is_a_comment_and_its_octets() -> None:
    comment, octets = lines_of_discard(DISCARD | {"problem": "a\nb"}, NOW)
    assert comment.startswith("# ")
    assert comment.endswith(" digest-mismatch from 127.0.0.1:5000, server 'acme.example': a\\nb")
    assert octets == "0106"


def test_discarded_package_is_marked_as_one() -> None:
    assert list(lines_of_discard(DISCARD | {"package": True}, NOW))[1:] == ["package 0106"]


def test_discard_that_may_be_cut_is_marked() -> None:
    lines = list(lines_of_discard(DISCARD | {"octets": "00" * MAX_KEPT_OCTETS, "server": None}, NOW))
    assert len(lines) == 3
    assert lines[1].startswith(f"# the first {MAX_KEPT_OCTETS} octets")
    assert "server" not in lines[0].partition(": ")[0]


def test_empty_datagram_leaves_a_comment() -> None:
    assert list(lines_of_discard(DISCARD | {"octets": ""}, NOW))[1:] == ["# the datagram was empty"]
