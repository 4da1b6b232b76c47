"""The schema, the lists of docs/configuration.md, the completion and the picture are those that `make docs` writes."""

import re

import jsonschema

from dmnotid.config.keys import KEYS
from tests.project.completion import COMPLETION_FILE, completion
from tests.project.generate import PAGE, SCHEMA_FILE, page, schema, section_schema
from tests.project.picture import PICTURE, SOURCE, draw


def test_schema_is_fresh() -> None:
    assert SCHEMA_FILE.read_text() == schema(), "run make docs"


def test_lists_are_fresh() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run make docs"


def test_completion_is_fresh() -> None:
    assert COMPLETION_FILE.read_text() == completion(), "run make docs"


def test_picture_is_fresh() -> None:
    assert PICTURE.read_text() == draw(SOURCE.read_text()), "run make docs"


def test_lists_have_every_key_once() -> None:
    found = re.findall(r"(?m)^\* `([^`]+)` \(.+?\)[:\n]", PAGE.read_text())
    assert sorted(found) == sorted(key.path for key in KEYS if key.read is not None)


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(section_schema(""))


def test_stale_list_is_replaced_and_other_text_is_kept() -> None:
    text = "before\n<!-- keys: log -->\nold\n<!-- end -->\nafter\n"
    made = page(text)
    assert made.startswith("before\n<!-- keys: log -->\n* `log.level` (")
    assert made.endswith(".\n<!-- end -->\nafter\n")
    assert "old" not in made
    assert page(made) == made


def test_sentence_is_one_sentence() -> None:
    sentences = [key.sentence for key in KEYS]
    assert [text for text in sentences if "|" in text or not re.fullmatch(r"[A-Z`].*\.", text)] == []
