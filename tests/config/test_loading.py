"""The configuration: every rule with its place, all at once, from real files; and its schema, example and docs."""

import base64
import copy
import fnmatch
import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_network
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dmnotid.config import loading as configfile
from dmnotid.config import tree as module
from dmnotid.config.loading import MAX_FILE_OCTETS, load_config, load_connections
from dmnotid.config.tree import MAX_DEPTH, parse_duration
from dmnotid.config.values import NAMED_TYPES, Config, ConnectionsConfig, HookConfig, ListenAddress, LogConfig
from dmnotid.errors import ConfigError
from dmnotid.host.trust import check_trusted_path
from dmnotid.policy.freshness import Freshness
from dmnotid.policy.retry import Retry
from dmnotid.policy.servers import Server
from dmnotid.policy.sessions import Limits
from dmnotid.wire.notification import ConnectionType

PROJECT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((PROJECT / "config/dmnotid.schema.json").read_text())
EXAMPLE = PROJECT / "config/dmnotid.yaml"
DOCS = PROJECT / "docs/configuration.md"
LOADERS = [pytest.param(getattr(yaml, "CSafeLoader", yaml.SafeLoader), id="c"), pytest.param(yaml.SafeLoader, id="py")]
NOBODY = 65534

SERVERS = "servers: [{id: a, secret: {text: aaaaaaaaaaaaaaaa}}]\n"
HOOK = "hook: {command: [/bin/true]}\n"
MINIMAL = SERVERS + HOOK
SECRET = "zQ7kWm4pXv9sLt2yDr5c"


