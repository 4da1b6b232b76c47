"""The table of keys: the reader, the schema and the example follow it."""

import base64
import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.config.keys import KEYS, SECTIONS
from dmnotid.config.values import Config
from tests.config.support import MINIMAL, Place, outcome_of

PROJECT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((PROJECT / "config/dmnotid.schema.json").read_text())
EXAMPLE = PROJECT / "config/dmnotid.yaml"
PAGE = PROJECT / "docs/configuration.md"

SECRETS = {"text": "a" * 16, "hex": "aa" * 16, "base64": base64.b64encode(b"a" * 16).decode()}

FULL: dict[str, Any] = {
    "servers": [
        {
            "id": "a",
            "secret": {"text": "the current one, 1"},
            "former_secret": {"text": "the former one, 0"},
            "require_digest": True,
            "sources": ["10.0.0.0/8"],
        }
    ],
    "hook": {"command": ["/x"]},
    **{key: {} for key in ("push", "freshness", "duplicates", "sessions", "retry", "log")},
    "connections": {"mobile": {}, "wireless": {}, "wireline": {}},
    "control": {"socket": "/control"},
    "doors": [{"path": "/x", "holds": "push", "mode": "0600", "group": "x", "source": "sms"}],
}


def with_value(path: str, value: object) -> dict[str, Any]:
    """Return a document in which the key at `path` has that value."""
    document = copy.deepcopy(FULL)
    node: Any = document
    *sections, key = path.split(".")
    for section in sections:
        node = node[section.removesuffix("[]")]
        node = node[0] if section.endswith("[]") else node
    if re.match(r"servers\[\]\.(former_)?secret\.(?!until)", path) or path == "hook.socket":
        node.clear()
    node[key] = value
    return document


# Made once: a new validator resolves the references of the schema again.
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def valid(document: object) -> bool:
    return bool(VALIDATOR.is_valid(document))


def as_yaml(document: object) -> str:
    return json.dumps(document)  # JSON is YAML


@pytest.mark.parametrize("path", SECTIONS)
def test_unknown_key_is_refused_with_the_known_ones(place: Place, path: str) -> None:
    document = with_value(f"{path}.zzz".lstrip("."), "x")
    if path in {"servers[].secret", "servers[].former_secret"}:
        document = with_value(path, {"zzz": "x"})
    (problem,) = place.problems(as_yaml(document))
    assert problem.endswith(f"unknown key; known keys here are {', '.join(SECTIONS[path])}")
    assert not valid(document)


WHOLE = ([1, 7], [0, -1, True, "7", 1.5, None, [], 10**9])
DURATION = (["1ms", "30s", "10m", "24h", "3d"], ["", "0", "0s", "1", "1w", "1.5h", "-1s", "1h30m", 0, 5, 1.5, None, []])
DURATION_OR_ZERO = ([*DURATION[0], "0", "0s", 0], ["", "1", "1w", "1.5h", "-1s", 5, 1.5, None, [], False])
SECTION: tuple[list[object], list[object]] = ([{}], [None, [], "x", 1])
PATH = (["/x", "x", "./x"], ["", "~", "~/x", 1, None, []])
NETWORKS: tuple[list[Any], list[Any]] = (
    [["10.0.0.0/8"], ["2001:db8::/32", "192.0.2.1", "::1"]],
    [[], "10.0.0.0/8", None, {}, [1], ["x"], ["fe80::1%eth0"], [None]],
)
SOURCES: tuple[list[Any], list[Any]] = (
    [*NETWORKS[0], ["sms"], ["10.0.0.0/8", "sms"]],
    [*(it for it in NETWORKS[1] if it != ["x"]), ["Sms"], ["sms_1"], [""]],
)
INTERFACES: tuple[list[Any], list[Any]] = (
    [["eth0"], ["wl*", "x[0-9]?"]],
    [[], "eth0", None, {}, [1], [""], ["a b"], ["a/b"], ["a:b"], ["*" * 65]],
)

