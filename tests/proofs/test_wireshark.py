"""Wireshark reads what `dmnotid send` emits: a judge that no one here wrote (WAP-230 8.2.4.1; 6)."""

import json
import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from dmnotid.cli import main
from tests.support import DEADLINE

pytestmark = pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark (Wireshark)")

PORT = 2948
LINKTYPE_RAW = 101
IP_OCTETS = 20
UDP_OCTETS = 8

SECRET = b"lantern-and-rope-0042"
CONTENT_TYPE = "<Unknown media type identifier 0x58>"
"""Wireshark knows the code's form, not its name: what it prints for 0x58."""


class Sent(NamedTuple):
    """Options of one `send`, and what tshark must find; `shows` are further fields of its own names and values."""

    options: list[str]
    tid: int = 0
    headers_length: int = 3
    package: str | None = "20000001"
    shows: Mapping[str, Any] = MappingProxyType({})


BARE = ["--unsigned", "--no-server-id", "--id", "1", "--tid", "0"]
SIGNED = ["--secret-file", "SECRET", "--id", "1", "--tid", "0", "--time", "1735689600"]


def bare(*headers: str, octets: int, **shows: object) -> Sent:
    """Return what further headers of so many octets must look like."""
    options = [word for text in headers for word in ("--header", text)]
    found = {f"wsp.{name.replace('__', '.')}": value for name, value in shows.items()}
    return Sent(BARE + options, headers_length=3 + octets, shows=found)


def long_header(octets: int) -> Sent:
    """Return one with HeadersLen `octets`."""
    value = "a" * (octets - 3 - len("X-Long\0") - 1)
    return bare(f"X-Long: {value}", octets=octets - 3, header_text_value=value)


GRID: dict[str, Sent] = {
    "smallest": Sent(BARE),
    **{f"tid {tid}": Sent([*BARE, "--tid", str(tid)], tid) for tid in (1, 127, 128, 255)},
    "tid from id": Sent(["--unsigned", "--no-server-id", "--id", "0x1234"], 0x34, package="20001234"),
    "server id": Sent(["--unsigned", "--server", "dm", *BARE[2:]], package="20800001 1002 646d"),
    "prefer": Sent([*BARE, "--prefer", "wireline,mobile,any"], package="20800001 2003 030100"),
    "prefer nothing": Sent([*BARE, "--prefer", ""], package="20800001 2000"),
    "req-mo": Sent([*BARE, "--req-mo", "1,65535"], package="20800001 3004 0001ffff"),
    "req-mo-cv": Sent([*BARE, "--req-mo-cv", "3:deadbeef"], package="20800001 4006 0003deadbeef"),
    "signed": Sent(["--server", "dm", *SIGNED], package=None),
    "signed without server id": Sent(["--no-server-id", *SIGNED], package=None),
    "everything": Sent(
        [
            *["--server", "m\u00fcn", *SIGNED, "--tid", "200", "--prefer", "mobile", "--req-mo", "1"],
            *["--req-mo-cv", "2:00000000", "--header", "0x34: 1", "--header", "X-A: b"],
        ],
        tid=200,
        headers_length=11,
        package=None,
        shows={"wsp.header.push_flag": " (Initiator URI authenticated)", "wsp.header_text_value": "b"},
    ),
    "push flag": bare("0x34: 3", octets=2, header__push_flag=" (Initiator URI authenticated) (Content trusted)"),
    "content length": bare("hex:8d 84", octets=2, header__content_length="4"),
    "content length, long": bare("0x0d: 300", octets=4, header__content_length="300"),
    "date": bare("0x12: 1735689600", octets=6, header__date="Jan  1, 2025 00:00:00"),
    "kannel": bare("hex:8d90", "hex:c393", octets=4, header__content_length="16", header__encoding_version="1.3"),
    "user agent": bare("0x29: Kannel/1.4.5", octets=14, header__user_agent="Kannel/1.4.5"),
    "text": bare("X-Note: hello", octets=13, header__name_string="X-Note", header_text_value="hello"),
    "initiator": bare("0x31: dm.example.com", octets=16, header__initiator_uri="dm.example.com"),
    "code page and back": bare("hex:7f02", "hex:7f01", "hex:8d84", octets=6, code_page=["2", "1"]),
    "code page, short": bare("hex:02", "hex:01", "0x34: 1", octets=4, code_page=["2", "1"]),
    "no header at all": bare("hex:", octets=0),
    **{f"headers of {octets}": long_header(octets) for octets in (48, 49, 126, 127, 128, 129, 300, 1300)},
    "headers of 16383": long_header(16_383),
    "headers of 16384": long_header(16_384),
}


def ip_packet(datagram: bytes) -> bytes:
    udp = struct.pack(">HHHH", 40_000, PORT, UDP_OCTETS + len(datagram), 0)
    size = IP_OCTETS + len(udp) + len(datagram)
    loopback = bytes([127, 0, 0, 1])
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 17, 0, loopback, loopback) + udp + datagram


