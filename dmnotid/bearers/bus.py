"""The system bus (D-Bus): calls to a telephony daemon, its signals, and its calls to an agent.

closed --open_bus()--> open --the bus daemon ends--> lost (every method raises BusLost)
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, NoReturn

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    new_error,
    new_method_call,
    new_method_return,
)
from jeepney.auth import AuthenticationError
from jeepney.bus import get_bus
from jeepney.io.asyncio import DBusConnection, open_dbus_connection

from dmnotid.errors import DmnotidError
from dmnotid.host.log import logger

PAUSE: Final = 5.0
"""Pause before each attempt to connect to a lost bus, in seconds."""

_BUS: Final = "org.freedesktop.DBus"
_UNKNOWN_METHOD: Final = "org.freedesktop.DBus.Error.UnknownMethod"


class BusLost(DmnotidError):
    """The system bus can't be reached, or has closed the connection."""


class BusError(DmnotidError):
    """A process on the bus replies with an error: its name of D-Bus, and a text for people that may be empty."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class Event(NamedTuple):
    """A signal of another process, or its call of a method of this process."""

    path: str
    interface: str
    member: str
    body: tuple[Any, ...]


def _event(message: Message) -> Event:
    fields = message.header.fields
    interface = fields.get(HeaderFields.interface, "")
    return Event(fields[HeaderFields.path], interface, fields[HeaderFields.member], message.body)


class Bus:
    """A connection to the system bus."""

    def __init__(self, connection: DBusConnection) -> None:
        # Reads and writes whole messages.
        self._connection = connection
        # Calls without a reply yet, by serial number.
        self._calls: dict[int, asyncio.Future[Message]] = {}

    async def call(
        self, name: str, path: str, interface: str, method: str, signature: str | None = None, *body: object
    ) -> tuple[Any, ...]:
        """Call a method and return the values of its reply. Raises BusError if the reply is an error, and BusLost."""
        message = new_method_call(DBusAddress(path, name, interface), method, signature, body)
        # Whether a telephony daemon runs is for the administrator to decide.
        message.header.flags = MessageFlag.no_auto_start
        serial = next(self._connection.outgoing_serial)
        # Before it is sent, because the reply is read by another task.
        self._calls[serial] = asyncio.get_running_loop().create_future()
        try:
            await self._send(message, serial)
            reply = await self._calls[serial]
        finally:
            del self._calls[serial]
        if reply.header.message_type is MessageType.error:
            # By custom, the first value of an error is a sentence.
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise BusError(reply.header.fields[HeaderFields.error_name], text)
        values: tuple[Any, ...] = reply.body
        return values

    async def subscribe(self, **rule: str) -> None:
        """Receive the signals that match a rule, such as `sender="org.ofono"`."""
        text = ",".join(f"{key}='{value}'" for key, value in {"type": "signal", **rule}.items())
        await self.call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", text)

    async def run(self, on_signal: Callable[[Event], None], on_call: Callable[[Event], bool]) -> NoReturn:
        """Dispatch messages; `on_call` returns whether it has that method. Raises BusLost."""
        while True:
            try:
                message = await self._connection.receive()
            except (EOFError, OSError) as error:
                raise BusLost(str(error) or "the bus has closed the connection") from error
            match message.header.message_type:
                case MessageType.signal:
                    # The bus checks the sender in a rule of `subscribe`, but lets any user send a signal to one
                    # connection, without such a rule.
                    if HeaderFields.destination not in message.header.fields:
                        on_signal(_event(message))
                case MessageType.method_call:
                    known = on_call(_event(message))
                    # The bus logs a reply that is not expected as a breach of its policy.
                    if not message.header.flags & MessageFlag.no_reply_expected:
                        await self._send(new_method_return(message) if known else new_error(message, _UNKNOWN_METHOD))
                case _:
                    # The caller may have been cancelled meanwhile.
                    reply = self._calls.get(message.header.fields[HeaderFields.reply_serial])
                    if reply is not None and not reply.done():
                        reply.set_result(message)
                        # Let the caller use the reply before a later signal makes it out of date.
                        await asyncio.sleep(0)

    async def _send(self, message: Message, serial: int | None = None) -> None:
        try:
            await self._connection.send(message, serial=serial)
        except OSError as error:
            raise BusLost(str(error)) from error


@asynccontextmanager
async def open_bus() -> AsyncIterator[Bus]:
    """Connect to $DBUS_SYSTEM_BUS_ADDRESS or the usual path. Raises BusLost."""
    try:
        path = get_bus("SYSTEM")
    except (RuntimeError, ValueError):
        # Another kind of transport, or no address at all.
        expected = "an address such as unix:path=/run/dbus/system_bus_socket is expected"
        raise BusLost(f"DBUS_SYSTEM_BUS_ADDRESS: {os.environ['DBUS_SYSTEM_BUS_ADDRESS']!r}: {expected}") from None
    try:
        connection = await open_dbus_connection("SYSTEM")
    except (OSError, EOFError, AuthenticationError) as error:
        raise BusLost(f"{path}: {error}") from error
    try:
        yield Bus(connection)
    finally:
        connection.writer.close()


async def stay_connected(serve: Callable[[Bus, asyncio.TaskGroup], Awaitable[None]]) -> NoReturn:
    """Call `serve` with the bus and a task group of that connection, again after each loss of the bus.

    `serve` starts `Bus.run` and its own tasks in that group, and returns.
    """
    # Whether this loss has been logged: further failures to connect are not.
    lost = False
    while True:
        try:
            async with open_bus() as bus, asyncio.TaskGroup() as tasks:
                await serve(bus, tasks)
                logger.info("bus connected")
                lost = False
        except* BusLost as group:
            if not lost:
                logger.warning("bus lost", problem=str(group.exceptions[0]), again_in=PAUSE)
            lost = True
        # At the start of a machine, and while the bus is restarted, it comes back by itself.
        await asyncio.sleep(PAUSE)
