"""Shared by the tests of the service: notifications, configurations, hooks, and waiting for events."""

import ast
import asyncio
import gc
import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import pytest
import yaml

from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification, verify
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import Clock, Freshness
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import ConnectionType, decode_notification, encode_notification
from dmnotid.wire.wsp import encode_push

T = TypeVar("T")

DEADLINE = float(os.environ.get("DMNOTID_TEST_DEADLINE", "30"))
"""Maximum time to wait for an event, in seconds; only a test that fails waits that long."""

TIME_OUTS = (0.3, 3.0, DEADLINE / 2)
"""Time-outs for a hook that must be ready before its own, in seconds: tests take the next one on a busy machine."""

SHORT = max(1, round(DEADLINE / 30))
"""Time that a hook has to start, in whole seconds; on a slow machine it grows with the deadline."""

SERVER_ID = "dm.example"
OTHER_ID = "other.example"
OPEN_ID = "open.example"
SECRET = b"seven gulls over the pier"
OTHER_SECRET = b"a lantern by the north door"
SERVERS = [
    {"id": SERVER_ID, "secret": {"text": SECRET.decode()}},
    {"id": OTHER_ID, "secret": {"text": OTHER_SECRET.decode()}},
    {"id": OPEN_ID, "require_digest": False},
]
SECRETS = {SERVER_ID: SECRET, OTHER_ID: OTHER_SECRET}
WIRELINE = [ConnectionType.WIRELINE]
"""The preference that means loopback in these tests."""
NOWHERE = [ConnectionType.MOBILE]
"""The preference for which these tests have no connection."""
SOURCE = Source("192.0.2.7", 40000)

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""The one in C, if PyYAML has it: hundreds of tests write a configuration, and the other takes 3 ms for each."""

DURABLE_KEYS = ("session", "server_id", "notification", "source", "received_at", "attempts")
"""The fields of a SessionRequest that are the same after a restart; the others are monotonic times."""


def further(*cases: object) -> list[Any]:
    """Mark cases as slow that start daemons and differ little from the other cases; plain `pytest` leaves them out."""
    tuples = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*case, marks=pytest.mark.slow) for case in tuples]


async def eventually(condition: Callable[[], T]) -> T:
    """Let the loop run until a condition holds, and return its value."""
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"condition not met: {condition}"
        await asyncio.sleep(0.002)
    return found


def wait_until(condition: Callable[[], T]) -> T:
    """Wait until other processes have made a condition hold, and return its value."""
    deadline = time.monotonic() + DEADLINE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"condition not met: {condition}"
        time.sleep(0.005)
    return found


def count_calls(function: Callable[[], object]) -> int:
    """Return the number of calls of functions, of Python and of C, that a call makes: its cost, on any machine."""
    calls = 0

    def count(_: FrameType, event: str, __: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    # A collection calls functions too, such as those of Hypothesis.
    gc.disable()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
        gc.enable()
    return calls


def parse_lines(text: str) -> list[dict[str, Any]]:
    """Parse JSON lines of the log; in the systemd journal a level precedes each."""
    return [json.loads(line[line.index("{") :]) for line in text.splitlines()]


class LogLines(io.StringIO):
    """A stream for the log. Each line is parsed once, because tests search the log until it has the line they need."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[dict[str, Any]] = []
        # Number of characters of the parsed lines.
        self._parsed = 0

    def truncate(self, size: int | None = None, /) -> int:
        self._lines, self._parsed = [], 0
        return super().truncate(size)

    def all(self) -> list[dict[str, Any]]:
        text = self.getvalue()
        self._lines += parse_lines(text[self._parsed :])
        self._parsed = len(text)
        return self._lines.copy()

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.all() if line["event"] == event]


def package(
    notification_id: int = 7,
    *,
    server_id: str | None = SERVER_ID,
    sent_at: float | None = None,
    secret: bytes | None = None,
    preferred: Iterable[ConnectionType] | None = None,
    unknown: Sequence[tuple[int, bytes]] = (),
    **more: Any,  # noqa: ANN401 - other arguments of encode_notification
) -> bytes:
    """Build a package as a server does: signed as of now, unless the server is the one without a secret."""
    key = SECRETS.get(server_id or "") if secret is None else secret
    when = int(time.time() if sent_at is None else sent_at)
    octets = encode_notification(
        notification_id,
        server_id=server_id,
        sent_at=None if key is None else when,
        preferred_connections=preferred,
        unknown_options=unknown,
        **more,
    )
    return octets if key is None else sign(octets, key)


def push(notification_id: int = 7, **more: Any) -> bytes:  # noqa: ANN401 - arguments of `package`
    """Build a whole datagram."""
    return encode_push(package(notification_id, **more))


def verified(
    notification_id: int = 7,
    *,
    received_at: float | None = None,
    server_id: str = SERVER_ID,
    sent_at: float | None = None,
    clock_believed: bool = True,
    **more: Any,  # noqa: ANN401 - arguments of `package`
) -> VerifiedNotification:
    """Make a verified notification of any age, by the only function that may make one."""
    now = time.time() if received_at is None else received_at
    octets = package(notification_id, server_id=server_id, sent_at=now if sent_at is None else sent_at, **more)
    server = Server(server_id, SECRETS.get(server_id), require_digest=server_id in SECRETS)
    freshness = Freshness(max_age=float("inf"))
    return verify(decode_notification(octets), server, SOURCE, Clock(now, clock_believed), freshness)


