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
from tests.support import IS_ROOT

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
        capture_output=True, text=True, timeout=120, check=True,
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


@pytest.mark.parametrize("name", ROWS)
def test_dissector_shows_the_facts_of_decode(name: str, both: dict[str, Both]) -> None:
    it = both[name]
    decoded = it.decoded
    assert it.shown("reason") == ([] if decoded["reason"] is None else [decoded["reason"]])
    assert len(it.shown("package")) == (decoded["body_offset"] is not None)
    for octets, at in it.raw("package"):
        assert (octets, at) == (ROWS[name]["hex"][2 * at :], decoded["body_offset"])
    if decoded["verdict"] != "accept":
        return
    assert it.shown("id") == [str(decoded["notification_id"])]
    # decode compares and shows a SERVER-ID in NFC.
    assert [unicodedata.normalize("NFC", text) for text in it.shown("server_id")] == listed(decoded["server_id"])
    assert it.shown("preference") == listed(", ".join(decoded["preferred_connections"]) or None)
    assert [int(index) for index in it.shown("requested_mo")] == decoded["requested_mos"]
    cached = zip(it.shown("cached_mo"), it.shown("cached_mo.validator"), strict=True)
    assert [[int(index), validator.replace(":", "")] for index, validator in cached] == decoded["cached_mos"]
    assert [int(octets, 16) for octets, _ in it.raw("sent_at")] == listed(decoded["sent_at"])
    assert len(it.shown("digest")) == decoded["signed"]
    unknown = [octets for octets, _ in it.raw("unknown_option")]
    assert unknown == [value for _, value in decoded["unknown_options"] if value]


def listed(value: object) -> list[object]:
    """Return a list of a value, without None."""
    return [] if value is None else [value]


@pytest.mark.parametrize("name", ROWS)
def test_dissector_marks_the_field_and_octet_of_decode(name: str, both: dict[str, Both]) -> None:
    """Octets that break the specification are malformed; a push for others is not."""
    it = both[name]
    broken = re.match(r"(Push PDU|DM Notification): (.+) at octet (\d+): ", it.decoded.get("problem") or "")
    assert len(find(it.layers, f"{PREFIX}.malformed")) == bool(broken)
    if broken:
        pdu, field, at = broken.groups()
        assert it.shown("reason.field") == [field]
        begins = it.decoded["body_offset"] if pdu == "DM Notification" else 0
        assert it.shown("reason.offset") == [str(begins + int(at))]


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
        assert it.shown("reason") == listed(it.decoded["reason"]), datagram.hex()
        broken = re.search(r"^(?:Push PDU|DM Notification): .+ at octet (\d+): ", it.decoded.get("problem") or "")
        if broken:
            begins = it.decoded["body_offset"] or 0
            assert it.shown("reason.offset") == [str(begins + int(broken[1]))], datagram.hex()


def test_push_for_another_application_has_the_tree_of_wireshark(both: dict[str, Both]) -> None:
    reasons = {it.decoded["reason"] for it in both.values() if "wsp" in it.layers}
    assert reasons >= {"not-a-push", "content-type-mismatch", "application-id-missing", "application-id-mismatch"}
    assert reasons.isdisjoint({None, "truncated", "malformed-field", "trailing-octets", "unsupported-version"})


def test_preferences_choose_ports_and_limits(tmp_path: Path) -> None:
    capture = tmp_path / "one.pcap"
    write_pcap(capture, [bytes.fromhex("010603d8af8720000001")])
    for settings, tree, reason in [
        (["ports:2947-2948"], PREFIX, []),
        (["ports:2949"], "wsp", []),
        (["max_header_octets:2"], PREFIX, ["push-header-too-long"]),
        (["max_octets:9"], PREFIX, ["push-too-long"]),
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