@pytest.fixture(autouse=True, params=LOADERS)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule with both loaders: a device without libyaml says the same."""
    monkeypatch.setattr(module, "_LOADER", request.param)


class Place:
    """A directory with a configuration that nobody else can read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "dmnotid.yaml"

    def put(self, name: str, content: str | bytes, mode: int = 0o600) -> Path:
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def load(self, text: str | bytes, environ: Mapping[str, str] | None = None, mode: int = 0o600) -> Config:
        self.put("dmnotid.yaml", text, mode)
        return load_config(self.file, environ or {})

    def problems(self, text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        """Return the problems without the file's name, which each must begin with."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, environ)
        return [self.short(str(problem)) for problem in caught.value.problems]

    def short(self, line: str) -> str:
        assert line.startswith(f"{self.file}:")
        return line.removeprefix(f"{self.file}:").lstrip().replace(str(self.directory), "DIR")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail, rather than hang."""

    def fail(_signal: int, _frame: FrameType | None) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything, so it becomes somebody else for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def cases(section: str) -> list[tuple[str, list[str]]]:
    """Return YAML and problems of every case in a section of config_problems.txt."""
    text = Path(__file__).with_name("config_problems.txt").read_text().partition(f"=== {section}\n")[2]
    blocks = text.partition("\n===")[0].strip("\n").split("\n\n")
    cut = [re.split(r"(?m)^-> ", block) for block in blocks]
    return [(given, [problem.rstrip("\n") for problem in problems]) for given, *problems in cut]


def resolve(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return {**SCHEMA["$defs"][reference.removeprefix("#/$defs/")], **schema} if reference else schema


def schema_keys(schema: dict[str, Any] = SCHEMA, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every key that the schema names, as the docs write it, with its schema."""
    for key, value in schema.get("properties", {}).items():
        inner = resolve(value)
        here = f"{path}.{key}".lstrip(".")
        yield here, inner
        if inner.get("type") == "array":
            yield from schema_keys(resolve(inner["items"]), f"{here}[]")
        else:
            yield from schema_keys(inner, here)


KEYS = dict(schema_keys())


def as_yaml(document: object) -> str:
    return json.dumps(document)  # JSON is YAML


# --- What is read ----------------------------------------------------------------------------------------------


def test_defaults(place: Place) -> None:
    config = place.load(MINIMAL)
    assert config == Config(
        file=place.file,
        servers=(Server("a", b"a" * 16),),
        hook=HookConfig(("/bin/true",), {}, timeout=600, kill_after=10, stop_grace=20),
        listen=(ListenAddress("::", 2948),),
        receive_buffer=4_194_304,
        state=Path("/var/lib/dmnotid"),
        max_header_octets=48,
        freshness=Freshness(86_400, 600),
        remember=259_200,
        sessions=Limits(1, 16, 604_800),
        retry=Retry(30, 3_600, 10),
        connections=ConnectionsConfig("internet", dict.fromkeys(NAMED_TYPES, ()), settle=2),
        log=LogConfig("info", "auto", 60),
        warnings=(),
    )
    assert config.connections == ConnectionsConfig()
    assert config.log == LogConfig()


def test_everything_given(place: Place) -> None:
    text = """
        servers:
          - {id: a, secret: {hex: 00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0F}, require_digest: no}
          - {id: "b", require_digest: false, sources: [192.0.2.0/24, 2001:db8::1]}
        hook:
          command: [/bin/start, "--id={notification_id}", "${HOME} {}"]
          environment: {TOKEN: x, _a1: ""}
          timeout: 1h
          kill_after: 0
          stop_grace: 500ms
        listen: [127.0.0.1, "[fe80::1%eth0]:0", "[::1]:5"]
        state: journal
        push: {max_header_octets: 65507}
        freshness: {max_age: 2d, max_skew: 0}
        duplicates: {remember: 2d}
        sessions: {concurrency: 2, max_pending: 65536, expire_after: 1d, min_interval: 1m}
        retry: {first: 1s, longest: 1s, attempts: 1}
        connections:
          reach: [10.0.0.0/8]
          settle: 500ms
          mobile: {interfaces: [usb0, "wwan*"]}
          wireline: {interfaces: ["eth[0-9]"]}
        receive_buffer: 4096
        log: {level: debug, format: json, discards: 1s, junk: true}
    """
    config = place.load(text)
    assert config.servers == (
        Server("a", bytes(range(16)), require_digest=False),
        Server("b", None, require_digest=False, sources=(ip_network("192.0.2.0/24"), ip_network("2001:db8::1"))),
    )
    assert config.hook == HookConfig(
        ("/bin/start", "--id={notification_id}", "${HOME} {}"), {"TOKEN": "x", "_a1": ""}, 3_600, 0, 0.5
    )
    assert [str(address) for address in config.listen] == ["127.0.0.1:2948", "[fe80::1%eth0]:0", "[::1]:5"]
    assert config.state == place.directory / "journal"
    assert config.max_header_octets == 65_507
    assert config.freshness == Freshness(172_800, 0)
    assert config.remember == 172_800
    assert config.sessions == Limits(2, 65_536, 86_400, 60)
    assert config.retry == Retry(1, 1, 1)
    assert config.connections.reach == (ip_network("10.0.0.0/8"),)
    assert config.connections.settle == 0.5
    assert config.connections.interfaces == {
        ConnectionType.MOBILE: ("usb0", "wwan*"),
        ConnectionType.WIRELESS: (),
        ConnectionType.WIRELINE: ("eth[0-9]",),
    }
    assert config.receive_buffer == 4_096
    assert config.log == LogConfig("debug", "json", 1, junk=True)


def test_rules(place: Place) -> None:
    config = place.load(MINIMAL + "push: {max_header_octets: 7}\nfreshness: {max_age: 1h}\n")
    rules = config.rules
    assert list(rules.servers) == list(config.servers)
    assert (rules.freshness, rules.max_header_octets) == (Freshness(3_600, 600), 7)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('"[::]:2948"', ("::", 2948)),
        ('"[2001:DB8::0:1]"', ("2001:db8::1", 2948)),
        ("127.0.0.1:65535", ("127.0.0.1", 65_535)),
        ("0.0.0.0:0", ("0.0.0.0", 0)),  # noqa: S104
        ('"[fe80::1%2]:7"', ("fe80::1%2", 7)),
    ],
)
def test_listen(place: Place, text: str, address: tuple[str, int]) -> None:
    assert place.load(f"{MINIMAL}listen: {text}\n").listen == (address,)


@pytest.mark.parametrize(
    "addresses",
    [
        ["[::]:1", "[::]:2"],
        ["[::]:0", "[::]:0"],
        ["0.0.0.0:1", "[::1]:1"],
        ["127.0.0.1:1", "127.0.0.2:1"],
        ["[fe80::1%a]:1", "[fe80::1%b]:1"],
    ],
)
def test_listen_on_several(place: Place, addresses: list[str]) -> None:
    assert [str(it) for it in place.load(f"{MINIMAL}listen: {as_yaml(addresses)}\n").listen] == addresses


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({}, "/var/lib/dmnotid"),
        ({"STATE_DIRECTORY": ""}, "/var/lib/dmnotid"),
        ({"STATE_DIRECTORY": "/var/lib/private/x"}, "/var/lib/private/x"),
        ({"STATE_DIRECTORY": "/a:/b"}, "/a"),
    ],
)
def test_state_directory(place: Place, environ: dict[str, str], state: str) -> None:
    assert place.load(MINIMAL, environ).state == Path(state)
    assert place.load(MINIMAL + "state: /elsewhere\n", environ).state == Path("/elsewhere")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("500ms", 0.5),
        ("30s", 30),
        ("10m", 600),
        ("24h", 86_400),
        ("7d", 604_800),
        ("007d", 604_800),
    ],
)
def test_parse_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "1", "s", "-1s", "+1s", "1.5h", "1 s", "1S", "1h30m", "1w", "1s\n", "٣s", "1e3s", "9" * 13 + "s"]
)
def test_parse_duration_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape("500ms, 30s, 10m, 24h or 7d")):
        parse_duration(text)


def test_aliases_are_taken(place: Place) -> None:
    text = f"""
        servers:
          - {{id: a, secret: {{text: {"a" * 16}}}, sources: &here [10.0.0.0/8]}}
          - {{id: b, secret: {{text: {"b" * 16}}}, sources: *here}}
        {HOOK}"""
    assert {server.sources for server in place.load(text).servers} == {(ip_network("10.0.0.0/8"),)}


def test_what_an_alias_stands_for_is_told_at_the_alias(place: Place) -> None:
    assert place.problems(f"{MINIMAL}state: &here /x\nlog:\n  level: *here\n") == [
        "5:10: log.level: is '/x', one of debug, info, warning, error is expected"
    ]


def test_byte_order_mark_is_taken(place: Place) -> None:
    assert place.load(b"\xef\xbb\xbf" + MINIMAL.encode()).servers


def test_server_id_is_compared_in_nfc(place: Place) -> None:
    secret = "secret: {text: aaaaaaaaaaaaaaaa}"
    assert place.load(f"servers: [{{id: e\u0301, {secret}}}]\n{HOOK}").servers[0].id == "\u00e9"


# --- Secrets ----------------------------------------------------------------------------------------------------


def server_with(secret: str) -> str:
    return f"servers:\n- id: a\n  secret: {secret}\n{HOOK}"


@pytest.mark.parametrize(
    ("secret", "octets"),
    [
        ("{text: 'käse ohne löcher'}", "käse ohne löcher".encode()),
        ('{text: "\\0\\x01 0123456789abcdef"}', b"\0\x01 0123456789abcdef"),
        ("{hex: 'ff 00  ffFF 00112233445566778899AAbb'}", bytes.fromhex("ff00ffff00112233445566778899aabb")),
        (f"{{base64: {base64.b64encode(bytes(range(17))).decode()}}}", bytes(range(17))),
        ("{base64: '+/+/+/+/+/+/+/+/+/+/+w=='}", base64.b64decode("+/+/+/+/+/+/+/+/+/+/+w==")),
    ],
)
def test_inline_secret(place: Place, secret: str, octets: bytes) -> None:
    config = place.load(server_with(secret))
    assert config.servers[0].secret == octets
    assert not config.warnings


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s" * 20, b"s" * 20),
        (b"s" * 20 + b"\n", b"s" * 20),
        (b"s" * 20 + b"\r\n", b"s" * 20),
        (b"s" * 20 + b"\n\n", b"s" * 20 + b"\n"),
        (b"s" * 20 + b"\r", b"s" * 20 + b"\r"),
        (b" \0\xff" * 9, b" \0\xff" * 9),
        (b"s" * 4_096 + b"\r\n", b"s" * 4_096),
    ],
)
def test_secret_in_a_file(place: Place, content: bytes, secret: bytes) -> None:
    path = place.put("the secret", content)
    path.chmod(0o400)
    for name in ("the secret", str(path)):
        config = place.load(server_with(f"{{file: {name!r}}}"))
        assert config.servers[0].secret == secret
        assert not config.warnings
    path.chmod(0o644)
    environ = {"CREDENTIALS_DIRECTORY": str(place.directory)}
    assert place.load(server_with("{credential: the secret}"), environ).servers[0].secret == secret


def test_relative_secret_counts_from_the_configuration(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.put("key", "s" * 20)
    monkeypatch.chdir("/")
    assert place.load(server_with("{file: ./key}")).servers[0].secret == b"s" * 20


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o440])
def test_secret_file_open_to_others(place: Place, mode: int) -> None:
    place.put("key", "s" * 20, mode)
    assert place.problems(server_with("{file: key}")) == [
        (
            f"3:18: servers[0].secret.file: group or others can read or write DIR/key (mode {mode:04o}), "
            "mode 0600 or 0400 is expected"
        )
    ]


def test_secret_file_that_is_none(place: Place) -> None:
    os.mkfifo(place.directory / "fifo", 0o600)
    (place.directory / "directory").mkdir()
    (place.directory / "loop").symlink_to("loop")
    (place.directory / "zero").symlink_to("/dev/zero")
    place.put("large", b"s" * 4_097)
    place.put("larger", b"s" * 4_099)
    place.put("empty", b"\n")
    expected = {
        "fifo": "DIR/fifo is no regular file",
        "directory": "DIR/directory is no regular file",
        "zero": "DIR/zero is no regular file",
        "/dev/zero": "/dev/zero is no regular file",
        "missing": "DIR/missing can't be read: No such file or directory",
        "empty/x": "DIR/empty/x can't be read: Not a directory",
        "loop": "DIR/loop can't be read: Too many levels of symbolic links",
        "x" * 300: f"DIR/{'x' * 300} can't be read: File name too long",
        "large": "has more than 4096 octets",
        "larger": "DIR/larger is larger than 4098 octets",
        "empty": "is empty, a secret of 16 octets or more is expected",
        "~/key": "begins with ~, which is not expanded: write the whole path",
        "": "is empty, a path is expected",
    }
    for name, message in expected.items():
        with within(5):
            assert place.problems(server_with(f"{{file: {name!r}}}")) == [f"3:18: servers[0].secret.file: {message}"]
    environ = {"CREDENTIALS_DIRECTORY": str(place.directory)}
    for name in ("fifo", "directory", "zero", "missing", "large", "larger", "empty"):
        with within(5):
            found = place.problems(server_with(f"{{credential: {name}}}"), environ)
        assert found == [f"3:24: servers[0].secret.credential: {expected[name]}"]


def test_what_replaces_a_secret_file_is_looked_at_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO put there between the first look and the opening."""
    place.put("key", "s" * 20)
    opened = os.open

    def swap_and_open(path: Path, flags: int) -> int:
        if path.name == "key":
            path.unlink()
            os.mkfifo(path, 0o600)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", swap_and_open)
    with within(5):
        assert place.problems(server_with("{file: key}")) == [
            "3:18: servers[0].secret.file: DIR/key is no regular file"
        ]


def test_unreadable(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.directory.chmod(0o755)
    monkeypatch.chdir(place.directory)
    place.put("key", "s" * 20, 0)
    place.put("dmnotid.yaml", server_with("{file: key}"), 0o644)
    with unprivileged(), pytest.raises(ConfigError) as caught:
        load_config(Path("dmnotid.yaml"), {})
    assert str(caught.value) == ("dmnotid.yaml:3:18: servers[0].secret.file: key can't be read: Permission denied")
    place.file.chmod(0)
    with unprivileged(), pytest.raises(ConfigError) as caught:
        load_config(Path("dmnotid.yaml"), {})
    assert str(caught.value) == "dmnotid.yaml: dmnotid.yaml can't be read: Permission denied"


@pytest.mark.parametrize(("secret", "problems"), cases("the secret of a server, in line 3 from column 11"))
def test_wrong_secret(place: Place, secret: str, problems: list[str]) -> None:
    assert place.problems(server_with(secret)) == problems


def test_secret_not_given(place: Place) -> None:
    expected = ["3:10: servers[0].secret: is empty, a mapping such as {file: PATH} is expected"]
    assert place.problems(server_with("")) == expected


def test_secret_too_long(place: Place) -> None:
    expected = ["3:18: servers[0].secret.text: has more than 4096 octets"]
    assert place.problems(server_with(f"{{text: {'a' * 4097}}}")) == expected
    assert place.load(server_with(f"{{text: {'a' * 4096}}}"))


def test_secrets_that_begin_alike(place: Place) -> None:
    secrets = ["b" * 20, "a" * 20, "b" * 20, "b" * 21, "a" * 16, "c" * 20]
    servers = [{"id": f"s{at}", "secret": {"text": secret}} for at, secret in enumerate(secrets)]
    text = "servers:\n" + "".join(f"- {as_yaml(server)}\n" for server in servers) + HOOK
    assert place.problems(text) == [
        "4:26: servers[2].secret: equals the secret of servers[0] ('s0'): one of its own is expected for each server",
        (
            "5:26: servers[3].secret: begins with the secret of servers[2] ('s2'): one of its own is expected for each "
            "server"
        ),
        (
            "6:26: servers[4].secret: is the beginning of the secret of servers[1] ('s1'): one of its own is expected "
            "for each server"
        ),
    ]


def test_secrets_of_all_forms_are_held_against_each_other(place: Place) -> None:
    place.put("key", "a" * 16 + "\n")
    text = f"""servers:
  - {{secret: {{file: key}}}}
  - {{id: b, secret: {{hex: "{"61" * 16}"}}}}
{HOOK}"""
    assert place.problems(text) == [
        "2:5: servers[0].id: is missing, the SERVER-ID of the server is expected",
        "3:21: servers[1].secret: equals the secret of servers[0]: one of its own is expected for each server",
    ]


def test_warnings(place: Place) -> None:
    text = (
        f"servers:\n- id: a\n  secret: {{text: {'a' * 15}}}\n- id: b\n  secret:\n    text: |\n      {'b' * 16}\n{HOOK}"
    )
    config = place.load(text, mode=0o640)
    assert [place.short(str(warning)) for warning in config.warnings] == [
        "3:18: servers[0].secret.text: has only 15 octets: fewer than 16 can be guessed",
        (
            "3:18: servers[0].secret.text: group or others can read this file (mode 0640), and it holds a secret: "
            "chmod 600"
        ),
        (
            "6:11: servers[1].secret.text: ends with a line break, which belongs to the secret: write |- instead of | "
            "if it does not"
        ),
    ]
    assert not place.load(MINIMAL).warnings
    place.put("key", "s" * 20)
    assert not place.load(server_with("{file: key}"), mode=0o644).warnings


# --- Every other rule, with its place ---------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "problems"), cases("below servers (line 1) and hook (line 2)"))
def test_rule(place: Place, text: str, problems: list[str]) -> None:
    assert place.problems(MINIMAL + text) == problems


def test_number_of_many_digits(place: Place) -> None:
    expected = f"3:19: retry.attempts: {'9' * 20} is out of range, a whole number from 1 to 1000 is expected"
    assert place.problems(f"{MINIMAL}retry: {{attempts: {'9' * 5_000}}}\n") == [expected]


def server_saying(text: str) -> str:
    return f"{HOOK}servers:\n- {{ {text}, secret: {{text: aaaaaaaaaaaaaaaa}} }}\n"


@pytest.mark.parametrize(("text", "problems"), cases("a server, in line 3, beside its secret"))
def test_server_rule(place: Place, text: str, problems: list[str]) -> None:
    assert place.problems(server_saying(text)) == problems


@pytest.mark.parametrize(
    ("text", "identity"),
    [("id: '='", "="), ("id: !!str 123", "123"), ("id: !!str yes", "yes"), (f"id: {'a' * 4095}", "a" * 4095)],
)
def test_server_id(place: Place, text: str, identity: str) -> None:
    assert place.load(server_saying(text)).servers[0].id == identity


def test_server_id_that_no_option_holds(place: Place) -> None:
    expected = ["3:9: servers[0].id: has more than 4095 octets, which no notification can hold"]
    assert place.problems(server_saying(f"id: {'a' * 4096}")) == expected


TRUE = ("true", "True", "yes", "on", "ON", "!!bool yes")
FALSE = ("false", "False", "no", "off", "OFF", "!!bool no")


@pytest.mark.parametrize("word", TRUE + FALSE)
def test_true_or_false(place: Place, word: str) -> None:
    (server,) = place.load(server_saying(f"id: a, require_digest: {word}")).servers
    assert server.require_digest is (word in TRUE)


def test_server_without_secret(place: Place) -> None:
    message = "is missing: a secret is expected, or require_digest: false to take what nobody signed"
    text = "servers:\n- id: a\n- {id: b, require_digest: true}\n- {id: c, require_digest: 1}\n"
    assert place.problems(text + HOOK) == [
        f"2:3: servers[0].secret: {message}",
        f"3:3: servers[1].secret: {message}",
        "4:27: servers[2].require_digest: is a number, true or false is expected",
    ]
    assert place.load(f"servers: [{{id: a, require_digest: false}}]\n{HOOK}").servers[0].secret is None


def test_server_ids_once(place: Place) -> None:
    text = "servers:\n" + "".join(f"- {{id: {name}, require_digest: no}}\n" for name in ("\u00e9", "E", "e\u0301", "E"))
    assert place.problems(text + HOOK) == [
        "4:8: servers[2].id: is the id of servers[0] already, each once is expected",
        "5:8: servers[3].id: is the id of servers[1] already, each once is expected",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: servers: is missing, a list of servers is expected"),
        ("servers:\n", "2:9: servers: is empty, a list of servers is expected"),
        ("servers: []\n", "2:10: servers: is an empty list, a list of servers is expected"),
        ("servers: {}\n", "2:10: servers: is a mapping, a list of servers is expected"),
        ("servers: [a]\n", "2:11: servers[0]: is text, a mapping is expected"),
        ("servers: [[]]\n", "2:11: servers[0]: is a list, a mapping is expected"),
    ],
)
def test_servers_required(place: Place, text: str, problem: str) -> None:
    assert place.problems(HOOK + text) == [problem]


@pytest.mark.parametrize(("hook", "problems"), cases("a hook, in line 2 below servers"))
def test_hook_rule(place: Place, hook: str, problems: list[str]) -> None:
    assert place.problems(SERVERS + hook) == problems


def test_hook_required(place: Place) -> None:
    expected = "is missing, the argument list that starts a session is expected, or hook.socket in its place"
    assert place.problems(SERVERS) == [f"1:1: hook.command: {expected}"]


@pytest.mark.parametrize(("text", "path"), [("/run/dm/session", "/run/dm/session"), ("session", "DIR/session")])
def test_socket(place: Place, text: str, path: str) -> None:
    hook = place.load(f"{SERVERS}hook: {{socket: {text}, timeout: 1s, stop_grace: 0}}").hook
    assert hook == HookConfig((), {}, 1, 10, 0, Path(path.replace("DIR", str(place.directory))))


def test_socket_beside_a_configuration_that_is_named_by_a_relative_path(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is looked at from the root on: it must begin there."""
    monkeypatch.chdir(place.directory)
    place.put("dmnotid.yaml", f"{SERVERS}hook: {{socket: session}}")
    assert load_config(Path("dmnotid.yaml"), {}).hook.socket == Path.cwd() / "session"


@pytest.mark.parametrize("length", [107, 108])
def test_socket_whose_path_is_as_long_as_can_be(place: Place, length: int) -> None:
    path = "/run/" + "x" * (length - 5)
    text = f"{SERVERS}hook: {{socket: {path}}}"
    with socket.socket(socket.AF_UNIX) as sock:
        if length <= 107:
            assert place.load(text).hook.socket == Path(path)
            with pytest.raises(FileNotFoundError):
                sock.connect(path)
        else:
            assert len(place.problems(text)) == 1
            with pytest.raises(OSError, match="too long"):
                sock.connect(path)


@pytest.mark.parametrize("argument", ["{", "{}", "${x}", "{X}", "{ x }", "{1}", "{server_id}{attempt}", "", "{x-y}"])
def test_braces_that_are_no_placeholder(place: Place, argument: str) -> None:
    text = f"{SERVERS}hook: {{command: [/x, {as_yaml(argument)}]}}"
    assert place.load(text).hook.command == ("/x", argument)


def test_all_problems_at_once(place: Place) -> None:
    place.put("key", "s" * 20, 0o644)
    text = """\
servers:
  - id: a
    secret: {file: key}
  - id: a
    secret: {hex: xyz}
    sourcs: []
  - {id: 12, secret: {text: ""}}
hook:
  command: [start]
  timeout: 5
listen: here
push: {max_header_octets: yes}
retry: {first: 2h, longest: 1h}
connections: {reach: 7}
duplicates: {remember: 1h}
log: {level: high, level: low}
"""
    assert [problem.split(" ")[:2] for problem in place.problems(text)] == [
        ["3:20:", "servers[0].secret.file:"],
        ["4:9:", "servers[1].id:"],
        ["5:19:", "servers[1].secret.hex:"],
        ["6:5:", "servers[1].sourcs:"],
        ["7:10:", "servers[2].id:"],
        ["7:29:", "servers[2].secret.text:"],
        ["9:13:", "hook.command[0]:"],
        ["10:12:", "hook.timeout:"],
        ["11:9:", "listen:"],
        ["12:27:", "push.max_header_octets:"],
        ["13:29:", "retry.longest:"],
        ["14:22:", "connections.reach:"],
        ["15:24:", "duplicates.remember:"],
        ["16:14:", "log.level:"],
        ["16:20:", "log.level:"],
    ]


# --- Who can change the files ------------------------------------------------------------------------------------


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files away")
WITH_SECRET_FILE = "servers: [{id: a, secret: {file: secrets/key}}]\n" + HOOK


@pytest.fixture
def trusted(place: Place) -> Place:
    """A configuration with a secret file in a directory below its own, all of which only their owner can write."""
    place.directory.chmod(0o755)
    place.put("dmnotid.yaml", WITH_SECRET_FILE, 0o644)
    (place.directory / "secrets").mkdir(mode=0o755)
    place.put("secrets/key", "s" * 20)
    return place


def refusal(place: Place, file: Path | None = None) -> str:
    """Return the problems that the check of paths finds, without the file's name; nothing if there are none."""
    try:
        load_config(file or place.file, {}, check_trusted_path)
    except ConfigError as error:
        return str(error).removeprefix(f"{file or place.file}:").lstrip()
    return ""


@pytest.mark.parametrize(("mode", "whose"), [(0o666, "others"), (0o602, "others"), (0o664, "its group")])
def test_configuration_is_refused_if_others_can_write_it(trusted: Place, mode: int, whose: str) -> None:
    trusted.file.chmod(mode)
    assert refusal(trusted) == f"{trusted.file}: writable by {whose}: chmod go-w {trusted.file}"
    trusted.file.chmod(mode & ~0o022)
    assert refusal(trusted) == ""


@pytest.mark.parametrize(("mode", "whose"), [(0o777, "others"), (0o775, "its group")])
def test_configuration_is_refused_if_others_can_write_its_directory(trusted: Place, mode: int, whose: str) -> None:
    trusted.directory.chmod(mode)
    assert refusal(trusted) == f"{trusted.directory}: writable by {whose}: chmod go-w {trusted.directory}"


def test_directory_with_a_space_is_quoted_in_the_command_to_run(trusted: Place) -> None:
    directory = trusted.directory / "in here"
    directory.mkdir()
    directory.chmod(0o777)
    file = trusted.put("in here/dmnotid.yaml", MINIMAL)
    assert refusal(trusted, file) == f"{directory}: writable by others: chmod go-w '{directory}'"


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("name", ["dmnotid.yaml", "."])
def test_configuration_is_refused_if_it_or_its_directory_belongs_to_another_user(trusted: Place, name: str) -> None:
    component = trusted.directory / name
    os.chown(component, NOBODY, -1)
    assert refusal(trusted) == (
        f"{component}: belongs to user {NOBODY}, only root and the daemon's own user are trusted: "
        f"chown root {component}, or run dmnotid as user {NOBODY}"
    )


def test_configuration_is_refused_if_a_link_leads_through_a_directory_that_others_can_write(trusted: Place) -> None:
    shared = trusted.directory / "shared"
    shared.mkdir()
    trusted.put("shared/dmnotid.yaml", MINIMAL)
    link = trusted.directory / "link.yaml"
    link.symlink_to("shared/dmnotid.yaml")
    assert refusal(trusted, link) == ""
    shared.chmod(0o777)
    assert refusal(trusted, link) == f"{shared}: writable by others: chmod go-w {shared}"


@pytest.mark.root
@needs_root
def test_configuration_and_secret_are_accepted_in_a_sticky_directory_of_root(trusted: Place) -> None:
    trusted.directory.chmod(0o1777)
    (trusted.directory / "secrets").chmod(0o1777)
    assert refusal(trusted) == ""


def test_relative_path_is_checked_from_the_root_directory(trusted: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trusted.directory)
    assert refusal(trusted, Path("dmnotid.yaml")) == ""
    monkeypatch.chdir("secrets")
    assert refusal(trusted, Path("../dmnotid.yaml")) == ""
    trusted.directory.chmod(0o777)
    expected = f"{trusted.directory}: writable by others: chmod go-w {trusted.directory}"
    assert refusal(trusted, Path("../dmnotid.yaml")) == expected


def test_relative_path_is_a_problem_if_the_working_directory_was_deleted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = place.directory / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert refusal(place, Path("dmnotid.yaml")) == "dmnotid.yaml can't be read: No such file or directory"


@pytest.mark.parametrize(("mode", "whose"), [(0o777, "others"), (0o770, "its group")])
def test_secret_file_is_refused_if_others_can_write_its_directory(trusted: Place, mode: int, whose: str) -> None:
    directory = trusted.directory / "secrets"
    directory.chmod(mode)
    assert refusal(trusted) == (
        f"1:34: servers[0].secret.file: {directory}: writable by {whose}: chmod go-w {directory}"
    )


@pytest.mark.root
@needs_root
def test_secret_file_is_refused_if_it_belongs_to_another_user(trusted: Place) -> None:
    file = trusted.directory / "secrets/key"
    os.chown(file, NOBODY, -1)
    assert refusal(trusted).startswith(f"1:34: servers[0].secret.file: {file}: belongs to user {NOBODY}, only root")


@pytest.mark.parametrize("name", ["none", "dmnotid.yaml/none", "loop"])
def test_missing_file_is_the_same_problem_with_the_check_of_paths(trusted: Place, name: str) -> None:
    (trusted.directory / "loop").symlink_to("none")
    file = trusted.directory / name
    with pytest.raises(ConfigError) as unchecked:
        load_config(file, {})
    with pytest.raises(ConfigError) as checked:
        load_config(file, {}, check_trusted_path)
    assert checked.value.problems == unchecked.value.problems


def test_files_that_others_can_write_are_read_without_the_check_of_paths(trusted: Place) -> None:
    for path in (trusted.file, trusted.directory, trusted.directory / "secrets"):
        path.chmod(0o777)
    assert load_config(trusted.file, {}).servers[0].secret == b"s" * 20


# --- The section connections alone --------------------------------------------------------------------------------


CONNECTIONS = "connections: {reach: [10.0.0.0/8], settle: 0, wireline: {interfaces: [eth0]}}\n"


def test_connections_alone(place: Place) -> None:
    wanted = place.load(MINIMAL + CONNECTIONS).connections
    assert wanted.settle == 0
    place.put("dmnotid.yaml", CONNECTIONS)
    assert load_connections(place.file) == wanted


@pytest.mark.parametrize("text", [MINIMAL, "x: 1\n", "{}\n"])
def test_connections_not_given(place: Place, text: str) -> None:
    place.put("dmnotid.yaml", text)
    assert load_connections(place.file) == ConnectionsConfig()


@pytest.mark.parametrize(
    "others",
    [
        "servers: [{id: a, secret: {file: /none}}]\nhook: {command: [start]}\n",
        "servers: [{id: a, secret: {credential: none}}]\n",
        "servers:\nhook: 1\nlog: {level: loud}\nwhat: is this\n",
        "log: {}\nlog: {}\n",
        "12: x\n? [a]\n: b\n",
        "<<: {a: b}\n",
        "retry: {first: 2h, longest: 1h}\n",
    ],
)
def test_connections_beside_what_is_wrong(place: Place, others: str) -> None:
    """Whatever is the matter with the other sections, these are what they are."""
    assert place.problems(others + CONNECTIONS)
    assert load_connections(place.file).settle == 0


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "connections: {reach: here, settle: 1, mobile: {interfaces: []}, lan: {}}\n",
            [
                "1:22: connections.reach: is 'here', internet, any or a list of networks is expected",
                (
                    "1:36: connections.settle: has no unit, a whole number with its unit is expected: 500ms, 30s, 10m, "
                    "24h or 7d"
                ),
                "1:60: connections.mobile.interfaces: is an empty list, a list of names is expected",
                "1:65: connections.lan: unknown key: known here are reach, settle, mobile, wireless, wireline",
            ],
        ),
        (
            "connections:\n  wireline: {interfaces: [eth0, 'usb*']}\n  mobile: {interfaces: ['us?0']}\n",
            [
                (
                    "2:33: connections.wireline.interfaces[1]: 'usb*' takes interfaces that "
                    "connections.mobile.interfaces[0] ('us?0') takes too, one type for each is expected"
                ),
            ],
        ),
        ("connections:\n", ["1:13: connections: is empty, a mapping is expected"]),
        ("connections: [a]\n", ["1:14: connections: is a list, a mapping is expected"]),
        ("connections: {}\nconnections: {}\n", ["2:1: connections: is given twice, first in line 1"]),
        ("- a\n", ["1:1: the top level is a list, a mapping with servers and hook is expected"]),
        ("a: *b\nconnections: {}\n", ["1:4: an alias to nothing; text that begins with * needs quotes"]),
    ],
)
def test_connections_that_are_wrong(place: Place, text: str, problems: list[str]) -> None:
    """As `load_config` tells it, and nothing else."""
    place.put("dmnotid.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_connections(place.file)
    assert [place.short(str(problem)) for problem in caught.value.problems] == problems
    assert set(problems) <= set(place.problems(text))


def test_connections_that_cannot_be_read(place: Place) -> None:
    with pytest.raises(ConfigError) as caught:
        load_connections(place.file)
    assert str(caught.value) == f"{place.file}: {place.file} can't be read: No such file or directory"


# --- What is no YAML, and YAML that is too much -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "the file is empty: servers and hook are expected"),
        (b"# only this\n", "the file is empty: servers and hook are expected"),
        (b"---\n", "2:1: the top level is empty, a mapping with servers and hook is expected"),
        (b"\n- a\n", "2:1: the top level is a list, a mapping with servers and hook is expected"),
        (b"word", "1:1: the top level is text, a mapping with servers and hook is expected"),
        (b"!x {}", "1:1: the top level is tagged with !, a mapping with servers and hook is expected"),
        (b"a: b\n--- \nc: d\n", "2:1: another document begins here, one is expected"),
        (b"a: b\nc: \xff\n", "2:4: not UTF-8: invalid start byte"),
        ("a: b".encode("utf-16"), "1:1: not UTF-8: invalid start byte"),
        (b"a: \xc3", "1:4: not UTF-8: unexpected end of data"),
        (b"\xef\xbb\xbfa: b\nc: \xff\n", "2:4: not UTF-8: invalid start byte"),
        ("\ufeffä: \x1b".encode(), "1:4: holds U+001B, which can't stand in YAML"),
        (b"a:\n  b\0\n", "2:4: holds U+0000, which can't stand in YAML"),
        (b"a: *b\n", "1:4: an alias to nothing; text that begins with * needs quotes"),
        (b"a: &b [*b]\n", "1:8: an alias to what it stands in"),
        (b"&a {b: {c: *a}}\n", "1:12: an alias to what it stands in"),
        (b"[" * 500, f"1:{MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels"),
        (b"- " * 200_000, f"1:{2 * MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels"),
        (b"#" * (MAX_FILE_OCTETS + 1), f"DIR/dmnotid.yaml is larger than {MAX_FILE_OCTETS} octets"),
    ],
)
def test_unusable_file(place: Place, text: bytes, problem: str) -> None:
    assert place.problems(text) == [problem]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [b", r"[12]:\d+: not YAML: .*"),
        ("a: b: c", r"1:5: not YAML: mapping values are not allowed .*"),
        ("a:\n\t- b", r"2:1: not YAML: .* \(YAML is indented by spaces, not by tabs\)"),
        ("a: @b", r"1:4: not YAML: .* \(text that begins with @ needs quotes\)"),
        ("a: `b", r"1:4: not YAML: .* \(text that begins with ` needs quotes\)"),
        ("a: %b", r"1:4: not YAML: .* \(text that begins with % needs quotes\)"),
        ("listen: [::]:2948", r'1:\d+: not YAML: .* \(an address in brackets needs quotes: "\[::\]:2948"\)'),
        ("a: 'b", r"1:6: not YAML: found unexpected end of stream"),
        ("- a\nb: c", r"2:1: not YAML: .*"),
        ('a: "\\q"', r"1:\d: not YAML: found unknown escape character"),
        ("a: !x!y z", r"1:4: not YAML: found undefined tag handle"),
        ("%YAML 3.0\n---\na: b", r"1:1: not YAML: found incompatible YAML document.*"),
        ('a: "\\UFFFFFFFF"', r"(1:7: not YAML: found invalid.*|not YAML: an escape or a number that means nothing)"),
        (f"%YAML {'1' * 5000}.1\n---\na", r"(1:\d+: not YAML: .*|not YAML: an escape or a number that means nothing)"),
    ],
)
def test_not_yaml(place: Place, text: str, problem: str) -> None:
    (found,) = place.problems(text)
    assert re.fullmatch(problem, found)


