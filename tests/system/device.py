"""A machine with dmnotid on it, as a device has it: its configuration, hook, units, log, and notifications for it."""

import json
import threading
import time
from socket import AF_INET, AF_INET6
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import yaml

from tests.processes import journal_states
from tests.support import NOWHERE, SERVERS, WIRELINE, push, wait_until
from tests.system.machine import Machine

PORT: Final = 2948
CONFIG: Final = "/etc/dmnotid/dmnotid.yaml"
STATE: Final = "/var/lib/dmnotid"
HOOK: Final = "/etc/dmnotid/start-dm-session"
UNITS: Final = ("dmnotid.socket", "dmnotid.service")

RUNS: Final = f"{STATE}/runs"
"""Where the hook writes down each of its runs; it can write nowhere else but in the state directory."""

_HOOK: Final = """#!/bin/sh
echo "$DMNOTID_NOTIFICATION_ID $DMNOTID_ATTEMPT" >>{runs}
{behaviour}
"""

# What a device would fail with once in a blue moon, here at once: os.abort() is a crash with no way round.
CRASHING: Final = """
import functools, os, sys
from dmnotid.cli import main, run

def observe(datagram):
    if datagram.payload.endswith(b"crash"):
        os.abort()

run.Daemon = functools.partial(run.Daemon, observe=observe)
sys.exit(main(["run"]))
"""
CRASH: Final = b"\0\x06\x05crash"
"""A push, as far as the socket filter looks; another datagram would not wake the daemon."""


class Run(NamedTuple):
    """A run of the hook."""

    notification_id: int
    attempt: int


class Entry(NamedTuple):
    """An entry of the systemd journal: the daemon's own record (empty without one), and all its fields."""

    record: dict[str, Any]
    fields: dict[str, Any]


_RESET: Final = f"""
all="dmnotid*.socket dmnotid-metrics.timer dmnotid.service dmnotid-session@*.service dmnotid-metrics*.service"
all="$all dmnotid-ofono.service dmnotid-modemmanager.service"
systemctl stop --no-block $all
systemctl kill --signal=KILL dmnotid.service # no hook has a grace
systemctl stop $all
# The package itself links restart-steps.conf, with systemd 254 or later.
find /etc/systemd/system/dmnotid* ! -type d ! -name restart-steps.conf -delete
rm -rf /etc/systemd/system/*.wants/dmnotid* {STATE} {STATE}-session /run/trace /etc/dmnotid /etc/secrets \
    /etc/secret.cred {HOOK} /etc/open /srv/open /home/open /var/lib/prometheus
install --directory /etc/dmnotid
ip link delete wwan0 2>/dev/null
systemctl daemon-reload
systemctl reset-failed
"""
"""Removes the changes of a test from the machine."""


