"""`dmnotid links` as a process among the real links of a namespace."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

from tests.cli.program import PATIENCE, PROGRAM, Done, call, through_shell, without_reader
from tests.netns import Namespace, in_namespace
from tests.support import further

NOBODY = 65534

PATTERNS = """\
connections:
  settle: 500ms
  mobile: {interfaces: ["wwan*"]}
  wireless: {interfaces: ["wlan*"]}
  wireline: {interfaces: ["eth*"]}
"""
LOOPBACK = "connections: {reach: any, mobile: {interfaces: [lo]}}\n"


class Place(NamedTuple):
    """A namespace, and the configuration that names its interfaces."""

    namespace: Namespace
    config: Path

    def words(self, *words: str) -> list[str]:
        return ["links", "--config", str(self.config), *words]

    def links(self, *words: str) -> Done:
        return run(self.namespace, *PROGRAM, *self.words(*words))

    @contextmanager
    def watch(self, *words: str) -> Iterator["Watch"]:
        argv = [*PROGRAM, *self.words("--watch", *words)]
        process = self.namespace.popen(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            try:
                yield Watch(process)
            finally:
                process.kill()


class Watch:
    """A `dmnotid links --watch` whose output is read line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._octets = b""

    def line(self) -> str:
        """Wait for the next line."""
        assert self.process.stdout is not None
        while b"\n" not in self._octets:
            readable, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            assert readable, f"nothing more in {PATIENCE} s, after: {self._octets!r}"
            octets = os.read(self.process.stdout.fileno(), 65_536)
            assert octets, f"ended after: {self._octets!r}"
            self._octets += octets
        line, _, self._octets = self._octets.partition(b"\n")
        return line.decode()

    def cells(self, name: str, available: str) -> list[str]:
        """Wait for the row with this state of an interface, and return its columns."""
        while True:
            cells = re.split(" {2,}", self.line())
            if cells[0] == name and cells[6:7] == [available]:
                return cells

    def choice(self) -> str:
        """Wait for the next choice."""
        while not (line := self.line()).startswith("a session"):
            pass
        return line.partition(" would ")[2]

    def facts(self, name: str, missing: str | None) -> dict[str, Any]:
        """Wait for the JSON with this state of an interface, and return all of it."""
        while True:
            facts: dict[str, Any] = json.loads(self.line())
            if any((it["interface"], it["missing"]) == (name, missing) for it in facts["interfaces"]):
                return facts

    def end(self) -> tuple[int, str]:
        """Wait for the end, and return the exit status and standard error."""
        status = self.process.wait(PATIENCE)
        assert self.process.stderr is not None
        return status, self.process.stderr.read()


def run(namespace: Namespace, *argv: str) -> Done:
    done = namespace.run(*argv, timeout=PATIENCE)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Place]:
    config = tmp_path / "dmnotid.yaml"
    config.write_text(PATTERNS)
    with Namespace() as namespace:
        yield Place(namespace, config)


@pytest.fixture
def place(empty: Place) -> Place:
    """One interface of each state."""
    namespace = empty.namespace
    for name in ("wlan0", "wwan0", "eth1", "eth2"):
        namespace.add_veth(name)
    namespace.add_veth("eth0", up=False)
    namespace.far_ip("link", "set", "eth2", "down")
    namespace.ip_batch(
        [
            "addr add 192.0.2.7/24 dev wlan0",
            "addr add 2001:db8::7/64 dev wlan0",
            "route add default via 192.0.2.1 dev wlan0 metric 600",
            "addr add 198.51.100.7/24 dev eth1",
        ]
    )
    return empty


# --- The table


