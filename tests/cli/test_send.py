"""`dmnotid send`: the effect of each option on the octets, checked with the decoder; ids, sockets, secrets, errors."""

import fcntl
import json
import re
import socket
import subprocess
import time
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

import pytest

from dmnotid.cli.order import BREAKS, PACKAGE_BREAKS
from dmnotid.errors import Discard
from dmnotid.policy.addresses import Source, show_address
from dmnotid.policy.digest import is_signed_with
from dmnotid.policy.freshness import Clock
from dmnotid.policy.reception import Datagram, Handover, Rules, receive
from dmnotid.policy.routing import check_route
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import ConnectionType, Notification, decode_notification
from dmnotid.wire.octets import FieldValue
from dmnotid.wire.wsp import PushMessage, decode_push, fields, header_border
from tests.cli.program import (
    PATIENCE,
    PROGRAM,
    SECRET,
    SERVER_ID,
    Done,
    call,
    dmnotid,
    shows_secret,
    through_shell,
    write_config,
)
from tests.support import wait_until

UNSIGNED = ["--unsigned", "--server", SERVER_ID]


@pytest.fixture
def signed(secret_file: Path) -> list[str]:
    """The words by which a notification is signed."""
    return ["--server", SERVER_ID, "--secret-file", str(secret_file)]


def run(words: list[str]) -> Done:
    return call("send", *words)


def printed(words: list[str]) -> list[bytes]:
    """Return the lines of `--print`, which has no other output."""
    done = run(["--print", *words])
    assert (done.status, done.err) == (0, "")
    return [bytes.fromhex(line) for line in done.out.splitlines()]


def decoded(words: list[str]) -> tuple[PushMessage, Notification]:
    """Return the one datagram of `--print` as the receiver reads it."""
    (datagram,) = printed(words)
    push = decode_push(datagram, max_header_octets=5000)
    check_route(push.header)
    return push, decode_notification(push.body)


def ids(words: list[str]) -> list[int]:
    return [decode_notification(decode_push(octets).body).notification_id for octets in printed(words)]


# --- What each option does


def test_unsigned_notification_without_server_id_is_the_smallest() -> None:
    """5.1.1: VER is 2, and no Option is needed."""
    assert printed(["--unsigned", "--no-server-id", "--id", "1"]) == [bytes.fromhex("010603d8af8720000001")]


def test_notification_is_signed_as_a_server_must(signed: list[str]) -> None:
    """5.3.5, steps 1 to 3: the time is now, and the digest fits the secret and no other."""
    before = int(time.time())
    _, notification = decoded(signed)
    assert notification.server_id == SERVER_ID
    assert notification.sent_at is not None
    assert before <= notification.sent_at <= time.time()
    assert is_signed_with(notification, SECRET)
    assert not is_signed_with(notification, SECRET[:-1])


def test_notification_has_only_the_requested_options() -> None:
    push, notification = decoded([*UNSIGNED, "--id", "7"])
    assert notification.octets == bytes.fromhex("20800007100e") + SERVER_ID.encode()
    assert push.body_offset == 6


def test_unsigned_notification_has_no_digest(signed: list[str]) -> None:
    assert not decoded([*signed, "--unsigned"])[1].signed


def test_no_server_id_leaves_the_option_out(secret_file: Path) -> None:
    for server in ([], ["--server", SERVER_ID]):
        _, notification = decoded([*server, "--no-server-id", "--secret-file", str(secret_file)])
        assert notification.server_id is None
        assert is_signed_with(notification, SECRET)


@pytest.mark.parametrize("reason", BREAKS)
def test_broken_notification_is_discarded_for_that_reason(reason: str, tmp_path: Path) -> None:
    config = ["--config", str(write_config(tmp_path))]
    for words in ([], ["--id", "7", "--prefer", "mobile", "--header", "X-A: b"]):
        (octets,) = printed([*config, "--break", reason, *words])
        assert json.loads(call("decode", *config, "--json", octets.hex()).out)["reason"] == reason


def test_package_is_printed_without_a_push(signed: list[str]) -> None:
    """6.2: for a bearer that needs no push."""
    words = [*signed, "--id", "7", "--time", "2025-01-01T00:00:00Z"]
    (push,) = printed(words)
    (package,) = printed([*words, "--package"])
    assert package == decode_push(push).body


