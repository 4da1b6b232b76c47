"""The short form of the soak: the same traffic and the same looks, for a quarter of a minute."""

from pathlib import Path

import pytest

from tests.proofs.soak import Plan, soak


@pytest.mark.slow
def test_a_quarter_of_a_minute_of_everything(tmp_path: Path) -> None:
    # The heap still grows: it has not settled after so few reloads.
    plan = Plan(
        seconds=18, rate=3_000, settled=5, sample_every=2, reload_every=0.4, expire_after=4, timeout=1, growth=6_144
    )
    report = soak(tmp_path, plan)
    assert report.problems == [], str(report)
    assert all(report.facts.values())
