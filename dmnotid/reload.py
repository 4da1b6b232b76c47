"""The configuration in force, and how another one takes its place.

in force --SIGHUP, or a request--> read and checked --every part uses it--> in force
read and checked --a problem, or sockets that can't be opened--> refused: the former one stays in force
"""

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.dispatcher import Dispatcher
from dmnotid.errors import ConfigError, ConfigProblem, DmnotidError, EndpointError
from dmnotid.hook.command import check_kernel
from dmnotid.host.log import logger
from dmnotid.host.systemd import Manager, StatusLine
from dmnotid.host.trust import check_trusted_path
from dmnotid.intake.endpoint import Intake
from dmnotid.intake.sockets import Endpoints
from dmnotid.journal.queue import Journal
from dmnotid.links.monitor import Links
from dmnotid.receiver import Receiver


class Parts(NamedTuple):
    """The parts of the daemon that use the configuration."""

    receiver: Receiver
    dispatcher: Dispatcher
    journal: Journal
    links: Links
    endpoints: Endpoints


class Refusal(NamedTuple):
    """When a reload was refused (POSIX seconds), and why."""

    at: float
    error: DmnotidError


class Reloader:
    """Holds the configuration in force, and puts another one in force."""

    def __init__(
        self, config: Config, manager: Manager, status: StatusLine, on_reload: Callable[[Config], None] | None
    ) -> None:
        # The configuration in force, and since when (POSIX seconds).
        self.config = config
        self.loaded_at = time.time()
        # Why the last reload was refused; None if it was not.
        self.refusal: Refusal | None = None
        # Whether the daemon stops: a reload would open sockets again.
        self.stopping = False
        # Set by SIGHUP.
        self.requested = asyncio.Event()
        # Notified of each reload, and of the status after it.
        self._manager, self._status = manager, status
        # Called with each configuration that a reload puts in force: level and format of the log belong to the command.
        self._on_reload = on_reload
        # Held by the reload that runs: another one waits for it.
        self._reloading = asyncio.Lock()

    def use(self, parts: Parts) -> None:
        """Set the parts that get later configurations."""
        self._parts = parts

    async def run(self) -> None:
        """Reload at each request, until it is cancelled."""
        while True:
            await self.requested.wait()
            # Cleared before the file is read: a request during this reload leads to another one.
            self.requested.clear()
            # Logged, and in the status line.
            with suppress(DmnotidError):
                await self.reload("SIGHUP")

    async def reload(self, by: str) -> tuple[ConfigProblem, ...]:
        """Put the configuration file in force and return its warnings; `by` names the process that asks for it.

        Raises DmnotidError, and changes nothing then.
        """
        async with self._reloading:
            self._manager.reloading()
            try:
                self._apply(await _in_thread(lambda: load_config(self.config.file, os.environ, check_trusted_path)), by)
            except DmnotidError as error:
                self._refuse(error, by)
                raise
            except Exception as error:
                # A bug in reading a file must not stop the service.
                logger.exception("internal error")
                refusal = ConfigError((ConfigProblem(str(self.config.file), 0, 0, "", repr(error)),))
                self._refuse(refusal, by)
                raise refusal from error
            finally:
                self._status.ready()
            return self.config.warnings

    def _refuse(self, error: DmnotidError, by: str) -> None:
        facts: dict[str, object] = {"problem": str(error)}
        if isinstance(error, ConfigError):
            for problem in error.problems:
                logger.error("configuration problem", problem=str(problem))
            facts = {"problems": len(error.problems)}
        logger.error("reload refused", **facts, by=by, instead="the configuration in force remains")
        self.refusal = Refusal(time.time(), error)

    def _apply(self, config: Config, by: str) -> None:
        """Put another configuration in force. Raises EndpointError or HookError, and changes nothing then."""
        if self.stopping:
            raise EndpointError("the daemon is stopping")
        receiver, dispatcher, journal, links, endpoints = self._parts
        # Only these two may fail. Datagrams drained from a socket that is closed are judged by the former rules.
        check_kernel(config.hook)
        bind(endpoints, config)
        # Before the dispatcher, which looks for sessions to start over these connections.
        links.configure(config.connections)
        config = self._keep_fixed(config)
        for warning in config.warnings:
            logger.warning("configuration warning", problem=str(warning))
        receiver.configure(config.rules, config.log.discards)
        journal.configure(limits=config.sessions, remember=config.remember, longest_pause=config.retry.longest)
        dispatcher.configure(config)
        self.config, self.loaded_at, self.refusal = config, time.time(), None
        if self._on_reload is not None:
            self._on_reload(config)
        servers, listen = len(config.servers), [str(endpoint) for endpoint in endpoints]
        logger.info("configuration reloaded", servers=servers, listen=listen, pending=dispatcher.pending, by=by)

    def _keep_fixed(self, config: Config) -> Config:
        """Return a configuration with the values in use of the keys that need a restart, and a warning for each."""
        for key in ("state", "control"):
            new, used = getattr(config, key), getattr(self.config, key)
            if new != used:
                message = f"{new or 'off'} needs a restart; {used or 'off'} stays in use"
                warning = ConfigProblem(str(config.file), 0, 0, key, message)
                config = config._replace(**{key: used}, warnings=(*config.warnings, warning))
        return config


def bind(endpoints: Endpoints, config: Config) -> None:
    """Bind the addresses and doors of a configuration, and close others. An EndpointError leaves all as it was."""
    ipv4_sources = config.rules.servers.ipv4_sources
    endpoints.bind(config.listen, config.doors, given=config.listen_given, ipv4_sources=ipv4_sources)
    endpoints.configure(Intake(config.receive_buffer, config.log.junk, config.log.discards, config.max_octets))


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
