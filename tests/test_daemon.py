"""The whole daemon inside this process: real sockets, journal, links and hooks."""

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from dmnotid.config.values import Config, ListenAddress
from dmnotid.daemon import Daemon
from dmnotid.errors import EndpointError, JournalError
from dmnotid.intake.drops import read_lost
from dmnotid.journal import file as journalfile
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.reception import Datagram
from dmnotid.policy.sessions import SessionRequest
from tests.support import (
    IS_ROOT,
    NOWHERE,
    OPEN_ID,
    OTHER_ID,
    SECRET,
    SERVER_ID,
    SERVERS,
    SOURCE,
    WIRELINE,
    LogLines,
    Recorder,
    descriptors,
    eventually,
    make_config,
    package,
    push,
)

BIG = [(9, bytes(4_000)), (10, bytes(4_000))]
"""Unknown Options that make a row larger than a page."""


@asynccontextmanager
async def at_work(config: Config, observe: Callable[[Datagram], None] | None = None) -> AsyncIterator[Daemon]:
    """Run a daemon; it is stopped in order at the end."""
    daemon = Daemon(config, observe=observe)
    task = asyncio.create_task(daemon.run())
    ready = asyncio.create_task(daemon.ready.wait())
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        ready.cancel()
        await task
    try:
        yield daemon
    finally:
        daemon.stop()
        await task


def send(daemon: Daemon, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, next(iter(daemon.endpoints)).socket.getsockname())


def batch(*payloads: bytes) -> list[Datagram]:
    return [Datagram(payload, SOURCE, time.time()) for payload in payloads]


def counted(daemon: Daemon) -> dict[str, int]:
    return {word: count for word, count in daemon.counters.items() if count}