@pytest.mark.parametrize("reason", PACKAGE_BREAKS)
def test_broken_package_is_discarded_for_that_reason(reason: str, signed: list[str]) -> None:
    (octets,) = printed([*signed, "--package", "--break", reason])
    rules = Rules(Servers([Server(SERVER_ID, SECRET)]))
    datagram = Datagram(octets, Source("local", None), time.time(), Handover(bare=True, pid=1, uid=0))
    with pytest.raises(Discard) as caught:
        receive(datagram, rules, Clock(time.time()))
    assert caught.value.reason == reason


def test_broken_notification_uses_no_id_of_the_daemon(tmp_path: Path, receiver: socket.socket) -> None:
    config = ["--config", str(write_config(tmp_path))]
    assert "remembers" in run([*config, *to(receiver)]).out
    assert "remembers" not in run([*config, "--break", "truncated", *to(receiver)]).out


@pytest.mark.parametrize(("text", "wanted"), [("0", 0), ("65535", 65535), ("0x1F", 31)])
def test_id_is_the_notification_id(text: str, wanted: int) -> None:
    push, notification = decoded([*UNSIGNED, "--id", text])
    assert notification.notification_id == wanted
    assert push.tid == wanted & 0xFF


@pytest.mark.parametrize("tid", [0, 1, 255])
def test_tid_is_given_or_the_last_octet_of_the_id(tid: int) -> None:
    assert decoded([*UNSIGNED, "--id", "77", "--tid", str(tid)])[0].tid == tid


@pytest.mark.parametrize(
    ("text", "octets", "wanted"),
    [
        ("mobile", "01", ("mobile",)),
        ("wireline, wireless,mobile", "030201", ("wireline", "wireless", "mobile")),
        ("mobile,any", "0100", ("mobile", "any")),
        ("", "", ()),
    ],
)
def test_prefer_is_the_preferred_connections(text: str, octets: str, wanted: tuple[str, ...]) -> None:
    _, notification = decoded(["--unsigned", "--no-server-id", "--prefer", text])
    assert notification.preferred_connections == tuple(map(ConnectionType, wanted))
    assert notification.octets[4:] == (0x2000 | len(wanted)).to_bytes(2, "big") + bytes.fromhex(octets)


@pytest.mark.parametrize(("text", "wanted"), [("1", (1,)), ("0, 0xffff,1", (0, 65535, 1)), ("", ())])
def test_req_mo_is_the_requested_mos(text: str, wanted: tuple[int, ...]) -> None:
    _, notification = decoded([*UNSIGNED, "--req-mo", text])
    assert notification.requested_mos == wanted
    assert notification.octets[1] & 0x80 == 0, "an Option of no octets is one, too"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3:deadbeef", ((3, b"\xde\xad\xbe\xef"),)),
        ("3:deadbeef, 65535:00 00 00 01", ((3, b"\xde\xad\xbe\xef"), (65535, b"\0\0\0\1"))),
        ("", ()),
    ],
)
def test_req_mo_cv_is_the_cached_mos(text: str, wanted: tuple[tuple[int, bytes], ...]) -> None:
    _, notification = decoded([*UNSIGNED, "--req-mo-cv", text])
    assert notification.cached_mos == wanted
    assert notification.octets[1] & 0x80 == 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("0", 0),
        ("4294967295", 0xFFFF_FFFF),
        ("1800000000.9", 1_800_000_000),
        ("2025-01-01T00:00:00Z", 1_735_689_600),
    ],
)
def test_time_is_the_signed_time(text: str, wanted: int, signed: list[str]) -> None:
    _, notification = decoded([*signed, "--time", text])
    assert notification.sent_at == wanted
    assert is_signed_with(notification, SECRET)


