"""From a file to a Config: defaults, keys that depend on each other, trusted paths, the section connections alone."""

import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from dmnotid.config.loading import MAX_FILE_OCTETS, load_config, load_connections
from dmnotid.config.values import (
    NAMED_TYPES,
    Config,
    ConnectionsConfig,
    DoorConfig,
    HookConfig,
    ListenAddress,
    LogConfig,
)
from dmnotid.errors import ConfigError
from dmnotid.host.trust import check_trusted_path
from dmnotid.policy.freshness import Freshness
from dmnotid.policy.retry import Retry
from dmnotid.policy.servers import Server
from dmnotid.policy.sessions import Limits
from dmnotid.wire.notification import ConnectionType
from tests.config.support import HOOK, MINIMAL, SERVERS, UNPRIVILEGED, Place, cases, needs_root


def test_keys_that_are_absent_have_their_defaults(place: Place) -> None:
    config = place.load(MINIMAL)
    assert config == Config(
        file=place.file,
        servers=(Server("a", b"a" * 16),),
        hook=HookConfig(("/bin/true",), {}, timeout=600, kill_after=10, stop_grace=20),
        listen=(ListenAddress("::", 2948),),
        receive_buffer=4_194_304,
        state=Path("/var/lib/dmnotid"),
        max_octets=4_096,
        max_header_octets=48,
        freshness=Freshness(86_400, None),
        remember=259_200,
        sessions=Limits(1, 16, 604_800),
        retry=Retry(30, 3_600, 10),
        connections=ConnectionsConfig("internet", dict.fromkeys(NAMED_TYPES, ()), settle=2),
        log=LogConfig("info", "auto", 60),
        warnings=(),
    )
    assert config.connections == ConnectionsConfig()
    assert config.log == LogConfig()


def test_keys_that_are_given_are_read(place: Place) -> None:
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
        push: {max_header_octets: 65507, max_octets: 65507}
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
    assert (config.max_header_octets, config.max_octets) == (65_507, 65_507)
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


def test_rules_are_those_of_the_configuration(place: Place) -> None:
    config = place.load(MINIMAL + "push: {max_header_octets: 7, max_octets: 70}\nfreshness: {max_age: 1h}\n")
    rules = config.rules
    assert list(rules.servers) == list(config.servers)
    assert (rules.max_header_octets, rules.max_octets) == (7, 70)
    assert rules.freshness == Freshness(3_600, None)


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        ({}, "/var/lib/dmnotid"),
        ({"STATE_DIRECTORY": ""}, "/var/lib/dmnotid"),
        ({"STATE_DIRECTORY": "/var/lib/private/x"}, "/var/lib/private/x"),
        ({"STATE_DIRECTORY": "/a:/b"}, "/a"),
    ],
)
def test_state_directory_of_systemd_is_the_default(place: Place, environ: dict[str, str], state: str) -> None:
    assert place.load(MINIMAL, environ).state == Path(state)
    assert place.load(MINIMAL + "state: /elsewhere\n", environ).state == Path("/elsewhere")


@pytest.mark.parametrize(
    ("environ", "key", "control"),
    [
        ({}, "", None),
        ({"RUNTIME_DIRECTORY": "/run/dmnotid"}, "", Path("/run/dmnotid/control")),
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b"}, "", Path("/run/a/control")),
        ({"RUNTIME_DIRECTORY": "/run/dmnotid"}, "control: off\n", None),
        ({"RUNTIME_DIRECTORY": "/run/dmnotid"}, "control: {socket: /srv/x}\n", Path("/srv/x")),
        ({}, "control: {socket: /srv/x}\n", Path("/srv/x")),
    ],
)
def test_control_socket_is_in_the_runtime_directory_unless_given(
    place: Place, environ: dict[str, str], key: str, control: Path | None
) -> None:
    assert place.load(MINIMAL + key, environ).control == control


def test_door_in_the_place_of_the_default_control_socket_is_refused(place: Place) -> None:
    text = MINIMAL + "doors: [{path: /run/dmnotid/control, holds: push}]\n"
    assert place.load(text, {}).control is None
    with pytest.raises(ConfigError, match=r"doors\[0\]\.path: is also the path of control\.socket; expected"):
        place.load(text, {"RUNTIME_DIRECTORY": "/run/dmnotid"})


@pytest.mark.parametrize(("text", "problems"), cases("below servers (line 1) and hook (line 2)"))
def test_wrong_section_is_refused(place: Place, text: str, problems: list[str]) -> None:
    assert place.problems(MINIMAL + text) == problems


@pytest.mark.parametrize(("hook", "problems"), cases("a hook, in line 2 below servers"))
def test_wrong_hook_is_refused(place: Place, hook: str, problems: list[str]) -> None:
    assert place.problems(SERVERS + hook) == problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: servers: is missing; this key is required"),
        ("servers:\n", "2:9: servers: is empty; expected a list of servers"),
        ("servers: []\n", "2:10: servers: is an empty list; expected a list of servers"),
        ("servers: {}\n", "2:10: servers: is a mapping; expected a list of servers"),
        ("servers: [a]\n", "2:11: servers[0]: is text; expected a mapping"),
    ],
)
def test_missing_servers_are_refused(place: Place, text: str, problem: str) -> None:
    assert place.problems(HOOK + text) == [problem]


