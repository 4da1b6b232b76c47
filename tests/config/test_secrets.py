"""Secrets: their five forms, the checks of one and among all, and that no message shows one."""

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.config.loading import load_config
from dmnotid.config.secrets import without_line_break
from dmnotid.errors import ConfigError, ConfigProblem
from tests.config.support import HOOK, MINIMAL, UNPRIVILEGED, Place, cases, needs_root, outcome_of, server_with

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
    """5.3.5: the secret that is shared with the server."""
    config = place.load(server_with(secret))
    assert config.servers[0].secret == octets
    assert not config.warnings


@pytest.mark.parametrize(
    ("content", "secret"),
    [(b"s", b"s"), (b"s\n", b"s"), (b"s\r\n", b"s"), (b"s\n\n", b"s\n"), (b"s\r", b"s\r"), (b"\n", b""), (b"", b"")],
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


def write_servers(place: Place) -> None:
    """Write a configuration whose first server alone has a secret that can be read."""
    place.put("key", "s" * 20)
    secrets = ["{file: key}", "{file: none}", "{credential: none}"]
    servers = "".join(f"- id: s{at}\n  secret: {secret}\n" for at, secret in enumerate(secrets))
    place.put("dmnotid.yaml", f"servers:\n{servers}{HOOK}")


def test_only_wanted_secrets_are_read(place: Place) -> None:
    write_servers(place)
    first, *others = load_config(place.file, {}, wanted=lambda server_id, *_: server_id == "s0").servers
    assert first.secret == b"s" * 20
    assert len({server.secret for server in others} - {None}) == 2
    with pytest.raises(ConfigError) as caught:
        load_config(place.file, {}, wanted=lambda _id, _key, form: form != "credential")
    (problem,) = caught.value.problems
    assert problem.path == "servers[1].secret.file"


def test_secrets_that_cannot_be_read_are_none_with_their_problems_reported(place: Place) -> None:
    write_servers(place)
    problems: list[ConfigProblem] = []
    config = load_config(place.file, {}, unread=problems.append)
    assert [server.secret for server in config.servers] == [b"s" * 20, None, None]
    assert [place.short(str(problem)) for problem in problems] == [
        "5:18: servers[1].secret.file: DIR/none cannot be read: No such file or directory",
        (
            "7:24: servers[2].secret.credential: $CREDENTIALS_DIRECTORY is not set; systemd sets it for services with "
            "LoadCredential="
        ),
    ]
    # What the file itself says is a problem as ever.
    place.put("dmnotid.yaml", server_with("{hex: zz}"))
    with pytest.raises(ConfigError):
        load_config(place.file, {}, unread=problems.append)
    assert len(problems) == 2


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602, 0o660, 0o644])
def test_secret_file_is_refused_if_others_can_read_or_write_it(place: Place, mode: int) -> None:
    file = place.put("key", "s" * 20, mode)
    found = file.stat()
    problem = (
        f"has mode {mode:04o}, owner {found.st_uid} and group {found.st_gid}, so other users can read or write it; "
        f"expected 0600 or 0400, or root as owner, mode 0640 or 0440 and dmnotid's own group ({os.getegid()})"
    )
    assert place.problems(server_with("{file: key}")) == [f"3:18: servers[0].secret.file: DIR/key {problem}"]


GROUP = 60_000
"""A group of this process alone."""


