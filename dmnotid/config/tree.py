"""The octets of a YAML file as a tree of nodes that have their line and column; nothing of what the keys mean."""

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import yaml

MAX_DEPTH: Final = 32
"""Deepest nesting, in levels: more than any key needs, and less than Python's recursion limit allows."""

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
"""Every kind of node, with the words for it in messages."""

RESOLVED_KINDS: Final = frozenset({"int", "float", "bool", "timestamp", "merge", "value"})
"""Kinds that unquoted text can turn into."""

# Spaces that are not spaces to YAML, and characters without any width.
_INVISIBLE: Final = (
    "[\x85\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u2800\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Parts of a line in which such a character is text: quotes and comments.
_QUOTED: Final = r"""\"(?:\\.|[^"\\])*"|'[^']*'|(?:^|(?<=[ \t]))#.*"""
_COMMENT: Final = re.compile(r"[ \t]+#")
# What the loaders quote.
_NAMES: Final = r""" (?:'(?!<)[^']{2,}'|'\w'|"[^"]{2,}")"""
_SAME_COLUMN: Final = " (check the indentation: the keys of a mapping begin in the same column)"
# What the two loaders report of a key in a column that fits no key above, or below a value.
_MISPLACED: Final = {
    "mapping values are not allowed": " (check the indentation, and put text with a colon and a space in quotes)",
    "expected key": _SAME_COLUMN,
    "expected '-' indicator": _SAME_COLUMN,
    "expected <block end>": _SAME_COLUMN,
}
_NOT_A_SPACE: Final = "{} here is not a space to YAML; write a space, or delete it"

# YAML 1.1, 5.1: every character outside of this set is refused.
_NOT_IN_YAML: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# Both loaders yield the same events and marks, with nearly the same messages; the one in C is faster.
LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Events have no resolved tags, because the composer assigns them, and that is not used here.
_RESOLVER: Final[Any] = yaml.resolver.Resolver()


class Wrong(Exception):
    """A problem of the value being read; `place` is line and column if they are not those of that value."""

    def __init__(self, message: str, place: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.place = place


class Node(NamedTuple):
    """A value as YAML sees it, with the line and column of its beginning (from 1).

    `kind` is one of `KINDS`; `text` is for scalars, `items` for lists, `pairs` for mappings. `commented` is whether a
    comment follows a scalar without quotes: it may be meant as a part of it.
    """

    kind: str
    line: int
    column: int
    text: str = ""
    items: tuple["Node", ...] = ()
    pairs: tuple[tuple["Node", "Node"], ...] = ()
    commented: bool = False


def decode(octets: bytes) -> str:
    """Return the text of a file without a byte order mark. Raises Wrong if it is not UTF-8 or not text."""
    # Some editors write one, and it is not a part of the text.
    octets = octets.removeprefix(BOM_UTF8)
    try:
        text = octets.decode()
    except UnicodeDecodeError as error:
        before = octets[: error.start].decode()
        raise Wrong(f"the file is not UTF-8: {error.reason}", _place(before, len(before))) from None
    unfit = _NOT_IN_YAML.search(text)
    if unfit is not None:
        raise Wrong(f"the file has U+{ord(unfit[0]):04X}, which YAML does not allow", _place(text, unfit.start()))
    return text


def _place(text: str, index: int) -> tuple[int, int]:
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)


def compose(text: str) -> Node:
    """Return the root of the one document in `text`. Raises Wrong for anything else, with its place.

    Built from events, because the loader's own composer in C recurses without a bound, and crashes.
    """
    composer = _Composer(text)
    try:
        loader = LOADER(text)
        try:
            while loader.check_event():
                composer.take(loader.get_event())
        finally:
            # Clears the references of the loader to itself.
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        begin = error.context_mark.line if error.context_mark else place[0] - 1
        problem = error.problem or "no reason given"
        # Without quotes from the file, except for tokens: a name can be a secret.
        words = re.sub(_NAMES, "", problem)
        raise Wrong(f"not YAML: {words}{_hint(text, place, begin, problem)}", place) from None
    # The loader in Python lets some exceptions of chr() and int() escape.
    except (yaml.YAMLError, ValueError, OverflowError):
        raise Wrong("not YAML: an escape or a number has no meaning") from None
    if composer.root is None:
        raise Wrong("the file is empty; expected servers and hook")
    return composer.root


def find_invisible(text: str) -> str | None:
    """Return the first invisible character of a text, as `U+00A0`; None if there is none."""
    found = _search_invisible(text)
    return None if found is None else f"U+{ord(found[0]):04X}"


def _search_invisible(text: str) -> re.Match[str] | None:
    # The set of characters takes a hundredth of the daemon's start to compile, and most files are in ASCII.
    return None if text.isascii() else re.search(_INVISIBLE, text)


def stray_spaces(text: str, last: int) -> Iterator[Wrong]:
    """Yield the problem of each line, up to the line `last`, with an invisible character outside of quotes."""
    for number, line in enumerate(text.split("\n")[:last], 1):
        found = _search_invisible(re.sub(_QUOTED, lambda part: " " * len(part[0]), line))
        if found is not None:
            yield Wrong(_NOT_A_SPACE.format(f"U+{ord(found[0]):04X}"), (number, found.start() + 1))


class _Composer:
    """Builds nodes from events, in their order. Bounds: one document, MAX_DEPTH levels."""

    def __init__(self, text: str) -> None:
        # The file, for what follows a scalar.
        self._text = text
        # The finished document.
        self.root: Node | None = None
        # Collections that have begun, outermost first, each with its finished children.
        self._open: list[tuple[Any, list[Node]]] = []
        # Nodes by anchor; None while the node itself is being built.
        self._anchors: dict[str, Node | None] = {}

    def take(self, event: Any) -> None:  # noqa: ANN401 - yaml's events have no common typed base
        if isinstance(event, yaml.ScalarEvent):
            # A plain scalar has no style; the index of its mark counts characters.
            commented = not event.style and _COMMENT.match(self._text, event.end_mark.index)  # type: ignore[union-attr]
            node = _scalar(event)._replace(commented=bool(commented))
            self._refuse_stray_space(node)
            self._add(node, event.anchor)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) >= MAX_DEPTH:
                raise Wrong(f"nested deeper than {MAX_DEPTH} levels", _mark(event))
            if event.anchor is not None:
                # An alias before the end of this collection would make the tree a cycle.
                self._anchors[event.anchor] = None
            self._open.append((event, []))
        elif isinstance(event, yaml.CollectionEndEvent):
            start, children = self._open.pop()
            self._add(_collection(start, children), start.anchor)
        elif isinstance(event, yaml.AliasEvent):
            # The name stays out of the message: an unquoted secret can begin with "*".
            if event.anchor not in self._anchors:
                raise Wrong("an alias without an anchor; put text that begins with * in quotes", _mark(event))
            found = self._anchors[event.anchor]
            if found is None:
                raise Wrong("an alias to a value that contains it", _mark(event))
            # Problems of the value are reported at the alias, where the reader of the file has to look.
            line, column = _mark(event)
            self._add(found._replace(line=line, column=column), None)
        elif isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise Wrong("another document begins here; expected one", _mark(event))

    def _refuse_stray_space(self, node: Node) -> None:
        """Raise Wrong for a key with an invisible character, of which the indentation or the value is a part."""
        start, children = self._open[-1] if self._open else (None, [])
        found = _search_invisible(node.text)
        # Keys and values alternate, so after an even number of them this is a key.
        if found is not None and isinstance(start, yaml.MappingStartEvent) and not len(children) % 2:
            message = _NOT_A_SPACE.format(f"U+{ord(found[0]):04X}")
            raise Wrong(message, (node.line, node.column + found.start()))

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if self._open:
            self._open[-1][1].append(node)
        else:
            self.root = node


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
    # The events of a mapping alternate between keys and values.
    return Node(kind, *_mark(event), pairs=tuple(zip(children[::2], children[1::2], strict=True)))


def _hint(text: str, place: tuple[int, int], begin: int, problem: str) -> str:
    """Return advice on the mistakes that people make most, or nothing; `begin` is the line (from 0) of the context."""
    lines = text.split("\n")
    line = lines[place[0] - 1] if 0 < place[0] <= len(lines) else ""
    at = line[place[1] - 1 : place[1]]
    if at == "\t":
        return " (indent YAML with spaces, not with tabs)"
    # YAML reserves @ and `, and % begins a directive, so plain text cannot begin with them.
    if at and at in "@`%":
        return f" (put text that begins with {at} in quotes)"
    if re.search(r"\[[0-9A-Fa-f:.]*(%\w+)?\]:", line):
        return ' (put an address in brackets in quotes: "[::]:2948")'
    for number, above in enumerate(lines[begin : place[0]], begin + 1):
        # Three searches, because one pattern takes minutes for a line of many brackets.
        comment = _COMMENT.search(above)
        if comment and re.search(r"[{\[,:]", above[: comment.start()]) and re.search(r"[}\]]", above[comment.end() :]):
            return f" (a comment begins at the # in line {number}: put text with # in quotes)"
    return next((hint for words, hint in _MISPLACED.items() if words in problem), "")
