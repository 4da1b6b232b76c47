"""Kill the daemon at any moment, again and again: `python -m tests.proofs.crash --rounds 5000 --seed 7`.

A real daemon with a slow hook gets notifications of several servers, is killed with SIGKILL, and started again on the
same state directory. Moments are drawn from all of its life: before it is ready, at any time, and within a few
milliseconds of a datagram, an accepted notification, a session's start and end, a line of the hook's, the last end, a
SIGTERM. In half of the rounds the hooks that it leaves are killed too, as a service manager does; in the others they
live on. Some daemons get a SIGHUP at work.

After each kill the log, the hook's lines and a copy of the journal are compared with all that was seen before:

* What was logged as accepted is in the journal, and what was in it once stays there: its session number, its
  notification; a closed one with the state in which it was closed.
* No session number stands for two notifications, and no notification has two.
* A session is done in the journal only after its hook said so, and no hook starts for it in a later round.
* Every try has a number of its own. In one round, that is under one daemon, no two runs for one server overlap, there
  are never more than `sessions.concurrency`, and none comes after the one that was done.
* The daemon takes up what waited, says nothing at level error, and discards nothing but duplicates.

In the end it runs undisturbed: every notification that was ever sent is then accepted, and its hook was done at least
once. The server sends again, in a later round, what it doesn't know to be accepted, and some of the rest as well.

The plan of a round depends on the seed and its number alone; what happens by then, on the machine's timing too.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.processes import DMNOTID, ENVIRONMENT
from tests.support import DEADLINE, WIRELINE, parse_lines, push, write_config, write_script

PR_SET_CHILD_SUBREAPER: Final = 36
POLL: Final = 0.0003
"""Pause between two looks at the log and the hook's lines (seconds)."""

NEW: Final = 20
"""How many new notifications a round sends at most."""

BACKLOGS: Final = (5, 20, 100)
"""With so many sessions waiting, one or another, a round sends nothing new: all have to come to their end."""

LATEST: Final = 0.45
"""When a round that waits for something ends without it (seconds after the daemon was ready)."""

LATEST_IDLE: Final = 2.0
"""The same for one that waits until nothing is left to do."""

IDS_OF_SERVER: Final = 60_000
"""How many of the 65536 NOTIFICATION-IDs one server gets to use; with more rounds there are more servers."""

# One write for each line, so that the file has them in the order in which they were written.
HOOK: Final = """#!/bin/sh
run="$CRASH_ROUND $DMNOTID_SESSION $DMNOTID_ATTEMPT $DMNOTID_SERVER_ID $DMNOTID_NOTIFICATION_ID"
echo "start $run" >> "$CRASH_LINES"
dice=$(( (DMNOTID_SESSION * 7919 + DMNOTID_ATTEMPT * 104729 + CRASH_SEED) % 1000 ))
[ $((dice % 5)) = 0 ] || sleep 0.0$((dice % 70 + 10))
if [ $((dice % 4)) = 0 ]; then
    echo "failed $run" >> "$CRASH_LINES"
    exit 1
fi
echo "done $run" >> "$CRASH_LINES"
"""

MOMENTS: Final = {
    "starting": 4, "at any time": 4, "sent": 3, "notification accepted": 2, "session started": 2, "session done": 2,
    "hook": 3, "idle": 2, "stopping": 1,
}  # fmt: skip
"""When the daemon is killed, and how often so."""


class Key(NamedTuple):
    """What makes a notification this one."""

    server_id: str
    notification_id: int


@dataclass
class Sent:
    """A notification as the server remembers it; it is the same, octet for octet, however often it is sent."""

    datagram: bytes
    known: bool = False


class HookLine(NamedTuple):
    """A line of the hook's."""

    what: str
    round: int
    session: int
    attempt: int
    key: Key


class Row(NamedTuple):
    """What is looked at in a row of the journal."""

    key: Key
    state: str


class Plan(NamedTuple):
    """How a round goes: the daemon is killed `delay` seconds after so many of what `moment` names."""

    number: int
    moment: str
    after: int
    delay: float
    concurrency: int
    sweeps: bool
    reloads_after: float
    chance: random.Random


