"""The D-Bus policy that is shipped: beside that of oFono, on a bus that allows nothing else, and as another user."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from dmnotid.bearers.bus import Bus, BusError, open_bus
from dmnotid.bearers.ofono import Agents
from tests.project.packaging import PROJECT
from tests.support import LogLines, eventually, push, without_privileges
from tests.telephony.bus import PrivateBus
from tests.telephony.conftest import why_no_ofono
from tests.telephony.modem import Modem
from tests.telephony.ofonod import MODEM
from tests.telephony.sms import deliver

pytestmark = [
    pytest.mark.telephony,
    pytest.mark.skipif(bool(why_no_ofono()), reason=why_no_ofono()),
]

OFONO = Path("/etc/dbus-1/system.d/ofono.conf")
"""The policy of the package ofono."""
OURS = PROJECT / "systemd/dmnotid-ofono.conf"


def rules(file: Path) -> str:
    """Return the rules of a policy, for a user that every machine has."""
    (found,) = re.findall("<busconfig>(.*)</busconfig>", file.read_text(), flags=re.DOTALL)
    return str(found).replace('user="dmnotid-bearer"', 'user="nobody"')


@pytest.fixture
def bus(short: Path, request: pytest.FixtureRequest) -> Iterator[PrivateBus]:
    with PrivateBus(short, "".join(map(rules, request.param))) as bus:
        yield bus


def as_nobody(bus: PrivateBus, work: Callable[[Bus, asyncio.TaskGroup], Awaitable[None]]) -> None:
    """Do something over a connection of another user."""

    async def connected() -> None:
        async with open_bus() as connection, asyncio.TaskGroup() as tasks:
            await work(connection, tasks)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    with without_privileges(bus.path):
        asyncio.run(connected())


@pytest.mark.usefixtures("ofono")
@pytest.mark.parametrize("bus", [[OFONO, OURS]], indirect=True)
def test_user_of_the_bearer_may_be_agent_and_nothing_else(
    bus: PrivateBus, modem: Modem, monkeypatch: pytest.MonkeyPatch, logged: LogLines
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
    pushes: list[bytes] = []

    async def work(connection: Bus, tasks: asyncio.TaskGroup) -> None:
        await Agents(connection, tasks, pushes.append).start()
        await eventually(lambda: logged.of("agent registered"))
        modem.send(*deliver(push(7)))
        await eventually(lambda: pushes)
        with pytest.raises(BusError, match="AccessDenied"):
            await connection.call("org.ofono", MODEM, "org.ofono.Modem", "SetProperty", "sv", "Powered", ("b", False))

    as_nobody(bus, work)


@pytest.mark.usefixtures("ofono")
@pytest.mark.parametrize("bus", [[OFONO]], indirect=True)
def test_missing_policy_is_logged(bus: PrivateBus, monkeypatch: pytest.MonkeyPatch, logged: LogLines) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)

    async def work(connection: Bus, tasks: asyncio.TaskGroup) -> None:
        await Agents(connection, tasks, lambda _: None).start()

    as_nobody(bus, work)
    assert "AccessDenied" in logged.of("telephony missing")[0]["problem"]
