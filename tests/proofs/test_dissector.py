"""The Wireshark dissector of contrib/ against all vectors: it shows what `dmnotid decode --json` shows."""

import json
import random
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from dmnotid.cli import main
from dmnotid.wire.wsp import WAP_PUSH_PORT
from tests.proofs.test_vectors import EVERY, Row
from tests.proofs.test_wireshark import IP_OCTETS, UDP_OCTETS, Layers, find, write_pcap
from tests.support import DEADLINE, IS_ROOT

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark (Wireshark)")

SCRIPT: Final = Path(__file__).parents[2] / "contrib/dmnotid.lua"
PREFIX: Final = "dm_notification"
PAYLOAD: Final = IP_OCTETS + UDP_OCTETS

# Wireshark calls no dissector for an empty payload.
ROWS: Final = {f"{number}-{row['name']}": row for number, row in enumerate(EVERY) if row["hex"]}


def judge(capture: Path, *options: str) -> list[Layers]:
    """Return what tshark with the dissector makes of each packet of a capture."""
    done = subprocess.run(
        ["tshark", "-n", "-X", f"lua_script:{SCRIPT}", *options,
         "-r", capture, "-T", "json", "-x", "--no-duplicate-keys"],
        capture_output=True, text=True, timeout=4 * DEADLINE, check=True,
    )  # fmt: skip
    assert "Lua" not in done.stderr, done.stderr
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


def decode(octets: str) -> Row:
    """Return what `decode --json` prints."""
    with redirect_stdout(StringIO()) as output:
        main(["decode", "--json", octets])
    decoded: Row = json.loads(output.getvalue())
    return decoded


class Both(NamedTuple):
    """What the two make of one datagram."""

    decoded: Row
    layers: Layers

    def shown(self, name: str) -> list[Any]:
        """Return all values of a field of the dissector."""
        return find(self.layers[PREFIX], f"{PREFIX}.{name}")

    def raw(self, name: str) -> list[tuple[str, int]]:
        """Return the octets of every field of that name, with their offsets in the datagram."""
        found = find_raw(self.layers, f"{PREFIX}.{name}_raw")
        return [(octets, at - PAYLOAD) for octets, at, *_ in found]


def find_raw(layer: Any, name: str) -> Iterator[list[Any]]:  # noqa: ANN401 - JSON
    """Yield each entry of `-x` for a field: its octets in hex, its offset in the packet, and more."""
    if isinstance(layer, list):
        for below in layer:
            yield from find_raw(below, name)
    elif isinstance(layer, dict):
        for key, below in layer.items():
            if key != name:
                yield from find_raw(below, name)
            # One entry, or a list of them.
            elif isinstance(below[0], list):
                yield from below
            else:
                yield below


@pytest.fixture(scope="module", autouse=True)
def _needs_lua() -> None:
    version = subprocess.run(["tshark", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"TShark .*?(\d+)\.(\d+)", version)
    assert found, version
    if IS_ROOT and (int(found[1]), int(found[2])) >= (4, 4):
        pytest.skip("needs another user than root: this version of tshark loads no Lua scripts for root")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Both]:
    capture = tmp_path_factory.mktemp("dissector") / "vectors.pcap"
    write_pcap(capture, [bytes.fromhex(row["hex"]) for row in ROWS.values()])
    found = judge(capture)
    return {name: Both(decode(row["hex"]), layers) for (name, row), layers in zip(ROWS.items(), found, strict=True)}


def test_every_vector_is_dissected_without_an_error_of_lua(both: dict[str, Both]) -> None:
    assert [name for name, it in both.items() if PREFIX not in it.layers or "Lua Error" in str(it.layers)] == []


def facts_shown(it: Both) -> Row:
    """Return the facts that the dissector shows, as `decode --json` has them. A SERVER-ID is shown as received."""
    package = it.raw("package")
    found: Row = {
        "reason": only(it.shown("reason")),
        "package": package[0][0] if package else "",
        "body_offset": package[0][1] if package else None,
    }
    if found["reason"] is not None:
        return found
    cached = zip(it.shown("cached_mo"), it.shown("cached_mo.validator"), strict=True)
    server_id = only(it.shown("server_id"))
    return found | {
        "notification_id": int(it.shown("id")[0]),
        "server_id": server_id and unicodedata.normalize("NFC", server_id),
        "preferred_connections": (only(it.shown("preference")) or "").split(", "),
        "requested_mos": [int(index) for index in it.shown("requested_mo")],
        "cached_mos": [[int(index), validator.replace(":", "")] for index, validator in cached],
        "sent_at": only([int(octets, 16) for octets, _ in it.raw("sent_at")]),
        "signed": bool(it.shown("digest")),
        # Wireshark has no octets for a value without any.
        "unknown_options": [octets for octets, _ in it.raw("unknown_option")],
    }


