"""No clock, no server and no replay makes the journal accept a notification twice: tests/proofs/clocks.py."""

import os
from collections import Counter

import pytest

from tests.proofs import clocks

ROUNDS = int(os.environ.get("CLOCK_ROUNDS", "250"))
"""Number of seeds. Of the ways to break the rules of age and of duplicates, each that shows was found by seed 69."""


def test_random_clocks_and_lying_servers_lock_no_honest_server_out_and_let_no_replay_in() -> None:
    counts: Counter[str] = sum((clocks.walk(seed, 250) for seed in range(8)), start=Counter())
    # It proves nothing if there was nothing to refuse.
    for kind in ("honest and due", "compared", "honest duplicate", "honest stale", "other accepted", "other stale"):
        assert counts[kind] > 20, counts


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, ROUNDS, 50))
def test_many_random_clocks_and_lying_servers(first: int) -> None:
    for seed in range(first, min(first + 50, ROUNDS)):
        clocks.walk(seed, 400)
