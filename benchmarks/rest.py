"""What the daemon costs while nothing happens: its start, its memory, its wake-ups."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.figures import Figure, Scale
from benchmarks.machine import ENVIRONMENT, daemon, pinned, program, scratch, usage
from tests.processes import memory
from tests.service.support import write_config

IMPORTS: Final = "import asyncio, uvloop, yaml, structlog, sqlite3"
WAITS: Final = f"{IMPORTS}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"
SCRIPT: Final = "import sys; from dmnotid.cli import main; sys.exit(main())"
"""What the installed program is."""

STARTS: Final = 4
"""How many starts are measured beside each other in one run; the fastest counts, for the others had company."""


def start_time(command: list[str], word: bytes) -> float:
    """Return how long it takes (seconds) until a program says a word."""
    began = time.perf_counter()
    with subprocess.Popen([*pinned(), *command], stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=ENVIRONMENT) as it:
        if it.stdout is None:
            raise AssertionError
        for line in it.stdout:
            if word in line:
                break
        took = time.perf_counter() - began
        it.kill()
    return took


def start(scale: Scale) -> Iterator[Figure]:
    """Measure the start to READY."""
    values, others = [], []
    with scratch() as directory:
        command = [sys.executable, "-c", SCRIPT, "run", "--config", str(write_config(directory))]
        start_time(command, b'"ready"')  # compiles what is not compiled yet, and makes the journal
        for _ in range(scale.runs):
            values.append(1_000 * min(start_time(command, b'"ready"') for _ in range(STARTS)))
            others.append(1_000 * min(start_time([sys.executable, "-c", WAITS], b"ready") for _ in range(STARTS)))
    yield Figure("start to READY", values, "{:.0f} ms", "the interpreter with its imports", others, at_most=1.3)


def idle_memory(scale: Scale) -> Iterator[Figure]:
    """Measure memory at rest."""
    values: list[list[float]] = [[], []]
    others: list[list[float]] = [[], []]
    for _ in range(scale.runs):
        with scratch() as directory, program(IDLE) as (other, _), daemon(directory) as service:
            time.sleep(0.5)
            for kind in (0, 1):
                values[kind].append(memory(service.process.pid)[kind] / 1024)
                others[kind].append(memory(other.pid)[kind] / 1024)
    for kind, name in enumerate(("RSS", "PSS")):
        beside = "the interpreter with its imports"
        yield Figure(f"idle memory, {name}", values[kind], "{:.1f} MB", beside, others[kind], at_most=1.15)


IDLE: Final = f"{IMPORTS}\nprint(flush=True)\nimport time; time.sleep(3600)"


def idle_minute(scale: Scale) -> Iterator[Figure]:
    """Measure what is done in a minute in which nothing happens."""
    with scratch() as directory, daemon(directory) as service:
        time.sleep(1)
        before = usage(service.process.pid)
        time.sleep(scale.of(60, 3))
        after = usage(service.process.pid)
    yield Figure("idle minute: wake-ups", [after.switches - before.switches], "{:.0f}", "none", at_most=0)
    yield Figure(
        "idle minute: processor time", [1_000 * (after.seconds - before.seconds)], "{:.3f} ms", "none", at_most=0
    )
