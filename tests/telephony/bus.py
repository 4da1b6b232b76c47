"""A private system bus: dbus-daemon with a configuration of its own, its users, and polkit's part."""

import asyncio
import os
import re
import signal
import subprocess
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_call, new_method_return
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import DBusErrorResponse

from dmnotid.bearers.bus import Bus, open_bus
from tests.support import DEADLINE, wait_until

OPEN: Final = """
  <policy context="default">
    <allow own="*"/>
    <allow send_type="method_call"/>
  </policy>
"""
"""Everything is allowed."""

CONFIGURATION: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  {policy}
</busconfig>
"""
"""The general part is that of the system bus of Debian."""

BEARER: Final = ("dmnotid-bearer", "nobody")
"""The user of the units, and one that every machine has."""


def rules(file: Path) -> str:
    """Return the rules of a policy that a package has."""
    (found,) = re.findall("<busconfig>(.*)</busconfig>", file.read_text(), flags=re.DOTALL)
    own, other = BEARER
    return str(found).replace(f'user="{own}"', f'user="{other}"')


class PrivateBus:
    """A dbus-daemon; ended with the block."""

    def __init__(self, directory: Path, policy: str = OPEN) -> None:
        self.path = directory / "bus"
        self._file = directory / "bus.conf"
        self._file.write_text(CONFIGURATION.format(path=self.path, policy=policy))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix:path={self.path}"

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables that make a process use this bus."""
        return os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": self.address}

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._file}", "--nofork", "--nopidfile", "--nosyslog", "--print-address"],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        # It prints the address once it listens.
        assert self._process.stdout.readline()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.communicate()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def connect(self) -> DBusConnection:
        """Connect to the bus. The second that jeepney waits for the bus is too short on a busy machine."""
        return open_dbus_connection(self.address, auth_timeout=DEADLINE)

    def call(
        self, name: str, path: str, interface: str, method: str, signature: str | None = None, *body: object
    ) -> tuple[Any, ...]:
        """Call a method over a connection of its own. Raises DBusErrorResponse."""
        with self.connect() as connection:
            return call(connection, name, path, interface, method, signature, *body)

    def has(self, name: str) -> bool:
        """Return whether a process owns a name."""
        bus = "org.freedesktop.DBus"
        return bool(self.call(bus, "/org/freedesktop/DBus", bus, "NameHasOwner", "s", name)[0])

    def wait_for(self, name: str) -> None:
        wait_until(lambda: self.has(name))


def call(
    connection: DBusConnection, name: str, path: str, interface: str, method: str, signature: str | None, *body: object
) -> tuple[Any, ...]:
    """Call a method over a connection. Raises DBusErrorResponse."""
    message = new_method_call(DBusAddress(path, name, interface), method, signature, body)
    reply = connection.send_and_get_reply(message, timeout=DEADLINE)
    if reply.header.message_type is MessageType.error:
        raise DBusErrorResponse(reply)
    found: tuple[Any, ...] = reply.body
    return found


def over(bus: PrivateBus, work: Callable[[Bus, asyncio.TaskGroup], Awaitable[None]]) -> None:
    """Do something over a connection as the bearers have it, with tasks that are cancelled afterwards."""

    async def connected() -> None:
        async with open_bus() as connection, asyncio.TaskGroup() as tasks:
            await work(connection, tasks)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus.address)
        asyncio.run(connected())


class Daemon:
    """A process that has a name on the bus; ended with the block."""

    def __init__(self, bus: PrivateBus, name: str, log: Path, command: Sequence[str | Path], **more: str) -> None:
        self.bus = bus
        self._name = name
        self._log = log
        self._command = command
        # Further variables of its environment.
        self._more = more
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait for its name."""
        environment = {**self.bus.environment, **self._more}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=environment, stdout=log, stderr=log)
        self.bus.wait_for(self._name)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        # Nothing is sent if it has ended with its bus.
        self._process.send_signal(number)
        self._process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Service:
    """A process on the bus with a name, in a thread: `answer` gives signature and body of each reply, or None."""

    def __init__(self, bus: PrivateBus, name: str, answer: Callable[..., tuple[str, tuple[Any, ...]] | None]) -> None:
        self._answer = answer
        self._connection = bus.connect()
        _bus = "org.freedesktop.DBus"
        call(self._connection, _bus, "/org/freedesktop/DBus", _bus, "RequestName", "su", name, 0)
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.sock.shutdown(2)
        self._thread.join()
        self._connection.close()

    def _serve(self) -> None:
        while True:
            try:
                message = self._connection.receive()
            except (EOFError, OSError):
                return
            if message.header.message_type is MessageType.method_call:
                fields = message.header.fields
                found = self._answer(fields[HeaderFields.member], *message.body)
                if found is None:
                    self._connection.send(new_error(message, "org.freedesktop.DBus.Error.UnknownMethod"))
                else:
                    self._connection.send(new_method_return(message, *found))


class Polkit(Service):
    """The part of polkit: whether a process may do an action. A test may change `allowed`."""

    def __init__(self, bus: PrivateBus) -> None:
        self.allowed: Callable[[str], bool] = lambda _: True
        # The actions that were asked for.
        self.asked: list[str] = []
        super().__init__(bus, "org.freedesktop.PolicyKit1", self._check)

    def _check(self, member: str, *body: Any) -> tuple[str, tuple[Any, ...]] | None:  # noqa: ANN401 - as D-Bus has it
        if member != "CheckAuthorization":
            return None
        action = str(body[1])
        self.asked.append(action)
        return "(bba{ss})", ((self.allowed(action), False, {}),)
