"""The polkit rule and the D-Bus policy for ModemManager that are shipped: with the real polkit, and as another user."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from dmnotid.bearers.bus import Bus, BusError
from dmnotid.bearers.modemmanager import ModemManager as Bearer
from tests.bearers.door import Door
from tests.project.packaging import PROJECT
from tests.support import IS_ROOT, LogLines, eventually, push, wait_until, without_privileges
from tests.telephony.bus import BEARER, Daemon, PrivateBus, over, rules
from tests.telephony.modem import Modem
from tests.telephony.modemmanager import MESSAGING, NAME, ROOT, ModemManager, needs_modemmanager
from tests.telephony.sms import deliver

POLKITD: Final = "/usr/lib/polkit-1/polkitd"
OTHERS: Final = [
    Path("/etc/dbus-1/system.d/org.freedesktop.ModemManager1.conf"),
    Path("/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"),
]
"""The policies of the packages modemmanager and polkitd."""
OURS: Final = PROJECT / "systemd/dmnotid-modemmanager.conf"
RULE: Final = PROJECT / "systemd/dmnotid-modemmanager.rules"

pytestmark = [
    pytest.mark.telephony,
    needs_modemmanager,
    pytest.mark.skipif(not IS_ROOT, reason="needs root, for other users and a mount namespace"),
    pytest.mark.skipif(shutil.which(POLKITD) is None, reason="needs polkitd"),
]


@pytest.fixture
def bus(short: Path) -> Iterator[PrivateBus]:
    with PrivateBus(short, "".join(map(rules, [*OTHERS, OURS]))) as bus:
        yield bus


@pytest.mark.parametrize("refused", [False, True], ids=["rule", "no rule"])
def test_user_of_the_bearer_may_delete_messages_and_nothing_else(
    bus: PrivateBus, modem: Modem, short: Path, door: Door, logged: LogLines, *, refused: bool
) -> None:
    """Without the rule, it may not even delete them."""
    file = short / "50-dmnotid.rules"
    file.write_text("" if refused else RULE.read_text().replace(*BEARER))
    # Its directory of rules is fixed, and that of this machine stays as it is.
    directory = "/etc/polkit-1/rules.d"
    script = f"mount -t tmpfs none {directory} && cp {file} {directory} && exec {POLKITD}"
    command = ["unshare", "--mount", "sh", "-c", script]
    polkit = Daemon(bus, "org.freedesktop.PolicyKit1", short / "polkitd.log", command)
    with polkit, ModemManager(bus, short, modem) as manager:
        modem.store(*deliver(push()))
        wait_until(manager.messages)
        (path,) = manager.modems()

        async def work(connection: Bus, tasks: asyncio.TaskGroup) -> None:
            await Bearer(connection, tasks, door.path).start()
            await eventually(lambda: logged.of("message not deleted") if refused else not modem.stored)
            for member, signature, body in [("Create", "a{sv}", {}), ("SetDefaultStorage", "u", 1)]:
                with pytest.raises(BusError, match="AccessDenied"):
                    await connection.call(NAME, path, MESSAGING, member, signature, body)

        door.path.chmod(0o666)
        with without_privileges(bus.path):
            over(bus, work)
    assert [line["message"] for line in logged.of("message not deleted")] == [f"{ROOT}/SMS/0"] * refused
    assert len(modem.stored) == refused
