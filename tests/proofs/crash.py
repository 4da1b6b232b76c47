"""Kill the daemon at any moment, again and again: `.venv/bin/python -m tests.proofs.crash --rounds 5000 --seed 7`.

A real daemon with a slow hook gets notifications of several servers, is killed with SIGKILL, and is started again on
the same state directory. The moments are drawn from all of its life: before it is ready, at any time, within a few
milliseconds of a datagram, an accepted notification, the start and end of a session, a line of the hook or a SIGTERM,
and while it is idle. In half of the rounds the hooks that it leaves are killed too, as a service manager does; in the
others they live on. Some daemons get a SIGHUP.

After each kill the log, the hook's lines and a copy of the journal are compared with everything seen before:

* A notification that was logged as accepted is in the journal, and a row stays there: with its session number, its
  notification, and once it is closed, its state.
* A session number belongs to one notification, and a notification has one session number.
* A session is done in the journal only after its hook was done, and no hook starts for it in a later round.
* Every try has a number of its own. Under one daemon no two runs for one server overlap, there are never more than
  `sessions.concurrency`, and none follows the run that was done.
* The daemon queues the open sessions, logs no error, and discards only duplicates.

At the end it runs undisturbed: then every notification that was ever sent is accepted, and its hook was done at least
once. The server sends a notification again, in a later round, until it knows that it was accepted, and some later too.

The plan of a round depends on the seed and its number alone; its course also on the machine's timing.
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
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.processes import DMNOTID, ENVIRONMENT
from tests.support import DEADLINE, WIRELINE, parse_lines, push, write_config, write_script

PR_SET_CHILD_SUBREAPER: Final = 36
POLL: Final = 0.0003
"""Pause between two looks at the log and the hook's lines, in seconds."""
NEW: Final = 20
"""Maximum number of new notifications in a round."""
BACKLOGS: Final = (5, 20, 100)
"""Numbers of open sessions with which a round sends nothing new; one is drawn, so that sessions come to their end."""
LATEST: Final = 0.45
"""Maximum time from ready until the kill, in seconds, if the event of the round does not come."""
LATEST_IDLE: Final = 2.0
"""The same for a round that waits until the daemon is idle."""
IDS_OF_SERVER: Final = 60_000
"""Number of NOTIFICATION-IDs of one server, out of 65536; with more rounds there are more servers."""

# One write for each line, so that the file has the lines in the order in which they were written.
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

ACCEPTED: Final = "notification accepted"
READY: Final = "daemon ready"
STARTED: Final = "session started"
DONE: Final = "session done"
DISCARDED: Final = ("datagram discarded", "datagrams discarded")
MOMENTS: Final = {
    "starting": 4, "at any time": 4, "sent": 3, ACCEPTED: 2, STARTED: 2, DONE: 2, "hook": 3, "idle": 2, "stopping": 1,
}  # fmt: skip
"""When the daemon is killed, and how often."""


class Key(NamedTuple):
    """The identity of a notification."""

    server_id: str
    notification_id: int


class HookLine(NamedTuple):
    """A line of the hook."""

    what: str
    round: int
    session: int
    attempt: int
    key: Key


class Row(NamedTuple):
    """The compared part of a row of the journal."""

    key: Key
    state: str


class Plan(NamedTuple):
    """A round: the daemon is killed `delay` seconds after the event `moment` came `after` times."""

    number: int
    moment: str
    after: int
    delay: float
    concurrency: int
    sweeps: bool
    reloads_after: float
    chance: random.Random


def make_plan(seed: int, number: int) -> Plan:
    """Draw the plan of a round."""
    chance = random.Random(f"{seed} {number}")  # noqa: S311 - chooses moments, guards nothing
    moment = chance.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    delay = {"starting": 0.4, "at any time": 0.4, "idle": 0.05, "stopping": 0.02}.get(moment, 0.003) * chance.random()
    after, concurrency = chance.choice([1, 1, 2, 4, 8]), chance.choice([1, 1, 2, 4, 8])
    reloads_after = chance.random() * LATEST * 4  # most rounds are over by then
    return Plan(number, moment, after, delay, concurrency, chance.random() < 0.5, reloads_after, chance)