def facts_decoded(it: Both, octets: str) -> Row:
    """Return the same facts from `decode --json`."""
    decoded = it.decoded
    at = decoded["body_offset"]
    package = "" if at is None else octets[2 * at :]
    found: Row = {"reason": decoded["reason"], "package": package, "body_offset": at if package else None}
    if decoded["reason"] is not None:
        return found
    same = ("notification_id", "server_id", "requested_mos", "cached_mos", "sent_at", "signed")
    return found | {key: decoded[key] for key in same} | {
        "preferred_connections": ", ".join(decoded["preferred_connections"]).split(", "),
        "unknown_options": [value for _, value in decoded["unknown_options"] if value],
    }  # fmt: skip


def only(values: list[Any]) -> Any:  # noqa: ANN401 - JSON
    """Return the only value of a list, or None of an empty one."""
    assert len(values) < 2
    return values[0] if values else None


def test_dissector_shows_the_facts_of_decode(both: dict[str, Both]) -> None:
    found = {name: facts_shown(it) for name, it in both.items()}
    assert found == {name: facts_decoded(it, ROWS[name]["hex"]) for name, it in both.items()}


Place = tuple[str, int]
"""A field, and the offset of an octet of the datagram."""


def place_decoded(it: Both) -> Place | None:
    """Return where octets break the specification, from the problem that `decode --json` prints."""
    broken = re.match(r"(Push PDU|DM Notification): (.+) at octet (\d+): ", it.decoded.get("problem") or "")
    if not broken:
        return None
    pdu, field, at = broken.groups()
    return field, int(at) + (it.decoded["body_offset"] if pdu == "DM Notification" else 0)


def place_shown(it: Both) -> Place | None:
    """Return the same from the dissector: only octets that break the specification are malformed."""
    if not find(it.layers, f"{PREFIX}.malformed"):
        return None
    return it.shown("reason.field")[0], int(it.shown("reason.offset")[0])


def test_dissector_marks_the_field_and_octet_of_decode(both: dict[str, Both]) -> None:
    found = {name: place_shown(it) for name, it in both.items()}
    assert found == {name: place_decoded(it) for name, it in both.items()}


def changed(count: int) -> list[bytes]:
    """Return vectors with a few octets replaced, removed, inserted or cut off, the same ones in each run."""
    chance = random.Random(1)  # noqa: S311 - no secret
    found: list[bytes] = []
    while len(found) < count:
        octets = bytearray.fromhex(chance.choice(EVERY)["hex"])
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(octets) + 1)
            likely = chance.choice([0, 1, 6, 7, 31, 32, 127, 128, 255, 0x58, 0x87, 0xAF, 0xD8])
            inserted = chance.choice([b"", bytes([likely]), chance.randbytes(1)])
            octets[at : at + chance.choice([0, 1, 1, 1, len(octets)])] = inserted
        if octets:
            found.append(bytes(octets))
    return found


def test_dissector_and_decode_agree_on_changed_vectors(tmp_path: Path) -> None:
    datagrams = changed(600)
    write_pcap(tmp_path / "changed.pcap", datagrams)
    for datagram, layers in zip(datagrams, judge(tmp_path / "changed.pcap"), strict=True):
        it = Both(decode(datagram.hex()), layers)
        assert facts_shown(it) == facts_decoded(it, datagram.hex())
        # `decode` escapes the name of a field.
        shown, decoded = place_shown(it), place_decoded(it)
        assert (shown and shown[1]) == (decoded and decoded[1]), datagram.hex()


def test_push_for_another_application_has_the_tree_of_wireshark(both: dict[str, Both]) -> None:
    reasons = {it.decoded["reason"] for it in both.values() if "wsp" in it.layers}
    assert reasons >= {"not-a-push", "content-type-mismatch", "application-id-missing", "application-id-mismatch"}
    assert reasons.isdisjoint({None, "truncated", "malformed-field", "trailing-octets", "unsupported-version"})


def test_preferences_choose_ports_and_limits(tmp_path: Path) -> None:
    capture = tmp_path / "one.pcap"
    write_pcap(capture, [bytes.fromhex("010603d8af8720000001")])
    for settings, tree, reason in [
        (["ports:2949"], "wsp", []),
        (["max_header_octets:2"], PREFIX, ["push-header-too-long"]),
        (["ports:2947-2948", "max_octets:9"], PREFIX, ["push-too-long"]),
        (["wsp_too:TRUE"], "wsp", []),
    ]:
        (layers,) = judge(capture, *(word for text in settings for word in ("-o", f"{PREFIX}.{text}")))
        assert tree in layers, settings
        assert find(layers, f"{PREFIX}.reason") == reason, settings
    assert WAP_PUSH_PORT == 2948


def test_datagram_that_the_capture_cuts_is_not_malformed(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.pcap", tmp_path / "cut.pcap"
    write_pcap(whole, [bytes.fromhex("010603d8af8720000001")])
    octets = bytearray(whole.read_bytes())
    # The record header after the 24 octets of the file's: time, captured length, length.
    octets[32:36] = (int.from_bytes(octets[32:36], "little") - 2).to_bytes(4, "little")
    cut.write_bytes(octets[:-2])
    (layers,) = judge(cut)
    assert PREFIX not in layers
    assert "wsp" in layers