FORMS: dict[str, tuple[list[Any], list[Any]]] = {
    "text": (["a" * 16, "\0" * 16, "a" * 4_096], ["", 1, None, [], "a" * 4_097]),
    "hex": (["00" * 16, "0A bc " * 8, " 00" * 16], ["", " ", "0", "0 0", "0g", 1, None, []]),
    "base64": (
        [base64.b64encode(b"a" * length).decode() for length in (16, 17, 18)],
        ["", "YQ", "YQ=", "YQ==YQ==", "Y Q==", "YQ== ", "YWJ-", 1, None, []],
    ),
    "file": (["key"], ["", "~", "~/x", 1, None, []]),
    "credential": (["key"], ["", ".", "..", "a/b", "/key", 1, None, []]),
}

VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    **{f"servers[].{kind}.{form}": FORMS[form] for kind in ("secret", "former_secret") for form in FORMS},
    "servers": (
        [[{"id": "a", "require_digest": False}]],
        [[], {}, None, "x", ["x"], [{}], [{"id": "a"}], [{"id": "a", "require_digest": True}]],
    ),
    "servers[].id": (["a", "ä"], ["", 1, None, []]),
    "servers[].secret": (
        [{key: value} for key, value in SECRETS.items()],
        [{}, None, "x", [], {"text": "a" * 16, "hex": "aa" * 16}],
    ),
    "servers[].former_secret": (
        [*({key: value} for key, value in SECRETS.items()), {"hex": "aa" * 16, "until": "2026-12-31"}],
        [{}, None, "x", [], {"text": "a" * 16, "hex": "aa" * 16}, {"until": "2026-12-31"}],
    ),
    "servers[].former_secret.until": (
        ["2026-12-31", "9999-12-31", "2024-02-29", "1970-01-01"],
        ["", "2026-1-5", "20261231", "2026-W01-1", "2026-12-31T00:00:00", "tomorrow", 2026, None, [], True],
    ),
    "servers[].require_digest": ([True, False], ["true", 0, 1, None, []]),
    "servers[].sources": SOURCES,
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
    "hook.socket": (["/run/dm/session", "session", "./session"], ["", "~/x", "x" * 108, 1, None, [], ["/x"], {}]),
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
    "doors": (
        [[{"path": "/x", "holds": "push"}], [{"path": "/x", "holds": "package"}, {"path": "/y", "holds": "package"}]],
        [[], {}, None, "/x", ["/x"], [{}], [{"path": "/x"}], [{"holds": "push"}]],
    ),
    "doors[].path": (["/run/door", "door"], ["", "~/x", "x" * 108, 1, None, [], {}]),
    "doors[].holds": (["push", "package"], ["", "Push", "sms", 1, None, []]),
    "doors[].mode": (["0660", "660", "0600", "0775"], ["", "0666", "0662", "66", "00660", "0o660", "0668", 660, None]),
    "doors[].group": (["dmnotid-doors", "Users_1"], ["", "a b", "a:b", "a/b", 1, None, []]),
    "doors[].source": (["sms", "a", "a-1"], ["", "Sms", "1a", "-a", "a_b", "::1", 1, None, []]),
    "state": PATH,
    "control": (
        [False, {"socket": "/control"}],
        [True, {}, None, [], "off", "/x", 0, {"socket": None}, {"socket": "/x", "mode": "x"}],
    ),
    "control.socket": (["/run/dm/control", "control"], ["", "~/x", "x" * 108, 1, None, [], {}]),
    "push": SECTION,
    "receive_buffer": ([4_096, 425_984, 2**28], [1, 4_095, 2**28 + 1, "8192", 8_192.5, None, [], True]),
    "push.max_octets": ([*WHOLE[0], 4_096, 65_507], [*WHOLE[1], 65_508]),
    "push.max_header_octets": ([*WHOLE[0], 65_507], [*WHOLE[1], 65_508]),
    "freshness": SECTION,
    "freshness.max_age": (DURATION[0][:-1], DURATION[1]),
    "freshness.max_skew": (
        ["1ms", "30s", "24h", "0", "0s", 0, None],
        [value for value in DURATION_OR_ZERO[1] if value is not None],
    ),
    "duplicates": SECTION,
    "duplicates.remember": (["3d", "400d"], DURATION[1]),
    "sessions": SECTION,
    "sessions.concurrency": ([*WHOLE[0], 1_024], [*WHOLE[1], 1_025]),
    "sessions.max_pending": ([*WHOLE[0], 65_536], [*WHOLE[1], 65_537]),
    "sessions.expire_after": DURATION,
    "sessions.min_interval": (["1ms", "30s", "3d", "0", "0s", 0], DURATION_OR_ZERO[1]),
    "retry": SECTION,
    "retry.first": (DURATION[0][:-2], DURATION[1]),
    "retry.longest": (["30s", "24h"], DURATION[1]),
    "retry.attempts": ([*WHOLE[0], 1_000], [*WHOLE[1], 1_001]),
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


