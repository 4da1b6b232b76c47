"""Wrong clocks, lying servers, a replaying adversary and lost files, against a real journal: a seeded random walk.

    python -m tests.proofs.clocks --seeds 2000 --steps 400

Two devices live in one world, with the same clock at each moment. One receives everything; the other is spared the
servers that lie. After each step:

* No signed notification is accepted twice, whatever the clock, the server, the configuration and the file were. The
  exception is the row of a notification ahead of the clock that was lost with the file.
* While the clock is right, every notification of an honest server is accepted: at once or, unless the clock was ahead
  and a server lied at the same moment, as late as `max_age` allows. So is one of a server whose clock is right again.
* Neither the clock nor a server alone moves the floor, and nothing that is older than the program is accepted.
* Unless the clock is ever ahead, both devices agree on every notification of an honest server that is truly fresh.
"""

import argparse
import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dmnotid import RELEASED_AT
from dmnotid.errors import Discard
from dmnotid.journal.file import DAMAGED_NAME, FILE_NAME
from dmnotid.journal.queue import Journal
from dmnotid.policy.addresses import Source
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import MARGIN, NEVER_SIGNED, Freshness, judge_clock
from dmnotid.policy.reception import Rules, receive_package
from dmnotid.policy.servers import Server, Servers
from dmnotid.policy.sessions import Closed, Limits
from dmnotid.wire.notification import encode_notification

MINUTE, HOUR, DAY, YEAR = 60, 3_600, 86_400, 365 * 86_400
LAST: Final = 2**32 - 1
SOURCE: Final = Source("192.0.2.7", 40_000)
SECRET: Final = b"one secret for every server here"
HONEST: Final = ("north.example", "south.example")
MIXED: Final = "mixed.example"
"""An honest server that may leave its notifications unsigned, so that anyone may send in its name."""
LIAR: Final = "liar.example"
WRONG: Final = "wrong.example"
"""A server whose clock is wrong from time to time."""
SPARED: Final = frozenset({LIAR, WRONG})
IDS: Final = 10
REUSE: Final = 11 * DAY
"""Time after which an honest server uses an id again; longer than any `remember` here."""
SETTINGS: Final = ((HOUR, DAY), (DAY, 3 * DAY), (2 * DAY, 2 * DAY), (7 * DAY, 10 * DAY))
"""`max_age` and `remember`."""
JITTER: Final = 200
"""Error of a clock that counts as right, in seconds."""
SLACK: Final = 2 * JITTER


@dataclass(frozen=True)
class Package:
    """A package as it was sent, `at` a true time."""

    octets: bytes
    server_id: str
    notification_id: int
    at: int
    sent_at: int | None