def make_plan(seed: int, number: int) -> Plan:
    """Draw a round's plan."""
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - chooses moments, guards nothing
    moment = chance.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    delay = {"starting": 0.4, "at any time": 0.4, "idle": 0.05, "stopping": 0.02}.get(moment, 0.003) * chance.random()
    after, concurrency = chance.choice([1, 1, 2, 4, 8]), chance.choice([1, 1, 2, 4, 8])
    reloads_after = chance.random() * LATEST * 4  # most rounds are over by then
    return Plan(number, moment, after, delay, concurrency, chance.random() < 0.5, reloads_after, chance)


class Lines:
    """Whole lines of a file that others append to."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._rest = b""

    def new(self) -> list[str]:
        """Return what came since the last call."""
        octets = self._file.read()
        if not octets:
            return []
        whole, newline, rest = (self._rest + octets).rpartition(b"\n")
        self._rest = rest
        return (whole + newline).decode().splitlines()

    def close(self) -> None:
        self._file.close()


class Server:
    """The DM servers: they send what they must until they know that it was accepted."""

    def __init__(self, count: int) -> None:
        self.ids = [f"{'open' if number % 3 == 2 else 'dm'}{number}.example" for number in range(count)]
        self.sent: dict[Key, Sent] = {}
        self.datagrams = 0
        self._next = dict.fromkeys(self.ids, 0)
        self._copies: Counter[Key] = Counter()

    @property
    def configuration(self) -> list[dict[str, Any]]:
        return [
            {"id": name, "require_digest": False} if name.startswith("open")
            else {"id": name, "secret": {"text": secret_of(name).decode()}}
            for name in self.ids
        ]  # fmt: skip

    def new(self, server_id: str) -> Key:
        """Make up a notification."""
        self._next[server_id] += 1
        key = Key(server_id, self._next[server_id])
        secret = None if server_id.startswith("open") else secret_of(server_id)
        self.sent[key] = Sent(push(key.notification_id, server_id=server_id, secret=secret, preferred=WIRELINE))
        return key

    def unknown(self) -> list[Key]:
        """Return what has to be sent again."""
        return [key for key, sent in self.sent.items() if not sent.known]

    def begin_round(self) -> None:
        self._copies.clear()

    def count(self, key: Key) -> bytes:
        """Return a notification's datagram, which is sent now."""
        self.datagrams += 1
        self._copies[key] += 1
        return self.sent[key].datagram

    def learn(self, line: dict[str, Any]) -> None:
        """Take from a line of the daemon's log that a notification needs no sending again."""
        if line["event"] not in ("notification accepted", "datagram discarded"):
            return
        key = Key(line["server_id"], line["notification_id"])
        # The second copy of one datagram is a duplicate already while the first one's commit is still to come.
        if line["event"] == "notification accepted" or (line["reason"] == "duplicate" and self._copies[key] == 1):
            self.sent[key].known = True


def secret_of(server_id: str) -> bytes:
    return f"the secret of {server_id}".encode()


@dataclass
class Round:
    """What happened between a start of the daemon and its end."""

    number: int
    concurrency: int
    log: list[dict[str, Any]] = field(default_factory=list)
    errors: str = ""

    def count(self, event: str) -> int:
        return sum(line["event"] == event for line in self.log)

    def of(self, session: int) -> list[dict[str, Any]]:
        return [line for line in self.log if line.get("session") == session]


