"""The real ofonod with its phonesim plugin, on a private bus."""

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Final, Self

from tests.support import wait_until
from tests.telephony.bus import PrivateBus

OFONOD: Final = shutil.which("ofonod") or "/usr/sbin/ofonod"
MODEM: Final = "/phonesim"
PUSH: Final = "org.ofono.PushNotification"


class Ofonod:
    """An ofonod with one modem at a TCP port; ended with the block."""

    def __init__(self, bus: PrivateBus, directory: Path, port: int) -> None:
        self._bus = bus
        self._log = directory / "ofonod.log"
        self._file = directory / "phonesim.conf"
        self._file.write_text(f"[phonesim]\nDriver=phonesim\nAddress=127.0.0.1\nPort={port}\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Parts of messages lie in /var/lib/ofono: each run has an empty one.
        script = 'mount -t tmpfs none /var/lib/ofono && exec "$@"'
        environment = {**self._bus.environment, "OFONO_PHONESIM_CONFIG": str(self._file), "OFONO_AT_DEBUG": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script, "sh", OFONOD, "--nodetach", "--debug=*"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        self._bus.wait_for("org.ofono")
        self.power(on=True)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def power(self, *, on: bool) -> None:
        """Power the modem on or off, and wait until it takes messages, or takes no more."""
        modem = "org.ofono.Modem"
        wait_until(lambda: MODEM in self.modems())
        self._bus.call("org.ofono", MODEM, modem, "SetProperty", "sv", "Powered", ("b", on))
        wait_until(lambda: (PUSH in self.modems()[MODEM]["Interfaces"][1]) == on)

    def modems(self) -> dict[str, dict[str, Any]]:
        (modems,) = self._bus.call("org.ofono", "/", "org.ofono.Manager", "GetModems")
        return dict(modems)
