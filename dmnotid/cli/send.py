"""`dmnotid send`: build and send a notification as a DM server must (5.3.5, steps 1 to 3)."""

import argparse
import asyncio
import errno
import fcntl
import json
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TextIO

from dmnotid.bearers.door import DoorShut, Verdict, offer
from dmnotid.cli.arguments import (
    add_option_arguments,
    find_server,
    parse_count,
    parse_destination,
    parse_hex,
    parse_number,
    parse_server_id,
    parse_time,
)
from dmnotid.cli.order import BREAKS, PACKAGE_BREAKS, Order
from dmnotid.cli.parser import UsageError
from dmnotid.cli.process import EXIT_OK, operator_environ
from dmnotid.config.durations import spell
from dmnotid.config.loading import load_config
from dmnotid.config.secrets import without_line_break
from dmnotid.config.values import Config
from dmnotid.errors import DmnotidError
from dmnotid.policy.addresses import show_address
from dmnotid.wire.notification import MAX_NOTIFICATION_ID, MAX_TIME
from dmnotid.wire.wsp import DEFAULT_MAX_HEADER_OCTETS, WAP_PUSH_PORT, encode_field, header_border

SHOWN: Final = 10
"""Maximum number of datagrams that one call reports one by one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid send`."""
    add = parser.add_argument_group("destination").add_argument
    local = ("127.0.0.1", WAP_PUSH_PORT)
    shown = f"HOST[:PORT], [ADDRESS]:PORT, or unix:/PATH for a door (default: {show_address(*local)})"
    add("--to", type=parse_destination, default=local, metavar="DESTINATION", help=shown)
    bare = "send the package without a push around it, to a door for packages"
    add("--package", action="store_true", help=bare)
    printing = "print each datagram in hex and send nothing; the NOTIFICATION-IDs count as sent"
    add("--print", action="store_true", help=printing)
    add("--count", type=parse_count, default=1, metavar="N", help="number of datagrams (default: 1)")
    add("--rate", type=_parse_rate, metavar="N", help="maximum number of datagrams a second (default: no limit)")
    add = parser.add_argument_group("server").add_argument
    add("--server", type=parse_server_id, metavar="ID", help="SERVER-ID (default: the only one of --config)")
    add("--no-server-id", action="store_true", help="leave the SERVER-ID Option out")
    configs = "take the server and its secret from a configuration of dmnotid"
    add("--config", type=Path, metavar="FILE", help=configs)
    secrets = "take the secret from a file, without the line break at its end"
    add("--secret-file", type=Path, metavar="FILE", help=secrets)
    add("--unsigned", action="store_true", help="leave the SHA256-DIGEST Option out")
    package = parser.add_argument_group("notification")
    ids = "first NOTIFICATION-ID, decimal or 0x (default: a random one, then the one after the last for the server)"
    parse_id = partial(parse_number, lowest=0, highest=MAX_NOTIFICATION_ID)
    package.add_argument("--id", type=parse_id, metavar="N", help=ids)
    add_option_arguments(package)
    times = "time of SHA256-DIGEST, such as now-2d or 2025-01-01T00:00:00Z (default: now)"
    package.add_argument("--time", type=_parse_signed_time, metavar="TIME", help=times)
    add = parser.add_argument_group("push").add_argument
    tids = "TID (default: the last octet of the NOTIFICATION-ID)"
    add("--tid", type=partial(parse_number, lowest=0, highest=0xFF), metavar="N", help=tids)
    force = f"also send push headers of more than {DEFAULT_MAX_HEADER_OCTETS} octets, which clients may drop (6.1)"
    add("--force", action="store_true", help=force)
    broken = "break each datagram so that it is discarded for that reason: %(choices)s"
    add("--break", choices=BREAKS, dest="broken", metavar="REASON", help=broken)
    further = "a further push header: 'X-Name: text', '0x34: 1' (well-known number) or 'hex:8d90'; may be repeated"
    add("--header", type=_parse_header, action="append", default=[], metavar="NAME:VALUE", help=further)


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        # Not above 0, so that the message is the same.
        rate = 0.0
    # In this form the comparison refuses nan too.
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a number of datagrams a second, above 0, is expected")
    return rate


def _parse_signed_time(text: str) -> float:
    seconds = parse_time(text)
    # The field is an unsigned 32-bit number of seconds.
    if not 0 <= seconds <= MAX_TIME:
        raise argparse.ArgumentTypeError(f"{text!r}: a time from 1970 to 2106 is expected")
    return seconds


