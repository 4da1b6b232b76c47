"""`dmnotid test-hook`: show what the hook would receive, built by the code that the daemon uses; and run it once."""

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

from dmnotid.cli.arguments import add_option_arguments, find_server, parse_count, parse_server_id
from dmnotid.cli.hook_report import describe_problem, find_problem, print_problem
from dmnotid.cli.order import Order
from dmnotid.cli.process import DEFAULT_CONFIG, EXIT_OK, EXIT_PROBLEM
from dmnotid.cli.table import titled
from dmnotid.config.durations import spell
from dmnotid.config.loading import load_config
from dmnotid.config.values import MAX_INTERFACE_NAME, Config, ConnectionsConfig, HookConfig
from dmnotid.errors import Discard, DmnotidError, HookError
from dmnotid.hook.facts import build_arguments, build_environment, build_input, find_home, session_facts
from dmnotid.hook.runner import Hook
from dmnotid.host import log
from dmnotid.host.loop import loop_factory, reset_signals
from dmnotid.host.trust import check_trusted_path
from dmnotid.links.availability import available_connections, read_links
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import verify
from dmnotid.policy.freshness import Clock
from dmnotid.policy.retry import Retry, after_try
from dmnotid.policy.schedule import choose_connection
from dmnotid.policy.servers import Server
from dmnotid.policy.sessions import Closed, Connection, Outcome, Result, SessionRequest, SessionStart
from dmnotid.wire.notification import ConnectionType, decode_notification

SESSION: Final = 0
"""The number of the made-up session; the journal counts from 1."""

NOTIFICATION_ID: Final = 1
SOURCE: Final = Source("192.0.2.1", 40_000)
"""An address for documentation (RFC 5737), which no real sender has."""

USUAL_INTERFACES: Final = {
    ConnectionType.ANY: "eth0",
    ConnectionType.MOBILE: "wwan0",
    ConnectionType.WIRELESS: "wlan0",
    ConnectionType.WIRELINE: "eth0",
}
"""The interface of a made-up connection, if none is available."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid test-hook`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--run", action="store_true", help="also run the hook, as the daemon does")
    mode.add_argument("--json", action="store_true", help="print one JSON object")
    notification = parser.add_argument_group("the made-up notification")
    servers = "its server (default: the first of the configuration)"
    notification.add_argument("--server", type=parse_server_id, metavar="ID", help=servers)
    add_option_arguments(notification)
    notification.add_argument("--unsigned", action="store_true", help="leave the SHA256-DIGEST Option out")
    session = parser.add_argument_group("the made-up session (default: the connection that would be chosen now)")
    types = list(map(str, ConnectionType))
    session.add_argument("--connection", choices=types, metavar="TYPE", help="connection type")
    session.add_argument("--interface", type=_parse_interface, metavar="NAME", help="network interface")
    tries = "number of the try, from 1 (default: 1)"
    session.add_argument("--attempt", type=parse_count, default=1, metavar="N", help=tries)


def _parse_interface(text: str) -> str:
    # The kernel refuses these characters in the name of an interface.
    if not re.fullmatch(r"[^\s/:]+", text) or len(os.fsencode(text)) > MAX_INTERFACE_NAME:
        raise argparse.ArgumentTypeError(f"{text!r}: the name of a network interface is expected")
    return text


def main(arguments: argparse.Namespace) -> int:
    """Print what the hook would receive; 1 if its path is not trusted or, with --run, if its outcome is not done."""
    # The paths are checked only with --run: nothing else starts a program that the file names.
    check_path = check_trusted_path if arguments.run else None
    # The hook gets no secret, so none is read: octets that are made up sign the notification.
    config = load_config(arguments.config, os.environ, check_path, wanted=lambda *_: False)
    for warning in config.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    start = make_up(config, find_server(config, arguments.server or config.servers[0].id), arguments)
    problem = find_problem(config.hook)
    if arguments.json:
        print(json.dumps(as_json(config.hook, start, problem)))
    else:
        for line in describe(config.hook, start, problem):
            print(line)
    if arguments.run:
        # The log of the run is written past this buffer.
        sys.stdout.flush()
        return _run(config, start)
    if problem is not None:
        print_problem(config.hook, problem)
        return EXIT_PROBLEM
    return EXIT_OK


# --- The made-up try ---------------------------------------------------------------------------------------------


def make_up(config: Config, server: Server, arguments: argparse.Namespace) -> SessionStart:
    """Make a try of a notification that was never received. Raises DmnotidError for a value that does not fit."""
    now = time.time()
    order = Order(
        server_id=server.id,
        secret=None if arguments.unsigned else server.secret,
        preferred=arguments.prefer,
        requested_mos=arguments.req_mo,
        cached_mos=arguments.req_mo_cv,
        sent_at=now,
    )
    try:
        notification = decode_notification(order.build_package(NOTIFICATION_ID))
    except ValueError as error:
        raise DmnotidError(f"dmnotid test-hook: {error}") from error
    # A discard is only noted: the hook can be tried before a server has a secret.
    try:
        verify(notification, server, SOURCE, Clock(now), config.freshness)
    except Discard as discard:
        _note(f"the daemon would discard such a notification: {discard.reason}: {discard}")
    # The dispatcher would make the same choice; a try is also possible without a connection.
    connection = _connection(config.connections, notification.preferred_connections, arguments)
    # The request counts the tries before this one.
    request = SessionRequest(
        SESSION, server.id, notification, str(SOURCE), now, arguments.attempt - 1, not_before=0.0, expires_at=inf
    )
    return SessionStart(request, connection, arguments.attempt)


def _connection(
    config: ConnectionsConfig, preferred: Sequence[ConnectionType], arguments: argparse.Namespace
) -> Connection:
    kind = None if arguments.connection is None else ConnectionType(arguments.connection)
    # With both given, nothing of this machine matters.
    if kind is not None and arguments.interface is not None:
        return Connection(kind, arguments.interface)
    try:
        links = read_links(config)
    except OSError as error:
        _note(f"the network interfaces cannot be read: {error.strerror}")
        links = []
    if arguments.interface is not None:
        link = next((it for it in links if it.name == arguments.interface), None)
        if link is None:
            _note(f"there is no network interface {arguments.interface} now")
            return Connection(ConnectionType.ANY, arguments.interface)
        if not link.available:
            _note(f"the daemon would not use it now: {link}")
        return Connection(link.type, link.name)
    # A given type is chosen as if the server had asked for that one alone.
    wanted = preferred if kind is None else (kind,)
    found = choose_connection(wanted, available_connections(links))
    if found is None:
        # A likely name for the type, so that the arguments look as they will.
        usual = wanted[0] if wanted else ConnectionType.ANY
        found = Connection(usual, USUAL_INTERFACES[usual])
        _note(f"no suitable connection is available now; this one is made up: {found.interface} ({found.type})")
    return found if kind is None else Connection(kind, found.interface)


def _note(text: str) -> None:
    print(f"dmnotid test-hook: {text}", file=sys.stderr)


# --- Output ------------------------------------------------------------------------------------------------------


def _command(hook: HookConfig, start: SessionStart) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of the hook's process."""
    facts = session_facts(start)
    return build_arguments(hook.command, facts), build_environment(facts, hook.environment, find_home())