@contextmanager
def own_group() -> Iterator[None]:
    former = os.getegid()
    os.setegid(GROUP)
    try:
        yield
    finally:
        os.setegid(former)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "group", "accepted"),
    [
        (0o640, 0, GROUP, True),
        (0o440, 0, GROUP, True),
        (0o660, 0, GROUP, False),
        (0o644, 0, GROUP, False),
        (0o641, 0, GROUP, True),
        (0o640, 0, GROUP + 1, False),
        (0o640, 0, 0, False),
        (0o640, UNPRIVILEGED, GROUP, False),
        (0o600, UNPRIVILEGED, GROUP, True),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_secret_file_of_root_is_accepted_if_only_the_daemons_group_can_read_it(
    place: Place, mode: int, owner: int, group: int, *, accepted: bool, linked: bool
) -> None:
    """With `linked` as Kubernetes mounts a secret: KEY -> ..data/KEY, ..data -> ..2026/."""
    (place.directory / "..2026").mkdir()
    (place.directory / "..data").symlink_to("..2026")
    file = place.put("..2026/key", "s" * 20, mode)
    os.chown(file, owner, group)
    file.chmod(mode)
    (place.directory / "linked").symlink_to("..data/key")
    text = server_with("{file: linked}" if linked else "{file: ..2026/key}")
    with own_group():
        if accepted:
            assert place.load(text).servers[0].secret == b"s" * 20
        else:
            (problem,) = place.problems(text)
            assert f"has mode {mode:04o}, owner {owner} and group {group}, so" in problem


@pytest.mark.root
@needs_root
def test_configuration_with_a_secret_may_be_read_by_the_daemons_group(place: Place) -> None:
    place.put("dmnotid.yaml", MINIMAL, 0o640)
    os.chown(place.file, 0, GROUP)
    assert len(load_config(place.file, {}).warnings) == 1
    with own_group():
        assert not load_config(place.file, {}).warnings


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
    config = place.load(servers + HOOK, mode=0o644)
    assert [place.short(str(warning)) for warning in config.warnings] == [
        "3:18: servers[0].secret.text: has only 15 octets; a secret with fewer than 16 can be guessed",
        (
            "3:18: servers[0].secret.text: is a secret in a file that its group or others can read (mode 0644): "
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


BELONGS = "which belongs to the secret"


@pytest.mark.parametrize("form", ["file", "credential"])
@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (b"\xef\xbb\xbffield-secret-0123456789\r\n", f"begins with a byte order mark, {BELONGS}; "),
        ("\ufefffield-secret-0123456789".encode("utf-16-le"), f"begins with a byte order mark, {BELONGS}; "),
        ("\ufefffield-secret-0123456789".encode("utf-16-be"), f"begins with a byte order mark, {BELONGS}; "),
        ("field\u00a0secret-0123456789\n".encode(), "has U+00A0, which is invisible and belongs to the secret"),
        ("field-secret-0123456789\u200b\n".encode(), "has U+200B, which is invisible and belongs to the secret"),
        (b"field-secret-0123456789\n\n", f"ends with white space, {BELONGS}; "),
        (b"field-secret-0123456789\r\n\r\n", f"ends with white space, {BELONGS}; "),
        (b"field-secret-0123456789 \n", f"ends with white space, {BELONGS}; "),
        (b"field-secret-0123456789\t", f"ends with white space, {BELONGS}; "),
        (b"field-secret-0123456789\r", f"ends with white space, {BELONGS}; "),
        (b"field-secret-0123456789\r\n", None),
        (b"field secret 0123456789\n", None),
        ("käse-ohne-löcher-0123456789".encode(), None),
        # Octets that are not text end as they do.
        (b"\xff\xfd\x80" * 8 + b"\n\n", None),
    ],
)
def test_secret_with_octets_that_editors_leave_is_warned_of(
    place: Place, form: str, content: bytes, warning: str | None
) -> None:
    place.put("key", content)
    config = place.load(server_with(f"{{{form}: key}}"), {"CREDENTIALS_DIRECTORY": str(place.directory)})
    found = [str(found).partition(f".secret.{form}: ")[2] for found in config.warnings]
    assert [text[: len(warning or "")] for text in found] == ([] if warning is None else [warning])
    assert config.servers[0].secret == without_line_break(content)


@pytest.mark.parametrize(
    ("secret", "warned"),
    [
        ("\n    text: field-secret-0123456789 #abc", True),
        ("\n    text: field secret of\n      two lines #abc", True),
        ("{text: field-secret-0123456789 #abc\n    }", True),
        ("\n    text: field-secret-0123456789#abc", False),
        ("\n    text: 'field-secret-0123456789' #abc", False),
        ("\n    text: 'field-secret-0123456789 #abc'", False),
        ("\n    text: field-secret-0123456789\n    # abc", False),
        ("\n    hex: 00112233445566778899aabbccddeeff # a comment", False),
        ("{text: field-secret-0123456789} # abc", False),
    ],
)
def test_comment_after_a_secret_without_quotes_is_warned_of(place: Place, secret: str, *, warned: bool) -> None:
    found = [str(warning) for warning in place.load(server_with(secret)).warnings]
    assert len(found) == warned
    assert not warned or found[0].endswith("ends before a comment; put the secret in quotes if the # belongs to it")


def test_secret_that_begins_as_a_comment_is_refused_with_advice(place: Place) -> None:
    assert place.problems(server_with("\n    text: #field-secret-0123456789")) == [
        "4:10: servers[0].secret.text: is empty; expected text: put text that begins with # in quotes"
    ]


# --- The former secret -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["{text: old-secret-0123456789}", "{hex: '6f6c642d7365637265742d30313233343536373839'}", "{file: old}"]
)
@pytest.mark.parametrize(
    ("until", "seconds"), [("", None), (", until: 2026-12-31", 1_798_761_600), (", until: '1970-01-01'", 86_400)]
)
def test_former_secret_is_read_with_its_end(place: Place, form: str, until: str, seconds: float | None) -> None:
    place.put("old", "old-secret-0123456789\n")
    former = form.replace("}", f"{until}}}")
    (server,) = place.load(server_with(f"{{text: new-secret-0123456789}}\n  former_secret: {former}")).servers
    assert server.secrets == (b"new-secret-0123456789", b"old-secret-0123456789")
    assert server.former_until == seconds


