"""Operators, hooks, time-outs, reloads, restarts and a failing journal at the same time, in random order."""

import asyncio
import random
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import pytest

from dmnotid import transitions
from dmnotid.config.values import Config
from dmnotid.errors import JournalError, NoSuchSession, NotPending
from dmnotid.policy.sessions import Closed
from tests.dispatching import Bench, at_work, refuse, states
from tests.support import OPEN_ID, OTHER_ID, SERVER_ID, SERVERS, LogLines, is_alive, make_config, write_script

BY = "root (pid 12)"

HOOK = """#!/bin/bash
cd {directory}
echo $$ >> pids
trap 'rmdir "$DMNOTID_SERVER_ID"; exit 1' TERM
mkdir "$DMNOTID_SERVER_ID" || : > overlap
sleep 0.0$((RANDOM % 8))
rmdir "$DMNOTID_SERVER_ID"
exit $((RANDOM % 3 ? RANDOM % 2 : 78))
"""
"""A hook that runs for some hundredths of a second, ends in any way, and notices another one for its server."""


def random_config(directory: Path, hook: Path, rng: random.Random) -> Config:
    """Return a configuration as a reload may bring it; in some, hooks time out or a server is missing."""
    return make_config(
        directory,
        [str(hook)],
        hook={"timeout": rng.choice(["50ms", "10s"]), "kill_after": "10s", "stop_grace": rng.choice(["10ms", "10s"])},
        retry={"first": "10ms", "longest": rng.choice(["20ms", "1h"]), "attempts": 2},
        sessions={"concurrency": rng.choice([1, 3]), "min_interval": rng.choice(["0", "100ms"]), "max_pending": 999},
        servers=rng.choice([SERVERS, SERVERS, SERVERS[1:]]),
    )


async def disturb(bench: Bench, directory: Path, hook: Path, rng: random.Random, known: set[int]) -> None:
    """Accept, retry and cancel sessions, and reload, for a while."""
    for _ in range(60):
        await asyncio.sleep(rng.choice([0, 0, 0.002, 0.02]))
        action = rng.choice(["accept", "accept", "retry", "cancel", "reload"])
        session = rng.choice([0, *known])
        with suppress(NoSuchSession, NotPending, JournalError):
            if action == "accept":
                known.add(bench.accept(len(known), rng.choice([SERVER_ID, OTHER_ID, OPEN_ID])))
            elif action == "retry":
                bench.dispatcher.retry(session, BY)
            elif action == "cancel":
                bench.dispatcher.cancel(session, BY)
            elif rng.random() < 0.3:
                bench.dispatcher.configure(random_config(directory, hook, rng))


async def finish(bench: Bench) -> None:
    """Let every session come to its end."""
    while bench.dispatcher.pending:
        with suppress(JournalError):
            for session in [view.session for view in bench.dispatcher.views()]:
                bench.dispatcher.retry(session, BY)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
async def test_each_session_ends_once_and_no_two_hooks_run_for_a_server(
    tmp_path: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """5.3.4: a session that is closed is never started again, unless it was retried, and none is lost."""
    monkeypatch.setattr(transitions, "WRITE_AGAIN_AFTER", 0.02)
    rng, known = random.Random(seed), set[int]()  # noqa: S311 - a test that can be repeated
    hook = write_script(tmp_path / "hook", HOOK.format(directory=tmp_path))
    config = random_config(tmp_path, hook, rng)
    # A third of all writes fails.
    refuse(config, "state, attempts, not_before", "random() % 3 = 0")
    for _ in range(3):
        async with at_work(random_config(tmp_path, hook, rng)) as bench:
            await disturb(bench, tmp_path, hook, rng, known)
    config = make_config(tmp_path, [str(hook)], hook={"kill_after": "10s"}, sessions={"max_pending": 999})
    async with at_work(config) as bench:
        await finish(bench)
    found = states(config)
    assert set(found) == known
    assert set(found.values()) <= set(Closed)
    assert not (tmp_path / "overlap").exists()
    assert not any(is_alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())
    ends: dict[int, str] = defaultdict(str)
    for line in logged.all():
        event, session = line["event"].removeprefix("session "), line.get("session", 0)
        if event == "retried":
            ends[session] = ""
        elif event in {"started", *Closed}:
            assert ends[session] == "", line
            ends[session] = event if event in set(Closed) else ""
    assert {session: end for session, end in ends.items() if end} == found
