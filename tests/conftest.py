"""What all tests share: the event loops of async tests, and the log as values."""

import asyncio
import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import structlog
from hypothesis import HealthCheck, settings

from dmnotid.host import log
from tests import shared
from tests.processes import Run, running
from tests.project.packaging import BUILD_PACKAGES, PROJECT, RELEASE, build_deb, copy_sources, why_no_deb
from tests.support import LogLines
from tests.system.machine import make_root
from tests.system.machine import why_not as why_no_machine

# A background job of a script ignores SIGINT (with nohup SIGHUP too), and so would the programs that tests start.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# The tests start hundreds of interpreters, and each of them would compile the program again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The daemon refuses paths that a group can write, and with umask 002 every file of a test would be one.
os.umask(0o022)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share the tests of a plain `pytest` among the processors, if pytest-xdist is installed.

    Named tests, and those that boot machines, run in one process.
    """
    option = config.option
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS and option.markexpr.startswith("not slow")
    # A worker of pytest-xdist comes here too, and must not start workers of its own.
    in_worker = hasattr(config, "workerinput")
    if everything and not in_worker and getattr(option, "numprocesses", 0) is None:
        # Many tests wait for processes and timers, so one worker more than processors keeps them busy.
        option.numprocesses = len(os.sched_getaffinity(0)) + 1
        option.dist = "worksteal"


# A busy machine is no reason to fail, nor is chance: the examples are the same each time, and the fuzzer has others.
settings.register_profile(
    "dmnotid",
    deadline=None,
    derandomize=True,
    max_examples=50,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dmnotid")


def pytest_configure(config: pytest.Config) -> None:
    shared.set_up(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take long, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: not any(item.iter_markers("slow")) and not any(item.iter_markers("system")))


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import a share of the tests before the others, each worker another one.

    In a fresh checkout pytest rewrites the assertions of each module, for a cache; else every worker would do that for
    all of them.
    """
    worker = getattr(session.config, "workerinput", None)
    if worker is None or session.config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    tests = sorted(Path(__file__).parent.rglob("test_*.py"))
    for file in tests[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        # A module that cannot be imported is reported when it is collected.
        with suppress(Exception, pytest.skip.Exception):
            import_module(".".join(file.relative_to(session.config.rootpath).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Spare the collector what exists until the end: the modules and tens of thousands of objects of the tests."""
    gc.collect()
    gc.freeze()


LoopFactory = Callable[[], asyncio.AbstractEventLoop]

BOTH_LOOPS = {"control", "intake", "links", "hook"}
"""The rooms of tests whose async tests run on both loops: they register file descriptors with the loop itself."""


def loop_factories() -> dict[str, LoopFactory]:
    """Return the event loops that the daemon can run on: asyncio's own, and uvloop's if it is installed."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return factories
    return {**factories, "uvloop": uvloop.new_event_loop}


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Choose the loops of an async test: both in four rooms, elsewhere the one that the daemon would choose.

    pytest-asyncio before 1.4 does not call this and uses asyncio's loop.
    """
    factories = loop_factories()
    if item.path.parent.name in BOTH_LOOPS:
        return factories
    name = list(factories)[-1]
    return {name: factories[name]}


@pytest.fixture
def logged() -> Iterator[LogLines]:
    """Capture the daemon's log from level debug up."""
    lines = LogLines()
    log.configure("debug", "json", lines)
    yield lines
    structlog.reset_defaults()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets, and which each user can reach."""
    with TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Run]:
    """Start daemons with a configuration file; those that still run at the end of the test are killed."""
    with running(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def build_root() -> Path | None:
    """The Debian that packages are built in, if a release is asked for; without it they are built here."""
    if not (release := os.environ.get(RELEASE)):
        return None
    if reason := why_no_machine():
        pytest.skip(reason)
    return shared.made_once("build-root", lambda root: make_root(root, release, BUILD_PACKAGES))


@pytest.fixture(scope="session")
def package(build_root: Path | None) -> Path:
    """The Debian package of this checkout, built once."""

    def build(dist: Path) -> None:
        if build_root is None:
            build_deb(PROJECT, dist)
            return
        sources = copy_sources(build_root / "srv/sources")
        for built in build_deb(sources, sources / "dist", root=build_root).parent.iterdir():
            shutil.copy(built, dist)

    if build_root is None and (reason := why_no_deb()):
        pytest.skip(reason)
    [package] = shared.made_once("package", build).glob("dmnotid_*.deb")
    return package