TABLE = """\
INTERFACE  TYPE      UP   CARRIER  ADDRESS         ROUTE               AVAILABLE       TYPE FROM
lo         any       yes  yes      127.0.0.1 (+1)  -                   not configured  loopback
wlan0      wireless  yes  yes      192.0.2.7 (+1)  default metric 600  yes             configured: wlan*
wwan0      mobile    yes  yes      -               -                   no address      configured: wwan*
eth1       wireline  yes  yes      198.51.100.7    -                   no route        configured: eth*
eth2       wireline  yes  no       -               -                   no carrier      configured: eth*
eth0       wireline  no   no       -               -                   down            configured: eth*
"""


@in_namespace
@pytest.mark.parametrize(
    ("preferred", "choice"),
    [
        ("", "without preference would use wlan0 (wireless), if it has been available for 500ms"),
        ("any", "that prefers any would use wlan0 (wireless), if it has been available for 500ms"),
        (
            "mobile,wireless",
            "that prefers mobile, wireless would use wlan0 (wireless), if it has been available for 500ms",
        ),
        ("mobile", "that prefers mobile would wait: wwan0: up, no address"),
        (
            "mobile,wireline",
            (
                "that prefers mobile, wireline would wait: wwan0: up, no address; eth1: up, no route; "
                "eth2: up, no carrier; eth0: down"
            ),
        ),
    ],
)
def test_table_ends_with_the_choice_for_the_preference(preferred: str, choice: str, place: Place) -> None:
    done = place.links("--prefer", preferred)
    assert done == Done(0, f"{TABLE}a session {choice}\n", "")


@in_namespace
def test_session_would_wait_if_there_is_no_interface(empty: Place) -> None:
    assert empty.links().out.endswith("\na session without preference would wait: no interface\n")
    told = "a session that prefers mobile, wireless would wait: no mobile interface; no wireless interface"
    assert empty.links("--prefer", "mobile,wireless").out.endswith(f"\n{told}\n")


@in_namespace
def test_best_route_of_any_family_is_shown_and_chosen(place: Place) -> None:
    place.config.write_text(PATTERNS.replace("500ms", "0"))
    place.namespace.ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth1", "metric", "100")
    assert place.links().out.endswith("would use eth1 (wireline)\n")
    place.namespace.ip("-6", "route", "add", "default", "dev", "wlan0", "metric", "50")
    done = place.links()
    assert "  default metric 50 (+1)  " in done.out
    assert done.out.endswith("would use wlan0 (wireless)\n")


@in_namespace
def test_missing_route_to_a_network_is_named(place: Place) -> None:
    place.config.write_text(PATTERNS + "  reach: [198.51.100.0/24, 10.0.0.0/8]\n")
    done = place.links("--prefer", "wireline")
    assert re.search("(?m)^wlan0 .*  default metric 600 +yes  ", done.out)
    assert re.search("(?m)^eth1 .*  198.51.100.0/24 metric 0 +no route to 10.0.0.0/8  ", done.out)
    assert " would wait: eth1: up, no route to 10.0.0.0/8; " in done.out


ODD_NAMES = {
    "a\x1b[31mb": r"a\x1b[31mb",
    "a\x9bb": r"a\x9bb",
    "a\u202eb": r"a\u202eb",
    "a\udcff": r"a\udcff",
    "\u00e9t\u00e9": "\u00e9t\u00e9",
}


@in_namespace
@pytest.mark.parametrize("name", ODD_NAMES, ids=ODD_NAMES.values())
def test_name_of_an_interface_is_escaped_in_the_table(name: str, empty: Place) -> None:
    """JSON has it as it is (\\udcff is an octet that is not UTF-8)."""
    empty.config.write_text("connections: {reach: any}\n")
    empty.namespace.add_uplink("wlan0")
    empty.namespace.ip_batch(["link set wlan0 down"])
    empty.namespace.ip("link", "set", "wlan0", "name", name)
    done = empty.links()
    assert re.search(f"(?m)^{re.escape(ODD_NAMES[name])} +any +no +no .* down +kind veth$", done.out)
    assert done.out.endswith(f" would wait: {ODD_NAMES[name]}: down\n")
    empty.namespace.ip("link", "set", name, "up")
    empty.namespace.wait_up(name)
    assert f" would use {ODD_NAMES[name]} (any)" in empty.links().out
    facts = json.loads(empty.links("--json").out)
    assert facts["uses"] == {"connection": "any", "interface": name}


