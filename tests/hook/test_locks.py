"""The lock of a server: real files, and processes that inherit or hold them."""

import fcntl
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from dmnotid.errors import HookError
from dmnotid.hook.locks import Locks, ServerLock
from tests.support import SERVER_ID, LogLines, descriptors


def take(directory: Path, server_id: str = SERVER_ID) -> ServerLock:
    lock = Locks(directory).take(server_id)
    assert lock is not None
    return lock


def is_free(directory: Path, server_id: str = SERVER_ID) -> bool:
    lock = Locks(directory).take(server_id)
    if lock is not None:
        lock.free()
    return lock is not None


def test_lock_is_held_until_it_is_freed_and_leaves_no_file(tmp_path: Path) -> None:
    before = descriptors()
    with take(tmp_path):
        assert not is_free(tmp_path)
        assert is_free(tmp_path, "another.example")
    assert is_free(tmp_path)
    assert list((tmp_path / "locks").iterdir()) == []
    assert (tmp_path / "locks").stat().st_mode & 0o777 == 0o700
    assert descriptors() == before


@pytest.mark.parametrize("server_id", ["../../etc/passwd", "a" * 4_000, "\0", "\N{SNOWMAN}/"])
def test_any_server_has_a_lock_in_the_directory(tmp_path: Path, server_id: str) -> None:
    with take(tmp_path, server_id):
        assert len(list((tmp_path / "locks").iterdir())) == 1
        assert not is_free(tmp_path, server_id)


@contextmanager
def inherited(lock: ServerLock) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has inherited a lock."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, pass_fds=[lock.descriptor]) as child:
        yield child
        child.communicate()


def test_process_that_inherits_a_lock_keeps_it_when_its_parent_has_closed_it(tmp_path: Path) -> None:
    """As after SIGKILL of the daemon: the kernel closes what it had open."""
    lock = take(tmp_path)
    with inherited(lock) as child:
        os.close(lock.descriptor)
        assert not is_free(tmp_path)
        child.communicate()
        assert is_free(tmp_path)


def test_freed_lock_is_not_held_by_a_child_that_was_left_behind(tmp_path: Path) -> None:
    lock = take(tmp_path)
    with inherited(lock):
        lock.free()
        assert is_free(tmp_path)


def test_kept_lock_is_left_to_the_process_that_inherited_it(tmp_path: Path) -> None:
    lock = take(tmp_path)
    with inherited(lock):
        with lock:
            lock.keep()
        assert not is_free(tmp_path)


def test_lock_that_is_held_too_long_is_replaced(tmp_path: Path, logged: LogLines) -> None:
    former, locks = take(tmp_path), Locks(tmp_path)
    assert locks.take(SERVER_ID) is None
    with locks.take(SERVER_ID, patience=0) or pytest.fail("not replaced"):
        # The former holder frees its own.
        former.free()
    assert [line["event"] for line in logged.all()] == ["lock held", "lock ignored"]


def test_lock_that_cannot_be_made_keeps_no_session_back(tmp_path: Path, logged: LogLines) -> None:
    (tmp_path / "locks").touch()
    before = descriptors()
    with take(tmp_path):
        assert is_free(tmp_path)
    assert {(line["level"], line["event"]) for line in logged.all()} == {("warning", "lock missing")}
    assert descriptors() == before


def test_lock_without_a_free_descriptor_is_a_problem_of_the_hook(
    tmp_path: Path, few_descriptors: Callable[[int], AbstractContextManager[None]]
) -> None:
    with few_descriptors(0), pytest.raises(HookError, match=r"locks/[0-9a-f]{64}: Too many open files$"):
        Locks(tmp_path).take(SERVER_ID)


def test_two_processes_never_hold_one_lock(tmp_path: Path) -> None:
    """A file is removed and made again all the time: a lock of a removed file counts for nothing."""
    inside, most, taken, stop = 0, 0, 0, threading.Event()

    def contend() -> None:
        nonlocal inside, most, taken
        while not stop.is_set():
            lock = Locks(tmp_path).take(SERVER_ID)
            if lock is not None:
                inside += 1
                # Another thread that has the lock too runs now.
                os.sched_yield()
                most = max(most, inside)
                taken += 1
                if taken >= 100:
                    stop.set()
                inside -= 1
                lock.free()

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_lock_is_a_flock_of_the_file_of_the_server(tmp_path: Path) -> None:
    """What an operator sees with lslocks(8)."""
    with take(tmp_path):
        (file,) = (tmp_path / "locks").iterdir()
        with file.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
