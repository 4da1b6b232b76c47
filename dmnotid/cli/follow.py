"""`dmnotid follow`: the log of the running daemon as it is written, whatever its format and wherever it goes."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, NoReturn

from dmnotid.cli.arguments import parse_count, parse_server_id
from dmnotid.cli.asking import asks_daemon
from dmnotid.cli.places import add_places, find_socket
from dmnotid.cli.process import WARNING, print_error
from dmnotid.cli.table import moment
from dmnotid.config.values import LEVELS
from dmnotid.control.client import Unreachable, call, stream
from dmnotid.host.text import printable

PAUSE: Final = 1.0
"""Time between two attempts to reach a daemon that has ended, in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid follow`."""
    add = parser.add_argument
    add("--server", type=parse_server_id, metavar="ID", help="only the records about this server")
    add("--session", type=parse_count, metavar="N", help="only the records about this session")
    levels = f"only the records from this level on: {', '.join(LEVELS)}. There are none below log.level"
    add("--level", choices=LEVELS, metavar="LEVEL", help=levels)
    add("--json", action="store_true", help="print one JSON object a line")
    add_places(parser)


@asks_daemon
def main(arguments: argparse.Namespace) -> NoReturn:
    """Print each record until Ctrl-C, and those of the next daemon when one has ended.

    Exit status 3 if no daemon runs at the start, 4 if the user may not ask.
    """
    path = find_socket(arguments)
    # The method takes the levels themselves, because it does not know their order.
    levels = LEVELS[LEVELS.index(arguments.level) :] if arguments.level else None
    wanted = {"levels": levels, "server": arguments.server, "session": arguments.session}
    # A daemon that does not run at the start is a mistake of the caller, and not waited for.
    call(path, "Status")
    while True:
        # A daemon that ends closes the connection, which is not an error here.
        with suppress(Unreachable):
            # The daemon may have nothing to log for days.
            for reply in stream(path, "Follow", wanted, patience=None):
                event = reply["event"]
                print(json.dumps(event) if arguments.json else printable(line_of(event)))
                # Output to a pipe is buffered in blocks.
                sys.stdout.flush()
        print_error("the daemon has ended; its records continue once it answers again", WARNING)
        status = None
        while status is None:
            time.sleep(PAUSE)
            try:
                status = call(path, "Status")
            except Unreachable as problem:
                # Every other reason can pass by itself.
                if problem.why == "forbidden":
                    raise
        print_error(f"dmnotid {status['program']} answers, pid {status['pid']}", WARNING)


def line_of(event: Mapping[str, Any]) -> str:
    """Return the line of a record: its time, its level if that is not usual, and its sentence."""
    level = "" if event["level"] == "info" else f"{event['level']}: "
    # With its own time as `now`, `moment` leaves the date out.
    return f"{moment(event['at'], event['at'])} {level}{event['sentence']}"
