"""`dmnotid metrics`: what the daemon counts, for Prometheus: as text, as a file for node_exporter, or over HTTP."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from dmnotid.cli.asking import asks_daemon, explain, refusal
from dmnotid.cli.exposition import Family, families, journal_bytes, last_accepted, oldest_pending, render, up
from dmnotid.cli.places import add_places, find_socket, find_state
from dmnotid.cli.process import EXIT_OK
from dmnotid.control.client import Failed, Unreachable, call
from dmnotid.errors import DmnotidError, JournalError

PLAIN: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

MAX_REQUEST: Final = 8_192
"""Maximum size of the head of a scrape, in octets; that of Prometheus has about 400."""

# A whole head with its path.
_REQUEST: Final = re.compile(rb"GET (/\S*) HTTP/1\.[01]\r?\n(?:.*\n)?\r?\n", re.DOTALL)
_STANDARD_INPUT: Final = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid metrics`."""
    add = parser.add_argument
    add("--no-servers", action="store_true", help="one sample for all servers, not one for each")
    add_places(parser)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--openmetrics", action="store_true", help="print OpenMetrics 1.0, not the text format 0.0.4")
    add("--write", type=Path, metavar="FILE", help="replace FILE, for the textfile collector of node_exporter")
    add("--http", action="store_true", help="answer one HTTP request on standard input (for systemd)")


@asks_daemon
def main(arguments: argparse.Namespace) -> int:
    """Print, write or serve the metrics; those of a daemon that does not run are valid too."""
    scrape = partial(_scrape, arguments)
    if arguments.http:
        sys.stdout.buffer.write(answer(read_head(_STANDARD_INPUT), scrape))
    elif arguments.write:
        # The textfile collector reads only the older format.
        replace_file(arguments.write, scrape(PLAIN))
    else:
        print(scrape(OPENMETRICS if arguments.openmetrics else PLAIN), end="")
    return EXIT_OK


def _scrape(arguments: argparse.Namespace, content_type: str) -> str:
    """Ask the daemon, and return the metrics in a format. Raises Unreachable if this user may not ask."""
    # A daemon that does not answer has no counters, so no time of creation is written.
    started, one_each = 0.0, not arguments.no_servers
    try:
        status = call(find_socket(arguments), "Status")
        started, found = status["started"], families(status, servers=one_each)
    except Unreachable as problem:
        # The daemon may well run, so `up 0` would be wrong.
        if problem.why == "forbidden":
            raise
        found = _stopped(find_state(arguments), one_each=one_each)
    return render(found, created=started if content_type == OPENMETRICS else None)


def _stopped(state: Path, *, one_each: bool) -> Iterator[Family]:
    """Yield the metrics of a daemon that does not answer: those of its journal, if this user can read it."""
    # A running daemon makes the import of SQLite unnecessary.
    from dmnotid.journal.reading import read_copy  # noqa: PLC0415
    from dmnotid.journal.rows import PENDING, shown_time  # noqa: PLC0415

    # A scrape that fails would look like a failure of this command.
    yield up(0)
    with suppress(JournalError), read_copy(state) as journal:
        yield from last_accepted(journal.last_accepted, one_each=one_each)
        pending = [shown_time(row.received_at) for row in journal.rows() if row.state == PENDING]
        if pending:
            yield oldest_pending(min(pending))
        yield journal_bytes(journal.octets)


def replace_file(file: Path, text: str) -> None:
    """Replace a file by one that any user can read; a reader finds the former or the new text, never a part of one."""
    # node_exporter reads only names that end with .prom.
    beside = Path(f"{file}.new")
    try:
        beside.unlink(missing_ok=True)
        # Not a link that another user of the directory has put there.
        with beside.open("x", encoding="utf-8") as stream:
            # node_exporter runs as a user of its own, whatever the umask here is.
            os.fchmod(stream.fileno(), 0o644)
            stream.write(text)
        beside.replace(file)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise DmnotidError(f"{file} cannot be written: {error.strerror}") from error


def read_head(descriptor: int) -> bytes:
    """Read the head of an HTTP request: as far as its empty line, MAX_REQUEST octets, or the end of the stream."""
    head = b""
    # HTTP lets a server accept a bare line feed (RFC 9112, 2.2).
    while b"\r\n\r\n" not in head and b"\n\n" not in head and len(head) < MAX_REQUEST:
        octets = os.read(descriptor, MAX_REQUEST - len(head))
        if not octets:
            break
        head += octets
    return head


def respond(status: str, body: str, content_type: str = "text/plain; charset=utf-8") -> bytes:
    """Return an HTTP response, after which the connection ends."""
    octets = body.encode()
    # systemd starts this command for each connection, and it answers one request.
    fields = f"Content-Type: {content_type}\r\nContent-Length: {len(octets)}\r\nConnection: close"
    return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + octets


def answer(head: bytes, scrape: Callable[[str], str]) -> bytes:
    """Return the HTTP response to the head of a request; `scrape` returns the metrics in a format."""
    request = _REQUEST.fullmatch(head)
    if request is None:
        return respond("400 Bad Request", "a GET request of HTTP/1.0 or 1.1 is expected\n")
    # Prometheus can be configured to send a query.
    if request[1].partition(b"?")[0] != b"/metrics":
        return respond("404 Not Found", "the metrics are at /metrics\n")
    # A client that names the format accepts it; Prometheus does so by default.
    content_type = OPENMETRICS if b"application/openmetrics-text" in head.lower() else PLAIN
    try:
        # Asked only now, so that a wrong request costs the daemon nothing.
        text = scrape(content_type)
    except Unreachable as problem:
        return respond("503 Service Unavailable", f"{explain(problem)}\n")
    except Failed as problem:
        return respond("503 Service Unavailable", "\n".join([*refusal(problem), ""]))
    return respond("200 OK", text, content_type)