def test_missing_hook_is_refused(place: Place) -> None:
    assert place.problems(SERVERS) == ["1:1: hook.command: is missing; give hook.command or hook.socket"]


def test_missing_secret_is_refused_unless_notifications_may_be_unsigned(place: Place) -> None:
    message = "is missing; add a secret, or require_digest: false to accept unsigned notifications"
    text = "servers:\n- id: a\n- {id: b, require_digest: true}\n- {id: c, require_digest: 1}\n- {id: d, secret: }\n"
    assert place.problems(text + HOOK) == [
        f"2:3: servers[0].secret: {message}",
        f"3:3: servers[1].secret: {message}",
        "4:27: servers[2].require_digest: is a number; expected true or false",
        "5:19: servers[3].secret: is empty; expected a mapping such as {file: PATH}",
    ]
    assert place.load(f"servers: [{{id: a, require_digest: false}}]\n{HOOK}").servers[0].secret is None


def test_doors_have_their_defaults_and_names(place: Place) -> None:
    config = place.load(
        f"""{MINIMAL}
doors:
  - {{path: /run/push, holds: push}}
  - {{path: package, holds: package}}
  - {{path: /run/mqtt, holds: package, mode: "0600", group: mail, source: mqtt}}
"""
    )
    assert config.doors == (
        DoorConfig(Path("/run/push"), "push", 0o660, None, "sms"),
        DoorConfig(place.directory / "package", "package", 0o660, None, "local"),
        DoorConfig(Path("/run/mqtt"), "package", 0o600, "mail", "mqtt"),
    )


SOURCE_OF_A = "servers: [{{id: a, secret: {{text: aaaaaaaaaaaaaaaa}}, sources: [192.0.2.0/24, {}]}}]\n"


def test_sources_take_names_of_doors(place: Place) -> None:
    doors = "doors: [{path: /x, holds: push, source: gsm}, {path: /y, holds: push, source: gsm}]"
    config = place.load(SOURCE_OF_A.format("gsm") + HOOK + doors)
    assert config.servers[0].sources == (ip_network("192.0.2.0/24"), "gsm")


@pytest.mark.parametrize(
    ("doors", "known"),
    [
        ("[{path: /x, holds: push}, {path: /y, holds: package}]", "one address, or a door (local, sms)"),
        # The name that a door would have without a source of its own.
        ("[{path: /x, holds: push, source: gsm}]", "one address, or a door (gsm)"),
    ],
)
def test_source_that_is_no_door_is_refused_with_the_doors_there_are(place: Place, doors: str, known: str) -> None:
    (problem,) = place.problems(SOURCE_OF_A.format("mqtt") + HOOK + f"doors: {doors}")
    assert problem.startswith("1:77: servers[0].sources[1]: 'mqtt' is neither a network nor the name of a door; ")
    assert problem.endswith(known)


@pytest.mark.parametrize("wrong", ["{path: /x, holds: pus}", "{path: /x, holds: push, source: Mqtt}", "{path: /x}"])
def test_source_is_not_compared_with_a_door_that_has_a_problem(place: Place, wrong: str) -> None:
    (problem,) = place.problems(SOURCE_OF_A.format("mqtt") + HOOK + f"doors: [{wrong}]")
    assert problem.startswith("3:")


def test_repeated_server_id_is_refused(place: Place) -> None:
    text = "servers:\n" + "".join(f"- {{id: {name}, require_digest: no}}\n" for name in ("\u00e9", "E", "e\u0301", "E"))
    expected = "expected a different id for each server, and a second secret of one server as its former_secret"
    assert place.problems(text + HOOK) == [
        f"4:8: servers[2].id: is also the id of servers[0]; {expected}",
        f"5:8: servers[3].id: is also the id of servers[1]; {expected}",
    ]


@pytest.mark.parametrize("count", [64, 65])
def test_secrets_are_warned_of_if_more_than_64_servers_have_one(place: Place, count: int) -> None:
    servers = "".join(f"- {{id: s{n}, secret: {{text: secret of server {n:04}}}}}\n" for n in range(count))
    config = place.load(f"servers:\n{servers}- {{id: open, require_digest: false}}\n{HOOK}")
    warning = (
        "2:1: servers: 65 servers have a secret, more than 64: notifications without SERVER-ID are not tried with any"
    )
    assert [place.short(str(warning)) for warning in config.warnings] == ([warning] if count == 65 else [])


def test_octets_that_are_not_a_mapping_are_refused(place: Place) -> None:
    assert place.problems("- a\n") == ["1:1: the file is a list; expected a mapping with servers and hook"]
    assert place.problems("a: *b\n") == ["1:4: an alias without an anchor; put text that begins with * in quotes"]
    too_large = "#" * (MAX_FILE_OCTETS + 1)
    assert place.problems(too_large) == [f"is larger than {MAX_FILE_OCTETS} octets"]


