"""The machine that the other tests use: what it is, and that nothing of it is left."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ENVIRONMENT
from tests.support import is_alive, wait_until
from tests.system.machine import Machine, clear_away

pytestmark = [pytest.mark.root, pytest.mark.system]

# Boots a machine, says the numbers of the processes in it, and waits for its end.
BOOTS: Final = """
import sys, time
from pathlib import Path
from tests.system.machine import Machine
with Machine(Path(sys.argv[1])) as machine:
    print(*machine.pids(), flush=True)
    time.sleep(60)
"""


def left(of: int) -> list[str]:
    """What a process has left of its machines: directories, cgroups and mounts."""
    name = f"dmnotid-test-{of}-"
    script = 'mount -t cgroup2 cgroup2 "$1" && find "$1" -maxdepth 1 -name "$2*"'
    with tempfile.TemporaryDirectory() as empty:
        command = ["unshare", "--mount", "sh", "-ec", script, "sh", empty, name]
        cgroups = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    directories = [str(path) for path in Path(tempfile.gettempdir()).glob(f"{name}*")]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    return cgroups + directories + mounts


def _fail(machine: Machine, pids: list[int]) -> None:
    pids += machine.pids()
    machine.run("false")


def test_a_machine_is_a_world_of_its_own(bare_machine: Machine) -> None:
    assert bare_machine.run("cat", "/proc/1/comm") == "systemd\n"
    assert bare_machine.run("systemctl", "is-system-running") == "running\n"
    assert [line.split()[1] for line in bare_machine.run("ip", "-o", "link").splitlines()] == ["lo:"]
    bare_machine.run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    bare_machine.write("/etc/here", "and nowhere else")
    assert not Path("/etc/here").exists()
    assert bare_machine.run("cat", "/etc/here") == "and nowhere else"


def test_nothing_is_left_of_a_machine(base_root: Path) -> None:
    before = left(os.getpid())
    with Machine(base_root) as machine:
        machine.write("/etc/here", "for now")
        bystander = machine.popen("sleep", "60")
        pids = machine.pids()
        assert len(pids) >= 2  # systemd and its journal
        assert len(left(os.getpid())) == len(before) + 2
    bystander.wait(10)
    assert not any(map(is_alive, pids))
    assert left(os.getpid()) == before
    assert not Path(base_root, "etc/here").exists()


def test_nothing_is_left_when_a_test_fails(base_root: Path) -> None:
    before = left(os.getpid())
    pids: list[int] = []
    with pytest.raises(AssertionError, match="exit 1"), Machine(base_root) as machine:
        _fail(machine, pids)
    assert pids
    assert not any(map(is_alive, pids))
    assert left(os.getpid()) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_runs_on_when_the_tests_are_ended(base_root: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BOOTS, base_root], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None
        pids = list(map(int, program.stdout.readline().split()))
        assert len(pids) >= 2  # systemd and its journal
        program.send_signal(number)
        program.wait(10)
    wait_until(lambda: not any(map(is_alive, pids)))
    remains = left(program.pid)
    assert not any(" " in line for line in remains), "a mount"
    if number == signal.SIGKILL:  # who is killed leaves an empty cgroup, and a directory
        clear_away(f"dmnotid-test-{program.pid}-0")
    assert left(program.pid) == []
