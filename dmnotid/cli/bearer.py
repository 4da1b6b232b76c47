"""`dmnotid bearer`: hand pushes by SMS from a telephony daemon to the push door."""

import argparse
import asyncio
import importlib
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from dmnotid.cli.process import EXIT_OK, EXIT_PROBLEM
from dmnotid.errors import DmnotidError
from dmnotid.events import EVENTS
from dmnotid.host import log
from dmnotid.host.loop import reset_signals, run_to_completion
from dmnotid.host.systemd import Manager

BEARERS: Final = ("ofono", "modemmanager")
"""The telephony daemons. Each has a module in dmnotid.bearers with `run(door, on_ready)`."""

DEFAULT_DOOR: Final = Path("/run/dmnotid-doors/push.sock")
"""The push door of dmnotid-doors.socket."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid bearer`."""
    parser.add_argument("telephony", choices=BEARERS, metavar="TELEPHONY", help="the telephony daemon: %(choices)s")
    parser.add_argument(
        "--door", type=Path, default=DEFAULT_DOOR, metavar="PATH", help="the push door (default: %(default)s)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; 0 after an orderly stop."""
    try:
        # Imported only here, because no other command needs jeepney, which is optional.
        bearer = importlib.import_module(f"dmnotid.bearers.{arguments.telephony}")
    except ModuleNotFoundError as error:
        # Any other missing module is a defect of the installation.
        if error.name != "jeepney":
            raise
        packages = "pip install 'dmnotid[sms]', or apt install python3-jeepney"
        raise DmnotidError(f"dmnotid bearer: the Python package jeepney (D-Bus) is missing: {packages}") from None
    reset_signals()
    log.configure(events=EVENTS)
    # Type=notify: the unit counts as started once the bus is connected.
    manager = Manager(os.environ)

    async def run() -> None:
        serving = asyncio.create_task(bearer.run(arguments.door, lambda: manager.ready("connected to the system bus")))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        log.logger.info("bearer started", telephony=arguments.telephony, door=str(arguments.door))
        # The handlers of the signals cancel it.
        with suppress(asyncio.CancelledError):
            await serving
        log.logger.info("bearer stopped", telephony=arguments.telephony)

    try:
        # uvloop would take more memory, and a bearer has little to do.
        run_to_completion(run(), asyncio.new_event_loop)
    # A task group wraps an unexpected error of any of its tasks.
    except ExceptionGroup:
        log.logger.exception("internal error")
        return EXIT_PROBLEM
    return EXIT_OK
