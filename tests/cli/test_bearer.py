"""`dmnotid bearer`, as far as it needs no bus."""

import os
import signal
import subprocess
import sys

import pytest

from dmnotid.cli.bearer import BEARERS
from tests.cli.program import PATIENCE, PROGRAM
from tests.support import parse_lines


@pytest.mark.parametrize("telephony", BEARERS)
def test_missing_jeepney_is_an_error_that_names_its_packages(telephony: str) -> None:
    # None in sys.modules makes an import fail as if the package were not installed.
    script = "import sys; sys.modules['jeepney'] = None; from dmnotid.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "bearer", telephony],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        "dmnotid bearer: the Python package jeepney (D-Bus) is missing: pip install 'dmnotid[sms]', or apt install"
        " python3-jeepney\n"
    )


@pytest.mark.parametrize(
    ("telephony", "number", "address", "problem"),
    [
        ("ofono", signal.SIGTERM, "unix:path=/none/bus", "/none/bus: [Errno 2] No such file or directory"),
        ("modemmanager", signal.SIGINT, "unix:path=/none/bus", "/none/bus: [Errno 2] No such file or directory"),
        ("ofono", signal.SIGTERM, "/none/bus", "DBUS_SYSTEM_BUS_ADDRESS: '/none/bus': an address such as unix:path="),
        (
            "modemmanager",
            signal.SIGTERM,
            "tcp:host=::1",
            "DBUS_SYSTEM_BUS_ADDRESS: 'tcp:host=::1': an address such as unix:path=",
        ),
    ],
)
def test_bearer_without_a_bus_stops_in_order(
    telephony: str, number: signal.Signals, address: str, problem: str
) -> None:
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": address}
    with subprocess.Popen(
        [*PROGRAM, "bearer", telephony], stdout=subprocess.PIPE, text=True, env=environment
    ) as bearer:
        assert bearer.stdout is not None
        lines = bearer.stdout.readline() + bearer.stdout.readline()
        bearer.send_signal(number)
        lines += bearer.communicate(timeout=PATIENCE)[0]
    assert bearer.returncode == 0
    started, lost, stopped = parse_lines(lines)
    assert (started["event"], stopped["event"]) == ("bearer started", "bearer stopped")
    assert started["door"] == "/run/dmnotid-doors/push.sock"
    assert lost["problem"].startswith(problem)
