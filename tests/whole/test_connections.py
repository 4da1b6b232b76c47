"""The real daemon in a network namespace of its own, while real kernel links come, go, flap and change (5.3.4)."""

import itertools
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from dmnotid.wire.notification import ConnectionType
from tests.netns import Namespace, needs_namespace
from tests.processes import WITHOUT_PRIVILEGES, Run, Service, needs_setpriv, running
from tests.support import DUMPER, OTHER_ID, SERVER_ID, Recorder, configuration, push, wait_until

pytestmark = [pytest.mark.root, needs_namespace]

ANY, MOBILE, WIRELESS, WIRELINE = (
    ConnectionType.ANY,
    ConnectionType.MOBILE,
    ConnectionType.WIRELESS,
    ConnectionType.WIRELINE,
)

SETTLE = 0.3
"""`connections.settle` in seconds, unless a test overrides it."""

PATTERNS: Final = {
    "mobile": {"interfaces": ["ww*"]},
    "wireless": {"interfaces": ["wl*"]},
    "wireline": {"interfaces": ["e*"]},
}

LOOK_AROUND = """
import time
at = time.monotonic()
print(at, open("/sys/class/net/" + environment["DMNOTID_INTERFACE"] + "/operstate").read())
"""
"""The hook prints when it ran, on the clock that all processes share, and the operstate of its interface."""


def duration(seconds: float) -> str:
    """Write a time as the configuration does."""
    return f"{seconds * 1000:.0f}ms"


class Ran(NamedTuple):
    """A run of the hook: its connection, when it ran (time.monotonic), and the operstate that it found."""

    connection: str
    interface: str
    at: float
    found: str

    @property
    def over(self) -> tuple[str, str]:
        return self.connection, self.interface


class Device:
    """A namespace whose links a test makes and breaks, and the daemon in it.

    NOTIFICATION-IDs count from 1, as sessions do.
    """

    def __init__(self, namespace: Namespace, directory: Path, start: Run) -> None:
        self.namespace = namespace
        self.recorder = Recorder(directory, LOOK_AROUND)
        self.service: Service
        self._directory = directory
        self._start = start
        self._sessions = itertools.count(1)
        self._networks: dict[str, int] = {}
        self._socket: socket.socket | None = None
        self._address = ("", 0)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def configure(self, listen: str = "127.0.0.1:0", **connections: Any) -> Path:  # noqa: ANN401 - as YAML holds it
        """Write the configuration, with patterns and a short settle; None removes a key of `connections`."""
        whole = configuration(self._directory, self.recorder.command, listen=[listen])
        told = {"settle": duration(SETTLE), **PATTERNS, **connections}
        whole["connections"] = {key: value for key, value in told.items() if value is not None}
        file = self._directory / "dmnotid.yaml"
        file.touch(mode=0o600)
        file.write_text(yaml.dump(whole, Dumper=DUMPER))
        return file

    def run(self, prefix: Sequence[str] = (), **options: Any) -> None:  # noqa: ANN401 - what `configure` takes
        """Start the daemon, and wait until it listens."""
        self.service = self._start(self.configure(**options), ["ip", "netns", "exec", self.namespace.name, *prefix])
        host, port = self.service.address
        self._address = host.strip("[]"), port
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._socket = self.namespace.call(socket.socket, family, socket.SOCK_DGRAM)

    def reload(self, **options: Any) -> None:  # noqa: ANN401 - what `configure` takes
        """Reload the daemon with another configuration."""
        self.configure(**options)
        before = len(self.service.of("configuration reloaded"))
        self.service.process.send_signal(signal.SIGHUP)
        self.service.wait("configuration reloaded", before + 1)

    def add(self, *names: str) -> None:
        """Add links that are up, without address and route."""
        for name in names:
            self.namespace.add_veth(name)

    def connect(self, name: str, metric: int = 100) -> None:
        """Give a link an address and a default route."""
        self.namespace.ip_batch([f"addr add {self.own(name)}/24 dev {name}", self.route(name, metric)])

    def own(self, name: str) -> str:
        """The address of a link."""
        return f"198.51.{self._networks.setdefault(name, len(self._networks))}.1"

    def route(self, name: str, metric: int = 100) -> str:
        """The arguments of `ip` that add a default route over a link."""
        return f"route append default via {self.own(name)}00 dev {name} metric {metric}"

    def available(self, *names: str) -> None:
        """Wait until these are available."""
        wait_until(lambda: {line["interface"] for line in self.service.of("connection available")} >= set(names))

    def send(self, *datagrams: bytes) -> None:
        """Send datagrams, without any delay."""
        assert self._socket is not None
        for datagram in datagrams:
            self._socket.sendto(datagram, self._address)

    def notify(self, *preferred: ConnectionType, server_id: str = SERVER_ID) -> int:
        """Send a notification, and return the number of its session."""
        session = next(self._sessions)
        self.send(push(session, server_id=server_id, preferred=preferred))
        return session

    def waits(self, session: int) -> dict[str, Any]:
        """Wait for the line of the log that explains why a session waits, and return it."""
        line = wait_until(lambda: self._first(session, "session waiting", "session started"))
        assert line is not None
        assert line["event"] == "session waiting", line
        return line

    def ran(self, session: int) -> Ran:
        """Wait until a session is done, and return the run of its one try."""
        wait_until(lambda: self._first(session, "session done"))
        (told,) = [line["line"].split() for line in self.service.of("hook output") if line["session"] == session]
        (run,) = [run for run in self.recorder.runs if run["environment"]["DMNOTID_SESSION"] == str(session)]
        connection, interface = (run["environment"][f"DMNOTID_{name}"] for name in ("CONNECTION", "INTERFACE"))
        return Ran(connection, interface, float(told[0]), told[1])

    def started(self, session: int) -> bool:
        """Whether the log has the start of a session."""
        return self._first(session, "session started") is not None

    def stop(self) -> dict[str, Any]:
        """Stop the daemon, and return its last line."""
        assert self.service.stop() == 0
        assert self.service.errors == ""
        line = self.service.lines()[-1]
        assert line["event"] == "daemon stopped"
        return line

    def _first(self, session: int, *events: str) -> dict[str, Any] | None:
        assert self.service.process.poll() is None, self.service.errors
        lines = self.service.lines()
        return next((line for line in lines if line["event"] in events and line["session"] == session), None)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with Namespace() as namespace, running(tmp_path) as start, closing(Device(namespace, tmp_path, start)) as made:
        yield made