def test_problem_of_an_alias_is_reported_at_the_alias(place: Place) -> None:
    assert place.problems(f"{MINIMAL}state: &here /x\nlog:\n  level: *here\n") == [
        "5:10: log.level: is '/x'; expected one of debug, info, warning, error"
    ]


def test_nothing_shows_a_secret_or_the_environment(place: Place) -> None:
    servers = "servers: [{id: a, secret: {text: zQ7kWm4pXv9s}}]\n"
    config = place.load(f"{servers}hook: {{command: [/x], environment: {{T: zQ7kWm4pXv9s}}}}\n", mode=0o644)
    assert config.servers[0].secret == b"zQ7kWm4pXv9s"
    assert config.hook.environment == {"T": "zQ7kWm4pXv9s"}
    assert len(config.warnings) == 2
    for shown in (repr(config), str(config), repr(config.rules), *map(str, config.warnings)):
        assert "zQ7kWm4pXv9s" not in shown


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


# --- Paths that other users can change -----------------------------------------------------------------------------


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
    assert f"{trusted.file}: writable by {whose}" in refusal(trusted)
    trusted.file.chmod(mode & ~0o022)
    assert refusal(trusted) == ""


@pytest.mark.parametrize(("mode", "whose"), [(0o777, "others"), (0o775, "its group")])
def test_configuration_is_refused_if_others_can_write_its_directory(trusted: Place, mode: int, whose: str) -> None:
    trusted.directory.chmod(mode)
    assert refusal(trusted).startswith(f"{trusted.directory}: writable by {whose}")


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
    os.chown(component, UNPRIVILEGED, -1)
    assert refusal(trusted) == (
        f"{component}: belongs to user {UNPRIVILEGED}, only root and the daemon's own user are trusted: "
        f"chown root {component}, or run dmnotid as user {UNPRIVILEGED}"
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
    assert refusal(place, Path("dmnotid.yaml")) == "cannot be read: No such file or directory"


@pytest.mark.parametrize(("mode", "whose"), [(0o777, "others"), (0o770, "its group")])
def test_secret_file_is_refused_if_others_can_write_its_directory(trusted: Place, mode: int, whose: str) -> None:
    directory = trusted.directory / "secrets"
    directory.chmod(mode)
    assert refusal(trusted).startswith(f"1:34: servers[0].secret.file: {directory}: writable by {whose}")


@pytest.mark.root
@needs_root
def test_secret_file_is_refused_if_it_belongs_to_another_user(trusted: Place) -> None:
    file = trusted.directory / "secrets/key"
    os.chown(file, UNPRIVILEGED, -1)
    assert refusal(trusted).startswith(
        f"1:34: servers[0].secret.file: {file}: belongs to user {UNPRIVILEGED}, only root"
    )


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


def test_connections_alone_are_read(place: Place) -> None:
    wanted = place.load(MINIMAL + CONNECTIONS).connections
    assert wanted.settle == 0
    place.put("dmnotid.yaml", CONNECTIONS)
    assert load_connections(place.file) == wanted


@pytest.mark.parametrize("text", [MINIMAL, "x: 1\n", "{}\n"])
def test_connections_alone_have_their_defaults(place: Place, text: str) -> None:
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
def test_connections_alone_are_read_beside_wrong_sections(place: Place, others: str) -> None:
    assert place.problems(others + CONNECTIONS)
    assert load_connections(place.file).settle == 0


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "connections: {reach: here, settle: 1, mobile: {interfaces: []}, lan: {}}\n",
            [
                "1:22: connections.reach: is 'here'; expected internet, any or a list of networks",
                (
                    "1:36: connections.settle: has no unit; expected a whole number with its unit: 500ms, 30s, 10m, "
                    "24h or 7d"
                ),
                "1:60: connections.mobile.interfaces: is an empty list; expected a list of names",
                "1:65: connections.lan: unknown key; known keys here are reach, settle, mobile, wireless, wireline",
            ],
        ),
        (
            "connections:\n  wireline: {interfaces: [eth0, 'usb*']}\n  mobile: {interfaces: ['usb*']}\n",
            [
                (
                    "2:33: connections.wireline.interfaces[1]: 'usb*' is also connections.mobile.interfaces[0]; "
                    "expected each pattern once"
                )
            ],
        ),
        ("connections:\n", ["1:13: connections: is empty; expected a mapping"]),
        ("connections: {}\nconnections: {}\n", ["2:1: connections: is given twice, first in line 1"]),
        ("- a\n", ["1:1: the file is a list; expected a mapping with servers and hook"]),
    ],
)
def test_wrong_connections_alone_are_refused(place: Place, text: str, problems: list[str]) -> None:
    """With the same messages as the whole configuration, and no others."""
    place.put("dmnotid.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_connections(place.file)
    assert [place.short(str(problem)) for problem in caught.value.problems] == problems
    assert set(problems) <= set(place.problems(text))
