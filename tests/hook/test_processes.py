"""Processes as /proc shows them: real ones."""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmnotid.hook.processes import (
    MAX_SEEN,
    Identity,
    LeftOver,
    Process,
    group_lives,
    identify,
    list_processes,
)
from tests.support import IS_ROOT, descriptors, is_alive, wait_until

BOOT_ID = "01234567-89ab-cdef-0123-456789abcdef"
"""Of a boot that never was."""

needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root, to give numbers and users")

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a shell in a process group of its own; all of it is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def starter(text: str = "sleep 1000") -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["/bin/sh", "-c", f"{text}; :"], process_group=0, stdout=subprocess.PIPE))
        return started[-1]

    yield starter
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def lives(identity: Identity) -> bool:
    """Tell whether exactly this process can be held."""
    try:
        with LeftOver(identity):
            return True
    except ProcessLookupError:
        return False


def pid_said_by(leader: subprocess.Popen[bytes]) -> int:
    assert leader.stdout is not None
    return int(leader.stdout.readline())


def test_this_process_is_one_of_them() -> None:
    assert Process(os.getpid(), os.getpgrp()) in list_processes()


def test_a_group_lives_until_its_last_process_has_ended(start: Start) -> None:
    leader = start("sleep 1000 & echo $!; wait")
    child = pid_said_by(leader)
    assert group_lives(leader.pid)
    leader.kill()
    wait_until(lambda: leader.pid not in [process.pid for process in list_processes()])
    assert group_lives(leader.pid), "its child does"
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not group_lives(leader.pid))


def test_an_identity_is_read_as_it_is_written() -> None:
    identity = identify(os.getpid())
    assert identity.pid == os.getpid()
    assert Identity.parse(str(identity)) == identity
    assert re.fullmatch(rf"[0-9a-f-]{{36}} {os.getpid()} \d+", str(identity))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "1",
            "x 1 1",
            f"{BOOT_ID} 1",
            f"{BOOT_ID} 1 1 ",
            f" {BOOT_ID} 1 1",
            f"{BOOT_ID} 1 1\n",
            f"{BOOT_ID}  1 1",
        ),
        *(f"{BOOT_ID} -1 1", f"{BOOT_ID} 0 1", f"{BOOT_ID} 1 1 1", f"{BOOT_ID} {10**9} 1", f"{BOOT_ID} \u0661 1", "\0"),
    ],
)
def test_what_is_no_identity(text: str) -> None:
    assert Identity.parse(text) is None


@given(st.text(max_size=60))
def test_any_text_is_an_identity_or_none(text: str) -> None:
    found = Identity.parse(text)
    assert found is None or str(found) == text


def test_only_exactly_this_process_lives(start: Start) -> None:
    leader = start()
    identity = identify(leader.pid)
    assert lives(identity)
    assert not lives(identity._replace(started_at=identity.started_at + 1)), "another one has the number"
    assert not lives(identity._replace(boot_id=BOOT_ID))
    assert not lives(identity._replace(pid=os.getpid()))
    leader.kill()
    wait_until(lambda: not lives(identity))
    assert identify(leader.pid) == identity, "nobody has asked how it ended yet"
    leader.wait()
    assert not lives(identity)
    with pytest.raises(OSError, match="No such"):
        identify(leader.pid)


def test_an_identity_outlives_another_program_and_another_name(start: Start) -> None:
    leader = start("printf 'odd) R 1 1' > /proc/$$/comm; exec env -i /bin/sh -c 'echo 1; sleep 1000'")
    before = identify(leader.pid)
    pid_said_by(leader)
    assert identify(leader.pid) == before


def test_a_thread_is_nobody() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert not lives(identify(thread.native_id))
    finally:
        ended.set()
        thread.join()


