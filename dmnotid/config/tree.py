"""A YAML file read key by key: typed values that know their place, and every problem of the file at once.

Knows nothing of what the keys mean. No text that may be a misplaced secret gets into a message: unknown keys under a
secretive mapping, bare words, values of secrets.
"""

import os
import re
import stat
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn, Self, TypeVar

import yaml

from dmnotid.errors import ConfigProblem, UntrustedPath

T = TypeVar("T")
D = TypeVar("D")
CheckPath = Callable[[Path], None]
"""Raises UntrustedPath if another user can change what an absolute path leads to."""

MAX_DEPTH: Final = 32
"""How deep the YAML may nest: far more than any key needs, far less than what would hurt."""

MAX_DURATION: Final = 3_650 * 86_400.0

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_DURATION: Final = r"([0-9]{1,12})(ms|s|m|h|d)"
_DURATION_EXPECTED: Final = "a whole number with its unit is expected: 500ms, 30s, 10m, 24h or 7d"


# --- The file: octets, text, a tree of nodes ---------------------------------------------------------------------


class Wrong(Exception):
    """What is wrong and what is expected; `place` is line and column where they are not those of the value read."""

    def __init__(self, message: str, place: tuple[int, int] = (0, 0)) -> None:
        """Without a place it is that of the value being read."""
        super().__init__(message)
        self.place = place


def refuse(message: str, place: tuple[int, int] = (0, 0)) -> NoReturn:
    """Raise Wrong."""
    raise Wrong(message, place)


def position(problem: ConfigProblem) -> tuple[int, int]:
    """Return what problems are sorted by."""
    return problem.line, problem.column


def shown(text: str) -> str:
    """Text from the file for a message: quoted, escaped, not too long."""
    return repr(text) if len(text) <= 60 else f"{text[:60]!r} …"  # noqa: PLR2004 - what fits into a line


def read_regular(path: Path, limit: int, check_path: CheckPath | None = None) -> tuple[bytes, int]:
    """Return a regular file's octets and permission bits; with `check_path` only if the path passes it.

    What else could stand there (a FIFO, a device) is never opened, and what takes its place meanwhile can't block.
    """
    try:
        # Before the file is opened: nobody else can exchange it on a path that has passed.
        if check_path is not None:
            check_path(path.absolute())
        if not stat.S_ISREG(path.stat().st_mode):
            refuse(f"{path} is no regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, "rb", buffering=0) as stream:  # noqa: PTH123 - a descriptor, no path
            found = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(found):
                refuse(f"{path} is no regular file")
            octets = _read_up_to(stream.read, limit + 1)
    except UntrustedPath as error:
        # The check follows the path first, so it is the first to find that a component is missing.
        if isinstance(error.__cause__, OSError):
            refuse(f"{path} can't be read: {error.__cause__.strerror}")
        refuse(str(error))
    except OSError as error:
        refuse(f"{path} can't be read: {error.strerror}")
    except ValueError:
        refuse("is no path that this system can open")
    if len(octets) > limit:
        refuse(f"{path} is larger than {limit} octets")
    return octets, stat.S_IMODE(found)


def _read_up_to(read: Callable[[int], bytes | None], limit: int) -> bytes:
    octets = b""
    while len(octets) < limit and (more := read(limit - len(octets))):
        octets += more
    return octets


_NOT_IN_YAML: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # YAML 1.1, 5.1
)


def decode(octets: bytes) -> str:
    """Return the text of the file without a byte order mark."""
    octets = octets.removeprefix(BOM_UTF8)
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        before = octets[: error.start].decode()
        refuse(f"not UTF-8: {error.reason}", _place(before, len(before)))
    unfit = _NOT_IN_YAML.search(text)
    if unfit is not None:
        refuse(f"holds U+{ord(unfit[0]):04X}, which can't stand in YAML", _place(text, unfit.start()))
    return text


def _place(text: str, index: int) -> tuple[int, int]:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


