"""Secrets: their five forms, the checks of one and among all, and that no message shows one."""

import base64
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmnotid.config.loading import load_config
from dmnotid.config.secrets import without_line_break
from dmnotid.errors import ConfigError
from tests.config.support import HOOK, MINIMAL, Place, cases, outcome_of, server_with

SECRET = "zQ7kWm4pXv9sLt2yDr5c"


@pytest.mark.parametrize(
    ("secret", "octets"),
    [
        ("{text: 'käse ohne löcher'}", "käse ohne löcher".encode()),
        ('{text: "\\0\\x01 0123456789abcdef"}', b"\0\x01 0123456789abcdef"),
        ("{hex: 'ff 00  ffFF 00112233445566778899AAbb'}", bytes.fromhex("ff00ffff00112233445566778899aabb")),
        ("{base64: '+/+/+/+/+/+/+/+/+/+/+w=='}", base64.b64decode("+/+/+/+/+/+/+/+/+/+/+w==")),
    ],
)
def test_secret_in_the_configuration_is_read(place: Place, secret: str, octets: bytes) -> None:
    config = place.load(server_with(secret))
    assert config.servers[0].secret == octets
    assert not config.warnings


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"s", b"s"),
        (b"s\n", b"s"),
        (b"s\r\n", b"s"),
        (b"s\n\n", b"s\n"),
        (b"s\r", b"s\r"),
        (b"\n", b""),
        (b"", b""),
    ],
)
def test_one_line_break_is_removed(content: bytes, secret: bytes) -> None:
    assert without_line_break(content) == secret


