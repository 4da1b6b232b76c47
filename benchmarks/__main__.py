"""Measures, prints a table, and writes docs/developers/performance.md.

`.venv/bin/python -m benchmarks`, in the repository. Needs root, a C compiler, dbus-daemon and snmptrapd. No other
program should run meanwhile.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Final

from benchmarks import asking, bearers, bursts, floods, growth, keeping, rest, waking, walk
from benchmarks.figures import RUNS, WIDTH, Figure, Measure, Scale, table
from benchmarks.machine import about

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "developers" / "performance.md"
MARK: Final = "<!-- measured -->\n"
"""The text of the document after this line is replaced."""

ROWS: Final[dict[str, Measure]] = {
    "memory": rest.idle_memory,  # first: it replaces this process and starts again
    "duplicates": walk.duplicates,
    "pure": walk.pure_half,
    "commits": keeping.group_commit,
    "junk": floods.junk_cost,
    "beside-junk": floods.true_beside_junk,
    "beside-forgeries": floods.true_beside_forgeries,
    "burst": bursts.burst,
    "waking": waking.waking,
    "waking-busy": waking.waking_busy,
    "start": rest.start,
    "status": rest.status,
    "idle": rest.idle_minute,
    "bearer": bearers.idle_bearer,
    "servers": growth.many_servers,
    "remembered": growth.many_remembered,
    "answer": asking.status,
    "turns": asking.longest_turn,
    "decode": walk.decode_lines,
}


def main() -> int:
    """Measure the rows of the command line, or all."""
    parser = argparse.ArgumentParser(prog=".venv/bin/python -m benchmarks", description="Measure how fast dmnotid is.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument(
        "--short",
        action="store_true",
        help="show that it runs: a hundredth of the amount, and the document is not written",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    chosen = [name for name in ROWS if name in (arguments.rows or ROWS)]
    tools = ["taskset", *(("cc", "snmptrapd") if {"waking", "waking-busy"}.intersection(chosen) else ())]
    tools += ["dbus-daemon"] if "bearer" in chosen else []
    if missing := [name for name in tools if shutil.which(name) is None]:
        parser.error(f"these rows need {', '.join(missing)}")
    figures: list[Figure] = []
    for name in chosen:
        print(f"{name} …", file=sys.stderr, flush=True)
        figures += ROWS[name](Scale(arguments.short))
    print("\n".join([", ".join(about()), "", table(figures)]))
    if not arguments.rows and not arguments.short:
        write(figures)
    return 0


def write(figures: Sequence[Figure]) -> None:
    """Write the table into the document."""
    kept = DOCUMENT.read_text(encoding="utf-8").partition(MARK)[0]
    date, *where = about()
    said = f"Measured on {date} ({', '.join(where)}); {RUNS} runs, each beside its yardstick."
    DOCUMENT.write_text(f"{kept}{MARK}\n{fill(said, WIDTH)}\n\n{table(figures)}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
