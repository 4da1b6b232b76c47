"""What the control socket costs the loop: processor time of a Status, and the longest turn while lists are made."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import Figure, Scale
from benchmarks.growth import servers
from benchmarks.journal_size import SOURCE, fill, verified
from benchmarks.machine import daemon, scratch, usage
from dmnotid.config.loading import load_config
from dmnotid.control.client import call, stream
from dmnotid.daemon import Daemon
from dmnotid.host import log
from dmnotid.host.loop import loop_factory
from dmnotid.journal.queue import Journal
from dmnotid.policy.sessions import Closed, Limits
from tests.support import write_config

FEW: Final = 10
MANY: Final = 1_000
ROWS: Final = 65_536
CALLS: Final = 500


def status(scale: Scale) -> Iterator[Figure]:
    """Measure the processor time of the daemon for a Status with 10 servers, connection included."""
    calls, values = scale.of(CALLS), []
    with scratch() as directory:
        for server in servers(FEW):
            secret = server["secret"]["text"].encode()
            fill(directory / "state", FEW, close=True, server_id=server["id"], secret=secret)
        control = directory / "control"
        with daemon(directory, servers=servers(FEW), control={"socket": str(control)}) as service:
            for _ in range(scale.runs):
                before = usage(service.process.pid).seconds
                for _ in range(calls):
                    call(str(control), "Status")
                values.append(1_000 * (usage(service.process.pid).seconds - before) / calls)
    yield Figure("a Status of the control socket", values, "{:.3f} ms", at_most=0.3, about=f"{FEW} servers")


def longest_turn(scale: Scale) -> Iterator[Figure]:
    """Measure the longest turn of the loop while a daemon with many servers and rows makes its lists."""
    number, rows = scale.of(MANY, FEW), scale.of(ROWS, FEW)
    configured = servers(number)
    with scratch() as directory:
        _fill(directory / "state", configured, rows // number)
        control = directory / "control"
        # Their sessions wait for a mobile or wireless connection, so that the loop has nothing else to do.
        absent = {"wireless": {"interfaces": ["absent0"]}}
        file = write_config(directory, servers=configured, control={"socket": str(control)}, connections=absent)
        asks: dict[str, Callable[[], object]] = {
            "Status": lambda: call(str(control), "Status", patience=None),
            "Sessions": lambda: sum(1 for _ in stream(str(control), "Sessions", {"since": 0}, patience=None)),
        }
        found = {name: [_longest(file, ask) for _ in range(scale.runs)] for name, ask in asks.items()}
    for name, values in found.items():
        what, about = f"longest turn of the loop, {name}", f"{number:,} servers, {rows:,} rows"
        yield Figure(what, values, "{:.1f} ms", at_most=5, about=about)


def _fill(directory: Path, configured: list[dict[str, Any]], each: int) -> None:
    """Write so many rows for each server; every second server has its sessions open."""
    with Journal(directory, limits=Limits(max_pending=each), remember=3 * 86_400) as journal:
        for at, server in enumerate(configured):
            secret = server["secret"]["text"].encode()
            made = [journal.admit(verified(number, server["id"], secret, SOURCE, 0)) for number in range(each)]
            journal.commit()
            if at % 2:
                journal.close([(request, Closed.DONE, "exit 0") for request in made])


def _longest(file: Path, ask: Callable[[], object]) -> float:
    """Return the processor time of the longest turn while a thread asks, in milliseconds."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        log.configure("error")
        return 1_000 * runner.run(_serve(Daemon(load_config(file, {})), ask))


async def _serve(daemon: Daemon, ask: Callable[[], object]) -> float:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    longest, last = 0.0, 0.0

    def ask_once() -> None:
        ask()
        loop.call_soon_threadsafe(asked.set)

    def turn() -> None:
        nonlocal longest, last
        # Of this thread alone: the client has the same processor.
        now = time.thread_time()
        longest, last = max(longest, now - last), now
        if not asked.is_set():
            loop.call_soon(turn)

    running = loop.create_task(daemon.run())
    await daemon.ready.wait()
    # It ends the benchmark, not the daemon alone.
    loop.remove_signal_handler(signal.SIGTERM)
    # The first turns have to do with the start.
    await asyncio.sleep(1)
    last = time.thread_time()
    loop.call_soon(turn)
    thread = threading.Thread(target=ask_once)
    thread.start()
    await asked.wait()
    thread.join()
    daemon.stop()
    await running
    return longest
