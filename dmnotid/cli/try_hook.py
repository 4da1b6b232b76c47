"""`dmnotid test-hook`: what the hook would be told, built by the code that tells it; and one run of it."""

import argparse
import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Final

from dmnotid.cli.check import complain_of_distrust, describe_trust, find_distrust, section
from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.cli.run import DEFAULT_CONFIG
from dmnotid.cli.send import Order, add_wishes, find_server, read_server_id
from dmnotid.cli.words import parse_positive
from dmnotid.config.durations import spell
from dmnotid.config.loading import load_config
from dmnotid.config.values import MAX_INTERFACE_NAME, Config, ConnectionsConfig, HookConfig
from dmnotid.errors import Discard, DmnotidError, HookError
from dmnotid.hook.facts import build_arguments, build_environment, build_facts, build_input, find_home
from dmnotid.hook.runner import Hook
from dmnotid.host import log
from dmnotid.host.loop import loop_factory, reset_signals
from dmnotid.host.trust import check_trusted_path
from dmnotid.links.availability import Link, available_connections, read_links
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import verify
from dmnotid.policy.freshness import Clock
from dmnotid.policy.retry import Retry, after_try
from dmnotid.policy.schedule import choose_connection
from dmnotid.policy.servers import Server
from dmnotid.policy.sessions import Closed, Connection, Outcome, Result, SessionRequest, SessionStart
from dmnotid.wire.notification import ConnectionType, Notification, decode_notification

SESSION: Final = 0
"""The number of the made-up session: the journal counts from 1."""

NOTIFICATION_ID: Final = 1
SOURCE: Final = Source("192.0.2.1", 40_000)
"""An address of documentation, which no sender has."""

USUAL_INTERFACES: Final = {
    ConnectionType.ANY: "eth0",
    ConnectionType.MOBILE: "wwan0",
    ConnectionType.WIRELESS: "wlan0",
    ConnectionType.WIRELINE: "eth0",
}
"""What a connection is made up of where none is available."""

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what follows `dmnotid test-hook`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", action="store_true", help="run the hook too, as the daemon does")
    how.add_argument("--json", action="store_true", help="print one JSON object")
    what = parser.add_argument_group("the made-up notification")
    what.add_argument("--server", metavar="ID", help="its server (default: the first of the configuration)")
    add_wishes(what)
    what.add_argument("--unsigned", action="store_true", help="leave the SHA256-DIGEST Option out")
    start = parser.add_argument_group("the made-up session (default: the connection that would be chosen now)")
    start.add_argument("--connection", choices=list(map(str, ConnectionType)), metavar="TYPE", help="connection type")
    start.add_argument("--interface", type=_interface, metavar="NAME", help="network interface")
    start.add_argument("--attempt", type=parse_positive, default=1, metavar="N", help="which try (default: 1)")


def _interface(text: str) -> str:
    if not re.fullmatch(r"[^\s/:]+", text) or len(text.encode()) > MAX_INTERFACE_NAME:
        message = f"{text!r}: the name of a network interface is expected"
        raise argparse.ArgumentTypeError(message)
    return text


def main(arguments: argparse.Namespace) -> int:
    """Print what the hook would be told; 1 where its path is not trusted. With --run 0 only where it says done."""
    # Only with --run is a program started that the file names.
    config = load_config(arguments.config, os.environ, check_trusted_path if arguments.run else None)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    server_id = config.servers[0].id if arguments.server is None else read_server_id(arguments.server)
    start = make_up(config, find_server(config, server_id), arguments)
    distrust = find_distrust(config.hook)
    if arguments.json:
        print(json.dumps(facts(config.hook, start, distrust)))
    else:
        for line in describe(config.hook, start, distrust):
            print(line)
    if arguments.run:
        sys.stdout.flush()
        return _run(config, start)
    if distrust is not None:
        complain_of_distrust(config.hook, distrust)
        return EXIT_PROBLEM
    return EXIT_OK


# --- What is made up ---------------------------------------------------------------------------------------------


def make_up(config: Config, server: Server, arguments: argparse.Namespace) -> SessionStart:
    """Make a try as the daemon would, of a notification that nobody sent. Raises DmnotidError for what doesn't fit."""
    now = time.time()
    notification = _notification(server, arguments)
    try:
        verify(notification, server, SOURCE, Clock(now), config.freshness)
    except Discard as discard:
        _note(f"the daemon would drop such a notification: {discard.reason}: {discard}")
    connection = _connection(config.connections, notification.preferred_connections, arguments)
    request = SessionRequest(
        SESSION, server.id, notification, str(SOURCE), now, arguments.attempt - 1, not_before=0.0, expires_at=inf
    )
    return SessionStart(request, connection, arguments.attempt)