class Node(NamedTuple):
    """A value as YAML sees it, with the place where it begins (from 1).

    `kind` is one of `KINDS`; `text` is for scalars, `items` for lists, `pairs` for mappings.
    """

    kind: str
    line: int
    column: int
    text: str = ""
    items: tuple["Node", ...] = ()
    pairs: tuple[tuple["Node", "Node"], ...] = ()


_YAML: Final = "tag:yaml.org,2002:"
KINDS: Final = {
    "str": "text",
    "int": "a number",
    "float": "a number with a fraction",
    "bool": "true or false",
    "null": "empty",
    "timestamp": "a date",
    "merge": "a merge key",
    "value": "a default key",
    "seq": "a list",
    "map": "a mapping",
    "tagged": "tagged with !",
}
_SEES_OTHERWISE: Final = frozenset({"int", "float", "bool", "timestamp", "merge", "value"})
"""What unquoted text may turn into."""

# The same marks and nearly the same messages as the other, and faster.
_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Final[Any] = yaml.resolver.Resolver()


def compose(text: str) -> Node:
    """Return the root of the one document in `text`.

    From events, not with the loader's own composer: the one in C has no bound on how deep it recurses, and crashes.
    """
    composer = _Composer()
    try:
        loader = _LOADER(text)
        try:
            while loader.check_event():
                composer.take(loader.get_event())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        refuse(f"not YAML: {_harmless(error.problem or 'no reason given')}{_hint(text, place)}", place)
    except (yaml.YAMLError, ValueError, OverflowError):  # the Python loader lets some of chr() and int() escape
        refuse("not YAML: an escape or a number that means nothing")
    if composer.root is None:
        refuse("the file is empty: servers and hook are expected")
    return composer.root


class _Composer:
    """Builds nodes from events, each `take`n in order. Bounds: one document, MAX_DEPTH levels."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[tuple[Any, list[Node]]] = []
        self._anchors: dict[str, Node | None] = {}

    def take(self, event: Any) -> None:  # noqa: ANN401 - yaml's events have no common typed base
        if isinstance(event, yaml.ScalarEvent):
            self._add(event, _scalar(event))
        elif isinstance(event, yaml.CollectionStartEvent):
            self._begin(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            start, children = self._open.pop()
            self._add(start, _collection(start, children))
        elif isinstance(event, yaml.AliasEvent):
            line, column = _mark(event)
            self._put(self._alias(event)._replace(line=line, column=column))
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            refuse("another document begins here, one is expected", _mark(event))

    def _begin(self, event: Any) -> None:  # noqa: ANN401
        if len(self._open) >= MAX_DEPTH:
            refuse(f"nested deeper than {MAX_DEPTH} levels", _mark(event))
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._open.append((event, []))

    def _add(self, event: Any, node: Node) -> None:  # noqa: ANN401
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        self._put(node)

    def _put(self, node: Node) -> None:
        if self._open:
            self._open[-1][1].append(node)
        else:
            self.root = node

    def _alias(self, event: Any) -> Node:  # noqa: ANN401
        # The name stays out of the message: an unquoted secret may begin with "*".
        if event.anchor not in self._anchors:
            refuse("an alias to nothing; text that begins with * needs quotes", _mark(event))
        node = self._anchors[event.anchor]
        if node is None:
            refuse("an alias to what it stands in", _mark(event))
        return node


def _mark(event: Any) -> tuple[int, int]:  # noqa: ANN401
    return event.start_mark.line + 1, event.start_mark.column + 1


def _scalar(event: Any) -> Node:  # noqa: ANN401
    tag = event.tag
    if tag is None or tag == "!":
        tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    kind = tag.removeprefix(_YAML)
    return Node(kind if kind in KINDS and kind not in {"seq", "map"} else "tagged", *_mark(event), event.value)


def _collection(event: Any, children: list[Node]) -> Node:  # noqa: ANN401
    kind = "seq" if isinstance(event, yaml.SequenceStartEvent) else "map"
    if event.tag not in {None, "!", _YAML + kind}:
        return Node("tagged", *_mark(event))
    if kind == "seq":
        return Node(kind, *_mark(event), items=tuple(children))
    return Node(kind, *_mark(event), pairs=tuple(zip(children[::2], children[1::2], strict=True)))


def _harmless(problem: str) -> str:
    """Return the loader's words without what they quote from the file: a token's name may stay, a name may not."""
    return re.sub(r""" (?:'(?!<)[^']{2,}'|'\w'|"[^"]{2,}")""", "", problem)


