"""docs/conformance.md is kept complete: what it names exists, and no reason word is left out."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from dmnotid.errors import DecodeError, Refusal

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "conformance.md"

REFERENCE = re.compile(r"`([\w/]+\.py)::(\w+)`")
SECTION = re.compile(r"(WAP-230 )?\d+(\.\d+)*")


class Row(NamedTuple):
    """A row of a table: its line, and its cells."""

    line: int
    section: str
    requirement: str
    decided_in: str
    test: str


def lines() -> Iterator[tuple[int, list[str]]]:
    """Every line of a table's body with its cells."""
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("|") and not line.startswith(("| section |", "|---")):
            yield number, [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows() -> list[Row]:
    return [Row(number, *cells) for number, cells in lines()]


def references(column: str) -> list[tuple[str, str]]:
    """Every file and name in a column, once each."""
    return sorted({found for row in rows() for found in REFERENCE.findall(getattr(row, column))})


@cache
def names_in(path: str) -> frozenset[str]:
    """Return what a module defines on its own level."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


def test_every_row_has_four_cells() -> None:
    assert [number for number, cells in lines() if len(cells) != 4 or not all(cells)] == []
    assert len(rows()) > 40


def test_every_row_names_sections() -> None:
    """And no others than those of the two specifications."""
    wrong = [row.line for row in rows() if not all(map(SECTION.fullmatch, row.section.split(", ")))]
    assert wrong == []


@pytest.mark.parametrize("column", ["decided_in", "test"])
def test_every_cell_is_references_alone(column: str) -> None:
    wrong = [row.line for row in rows() if REFERENCE.sub("", getattr(row, column)).strip()]
    assert wrong == []


@pytest.mark.parametrize(("path", "name"), references("decided_in"))
def test_where_it_is_decided_exists(path: str, name: str) -> None:
    assert path.startswith("dmnotid/")
    assert name in names_in(path)


@pytest.mark.parametrize(("path", "name"), references("test"))
def test_every_test_exists(path: str, name: str) -> None:
    assert path.startswith("tests/")
    assert name.startswith("test_")
    assert name in names_in(path)


def test_every_test_is_collected() -> None:
    """By pytest itself: a file or a name that it doesn't take for a test proves nothing."""
    wanted = references("test")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *sorted({path for path, _ in wanted})], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.partition("[")[0] for line in done.stdout.splitlines()}
    assert [f"{path}::{name}" for path, name in wanted if f"{path}::{name}" not in collected] == []


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"line {row.line}")
def test_a_test_of_every_row_carries_its_section(row: Row) -> None:
    sections = [section.removeprefix("WAP-230 ") for section in row.section.split(", ")]
    said = [docstring_of(path, name) for path, name in REFERENCE.findall(row.test)]
    assert any(section in text for section in sections for text in said)


def docstring_of(path: str, name: str) -> str:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return next(ast.get_docstring(node) or "" for node in tree.body if isinstance(node, kinds) and node.name == name)


@pytest.mark.parametrize("reason", [kind.reason for root in (DecodeError, Refusal) for kind in root.__subclasses__()])
def test_every_reason_has_a_row(reason: str) -> None:
    assert [row.line for row in rows() if f"`{reason}`" in row.requirement]
