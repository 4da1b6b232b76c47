"""The daemon: builds the receiver and the dispatcher, reloads their configuration, and stops them in order.

starting --everything is open--> receiving --reload--> receiving, by the new or the former configuration
receiving --stop--> stopping: endpoints, then dispatcher, then journal --> stopped
stopping --second stop--> running hooks are ended at once

The control socket is served from the first state to the last.
"""

import asyncio
import concurrent.futures
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

from dmnotid import __version__
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.control.interface import Interface
from dmnotid.control.varlink import Server
from dmnotid.dispatcher import Dispatcher
from dmnotid.errors import ConfigError, ConfigProblem, DmnotidError, EndpointError, JournalError
from dmnotid.hook.runner import check_kernel
from dmnotid.host.log import logger
from dmnotid.host.loop import loop_name
from dmnotid.host.systemd import Manager, StatusLine
from dmnotid.host.trust import check_trusted_path
from dmnotid.intake.endpoint import Intake
from dmnotid.intake.sockets import Endpoints
from dmnotid.journal.queue import Journal
from dmnotid.links.monitor import Links
from dmnotid.operations import Operations, Parts
from dmnotid.receiver import Observe, Receiver
from dmnotid.sentences import shortened

PINGS: Final = 2
"""Number of pings in the time within which the watchdog expects one."""

MAX_PROBLEMS: Final = 120
"""Maximum number of characters of all problems in the status line; the rest of it is for the counters."""

_NO_REASONS: Final = frozenset({"received", "accepted"})
"""The counters that are not reasons of discards."""

