"""`dmnotid decode`: every way in, every way out, and how far it goes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.cli.decode import Judge, answer, decide
from dmnotid.policy.addresses import Source
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import Clock
from dmnotid.wire.notification import ConnectionType, encode_notification
from dmnotid.wire.wsp import encode_push
from tests.cli.program import PROGRAM, SECRET, SERVER_ID, Done, Terminal, call, dmnotid, shows_secret, write_config
from tests.proofs.test_vectors import FACTS

NOW = 1_735_689_600

GOOD = "010603d8af8720000001"
PACKAGE = "20000001"
NOT_A_PUSH = "010703d8af8720000001"

KEYS = {"verdict", "reason", *FACTS}
"""What every JSON object of `decode` holds."""

VECTORS = Path(__file__).parents[1] / "proofs" / "vectors" / "decode.jsonl"


def signed(server_id: str | None = SERVER_ID, secret: bytes = SECRET, sent_at: int = NOW) -> bytes:
    package = encode_notification(
        7,
        server_id=server_id,
        preferred_connections=[ConnectionType.MOBILE, ConnectionType.ANY],
        requested_mos=[1, 2],
        cached_mos=[(3, bytes.fromhex("deadbeef"))],
        sent_at=sent_at,
        unknown_options=[(9, b"\x01\x02")],
    )
    return encode_push(sign(package, secret))


def shown(words: list[str]) -> Done:
    return call("decode", *words)


def asked(words: list[str]) -> Any:  # noqa: ANN401 - JSON
    """Return the one JSON object that `decode --json` answers with, and see that the exit status goes with it."""
    done = shown(["--json", *words])
    found = json.loads(done.out)
    assert done.status == (found["verdict"] != "accept")
    assert done.err == ""
    return found


# --- Ways in


def test_hex_arguments_are_joined() -> None:
    together = shown([GOOD])
    assert together.status == 0
    assert together.out.endswith("accepted: well-formed; server, digest and age need --config\n\n")
    assert shown([GOOD[:5], GOOD[5:].upper()]) == together
    assert shown([" ".join(GOOD[at : at + 2] for at in range(0, len(GOOD), 2))]) == together


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["01", "0g"], "arguments: column 5: 'g' is not a hex digit"),
        (["01", "060"], "arguments: column 6: the number of hex digits (5) is odd, two make an octet"),
        (["\x1b[31m"], "arguments: column 1: '\\x1b' is not a hex digit"),
    ],
)
def test_argument_that_is_not_hex_is_reported_with_its_column(words: list[str], problem: str) -> None:
    assert shown(words) == Done(1, "", problem + "\n")


def test_empty_argument_is_an_empty_datagram() -> None:
    """`dmnotid decode "$NOTHING"` must not wait for standard input."""
    done = shown([""])
    assert done.status == 1
    assert done.out.startswith("discarded: truncated at octet 0 of 0: ")


LINES = f"""\
# a comment, then a blank line, then one of spaces

   \t
{GOOD}
  01 06 03 D8 AF 87  20 00 00 01   # all kinds of it
