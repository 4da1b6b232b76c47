"""Kinds of values that only some keys have, read from real configurations."""

import json
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