def test_half_a_surrogate_pair(place: Place) -> None:
    for text in ('servers: [{id: "\\ud800"}]', 'servers: [{id: a, secret: {text: "\\ud800"}}]'):
        assert re.search("half of a surrogate pair|invalid Unicode", "\n".join(place.problems(text)))


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "device", "loop", "nul", "long"])
def test_no_file_to_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    file, message = {
        "missing": (tmp_path / "missing", "can't be read: No such file or directory"),
        "directory": (tmp_path / "directory", "is no regular file"),
        "fifo": (tmp_path / "fifo", "is no regular file"),
        "device": (Path("/dev/zero"), "is no regular file"),
        "loop": (tmp_path / "loop", "can't be read: Too many levels of symbolic links"),
        "nul": (Path("a\0b"), "is no path that this system can open"),
        "long": (tmp_path / ("x" * 300), "can't be read: File name too long"),
    }[kind]
    with within(5), pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert str(caught.value) in {f"{file}: {file} {message}", f"{file}: {message}"}


def test_many_aliases_cost_nothing(place: Place) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    with within(5):
        assert len(place.problems("\n".join(lines) + "\n" + MINIMAL)) == 30


def test_a_thousand_servers(place: Place) -> None:
    servers = [
        {
            "id": f"server {n}",
            "secret": {"text": f"{n:04} a secret of its own"},
            "sources": ["10.0.0.0/8", "2001:db8::/32"],
        }
        for n in range(1_000)
    ]
    begin = time.process_time()
    config = place.load("servers:\n" + "".join(f"- {as_yaml(server)}\n" for server in servers) + HOOK)
    assert time.process_time() - begin < 5  # 0.2 s with libyaml, 0.5 s without; a slow machine is no failure
    assert len(config.servers) == len(config.rules.servers) == 1_000


