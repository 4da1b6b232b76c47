"""Processes as /proc shows them: real ones."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dmnotid.service.processes import Process, find_leaders, group_lives, list_processes
from tests.service.support import wait_until

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a shell in a process group of its own; all of it is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def starter(text: str = "sleep 1000", **environment: str) -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen(["/bin/sh", "-c", f"{text}; :"], env=environment, process_group=0, stdout=subprocess.PIPE)
        )
        return started[-1]

    yield starter
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_this_process_is_one_of_them() -> None:
    assert Process(os.getpid(), os.getpgrp(), os.getsid(0)) in list_processes()


def test_a_group_lives_until_its_last_process_has_ended(start: Start) -> None:
    leader = start("sleep 1000 & echo $!; wait")
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    assert group_lives(leader.pid)
    leader.kill()
    wait_until(lambda: leader.pid not in [process.pid for process in list_processes()])
    assert group_lives(leader.pid), "its child does"
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: not group_lives(leader.pid))


def test_leaders_are_found_by_all_of_an_environment(start: Start) -> None:
    wanted = {"A": "1", "B": "two words", "EMPTY": ""}
    leader = start(**wanted, MORE="x" * 100_000)
    start(A="1", B="two words")
    wait_until(lambda: find_leaders([wanted]) == [leader.pid])
    assert find_leaders([{"A": "2"}, wanted]) == [leader.pid]
    assert find_leaders([wanted | {"C": "3"}]) == []
    assert find_leaders([{"MOR": "x"}]) == []
    assert find_leaders([]) == []


def test_only_leaders_are_found(start: Start) -> None:
    leader = start("MARK=here sleep 1000 & wait", MARK="here")
    wait_until(lambda: sum(process.group == leader.pid for process in list_processes()) == 2)
    assert find_leaders([{"MARK": "here"}]) == [leader.pid]


def test_names_of_processes_may_hold_anything(start: Start) -> None:
    leader = start("printf 'odd) R 1 1' > /proc/$$/comm; echo; sleep 1000", ODD="1")
    assert leader.stdout is not None
    leader.stdout.readline()
    assert find_leaders([{"ODD": "1"}]) == [leader.pid]


def test_leaders_of_sessions_are_passed_over(start: Start) -> None:
    """A hook starts as the leader of a group, in the daemon's session; what it leaves behind as a service does not."""
    leader = start("setsid sleep 1000 & echo $!; wait", LEFT="1")
    assert leader.stdout is not None
    child = int(leader.stdout.readline())
    wait_until(lambda: Process(child, child, child) in list_processes())
    try:
        assert find_leaders([{"LEFT": "1"}]) == [leader.pid]
    finally:
        os.kill(child, signal.SIGKILL)