def _parse_header(text: str) -> bytes:
    name, colon, value = (word.strip() for word in text.partition(":"))
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME: VALUE or hex:OCTETS is expected")
    try:
        if name == "hex":
            return parse_hex(text[4:])
        if not name.startswith("0x"):
            return encode_field(name, value)
        # A well-known header is one octet with its high bit set, which leaves 7 bits (WSP).
        return encode_field(parse_number(name, 0, 0x7F), int(value) if value.isdecimal() else value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def main(arguments: argparse.Namespace) -> int:
    """Build and send (or print) every datagram; 1 if one can't be built or sent."""
    config = None
    if arguments.config is not None:
        # First without any secret, for those of other servers may be unreadable here.
        config = load_config(arguments.config, os.environ, wanted=lambda *_: False)
    if arguments.package:
        _check_package(arguments)
    server_id, secret = _server_and_secret(arguments, config)
    order = Order(
        server_id=None if arguments.no_server_id else server_id,
        secret=secret,
        preferred=arguments.prefer,
        requested_mos=arguments.req_mo,
        cached_mos=arguments.req_mo_cv,
        headers=tuple(arguments.header),
        tid=arguments.tid,
        sent_at=arguments.time,
        bare=arguments.package,
    )
    try:
        # Built before an id is taken, so that a notification that can't be built uses none up.
        built = order.build(MAX_NOTIFICATION_ID)
        start, end = (0, 0) if order.bare else header_border(built)
        order = replace(order, broken=arguments.broken)
    except ValueError as error:
        raise DmnotidError(f"dmnotid send: {error}") from error
    if end - start > DEFAULT_MAX_HEADER_OCTETS and not arguments.force:
        most = f"at most {DEFAULT_MAX_HEADER_OCTETS} are allowed (6.1)"
        raise UsageError(f"the push headers have {end - start} octets, {most}: leave some out, or use --force")
    # Notifications without SERVER-ID share the counter of the empty one.
    first = next_ids(server_id or "", arguments.count) if arguments.id is None else arguments.id
    # At no rate, because nothing is sent.
    if arguments.print:
        for notification_id in _paced(first, arguments.count, None):
            print(order.build(notification_id).hex())
        return EXIT_OK
    # Printed here, so that lost output is not taken for an error of the destination.
    for line in _send_all(order, first, arguments, config):
        print(line)
    return EXIT_OK


def _check_package(arguments: argparse.Namespace) -> None:
    """Refuse arguments that a package without a push has no place for. Raises UsageError."""
    if not isinstance(arguments.to, Path) and not arguments.print:
        raise UsageError("--package is for a door (--to unix:/PATH) or --print: over UDP, a push is needed")
    # Otherwise they would be ignored without a word.
    if arguments.tid is not None or arguments.header:
        raise UsageError("--tid and --header are parts of the push, which --package leaves out")
    if arguments.broken not in {None, *PACKAGE_BREAKS}:
        raise UsageError(f"--break {arguments.broken} breaks the push; with --package: {', '.join(PACKAGE_BREAKS)}")


def _server_and_secret(arguments: argparse.Namespace, config: Config | None) -> tuple[str | None, bytes | None]:
    server_id: str | None = arguments.server
    secret: bytes | None = None
    if config is not None:
        server = find_server(config, server_id)
        server_id, secret = server.id, server.secret
        if secret is not None and arguments.secret_file is None and not arguments.unsigned:
            # Only this secret, because those of other servers may be unreadable here.
            mine = (server.id, "secret")
            config = load_config(arguments.config, operator_environ(), wanted=lambda it, key, _: (it, key) == mine)
            secret = find_server(config, server.id).secret
    # A notification that leaves SERVER-ID out by mistake would be discarded for another reason.
    elif server_id is None and not arguments.no_server_id:
        raise UsageError("--server ID is needed (or --no-server-id, or --config with one server)")
    # It wins over the configuration, to test how a device refuses another secret.
    if arguments.secret_file is not None:
        secret = _read_secret(arguments.secret_file)
    if arguments.unsigned:
        if arguments.broken == "digest-mismatch":
            raise UsageError("--break digest-mismatch breaks the digest, which --unsigned leaves out")
        if arguments.time is not None:
            raise UsageError("--time is part of the digest, which --unsigned leaves out")
        return server_id, None
    if secret is None:
        raise UsageError("a secret is needed to sign: --secret-file FILE, or --config FILE with one (or --unsigned)")
    return server_id, secret


def _read_secret(file: Path) -> bytes:
    try:
        octets = file.read_bytes()
    except OSError as error:
        raise DmnotidError(f"dmnotid send: --secret-file {file}: {error.strerror}") from error
    secret = without_line_break(octets)
    # A digest over an empty secret proves nothing.
    if not secret:
        raise DmnotidError(f"dmnotid send: --secret-file {file}: is empty")
    return secret


def _send_all(order: Order, first: int, arguments: argparse.Namespace, config: Config | None) -> Iterator[str]:
    """Send every datagram, at a door each once the one before is answered, and yield lines about it."""
    verdicts: Counter[str] = Counter()
    to = f"unix:{arguments.to}" if isinstance(arguments.to, Path) else show_address(*arguments.to)
    try:
        with _open(arguments.to) as (peer, is_local, send):
            for index, notification_id in enumerate(_paced(first, arguments.count, arguments.rate)):
                datagram = order.build(notification_id)
                verdict = send(datagram)
                if index < SHOWN:
                    yield f"sent {len(datagram)} octets to {peer}: {order.describe(notification_id)}"
                if verdict is not None:
                    verdicts[verdict.word] += 1
                    if index < SHOWN:
                        yield f"answer: {json.dumps(verdict.answer)}"
    except UnicodeError as error:
        raise DmnotidError(f"dmnotid send: {to}: not a host name: {error}") from error
    except (DoorShut, OSError) as error:
        raise DmnotidError(f"dmnotid send: {to}: {getattr(error, 'strerror', error)}") from error
    # The lines above are of the first ones only.
    if arguments.count > SHOWN:
        last = first + arguments.count - 1 & MAX_NOTIFICATION_ID
        found = ", ".join(f"{count} {word}" for word, count in verdicts.most_common())
        ids = f"NOTIFICATION-ID {first} to {last}"
        yield f"sent {arguments.count} datagrams in all, {ids}{': ' if found else ''}{found}"
    # Without verdicts, that of a datagram which was not broken on purpose is likely.
    accepted = verdicts["accepted"] if verdicts else arguments.broken is None
    if config is not None and is_local and accepted:
        yield from _warn_of_used_ids(first, arguments, config)


@contextmanager
def _open(to: tuple[str, int] | Path) -> Iterator[tuple[str, bool, Callable[[bytes], Verdict | None]]]:
    """Yield the name of the other end, whether that is on this machine, and a function that sends one datagram."""
    if isinstance(to, Path):
        with asyncio.Runner() as runner:
            # The daemon answers after its commit, so each datagram waits for the one before.
            yield f"unix:{to}", True, lambda datagram: runner.run(offer(to, datagram))
        return
    # The first address is the preferred one: getaddrinfo() sorts by RFC 6724.
    family, kind, protocol, _, address = socket.getaddrinfo(*to, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as sock:
        # Only a connected UDP socket receives errors such as "connection refused".
        sock.connect(address)
        own, peer = sock.getsockname()[0], sock.getpeername()[0]
        # The kernel sends to an own address from that address.
        is_local = ip_address(peer.partition("%")[0]).is_loopback or peer == own

        def send(datagram: bytes) -> None:
            sock.send(datagram)

        yield show_address(*sock.getpeername()[:2]), is_local, send
        # The last datagram has no later call on the socket that would report its error: a closed port, for example.
        if refused := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(refused, os.strerror(refused))


def _warn_of_used_ids(first: int, arguments: argparse.Namespace, config: Config) -> Iterator[str]:
    server = find_server(config, arguments.server)
    # The daemon remembers accepted notifications only, and accepts such a one only if the file happens to have the
    # secret of the configuration.
    if server.require_digest and (arguments.unsigned or arguments.secret_file is not None):
        return
    ids = f"{arguments.count} NOTIFICATION-IDs" if arguments.count > 1 else f"NOTIFICATION-ID {first}"
    yield (
        f"A daemon with {config.file} remembers {ids} of {server.id!r} for {spell(config.remember)}"
        " (duplicates.remember): until then it discards a notification of the real server with the same id."
    )


def _paced(first: int, count: int, rate: float | None) -> Iterator[int]:
    """Yield `count` NOTIFICATION-IDs from `first`, at most `rate` a second."""
    begin = time.monotonic()
    for index in range(count):
        if rate is not None:
            # Each time counts from the beginning, so that the delays of sleep() do not add up.
            time.sleep(max(0.0, begin + index / rate - time.monotonic()))
        # After the highest id comes 0.
        yield first + index & MAX_NOTIFICATION_ID


def next_ids(server_id: str, count: int) -> int:
    """Take `count` NOTIFICATION-IDs for a server from this user's counter, and return the first.

    The counter is a small file in $XDG_STATE_HOME. It begins at a random id, because the low ones are those that a real
    server is likely to use next. If the file can't be used, a warning goes to standard error, and each call begins at a
    random id.
    """
    # For a message about a home directory that is not known.
    file = Path("sent-ids.json")
    try:
        home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - never raises
        # expanduser leaves the ~ of a user without a home directory.
        if not os.path.isabs(home):  # noqa: PTH117
            raise FileNotFoundError(errno.ENOENT, "this user has no home directory, and XDG_STATE_HOME is not absolute")
        file = Path(home) / "dmnotid" / file
        # The XDG Base Directory Specification asks for this mode.
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Unlike "w+", this mode keeps the content until the file is locked.
        with file.open("a+") as counter:
            # Two calls at the same time must not take the same ids.
            fcntl.flock(counter, fcntl.LOCK_EX)
            counter.seek(0)
            return _count_up(counter, server_id, count)
    except OSError as error:
        print(f"dmnotid send: ids are not counted, {file}: {error.strerror}", file=sys.stderr)
        return _random_id()


def _random_id() -> int:
    return random.randrange(MAX_NOTIFICATION_ID + 1)  # noqa: S311 - not a secret, only rarely the same


def _count_up(counter: TextIO, server_id: str, count: int) -> int:
    try:
        known = json.loads(counter.read() or "{}")
        first = int(known.get(server_id, _random_id())) + 1
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        # The file was cut off or edited, even to infinity or to brackets without end: start again.
        known, first = {}, _random_id()
    known[server_id] = (first + count - 1) & MAX_NOTIFICATION_ID
    # In append mode writes go to the end of the file, so an empty file needs no seek.
    counter.truncate(0)
    json.dump(known, counter)
    return first & MAX_NOTIFICATION_ID
