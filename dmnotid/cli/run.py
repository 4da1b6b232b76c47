"""`dmnotid run`: the daemon."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dmnotid.cli.process import no_rubbish
from dmnotid.cli.signals import reset_signals
from dmnotid.config.reading import Reading

if TYPE_CHECKING:
    import argparse

DEFAULT_CONFIG = Path("/etc/dmnotid/dmnotid.yaml")


def plain_file(words: Sequence[str]) -> Path | None:
    """Return the file that plain words behind `dmnotid run` name; None leaves them to the parser and its messages."""
    match words:
        case []:
            return DEFAULT_CONFIG
        case ["--config", file] if not file.startswith("-"):
            return Path(file)
    return None


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Declare what follows `dmnotid run`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")


def main(arguments: "argparse.Namespace") -> int:
    """Run as `run` does."""
    return run(arguments.config)


def run(file: Path) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop, 1 where the daemon can't begin or go on.

    Raises ConfigError.
    """
    reset_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a reload that is asked for too early is no end
    reading = Reading(file)
    try:
        with no_rubbish():
            from dmnotid.cli import serving  # noqa: PLC0415 - while the file is read; and the reader needs none of it
    except BaseException:
        reading.give_up()
        raise
    return serving.serve(reading.wait())