def _hint(text: str, place: tuple[int, int]) -> str:
    """Say what is usually meant where YAML stumbles."""
    lines = text.split("\n")
    line = lines[place[0] - 1] if 0 < place[0] <= len(lines) else ""
    at = line[place[1] - 1 : place[1]]
    if at == "\t":
        return " (YAML is indented by spaces, not by tabs)"
    if at and at in "@`%":
        return f" (text that begins with {at} needs quotes)"
    if re.search(r"\[[0-9A-Fa-f:.]*(%\w+)?\]:", line):
        return ' (an address in brackets needs quotes: "[::]:2948")'
    return ""


# --- The reader: nodes to typed values, problems collected on the way --------------------------------------------


class Value(NamedTuple):
    """A node and the path by which people know it."""

    node: Node
    path: str

    def of(self, kind: str, expected: str) -> Node:
        """Return the node if it is of that kind."""
        if self.node.kind != kind:
            refuse(f"is {KINDS[self.node.kind]}, {expected} is expected")
        return self.node

    def free_text(self, expected: str) -> str:
        """Return text that may be anything, so that it may look like something else to YAML."""
        if self.node.kind in _SEES_OTHERWISE:
            refuse(f"is {KINDS[self.node.kind]} to YAML, {expected} is expected: put it in quotes")
        return self.of("str", expected).text

    def items(self, expected: str) -> list["Value"]:
        """Return the items of a list that must not be empty."""
        items = self.of("seq", expected).items
        if not items:
            refuse(f"is an empty list, {expected} is expected")
        return [Value(item, f"{self.path}[{index}]") for index, item in enumerate(items)]


