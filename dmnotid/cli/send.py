"""`dmnotid send`: build and send a notification as a DM server must (5.3.5, steps 1 to 3)."""

import argparse
import errno
import fcntl
import json
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, TextIO

from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.cli.words import (
    parse_cached_mos,
    parse_connection_types,
    parse_hex,
    parse_mo_indexes,
    parse_number,
    parse_positive,
    parse_time,
    parse_to,
)
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.errors import DmnotidError, UsageError, show_time
from dmnotid.policy.addresses import show_address
from dmnotid.policy.digest import sign
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import (
    MAX_NOTIFICATION_ID,
    MAX_TIME,
    CachedMo,
    ConnectionType,
    encode_notification,
)
from dmnotid.wire.octets import normal_server_id
from dmnotid.wire.wsp import WAP_PUSH_PORT, encode_field, encode_push

SHOWN: Final = 10
"""How many datagrams of one call are told one by one."""


@dataclass(frozen=True, slots=True)
class Order:
    """What every notification of a call has in common; without `server_id` no SERVER-ID, without `secret` unsigned."""

    server_id: str | None
    secret: bytes | None
    preferred: tuple[ConnectionType, ...] | None
    requested_mos: tuple[int, ...] | None
    cached_mos: tuple[CachedMo, ...] | None
    headers: tuple[bytes, ...]
    tid: int | None
    sent_at: float | None

    def build(self, notification_id: int) -> bytes:
        """Build one datagram, signed as of now unless a time is given. Raises DmnotidError for what doesn't fit."""
        try:
            package = self.build_package(notification_id)
        except ValueError as error:
            _complain(str(error))
        tid = notification_id & 0xFF if self.tid is None else self.tid
        return encode_push(package, tid=tid, further=self.headers)

    def build_package(self, notification_id: int) -> bytes:
        """Build the package alone, signed likewise. Raises ValueError for what doesn't fit."""
        sent_at = int(time.time() if self.sent_at is None else self.sent_at)
        package = encode_notification(
            notification_id,
            server_id=self.server_id,
            preferred_connections=self.preferred,
            requested_mos=self.requested_mos,
            cached_mos=self.cached_mos,
            sent_at=None if self.secret is None else sent_at,
        )
        return package if self.secret is None else sign(package, self.secret)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what follows `dmnotid send`."""
    where = parser.add_argument_group("where to")
    local = ("127.0.0.1", WAP_PUSH_PORT)
    where.add_argument(
        "--to", type=parse_to, default=local, metavar="HOST[:PORT]", help=f"default: {show_address(*local)}"
    )
    where.add_argument(
        "--print", action="store_true", help="print each datagram in hex and send nothing (it uses ids up all the same)"
    )
    where.add_argument("--count", type=parse_positive, default=1, metavar="N", help="how many (default: 1)")
    where.add_argument("--rate", type=_rate, metavar="N", help="how many a second at most (default: no limit)")
    _add_who(parser.add_argument_group("from which server"))
    _add_what(parser.add_argument_group("what it says"))
    push = parser.add_argument_group("the push around it")
    push.add_argument("--tid", type=_octet, metavar="N", help="TID (default: the NOTIFICATION-ID's last octet)")
    further = "a further push header: 'X-Name: text', '0x34: 1' (well-known number) or 'hex:8d90'"
    push.add_argument("--header", type=_header, action="append", default=[], metavar="NAME:VALUE", help=further)


def _add_who(who: argparse._ArgumentGroup) -> None:
    who.add_argument("--server", metavar="ID", help="SERVER-ID (default: the only one of --config)")
    who.add_argument("--no-server-id", action="store_true", help="leave the SERVER-ID Option out")
    who.add_argument(
        "--config", type=Path, metavar="FILE", help="take server and secret from a configuration of dmnotid"
    )
    who.add_argument("--secret-file", type=Path, metavar="FILE", help="take the secret from a file (less one newline)")
    who.add_argument("--unsigned", action="store_true", help="leave the SHA256-DIGEST Option out")


def _add_what(what: argparse._ArgumentGroup) -> None:
    ids = "NOTIFICATION-ID (decimal or 0x), counted up from there (default: on from the last this user sent for it)"
    what.add_argument("--id", type=_notification_id, metavar="N", help=ids)
    add_wishes(what)
    what.add_argument(
        "--time", type=_time, metavar="TIME", help="time of SHA256-DIGEST, as now-2d or 2025-01-01T00:00:00Z"
    )


def add_wishes(what: argparse._ArgumentGroup) -> None:
    """Declare what a server asks for."""
    types = "PREFERRED-CON-TYPE: mobile, wireless, wireline, any"
    what.add_argument("--prefer", type=parse_connection_types, metavar="TYPE,…", help=types)
    what.add_argument("--req-mo", type=parse_mo_indexes, metavar="N,…", help="REQ-MO: MO indexes")
    validators = "REQ-MO-CV: MO index, cache validator"
    what.add_argument("--req-mo-cv", type=parse_cached_mos, metavar="N:HEX,…", help=validators)


def main(arguments: argparse.Namespace) -> int:
    """Build and send (or print) every datagram; 1 where one can't be built or sent."""
    server_id, secret = _server_and_secret(arguments)
    order = _order(arguments, server_id, secret)
    order.build(MAX_NOTIFICATION_ID)  # what can't be built takes no id
    first = arguments.id
    if first is None:
        first = next_ids(server_id or "", arguments.count)
    if arguments.print:
        for notification_id in _paced(first, arguments.count, None):
            print(order.build(notification_id).hex())
        return EXIT_OK
    return _send_all(order, first, arguments)


