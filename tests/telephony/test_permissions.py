"""The polkit rule and the D-Bus policy for ModemManager that are shipped: with the real polkit, and as another user."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from dmnotid.bearers.bus import BusError, open_bus
from dmnotid.bearers.modemmanager import ModemManager as Bearer
from tests.bearers.door import Door
from tests.project.packaging import PROJECT
from tests.support import IS_ROOT, LogLines, eventually, push, wait_until, without_privileges
from tests.telephony.bus import PrivateBus
from tests.telephony.modem import Modem, abstract_listener
from tests.telephony.modemmanager import MESSAGING, NAME, ROOT, ModemManager, why_no_modemmanager
from tests.telephony.sms import deliver
from tests.telephony.test_policy import rules

POLKITD: Final = "/usr/lib/polkit-1/polkitd"
OTHERS: Final = [
    Path("/etc/dbus-1/system.d/org.freedesktop.ModemManager1.conf"),
    Path("/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"),
]
"""The policies of the packages modemmanager and polkitd."""
OURS: Final = PROJECT / "systemd/dmnotid-modemmanager.conf"
RULE: Final = PROJECT / "systemd/dmnotid-modemmanager.rules"
NOBODY: Final = ("dmnotid-bearer", "nobody")
"""The user of the unit, and one that every machine has."""

pytestmark = [
    pytest.mark.telephony,
    pytest.mark.skipif(bool(why_no_modemmanager()), reason=why_no_modemmanager()),
    pytest.mark.skipif(not IS_ROOT, reason="needs root, for other users and a mount namespace"),
    pytest.mark.skipif(shutil.which(POLKITD) is None, reason="needs polkitd"),
]


@pytest.fixture
def bus(short: Path) -> Iterator[PrivateBus]:
    with PrivateBus(short, "".join(map(rules, [*OTHERS, OURS]))) as bus:
        yield bus


@pytest.fixture
def polkit(bus: PrivateBus, short: Path, request: pytest.FixtureRequest) -> Iterator[bool]:
    """Run polkitd with the rule, or without it; True if with it."""
    file = short / "50-dmnotid.rules"
    file.write_text(RULE.read_text().replace(*NOBODY) if request.param else "")
    # Its directory of rules is fixed, and that of this machine stays as it is.
    directory = "/etc/polkit-1/rules.d"
    script = f"mount -t tmpfs none {directory} && cp {file} {directory} && exec {POLKITD}"
    # polkitd changes to a user of its own, which must reach the bus.
    short.chmod(0o755)
    with (short / "polkitd.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script], env=bus.environment, stdout=log, stderr=log
        )
    bus.wait_for("org.freedesktop.PolicyKit1")
    yield bool(request.param)
    process.kill()
    process.wait()


@pytest.fixture
def modem(short: Path) -> Iterator[Modem]:
    with Modem(abstract_listener(f"abstract:{short.name}")) as modem:
        yield modem


@pytest.mark.parametrize("polkit", [True, False], indirect=True, ids=["rule", "no rule"])
def test_user_of_the_bearer_may_delete_messages_and_nothing_else(
    bus: PrivateBus,
    modem: Modem,
    short: Path,
    door: Door,
    logged: LogLines,
    monkeypatch: pytest.MonkeyPatch,
    polkit: bool,  # noqa: FBT001 - a parameter of the test's
) -> None:
    """Without the rule, it may not even delete them."""
    refused = not polkit
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    with ModemManager(bus, short, f"abstract:{short.name}") as manager:
        modem.store(*deliver(push()))
        wait_until(manager.messages)
        (path,) = manager.modems()

        async def work() -> None:
            async with open_bus() as connection, asyncio.TaskGroup() as tasks:
                await Bearer(connection, tasks, door.path).start()
                await eventually(lambda: logged.of("message not deleted") if refused else not modem.stored)
                for member, signature, body in [("Create", "a{sv}", {}), ("SetDefaultStorage", "u", 1)]:
                    with pytest.raises(BusError, match="AccessDenied"):
                        await connection.call(NAME, path, MESSAGING, member, signature, body)
                for task in asyncio.all_tasks() - {asyncio.current_task()}:
                    task.cancel()

        door.path.chmod(0o666)
        with without_privileges(bus.path):
            asyncio.run(work())
        assert [line["message"] for line in logged.of("message not deleted")] == [f"{ROOT}/SMS/0"] * refused
        assert len(modem.stored) == refused