@settings(deadline=None)
@given(st.one_of(st.binary(), st.text().map(partial(str.encode, errors="surrogatepass"))))
def test_any_octets(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    check_any(tmp_path_factory, octets)


SCRAPS = st.one_of(
    st.sampled_from(MINIMAL.splitlines()),
    st.sampled_from(":-?[]{}&*!|>'\"%@`#,~ \n\t\x85"),
    st.sampled_from(re.split("[^a-z_]+", EXAMPLE.read_text())),
    st.from_regex(
        r"<<|[&*]x|!!str|!x|---|\.\.\.|0|1s|yes|null|1\.5|2026-01-01|/x|\{x\}|\\0|\\ud800|\[::\]", fullmatch=True
    ),
)


@settings(deadline=None)
@given(st.lists(SCRAPS).map("".join))
def test_any_scraps(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    check_any(tmp_path_factory, text.encode())


def check_any(factory: pytest.TempPathFactory, octets: bytes) -> None:
    file = factory.getbasetemp() / "any.yaml"
    file.write_bytes(octets)
    with within(20):
        outcome = outcome_of(file)
    assert isinstance(outcome, Config) or (outcome.problems and str(outcome))


def outcome_of(file: Path) -> Config | ConfigError:
    try:
        return load_config(file, {})
    except ConfigError as error:
        return error


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["a", "1s", "0", "10.0.0.0/8", "[::]:1", "eth*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", "first", "x"]), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(path=st.sampled_from(sorted(KEYS)), value=JSON)
def test_any_value(tmp_path_factory: pytest.TempPathFactory, path: str, value: object) -> None:
    check_any(tmp_path_factory, as_yaml(with_value(path, value)).encode())


# --- Secrets stay secret ----------------------------------------------------------------------------------------


LEAKS = [
    f"{{text: {SECRET}, hex: 00}}",
    f"{{hex: {SECRET}}}",
    f"{{base64: '{SECRET}!'}}",
    f"{{text: [{SECRET}]}}",
    f"{{text: {{{SECRET}: a}}}}",
    f"{{{SECRET}}}",
    f"{{{SECRET}: a}}",
    f"{{text:{SECRET}}}",
    f"{{text:{SECRET}: a}}",
    f"{{txt: {SECRET}}}",
    f"{{credential: a/{SECRET}}}",
    f"{{text: !{SECRET} a}}",
    f"{{text: !x!{SECRET} a}}",
    f"{{text: !{SECRET}!x a}}",
    f"{{text: &{SECRET} }}",
    f"{{text: *{SECRET} }}",
    f"{{text: @{SECRET} }}",
    f"{{text: %{SECRET} }}",
    f'{{text: "\\q{SECRET}"}}',
    f'{{text: "{SECRET}\\xzz"}}',
    f"{{text: '{SECRET}}}",
    f"{{text: {SECRET}: {SECRET}}}",
    f"{{text: |{SECRET}}}",
    f"[{SECRET}]",
    f"{SECRET}",
    f"{SECRET}: {SECRET}",
    f"|{SECRET}",
    f"*{SECRET}",
    f"!{SECRET}",
    f"!{SECRET} {{text: a}}",
    f"{{text: {SECRET}, text: {SECRET}}}",
    f"{{text: {SECRET}}}\n  text: {SECRET}",
    f"{{text: {SECRET}}}\n  {SECRET}:",
    f"{{text: {SECRET}}}\n- {{id: b, {SECRET}}}",
    f"{{text: {SECRET}}}\n- {{id: b, secret:{SECRET}}}",
    f"{{text: {SECRET}}}\n- {{id: b, secret: {{text: {SECRET}}}}}",
    f"{{text: {SECRET}}}\n- {{id: b, secret: {{text: {SECRET}x}}}}",
    f"{{text: {SECRET}}}\n- {{id: b, secret: {{text: {SECRET[:-1]}}}}}",
    f'{{text: "{SECRET}\\ud800"}}\n  x: 1',
    f"{{text: {SECRET}}}\nx: &{SECRET} 1\ny: *{SECRET}x",
    f"{{text: {SECRET}}}\n  x: \x01",
    f"{{text: {SECRET}}}\nhook: {{command: [/x], environment: {{A: 1, TOKEN={SECRET}}}}}",
    f"{{text: {SECRET}}}\nhook: {{command: [/x], environment: {{TOKEN: [{SECRET}]}}}}",
]


def assert_not_told(error: ConfigError) -> None:
    for told in (str(error), repr(error), repr(error.problems)):
        assert SECRET[:-1] not in told
        assert SECRET.encode().hex() not in told


@pytest.mark.parametrize("secret", LEAKS)
def test_no_problem_tells_a_secret(place: Place, secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load(f"servers:\n- id: a\n  secret: {secret}\n")
    assert_not_told(caught.value)
    # What led to it is not in the traceback either.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_problem_tells_a_secret_from_a_file(place: Place) -> None:
    place.put("one", SECRET)
    place.put("two", SECRET)
    place.put("open", SECRET, 0o644)
    text = "servers:\n" + "".join(f"- {{id: {it}, secret: {{file: {it}}}}}\n" for it in ("one", "two", "open"))
    with pytest.raises(ConfigError) as caught:
        place.load(text + HOOK)
    assert len(caught.value.problems) == 2
    assert_not_told(caught.value)


def test_nothing_shows_a_secret(place: Place) -> None:
    servers = f"servers: [{{id: a, secret: {{text: {SECRET[:12]}}}}}]\n"
    config = place.load(f"{servers}hook: {{command: [/x], environment: {{T: {SECRET}}}}}\n", mode=0o644)
    assert config.servers[0].secret == SECRET[:12].encode()
    assert config.hook.environment == {"T": SECRET}
    assert len(config.warnings) == 2
    for shown in (repr(config), str(config), repr(config.rules), *map(str, config.warnings)):
        assert SECRET[:12] not in shown


TEMPLATE = f"""\
servers:
  - id: one
    secret:
      text: {SECRET}
    sources: [10.0.0.0/8]
  - {{id: two, secret: {{text: '{SECRET}'}}}}
hook:
  command: [/bin/true]
"""


@settings(deadline=None)
@given(
    at=st.integers(0, len(TEMPLATE)), cut=st.integers(0, 2), put=st.text("\n\t :-?[]{}&*!|>'\"%@`#,~ax0", max_size=2)
)
def test_no_slip_tells_a_secret(tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: str) -> None:
    file = tmp_path_factory.getbasetemp() / "slip.yaml"
    file.write_text(TEMPLATE[:at] + put + TEMPLATE[at + cut :])
    outcome = outcome_of(file)
    assert SECRET[3:-3] not in f"{outcome} {outcome!r}"


# --- Patterns -----------------------------------------------------------------------------------------------------

NAMES = ["".join(name) for length in range(5) for name in product("abc!]-[", repeat=length)]
PATTERNS = st.lists(
    st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]", "[]]", "[!]]", "[", "]", "[b-a]", "!", "-"]), max_size=3
).map("".join)


