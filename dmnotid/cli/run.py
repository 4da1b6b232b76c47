"""`dmnotid run`: the daemon, from its configuration to its exit status."""

import argparse
import os
import signal
from pathlib import Path
from typing import Final

from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.config.loading import load_config
from dmnotid.config.values import Config
from dmnotid.daemon import Daemon
from dmnotid.errors import DmnotidError
from dmnotid.host import log
from dmnotid.host.loop import reset_signals, run_to_completion
from dmnotid.host.systemd import Manager
from dmnotid.host.trust import check_trusted_path

DEFAULT_CONFIG: Final = Path("/etc/dmnotid/dmnotid.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid run`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")


def main(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop, 1 if the daemon can't start or stops by an error.

    Raises ConfigError.
    """
    reset_signals()
    # A reload may be requested before the daemon has a handler for it; the default action would kill the process.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Before the log is configured: the caller prints problems on standard error.
    config = load_config(arguments.config, os.environ, check_trusted_path)
    configure_log(config)
    for warning in config.warnings:
        log.logger.warning("configuration warning", problem=str(warning))
    try:
        daemon = Daemon(config, manager=Manager(os.environ), on_reload=configure_log)
        run_to_completion(daemon.run())
    except DmnotidError as error:
        log.logger.error("daemon not started", problem=str(error))
        return EXIT_PROBLEM
    except ExceptionGroup:
        log.logger.exception("internal error")
        return EXIT_PROBLEM
    return EXIT_OK


def configure_log(config: Config) -> None:
    """Apply the log settings of a configuration."""
    log.configure(config.log.level, config.log.format)
