"""The bearer for oFono, with the real ofonod, a simulated modem and a private bus."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dmnotid.bearers.bus import Bus
from dmnotid.bearers.ofono import Agents
from tests.bearers.door import Door
from tests.support import LogLines, eventually, push, wait_until
from tests.telephony.bus import PrivateBus, call, over
from tests.telephony.conftest import StartBearer
from tests.telephony.modem import Modem
from tests.telephony.ofonod import MODEM, NAME, PUSH, Ofonod, needs_ofono
from tests.telephony.sms import SENDER, deliver

pytestmark = [pytest.mark.telephony, needs_ofono]

PADDING = [(9, bytes(300))]
"""An Option that makes a push take three parts."""

# Signed once: later ones would have another time.
PUSHES = [push(number) for number in range(10)]
LONG = [push(number, unknown=PADDING) for number in (10, 11)]


@pytest.mark.usefixtures("ofono")
def test_push_is_handed_in_once_when_it_comes_by_sms(modem: Modem, door: Door, bearer: StartBearer) -> None:
    """Of one part and of several, stored (+CMTI) and direct (+CMT)."""
    running = bearer("ofono", door.path)
    running.wait("agent registered")
    sent = [PUSHES[7], LONG[0], PUSHES[8], LONG[1]]
    modem.send(*deliver(sent[0]))
    modem.send(*deliver(sent[1], reference=1))
    modem.store(*deliver(sent[2]))
    modem.store(*deliver(sent[3], reference=2))
    running.wait("push handed in", 4)
    assert door.pushes == sent
    assert running.of("push received")[0]["sender"] == SENDER
    assert running.stop() == 0
    assert running.of("pushes lost") == []


@pytest.mark.usefixtures("ofono")
def test_destination_port_alone_decides_which_messages_are_handed_in(
    modem: Modem, door: Door, bearer: StartBearer
) -> None:
    running = bearer("ofono", door.path)
    running.wait("agent registered")
    modem.send(*deliver(PUSHES[0], port=2949), *deliver(b"a text", port=None))
    sent = PUSHES[1:5]
    for octets, source_port in zip(sent, [0, 2948, 9200, 40000], strict=True):
        modem.send(*deliver(octets, source_port=source_port))
    running.wait("push handed in", len(sent))
    assert door.pushes == sent


def with_agents(bus: PrivateBus, take: Callable[[bytes], None], work: Callable[[Bus, Agents], Awaitable[None]]) -> None:
    """Do something with agents in this process, which try again at once."""
    over(bus, lambda connection, tasks: work(connection, Agents(connection, tasks, take, again_in=0.05)))


@pytest.mark.usefixtures("ofono")
def test_bearer_waits_when_another_agent_is_registered(bus: PrivateBus, modem: Modem, logged: LogLines) -> None:
    pushes: list[bytes] = []

    async def work(_connection: Bus, agents: Agents) -> None:
        with bus.connect() as other, bus.connect() as monitor:
            call(other, NAME, MODEM, PUSH, "RegisterAgent", "o", "/other")
            rule, monitoring = "member='RegisterAgent'", "org.freedesktop.DBus.Monitoring"
            call(
                monitor, "org.freedesktop.DBus", "/org/freedesktop/DBus", monitoring, "BecomeMonitor", "asu", [rule], 0
            )
            await agents.start()
            # Three attempts, which make one record.
            for _ in range(3):
                await asyncio.to_thread(monitor.receive)
        await eventually(lambda: logged.of("agent registered"))
        modem.send(*deliver(PUSHES[7]))
        await eventually(lambda: pushes)

    with_agents(bus, pushes.append, work)
    assert pushes == [PUSHES[7]]
    [refused] = logged.of("agent refused")
    assert refused["problem"] == "org.ofono.Error.InProgress: Operation already in progress"


@pytest.mark.usefixtures("ofono")
def test_agent_is_registered_again_when_ofono_releases_only_the_agent(bus: PrivateBus, logged: LogLines) -> None:
    async def work(connection: Bus, agents: Agents) -> None:
        await agents.start()
        await eventually(lambda: logged.of("agent registered"))
        # oFono answers this with Release, as it does after an error of the agent.
        await connection.call(NAME, MODEM, PUSH, "UnregisterAgent", "o", f"/dmnotid{MODEM}")
        await eventually(lambda: len(logged.of("agent registered")) > 1)

    with_agents(bus, lambda _: None, work)
    assert len(logged.of("agent withdrawn")) == 1


def test_agent_is_registered_again_when_the_modem_is_powered_on_again(
    ofono: Ofonod, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    running = bearer("ofono", door.path)
    running.wait("agent registered")
    ofono.power(on=False)
    running.wait("agent withdrawn")
    # Powered on again, oFono reads and deletes stored messages, nearly always before an agent can be there.
    modem.store(*deliver(PUSHES[7]), announce=False)
    ofono.power(on=True)
    wait_until(lambda: not modem.stored)
    running.wait("agent registered", 2)
    modem.send(*deliver(PUSHES[8]))
    wait_until(lambda: PUSHES[8] in door.pushes)


def test_agent_is_registered_again_when_ofono_restarts(
    ofono: Ofonod, modem: Modem, door: Door, bearer: StartBearer
) -> None:
    running = bearer("ofono", door.path)
    # An ofonod that ends in order announces that its modems go, and one that crashes does not.
    for restart, number in enumerate([signal.SIGTERM, signal.SIGKILL, None], 1):
        running.wait("agent registered", restart)
        modem.send(*deliver(PUSHES[restart]))
        running.wait("push handed in", restart)
        if number is not None:
            ofono.stop(number)
            running.wait("agent withdrawn", restart)
            ofono.start()
    assert door.pushes == PUSHES[1:4]


def test_bearer_waits_for_ofono_when_it_starts_first(
    bus: PrivateBus, modem: Modem, short: Path, door: Door, bearer: StartBearer
) -> None:
    running = bearer("ofono", door.path)
    assert running.wait("telephony missing")["name"] == "org.ofono"
    with Ofonod(bus, short, modem):
        running.wait("agent registered")


def test_pushes_survive_when_the_bus_restarts(
    bus: PrivateBus, ofono: Ofonod, modem: Modem, short: Path, bearer: StartBearer
) -> None:
    running = bearer("ofono", short / "push.sock")
    running.wait("agent registered")
    modem.send(*deliver(PUSHES[7]))
    running.wait("door shut")
    bus.stop()
    running.wait("bus lost")
    ofono.stop()
    bus.start()
    ofono.start()
    running.wait("bus connected", 2)
    running.wait("agent registered", 2)
    modem.send(*deliver(PUSHES[8]))
    running.wait("push received", 2)
    with Door(short / "push.sock") as door:
        running.wait("push handed in", 2)
        assert sorted(door.pushes) == sorted([PUSHES[7], PUSHES[8]])


@pytest.mark.usefixtures("ofono")
def test_pushes_without_a_verdict_are_counted_when_the_bearer_stops(
    modem: Modem, short: Path, bearer: StartBearer
) -> None:
    """oFono loses pushes while no agent is registered; a bearer logs how many it has not handed in at its end."""
    path = short / "push.sock"
    modem.send(*deliver(PUSHES[6]))
    wait_until(lambda: any(command.startswith("AT+CNMA") for command in modem.commands))
    running = bearer("ofono", path)
    running.wait("agent registered")
    modem.send(*deliver(PUSHES[7]), *deliver(PUSHES[8]))
    running.wait("push received", 2)
    assert running.stop() == 0
    assert [line["count"] for line in running.of("pushes lost")] == [2]
    with Door(path) as door:
        running = bearer("ofono", path)
        running.wait("agent registered")
        modem.send(*deliver(PUSHES[9]))
        running.wait("push handed in")
        assert door.pushes == [PUSHES[9]]