_IN_FORCE: Final = "the configuration in force remains"


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
        # The configuration in force.
        self.config = config
        # Set once the sockets are read.
        self.ready = asyncio.Event()
        # Called with each datagram before it is judged.
        self._observe = observe
        # Called with each configuration that a reload puts in force.
        self._on_reload = on_reload
        # Notified of start, reload, stop and watchdog; silent if no service manager started the daemon.
        self._manager = Manager({}) if manager is None else manager
        # The line that `systemctl status` shows.
        self._status = StatusLine(self._manager, self._describe)
        # Why the last reload was refused, in one line; empty if it was not.
        self._refused = ""
        # Set by SIGHUP, and by a request for a stop.
        self._hangup = asyncio.Event()
        self._stop = asyncio.Event()
        # Held by the reload that runs: another one waits for it.
        self._reloading = asyncio.Lock()

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
                reloads = group.create_task(self._reload_when_asked(), name="reloads")
                pings = group.create_task(self._ping_watchdog(), name="watchdog")
                await self._receive()
                await self._stop.wait()
                logger.info("daemon stopping", pending=self.pending)
                self._manager.stopping()
                self._operations.stopping = True
                # A reload would open sockets again.
                reloads.cancel()
                # First, so that a notification that is drained from a socket waits for the next start of the daemon.
                self._dispatcher.start_no_more()
                self.endpoints.close()
                self.receiver.close()
                await self._dispatcher.stop()
                # Late, so that an operator can ask which hooks the daemon waits for.
                if self._control is not None:
                    await self._control.stop()
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
        self._hangup.set()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        handlers = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop, signal.SIGHUP: self.reload}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        # Log rotation often sends these, and their default action would kill the daemon.
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            loop.add_signal_handler(number, _log_ignored, number)
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
        self.endpoints = Endpoints(self.receiver.deliver, self.receiver.count_dropped, self._manager.sockets)
        # Also if an address can't be bound: passed sockets have an endpoint already.
        stack.callback(self.endpoints.close)
        self.endpoints.bind(config.listen, given=config.listen_given, ipv4_sources=config.rules.servers.ipv4_sources)
        self.endpoints.configure(_intake(config))
        self._open_control(stack)

    def _open_control(self, stack: ExitStack) -> None:
        parts = Parts(
            self.receiver,
            self._dispatcher,
            self._journal,
            self._links,
            self.endpoints,
            self._manager.units,
            self._reload,
        )
        self._operations = Operations(parts, self.config)
        # None if no path is configured.
        self._control: Server | None = None
        if self.config.control is not None:
            self._control = Server(self.config.control, Interface(self._operations))
            stack.callback(self._control.close)

    async def _receive(self) -> None:
        self.endpoints.open()
        if self._control is not None:
            self._control.open()
        servers = len(self.config.servers)
        logger.info("daemon ready", version=__version__, loop=loop_name(), servers=servers, pending=self.pending)
        self._status.ready()
        self.ready.set()

    async def _reload_when_asked(self) -> None:
        while True:
            await self._hangup.wait()
            # Cleared before the file is read: a request during this reload leads to another one.
            self._hangup.clear()
            # Logged, and in the status line.
            with suppress(DmnotidError):
                await self._reload("SIGHUP")

    async def _reload(self, by: str) -> tuple[ConfigProblem, ...]:
        """Apply the configuration file for a process, and return the warnings.

        Raises DmnotidError, and changes nothing then.
        """
        async with self._reloading:
            self._manager.reloading()
            try:
                config = await _in_thread(lambda: load_config(self.config.file, os.environ, check_trusted_path))
                self._apply(config, by)
            except DmnotidError as error:
                self._log_refusal(error, by)
                raise
            except Exception as error:
                # A bug in reading a file must not stop the service.
                logger.exception("internal error")
                refusal = ConfigError((ConfigProblem(str(self.config.file), 0, 0, "", repr(error)),))
                self._log_refusal(refusal, by)
                raise refusal from error
            finally:
                self._status.ready()
            return self.config.warnings

    def _log_refusal(self, error: DmnotidError, by: str) -> None:
        facts: dict[str, object] = {"problem": str(error)}
        if isinstance(error, ConfigError):
            for problem in error.problems:
                logger.error("configuration problem", problem=str(problem))
            facts = {"problems": len(error.problems)}
        logger.error("reload refused", **facts, by=by, instead=_IN_FORCE)
        self._operations.refuse(error)
        self._refused = str(error).partition("\n")[0]

    def _apply(self, config: Config, by: str) -> None:
        """Put another configuration in force. Raises EndpointError or HookError, and changes nothing then."""
        if self._stop.is_set():
            # Sockets would be opened again.
            raise EndpointError("the daemon is stopping")
        rules = config.rules
        check_kernel(config.hook)
        # Only these two may fail. Datagrams drained from a socket that is closed are judged by the former rules.
        self.endpoints.bind(config.listen, given=config.listen_given, ipv4_sources=rules.servers.ipv4_sources)
        self.endpoints.configure(_intake(config))
        self._links.configure(config.connections)
        config = self._keep_fixed(config)
        for warning in config.warnings:
            logger.warning("configuration warning", problem=str(warning))
        self.config = config
        self.receiver.configure(rules, config.log.discards)
        self._journal.configure(limits=config.sessions, remember=config.remember, longest_pause=config.retry.longest)
        self._dispatcher.configure(config)
        self._operations.configure(config)
        self._refused = ""
        # Level and format of the log belong to the command.
        if self._on_reload is not None:
            self._on_reload(config)
        listen = [str(endpoint) for endpoint in self.endpoints]
        logger.info("configuration reloaded", servers=len(config.servers), listen=listen, pending=self.pending, by=by)

    def _keep_fixed(self, config: Config) -> Config:
        """Return a configuration with the values in use of the keys that need a restart, and a warning for each."""
        for key in ("state", "control"):
            new, used = getattr(config, key), getattr(self.config, key)
            if new != used:
                message = f"{new or 'off'} needs a restart; {used or 'off'} stays in use"
                warning = ConfigProblem(str(config.file), 0, 0, key, message)
                config = config._replace(**{key: used}, warnings=(*config.warnings, warning))
        return config

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
        """Return the status line."""
        servers, running, counts = len(self.config.servers), self._dispatcher.running, self.counters
        waiting, accepted = self.pending - running, counts["accepted"]
        discards = {reason: count for reason, count in counts.most_common() if reason not in _NO_REASONS and count}
        reasons = ", ".join(f"{reason} {count}" for reason, count in discards.items())
        discarded = f"{sum(discards.values())} discarded" + (f" ({reasons})" if reasons else "")
        sessions = f"sessions: {running} running, {waiting} pending"
        found = {"hook not startable": self._dispatcher.hook_problem, "reload refused": self._refused}
        problems = [(name, problem) for name, problem in found.items() if problem]
        # The line is cut at its end, so the problems share what the counters leave.
        first = "".join(f"{name}: {shortened(problem, MAX_PROBLEMS // len(problems))}; " for name, problem in problems)
        return f"{first}{servers} server{'s'[: servers != 1]}; {sessions}; {accepted} accepted, {discarded}"


def _log_ignored(number: signal.Signals) -> None:
    logger.info("signal ignored", signal=number.name)


def _in_thread(load: Callable[[], Config]) -> asyncio.Future[Config]:
    """Call `load` in a thread: a large file takes a slow device minutes, and the watchdog would end the daemon."""
    result: concurrent.futures.Future[Config] = concurrent.futures.Future()

    def run() -> None:
        # From here on the waiting task can no longer cancel the result, so setting it never fails.
        if result.set_running_or_notify_cancel():
            try:
                result.set_result(load())
            except Exception as error:  # noqa: BLE001 - raised again in the task that waits
                result.set_exception(error)

    # Not asyncio.to_thread: at the stop, the loop would wait for its threads.
    threading.Thread(target=run, name="reload", daemon=True).start()
    return asyncio.wrap_future(result)


def _intake(config: Config) -> Intake:
    return Intake(config.receive_buffer, config.log.junk, config.log.discards, config.max_octets)
