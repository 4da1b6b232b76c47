"""The house keeps its floors: who may import whom, and who makes the values that prove a stage.

All is read by ast, nothing is imported. A module imports from floors below its own alone; the pure floors know no
clock, no files, no sockets; and a VerifiedNotification or SessionRequest comes from its one maker.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = {
    "dmnotid": 0,
    "dmnotid.errors": 0,
    # The rooms themselves hold a docstring and nothing else.
    "dmnotid.wire": 0,
    "dmnotid.policy": 0,
    "dmnotid.service": 0,
    "dmnotid.wire.octets": 1,
    "dmnotid.wire.wsp": 2,
    "dmnotid.wire.notification": 2,
    "dmnotid.policy.servers": 3,
    "dmnotid.policy.sessions": 3,
    "dmnotid.policy.authenticity": 4,
    "dmnotid.policy.reception": 5,
    "dmnotid.policy.trials": 5,
    "dmnotid.service.turn": 5,
    "dmnotid.yamlfile": 6,
    "dmnotid.service.rtnetlink": 6,
    "dmnotid.service.journald": 6,
    "dmnotid.service.log": 7,
    "dmnotid.service.database": 6,
    "dmnotid.service.rescue": 7,
    "dmnotid.service.facts": 6,
    "dmnotid.service.handoff": 6,
    "dmnotid.service.processes": 6,
    "dmnotid.service.trust": 6,
    "dmnotid.config": 6,
    "dmnotid.configfile": 7,
    "dmnotid.service.reading": 8,
    "dmnotid.service.socketfilter": 7,
    "dmnotid.service.drops": 7,
    "dmnotid.service.endpoint": 8,
    "dmnotid.service.journalfile": 8,
    "dmnotid.service.journal": 9,
    "dmnotid.service.links": 8,
    "dmnotid.service.hook": 8,
    "dmnotid.service.systemd": 8,
    "dmnotid.service.dispatcher": 10,
    "dmnotid.service.daemon": 11,
    "dmnotid.cli": 12,
    "dmnotid.__main__": 13,
}
"""The table; what is below dmnotid.cli is on its floor. A module may stand here before it is written."""

CLI, CLI_FLOOR = "dmnotid.cli", 12

PURE_FLOOR = 5
IMPURE = frozenset(
    ["asyncio", "logging", "structlog", "os", "pathlib", "random", "socket", "sqlite3", "subprocess", "time", "yaml"]
)

IMPORTERS = frozenset({"__import__", "import_module"})


class Maker(NamedTuple):
    """Where a class may be made: in this module, in this function of it (anywhere in it if None).

    `made_up` has the module and function that may make one up, to show it to people: it is never queued.
    """

    module: str
    function: str | None
    fields: frozenset[str]
    made_up: tuple[str, str] | None = None


MAKERS = {
    "VerifiedNotification": Maker(
        "dmnotid.policy.authenticity",
        "verify",
        frozenset({"notification", "server_id", "source", "received_at", "clock_believed"}),
    ),
    "SessionRequest": Maker(
        "dmnotid.service.journal",
        None,
        frozenset(
            {
                "session",
                "server_id",
                "notification",
                "source",
                "received_at",
                "attempts",
                "not_before",
                "expires_at",
            }
        ),
        ("dmnotid.cli.test_hook", "make_up"),
    ),
}

REMAKERS = frozenset({"_make", "_replace", "__new__"})
TELLERS = frozenset({"isinstance", "issubclass", "cast"})
"""Functions that are given a class and make nothing of it."""


class Module(NamedTuple):
    """A module of the package and its source."""

    name: str
    file: str
    tree: ast.Module

    def problem(self, node: ast.AST, text: str) -> str:
        return f"{self.file}:{getattr(node, 'lineno', 1)}: {text}"


def parsed(name: str, source: str, file: str = "") -> Module:
    return Module(name, file or name.replace(".", "/") + ".py", ast.parse(source))


def modules() -> list[Module]:
    """Every module below dmnotid/."""
    found = []
    for path in sorted((ROOT / "dmnotid").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(parsed(name, path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))))
    return found


def floor_of(name: str) -> int | None:
    return CLI_FLOOR if name.startswith(CLI + ".") else FLOORS.get(name)


def imports(module: Module, known: Iterable[str]) -> Iterator[tuple[ast.AST, str]]:
    """Every module that a module imports, wherever in it, with the node that does."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(module, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node, whole if whole in known or whole in FLOORS else base
        elif isinstance(node, ast.Call) and name_of(node.func) in IMPORTERS and node.args:
            yield node, imported_by_call(node.args[0])