def test_without_a_descriptor_it_is_said(start: Start) -> None:
    identity = identify(start().pid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            lives(identity)
        with pytest.raises(OSError, match="Too many open files"):
            LeftOver(identity)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_left_group_is_signalled_whole_and_everything_is_let_go(start: Start) -> None:
    leader = start("sleep 1000 & echo $!; wait")
    child = pid_said_by(leader)
    before = descriptors()
    with LeftOver(identify(leader.pid)) as left:
        assert left.lives()
        assert left.group == leader.pid
        left.signal(signal.SIGTERM)
        wait_until(lambda: not left.lives())
    assert leader.wait() == -signal.SIGTERM
    assert not is_alive(child)
    assert descriptors() == before


def test_what_has_ended_can_not_be_held(start: Start) -> None:
    leader = start("sleep 1000 & echo $!; exit 0")
    child, identity = pid_said_by(leader), identify(leader.pid)
    wait_until(lambda: not lives(identity))
    before = descriptors()
    with pytest.raises(ProcessLookupError):
        LeftOver(identity)
    assert is_alive(child), "a dead leader's group is let be"
    assert descriptors() == before


def test_the_group_is_held_by_its_other_processes_when_its_leader_has_ended(start: Start) -> None:
    leader = start("trap 'exit 0' TERM; (trap '' TERM; exec sleep 1000) & echo $!; wait")
    child = pid_said_by(leader)
    wait_until(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes())
    with LeftOver(identify(leader.pid)) as left:
        left.signal(signal.SIGTERM)
        assert leader.wait() == 0
        assert left.lives()
        left.signal(signal.SIGKILL)
        wait_until(lambda: not left.lives())
    assert not is_alive(child)


def test_a_leader_that_has_left_its_group_is_signalled_alone(start: Start) -> None:
    leave = "import os, time; os.setpgid(0, os.getpgid(os.getppid())); print(1, flush=True); time.sleep(1000)"
    leader = start(f"exec {sys.executable} -ISc '{leave}'")
    pid_said_by(leader)
    with LeftOver(identify(leader.pid)) as left:
        assert left.lives()
        left.signal(signal.SIGTERM)
        assert leader.wait() == -signal.SIGTERM
        assert not left.lives()
        left.signal(signal.SIGKILL)


def test_a_number_that_another_group_has_by_now_gets_no_signal(start: Start) -> None:
    """Both have ended, leader and group; who has the number then is somebody else."""
    leader, innocent = start(), start("exec sleep 1000")
    with LeftOver(identify(leader.pid)) as left:
        left.signal(signal.SIGTERM)
        leader.wait()
        left.group = innocent.pid
        assert not left.lives()
        left.signal(signal.SIGKILL)
    assert innocent.poll() is None


@pytest.mark.root
@needs_root
def test_the_number_comes_round_while_it_is_waited_for(start: Start) -> None:
    """A real one: the kernel gives the next process the number that it is told."""
    last_pid = Path("/proc/sys/kernel/ns_last_pid")
    leader = start("exec sleep 1000")
    with LeftOver(identify(leader.pid)) as left:
        left.signal(signal.SIGTERM)
        leader.wait()
        for _ in range(100):
            try:
                last_pid.write_text(str(leader.pid - 1))
            except OSError:
                pytest.skip("the next number can't be told here")
            innocent = start("exec sleep 1000")
            if innocent.pid == leader.pid:
                break
        else:
            pytest.skip("others start processes too fast")
        assert not left.lives()
        left.signal(signal.SIGKILL)
        assert innocent.poll() is None


def test_so_many_of_a_group_are_held_and_no_more(start: Start) -> None:
    leader = start("for n in $(seq 40); do sleep 1000 & done; echo 1; wait")
    pid_said_by(leader)
    before = descriptors()
    with LeftOver(identify(leader.pid)) as left:
        assert left.lives()
        assert len(descriptors()) == len(before) + 1 + MAX_SEEN
        left.signal(signal.SIGTERM)
        wait_until(lambda: not left.lives())
        assert len(descriptors()) == len(before) + 1
    assert descriptors() == before


def test_without_any_descriptor_the_group_is_not_taken_for_ended(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing can be read of /proc: who was seen before is asked by the descriptor that is held."""
    leader = start("sleep 1000 & echo $!; wait")
    child = pid_said_by(leader)
    with LeftOver(identify(leader.pid)) as found:
        assert found.lives()
        leader.kill()
        leader.wait()
        with monkeypatch.context() as patch:
            patch.setattr("dmnotid.hook.processes.list_processes", list)
            assert found.lives()
            found.signal(signal.SIGKILL)
            wait_until(lambda: not found.lives())
        assert not is_alive(child)


@pytest.mark.root
@needs_root
def test_what_may_not_be_signalled_is_said(start: Start) -> None:
    leader = start("exec sleep 1000")
    with LeftOver(identify(leader.pid)) as left:
        os.setresuid(65_534, 65_534, 0)
        try:
            with pytest.raises(PermissionError):
                left.signal(signal.SIGTERM)
        finally:
            os.setresuid(0, 0, 0)
        assert left.lives()