async def test_a_notification_is_accepted_and_run_once(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        datagram = push(4_661, preferred=WIRELINE)
        send(daemon, datagram, datagram)
        await eventually(lambda: recorder.names and not daemon.pending)
        send(daemon, datagram)
        await eventually(lambda: daemon.counters["received"] == 3)
        assert counted(daemon) == {"received": 3, "accepted": 1, "duplicate": 2}
    assert recorder.names == [(1, 1)]
    assert recorder.runs[0]["environment"]["DMNOTID_INTERFACE"] == "lo"
    assert logged.of("daemon stopped")[0]["sessions"] == {"tries": 1, "done": 1}
    (accepted,) = logged.of("notification accepted")
    assert (accepted["session"], accepted["server_id"], accepted["notification_id"]) == (1, SERVER_ID, 4_661)
    assert accepted["source"].startswith("127.0.0.1:")
    assert accepted["signed"] is True
    assert [line["reason"] for line in logged.of("datagram discarded")] == ["duplicate"] * 2


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
    async with at_work(make_config(tmp_path)) as daemon:
        daemon.deliver(batch(*cases.values()))
        assert counted(daemon) == {"received": len(cases), **dict.fromkeys(cases, 1)}
        assert {line["reason"] for line in logged.of("datagram discarded")} == set(cases)
    (stopped,) = logged.of("daemon stopped")
    assert stopped["received"] == len(cases)
    assert stopped["stale"] == 1


async def test_what_is_taken_at_the_stop_starts_in_the_next_process(tmp_path: Path, logged: LogLines) -> None:
    """Else a stop would wait for a hook that it begins itself."""
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        await asyncio.sleep(0.1)
        send(daemon, push(1, preferred=WIRELINE))
        daemon.stop()
    assert counted(daemon) == {"received": 1, "accepted": 1}
    assert logged.of("session starts") == []
    assert recorder.names == []
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        await eventually(lambda: recorder.names and not daemon.pending)
        (told,) = logged.of("session starts")
    assert told["attempt"] == 1


async def test_what_a_reload_takes_out_of_a_socket_starts_by_the_new_rules_or_not_at_all(
    tmp_path: Path, logged: LogLines
) -> None:
    """Its server goes with the socket: the session is held back."""
    recorder = Recorder(tmp_path)
    config = make_config(tmp_path, recorder.command)
    async with at_work(config) as daemon:
        await asyncio.sleep(0.1)
        send(daemon, push(1, preferred=WIRELINE))
        others = make_config(tmp_path, recorder.command, servers=[{"id": OPEN_ID, "require_digest": False}])
        daemon._take_over(others._replace(listen=(ListenAddress("127.0.0.2", 0),)))
        assert counted(daemon) == {"received": 1, "accepted": 1}
        await asyncio.sleep(0.1)
        assert daemon.pending == 1
        assert [line["server_id"] for line in logged.of("sessions held back")] == [SERVER_ID]
    assert recorder.names == []


async def test_a_full_queue_is_not_remembered(tmp_path: Path) -> None:
    async with at_work(make_config(tmp_path, sessions={"max_pending": 2})) as daemon:
        waiting = [push(number, preferred=NOWHERE) for number in range(4)]
        daemon.deliver(batch(*waiting, push(9, server_id=OTHER_ID, preferred=NOWHERE)))
        assert counted(daemon) == {"received": 5, "accepted": 3, "queue-full": 2}
        assert daemon.pending == 3


async def test_a_bug_in_one_datagram_does_not_end_the_service_of_the_next(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)

    def observe(datagram: Datagram) -> None:
        if datagram.payload.startswith(b"bug"):
            message = "no such luck"
            raise ZeroDivisionError(message)

    async with at_work(make_config(tmp_path, recorder.command), observe) as daemon:
        send(daemon, push(1), b"bug" + bytes(range(32)), push(2))
        await eventually(lambda: daemon.counters["received"] == 3 and not daemon.pending)
        assert counted(daemon) == {"received": 3, "accepted": 2, "bugs": 1}
        daemon.deliver(batch(b"bug", push(3)))
        assert counted(daemon) == {"received": 5, "accepted": 3, "bugs": 2}
        await eventually(lambda: not daemon.pending)
    assert len(recorder.names) == 3
    line = logged.of("internal error")[0]
    assert line["level"] == "error"
    assert "Traceback" in line["exception"]
    assert "ZeroDivisionError: no such luck" in line["exception"]
    assert line["octets"] == 35
    assert line["excerpt"] == "62 75 67 " + bytes(range(13)).hex(" ")
    assert line["source"].startswith("127.0.0.1:")


async def test_what_shares_a_batch_with_one_that_fails_may_come_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the failure: it need not be one that has ended the transaction."""
    async with at_work(make_config(tmp_path)) as daemon:
        admit = daemon._journal.admit
        calls: list[VerifiedNotification] = []

        def fail_once(verified: VerifiedNotification) -> SessionRequest:
            calls.append(verified)
            if len(calls) == 2:
                message = "not this one"
                raise JournalError(message)
            return admit(verified)

        monkeypatch.setattr(daemon._journal, "admit", fail_once)
        datagrams = [push(number, preferred=NOWHERE) for number in (1, 2)]
        daemon.deliver(batch(*datagrams))
        assert (daemon.counters["not accepted"], daemon.counters["accepted"], daemon.pending) == (2, 0, 0)
        daemon.deliver(batch(*datagrams))
        assert (daemon.counters["duplicate"], daemon.counters["accepted"], daemon.pending) == (0, 2, 2)


async def test_one_batch_is_one_transaction(tmp_path: Path) -> None:
    commits: list[str] = []
    async with at_work(make_config(tmp_path)) as daemon:
        daemon._journal._file.ensure().set_trace_callback(commits.append)
        one, two, three = (push(number, server_id=OTHER_ID, preferred=NOWHERE) for number in (1, 2, 3))
        daemon.deliver(batch(one, b"junk", one, two, three))
        assert commits.count("COMMIT") == 1
        daemon.deliver(batch(one, b"junk"))
        assert commits.count("COMMIT") == 1
        assert counted(daemon)["accepted"] == 3


# A journal that can't be written


def page_limit(daemon: Daemon) -> Callable[[], object]:
    """Let the journal grow no more; call what comes back, and it may again."""
    database = daemon._journal._file.ensure()
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    return lambda: database.execute("PRAGMA max_page_count = 1000000")


async def test_what_cannot_be_written_is_not_accepted_and_a_repeat_is_taken(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        room_again = page_limit(daemon)
        datagrams = [push(number, unknown=BIG) for number in (1, 2)]
        daemon.deliver(batch(*datagrams))
        daemon.deliver(batch(*datagrams, b"junk"))
        assert counted(daemon) == {"received": 5, "not accepted": 4, "not-a-push": 1}
        assert daemon._journal.pending() == []
        assert daemon._journal.newest_authenticated is None
        room_again()
        daemon.deliver(batch(*datagrams))
        assert daemon.counters["accepted"] == 2
        await eventually(lambda: not daemon.pending)
    assert len(recorder.names) == 2
    lines = logged.of("notification not accepted")
    assert len(lines) == 4
    assert all(line["level"] == "error" and "disk is full" in line["problem"] for line in lines)


async def test_what_shares_a_transaction_with_one_that_fails_may_come_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        room_again = page_limit(daemon)
        small, large, behind = push(1), push(2, unknown=BIG), push(3)
        daemon.deliver(batch(small, large, behind))
        assert counted(daemon) == {"received": 3, "not accepted": 2, "accepted": 1}
        room_again()
        daemon.deliver(batch(small, large, behind))
        assert counted(daemon) == {"received": 6, "not accepted": 2, "accepted": 3, "duplicate": 1}
        await eventually(lambda: not daemon.pending)
    assert sorted(run["environment"]["DMNOTID_NOTIFICATION_ID"] for run in recorder.runs) == ["1", "2", "3"]


async def test_what_a_failed_rescue_takes_along_is_not_said_to_be_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is damaged in the middle of a batch, while there is no memory to read it."""

    def no_memory(*_: object) -> None:
        raise MemoryError

    async with at_work(make_config(tmp_path)) as daemon:
        daemon.deliver(batch(push(1, preferred=NOWHERE)))
        with monkeypatch.context() as patch:
            patch.setattr(journalfile, "rescue", no_memory)
            damage = "CREATE TRIGGER damaged BEFORE INSERT ON session WHEN new.notification_id = 4"
            daemon._journal._file.ensure().execute(f"{damage} BEGIN SELECT no_such(); END")
            daemon.deliver(batch(*(push(number, preferred=NOWHERE) for number in (2, 3, 4))))
        assert counted(daemon) == {"received": 4, "accepted": 1, "not accepted": 3}
        daemon.deliver(batch(push(2, preferred=NOWHERE)))
        assert daemon.counters["accepted"] == 2
        assert sorted(it.notification.notification_id for it in daemon._journal.pending()) == [1, 2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for the state directory, with little room."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "none", state], capture_output=True, check=False, text=True
    )
    if mount.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mount.stderr.strip()}")
    yield state
    subprocess.run(["umount", "-l", state], check=True)


def fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as stream:
        for size in (4_096, 1):
            with suppress(OSError):
                while True:
                    stream.write(b"x" * size)


needs_mount = pytest.mark.skipif(not IS_ROOT, reason="needs root, to mount a small file system")


@pytest.mark.root
@needs_mount
async def test_a_disk_that_is_full_for_real(tmp_path: Path, small_disk: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path)
    filler = small_disk / "filler"
    async with at_work(make_config(tmp_path, recorder.command)) as daemon:
        fill(filler)
        datagrams = [push(number, unknown=BIG) for number in range(1, 4)]
        send(daemon, *datagrams)
        await eventually(lambda: daemon.counters["received"] == 3)
        assert counted(daemon) == {"received": 3, "not accepted": 3}
        assert recorder.names == []
        assert len(logged.of("notification not accepted")) == 3
        filler.unlink()
        send(daemon, *datagrams)
        await eventually(lambda: daemon.counters["accepted"] == 3)
        await eventually(lambda: not daemon.pending)
    assert len(recorder.names) == 3


@pytest.mark.root
@needs_mount
@pytest.mark.parametrize("begun", [False, True])
def test_a_disk_that_is_read_only(tmp_path: Path, small_disk: Path, begun: bool) -> None:  # noqa: FBT001 - two cases
    async def start_and_stop() -> None:
        async with at_work(make_config(tmp_path)):
            pass

    if begun:
        asyncio.run(start_and_stop())
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(JournalError, match="can't open the journal"):
        asyncio.run(start_and_stop())


# Starting and stopping


