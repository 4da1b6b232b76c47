"""The daemon: builds all, takes every datagram on its one way, and stops in order."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from dmnotid import __version__
from dmnotid.config import Config
from dmnotid.errors import EXCERPT_OCTETS, Discard, EndpointError, JournalError
from dmnotid.policy.authenticity import judge_clock
from dmnotid.policy.reception import Datagram, receive_push
from dmnotid.policy.sessions import SessionRequest
from dmnotid.service.dispatcher import Dispatcher
from dmnotid.service.endpoint import Endpoint, bind_all
from dmnotid.service.journal import Journal
from dmnotid.service.links import Links
from dmnotid.service.log import DiscardLog, logger

Observe = Callable[[Datagram], None]

STATE_MODE: Final = 0o700

DRAIN: Final = 1.0
"""How long a stop takes what waits in the socket buffers (seconds): a flood must not keep the daemon from it."""


class Daemon:
    """One receiver: sockets, journal, links and dispatcher of one configuration.

    `counters` holds `received`, `accepted`, `not accepted`, `bugs`, and one count for each reason of a discard.
    """

    def __init__(self, config: Config, *, observe: Observe | None = None) -> None:
        """Nothing is opened yet. `observe` is shown each datagram before it is judged."""
        self.config = config
        self.counters: Counter[str] = Counter()
        self.endpoints: list[Endpoint] = []
        self.ready = asyncio.Event()
        self._observe = observe
        self._rules = config.rules
        self._discards = DiscardLog(config.log.discards)
        self._stop = asyncio.Event()

    @property
    def pending(self) -> int:
        """How many sessions are accepted and not closed."""
        return self._dispatcher.pending

    async def run(self) -> None:
        """Receive until `stop` or SIGTERM or SIGINT, then stop: endpoints, dispatcher, journal.

        Raises EndpointError or JournalError where the daemon can't begin.
        """
        with ExitStack() as stack:
            self._take_signals()
            self._open(stack)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._dispatcher.run(), name="dispatcher")
                self._receive()
                await self._stop.wait()
                logger.info("stopping", pending=self.pending)
                self._close_endpoints()
                await self._dispatcher.stop()
        logger.info("stopped", **self.counters)

    def stop(self) -> None:
        """Stop in order; a second call doesn't wait for running hooks."""
        if self._stop.is_set():
            self._dispatcher.abort()
        self._stop.set()

    def deliver(self, datagrams: Sequence[Datagram]) -> None:
        """Take datagrams through every check; what is accepted is durable, all of it in one commit, when this returns.

        Nothing that a datagram holds raises here: it ends in a log line and a count.
        """
        admitted: list[tuple[Datagram, SessionRequest]] = []
        for datagram in datagrams:
            self.counters["received"] += 1
            try:
                request = self._take(datagram)
            except JournalError as error:
                self._give_up([*(earlier for earlier, _ in admitted), datagram], error)
                admitted.clear()
            except Exception:  # noqa: BLE001 - a bug in handling one datagram must not end the service of the next
                self.counters["bugs"] += 1
                excerpt = datagram.payload[:EXCERPT_OCTETS].hex(" ")
                logger.exception("bug", source=str(datagram.source), octets=len(datagram.payload), excerpt=excerpt)
            else:
                if request is not None:
                    admitted.append((datagram, request))
        self._commit(admitted)

    def _take(self, datagram: Datagram) -> SessionRequest | None:
        if self._observe is not None:
            self._observe(datagram)
        try:
            return self._admit(datagram)
        except Discard as discard:
            self.counters[discard.reason] += 1
            self._discards.note(discard, datagram.source)
            return None

    def _admit(self, datagram: Datagram) -> SessionRequest:
        newest, skew = self._journal.newest_authenticated, self._rules.freshness.max_skew
        clock = judge_clock(datagram.received_at, newest, skew)
        return self._journal.admit(receive_push(datagram, self._rules, clock))

    def _commit(self, admitted: list[tuple[Datagram, SessionRequest]]) -> None:
        try:
            self._journal.commit()
        except JournalError as error:
            self._give_up([datagram for datagram, _ in admitted], error)
            return
        for datagram, request in admitted:
            self.counters["accepted"] += 1
            _log_accepted(datagram, request)
        if admitted:
            self._dispatcher.add(request for _, request in admitted)

    def _give_up(self, lost: Sequence[Datagram], error: JournalError) -> None:
        """Take back what shares a transaction that failed: none of it is remembered, so each may come again."""
        for datagram in lost:
            self.counters["not accepted"] += 1
            if self._discards.tells("not accepted"):
                logger.error("not accepted", source=str(datagram.source), problem=str(error))
        try:
            self._journal.rollback()
        except JournalError as again:
            logger.error("rollback failed", problem=str(again))

    def _open(self, stack: ExitStack) -> None:
        config = self.config
        _make_directory(config.state)
        self._journal = Journal(
            config.state, limits=config.sessions, remember=config.remember, longest_pause=config.retry.longest
        )
        stack.callback(self._journal.close)
        links = Links(config.connections)
        stack.callback(links.close)
        self._dispatcher = Dispatcher(config, self._journal, links)
        _open_links(links, self._dispatcher.wake)
        for sock in bind_all(config.listen):
            self.endpoints.append(Endpoint(sock, self.deliver))
        stack.callback(self._close_endpoints)

    def _receive(self) -> None:
        for endpoint in self.endpoints:
            endpoint.open()
            logger.info("listening", listen=str(endpoint))
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        logger.info("ready", version=__version__, loop=loop, servers=len(self._rules.servers), pending=self.pending)
        self.ready.set()

    def _close_endpoints(self) -> None:
        deadline = time.monotonic() + DRAIN
        while self.endpoints:
            self.endpoints.pop().close(deadline)
        self._discards.flush()

    def _take_signals(self) -> None:
        """Take signals for as long as the loop lives."""
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: _log_hangup}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        # Who ignores it hands that down, and the end of a hook could then not be asked for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _log_hangup() -> None:
    logger.warning("hang-up ignored", signal="SIGHUP", instead="a restart takes a new configuration up")


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=STATE_MODE, parents=True, exist_ok=True)
    except OSError as error:
        message = f"state: {directory}: {error.strerror}; a directory that dmnotid may write to is expected"
        raise JournalError(message) from error


def _open_links(links: Links, on_change: Callable[[], None]) -> None:
    try:
        links.open(on_change)
    except OSError as error:
        message = f"connections: network interfaces can't be read from the kernel (rtnetlink): {error}"
        raise EndpointError(message) from error


def _log_accepted(datagram: Datagram, request: SessionRequest) -> None:
    notification = request.notification
    skipped = notification.skipped_connections
    facts = {"skipped_connection_types": list(skipped)} if skipped else {}
    logger.info(
        "accepted",
        session=request.session,
        server_id=request.server_id,
        notification_id=notification.notification_id,
        source=str(datagram.source),
        signed=notification.signed,
        preferred=" ".join(notification.preferred_connections),
        **facts,
    )
