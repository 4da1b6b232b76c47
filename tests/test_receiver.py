"""The receiver with a real journal: every datagram ends as a durable request, or as a log line and a count."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dmnotid import RELEASED_AT
from dmnotid.discards import FLOOD
from dmnotid.host import log
from dmnotid.intake.drops import Dropped
from dmnotid.journal.queue import Journal
from dmnotid.policy.addresses import Source
from dmnotid.policy.freshness import MARGIN
from dmnotid.policy.reception import Datagram, Handover
from dmnotid.policy.sessions import Closed, SessionRequest
from dmnotid.receiver import Receiver
from dmnotid.sentences import show_time
from tests.journal.journals import no_room
from tests.support import (
    OPEN_ID,
    OTHER_ID,
    OTHER_SECRET,
    SECRET,
    SERVER_ID,
    SERVERS,
    SOURCE,
    LogLines,
    as_root,
    count_calls,
    make_config,
    package,
    push,
)

BIG = [(9, bytes(2_000)), (10, bytes(1_900))]
"""Unknown Options that make a row larger than a page."""


class Desk:
    """A receiver, its journal, and the requests that it handed over."""

    def __init__(self, directory: Path, observe: Callable[[Datagram], None] | None = None, **sections: Any) -> None:  # noqa: ANN401
        config = make_config(directory, **sections)
        self.journal = Journal(config.state, limits=config.sessions, remember=config.remember)
        self.accepted: list[SessionRequest] = []
        self.changes = 0
        self.receiver = Receiver(
            config.rules,
            self.journal,
            interval=config.log.discards,
            on_accepted=self.accepted.extend,
            on_change=self._count_change,
            observe=observe,
        )

    def _count_change(self) -> None:
        self.changes += 1

    def deliver(self, *payloads: bytes, at: float | None = None) -> None:
        """Let a batch arrive, now or when the clock shows another time."""
        now = time.time() if at is None else at
        self.receiver.deliver([Datagram(payload, SOURCE, now) for payload in payloads])

    @property
    def counters(self) -> dict[str, int]:
        return {word: count for word, count in self.receiver.counters.items() if count}

    @property
    def ids(self) -> list[int]:
        """The NOTIFICATION-IDs of the requests that were handed over."""
        return [request.notification.notification_id for request in self.accepted]


@contextmanager
def desk(directory: Path, observe: Callable[[Datagram], None] | None = None, **sections: Any) -> Iterator[Desk]:  # noqa: ANN401
    found = Desk(directory, observe, **sections)
    with found.journal:
        yield found
        found.receiver.close()


# Accepted


async def test_notification_is_accepted_once_and_logged(tmp_path: Path, logged: LogLines) -> None:
    datagram = push(4_661)
    with desk(tmp_path) as there:
        there.deliver(datagram, datagram)
        there.deliver(datagram)
        assert there.counters == {"received": 3, "accepted": 1, "duplicate": 2}
        assert (there.ids, there.changes) == ([4_661], 2)
        assert there.journal.pending() == there.accepted
    (line,) = logged.of("notification accepted")
    assert (line["session"], line["server_id"], line["notification_id"]) == (1, SERVER_ID, 4_661)
    assert (line["source"], line["signed"]) == (str(SOURCE), True)
    assert "skipped_connection_types" not in line


@pytest.mark.usefixtures("logged")
async def test_duplicate_costs_the_same_however_many_servers_and_ids_there_are(tmp_path: Path) -> None:
    """5.1.4: a flood of repeats is no reason to do more on a device that has more servers."""
    others = [
        {"id": f"dm{number}.example", "secret": {"text": f"the secret of {number:06}"}} for number in range(1_000)
    ]
    cost = []
    for few_or_many in (1, 1_000):
        directory = tmp_path / str(few_or_many)
        directory.mkdir()
        servers, sessions = [*SERVERS, *others[:few_or_many]], {"max_pending": 201}
        with desk(directory, servers=servers, sessions=sessions) as there:
            there.deliver(*(push(number, server_id=OPEN_ID) for number in range(few_or_many)))
            datagram = push(7)
            # The first repeats are logged one by one.
            there.deliver(*[datagram] * (FLOOD + 1))
            cost.append(count_calls(lambda datagram=datagram, there=there: there.deliver(datagram)))  # type: ignore[misc]
    assert cost[0] == cost[1]


async def test_accepted_line_has_where_the_server_id_is_from(tmp_path: Path, logged: LogLines) -> None:
    """5.3: given in the notification, or discovered by the secret that fits."""
    with desk(tmp_path) as there:
        there.deliver(push(1), push(2, server_id=None, secret=SECRET))
    lines = [(line["server_id"], line["server_id_from"]) for line in logged.of("notification accepted")]
    assert lines == [(SERVER_ID, "given"), (SERVER_ID, "discovered")]


async def test_unknown_preferred_connection_types_are_logged(tmp_path: Path, logged: LogLines) -> None:
    datagram = push(1, server_id=OPEN_ID)
    with desk(tmp_path) as there:
        there.deliver(datagram[:6] + b"\x21\x00" + datagram[8:] + b"\x10\x03\x09\x01\x07")
        assert there.counters == {"received": 1, "accepted": 1}
    (line,) = logged.of("notification accepted")
    assert (line["skipped_connection_types"], line["preferred"]) == ([9, 7], "mobile")


async def test_batch_is_one_transaction(tmp_path: Path) -> None:
    """A request is handed over once every notification of its batch is durable."""
    handed: list[list[SessionRequest]] = []
    config = make_config(tmp_path)

    def on_accepted(requests: Sequence[SessionRequest]) -> None:
        assert journal.pending() == list(requests)
        handed.append(list(requests))

    with Journal(config.state, limits=config.sessions, remember=config.remember) as journal:
        receiver = Receiver(
            config.rules, journal, interval=3_600, on_accepted=on_accepted, on_change=lambda: None, observe=None
        )
        payloads = [push(1), b"junk", push(1), push(2), push(3)]
        receiver.deliver([Datagram(payload, SOURCE, time.time()) for payload in payloads])
        receiver.close()
    assert [len(requests) for requests in handed] == [3]


async def test_reconfigured_receiver_uses_the_new_rules(tmp_path: Path) -> None:
    with desk(tmp_path, servers=SERVERS[1:]) as there:
        there.deliver(push(1))
        there.receiver.configure(make_config(tmp_path).rules, 3_600)
        there.deliver(push(1))
        assert there.counters == {"received": 2, "unknown-server": 1, "accepted": 1}


async def test_observer_gets_every_datagram_first(tmp_path: Path) -> None:
    seen: list[bytes] = []
    with desk(tmp_path, lambda datagram: seen.append(datagram.payload)) as there:
        there.deliver(push(1), b"junk", b"junk")
        assert seen[1:] == [b"junk", b"junk"]
        assert len(seen) == 3


# Discarded


async def test_every_discard_is_counted_under_its_reason(tmp_path: Path, logged: LogLines) -> None:
    now = time.time()
    signed = push(1)
    cases = {
        "truncated": b"",
        "not-a-push": b"\0\7" + signed[2:],
        "content-type-mismatch": b"\0\6\1\xae" + package(),
        "application-id-missing": b"\0\6\1\xd8" + package(),
        "trailing-octets": signed + b"\0",
        "unknown-server": push(1, server_id="nobody.example", secret=b"x" * 16),
        "digest-mismatch": push(1, secret=b"x" * 16),
        "digest-missing": push(1, server_id=None, secret=b"x" * 16)[:6] + b"\x20\x80\0\1\x10\x0adm.example",
        "secret-not-provisioned": push(1, server_id=OPEN_ID, secret=b"x" * 16),
        "stale": push(1, sent_at=now - 90_000),
        "from-the-future": push(1, sent_at=now + 90_000),
    }
    with desk(tmp_path, freshness={"max_skew": "10m"}) as there:
        there.deliver(*cases.values())
        assert there.counters == {"received": len(cases), **dict.fromkeys(cases, 1)}
        assert there.accepted == []
    assert {line["reason"] for line in logged.of("datagram discarded")} == set(cases)


async def test_last_discards_are_kept_with_their_octets(tmp_path: Path) -> None:
    now, forged = time.time(), push(1, secret=b"x" * 16)
    with desk(tmp_path) as there:
        there.deliver(push(1), b"junk", forged, at=now)
        assert [it.reason for it in there.receiver.discards] == ["not-a-push", "digest-mismatch"]
        assert list(there.receiver.discards)[1][:3] == (now, SOURCE, SERVER_ID)
        assert list(there.receiver.discards)[1].octets == forged


async def test_of_a_flood_every_64th_datagram_is_kept(tmp_path: Path) -> None:
    flood = [push(number, secret=b"x" * 16) for number in range(1, 4 * FLOOD)]
    with desk(tmp_path) as there:
        there.deliver(*flood)
        kept = [FLOOD - 1, FLOOD, 2 * FLOOD, 3 * FLOOD]
        assert [it.octets for it in there.receiver.discards] == [flood[number - 1] for number in kept]
        last = there.receiver.servers[SERVER_ID].last_discard
        assert last is not None
        assert last.octets == flood[3 * FLOOD - 1]
        assert there.receiver.servers[SERVER_ID].discarded == len(flood)


async def test_notifications_are_counted_for_each_server_that_is_configured(tmp_path: Path) -> None:
    """Also for one that was discovered, and never for a claimed id."""
    strangers = [push(number, server_id=f"{number}.example", secret=b"x" * 16) for number in range(100)]
    with desk(tmp_path) as there:
        there.deliver(*strangers, push(1), push(2), push(2), push(3, secret=b"x" * 16), push(4, server_id=OPEN_ID))
        there.deliver(push(5, server_id=None, secret=OTHER_SECRET, sent_at=time.time() - 90_000), b"junk")
        servers = there.receiver.servers
        counts = {server_id: (it.accepted, it.discarded) for server_id, it in servers.items()}
        assert counts == {SERVER_ID: (2, 2), OPEN_ID: (1, 0), OTHER_ID: (0, 1)}
        last = servers[SERVER_ID].last_discard
        assert last is not None
        assert (last.reason, last.server_id) == ("digest-mismatch", SERVER_ID)
        assert servers[OPEN_ID].last_discard is None
        there.receiver.configure(make_config(tmp_path, servers=SERVERS[:1]).rules, 3_600)
        assert there.receiver.servers == {SERVER_ID: servers[SERVER_ID]}


async def test_datagram_beyond_the_limit_is_not_remembered(tmp_path: Path) -> None:
    with desk(tmp_path, sessions={"max_pending": 2}) as there:
        there.deliver(*(push(number) for number in range(4)), push(9, server_id=OTHER_ID))
        assert there.counters == {"received": 5, "accepted": 3, "queue-full": 2}
        assert there.ids == [0, 1, 9]


async def test_source_of_each_datagram_is_judged(tmp_path: Path) -> None:
    servers = [{"id": SERVER_ID, "secret": {"text": SECRET.decode()}, "sources": [SOURCE.address]}]
    with desk(tmp_path, servers=servers) as there:
        octets, now = push(1), time.time()
        sources = [SOURCE, SOURCE, Source("192.0.2.8", 40_000), SOURCE]
        there.receiver.deliver([Datagram(octets, source, now) for source in sources])
        assert there.counters == {"received": 4, "accepted": 1, "duplicate": 2, "source-not-allowed": 1}


async def test_any_octets_end_in_a_count(tmp_path: Path) -> None:
    """5: no content of a datagram raises."""
    good = push(1, unknown=[(9, b"\0\xff" * 9)])
    pieces = [good[:end] for end in range(len(good))]
    flipped = [good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at in range(len(good)) for bit in range(8)]
    with desk(tmp_path, servers=SERVERS[:2]) as there:
        there.deliver(*pieces, *flipped, os.urandom(2_000), bytes(65_507), b"\xff" * 65_507)
        counters = there.counters
    assert counters["received"] == len(pieces) + len(flipped) + 3
    assert counters["accepted"] == 1
    assert counters["duplicate"] == 7, "the TID is in no digest"
    assert not {"bugs", "not accepted"} & set(counters)


async def test_bug_in_one_datagram_does_not_stop_the_next(tmp_path: Path, logged: LogLines) -> None:
    def observe(datagram: Datagram) -> None:
        if datagram.payload.startswith(b"bug"):
            message = "no such luck"
            raise ZeroDivisionError(message)

    with desk(tmp_path, observe) as there:
        there.deliver(push(1), b"bug" + bytes(range(32)), push(2))
        assert there.counters == {"received": 3, "accepted": 2, "bugs": 1}
        assert there.ids == [1, 2]
    (line,) = logged.of("internal error")
    assert (line["level"], line["octets"], line["source"]) == ("error", 35, str(SOURCE))
    assert line["excerpt"] == "62 75 67 " + bytes(range(13)).hex(" ")
    assert "Traceback" in line["exception"]
    assert "ZeroDivisionError: no such luck" in line["exception"]


async def test_drops_of_the_kernel_are_counted_and_logged(tmp_path: Path, logged: LogLines) -> None:
    with desk(tmp_path) as there:
        there.receiver.count_dropped("[::]:2948", Dropped(3, 0))
        there.receiver.count_dropped("[::]:2948", Dropped(0, 4))
        assert there.counters == {"junk": 3, "lost": 4}
        assert there.changes == 2
    assert [(line["event"], line["level"], line["listen"], line["count"]) for line in logged.all()] == [
        ("junk refused", "info", "[::]:2948", 3),
        ("datagrams lost", "warning", "[::]:2948", 4),
    ]


# Doors


class Sender:
    """A process that hands in datagrams, and keeps the answers."""

    def __init__(self) -> None:
        self.answers: list[dict[str, object]] = []

    def datagram(self, payload: bytes, *, bare: bool = False) -> Datagram:
        handover = Handover(bare, pid=77, uid=1_000, answer=self.answers.append)
        return Datagram(payload, Source("sms", None), time.time(), handover)


async def test_door_names_its_source_and_its_process_everywhere(tmp_path: Path, logged: LogLines) -> None:
    """4: in the log, in the journal, and among the kept discards."""
    sender = Sender()
    with desk(tmp_path) as there:
        there.receiver.deliver([sender.datagram(push(1)), sender.datagram(package(2), bare=True), sender.datagram(b"")])
        assert there.counters == {"received": 3, "accepted": 2, "truncated": 1}
        assert [request.source for request in there.journal.pending()] == ["sms", "sms"]
        assert [(str(kept.source), kept.bare) for kept in there.receiver.discards] == [("sms", False)]
    lines = [*logged.of("notification accepted"), *logged.of("datagram discarded")]
    assert [(line["source"], line["pid"], line["uid"]) for line in lines] == [("sms", 77, 1_000)] * 3


async def test_sender_gets_the_verdict_of_each_datagram(tmp_path: Path) -> None:
    sender = Sender()
    with desk(tmp_path) as there:
        there.receiver.deliver([sender.datagram(it) for it in (push(1), push(1), b"x", push(2))])
    assert sorted(sender.answers, key=str) == [
        {"verdict": "accepted", "session": 1},
        {"verdict": "accepted", "session": 2},
        {"verdict": "discarded", "reason": "duplicate"},
        {"verdict": "discarded", "reason": "truncated"},
    ]


async def test_answer_is_sent_after_the_commit(tmp_path: Path) -> None:
    """4: a bearer may delete its message then."""
    sender = Sender()
    answered: list[int] = []
    with desk(tmp_path, lambda _: answered.append(len(sender.answers))) as there:
        there.receiver.deliver([sender.datagram(it) for it in (push(1), push(1), b"x")])
        # Two have been judged before the third is observed, and the transaction is open.
        assert answered == [0, 0, 0]
        assert len(sender.answers) == 3
        assert there.ids == [1]


async def test_sender_gets_no_answer_if_the_journal_fails(tmp_path: Path, logged: LogLines) -> None:
    """A bearer would delete a message on `duplicate`, although the notification that it repeats is lost."""
    sender = Sender()
    with desk(tmp_path) as there:
        with no_room():
            there.receiver.deliver([sender.datagram(push(1)), sender.datagram(push(1))])
        assert there.counters == {"received": 2, "not accepted": 1, "duplicate": 1}
        with page_limit(there.journal):
            there.receiver.deliver([sender.datagram(it) for it in (push(1), push(1), push(2, unknown=BIG))])
        assert there.counters == {"received": 5, "not accepted": 3, "duplicate": 2}
        assert sender.answers == []
        there.receiver.deliver([sender.datagram(push(1))])
        assert sender.answers == [{"verdict": "accepted", "session": 1}]
    line = logged.of("notification not accepted")[0]
    assert (line["source"], line["pid"], line["uid"]) == ("sms", 77, 1_000)


async def test_bug_is_not_answered(tmp_path: Path) -> None:
    def observe(_: Datagram) -> None:
        raise ZeroDivisionError

    sender = Sender()
    with desk(tmp_path, observe) as there:
        there.receiver.deliver([sender.datagram(push(1))])
        assert there.counters == {"received": 1, "bugs": 1}
    assert sender.answers == []


# The clock


async def test_clock_is_reported_when_it_is_no_longer_believed_and_when_it_is_again(
    tmp_path: Path, logged: LogLines
) -> None:
    now = RELEASED_AT + 1_000_000
    with desk(tmp_path) as there:
        there.deliver(b"junk", at=now)
        assert not logged.of("clock believed"), "it was never doubted"
        for _ in range(2):
            there.deliver(b"junk", at=1_000)
        there.deliver(push(1, sent_at=now), at=now)
        there.deliver(b"junk", at=RELEASED_AT + 1)
        there.deliver(b"junk", at=now)
    first, second = (line["problem"] for line in logged.of("clock not believed"))
    assert first.startswith("the clock shows 1970-01-01T00:16:40Z, before the program's release (")
    assert f"more than 600 s before a time that it has shown already ({show_time(now)})" in second
    assert len(logged.of("clock believed")) == 2


async def test_notification_ahead_of_the_clock_is_accepted_with_a_warning_that_names_both_times(
    tmp_path: Path, logged: LogLines
) -> None:
    now = RELEASED_AT + 1_000_000
    with desk(tmp_path) as there:
        there.deliver(push(1, sent_at=now + MARGIN), push(2, sent_at=now + MARGIN + 1), at=now)
        assert there.ids == [1, 2]
    (line,) = logged.of("notification ahead")
    assert (line["level"], line["session"], line["notification_id"]) == ("warning", 2, 2)
    assert f"signed at {show_time(now + MARGIN + 1)}, and the device's clock shows {show_time(now)}" in line["problem"]


async def test_stale_notification_is_refused_with_a_message_that_names_the_clock(
    tmp_path: Path, logged: LogLines
) -> None:
    now = RELEASED_AT + 1_000_000
    with desk(tmp_path) as there:
        there.deliver(push(1, sent_at=now - 86_401), at=now)
    (line,) = logged.of("datagram discarded")
    assert f"the device's clock ({show_time(now)}), which may be wrong" in line["problem"]


async def test_repeat_after_the_file_was_deleted_is_stale(tmp_path: Path) -> None:
    """Its age is checked before the journal finds that the file with its row is gone."""
    with desk(tmp_path) as there:
        there.deliver(push(1))
        there.journal.close([(there.accepted[0], Closed.DONE, "")])
        shutil.rmtree(there.journal.file.parent)
        there.deliver(push(1, sent_at=there.accepted[0].notification.sent_at))
        assert there.counters == {"received": 2, "accepted": 1, "stale": 1}


# A journal that can't be written


async def test_notification_that_cannot_be_written_is_accepted_later(tmp_path: Path, logged: LogLines) -> None:
    """The last datagram of a batch fails: all of them may come again."""
    with desk(tmp_path) as there:
        datagrams = [push(1), push(2, unknown=BIG)]
        with page_limit(there.journal):
            for _ in range(2):
                there.deliver(*datagrams, b"junk")
            assert there.counters == {"received": 6, "not accepted": 4, "not-a-push": 2}
            assert there.journal.pending() == there.accepted == []
            assert there.journal.times.servers == {}
        there.deliver(*datagrams)
        assert there.ids == [1, 2]
    lines = logged.of("notification not accepted")
    assert len(lines) == 4
    assert all(line["level"] == "error" and "disk is full" in line["problem"] for line in lines)


async def test_notification_whose_commit_fails_is_neither_logged_as_accepted_nor_handed_over(
    tmp_path: Path, logged: LogLines
) -> None:
    """The row is written, and then it does not reach the file."""
    with desk(tmp_path) as there:
        with no_room():
            there.deliver(push(1), push(2))
        assert there.counters == {"received": 2, "not accepted": 2}
        assert (there.ids, there.journal.pending()) == ([], [])
        assert logged.of("notification accepted") == []
        there.deliver(push(1))
    assert there.ids == [1]


@pytest.mark.usefixtures("logged")
async def test_notification_is_durable_before_it_is_logged_and_handed_over(tmp_path: Path) -> None:
    """A crash at that moment loses nothing: the files as they are then hold the notification."""
    config, copies = make_config(tmp_path), list[list[int]]()

    def copy(*_: object) -> None:
        directory = tmp_path / f"copy-{len(copies)}"
        shutil.copytree(config.state, directory)
        with Journal(directory, limits=config.sessions, remember=config.remember) as journal:
            copies.append([request.notification.notification_id for request in journal.pending()])

    class Log(LogLines):
        def write(self, text: str) -> int:
            if "notification accepted" in text:
                copy()
            return super().write(text)

    log.configure("debug", "json", Log())
    with Journal(config.state, limits=config.sessions, remember=config.remember) as journal:
        receiver = Receiver(config.rules, journal, interval=3_600, on_accepted=copy, on_change=lambda: None)
        receiver.deliver([Datagram(push(1), SOURCE, time.time())])
        receiver.close()
    assert copies == [[1], [1]]


async def test_datagram_after_a_failed_one_is_accepted(tmp_path: Path) -> None:
    with desk(tmp_path) as there:
        datagrams = [push(1), push(2, unknown=BIG), push(3)]
        with page_limit(there.journal):
            there.deliver(*datagrams)
            assert there.counters == {"received": 3, "not accepted": 2, "accepted": 1}
        there.deliver(*datagrams)
        assert there.counters == {"received": 6, "not accepted": 2, "accepted": 3, "duplicate": 1}
        assert there.ids == [3, 1, 2]


async def test_time_of_a_failed_one_makes_none_stale_after_it(tmp_path: Path) -> None:
    """The times of a server replace a clock that is not believed."""
    day = 86_400
    later, sooner = RELEASED_AT + 4 * day, RELEASED_AT + 2 * day
    with desk(tmp_path) as there, page_limit(there.journal):
        there.deliver(push(1, sent_at=later), push(2, sent_at=later, unknown=BIG), push(3, sent_at=sooner), at=1_000)
        assert there.counters == {"received": 3, "not accepted": 2, "accepted": 1}


@contextmanager
def page_limit(journal: Journal) -> Iterator[None]:
    """Let the journal's file not grow for a while, as a full disk does."""
    database = journal._file.ensure()
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    yield
    database.execute("PRAGMA max_page_count = 1000000")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the state directory, with little room."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "none", state], capture_output=True, check=False, text=True
    )
    if mount.returncode:
        pytest.skip(f"no file system can be mounted: {mount.stderr.strip()}")
    yield state
    subprocess.run(["umount", "--lazy", state], check=True)


@as_root
async def test_notification_is_not_accepted_on_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    with desk(tmp_path) as there:
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while stream.write(bytes(512)):
                pass
        datagrams = [push(number, unknown=BIG) for number in range(1, 4)]
        there.deliver(*datagrams)
        assert there.counters == {"received": 3, "not accepted": 3}
        filler.unlink()
        there.deliver(*datagrams)
        assert there.ids == [1, 2, 3]