# Which connection is used


@needs_setpriv
def test_connections_need_no_privilege(device: Device) -> None:
    device.run(WITHOUT_PRIVILEGES)
    session = device.notify(WIRELESS)
    assert device.waits(session)["missing"] == "no wireless interface"
    device.add("wlan0")
    device.connect("wlan0")
    assert device.ran(session).over == ("wireless", "wlan0")
    capabilities = Path(f"/proc/{device.service.process.pid}/status").read_text()
    assert "CapEff:\t0000000000000000\n" in capabilities


def test_order_of_the_notification_decides_before_the_route(device: Device) -> None:
    """5.3.4: of those that are available the first in PREFERRED-CON-TYPE; no preference takes the best route."""
    names = {WIRELINE: "eth0", WIRELESS: "wlan0", MOBILE: "wwan0"}
    device.add(*names.values())
    for metric, name in enumerate(names.values(), 100):
        device.connect(name, metric)
    device.run()
    device.available(*names.values())
    asked = [*itertools.permutations(names), (MOBILE,), (WIRELESS, ANY)]
    for preferred in asked:
        ran = device.ran(device.notify(*preferred))
        assert ran == (str(preferred[0]), names[preferred[0]], ran.at, "up")
    for preferred in ((), (ANY,), (ANY, MOBILE)):
        assert device.ran(device.notify(*preferred)).over == ("wireline", "eth0")
    assert device.service.of("session waiting") == []
    assert device.stop()["sessions"] == {"tries": len(asked) + 3, "done": len(asked) + 3}


def test_second_choice_is_used_while_the_first_is_lost(device: Device) -> None:
    """5.3.4: the next in PREFERRED-CON-TYPE, also right after the first one is lost."""
    device.add("wlan0", "eth0")
    device.connect("wlan0")
    device.connect("eth0", 200)
    device.run()
    device.available("wlan0", "eth0")
    assert device.ran(device.notify(MOBILE, WIRELESS, WIRELINE)).over == ("wireless", "wlan0")
    device.namespace.ip("link", "set", "wlan0", "down")
    for _ in range(3):
        assert device.ran(device.notify(MOBILE, WIRELESS, WIRELINE)).over == ("wireline", "eth0")
    back_at = time.monotonic()
    device.namespace.ip_batch(["link set wlan0 up", device.route("wlan0")])
    device.service.wait("connection available", 3)
    ran = device.ran(device.notify(WIRELESS, WIRELINE))
    assert ran.over == ("wireless", "wlan0")
    assert ran.at >= back_at + SETTLE


