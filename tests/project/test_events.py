"""docs/events.md has every event of the log and every reason of a discard, as the program has them."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dmnotid.discards import SUSPICIOUS
from dmnotid.errors import discard_reasons
from dmnotid.events import EVENTS
from dmnotid.policy.sessions import Closed
from tests.processes import Service
from tests.project.catalog import CATALOG, PAGE, catalog, rows
from tests.project.sources import modules
from tests.support import further, wait_until

ROOT = Path(__file__).parents[2]
TEXT = PAGE.read_text()

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
LINE_KEYS = {"event", "level", "time", "at", "sentence"}


class Call(NamedTuple):
    """A call that logs. `level` is empty if a variable decides; `keys` are those that the call spells out."""

    place: str
    event: str
    level: str
    keys: set[str]


def calls() -> Iterator[Call]:
    for file, module in modules().items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and node.args:
                # `partial(logger.info, event, …)` is the same call, made later.
                partial = getattr(node.func, "id", "") == "partial"
                func, *arguments = node.args if partial else [node.func, *node.args]
                name = getattr(func, "attr", getattr(func, "id", ""))
                if name == "log" or (name in LEVELS and "log" in ast.unparse(func).rpartition(".")[0]):
                    keys = {"exception" if key.arg == "exc_info" else key.arg for key in node.keywords if key.arg}
                    keys |= {"exception"} if name == "exception" else set()
                    place = f"{file}:{node.lineno}"
                    yield from (Call(place, event, LEVELS.get(name, ""), keys) for event in events(arguments[0]))
            elif isinstance(node, ast.Dict):
                # The log writes one line by itself.
                facts = {ast.unparse(key): value for key, value in zip(node.keys, node.values, strict=True) if key}
                if isinstance(facts.get("'event'"), ast.Constant):
                    event, level = (ast.literal_eval(facts[key]) for key in ("'event'", "'level'"))
                    yield Call(file, event, level, {key.strip("'") for key in facts} - LINE_KEYS)


def events(text: ast.expr) -> list[str]:
    """Return the events that the first argument of a call stands for."""
    if isinstance(text, ast.JoinedStr):
        assert ast.unparse(text) == "f'session {closed}'"
        # A session is cancelled elsewhere, by an operator.
        return [f"session {closed}" for closed in Closed if closed is not Closed.CANCELLED]
    return [str(ast.literal_eval(text))] if isinstance(text, ast.Constant) else []


def test_page_has_every_event_and_no_other() -> None:
    assert sorted(rows()) == sorted({call.event for call in calls()})


def test_every_event_has_a_sentence() -> None:
    # The log and the control socket write a record each that is about records.
    assert sorted(EVENTS) == sorted(rows().keys() - {"log lines dropped", "records missed"})


def test_records_have_the_levels_and_the_keys_of_the_page() -> None:
    page, found = rows(), list(calls())
    assert [call for call in found if call.level and call.level not in page[call.event].levels] == []
    assert [(call, missing) for call in found if (missing := call.keys.difference(page[call.event].keys))] == []


def test_every_key_of_the_page_is_in_the_program() -> None:
    words: set[str] = set()
    for module in modules().values():
        for node in ast.walk(module):
            if isinstance(node, ast.keyword) and node.arg:
                words.add(node.arg)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
    assert {(event, key) for event, row in rows().items() for key in set(row.keys) - words - {"exception"}} == set()


@pytest.mark.parametrize("event", EVENTS)
def test_sentence_uses_keys_of_the_page_alone(event: str) -> None:
    known = EVENTS[event]
    for sentence in (known.sentence, *known.others):
        assert set(re.findall(r"\{([a-z_]+)", sentence)) <= set(rows()[event].keys)


def test_ids_are_different() -> None:
    ids = [event.message_id for event in EVENTS.values() if event.message_id is not None]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{32}", found) for found in ids)


# The catalog


def test_catalog_is_fresh() -> None:
    assert CATALOG.read_text() == catalog(), "run make docs"


@pytest.mark.skipif(shutil.which("journalctl") is None, reason="needs journalctl (systemd)")
def test_catalog_explains_every_event_that_has_an_id(tmp_path: Path) -> None:
    """As systemd itself reads it."""
    there = tmp_path / "usr/lib/systemd/catalog"
    there.mkdir(parents=True)
    shutil.copy(CATALOG, there)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    journalctl = partial(subprocess.run, capture_output=True, text=True, check=True)
    made = journalctl(["journalctl", f"--root={tmp_path}", "--update-catalog"])
    assert made.stderr == ""
    shown = journalctl(["journalctl", f"--root={tmp_path}", "--list-catalog"]).stdout
    listed = {found: subject.lower() for found, subject in re.findall(r"(?m)^([0-9a-f]{32}) dmnotid: (.*)$", shown)}
    assert listed == {event.message_id: name for name, event in EVENTS.items() if event.message_id is not None}


# Reasons

REASON = re.compile(r"(?m)^### ([a-z-]+)\n\n((?:[^#\n].*\n)+)\n```sh\n(.*dmnotid send .*)\n```\n")
PROVOKED = {reason: line for reason, _, line in REASON.findall(TEXT)}


def test_page_has_every_reason_and_no_other() -> None:
    assert sorted(PROVOKED) == discard_reasons()


def test_page_names_the_reasons_that_are_warnings() -> None:
    """As the log of discards has them."""
    (listed,) = re.findall(r"makes an error:\s(.*?), and `duplicate`", TEXT, flags=re.DOTALL)
    suspicious = {kind.reason for kind in SUSPICIOUS}
    assert set(re.findall(r"`([a-z-]+)`", listed)) == suspicious


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of the page, with a port and a directory of this test."""
    directory = tmp_path_factory.mktemp("events")
    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    changed: dict[str, Any] = {"listen": ["127.0.0.1:0"], "state": str(directory / "state")}
    file = directory / "dmnotid.yaml"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(yaml.safe_load(text) | changed))
    return file


@pytest.fixture(scope="module")
def service(file: Path) -> Iterator[Service]:
    """One daemon for all lines."""
    service = Service(file, file.with_name("log"), forked=True)
    yield service
    service.stop()
    for line in service.lines():
        if line["event"] != "daemon stopped":
            assert line.keys() - LINE_KEYS <= set(rows()[line["event"]].keys), line


@pytest.mark.parametrize("reason", [*list(PROVOKED)[:4], *further(*list(PROVOKED)[4:])])
def test_line_of_the_page_provokes_its_reason(service: Service, file: Path, reason: str) -> None:
    host, port = service.address
    program = f"{shlex.quote(sys.executable)} -m dmnotid send --to {host}:{port}"
    line = PROVOKED[reason].replace("dmnotid send", program).replace("FILE", shlex.quote(str(file)))
    before = service.reasons().count(reason)
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=ROOT, env=os.environ | {"XDG_STATE_HOME": str(file.parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wait_until(lambda: service.reasons().count(reason) > before)