01 06 0x
{NOT_A_PUSH}\r
010
{GOOD}"""


def test_standard_input_has_one_datagram_a_line() -> None:
    """A line that is not hex is reported with its place, and the rest is decoded; the last line needs no line break."""
    done = call("decode", given=LINES.encode())
    verdicts = [line.partition(":")[0] for line in done.out.splitlines() if line[:1] in {"a", "d"}]
    assert verdicts == ["accepted", "accepted", "discarded", "accepted"]
    assert done.err.splitlines() == [
        "line 6: column 8: 'x' is not a hex digit",
        "line 8: column 3: the number of hex digits (3) is odd, two make an octet",
    ]
    assert done.status == 1


def test_package_of_standard_input_is_marked() -> None:
    """As `discards` marks those of a door."""
    done = dmnotid("decode", given=f"package {PACKAGE}\n{GOOD}\npackage {GOOD}\n{PACKAGE} # package\n".encode())
    verdicts = [line.partition(": ")[2] for line in done.out.splitlines() if line[:1] in {"a", "d"}]
    reasons = ["well-formed;", "well-formed;", "unsupported-version", "not-a-push:"]
    assert [verdict.partition(" ")[0] for verdict in verdicts] == reasons


DUMPS = {
    "xxd": "00000000: 0106 03d8 af87 2000 0001                 ...... ...\n",
    "xxd-later": "00000010: 0106 03d8 af87 2000 0001                 ...... ...\n",
    "hexdump-C": "00000000  01 06 03 d8 af 87 20 00  00 01                    |...... ...|\n0000000a\n",
    "hexdump": "0000000 0601 d803 87af 0020 0100\n000000a\n",
    "od": "0000000 001 006 003\n0000012\n",
    "wireshark": "0000  01 06 03 d8 af 87 20 00 00 01\n0010  20 00 00 01\n",
    "tcpdump": "\t0x0000:  4500 0026 d1f5 4000 4011 6acf 7f00 0001\n\t0x0010:  7f00 0001 8a1b 0b84\n",
    "no-text": "0000 01 06 03 d8 af 87 20 00 00 01\n",
}


@pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS)
def test_hex_dump_with_offsets_is_refused_whole(dump: str) -> None:
    """Its rows would be read as one datagram each, with the offsets as octets."""
    problem = "looks like a row of a hex dump: the octets alone are expected, on one line (raw octets: --file FILE)"
    done = call("decode", given=f"{GOOD}\n{dump}".encode())
    assert (done.status, done.err) == (1, f"line 2: {problem}\n")
    assert done.out.count("accepted") == 1
    assert "discarded" not in done.out
    assert shown([dump]) == Done(1, "", f"arguments: {problem}\n")


@pytest.mark.parametrize("datagram", ["0000", "00000000", "0106 03d8 af87 2000 0001", "0006 03d8 af87 2000 0001"])
def test_datagram_in_words_is_not_a_hex_dump(datagram: str) -> None:
    done = call("decode", given=f"{datagram}\n{GOOD}\n".encode())
    assert (done.err, done.out.count("accepted: ") + done.out.count("discarded: ")) == ("", 2)


@pytest.mark.parametrize(
    ("datagram", "octet"),
    [
        ("06 05 04 0b 84 23 f0 01 06 03 d8 af 87 20 00 00 01", 7),
        ("05 04 0b 84 23 f0 01 06 03 d8 af 87 20 00 00 01", 6),
        ("0b 05 04 0b 84 23 f0 00 03 a1 02 01 01 06 03 d8 af 87 20 00 00 01", 12),
    ],
)
def test_push_after_an_sms_header_is_refused_with_a_hint(datagram: str, octet: int) -> None:
    found = asked([datagram])
    assert found["reason"] == "not-a-push"
    assert f"the octets before octet {octet} look like an SMS user data header" in found["problem"]


def test_application_id_as_text_is_named_as_text() -> None:
    found = asked(["01 06 04 d8 af 37 00 20 00 00 01"])
    assert found["problem"] == "X-Wap-Application-Id is the text '7', the integer 7 or its URI is expected"


def test_json_of_standard_input_is_in_order() -> None:
    done = call("decode", "--json", given=LINES.encode())
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["verdict"], row["reason"]) for row in found] == [
        ("accept", None),
        ("accept", None),
        ("error", None),
        ("discard", "not-a-push"),
        ("error", None),
        ("accept", None),
    ]
    assert found[2]["problem"] == "line 6: column 8: 'x' is not a hex digit"


@pytest.mark.parametrize("given_", [b"", b"\n\n", b"# nothing\n", b"   "])
def test_input_without_a_datagram_prints_nothing(given_: bytes) -> None:
    assert call("decode", given=given_) == Done(0, "", "")


def test_input_that_is_not_utf8_is_reported_with_its_column() -> None:
    done = call("decode", given=b"00\xff\n" + GOOD.encode() + b" # caf\xe9\n")
    assert done.status == 1
    assert done.err.startswith("line 1: column 3: ")
    assert "Traceback" not in done.err
    assert done.out.endswith("accepted: well-formed; server, digest and age need --config\n\n")


def test_file_is_one_datagram(tmp_path: Path) -> None:
    """Raw octets, none of which is a line's end or a comment's beginning."""
    datagram = encode_push(encode_notification(0x0A23), tid=0x0A)
    file = tmp_path / "datagram"
    file.write_bytes(datagram)
    done = shown(["--file", str(file)])
    assert done == shown([datagram.hex()])
    assert done.status == 0
    assert call("decode", "--file", "-", given=datagram) == done


def test_empty_file_is_an_empty_datagram(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()
    done = shown(["--file", str(file)])
    assert (done.status, done.err) == (1, "")
    assert done.out == (
        "discarded: truncated at octet 0 of 0: Push PDU: HeadersLen at octet 0: the datagram ends before it\n\n"
    )
    assert call("decode", "--file", "-") == done


def test_unreadable_file_is_reported(tmp_path: Path) -> None:
    assert shown(["--file", str(tmp_path)]) == Done(1, "", f"{tmp_path}: Is a directory\n")
    missing = tmp_path / "none"
    assert shown(["--file", str(missing)]) == Done(1, "", f"{missing}: No such file or directory\n")


def test_file_and_hex_together_are_refused(tmp_path: Path) -> None:
    done = shown(["--file", str(tmp_path / "none"), GOOD])
    assert done.status == 2
    assert "--file" in done.err


@pytest.mark.parametrize("words", [["--at", "now"], ["--source", "::1"]])
def test_options_of_the_configuration_need_it(words: list[str]) -> None:
    done = shown([*words, GOOD])
    assert done.status == 2
    assert "--at and --source are for the checks that --config FILE adds" in done.err


def test_package_is_decoded_without_a_push() -> None:
    done = shown(["--package", PACKAGE])
    assert done.status == 0
    assert done.out.startswith("        0  20                        VER              2\n")
    assert shown(["--package", GOOD]).out.splitlines()[-2] == (
        "discarded: unsupported-version at octet 0 of 10: "
        "DM Notification: VER at octet 0: is 0, 2 is expected [01 06 03 d8 af 87 20 00 00 01]"
    )
    assert asked(["--package", PACKAGE])["body_offset"] == 0
    assert shown([PACKAGE]).out.endswith("discarded: not-a-push: the PDU type is 0x00, Push is expected\n\n")


# --- The place of the problem

DM = "DM Notification"


@pytest.mark.parametrize(
    ("datagram", "verdict"),
    [
        ("", "truncated at octet 0 of 0: Push PDU: HeadersLen at octet 0: the datagram ends before it"),
        (NOT_A_PUSH, "not-a-push: the PDU type is 0x07, Push is expected"),
        (
            "010603d8af",
            "truncated at octet 2 of 5: Push PDU: HeadersLen at octet 2: needs 3 octets, 2 are left [03 d8 af]",
        ),
        (
            "010604d8af870020000001",
            (
                "malformed-field at octet 6 of 11: "
                "Push PDU: code page at octet 6: is 0, which is neither a field nor a page [00]"
            ),
        ),
        (
            GOOD + "ff",
            f"trailing-octets at octet 10 of 11: {DM}: end at octet 4: 1 octets follow the last of 0 Options [ff]",
        ),
        (
            "010603d8af8720800001100261ff",
            f"malformed-field at octet 13 of 14: {DM}: SERVER-ID at octet 7: is not UTF-8: invalid start byte [ff]",
        ),
        (
            "010603d8af872080000130030001",
            f"truncated at octet 12 of 14: {DM}: Option Value at octet 6: needs 3 octets, 2 are left [00 01]",
        ),
    ],
)
def test_verdict_has_the_octet_of_the_problem(datagram: str, verdict: str) -> None:
    done = shown([datagram])
    assert done.status == 1
    assert done.out.splitlines()[-2] == f"discarded: {verdict}"


# --- JSON


def test_json_has_every_fact() -> None:
    assert asked([signed().hex()]) == {
        "verdict": "accept",
        "reason": None,
        "body_offset": 6,
        "notification_id": 7,
        "server_id": SERVER_ID,
        "preferred_connections": ["mobile", "any"],
        "requested_mos": [1, 2],
        "cached_mos": [[3, "deadbeef"]],
        "sent_at": NOW,
        "signed": True,
        "unknown_options": [[9, "0102"]],
    }


def test_json_of_a_package_without_options_has_empty_facts() -> None:
    found = asked([GOOD])
    assert found["sent_at"] is None
    assert found["server_id"] is None
    assert found["signed"] is False
    assert [found[key] for key in ("preferred_connections", "requested_mos", "cached_mos")] == [[], [], []]


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda more: bytes.fromhex(GOOD) + more))
def test_json_has_every_key_always(octets: bytes) -> None:
    found = answer(decide(octets, Judge(bare=False, rules=None, source=Source("::", 0), clock=Clock(0))))
    assert found.keys() >= KEYS
    assert (found["verdict"] == "accept") is (found["reason"] is None)
    assert json.loads(json.dumps(found)) == found


def test_json_has_every_key_for_input_that_is_not_hex() -> None:
    assert json.loads(shown(["--json", "zz"]).out).keys() >= KEYS


def test_json_agrees_with_the_vectors() -> None:
    """Through a process, a line each."""
    rows = [row for row in map(json.loads, VECTORS.read_text(encoding="utf-8").splitlines()) if row.get("hex")]
    done = dmnotid("decode", "--json", given="".join(row["hex"] + "\n" for row in rows).encode())
    found = [json.loads(line) for line in done.out.splitlines()]
    assert len(found) == len(rows) > 100
    for row, got in zip(rows, found, strict=True):
        wanted = row["decode"]
        assert {key: got[key] for key in wanted} == wanted, row["name"]


# --- On to server, digest and age


def test_configuration_adds_server_digest_and_age(tmp_path: Path) -> None:
    config = ["--config", str(write_config(tmp_path)), "--at", str(NOW + 90)]
    done = shown([*config, signed().hex()])
    assert done.status == 0
    assert done.out.splitlines()[-2] == f"accepted: signed by '{SERVER_ID}', 90 s before 2025-01-01T00:01:30Z"
    assert asked([*config, signed().hex()])["server"] == SERVER_ID
    assert asked([*config, signed(server_id=None).hex()])["server"] == SERVER_ID


def test_unreadable_secrets_are_reported_once_and_not_provisioned(tmp_path: Path) -> None:
    former = b"a former lantern, 0041"
    servers = f"""
    - {{id: {SERVER_ID}, secret: {{text: {SECRET.decode()}}}, former_secret: {{text: "{former.decode()}"}}}}
    - {{id: elsewhere, secret: {{credential: none}}}}
    - {{id: gone, secret: {{file: none}}}}
    """
    config = write_config(tmp_path, servers)
    words = ["--config", str(config), "--at", str(NOW)]
    done = shown([*words, signed().hex()])
    assert (done.status, done.out.splitlines()[-2].partition(",")[0]) == (0, f"accepted: signed by '{SERVER_ID}'")
    problems = [line.partition(": ")[2] for line in done.err.splitlines()]
    assert [problem.partition(": ")[0] for problem in problems] == [
        "servers[1].secret.credential",
        "servers[2].secret.file",
    ]
    assert all(problem.endswith("; decode continues without this secret") for problem in problems)
    assert "\ndiscarded: secret-not-provisioned: " in shown([*words, signed("gone").hex()]).out
    by_former = shown([*words, signed(secret=former).hex()]).out
    assert f"accepted: signed by '{SERVER_ID}' with its former secret, " in by_former


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (signed("other.example"), "unknown-server"),
        (signed(secret=SECRET[::-1]), "digest-mismatch"),
        (signed(sent_at=NOW - 86_401), "stale"),
        (signed(sent_at=NOW + 601), "from-the-future"),
        (encode_push(encode_notification(1, server_id=SERVER_ID)), "digest-missing"),
        (encode_push(encode_notification(1)), "server-undiscovered"),
    ],
)
def test_well_formed_datagram_is_refused_by_the_configuration(datagram: bytes, reason: str, tmp_path: Path) -> None:
    """Its facts are shown all the same."""
    config = ["--config", str(write_config(tmp_path, more="freshness: {max_skew: 10m}\n")), "--at", str(NOW)]
    assert asked([datagram.hex()])["verdict"] == "accept"
    found = asked([*config, datagram.hex()])
    assert (found["verdict"], found["reason"], found["body_offset"]) == ("discard", reason, 6)
    assert found["notification_id"] is not None
    assert f"\ndiscarded: {reason}: " in shown([*config, datagram.hex()]).out


@pytest.mark.parametrize("at", ["2025-01-01T00:00:00Z", "2025-01-01T01:00:00+01:00", str(NOW)])
def test_at_is_believed_as_given(at: str, tmp_path: Path) -> None:
    """Even before the program's release."""
    config = ["--config", str(write_config(tmp_path, more="freshness: {max_skew: 10m}\n")), "--at", at]
    assert asked([*config, signed(sent_at=NOW + 601).hex()])["reason"] == "from-the-future"
    assert asked([*config, signed(sent_at=NOW).hex()])["verdict"] == "accept"


