"""The daemon: builds the receiver and the dispatcher, and stops them in order; `reload` changes their configuration.

starting --everything is open--> receiving --reload--> receiving, by the new or the former configuration
receiving --stop--> stopping: endpoints, then dispatcher, then journal --> stopped
stopping --second stop--> running hooks are ended at once

The control socket is served from the first state to the last.
"""

import asyncio
import gc
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

from dmnotid import __version__
from dmnotid.config.values import Config
from dmnotid.control.interface import answer
from dmnotid.control.varlink import Server
from dmnotid.dispatcher import Dispatcher
from dmnotid.errors import EndpointError, JournalError
from dmnotid.hook.command import check_kernel
from dmnotid.host.log import logger
from dmnotid.host.loop import loop_name
from dmnotid.host.systemd import Manager, StatusLine
from dmnotid.intake.sockets import Endpoints
from dmnotid.journal.queue import Journal
from dmnotid.links.monitor import Links
from dmnotid.operations import Operations
from dmnotid.receiver import Observe, Receiver
from dmnotid.reload import Parts, Reloader, bind
from dmnotid.sentences import shortened

PINGS: Final = 2
"""Number of pings in the time within which the watchdog expects one."""

MAX_PROBLEMS: Final = 120
"""Maximum number of characters of all problems in the status line; the rest of it is for the counters."""

# The counters that are not reasons of discards.
_NO_REASONS: Final = frozenset({"received", "accepted"})


