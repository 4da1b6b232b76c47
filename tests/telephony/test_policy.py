"""The D-Bus policy for oFono that is shipped: beside that of oFono, on a bus that allows nothing else."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmnotid.bearers.bus import Bus, BusError
from dmnotid.bearers.ofono import Agents
from tests.project.packaging import PROJECT
from tests.support import LogLines, eventually, push, without_privileges
from tests.telephony.bus import PrivateBus, over, rules
from tests.telephony.modem import Modem
from tests.telephony.ofonod import MODEM, NAME, needs_ofono
from tests.telephony.sms import deliver

pytestmark = [pytest.mark.telephony, needs_ofono]

OFONO = Path("/etc/dbus-1/system.d/ofono.conf")
"""The policy of the package ofono."""
OURS = PROJECT / "systemd/dmnotid-ofono.conf"


@pytest.fixture
def bus(short: Path, request: pytest.FixtureRequest) -> Iterator[PrivateBus]:
    with PrivateBus(short, "".join(map(rules, request.param))) as bus:
        yield bus


@pytest.mark.usefixtures("ofono")
@pytest.mark.parametrize("bus", [[OFONO, OURS]], indirect=True)
def test_user_of_the_bearer_may_be_agent_and_nothing_else(bus: PrivateBus, modem: Modem, logged: LogLines) -> None:
    pushes: list[bytes] = []

    async def work(connection: Bus, tasks: asyncio.TaskGroup) -> None:
        await Agents(connection, tasks, pushes.append).start()
        await eventually(lambda: logged.of("agent registered"))
        modem.send(*deliver(push(7)))
        await eventually(lambda: pushes)
        with pytest.raises(BusError, match="AccessDenied"):
            await connection.call(NAME, MODEM, "org.ofono.Modem", "SetProperty", "sv", "Powered", ("b", False))

    with without_privileges(bus.path):
        over(bus, work)


@pytest.mark.usefixtures("ofono")
@pytest.mark.parametrize("bus", [[OFONO]], indirect=True)
def test_missing_policy_is_logged(bus: PrivateBus, logged: LogLines) -> None:
    async def work(connection: Bus, tasks: asyncio.TaskGroup) -> None:
        await Agents(connection, tasks, lambda _: None).start()

    with without_privileges(bus.path):
        over(bus, work)
    assert "AccessDenied" in logged.of("telephony missing")[0]["problem"]