def test_age_is_measured_from_now_by_default(tmp_path: Path) -> None:
    config = ["--config", str(write_config(tmp_path))]
    assert asked([*config, signed().hex()])["reason"] == "stale"


@pytest.mark.parametrize("at", ["1735689600000", "now-999999d", "9" * 400])
def test_at_that_no_clock_shows_is_refused(at: str, tmp_path: Path) -> None:
    """Milliseconds, for example."""
    done = shown(["--config", str(write_config(tmp_path)), "--at", at, signed().hex()])
    assert (done.status, done.out) == (2, "")
    assert done.err.endswith(f" error: argument --at: {at!r}: a time in the years 1 to 9999 is expected\n")


@pytest.mark.parametrize("at", [["--at", "now-2d"], ["--at=now-2d"]])
def test_at_accepts_a_time_relative_to_now(at: list[str], tmp_path: Path) -> None:
    assert asked(["--config", str(write_config(tmp_path)), *at, GOOD])["verdict"] == "discard"


NEAR = "- {id: dm.example.com, secret: {text: lantern-and-rope-0042}, sources: [192.0.2.0/24, '2001:db8::/32']}"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, None),
        ("192.0.2.255", None),
        ("2001:db8::1", None),
        ("192.0.3.1", "source-not-allowed"),
        ("::", "source-not-allowed"),
        ("fe80::1%eth0", "source-not-allowed"),
    ],
)
def test_source_is_compared_with_the_sources_of_the_server(
    source: str | None, reason: str | None, tmp_path: Path
) -> None:
    words = ["--config", str(write_config(tmp_path, NEAR)), "--at", str(NOW), signed().hex()]
    assert asked([*words, *([] if source is None else ["--source", source])])["reason"] == reason


