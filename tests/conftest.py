"""What all tests share: both event loops for whatever is async, and the log as values."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping

import pytest
import structlog

from dmnotid.host import log
from tests.support import LogLines

# What begins in the background of a script ignores SIGINT, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The daemon refuses paths that a group can write, and with umask 002 that would be every file that a test makes.
os.umask(0o022)

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def loop_factories() -> dict[str, LoopFactory]:
    """Return asyncio's own loop, and uvloop's where it can be imported: the daemon runs on either."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop  # noqa: PLC0415 - may be missing
    except ImportError:
        return factories
    return {**factories, "uvloop": uvloop.new_event_loop}


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, LoopFactory]:
    """Run every async test once on each loop (pytest-asyncio before 1.4 doesn't ask, and takes asyncio's)."""
    return loop_factories()


@pytest.fixture
def logged() -> Iterator[LogLines]:
    """Take the service's log, from level debug up, as the JSON lines that it is."""
    lines = LogLines()
    log.configure("debug", "json", lines)
    yield lines
    structlog.reset_defaults()