class Judge:
    """Knows all that was seen so far, and what can't be."""

    def __init__(self, server: Server) -> None:
        self.rows: dict[int, Row] = {}
        self.counts: Counter[str] = Counter()
        self._server = server
        self._closed_in: dict[int, int] = {}
        self._lines: dict[int, list[HookLine]] = defaultdict(list)
        self._running: dict[int, dict[str, HookLine]] = defaultdict(dict)
        self._heard: set[int] = set()
        self._done: set[int] = set()
        self._concurrency: dict[int, int] = {}
        self._round = Round(0, 0)

    def begin(self, round_: Round) -> None:
        self._round = round_
        self._concurrency[round_.number] = round_.concurrency

    @property
    def pending(self) -> int:
        return sum(row.state == "pending" for row in self.rows.values())

    def claim(self, holds: object, what: str, session: int = 0, key: Key | None = None) -> None:
        """Raise AssertionError with the evidence unless it holds."""
        if holds:
            return
        row = self.rows.get(session)
        evidence = [
            f"round {self._round.number}: {what}",
            f"  notification: {key or (row and row.key)}, session {session or None}",
            f"  journal: {row}, closed since round {self._closed_in.get(session)}",
            *(f"  hook: {line}" for line in self._lines.get(session, [])),
            *(f"  log: {line}" for line in (self._round.of(session) if session else self._round.log[-10:])),
        ]
        raise AssertionError("\n".join(evidence))

    def hear_hook(self, line: HookLine) -> None:
        """Take a line of the hook's, in the order of the file."""
        self._lines[line.session].append(line)
        self._heard.add(line.session)
        if line.what == "start":
            self._start(line)
            return
        if line.what == "done":
            self._done.add(line.session)
        ran = self._running[line.round].pop(line.key.server_id, None)
        # Its start came before its end, and no other of this server's in between.
        self.claim(ran and ran[1:] == line[1:], f"the end of another run than the last one, {ran}", line.session)

    def _start(self, line: HookLine) -> None:
        session, running = line.session, self._running[line.round]
        before = self._lines[session][:-1]
        self.claim(
            self._closed_in.get(session, line.round) >= line.round, f"run again once it was closed: {line}", session
        )
        self.claim(
            not any(other.what == "done" and other.round == line.round for other in before),
            f"run again by the daemon that saw it done: {line}", session,
        )  # fmt: skip
        self.claim(
            not any(other.what == "start" and other.attempt == line.attempt for other in before),
            f"two tries of one number: {line}", session,
        )  # fmt: skip
        other = running.get(line.key.server_id)
        self.claim(other is None, f"two runs for one server at once: {other}, {line}", session)
        running[line.key.server_id] = line
        most = self._concurrency[line.round]
        self.claim(len(running) <= most, f"{len(running)} runs at once, {most} may be: {running.values()}", session)
        self.counts["hook runs"] += 1
        cut_off = bool(before) and before[-1].round < line.round and before[-1].what != "failed"
        self.counts["runs again after a crash"] += cut_off

    def hear_log(self) -> None:
        """Look at what the daemon said of itself in this round."""
        round_ = self._round
        self.claim(not round_.errors, f"on standard error: {round_.errors}")
        for line in round_.log:
            self.claim(line["level"] in ("info", "warning"), f"an error in the log: {line}", line.get("session", 0))
            if line["event"] == "daemon ready":
                waited = self.pending
                self.claim(line["pending"] == waited, f"{line['pending']} taken up, {waited} waited")
            elif line["event"] in ("datagram discarded", "datagrams discarded"):
                self.claim(line["reason"] == "duplicate", f"discarded: {line}")
                self.counts["duplicates refused"] += line.get("count", 1)
            self._server.learn(line)
        self.counts["accepted"] += round_.count("notification accepted")
        self.counts["reloads"] += round_.count("configuration reloaded")

    def see(self, rows: dict[int, Row]) -> None:
        """Compare the journal with what was in it before, and with what was said since."""
        for session, row in self.rows.items():
            found = rows.get(session)
            if found == row:
                continue
            self.claim(found, "gone from the journal", session)
            assert found is not None
            self.claim(found.key == row.key, f"another notification's now: {found}", session)
            self.claim(row.state in ("pending", found.state), f"closed, and now {found.state}", session)
        keys = {row.key for row in rows.values()}
        self.claim(len(keys) == len(rows), "a notification stands in the journal twice")
        self.claim(keys <= self._server.sent.keys(), f"never sent: {keys - self._server.sent.keys()}")
        closed_before = self._closed_in.keys()
        told = {line["session"] for line in self._round.log if line["event"] == "notification accepted"}
        self.counts["accepted, and killed before it was logged"] += len(rows.keys() - self.rows.keys() - told)
        self.rows = rows
        for session in [s for s, row in rows.items() if row.state != "pending" and s not in closed_before]:
            self.claim(rows[session].state == "done", "closed in another state than done", session)
            self.claim(session in self._done, "closed as done, and its hook never said so", session)
            self._closed_in[session] = self._round.number
        self._compare_log(rows)
        self._compare_hooks(rows)

    def _compare_log(self, rows: dict[int, Row]) -> None:
        for line in self._round.log:
            if line["event"] not in ("notification accepted", "session done"):
                continue
            key, session = Key(line["server_id"], line["notification_id"]), line["session"]
            self.claim(session in rows, f"{line['event']}, and not in the journal", session, key)
            self.claim(rows[session].key == key, "accepted as a session that is another's", session, key)
            if line["event"] == "session done":
                self.claim(rows[session].state == "done", "said to be done, and not closed", session)

    def _compare_hooks(self, rows: dict[int, Row]) -> None:
        for session in self._heard:
            line = self._lines[session][-1]
            self.claim(session in rows, "its hook ran, and it isn't in the journal", session, line.key)
            self.claim(rows[session].key == line.key, f"the hook ran for another notification: {line}", session)
            self.counts["done, and killed before it was closed"] += (
                line.what == "done" and line.round == self._round.number and rows[session].state == "pending"
            )
        self._heard.clear()

    def finish(self) -> None:
        """Look at the whole after the last daemon stopped in order."""
        accepted = {row.key: session for session, row in self.rows.items()}
        for key in self._server.sent:
            self.claim(key in accepted, "sent, and never accepted", key=key)
            session = accepted[key]
            self.claim(self.rows[session].state == "done", "still waits", session)
            self.claim(session in self._done, "accepted, and never done", session)