DOORS = "doors: [{path: /run/x, holds: push}, {path: /run/y, holds: package}]\n"
THROUGH_SMS = "- {id: dm.example.com, secret: {text: lantern-and-rope-0042}, sources: [192.0.2.0/24, sms]}"


def test_door_is_compared_with_the_sources_of_the_server(tmp_path: Path) -> None:
    """4."""
    config = ["--config", str(write_config(tmp_path, THROUGH_SMS, DOORS)), "--at", str(NOW), signed().hex()]
    assert asked([*config, "--source", "sms"])["verdict"] == "accept"
    assert asked([*config, "--source", "local"])["reason"] == "source-not-allowed"
    done = shown([*config, "--source", "mqtt"])
    assert done.status == 2
    assert "has no door of that name; the doors are local, sms" in done.err


def test_push_header_limit_is_that_of_the_configuration(tmp_path: Path) -> None:
    datagram = encode_push(encode_notification(1), further=[("X-A", "b" * 41)]).hex()
    assert asked([datagram])["reason"] == "push-header-too-long"
    config = write_config(tmp_path, "- {id: a, require_digest: false}", "push: {max_header_octets: 49}\n")
    assert asked(["--config", str(config), datagram])["verdict"] == "accept"


def test_unsigned_notification_is_accepted_if_the_server_allows_it(tmp_path: Path) -> None:
    config = write_config(tmp_path, "- {id: a, require_digest: false}")
    assert shown(["--config", str(config), GOOD]).out.splitlines()[-2] == (
        "accepted: from 'a', unsigned, which its configuration allows"
    )


