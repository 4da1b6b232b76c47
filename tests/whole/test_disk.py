"""The disk of the state directory under a real process: full, read-only, replaced, gone; and no descriptor left."""

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.mounts import Mounts, make_ext4, repaired, skip_without_ext4, skip_without_tmpfs
from tests.processes import JOURNAL, Run, Service, count, journal_states
from tests.support import NOWHERE, OTHER_ID, WIRELINE, Recorder, further, push, wait_until, write_config

GATED = "import time\nwhile not os.path.exists(records + '/../open'): time.sleep(0.01)"
"""A hook that ends once the gate is open, and then at once."""

LATER = 60
"""How much later (seconds) a server signs after the daemon has lost what it remembered: what was signed is stale."""
BIG = [(9, bytes(2_000)), (10, bytes(1_900))]
"""Unknown Options that make a row larger than a page, so that the room left in one is not enough."""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory, to mount something on."""
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


class Case:
    """A daemon with one session done (1), one that runs until `open` (2), and ways to check that it receives."""

    def __init__(self, directory: Path, start: Run, prefix: list[str], **sections: Any) -> None:  # noqa: ANN401 - support's
        self.directory = directory
        self.recorder = Recorder(directory)
        self.stale = 0
        config = write_config(directory, self.recorder.command, **sections)
        self.service = start(config, prefix)
        self.service.send(push(1, preferred=WIRELINE))
        self.service.wait("session done")
        self.recorder.behave(GATED)
        self.service.send(push(2, preferred=WIRELINE))
        wait_until(lambda: len(self.recorder.names) == 2)

    def open(self) -> None:
        (self.directory / "open").touch()

    def receives(self) -> None:
        """Check that the daemon receives, judges and logs, whatever the state of its journal."""
        self.stale += 1
        self.service.send(push(1_000 + self.stale, sent_at=time.time() - 10 * 86_400))
        wait_until(lambda: self.service.reasons().count("stale") == self.stale)
        assert self.service.process.poll() is None

    def refuses(self, *datagrams: bytes) -> None:
        """Check that none of these is accepted, and that each is logged."""
        before = len(self.service.of("notification not accepted"))
        self.service.send(*datagrams)
        self.service.wait("notification not accepted", before + len(datagrams))
        self.receives()

    def ran(self) -> list[int]:
        """Return the NOTIFICATION-IDs of all runs, in order."""
        return self.recorder.notification_ids


def fill(filler: Path) -> None:
    """Use up all the room, to the last octet."""
    with filler.open("wb", buffering=0) as stream:
        for size in (4_096, 1):
            with suppress(OSError):
                while True:
                    stream.write(b"x" * size)


def stops_clean(service: Service) -> None:
    assert service.stop() == 0
    assert "bugs" not in service.lines()[-1]
    assert service.errors == ""


@pytest.mark.root
def test_full_disk_accepts_nothing_until_there_is_room(tmp_path: Path, state: Path, start: Run) -> None:
    """With room again all goes on by itself, nothing is lost and nothing runs twice."""
    skip_without_tmpfs(state)
    with Mounts() as mounts:
        mounts.mount_tmpfs(state, "512k")
        case = Case(tmp_path, start, mounts.prefix)
        service, inside = case.service, mounts.path(state)
        new = [push(number, preferred=WIRELINE, unknown=BIG) for number in (3, 4, 5)]

        fill(inside / "filler")
        case.refuses(*new)
        assert all(
            line["level"] == "error" and str(state) in line["problem"]
            for line in service.of("notification not accepted")
        )
        case.open()
        assert service.wait("session end not written")["level"] == "error"
        case.receives()
        service.send(push(2, preferred=WIRELINE))
        wait_until(lambda: "duplicate" in service.reasons())
        assert journal_states(inside)[2] == "pending"

        # By itself: nothing is sent meanwhile.
        (inside / "filler").unlink()
        wait_until(lambda: journal_states(inside).get(2) == "done")
        assert len(service.of("notification accepted")) == 2
        service.send(*new)
        service.wait("session done", 5)
        assert case.ran() == [1, 2, 3, 4, 5]
        stops_clean(service)
        assert service.lines()[-1]["accepted"] == 5
        assert set(journal_states(inside).values()) == {"done"}


@pytest.mark.root
@pytest.mark.parametrize("brings", ["the repaired journal", "an empty file system"])
def test_read_only_file_system_that_is_replaced_loses_nothing(
    tmp_path: Path, state: Path, start: Run, brings: str
) -> None:
    """The kernel's own emergency. It can't be made writable again while in use: a repaired one is mounted over it."""
    image = tmp_path / "image"
    skip_without_ext4(state, image)
    with Mounts() as mounts:
        mounts.mount_ext4(make_ext4(image), state)
        case = Case(tmp_path, start, mounts.prefix)
        service, inside = case.service, mounts.path(state)
        new = [push(number, preferred=WIRELINE, server_id=OTHER_ID) for number in (3, 4)]

        mounts.break_ext4(state)
        case.refuses(*new)
        case.open()
        assert str(state) in service.wait("session end not written")["problem"]
        case.receives()

        copy = tmp_path / "copy"
        mounts.mount_ext4(repaired(image, copy) if brings == "the repaired journal" else make_ext4(copy), state)
        service.send(*new)
        service.wait("session done", 4)
        assert set(case.ran()) == {1, 2, 3, 4}
        assert len(case.ran()) == 4
        is_repaired = brings == "the repaired journal"
        event = "journal set aside" if is_repaired else "journal recreated"
        assert service.of(event)[0]["level"] == "error"
        stops_clean(service)
        known = (1, 2, 3, 4) if is_repaired else (2, 3, 4)
        assert journal_states(inside) == dict.fromkeys(known, "done")

        again = start(tmp_path / "dmnotid.yaml", mounts.prefix)
        assert again.wait("daemon ready")["pending"] == 0
        stops_clean(again)


@pytest.mark.root
@pytest.mark.parametrize("begun", [False, True], ids=["without a journal", "with one"])
def test_start_on_a_read_only_disk_fails_with_the_reason(tmp_path: Path, state: Path, start: Run, begun: bool) -> None:  # noqa: FBT001
    skip_without_tmpfs(state)
    config = write_config(tmp_path)
    with Mounts() as mounts:
        mounts.mount_tmpfs(state, "2m")
        if begun:
            service = start(config, mounts.prefix)
            service.wait("daemon ready")
            stops_clean(service)
        mounts.run("mount", "-o", "remount,ro", state)
        problem = start(config, mounts.prefix).problem()
        assert problem.startswith(f"{state / JOURNAL}: cannot open the journal")
        assert "Read-only file system" in problem
        mounts.run("mount", "-o", "remount,rw", state)
        service = start(config, mounts.prefix)
        service.send(push(1, preferred=WIRELINE))
        service.wait("session done")
        stops_clean(service)


@contextmanager
def failing_sync(service: Service) -> Iterator[None]:
    """Let each fsync and fdatasync of a daemon fail with EIO, as a disk does that can't write a block."""
    pid, calls = service.process.pid, "fsync,fdatasync"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}", "-e", f"inject={calls}:error=EIO"]
    with subprocess.Popen([*command, "-p", str(pid)], stderr=subprocess.PIPE, text=True) as strace:
        try:
            while tracer(pid) != strace.pid:
                if strace.poll() is not None and strace.stderr is not None:
                    pytest.skip(f"strace can't trace here: {strace.stderr.read().strip()}")
                time.sleep(0.01)
            yield
        finally:
            strace.terminate()