@settings(deadline=None)
@given(PATTERNS, PATTERNS)
def test_patterns_share_a_name(one: str, other: str) -> None:
    matching = [name for name in NAMES if fnmatch.fnmatchcase(name, one)]
    alphabet = configfile._SAMPLE.union(one, other)
    assert configfile._share_a_name(one, other, alphabet) == any(fnmatch.fnmatchcase(name, other) for name in matching)


def test_many_patterns_are_soon_compared(place: Place) -> None:
    """All with all, while the daemon that reads them again receives nothing."""
    patterns = {kind: {"interfaces": [f"{kind}{n}p*" for n in range(100)]} for kind in ("mobile", "wireline")}
    begin = time.process_time()
    assert place.load(f"{MINIMAL}connections: {as_yaml(patterns)}\n")
    # 0.1 s, and 4 s where each is cut anew for each other.
    assert time.process_time() - begin < 2


# --- Schema, example and docs ---------------------------------------------------------------------------------


MAPPINGS = ["", "servers[]", *(path for path, schema in KEYS.items() if "properties" in schema)]
SECRETS = {"text": "a" * 16, "hex": "aa" * 16, "base64": base64.b64encode(b"a" * 16).decode()}

FULL: dict[str, Any] = {
    "servers": [{"id": "a", "secret": {"text": "a" * 16}, "require_digest": True, "sources": ["10.0.0.0/8"]}],
    "hook": {"command": ["/x"]},
    **{key: {} for key in ("push", "freshness", "duplicates", "sessions", "retry", "log")},
    "connections": {"mobile": {}, "wireless": {}, "wireline": {}},
}