@pytest.mark.parametrize("path", [key.path for key in KEYS])
def test_schema_and_reader_accept_the_same_values(place: Place, path: str) -> None:
    place.put("key", "s" * 20)
    environ = {"CREDENTIALS_DIRECTORY": str(place.directory)}
    accepted, refused = VALUES[path]
    for value in accepted:
        document = with_value(path, value)
        assert valid(document), value
        assert place.load(as_yaml(document), environ)
    for value in refused:
        document = with_value(path, value)
        assert not valid(document), value
        assert place.problems(as_yaml(document), environ), value


def test_schema_and_reader_require_the_same_keys(place: Place) -> None:
    for path in ("servers", "hook", "hook.command", "servers[].id", "servers[].secret"):
        document = with_value(path, None)
        node = document["servers"][0] if path.startswith("servers[]") else document["hook"] if "." in path else document
        del node[path.rpartition(".")[2]]
        assert not valid(document)
        assert "is missing" in place.problems(as_yaml(document))[0]
    assert valid({"servers": [{"id": "a", "require_digest": False}], "hook": {"command": ["/x"]}})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["a", "1s", "0", "10.0.0.0/8", "[::]:1", "eth*"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", "first", "x"]), inner),
    max_leaves=5,
)


@given(path=st.sampled_from([key.path for key in KEYS]), value=JSON)
def test_any_value_is_a_configuration_or_its_problems(
    tmp_path_factory: pytest.TempPathFactory, path: str, value: object
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(as_yaml(with_value(path, value)))
    outcome = outcome_of(file)
    assert isinstance(outcome, Config) or outcome.problems


def load_example(place: Place, text: str) -> Config:
    assert valid(yaml.safe_load(text))
    place.put("dm.example.com.secret", os.urandom(32).hex() + "\n")
    config = place.load(text, mode=0o644)
    assert not config.warnings
    return config


def test_example_has_every_default(place: Place) -> None:
    config = load_example(place, EXAMPLE.read_text())
    assert [server.id for server in config.servers] == ["dm.example.com"]
    minimal = place.load(MINIMAL)
    assert config._replace(servers=minimal.servers, hook=minimal.hook) == minimal
    assert config.hook._replace(command=("/bin/true",)) == minimal.hook


def test_example_shows_every_default_in_comments(place: Place) -> None:
    text = re.sub(r"(?m)^( *)# ((?:  )?[A-Za-z_]+:(?: |$))", r"\1\2", EXAMPLE.read_text())
    config = load_example(place, text)
    assert config.hook.environment
    assert all(config.connections.interfaces.values())
    minimal = place.load(MINIMAL)
    assert config.control == Path("/run/dmnotid/control")
    same = config._replace(servers=minimal.servers, hook=minimal.hook, connections=minimal.connections, control=None)
    assert [door.source for door in config.doors] == ["sms"]
    assert same._replace(listen_given=False, doors=()) == minimal
    assert config.hook._replace(command=("/bin/true",), environment={}) == minimal.hook
    assert config.connections._replace(interfaces=minimal.connections.interfaces) == minimal.connections
    for key in KEYS:
        name = key.path.rpartition(".")[2].removesuffix("[]")
        assert (
            re.search(rf"\b{name}:", EXAMPLE.read_text()) or ".secret." in key.path or ".former_secret." in key.path
        ), key.path


def test_page_shows_a_configuration_that_loads(place: Place) -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    assert load_example(place, found[1]).servers[0].id == "dm.example.com"