class Harness:
    """The daemon's state directory, its servers, and one round after the other."""

    def __init__(self, directory: Path, *, rounds: int, seed: int) -> None:
        self._directory, self._rounds, self._seed = directory, rounds, seed
        self._server = Server(max(5, rounds * NEW // IDS_OF_SERVER + 1))
        self.judge = Judge(self._server)
        self._hook = write_script(directory / "hook", HOOK)
        self._hook_file = directory / "hook-lines"
        self._hook_file.touch()
        self._hook_lines = Lines(self._hook_file)
        self._kills: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> dict[str, Any]:
        """Go through all rounds and the undisturbed one; the counts."""
        # What the daemon leaves behind becomes a child of this process: nothing of it is missed, or left for ever.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        began = time.monotonic()
        try:
            for number in range(1, self._rounds + 1):
                self._disturbed(make_plan(self._seed, number))
            self._undisturbed(self._rounds + 1)
        finally:
            self._end()
            self._hook_lines.close()
        return {
            "seed": self._seed,
            "rounds": self._rounds,
            "kills": dict(self._kills),
            "notifications": len(self._server.sent),
            "datagrams sent": self._server.datagrams,
            **self.judge.counts,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _disturbed(self, plan: Plan) -> None:
        round_ = Round(plan.number, plan.concurrency)
        log = self._start(round_)
        try:
            self._work(plan, round_, log)
            self._count_kill(round_)
            self._kill(sweeps=plan.sweeps)
            self._judge(round_, log)
        finally:
            log.close()

    def _start(self, round_: Round) -> Lines:
        environment = {
            "CRASH_ROUND": str(round_.number), "CRASH_LINES": str(self._hook_file), "CRASH_SEED": str(self._seed)
        }  # fmt: skip
        config = write_config(
            self._directory,
            [str(self._hook)],
            servers=self._server.configuration,
            hook={"environment": environment},
            sessions={"concurrency": round_.concurrency, "max_pending": 60_000},
            retry={"first": "10ms", "longest": "40ms", "attempts": 1_000},
            log={"discards": "20ms"},
        )
        self.judge.begin(round_)
        self._server.begin_round()
        with (self._directory / "log").open("wb") as stdout, (self._directory / "err").open("wb") as stderr:
            self._process = subprocess.Popen(
                [*DMNOTID, "run", "--config", config], env=ENVIRONMENT, stdout=stdout, stderr=stderr,
                stdin=subprocess.DEVNULL, cwd="/",
            )  # fmt: skip
        return Lines(self._directory / "log")

    def _work(self, plan: Plan, round_: Round, log: Lines) -> None:
        """Send what the plan has until its moment comes."""
        began, ready, at = time.monotonic(), None, None
        waited = self.judge.pending
        due: list[tuple[float, Key]] = []
        seen: Counter[str] = Counter()
        if plan.moment == "starting":
            at = began + plan.delay
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while at is None or time.monotonic() < at:
                self._hear(round_, log, seen)
                now = time.monotonic()
                if ready is None and seen["daemon ready"]:
                    ready = now
                    due = self._choose(plan, now)
                if ready is not None and not seen["SIGHUP"] and now > ready + plan.reloads_after:
                    self._signal(signal.SIGHUP)
                    seen["SIGHUP"] += 1
                seen["sent"] += self._send_due(sock, round_, due, now)
                seen["idle"] = (
                    plan.after if not due and seen["session done"] == waited + seen["notification accepted"] else 0
                )
                if ready is not None and at is None:
                    at = self._moment(plan, now, ready, seen)
                self._check_alive(plan, began)
                time.sleep(POLL)

    def _send_due(self, sock: socket.socket, round_: Round, due: list[tuple[float, Key]], now: float) -> int:
        sent = 0
        while due and due[-1][0] <= now:
            sock.sendto(self._server.count(due.pop()[1]), address_of(round_))
            sent += 1
        return sent

    def _moment(self, plan: Plan, now: float, ready: float, seen: Counter[str]) -> float | None:
        """Return when the daemon is killed, once that is known."""
        if plan.moment == "at any time":
            return ready + plan.delay
        if plan.moment == "stopping":
            if seen["hook"] < plan.after and now < ready + LATEST:
                return None
            self._signal(signal.SIGTERM)
            return now + plan.delay
        latest = ready + (LATEST_IDLE if plan.moment == "idle" else LATEST)
        return now + plan.delay if seen[plan.moment] >= plan.after or now > latest else None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _check_alive(self, plan: Plan, began: float) -> None:
        assert self._process is not None
        ended = self._process.poll() if plan.moment != "stopping" else None
        errors = (self._directory / "err").read_text() if ended is not None else ""
        self.judge.claim(ended is None, f"the daemon ended by itself with status {ended}: {errors}")
        self.judge.claim(time.monotonic() < began + DEADLINE, "the daemon is never ready")

    def _hear(self, round_: Round, log: Lines, seen: Counter[str]) -> None:
        for line in parse_lines("\n".join(log.new())):
            round_.log.append(line)
            seen[line["event"]] += 1
        for hook_line in self._new_hook_lines():
            self.judge.hear_hook(hook_line)
            seen["hook"] += hook_line.round == round_.number

    def _new_hook_lines(self) -> Iterator[HookLine]:
        for line in self._hook_lines.new():
            what, number, session, attempt, server_id, notification_id = line.split(" ")
            key = Key(server_id, int(notification_id))
            yield HookLine(what, int(number), int(session), int(attempt), key)

    def _choose(self, plan: Plan, now: float) -> list[tuple[float, Key]]:
        """Choose what is sent and when, the latest first: what isn't known, something new, and repeats."""
        chance, sent = plan.chance, list(self._server.sent)
        unknown = self._server.unknown()
        keys = [key for key in unknown if chance.random() < 0.8]
        if self.judge.pending < chance.choice(BACKLOGS):
            new = [self._server.new(chance.choice(self._server.ids)) for _ in range(chance.randint(1, NEW))]
            keys += new + chance.sample(new, len(new) // 8)
        keys += chance.sample(sent, min(chance.randint(0, 4), len(sent)))
        bursts = [now + chance.random() * LATEST * 0.6 for _ in range(chance.randint(1, 8))]
        return sorted(((chance.choice(bursts), key) for key in keys), reverse=True)

    def _count_kill(self, round_: Round) -> None:
        starts, ends = (
            round_.count("session started"),
            round_.count("session done") + round_.count("session try failed"),
        )
        if round_.count("daemon stopping"):
            self._kills["while stopping"] += 1
        elif not round_.count("daemon ready"):
            self._kills["before ready"] += 1
        else:
            self._kills["while a hook ran" if starts > ends else "while idle"] += 1

    def _kill(self, *, sweeps: bool) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if sweeps:
            sweep()
        else:
            reap()

    def _judge(self, round_: Round, log: Lines) -> None:
        """The daemon is dead: look at all that it left."""
        rows = self._read_journal()
        self._hear(round_, log, Counter())
        round_.errors = (self._directory / "err").read_text()
        self.judge.hear_log()
        self.judge.see(rows)

    def _read_journal(self) -> dict[int, Row]:
        """Read a copy: the next daemon must find the files as the killed one left them."""
        copy = self._directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in (self._directory / "state").glob("journal.sqlite3*"):
            shutil.copyfile(file, copy / file.name)
        if not (copy / "journal.sqlite3").exists():
            return {}
        with closing(sqlite3.connect(copy / "journal.sqlite3")) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'session'").fetchone():
                return {}
            found = database.execute("SELECT session, server_id, notification_id, state FROM session")
            return {session: Row(Key(server_id, number), state) for session, server_id, number, state in found}

    def _undisturbed(self, number: int) -> None:
        """Let a daemon run until nothing waits, and see that all is done."""
        round_ = Round(number, 8)
        log = self._start(round_)
        try:
            seen: Counter[str] = Counter()
            began = time.monotonic()
            self._wait(round_, log, seen, lambda: seen["daemon ready"])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                self._send_the_rest(sock, round_, log, seen)
            waited = round_.log[seen_at(round_, "daemon ready")]["pending"]
            self._wait(round_, log, seen, lambda: seen["session done"] >= waited + seen["notification accepted"])
            self._signal(signal.SIGTERM)
            assert self._process is not None
            status = self._process.wait(DEADLINE)
            self.judge.claim(status == 0, f"stopped with status {status}")
            while children():
                self.judge.claim(time.monotonic() < began + 2 * DEADLINE, f"hooks that never end: {children()}")
                reap()
                time.sleep(POLL)
            self._judge(round_, log)
            self.judge.claim(
                seen_at(round_, "daemon stopped") == len(round_.log) - 1, "the log doesn't end with the stop"
            )
            self.judge.counts["seconds of the last round"] = round(time.monotonic() - began)
        finally:
            log.close()
        self.judge.finish()

    def _send_the_rest(self, sock: socket.socket, round_: Round, log: Lines, seen: Counter[str]) -> None:
        """Send what isn't known to be accepted until it is: few at a time, so that each answer is told."""
        deadline = time.monotonic() + DEADLINE
        heard = 0
        while keys := self._server.unknown()[:4]:
            self.judge.claim(time.monotonic() < deadline, "sent again and again, and never accepted", key=keys[0])
            self._server.begin_round()
            for key in keys:
                sock.sendto(self._server.count(key), address_of(round_))
            time.sleep(0.05)
            self._hear(round_, log, seen)
            for line in round_.log[heard:]:
                self._server.learn(line)
            heard = len(round_.log)

    def _wait(self, round_: Round, log: Lines, seen: Counter[str], condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE + self.judge.pending * 0.2
        while not condition():
            self.judge.claim(time.monotonic() < deadline, f"it never came: {dict(seen)}")
            self._hear(round_, log, seen)
            time.sleep(POLL * 10)

    def _end(self) -> None:
        """Leave nothing running."""
        if self._process is not None:
            self._kill(sweeps=True)


def address_of(round_: Round) -> tuple[str, int]:
    host, _, port = round_.log[seen_at(round_, "socket listening")]["listen"].rpartition(":")
    return host, int(port)


def seen_at(round_: Round, event: str) -> int:
    """Find the last line of an event."""
    return max(at for at, line in enumerate(round_.log) if line["event"] == event)


def children() -> list[int]:
    """List the processes that belong to this one, those that have ended and weren't asked for included."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone since
            if int(file.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(file.parent.name))
    return found


def reap() -> None:
    """Ask for those that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def sweep() -> None:
    """Kill whatever the daemon left, and what that leaves."""
    while found := children():
        for pid in found:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="crash"))
    sys.stdout.write(f"seed {options.seed}, files in {directory} (they stay if a claim fails)\n")
    sys.stdout.flush()
    counts = Harness(directory, rounds=options.rounds, seed=options.seed).run()
    sys.stdout.write(json.dumps(counts, indent=1) + "\n")
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