# --- JSON


@in_namespace
def test_json_has_every_interface_and_the_choice(place: Place) -> None:
    done = place.links("--json", "--prefer", "mobile,any")
    assert (done.status, done.err, done.out.count("\n")) == (0, "", 1)
    facts = json.loads(done.out)
    assert isinstance(facts.pop("time"), float)
    names = {link["interface"]: link for link in facts.pop("interfaces")}
    assert facts == {
        "preferred_connections": ["mobile", "any"],
        "uses": {"connection": "wireless", "interface": "wlan0"},
        "missing": None,
    }
    assert list(names) == ["lo", "wlan0", "wwan0", "eth1", "eth2", "eth0"]
    indexes = {it["ifname"]: it["ifindex"] for it in json.loads(place.namespace.ip("-j", "link"))}
    assert {name: link["index"] for name, link in names.items()} == indexes
    assert names["wlan0"] == {
        "interface": "wlan0",
        "index": indexes["wlan0"],
        "connection": "wireless",
        "why": "configured: wlan*",
        "up": True,
        "carrier": True,
        "addresses": ["192.0.2.7", "2001:db8::7"],
        "routes": ["default metric 600"],
        "missing": None,
        "available": True,
    }
    assert {name: link["missing"] for name, link in names.items()} == {
        "lo": "not configured",
        "wlan0": None,
        "wwan0": "no address",
        "eth1": "no route",
        "eth2": "no carrier",
        "eth0": "down",
    }


@in_namespace
def test_json_explains_why_a_session_would_wait(place: Place) -> None:
    facts = json.loads(place.links("--json", "--prefer", "mobile").out)
    assert (facts["preferred_connections"], facts["uses"]) == (["mobile"], None)
    assert facts["missing"] == "wwan0: up, no address"
    assert json.loads(place.links("--json").out)["preferred_connections"] == []


# --- What changes


@in_namespace
def test_watch_shows_changed_rows_below_the_first_table(place: Place) -> None:
    with place.watch("--prefer", "mobile,wireless") as watch:
        table = TABLE.replace("600  yes     ", "600  settling")
        assert [watch.line() for _ in range(7)] == table.splitlines()
        would = "a session that prefers mobile, wireless would"
        assert watch.line() == f"{would} wait: wlan0: settling; wwan0: up, no address"
        assert re.fullmatch(r"--- \d\d:\d\d:\d\d", watch.line())
        assert watch.line() == TABLE.splitlines()[2]
        assert watch.line() == f"{would} use wlan0 (wireless)"
        place.namespace.ip("addr", "add", "203.0.113.9/24", "dev", "wwan0")
        assert re.fullmatch(r"--- \d\d:\d\d:\d\d", watch.line())
        row = "wwan0      mobile    yes  yes      203.0.113.9     -                   no route        configured: wwan*"
        assert watch.line() == row
        place.namespace.ip("addr", "flush", "dev", "wwan0")
        # The choice is the same, so it is not repeated.
        assert watch.line().startswith("--- ")
        assert watch.line() == TABLE.splitlines()[3]


