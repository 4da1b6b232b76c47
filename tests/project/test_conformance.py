"""docs/developers/conformance.md is complete: each function that it names exists, and every reason word has a row."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from dmnotid.errors import DecodeError, Refusal

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "developers" / "conformance.md"

REFERENCE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")
"""`file.py::function`, or `file.py::Class.method`."""
SECTION = re.compile(r"(WAP-230 )?\d+(\.\d+)*")
LINES = 60
"""Maximum length of a function that decides a row: the place is then found at a glance."""

FLAT = {"decode_notification"}
"""Longer ones that read field after field, as the specification lists them."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Row(NamedTuple):
    """A requirement: its line number, and what the page has about it."""

    line: int
    section: str
    requirement: str
    decided_in: list[tuple[str, str]]
    test: list[tuple[str, str]]


ITEM = re.compile(r"(?m)^\* \*\*(.+?)\*\*: ((?:.+\n)+?)((?: {4}\* `.+`\n)+)")


def rows() -> Iterator[Row]:
    """Read the lists of the page: a requirement, and below it the functions that decide it and the tests."""
    text = PAGE.read_text(encoding="utf-8")
    for item in ITEM.finditer(text):
        found = REFERENCE.findall(item[3])
        tests = [reference for reference in found if reference[0].startswith("tests/")]
        functions = [reference for reference in found if reference not in tests]
        yield Row(text.count("\n", 0, item.start()) + 1, item[1], " ".join(item[2].split()), functions, tests)


ROWS = list(rows())


def references(column: str) -> set[tuple[str, str]]:
    """Return every file and function in a column."""
    return {found for row in ROWS for found in getattr(row, column)}


@cache
def functions_in(path: str) -> dict[str, Function]:
    """Return the functions of a module by name, and the methods as `Class.method`."""
    if not (ROOT / path).is_file():
        return {}
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    found = {node.name: node for node in body if isinstance(node, Function)}
    for kind in body:
        if isinstance(kind, ast.ClassDef):
            found |= {f"{kind.name}.{node.name}": node for node in kind.body if isinstance(node, Function)}
    return found


def test_every_requirement_has_sections_functions_and_tests() -> None:
    assert [row.line for row in ROWS if not all(row)] == []
    assert [row.line for row in ROWS if not all(map(SECTION.fullmatch, row.section.split(", ")))] == []
    assert len(ROWS) > 40


def test_every_line_of_the_lists_belongs_to_a_requirement() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [line for line in ITEM.sub("", text).splitlines() if line.lstrip().startswith("*")] == []
    assert len(REFERENCE.findall(text)) == len(re.findall(r"(?m)^ {4}\* ", text))


def test_every_row_is_decided_in_short_functions() -> None:
    """A whole class, or a long function, does not show where a requirement is decided."""
    wrong = []
    for path, name in sorted(references("decided_in")):
        node = functions_in(path).get(name)
        if not path.startswith("dmnotid/") or node is None:
            wrong.append(f"{path}::{name} is not a function")
        elif name not in FLAT and (node.end_lineno or 0) - node.lineno >= LINES:
            wrong.append(f"{path}::{name} has more than {LINES} lines")
    assert wrong == []


def test_every_test_is_one_that_pytest_collects() -> None:
    collected = re.compile(r"tests/(\w+/)*test_\w+\.py::test_\w+")
    names = {f"{path}::{name}" for path, name in references("test") if name in functions_in(path)}
    assert {f"{path}::{name}" for path, name in references("test")} - names == set()
    assert [name for name in names if not collected.fullmatch(name)] == []


def test_every_row_has_a_test_that_carries_its_section() -> None:
    wrong = []
    for row in ROWS:
        sections = [section.removeprefix("WAP-230 ") for section in row.section.split(", ")]
        nodes = [functions_in(path).get(name) for path, name in row.test]
        texts = [ast.get_docstring(node) or "" for node in nodes if node is not None]
        if not any(section in text for section in sections for text in texts):
            wrong.append(row.line)
    assert wrong == []


def test_every_reason_has_a_row() -> None:
    reasons = {kind.reason for root in (DecodeError, Refusal) for kind in root.__subclasses__()}
    requirements = " ".join(row.requirement for row in ROWS)
    assert {reason for reason in reasons if f"`{reason}`" not in requirements} == set()