@dataclass
class Round:
    """The daemon between a start and its end: its log, and how often each event came."""

    number: int
    concurrency: int
    log: list[dict[str, Any]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def address(self) -> tuple[str, int]:
        listen: str = next(line["listen"] for line in self.log if line["event"] == "socket listening")
        host, _, port = listen.rpartition(":")
        return host, int(port)


class Lines:
    """Whole lines of a file to which others append."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("rb")
        self._rest = b""

    def new(self) -> list[str]:
        """Return the lines since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [line.decode() for line in lines]


class Server:
    """The DM servers: they send each notification, always with the same octets, until they know it was accepted."""

    def __init__(self, count: int) -> None:
        self.ids = [f"{'open' if number % 3 == 2 else 'dm'}{number}.example" for number in range(count)]
        self.sent: dict[Key, bytes] = {}
        self.unknown: dict[Key, None] = {}  # sent, and not known to be accepted; a dict keeps the order
        self.datagrams = 0
        self._next = dict.fromkeys(self.ids, 0)
        self._copies: Counter[Key] = Counter()  # sent in this round

    @property
    def configuration(self) -> list[dict[str, Any]]:
        return [
            {"id": name, "require_digest": False} if name.startswith("open")
            else {"id": name, "secret": {"text": f"the secret of {name}"}}
            for name in self.ids
        ]  # fmt: skip

    def new(self, server_id: str) -> Key:
        """Make a notification."""
        self._next[server_id] += 1
        key = Key(server_id, self._next[server_id])
        secret = None if server_id.startswith("open") else f"the secret of {server_id}".encode()
        self.sent[key] = push(key.notification_id, server_id=server_id, secret=secret, preferred=WIRELINE)
        self.unknown[key] = None
        return key

    def begin_round(self) -> None:
        self._copies.clear()

    def send(self, sock: socket.socket, key: Key, address: tuple[str, int]) -> None:
        self.datagrams += 1
        self._copies[key] += 1
        sock.sendto(self.sent[key], address)

    def learn(self, line: dict[str, Any]) -> None:
        """Learn from a line of the log which notification was accepted."""
        if line["event"] not in (ACCEPTED, DISCARDED[0]):
            return
        key = Key(line["server_id"], line["notification_id"])
        # The second copy of a datagram is a duplicate even before the first one is committed.
        if line["event"] == ACCEPTED or (line["reason"] == "duplicate" and self._copies[key] == 1):
            self.unknown.pop(key, None)


class Judge:
    """Compares each observation with all earlier ones."""

    def __init__(self, server: Server) -> None:
        self.rows: dict[int, Row] = {}
        self.counts: Counter[str] = Counter()
        self.round = Round(0, 0)
        self._server = server
        self._closed_in: dict[int, int] = {}  # the round in which a session was first seen closed
        self._lines: dict[int, list[HookLine]] = defaultdict(list)  # by session
        self._running: dict[int, dict[str, HookLine]] = defaultdict(dict)  # by round and server
        self._heard: set[int] = set()  # sessions with a line since the last look at the journal
        self._concurrency: dict[int, int] = {}  # by round

    def begin(self, round_: Round) -> None:
        self.round = round_
        self._concurrency[round_.number] = round_.concurrency

    @property
    def pending(self) -> int:
        return sum(row.state == "pending" for row in self.rows.values())

    def claim(self, holds: object, what: str, session: int = 0, key: Key | None = None) -> None:
        """Raise AssertionError with the evidence unless it holds."""
        if holds:
            return
        row = self.rows.get(session)
        log = [line for line in self.round.log if line.get("session") == session] or self.round.log[-10:]
        evidence = [
            f"round {self.round.number}: {what}",
            f"  notification: {key or (row and row.key)}, session {session or None}",
            f"  journal: {row}, closed since round {self._closed_in.get(session)}",
            *(f"  hook: {line}" for line in self._lines.get(session, [])),
            *(f"  log: {line}" for line in log),
        ]
        raise AssertionError("\n".join(evidence))

    def hear_hook(self, line: HookLine) -> None:
        """Judge a line of the hook, in the order of the file."""
        session, running, before = line.session, self._running[line.round], list(self._lines[line.session])
        self._lines[session].append(line)
        self._heard.add(session)
        if line.what != "start":
            ran = running.pop(line.key.server_id, None)
            self.claim(ran and ran[1:] == line[1:], f"the end of a run other than the last one, {ran}", session)
            return
        self.claim(self._closed_in.get(session, line.round) >= line.round, f"run after it was closed: {line}", session)
        done = any(other.what == "done" and other.round == line.round for other in before)
        self.claim(not done, f"run again by the daemon under which it was done: {line}", session)
        tried = any(other.what == "start" and other.attempt == line.attempt for other in before)
        self.claim(not tried, f"two tries of one number: {line}", session)
        other = running.get(line.key.server_id)
        self.claim(other is None, f"two runs for one server at once: {other}, {line}", session)
        running[line.key.server_id] = line
        most = self._concurrency[line.round]
        self.claim(len(running) <= most, f"{len(running)} runs at once, at most {most}: {running.values()}", session)
        self.counts["hook runs"] += 1
        interrupted = bool(before) and before[-1].round < line.round and before[-1].what != "failed"
        self.counts["runs again after a crash"] += interrupted

    def hear_log(self, errors: str) -> None:
        """Judge what the daemon wrote in this round."""
        self.claim(not errors, f"on standard error: {errors}")
        for line in self.round.log:
            self.claim(line["level"] in ("info", "warning"), f"an error in the log: {line}", line.get("session", 0))
            if line["event"] == READY:
                self.claim(line["pending"] == self.pending, f"{line['pending']} queued of {self.pending}")
            elif line["event"] in DISCARDED:
                self.claim(line["reason"] == "duplicate", f"discarded: {line}")
                self.counts["duplicates refused"] += line.get("count", 1)
            self._server.learn(line)
        self.counts["accepted"] += self.round.seen[ACCEPTED]
        self.counts["reloads"] += self.round.seen["configuration reloaded"]

    def see(self, rows: dict[int, Row]) -> None:
        """Compare the journal with its former rows, the log and the hook."""
        for session, row in self.rows.items():
            found = rows.get(session, Row(row.key, "missing"))
            self.claim(found.key == row.key, f"now belongs to another notification: {found}", session)
            self.claim(row.state in ("pending", found.state), f"closed, and now {found.state}", session)
            self.claim(found.state != "missing", "gone from the journal", session)
        keys = {row.key for row in rows.values()}
        self.claim(len(keys) == len(rows), "a notification is in the journal twice")
        self.claim(keys <= self._server.sent.keys(), f"never sent: {keys - self._server.sent.keys()}")
        logged = {line["session"] for line in self.round.log if line["event"] == ACCEPTED}
        self.counts["accepted, and killed before it was logged"] += len(rows.keys() - self.rows.keys() - logged)
        self.rows = rows
        for session, row in rows.items():
            if row.state != "pending" and session not in self._closed_in:
                self.claim(row.state == "done", "closed in a state other than done", session)
                self.claim(self._was_done(session), "closed as done, but its hook was not done", session)
                self._closed_in[session] = self.round.number
        for line in self.round.log:
            if line["event"] in (ACCEPTED, DONE):
                key, session = Key(line["server_id"], line["notification_id"]), line["session"]
                self.claim(session in rows, f"{line['event']}, but not in the journal", session, key)
                self.claim(rows[session].key == key, "logged with the session of another notification", session, key)
                self.claim(line["event"] != DONE or rows[session].state == "done", "logged as done, but open", session)
        for session in self._heard:
            last = self._lines[session][-1]
            self.claim(session in rows, "its hook ran, but it is not in the journal", session, last.key)
            self.claim(rows[session].key == last.key, f"the hook ran for another notification: {last}", session)
            lost = last.what == "done" and last.round == self.round.number and rows[session].state == "pending"
            self.counts["done, and killed before it was closed"] += lost
        self._heard.clear()

    def _was_done(self, session: int) -> bool:
        return any(line.what == "done" for line in self._lines[session])

    def finish(self) -> None:
        """Judge the whole after the last daemon stopped in order."""
        accepted = {row.key: session for session, row in self.rows.items()}
        for key in self._server.sent:
            self.claim(key in accepted, "sent, but never accepted", key=key)
            session = accepted[key]
            self.claim(self.rows[session].state == "done", "still open", session)
            self.claim(self._was_done(session), "accepted, but never done", session)


class Harness:
    """The daemon's state directory, its servers, and one round after the other."""

    def __init__(self, directory: Path, *, rounds: int, seed: int) -> None:
        self._directory, self._rounds, self._seed = directory, rounds, seed
        self._server = Server(max(5, rounds * NEW // IDS_OF_SERVER + 1))
        self._judge = Judge(self._server)
        self._hook = write_script(directory / "hook", HOOK)
        self._hook_file = directory / "hook-lines"
        self._hook_file.touch()
        self._hook_lines = Lines(self._hook_file)
        self._log = Lines(self._hook_file)  # of the daemon; replaced at each start
        self._kills: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def run(self) -> dict[str, Any]:
        """Run all rounds and the undisturbed one; return the counts."""
        # Processes that the daemon leaves become children of this one, which can then find and reap all of them.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        began = time.monotonic()
        try:
            for number in range(1, self._rounds + 1):
                self._disturbed(make_plan(self._seed, number))
            self._undisturbed(self._rounds + 1)
        finally:
            if self._process is not None:
                self._kill(sweeps=True)
            self._socket.close()
        return {
            "seed": self._seed,
            "rounds": self._rounds,
            "kills": dict(self._kills),
            "notifications": len(self._server.sent),
            "datagrams sent": self._server.datagrams,
            **self._judge.counts,
            "seconds": round(time.monotonic() - began, 1),
        }

    def _disturbed(self, plan: Plan) -> None:
        round_ = Round(plan.number, plan.concurrency)
        self._start(round_)
        self._work(plan, round_)
        seen, ends = round_.seen, round_.seen[DONE] + round_.seen["session try failed"]
        if seen["daemon stopping"]:
            self._kills["while stopping"] += 1
        elif not seen[READY]:
            self._kills["before ready"] += 1
        else:
            self._kills["while a hook ran" if seen[STARTED] > ends else "while idle"] += 1
        self._kill(sweeps=plan.sweeps)
        self._look(round_)

    def _start(self, round_: Round) -> None:
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
        self._judge.begin(round_)
        self._server.begin_round()
        with (self._directory / "log").open("wb") as stdout, (self._directory / "err").open("wb") as stderr:
            self._process = subprocess.Popen(
                [*DMNOTID, "run", "--config", config], env=ENVIRONMENT, stdout=stdout, stderr=stderr,
                stdin=subprocess.DEVNULL, cwd="/",
            )  # fmt: skip
        self._log = Lines(self._directory / "log")

    def _work(self, plan: Plan, round_: Round) -> None:
        """Send what the plan asks for until its moment comes."""
        began, seen, waited = time.monotonic(), round_.seen, self._judge.pending
        ready: float | None = None
        at = began + plan.delay if plan.moment == "starting" else None
        due: list[tuple[float, Key]] = []
        while at is None or time.monotonic() < at:
            self._hear(round_)
            now = time.monotonic()
            if ready is None and seen[READY]:
                ready, due = now, self._choose(plan, now)
            if ready is not None and not seen["SIGHUP"] and now > ready + plan.reloads_after:
                self._signal(signal.SIGHUP)
                seen["SIGHUP"] += 1
            while due and due[-1][0] <= now:
                self._server.send(self._socket, due.pop()[1], round_.address)
                seen["sent"] += 1
            seen["idle"] = plan.after if not due and seen[DONE] == waited + seen[ACCEPTED] else 0
            if ready is not None and at is None:
                at = self._moment(plan, now, ready, seen)
            ended = self._process and plan.moment != "stopping" and self._process.poll() is not None
            self._judge.claim(not ended, f"the daemon ended: {(self._directory / 'err').read_text()}")
            self._judge.claim(now < began + DEADLINE, "the daemon is never ready")
            time.sleep(POLL)

    def _moment(self, plan: Plan, now: float, ready: float, seen: Counter[str]) -> float | None:
        """Return the time of the kill, once it is known."""
        if plan.moment == "at any time":
            return ready + plan.delay
        latest = ready + (LATEST_IDLE if plan.moment == "idle" else LATEST)
        event = "hook" if plan.moment == "stopping" else plan.moment
        if seen[event] < plan.after and now < latest:
            return None
        if plan.moment == "stopping":
            self._signal(signal.SIGTERM)
        return now + plan.delay

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _hear(self, round_: Round) -> None:
        """Read new lines of the log and of the hook."""
        for line in parse_lines("\n".join(self._log.new())):
            round_.log.append(line)
            round_.seen[line["event"]] += 1
        for text in self._hook_lines.new():
            what, number, session, attempt, server_id, notification_id = text.split(" ")
            key = Key(server_id, int(notification_id))
            self._judge.hear_hook(HookLine(what, int(number), int(session), int(attempt), key))
            round_.seen["hook"] += int(number) == round_.number

    def _choose(self, plan: Plan, now: float) -> list[tuple[float, Key]]:
        """Choose what is sent and when, the latest first: unknown ones, new ones, and repeats."""
        chance, sent = plan.chance, list(self._server.sent)
        keys = [key for key in self._server.unknown if chance.random() < 0.8]
        if self._judge.pending < chance.choice(BACKLOGS):
            new = [self._server.new(chance.choice(self._server.ids)) for _ in range(chance.randint(1, NEW))]
            keys += new + chance.sample(new, len(new) // 8)
        keys += chance.sample(sent, min(chance.randint(0, 4), len(sent)))
        bursts = [now + chance.random() * LATEST * 0.6 for _ in range(chance.randint(1, 8))]
        return sorted(((chance.choice(bursts), key) for key in keys), reverse=True)

    def _kill(self, *, sweeps: bool) -> None:
        """Kill the daemon, and the processes that it leaves if `sweeps`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        while (found := children()) and sweeps:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _look(self, round_: Round) -> None:
        """Judge what a dead daemon left."""
        rows = self._read_journal()
        self._hear(round_)
        self._judge.hear_log((self._directory / "err").read_text())
        self._judge.see(rows)

    def _read_journal(self) -> dict[int, Row]:
        """Read a copy: the next daemon must find the files as the killed one left them."""
        copy = self._directory / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        for file in (self._directory / "state").glob("journal.sqlite3*"):
            shutil.copyfile(file, copy / file.name)
        with closing(sqlite3.connect(copy / "journal.sqlite3")) as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'session'").fetchone():
                return {}
            found = database.execute("SELECT session, server_id, notification_id, state FROM session")
            return {session: Row(Key(server_id, number), state) for session, server_id, number, state in found}

    def _undisturbed(self, number: int) -> None:
        """Let a daemon run until no session is open, then check that all are done."""
        round_ = Round(number, 8)
        self._start(round_)
        self._wait(round_, lambda: round_.seen[READY])
        waited, heard = self._judge.pending, 0
        deadline = time.monotonic() + DEADLINE
        # Few at a time: then no discard is only counted, and each answer is a line of the log.
        while keys := list(self._server.unknown)[:4]:
            self._judge.claim(time.monotonic() < deadline, "sent again and again, but never accepted", key=keys[0])
            self._server.begin_round()
            for key in keys:
                self._server.send(self._socket, key, round_.address)
            time.sleep(0.05)
            self._hear(round_)
            for line in round_.log[heard:]:
                self._server.learn(line)
            heard = len(round_.log)
        self._wait(round_, lambda: round_.seen[DONE] >= waited + round_.seen[ACCEPTED])
        self._signal(signal.SIGTERM)
        assert self._process is not None
        status = self._process.wait(DEADLINE)
        self._judge.claim(status == 0, f"stopped with status {status}")
        self._wait(round_, lambda: not children())
        self._look(round_)
        self._judge.claim(round_.log[-1]["event"] == "daemon stopped", "the log does not end with the stop")
        self._judge.finish()

    def _wait(self, round_: Round, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE + self._judge.pending * 0.2
        while not condition():
            self._judge.claim(time.monotonic() < deadline, f"timed out: {dict(round_.seen)}, {children()}")
            self._hear(round_)
            time.sleep(POLL * 10)


def children() -> list[int]:
    """List the children of this process, after those that have ended are removed."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            if int(file.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(file.parent.name))
    return found


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
