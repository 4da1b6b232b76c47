"""YAML as nodes with places: the same tree and the same refusals with both loaders."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmnotid.config import tree
from dmnotid.config.loading import load_config
from dmnotid.config.tree import MAX_DEPTH, Node, Wrong, compose, decode
from dmnotid.errors import ConfigError

LOADERS = [pytest.param(getattr(yaml, "CSafeLoader", yaml.SafeLoader), id="c"), pytest.param(yaml.SafeLoader, id="py")]


@pytest.fixture(autouse=True, params=LOADERS)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with both loaders: a device can lack libyaml."""
    monkeypatch.setattr(tree, "LOADER", request.param)


def refusal(octets: bytes | str) -> str:
    """Return the place and the message of a refusal."""
    with pytest.raises(Wrong) as caught:
        compose(decode(octets.encode() if isinstance(octets, str) else octets))
    line, column = caught.value.place
    return f"{line}:{column}: {caught.value}" if line else str(caught.value)


def test_nodes_have_their_places() -> None:
    root = compose("a: 1\nb:\n  - x\n  - {c: yes}\n")
    (_, one), (_, two) = root.pairs
    assert one == Node("int", 1, 4, "1")
    assert [(item.kind, item.line, item.column) for item in two.items] == [("str", 3, 5), ("map", 4, 5)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *(("x", "str"), ("'1'", "str"), ("!!str 1", "str"), ("1", "int"), ("1.5", "float"), ("yes", "bool")),
        *(("!!bool yes", "bool"), ("~", "null"), ("2026-01-01", "timestamp"), ("<<", "merge"), ("=", "value")),
        *(("!x y", "tagged"), ("!x {}", "tagged"), ("!!set {}", "tagged"), ("!!seq {}", "tagged"), ("{}", "map")),
    ],
)
def test_kind_is_what_yaml_resolves(text: str, kind: str) -> None:
    assert compose(text).kind == kind


def test_alias_has_the_value_of_its_anchor_and_its_own_place() -> None:
    (_, first), (_, second) = compose("a: &x [1]\nb: *x\n").pairs
    assert second == first._replace(line=2, column=4)