def test_signed_time_may_be_relative_to_now(signed: list[str]) -> None:
    before = time.time()
    sent_at = decoded([*signed, "--time", "now-2d"])[1].sent_at
    assert sent_at is not None
    assert before - 172_801 < sent_at <= time.time() - 172_800


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("X-Name: text", ("X-Name", "text")),
        ("X-Name:a:b", ("X-Name", "a:b")),
        ("X-Empty:", ("X-Empty", "")),
        ("X-Latin: caf\xe9", ("X-Latin", "caf\xe9")),
        ("X-Quoted: \xe9", ("X-Quoted", "\xe9")),
        ("0x34: 1", (0x34, 1)),
        ("0x12: 1735689600", (0x12, bytes.fromhex("67748580"))),
        ("0x31: push.example", (0x31, "push.example")),
        ("hex:8d90", (0x0D, 0x10)),
        ("hex: 8D 02 01 2c", (0x0D, b"\x01\x2c")),
    ],
)
def test_header_is_encoded(text: str, wanted: tuple[int | str, FieldValue]) -> None:
    (datagram,) = printed([*UNSIGNED, "--header", text])
    start, end = header_border(datagram)
    application, further = fields(datagram[start:end], 1)
    assert application.name == 0x2F
    assert (further.name, further.value) == wanted


def test_headers_keep_their_order() -> None:
    words = ["--header", "hex:8d90", "--header", "hex:", "--header", "X-A: b", "--header", "hex:7f02af81"]
    (datagram,) = printed(["--unsigned", "--no-server-id", "--id", "1", *words])
    assert datagram[3:] == bytes.fromhex("d8af87 8d90 582d4100 6200 7f02af81 20000001")


def test_headers_above_127_octets_are_encoded() -> None:
    (datagram,) = printed([*UNSIGNED, "--force", "--header", f"X-Long: {'a' * 200}"])
    assert datagram[2:4] == bytes.fromhex("8153")
    assert header_border(datagram) == (4, 4 + 0xD3)


@pytest.mark.parametrize("count", [48, 49])
def test_headers_above_48_octets_are_sent_by_force_alone(count: int) -> None:
    """6.1: the sender must not, so no NOTIFICATION-ID is used up either."""
    words = [*UNSIGNED, "--id", "1", "--header", f"P: {'p' * (count - 6)}"]
    (forced,) = printed([*words, "--force"])
    assert header_border(forced) == (3, 3 + count)
    if count == 48:
        assert printed(words) == [forced]
        return
    done = run(["--print", *words])
    assert done.status == 2
    problem = "the push headers have 49 octets, at most 48 are allowed (6.1): leave some out, or use --force"
    assert done.err.endswith(f"{problem}\n")


def test_all_options_are_encoded_together(secret_file: Path) -> None:
    """5.2, 5.3: in rising order, each once."""
    words = ["--id", "9", "--prefer", "mobile,wireless", "--req-mo", "1,2", "--req-mo-cv", "3:deadbeef"]
    words += ["--time", "1735689600", "--tid", "8"]
    push, notification = decoded(["--server", "mün", "--secret-file", str(secret_file), "--header", "0x34: 1", *words])
    assert push.tid == 8
    assert notification[:9] == (
        *(9, "mün", (ConnectionType.MOBILE, ConnectionType.WIRELESS), b"", b"\0\1\0\2", b"\0\3\xde\xad\xbe\xef"),
        *(1_735_689_600, notification.digest, len(notification.octets) - 32),
    )
    assert is_signed_with(notification, SECRET)


# --- From which server


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("secret", [SECRET, b"\x00\xff binary \r octets"])
def test_secret_file_loses_one_line_break(secret: bytes, ending: bytes, tmp_path: Path) -> None:
    """And the configuration reads the same file the same way."""
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_bytes(secret + ending)
    config = write_config(tmp_path, f"- {{id: {SERVER_ID}, secret: {{file: {file}}}}}")
    for words in (["--server", SERVER_ID, "--secret-file", str(file)], ["--config", str(config)]):
        assert is_signed_with(decoded(words)[1], secret)