class Device:
    """A journal, and the rules by which packages come into it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.max_age, self.remember = SETTINGS[1]
        self.max_skew: float | None = None
        self.removed: frozenset[str] = frozenset()
        # Accepted signed packages, each with the latest time that it may have and still be known after a loss.
        self.admitted: dict[bytes, float] = {}
        # The latest time that the clock and the signature of an accepted package have both reached.
        self.reached = 0.0
        self.journal = self._open()

    def _open(self) -> Journal:
        return Journal(self.directory, limits=Limits(max_pending=10_000), remember=self.remember)

    def configure(self, max_age: int, remember: int, max_skew: float | None, removed: frozenset[str]) -> None:
        self.max_age, self.remember, self.max_skew, self.removed = max_age, remember, max_skew, removed
        self.journal.configure(limits=Limits(max_pending=10_000), remember=remember, longest_pause=1.0)

    def deliver(self, package: Package, now: float, *, keep: bool = True) -> str | None:
        """Take a package through every check; return the reason of its refusal. Without `keep` it is rolled back."""
        names = {*HONEST, MIXED, LIAR, WRONG} - self.removed
        rules = Rules(
            Servers(Server(name, SECRET, require_digest=name != MIXED) for name in names),
            Freshness(self.max_age, self.max_skew),
        )
        clock = judge_clock(now, self.journal.times.floor, self.journal.times.servers)
        try:
            self.journal.admit(receive_package(package.octets, SOURCE, rules, clock))
        except Discard as discard:
            self.journal.commit()
            return discard.reason
        if not keep:
            self.journal.rollback()
            return "rolled back"
        self.journal.commit()
        if clock.believed:
            assert all(times.newest <= now + MARGIN for times in self.journal.times.servers.values()), (
                self.journal.times.servers
            )
            self.admitted = {octets: min(most, now + MARGIN) for octets, most in self.admitted.items()}
        if package.sent_at is not None:
            assert package.octets not in self.admitted, f"accepted twice: {package}"
            self.reached = max(self.reached, min(package.sent_at, now))
            agrees = now - self.max_age <= package.sent_at <= now + MARGIN
            assert (self.journal.times.floor or 0) <= self.reached, (
                f"a floor of {self.journal.times.floor} at {now}: {package}"
            )
            assert agrees or package.sent_at >= RELEASED_AT - self.max_age, f"older than the program: {package}"
            self.admitted[package.octets] = now + MARGIN if clock.believed else LAST
        return None

    def is_open(self, package: Package) -> bool:
        identity = package.server_id, package.notification_id
        return identity in {
            (request.server_id, request.notification.notification_id) for request in self.journal.pending()
        }

    def close_sessions(self) -> None:
        self.journal.close([(request, Closed.DONE, "") for request in self.journal.pending()])

    def restart(self) -> None:
        self.stop()
        self.journal = self._open()

    def stop(self) -> None:
        """Close the journal. A file that was deleted since the last write is noticed before."""
        with self.journal:
            self.journal.probe()

    def rescue(self, chance: random.Random | None) -> None:
        """Start with a file that was set aside; with `chance`, some of its closed rows are damaged."""
        self.stop()
        if chance is not None:
            with closing(sqlite3.connect(self.directory / FILE_NAME, isolation_level=None)) as database:
                database.create_function("drawn", 0, lambda: chance.random() < 0.5)
                lost = database.execute(
                    "UPDATE session SET seal = seal + 1 WHERE closed_at IS NOT NULL AND drawn()"
                ).rowcount
            if lost:
                self._forgive()
        (self.directory / FILE_NAME).rename(self.directory / DAMAGED_NAME)
        self.journal = self._open()
        for kept in self.directory.glob("journal-corrupt-*"):
            kept.unlink()

    def delete(self) -> None:
        """Delete the file under the open journal: closed rows are lost."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._forgive()

    def _forgive(self) -> None:
        known = self.admitted.items()
        self.admitted = {octets: most for octets, most in known if sent_time(octets) <= most}


def sent_time(octets: bytes) -> int:
    """Return the signed time: the digest is the last Option."""
    return int.from_bytes(octets[-36:-32], "big")