class Reader:
    """Collects what is wrong with one file, and hands out what is not."""

    def __init__(
        self,
        file: Path,
        environ: Mapping[str, str],
        check_path: CheckPath | None = None,
        *,
        credentials: bool = True,
    ) -> None:
        """All but `file` is kept for the functions that read the files that a key names."""
        self.file = file
        self.environ = environ
        self.check_path = check_path
        self.credentials = credentials
        self.problems: list[ConfigProblem] = []
        self.warnings: list[ConfigProblem] = []
        self.inline_secret: Value | None = None
        self._unsound: set[str] = set()

    def wrong(self, value: Value, message: str, path: str | None = None) -> None:
        """Note a problem at the place of `value`, under its path or another."""
        path = value.path if path is None else path
        self._unsound.add(path)
        self.problems.append(ConfigProblem(str(self.file), value.node.line, value.node.column, path, message))

    def warn(self, value: Value, message: str) -> None:
        """Note what is allowed and still worth a look."""
        self.warnings.append(ConfigProblem(str(self.file), value.node.line, value.node.column, value.path, message))

    def sound(self, *paths: str) -> bool:
        """Tell whether nothing was wrong with any of the keys, nor with the section it stands in.

        What depends on several keys is judged only then.
        """
        return self._unsound.isdisjoint({*paths, *(path.rpartition(".")[0] for path in paths)})

    def attempt(self, value: Value, read: Callable[[Value], T], default: D) -> T | D:
        """Read a value; the default, and a problem noted, where it is wrong."""
        try:
            return read(value)
        except Wrong as wrong:
            self.wrong(value, str(wrong))
            return default

    def each(self, value: Value, read: Callable[[Value], T], expected: str) -> list[tuple[Value, T]]:
        """Read each item of a list; those that are wrong are noted and left out. Raises Wrong for no list."""
        results: list[tuple[Value, T]] = []
        for item in value.items(expected):
            try:
                results.append((item, read(item)))
            except Wrong as wrong:
                self.wrong(item, str(wrong))
        return results

    def entries(
        self, value: Value, expected: str = "a mapping", *, secretive: bool = False
    ) -> Iterator[tuple[Value, Value]]:
        """Yield keys and values of a mapping, each with its path; what is wrong with a key is noted and left out.

        A key is not named in messages where it may be a misplaced secret: under `secretive`, without a value, or when
        it doesn't look like a name.
        """
        seen: dict[str, Value] = {}
        for key, node in value.of("map", expected).pairs:
            nameless = secretive or node.kind == "null" or not re.fullmatch(_NAME, key.text)
            path = value.path if nameless else f"{value.path}.{key.text}".lstrip(".")
            placed = Value(key, path)
            if key.kind == "merge":
                self.wrong(placed, "merge keys (<<) are not taken: write the keys out")
            elif key.kind != "str":
                quotes = ": put it in quotes" if key.kind in _SEES_OTHERWISE else ""
                self.wrong(placed, f"a key that is {KINDS[key.kind]} to YAML, a name is expected{quotes}")
            elif key.text in seen:
                self.wrong(placed, f"is given twice, first in line {seen[key.text].node.line}")
            else:
                seen[key.text] = placed
                yield placed, Value(node, path)

    def section(self, value: Value | None, *, secretive: bool = False, expected: str = "a mapping") -> "Section":
        """Return a mapping to read key by key; an absent one is empty, and what is no mapping is noted."""
        if value is None:
            return Section(self, None, [])
        entries = self.attempt(value, lambda found: list(self.entries(found, expected, secretive=secretive)), None)
        return Section(self, value if entries is not None else None, entries or [])

    def check_mode(self, mode: int) -> None:
        """Warn when the file holds a secret itself and others can read it."""
        if self.inline_secret is not None and mode & _READABLE_BY_OTHERS:
            message = f"group or others can read this file (mode {mode:04o}), and it holds a secret: chmod 600"
            self.warn(self.inline_secret, message)


_NAME: Final = r"[A-Za-z][A-Za-z0-9_.-]{0,39}"
_READABLE_BY_OTHERS: Final = stat.S_IRGRP | stat.S_IROTH
OPEN_TO_OTHERS: Final = _READABLE_BY_OTHERS | stat.S_IWGRP | stat.S_IWOTH


class Section:
    """A mapping of the file: its keys are asked for one by one; leaving the context names those nobody asked for."""

    def __init__(self, reader: Reader, value: Value | None, entries: Iterable[tuple[Value, Value]]) -> None:
        """`value` is None where the mapping is absent or is none."""
        self.reader = reader
        self.value = value
        self._entries = {key.node.text: (key, found) for key, found in entries}
        self._known: list[str] = []

    def __enter__(self) -> Self:
        """Begin to ask for keys."""
        return self

    def __exit__(self, *_: object) -> None:
        """Note every key that nobody asked for."""
        for key, _value in self._entries.values():
            if key.node.text not in self._known:
                self.reader.wrong(key, f"unknown key: {self._suggest(key.node.text)}")

    def _suggest(self, name: str) -> str:
        import difflib  # noqa: PLC0415 - only for who mistypes

        near = difflib.get_close_matches(name[:40].lower().replace("-", "_"), self._known, n=1)
        return f"did you mean {near[0]}?" if near else f"known here are {', '.join(self._known)}"

    def path(self, key: str) -> str:
        """Return the path of a key, given or not."""
        return f"{self.value.path}.{key}".lstrip(".") if self.value else key

    def get(self, key: str) -> Value | None:
        """Return what the key has, if it is given."""
        self._known.append(key)
        found = self._entries.get(key)
        return found and found[1]._replace(path=self.path(key))

    def take(self, key: str, read: Callable[[Value], T], default: D) -> T | D:
        """Read what the key has; the default where it is absent (or wrong, and noted)."""
        value = self.get(key)
        return default if value is None else self.reader.attempt(value, read, default)

    def need(self, key: str, read: Callable[[Value], T], default: D, expected: str) -> T | D:
        """Read what the key must have; its absence is noted."""
        value = self.get(key)
        if value is not None:
            return self.reader.attempt(value, read, default)
        if self.value is not None:
            self.reader.wrong(self.value, f"is missing, {expected} is expected", self.path(key))
        return default

    def section(self, key: str) -> "Section":
        """Return the mapping under the key, empty where it is absent."""
        return self.reader.section(self.get(key))


