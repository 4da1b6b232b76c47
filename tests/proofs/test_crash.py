"""Killed two hundred times, and nothing is lost, and nothing that is done is done again: tests/proofs/crash.py."""

import re
import subprocess
import sys

import pytest

from tests.processes import ENVIRONMENT, ROOT


@pytest.mark.slow
def test_nothing_is_lost_whenever_it_is_killed() -> None:
    """A process of its own: it takes over whatever the killed daemon leaves."""
    command = [sys.executable, "-m", "tests.proofs.crash", "--rounds", "200"]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for name, count in re.findall(r'"([^"]+)": (\d+)', done.stdout)}
    # It is worth nothing if the daemon had nothing to lose.
    for name in ("before ready", "while idle", "while a hook ran", "runs again after a crash", "duplicates refused"):
        assert counts.get(name), done.stdout