@in_namespace
def test_watch_follows_each_change(place: Place) -> None:
    namespace = place.namespace
    with place.watch("--prefer", "mobile,wireless") as watch:
        assert watch.choice() == "wait: wlan0: settling; wwan0: up, no address"
        assert watch.choice() == "use wlan0 (wireless)"
        namespace.ip_batch(["addr add 203.0.113.9/24 dev wwan0", "route add default via 203.0.113.1 dev wwan0"])
        watch.cells("wwan0", "settling")
        cells = ["wwan0", "mobile", "yes", "yes", "203.0.113.9", "default metric 0", "yes", "configured: wwan*"]
        assert watch.cells("wwan0", "yes") == cells
        assert watch.choice() == "use wwan0 (mobile)"
        namespace.far_ip("link", "set", "wwan0", "down")
        watch.cells("wwan0", "no carrier")
        assert watch.choice() == "use wlan0 (wireless)"
        namespace.ip("link", "del", "wwan0")
        assert watch.cells("wwan0", "gone") == ["wwan0", *["-"] * 5, "gone", "-"]
        namespace.ip("link", "set", "eth0", "name", "wwan7")
        assert watch.cells("wwan7", "down") == ["wwan7", "mobile", "no", "no", "-", "-", "down", "configured: wwan*"]
        assert watch.cells("eth0", "gone") == ["eth0", *["-"] * 5, "gone", "-"]


@in_namespace
def test_watch_as_json_shows_settling_and_changes(place: Place) -> None:
    with place.watch("--json") as watch:
        facts = watch.facts("wlan0", "settling")
        assert (facts["uses"], facts["missing"].partition(";")[0]) == (None, "wlan0: settling")
        assert [it["available"] for it in facts["interfaces"]] == [False] * 6
        began = facts["time"]
        facts = watch.facts("wlan0", None)
        assert facts["time"] - began >= 0.4
        assert (facts["uses"], facts["missing"]) == ({"connection": "wireless", "interface": "wlan0"}, None)
        assert [it["interface"] for it in facts["interfaces"] if it["available"]] == ["wlan0"]
        place.namespace.ip("link", "set", "wlan0", "down")
        assert watch.facts("wlan0", "down")["uses"] is None


@in_namespace
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_interrupted_watch_ends_with_130(words: list[str], place: Place) -> None:
    with place.watch(*words) as watch:
        watch.line()
        watch.process.send_signal(signal.SIGINT)
        assert watch.end() == (130, "")


@in_namespace
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_watch_ends_at_the_next_change_if_its_reader_is_gone(words: list[str], place: Place) -> None:
    place.config.write_text(PATTERNS.replace("500ms", "0"))
    with place.watch(*words) as watch:
        watch.line()
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        place.namespace.ip("link", "set", "eth0", "up")
        assert watch.end() == (1, "")


# --- The configuration


def links_of(config: Path | None, *words: str) -> Done:
    return call("links", *([] if config is None else ["--config", str(config)]), *words)


def loopback(done: Done) -> str:
    """Return the row of loopback of a command that succeeded."""
    assert (done.status, done.err) == (0, "")
    return next(line for line in done.out.splitlines() if line.startswith("lo "))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "dmnotid.yaml"


USUAL = "dmnotid.cli.links.DEFAULT_CONFIG"