# --- Scalars -----------------------------------------------------------------------------------------------------


def read_text(value: Value, expected: str = "text") -> str:
    """Read text without NUL, the empty text too."""
    text = value.free_text(expected)
    if "\0" in text:
        refuse(f"holds a NUL, {expected} without one is expected")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        refuse(f"holds half of a surrogate pair, {expected} is expected")
    return text


def some_text(value: Value, expected: str = "text") -> str:
    """Read text that is not empty."""
    text = read_text(value, expected)
    if not text:
        refuse(f"is empty, {expected} is expected")
    return text


def boolean(value: Value) -> bool:
    """Read true or false, in the words that YAML 1.1 has for them."""
    word = value.of("bool", "true or false").text.lower()
    if word not in _BOOLEANS:
        refuse("is neither true nor false")
    return _BOOLEANS[word]


_BOOLEANS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def whole(low: int, high: int) -> Callable[[Value], int]:
    """Return what reads a whole number of that range, in plain decimal digits."""
    expected = f"a whole number from {low} to {high}"

    def read(value: Value) -> int:
        text = value.of("int", expected).text
        if not re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
            refuse(f"{shown(text)} is not in plain decimal digits, {expected} is expected")
        if len(text) > 20 or not low <= int(text) <= high:  # noqa: PLR2004 - more digits than any limit has
            refuse(f"{text[:20]} is out of range, {expected} is expected")
        return int(text)

    return read


def duration(low: float) -> Callable[[Value], float]:
    """Return what reads a duration of `low` seconds at least."""

    def read(value: Value) -> float:
        if value.node.kind in {"int", "float"} and value.node.text != "0":
            refuse(f"has no unit, {_DURATION_EXPECTED}")
        text = "0" if value.node.kind == "int" else value.of("str", "a duration").text
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            refuse(str(error))
        if not low <= seconds <= MAX_DURATION:
            refuse(f"{text} is out of range, {spell(low)} to {spell(MAX_DURATION)} is expected")
        return seconds

    return read


def spell(seconds: float) -> str:
    """Write seconds as a duration, in the largest unit that has no fraction."""
    milliseconds = round(seconds * 1_000)
    for unit, size in reversed(_UNITS.items()):
        count, rest = divmod(milliseconds, round(size * 1_000))
        if count and not rest:
            return f"{count}{unit}"
    return "0"


def choice(words: Mapping[str, T], expected: str = "") -> Callable[[Value], T]:
    """Return what reads one of some words."""
    expected = expected or f"one of {', '.join(words)}"

    def read(value: Value) -> T:
        text = value.of("str", expected).text
        if text not in words:
            refuse(f"is {shown(text)}, {expected} is expected")
        return words[text]

    return read


def read_path(value: Value, beside: Path) -> Path:
    """Read a path; a relative one counts from the directory of the file `beside`."""
    text = some_text(value, "a path")
    if text.startswith("~"):
        refuse("begins with ~, which is not expanded: write the whole path")
    return beside.parent / text


def parse_duration(text: str) -> float:
    """Return the seconds of `500ms`, `30s`, `10m`, `24h` or `7d`; 0 needs no unit. ValueError for anything else."""
    if text == "0":
        return 0.0
    found = re.fullmatch(_DURATION, text)
    if found is None:
        message = f"{shown(text)} is no duration; {_DURATION_EXPECTED}"
        raise ValueError(message)
    return int(found[1]) * _UNITS[found[2]]