def with_value(path: str, value: object) -> dict[str, Any]:
    """Return a document in which the key at `path` has that value."""
    document = copy.deepcopy(FULL)
    node: Any = document
    *sections, key = path.split(".")
    for section in sections:
        node = node[section.removesuffix("[]")]
        node = node[0] if section.endswith("[]") else node
    if path.startswith("servers[].secret.") or path == "hook.socket":
        node.clear()
    node[key] = value
    return document


@pytest.mark.parametrize("path", MAPPINGS)
def test_schema_and_reader_know_the_same_keys(place: Place, path: str) -> None:
    document = with_value(f"{path}.zzz".lstrip("."), "x")
    if path == "servers[].secret":
        document = with_value("servers[].secret", {"zzz": "x"})
    (problem,) = place.problems(as_yaml(document))
    known = problem.partition("known here are ")[2].split(", ")
    prefix = f"{path}." if path else ""
    assert known == [
        it.removeprefix(prefix) for it in KEYS if it.startswith(prefix) and not re.search(r"[.\[]", it[len(prefix) :])
    ]
    assert not valid(document)


def valid(document: object) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(document))


WHOLE = ([1, 7], [0, -1, True, "7", 1.5, None, [], 10**9])
DURATION = (["1ms", "30s", "10m", "24h", "3d"], ["", "0", "0s", "1", "1w", "1.5h", "-1s", "1h30m", 0, 5, 1.5, None, []])
DURATION_OR_ZERO = ([*DURATION[0], "0", "0s", 0], ["", "1", "1w", "1.5h", "-1s", 5, 1.5, None, [], False])
SECTION: tuple[list[object], list[object]] = ([{}], [None, [], "x", 1])
PATH = (["/x", "x", "./x"], ["", "~", "~/x", 1, None, []])
NETWORKS: tuple[list[Any], list[Any]] = (
    [["10.0.0.0/8"], ["2001:db8::/32", "192.0.2.1", "::1"]],
    [[], "10.0.0.0/8", None, {}, [1], ["x"], ["fe80::1%eth0"], [None]],
)
INTERFACES: tuple[list[Any], list[Any]] = (
    [["eth0"], ["wl*", "x[0-9]?"]],
    [[], "eth0", None, {}, [1], [""], ["a b"], ["a/b"], ["a:b"], ["*" * 65]],
)

VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "servers": (
        [[{"id": "a", "require_digest": False}]],
        [[], {}, None, "x", ["x"], [{}], [{"id": "a"}], [{"id": "a", "require_digest": True}]],
    ),
    "servers[].id": (["a", "ä"], ["", 1, None, []]),
    "servers[].secret": (
        [{key: value} for key, value in SECRETS.items()],
        [{}, None, "x", [], {"text": "a" * 16, "hex": "aa" * 16}],
    ),
    "servers[].secret.text": (["a" * 16, "\0" * 16, "a" * 4_096], ["", 1, None, [], "a" * 4_097]),
    "servers[].secret.hex": (["00" * 16, "0A bc " * 8, " 00" * 16], ["", " ", "0", "0 0", "0g", 1, None, []]),
    "servers[].secret.base64": (
        [base64.b64encode(b"a" * length).decode() for length in (16, 17, 18)],
        ["", "YQ", "YQ=", "YQ==YQ==", "Y Q==", "YQ== ", "YWJ-", 1, None, []],
    ),
    "servers[].secret.file": (["key"], ["", "~", "~/x", 1, None, []]),
    "servers[].secret.credential": (["key"], ["", ".", "..", "a/b", "/key", 1, None, []]),
    "servers[].require_digest": ([True, False], ["true", 0, 1, None, []]),
    "servers[].sources": NETWORKS,
    "hook": (
        [{"command": ["/x"]}, {"socket": "/x"}, {"socket": "/x", "timeout": "1s", "stop_grace": "1s"}],
        [
            *({}, None, [], "x", {"command": ["/x"], "environment": None}),
            *({"command": ["/x"], "socket": "/x"}, {"command": ["/x"], "socket": "/x", "environment": {}}),
            *({"socket": "/x", "environment": {}}, {"socket": "/x", "kill_after": "1s"}),
        ],
    ),
    "hook.command": ([["/x"], ["/x", "", "{server_id}"]], [[], "/x", None, ["x"], [""], ["/x", 1], ["/x", None], [[]]]),
    "hook.environment": (
        [{}, {"A": "", "_b2": "x"}],
        [None, [], "A=b", {"A": 1}, {"A": None}, {"1A": "x"}, {"A-B": "x"}, {"": "x"}, {"DMNOTID_A": "x"}],
    ),
    "hook.socket": (
        ["/run/dm/session", "session", "./session"],
        ["", "~/x", "x" * 108, 1, None, [], ["/x"], {}],
    ),
    "hook.timeout": DURATION,
    "hook.kill_after": DURATION_OR_ZERO,
    "hook.stop_grace": DURATION_OR_ZERO,
    "listen": (
        ["[::]:2948", "[::1]", "127.0.0.1:0", "0.0.0.0", "[fe80::1%eth0]:5", ["[::1]:1", "[::1]:2"]],  # noqa: S104
        [
            "",
            "localhost",
            "::1",
            "[::1",
            ":2948",
            "*:1",
            "127.0.0.1:x",
            "127.0.0.1:123456",
            2948,
            None,
            {},
            [],
            [1],
            [[]],
        ],
    ),
    "state": PATH,
    "push": SECTION,
    "receive_buffer": ([4_096, 425_984], [1, 4_095, "8192", 8_192.5, None, [], True]),
    "push.max_header_octets": WHOLE,
    "freshness": SECTION,
    "freshness.max_age": (DURATION[0][:-1], DURATION[1]),
    "freshness.max_skew": (["1ms", "30s", "24h", "0", "0s", 0], DURATION_OR_ZERO[1]),
    "duplicates": SECTION,
    "duplicates.remember": (["3d", "400d"], DURATION[1]),
    "sessions": SECTION,
    "sessions.concurrency": WHOLE,
    "sessions.max_pending": WHOLE,
    "sessions.expire_after": DURATION,
    "sessions.min_interval": (["1ms", "30s", "3d", "0", "0s", 0], DURATION_OR_ZERO[1]),
    "retry": SECTION,
    "retry.first": (DURATION[0][:-2], DURATION[1]),
    "retry.longest": (["30s", "24h"], DURATION[1]),
    "retry.attempts": WHOLE,
    "connections": SECTION,
    "connections.reach": (["internet", "any", *NETWORKS[0]], ["", "x", "Internet", *NETWORKS[1]]),
    "connections.settle": DURATION_OR_ZERO,
    **dict.fromkeys((f"connections.{it}" for it in ("mobile", "wireless", "wireline")), SECTION),
    **dict.fromkeys((f"connections.{it}.interfaces" for it in ("mobile", "wireless", "wireline")), INTERFACES),
    "log": SECTION,
    "log.level": (["debug", "info", "warning", "error"], ["", "INFO", "trace", 1, None, [], True]),
    "log.format": (["auto", "json", "text"], ["", "JSON", "xml", 1, None, []]),
    "log.discards": DURATION,
    "log.junk": ([True, False], ["true", 0, 1, None, []]),
}