@pytest.mark.parametrize(
    ("former", "problem"),
    [
        ("{until: 2026-12-31}", "18: servers[0].former_secret: has none of its keys; expected exactly one of "),
        ("{text: a, hex: 00}", "18: servers[0].former_secret: has text and hex; expected exactly one of "),
        ("{text: new-secret-0123456789}", "18: servers[0].former_secret: equals the secret of servers[0] ('a'); "),
        ("{file: none}", "25: servers[0].former_secret.file: DIR/none cannot be read: No such file or directory"),
        ("{text: old-secret, until: 31.12.2026}", "44: servers[0].former_secret.until: is not a date; "),
        ("{text: old-secret, until: 2026-02-30}", "44: servers[0].former_secret.until: is not a date; "),
        ("{text: old-secret, until: 7d}", "44: servers[0].former_secret.until: is not a date; expected a date "),
        ("{text: old-secret, until: 2026}", "44: servers[0].former_secret.until: is a number; expected a date such"),
    ],
)
def test_wrong_former_secret_is_refused(place: Place, former: str, problem: str) -> None:
    found = place.problems(server_with(f"{{text: new-secret-0123456789}}\n  former_secret: {former}"))
    assert [text[: len(problem) + 2] for text in found] == [f"4:{problem}"]


def test_secrets_of_one_server_may_begin_alike(place: Place) -> None:
    (server,) = place.load(
        server_with("{text: a-secret-0123456789-2}\n  former_secret: {text: a-secret-0123456789}")
    ).servers
    assert len(server.secrets) == 2


def test_former_secret_alone_is_refused(place: Place) -> None:
    text = f"servers:\n- id: a\n  require_digest: no\n  former_secret: {{text: old-secret-0123456789}}\n{HOOK}"
    expected = "4:18: servers[0].former_secret: is given without a secret; expected the current one as secret"
    assert place.problems(text) == [expected]


def test_former_secrets_are_compared_with_those_of_other_servers(place: Place) -> None:
    pairs = [
        ("a" * 20, "b" * 20),
        ("c" * 20, "a" * 16),
        ("d" * 20, "d" * 16),
        ("b" * 20, "e" * 20),
        ("d" * 18, "f" * 20),
    ]
    servers = [
        {"id": f"s{at}", "secret": {"text": secret}, "former_secret": {"text": former}}
        for at, (secret, former) in enumerate(pairs)
    ]
    text = "servers:\n" + "".join(f"- {json.dumps(server)}\n" for server in servers) + HOOK
    found = [problem.split(": ", 1)[1].partition(";")[0] for problem in place.problems(text)]
    # The two of the third server begin alike, which is no matter: either means that server.
    assert found == [
        "servers[1].former_secret: is the beginning of the secret of servers[0] ('s0')",
        "servers[3].secret: equals the former secret of servers[0] ('s0')",
        "servers[4].secret: begins with the former secret of servers[2] ('s2')",
        "servers[4].secret: is the beginning of the secret of servers[2] ('s2')",
    ]


LEAKS = [
    *(f"{{text: {SECRET}, hex: 00}}", f"{{hex: {SECRET}}}", f"{{base64: '{SECRET}!'}}", f"{{text: [{SECRET}]}}"),
    *(f"{{text: {{{SECRET}: a}}}}", f"{{{SECRET}}}", f"{{{SECRET}: a}}", f"{{text:{SECRET}}}", f"{{text:{SECRET}: a}}"),
    *(f"{{txt: {SECRET}}}", f"{{credential: a/{SECRET}}}", f"{{text: !{SECRET} a}}", f"{{text: !x!{SECRET} a}}"),
    *(f"{{text: !{SECRET}!x a}}", f"{{text: &{SECRET} }}", f"{{text: *{SECRET} }}", f"{{text: @{SECRET} }}"),
    *(f"{{text: %{SECRET} }}", f'{{text: "\\q{SECRET}"}}', f'{{text: "{SECRET}\\xzz"}}', f"{{text: '{SECRET}}}"),
    *(f"{{text: {SECRET}: {SECRET}}}", f"{{text: |{SECRET}}}", f"[{SECRET}]", SECRET, f"{SECRET}: {SECRET}"),
    *(f"|{SECRET}", f"*{SECRET}", f"!{SECRET}", f"!{SECRET} {{text: a}}", f"{{text: {SECRET}, text: {SECRET}}}"),
    f"{{text: {SECRET}}}\n  former_secret: {{text: {SECRET}}}",
    f"{{text: a}}\n  former_secret: {{text: {SECRET}, until: {SECRET}}}",
    *(f"{{text: {SECRET} #{SECRET}}}", f"{{text: {SECRET}\u00a0{SECRET}: a}}", f"{{text:\u00a0{SECRET}}}"),
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


@given(
    at=st.integers(0, len(TEMPLATE)), cut=st.integers(0, 2), put=st.text("\n\t :-?[]{}&*!|>'\"%@`#,~ax0", max_size=2)
)
def test_no_typing_error_shows_a_secret(tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: str) -> None:
    file = tmp_path_factory.getbasetemp() / "slip.yaml"
    file.write_text(TEMPLATE[:at] + put + TEMPLATE[at + cut :])
    outcome = outcome_of(file)
    assert SECRET[3:-3] not in f"{outcome} {outcome!r}"
