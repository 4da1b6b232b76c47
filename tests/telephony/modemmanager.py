"""The real ModemManager with a modem of the tests, on a private bus."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from jeepney.wrappers import DBusErrorResponse

from tests.support import wait_until
from tests.telephony.bus import Daemon, PrivateBus, call
from tests.telephony.modem import Modem

MODEMMANAGER: Final = shutil.which("ModemManager") or "/usr/sbin/ModemManager"
NAME: Final = "org.freedesktop.ModemManager1"
ROOT: Final = "/org/freedesktop/ModemManager1"
MODEM: Final = f"{NAME}.Modem"
MESSAGING: Final = f"{NAME}.Modem.Messaging"

# No hardware, nothing of the machine: one modem at the socket that a profile names.
ISOLATED: Final = ["--test-enable", "--test-no-udev", "--no-auto-scan", "--test-no-suspend-resume", "--test-no-qrtr"]


needs_modemmanager = pytest.mark.skipif(
    not all(map(shutil.which, ("dbus-daemon", MODEMMANAGER))), reason="needs dbus-daemon and ModemManager"
)


class ModemManager(Daemon):
    """A ModemManager with one modem; ended with the block."""

    def __init__(self, bus: PrivateBus, directory: Path, modem: Modem) -> None:
        super().__init__(bus, NAME, directory / "modemmanager.log", [MODEMMANAGER, "--debug", *ISOLATED])
        self._modem = modem

    def start(self) -> None:
        """Start it, connect the modem, and enable it as a connection manager does."""
        super().start()
        self.bus.call(NAME, ROOT, f"{NAME}.Test", "SetProfile", "ssas", "test", "generic", [self._modem.name])
        wait_until(self.modems)
        self.enable(enabled=True)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it while the block runs."""
        self.stop()
        yield
        self.start()

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Unplug the modem while the block runs; afterwards it has another object."""
        with self.bus.connect() as connection:
            for gone in (True, False):
                call(connection, NAME, ROOT, NAME, "InhibitDevice", "sb", "/virtual/test", gone)
                wait_until(lambda: bool(self.modems()) is not gone)  # noqa: B023 - it is called here alone
                if gone:
                    yield
        self.enable(enabled=True)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Disable the modem while the block runs."""
        self.enable(enabled=False)
        yield
        self.enable(enabled=True)

    def enable(self, *, enabled: bool) -> None:
        """Enable or disable the modem, as a connection manager does."""
        self.call(MODEM, "Enable", "b", enabled)

    def modems(self) -> list[str]:
        """Return the modems that can have messages."""
        (objects,) = self.bus.call(NAME, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        return [path for path, interfaces in objects.items() if MESSAGING in interfaces]

    def call(self, interface: str, method: str, signature: str | None = None, *body: object) -> tuple[Any, ...]:
        """Call a method of the modem."""
        (modem,) = self.modems()
        return self.bus.call(NAME, modem, interface, method, signature, *body)

    def receive(self, *tpdus: bytes) -> None:
        """Let messages arrive in the memory of the modem, each after ModemManager has read the one before.

        ModemManager 1.20.4 ignores the announcement of a message while it reads or deletes another one, and reads that
        message when the modem is enabled the next time.
        """
        for tpdu in tpdus:
            self._settle()
            before = self._reads()
            self._modem.store(tpdu)
            wait_until(lambda: self._reads() > before)  # noqa: B023 - it is called here alone
        self._settle()

    def _settle(self) -> None:
        """Let ModemManager finish its work with the modem."""
        self.call(MODEM, "Command", "su", "AT", 30)

    def _reads(self) -> int:
        return sum(command.startswith("AT+CMGR=") for command in self._modem.commands)

    def messages(self) -> list[dict[str, Any]]:
        """Return the properties of the messages in the list of the modem."""
        (paths,) = self.call(MESSAGING, "List")
        found = []
        for path in paths:
            try:
                (values,) = self.bus.call(NAME, path, "org.freedesktop.DBus.Properties", "GetAll", "s", f"{NAME}.Sms")
            except DBusErrorResponse:
                # A bearer has deleted it.
                continue
            found.append({name: value for name, (_, value) in values.items()})
        return found
