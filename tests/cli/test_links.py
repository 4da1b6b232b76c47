"""`dmnotid links`: real links in a namespace, and the command as a process inside of it."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import pytest

from dmnotid.cli import main
from tests.cli.program import PATIENCE, PROGRAM, Done
from tests.netns import Namespace, needs_namespace
from tests.support import wait_until

NOBODY = 65534

PATTERNS = """\
connections:
  settle: 500ms
  mobile: {interfaces: ["wwan*"]}
  wireless: {interfaces: ["wlan*"]}
  wireline: {interfaces: ["eth*"]}
"""
LOOPBACK = "connections: {reach: any, mobile: {interfaces: [lo]}}\n"


def in_namespace(test: Callable[..., None]) -> Callable[..., None]:
    return cast("Callable[..., None]", pytest.mark.root(needs_namespace(test)))


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
    """A `dmnotid links --watch`; what it says is read line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._octets = b""

    def line(self) -> str:
        """Wait for the next line; it may take PATIENCE."""
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
        """Wait for the row that has this to say of an interface; its columns."""
        while True:
            cells = re.split(" {2,}", self.line())
            if cells[0] == name and cells[6:7] == [available]:
                return cells

    def choice(self) -> str:
        """Wait for the next choice; what would be done."""
        while not (line := self.line()).startswith("a session"):
            pass
        return line.partition(" would ")[2]

    def facts(self, name: str, missing: str | None) -> dict[str, Any]:
        """Wait for the JSON that has this to say of an interface; all of it."""
        while True:
            facts: dict[str, Any] = json.loads(self.line())
            if any((it["interface"], it["missing"]) == (name, missing) for it in facts["interfaces"]):
                return facts

    def stop(self) -> tuple[int, str]:
        """Press Ctrl-C; the exit status, and what was said on standard error."""
        self.process.send_signal(signal.SIGINT)
        return self.end()

    def end(self) -> tuple[int, str]:
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
INTERFACE  TYPE      UP   CARRIER  ADDRESS         ROUTE               AVAILABLE       TYPE TOLD BY
lo         any       yes  yes      127.0.0.1 (+1)  -                   not configured  loopback
wlan0      wireless  yes  yes      192.0.2.7 (+1)  default metric 600  yes             configured: wlan*
wwan0      mobile    yes  yes      -               -                   no address      configured: wwan*
eth1       wireline  yes  yes      198.51.100.7    -                   no route        configured: eth*
eth2       wireline  yes  no       -               -                   no carrier      configured: eth*
eth0       wireline  no   no       -               -                   down            configured: eth*
"""


@in_namespace
def test_table(place: Place) -> None:
    choice = "a session without preference would use wlan0 (wireless), if it has held for 500ms\n"
    assert place.links() == Done(0, TABLE + choice, "")


@in_namespace
@pytest.mark.parametrize(
    ("preferred", "choice"),
    [
        ("", "without preference would use wlan0 (wireless), if it has held for 500ms"),
        ("any", "that prefers any would use wlan0 (wireless), if it has held for 500ms"),
        ("mobile,wireless", "that prefers mobile, wireless would use wlan0 (wireless), if it has held for 500ms"),
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
def test_choice(preferred: str, choice: str, place: Place) -> None:
    done = place.links("--prefer", preferred)
    assert done == Done(0, f"{TABLE}a session {choice}\n", "")


@in_namespace
def test_choice_where_there_is_nothing(empty: Place) -> None:
    assert empty.links().out.endswith("\na session without preference would wait: no interface\n")
    told = "a session that prefers mobile, wireless would wait: no mobile interface; no wireless interface"
    assert empty.links("--prefer", "mobile,wireless").out.endswith(f"\n{told}\n")


@in_namespace
def test_choice_of_the_best_route(place: Place) -> None:
    """Which is the one that is shown, of whatever family."""
    place.namespace.ip("route", "add", "default", "via", "198.51.100.1", "dev", "eth1", "metric", "100")
    assert place.links().out.endswith("would use eth1 (wireline), if it has held for 500ms\n")
    place.namespace.ip("-6", "route", "add", "default", "dev", "wlan0", "metric", "50")
    done = place.links()
    assert "  default metric 50 (+1)  " in done.out
    assert done.out.endswith("would use wlan0 (wireless), if it has held for 500ms\n")


@in_namespace
def test_no_more_than_eight_are_named_of_those_that_lack_something(empty: Place) -> None:
    for number in range(1, 11, 2):
        pair = f"eth{number} type veth peer name eth{number + 1}"
        empty.namespace.ip("link", "add", *pair.split())
    done = empty.links("--prefer", "wireline")
    numbers = sorted(int(number) for number in re.findall(r"(?m)^eth(\d+) ", done.out))
    assert numbers == list(range(1, 11))
    told = done.out.splitlines()[-1].partition(" would wait: ")[2].split("; ")
    assert len(told) == 9
    assert all(re.fullmatch(r"eth\d+: down", it) for it in told[:8])
    assert told[8] == "2 more"


@in_namespace
def test_connections_that_need_not_hold(place: Place) -> None:
    place.config.write_text(PATTERNS.replace("500ms", "0"))
    assert place.links().out.endswith(" would use wlan0 (wireless)\n")


@in_namespace
def test_routes_to_networks(place: Place) -> None:
    place.config.write_text(PATTERNS + "  reach: [198.51.100.0/24, 10.0.0.0/8]\n")
    done = place.links("--prefer", "wireline")
    assert re.search("(?m)^wlan0 .*  default metric 600 +yes  ", done.out)
    assert re.search("(?m)^eth1 .*  198.51.100.0/24 metric 0 +no route to 10.0.0.0/8  ", done.out)
    assert " would wait: eth1: up, no route to 10.0.0.0/8; " in done.out
    place.namespace.ip("route", "add", "10.0.0.0/8", "via", "198.51.100.1", "dev", "eth1", "metric", "7")
    done = place.links("--prefer", "wireline")
    assert re.search(r"(?m)^eth1 .*  198.51.100.0/24 metric 0 \(\+1\) +yes  ", done.out)
    assert done.out.endswith(" would use eth1 (wireline), if it has held for 500ms\n")


ODD_NAMES = {
    "a\x1b[31mb": r"a\x1b[31mb",
    "a\x9bb": r"a\x9bb",
    "a\u202eb": r"a\u202eb",
    "a\udcff": r"a\udcff",
    "\u00e9t\u00e9": "\u00e9t\u00e9",
}


@in_namespace
@pytest.mark.parametrize("name", ODD_NAMES, ids=ODD_NAMES.values())
def test_names_are_ink(name: str, place: Place) -> None:
    """Whoever may make an interface names it as he likes (\\udcff is an octet that is no UTF-8)."""
    namespace = place.namespace
    namespace.ip("link", "set", "wlan0", "down")
    namespace.ip("link", "set", "wlan0", "name", name)
    place.config.write_text("connections: {reach: any}\n")
    assert re.search(f"(?m)^{re.escape(ODD_NAMES[name])} +any +no +no .* down +kind veth$", place.links().out)
    namespace.ip("link", "set", "eth1", "down")
    namespace.ip("link", "set", "wwan0", "down")
    assert f"{ODD_NAMES[name]}: down" in place.links().out.partition(" would wait: ")[2]
    namespace.ip("link", "set", name, "up")
    namespace.ip("addr", "replace", "192.0.2.7/24", "dev", name)
    told = wait_until(lambda: place.links().out.partition(" would use ")[2])
    assert told == f"{ODD_NAMES[name]} (any), if it has held for 2s\n"
    facts = json.loads(place.links("--json").out)
    assert facts["uses"] == {"connection": "any", "interface": name}


# --- JSON


@in_namespace
def test_json(place: Place) -> None:
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
    assert names["eth2"] == {
        "interface": "eth2",
        "index": indexes["eth2"],
        "connection": "wireline",
        "why": "configured: eth*",
        "up": True,
        "carrier": False,
        "addresses": [],
        "routes": [],
        "missing": "no carrier",
        "available": False,
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
def test_json_of_a_session_that_waits(place: Place) -> None:
    facts = json.loads(place.links("--json", "--prefer", "mobile").out)
    assert (facts["preferred_connections"], facts["uses"]) == (["mobile"], None)
    assert facts["missing"] == "wwan0: up, no address"
    assert json.loads(place.links("--json").out)["preferred_connections"] == []


# --- What changes


@in_namespace
def test_watch_begins_with_what_settles(place: Place) -> None:
    """Then it shows what is otherwise, below the columns that there were."""
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
        assert watch.line().startswith("--- ")  # the choice is the same, and not told again
        assert watch.line() == TABLE.splitlines()[3]


@in_namespace
def test_watch_follows_each_change(place: Place) -> None:
    namespace = place.namespace
    with place.watch("--prefer", "mobile,wireless") as watch:
        assert watch.choice() == "wait: wlan0: settling; wwan0: up, no address"
        assert watch.choice() == "use wlan0 (wireless)"

        namespace.ip("addr", "add", "203.0.113.9/24", "dev", "wwan0")
        watch.cells("wwan0", "no route")
        namespace.ip("route", "add", "default", "via", "203.0.113.1", "dev", "wwan0")
        watch.cells("wwan0", "settling")
        cells = ["wwan0", "mobile", "yes", "yes", "203.0.113.9", "default metric 0", "yes", "configured: wwan*"]
        assert watch.cells("wwan0", "yes") == cells
        assert watch.choice() == "use wwan0 (mobile)"

        namespace.far_ip("link", "set", "wwan0", "down")
        watch.cells("wwan0", "no carrier")
        assert watch.choice() == "use wlan0 (wireless)"
        namespace.far_ip("link", "set", "wwan0", "up")
        watch.cells("wwan0", "settling")
        watch.cells("wwan0", "yes")
        assert watch.choice() == "use wwan0 (mobile)"

        namespace.ip("link", "del", "wwan0")
        assert watch.cells("wwan0", "gone") == ["wwan0", *["-"] * 5, "gone", "-"]
        assert watch.choice() == "use wlan0 (wireless)"

        namespace.ip("link", "set", "eth0", "name", "wwan7")
        assert watch.cells("wwan7", "down") == ["wwan7", "mobile", "no", "no", "-", "-", "down", "configured: wwan*"]
        assert watch.cells("eth0", "gone") == ["eth0", *["-"] * 5, "gone", "-"]

        namespace.ip("route", "flush", "default")
        namespace.ip("addr", "flush", "dev", "wlan0")
        while (choice := watch.choice()) != "wait: wlan0: up, no address; wwan7: down":
            assert choice in {"wait: wlan0: up, no route; wwan7: down", "use wlan0 (wireless)"}


@in_namespace
def test_watch_as_json(place: Place) -> None:
    namespace = place.namespace
    with place.watch("--json") as watch:
        facts = watch.facts("wlan0", "settling")
        assert (facts["uses"], facts["missing"].partition(";")[0]) == (None, "wlan0: settling")
        assert [it["available"] for it in facts["interfaces"]] == [False] * 6
        began = facts["time"]
        facts = watch.facts("wlan0", None)
        assert facts["time"] - began >= 0.4
        assert (facts["uses"], facts["missing"]) == ({"connection": "wireless", "interface": "wlan0"}, None)
        assert [it["interface"] for it in facts["interfaces"] if it["available"]] == ["wlan0"]

        namespace.ip("link", "set", "wlan0", "down")
        assert watch.facts("wlan0", "down")["uses"] is None
        namespace.ip("link", "set", "wlan0", "name", "wlan1")
        facts = watch.facts("wlan1", "down")
        assert "wlan0" not in {it["interface"] for it in facts["interfaces"]}
        namespace.ip("link", "del", "wlan1")
        while any(it["connection"] == "wireless" for it in facts["interfaces"]):
            facts = json.loads(watch.line())
        assert facts["missing"].startswith("wwan0: up, no address; ")


@in_namespace
def test_watch_without_settling(place: Place) -> None:
    place.config.write_text(PATTERNS.replace("500ms", "0"))
    with place.watch() as watch:
        assert watch.choice() == "use wlan0 (wireless)"


@in_namespace
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_interrupted_watch(words: list[str], place: Place) -> None:
    with place.watch(*words) as watch:
        watch.line()
        assert watch.stop() == (130, "")


@in_namespace
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_reader_of_a_watch_goes_away(words: list[str], place: Place) -> None:
    """It ends with the next thing that it has to say."""
    place.config.write_text(PATTERNS.replace("500ms", "0"))
    with place.watch(*words) as watch:
        watch.line()
        assert watch.process.stdout is not None
        watch.process.stdout.close()
        place.namespace.ip("link", "set", "eth0", "up")
        assert watch.end() == (1, "")


# --- The configuration


def told(config: Path | None, capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    status = main(["links", *([] if config is None else ["--config", str(config)]), *words])
    captured = capsys.readouterr()
    return Done(status, captured.out, captured.err)


def loopback(done: Done) -> str:
    """Return the row of loopback of a command that all went well with."""
    assert (done.status, done.err) == (0, "")
    return next(line for line in done.out.splitlines() if line.startswith("lo "))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "dmnotid.yaml"


USUAL = "dmnotid.cli.links.DEFAULT_CONFIG"


def test_no_configuration(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(USUAL, config)
    assert loopback(told(None, capsys)).endswith("  not configured  loopback")


def test_usual_configuration(config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(LOOPBACK)
    monkeypatch.setattr(USUAL, config)
    assert loopback(told(None, capsys)).endswith("  configured: lo")


@pytest.mark.parametrize("kind", ["link to nothing", "loop", "below a file"])
def test_usual_configuration_that_cannot_be_read(
    kind: str, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands there and can't be read is not the same as nothing."""
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
    assert told(None, capsys) == Done(1, "", f"{usual}: {usual} cannot be read: {problem}\n")


