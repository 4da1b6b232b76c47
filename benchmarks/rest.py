"""What an idle daemon costs: its start, its memory, its wake-ups."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import alone
from benchmarks.figures import Figure, Scale
from benchmarks.machine import ENVIRONMENT, SENDERS, daemon, pinned, scratch, usage
from tests.processes import Service
from tests.support import write_config

IMPORTS: Final = "import asyncio, uvloop, yaml, structlog, sqlite3"
WAITS: Final = f"{IMPORTS}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()"
SCRIPT: Final = "import sys; from dmnotid.cli import main; sys.exit(main())"
"""The installed program."""

WATCHDOG: Final = 20
"""Time-out of the watchdog in seconds; the daemon pings twice in it."""

STARTS: Final = 4
"""Number of starts in one run; the fastest counts, as other processes slow the rest down."""

ASKS: Final = 20
"""Number of times that the daemon is asked in one run; the fastest counts."""


def start_time(command: list[str], word: bytes, starts: int = 1) -> float:
    """Return the shortest time of some starts until a program prints a word, in milliseconds."""
    return 1_000 * min(_start_time(command, word) for _ in range(starts))


def _start_time(command: list[str], word: bytes) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, env=ENVIRONMENT) as it:
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
    with scratch() as directory:
        command = [sys.executable, "-c", SCRIPT, "run", "--config", str(write_config(directory))]
        other = [sys.executable, "-c", WAITS]
        start_time(command, b'"daemon ready"')  # compiles what is not compiled yet, and makes the journal
        starts = scale.of(STARTS)
        runs = [
            (start_time(command, b'"daemon ready"', starts), start_time(other, b"ready", starts))
            for _ in range(scale.runs)
        ]
    values, others = zip(*runs, strict=True)
    yield Figure("start to READY", values, "{:.0f} ms", "the interpreter with its imports", others, at_most=1.3)


def status(scale: Scale) -> Iterator[Figure]:
    """Measure `dmnotid status` as a process, beside an interpreter that imports what it can't do without."""
    with scratch() as directory:
        environment = ENVIRONMENT | {"RUNTIME_DIRECTORY": str(directory)}
        command, other = [sys.executable, "-c", SCRIPT, "status"], [sys.executable, "-c", "import socket, json"]
        with daemon(directory, pinned(SENDERS[0]), environment):
            run_time(command, environment, 1)  # compiles what is not compiled yet
            asks = scale.of(ASKS)
            runs = [
                (run_time(command, environment, asks), run_time(other, environment, asks)) for _ in range(scale.runs)
            ]
    values, others = zip(*runs, strict=True)
    yield Figure("`dmnotid status`", values, "{:.0f} ms", "an interpreter with socket and json", others, at_most=1.3)


def run_time(command: list[str], environment: dict[str, str], runs: int) -> float:
    """Return the shortest time that a program runs, in milliseconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([*pinned(), *command], stdout=subprocess.DEVNULL, env=environment, check=True)
        times.append(time.perf_counter() - began)
    return 1_000 * min(times)


def idle_memory(scale: Scale) -> Iterator[Figure]:
    """Measure memory at rest, of each program alone; must be the first row, as this program is started again for it."""
    alone.measure(_idle, scale.runs, ENVIRONMENT)
    for kind, most in (("Rss", 1.25), ("Pss", None)):
        values, others = (alone.found(name, kind) for name in (DAEMON, YARDSTICK))
        beside = "the interpreter with its imports"
        yield Figure(f"idle memory, {kind.upper()}", values, "{:.1f} MB", beside, others, at_most=most)
    more = [own - plain for own, plain in zip(alone.found(WITH_DOOR, "Rss"), alone.found(DAEMON, "Rss"), strict=True)]
    yield Figure("idle memory that a door adds, RSS", more, "{:.2f} MB", at_most=0.2)
    alone.forget()


def _idle(directory: Path) -> dict[str, list[str]]:
    (directory / "door").mkdir()
    configs = {DAEMON: write_config(directory), WITH_DOOR: write_config(directory / "door", **one_door(directory))}
    run = [sys.executable, "-c", SCRIPT, "run", "--config"]
    return {**{name: [*run, str(file)] for name, file in configs.items()}, YARDSTICK: [sys.executable, "-c", IDLE]}


def one_door(directory: Path) -> dict[str, Any]:
    """Return the section of a configuration with one door."""
    return {"doors": [{"path": str(directory / "push.sock"), "holds": "push"}]}


DAEMON: Final = "daemon"
WITH_DOOR: Final = "door"
YARDSTICK: Final = "yardstick"
IDLE: Final = f"{IMPORTS}\nprint('ready', flush=True)\nimport time; time.sleep(3600)"


def idle_minute(scale: Scale) -> Iterator[Figure]:
    """Measure an idle minute of a daemon with a door, and of one with a watchdog."""
    with ExitStack() as stack:
        directory = stack.enter_context(scratch())
        service = stack.enter_context(daemon(directory, **one_door(directory)))
        manager = stack.enter_context(watching(stack.enter_context(scratch()), scale.of(WATCHDOG, 2)))
        time.sleep(1.5)  # between two pings, at either end
        manager.pings_for(0)
        before = usage(service.process.pid), usage(manager.service.process.pid)
        pings = manager.pings_for(scale.of(60, 3))
        after = usage(service.process.pid), usage(manager.service.process.pid)
    alone, watched = (there.wake_ups - then.wake_ups for then, there in zip(before, after, strict=True))
    seconds, for_pings = (there.seconds - then.seconds for then, there in zip(before, after, strict=True))
    yield Figure("idle minute, wake-ups", [alone], "{:.0f}", at_most=0, about="of a daemon with a door")
    yield Figure("idle minute, processor time", [1_000 * seconds], "{:.3f} ms", at_most=0)
    about = f"beyond those of its {pings} pings"
    yield Figure("idle minute, watchdog, wake-ups", [watched - pings], "{:.0f}", at_most=0, about=about)
    yield Figure("the same, processor time of a ping", [1_000 * for_pings / pings], "{:.3f} ms")


class Manager:
    """A service manager: the other end of NOTIFY_SOCKET, and the daemon that was started with it."""

    def __init__(self, sock: socket.socket, service: Service) -> None:
        self._socket = sock
        self.service = service

    def pings_for(self, seconds: float) -> int:
        """Receive for so many seconds; return the number of watchdog pings."""
        pings, until = 0, time.monotonic() + seconds
        while True:
            self._socket.settimeout(max(until - time.monotonic(), 0))
            try:
                pings += self._socket.recv(4_096) == b"WATCHDOG=1"
            except (BlockingIOError, TimeoutError):
                return pings


@contextmanager
def watching(directory: Path, watchdog: float) -> Iterator[Manager]:
    """Run a daemon under a watchdog of so many seconds."""
    path = directory / "notify"
    told = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(round(watchdog * 1_000_000))}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        with daemon(directory, [*AS_ITSELF, *pinned()], environment={**ENVIRONMENT, **told}) as service:
            yield Manager(sock, service)


AS_ITSELF: Final = ["/bin/sh", "-c", 'WATCHDOG_PID=$$ exec "$@"', "sh"]
"""Sets WATCHDOG_PID to its own process, which becomes the daemon."""
