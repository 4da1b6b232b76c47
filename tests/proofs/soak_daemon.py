"""`dmnotid run` as it is, but for one thing: at SIGWINCH it logs how many asyncio tasks it has."""

import asyncio
import signal
import sys

from dmnotid.cli import main, run
from dmnotid.daemon import Daemon
from dmnotid.host.log import logger


class Watched(Daemon):
    """The daemon, with a way to look at its loop from outside."""

    async def run(self) -> None:
        """Run as ever."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, _tell)
        await super().run()


def _tell() -> None:
    logger.info("tasks", count=len(asyncio.all_tasks()))


if __name__ == "__main__":
    vars(run)["Daemon"] = Watched
    sys.exit(main())
