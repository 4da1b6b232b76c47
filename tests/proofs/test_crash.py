"""Nothing is lost, and nothing that is done runs again, whenever the daemon is killed: tests/proofs/crash.py."""

import os
import re
import subprocess
import sys

import pytest

from tests.processes import ENVIRONMENT, ROOT

ROUNDS = os.environ.get("CRASH_ROUNDS", "60")


@pytest.mark.slow
def test_daemon_that_is_killed_loses_nothing() -> None:
    """In a process of its own, which adopts all that the killed daemon leaves."""
    command = [sys.executable, "-m", "tests.proofs.crash", "--rounds", ROUNDS]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for name, count in re.findall(r'"([^"]+)": (\d+)', done.stdout)}
    # It proves nothing if the daemon had nothing to lose.
    for name in ("before ready", "while a hook ran", "runs again after a crash", "duplicates refused"):
        assert counts.get(name), done.stdout