class Device:
    """dmnotid in a machine. Nothing is configured, enabled or started. `log` has the entries from now on."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.run = machine.run
        self._begin = time.time()  # earlier entries of the systemd journal belong to another test

    def reset(self) -> None:
        """Return the machine to the state after the installation."""
        self.machine.attempt("sh", "-c", _RESET)

    def configure(self, **sections: Any) -> None:  # noqa: ANN401
        """Write a configuration (each section replaces the one that is there) and a hook that succeeds."""
        whole: dict[str, Any] = {
            "servers": SERVERS,
            "hook": {"command": [HOOK], "kill_after": "1s", "stop_grace": "20s"},
            "retry": {"first": "10ms", "longest": "20ms", "attempts": 3},
            "sessions": {"max_pending": 65_536},
            "connections": {"reach": "any", "settle": 0, "wireline": {"interfaces": ["lo"]}},
            **sections,
        }
        self.machine.write(CONFIG, yaml.safe_dump(whole), mode=0o600, owner="dmnotid:")
        if not self.machine.path(HOOK).exists():
            self.write_hook()

    def write_hook(self, behaviour: str = "", runs: str = RUNS) -> None:
        """Write a hook that notes its run and then does what these lines of shell say."""
        self.machine.write(HOOK, _HOOK.format(behaviour=behaviour, runs=runs), mode=0o755)

    def drop_in(self, text: str, unit: str = "dmnotid.service") -> None:
        """Change a unit, in place of what was changed before."""
        self.machine.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.run("systemctl", "daemon-reload")

    @property
    def pauses_grow(self) -> bool:
        """Whether each restart is later than the one before: the package links restart-steps.conf with systemd 254."""
        return self.machine.systemd >= 254

    def crash_at_will(self, more: str = "") -> None:
        """Have the real daemon run by a program that aborts at a datagram of CRASH."""
        self.machine.write("/usr/local/lib/crashing.py", CRASHING)
        self.drop_in(f"{more}\n[Service]\nExecStart=\nExecStart=/usr/bin/python3 /usr/local/lib/crashing.py\n")

    def without_socket(self) -> None:
        """Have the daemon open its sockets itself."""
        self.run("systemctl", "mask", "--now", "dmnotid.socket")

    def start(self, *units: str) -> None:
        """Start units, both of the service unless told; all that was asked for is up then."""
        self.run("systemctl", "start", *(units or UNITS))

    @property
    def pid(self) -> int:
        """The daemon's number inside; 0 where none runs."""
        return int(self.machine.show("dmnotid.service", "MainPID")["MainPID"])

    def is_active(self, unit: str = "dmnotid.service") -> bool:
        return self.machine.show(unit, "ActiveState")["ActiveState"] == "active"

    def wait_for_another(self, pid: int) -> int:
        """Wait until another daemon than this one is ready; its number."""
        wait_until(lambda: self.pid not in (0, pid) and self.is_active())
        return self.pid

    def send(self, *datagrams: bytes, host: str = "127.0.0.1") -> None:
        with self.machine.socket(AF_INET6 if ":" in host else AF_INET) as sock:
            for datagram in datagrams:
                sock.sendto(datagram, (host, PORT))

    def states(self) -> dict[int, str]:
        """What stands in dmnotid's journal by NOTIFICATION-ID."""
        return journal_states(self.machine.path(STATE))

    def wait_accepted(self, *notification_ids: int) -> None:
        """Wait until each of these is in dmnotid's journal."""
        wait_until(lambda: set(notification_ids) <= self.states().keys())

    def runs(self, file: str = RUNS) -> list[Run]:
        """The hook's runs so far."""
        path = self.machine.path(file)
        lines = path.read_text().splitlines() if path.exists() else []
        return [Run(*map(int, line.split())) for line in lines]

    def wait_run(self, notification_id: int, attempt: int = 1, file: str = RUNS) -> None:
        wait_until(lambda: Run(notification_id, attempt) in self.runs(file))

    def log(self, *matches: str, unit: str = "dmnotid.service") -> list[Entry]:
        """Entries of the systemd journal about a unit, from its processes and from systemd itself."""
        self.run("journalctl", "--sync")
        since = f"--since=@{self._begin:.6f}"
        lines = self.run("journalctl", since, f"--unit={unit}", "--output=json", "--all", *matches).splitlines()
        return [_entry(json.loads(line)) for line in lines]

    def records(self, event: str) -> list[dict[str, Any]]:
        """What the daemon has logged of an event."""
        return [entry.record for entry in self.log() if entry.record.get("event") == event]

    def wait_record(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until an event was logged so many times; the last of them."""
        wait_until(lambda: len(self.records(event)) >= count)
        return self.records(event)[count - 1]

    def status_of(self, pid: int) -> dict[str, str]:
        """What /proc/PID/status tells of a process inside."""
        lines = self.run("cat", f"/proc/{pid}/status").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def processes_of(self, user: str) -> list[str]:
        """The command lines of a user's processes."""
        found = self.machine.attempt("find", "/proc", "-maxdepth", "1", "-user", user).stdout.split()
        lines = [self.machine.attempt("cat", f"{directory}/cmdline").stdout for directory in found]
        return [line.replace("\0", " ").strip() for line in lines if line]


class Stream:
    """Numbered, signed notifications, one after the other in a thread of its own, from `with` until its end.

    Their sessions wait for a connection that never comes: what counts is that each is accepted.
    """

    def __init__(self, device: Device, rate: float = 200, first: int = 1000) -> None:
        """`rate` is how many a second, `first` the first NOTIFICATION-ID."""
        self.sent: list[int] = []
        self._first = first
        self._pause = 1 / rate
        self._socket = device.machine.socket()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_all)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()

    def wait_more(self, count: int = 100) -> None:
        """Wait until so many more are sent."""
        enough = len(self.sent) + count
        wait_until(lambda: len(self.sent) >= enough)

    def _send_all(self) -> None:
        begun = time.monotonic()
        number = self._first
        while not self._ended.wait(max(0.0, begun + len(self.sent) * self._pause - time.monotonic())):
            self._socket.sendto(push(number, preferred=NOWHERE), ("127.0.0.1", PORT))
            self.sent.append(number)
            number += 1


def notification(number: int) -> bytes:
    """A signed notification whose session starts at once, over loopback."""
    return push(number, preferred=WIRELINE)


def _entry(fields: dict[str, Any]) -> Entry:
    message = fields.get("MESSAGE")
    # A former version writes lines of JSON.
    if isinstance(message, str) and message.startswith("{"):
        return Entry(json.loads(message), fields)
    own = {name: value for name, value in fields.items() if name.startswith("DMNOTID_")}
    return Entry({name.removeprefix("DMNOTID_").lower(): _value(value) for name, value in own.items()}, fields)


def _value(field: str) -> object:
    """Read a field: text is as it is, and everything else JSON. A version may look like a number with a point."""
    try:
        value = json.loads(field)
    except ValueError:
        return field
    return field if isinstance(value, float) else value
