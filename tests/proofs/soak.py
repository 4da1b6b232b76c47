"""Minutes of mixed traffic against a real `dmnotid run`, measured from outside.

    .venv/bin/python -m tests.proofs.soak --seconds 600

New notifications whose hooks end in every way there is, repeats, forgeries, stale ones and junk, while SIGHUP brings
another configuration every few seconds, good and bad in turn. At the end of the first minute and at the very end the
traffic rests until every session is closed; memory, descriptors, threads and tasks must then be the same. What the
daemon counted must be what was sent, less what the kernel dropped, and every accepted notification must be closed as
its hook decided. Exit status 1 where anything of that isn't so.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import signal
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TextIO

import yaml

from tests.processes import JOURNAL, Service, children, count, memory, processor, udp_socket, with_environment
from tests.proofs.soak_traffic import (
    COMING_ID,
    FLEXIBLE,
    HOOK,
    ORDINARY,
    SLOW,
    WAITS_ID,
    Sent,
    Traffic,
    all_servers,
    session_end,
)
from tests.support import configuration, write_script

PROGRAM: Final = [sys.executable, "-m", "tests.proofs.soak_daemon"]
HOST: Final = "127.0.0.1"
GUEST_HOST: Final = "127.0.0.2"
"""An address that comes and goes with reloads."""

MARK: Final = "SOAK"
"""A variable in the environment of hooks and of all that they start: so what is left of them is found."""

CHUNK: Final = 32
"""How many datagrams are sent between two looks at the socket's buffer."""

FULL: Final = 64 * 1024
"""With so many octets waiting in it the sender waits, too: the buffer holds three times that."""

UNDER_WAY: Final = 4
"""How many sessions of a server may wait or run before no new one is sent to it."""

TICK: Final = 0.005
PATIENCE: Final = 60.0
"""How long anything may take that must happen (seconds)."""