@pytest.mark.parametrize("words", [[], ["--json"], ["--watch"]])
def test_connections_that_are_wrong(words: list[str], config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(
        "connections:\n"
        "  reach: world\n"
        "  settle: 2\n"
        "  wireline: {interfaces: [eth0, usb0]}\n"
        "  mobile: {interfaces: [usb0]}\n"
        "  lan: {}\n"
    )
    done = told(config, capsys, *words)
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


def test_only_connections_are_read(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is any secret asked for: not one that can't be read, nor one that everybody can."""
    config.write_text(
        f"servers: [{{id: a, secret: {{file: /none}}}}, {{id: a, secret: {{text: x}}}}]\nhook: 5\nlog:\n{LOOPBACK}"
    )
    config.chmod(0o666)
    assert re.search(" yes +configured: lo$", loopback(told(config, capsys)))


def test_configuration_that_is_missing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(config, capsys) == Done(1, "", f"{config}: {config} cannot be read: No such file or directory\n")


def test_links_that_cannot_be_read(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sandbox without AF_NETLINK, say."""

    def refuse(_: object) -> None:
        raise OSError(97, os.strerror(97))

    config.write_text(LOOPBACK)
    monkeypatch.setattr("dmnotid.cli.links.read_links", refuse)
    monkeypatch.setattr("dmnotid.links.availability.read_links", refuse)
    problem = "the network interfaces can't be read: Address family not supported by protocol\n"
    for words in ([], ["--json"], ["--watch"]):
        assert told(config, capsys, *words) == Done(1, "", problem)


# --- Who runs it, and where it says so


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
"""It is run once before the user changes, for what it imports: a checkout, or Python itself, may be root's alone."""


@in_namespace
@pytest.mark.parametrize("words", [[], ["--prefer", "mobile,wireline"]])
def test_without_privilege(words: list[str], place: Place) -> None:
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        config = Path(directory, "dmnotid.yaml")
        config.write_text(PATTERNS)
        config.chmod(0o644)
        told = run(place.namespace, sys.executable, "-c", AS_NOBODY, str(config), "links", *words)
    assert told == place.links(*words)


@in_namespace
@pytest.mark.parametrize(("of", "mode"), [("file", 0o600), ("directory", 0o700)])
def test_usual_configuration_that_others_may_not_read(of: str, mode: int, place: Place) -> None:
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        config = Path(directory, "etc", "dmnotid.yaml")
        config.parent.mkdir(mode=0o755)
        config.write_text(PATTERNS)
        (config if of == "file" else config.parent).chmod(mode)
        told = run(place.namespace, sys.executable, "-c", AS_NOBODY, str(config), "links")
    assert told == Done(1, "", f"{config}: {config} cannot be read: Permission denied\n")


WORDS = [["links"], ["links", "--json"], ["links", "--watch"], ["links", "--watch", "--json"]]


def through_shell(line: str, words: list[str]) -> Done:
    """Run a line of shell in which "$@" is the command."""
    argv = ["/bin/sh", "-c", line, "sh", *PROGRAM, *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def defaults(config: Path) -> list[str]:
    config.write_text("connections: {}\n")
    return ["--config", str(config)]


@pytest.mark.parametrize("words", WORDS)
def test_full_disk(words: list[str], defaults: list[str]) -> None:
    problem = "dmnotid: [Errno 28] No space left on device\n"
    assert through_shell('"$@" > /dev/full', words + defaults) == Done(1, "", problem)


@pytest.mark.parametrize("words", WORDS)
def test_closed_standard_output(words: list[str], defaults: list[str]) -> None:
    problem = "dmnotid: [Errno 28] No space left on device\n"
    assert through_shell('"$@" >&-', words + defaults) == Done(1, "", problem)


@pytest.mark.parametrize("words", WORDS)
def test_reader_is_gone_before_the_beginning(words: list[str], defaults: list[str]) -> None:
    done = through_shell('{ sleep 0.5; "$@"; echo "exit $?" >&2; } | true', words + defaults)
    assert done.err == "exit 1\n"
