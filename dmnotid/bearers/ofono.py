"""oFono (1.31 to 2.16): an agent for pushes at each modem.

The states of a modem, by the path of its object:

    absent --interface there--> registering --RegisterAgent--> registered
      ^                          |  ^ another agent, an error: after a minute
      |                          +--+
      +-- interface or modem gone, oFono gone, Release -- (from each state)

oFono hands out the Push PDU of an SMS to port 2948, with parts joined and the user data header removed. An SMS that
arrives while no agent is registered is lost: oFono stores nothing.
"""

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

from dmnotid.bearers.bus import Bus, BusError, Event, stay_connected
from dmnotid.bearers.door import Outbox
from dmnotid.host.log import logger

MAX_PUSHES: Final = 64
"""Maximum number of pushes that wait in memory for the door."""

AGAIN_IN: Final = 60.0
"""Time until an agent that oFono has refused is registered again, in seconds."""

NAME: Final = "org.ofono"

_PUSH: Final = "org.ofono.PushNotification"
_AGENT: Final = "org.ofono.PushNotificationAgent"
_MANAGER: Final = "org.ofono.Manager"
_MODEM: Final = "org.ofono.Modem"
_BUS: Final = "org.freedesktop.DBus"

# The path of a modem's agent is this and the path of the modem.
_AGENTS: Final = "/dmnotid"


async def run(door: Path, on_ready: Callable[[], None]) -> None:
    """Hand pushes from oFono to the push door until this task is cancelled.

    `on_ready` is called once the bus is connected, even if oFono has no modem yet.
    """
    # oFono has forgotten a push once the agent has it, so there is nothing to do after a verdict.
    outbox = Outbox(door, lambda _: None, most=MAX_PUSHES)
    numbers = count(1)

    def take(octets: bytes) -> None:
        outbox.add(str(next(numbers)), octets)

    async def serve(bus: Bus, tasks: asyncio.TaskGroup) -> None:
        await Agents(bus, tasks, take).start()
        on_ready()

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(outbox.run())
            # Pushes that wait for the door survive a loss of the bus.
            tasks.create_task(stay_connected(serve))
    finally:
        if len(outbox):
            logger.warning("pushes lost", count=len(outbox), problem="they had no verdict when the bearer was stopped")


class Agents:
    """The agents at oFono's modems, over one connection to the bus."""

    def __init__(
        self, bus: Bus, tasks: asyncio.TaskGroup, take: Callable[[bytes], None], *, again_in: float = AGAIN_IN
    ) -> None:
        # The connection; oFono drops the agents of one that is closed.
        self._bus = bus
        # Ends with the connection.
        self._tasks = tasks
        # Called with each push.
        self._take = take
        # Time until an agent that oFono has refused is registered again, in seconds.
        self._again_in = again_in
        # The registration of each modem that has the interface; done once oFono has accepted the agent.
        self._registrations: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Follow oFono and its modems."""
        self._tasks.create_task(self._bus.run(self._on_signal, self._on_call))
        await self._bus.subscribe(sender=_BUS, interface=_BUS, member="NameOwnerChanged", arg0=NAME)
        for interface in (_MANAGER, _MODEM):
            await self._bus.subscribe(sender=NAME, interface=interface)
        await self._read_modems()

    async def _read_modems(self) -> None:
        try:
            (modems,) = await self._bus.call(NAME, "/", _MANAGER, "GetModems")
        except BusError as error:
            # ModemAdded follows for each modem when oFono starts.
            logger.warning("telephony missing", name=NAME, problem=str(error))
            return
        for path, properties in modems:
            self._on_properties(path, properties)

    def _on_signal(self, signal: Event) -> None:
        match signal.member, signal.body:
            case "NameOwnerChanged", _:
                # ModemAdded follows for each modem when oFono starts again.
                for path in tuple(self._registrations):
                    self._forget(path)
            case "ModemAdded", (path, properties):
                self._on_properties(path, properties)
            case "ModemRemoved", (path,):
                self._forget(path)
            case "PropertyChanged", ("Interfaces", value):
                self._on_properties(signal.path, {"Interfaces": value})

    def _on_properties(self, path: str, properties: dict[str, tuple[str, Any]]) -> None:
        _, interfaces = properties["Interfaces"]
        if _PUSH not in interfaces:
            self._forget(path)
        # oFono emits the whole list at each change of it.
        elif path not in self._registrations:
            self._registrations[path] = self._tasks.create_task(self._register(path))

    def _forget(self, path: str) -> None:
        registration = self._registrations.pop(path, None)
        # One that is still refused has nothing to withdraw.
        if registration is not None and not registration.cancel():
            logger.info("agent withdrawn", modem=path)

    async def _register(self, path: str) -> None:
        problem = ""
        while True:
            try:
                await self._bus.call(NAME, path, _PUSH, "RegisterAgent", "o", f"{_AGENTS}{path}")
            except BusError as error:
                # Usually, another agent is registered. The same problem is logged only once.
                if str(error) != problem:
                    problem = str(error)
                    logger.warning("agent refused", modem=path, problem=problem, again_in=self._again_in)
                await asyncio.sleep(self._again_in)
            else:
                logger.info("agent registered", modem=path)
                return

    def _on_call(self, call: Event) -> bool:
        modem = call.path.removeprefix(_AGENTS)
        match call.interface == _AGENT, call.member, call.body:
            # Never answered with an error, which would make oFono drop the agent.
            case True, "ReceiveNotification", (bytes(octets), dict(about)):
                logger.info("push received", modem=modem, octets=len(octets), sender=about.get("Sender", ("s", ""))[1])
                self._take(octets)
            case True, "Release", ():
                self._forget(modem)
                # Usually, oFono removes the interface too; if it does not, the agent is registered again.
                self._tasks.create_task(self._read_modems())
            case _:
                return False
        return True
