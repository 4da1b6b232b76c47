"""A private system bus: dbus-daemon with a configuration of its own, calls to its services, and polkit's part."""

import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_call, new_method_return
from jeepney.io.blocking import DBusConnection, open_dbus_connection
from jeepney.wrappers import DBusErrorResponse

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
    reply = connection.send_and_get_reply(message, timeout=30)
    if reply.header.message_type is MessageType.error:
        raise DBusErrorResponse(reply)
    found: tuple[Any, ...] = reply.body
    return found


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
