"""`dmnotid discards`: the last datagrams that the daemon has discarded, as lines that `dmnotid decode` reads."""

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import Any

from dmnotid.cli.arguments import PACKAGE
from dmnotid.cli.asking import asks_daemon
from dmnotid.cli.parser import UsageError
from dmnotid.cli.places import add_places, find_socket
from dmnotid.cli.process import EXIT_OK
from dmnotid.cli.table import moment
from dmnotid.control.client import stream
from dmnotid.discards import MAX_KEPT_OCTETS
from dmnotid.errors import discard_reasons
from dmnotid.host.text import printable
from dmnotid.sentences import suggest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid discards`."""
    parser.add_argument("reason", nargs="?", metavar="REASON", help="only for this reason, such as digest-mismatch")
    add_places(parser)


@asks_daemon
def main(arguments: argparse.Namespace) -> int:
    """Print the last discards of each reason; exit status 3 if the daemon does not run, 4 if the user may not ask."""
    # A mistyped reason would look like one without discards.
    reasons = discard_reasons()
    if arguments.reason is not None and arguments.reason not in reasons:
        hint = suggest(arguments.reason, reasons) or f"the reasons are {', '.join(reasons)}"
        raise UsageError(f"{arguments.reason!r} is not a reason; {hint}")
    now = time.time()
    for reply in stream(find_socket(arguments), "Discards", {"reason": arguments.reason}):
        print("\n".join(lines_of(reply["discard"], now)))
    return EXIT_OK


def lines_of(discard: Mapping[str, Any], now: float) -> Iterator[str]:
    """Yield a comment with everything but the octets, and the octets in hex, as `dmnotid decode` reads them."""
    claimed = f", server {discard['server']!r}" if discard["server"] is not None else ""
    about = f"{moment(discard['at'], now)} {discard['reason']} from {discard['source']}{claimed}"
    # The SERVER-ID and the problem can have text of the sender.
    yield printable(f"# {about}: {discard['problem']}")
    octets = discard["octets"] or ""
    # The daemon does not record how long a datagram was.
    if len(octets) // 2 >= MAX_KEPT_OCTETS:
        yield f"# the first {MAX_KEPT_OCTETS} octets; decode finds the datagram truncated if it was longer"
    # Without this word, decode takes the octets for a push.
    kind = f"{PACKAGE} " if discard["package"] else ""
    yield f"{kind}{octets}" if octets else "# the datagram was empty"
