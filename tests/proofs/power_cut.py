"""Cut the power at any moment: `.venv/bin/python -m tests.proofs.power_cut --cuts 1000 --seed 7`.

strace records a real daemon at work: every system call that changes its state directory, in one sequence with the lines
of its log, which show what it had promised by then. The recording is played onto a modelled disk up to random points;
what such a disk may hold then is written into a fresh directory, and the real Journal has to open it and keep every
promise.

The disk is pessimistic, but does not lie about fsync:

* A write to a file before its last completed fsync or fdatasync is there.
* Of the writes since then, any part may be there: none, all, whole writes, or parts of writes in single sectors of 512
  octets, in any order. A missing part leaves the former octets, or zeros if there were none.
* The size of a file may have grown as far as the writes since then went, or not, or to anything between; octets beyond
  it are gone. A truncation since then may have happened or not.
* An entry that was created, renamed or removed is as before or as after until its directory, or for a created one the
  file itself, was synced; each entry independently. The state directory, which the daemon makes, is an entry too.

Owners, modes and times of files are not modelled, nor is a disk that returns other octets than were written.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import structlog

from dmnotid.errors import DmnotidError, Duplicate
from dmnotid.host import log
from dmnotid.journal.queue import Journal
from dmnotid.policy.sessions import Limits
from tests.processes import DMNOTID, ENVIRONMENT
from tests.support import (
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    SERVER_ID,
    WIRELINE,
    LogLines,
    parse_lines,
    push,
    verified,
    wait_until,
    write_config,
    write_script,
)

SECTOR: Final = 512
DATABASE: Final = "journal.sqlite3"
EXPECTED_NAMES: Final = {DATABASE, f"{DATABASE}-wal", f"{DATABASE}-journal"}
SERVER_IDS: Final = (SERVER_ID, OTHER_ID, OPEN_ID)
REMEMBER: Final = 3 * 86_400.0
NOTIFICATIONS: Final = 900
SPOT_CHECKS: Final = 4
"""Number of accepted notifications that are sent again after each cut."""

HOOK: Final = "[ $((DMNOTID_NOTIFICATION_ID % 7)) != 0 ] || [ $DMNOTID_ATTEMPT -gt 1 ]"
"""A hook that is done at once, or sometimes at the second try, so that pauses are written too."""

# Every call that can change a file is recorded, so that one that is not modelled is noticed.
SYSTEM_CALLS: Final = (
    "%file,close,write,pwrite64,writev,pwritev,pwritev2,ftruncate,fallocate,fsync,fdatasync,sync,syncfs,"
    "sync_file_range,copy_file_range,sendfile,splice,mmap,ioctl,io_uring_setup,fchmod,fchown,fcntl"
)
STRACE: Final = ["strace", "-f", "-y", "-xx", "-s", "1000000", "-e", f"trace={SYSTEM_CALLS}", "-o"]

# Recorded calls that change neither octets nor names; SQLite locks with `fcntl`.
HARMLESS: Final = {
    "access", "chmod", "chown", "close", "faccessat", "faccessat2", "fchmod", "fchown", "fcntl", "fstat", "lstat",
    "newfstatat", "readlink", "stat", "statfs", "statx",
}  # fmt: skip

_LINE: Final = re.compile(r"(?P<pid>\d+) +(?P<call>.*)")
_RESUMED: Final = re.compile(r"<\.\.\. \w+ resumed>(?P<rest>.*)")
_CALL: Final = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?|0x[0-9a-f]+)")
_HEX: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_DESCRIPTOR: Final = re.compile(r"(?:\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")


class Write(NamedTuple):
    """Octets written at an offset."""

    name: str
    offset: int
    octets: bytes


class Truncate(NamedTuple):
    """A new size of a file."""

    name: str
    size: int


class Sync(NamedTuple):
    """A completed fsync or fdatasync; the empty name is the state directory's own."""

    name: str


class Create(NamedTuple):
    """A new file."""

    name: str


class Entries(NamedTuple):
    """A file removed, or renamed if it has a new name."""

    name: str
    new_name: str | None = None


class MakeDirectory(NamedTuple):
    """The state directory made."""


class Said(NamedTuple):
    """A line of the daemon's log."""

    line: dict[str, Any]


Event = Write | Truncate | Sync | Create | Entries | MakeDirectory | Said


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def hexed(text: str) -> str:
    return "".join(f"\\x{octet:02x}" for octet in text.encode())


