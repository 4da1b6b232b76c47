"""The text of `dmnotid status`, and the plain command. Monitors run it every minute, so it imports little."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from dmnotid.cli.asking import EXIT_DOWN, default_socket, exit_status, explain, problem_lines
from dmnotid.cli.table import columns, count_pending, counted, moment, titled
from dmnotid.control.client import MISSHAPEN, Failed, Unreachable, call
from dmnotid.host.text import printable, span

# As in control/client.py.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Status = Mapping[str, Any]

PATIENCE = 2.0
"""Maximum time to wait for the daemon, in seconds; one that neither starts nor stops answers in milliseconds."""

_DAY = 86_400
_TITLES = ("SERVER", "HEARD", "ACCEPTED", "DISCARDED", "PENDING", "LAST SESSION")
_NUMBERS = (2, 3, 4)
_FORMER = "former"
_WIDTH = 9


def show_status() -> int:
    """Run a plain `dmnotid status`."""
    path = default_socket()
    if os.path.exists(path):  # noqa: PTH110 - the import of pathlib takes longer than the answer of the daemon
        try:
            status = call(path, "Status", patience=PATIENCE)
            print_text(status, every=False)
            return status_of(status)
        except Unreachable as problem:
            if problem.why != "absent":
                print(printable(explain(problem)))
                return exit_status(problem)
        except (Failed, *MISSHAPEN):
            # The full command asks again, and reports it.
            pass
    from dmnotid.cli.parser import run_command  # noqa: PLC0415 - for a daemon that does not run

    return run_command(["status"])


def status_of(status: Status) -> int:
    """Return the exit status for what a daemon reports."""
    # It answers until its last session has ended, but receives nothing more.
    if status["stopping"]:
        return EXIT_DOWN
    return 1 if status["problems"] else 0


def print_text(status: Status, *, every: bool) -> None:
    """Print a status as text; of many servers only those with news, unless `every` is given."""
    print("\n".join([*map(printable, describe(status)), "", *list_servers(status, every=every)]))


def describe(status: Status) -> Iterator[str]:
    """Yield the lines about the daemon itself."""
    now, started = status["now"], status["started"]
    verb = "stops; it ran" if status["stopping"] else "runs"
    since = f"{moment(started)} ({span(now - started)})"
    yield f"dmnotid {status['program']} {verb} since {since}, pid {status['pid']}"
    yield from _list_problems(status)
    yield from titled("listens", map(_describe_socket, status["sockets"]), _WIDTH)
    hook, journal, clock = status["hook"], status["journal"], status["clock"]
    # The reason is among the problems.
    yield f"hook      {hook['what']}: {'trusted' if hook['startable'] else 'cannot be started'}"
    yield f"journal   {journal['file']}{describe_journal(journal, now)}"
    # Until the clock was set, the latest time of a signed notification replaces it.
    yield f"clock     {'' if clock['believed'] else 'not '}believed"
    yield f"links     {'; '.join(_describe_link(link, now) for link in status['links']) or 'none'}"


def _list_problems(status: Status) -> Iterator[str]:
    problems = problem_lines(status["problems"])
    refused, now = status["config"]["reload_refused"], status["now"]
    if refused is not None:
        # The first problem is that of the reload.
        at, loaded = moment(refused["at"], now), moment(status["config"]["loaded"], now)
        head = f"reload refused {at}, the configuration of {loaded} is in force:"
        more = f" (1 of {refused['problems']}, dmnotid check has all)" if refused["problems"] > 1 else ""
        yield from titled("PROBLEM", [head, f"{problems.pop(0)}{more}"], _WIDTH)
    for problem in problems:
        yield from titled("PROBLEM", [problem], _WIDTH)


def describe_journal(journal: Mapping[str, Any], now: float) -> str:
    """Return the size of a journal and what it has, as far as it could be read."""
    # An unreadable journal is among the problems.
    known = [] if journal["octets"] is None else [f"{journal['octets'] / 1_000:,.0f} kB"]
    if journal["remembered"] is not None:
        known.append(f"{journal['remembered']:,} remembered")
    if journal["oldest"] is not None:
        known.append(f"oldest {moment(journal['oldest'], now)}")
    # A count of 0 is the usual one, and would only take room.
    if journal["errors"]:
        known.append(counted(journal["errors"], "error"))
    return f": {', '.join(known)}" if known else ""


def _describe_socket(sock: Mapping[str, Any]) -> str:
    unit = f" ({sock['unit']})" if sock["unit"] else ""
    if sock["door"] is not None:
        # The kernel drops nothing there: a sender waits for room.
        return f"{sock['listen']}{unit}: door {sock['door']}, {sock['received']:,} received"
    counts = f"{sock['received']:,} received, {sock['lost']:,} lost, {sock['junk']:,} refused as junk"
    return f"{sock['listen']}{unit}: {counts}"


def _describe_link(link: Mapping[str, Any], now: float) -> str:
    # The reason helps more than the time.
    if not link["available"]:
        return f"{link['interface']} {link['type']}: {link['why']}"
    since = f" (since {moment(link['since'], now)})" if link["since"] else ""
    return f"{link['interface']} {link['type']}{since}"


def list_servers(status: Status, *, every: bool) -> Iterator[str]:
    """Yield the table of servers, the discards by reason, and the number of pending sessions."""
    now, uptime = status["now"], status["now"] - status["started"]
    servers = status["servers"]
    shown = [server for server in servers if every or _has_news(server, now)]
    # Of a few servers, all are of interest.
    if len(servers) <= len(shown) + 10:
        shown = servers
    # Soon after a start, the counts are small for that reason alone.
    if uptime < _DAY:
        yield f"Counts since the start, {span(uptime)} ago:"
    yield from columns([_TITLES, *(_row(server, now) for server in shown)], right=_NUMBERS)
    if len(shown) < len(servers):
        yield f"{len(servers) - len(shown):,} more without news in the last day (--all)"
    yield from map(printable, _list_discards(status))
    former = [server["id"] for server in servers if server["last_secret"] == _FORMER]
    if former:
        yield printable(f"still signed with the former secret: {', '.join(former)}")
    yield ""
    counts = status["counts"]
    states = {state: count for state, count in counts["states"].items() if count}
    pending = count_pending(sum(states.values()), counts["oldest_pending"], now)
    parts = ", ".join(f"{count:,} {state}" for state, count in states.items())
    yield f"{pending}: {parts} (dmnotid sessions)" if parts else pending


def _has_news(server: Mapping[str, Any], now: float) -> bool:
    session, discard = server["last_session"], server["last_discard"]
    times = (server["last_accepted"], discard and discard["at"], session and (session["closed"] or session["started"]))
    # A pending session is news however old it is.
    return bool(server["pending"]) or any(now - at < _DAY for at in times if at)


def _row(server: Mapping[str, Any], now: float) -> tuple[str, ...]:
    heard = f"{span(now - server['last_accepted'])} ago" if server["last_accepted"] else "never"
    counts = (f"{server[name]:,}" for name in ("accepted", "discarded", "pending"))
    return (server["id"], heard, *counts, describe_session(server, now))


def describe_session(server: Mapping[str, Any], now: float) -> str:
    """Return the last session of a server."""
    session = server["last_session"]
    # The journal has sessions of servers that a reload has removed.
    parts = ["not configured"] if server["held_back"] else []
    if session is not None:
        at = session["closed"] or session["started"]
        parts.append(f"{session['state']} {moment(at, now)}" if at else session["state"])
        parts += [session["outcome"]] if session["outcome"] else []
    return ", ".join(parts) or "-"


def _list_discards(status: Status) -> Iterator[str]:
    found = [server["last_discard"] for server in status["servers"] if server["last_discard"]]
    # Of several with one reason, the last remains.
    last = {it["reason"]: it for it in sorted(found, key=lambda it: it["at"])}
    parts = []
    # The most frequent reason is the likeliest problem.
    for reason, count in sorted(status["counts"]["discarded"].items(), key=lambda item: -item[1]):
        if count:
            latest = last.get(reason)
            source = f" (last {moment(latest['at'], status['now'])} from {latest['source']})" if latest else ""
            parts.append(f"{reason} {count:,}{source}")
    if parts:
        yield f"discarded: {', '.join(parts)}"
