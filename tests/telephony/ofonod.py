"""The real ofonod with its phonesim plugin, on a private bus."""

import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import IS_ROOT, wait_until
from tests.telephony.bus import Daemon, PrivateBus
from tests.telephony.modem import Modem

OFONOD: Final = shutil.which("ofonod") or "/usr/sbin/ofonod"
NAME: Final = "org.ofono"
MODEM: Final = "/phonesim"
PUSH: Final = "org.ofono.PushNotification"


needs_ofono = pytest.mark.skipif(
    not (IS_ROOT and Path("/var/lib/ofono").is_dir() and all(map(shutil.which, ("dbus-daemon", OFONOD, "unshare")))),
    reason="needs dbus-daemon and ofonod, unshare, and root for a mount namespace",
)


class Ofonod(Daemon):
    """An ofonod with one modem; ended with the block."""

    def __init__(self, bus: PrivateBus, directory: Path, modem: Modem) -> None:
        phone = directory / "phonesim.conf"
        phone.write_text(f"[phonesim]\nDriver=phonesim\nAddress=127.0.0.1\nPort={modem.port}\n")
        # Parts of messages lie in /var/lib/ofono: each run has an empty one.
        script = 'mount -t tmpfs none /var/lib/ofono && exec "$@"'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", OFONOD, "--nodetach", "--debug=*"]
        variables = {"OFONO_PHONESIM_CONFIG": str(phone), "OFONO_AT_DEBUG": "1"}
        super().__init__(bus, NAME, directory / "ofonod.log", command, **variables)

    def start(self) -> None:
        super().start()
        self.power(on=True)

    def power(self, *, on: bool) -> None:
        """Power the modem on or off, and wait until it takes messages, or takes no more."""
        modem = "org.ofono.Modem"
        wait_until(lambda: MODEM in self.modems())
        self.bus.call(NAME, MODEM, modem, "SetProperty", "sv", "Powered", ("b", on))
        wait_until(lambda: (PUSH in self.modems()[MODEM]["Interfaces"][1]) == on)

    def modems(self) -> dict[str, dict[str, Any]]:
        (modems,) = self.bus.call(NAME, "/", "org.ofono.Manager", "GetModems")
        return dict(modems)
