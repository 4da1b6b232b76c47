"""ModemManager: pushes that modems received by SMS, from its lists of messages to the push door.

A message, from its first signal or its place in a list:

    incomplete --PropertiesChanged--> complete --a push for the DM client--> offered --verdict--> deleted
                                          |                                     ^        |
                                          +--anything else--> left alone        +--------+ no answer, queue-full

ModemManager keeps each message until it is deleted, even while this process and the daemon are down, so a push is
deleted only after its verdict. A message whose deletion fails is offered again when ModemManager lists it again, and
is then a duplicate.

ModemManager drops the ports of a message, so a push is recognized by its Type, content type and application (6.1.1).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from dmnotid.bearers.bus import Bus, BusError, Event, stay_connected
from dmnotid.bearers.door import Outbox
from dmnotid.errors import Discard
from dmnotid.host.log import logger
from dmnotid.policy.routing import check_route
from dmnotid.wire.wsp import decode_push

NAME: Final = "org.freedesktop.ModemManager1"
ROOT: Final = "/org/freedesktop/ModemManager1"
MESSAGING: Final = f"{NAME}.Modem.Messaging"
SMS: Final = f"{NAME}.Sms"

PDU_TYPE_DELIVER: Final = 1
"""MMSmsPduType: the network delivered the message to the modem."""

STATE_RECEIVING: Final = 2
STATE_RECEIVED: Final = 3
"""MMSmsState: parts are missing, and all parts are there."""

_DATA: Final = {"State": STATE_RECEIVED, "PduType": PDU_TYPE_DELIVER, "Text": ""}
"""The properties of a received message without a text."""

LOCKED: Final = f"{NAME}.Error.Core.Retry"
"""The error of a Delete while ModemManager reads a message from the modem, or deletes another one."""

PAUSE: Final = 1.0
"""Time until a locked message is deleted again, in seconds."""

ACTION: Final = f"{NAME}.Messaging"
"""The polkit action that a process needs to delete messages."""

NOT_ALLOWED: Final = frozenset({f"{NAME}.Error.Core.Unauthorized", "org.freedesktop.DBus.Error.AccessDenied"})
"""The errors of a call that polkit, or the policy of the bus, refuses."""

_BUS: Final = "org.freedesktop.DBus"
_BUS_PATH: Final = "/org/freedesktop/DBus"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_OBJECTS: Final = "org.freedesktop.DBus.ObjectManager"


class ModemManager:
    """The messages of all modems, over one connection to the bus."""

    def __init__(self, bus: Bus, tasks: asyncio.TaskGroup, door: Path) -> None:
        # Calls ModemManager.
        self._bus = bus
        # The tasks of this connection.
        self._tasks = tasks
        # The pushes without a verdict. ModemManager keeps them, so they need no limit here.
        self._outbox = Outbox(door, lambda key: tasks.create_task(self._delete(*key.split())))
        # The unique name of the running ModemManager; empty if none runs.
        self._owner = ""
        # The modems of incomplete messages: the signal of the last part does not name the modem.
        self._incomplete: dict[str, str] = {}
        # Whether the missing permission to delete has been logged.
        self._refused = False

    async def start(self) -> None:
        """Subscribe to all signals, and then read the lists, so that no message is missed between the two."""
        self._tasks.create_task(self._bus.run(self._on_signal, lambda _: False))
        await self._bus.subscribe(sender=_BUS, interface=_BUS, member="NameOwnerChanged", arg0=NAME)
        # If no ModemManager runs, NameOwnerChanged follows when it starts.
        with suppress(BusError):
            (self._owner,) = await self._bus.call(_BUS, _BUS_PATH, _BUS, "GetNameOwner", "s", NAME)
        # ModemManager emits this signal for each message of a modem that is added or enabled later.
        await self._bus.subscribe(sender=NAME, interface=MESSAGING, member="Added")
        # Without arg0, each change of a signal strength would wake this process.
        await self._bus.subscribe(sender=NAME, interface=_PROPERTIES, member="PropertiesChanged", arg0=SMS)
        await self._read_lists()
        self._tasks.create_task(self._outbox.run())

    def _on_signal(self, event: Event) -> None:
        match event.member, event.body:
            case "Added", (path, _):
                self._tasks.create_task(self._take(event.path, path))
            case "PropertiesChanged", _ if event.path in self._incomplete:
                self._tasks.create_task(self._take(self._incomplete[event.path], event.path))
            case "NameOwnerChanged", (_, _, owner):
                self._owner = owner
                # The next ModemManager lists them again, at other paths.
                self._incomplete.clear()

    async def _read_lists(self) -> None:
        try:
            (modems,) = await self._bus.call(NAME, ROOT, _OBJECTS, "GetManagedObjects")
        except BusError as error:
            logger.warning("telephony missing", name=NAME, problem=str(error))
            return
        for modem, interfaces in modems.items():
            # The property, since the method List is an error while the modem is being enabled.
            _, messages = interfaces.get(MESSAGING, {}).get("Messages", ("ao", []))
            # The newest is first in the list.
            for path in reversed(messages):
                await self._take(modem, path)

    async def _take(self, modem: str, path: str) -> None:
        """Offer a message to the door if it is complete, and a push for the DM client."""
        key = f"{self._owner} {modem} {path}"
        # Before the call, so that the signal of the last part is not missed.
        self._incomplete[path] = modem
        try:
            (properties,) = await self._bus.call(NAME, path, _PROPERTIES, "GetAll", "s", SMS)
        except BusError:
            # Another program has deleted it, or ModemManager ends.
            properties = {}
        values = {name: value for name, (_, value) in properties.items()}
        if values.get("State") != STATE_RECEIVING:
            self._incomplete.pop(path, None)
        octets = values.get("Data")
        # A message of an unexpected form must not keep the others from the door.
        is_data = _DATA.items() <= values.items()
        if is_data and isinstance(octets, bytes) and octets and key not in self._outbox and _is_push(octets, path):
            logger.info("push received", modem=modem, octets=len(octets), sender=values.get("Number"))
            self._outbox.add(key, octets)

    async def _delete(self, owner: str, modem: str, path: str) -> None:
        try:
            # A path names another message in the next run of ModemManager, but its unique name is not used again.
            await self._bus.call(owner, modem, MESSAGING, "Delete", "o", path)
        except BusError as error:
            # It is done with the modem in a moment.
            if error.name == LOCKED:
                await asyncio.sleep(PAUSE)
                self._tasks.create_task(self._delete(owner, modem, path))
            elif error.name not in NOT_ALLOWED:
                logger.warning("message not deleted", message=path, problem=str(error))
            # Every message of this installation has the same problem.
            elif not self._refused:
                self._refused = True
                problem = f"{error}; a polkit rule must allow {ACTION} to the user of this process"
                logger.warning("message not deleted", message=path, problem=problem)


def _is_push(octets: bytes, path: str) -> bool:
    try:
        # The limits are for the daemon to check: its configuration has them.
        check_route(decode_push(octets, max_octets=len(octets), max_header_octets=len(octets)).header)
    except Discard as discard:
        logger.info("message left", message=path, octets=len(octets), reason=discard.reason, problem=str(discard))
        return False
    return True


async def run(door: Path, on_ready: Callable[[], None]) -> NoReturn:
    """Serve until cancelled; `on_ready` is called after each connection to the bus."""

    async def serve(bus: Bus, tasks: asyncio.TaskGroup) -> None:
        await ModemManager(bus, tasks, door).start()
        on_ready()

    await stay_connected(serve)
