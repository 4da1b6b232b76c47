"""Every promise is kept whenever the power is cut: tests/proofs/power_cut.py models the disk."""

import os
import random
from pathlib import Path

import pytest

from tests.proofs.power_cut import NOTIFICATIONS, cut_power, strace_problem

CUTS = int(os.environ.get("POWER_CUTS", "300"))


@pytest.mark.slow
def test_every_promise_is_kept_whenever_the_power_is_cut(tmp_path: Path) -> None:
    problem = strace_problem()
    if problem is not None:
        pytest.skip(problem)
    seed = random.SystemRandom().randrange(10**9)
    counts, violations = cut_power(tmp_path, cuts=CUTS, notifications=NOTIFICATIONS, seed=seed)
    assert not violations, "\n".join([*violations[:5], str(counts)])
    assert counts["with writes that may be lost"] > CUTS * 0.3, counts
