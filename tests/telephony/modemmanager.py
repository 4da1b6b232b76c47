"""The real ModemManager with a modem of the tests, on a private bus."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from jeepney.wrappers import DBusErrorResponse

from tests.support import wait_until
from tests.telephony.bus import PrivateBus, call

MODEMMANAGER: Final = shutil.which("ModemManager") or "/usr/sbin/ModemManager"
NAME: Final = "org.freedesktop.ModemManager1"
ROOT: Final = "/org/freedesktop/ModemManager1"
MODEM: Final = f"{NAME}.Modem"
MESSAGING: Final = f"{NAME}.Modem.Messaging"

# No hardware, nothing of the machine: one modem at the socket that a profile names.
ISOLATED: Final = ["--test-enable", "--test-no-udev", "--no-auto-scan", "--test-no-suspend-resume", "--test-no-qrtr"]


def why_no_modemmanager() -> str:
    """Return what this machine lacks for ModemManager; empty if nothing."""
    missing = [tool for tool in ("dbus-daemon", MODEMMANAGER) if shutil.which(tool) is None]
    return f"needs {' and '.join(missing)}" if missing else ""


class ModemManager:
    """A ModemManager with one modem at an abstract socket; ended with the block."""

    def __init__(self, bus: PrivateBus, directory: Path, socket_name: str) -> None:
        """`socket_name` begins with "abstract:", which is a part of the name of the socket."""
        self._bus = bus
        self._socket_name = socket_name
        self._log = directory / "modemmanager.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [MODEMMANAGER, "--debug", *ISOLATED], env=self._bus.environment, stdout=log, stderr=log
            )
        self._bus.wait_for(NAME)
        self.plug_in()

    def plug_in(self) -> None:
        """Connect the modem, and enable it as a connection manager does."""
        self._bus.call(NAME, ROOT, f"{NAME}.Test", "SetProfile", "ssas", "test", "generic", [self._socket_name])
        wait_until(self.modems)
        self.enable(enabled=True)

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Unplug the modem while the block runs; afterwards it has another object."""
        with self._bus.connect() as connection:
            for gone in (True, False):
                call(connection, NAME, ROOT, NAME, "InhibitDevice", "sb", "/virtual/test", gone)
                wait_until(lambda: bool(self.modems()) is not gone)  # noqa: B023 - it is called here alone
                if gone:
                    yield
        self.enable(enabled=True)

    def stop(self) -> None:
        assert self._process is not None
        # It ends by itself with its bus.
        self._process.terminate()
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def modems(self) -> list[str]:
        """Return the modems that can have messages."""
        (objects,) = self._bus.call(NAME, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
        return [path for path, interfaces in objects.items() if MESSAGING in interfaces]

    def enable(self, *, enabled: bool) -> None:
        """Enable or disable the modem, as a connection manager does."""
        self.call(MODEM, "Enable", "b", enabled)

    def call(self, interface: str, method: str, signature: str | None = None, *body: object) -> tuple[Any, ...]:
        """Call a method of the modem."""
        (modem,) = self.modems()
        return self._bus.call(NAME, modem, interface, method, signature, *body)

    def settle(self) -> None:
        """Let ModemManager finish its work with the modem: it ignores messages that are announced meanwhile."""
        self.call(MODEM, "Command", "su", "AT", 30)

    def messages(self) -> list[dict[str, Any]]:
        """Return the properties of the messages in the list of the modem."""
        (paths,) = self.call(MESSAGING, "List")
        found = []
        for path in paths:
            try:
                (values,) = self._bus.call(NAME, path, "org.freedesktop.DBus.Properties", "GetAll", "s", f"{NAME}.Sms")
            except DBusErrorResponse:
                # A bearer has deleted it.
                continue
            found.append({name: value for name, (_, value) in values.items()})
        return found