def connections() -> dict[str, Any]:
    """Return connections with loopback as wireline, every other interface as wireless, and none as mobile.

    All are available at once; tests/links has the tests of settling.
    """
    others = [name for _, name in socket.if_nameindex() if name != "lo"]
    wireless = {"wireless": {"interfaces": others}} if others else {}
    return {"reach": "any", "settle": 0, "wireline": {"interfaces": ["lo"]}, **wireless}


def configuration(directory: Path, command: Sequence[str] = ("/bin/true",), **sections: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a configuration on loopback, as YAML holds it. A given section is merged into the default one."""
    whole: dict[str, Any] = {
        "servers": SERVERS,
        "hook": {"command": list(command), "kill_after": "5s", "stop_grace": "10s"},
        "listen": ["127.0.0.1:0"],
        "state": str(directory / "state"),
        "retry": {"first": "10ms", "longest": "20ms", "attempts": 3},
        "connections": connections(),
        # Every datagram is counted by its reason; tests/intake has the tests of the socket filter.
        "log": {"format": "json", "discards": "1h", "junk": True},
    }
    for name, section in sections.items():
        both = isinstance(section, dict) and isinstance(whole.get(name), dict)
        whole[name] = {**whole[name], **section} if both else section
    return whole


def write_config(directory: Path, command: Sequence[str] = ("/bin/true",), **sections: Any) -> Path:  # noqa: ANN401
    """Write a configuration file that only its owner can read, because it has secrets."""
    file = directory / "dmnotid.yaml"
    file.touch(mode=0o600)
    file.write_text(yaml.dump(configuration(directory, command, **sections), Dumper=DUMPER))
    return file


def make_config(directory: Path, command: Sequence[str] = ("/bin/true",), **sections: Any) -> Config:  # noqa: ANN401
    """Load a configuration from a file, as the daemon does."""
    return load_config(write_config(directory, command, **sections), {})


def write_script(file: Path, text: str, mode: int = 0o755) -> Path:
    """Write a hook; a text without "#!" is a shell script."""
    file.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
    file.chmod(mode)
    return file


RECORDER = f"""#!{sys.executable} -IS
import os, sys
records, behaviour = {{records!r}}, {{behaviour!r}}
octets = open("/proc/self/environ", "rb").read()
environment = dict(line.split("=", 1) for line in octets.decode().split("\\0") if line)
facts = {{{{
    "argv": open("/proc/self/cmdline", "rb").read().decode().split("\\0")[2:-1],
    "environment": environment,
    "stdin": sys.stdin.read(),
    "cwd": os.getcwd(),
    "pid": os.getpid(),
    "group": os.getpgrp(),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
}}}}
name = records + "/" + environment["DMNOTID_SESSION"].zfill(6) + "-" + environment["DMNOTID_ATTEMPT"].zfill(6)
with open(name + ".new", "w") as file:
    file.write(ascii(facts))
os.rename(name + ".new", name)
exec(behaviour)
"""
"""A hook in Python that records how it was started, and then runs the statements of `behaviour`.

It imports no module that Python has not imported at its start, because half of that time would be for `json`.
"""


class Recorder:
    """A hook that records each of its runs."""

    def __init__(self, directory: Path, behaviour: str = "") -> None:
        self.records = directory / "records"
        self.records.mkdir()
        self.file = directory / "recorder"
        self.behave(behaviour)

    def behave(self, behaviour: str) -> None:
        """Set the statements that later runs execute after their record; they can use `os`, `sys` and `environment`."""
        write_script(self.file, RECORDER.format(records=str(self.records), behaviour=behaviour))

    @property
    def command(self) -> list[str]:
        return [str(self.file)]

    @property
    def names(self) -> list[tuple[int, int]]:
        """Session and attempt of each run so far."""
        found = sorted(file.name.split("-") for file in self.records.iterdir() if file.suffix != ".new")
        return [(int(session), int(attempt)) for session, attempt in found]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The record of each run."""
        found = sorted(file for file in self.records.iterdir() if file.suffix != ".new")
        return [ast.literal_eval(file.read_text()) for file in found]

    @property
    def notification_ids(self) -> list[int]:
        """The NOTIFICATION-ID of each run."""
        return [int(run["environment"]["DMNOTID_NOTIFICATION_ID"]) for run in self.runs]


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def group_of(path: Path) -> str:
    """Return the name of a file's group, or its number: a user of a container may have a group without a name."""
    try:
        return path.group()
    except KeyError:
        return str(path.stat().st_gid)


def descriptors() -> set[str]:
    """Return the open descriptors of this process, each with its target."""
    found = set()
    for number in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{number.name} {number.readlink()}")
        except FileNotFoundError:
            # The descriptor of the listing itself.
            continue
    return found


IS_ROOT = os.geteuid() == 0


def as_root(test: T) -> T:
    """Mark a test that needs root."""
    skipped = pytest.mark.skipif(not IS_ROOT, reason="needs root, to be other users, or to mount a file system")
    return cast("T", pytest.mark.root(skipped(cast("Any", test))))


@contextmanager
def without_privileges(*directories: Path) -> Iterator[None]:
    """Run as the user nobody, who can enter all directories above these."""
    modes = {above: above.stat().st_mode for one in directories for above in one.parents}
    for above, mode in modes.items():
        above.chmod(mode | 0o011)
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)
        for above, mode in modes.items():
            above.chmod(mode)
