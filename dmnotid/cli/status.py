"""`dmnotid status` with options, and for a daemon that does not answer. A plain one is answered by `status_text`."""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from dmnotid.cli.asking import asks_daemon, exit_status, explain, misfit, problem_lines, refusal
from dmnotid.cli.places import add_places, find_socket, find_state
from dmnotid.cli.process import EXIT_OK
from dmnotid.cli.status_text import PATIENCE, print_text, status_of
from dmnotid.cli.table import count_pending
from dmnotid.control.client import MISSHAPEN, Failed, Unreachable, call
from dmnotid.host.text import printable

# The exit statuses of a plugin of Nagios and its like.
WARNING: Final = 1
CRITICAL: Final = 2
UNKNOWN: Final = 3
_WORDS: Final = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid status`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    checked = "print one line for a monitor; exit status 0 (good), 1 (warning), 2 (critical) or 3 (unknown)"
    form.add_argument("--check", action="store_true", help=checked)
    form.add_argument("--all", action="store_true", help="list all servers, not only those with news")
    add_places(parser)


@asks_daemon
def main(arguments: argparse.Namespace) -> int:
    """Ask the daemon; 0 if it runs and nothing is wrong, 1 if something is, 3 if it does not run, 4 if not allowed."""
    ask = partial(call, find_socket(arguments), "Status", patience=PATIENCE)
    if arguments.check:
        return check(ask)
    try:
        status = ask()
    except Unreachable as problem:
        # What the journal has is not in that form.
        if arguments.json:
            raise
        print(printable(explain(problem)))
        # A daemon that starts or stops holds the journal, and answers in a moment.
        if problem.why != "absent":
            return exit_status(problem)
        from dmnotid.cli.stopped import print_journal, show_copy  # noqa: PLC0415 - SQLite, which only this needs

        return show_copy(find_state(arguments), print_journal)
    if arguments.json:
        print(json.dumps(status))
    else:
        print_text(status, every=arguments.all)
    return status_of(status)


def check(ask: Callable[[], Mapping[str, Any]]) -> int:
    """Print the line for a monitor, and return its exit status."""
    # Until an answer was read in full.
    found = UNKNOWN
    try:
        status = ask()
        # The form of the plugins of Nagios: a sentence, a bar, and figures.
        line = f"{summarize(status)}|{performance(status)}"
        found = judge(status)
    except Unreachable as problem:
        line = explain(problem)
        # If the monitor may not ask, the state of the daemon is unknown.
        if problem.why != "forbidden":
            found = CRITICAL
    except Failed as problem:
        line = "; ".join(refusal(problem))
    except MISSHAPEN as error:
        line = misfit(error)
    print(printable(f"{_WORDS[found]} {line}"))
    return found


def judge(status: Mapping[str, Any]) -> int:
    """Return the exit status for what a running daemon reports."""
    # Without its hook or its journal, the daemon starts no session.
    broken = not status["hook"]["startable"] or "journal" in {problem["place"] for problem in status["problems"]}
    if broken or status["stopping"]:
        return CRITICAL
    return WARNING if status["problems"] else EXIT_OK


def summarize(status: Mapping[str, Any]) -> str:
    """Return what is wrong, and what is pending, on one line."""
    parts = problem_lines(status["problems"])
    if status["config"]["reload_refused"]:
        # The first problem is that of the reload.
        parts[0] = f"reload refused: {parts[0]}"
    if status["stopping"]:
        parts.insert(0, "the daemon is stopping")
    counts = status["counts"]
    pending = count_pending(sum(counts["states"].values()), counts["oldest_pending"], status["now"])
    # A bar would begin the figures.
    return "; ".join([*parts, pending]).replace("|", "/")


def performance(status: Mapping[str, Any]) -> str:
    """Return the figures that monitors draw; `c` marks a counter."""
    counts = status["counts"]
    # Few, because each becomes a curve; `dmnotid metrics` has all.
    figures = {
        "pending": sum(counts["states"].values()),
        "accepted": f"{counts['accepted']}c",
        "discarded": f"{sum(counts['discarded'].values())}c",
        "lost": f"{counts['lost']}c",
        "failed": f"{counts['closed']['failed']}c",
    }
    return " ".join(f"{name}={value}" for name, value in figures.items())