def _order(arguments: argparse.Namespace, server_id: str | None, secret: bytes | None) -> Order:
    return Order(
        server_id=None if arguments.no_server_id else server_id,
        secret=secret,
        preferred=arguments.prefer,
        requested_mos=arguments.req_mo,
        cached_mos=arguments.req_mo_cv,
        headers=tuple(arguments.header),
        tid=arguments.tid,
        sent_at=arguments.time,
    )


def _server_and_secret(arguments: argparse.Namespace) -> tuple[str | None, bytes | None]:
    server_id = None if arguments.server is None else read_server_id(arguments.server)
    secret: bytes | None = None
    if arguments.config is not None:
        server_id, secret = _from_config(arguments.config, server_id)
    elif server_id is None and not arguments.no_server_id:
        _demand("--server ID is needed (or --no-server-id, or --config with one server)")
    if arguments.secret_file is not None:
        secret = _read_secret(arguments.secret_file)
    if arguments.unsigned:
        if arguments.time is not None:
            _demand("--time goes into the digest, which --unsigned leaves out")
        return server_id, None
    if secret is None:
        _demand("a secret is needed to sign: --secret-file FILE, or --config FILE with one (or --unsigned)")
    return server_id, secret


def read_server_id(text: str) -> str:
    """Read what follows --server. Raises UsageError for what can't be a SERVER-ID."""
    try:
        return normal_server_id(text)
    except ValueError as error:
        _demand(f"--server {text!r}: {error}")


def _from_config(file: Path, server_id: str | None) -> tuple[str, bytes | None]:
    config = load_config(file, os.environ)
    if server_id is None and len(config.servers) == 1:
        server_id = config.servers[0].id
    server = find_server(config, server_id)
    return server.id, server.secret


def find_server(config: Config, server_id: str | None) -> Server:
    """Return the configured server of that SERVER-ID. Raises UsageError where there is none."""
    servers = {server.id: server for server in config.servers}
    server = servers.get(server_id or "")
    if server is None:
        _demand(f"--server is one of {', '.join(map(repr, servers))} in {config.file}")
    return server


def _read_secret(file: Path) -> bytes:
    try:
        octets = file.read_bytes()
    except OSError as error:
        _complain(f"--secret-file {file}: {error.strerror}")
    secret = octets.removesuffix(b"\n").removesuffix(b"\r") if octets.endswith(b"\n") else octets
    if not secret:
        _complain(f"--secret-file {file}: is empty")
    return secret


def _complain(problem: str) -> NoReturn:
    message = f"dmnotid send: {problem}"
    raise DmnotidError(message)


def _demand(what: str) -> NoReturn:
    raise UsageError(what)