@dataclass
class World:
    """What happens to both devices. `true` is the true time."""

    chance: random.Random
    devices: tuple[Device, Device]
    # Whether the clock is ahead at times, and whether servers lie then.
    may_be_ahead: bool
    conspiracy: bool
    true: int = RELEASED_AT + 200 * DAY
    # The clock: its name, and its distance from the true time.
    kind: str = "right"
    offset: float = 0.0
    booted: int = 0
    next_id: Counter[str] = field(default_factory=Counter)
    used: dict[tuple[str, int], int] = field(default_factory=dict)
    history: list[Package] = field(default_factory=list)
    withheld: list[Package] = field(default_factory=list)
    wrong_by: int = 0
    # The worst that happened to the devices so far: the latest times that may be pruned, and that the floor may have;
    # when rows were lost.
    gone: float = 0
    floor_ahead: float = 0
    lost_at: int = 0
    # Rows were lost while the newest time of the server with a wrong clock was ahead: it is forgotten up to then.
    wrong_lost: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def now(self) -> float:
        if self.kind == "1970":
            return 100.0 + self.true - self.booted
        if self.kind == "right":
            return self.true + self.offset
        return max(self.true + self.offset, 0.0)

    # --- The clock and the time

    def pass_time(self) -> None:
        self.true += 1 + int(
            self.chance.choice((1, MINUTE, 20 * MINUTE, HOUR, 6 * HOUR, DAY, 4 * DAY)) * self.chance.random()
        )
        if self.kind == "right":
            self.offset = self.chance.uniform(-JITTER, JITTER)

    def set_clock(self) -> None:
        kinds = ["right", "right", "1970", "behind", *["ahead"] * self.may_be_ahead]
        self.kind, self.offset = self.chance.choice(kinds), 0.0
        if self.kind == "1970":
            self.booted = self.true
        if self.kind == "behind":
            self.offset = -self.chance.choice((HOUR, DAY, 3 * DAY, 30 * DAY, 150 * DAY, YEAR, 8 * YEAR))
        if self.kind == "ahead":
            self.offset = self.chance.choice((HOUR, DAY, 45 * HOUR, 4 * DAY, 30 * DAY, YEAR))

    def err_for_a_moment(self) -> None:
        """Set the clock wrong, let notifications arrive that prune the journal, and set it back."""
        before = self.kind, self.offset
        self.set_clock()
        self.both(lambda device: device.journal.rollback())
        for arrive in self.chance.sample((self.forge, self.send_lie, self.send_honest), 2):
            arrive()
        self.kind, self.offset = before

    # --- Servers

    def send_honest(self) -> None:
        server_id = self.chance.choice((*HONEST, MIXED))
        number = self.next_id[server_id] % IDS
        if self.true - self.used.get((server_id, number), -REUSE) <= REUSE:
            return
        self.next_id[server_id] += 1
        self.used[server_id, number] = self.true
        package = self.sign(server_id, number, self.true)
        # Two notifications of a server never have the same time.
        self.true += 1
        if self.chance.random() < 0.3:
            self.withheld.append(package)
        else:
            self.bring(package, prompt=True)

    def send_lie(self) -> None:
        if self.kind == "ahead" and not self.conspiracy:
            return
        lies = [LAST, self.true, self.true + 599, self.true + 4 * DAY, self.now + 599, self.now + 30 * DAY]
        lies += [self.true - DAY, RELEASED_AT - 6 * YEAR, self.true + YEAR, self.now, 0]
        sent_at = min(max(int(self.chance.choice(lies)), 0), LAST)
        self.bring(self.sign(LIAR, self.chance.randrange(IDS), sent_at))

    def send_wrong(self) -> None:
        if self.kind == "ahead" and not self.conspiracy:
            return
        if self.chance.random() < 0.3:
            self.wrong_by = self.chance.choice((0, 0, -YEAR, 30 * DAY, 20 * YEAR, 40 * YEAR))
        self.next_id[WRONG] += 1
        package = self.sign(WRONG, self.next_id[WRONG] % 0x1_0000, min(self.true + self.wrong_by, LAST))
        self.true += 1
        device = self.devices[0]
        known = not device.removed and not self.wrong_lost and self.floor_ahead < self.true + SLACK
        # What it signed ahead may be forgotten after all, and then it is stale up to that time.
        known |= not device.removed and device.journal.times.servers.get(WRONG, NEVER_SIGNED).forgotten < self.true - 1
        reason = self.bring(package)
        if self.kind == "right" and self.wrong_by == 0 and known:
            self.counts["right again"] += 1
            assert reason is None, f"{reason} though clock and server are right again: {package}"

    def forge(self) -> None:
        """Send in the name of the server that need not sign."""
        number = self.chance.randrange(IDS)
        octets = encode_notification(number, server_id=MIXED)
        self.bring(Package(octets, MIXED, number, self.true, None))

    def sign(self, server_id: str, number: int, sent_at: int) -> Package:
        octets = sign(encode_notification(number, server_id=server_id, sent_at=sent_at), SECRET)
        self.history.append(Package(octets, server_id, number, self.true, sent_at))
        return self.history[-1]

    # --- The adversary

    def replay(self) -> None:
        if self.history:
            self.bring(self.chance.choice(self.history if self.chance.random() < 0.5 else self.history[-20:]))

    def release(self) -> None:
        if self.withheld:
            self.bring(self.withheld.pop(self.chance.randrange(len(self.withheld))))

    # --- Devices

    def both(self, action: Callable[[Device], None]) -> None:
        for device in self.devices:
            action(device)

    def lose_rows(self) -> None:
        self.lost_at = self.true
        newest = self.devices[0].journal.times.servers.get(WRONG, NEVER_SIGNED).newest
        self.wrong_lost |= newest > self.true
        if self.chance.random() < 0.5:
            self.both(Device.delete)
        else:
            self.both(lambda device: device.rescue(self.chance))

    def configure(self) -> None:
        max_age, remember = self.chance.choice(SETTINGS)
        max_skew = self.chance.choice((None, None, MARGIN, DAY))
        removed = self.chance.choice((frozenset(), frozenset(), frozenset({LIAR})))
        self.both(lambda device: device.configure(max_age, remember, max_skew, removed))

    def fail_to_write(self) -> None:
        """Roll back what a device has admitted; pruning is also due again then."""
        package, now = self.chance.choice(self.history or [self.sign(LIAR, 0, self.true)]), self.now
        for device in self.devices[: 1 if package.server_id in SPARED else 2]:
            device.deliver(package, now, keep=False)
            device.journal.rollback()

    # --- What must hold

    def bring(self, package: Package, *, prompt: bool = False) -> str | None:
        """Deliver a package to the devices, and check their verdicts. Return that of the first one."""
        known = [package.octets in device.admitted for device in self.devices]
        blocked = [device.is_open(package) for device in self.devices]
        believed = [judge_clock(self.now, device.journal.times.floor).believed for device in self.devices]
        spared = package.server_id in SPARED
        reasons = [device.deliver(package, self.now) for device in self.devices[: 1 if spared else 2]]
        self.counts[f"{'honest' if not spared else 'other'} {reasons[0] or 'accepted'}"] += 1
        if package.sent_at is not None and reasons[0] is None:
            self.floor_ahead = max(self.floor_ahead, min(package.sent_at, self.now))
        # An admission of any server prunes the rows of all.
        self.gone = max(self.gone, self.true - self.devices[0].remember)
        if spared or package.sent_at is None:
            return reasons[0]
        fresh = package.at >= max(self.gone, self.true - self.devices[0].max_age) + SLACK
        whole = package.at > self.lost_at
        for reason, was_known, was_blocked in zip(reasons, known, blocked, strict=True):
            due = prompt or (fresh and whole and self.floor_ahead < package.at + SLACK)
            if self.kind == "right" and due and not was_known and not was_blocked:
                self.counts["honest and due"] += 1
                assert reason is None, f"{reason} though the clock is right: {package}"
        same_skew = believed[0] == believed[1] or self.devices[0].max_skew is None
        comparable = package.server_id in HONEST and fresh and whole and same_skew and known[0] == known[1]
        if not self.may_be_ahead and comparable:
            self.counts["compared"] += 1
            agreed = (reasons[0] is None) == (reasons[1] is None)
            assert agreed, f"{reasons[0]}, without the liars {reasons[1]}: {package}"
        return reasons[0]

    def step(self) -> None:
        events: list[tuple[int, Callable[[], None]]] = [
            (20, self.pass_time),
            (6, self.set_clock),
            (4, self.err_for_a_moment),
            (25, self.send_honest),
            (8, self.send_lie),
            (8, self.send_wrong),
            (8, self.forge),
            (16, self.replay),
            (9, self.release),
            (12, lambda: self.both(Device.close_sessions)),
            (3, lambda: self.both(Device.restart)),
            (10, self.fail_to_write),
            (1, lambda: self.both(lambda device: device.rescue(None))),
            (1, self.lose_rows),
            (2, self.configure),
        ]
        weights, actions = zip(*events, strict=True)
        self.chance.choices(actions, weights)[0]()


def walk(seed: int, steps: int) -> Counter[str]:
    """Let the world of one seed go on for so many steps. Raises AssertionError if something does not hold."""
    # Memory serves: what a disk must hold is the power cut's proof.
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as place:
        devices = Device(Path(place) / "all"), Device(Path(place) / "spared")
        world = World(random.Random(seed), devices, may_be_ahead=bool(seed % 2), conspiracy=seed % 4 == 1)  # noqa: S311
        world.set_clock()
        try:
            for _ in range(steps):
                world.step()
        finally:
            for device in devices:
                device.stop()
    return world.counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            counts += walk(seed, arguments.steps)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {arguments.steps} steps: {error}") from error
    print(dict(counts))  # noqa: T201


if __name__ == "__main__":
    main()