def tracer(pid: int) -> int:
    """Return the process that traces another one, 0 if there is none."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("then", ["unsynchronised octets are lost", *further("the disk recovers")])
def test_session_is_not_logged_as_done_while_its_end_cannot_be_synchronised(
    tmp_path: Path, start: Run, then: str
) -> None:
    """The next process runs a session again whose end is lost: at least once."""
    recovers = then == "the disk recovers"
    case = Case(tmp_path, start, [])
    service, state, synchronised = case.service, tmp_path / "state", tmp_path / "synchronised"
    shutil.copytree(state, synchronised)
    with failing_sync(service):
        case.open()
        line = service.wait("session end not written")
        assert (line["session"], line["level"]) == (2, "error")
        assert line["consequence"].startswith("session ended, not written: ")
        assert "disk I/O error" in line["problem"]
        case.receives()
        if not recovers:
            assert service.stop() == 0
        assert [line["session"] for line in service.of("session done")] == [1]
    if recovers:
        stops_clean(service)
        assert [line["session"] for line in service.of("session done")] == [1, 2]
    else:
        shutil.rmtree(state)
        synchronised.rename(state)
    again = start(tmp_path / "dmnotid.yaml")
    again.send(push(3, preferred=WIRELINE))
    again.wait("session done", 1 if recovers else 2)
    assert [(line["session"], line["attempts"]) for line in again.of("session done")][:-1] == [(2, 2)] * (not recovers)
    assert case.recorder.names == [(1, 1), (2, 1), *[(2, 2)] * (not recovers), (3, 1)]
    stops_clean(again)


def test_deleted_state_directory_is_made_anew_with_the_open_sessions(tmp_path: Path, start: Run) -> None:
    """No open session is lost or run twice; closed ones are forgotten."""
    before = time.time()
    case = Case(tmp_path, start, [])
    service, state = case.service, tmp_path / "state"
    service.send(push(3, preferred=WIRELINE))
    service.wait("notification accepted", 3)

    shutil.rmtree(state)
    fourth = push(4, preferred=WIRELINE, sent_at=time.time() + LATER)
    service.send(fourth)
    service.wait("notification accepted", 4)
    assert state.stat().st_mode & 0o7777 == 0o700
    assert service.wait("journal recreated")["level"] == "error"
    # The one that runs, and those behind it.
    repeats = [*(push(number, preferred=WIRELINE, sent_at=before) for number in (2, 3)), fourth]
    service.send(*repeats)
    wait_until(lambda: sorted(service.reasons()) == ["duplicate", "stale", "stale"])
    wait_until(lambda: set(journal_states(state)) == {2, 3, 4})

    case.open()
    service.wait("session done", 4)
    wait_until(lambda: set(journal_states(state).values()) == {"done"})
    assert case.ran() == [1, 2, 3, 4]
    stops_clean(service)
    again = start(tmp_path / "dmnotid.yaml")
    assert again.wait("daemon ready")["pending"] == 0
    again.send(*repeats)
    wait_until(lambda: sorted(again.reasons()) == ["duplicate", "stale", "stale"])
    stops_clean(again)
    assert case.ran() == [1, 2, 3, 4]


def test_end_of_a_session_makes_a_deleted_state_directory_anew(tmp_path: Path, start: Run) -> None:
    """No new notification is needed for it."""
    case = Case(tmp_path, start, [])
    shutil.rmtree(tmp_path / "state")
    case.open()
    case.service.wait("session done", 2)
    wait_until(lambda: journal_states(tmp_path / "state").get(2) == "done")
    case.service.send(push(3, preferred=WIRELINE, sent_at=time.time() + LATER))
    case.service.wait("session done", 3)
    stops_clean(case.service)
    assert case.ran() == [1, 2, 3]


def test_sessions_of_a_directory_put_in_its_place_are_taken_up(tmp_path: Path, start: Run) -> None:
    """As when a file system is mounted late, over a directory in which the daemon has begun: both journals count."""
    state, config = tmp_path / "state", write_config(tmp_path)
    first = start(config)
    first.send(push(50, preferred=NOWHERE), push(51, preferred=WIRELINE))
    first.wait("session done")
    stops_clean(first)
    state.rename(tmp_path / "away")

    service = start(config)
    service.send(push(1, preferred=NOWHERE), push(2, preferred=NOWHERE))
    service.wait("notification accepted", 2)
    state.rename(tmp_path / "beneath")
    (tmp_path / "away").rename(state)
    service.send(push(3, preferred=NOWHERE, sent_at=time.time() + LATER))
    service.wait("notification accepted", 3)
    stops_clean(service)
    assert journal_states(state) == {1: "pending", 2: "pending", 3: "pending", 50: "pending", 51: "done"}


@pytest.mark.parametrize("spare", [0, *further(1, 4)])
def test_session_without_a_free_descriptor_starts_later(tmp_path: Path, start: Run, spare: int) -> None:
    """No hook can be started: reception goes on, and later all are run."""
    case = Case(tmp_path, start, [], retry={"attempts": 1_000}, sessions={"max_pending": 100})
    service, pid = case.service, case.service.process.pid
    case.open()
    service.wait("session done", 2)
    ordinary = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (count(pid, "fd") + spare, ordinary[1]))

    numbers = range(3, 7)
    service.send(*(push(number, preferred=WIRELINE) for number in numbers))
    service.wait("notification accepted", 6)
    # Without a single one, the links cannot be read before the start.
    event = "hook not started" if spare else "links unreadable"
    assert "Too many open files" in service.wait(event)["problem"]
    case.receives()
    assert len(case.ran()) == 2

    resource.prlimit(pid, resource.RLIMIT_NOFILE, ordinary)
    service.wait("session done", 6)
    assert sorted(case.ran()) == list(range(1, 7))
    stops_clean(service)
