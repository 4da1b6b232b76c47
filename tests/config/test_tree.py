"""The reader of YAML files by itself: places, all problems at once, bounds; what keys mean is in test_configfile.py."""

import os
from pathlib import Path

import pytest

from dmnotid.config.tree import (
    MAX_DEPTH,
    Reader,
    Value,
    Wrong,
    boolean,
    choice,
    compose,
    decode,
    duration,
    parse_duration,
    read_regular,
    some_text,
    spell,
    whole,
)

FILE = Path("some.yaml")


def reading(text: str) -> tuple[Reader, Value]:
    return Reader(FILE, {}), Value(compose(text), "")


def test_nodes_know_where_they_stand() -> None:
    root = compose("a: 1\nb:\n  - x\n  - {c: yes}\n")
    (_, one), (_, two) = root.pairs
    assert (one.kind, one.line, one.column, one.text) == ("int", 1, 4, "1")
    assert [(item.kind, item.line, item.column) for item in two.items] == [("str", 3, 5), ("map", 4, 5)]


def test_all_problems_at_once_each_with_its_place() -> None:
    reader, root = reading("count: many\nlevle: low\nflag: 1\ncount: 2\n")
    with reader.section(root) as section:
        assert section.take("count", whole(1, 9), 5) == 5
        assert section.take("level", choice({"low": 1, "high": 2}), 2) == 2
        assert section.take("flag", boolean, default=True) is True
        assert section.need("name", some_text, "", "a name") == ""
    assert sorted(map(str, reader.problems)) == [
        "some.yaml:1:1: name: is missing, a name is expected",
        "some.yaml:1:8: count: is text, a whole number from 1 to 9 is expected",
        "some.yaml:2:1: levle: unknown key: did you mean level?",
        "some.yaml:3:7: flag: is a number, true or false is expected",
        "some.yaml:4:1: count: is given twice, first in line 1",
    ]


def test_a_secretive_mapping_names_no_key_that_it_does_not_know() -> None:
    reader, root = reading("hunter2: 1\n")
    with reader.section(root, secretive=True):
        pass
    assert len(reader.problems) == 1
    assert "hunter2" not in str(reader.problems[0])


@pytest.mark.parametrize(
    ("text", "column"),
    [("- " * 100_000, 2 * MAX_DEPTH + 1), ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), MAX_DEPTH + 1)],
)
def test_depth_is_bounded(text: str, column: int) -> None:
    with pytest.raises(Wrong, match="nested deeper than 32 levels") as caught:
        compose(text)
    assert caught.value.place == (1, column)


def test_brackets_without_end() -> None:
    """Some versions of libyaml find it out themselves, further on: they read ahead where a key may begin."""
    with pytest.raises(Wrong, match=r"nested deeper than 32 levels|nesting depth") as caught:
        compose("[" * 100_000)
    assert caught.value.place >= (1, MAX_DEPTH + 1)


def test_depth_up_to_the_bound() -> None:
    assert compose("[" * MAX_DEPTH + "]" * MAX_DEPTH).kind == "seq"


def test_text_that_is_no_text() -> None:
    with pytest.raises(Wrong, match="not UTF-8") as caught:
        decode(b"a: b\nc: \xff\n")
    assert caught.value.place == (2, 4)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(Wrong, match="is no regular file"):
            read_regular(path, 10)
    (tmp_path / "file").write_bytes(b"0123456789")
    assert read_regular(tmp_path / "file", 10)[0] == b"0123456789"
    with pytest.raises(Wrong, match="is larger than 9 octets"):
        read_regular(tmp_path / "file", 9)


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("10m", 600), ("24h", 86_400), ("7d", 604_800), ("0", 0)]
)
def test_durations_both_ways(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(spell(seconds)) == seconds


@pytest.mark.parametrize(("text", "said"), [("d: 30", "has no unit"), ("d: -1s", "is no duration"), ("d: 0", "range")])
def test_durations_that_are_none(text: str, said: str) -> None:
    reader, root = reading(text)
    with reader.section(root) as section:
        section.take("d", duration(0.001), 1.0)
    assert said in str(reader.problems[0])