def test_best_interface_of_a_type_is_used_by_metric_then_name(device: Device) -> None:
    device.add("eth2", "eth1", "eth0")
    for name, metric in {"eth2": 100, "eth1": 100, "eth0": 300}.items():
        device.connect(name, metric)
    device.run()
    device.available("eth0", "eth1", "eth2")
    for name in ("eth1", "eth2", "eth0"):
        assert device.ran(device.notify(WIRELINE)).over == ("wireline", name)
        device.namespace.ip("link", "set", name, "down")
    assert device.waits(device.notify(WIRELINE))["missing"] == "eth2: down; eth1: down; eth0: down"


# Waiting for a connection


def test_session_waits_until_a_connection_has_settled(device: Device) -> None:
    """5.3.4: the log explains why; the session starts no earlier than `settle` after the link is available."""
    device.add("wlan0", "usb0")
    device.namespace.add_veth("eth0", up=False)
    device.run()
    session = device.notify(WIRELESS, MOBILE, WIRELINE)
    line = device.waits(session)
    assert line["wanted"] == "wireless mobile wireline"
    assert line["available"] == ""
    assert line["missing"] == "wlan0: up, no address; eth0: down; no mobile interface"
    device.namespace.ip("addr", "add", f"{device.own('wlan0')}/24", "dev", "wlan0")
    came_at = time.monotonic()
    device.namespace.ip_batch([device.route("wlan0")])
    ran = device.ran(session)
    assert ran.over == ("wireless", "wlan0")
    assert ran.at >= came_at + SETTLE
    assert [line["session"] for line in device.service.of("session waiting")] == [session]


def test_waiting_session_blocks_no_other(device: Device) -> None:
    """5.3.4: requests of another server and of the same one start over available connections."""
    device.add("wlan0", "wwan0")
    device.connect("wlan0")
    device.run()
    device.available("wlan0")
    waiting = device.notify(MOBILE)
    assert device.waits(waiting)["missing"] == "wwan0: up, no address"
    assert device.waits(waiting)["available"] == "wlan0(wireless)"
    for server_id in (OTHER_ID, SERVER_ID):
        assert device.ran(device.notify(server_id=server_id)).over == ("wireless", "wlan0")
    assert not device.started(waiting)
    device.connect("wwan0", 200)
    assert device.ran(waiting).over == ("mobile", "wwan0")


def test_session_starts_with_ipv6_alone(device: Device) -> None:
    """The notification is received over IPv6 too; a link-local address and its route do not count."""
    device.add("wlan0")
    device.run(listen="[::1]:0")
    device.namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "wlan0")
    session = device.notify(WIRELESS)
    assert device.waits(session)["missing"] == "wlan0: up, no address"
    came_at = time.monotonic()
    device.namespace.ip("addr", "add", "2001:db8::1/64", "dev", "wlan0")
    ran = device.ran(session)
    assert ran.over == ("wireless", "wlan0")
    assert ran.at >= came_at + SETTLE


def test_session_starts_over_an_interface_that_is_made_again(device: Device) -> None:
    device.add("wlan0", "eth0")
    device.connect("eth0")
    device.run()
    device.available("eth0")
    sessions = [device.notify(WIRELESS)]
    assert device.waits(sessions[0])["missing"] == "wlan0: up, no address"
    device.namespace.ip("link", "del", "wlan0")
    device.namespace.ip("link", "set", "eth0", "down")
    # The read that finds this loss finds that of wlan0 too.
    device.service.wait("connection lost")
    sessions.append(device.notify(WIRELESS))
    assert device.waits(sessions[1])["missing"] == "no wireless interface"
    device.add("wlan0")
    came_at = time.monotonic()
    device.connect("wlan0")
    for one in sessions:
        ran = device.ran(one)
        assert ran.over == ("wireless", "wlan0")
        assert ran.at >= came_at + SETTLE


def test_refused_reload_keeps_connections(device: Device) -> None:
    """Its patterns would change the type, and one of its addresses cannot be bound."""
    device.add("wlan0")
    device.connect("wlan0")
    device.run()
    device.available("wlan0")
    device.configure(listen="198.51.99.1:2948", mobile={"interfaces": ["wlan*"]}, wireless=None)
    device.service.process.send_signal(signal.SIGHUP)
    device.service.wait("reload refused")
    assert device.ran(device.notify(WIRELESS)).over == ("wireless", "wlan0")
    assert device.service.of("connection lost") == []
    assert len(device.service.of("connection available")) == 1


