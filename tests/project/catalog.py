"""The catalog of the systemd journal, made of docs/events.md and of the ids in dmnotid/events.py."""

import re
import textwrap
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.events import EVENTS

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs/events.md"
CATALOG: Final = ROOT / "systemd/dmnotid.catalog"

HEAD: Final = """\
# Explains records of dmnotid: `journalctl -x`. Made by `make docs` of docs/events.md.
"""
EVENT: Final = re.compile(r"\*\*(?P<event>[^*]+)\*\* \((?P<levels>[a-z ]+)(?:; (?P<keys>.*?))?\): (?P<meaning>.*)")
"""An entry of the page: `**event** (level; keys): meaning`."""
SESSION_KEYS: Final = ("session", "server_id", "notification_id", "attempt")


class Row(NamedTuple):
    """An event as the page has it."""

    levels: set[str]
    keys: list[str]
    meaning: str


def rows() -> dict[str, Row]:
    """Return every event of the page."""
    events, _, _ = PAGE.read_text(encoding="utf-8").partition("\n## Reasons\n")
    found = {}
    for entry in re.findall(r"(?m)^\* (\*\*.*\n(?: {4}.*\n)*)", events):
        read = EVENT.fullmatch(" ".join(entry.split()))
        assert read is not None, entry
        keys = read["keys"] or ""
        names = re.findall(r"`([a-z_]+)`", keys)
        found[read["event"]] = Row(
            set(read["levels"].split(" or ")),
            [*SESSION_KEYS, *names] if "session keys" in keys else names,
            read["meaning"],
        )
    return found


def catalog() -> str:
    """Return the text of the catalog."""
    entries = [HEAD]
    for event, row in rows().items():
        if event in EVENTS and EVENTS[event].message_id is not None:
            entries.append(
                f"-- {EVENTS[event].message_id}\n"
                f"Subject: {event[0].upper()}{event[1:]}\n"
                "Defined-By: dmnotid\n"
                "Documentation: man:dmnotid(8)\n"
                f"\n{textwrap.fill(_explain(row), 78)}\n"
            )
    return "\n".join(entries)


def _explain(row: Row) -> str:
    """Return the meaning of an event, with the fields of the journal in place of the keys."""

    def name(code: re.Match[str]) -> str:
        return f"DMNOTID_{code[1].upper()}" if code[1] in row.keys else code[1]

    return re.sub("`([^`]*)`", name, row.meaning)
