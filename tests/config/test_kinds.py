"""Kinds of values that only some keys have, read from real configurations."""

import json
import re
import socket
from pathlib import Path

import pytest

from dmnotid.config.loading import load_config
from dmnotid.config.values import HookConfig
from tests.config.support import HOOK, MINIMAL, SERVERS, Place, cases


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
def test_address_is_read(place: Place, text: str, address: tuple[str, int]) -> None:
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
def test_addresses_that_do_not_overlap_are_read(place: Place, addresses: list[str]) -> None:
    assert [str(it) for it in place.load(f"{MINIMAL}listen: {json.dumps(addresses)}\n").listen] == addresses


def server_with_keys(text: str) -> str:
    return f"{HOOK}servers:\n- {{ {text}, secret: {{text: aaaaaaaaaaaaaaaa}} }}\n"


@pytest.mark.parametrize(("text", "problems"), cases("a server, in line 3, beside its secret"))
def test_wrong_key_of_a_server_is_refused(place: Place, text: str, problems: list[str]) -> None:
    assert place.problems(server_with_keys(text)) == problems


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        *(("id: '='", "="), ("id: !!str 123", "123"), ("id: !!str yes", "yes"), (f"id: {'a' * 4095}", "a" * 4095)),
        ("id: e\u0301", "\u00e9"),
    ],
)
def test_server_id_is_read_in_nfc(place: Place, text: str, identity: str) -> None:
    assert place.load(server_with_keys(text)).servers[0].id == identity


def test_server_id_is_refused_if_no_option_can_hold_it(place: Place) -> None:
    expected = ["3:9: servers[0].id: has more than 4095 octets, the most that a notification can have"]
    assert place.problems(server_with_keys(f"id: {'a' * 4096}")) == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dm.example.com\u200b", "U+200B"),
        ("'dm\u00a0example'", "U+00A0"),
        ('"dm\\u00ad"', "U+00AD"),
        ("dm\u2060", "U+2060"),
    ],
)
def test_invisible_character_in_a_server_id_is_warned_of(place: Place, text: str, name: str) -> None:
    config = place.load(server_with_keys(f"id: {text}"))
    expected = f"3:9: servers[0].id: has {name}, which is invisible; delete it if it is not meant"
    assert [place.short(str(warning)) for warning in config.warnings] == [expected]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("hook: {command: [/bin/true, 'a\u200b']}", "hook.command[1]"),
        (
            "hook: {command: [/bin/true]}\nconnections: {mobile: {interfaces: [wwan0\u200b]}}",
            "connections.mobile.interfaces[0]",
        ),
        ("hook: {command: [/bin/true]}\nstate: /x\u2009y", "state"),
    ],
)
def test_invisible_character_in_another_value_is_warned_of(place: Place, text: str, path: str) -> None:
    (warning,) = place.load(SERVERS + text).warnings
    assert warning.path == path
    assert "which is invisible" in warning.message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("log: {level: info\u200b}", "log.level: is 'info\\u200b'; expected one of debug, info, warning, error"),
        ("retry: {attempts: 5\u00a0}", "retry.attempts: is text; expected a whole number from 1 to 1000"),
        ("retry: {first: \u200b5s}", "retry.first: '\\u200b5s' is not a duration; "),
    ],
)
def test_invisible_character_in_a_wrong_value_is_named(place: Place, text: str, problem: str) -> None:
    (found,) = place.problems(MINIMAL + text)
    assert problem in found
    assert re.search(r" \(it has U\+[0-9A-F]{4}, which is invisible\)$", found)


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ("/opt/dm/bin:$PATH", "$PATH"),
        ("${HOME}/dm", "${HOME}"),
        ("$(hostname)", "$…"),
        ("~/bin", "~"),
        ("/bin:~/bin", "~"),
        ("{server_id}", "{server_id}"),
        ("a-{whatever}", "{…"),
        ("zQ7k$Wm4pXv9s", "$…"),
        ("costs 5$", None),
        ("a$1", None),
        ("{}", None),
        ('{"a": 1}', None),
        ("a~b", None),
    ],
)
def test_variable_of_the_environment_that_is_not_expanded_is_warned_of(
    place: Place, value: str, literal: str | None
) -> None:
    config = place.load(f"{SERVERS}hook: {{command: [/x], environment: {{PATH: {json.dumps(value)}}}}}")
    assert config.hook.environment == {"PATH": value}
    expected = f"2:43: hook.environment.PATH: has {literal}, which is not expanded; write its value instead"
    assert [place.short(str(warning)) for warning in config.warnings] == ([] if literal is None else [expected])


@pytest.mark.parametrize("argument", ["{", "{}", "${x}", "{X}", "{ x }", "{1}", "{server_id}{attempt}", "", "{x-y}"])
def test_braces_without_a_placeholder_are_kept(place: Place, argument: str) -> None:
    text = f"{SERVERS}hook: {{command: [/x, {json.dumps(argument)}]}}"
    assert place.load(text).hook.command == ("/x", argument)


@pytest.mark.parametrize(("text", "path"), [("/run/dm/session", "/run/dm/session"), ("session", "DIR/session")])
def test_socket_is_read(place: Place, text: str, path: str) -> None:
    hook = place.load(f"{SERVERS}hook: {{socket: {text}, timeout: 1s, stop_grace: 0}}").hook
    assert hook == HookConfig((), {}, 1, 10, 0, Path(path.replace("DIR", str(place.directory))))


def test_socket_beside_a_configuration_with_a_relative_path_is_absolute(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.directory)
    place.put("dmnotid.yaml", f"{SERVERS}hook: {{socket: session}}")
    assert load_config(Path("dmnotid.yaml"), {}).hook.socket == Path.cwd() / "session"


@pytest.mark.parametrize("length", [107, 108])
def test_socket_is_bounded_as_the_kernel_bounds_it(place: Place, length: int) -> None:
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
