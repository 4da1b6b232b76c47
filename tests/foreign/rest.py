"""Print the memory and the start time of the daemon and, for comparison, of a bare interpreter.

Under qemu's user emulation a process has pages of the emulator too. Their addresses are above those of the program, and
they are not counted.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from tests.processes import ENVIRONMENT
from tests.support import write_config

STARTS: Final = 5
"""Number of starts of each program; the result is the shortest time and the median memory."""

SETTLED: Final = 1.0
"""Time between the word and the measurement of memory, in seconds."""

EMULATOR: Final = 1 << 40
"""The lowest address of the emulator's pages. Without emulation, a 64-bit program has its libraries above it."""

BARE: Final = "print('ready', flush=True); import time; time.sleep(3600)"
IMPORTS: Final = f"import asyncio, uvloop, yaml, structlog, sqlite3\n{BARE}"


def measure(command: list[str], word: bytes) -> tuple[float, float]:
    """Start a program; return its processor time until it prints a word (milliseconds) and its RSS after that (MB)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        while word not in process.stdout.readline():
            assert process.poll() is None
        # Processor time, because elapsed time would depend on the load of the machine.
        threads = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
        took = sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6
        time.sleep(SETTLED)
        mappings = Path(f"/proc/{process.pid}/smaps").read_text()
        process.kill()
    return took, resident(mappings, below=EMULATOR if "/qemu-" in mappings else None) / 1_024


def resident(mappings: str, *, below: int | None) -> int:
    """Return the RSS of the mappings of a process in kB; with `below`, only of those that start below this address."""
    found = re.findall(r"(?ms)^([0-9a-f]+)-[0-9a-f]+ .*?^Rss: +([0-9]+) kB$", mappings)
    return sum(int(size) for address, size in found if below is None or int(address, 16) < below)


def main() -> None:
    """Measure each program, and print one line for it."""
    with tempfile.TemporaryDirectory() as directory:
        daemon = ["-m", "dmnotid", "run", "--config", str(write_config(Path(directory)))]
        programs = {
            "bare interpreter": ([sys.executable, "-c", BARE], b"ready"),
            "interpreter with the imports": ([sys.executable, "-c", IMPORTS], b"ready"),
            "daemon": ([sys.executable, *daemon], b'"daemon ready"'),
        }
        for name, (command, word) in programs.items():
            measure(command, word)  # compiles the modules and creates the journal
            times, sizes = zip(*(measure(command, word) for _ in range(STARTS)), strict=True)
            print(f"{name:<30}{min(times):7.0f} ms{sorted(sizes)[STARTS // 2]:9.1f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