def write_pcap(file: Path, datagrams: list[bytes]) -> None:
    """Write datagrams as a capture of raw IP packets, 1970 and all."""
    with file.open("wb") as capture:
        capture.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0xFFFF, LINKTYPE_RAW))
        for datagram in datagrams:
            packet = ip_packet(datagram)
            capture.write(struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet)


Layers = dict[str, Any]


def judge(file: Path) -> list[Layers]:
    """Return what one run of tshark makes of a capture, a packet each."""
    done = subprocess.run(
        ["tshark", "-n", "-r", str(file), "-d", f"udp.port=={PORT},wsp", "-T", "json", "-x", "--no-duplicate-keys"],
        capture_output=True,
        timeout=2 * DEADLINE,
        check=True,
    )
    return [packet["_source"]["layers"] for packet in json.loads(done.stdout)]


class Judged(NamedTuple):
    """What was sent, and what tshark says of it."""

    datagram: bytes
    layers: Layers


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Judged]:
    """Send the whole grid, and have it judged at once."""
    directory = tmp_path_factory.mktemp("wireshark")
    secret = directory / "secret"
    secret.write_bytes(SECRET)
    datagrams = [
        emitted([str(secret) if word == "SECRET" else word for word in sent.options]) for sent in GRID.values()
    ]
    write_pcap(directory / "grid.pcap", datagrams)
    return dict(zip(GRID, map(Judged, datagrams, judge(directory / "grid.pcap")), strict=True))


def emitted(options: list[str]) -> bytes:
    """Return the datagram that `send --print` shows."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lines.append)
        assert main(["send", "--print", "--force", *options]) == 0
    (line,) = lines
    return bytes.fromhex(line)


def find(layer: Any, name: str) -> list[Any]:  # noqa: ANN401 - JSON
    """Return all values of a field, however deep they stand."""
    if isinstance(layer, list):
        return [value for entry in layer for value in find(entry, name)]
    if not isinstance(layer, dict):
        return []
    values = [layer[name]] if name in layer else []
    values = values[0] if values and isinstance(values[0], list) else values
    return values + [value for key, below in layer.items() if key != name for value in find(below, name)]


@pytest.mark.parametrize("name", GRID)
def test_wireshark_reads_the_push(name: str, judged: dict[str, Judged]) -> None:
    sent, layers = GRID[name], judged[name].layers
    assert layers["frame"]["frame.protocols"] == "raw:ip:udp:wsp:media", "nothing is malformed, nothing is left"
    wsp = layers["wsp"]
    assert int(wsp["wsp.TID"], 16) == sent.tid
    assert int(wsp["wsp.pdu_type"], 16) == 0x06
    assert int(wsp["wsp.headers_length"]) == sent.headers_length
    assert wsp["wsp.header.content_type"] == CONTENT_TYPE
    assert find(wsp, "wsp.header.x_wap_application_id") == ["x-wap-application:syncml.dm"]
    for field, value in sent.shows.items():
        # Versions differ in how much they say of a time.
        found = [text.removesuffix(" UTC").removesuffix(".000000000") for text in find(wsp, field)]
        assert found == (value if isinstance(value, list) else [value]), field


@pytest.mark.parametrize("name", GRID)
def test_wireshark_finds_the_body_where_it_is(name: str, judged: dict[str, Judged]) -> None:
    """Offset and length of what it takes for data, as it counts them in the packet."""
    sent, (datagram, layers) = GRID[name], judged[name]
    shown, offset, length, *_ = (
        layers["media.type_raw"] if "media.type_raw" in layers else find(layers, "media.type_raw")
    )
    at = offset - IP_OCTETS - UDP_OCTETS
    uintvar = 1 if sent.headers_length < 0x80 else 2 if sent.headers_length < 0x4000 else 3
    assert at == 2 + uintvar + sent.headers_length
    assert length == len(datagram) - at
    assert bytes.fromhex(shown) == datagram[at:]
    if sent.package is not None:
        assert datagram[at:] == bytes.fromhex(sent.package)


def test_wireshark_takes_junk_for_junk(tmp_path: Path) -> None:
    """The judge does see what is wrong: HeadersLen beyond the datagram, and another PDU type."""
    good = bytes.fromhex("010603d8af8720000001")
    write_pcap(tmp_path / "junk.pcap", [good, good[:2] + b"\x7f" + good[3:], good[:1] + b"\x04" + good[2:]])
    first, second, third = judge(tmp_path / "junk.pcap")
    assert first["frame"]["frame.protocols"] == "raw:ip:udp:wsp:media"
    assert second["frame"]["frame.protocols"] != "raw:ip:udp:wsp:media"
    assert third["wsp"]["wsp.pdu_type"] == "0x04"