def test_defaults_are_used_without_configuration(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(USUAL, config)
    assert loopback(links_of(None)).endswith("  not configured  loopback")


def test_default_configuration_is_read_if_it_exists(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(LOOPBACK)
    monkeypatch.setattr(USUAL, config)
    assert loopback(links_of(None)).endswith("  configured: lo")


@pytest.mark.parametrize("kind", ["link to nothing", "loop", "below a file"])
def test_default_configuration_is_reported_if_unreadable(
    kind: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, problem = {
        "link to nothing": (config, "No such file or directory"),
        "loop": (config, "Too many levels of symbolic links"),
        "below a file": (config / "x", "Not a directory"),
    }[kind]
    if kind == "below a file":
        config.touch()
    else:
        config.symlink_to("none" if kind == "link to nothing" else config)
    monkeypatch.setattr(USUAL, usual)
    assert links_of(None) == Done(1, "", f"{usual}: cannot be read: {problem}\n")


@pytest.mark.parametrize("words", [[], ["--json"], ["--watch"]])
def test_wrong_connections_are_reported(words: list[str], config: Path) -> None:
    config.write_text(
        "connections:\n"
        "  reach: world\n"
        "  settle: 2\n"
        "  wireline: {interfaces: [eth0, usb0]}\n"
        "  mobile: {interfaces: [usb0]}\n"
        "  lan: {}\n"
    )
    done = links_of(config, *words)
    assert (done.status, done.out) == (1, "")
    assert [line.removeprefix(f"{config}:") for line in done.err.splitlines()] == [
        "2:10: connections.reach: is 'world'; expected internet, any or a list of networks",
        "3:11: connections.settle: has no unit; expected a whole number with its unit: 500ms, 30s, 10m, 24h or 7d",
        (
            "4:33: connections.wireline.interfaces[1]: 'usb0' is also connections.mobile.interfaces[0]; "
            "expected each pattern once"
        ),
        "6:3: connections.lan: unknown key; known keys here are reach, settle, mobile, wireless, wireline",
    ]


def test_rest_of_the_configuration_is_ignored(config: Path) -> None:
    """Secrets too, unreadable ones and those that every user can read."""
    config.write_text(
        f"servers: [{{id: a, secret: {{file: /none}}}}, {{id: a, secret: {{text: x}}}}]\nhook: 5\nlog:\n{LOOPBACK}"
    )
    config.chmod(0o666)
    assert re.search(" yes +configured: lo$", loopback(links_of(config)))


def test_missing_configuration_is_reported(config: Path) -> None:
    assert links_of(config) == Done(1, "", f"{config}: cannot be read: No such file or directory\n")


def test_unreadable_links_are_reported(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a sandbox without AF_NETLINK."""

    def refuse(_: object) -> None:
        raise OSError(97, os.strerror(97))

    config.write_text(LOOPBACK)
    monkeypatch.setattr("dmnotid.links.availability.read_state", refuse)
    problem = "network interfaces cannot be read: Address family not supported by protocol\n"
    for words in ([], ["--json"], ["--watch"]):
        assert links_of(config, *words) == Done(1, "", problem)


# --- Users and output


AS_NOBODY = f"""
import contextlib, io, os, sys
from pathlib import Path
from dmnotid.cli import links, main
links.DEFAULT_CONFIG = Path(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    main(sys.argv[2:])
os.setgroups([]); os.setresgid(*[{NOBODY}] * 3); os.setresuid(*[{NOBODY}] * 3)
sys.exit(main(sys.argv[2:]))
"""
"""Runs once before the user changes, for the imports: other users may have no access to the checkout."""


@in_namespace
@pytest.mark.parametrize("unreadable", ["", "file", "directory"])
def test_links_need_no_privilege(unreadable: str, place: Place) -> None:
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        config = Path(directory, "etc", "dmnotid.yaml")
        config.parent.mkdir(mode=0o755)
        config.write_text(PATTERNS)
        config.chmod(0o600 if unreadable == "file" else 0o644)
        config.parent.chmod(0o700 if unreadable == "directory" else 0o755)
        done = run(place.namespace, sys.executable, "-c", AS_NOBODY, str(config), "links")
    problem = Done(1, "", f"{config}: cannot be read: Permission denied\n")
    assert done == (problem if unreadable else place.links())


@pytest.fixture(params=[[], ["--watch", "--json"], *further(["--json"], ["--watch"])], ids=" ".join)
def command(config: Path, request: pytest.FixtureRequest) -> list[str]:
    config.write_text("connections: {}\n")
    return ["links", *request.param, "--config", str(config)]


@pytest.mark.parametrize("target", ["> /dev/full", ">&-"])
def test_unwritable_output_is_reported(target: str, command: list[str]) -> None:
    done = through_shell(f'"$@" {target}', *command)
    assert (done.status, done.err) == (1, "dmnotid: [Errno 28] No space left on device\n")


def test_command_ends_quietly_if_its_reader_is_gone(command: list[str]) -> None:
    assert without_reader(*command) == Done(1, "", "")
