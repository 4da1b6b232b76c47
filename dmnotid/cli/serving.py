"""The daemon on its event loop, from its configuration to its exit status."""

import asyncio
import os
import signal
from collections.abc import Callable

from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.errors import DmnotidError
from dmnotid.host import log
from dmnotid.host.systemd import Manager


def serve(config: Config) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop, 1 where the daemon can't begin or go on."""
    manager = Manager(os.environ)
    configure_log(config)
    for warning in config.warnings:
        log.logger.warning("configuration", problem=str(warning))
    try:
        run_daemon(Daemon(config, manager=manager, on_reload=configure_log))
    except DmnotidError as error:
        log.logger.error("not started", problem=str(error))
        return EXIT_PROBLEM
    except ExceptionGroup:
        log.logger.exception("ended by a bug")
        return EXIT_PROBLEM
    return EXIT_OK


def configure_log(config: Config) -> None:
    """Log as the configuration says."""
    log.configure(config.log.level, config.log.format)


def run_daemon(daemon: Daemon) -> None:
    """Run a daemon to its end on the best event loop there is. Raises what `Daemon.run` raises."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_run_to_the_end(daemon))


async def _run_to_the_end(daemon: Daemon) -> None:
    await daemon.run()
    # All is closed, and the loop's handlers go with the loop: what is asked for again must not make another end of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's loop; where that can't be imported (armv7, musl without a wheel), say so and return asyncio's."""
    try:
        import uvloop  # noqa: PLC0415 - may be missing
    except ImportError as error:
        log.logger.warning("no uvloop", problem=str(error), instead="asyncio, which takes fewer datagrams a second")
        return asyncio.new_event_loop
    return uvloop.new_event_loop
