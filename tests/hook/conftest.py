"""Fixtures of the tests of hooks."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.hook.runs import pids_of
from tests.support import is_alive


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file for the process ids of a hook and its child; those that still run at the end are killed."""
    file = tmp_path / "pids"
    yield file
    for pid in pids_of(file) if file.exists() else []:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def few_descriptors() -> Callable[[int], AbstractContextManager[None]]:
    """Leave so many descriptors free in this process for a while."""

    @contextmanager
    def limited(free: int) -> Iterator[None]:
        lowest = os.dup(0)
        os.close(lowest)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return limited
