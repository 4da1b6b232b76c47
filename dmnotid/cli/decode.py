"""`dmnotid decode`: show the fields of a datagram, its first error, and what the daemon would do with it.

The command reads no journal, so it can't detect a duplicate.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from dmnotid.cli.anatomy import PLAIN, Palette, package_parts, palette_for, place_of, push_parts, render, unread_part
from dmnotid.cli.arguments import PACKAGE, parse_hex, parse_sender, parse_time
from dmnotid.cli.parser import UsageError
from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM, operator_environ
from dmnotid.config.loading import load_config
from dmnotid.errors import ConfigProblem, Discard, DmnotidError
from dmnotid.hook.facts import package_facts
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.freshness import Clock, judge_clock
from dmnotid.policy.reception import Datagram, Progress, Rules, receive, receive_package
from dmnotid.policy.servers import Servers
from dmnotid.sentences import show_time
from dmnotid.wire.notification import Notification, decode_notification, encode_notification

NO_SERVERS: Final = Rules(Servers(()))
"""The rules without a configuration: they judge the octets alone."""

_ANYWHERE: Final = Source("::", 0)
"""The sender without --source: no server has sources left to compare it with."""


class Input(NamedTuple):
    """One datagram, or the problem that kept it from being read; `bare` octets are a package without a push."""

    octets: bytes
    problem: str | None = None
    bare: bool = False


class Judge(NamedTuple):
    """How a datagram is judged.

    With `rules` the checks go on to server, digest and age, for that sender and at that clock; without, they end with
    the package. `bare` octets are a package without a push.
    """

    bare: bool
    rules: Rules | None
    source: Source
    clock: Clock


class Verdict(NamedTuple):
    """How far a datagram came.

    `body_offset` is None without a good push, `notification` without a good package, and `verified` without a good
    digest and age, or without rules to check them.
    """

    body_offset: int | None
    notification: Notification | None
    verified: VerifiedNotification | None
    discard: Discard | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid decode`."""
    given = "one datagram (without HEX and --file: standard input, one datagram a line)"
    parser.add_argument("hex", nargs="*", metavar="HEX", help=given)
    parser.add_argument("--file", type=Path, metavar="FILE", help="one datagram as raw octets (-: standard input)")
    parser.add_argument("--package", action="store_true", help="the octets are a package without a push around it")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each datagram")
    parser.add_argument("--config", type=Path, metavar="FILE", help="also check server, digest and age")
    times = "the clock for the age: POSIX seconds, now-2d, 2025-01-01T00:00:00Z (default: the clock of this machine)"
    parser.add_argument("--at", type=_parse_clock, metavar="TIME", help=times)
    senders = "the address of the sender, or the name of a door (default: one that every server's sources allow)"
    parser.add_argument("--source", type=parse_sender, metavar="SOURCE", help=senders)


def _parse_clock(text: str) -> float:
    seconds = parse_time(text)
    try:
        # As the verdict shows it.
        show_time(seconds)
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r}: a time in the years 1 to 9999 is expected") from None
    return seconds


def main(arguments: argparse.Namespace) -> int:
    """Show every datagram; 0 if all were accepted, 1 otherwise."""
    if arguments.hex and arguments.file is not None:
        raise UsageError("either HEX or --file FILE is expected, not both")
    if arguments.config is None and (arguments.at is not None or arguments.source is not None):
        raise UsageError("--at and --source are for the checks that --config FILE adds")
    judge, palette = _judge(arguments), palette_for(sys.stdout)
    all_accepted = True
    for given in _inputs(arguments):
        if given.problem is not None:
            print(given.problem, file=sys.stderr)
            if arguments.json:
                # Also one object, so that the objects and the lines of the input stay in step.
                unread = {"verdict": "error", "reason": None, "body_offset": None, "problem": given.problem}
                print(json.dumps(unread | _NO_FACTS))
            all_accepted = False
            continue
        # A line of `dmnotid discards` may be a package without a push.
        judge = judge._replace(bare=given.bare or arguments.package)
        verdict = decide(given.octets, judge)
        all_accepted &= verdict.discard is None
        if arguments.json:
            print(json.dumps(answer(verdict)))
        else:
            print("\n".join(describe(given.octets, verdict, judge, palette)), end="\n\n")
    return EXIT_OK if all_accepted else EXIT_PROBLEM


def _judge(arguments: argparse.Namespace) -> Judge:
    # Without a journal, no server has signed before.
    clock = judge_clock(time.time(), None) if arguments.at is None else Clock(arguments.at)
    if arguments.config is None:
        return Judge(arguments.package, None, _ANYWHERE, clock)

    # The secret that is needed may be readable for this user although another server's is not.
    def report(problem: ConfigProblem) -> None:
        print(f"{problem}; decode continues without this secret", file=sys.stderr)

    config = load_config(arguments.config, operator_environ(), unread=report)
    rules, source = config.rules, arguments.source
    if source is None:
        # The sender is not known, so no server is refused because of its sources.
        rules = rules._replace(servers=Servers(server._replace(sources=()) for server in rules.servers))
    elif source.port is None:
        # A sender without a port is a door, and a mistyped name would look like a refusal.
        names = {door.source for door in config.doors}
        if source.address not in names:
            known = f"the doors are {', '.join(sorted(names))}" if names else "there are no doors"
            raise UsageError(f"--source {source}: {config.file} has no door of that name; {known}")
    return Judge(arguments.package, rules, source or _ANYWHERE, clock)


