"""`dmnotid run`: the daemon, from its configuration to its exit status."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from dmnotid.cli.process import DEFAULT_CONFIG, EXIT_CONFIG, EXIT_OK, EXIT_PROBLEM, print_error
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.errors import ConfigError, DmnotidError
from dmnotid.events import EVENTS
from dmnotid.host import log
from dmnotid.host.loop import reset_signals, run_to_completion
from dmnotid.host.systemd import Manager
from dmnotid.host.trust import check_trusted_path

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Declare the arguments of `dmnotid run`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")


def main(arguments: "argparse.Namespace") -> int:
    """Run the daemon and return its exit status, as `run_daemon` does."""
    return run_daemon(arguments.config)


def run_daemon(file: Path | str = DEFAULT_CONFIG) -> int:
    """Run until SIGTERM or SIGINT. Return 0 after an orderly stop, 78 if the configuration can't be used.

    1 is any other reason why the daemon can't start, or an error that stops it.
    """
    reset_signals()
    # These may arrive before the daemon has a handler for them; the default action would kill the process.
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # The defaults, until a configuration names others.
    log.configure(events=EVENTS)
    # Variables that are wrong raise an error, and the handlers of errors need a manager.
    manager = Manager({})
    try:
        manager = Manager(os.environ)
        config = load_config(Path(file), os.environ, check_trusted_path)
        configure_log(config)
        for warning in config.warnings:
            log.logger.warning("configuration warning", problem=str(warning))
        run_to_completion(Daemon(config, manager=manager, on_reload=configure_log).run())
    except ConfigError as error:
        first, *others = map(str, error.problems)
        more = f" (and {len(others)} more: dmnotid check shows them)" if others else ""
        # systemd starts a service again and again, so one line for each start is enough.
        print_error(f"{first}{more}" if manager.listens else error)
        # `systemctl status` shows this line even if the log is elsewhere.
        manager.status(f"configuration: {first}{more}")
        return EXIT_CONFIG
    except DmnotidError as error:
        log.logger.error("daemon not started", problem=str(error))
        manager.status(f"not started: {error}")
        return EXIT_PROBLEM
    # A task group wraps an unexpected error of any of its tasks.
    except ExceptionGroup:
        log.logger.exception("internal error")
        return EXIT_PROBLEM
    return EXIT_OK


def configure_log(config: Config) -> None:
    """Apply the log settings of a configuration."""
    log.configure(config.log.level, config.log.format, events=EVENTS)