def imported_by_call(name: ast.expr) -> str:
    """Return what import_module(name) imports: "a.b" for "a.b", "a.*" for f"a.{b}", "?" where it can't be told."""
    if isinstance(name, ast.JoinedStr) and isinstance(name.values[0], ast.Constant):
        package, dot, rest = str(name.values[0].value).rpartition(".")
        return f"{package}.*" if dot and not rest else "?"
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "?"


def absolute(module: Module, node: ast.ImportFrom) -> str:
    """Return the full name of what stands between from and import."""
    if not node.level:
        return node.module or ""
    package = module.name.split(".")
    if not module.file.endswith("__init__.py"):
        package.pop()
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module] if node.module else package)


def name_of(node: ast.AST) -> str | None:
    """Return the last name of `a`, `b.a` or "a" (an annotation in quotes)."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.rpartition(".")[2]
    return None


def floor_problems(found: Iterable[Module]) -> Iterator[str]:
    """Say which imports do not point down."""
    found = list(found)
    known = {module.name for module in found}
    for module in found:
        floor = floor_of(module.name)
        if floor is None:
            yield module.problem(module.tree, f"{module.name} has no floor: give it one in the table")
            continue
        for node, target in imports(module, known):
            yield from import_problems(module, floor, node, target)


def import_problems(module: Module, floor: int, node: ast.AST, target: str) -> Iterator[str]:
    top = target.partition(".")[0]
    if target == "?":
        yield module.problem(node, f"{module.name} imports a module by a name that can't be read here")
    elif top == "dmnotid":
        below = floor_of(target)
        if below is None:
            yield module.problem(node, f"{module.name} imports {target}, which has no floor")
        elif below >= floor and not (in_cli(module.name) and in_cli(target)):
            yield module.problem(node, f"{module.name} (floor {floor}) imports {target} (floor {below})")
    elif floor <= PURE_FLOOR and top in IMPURE:
        yield module.problem(node, f"{module.name} (floor {floor}) is pure and imports {target}")


def in_cli(name: str) -> bool:
    return name == CLI or name.startswith(CLI + ".")


def cycle_problems(found: Iterable[Module]) -> Iterator[str]:
    """Say where modules of cli import each other in a circle."""
    cli = [module for module in found if in_cli(module.name)]
    known = {module.name for module in cli}
    graph = {module.name: {target for _, target in imports(module, known) if target in known} for module in cli}
    for module in cli:
        if module.name in graph[module.name]:
            yield module.problem(module.tree, f"{module.name} imports itself")
            graph[module.name].discard(module.name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"{' -> '.join(error.args[1])}: modules of cli import each other in a circle"


class MakerCheck(ast.NodeVisitor):
    """Finds where a class of MAKERS is made by somebody else than its maker.

    By its name, an alias, `_make`, `_replace` or `__new__`, by handing the class to somebody who would make it, or by
    deriving from it. What `_replace` is called on is known from annotations; where there is none, the keywords tell.
    The methods of a class may call `_replace` on `self`.
    """

    def __init__(self, module: Module) -> None:
        self.module = module
        self.problems: list[str] = []
        self.aliases = {name: name for name in MAKERS}
        self.scopes: list[str] = []
        self.annotations: list[dict[str, set[str]]] = [{}]

    def made(self, node: ast.AST) -> str | None:
        """Return the class of MAKERS that a node names, if it does."""
        name = name_of(node) if isinstance(node, ast.Name | ast.Attribute) else None
        return self.aliases.get(name or "")

    def report(self, node: ast.AST, made: str, how: str) -> None:
        maker = MAKERS[made]
        if self.module.name == maker.module and (maker.function is None or maker.function in self.scopes[:1]):
            return
        if maker.made_up is not None and (self.module.name, *self.scopes[:1]) == maker.made_up:
            return
        place = f"{maker.module}.{maker.function}" if maker.function else maker.module
        self.problems.append(self.module.problem(node, f"{how} {made}, which only {place} makes"))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if alias.name in MAKERS and alias.asname:
                self.aliases[alias.asname] = alias.name

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            if made := self.made(base):
                self.report(node, made, f"{node.name} derives from")
        self.scopes.append(node.name)
        self.annotations.append({"self": {node.name}, "cls": {node.name}})
        self.generic_visit(node)
        self.annotations.pop()
        self.scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.scopes.append(node.name)
        self.annotations.append(
            {argument.arg: names_in(argument.annotation) for argument in arguments if argument.annotation}
        )
        for child in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]:
            self.visit(child)
        self.annotations.pop()
        self.scopes.pop()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.annotations[-1][node.target.id] = names_in(node.annotation)
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if made := self.made(node.value):
            self.report(node, made, "gives another name to")
            for target in node.targets:
                if isinstance(target, ast.Name):
                    self.aliases[target.id] = made
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if made := self.made(node.func):
            self.report(node, made, "makes a")
        elif isinstance(node.func, ast.Attribute) and node.func.attr in REMAKERS:
            self.check_remade(node, node.func)
        if name_of(node.func) not in TELLERS:
            for value in [*node.args, *(keyword.value for keyword in node.keywords)]:
                if made := self.made(value):
                    self.report(node, made, "hands out the class")
        self.generic_visit(node)

    def check_remade(self, node: ast.Call, function: ast.Attribute) -> None:
        if made := self.made(function.value):
            self.report(node, made, f"calls {function.attr} of")
        elif function.attr == "_replace":
            for made in self.replaced(node, function.value):
                self.report(node, made, "calls _replace on what may be a")

    def replaced(self, node: ast.Call, value: ast.expr) -> set[str]:
        """Return the classes of MAKERS that `value._replace(...)` may make."""
        if isinstance(value, ast.Name):
            for annotations in reversed(self.annotations):
                if value.id in annotations:
                    own = set(self.scopes) if value.id == "self" else set()
                    return {self.aliases[name] for name in annotations[value.id] & set(self.aliases)} - own
        keywords = {keyword.arg for keyword in node.keywords}
        return {made for made, maker in MAKERS.items() if None in keywords or keywords <= maker.fields}


def names_in(annotation: ast.expr | None) -> set[str]:
    """Return every name in an annotation, those in quotes included."""
    if annotation is None:
        return set()
    return {name for node in ast.walk(annotation) if (name := name_of(node))}


def maker_problems(found: Iterable[Module]) -> Iterator[str]:
    for module in found:
        check = MakerCheck(module)
        check.visit(module.tree)
        yield from check.problems


def test_imports_point_down() -> None:
    assert list(floor_problems(modules())) == []


def test_cli_has_no_circle() -> None:
    assert list(cycle_problems(modules())) == []


def test_only_makers_make() -> None:
    """5.3.5, 5.3.4: the type proves the stage."""
    assert list(maker_problems(modules())) == []


def test_the_makers_do_make() -> None:
    """The names in MAKERS are those of the code: else the check would look for nothing."""
    for made, maker in MAKERS.items():
        home = [module for module in modules() if any(class_named(module, made))]
        assert len(home) == 1, made
        fields = [node.target for node in next(class_named(home[0], made)).body if isinstance(node, ast.AnnAssign)]
        assert {name_of(field) for field in fields} == maker.fields
        assert maker.module in FLOORS


def class_named(module: Module, name: str) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef) and node.name == name)


def test_every_module_is_found() -> None:
    """The check reads what there is: all files, all pure rooms."""
    assert {name for name, floor in FLOORS.items() if floor <= PURE_FLOOR} <= {module.name for module in modules()}


# The checker is checked: each of these small sources must be found at fault.


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("dmnotid.new", "", "dmnotid/new.py:1: dmnotid.new has no floor: give it one in the table"),
        (
            "dmnotid.wire.octets",
            "\nimport dmnotid.wire.wsp",
            "dmnotid/wire/octets.py:2: dmnotid.wire.octets (floor 1) imports dmnotid.wire.wsp (floor 2)",
        ),
        (
            "dmnotid.wire.wsp",
            "from dmnotid.wire.notification import VERSION",
            "dmnotid/wire/wsp.py:1: dmnotid.wire.wsp (floor 2) imports dmnotid.wire.notification (floor 2)",
        ),
        (
            "dmnotid.wire.wsp",
            "from dmnotid.policy import reception",
            "dmnotid/wire/wsp.py:1: dmnotid.wire.wsp (floor 2) imports dmnotid.policy.reception (floor 5)",
        ),
        (
            "dmnotid.wire.wsp",
            "def f():\n    from . import notification",
            "dmnotid/wire/wsp.py:2: dmnotid.wire.wsp (floor 2) imports dmnotid.wire.notification (floor 2)",
        ),
        (
            "dmnotid.wire.wsp",
            "from ..policy.servers import Server",
            "dmnotid/wire/wsp.py:1: dmnotid.wire.wsp (floor 2) imports dmnotid.policy.servers (floor 3)",
        ),
        (
            "dmnotid.config",
            "from dmnotid.service.hook import Hook",
            "dmnotid/config.py:1: dmnotid.config (floor 6) imports dmnotid.service.hook (floor 8)",
        ),
        (
            "dmnotid.service.hook",
            "import importlib\nimportlib.import_module('dmnotid.cli.run')",
            "dmnotid/service/hook.py:2: dmnotid.service.hook (floor 8) imports dmnotid.cli.run (floor 12)",
        ),
        (
            "dmnotid.service.daemon",
            "from dmnotid import cli",
            "dmnotid/service/daemon.py:1: dmnotid.service.daemon (floor 11) imports dmnotid.cli (floor 12)",
        ),
        (
            "dmnotid.service.daemon",
            "from dmnotid.service.nothing import a",
            "dmnotid/service/daemon.py:1: dmnotid.service.daemon imports dmnotid.service.nothing, which has no floor",
        ),
        (
            "dmnotid.service.hook",
            "import_module(f'dmnotid.cli.{x}')",
            "dmnotid/service/hook.py:1: dmnotid.service.hook (floor 8) imports dmnotid.cli.* (floor 12)",
        ),
        (
            "dmnotid.cli.run",
            "import_module(f'dmnotid.{x}')",
            "dmnotid/cli/run.py:1: dmnotid.cli.run imports dmnotid.*, which has no floor",
        ),
        (
            "dmnotid.cli.run",
            "import_module(f'dmnotid.cli.a{x}')",
            "dmnotid/cli/run.py:1: dmnotid.cli.run imports a module by a name that can't be read here",
        ),
        (
            "dmnotid.errors",
            "x = __import__(name)",
            "dmnotid/errors.py:1: dmnotid.errors imports a module by a name that can't be read here",
        ),
        (
            "dmnotid.policy.reception",
            "if TYPE_CHECKING:\n    import time",
            "dmnotid/policy/reception.py:2: dmnotid.policy.reception (floor 5) is pure and imports time",
        ),
        (
            "dmnotid.wire.wsp",
            "from os.path import join",
            "dmnotid/wire/wsp.py:1: dmnotid.wire.wsp (floor 2) is pure and imports os.path",
        ),
        (
            "dmnotid.errors",
            "import re, socket as s",
            "dmnotid/errors.py:1: dmnotid.errors (floor 0) is pure and imports socket",
        ),
    ],
)
def test_a_wrong_import_is_found(name: str, source: str, problem: str) -> None:
    assert list(floor_problems([parsed(name, source)])) == [problem]


@pytest.mark.parametrize("impure", sorted(IMPURE))
@pytest.mark.parametrize("name", sorted(name for name, floor in FLOORS.items() if floor <= PURE_FLOOR))
def test_pure_floors_import_nothing_impure(name: str, impure: str) -> None:
    assert len(list(floor_problems([parsed(name, f"import {impure}")]))) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dmnotid.wire.wsp", "import re\nfrom dmnotid.wire import octets\nfrom .octets import QUOTE"),
        ("dmnotid.policy.authenticity", "from dmnotid import RELEASED_AT, errors"),
        ("dmnotid.config", "import os, yaml"),
        ("dmnotid.cli.run", "from dmnotid.cli.check import read\nfrom dmnotid.service.daemon import run"),
        ("dmnotid.cli", "import importlib\nimportlib.import_module(f'dmnotid.cli.{name}')"),
        ("dmnotid.__main__", "from dmnotid.cli import main"),
        ("dmnotid.service.journal", "import sqlite3, time\nfrom dmnotid.policy.sessions import SessionRequest"),
    ],
)
def test_a_right_import_is_none_of_its_business(name: str, source: str) -> None:
    assert list(floor_problems([parsed(name, source)])) == []


@pytest.mark.parametrize(
    "sources",
    [
        {"dmnotid.cli.a": "import dmnotid.cli.b", "dmnotid.cli.b": "from . import a"},
        {
            "dmnotid.cli.a": "from dmnotid.cli import b",
            "dmnotid.cli.b": "def f():\n    from dmnotid.cli import c",
            "dmnotid.cli.c": "from dmnotid.cli.a import x",
        },
        {"dmnotid.cli.a": "from dmnotid.cli.a import x"},
    ],
)
def test_a_circle_in_cli_is_found(sources: Mapping[str, str]) -> None:
    found = [parsed(name, source) for name, source in sources.items()]
    assert list(floor_problems(found)) == []
    assert len(list(cycle_problems(found))) == 1


def test_no_circle_in_cli() -> None:
    sources = {"dmnotid.cli.a": "from . import b, c", "dmnotid.cli.b": "from . import c", "dmnotid.cli.c": "import os"}
    assert list(cycle_problems(parsed(name, source) for name, source in sources.items())) == []


ALIASED = "from dmnotid.policy.authenticity import VerifiedNotification as V\n"


@pytest.mark.parametrize(
    ("name", "source", "problem"),
    [
        ("dmnotid.policy.reception", "VerifiedNotification(1, 2, 3, 4)", "makes a"),
        (
            "dmnotid.policy.reception",
            "def verify():\n    return authenticity.VerifiedNotification(1, 2, 3, 4)",
            "makes a",
        ),
        ("dmnotid.policy.authenticity", "VerifiedNotification(1, 2, 3, 4)", "makes a"),
        ("dmnotid.policy.authenticity", "def other():\n    return VerifiedNotification(1, 2, 3, 4)", "makes a"),
        ("dmnotid.policy.authenticity", "def f():\n    def verify():\n        VerifiedNotification()", "makes a"),
        ("dmnotid.service.daemon", ALIASED + "V(1, 2, 3, 4)", "makes a"),
        ("dmnotid.service.daemon", "lambda: [VerifiedNotification(*x) for x in y]", "makes a"),
        ("dmnotid.service.daemon", "VerifiedNotification._make(x)", "calls _make of"),
        ("dmnotid.service.daemon", "VerifiedNotification._replace(x, source=1)", "calls _replace of"),
        ("dmnotid.service.daemon", "VerifiedNotification.__new__(VerifiedNotification)", "calls __new__ of"),
        ("dmnotid.service.daemon", "tuple.__new__(VerifiedNotification, x)", "hands out the class"),
        ("dmnotid.service.daemon", "map(VerifiedNotification, x)", "hands out the class"),
        ("dmnotid.service.daemon", "make = VerifiedNotification", "gives another name to"),
        ("dmnotid.service.daemon", "class A(VerifiedNotification): pass", "A derives from"),
        (
            "dmnotid.service.daemon",
            "def f(v: VerifiedNotification):\n    v._replace(received_at=1)",
            "calls _replace on",
        ),
        (
            "dmnotid.service.daemon",
            "async def f(*, v: 'VerifiedNotification'):\n    v._replace(x=1)",
            "calls _replace on",
        ),
        ("dmnotid.service.daemon", "v: VerifiedNotification | None = g()\nv._replace(x=1)", "calls _replace on"),
        ("dmnotid.service.dispatcher", "sessions.SessionRequest(*row)", "makes a"),
        ("dmnotid.service.dispatcher", "def make_up():\n    SessionRequest(*row)", "makes a"),
        ("dmnotid.cli.test_hook", "SessionRequest(*row)", "makes a"),
        ("dmnotid.cli.test_hook", "def other():\n    SessionRequest(*row)", "makes a"),
        ("dmnotid.cli.test_hook", "def make_up():\n    VerifiedNotification(*row)", "makes a"),
        ("dmnotid.service.dispatcher", "g()._replace(attempts=1)", "calls _replace on"),
        ("dmnotid.service.dispatcher", "x._replace(not_before=1, expires_at=2)", "calls _replace on"),
        ("dmnotid.policy.sessions", "def verify():\n    SessionRequest(*row)", "makes a"),
        ("dmnotid.policy.sessions", "class SessionRequest:\n    def f(self):\n        SessionRequest(1)", "makes a"),
        (
            "dmnotid.policy.sessions",
            "class SessionRequest:\n    def f(self, other: SessionRequest):\n        other._replace(session=1)",
            "calls _replace on",
        ),
    ],
)
def test_a_wrong_maker_is_found(name: str, source: str, problem: str) -> None:
    problems = list(maker_problems([parsed(name, source)]))
    assert problems
    file = name.replace(".", "/")
    assert problems[0].startswith(f"{file}.py:")
    assert problem in problems[0]


def test_a_wrong_maker_is_found_with_its_line() -> None:
    assert list(maker_problems([parsed("dmnotid.cli.run", "\n\nVerifiedNotification()")])) == [
        "dmnotid/cli/run.py:3: makes a VerifiedNotification, which only dmnotid.policy.authenticity.verify makes"
    ]


def test_an_unknown_replace_is_told_by_its_keywords() -> None:
    """Where it can't be told which class it is, keywords of none of them are let pass."""
    said = [name for name, _ in MAKERS.items() if list(maker_problems([parsed("dmnotid.config", "x._replace(**y)")]))]
    assert said == list(MAKERS)
    assert list(maker_problems([parsed("dmnotid.config", "x._replace(column=1)")])) == []
    assert list(maker_problems([parsed("dmnotid.config", "def f(x: Row):\n    x._replace(source=1)")])) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dmnotid.policy.authenticity", "def verify():\n    return VerifiedNotification(1, 2, 3, 4)"),
        ("dmnotid.policy.authenticity", "class VerifiedNotification(NamedTuple):\n    source: int"),
        ("dmnotid.service.journal", "class J:\n    def admit(self):\n        return SessionRequest._make(row)"),
        ("dmnotid.service.journal", "from x import SessionRequest as S\nrequest = S(*row)._replace(attempts=1)"),
        ("dmnotid.service.daemon", "def f(v: VerifiedNotification) -> list[SessionRequest]:\n    return [g(v)]"),
        ("dmnotid.service.daemon", "isinstance(x, VerifiedNotification)"),
        ("dmnotid.cli.test_hook", "def make_up():\n    return SessionRequest(*row)"),
        ("dmnotid.service.daemon", "rows: dict[int, SessionRequest] = {}"),
        (
            "dmnotid.policy.sessions",
            "class SessionRequest(NamedTuple):\n    def later(self, to):\n        return self._replace(not_before=to)",
        ),
    ],
)
def test_a_right_maker_is_none_of_its_business(name: str, source: str) -> None:
    assert list(maker_problems([parsed(name, source)])) == []
