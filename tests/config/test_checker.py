"""Typed reading: all problems at once, each with its place and path; what keys mean is tested in test_loading."""

from pathlib import Path

import pytest

from dmnotid.config.checker import Choice, Duration, Number, Reader, Value, read_boolean, read_path, read_some_text
from dmnotid.config.tree import compose
from dmnotid.errors import ConfigError

FILE = Path("some.yaml")


def reading(text: str) -> Value:
    return Value(compose(text), "", Reader(FILE, {}))


def problems(value: Value) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        value.reader.warnings()
    return [str(problem).removeprefix(f"{FILE}:") for problem in caught.value.problems]


def test_all_problems_are_found_at_once_each_with_its_place() -> None:
    root = reading("levle: low\ncount: many\nflag: 1\ncount: 2\nend: 5\n")
    found = root.mapping(("count", "level", "flag", "end"))
    assert found["count"].attempt(Number(1, 9), 5) == 5
    assert found["flag"].attempt(read_boolean, default=True) is True
    assert found["end"].attempt(Duration(0), 7.0) == 7.0
    assert problems(root) == [
        "1:1: levle: unknown key; did you mean level?",
        "2:8: count: is text; expected a whole number from 1 to 9",
        "3:7: flag: is a number; expected true or false",
        "4:1: count: is given twice, first in line 2",
        "5:6: end: has no unit; expected a whole number with its unit: 500ms, 30s, 10m, 24h or 7d",
    ]


def test_values_are_read() -> None:
    root = reading("{n: 12, flag: no, word: low, time: 0, path: ./x, list: [1, 2]}")
    found = root.mapping(("n", "flag", "word", "time", "path", "list"))
    assert Number(1, 12)(found["n"]) == 12
    assert read_boolean(found["flag"]) is False
    assert Choice("low", "high")(found["word"]) == "low"
    assert Duration(0)(found["time"]) == 0
    assert read_path(found["path"]) == Path("x")
    assert found["list"].each(Number(1, 2), "numbers") == (1, 2)
    assert root.reader.warnings() == ()
    assert root.reader.given["list[1]"].node.column == 60


TRUE = ("true", "True", "yes", "on", "ON", "!!bool yes")
FALSE = ("false", "False", "no", "off", "OFF", "!!bool no")


@pytest.mark.parametrize("word", TRUE + FALSE)
def test_boolean_is_read_in_every_word_of_yaml(word: str) -> None:
    assert read_boolean(reading(word)) is (word in TRUE)


def test_number_with_many_digits_is_refused() -> None:
    """Python's int() refuses them too, with an exception of its own."""
    root = reading("9" * 5_000)
    root.attempt(Number(1, 1_000), 1)
    assert problems(root) == [f"1:1: {'9' * 20} is out of range; expected a whole number from 1 to 1000"]


def test_item_with_a_problem_leaves_a_gap() -> None:
    root = reading("[a, 1, b]")
    assert [str(item) for item in root.each(read_some_text, "words")] == ["a", "None", "b"]
    assert problems(root) == ["1:5: [1]: is a number to YAML; expected text: put it in quotes"]


@pytest.mark.parametrize("text", ["{hunter2: 1}", "{hunter2: }", "{'hunter2=': 1}"])
def test_key_that_can_be_a_secret_is_not_named(text: str) -> None:
    root = reading(text)
    root.mapping(("file",), secretive=text == "{hunter2: 1}")
    assert problems(root) == ["1:2: unknown key; known keys here are file"]


def test_conflict_is_reported_at_the_first_key_that_is_given() -> None:
    root = reading("{b: 1, c: x}")
    root.mapping(("a", "b", "c"))
    root.reader.conflict(("a", "b"), "do not fit")
    root.reader.given["c"].wrong("is wrong")
    # The default of a wrong key is not held against other keys.
    root.reader.conflict(("b", "c"), "do not fit")
    assert problems(root) == ["1:5: a: do not fit", "1:11: c: is wrong"]