_TABLE: Final = (
    "time",
    "datagrams",
    "accepted",
    "reloads",
    "RSS",
    "PSS",
    "descriptors",
    "threads",
    "tasks",
    "children",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak is to be like. Times are in seconds; `growth` is what RSS may gain after `settled`, in KiB."""

    seconds: float = 600
    rate: float = 2_500
    new_rate: float = 20
    settled: float = 60
    sample_every: float = 10
    reload_every: float = 3
    expire_after: int = 20
    timeout: int = 2
    growth: int = 2_048
    seed: int = 1


class Sample(NamedTuple):
    """The daemon at one moment; memory in KiB."""

    seconds: float
    datagrams: int
    accepted: int
    reloads: int
    rss: int
    pss: int
    descriptors: int
    threads: int
    tasks: int
    children: int

    def __str__(self) -> str:
        """Show it as a row of the table."""
        sizes = (f"{size / 1024:.1f} MB" for size in (self.rss, self.pss))
        times = f"{self.seconds:.0f} s", f"{self.datagrams:,}", f"{self.accepted:,}", self.reloads
        return _row(*times, *sizes, *self[6:])


@dataclass
class Report:
    """What came of it: `problems` is empty where all is well."""

    samples: list[Sample] = field(default_factory=list)
    rests: list[Sample] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, what: str, found: object, wanted: object) -> None:
        """Note a problem where something isn't as it must be."""
        if found != wanted:
            self.problems.append(f"{what}: {found!r}, {wanted!r} is expected")

    def __str__(self) -> str:
        """Show all of it, in Markdown."""
        table = [_row(*_TABLE), _row(*("---:" for _ in _TABLE)), *map(str, self.samples)]
        rests = ["", "At rest, after the first part and at the end:", "", *table[:2], *map(str, self.rests)]
        facts = ["", *(f"* {name}: {value}" for name, value in self.facts.items())]
        return "\n".join([*table, *rests, *facts, "", *(self.problems or ["All is well."])])


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


class Log:
    """The daemon's log, read as it grows."""

    def __init__(self, file: Path, on_accepted: Callable[[str, int], None]) -> None:
        self._stream = file.open("rb")
        self._rest = b""
        self._on_accepted = on_accepted
        self.events: Counter[str] = Counter()
        self.levels: Counter[str] = Counter()
        self.last: dict[str, dict[str, Any]] = {}
        self.open: dict[int, tuple[str, int]] = {}
        self.ends: dict[tuple[str, int], str] = {}
        self.problems: list[str] = []

    def read(self) -> None:
        """Take what was written since."""
        *lines, self._rest = (self._rest + self._stream.read()).split(b"\n")
        for octets in lines:
            line = json.loads(octets)
            event = line["event"]
            self.events[event] += 1
            self.last[event] = line
            if event == "notification accepted":
                self.open[line["session"]] = line["server_id"], line["notification_id"]
                self._on_accepted(line["server_id"], line["notification_id"])
            elif event.removeprefix("session ") in {"done", "refused", "failed", "expired"}:
                self._close(line, event.removeprefix("session "))
            elif "exception" in line:
                self.problems.append(line["exception"])

    def _close(self, line: dict[str, Any], end: str) -> None:
        if self.open.pop(line["session"], None) is None:
            self.problems.append(f"closed, and not open: {line}")
        server_id, notification_id = line["server_id"], line["notification_id"]
        self.ends[server_id, notification_id] = end
        if end not in session_end(server_id, notification_id):
            self.problems.append(f"closed otherwise than its hook decides: {line}")

    def has_room(self, server_id: str) -> bool:
        """Tell whether a session of this server would soon have its turn."""
        found = [notification_id for server, notification_id in self.open.values() if server == server_id]
        return len(found) < UNDER_WAY and SLOW.isdisjoint(number % 128 for number in found)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Reloads:
    """Writes one configuration after the other, asks for each to be taken up, and sees what comes of it."""

    def __init__(self, directory: Path, plan: Plan, port: int) -> None:
        self.file = directory / "dmnotid.yaml"
        self._plan = plan
        hook = write_script(directory / "hook", HOOK)
        limits = {"expire_after": f"{plan.expire_after}s", "concurrency": 4}
        self._base = configuration(
            directory,
            [str(hook)],
            servers=all_servers(),
            listen=[f"{HOST}:{port}"],
            hook={"timeout": f"{plan.timeout}s", "kill_after": "100ms", "environment": {MARK: str(directory)}},
            retry={"attempts": 2},
            sessions=limits,
            freshness={"max_skew": "10m"},
            log={"format": "json", "discards": "1s"},
        )
        self.guest = f"{GUEST_HOST}:{port}"
        self._good = itertools.cycle(self._variants())
        self._bad = itertools.cycle(self._problems())
        self._turns = itertools.cycle((True, False))

    def write_base(self) -> bool:
        """Write the configuration in which the daemon is measured."""
        return self._write(self._base)

    def write_next(self) -> bool:
        """Write another configuration; whether it is a good one."""
        if next(self._turns):
            return self._write(next(self._good))
        self._write_text(next(self._bad))
        return False

    def _variants(self) -> Iterator[dict[str, Any]]:
        base, guest = self._base, [*self._base["listen"], self.guest]
        fewer = [server for server in base["servers"] if server["id"] != COMING_ID]
        yield {**base, "servers": fewer}
        yield {**base, "listen": guest}
        yield {**base, "listen": guest, "servers": fewer, "sessions": {**base["sessions"], "max_pending": 500}}
        yield {**base, "servers": list(reversed(base["servers"])), "sessions": {**base["sessions"], "concurrency": 8}}
        yield {**base, "freshness": {"max_age": "2d", "max_skew": "1m"}, "duplicates": {"remember": "30d"}}
        yield {**base, "servers": fewer, "log": {**base["log"], "discards": "5s"}}

    def _problems(self) -> Iterator[str]:
        whole = yaml.safe_dump(self._base)
        yield whole + "}"
        yield ""
        yield yaml.safe_dump({**self._base, "lisen": "here"})
        yield yaml.safe_dump({**self._base, "servers": [{"id": "a"}, {"id": "a"}], "retry": {"first": "soon"}})
        yield yaml.safe_dump({**self._base, "listen": [*self._base["listen"], f"192.0.2.1:{_port(self.guest)}"]})
        yield whole * 50

    def _write(self, config: dict[str, Any]) -> bool:
        self._write_text(yaml.safe_dump(config))
        return True

    def _write_text(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(text)
        new.replace(self.file)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _free_port() -> int:
    """Find a port that is free at both addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, socket.socket(type=socket.SOCK_DGRAM) as guest:
        probe.bind((HOST, 0))
        guest.bind((GUEST_HOST, probe.getsockname()[1]))
        return int(probe.getsockname()[1])


class Soak:
    """One soak, from the daemon's start to its end."""

    def __init__(self, directory: Path, plan: Plan, show: Callable[[object], None]) -> None:
        self.report = Report()
        self._plan = plan
        self._show = show
        self._traffic = Traffic(plan.seed)
        self._port = _free_port()
        self._reloads = Reloads(directory, plan, self._port)
        self._reloads.write_base()
        self._state = directory / "state"
        self._service = Service(self._reloads.file, directory / "log", program=PROGRAM)
        self._log = Log(directory / "log", self._traffic.was_accepted)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sent = self._sent_new = 0
        self._guest_sent = self._drops = 0
        self._asked = 0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._service.process.poll() is None:
            self._service.process.kill()
        self._service.process.wait()
        self._log.close()
        self._socket.close()

    def run(self) -> Report:
        """Run it to its end."""
        self._until(lambda: self._log.events["daemon ready"], "ready")
        self._socket.connect((HOST, self._port))
        self._began = time.monotonic()
        self._send_until(self._plan.settled)
        self._rest()
        self._send_until(self._plan.seconds)
        self._rest()
        self._look_at_rests()
        self._stop()
        return self.report

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _send_until(self, end: float) -> None:
        """Send at the rate that was asked for, and less where the daemon doesn't keep up with it."""
        plan, begin, before = self._plan, self._seconds, self._sent
        sample_at, reload_at, new = begin + plan.sample_every, begin + plan.reload_every, 0
        while (now := self._seconds) < end:
            self._log.read()
            # A tenth more than is due makes up for a pause; what a long one missed is not sent in one burst.
            due = min(plan.rate * (now - begin) - (self._sent - before), plan.rate * 0.5)
            wanted = plan.new_rate * (now - begin)
            while due > 0 and udp_socket(HOST, self._port).queued < FULL:
                new += self._send_new() if new < wanted else 0
                for _ in range(CHUNK):
                    self._send(self._traffic.any())
                due -= CHUNK
            if now >= sample_at:
                sample_at += plan.sample_every
                self._sample(self.report.samples)
            if now >= reload_at:
                reload_at = now + plan.reload_every
                self._reload(good=self._reloads.write_next())
            time.sleep(TICK)

    def _send_new(self) -> int:
        """Send one new notification in the name of a server that has few sessions under way; how many."""
        self._sent_new += 1
        server_id = ORDINARY[self._sent_new % len(ORDINARY)]
        if self._sent_new % 40 == 0:
            server_id = WAITS_ID
        elif self._sent_new % 40 == 20:
            server_id = COMING_ID
        # Those that wait take no time of anybody's: they may be as many as the queue takes.
        if server_id in ORDINARY and not self._log.has_room(server_id):
            return 0
        self._send(self._traffic.new(server_id))
        return 1

    def _send(self, sent: Sent) -> None:
        self._socket.send(sent.octets)
        self._sent += 1

    def _reload(self, *, good: bool) -> None:
        """Ask for a reload and see that it ends as it must; then knock at the address that may have come with it."""
        self._look_at_guest()
        event = "configuration reloaded" if good else "reload refused"
        self._signal(signal.SIGHUP)
        self._asked += 1
        before = self._log.events[event]
        self._until(lambda: self._log.events[event] > before, event)
        if good and self._reloads.guest in self._log.last["configuration reloaded"]["listen"]:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for _ in range(CHUNK):
                    sock.sendto(self._traffic.any().octets, (GUEST_HOST, self._port))
            self._guest_sent += CHUNK

    def _look_at_guest(self) -> None:
        """Count what the socket dropped that may be closed by the next reload: then nobody can tell any more."""
        if (
            self._log.events["configuration reloaded"]
            and self._reloads.guest in self._log.last["configuration reloaded"]["listen"]
        ):
            self.report.expect("drops of the second socket", udp_socket(GUEST_HOST, self._port).drops, 0)

    def _signal(self, number: signal.Signals) -> None:
        assert self._service.process.poll() is None, f"it ended: {self._service.errors}"
        self._service.process.send_signal(number)

    def _until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE + self._plan.expire_after
        self._log.read()
        while not condition():
            assert time.monotonic() < deadline, f"never came to: {what}; last: {list(self._log.last)[-5:]}"
            assert self._service.process.poll() is None, f"it ended: {self._service.errors}"
            time.sleep(TICK)
            self._log.read()

    def _rest(self) -> None:
        """Send nothing until every session is closed, then measure under the first configuration."""
        self._reload(good=self._reloads.write_base())
        pid = self._service.process.pid
        self._until(lambda: not udp_socket(HOST, self._port).queued, "an empty socket")
        self._until(lambda: not self._log.open, "the end of all sessions")
        self._until(lambda: not children(pid), "the end of all children")
        mark = f"{MARK}={self._state.parent}"
        self._until(lambda: not with_environment(mark), "the end of all that hooks started")
        time.sleep(1)  # what was closed just now is let go of
        self._sample(self.report.rests)

    def _sample(self, samples: list[Sample]) -> None:
        before, pid = self._log.events["tasks"], self._service.process.pid
        self._signal(signal.SIGWINCH)
        self._until(lambda: self._log.events["tasks"] > before, "the number of tasks")
        tasks, states = self._log.last["tasks"]["count"], children(pid)
        accepted, sent = self._log.events["notification accepted"], self._sent + self._guest_sent
        counts = count(pid, "fd"), count(pid, "task"), tasks, len(states)
        samples.append(Sample(self._seconds, sent, accepted, self._asked, *memory(pid), *counts))
        self._show(samples[-1])

    def _look_at_rests(self) -> None:
        report, (first, last) = self.report, self.report.rests
        for what in ("descriptors", "threads", "tasks", "children"):
            report.expect(f"{what} at the end", getattr(last, what), getattr(first, what))
        grown = last.rss - first.rss
        report.facts["RSS gained between the two rests"] = f"{grown} KiB ({last.pss - first.pss} KiB of PSS)"
        if grown > self._plan.growth:
            report.problems.append(f"RSS grew by {grown} KiB, at most {self._plan.growth} are allowed")
        self._drops = udp_socket(HOST, self._port).drops

    def _stop(self) -> None:
        report, service = self.report, self._service
        report.expect("exit status", service.stop(), 0)
        self._log.read()
        report.expect("standard error", service.errors, "")
        report.problems += self._log.problems
        report.expect("sessions not closed", self._log.open, {})
        self._look_at_counters({**self._log.last["daemon stopped"]})
        self._look_at_journal()
        self._tell_all()

    def _look_at_counters(self, stopped: dict[str, Any]) -> None:
        counted = Counter({name: number for name, number in stopped.items() if isinstance(number, int)})
        received, fates = counted.pop("received"), self._traffic.fates
        report, drops = self.report, self._drops
        report.expect("received", received, self._sent + self._guest_sent - drops)
        report.expect("sum of all counts", sum(counted.values()), received)
        report.expect("accepted", counted["accepted"], len(self._log.ends))
        ends = {**Counter(self._log.ends.values()), "tries": self._log.events["session started"]}
        report.expect("ends of sessions", stopped["sessions"], ends)
        flexible = fates[None] + sum(fates[name] for name in FLEXIBLE)
        wanted = {name: number for name, number in fates.items() if name is not None and name not in FLEXIBLE}
        found = {name: counted[name] for name in wanted | counted if name not in FLEXIBLE}
        if not drops:  # else nobody knows what they were
            report.expect("counts by reason", found, wanted)
            report.expect(f"sum of {', '.join(FLEXIBLE)}", sum(counted[name] for name in FLEXIBLE), flexible)
        report.facts["counts"] = ", ".join(f"{name} {number:,}" for name, number in counted.most_common())

    def _look_at_journal(self) -> None:
        with closing(sqlite3.connect(self._state / JOURNAL)) as database:
            rows = database.execute("SELECT server_id, notification_id, state FROM session")
            states = {(server_id, notification_id): state for server_id, notification_id, state in rows}
        self.report.expect("rows that are not what the log said", dict(states.items() ^ self._log.ends.items()), {})
        self.report.facts["sessions closed"] = _counted(Counter(states.values()))

    def _tell_all(self) -> None:
        facts, events = self.report.facts, self._log.events
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        facts["datagrams"] = f"{self._sent + self._guest_sent:,} sent, {self._drops:,} dropped by the kernel"
        facts["kinds"] = _counted(self._traffic.kinds)
        facts["hooks started"] = f"{events['session started']:,}"
        facts["reloads"] = f"{events['configuration reloaded']} taken up, {events['reload refused']} refused"
        facts["processor time of the daemon and its hooks"] = f"{used.ru_utime + used.ru_stime:.0f} s"
        facts["machine"] = f"{os.cpu_count()} x {processor()}, Linux {platform.release()}"
        facts["Python"] = platform.python_version()


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.most_common())


def soak(directory: Path, plan: Plan, show: Callable[[object], None] = lambda _: None) -> Report:
    """Run a soak in a directory; each sample is shown as it is taken."""
    with Soak(directory, plan, show) as running:
        return running.run()


def main() -> int:
    """Run one as the command line says, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = Plan()
    parser.add_argument("--seconds", type=float, default=usual.seconds)
    parser.add_argument("--datagrams-per-second", type=float, default=usual.rate)
    parser.add_argument("--new-per-second", type=float, default=usual.new_rate)
    parser.add_argument("--seed", type=int, default=usual.seed)
    given = parser.parse_args()
    settled = min(usual.settled, given.seconds / 4)
    plan = Plan(given.seconds, given.datagrams_per_second, given.new_per_second, settled, seed=given.seed)
    with tempfile.TemporaryDirectory() as directory:
        report = soak(Path(directory), plan, lambda sample: _say(sys.stderr, sample))
    _say(sys.stdout, report)
    return int(bool(report.problems))


def _say(stream: TextIO, what: object) -> None:
    stream.write(f"{what}\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