class Daemon:
    """One daemon with its sockets, journal, links and dispatcher. `ready` is set once it receives."""

    def __init__(
        self,
        config: Config,
        *,
        manager: Manager | None = None,
        observe: Observe | None = None,
        on_reload: Callable[[Config], None] | None = None,
    ) -> None:
        """Open nothing yet. `observe` gets each datagram before it is judged, `on_reload` each later configuration."""
        # Set once the sockets are read.
        self.ready = asyncio.Event()
        # Called with each datagram before it is judged.
        self._observe = observe
        # Notified of start, reload, stop and watchdog; silent if no service manager started the daemon.
        self._manager = Manager({}) if manager is None else manager
        # The line that `systemctl status` shows.
        self._status = StatusLine(self._manager, self._describe)
        # Has the configuration in force.
        self._reloader = Reloader(config, self._manager, self._status, on_reload)
        # Set by a request for a stop.
        self._stop = asyncio.Event()

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._reloader.config

    @property
    def counters(self) -> Counter[str]:
        """The counters of the receiver."""
        return self.receiver.counters

    @property
    def pending(self) -> int:
        """Number of sessions that are accepted and not closed."""
        return self._dispatcher.pending

    async def run(self) -> None:
        """Receive until `stop` is called or SIGTERM or SIGINT arrives, then stop in order.

        Raises EndpointError, HookError or JournalError if the daemon can't start.
        """
        with ExitStack() as stack:
            # First, so that a stop during the start is orderly too.
            self._handle_signals()
            self._open(stack)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._dispatcher.run(), name="dispatcher")
                reloads = group.create_task(self._reloader.run(), name="reloads")
                pings = group.create_task(self._ping_watchdog(), name="watchdog")
                self.endpoints.open()
                if self._control is not None:
                    self._control.open()
                facts = {"servers": len(self.config.servers), "pending": self.pending}
                logger.info("daemon ready", version=__version__, loop=loop_name(), **facts)
                self._status.ready()
                # The collector would walk through tens of thousands of sessions, which are not cycles, for 40 ms.
                gc.freeze()
                self.ready.set()
                await self._stop.wait()
                logger.info("daemon stopping", pending=self.pending)
                self._manager.stopping()
                self._reloader.stopping = True
                reloads.cancel()
                # First, so that a notification that is drained from a socket waits for the next start of the daemon.
                self._dispatcher.start_no_more()
                self.endpoints.close()
                self.receiver.close()
                await self._dispatcher.stop()
                # Late, so that an operator can ask which hooks the daemon waits for.
                if self._control is not None:
                    await self._control.stop()
                # After the hooks, so that the watchdog does not end a daemon that waits for them.
                pings.cancel()
                self._status.close()
        logger.info("daemon stopped", **self.counters, sessions=dict(self._dispatcher.counters))

    def stop(self) -> None:
        """Stop in order. A second call ends running hooks instead of waiting for them."""
        if self._stop.is_set():
            self._dispatcher.abort()
        self._stop.set()

    def reload(self) -> None:
        """Request a reload of the configuration file, as SIGHUP does."""
        self._reloader.requested.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        # Log rotation often sends these, and their default action would kill the daemon.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, partial(logger.info, "signal ignored", signal=number.name))
        # If SIGCHLD were ignored, hooks would be reaped automatically and their exit status lost.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _open(self, stack: ExitStack) -> None:
        config = self.config
        check_kernel(config.hook)
        # Before the sockets, because its lock ends a second daemon before that opens one.
        self._journal = stack.enter_context(
            Journal(config.state, limits=config.sessions, remember=config.remember, longest_pause=config.retry.longest)
        )
        self._links = Links(config.connections)
        stack.callback(self._links.close)
        self._dispatcher = Dispatcher(config, self._journal, self._links, self._status.change)
        try:
            self._links.open(self._dispatcher.wake)
        except OSError as error:
            message = f"connections: network interfaces cannot be read from the kernel (rtnetlink): {error}"
            raise EndpointError(message) from error
        self.receiver = Receiver(
            config.rules,
            self._journal,
            interval=config.log.discards,
            on_accepted=self._dispatcher.add,
            on_change=self._status.change,
            observe=self._observe,
        )
        passed = self._manager.sockets, self._manager.doors
        self.endpoints = Endpoints(self.receiver.deliver, self.receiver.count_dropped, *passed)
        # Also if an address can't be bound: passed sockets have an endpoint already.
        stack.callback(self.endpoints.close)
        bind(self.endpoints, config)
        parts = Parts(self.receiver, self._dispatcher, self._journal, self._links, self.endpoints)
        self._reloader.use(parts)
        # None if no path is configured.
        self._control: Server | None = None
        if config.control is not None:
            operations = Operations(parts, self._reloader, self._manager.units)
            self._control = Server(config.control, partial(answer, operations))
            stack.callback(self._control.close)

    async def _ping_watchdog(self) -> None:
        """Ping as long as the loop runs and the journal responds, even with an error: no restart cures a full disk."""
        while self._manager.watchdog is not None:
            try:
                self._journal.probe()
            except JournalError as error:
                logger.error("journal unreadable", problem=str(error))
            self._manager.alive()
            # The daemon is awake anyway. A first test that sends junk gets a line in the log.
            self.endpoints.report_drops()
            await asyncio.sleep(self._manager.watchdog / PINGS)

    def _describe(self) -> str:
        refusal, hook_problem = self._reloader.refusal, self._dispatcher.hook_problem
        # The first problem alone: `dmnotid check` shows all of them.
        refused = "" if refusal is None else str(refusal.error).partition("\n")[0]
        problems = {"hook not startable": hook_problem, "reload refused": refused}
        running, servers = self._dispatcher.running, len(self.config.servers)
        return status_line(problems, servers, running, self.pending - running, self.counters)


def status_line(problems: Mapping[str, str], servers: int, running: int, waiting: int, counts: Counter[str]) -> str:
    """Return the line that `systemctl status` shows; a problem that is empty is left out."""
    found = [(name, problem) for name, problem in problems.items() if problem]
    # The line is cut at its end, so the problems share what the counters leave.
    first = "".join(f"{name}: {shortened(problem, MAX_PROBLEMS // len(found))}; " for name, problem in found)
    # The most frequent reasons first, because the end of a long line is cut off.
    discards = {reason: count for reason, count in counts.most_common() if reason not in _NO_REASONS and count}
    reasons = ", ".join(f"{reason} {count}" for reason, count in discards.items())
    discarded = f"{sum(discards.values())} discarded" + (f" ({reasons})" if reasons else "")
    sessions = f"sessions: {running} running, {waiting} pending"
    return f"{first}{servers} server{'s'[: servers != 1]}; {sessions}; {counts['accepted']} accepted, {discarded}"