@pytest.mark.parametrize("content", [b" \0\xff" * 9, b"s" * 4_096 + b"\r\n"])
def test_secret_in_a_file_is_read(place: Place, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.put("the secret", content, 0o400)
    # A relative path counts from the configuration, not from here.
    monkeypatch.chdir("/")
    for name in ("the secret", "./the secret", str(path)):
        config = place.load(server_with(f"{{file: {name!r}}}"))
        assert config.servers[0].secret == without_line_break(content)
        assert not config.warnings


def test_credential_is_read_whatever_its_mode(place: Place) -> None:
    place.put("the secret", b"s" * 20 + b"\n", 0o444)
    environ = {"CREDENTIALS_DIRECTORY": str(place.directory)}
    assert place.load(server_with("{credential: the secret}"), environ).servers[0].secret == b"s" * 20


def test_random_octets_replace_credentials_that_are_not_read(place: Place) -> None:
    place.put(
        "dmnotid.yaml",
        f"servers:\n- {{id: a, secret: {{credential: a}}}}\n- {{id: b, secret: {{credential: b}}}}\n{HOOK}",
    )
    first, second = load_config(place.file, {}, credentials=False).servers
    assert first.secret
    assert first.secret != second.secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_secret_file_is_refused_if_others_can_read_or_write_it(place: Place, mode: int) -> None:
    place.put("key", "s" * 20, mode)
    problem = f"has mode {mode:04o}, so its group or others can read or write it; expected 0600 or 0400"
    assert place.problems(server_with("{file: key}")) == [f"3:18: servers[0].secret.file: DIR/key {problem}"]


@pytest.mark.parametrize("form", ["file", "credential"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fifo", "DIR/fifo is not a regular file"),
        ("missing", "DIR/missing cannot be read: No such file or directory"),
        ("large", "has more than 4096 octets"),
        ("larger", "DIR/larger is larger than 4098 octets"),
        ("empty", "is empty; expected a secret of at least 16 octets"),
    ],
)
def test_file_without_a_secret_is_refused(place: Place, form: str, name: str, problem: str) -> None:
    os.mkfifo(place.directory / "fifo", 0o600)
    place.put("large", b"s" * 4_097)
    place.put("larger", b"s" * 4_099)
    place.put("empty", b"\n")
    environ = {"CREDENTIALS_DIRECTORY": str(place.directory)}
    column = len("  secret: {: x") + len(form)
    found = place.problems(server_with(f"{{{form}: {name}}}"), environ)
    assert found == [f"3:{column}: servers[0].secret.{form}: {problem}"]


@pytest.mark.parametrize(("secret", "problems"), cases("the secret of a server, in line 3 from column 11"))
def test_wrong_secret_is_refused(place: Place, secret: str, problems: list[str]) -> None:
    assert place.problems(server_with(secret)) == problems


def test_secret_is_bounded(place: Place) -> None:
    expected = ["3:18: servers[0].secret.text: has more than 4096 octets"]
    assert place.problems(server_with(f"{{text: {'a' * 4097}}}")) == expected
    assert place.load(server_with(f"{{text: {'a' * 4096}}}"))


def test_secrets_that_begin_alike_are_refused(place: Place) -> None:
    secrets = ["b" * 20, "a" * 20, "b" * 20, "b" * 21, "a" * 16, "c" * 20]
    servers = [{"id": f"s{at}", "secret": {"text": secret}} for at, secret in enumerate(secrets)]
    text = "servers:\n" + "".join(f"- {json.dumps(server)}\n" for server in servers) + HOOK
    expected = "; expected a different secret for each server"
    assert place.problems(text) == [
        f"4:26: servers[2].secret: equals the secret of servers[0] ('s0'){expected}",
        f"5:26: servers[3].secret: begins with the secret of servers[2] ('s2'){expected}",
        f"6:26: servers[4].secret: is the beginning of the secret of servers[1] ('s1'){expected}",
    ]


def test_secrets_of_different_forms_are_compared(place: Place) -> None:
    place.put("key", "a" * 16 + "\n")
    assert place.problems(
        f'servers:\n- {{secret: {{file: key}}}}\n- {{id: b, secret: {{hex: "{"61" * 16}"}}}}\n{HOOK}'
    ) == [
        "2:3: servers[0].id: is missing; this key is required",
        "3:19: servers[1].secret: equals the secret of servers[0]; expected a different secret for each server",
    ]


def test_weak_secrets_are_warned_of(place: Place) -> None:
    servers = f"servers:\n- id: a\n  secret: {{text: {'a' * 15}}}\n- id: b\n  secret:\n    text: |\n      {'b' * 16}\n"
    config = place.load(servers + HOOK, mode=0o640)
    assert [place.short(str(warning)) for warning in config.warnings] == [
        "3:18: servers[0].secret.text: has only 15 octets; a secret with fewer than 16 can be guessed",
        (
            "3:18: servers[0].secret.text: is a secret in a file that its group or others can read (mode 0640): "
            "chmod 600"
        ),
        (
            "6:11: servers[1].secret.text: ends with a line break, which belongs to the secret; write |- instead of | "
            "if it is not meant"
        ),
    ]
    assert not place.load(MINIMAL).warnings
    place.put("key", "s" * 20)
    assert not place.load(server_with("{file: key}"), mode=0o644).warnings


LEAKS = [
    *(f"{{text: {SECRET}, hex: 00}}", f"{{hex: {SECRET}}}", f"{{base64: '{SECRET}!'}}", f"{{text: [{SECRET}]}}"),
    *(f"{{text: {{{SECRET}: a}}}}", f"{{{SECRET}}}", f"{{{SECRET}: a}}", f"{{text:{SECRET}}}", f"{{text:{SECRET}: a}}"),
    *(f"{{txt: {SECRET}}}", f"{{credential: a/{SECRET}}}", f"{{text: !{SECRET} a}}", f"{{text: !x!{SECRET} a}}"),
    *(f"{{text: !{SECRET}!x a}}", f"{{text: &{SECRET} }}", f"{{text: *{SECRET} }}", f"{{text: @{SECRET} }}"),
    *(f"{{text: %{SECRET} }}", f'{{text: "\\q{SECRET}"}}', f'{{text: "{SECRET}\\xzz"}}', f"{{text: '{SECRET}}}"),
    *(f"{{text: {SECRET}: {SECRET}}}", f"{{text: |{SECRET}}}", f"[{SECRET}]", SECRET, f"{SECRET}: {SECRET}"),
    *(f"|{SECRET}", f"*{SECRET}", f"!{SECRET}", f"!{SECRET} {{text: a}}", f"{{text: {SECRET}, text: {SECRET}}}"),
    *(f"{{text: {SECRET}}}\n  text: {SECRET}", f"{{text: {SECRET}}}\n  {SECRET}:"),
    *(f"{{text: {SECRET}}}\n- {{id: b, {SECRET}}}", f"{{text: {SECRET}}}\n- {{id: b, secret:{SECRET}}}"),
    f"{{text: {SECRET}}}\n- {{id: b, secret: {{text: {SECRET}}}}}",
    f"{{text: {SECRET}}}\n- {{id: b, secret: {{text: {SECRET}x}}}}",
    f"{{text: {SECRET}}}\n- {{id: b, secret: {{text: {SECRET[:-1]}}}}}",
    f'{{text: "{SECRET}\\ud800"}}\n  x: 1',
    f"{{text: {SECRET}}}\nx: &{SECRET} 1\ny: *{SECRET}x",
    f"{{text: {SECRET}}}\n  x: \x01",
    f"{{text: {SECRET}}}\nhook: {{command: [/x], environment: {{A: 1, TOKEN={SECRET}}}}}",
    f"{{text: {SECRET}}}\nhook: {{command: [/x], environment: {{TOKEN: [{SECRET}]}}}}",
]


def assert_hidden(error: ConfigError) -> None:
    for text in (str(error), repr(error), repr(error.problems)):
        assert SECRET[:-1] not in text
        assert SECRET.encode().hex() not in text


@pytest.mark.parametrize("secret", LEAKS)
def test_no_problem_shows_a_secret(place: Place, secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        place.load(f"servers:\n- id: a\n  secret: {secret}\n")
    assert_hidden(caught.value)
    # Nor does a traceback show the exception that led to it.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_problem_shows_a_secret_from_a_file(place: Place) -> None:
    for name, mode in (("one", 0o600), ("two", 0o600), ("open", 0o644)):
        place.put(name, SECRET, mode)
    text = "servers:\n" + "".join(f"- {{id: {it}, secret: {{file: {it}}}}}\n" for it in ("one", "two", "open"))
    with pytest.raises(ConfigError) as caught:
        place.load(text + HOOK)
    assert len(caught.value.problems) == 2
    assert_hidden(caught.value)


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
def test_no_typing_error_shows_a_secret(tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: str) -> None:
    file = tmp_path_factory.getbasetemp() / "slip.yaml"
    file.write_text(TEMPLATE[:at] + put + TEMPLATE[at + cut :])
    outcome = outcome_of(file)
    assert SECRET[3:-3] not in f"{outcome} {outcome!r}"
