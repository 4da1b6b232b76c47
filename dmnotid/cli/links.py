"""`dmnotid links`: every network interface, its connection type, what it lacks, and which one a session would use."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from dmnotid.cli.arguments import parse_connection_types
from dmnotid.cli.process import DEFAULT_CONFIG, EXIT_OK
from dmnotid.cli.table import columns
from dmnotid.config.durations import spell
from dmnotid.config.loading import load_connections
from dmnotid.config.values import ConnectionsConfig
from dmnotid.errors import DmnotidError
from dmnotid.host import log
from dmnotid.host.text import printable
from dmnotid.links.availability import Link, available_connections, explain_missing, read_links
from dmnotid.links.monitor import Links
from dmnotid.policy.schedule import choose_connection
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType

_TITLES: Final = ("INTERFACE", "TYPE", "UP", "CARRIER", "ADDRESS", "ROUTE", "AVAILABLE", "TYPE FROM")
_NOTHING: Final = ("-",) * 5

Show = Callable[[Sequence[Link], Sequence[Connection]], None]
"""Prints all interfaces, and which of the connections a session would use: those that it may use, best route first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what follows `dmnotid links`."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_CONFIG} if it exists")
    add(
        "--prefer",
        type=parse_connection_types,
        default=(),
        metavar="TYPE,…",
        help="connections that the session prefers, most wanted first: mobile, wireless, wireline, any",
    )
    add("--watch", action="store_true", help="follow changes until Ctrl-C")
    add("--json", action="store_true", help="print one JSON object a line")


def main(arguments: argparse.Namespace) -> int:
    """Print the interfaces once, or follow them. Needs no privilege, and reads no secret."""
    config = _load(arguments.config)
    # A single read cannot show how long a connection has been available.
    proviso = "" if arguments.watch or not config.settle else f", if it has been available for {spell(config.settle)}"
    show = partial(_print_json, arguments.prefer) if arguments.json else _Table(arguments.prefer, proviso).show
    if arguments.watch:
        # Standard output is for the table or the JSON objects alone.
        log.configure("warning", "text", sys.stderr)
        asyncio.run(_follow(config, show))
    with _kernel_errors():
        links = read_links(config)
    show(links, available_connections(links))
    return EXIT_OK


def _load(file: Path | None) -> ConnectionsConfig:
    """Read `connections` of a configuration; the defaults if no file is given and the default one does not exist."""
    try:
        if file is None:
            # Not exists(): a link that leads nowhere is a problem, not a missing file.
            DEFAULT_CONFIG.lstat()
    except FileNotFoundError:
        return ConnectionsConfig()
    except OSError:
        # Reading the file reports why it is not accessible.
        pass
    return load_connections(file or DEFAULT_CONFIG)


@contextmanager
def _kernel_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DmnotidError(f"network interfaces cannot be read: {error.strerror}") from error


async def _follow(config: ConnectionsConfig, show: Show) -> NoReturn:
    """Show the interfaces, and again after each change, as a daemon that starts now finds them."""
    # The monitor of the daemon itself, so that both find the same connections.
    links, changed = Links(config), asyncio.Event()
    with _kernel_errors():
        links.open(changed.set)
    try:
        while True:
            show(links.links, links.available())
            # Output to a pipe is buffered in blocks, and its reader follows the changes too.
            sys.stdout.flush()
            await changed.wait()
            changed.clear()
    finally:
        links.close()


class _Table:
    """Shows all interfaces, then those that have changed."""

    def __init__(self, preferred: Sequence[ConnectionType], proviso: str) -> None:
        # The connection types that the session prefers, most wanted first.
        self._preferred = preferred
        # The condition that a single read cannot check; empty while watching.
        self._proviso = proviso
        # The rows shown last, by interface.
        self._rows: dict[str, tuple[str, ...]] = {}
        # The sentence shown last; empty before the first table.
        self._choice = ""

    def show(self, links: Sequence[Link], connections: Sequence[Connection]) -> None:
        rows = {link.name: _row(link, connections) for link in links}
        shown = rows | {name: (name, *_NOTHING, "gone", "-") for name in self._rows if name not in rows}
        # All rows are laid out, so that the changed ones line up with the table.
        titles, *lines = columns([_TITLES, *shown.values()])
        news = [line for line, name in zip(lines, shown, strict=True) if shown[name] != self._rows.get(name)]
        preferred, chosen = self._preferred, choose_connection(self._preferred, connections)
        session = f"a session that prefers {', '.join(preferred)}" if preferred else "a session without preference"
        if chosen is None:
            choice = f"{session} would wait: {printable(explain_missing(links, preferred))}"
        else:
            choice = f"{session} would use {printable(chosen.interface)} ({chosen.type}){self._proviso}"
        if choice != self._choice:
            news.append(choice)
        if not self._choice:
            print(titles, *lines, choice, sep="\n")
        elif news:
            print(f"--- {time.strftime('%H:%M:%S')}", *news, sep="\n")
        self._rows, self._choice = rows, choice


def _row(link: Link, connections: Sequence[Connection]) -> tuple[str, ...]:
    return (
        link.name,
        str(link.type),
        "yes" if link.up else "no",
        "yes" if link.carrier else "no",
        _first(link.addresses),
        _first(link.routes),
        _missing(link, connections) or "yes",
        link.why,
    )


def _first(values: Sequence[object]) -> str:
    """Return the first value, and the number of others."""
    more = f" (+{len(values) - 1})" if len(values) > 1 else ""
    return f"{values[0]}{more}" if values else "-"


def _missing(link: Link, connections: Sequence[Connection]) -> str | None:
    """Return why sessions may not use an interface, None if they may."""
    # An interface that lacks nothing is still not used before `connections.settle` is over.
    return link.missing or (None if link.connection in connections else "settling")


def _print_json(preferred: Sequence[ConnectionType], links: Sequence[Link], connections: Sequence[Connection]) -> None:
    chosen = choose_connection(preferred, connections)
    facts = {
        # Milliseconds are enough to compare it with the log.
        "time": round(time.time(), 3),
        "interfaces": [_json(link, connections) for link in links],
        "preferred_connections": preferred,
        "uses": chosen and {"connection": chosen.type, "interface": chosen.interface},
        "missing": None if chosen else explain_missing(links, preferred),
    }
    print(json.dumps(facts))


def _json(link: Link, connections: Sequence[Connection]) -> dict[str, object]:
    missing = _missing(link, connections)
    return {
        "interface": link.name,
        "index": link.ifindex,
        "connection": link.type,
        "why": link.why,
        "up": link.up,
        "carrier": link.carrier,
        "addresses": [str(address) for address in link.addresses],
        "routes": [str(route) for route in link.routes],
        "missing": missing,
        "available": missing is None,
    }