def _notification(server: Server, arguments: argparse.Namespace) -> Notification:
    order = Order(
        server_id=server.id,
        secret=None if arguments.unsigned else server.secret,
        preferred=arguments.prefer,
        requested_mos=arguments.req_mo,
        cached_mos=arguments.req_mo_cv,
        headers=(),
        tid=None,
        sent_at=None,
    )
    try:
        return decode_notification(order.build_package(NOTIFICATION_ID))
    except ValueError as error:
        message = f"dmnotid test-hook: {error}"
        raise DmnotidError(message) from error


def _connection(
    config: ConnectionsConfig, preferred: Sequence[ConnectionType], arguments: argparse.Namespace
) -> Connection:
    kind = None if arguments.connection is None else ConnectionType(arguments.connection)
    if kind is not None and arguments.interface is not None:
        return Connection(kind, arguments.interface)
    try:
        links = read_links(config)
    except OSError as error:
        _note(f"the network interfaces can't be read: {error.strerror}")
        links = []
    if arguments.interface is not None:
        return _named(links, arguments.interface)
    wanted = preferred if kind is None else (kind,)
    found = choose_connection(wanted, available_connections(links))
    if found is None:
        found = _usual(wanted)
        _note(f"no connection is available now that fits; this one is made up: {found.interface} ({found.type})")
    return found if kind is None else Connection(kind, found.interface)


def _named(links: Sequence[Link], name: str) -> Connection:
    for link in links:
        if link.name == name:
            if not link.available:
                _note(f"the daemon would not use it now: {link}")
            return Connection(link.type, name)
    _note(f"there is no network interface {name} now")
    return Connection(ConnectionType.ANY, name)


def _usual(wanted: Sequence[ConnectionType]) -> Connection:
    kind = wanted[0] if wanted else ConnectionType.ANY
    return Connection(kind, USUAL_INTERFACES[kind])


def _note(text: str) -> None:
    print(f"dmnotid test-hook: {text}", file=sys.stderr)


# --- What is shown -----------------------------------------------------------------------------------------------


def tell(hook: HookConfig, start: SessionStart) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of the command."""
    told = build_facts(start)
    return build_arguments(hook.command, told), build_environment(told, hook.environment, find_home())


def facts(hook: HookConfig, start: SessionStart, distrust: HookError | None) -> dict[str, object]:
    """Return all that the hook would be told, for programs."""
    told: dict[str, object] = {"socket": str(hook.socket)}
    if hook.socket is None:
        argv, environment = tell(hook, start)
        told = {"argv": argv, "environment": environment}
    return {
        **told,
        "stdin": build_input(build_facts(start)),
        "trusted": distrust is None,
        "problem": None if distrust is None else str(distrust),
        "connection": str(start.connection.type),
        "interface": start.connection.interface,
    }


def describe(hook: HookConfig, start: SessionStart, distrust: HookError | None) -> Iterator[str]:
    """Say the same to people; arguments and values are quoted, so that each stands on a line of its own."""
    kind, interface = start.connection
    who = f"a notification of {start.request.server_id!r}"
    yield f"made up      {who}, session {SESSION}, attempt {start.attempt}, over {interface} ({kind})"
    yield f"hook         {describe_trust(distrust)}"
    if hook.socket is not None:
        yield f"socket       {str(hook.socket)!r}"
    else:
        argv, environment = tell(hook, start)
        yield from section("arguments", map(repr, argv))
        yield from section("environment", (f"{name}={value!r}" for name, value in environment.items()))
    yield f"input        {build_input(build_facts(start)).rstrip()}"


# --- The run -----------------------------------------------------------------------------------------------------


def _run(config: Config, start: SessionStart) -> int:
    log.configure("info", "text")
    reset_signals()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        ended = runner.run(_try(config.hook, start))
    if isinstance(ended, signal.Signals):
        what = "its process group was ended" if config.hook.socket is None else "its connection was closed"
        _note(f"interrupted by {ended.name}: {what}")
        return 128 + ended
    print(f"outcome      {ended.result}: {ended.detail}")
    print(f"next         {_next(ended, start.attempt, config.retry)}")
    return EXIT_OK if ended.result is Result.DONE else EXIT_PROBLEM


async def _try(hook: HookConfig, start: SessionStart) -> Outcome | signal.Signals:
    """Run the hook to its end; a signal ends it as the daemon's stop would, and is what comes back."""
    trying = asyncio.ensure_future(Hook(hook).run(start))
    caught: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        caught.append(number)
        trying.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        return await trying
    except asyncio.CancelledError:
        return caught[0]


def _next(outcome: Outcome, attempt: int, retry: Retry) -> str:
    """Say what the daemon would do after this try."""
    verdict = after_try(outcome, attempt, retry, 0)
    if verdict is Closed.DONE:
        return "nothing: this notification is done"
    if verdict is Closed.REFUSED:
        return "nothing: refused is for good, it is not tried again"
    if isinstance(verdict, Closed):
        return f"nothing: it is given up after {retry.attempts} tries (retry.attempts)"
    return f"it is tried again in about {spell(verdict)}"