def test_values_are_tried_for_every_key() -> None:
    assert VALUES.keys() == KEYS.keys()


@pytest.mark.parametrize("path", VALUES)
def test_schema_and_reader_take_the_same_values(place: Place, path: str) -> None:
    place.put("key", "s" * 20)
    environ = {"CREDENTIALS_DIRECTORY": str(place.directory)}
    taken, refused = VALUES[path]
    limits = [KEYS[path][it] for it in ("minimum", "maximum") if it in KEYS[path]]
    for value in taken + limits:
        document = with_value(path, value)
        assert valid(document), value
        assert place.load(as_yaml(document), environ)
    for value in refused + [limit + way for limit, way in zip(limits, (-1, 1), strict=False)]:
        document = with_value(path, value)
        assert not valid(document), value
        assert place.problems(as_yaml(document), environ), value


def test_schema_and_reader_require_the_same(place: Place) -> None:
    for path in ("servers", "hook", "hook.command", "servers[].id", "servers[].secret"):
        document = with_value(path, None)
        node = document["servers"][0] if path.startswith("servers[]") else document["hook"] if "." in path else document
        del node[path.rpartition(".")[2]]
        assert not valid(document)
        assert "is missing" in place.problems(as_yaml(document))[0]
    assert valid({"servers": [{"id": "a", "require_digest": False}], "hook": {"command": ["/x"]}})


def test_schema_and_reader_have_the_same_defaults(place: Place) -> None:
    document = copy.deepcopy(FULL)
    given_defaults = {path: schema["default"] for path, schema in KEYS.items() if "default" in schema}
    for path, default in given_defaults.items():
        node: Any = document
        *sections, key = path.replace("[]", ".0").split(".")
        for section in sections:
            node = node[int(section)] if section.isdigit() else node[section]
        node[key] = default
    assert place.load(as_yaml(document)) == place.load(as_yaml(FULL))
    without = {path for path in KEYS if path not in given_defaults and "properties" not in KEYS[path]}
    assert {it for it in without if not it.startswith("servers")} == {
        "hook.command",
        "hook.socket",
        *(f"connections.{it}.interfaces" for it in ("mobile", "wireless", "wireline")),
    }


def test_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert all("description" in schema for schema in KEYS.values())


def example_in(place: Place, text: str) -> Config:
    place.put("dm.example.com.secret", os.urandom(32).hex() + "\n")
    return place.load(text, mode=0o644)


def test_example(place: Place) -> None:
    text = EXAMPLE.read_text()
    assert valid(yaml.safe_load(text))
    config = example_in(place, text)
    assert not config.warnings
    assert [server.id for server in config.servers] == ["dm.example.com"]
    minimal = place.load(MINIMAL)
    assert config._replace(servers=minimal.servers, hook=minimal.hook) == minimal
    assert config.hook._replace(command=("/bin/true",)) == minimal.hook


def test_example_with_all_that_is_commented_out(place: Place) -> None:
    text = re.sub(r"(?m)^( *)# ((?:  )?[A-Za-z_]+:(?: |$))", r"\1\2", EXAMPLE.read_text())
    document = yaml.safe_load(text)
    assert valid(document)
    config = example_in(place, text)
    assert not config.warnings
    assert config.hook.environment
    assert all(config.connections.interfaces.values())
    # What it shows as defaults are the defaults.
    minimal = place.load(MINIMAL)
    assert config._replace(servers=minimal.servers, hook=minimal.hook, connections=minimal.connections) == minimal
    assert config.hook._replace(command=("/bin/true",), environment={}) == minimal.hook
    assert config.connections._replace(interfaces=minimal.connections.interfaces) == minimal.connections
    shown = set(paths_of(document))
    others = {f"servers[].secret.{it}" for it in ("text", "hex", "base64", "credential")}
    assert shown == KEYS.keys() - others - {"hook.socket"}


def paths_of(document: dict[str, Any], path: str = "") -> Iterator[str]:
    for key, value in document.items():
        here = f"{path}.{key}".lstrip(".")
        yield here
        if isinstance(value, dict) and here != "hook.environment":
            yield from paths_of(value, here)
        elif isinstance(value, list) and isinstance(value[0], dict):
            yield from paths_of(value[0], f"{here}[]")


def documented() -> dict[str, tuple[str, str]]:
    """Return type and default of every key in the tables of the docs."""
    rows = re.findall(r"(?m)^\| `([^`]+)` \|([^|]*)\|([^|]*)\|[^|]*\|$", DOCS.read_text())
    found = {key: (kind.strip(), default.strip()) for key, kind, default in rows}
    assert len(found) == len(rows)
    return found


def test_docs_have_every_key() -> None:
    assert documented().keys() == KEYS.keys()


@pytest.mark.parametrize("path", KEYS)
def test_docs_have_the_schema_s_limits_and_defaults(path: str) -> None:
    kind, default = documented()[path]
    schema = KEYS[path]
    if schema.get("type") == "integer":
        assert kind == f"number, {schema['minimum']} to {schema['maximum']}"
    words = schema.get("enum", [])
    assert re.findall(r"`([^`]*)`", kind) == (words or re.findall(r"`([^`]*)`", kind))
    durations = {"#/$defs/duration": "duration", "#/$defs/durationOrZero": "duration or 0"}
    assert kind == durations.get(schema.get("$ref", ""), kind)
    if "default" in schema and path != "hook.environment":
        assert default == f"`{json.dumps(schema['default']).strip(chr(34))}`"
    else:
        assert default in {"", "required", "empty", "anywhere"}
        assert (default == "required") == (path in {"servers", "servers[].id", "hook"})


def test_docs_show_a_configuration_that_loads(place: Place) -> None:
    found = re.search(r"\n\n((?: {4}.*\n)+)", DOCS.read_text())
    assert found is not None
    assert example_in(place, found[1]).servers[0].id == "dm.example.com"


def test_reading_changes_nothing(place: Place) -> None:
    place.load(MINIMAL)
    assert [it.name for it in place.directory.iterdir()] == ["dmnotid.yaml"]
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o600


Load = Callable[[Path, Mapping[str, str]], Config]
"""How others call it."""


def test_interface() -> None:
    load: Load = load_config
    assert load is load_config
    assert ListenAddress._fields == ("host", "port")
    assert HookConfig._fields == ("command", "environment", "timeout", "kill_after", "stop_grace", "socket")
