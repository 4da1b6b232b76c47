"""A private bus, a modem, oFono, a door, and bearers."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.bearers.door import Door
from tests.processes import DMNOTID, ENVIRONMENT, Program
from tests.support import IS_ROOT
from tests.telephony.bus import PrivateBus
from tests.telephony.modem import Modem, tcp_listener
from tests.telephony.ofonod import OFONOD, Ofonod

TOOLS = ("dbus-daemon", OFONOD, "unshare")


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def bus(short: Path) -> Iterator[PrivateBus]:
    with PrivateBus(short) as bus:
        yield bus


@pytest.fixture
def modem() -> Iterator[Modem]:
    with Modem(tcp_listener()) as modem:
        yield modem


@pytest.fixture
def ofono(bus: PrivateBus, modem: Modem, short: Path) -> Iterator[Ofonod]:
    with Ofonod(bus, short, modem.port) as ofono:
        yield ofono


@pytest.fixture
def door(short: Path) -> Iterator[Door]:
    with Door(short / "push.sock") as door:
        yield door


StartBearer = Callable[[str, Path], Program]


@pytest.fixture
def bearer(bus: PrivateBus, short: Path) -> Iterator[StartBearer]:
    """Start bearers for a telephony daemon and a door; those that still run at the end are killed."""
    bearers: list[Program] = []

    def start(telephony: str, door: Path) -> Program:
        command = [*DMNOTID, "bearer", telephony, "--door", str(door)]
        bearers.append(Program(command, short / f"bearer{len(bearers)}.log", {**ENVIRONMENT, **bus.environment}))
        return bearers[-1]

    yield start
    for one in bearers:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


def why_no_ofono() -> str:
    """Return the reason why oFono cannot run on this machine; empty if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return "" if IS_ROOT and os.path.isdir("/var/lib/ofono") else "needs root, for a mount namespace"  # noqa: PTH112
