"""`dmnotid sessions`: list the sessions, follow changes, show one, retry some, cancel one."""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn

from dmnotid.cli.arguments import parse_count, parse_server_id, parse_time
from dmnotid.cli.asking import asks_daemon, explain
from dmnotid.cli.parser import UsageError
from dmnotid.cli.places import add_places, find_socket, find_state
from dmnotid.cli.process import EXIT_OK
from dmnotid.cli.session_text import TITLES, TITLES_OF_ALL, Session, after_retry, facts, not_retried, row
from dmnotid.cli.table import columns, count_pending
from dmnotid.control.client import Unreachable, call, stream
from dmnotid.host.text import printable
from dmnotid.policy.sessions import Closed, PendingState

_USAGE = """dmnotid sessions [OPTION...] [N]
       dmnotid sessions retry (N | --server ID | --all)
       dmnotid sessions cancel N"""

Wanted = Mapping[str, Any]
"""Parameters of the methods; the daemon takes null for one that is not given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid sessions`."""
    # argparse would show the words of an action as numbers.
    parser.usage = _USAGE
    add = parser.add_argument
    add("words", nargs="*", metavar="N", help="show this session; after retry start it now, after cancel close it")
    add("--all", action="store_true", help="list closed sessions too; retry all that are paused or resting")
    add("--server", type=parse_server_id, metavar="ID", help="the sessions of this server")
    since = "the sessions accepted or closed since then: -1d, or a time as for decode --at"
    # No session is of the future, so -1d can mean now-1d.
    add("--since", type=lambda it: parse_time(f"now{it}" if it[:1] == "-" else it), metavar="TIME", help=since)
    add("--watch", action="store_true", help="follow changes until Ctrl-C")
    add("--json", action="store_true", help="print one JSON object a line")
    add_places(parser)
    # Before Python 3.13, argparse takes -1d for an option.
    parser._negative_number_matcher = re.compile(r"-\.?\d")  # noqa: SLF001


@asks_daemon
def main(arguments: argparse.Namespace) -> int:
    """List, show, retry or cancel sessions; exit status 3 if the daemon does not run, 4 if the user may not ask."""
    action, *numbers = arguments.words if arguments.words[:1] in (["retry"], ["cancel"]) else ["", *arguments.words]
    if len(numbers) > 1:
        raise UsageError("the number of one session is expected")
    try:
        session = parse_count(numbers[0]) if numbers else None
    except argparse.ArgumentTypeError as error:
        raise UsageError(str(error)) from None
    wanted = {"session": session, "server": arguments.server}
    path = find_socket(arguments)
    if action == "cancel":
        # One at a time, so that a mistake does not close the sessions of all servers.
        if session is None or arguments.server or arguments.all:
            raise UsageError("cancel expects the number of one session")
        return _cancel(path, session)
    if action == "retry":
        if [session is not None, arguments.server is not None, arguments.all].count(True) != 1:
            raise UsageError("retry expects one of N, --server ID and --all")
        return _retry(path, wanted, every=arguments.all)
    if arguments.all or arguments.since is not None:
        # Without states, the method lists the pending sessions alone.
        wanted |= {"states": [*PendingState, *Closed], "since": arguments.since}
    return _watch(path, wanted, arguments) if arguments.watch else _list(path, wanted, arguments)


def _sessions(path: str, wanted: Wanted) -> Iterator[Session]:
    return (reply["session"] for reply in stream(path, "Sessions", wanted))


def _find(path: str, session: int) -> Session:
    """Return one session, pending or closed. Raises Failed if there is none."""
    return next(_sessions(path, {"session": session}))


def _list(path: str, wanted: Wanted, arguments: argparse.Namespace) -> int:
    show = partial(print_sessions, wanted=wanted, as_json=arguments.json)
    try:
        return show(_sessions(path, wanted))
    except Unreachable as problem:
        # A daemon that starts or stops holds the journal, and answers in a moment.
        if problem.why != "absent":
            raise
        print(printable(explain(problem)), file=sys.stderr)
    from dmnotid.cli.stopped import find_sessions, show_copy  # noqa: PLC0415 - SQLite, which only this needs

    return show_copy(find_state(arguments), lambda journal: show(find_sessions(journal, wanted)))


def print_sessions(sessions: Iterable[Session], wanted: Wanted, *, as_json: bool) -> int:
    """Print sessions: one object a line, or a table, or all facts of one."""
    now, times, found = time.time(), "states" in wanted, list(sessions)
    if as_json:
        for session in found:
            print(json.dumps(session))
    elif wanted["session"] is not None:
        print("\n".join(columns(facts(found[0]))))
    else:
        if found:
            rows = (row(session, now, times=times) for session in found)
            print("\n".join(columns([TITLES_OF_ALL if times else TITLES, *rows], right=[0])))
        print(count_pending(sum(session["closed"] is None for session in found)))
    return EXIT_OK


def _watch(path: str, wanted: Wanted, arguments: argparse.Namespace) -> NoReturn:
    """Print the sessions, and then each one whose state changes; never returns."""
    last: Mapping[int, object] | None = None
    while True:
        began = time.monotonic()
        found = {session["session"]: session for session in _sessions(path, wanted)}
        # Of a running session, the reason has the time since its start in it.
        marks = {
            number: (it["state"], it["attempts"], it["state"] == PendingState.RUNNING or it["why"])
            for number, it in found.items()
        }
        if last is None:
            print_sessions(found.values(), wanted, as_json=arguments.json)
        else:
            # A session that is not listed any more is closed.
            gone = [_find(path, number) for number in last if number not in found]
            changes = [*gone, *(found[number] for number, mark in marks.items() if mark != last.get(number))]
            if arguments.json:
                print_sessions(changes, wanted, as_json=True)
            elif changes:
                now = time.time()
                # Without the titles, but as wide.
                lines = columns([TITLES, *(row(session, now) for session in changes)], right=[0])[1:]
                print(f"--- {time.strftime('%H:%M:%S')}", *lines, sep="\n")
        # Output to a pipe is buffered in blocks, and its reader follows the changes too.
        sys.stdout.flush()
        last = marks
        # A long list must not keep the daemon busy, so it is asked for at most a tenth of the time.
        time.sleep(max(1, 10 * (time.monotonic() - began)))


def _retry(path: str, wanted: Wanted, *, every: bool) -> int:
    # The reply of Retry has only numbers, so the states are read before and after.
    before = {it["session"]: it for it in _sessions(path, wanted)}
    started = call(path, "Retry", {**wanted, "all": every})["sessions"]
    after = {it["session"]: it for it in _sessions(path, wanted)}
    now = time.time()
    for number in started:
        # A session that is not pending any more has already ended again.
        session = after.get(number) or _find(path, number)
        print(printable(after_retry(before.get(number, session), session, now)))
    if not started and wanted["session"] is None:
        # Not an error: no session has to wait.
        print("no session is paused or resting")
    elif not started:
        print(printable(not_retried(after[wanted["session"]])))
    return EXIT_OK


def _cancel(path: str, session: int) -> int:
    server = _find(path, session)["server"]
    was = call(path, "Cancel", {"session": session})["was"]
    remembered = "its id stays remembered, a repeat starts nothing"
    print(printable(f"session {session} of {server}: cancelled (was {was}); {remembered}"))
    return EXIT_OK
