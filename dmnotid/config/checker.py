"""Typed reading of YAML nodes: all problems of a file at once, each with its place and key path.

Knows nothing of what the keys mean. Text that can be a misplaced secret never gets into a message: unknown keys of a
secretive mapping, keys without a value, and the values of secrets.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from dmnotid.config.durations import DURATION_EXPECTED, MAX_DURATION, parse_duration, spell
from dmnotid.config.files import CheckPath
from dmnotid.config.tree import KINDS, RESOLVED_KINDS, Node, Wrong, find_invisible
from dmnotid.config.values import path_from
from dmnotid.errors import ConfigError, ConfigProblem
from dmnotid.sentences import MAX_SHOWN, shortened, suggest

T = TypeVar("T")
D = TypeVar("D")

# Only a key that looks like a name is repeated in a path.
_NAME: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,39}"
# YAML 1.1 has all of these words, in several cases.
_BOOLEANS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Reader:
    """Collects the problems and warnings of one file, and has what the readers of single keys need to know."""

    def __init__(self, file: Path, environ: Mapping[str, str], check_path: CheckPath | None = None) -> None:
        # The configuration file: relative paths count from its directory.
        self.file = file
        # The environment, for the directory of systemd's credentials.
        self.environ = environ
        # Applied to every file that a key names, before it is read.
        self.check_path = check_path
        # Every value that the file gives, by its path.
        self.given: dict[str, Value] = {}
        # Every problem so far, in the order in which the checks found them.
        self._problems: list[ConfigProblem] = []
        # Settings that are accepted but probably unintended, in the same order.
        self._warnings: list[ConfigProblem] = []
        # Paths with a problem.
        self._unsound: set[str] = set()

    def sound(self, *paths: str) -> bool:
        """Return whether neither these keys nor the sections around them have a problem."""
        # A section that is wrong gives its keys their defaults, which are not what the file means.
        return self._unsound.isdisjoint({*paths, *(path.rpartition(".")[0] for path in paths)})

    def add_problem(self, value: "Value", path: str, message: str) -> None:
        """Add a problem at the place of `value`."""
        self._unsound.add(path)
        self._problems.append(value._replace(path=path).problem(message))

    def add_warning(self, value: "Value", message: str) -> None:
        """Add a warning: the value is accepted but probably unintended."""
        self._warnings.append(value.problem(message))

    def conflict(self, paths: tuple[str, ...], message: str) -> None:
        """Add a problem of keys that do not fit each other: at the first that the file gives, with the first path.

        Ignored if one of the keys has a problem itself: its default is not what the file means.
        """
        if self.sound(*paths):
            self.add_problem(next(self.given[path] for path in paths if path in self.given), paths[0], message)

    def warnings(self) -> tuple[ConfigProblem, ...]:
        """Return the warnings in the order of the file. Raises ConfigError if there is any problem."""
        if self._problems:
            raise ConfigError(tuple(sorted(self._problems, key=_position)))
        return tuple(sorted(self._warnings, key=_position))


def _position(problem: ConfigProblem) -> tuple[int, int]:
    # By column too, because a mapping in braces has several keys in one line.
    return problem.line, problem.column


class Value(NamedTuple):
    """A node, its path as messages show it, and the reader that collects its problems."""

    node: Node
    path: str
    reader: Reader

    def problem(self, message: str) -> ConfigProblem:
        """Return a problem of this value, with its place."""
        return ConfigProblem(str(self.reader.file), self.node.line, self.node.column, self.path, message)

    def wrong(self, message: str) -> None:
        """Add a problem of this value, with the first invisible character of the value."""
        # A pasted space or mark is often the reason why a value that looks right is wrong.
        found = find_invisible(self.node.text)
        note = f" (it has {found}, which is invisible)" if found and found not in message else ""
        self.reader.add_problem(self, self.path, f"{message}{note}")

    def attempt(self, read: Callable[["Value"], T], default: D) -> T | D:
        """Read this value; if it is wrong, add the problem and return the default."""
        try:
            return read(self)
        except Wrong as wrong:
            self.wrong(str(wrong))
            return default

    def of(self, kind: str, expected: str) -> Node:
        """Return the node if it is of that kind. Raises Wrong."""
        if self.node.kind != kind:
            # After a space, YAML takes # and the rest of the line for a comment, which leaves the value empty.
            lost = ": put text that begins with # in quotes" if self.node.kind == "null" and self.node.commented else ""
            raise Wrong(f"is {KINDS[self.node.kind]}; expected {expected}{lost}")
        return self.node

    def free_text(self, expected: str) -> str:
        """Return any text. Raises Wrong, with advice if YAML takes the text for another kind of value."""
        if self.node.kind in RESOLVED_KINDS:
            raise Wrong(f"is {KINDS[self.node.kind]} to YAML; expected {expected}: put it in quotes")
        return self.of("str", expected).text

    def items(self, expected: str) -> list["Value"]:
        """Return the items of a list. Raises Wrong for anything else and for an empty list."""
        items = self.of("seq", expected).items
        if not items:
            raise Wrong(f"is an empty list; expected {expected}")
        values = [Value(item, f"{self.path}[{index}]", self.reader) for index, item in enumerate(items)]
        # A check of several keys reports its problem at the place of an item.
        self.reader.given.update((value.path, value) for value in values)
        return values

    def each(self, read: Callable[["Value"], T], expected: str) -> tuple[T, ...]:
        """Read each item of a list. Raises Wrong if this is not a list; problems of items are added.

        An item with a problem leaves a gap: the file is refused anyway, and the others keep their index.
        """
        return tuple(item.attempt(read, None) for item in self.items(expected))  # type: ignore[misc]

    def entries(self, expected: str = "a mapping", *, secretive: bool = False) -> Iterator[tuple["Value", "Value"]]:
        """Yield the keys of a mapping and their values. Raises Wrong if this is not a mapping.

        Keys that are not text and repeated keys are problems, and are left out. A key that can be a misplaced secret
        is not repeated in messages: in a secretive mapping, without a value, or unlike a name.
        """
        seen: dict[str, int] = {}
        for node, found in self.of("map", expected).pairs:
            nameless = secretive or found.kind == "null" or not re.fullmatch(_NAME, node.text)
            # A problem of a nameless key is reported with the path of its mapping.
            key = Value(node, self.path if nameless else self.child(node.text), self.reader)
            if node.kind == "merge":
                key.wrong("merge keys (<<) are not supported; write the keys out")
            elif node.kind != "str":
                quotes = ": put it in quotes" if node.kind in RESOLVED_KINDS else ""
                key.wrong(f"the key is {KINDS[node.kind]} to YAML; expected a name{quotes}")
            elif node.text in seen:
                key.wrong(f"is given twice, first in line {seen[node.text]}")
            else:
                seen[node.text] = node.line
                yield key, Value(found, key.path, self.reader)

    def mapping(
        self, known: Collection[str], expected: str = "a mapping", *, secretive: bool = False
    ) -> dict[str, "Value"]:
        """Return the values of the known keys of a mapping; every other key is a problem. Raises Wrong as `entries`."""
        found: dict[str, Value] = {}
        for key, value in self.entries(expected, secretive=secretive):
            name = key.node.text
            if name not in known:
                # Other programs spell such keys with hyphens.
                hint = suggest(name.replace("-", "_"), known) or f"known keys here are {', '.join(known)}"
                key.wrong(f"unknown key; {hint}")
                continue
            found[name] = value._replace(path=self.child(name))
            self.reader.given[found[name].path] = found[name]
        return found

    def child(self, key: str) -> str:
        """Return the path of a key of this mapping."""
        return f"{self.path}.{key}".lstrip(".")


# --- Readers of single values: each returns the value or raises Wrong ------------------------------------------------


def read_text(value: Value, expected: str = "text") -> str:
    """Read text without NUL, the empty text included."""
    text = value.free_text(expected)
    # Paths, arguments and environment variables end at a NUL.
    if "\0" in text:
        raise Wrong(f"has a NUL; expected {expected} without one")
    # An escape such as \ud800 in double quotes makes one, and UTF-8 cannot encode it.
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise Wrong(f"has half of a surrogate pair; expected {expected}")
    return text


def read_some_text(value: Value, expected: str = "text") -> str:
    """Read text that is not empty."""
    text = read_text(value, expected)
    if not text:
        raise Wrong(f"is empty; expected {expected}")
    return text


def read_path(value: Value) -> Path:
    """Read a path; a relative one counts from the directory of the configuration file."""
    text = read_some_text(value, "a path")
    if text.startswith("~"):
        raise Wrong("begins with ~, which is not expanded; write the whole path")
    return value.reader.file.parent / path_from(text)


def read_boolean(value: Value) -> bool:
    """Read true or false, in any word that YAML 1.1 has for them."""
    word = value.of("bool", "true or false").text.lower()
    if word not in _BOOLEANS:
        raise Wrong("is neither true nor false")
    return _BOOLEANS[word]


class Number:
    """Reads a whole number of a range, in plain decimal digits; `unit` is for the documentation."""

    def __init__(self, low: int, high: int, unit: str = "") -> None:
        self.low, self.high, self.unit = low, high, unit

    def __call__(self, value: Value) -> int:
        """Read a value; raises Wrong."""
        expected = f"a whole number from {self.low} to {self.high}"
        text = value.of("int", expected).text
        # YAML 1.1 also reads 0644 as octal, 1:30 in base 60, and 1_000 without the underscore.
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
            raise Wrong(f"{shown(text)} is not in plain decimal digits; expected {expected}")
        # No limit has that many digits, and int() has one of its own.
        if len(text) > 20 or not self.low <= int(text) <= self.high:  # noqa: PLR2004
            raise Wrong(f"{text[:20]} is out of range; expected {expected}")
        return int(text)


class Duration:
    """Reads a duration of at least `low` seconds; if it is `optional`, null means that there is no limit."""

    def __init__(self, low: float, *, optional: bool = False) -> None:
        self.low, self.optional = low, optional

    def __call__(self, value: Value) -> float | None:
        """Read a value, as seconds; raises Wrong."""
        # Only if null has a meaning: an empty value is otherwise a value that was forgotten.
        if self.optional and value.node.kind == "null":
            return None
        if value.node.kind in {"int", "float"} and value.node.text != "0":
            raise Wrong(f"has no unit; expected {DURATION_EXPECTED}")
        # 0 is the same in each unit, so it needs none.
        text = "0" if value.node.kind == "int" else value.of("str", "a duration").text
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            raise Wrong(str(error)) from None
        if not self.low <= seconds <= MAX_DURATION:
            raise Wrong(f"{text} is out of range; expected {spell(self.low)} to {spell(MAX_DURATION)}")
        return seconds


class Choice:
    """Reads one of some words."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, value: Value) -> str:
        """Read a value; raises Wrong."""
        expected = f"one of {', '.join(self.words)}"
        text = value.of("str", expected).text
        if text not in self.words:
            raise Wrong(f"is {shown(text)}; expected {expected}")
        return text


def shown(text: str) -> str:
    """Return text of the file for a message: quoted, escaped, and shortened."""
    return repr(shortened(text, MAX_SHOWN))