def _inputs(arguments: argparse.Namespace) -> Iterator[Input]:
    if arguments.hex:
        # Octets that a shell has split into words are one datagram.
        return iter([_read_hex(" ".join(arguments.hex), "arguments")])
    # Python sets it to None if its descriptor was closed at the start.
    if sys.stdin is None and arguments.file in {None, Path("-")}:
        raise DmnotidError("standard input is closed; give the datagram as HEX, or --file FILE")
    if arguments.file is not None:
        try:
            octets = sys.stdin.buffer.read() if str(arguments.file) == "-" else arguments.file.read_bytes()
        except OSError as error:
            raise DmnotidError(f"{arguments.file}: {error.strerror}") from error
        return iter([Input(octets)])
    # Without a hint, the program would seem to hang.
    if sys.stdin.isatty():
        print("Reading hex from standard input, one datagram a line; Ctrl-D ends it.", file=sys.stderr)
    # Octets that are not UTF-8 are reported with their column, as any other character that is not a hex digit.
    return _read_lines(open(sys.stdin.fileno(), errors="surrogateescape", closefd=False))


def _read_lines(lines: Iterable[str]) -> Iterator[Input]:
    for number, line in enumerate(lines, 1):
        # `dmnotid discards` explains each datagram in a comment.
        digits = line.partition("#")[0]
        if digits and not digits.isspace():
            # As `dmnotid discards` marks it.
            octets = digits.removeprefix(f"{PACKAGE} ")
            yield _read_hex(octets.rstrip(), f"line {number}")._replace(bare=octets != digits)
        if _OFFSET.match(line):
            # The rows that follow belong to the same datagram, and would be read as further ones.
            return


# The offset in the first row of a hex dump, as xxd, hexdump, tcpdump and Wireshark write it, or in any row of xxd. As a
# word of its own no datagram begins with it: octet 1 of a push is not 0.
_OFFSET: Final = re.compile(r"\s*(0x)?(0{4,8}\s+\S|[0-9a-fA-F]{4,8}:)")

# Dumps differ in the order of octets and in the column of text, so none is read.
_NO_DUMP: Final = "looks like a row of a hex dump: the octets alone are expected, on one line (raw octets: --file FILE)"


def _read_hex(text: str, origin: str) -> Input:
    if _OFFSET.match(text):
        return Input(b"", f"{origin}: {_NO_DUMP}")
    try:
        return Input(parse_hex(text))
    except ValueError as error:
        return Input(b"", f"{origin}: {error}")


def decide(octets: bytes, judge: Judge) -> Verdict:
    """Take octets through the daemon's own walk."""
    # The walk notes how far it came, for the table of a datagram that it discards.
    progress = Progress(body_offset=0 if judge.bare else None)
    # The walk needs rules in any case; these refuse only at the stage of the server.
    rules = NO_SERVERS if judge.rules is None else judge.rules
    verified: VerifiedNotification | None = None
    found: Discard | None = None
    try:
        if judge.bare:
            verified = receive_package(octets, judge.source, rules, judge.clock, progress)
        else:
            datagram = Datagram(octets, judge.source, judge.clock.now)
            verified = receive(datagram, rules, judge.clock, progress)
    except Discard as discard:
        # Without rules there is no server to find, so only a discard before that stage counts.
        if judge.rules is not None or progress.notification is None:
            found = discard
    return Verdict(progress.body_offset, progress.notification, verified, found)


def answer(verdict: Verdict) -> dict[str, object]:
    """Return a verdict as the JSON object of one line."""
    discard, notification = verdict.discard, verdict.notification
    facts: dict[str, object] = {
        "verdict": "accept" if discard is None else "discard",
        "reason": None if discard is None else discard.reason,
        "body_offset": verdict.body_offset,
    }
    # An accepted datagram has no problem, and no key for it.
    if discard is not None:
        facts["problem"] = str(discard)
    facts |= _NO_FACTS if notification is None else package_facts(notification)
    if verdict.verified is not None:
        facts["server"] = verdict.verified.server_id
    return facts


_NO_FACTS: Final = dict.fromkeys(package_facts(decode_notification(encode_notification(0))))
"""The facts of octets that are not a package: every key, without a value."""


def describe(octets: bytes, verdict: Verdict, judge: Judge, palette: Palette = PLAIN) -> list[str]:
    """Return the lines of text about a datagram: its parts, then the verdict."""
    body_offset = verdict.body_offset
    parts = [] if judge.bare else push_parts(octets)
    # Without a good push, the octets after its headers are of no known kind.
    if body_offset is not None:
        parts += package_parts(octets[body_offset:], body_offset)
    parts += unread_part(octets, parts)
    lines, discard = render(parts, palette), verdict.discard
    if discard is None:
        return [*lines, f"{palette.good}accepted{palette.off}: {_show_accepted(verdict, judge)}"]
    place = place_of(discard, body_offset or 0)
    at = "" if place is None else f" at octet {place} of {len(octets)}"
    return [*lines, f"{palette.bad}discarded: {discard.reason}{at}{palette.off}: {discard}"]


def _show_accepted(verdict: Verdict, judge: Judge) -> str:
    if verdict.verified is None:
        return "well-formed; server, digest and age need --config"
    server_id, sent_at = verdict.verified.server_id, verdict.verified.notification.sent_at
    if sent_at is None:
        return f"from {server_id!r}, unsigned, which its configuration allows"
    # The signed time has whole seconds, so a fraction would be of no use.
    now = int(judge.clock.now)
    age = f"{now - sent_at} s before" if now >= sent_at else f"{sent_at - now} s after"
    clock = show_time(now) + ("" if judge.clock.believed else " (a clock that is not believed)")
    former = " with its former secret" if verdict.verified.secret == "former" else ""  # noqa: S105 - its name
    return f"signed by {server_id!r}{former}, {age} {clock}"