async def test_start_and_stop_leave_nothing_open(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path, ["/bin/true"])
    async with at_work(config):
        pass
    before = descriptors()
    async with at_work(config) as daemon:
        assert daemon.pending == 0
        send(daemon, push(1))
        await eventually(lambda: daemon.counters["accepted"] == 1)
        await eventually(lambda: not daemon.pending)
    assert descriptors() == before
    assert [line["event"] for line in logged.all()][-2:] == ["daemon stopping", "daemon stopped"]
    ready = logged.of("daemon ready")[0]
    assert ready["loop"] in {"asyncio", "uvloop"}
    assert ready["servers"] == 3
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it(tmp_path: Path, number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    daemon = Daemon(make_config(tmp_path))
    task = asyncio.create_task(daemon.run())
    await daemon.ready.wait()
    os.kill(os.getpid(), number)
    async with asyncio.timeout(30):
        await task
    signal.signal(number, handler)


async def test_what_waits_in_the_sockets_at_stop_is_taken(tmp_path: Path) -> None:
    config = make_config(tmp_path, ["/bin/true"], listen=["127.0.0.1:0", "127.0.0.2:0"], sessions={"max_pending": 500})
    async with at_work(config) as daemon:
        for offset, endpoint in enumerate(daemon.endpoints):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                for number in range(100):
                    sock.sendto(push(1_000 * offset + number, preferred=NOWHERE), endpoint.socket.getsockname())
        assert daemon.counters["received"] == 0, "the loop had no turn yet"
    assert counted(daemon) == {"received": 200, "accepted": 200}
    async with at_work(config) as again:
        assert again.pending == 200


async def test_a_second_stop_does_not_wait_for_hooks(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(tmp_path, "import time; time.sleep(1000)")
    async with at_work(make_config(tmp_path, recorder.command, hook={"stop_grace": "1h"})) as daemon:
        send(daemon, push(1))
        await eventually(lambda: recorder.names)
        daemon.stop()
        await eventually(lambda: logged.of("daemon stopping"))
        await asyncio.sleep(0.05)
        assert logged.of("daemon stopped") == []
        assert list(daemon.endpoints) == [], "nothing more is taken meanwhile"
    assert logged.of("session interrupted")


async def test_a_second_daemon_on_the_same_state_is_told(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    async with at_work(config):
        before = descriptors()
        with pytest.raises(JournalError, match="another dmnotid"):
            await Daemon(config).run()
        # SQLite keeps the number of the second file until the first is closed, for the locks hang on the process.
        assert len(descriptors() - before) <= 1


async def test_a_port_in_use_ends_the_start_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{sock.getsockname()[1]}"
        config = make_config(tmp_path, listen=["127.0.0.2:0", listen])
        before = descriptors()
        with pytest.raises(EndpointError, match=f"listen: {listen}: Address already in use"):
            await Daemon(config).run()
        assert descriptors() == before


async def test_the_state_directory_is_made_for_nobody_else(tmp_path: Path) -> None:
    async with at_work(make_config(tmp_path, state=str(tmp_path / "deep" / "state"))):
        assert (tmp_path / "deep" / "state").stat().st_mode & 0o7777 == 0o700


async def test_a_state_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"state: .*/file/state: Not a directory; a directory that .* is expected"):
        await Daemon(make_config(tmp_path, state=str(tmp_path / "file" / "state"))).run()


async def test_octets_of_preferred_connections_that_mean_nothing_are_logged(tmp_path: Path, logged: LogLines) -> None:
    datagram = push(1, server_id=OPEN_ID)
    plain = datagram[:6] + b"\x21\x00" + datagram[8:] + b"\x10\x03\x09\x01\x07"
    async with at_work(make_config(tmp_path)) as daemon:
        daemon.deliver(batch(plain))
        assert counted(daemon) == {"received": 1, "accepted": 1}
    (line,) = logged.of("notification accepted")
    assert line["skipped_connection_types"] == [9, 7]
    assert line["preferred"] == "mobile"


async def test_nothing_that_a_datagram_holds_raises(tmp_path: Path) -> None:
    """5: any octets end in a count."""
    good = push(1, unknown=[(9, b"\0\xff" * 9)])
    pieces = [good[:end] for end in range(len(good))]
    flipped = [good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at in range(len(good)) for bit in range(8)]
    async with at_work(make_config(tmp_path, servers=SERVERS[:2])) as daemon:
        daemon.deliver(batch(*pieces, *flipped, os.urandom(2_000), bytes(65_507), b"\xff" * 65_507))
        assert daemon.counters["bugs"] == 0
        assert daemon.counters["received"] == len(pieces) + len(flipped) + 3
        assert daemon.counters["not accepted"] == 0
        assert daemon.counters["accepted"] == 1
        assert daemon.counters["duplicate"] == 7, "the TID is in no digest"


async def test_junk_is_refused_in_the_kernel_and_counted(tmp_path: Path, logged: LogLines) -> None:
    before = read_lost()
    async with at_work(make_config(tmp_path, log={"junk": False})) as daemon:
        send(daemon, *[b"junk"] * 20, push())
        await eventually(lambda: daemon.counters["accepted"])
    counts = counted(daemon)
    assert counts.pop("junk", 0) + counts.pop("lost", 0) == 20
    assert counts == {"received": 1, "accepted": 1}
    assert not logged.of("datagram discarded")
    if read_lost() == before:  # nobody else on this machine lost anything meanwhile
        assert [line["count"] for line in logged.of("junk refused")] == [20]
        assert not logged.of("datagrams lost")


async def test_what_finds_a_full_buffer_is_told_from_junk(tmp_path: Path, logged: LogLines) -> None:
    config = make_config(tmp_path, log={"junk": False}, receive_buffer=4_096)
    before = read_lost()
    async with at_work(config) as daemon:
        # The loop has no turn meanwhile, so nothing is read.
        send(daemon, *[push(), b"junk"] * 100)
        await eventually(lambda: daemon.counters["accepted"])
    counts = counted(daemon)
    assert counts["received"] + counts["lost"] + counts["junk"] == 200
    assert counts["lost"] > 50
    assert sum(line["count"] for line in logged.of("datagrams lost")) == counts["lost"]
    if before is not None and read_lost() == before + counts["lost"]:
        assert counts["junk"] == 100


async def test_what_comes_again_at_once_ends_alike_until_something_is_admitted(
    tmp_path: Path, logged: LogLines
) -> None:
    """Under a clock that is not believed a newer notification makes the older one stale: no longer a duplicate."""
    async with at_work(make_config(tmp_path)) as daemon:
        old, new = push(1, preferred=NOWHERE, sent_at=1_900_000_000), push(2, preferred=NOWHERE, sent_at=1_900_090_000)
        at = 1_000.0
        forged = push(3, secret=b"not the secret")
        came = [Datagram(octets, SOURCE, at) for octets in (old, old, forged, old, forged, new, old, old, forged)]
        daemon.deliver(came)
    assert counted(daemon) == {"received": 9, "accepted": 2, "duplicate": 2, "digest-mismatch": 3, "stale": 2}
    told = [line["reason"] for line in logged.of("datagram discarded")]
    assert sorted(told) == ["digest-mismatch"] * 3 + ["duplicate"] * 2 + ["stale"] * 2


async def test_an_observer_sees_also_what_comes_again_at_once(tmp_path: Path) -> None:
    seen: list[Datagram] = []
    config = make_config(tmp_path)
    daemon = Daemon(config, observe=seen.append)
    task = asyncio.create_task(daemon.run())
    await daemon.ready.wait()
    came = [Datagram(push(1, secret=b"not the secret"), SOURCE, 1_000.0)] * 3
    daemon.deliver(came)
    daemon.stop()
    await task
    assert seen == came
    assert daemon.counters["digest-mismatch"] == 3


async def test_repeats_are_counted_also_where_the_journal_fails_or_a_bug_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with at_work(make_config(tmp_path)) as daemon:
        forged, now = push(3, secret=b"not the secret"), time.time()
        take = daemon._admit

        def fail(datagram: Datagram) -> SessionRequest:
            if datagram.payload in (b"journal", b"bug"):
                raise JournalError if datagram.payload == b"journal" else ZeroDivisionError
            return take(datagram)

        monkeypatch.setattr(daemon, "_admit", fail)
        came = (forged, forged, b"journal", forged, forged, b"bug", forged, forged, forged)
        daemon.deliver([Datagram(octets, SOURCE, now) for octets in came])
        assert counted(daemon) == {"received": 9, "digest-mismatch": 7, "bugs": 1, "not accepted": 1}
        # Stale is the older one only as long as the newer one is there.
        old, new = push(1, preferred=NOWHERE, sent_at=1_900_000_000), push(2, preferred=NOWHERE, sent_at=1_900_090_000)
        daemon.deliver([Datagram(octets, SOURCE, 1_000.0) for octets in (new, old, b"journal", old)])
    assert (daemon.counters["stale"], daemon.counters["accepted"]) == (1, 1)


async def test_the_same_octets_of_others_are_looked_at_anew(tmp_path: Path) -> None:
    servers = [{"id": SERVER_ID, "secret": {"text": SECRET.decode()}, "sources": [SOURCE.address]}]
    async with at_work(make_config(tmp_path, servers=servers)) as daemon:
        octets, now = push(1, preferred=NOWHERE), time.time()
        sources = [SOURCE, SOURCE, Source("192.0.2.8", 40_000), SOURCE]
        daemon.deliver([Datagram(octets, source, now) for source in sources])
    assert counted(daemon) == {"received": 4, "accepted": 1, "duplicate": 2, "source-not-allowed": 1}
