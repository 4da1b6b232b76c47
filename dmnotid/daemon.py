"""The daemon: builds all, takes every datagram on its one way, and stops in order."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from enum import Enum
from typing import Final

from dmnotid import RELEASED_AT, __version__
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config, HookConfig
from dmnotid.dispatcher import Dispatcher
from dmnotid.errors import (
    EXCERPT_OCTETS,
    ConfigError,
    Discard,
    EndpointError,
    HookError,
    JournalError,
    shortened,
    show_time,
)
from dmnotid.hook.runner import check_hook
from dmnotid.host.log import DiscardLog, logger
from dmnotid.host.systemd import Manager, StatusLine
from dmnotid.host.trust import check_trusted_path
from dmnotid.intake.drops import Dropped
from dmnotid.intake.endpoint import Endpoints, Intake
from dmnotid.journal.queue import Journal
from dmnotid.links.monitor import Links
from dmnotid.policy.freshness import Clock, judge_clock
from dmnotid.policy.reception import Datagram, receive_push
from dmnotid.policy.sessions import SessionRequest

_NO_REASONS: Final = frozenset({"received", "accepted"})
"""What is counted beside the reasons of discards."""

Observe = Callable[[Datagram], None]

_AS_BEFORE: Final = "the configuration that is in force stays"

MAX_REFUSAL: Final = 100
"""How many characters of why a reload was refused stand in the status line at most."""

PINGS: Final = 2
"""How many signs of life there are in the time that the watchdog waits for one."""


class Daemon:
    """One receiver: sockets, journal, links and dispatcher of one configuration.

    `counters` holds `received`, `accepted`, `not accepted`, `bugs`, and one count for each reason of a discard. What is
    not among `received`: `junk` is what the kernel refused, `lost` what it had no room for, or the daemon no time.
    """

    def __init__(
        self,
        config: Config,
        *,
        manager: Manager | None = None,
        observe: Observe | None = None,
        on_reload: Callable[[Config], None] | None = None,
    ) -> None:
        """Nothing is opened yet. `manager` is who started this process, and may have passed sockets.

        `observe` is shown each datagram before it is judged. `on_reload` gets each configuration that takes over from
        the one before.
        """
        self.config = config
        self.counters: Counter[str] = Counter()
        self._manager = Manager({}) if manager is None else manager
        self._status = StatusLine(self._manager, self._describe)
        self._refused = ""
        self.endpoints = Endpoints(self.deliver, self._manager, self._note_dropped)
        self.ready = asyncio.Event()
        self._observe = observe
        self._on_reload = on_reload
        self._rules = config.rules
        self._discards = DiscardLog(config.log.discards)
        self._doubt = _Doubt.NONE
        self._hangup = asyncio.Event()
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
            _warn_of_distrust(self.config.hook)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._dispatcher.run(), name="dispatcher")
                reloads = group.create_task(self._reload_when_asked(), name="reloads")
                life = group.create_task(self._show_life(), name="watchdog")
                self._receive()
                await self._stop.wait()
                logger.info("daemon stopping", pending=self.pending)
                self._manager.stopping()
                reloads.cancel()
                self._dispatcher.start_no_more()
                self._close_endpoints()
                await self._dispatcher.stop()
                life.cancel()
                self._status.close()
        logger.info("daemon stopped", **self.counters, sessions=dict(self._dispatcher.counters))

    def stop(self) -> None:
        """Stop in order; a second call doesn't wait for running hooks."""
        if self._stop.is_set():
            self._dispatcher.abort()
        self._stop.set()

    def reload(self) -> None:
        """Read the configuration again, as SIGHUP asks; one that has problems is reported, and nothing changes."""
        self._hangup.set()

    async def _reload_when_asked(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._manager.reloading()
            refused = await self._reload()
            self._refused = f"reload refused: {shortened(refused, MAX_REFUSAL)}; " if refused else ""
            self._status.ready()

    async def _reload(self) -> str:
        """Go by what the file says now; else change nothing, and say why in a word or two."""
        try:
            self._take_over(await self._read_again())
        except ConfigError as error:
            for problem in error.problems:
                logger.error("configuration problem", problem=str(problem))
            logger.error("reload refused", problems=len(error.problems), instead=_AS_BEFORE)
            return str(error.problems[0])
        except (EndpointError, JournalError) as error:
            logger.error("reload refused", problem=str(error), instead=_AS_BEFORE)
            return str(error)
        except Exception as error:  # noqa: BLE001 - a bug in reading a file must not end the service
            logger.exception("reload refused", instead=_AS_BEFORE)
            return repr(error)
        return ""

    async def _read_again(self) -> Config:
        # In a thread: a large file takes a slow device minutes, and the watchdog would end the daemon meanwhile.
        return await asyncio.to_thread(load_config, self.config.file, os.environ, check_trusted_path)

    async def _show_life(self) -> None:
        """Ping the watchdog as long as the loop turns and the journal answers.

        An error is an answer too: no restart cures a full disk.
        """
        while self._manager.watchdog is not None:
            try:
                self._journal.probe()
            except JournalError as error:
                logger.error("journal unreadable", problem=str(error))
            self._manager.alive()
            await asyncio.sleep(self._manager.watchdog / PINGS)

    def _describe(self) -> str:
        """Say in one line what an operator wants to know."""
        servers, running, counts = len(self._rules.servers), self._dispatcher.running, self.counters
        waiting, accepted = self.pending - running, counts["accepted"]
        discards = {reason: count for reason, count in counts.most_common() if reason not in _NO_REASONS and count}
        reasons = ", ".join(f"{reason} {count}" for reason, count in discards.items())
        discarded = f"{sum(discards.values())} discarded" + (f" ({reasons})" if reasons else "")
        sessions = f"sessions: {running} running, {waiting} pending"
        return f"{self._refused}{servers} server{'s'[: servers != 1]}; {sessions}; {accepted} accepted, {discarded}"

    def _take_over(self, config: Config) -> None:
        """Go by another configuration; EndpointError, where sockets can't be had, leaves all as it was."""
        for warning in config.warnings:
            logger.warning("configuration warning", problem=str(warning))
        if config.state != self.config.state:
            problem = f"state: {config.state} is taken up by a restart only, {self.config.state} stays in use"
            logger.warning("configuration warning", problem=problem)
            config = config._replace(state=self.config.state)
        # What waits in a socket that is closed here is judged by the former rules.
        self.endpoints.bind(config.listen, ipv4_sources=config.rules.servers.ipv4_sources)
        self.endpoints.configure(_intake(config))
        self._links.configure(config.connections)
        self.config, self._rules = config, config.rules
        self._discards.interval = config.log.discards
        self._journal.configure(limits=config.sessions, remember=config.remember, longest_pause=config.retry.longest)
        self._dispatcher.configure(config)
        if self._on_reload is not None:
            self._on_reload(config)
        _warn_of_distrust(config.hook)
        listen = [str(endpoint) for endpoint in self.endpoints]
        logger.info("configuration reloaded", servers=len(self._rules.servers), listen=listen, pending=self.pending)

    def deliver(self, datagrams: Iterable[Datagram]) -> None:
        """Take datagrams through every check; what is accepted is durable, all of it in one commit, when this returns.

        Nothing that a datagram holds raises here: it ends in a log line and a count.
        """
        admitted: list[tuple[Datagram, SessionRequest]] = []
        # The same octets of the same sender at the same moment end alike, as long as nothing was admitted in between.
        ends: dict[Datagram, _End] = {}
        for datagram in datagrams:
            known = ends.get(datagram)
            if known is not None:
                known.repeats += 1
                continue
            try:
                request = self._take(datagram, ends)
            except JournalError as error:
                self._count_repeats(ends)
                self._give_up([*(earlier for earlier, _ in admitted), datagram], error)
                admitted.clear()
            except Exception:  # noqa: BLE001 - a bug in handling one datagram must not end the service of the next
                self._count_repeats(ends)
                self.counters["bugs"] += 1
                excerpt = datagram.payload[:EXCERPT_OCTETS].hex(" ")
                logger.exception(
                    "internal error", source=str(datagram.source), octets=len(datagram.payload), excerpt=excerpt
                )
            else:
                if request is not None:
                    self._count_repeats(ends)
                    admitted.append((datagram, request))
            self.counters["received"] += 1
        self._count_repeats(ends)
        self._commit(admitted)
        self._status.change()

    def _take(self, datagram: Datagram, ends: "dict[Datagram, _End]") -> SessionRequest | None:
        if self._observe is not None:
            self._observe(datagram)
        try:
            return self._admit(datagram)
        except Discard as discard:
            self.counters[discard.reason] += 1
            self._discards.note(discard, datagram.source)
            if self._observe is None:
                ends[datagram] = _End(discard.with_traceback(None))
            return None

    def _count_repeats(self, ends: "dict[Datagram, _End]") -> None:
        """Let what repeated itself end as it did the first time; what comes from here on is judged anew."""
        for datagram, end in ends.items():
            if end.repeats:
                self.counters["received"] += end.repeats
                self.counters[end.discard.reason] += end.repeats
                self._discards.note(end.discard, datagram.source, end.repeats)
        ends.clear()

    def _admit(self, datagram: Datagram) -> SessionRequest:
        newest, skew = self._journal.newest_authenticated, self._rules.freshness.max_skew
        clock = judge_clock(datagram.received_at, newest, skew)
        doubt = _doubt(clock)
        if doubt is not self._doubt:
            self._doubt = doubt
            _tell_of_clock(clock, doubt)
        return self._journal.admit(receive_push(datagram, self._rules, clock))

    def _commit(self, admitted: list[tuple[Datagram, SessionRequest]]) -> None:
        try:
            self._journal.commit()
        except JournalError as error:
            self._give_up([datagram for datagram, _ in admitted], error)
            return
        self.counters["accepted"] += len(admitted)
        try:
            if admitted:
                self._dispatcher.add(request for _, request in admitted)
        finally:  # what has begun goes on while it is told of
            for datagram, request in admitted:
                _log_accepted(datagram, request)

    def _give_up(self, lost: Sequence[Datagram], error: JournalError) -> None:
        """Take back what shares a transaction that failed: none of it is remembered, so each may come again."""
        for datagram in lost:
            self.counters["not accepted"] += 1
            if self._discards.tells("not accepted"):
                logger.error("notification not accepted", source=str(datagram.source), problem=str(error))
        try:
            self._journal.rollback()
        except JournalError as again:
            logger.error("rollback failed", problem=str(again))

    def _note_dropped(self, listen: str, dropped: Dropped) -> None:
        """Count what the kernel dropped, and say so: what nobody saw must at least be known to have been there."""
        if dropped.junk:
            self.counters["junk"] += dropped.junk
            logger.info("junk refused", listen=listen, count=dropped.junk)
        if dropped.lost:
            self.counters["lost"] += dropped.lost
            logger.warning("datagrams lost", listen=listen, count=dropped.lost, problem="the receive buffer was full")
        self._status.change()

    def _open(self, stack: ExitStack) -> None:
        config = self.config
        self._journal = stack.enter_context(
            Journal(config.state, limits=config.sessions, remember=config.remember, longest_pause=config.retry.longest)
        )
        self._links = Links(config.connections)
        stack.callback(self._links.close)
        self._dispatcher = Dispatcher(config, self._journal, self._links, self._status.change)
        _open_links(self._links, self._dispatcher.wake)
        for sock, stored in self._manager.sockets:
            (self.endpoints.resume if stored else self.endpoints.take_over)(sock)
        self.endpoints.bind(config.listen, ipv4_sources=config.rules.servers.ipv4_sources)
        self.endpoints.configure(_intake(config))
        stack.callback(self._close_endpoints)

    def _receive(self) -> None:
        self.endpoints.open()
        loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
        logger.info(
            "daemon ready", version=__version__, loop=loop, servers=len(self._rules.servers), pending=self.pending
        )
        self._status.ready()
        self.ready.set()

    def _close_endpoints(self) -> None:
        self.endpoints.close()
        self._discards.flush()

    def _take_signals(self) -> None:
        """Take signals for as long as the loop lives."""
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        # Who ignores it hands that down, and the end of a hook could then not be asked for.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _intake(config: Config) -> Intake:
    return Intake(config.receive_buffer, config.log.junk, config.log.discards)


def _warn_of_distrust(hook: HookConfig) -> None:
    """Say now what would be said at each try: no session can be started as it is."""
    try:
        check_hook(hook)
    except HookError as error:
        logger.warning("hook not startable", problem=str(error), consequence="no session can be started")


class _End:
    """How a datagram ended, and how often it came again since."""

    __slots__ = ("discard", "repeats")

    def __init__(self, discard: Discard) -> None:
        """Once so far."""
        self.discard = discard
        self.repeats = 0


class _Doubt(Enum):
    """Why a clock is not believed, and by what ages are measured then."""

    NONE = None
    UNMEASURED = "before the program's release ({release}); no age is checked until a server has signed a time"
    RELEASE = (
        "before the program's release ({release}); ages are measured from the newest authenticated time ({newest})"
    )
    NEWEST = "before the newest authenticated time ({newest}); ages are measured from the latter"


def _doubt(clock: Clock) -> _Doubt:
    if clock.believed:
        return _Doubt.NONE
    if clock.newest is None:
        return _Doubt.UNMEASURED
    return _Doubt.NEWEST if clock.newest > RELEASED_AT else _Doubt.RELEASE


def _tell_of_clock(clock: Clock, doubt: _Doubt) -> None:
    """Say that the clock is not believed, or that it is again."""
    if doubt is _Doubt.NONE:
        logger.info("clock believed")
        return
    newest = "" if clock.newest is None else show_time(clock.newest)
    reason = doubt.value.format(release=show_time(RELEASED_AT), newest=newest)
    logger.warning("clock not believed", problem=f"the clock says {show_time(clock.now)}, which is {reason}")


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
        "notification accepted",
        session=request.session,
        server_id=request.server_id,
        notification_id=notification.notification_id,
        source=str(datagram.source),
        signed=notification.signed,
        preferred=" ".join(notification.preferred_connections),
        **facts,
    )