def test_aliases_of_aliases_share_their_nodes() -> None:
    """Copied, they would have 10 to the power of 30 nodes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert len(compose("\n".join(lines)).pairs) == 30


def test_byte_order_mark_is_dropped() -> None:
    assert decode(b"\xef\xbb\xbfa: b") == "a: b"


@pytest.mark.parametrize(
    ("octets", "problem"),
    [
        (b"", "the file is empty; expected servers and hook"),
        (b"# only this\n", "the file is empty; expected servers and hook"),
        (b"a: b\n--- \nc: d\n", "2:1: another document begins here; expected one"),
        (b"a: b\nc: \xff\n", "2:4: the file is not UTF-8: invalid start byte"),
        ("a: b".encode("utf-16"), "1:1: the file is not UTF-8: invalid start byte"),
        (b"a: \xc3", "1:4: the file is not UTF-8: unexpected end of data"),
        (b"\xef\xbb\xbfa: b\nc: \xff\n", "2:4: the file is not UTF-8: invalid start byte"),
        ("\ufeffä: \x1b".encode(), "1:4: the file has U+001B, which YAML does not allow"),
        (b"a:\n  b\0\n", "2:4: the file has U+0000, which YAML does not allow"),
        (b"a: *b\n", "1:4: an alias without an anchor; put text that begins with * in quotes"),
        (b"a: &b [*b]\n", "1:8: an alias to a value that contains it"),
        (b"&a {b: {c: *a}}\n", "1:12: an alias to a value that contains it"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"1:{MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels"),
        (b"- " * 100_000, f"1:{2 * MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_unusable_octets_are_refused(octets: bytes, problem: str) -> None:
    assert refusal(octets) == problem


def test_depth_up_to_the_bound_is_accepted() -> None:
    assert compose("[" * MAX_DEPTH + "]" * MAX_DEPTH).kind == "seq"


def test_endless_brackets_are_refused() -> None:
    """Some versions of libyaml find them first, and at another place: they read ahead for the end of a key."""
    with pytest.raises(Wrong, match=r"nested deeper than 32 levels|nesting depth") as caught:
        compose("[" * 100_000)
    assert caught.value.place >= (1, MAX_DEPTH + 1)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [b", r"[12]:\d+: not YAML: .*"),
        ("a: b: c", r"1:5: not YAML: .* \(check the indentation, and put text with a colon and a space in quotes\)"),
        ("- a: b\n   c: d", r"2:5: not YAML: .* \(check the indentation, and put text with .*\)"),
        (
            "- a: b\n c: d",
            r"2:2: not YAML: .* \(check the indentation: the keys of a mapping begin in the same column\)",
        ),
        ("a:\n  b: c\n d: e", r"3:2: not YAML: .* \(check the indentation: the keys of a mapping .*\)"),
        ("a:\n\t- b", r"2:1: not YAML: .* \(indent YAML with spaces, not with tabs\)"),
        ("a: @b", r"1:4: not YAML: .* \(put text that begins with @ in quotes\)"),
        ("a: %b", r"1:4: not YAML: .* \(put text that begins with % in quotes\)"),
        ("listen: [::]:2948", r'1:\d+: not YAML: .* \(put an address in brackets in quotes: "\[::\]:2948"\)'),
        ("a: 'b", r"1:6: not YAML: found unexpected end of stream"),
        ("- a\nb: c", r"2:1: not YAML: .*"),
        ('a: "\\q"', r"1:\d: not YAML: found unknown escape character"),
        ("a: !x!y z", r"1:4: not YAML: found undefined tag handle"),
        ("%YAML 3.0\n---\na: b", r"1:1: not YAML: found incompatible YAML document.*"),
        ('a: "\\UFFFFFFFF"', r"(1:7: not YAML: found invalid.*|not YAML: an escape or a number has no meaning)"),
        (f"%YAML {'1' * 5000}.1\n---\na", r"(1:\d+: not YAML: .*|not YAML: an escape or a number has no meaning)"),
    ],
)
def test_text_that_is_not_yaml_is_refused_with_place_and_advice(text: str, problem: str) -> None:
    assert re.fullmatch(problem, refusal(text))


NBSP = "\u00a0"


@pytest.mark.parametrize(
    ("text", "line", "column", "name"),
    [
        (f"servers:\n  - id:{NBSP}dm\n    secret: {{text: a}}\n", 2, 8, "U+00A0"),
        (f"servers:\n  - id: dm\n{NBSP * 4}secret: {{text: a}}\n", 3, 1, "U+00A0"),
        (f"servers:\n  - id: dm\n  {NBSP} secret: {{text: a}}\n", 3, 3, "U+00A0"),
        (f"servers:\n  -{NBSP}id: dm\n    secret: {{text: a}}\n", 2, 4, "U+00A0"),
        (f"hook:{NBSP}{{command: [/x]}}\n", 1, 6, "U+00A0"),
        (f"hook: {{command:{NBSP}[/x]}}\n", 1, 16, "U+00A0"),
        (f"servers:{NBSP}\n  - id: dm\n", 1, 9, "U+00A0"),
        ("a: 1\nhook\u200b: 1\n", 2, 5, "U+200B"),
        ("a: 1\n\u2003b: 1\n", 2, 1, "U+2003"),
        ("a: 1\nb\ufeff: 1\n", 2, 2, "U+FEFF"),
        ("a: 1\n'b\u2060': 1\n", 2, 2, "U+2060"),
        ("a: {b\u00ad: 1}\n", 1, 6, "U+00AD"),
        ("a:\n\u3000\u3000b: 1\n", 2, 1, "U+3000"),
    ],
)
def test_invisible_character_in_the_structure_is_named_with_its_place(
    tmp_path: Path, text: str, line: int, column: int, name: str
) -> None:
    file = tmp_path / "dmnotid.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    found = [(it.line, it.column, it.message) for it in caught.value.problems]
    assert (line, column, f"{name} here is not a space to YAML; write a space, or delete it") in found


@pytest.mark.parametrize(
    "text", [f"a: '{NBSP}'\nb: [\n", f'a: "\\"{NBSP}"\nb: [\n', f"# {NBSP}\nb: [\n", f"a: 1 #{NBSP}\nb: [\n"]
)
def test_invisible_character_in_quotes_or_comments_is_not_named_beside_another_problem(
    tmp_path: Path, text: str
) -> None:
    file = tmp_path / "dmnotid.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, {})
    assert [it.message[:8] for it in caught.value.problems] == ["not YAML"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("- id: a\n  secret: {text: field-secret-0123456789 #abc}\nhook: {}\n", 2),
        ("secret: {text: field-secret-0123456789 #abc}", 1),
        ("a: {b: [x, y #z]\n  }\n", 1),
        ("a: {\n  text: x #y}\nb: {}\n", 2),
    ],
)
def test_comment_that_hides_a_bracket_is_explained(text: str, line: int) -> None:
    found = refusal(text)
    assert found.endswith(f" (a comment begins at the # in line {line}: put text with # in quotes)")
    assert "abc" not in found


@pytest.mark.parametrize(
    ("text", "commented"),
    [
        *(("a: b #c", True), ("a: b#c", False), ("a: b\n#c", False), ("a: 'b' #c", False)),
        *(("a: #c", True), ("a: |\n  b #c\n", False), ("a: [b #c\n ]", False), ("a: b\n  c # d", True)),
    ],
)
def test_comment_after_a_scalar_without_quotes_is_noted(text: str, *, commented: bool) -> None:
    ((_, value),) = compose(text).pairs
    assert value.commented is commented


ANY: Any = st.one_of(
    st.binary(),
    st.lists(
        st.sampled_from([*":-?[]{}&*!|>'\"%@`#,~ \n\t\x85", "a", "1", "yes", "<<", "&x", "*x", "---", "!!str"])
    ).map(lambda scraps: "".join(scraps).encode()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY)
def test_any_octets_are_a_tree_or_a_refusal(octets: bytes) -> None:
    try:
        found: Node | str = compose(decode(octets))
    except Wrong as wrong:
        found = str(wrong)
    assert found