def _send_all(order: Order, first: int, arguments: argparse.Namespace) -> int:
    host, port = arguments.to
    try:
        with _connect(host, port) as sock:
            for index, notification_id in enumerate(_paced(first, arguments.count, arguments.rate)):
                datagram = order.build(notification_id)
                sock.send(datagram)
                if index < SHOWN:
                    peer = show_address(*sock.getpeername()[:2])
                    print(f"sent {len(datagram)} octets to {peer}: {_describe(order, notification_id)}")
            _raise_pending(sock)
    except (OSError, UnicodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else f"no host name: {error}"
        print(f"dmnotid send: {show_address(host, port)}: {problem}", file=sys.stderr)
        return EXIT_PROBLEM
    if arguments.count > SHOWN:
        last = first + arguments.count - 1 & MAX_NOTIFICATION_ID
        print(f"sent {arguments.count} datagrams in all, NOTIFICATION-ID {first} to {last}")
    return EXIT_OK


def _connect(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    sock = socket.socket(family, kind, protocol)
    try:
        # Connected, the socket is told when nobody listens on this machine's port.
        sock.connect(where)
    except OSError:
        sock.close()
        raise
    return sock


def _raise_pending(sock: socket.socket) -> None:
    refused = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if refused:
        raise OSError(refused, os.strerror(refused))


def _describe(order: Order, notification_id: int) -> str:
    server = "no SERVER-ID" if order.server_id is None else f"SERVER-ID {order.server_id!r}"
    when = "now" if order.sent_at is None else show_time(order.sent_at)
    return (
        f"NOTIFICATION-ID {notification_id}, {server}, {'unsigned' if order.secret is None else 'signed as of ' + when}"
    )


def _paced(first: int, count: int, rate: float | None) -> Iterator[int]:
    """Count NOTIFICATION-IDs up from `first`, no more than `rate` a second."""
    begin = time.monotonic()
    for index in range(count):
        if rate is not None:
            time.sleep(max(0.0, begin + index / rate - time.monotonic()))
        yield first + index & MAX_NOTIFICATION_ID


def next_ids(server_id: str, count: int) -> int:
    """Take `count` NOTIFICATION-IDs for a server from this user's counter; the first of them.

    The counter is a small file in $XDG_STATE_HOME; where it can't be kept, ids start anywhere, and standard error says
    so.
    """
    file = Path("sent-ids.json")
    try:
        file = _state_home() / "dmnotid" / file
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file.open("a+") as counter:
            fcntl.flock(counter, fcntl.LOCK_EX)
            counter.seek(0)
            return _count_up(counter, server_id, count)
    except OSError as error:
        print(f"dmnotid send: ids are not counted, {file}: {error.strerror}", file=sys.stderr)
        return random.randrange(MAX_NOTIFICATION_ID + 1)  # noqa: S311 - no secret, only seldom the same


def _state_home() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111 - never raises
    if not os.path.isabs(home):  # noqa: PTH117
        raise FileNotFoundError(errno.ENOENT, "this user has no home directory, and XDG_STATE_HOME is not absolute")
    return Path(home)


def _count_up(counter: TextIO, server_id: str, count: int) -> int:
    try:
        known = json.loads(counter.read() or "{}")
        first = int(known.get(server_id, 0)) + 1
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        known, first = {}, 1  # a file that was cut off or edited: begin again
    known[server_id] = (first + count - 1) & MAX_NOTIFICATION_ID
    counter.truncate(0)
    json.dump(known, counter)
    return first & MAX_NOTIFICATION_ID


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        message = f"{text!r}: datagrams a second, above 0, are expected"
        raise argparse.ArgumentTypeError(message)
    return rate


def _notification_id(text: str) -> int:
    return parse_number(text, MAX_NOTIFICATION_ID)


def _octet(text: str) -> int:
    return parse_number(text, 0xFF)


def _time(text: str) -> float:
    seconds = parse_time(text)
    if not 0 <= seconds <= MAX_TIME:
        message = f"{text!r}: SHA256-DIGEST holds times from 1970 to 2106"
        raise argparse.ArgumentTypeError(message)
    return seconds


def _header(text: str) -> bytes:
    try:
        return parse_hex(text[4:]) if text.startswith("hex:") else _encode_header(text)
    except ValueError as error:
        message = f"{text!r}: {error}"
        raise argparse.ArgumentTypeError(message) from None


def _encode_header(text: str) -> bytes:
    name, colon, value = (word.strip() for word in text.partition(":"))
    if not colon:
        message = "NAME: VALUE or hex:OCTETS is expected"
        raise ValueError(message)
    if not name.startswith("0x"):
        return encode_field(name, value)
    return encode_field(parse_number(name, 0x7F), int(value) if value.isdecimal() else value)
