"""A private bus, a modem, oFono, a door, and bearers."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.bearers.door import Door
from tests.processes import DMNOTID, ENVIRONMENT
from tests.support import IS_ROOT, parse_lines, wait_until
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


class Bearer:
    """A running `dmnotid bearer`; its log is a file of lines."""

    def __init__(self, telephony: str, door: Path, bus: PrivateBus, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*DMNOTID, "bearer", telephony, "--door", door],
                env={**ENVIRONMENT, **bus.environment}, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in parse_lines(self._log.read_text()) if line["event"] == event]

    def wait(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait for a record of the log; the last of so many."""

        def there() -> bool:
            assert self.process.poll() in {None, 0}, self._log.read_text()
            return len(self.of(event)) >= count

        wait_until(there)
        return self.of(event)[count - 1]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


StartBearer = Callable[..., Bearer]


@pytest.fixture
def bearer(bus: PrivateBus, short: Path) -> Iterator[StartBearer]:
    """Start bearers; those that still run at the end are killed."""
    bearers: list[Bearer] = []

    def start(telephony: str, door: Path) -> Bearer:
        bearers.append(Bearer(telephony, door, bus, short / f"bearer{len(bearers)}.log"))
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
