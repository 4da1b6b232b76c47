"""Writes config/dmnotid.schema.json and the lists of docs/configuration.md from the table of configuration keys.

`make docs` runs it, and it also writes the completion of the command line, the catalog of the systemd journal and the
picture of the README. In the page, a list is between `<!-- keys: NAME… -->` and `<!-- end -->`, and has every key of
the sections that the comment names; everything else of the page is written by hand.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Any, Final

from dmnotid.config import kinds
from dmnotid.config.checker import Choice, Duration, Number, Value, read_boolean, read_path
from dmnotid.config.durations import spell
from dmnotid.config.keys import KEYS, SECTIONS, Key
from dmnotid.config.secrets import FORMS, MAX_SECRET_OCTETS
from tests.project.catalog import CATALOG, catalog
from tests.project.completion import COMPLETION_FILE, completion
from tests.project.picture import PICTURE, SOURCE, draw

ROOT: Final = Path(__file__).parents[2]
SCHEMA_FILE: Final = ROOT / "config/dmnotid.schema.json"
PAGE: Final = ROOT / "docs/configuration.md"
WIDTH: Final = 100
"""Longest line of a list, in characters."""

DESCRIPTION: Final = (
    "The keys of dmnotid.yaml. `dmnotid check` also checks what a schema cannot express: files, secrets and durations "
    "that do not fit each other."
)
PATH: Final = {"type": "string", "minLength": 1, "not": {"pattern": "^~"}}
ADDRESS: Final = {"type": "string", "pattern": r"^(\[[0-9A-Fa-f:.]+(%[^\s/:%\]]{1,15})?\]|[0-9.]+)(:[0-9]{1,5})?$"}
NETWORKS: Final = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "pattern": r"^[0-9A-Fa-f:.]+(/[0-9.]+)?$"},
}
DOOR: Final = kinds.DOOR_NAME
SOURCES: Final = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "pattern": rf"^([0-9A-Fa-f:.]+(/[0-9.]+)?|{DOOR})$"},
}
NAME: Final = {"type": "string", "minLength": 1, "maxLength": kinds.MAX_PATTERN, "pattern": r"^[^\s/:]+$"}
BASE64: Final = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)$"

DURATIONS: Final[dict[bool, tuple[str, dict[str, Any]]]] = {
    True: ("duration", {"type": "string", "pattern": "^0*[1-9][0-9]{0,11}(ms|s|m|h|d)$"}),
    False: ("duration or 0", {"anyOf": [{"type": "string", "pattern": "^(0|[0-9]{1,12}(ms|s|m|h|d))$"}, {"const": 0}]}),
}
"""The type of a duration, by whether 0 is refused."""

READERS: Final[dict[Callable[[Value], Any], tuple[str, dict[str, Any]]]] = {
    read_boolean: ("true or false", {"type": "boolean"}),
    read_path: ("path", PATH),
    kinds.read_server_id: ("text", {"type": "string", "minLength": 1}),
    kinds.read_sources: ("list of networks and doors", SOURCES),
    kinds.read_door_name: ("name of a door", {"type": "string", "pattern": f"^{DOOR}$"}),
    kinds.read_mode: ("octal text", {"type": "string", "pattern": "^0?[0-7]{2}[0145]$"}),
    kinds.read_group: ("text", {"type": "string", "pattern": r"^[^\s:,/]+$"}),
    kinds.read_reach: ("`internet`, `any` or a list of networks", {"anyOf": [{"enum": ["internet", "any"]}, NETWORKS]}),
    kinds.read_listen: (
        "address, or a list of them",
        {"anyOf": [ADDRESS, {"type": "array", "minItems": 1, "items": ADDRESS}]},
    ),
    kinds.read_command: (
        "list of text",
        {
            "type": "array",
            "minItems": 1,
            "prefixItems": [{"type": "string", "pattern": "^/"}],
            "items": {"type": "string"},
        },
    ),
    kinds.read_socket: ("path", {**PATH, "maxLength": kinds.MAX_SOCKET_PATH}),
    kinds.read_environment: (
        "mapping of text",
        {
            "type": "object",
            "propertyNames": {"pattern": "^(?!DMNOTID_)[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": {"type": "string"},
        },
    ),
    kinds.read_interfaces: ("list of text", {"type": "array", "minItems": 1, "items": NAME}),
    kinds.read_last_day: ("date", {"type": "string", "format": "date", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}),
    FORMS["text"]: ("text", {"type": "string", "minLength": 1, "maxLength": MAX_SECRET_OCTETS}),
    FORMS["hex"]: ("text", {"type": "string", "pattern": r"^\s*([0-9A-Fa-f]{2}\s*)+$"}),
    FORMS["base64"]: ("text", {"type": "string", "pattern": BASE64}),
    FORMS["file"]: ("path", PATH),
    FORMS["credential"]: ("text", {"type": "string", "pattern": r"^(?!\.{1,2}$)[^/]+$"}),
}
"""The type of every reader that is a function: in words, and as a schema."""

RULES: Final[dict[str, dict[str, Any]]] = {
    "servers[]": {
        "anyOf": [
            {"required": ["secret"]},
            {"required": ["require_digest"], "properties": {"require_digest": {"const": False}}},
        ]
    },
    "servers[].secret": {"minProperties": 1, "maxProperties": 1},
    "servers[].former_secret": {"oneOf": [{"required": [form]} for form in FORMS]},
    "hook": {
        "oneOf": [
            {"required": ["command"], "properties": {"socket": False}},
            {"required": ["socket"], "properties": dict.fromkeys(("command", "environment", "kill_after"), False)},
        ]
    },
}
"""Rules about several keys of a section."""


def type_of(key: Key) -> tuple[str, dict[str, Any]]:
    """Return the type of a key: in words, and as a schema."""
    read = key.read
    if key.path in SECTIONS:
        section, can_be_off = section_schema(key.path), read is kinds.read_control
        return ("mapping or `off`", {"anyOf": [{"const": False}, section]}) if can_be_off else ("mapping", section)
    if f"{key.path}[]" in SECTIONS:
        return "list", {"type": "array", "minItems": 1, "items": section_schema(f"{key.path}[]")}
    if isinstance(read, Number):
        words = f"number{' of ' * bool(read.unit)}{read.unit}, {read.low} to {read.high}"
        return words, {"type": "integer", "minimum": read.low, "maximum": read.high}
    if isinstance(read, Choice):
        *others, last = (f"`{word}`" for word in read.words)
        return f"{', '.join(others)} or {last}", {"enum": list(read.words)}
    if isinstance(read, Duration):
        words, kind = DURATIONS[read.low > 0]
        return (f"{words}, or null", {"anyOf": [*kind["anyOf"], {"type": "null"}]}) if read.optional else (words, kind)
    assert read is not None
    return READERS[read]


def default_of(key: Key) -> object:
    """Return the default of a key as the file would have it; None if it has none."""
    if isinstance(key.read, Duration) and key.default is not None:
        return spell(key.default)
    if key.read is kinds.read_listen:
        return str(key.default[0])
    if key.read is kinds.read_mode:
        return f"{key.default:04o}"
    if key.default in (None, (), {}):
        return None
    return str(key.default) if key.read is read_path else key.default


def section_schema(path: str) -> dict[str, Any]:
    """Return the schema of a mapping."""
    keys = SECTIONS[path]
    required = [name for name, key in keys.items() if key.required or key.path == "hook"]
    return {
        "type": "object",
        "additionalProperties": False,
        **({"required": required} if required else {}),
        **RULES.get(path, {}),
        "properties": {name: key_schema(key) for name, key in keys.items()},
    }


def key_schema(key: Key) -> dict[str, Any]:
    """Return the schema of a key."""
    default = default_of(key)
    return {
        **type_of(key)[1],
        **({} if default is None else {"default": default}),
        "description": key.sentence.replace("`", ""),
    }


def schema() -> str:
    """Return the text of the schema."""
    root = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dmnotid configuration",
        "description": DESCRIPTION.replace("`", ""),
        **section_schema(""),
    }
    return json.dumps(root, indent=2, ensure_ascii=False) + "\n"


def key_list(names: list[str]) -> str:
    """Return the list of all keys of some sections; a key for a mapping has no item unless it has a reader."""
    items = []
    for key in KEYS:
        if re.split(r"[.\[]", key.path)[0] in names and key.read is not None:
            default = json.dumps(default_of(key)).strip('"')
            more = "; required" if key.required else "" if default == "null" else f"; default: `{default}`"
            item = f"* `{key.path}` ({type_of(key)[0]}{more}): {key.sentence}"
            items.append(fill(item, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(items)


def page(text: str) -> str:
    """Return the page with its lists made again."""
    return re.sub(
        r"<!-- keys: ([a-z_ ]+) -->\n.*?<!-- end -->",
        lambda found: f"<!-- keys: {found[1]} -->\n{key_list(found[1].split())}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    COMPLETION_FILE.write_text(completion(), encoding="utf-8")
    CATALOG.write_text(catalog(), encoding="utf-8")
    PICTURE.write_text(draw(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