def test_bare_package_is_verified_with_a_configuration(tmp_path: Path) -> None:
    config = ["--config", str(write_config(tmp_path)), "--at", str(NOW), "--package"]
    assert asked([*config, signed()[6:].hex()])["verdict"] == "accept"


def test_missing_configuration_is_reported(tmp_path: Path) -> None:
    done = shown(["--config", str(tmp_path / "none"), GOOD])
    assert (done.status, done.out) == (1, "")
    assert done.err == f"{tmp_path}/none: cannot be read: No such file or directory\n"


def test_nothing_is_written(tmp_path: Path) -> None:
    """Neither the journal nor any other file of the configuration."""
    config = write_config(tmp_path, more=f"state: {tmp_path}/state\n")
    before = sorted(tmp_path.rglob("*"))
    assert shown(["--config", str(config), "--at", str(NOW), signed().hex()]).status == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    for datagram in (signed(), signed(secret=b"other"), signed("other")):
        for words in ([], ["--json"]):
            done = shown([*words, "--config", config, "--at", str(NOW), datagram.hex()])
            assert not shows_secret(done.out + done.err)


# --- Terminals


def test_terminal_gets_colour() -> None:
    with Terminal(*PROGRAM, "decode", GOOD) as terminal:
        assert "\x1b[32maccepted\x1b[0m: " in terminal.read_all()
        assert terminal.process.wait() == 0
    with Terminal(*PROGRAM, "decode", NOT_A_PUSH) as terminal:
        assert "\x1b[31mdiscarded: not-a-push\x1b[0m: " in terminal.read_all()
        assert terminal.process.wait() == 1


