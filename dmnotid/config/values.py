"""A configuration: one frozen `Config`, whatever it was read from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

from dmnotid.errors import ConfigProblem
from dmnotid.policy.addresses import Network, show_address
from dmnotid.policy.freshness import Freshness
from dmnotid.policy.reception import Rules
from dmnotid.policy.retry import Retry
from dmnotid.policy.servers import Server, Servers
from dmnotid.policy.sessions import Limits
from dmnotid.wire.notification import ConnectionType

DEFAULT_RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Room (octets) for a burst of 1,000 notifications: the kernel takes it twice, and counts 832 octets for one of 150
over loopback, 4,928 where a network driver gives each datagram a page of its own."""

PLACEHOLDERS: Final = ("server_id", "notification_id", "connection", "interface", "attempt")
"""The facts that an argument of `hook.command` may contain in braces."""

NAMED_TYPES: Final = (ConnectionType.MOBILE, ConnectionType.WIRELESS, ConnectionType.WIRELINE)
"""The connection types whose interfaces may be named."""

Reach = Literal["internet", "any"] | tuple[Network, ...]
"""What an available connection must have a route to; for "any" an address is enough."""


class HookConfig(NamedTuple):
    """The session starter: its argument list, what it finds in its environment, and its times in seconds.

    Where another process starts sessions, `socket` is where it listens, and `command` is ().
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    timeout: float = 600
    kill_after: float = 10
    stop_grace: float = 20
    socket: Path | None = None

    def __repr__(self) -> str:
        """Leave out the environment: what a session needs to know may be for it alone."""
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if name != "environment")
        return f"HookConfig({', '.join(shown)})"


class ListenAddress(NamedTuple):
    """An address to receive on: an IP literal (IPv6 with its zone, without brackets) and a port, 0 for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        """`127.0.0.1:2948` or `[::]:2948`."""
        return show_address(self.host, self.port)


class ConnectionsConfig(NamedTuple):
    """When a connection is available, and which interfaces are of a type because the configuration says so.

    `interfaces` has fnmatch patterns for MOBILE, WIRELESS and WIRELINE each; none where a type was not named. `settle`
    is how long (seconds) a connection must have been there without a break before a session starts over it.
    """

    reach: Reach = "internet"
    interfaces: Mapping[ConnectionType, tuple[str, ...]] = dict.fromkeys(NAMED_TYPES, ())
    settle: float = 2


class LogConfig(NamedTuple):
    """What is logged and how; `discards` is the interval in seconds of the summary of discards.

    Without `junk`, what can be no push is refused in the kernel and counted alone.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "text"] = "auto"
    discards: float = 60
    junk: bool = False


class Config(NamedTuple):
    """A whole configuration, checked. Times are in seconds; `warnings` are what is allowed and still worth a look."""

    file: Path
    servers: tuple[Server, ...]
    hook: HookConfig
    listen: tuple[ListenAddress, ...]
    receive_buffer: int
    state: Path
    max_header_octets: int
    freshness: Freshness
    remember: float
    sessions: Limits
    retry: Retry
    connections: ConnectionsConfig
    log: LogConfig
    warnings: tuple[ConfigProblem, ...]

    @property
    def rules(self) -> Rules:
        """What of it decides over a datagram; built anew each time."""
        return Rules(Servers(self.servers), self.freshness, self.max_header_octets)
