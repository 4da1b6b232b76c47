"""Directories that are made once for all workers of pytest-xdist: the package, and the roots of machines."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import pytest

DIRECTORY: Final = "DMNOTID_TEST_SHARED"
"""Environment variable: the directory of shared files, which exists until the tests end."""


def set_up(config: pytest.Config) -> None:
    """Make the directory, and remove it at the end, unless this process is a worker."""
    if DIRECTORY in os.environ:
        return
    os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="dmnotid-shared-")
    config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(DIRECTORY)))
    # A termination ends the tests like an interrupt, so that everything is cleaned up.
    signal.signal(signal.SIGTERM, _interrupt)


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return the path of a directory that `make` fills; the first worker makes it, and the others wait for it."""
    place = Path(os.environ[DIRECTORY], name)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            # Renamed when it is complete, so that a directory of an interrupted run is not used.
            half = place.with_suffix(".half")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            make(half)
            half.rename(place)
    return place


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)
