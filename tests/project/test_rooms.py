"""The table of rooms in docs/developers/architecture.md holds: each module imports only what its room may import."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.sources import modules

ROOT = Path(__file__).parents[2]

SIDE_ROOMS = ("intake", "journal", "links", "hook", "control")
COMMON = frozenset({"sentences", "errors", "wire", "policy", "host", "config.values"})
MAY_IMPORT = {
    "sentences": frozenset[str](),
    "errors": frozenset({"sentences"}),
    "wire": frozenset({"sentences", "errors"}),
    "host": frozenset({"sentences", "errors"}),
    "events": frozenset({"host"}),
    "policy": frozenset({"sentences", "errors", "wire"}),
    "sender": frozenset({"errors", "wire", "policy.digest"}),
    "config": frozenset({"sentences", "errors", "wire", "policy"}),
    **dict.fromkeys(SIDE_ROOMS, COMMON),
    "bearers": frozenset({"sentences", "errors", "wire", "host", "policy.routing"}),
    "discards": COMMON,
    "receiver": COMMON | {"discards", "intake", "journal"},
    "tracking": COMMON | {"hook"},
    "transitions": COMMON | {"tracking", "journal", "hook"},
    "views": COMMON | {"tracking", "links", "hook"},
    "dispatcher": COMMON | {"tracking", "transitions", "views", "journal", "links"},
    "reload": COMMON | {"config", "receiver", "dispatcher", "intake", "journal", "links", "hook"},
    "operations": COMMON | {"reload", "control", "discards", "journal", "links"},
    "daemon": COMMON | {"reload", "operations", "receiver", "dispatcher", *SIDE_ROOMS},
    "cli": None,
    "__init__": frozenset[str](),
    "__main__": None,
}
"""What each room may import beside itself; None for everything."""

IMPURE = frozenset(
    "asyncio logging structlog os pathlib random socket sqlite3 subprocess time yaml".split()  # noqa: SIM905
)
PURE = frozenset({"sentences", "errors", "wire", "policy", "sender"})


def room_of(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every import, also of those inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def problems(room: str, module: ast.Module) -> list[str]:
    found: list[str] = []
    for line, name in imported(module):
        top, _, inside = name.partition(".")
        if room in PURE and top in IMPURE:
            found.append(f"line {line}: {room} is pure and imports {top}")
        if top == "jeepney" and room != "bearers":
            found.append(f"line {line}: {room} imports jeepney, which only bearers may")
        allowed = MAY_IMPORT[room]
        target = inside.partition(".")[0]
        constants = target.startswith("__") or target.isupper()  # __version__ and RELEASED_AT of dmnotid itself
        if top != "dmnotid" or allowed is None or constants or target == room:
            continue
        if not any(inside == path or inside.startswith(f"{path}.") for path in allowed):
            found.append(f"line {line}: {room} imports dmnotid.{inside}")
    return found


def test_picture_of_the_package_has_every_room_and_no_other() -> None:
    page = (ROOT / "docs/developers/architecture.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^  (\w+)(?:\.py|/)  +\S", page, re.MULTILINE)
    rooms = set(map(room_of, modules()))
    assert sorted(drawn) == sorted(rooms - {"__init__", "__main__"})


def test_module_imports_what_its_room_may() -> None:
    found = {file: problems(room_of(file), module) for file, module in modules().items()}
    assert {file: wrong for file, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("room", "source", "problem"),
    [
        ("wire", "import time", "line 1: wire is pure and imports time"),
        ("policy", "from dmnotid.host import log", "line 1: policy imports dmnotid.host.log"),
        ("intake", "from dmnotid.journal.queue import Journal", "line 1: intake imports dmnotid.journal.queue.Journal"),
        ("daemon", "import jeepney", "line 1: daemon imports jeepney, which only bearers may"),
        ("bearers", "import dmnotid.config.values", "line 1: bearers imports dmnotid.config.values"),
        ("hook", "from dmnotid.config.loading import load", "line 1: hook imports dmnotid.config.loading.load"),
        (
            "dispatcher",
            "def f():\n    import dmnotid.intake.endpoint",
            "line 2: dispatcher imports dmnotid.intake.endpoint",
        ),
    ],
)
def test_forbidden_import_is_found(room: str, source: str, problem: str) -> None:
    assert problems(room, ast.parse(source)) == [problem]


MAKERS = {
    "VerifiedNotification": {"policy/authenticity.py"},
    "SessionRequest": {"journal/queue.py", "journal/rows.py", "cli/try_hook.py"},
}
"""The type proves the stage: the modules that may make one. The command that tries a hook makes one to show it."""


@pytest.mark.parametrize("kind", MAKERS)
def test_only_makers_make(kind: str) -> None:
    """A VerifiedNotification comes from `verify` alone, a SessionRequest from the journal."""
    found = {
        file
        for file, module in modules().items()
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and kind in {getattr(it, "id", None) for it in (node.func, *node.args)}
    }
    assert found, "the test looks for the wrong name"
    assert found <= MAKERS[kind]
