"""Memory of processes while no other process runs Python, as on a device.

A library page that two processes share counts half in the PSS of each, and this program shares most pages with what it
measures. So a shell measures in its place, and then starts it again.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

_TOLD: Final = "DMNOTID_BENCHMARKS_ALONE"
"""Environment variable: the directory of the results."""

_SHELL: Final = """
directory=$1 runs=$2
shift 2
for file in "$directory"/*.sh; do
    for run in $(seq "$runs"); do
        : > "$directory/said"  # now: the output of the run before must not count for this one
        sh "$file" >> "$directory/said" 2>&1 &
        tries=0
        until grep -q ready "$directory/said"; do
            sleep 0.1
            tries=$((tries + 1))
            [ $tries -lt 300 ] || { cat "$directory/said"; kill -KILL $!; exit 1; }
        done
        sleep 0.5
        cat "/proc/$!/smaps_rollup" >> "${file%.sh}.told"
        kill -KILL $!
        wait $! 2> /dev/null
    done
done
exec "$@"
"""


def measure(commands: Callable[[Path], Mapping[str, Sequence[str]]], runs: int, environment: Mapping[str, str]) -> None:
    """Measure programs `runs` times, each once it has printed `ready`, and start this program again; else do nothing.

    `commands` takes a directory that they may use, and returns each command by its name.
    """
    if _TOLD in os.environ:
        return
    directory = Path(mkdtemp(dir="/var/tmp"))
    for name, command in commands(directory).items():
        (directory / f"{name}.sh").write_text(f"exec {shlex.join(command)}\n")
    again = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
    arguments = ["sh", "-c", _SHELL, "sh", str(directory), str(runs), *again]
    os.execve("/bin/sh", arguments, {**environment, _TOLD: str(directory)})  # noqa: S606


def found(name: str, kind: str) -> list[float]:
    """Return the size of a program in each run, in MB; `kind` is a line of /proc/PID/smaps_rollup."""
    text = Path(os.environ[_TOLD], f"{name}.told").read_text()
    return [int(size) / 1024 for size in re.findall(rf"(?m)^{kind}: +(\d+) kB", text)]


def forget() -> None:
    """Delete the results."""
    shutil.rmtree(os.environ.pop(_TOLD))