def test_secret_file_keeps_further_line_breaks(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for octets, wanted in ((SECRET + b"\n\n", SECRET + b"\n"), (SECRET + b"\r", SECRET + b"\r")):
        file.write_bytes(octets)
        _, notification = decoded(["--server", SERVER_ID, "--secret-file", str(file)])
        assert is_signed_with(notification, wanted)


TWO_SERVERS = """\
- {id: dm.example.com, secret: {text: lantern-and-rope-0042}}
- {id: "caf\u00e9", secret: {hex: 00112233445566778899aabbccddeeff}}
- {id: open, require_digest: false}
"""


def test_only_server_of_a_configuration_is_the_default(tmp_path: Path) -> None:
    words = ["--config", str(write_config(tmp_path))]
    for more in ([], ["--server", SERVER_ID]):
        _, notification = decoded([*words, *more])
        assert notification.server_id == SERVER_ID
        assert is_signed_with(notification, SECRET)
    assert decoded([*words, "--no-server-id"])[1].server_id is None


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_server_is_chosen_among_those_of_the_configuration(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    server_id = unicodedata.normalize(form, "caf\u00e9")
    _, notification = decoded(["--config", str(write_config(tmp_path, TWO_SERVERS)), "--server", server_id])
    assert notification.server_id == "caf\u00e9"
    assert is_signed_with(notification, bytes.fromhex("00112233445566778899aabbccddeeff"))


UNREADABLE = f"""\
- {{id: dm.example.com, secret: {{text: {SECRET.decode()}}}, former_secret: {{file: none}}}}
- {{id: elsewhere, secret: {{credential: none}}}}
- {{id: gone, secret: {{file: none}}}}
"""


def test_only_the_secret_of_the_chosen_server_is_read(tmp_path: Path) -> None:
    config = str(write_config(tmp_path, UNREADABLE))
    _, notification = decoded(["--config", config, "--server", SERVER_ID])
    assert is_signed_with(notification, SECRET)
    for server in ("elsewhere", "gone"):
        done = run(["--print", "--config", config, "--server", server])
        assert done.status == 1
        assert f".secret.{'credential' if server == 'elsewhere' else 'file'}: " in done.err
    key = tmp_path / "key"
    key.write_bytes(b"another secret, from a file")
    _, notification = decoded(["--config", config, "--server", "gone", "--secret-file", str(key)])
    assert is_signed_with(notification, key.read_bytes())
    _, notification = decoded(["--config", config, "--server", "elsewhere", "--unsigned"])
    assert not notification.signed


def test_secret_file_overrides_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "other"
    file.write_text("another secret of its own\n")
    _, notification = decoded(["--config", str(write_config(tmp_path)), "--secret-file", str(file)])
    assert is_signed_with(notification, b"another secret of its own")


def test_server_without_secret_may_send_unsigned(tmp_path: Path) -> None:
    words = ["--config", str(write_config(tmp_path, TWO_SERVERS)), "--server", "open", "--unsigned"]
    assert decoded(words)[1].server_id == "open"


NO_SECRET = "a secret is needed to sign: --secret-file FILE, or --config FILE with one (or --unsigned)"

PROBLEMS = [
    (
        ["--server", "a", "--secret-file", "HERE/none"],
        "dmnotid send: --secret-file HERE/none: No such file or directory",
    ),
    (["--server", "a", "--secret-file", "HERE"], "dmnotid send: --secret-file HERE: Is a directory"),
    (["--server", "a", "--secret-file", "HERE/empty"], "dmnotid send: --secret-file HERE/empty: is empty"),
    (["--config", "HERE/none"], "HERE/none: cannot be read: No such file or directory"),
    (["--unsigned", "--server", "a" * 4096], "dmnotid send: length of SERVER-ID is 0 to 4095, not 4096"),
    (
        ["--unsigned", "--server", "a", "--req-mo", ",".join(["1"] * 2048)],
        "dmnotid send: length of REQ-MO is 0 to 4095, not 4096",
    ),
]


@pytest.mark.parametrize(("words", "problem"), PROBLEMS)
def test_problem_is_reported_and_nothing_sent(words: list[str], problem: str, tmp_path: Path) -> None:
    config = write_config(tmp_path, TWO_SERVERS)
    (tmp_path / "empty").write_bytes(b"\n")

    def filled(text: str) -> str:
        return text.replace("CONFIG", str(config)).replace("HERE", str(tmp_path))

    assert run(["--print", *map(filled, words)]) == Done(1, "", filled(problem) + "\n")


ONE_OF_THEM = "expected one of 'dm.example.com', 'caf\u00e9', 'open'"
NO_SERVER = "--server ID is needed (or --no-server-id, or --config with one server)"
LEFT_OUT = "which --unsigned leaves out"
PACKAGE = [*UNSIGNED, "--package"]
OF_THE_PUSH = "--tid and --header are parts of the push, which --package leaves out"
NOT_TOGETHER = [
    (["--config", "CONFIG"], f"--server is missing; {ONE_OF_THEM}"),
    (["--config", "CONFIG", "--server", "other"], f"--server 'other' is not in CONFIG; {ONE_OF_THEM}"),
    (["--config", "CONFIG", "--server", "open"], NO_SECRET),
    (["--server", SERVER_ID], NO_SECRET),
    ([], NO_SERVER),
    (["--unsigned"], NO_SERVER),
    (["--unsigned", "--server", ""], "argument --server: '': is empty"),
    (["--unsigned", "--server", "a\tb"], r"argument --server: 'a\tb': holds U+0009, which no SERVER-ID may hold"),
    (["--unsigned", "--server", "a", "--time", "now"], f"--time is part of the digest, {LEFT_OUT}"),
    (
        [*UNSIGNED, "--break", "digest-mismatch"],
        "--break digest-mismatch breaks the digest, which --unsigned leaves out",
    ),
    (PACKAGE, "--package is for a door (--to unix:/PATH) or --print: over UDP, a push is needed"),
    ([*PACKAGE, "--print", "--tid", "1"], OF_THE_PUSH),
    ([*PACKAGE, "--print", "--header", "X-A: b"], OF_THE_PUSH),
    (
        [*PACKAGE, "--print", "--break", "not-a-push"],
        f"--break not-a-push breaks the push; with --package: {', '.join(PACKAGE_BREAKS)}",
    ),
]


@pytest.mark.parametrize(("words", "problem"), NOT_TOGETHER)
def test_option_without_a_needed_one_is_refused(words: list[str], problem: str, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, TWO_SERVERS))
    done = run([word.replace("CONFIG", config) for word in words])
    assert done.status == 2
    assert done.err.endswith(f"dmnotid send: error: {problem.replace('CONFIG', config)}\n")


# --- Wrong options


WRONG = [
    *[
        (["--to", text], "HOST[:PORT], [ADDRESS]:PORT or unix:/PATH is expected")
        for text in ("", ":1", "a:0", "a:65536", "[::1", "unix:x")
    ],
    *[(["--count", text], "a number from 1 to 1000000000 is expected") for text in ("0", "-1", "x", "1000000001")],
    *[
        (["--rate", text], "a number of datagrams a second, above 0, is expected")
        for text in ("0", "-1", "x", "inf", "nan")
    ],
    *[(["--id", text], "a number from 0 to 65535 is expected") for text in ("65536", "-1", "x", "")],
    *[(["--tid", text], "a number from 0 to 255 is expected") for text in ("256", "x")],
    *[(["--prefer", text], "a list of any, mobile, wireless, wireline is expected") for text in ("Mobile", "mobile,")],
    *[(["--req-mo", text], "a number from 0 to 65535 is expected") for text in ("65536", "1,,2", "x")],
    (["--req-mo-cv", "65536:deadbeef"], "a number from 0 to 65535 is expected"),
    *[
        (["--req-mo-cv", text], "an MO index and 4 octets of hex are expected, as in 3:deadbeef")
        for text in ("3", "3:dead", "3:deadbeefff", "3:deadbeex", "deadbeef", ":", "3:deadbeef,")
    ],
    *[(["--time", text], "is expected") for text in ("x", "", "soon")],
    *[
        (["--time", text], "a time from 1970 to 2106 is expected")
        for text in ("4294967296", "1969-12-31T23:59:59Z", "2106-02-07T06:28:16Z", "9" * 400)
    ],
    (["--header", "X-Name"], "NAME: VALUE or hex:OCTETS is expected"),
    (["--header", ": text"], "a field named by text needs a name and text"),
    (["--header", "0x80: 1"], "a number from 0 to 127 is expected"),
    (["--header", "0xzz: 1"], "a number from 0 to 127 is expected"),
    (["--header", "hex:8d9"], "the number of hex digits (3) is odd, two make an octet"),
    (["--header", "hex:8d9g"], "'g' is not a hex digit"),
    (["--header", f"0x12: {'9' * 80}"], "a long-integer has 1 to 30 octets"),
    (["--header", "X-Euro: \u20ac"], "latin-1"),
]


@pytest.mark.parametrize(("words", "expected"), WRONG)
def test_malformed_option_is_refused(words: list[str], expected: str, tmp_path: Path) -> None:
    """Exit 2, with the option, the value and what is expected; nothing is sent and no id is taken."""
    done = run([*UNSIGNED, *words])
    assert (done.status, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert last.startswith(f"dmnotid send: error: argument {words[0]}: ")
    assert expected in last
    assert not (tmp_path / "xdg").exists()


# --- Ids


def counter(tmp_path: Path) -> Path:
    return tmp_path / "xdg" / "dmnotid" / "sent-ids.json"


def following(first: int, count: int) -> list[int]:
    """Return the ids after `first`, which wrap at 16 bits."""
    return [first + number & 0xFFFF for number in range(1, count + 1)]


def test_ids_count_up_for_each_server() -> None:
    """5.1.4."""

    def taken(server: str, *words: str) -> list[int]:
        return ids(["--unsigned", "--server", server, *words])

    (a,) = taken("a")
    assert taken("a") == following(a, 1)
    b, *others = taken("b", "--count", "3")
    assert others == following(b, 2)
    assert taken("a", "--count", "2") == following(a + 1, 2)
    assert taken("b") == following(b + 2, 1)


def test_first_id_is_random() -> None:
    """A real server is likely to count up from a low id: a test must not use up its next ones."""
    first = [ids(["--unsigned", "--server", f"server-{number}"])[0] for number in range(8)]
    assert len(set(first)) > 4
    assert max(first) > 1_000


def test_ids_count_up_without_server_id(tmp_path: Path) -> None:
    """The device finds the server by its secret, and remembers the id for it all the same (5.1.4)."""
    words = ["--config", str(write_config(tmp_path))]
    first, second = ids([*words, "--count", "2"])
    assert [second] == following(first, 1)
    assert ids([*words, "--no-server-id"]) == following(second, 1)
    assert ids(words) == following(second + 1, 1)


def test_ids_count_up_across_processes() -> None:
    first, *others = (int(dmnotid("send", *UNSIGNED, "--print").out[16:20], 16) for _ in range(3))
    assert others == following(first, 2)


def test_given_id_is_not_counted(tmp_path: Path) -> None:
    assert ids([*UNSIGNED, "--id", "65534", "--count", "4"]) == [65534, 65535, 0, 1]
    assert not counter(tmp_path).exists()


def test_ids_start_again_after_the_highest(tmp_path: Path) -> None:
    counter(tmp_path).parent.mkdir(parents=True)
    counter(tmp_path).write_text(json.dumps({SERVER_ID: 65533, "other": 7}))
    assert ids([*UNSIGNED, "--count", "3"]) == [65534, 65535, 0]
    assert ids(UNSIGNED) == [1]
    counter(tmp_path).write_text(json.dumps({SERVER_ID: 65535}))
    assert ids(UNSIGNED) == [0]


def test_counter_is_private_to_the_user(tmp_path: Path) -> None:
    ids(UNSIGNED)
    assert counter(tmp_path).parent.stat().st_mode & 0o077 == 0


def test_counter_is_in_the_home_directory_without_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting in ("", None):
        if setting is None:
            monkeypatch.delenv("XDG_STATE_HOME")
        else:
            monkeypatch.setenv("XDG_STATE_HOME", setting)
        ids(UNSIGNED)
    assert json.loads((tmp_path / ".local/state/dmnotid/sent-ids.json").read_text()).keys() == {SERVER_ID}


def test_concurrent_calls_take_different_ids() -> None:
    calls = [
        subprocess.Popen([*PROGRAM, "send", *UNSIGNED, "--print", "--count", "20"], stdout=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    lines = [line for call in calls for line in call.communicate(timeout=PATIENCE)[0].splitlines()]
    taken = [decode_notification(decode_push(bytes.fromhex(line)).body).notification_id for line in lines]
    assert len(set(taken)) == 120


def test_call_waits_while_another_counts(tmp_path: Path) -> None:
    """Whoever reads the counter before it has the lock takes an id twice."""
    counter(tmp_path).parent.mkdir(parents=True)
    with counter(tmp_path).open("w+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with subprocess.Popen([*PROGRAM, "send", *UNSIGNED, "--print"], stdout=subprocess.PIPE, text=True) as call:
            # The kernel lists it after an arrow once it waits.
            wait_until(lambda: re.search(rf"-> FLOCK .* {call.pid} ", Path("/proc/locks").read_text()))
            json.dump({SERVER_ID: 40}, held)
            held.flush()
            fcntl.flock(held, fcntl.LOCK_UN)
            assert call.communicate(timeout=PATIENCE)[0][12:20] == "20800029"


CORRUPT: Final = {
    "empty": b"",
    "cut off": b"{",
    "list": b"[]",
    "number": b"7",
    "null": b"null",
    "text": b'{"dm.example.com": "x"}',
    "no number": b'{"dm.example.com": null}',
    "infinite": b'{"dm.example.com": 1e999}',
    "deep": b"[" * 100_000,
    "not UTF-8": b"\xff\xfe\x00",
    "NaN": b"NaN",
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_corrupt_counter_starts_again(content: bytes, tmp_path: Path) -> None:
    counter(tmp_path).parent.mkdir(parents=True)
    counter(tmp_path).write_bytes(content)
    (first,) = ids(UNSIGNED)
    assert ids(UNSIGNED) == following(first, 1)


def test_id_is_random_if_the_counter_can_not_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is printed, and the datagram is sent."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    done = run([*UNSIGNED, "--print", "--count", "3"])
    assert done.status == 0
    file = tmp_path / "file/dmnotid/sent-ids.json"
    assert done.err == f"dmnotid send: ids are not counted, {file}: Not a directory\n"
    first, second, third = (int(line[16:20], 16) for line in done.out.splitlines())
    assert [(second - first) & 0xFFFF, (third - second) & 0xFFFF] == [1, 1]


def test_id_is_random_for_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container: a uid that no file lists, and no HOME."""
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54_321_987)
    done = run([*UNSIGNED, "--print"])
    assert done.status == 0
    assert "this user has no home directory" in done.err


# --- Sockets


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(PATIENCE)
        yield sock


def to(sock: socket.socket) -> list[str]:
    return ["--to", f"127.0.0.1:{sock.getsockname()[1]}"]


def test_sent_datagram_is_the_printed_one(receiver: socket.socket, signed: list[str]) -> None:
    words = [*signed, "--id", "300", "--time", "1735689600"]
    words += ["--prefer", "wireline", "--req-mo", "1", "--req-mo-cv", "2:00000000", "--header", "X-A: b"]
    (wanted,) = printed(words)
    done = run([*words, *to(receiver)])
    assert receiver.recv(65_536) == wanted
    assert done == Done(
        0,
        f"sent {len(wanted)} octets to 127.0.0.1:{receiver.getsockname()[1]}: NOTIFICATION-ID 300, "
        f"SERVER-ID '{SERVER_ID}', signed as of 2025-01-01T00:00:00Z\n",
        "",
    )


USED_UP: Final = (
    "A daemon with {config} remembers {ids} of 'dm.example.com' for {remember} (duplicates.remember): until then it "
    "discards a notification of the real server with the same id.\n"
)


@pytest.mark.parametrize("local", ["127.0.0.1", "::1", "localhost"])
def test_send_to_this_machine_says_how_long_the_id_is_used_up(local: str, tmp_path: Path) -> None:
    config = str(write_config(tmp_path, more="duplicates: {remember: 9d}\n"))
    family, _, _, _, address = socket.getaddrinfo(local, 0, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        host = f"[{local}]" if ":" in local else local
        words = ["--config", config, "--to", f"{host}:{sock.getsockname()[1]}"]
        one, twelve = run([*words, "--id", "7"]).out, run([*words, "--count", "12"]).out
    assert one.endswith("\n" + USED_UP.format(config=config, ids="NOTIFICATION-ID 7", remember="9d"))
    assert twelve.endswith("\n" + USED_UP.format(config=config, ids="12 NOTIFICATION-IDs", remember="9d"))


@pytest.mark.parametrize("words", [["--unsigned"], ["--secret-file", "SECRET"]])
def test_send_without_the_configured_secret_uses_up_no_id(
    words: list[str], receiver: socket.socket, tmp_path: Path
) -> None:
    secret = tmp_path / "another"
    secret.write_text("another secret")
    words = [str(secret) if word == "SECRET" else word for word in words]
    done = run(["--config", str(write_config(tmp_path)), *words, *to(receiver)])
    assert done.status == 0
    assert "duplicates.remember" not in done.out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--server", "a\u202e", "--unsigned"], "SERVER-ID 'a\\u202e', unsigned"),
        (["--no-server-id", "--unsigned"], "no SERVER-ID, unsigned"),
        (["--server", "a", "--secret-file", "SECRET"], "SERVER-ID 'a', signed as of now"),
    ],
)
def test_each_datagram_is_reported(words: list[str], wanted: str, receiver: socket.socket, secret_file: Path) -> None:
    words = [str(secret_file) if word == "SECRET" else word for word in words]
    assert run([*words, "--id", "5", *to(receiver)]).out.endswith(f": NOTIFICATION-ID 5, {wanted}\n")


def test_datagram_is_sent_over_ipv6() -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        sock.settimeout(PATIENCE)
        port = sock.getsockname()[1]
        done = run([*UNSIGNED, "--to", f"[::1]:{port}"])
        assert f" to [::1]:{port}: " in done.out
        assert sock.recv(100)[1] == 0x06


def test_count_sends_as_many_datagrams(receiver: socket.socket) -> None:
    done = run([*UNSIGNED, "--id", "65530", "--count", "12", *to(receiver)])
    found = [decode_notification(decode_push(receiver.recv(100)).body).notification_id for _ in range(12)]
    assert found == [*range(65530, 65536), *range(6)]
    lines = done.out.splitlines()
    assert len(lines) == 11, "ten are reported one by one"
    assert lines[-1] == "sent 12 datagrams in all, NOTIFICATION-ID 65530 to 5"


def test_rate_paces_the_datagrams(receiver: socket.socket) -> None:
    """At most so many a second: the last of 5 at 20 a second can't leave before a fifth of a second is over."""
    begin = time.monotonic()
    assert run([*UNSIGNED, "--count", "5", "--rate", "20", *to(receiver)]).status == 0
    assert time.monotonic() - begin >= 0.2
    for _ in range(5):
        receiver.recv(100)


@pytest.mark.parametrize(
    ("family", "host", "words"),
    [(socket.AF_INET, "127.0.0.1", []), (socket.AF_INET, "127.0.0.1", ["--count", "3"]), (socket.AF_INET6, "::1", [])],
)
def test_closed_port_is_reported(family: socket.AddressFamily, host: str, words: list[str]) -> None:
    with closing(socket.socket(family, socket.SOCK_DGRAM)) as sock:
        sock.bind((host, 0))
        # No other process can take the port, and the socket takes datagrams from itself alone.
        sock.connect(sock.getsockname())
        to = show_address(*sock.getsockname()[:2])
        done = run([*UNSIGNED, *words, "--to", to])
    assert (done.status, done.err) == (1, f"dmnotid send: {to}: Connection refused\n")


def test_lost_output_is_not_reported_as_an_error_of_the_destination(receiver: socket.socket) -> None:
    done = through_shell('exec "$@" > /dev/full', "send", *UNSIGNED, *to(receiver), PYTHONUNBUFFERED="1")
    assert (done.status, done.err) == (1, "dmnotid: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", f"{'a' * 64}.example"])
def test_unknown_or_malformed_host_is_reported(host: str) -> None:
    done = run([*UNSIGNED, "--to", host])
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"dmnotid send: {host}:2948: ")
    assert len(done.err.splitlines()) == 1


def test_datagram_above_the_size_of_udp_is_reported(receiver: socket.socket) -> None:
    done = run([*UNSIGNED, "--force", "--header", f"X-A: {'a' * 65_600}", *to(receiver)])
    assert (done.status, done.out) == (1, "")
    assert done.err.endswith(": Message too long\n")


# --- Secrets


def test_secrets_are_not_shown(receiver: socket.socket, secret_file: Path, tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    calls = [
        ["--config", config, "--print"],
        ["--config", config, *to(receiver)],
        ["--config", config, "--server", "other"],
        ["--server", "a", "--secret-file", str(secret_file), "--print", "--count", "3"],
        ["--server", "a", "--secret-file", str(secret_file), *to(receiver)],
        ["--server", "a", "--secret-file", str(secret_file), "--to", "nosuch.invalid"],
        ["--server", "", "--secret-file", str(secret_file)],
    ]
    for words in calls:
        # Some of the command lines are wrong.
        done = run(words)
        assert done.out or done.err
        assert not shows_secret(done.out + done.err), words
    assert not shows_secret(counter(tmp_path).read_text())
    assert shows_secret(f"'{SECRET.hex()}'")