class Recording:
    """The events of one daemon, on its state directory and its log, in the output of strace."""

    def __init__(self, trace: Path, state: Path, log_file: Path) -> None:
        self._state, self._log = str(state), str(log_file)
        self._marks = hexed(self._state), hexed(self._log)
        self._locks = hexed(f"{state}/locks")
        self._names: set[str] = set()
        self.calls: Counter[str] = Counter()
        self._trace = trace

    def events(self, names: set[str]) -> Iterator[Event]:
        """Yield the events in order; `names`, the files of the state directory, is kept up to date."""
        self._names = names
        unfinished: dict[str, str] = {}
        with self._trace.open() as lines:
            for line in lines:
                found = _LINE.match(line)
                assert found is not None, line[:200]
                pid, call = found["pid"], found["call"]
                if call.endswith("<unfinished ...>"):
                    unfinished[pid] = call.removesuffix("<unfinished ...>")
                    continue
                resumed = _RESUMED.match(call)
                if resumed is not None:
                    call = unfinished.pop(pid) + resumed["rest"]
                if any(mark in call for mark in self._marks):
                    yield from self._events_of(call)
        left = [call[:200] for call in unfinished.values() if any(mark in call for mark in self._marks)]
        assert not left, f"the recording ends in the middle of {left}"

    def _events_of(self, line: str) -> Iterator[Event]:
        found = _CALL.match(line)
        assert found is not None, f"not a system call: {line[:200]}"
        name, arguments, result = found["name"], found["arguments"], found["result"]
        mine, log_s = self._marks
        if result == "?" and (mine not in arguments or name in ("fsync", "fdatasync")):
            return  # the kill came first: a line was not written, or a promise not made
        assert result != "?", f"it may have happened or not: {line[:200]}"
        if result.startswith("-"):
            return
        if mine not in arguments:
            if name == "write" and log_s in arguments:
                (octets,) = self._strings(arguments)
                assert len(octets) == int(result), f"a line that was cut: {line[:200]}"
                yield from map(Said, parse_lines(octets.decode()))
            return
        self.calls[name] += 1
        # A lock lasts as long as a process, so no power cut can change what it says.
        if name in HARMLESS or self._locks in arguments:
            return
        yield from self._changes(name, arguments, int(result, 0), line)

    def _changes(self, name: str, arguments: str, result: int, line: str) -> Iterator[Event]:
        if name in ("open", "openat"):
            yield from self._opened(arguments, line)
        elif name == "pwrite64":
            (octets,) = self._strings(arguments)
            _, offset = arguments.rsplit(", ", 1)
            yield Write(self._descriptor(arguments), int(offset), octets[:result])
        elif name in ("fsync", "fdatasync"):
            yield Sync(self._descriptor(arguments))
        elif name == "ftruncate":
            yield Truncate(self._descriptor(arguments), int(arguments.rsplit(", ", 1)[1]))
        elif name in ("unlink", "rename", "mkdir"):
            yield self._entry(name, [self._name(path.decode()) for path in self._strings(arguments)], line)
        else:
            raise AssertionError(f"a system call on the state directory that isn't modelled: {line[:300]}")

    def _opened(self, arguments: str, line: str) -> Iterator[Event]:
        assert "O_TRUNC" not in arguments, line[:300]
        (path,) = self._strings(arguments)
        name = self._name(path.decode())
        if "O_CREAT" in arguments and name not in self._names:
            self._names.add(name)
            yield Create(name)

    def _entry(self, call: str, names: list[str], line: str) -> Event:
        if call == "mkdir":
            assert names == [""], line[:300]
            return MakeDirectory()
        self._names.discard(names[0])
        self._names.update(names[1:])
        return Entries(names[0], names[1] if call == "rename" else None)

    @staticmethod
    def _strings(arguments: str) -> list[bytes]:
        found = _HEX.findall(arguments)
        assert not any(cut for _, cut in found), f"a string that strace cut: {arguments[:200]}"
        return [unhex(text) for text, _ in found]

    def _descriptor(self, arguments: str) -> str:
        found = _DESCRIPTOR.match(arguments)
        assert found is not None, arguments[:200]
        return self._name(unhex(found[1]).decode())

    def _name(self, path: str) -> str:
        assert path == self._state or path.startswith(self._state + "/"), path
        name = path[len(self._state) + 1 :]
        assert "/" not in name, path
        return name


