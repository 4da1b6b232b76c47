"""A private bus, a modem, telephony daemons, a door, and bearers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bearers.door import Door
from tests.processes import DMNOTID, ENVIRONMENT, Program
from tests.telephony.bus import Polkit, PrivateBus
from tests.telephony.modem import Modem
from tests.telephony.modemmanager import ModemManager
from tests.telephony.ofonod import Ofonod


@pytest.fixture
def bus(short: Path) -> Iterator[PrivateBus]:
    with PrivateBus(short) as bus:
        yield bus


@pytest.fixture
def modem() -> Iterator[Modem]:
    with Modem() as modem:
        yield modem


@pytest.fixture
def ofono(bus: PrivateBus, modem: Modem, short: Path) -> Iterator[Ofonod]:
    with Ofonod(bus, short, modem) as ofono:
        yield ofono


@pytest.fixture
def polkit(bus: PrivateBus) -> Iterator[Polkit]:
    with Polkit(bus) as polkit:
        yield polkit


@pytest.fixture
def manager(bus: PrivateBus, polkit: Polkit, modem: Modem, short: Path) -> Iterator[ModemManager]:  # noqa: ARG001 - it asks polkit
    with ModemManager(bus, short, modem) as manager:
        yield manager


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