def test_reload_makes_connections_available(device: Device) -> None:
    """By settle, patterns and reach, while the links stay as they are."""
    device.add("wlan0", "usb0", "eth0")
    for name in ("usb0", "eth0"):
        device.connect(name)
    device.namespace.ip("addr", "add", "192.0.2.1/24", "dev", "wlan0")
    device.run(settle="1h")
    waiting = device.notify(WIRELINE)
    assert device.waits(waiting)["missing"] == "eth0: settling"
    device.reload()
    assert device.ran(waiting).over == ("wireline", "eth0")

    waiting = device.notify(MOBILE)
    assert device.waits(waiting)["missing"] == "no mobile interface"
    device.reload(mobile={"interfaces": ["usb*"]})
    assert device.ran(waiting).over == ("mobile", "usb0")

    for reach in (["192.0.2.0/25"], "any"):
        device.reload(reach="internet")
        waiting = device.notify(WIRELESS)
        assert device.waits(waiting)["missing"] == "wlan0: up, no route"
        device.reload(reach=reach)
        assert device.ran(waiting).over == ("wireless", "wlan0")
    events = [line["event"] for line in device.service.lines()]
    order = [event.split()[0] for event in events if event in ("session started", "configuration reloaded")]
    assert order == ["configuration", "session"] * 2 + ["configuration", "configuration", "session"] * 2


# Links that break


class Break(NamedTuple):
    """How wlan0 is lost, and how it is restored."""

    lose: Callable[[Device], object]
    restore: Callable[[Device], object]


def make_again(device: Device) -> None:
    device.add("wlan0")
    device.connect("wlan0")


BREAKS: Final = {
    "carrier": Break(
        lambda device: device.namespace.far_ip("link", "set", "wlan0", "down"),
        lambda device: device.namespace.far_ip("link", "set", "wlan0", "up"),
    ),
    "administration": Break(
        lambda device: device.namespace.ip("link", "set", "wlan0", "down"),
        lambda device: device.namespace.ip_batch(["link set wlan0 up", device.route("wlan0")]),
    ),
    "address": Break(
        lambda device: device.namespace.ip("addr", "flush", "dev", "wlan0", "scope", "global"),
        lambda device: device.connect("wlan0"),
    ),
    "route": Break(
        lambda device: device.namespace.ip("route", "del", "default", "dev", "wlan0"),
        lambda device: device.namespace.ip_batch([device.route("wlan0")]),
    ),
    "interface": Break(lambda device: device.namespace.ip("link", "del", "wlan0"), make_again),
}


def test_no_session_starts_over_a_connection_that_was_just_lost(device: Device) -> None:
    """5.3.4: the links are read right before the hook starts.

    The datagram comes right after the loss, when the daemon may still pause before it reads the notice.
    """
    settle = 0.05
    device.add("wlan0")
    device.connect("wlan0")
    device.run(settle=duration(settle))
    device.available("wlan0")
    for lose, restore in [*BREAKS.values()] * 2:
        lose(device)
        session = device.notify(WIRELESS)
        device.waits(session)
        back_at = time.monotonic()
        restore(device)
        ran = device.ran(session)
        assert ran == ("wireless", "wlan0", ran.at, "up")
        assert ran.at >= back_at + settle


def test_reception_and_other_sessions_go_on_while_a_link_flaps(device: Device) -> None:
    """5.3.4: no datagram is lost, and a session over another link is done before the flapping ends."""
    lose, restore = BREAKS["address"]
    device.add("wlan0", "eth0")
    device.connect("wlan0")
    device.connect("eth0", 200)
    device.run()
    device.available("wlan0", "eth0")
    elsewhere = device.notify(WIRELINE, server_id=OTHER_ID)
    again = push(elsewhere, server_id=OTHER_ID, preferred=[WIRELINE])
    for beats in itertools.count(1):
        lose(device)
        device.send(*[again] * 25, b"\xff")
        restore(device)
        assert beats < 1_000
        if beats >= 10 and device.service.of("session done"):
            break
    assert device.ran(elsewhere).over == ("wireline", "eth0")
    assert device.ran(device.notify(WIRELESS)).over == ("wireless", "wlan0")
    stopped = device.stop()
    assert stopped["received"] == beats * 26 + 2
    assert (stopped["accepted"], stopped["duplicate"], stopped["truncated"]) == (2, beats * 25, beats)