def as_json(hook: HookConfig, start: SessionStart, problem: HookError | None) -> dict[str, object]:
    """Return everything that the hook would receive, as one JSON object."""
    # Arguments and environment of a session that is handed over are those of its unit.
    receiver: dict[str, object] = {"socket": str(hook.socket)}
    if hook.socket is None:
        argv, environment = _command(hook, start)
        receiver = {"argv": argv, "environment": environment}
    return {
        **receiver,
        "stdin": build_input(session_facts(start)),
        "trusted": problem is None or problem.trusted,
        "problem": None if problem is None else str(problem),
        "connection": str(start.connection.type),
        "interface": start.connection.interface,
    }


def describe(hook: HookConfig, start: SessionStart, problem: HookError | None) -> Iterator[str]:
    """Return the same as lines of text, with every argument and value quoted."""
    kind, interface = start.connection
    notification = f"a notification of {start.request.server_id!r}"
    yield f"made up      {notification}, session {SESSION}, attempt {start.attempt}, over {interface} ({kind})"
    yield f"hook         {describe_problem(problem)}"
    if hook.socket is not None:
        yield f"socket       {str(hook.socket)!r}"
    else:
        argv, environment = _command(hook, start)
        yield from titled("arguments", map(repr, argv))
        yield from titled("environment", (f"{name}={value!r}" for name, value in environment.items()))
    yield f"input        {build_input(session_facts(start)).rstrip()}"


# --- The run -----------------------------------------------------------------------------------------------------


def _run(config: Config, start: SessionStart) -> int:
    log.configure("info", "text")
    # The hook inherits signal dispositions, and must get the same as from the daemon.
    reset_signals()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        ended = runner.run(_try(config.hook, start))
    # It has no outcome: the daemon would try such a session again after its next start.
    if isinstance(ended, signal.Signals):
        effect = "its process group was ended" if config.hook.socket is None else "its connection was closed"
        _note(f"interrupted by {ended.name}: {effect}")
        # The exit status that a shell reports for a signal.
        return 128 + ended
    print(f"outcome      {ended.result}: {ended.detail}")
    print(f"next         {_next(ended, start.attempt, config.retry)}")
    return EXIT_OK if ended.result is Result.DONE else EXIT_PROBLEM


async def _try(hook: HookConfig, start: SessionStart) -> Outcome | signal.Signals:
    """Run the hook to its end. A signal ends it as the daemon's stop would, and is returned."""
    # A task, so that a signal can cancel it as the stop of the daemon does.
    trying = asyncio.ensure_future(Hook(hook).run(start))
    caught: list[signal.Signals] = []

    def interrupt(number: signal.Signals) -> None:
        caught.append(number)
        trying.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt, number)
    try:
        return await trying
    except asyncio.CancelledError:
        # Further signals can arrive until the hook has ended; the first is the reason.
        return caught[0]


def _next(outcome: Outcome, attempt: int, retry: Retry) -> str:
    """Return what the daemon would do after this try."""
    # Without jitter, which only shortens the pause.
    decision = after_try(outcome, attempt, retry, 0)
    if decision is Closed.DONE:
        return "nothing: the session is done"
    if decision is Closed.REFUSED:
        return "nothing: a refused session is not tried again"
    if isinstance(decision, Closed):
        return f"nothing: the session has failed after {retry.attempts} tries (retry.attempts)"
    return f"another try in about {spell(decision)}"