@pytest.mark.parametrize(("words", "no_color"), [([], "1"), (["--json"], "")])
def test_colour_is_left_out_on_request_and_in_pipes(words: list[str], no_color: str) -> None:
    with Terminal(*PROGRAM, "decode", *words, GOOD, NO_COLOR=no_color) as terminal:
        text = terminal.read_all()
    assert "accept" in text
    assert "\x1b" not in text
    assert "\x1b" not in call("decode", GOOD).out


HOSTILE = "A\x1b]0;owned\x07\x1b[2J\x9b31m"


def test_hostile_text_does_not_reach_the_terminal(tmp_path: Path) -> None:
    header = encode_push(encode_notification(1), further=[("X-" + HOSTILE, HOSTILE), (0x31, HOSTILE)])
    server_id = HOSTILE.encode()
    package = bytes.fromhex("20800001") + (0x1000 | len(server_id)).to_bytes(2, "big") + server_id
    unknown = encode_push(encode_notification(1, server_id="a\u202eb\u200bc"))
    content_type = encode_push(b"", content_type=HOSTILE)
    application = encode_push(b"", application=HOSTILE)
    datagrams = (header, encode_push(package), unknown, content_type, application)
    lines = tmp_path / "lines"
    lines.write_text("".join(f"{datagram.hex()}\n" for datagram in datagrams))
    config = ["--config", str(write_config(tmp_path))]
    for words in ([], config, ["--json"], [*config, "--json"]):
        with Terminal(*PROGRAM, "decode", *words, given=lines, NO_COLOR="1") as terminal:
            text = terminal.read_all()
        assert len([line for line in text.splitlines() if line.startswith(("accepted", "discarded", "{"))]) == 5
        assert all(line.isprintable() for line in text.splitlines()), text


def test_standard_input_stays_open() -> None:
    """A second command in the same process may read it, too."""
    script = "from dmnotid.cli import main; import os; main(['decode']); os.fstat(0); main(['decode', '00'])"
    with Terminal(sys.executable, "-Werror", "-c", script) as terminal:
        assert "Traceback" not in terminal.read_all()
        assert terminal.process.wait() == 0