@dataclass(eq=False)
class File:
    """Octets of a file on the disk, and its changes since the last sync."""

    durable: bytearray = field(default_factory=bytearray)
    since: list[Write | Truncate] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.since:
            apply(self.durable, change)
        self.since.clear()

    def at_cut(self, chance: random.Random, style: str) -> bytes:
        """Return octets that the disk may hold."""
        octets, whole = bytearray(self.durable), bytearray(self.durable)
        sizes = {len(whole)}
        first = chance.randint(0, len(self.since))
        for number, change in enumerate(self.since):
            apply(whole, change)
            sizes.add(len(whole))
            for piece in pieces(change, style):
                if is_there(style, number - first, chance):
                    apply(octets, piece)
        if style == "everything":
            return bytes(whole)
        size = chance.randint(min(sizes), max(sizes)) if chance.random() < 0.3 else chance.choice(sorted(sizes))
        return bytes(octets[:size].ljust(size, b"\0"))


STYLES: Final = {"nothing": 1, "everything": 1, "first ones": 2, "writes": 2, "sectors": 4}
"""Which of the changes since the last sync are there, and how often."""


def is_there(style: str, after: int, chance: random.Random) -> bool:
    """Whether a change is there, the `after`th after a chosen one."""
    if style in ("nothing", "everything"):
        return style == "everything"
    if style == "first ones" and after:
        return after < 0
    return chance.random() < 0.5


def pieces(change: Write | Truncate, style: str) -> Iterator[Write | Truncate]:
    """Yield the parts of a change that are there independently: sectors, unless the style is whole writes."""
    if isinstance(change, Truncate) or style == "writes":
        yield change
    else:
        yield from sectors(change)


def sectors(write: Write) -> Iterator[Write]:
    """Cut a write at the edges of sectors."""
    at, end = write.offset, write.offset + len(write.octets)
    while at < end:
        edge = min((at // SECTOR + 1) * SECTOR, end)
        yield Write(write.name, at, write.octets[at - write.offset : edge - write.offset])
        at = edge


def apply(octets: bytearray, change: Write | Truncate) -> None:
    if isinstance(change, Truncate):
        octets[change.size :] = bytes(max(change.size - len(octets), 0))
        return
    if len(octets) < change.offset:
        octets.extend(bytes(change.offset - len(octets)))
    octets[change.offset : change.offset + len(change.octets)] = change.octets


class Disk:
    """The state directory as the daemon sees it, and as the disk may hold it."""

    def __init__(self) -> None:
        self._seen: dict[str, File] = {}
        self._durable: dict[str, File] = {}
        self._since: list[dict[str, File | None]] = []
        self._is_there = False

    def play(self, event: Event) -> None:
        if isinstance(event, Write | Truncate):
            self._seen[event.name].since.append(event)
        elif isinstance(event, Sync):
            self._sync(event.name)
        elif isinstance(event, Create):
            self._enter({event.name: File()})
        elif isinstance(event, Entries):
            file = self._seen[event.name]
            self._enter({event.name: None} | ({event.new_name: file} if event.new_name else {}))

    def _enter(self, change: dict[str, File | None]) -> None:
        self._since.append(change)
        alter(self._seen, change)

    def _sync(self, name: str) -> None:
        self._is_there = True
        if not name:
            for change in self._since:
                alter(self._durable, change)
            self._since.clear()
            return
        file = self._seen[name]
        file.sync()
        # A synced file brings the entry with it under which it was created, instead of a former one.
        if any(change.get(name) is file for change in self._since):
            self._durable[name] = file
            for change in self._since:
                change.pop(name, None)

    def at_cut(self, chance: random.Random, style: str) -> dict[str, bytes]:
        """Return the files that the disk may hold."""
        if not self._is_there and chance.random() < 0.5:
            return {}
        entries = dict(self._durable)
        first = chance.randint(0, len(self._since))
        for number, change in enumerate(self._since):
            if is_there(style, number - first, chance):
                alter(entries, change)
        return {name: file.at_cut(chance, style) for name, file in entries.items()}

    @property
    def unsynced(self) -> int:
        """Number of writes that may be lost."""
        return sum(len(file.since) for file in self._seen.values())


def alter(entries: dict[str, File], change: dict[str, File | None]) -> None:
    for name, file in change.items():
        if file is None:
            entries.pop(name, None)
        else:
            entries[name] = file


class Promises:
    """Promises of the log up to some point."""

    def __init__(self) -> None:
        self.accepted: dict[int, tuple[str, int]] = {}
        self.attempts: dict[int, int] = {}
        self.closed: dict[int, str] = {}

    def hear(self, line: dict[str, Any]) -> None:
        """Read one line; the recording has no line at level error."""
        assert line["level"] not in ("error", "critical"), line
        event = line["event"]
        if event == "notification accepted":
            self.accepted[line["session"]] = line["server_id"], line["notification_id"]
        elif event == "session started":
            self.attempts[line["session"]] = line["attempt"]
        elif event == "session done":
            self.closed[line["session"]] = "done"


class Row(NamedTuple):
    """The compared part of a row."""

    server_id: str
    notification_id: int
    state: str


def rows_of(directory: Path) -> dict[int, Row]:
    """Read the table with SQLite alone, after the journal was closed."""
    with closing(sqlite3.connect(directory / DATABASE)) as database:
        told = database.execute("PRAGMA integrity_check").fetchall()
        assert told == [("ok",)], told
        found = database.execute("SELECT session, server_id, notification_id, state FROM session").fetchall()
    return {session: Row(*row) for session, *row in found}


@contextmanager
def listening() -> Iterator[LogLines]:
    lines = LogLines()
    log.configure("debug", "json", lines)
    try:
        yield lines
    finally:
        structlog.reset_defaults()


def check(directory: Path, promises: Promises, sent: set[tuple[str, int]], chance: random.Random) -> None:
    """Open the files of a disk as the daemon does. Raises AssertionError if a promise is not kept."""
    with listening() as lines:
        try:
            with open_journal(directory) as journal:
                attempts = {request.session: request.attempts for request in journal.pending()}
                check_repeats(journal, promises, chance)
            rows = rows_of(directory)
        except (DmnotidError, sqlite3.Error) as error:
            raise AssertionError(f"the journal cannot be used: {error!r}") from error
    warnings = [line for line in lines.all() if line["level"] not in ("debug", "info")]
    assert not warnings, f"warnings: {warnings}"
    others = {file.name for file in directory.iterdir()} - EXPECTED_NAMES
    assert not others, f"set aside: {others}"
    for session, (server_id, notification_id) in promises.accepted.items():
        assert session in rows, f"accepted, and lost: session {session}, {server_id} {notification_id}"
        assert rows[session][:2] == (server_id, notification_id), f"session {session} is another's: {rows[session]}"
    for session, state in promises.closed.items():
        assert rows[session].state == state, f"closed as {state}, and open again: session {session}, {rows[session]}"
    for session, row in rows.items():
        assert row[:2] in sent, f"never sent: session {session}, {row}"
    for session, attempt in promises.attempts.items():
        begun = attempts.get(session, attempt)
        assert begun >= attempt, f"session {session} was tried {attempt} times, and only {begun} are known"


def open_journal(directory: Path) -> Journal:
    return Journal(directory, limits=Limits(max_pending=60_000), remember=REMEMBER)


def check_repeats(journal: Journal, promises: Promises, chance: random.Random) -> None:
    """Send some accepted notifications again, the latest among them: each must be a duplicate."""
    accepted = list(promises.accepted.values())
    for server_id, notification_id in {*accepted[-1:], *chance.sample(accepted, min(SPOT_CHECKS, len(accepted)))}:
        with suppress(Duplicate):
            request = journal.admit(verified(notification_id, server_id=server_id))
            raise AssertionError(
                f"accepted, and taken again: {server_id} {notification_id} as session {request.session}"
            )
    journal.rollback()


# Recording -----------------------------------------------------------------------------------------------------------


def strace_problem() -> str | None:
    """Return the reason why strace cannot record here, if there is one."""
    if shutil.which("strace") is None:
        return "needs strace"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    return f"strace may not trace here: {tried.stderr.strip()}" if tried.returncode else None


class Traced:
    """A daemon under strace."""

    def __init__(self, directory: Path, config: Path, number: int) -> None:
        self.log = directory / f"log{number}"
        self.trace = directory / f"trace{number}"
        with self.log.open("wb") as stdout:
            self._strace = subprocess.Popen(
                [*STRACE, str(self.trace), *DMNOTID, "run", "--config", str(config)],
                env=ENVIRONMENT, stdout=stdout, stderr=stdout, stdin=subprocess.DEVNULL, cwd="/",
            )  # fmt: skip

    def count(self, event: str) -> int:
        """Count lines of the log."""
        return self.log.read_bytes().count(f'{{"event": "{event}"'.encode())

    def wait(self, event: str, count: int = 1) -> None:
        def there() -> bool:
            assert self._strace.poll() is None, self.log.read_text()[-2_000:]
            return self.count(event) >= count

        wait_until(there)

    def address(self) -> tuple[str, int]:
        self.wait("daemon ready")
        found = re.search(rb'"listen": "127\.0\.0\.1:(\d+)"', self.log.read_bytes())
        assert found is not None
        return "127.0.0.1", int(found[1])

    def end(self, number: signal.Signals) -> None:
        """Send a signal to the daemon; strace ends with it, and its output is then complete."""
        if self._strace.poll() is None:
            with self.trace.open() as trace:
                pid = int(trace.readline().split()[0])
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            self._strace.wait(60)


class Recorded(NamedTuple):
    """All runs of the daemon in one sequence, and what was sent to it."""

    events: list[Event]
    sent: set[tuple[str, int]]
    calls: Counter[str]


RUNS: Final = ((0.9, signal.SIGTERM), (0.05, signal.SIGKILL), (0.05, signal.SIGTERM))
"""Three daemons one after the other: the share of the notifications that each gets, and how it ends.

The first one fills SQLite's log (1000 pages, two to three for a notification), the second one is killed at rest.
"""


class Script:
    """The daemons of a recording on one state directory."""

    def __init__(self, directory: Path, notifications: int, chance: random.Random) -> None:
        self._directory, self._chance = directory, chance
        hook = write_script(directory / "hook", HOOK)
        self._config = write_config(
            directory, [str(hook)], sessions={"concurrency": 3, "max_pending": 60_000}, retry={"attempts": 5}
        )
        self._numbers = iter(range(1, 65_536))
        self._notifications = notifications
        self.sent: set[tuple[str, int]] = set()

    def run(self) -> Recorded:
        events: list[Event] = []
        names: set[str] = set()
        calls: Counter[str] = Counter()
        for number, (share, last) in enumerate(RUNS):
            daemon = Traced(self._directory, self._config, number)
            try:
                self._send(daemon, int(share * self._notifications))
            finally:
                daemon.end(last)
            recording = Recording(daemon.trace, self._directory / "state", daemon.log)
            events += recording.events(names)
            calls += recording.calls
            daemon.trace.unlink()
        return Recorded(events, self.sent, calls)

    def _send(self, daemon: Traced, count: int) -> None:
        address, left, done = daemon.address(), count, 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while left:
                burst = min(left, self._chance.choice([1, 1, 1, 2, 5, 15]))
                for _ in range(burst):
                    datagram, waits = self._next()
                    done += not waits
                    sock.sendto(datagram, address)
                left -= burst
                time.sleep(self._chance.random() * 0.02)
            for event, most in (("notification accepted", count), ("session done", done)):
                for number in range(1, most + 1):  # one by one: each has the full time
                    daemon.wait(event, number)
            # The daemon accepts one that waits before its end, so no write is under way then.
            sock.sendto(self._next(waits=True)[0], address)
        daemon.wait("notification accepted", count + 1)

    def _next(self, *, waits: bool = False) -> tuple[bytes, bool]:
        """Build the next notification; one in thirty waits for ever."""
        server_id, notification_id = self._chance.choice(SERVER_IDS), next(self._numbers)
        self.sent.add((server_id, notification_id))
        waits = waits or self._chance.random() < 1 / 30
        return push(notification_id, server_id=server_id, preferred=NOWHERE if waits else WIRELINE), waits


# Cutting -------------------------------------------------------------------------------------------------------------


def choose_cuts(events: list[Event], count: int, chance: random.Random) -> list[int]:
    """Choose the number of events before each cut: everywhere, but more often near syncs, starts and checkpoints."""
    first = next(
        at
        for at, event in enumerate(events)
        if isinstance(event, Said) and event.line["event"] == "notification accepted"
    )
    syncs = [at for at, event in enumerate(events) if isinstance(event, Sync)]
    places: list[tuple[int, Callable[[], int]]] = [
        (4, lambda: chance.randint(0, first + 1)),  # a new file, up to its first row
        (4, lambda: chance.choice(syncs)),
        (2, lambda: chance.choice(syncs) + 1),
        (3, lambda: around(chance.choice(checkpointed(events)), 12, events, chance)),
        (3, lambda: around(chance.choice(boundaries(events)), 40, events, chance)),
        (4, lambda: chance.randint(0, len(events))),
    ]
    weights = [weight for weight, _ in places]
    return sorted(chance.choices([place for _, place in places], weights)[0]() for _ in range(count))


def around(middle: int, reach: int, events: list[Event], chance: random.Random) -> int:
    return min(max(middle + chance.randint(-reach, reach), 0), len(events))


def checkpointed(events: list[Event]) -> list[int]:
    """Find the writes to the database itself."""
    return [at for at, event in enumerate(events) if isinstance(event, Write) and event.name == DATABASE]


def boundaries(events: list[Event]) -> list[int]:
    """Find the starts and stops of the daemon."""
    words = ("socket listening", "daemon stopped")
    return [at for at, event in enumerate(events) if isinstance(event, Said) and event.line["event"] in words]


def count_checkpoints(events: list[Event]) -> int:
    """Count the checkpoints of a daemon at work: writes to the database, and then to the start of the log."""
    written = False
    count = 0
    for event in events:
        if isinstance(event, Write) and event.name == DATABASE:
            written = True
        elif isinstance(event, Create):
            written = False
        elif isinstance(event, Write) and written:
            count += event.offset == 0
            written = False
    return count


class Result(NamedTuple):
    """Counts, and the promises that were not kept."""

    counts: dict[str, Any]
    violations: list[str]


def cut_all(recorded: Recorded, cuts: list[int], chance: random.Random) -> Result:
    """Play the recording, and check the disk at every cut."""
    disk, promises, done = Disk(), Promises(), 0
    styles: Counter[str] = Counter()
    violations: list[str] = []
    unsynced = 0
    for cut in cuts:
        for event in recorded.events[done:cut]:
            disk.play(event)
            if isinstance(event, Said):
                promises.hear(event.line)
        done = cut
        style = chance.choices(list(STYLES), list(STYLES.values()))[0]
        styles[style] += 1
        unsynced += bool(disk.unsynced)
        try:
            look(disk.at_cut(chance, style), promises, recorded.sent, chance)
        except AssertionError as broken:
            before = "".join(f"\n  {describe(event)}" for event in recorded.events[max(cut - 8, 0) : cut])
            violations.append(f"cut after {cut} events, {style} of what may be lost is there: {broken}{before}")
    counts = {"cuts": len(cuts), "with writes that may be lost": unsynced, "of the rest": dict(styles)}
    return Result(counts, violations)


def describe(event: Event) -> str:
    if isinstance(event, Write):
        return f"Write of {len(event.octets)} octets to {event.name} at {event.offset}"
    return str(event)


def look(files: dict[str, bytes], promises: Promises, sent: set[tuple[str, int]], chance: random.Random) -> None:
    with TemporaryDirectory(prefix="power-cut") as name:
        directory = Path(name)
        for file, octets in files.items():
            (directory / file).write_bytes(octets)
        check(directory, promises, sent, chance)


def cut_power(directory: Path, *, cuts: int, notifications: int, seed: int) -> Result:
    """Record a daemon and cut its power so many times."""
    chance = random.Random(seed)  # noqa: S311 - chooses cuts, guards nothing
    directory = directory.resolve()  # as the kernel names it
    began = time.monotonic()
    recorded = Script(directory, notifications, chance).run()
    checkpoints = count_checkpoints(recorded.events)
    assert checkpoints, "the recording has no checkpoint: send more"
    took = time.monotonic() - began
    counts, violations = cut_all(recorded, choose_cuts(recorded.events, cuts, chance), chance)
    said = Counter(event.line["event"] for event in recorded.events if isinstance(event, Said))
    kinds = Counter(type(event).__name__ for event in recorded.events)
    return Result(
        {
            "seed": seed,
            "log": {
                event: said[event]
                for event in ("daemon ready", "notification accepted", "session started", "session done")
            },
            "system calls": dict(recorded.calls),
            "events": dict(kinds),
            "checkpoints": checkpoints,
            "seconds": {"recording": round(took, 1), "cutting": round(time.monotonic() - began - took, 1)},
            **counts,
            "violations": len(violations),
        },
        violations,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cuts", type=int, default=1_000)
    parser.add_argument("--notifications", type=int, default=NOTIFICATIONS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    options = parser.parse_args()
    problem = strace_problem()
    if problem is not None:
        parser.error(problem)
    with TemporaryDirectory(prefix="power-cut") as directory:
        counts, violations = cut_power(
            Path(directory), cuts=options.cuts, notifications=options.notifications, seed=options.seed
        )
    sys.stdout.write("".join(f"{line}\n" for line in [*violations[:10], json.dumps(counts, indent=1)]))
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
