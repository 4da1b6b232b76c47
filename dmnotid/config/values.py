"""The configuration as frozen values, whatever it was read from, with the defaults of its keys."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from dmnotid.errors import ConfigProblem
from dmnotid.policy.addresses import Network, show_address
from dmnotid.policy.freshness import Freshness
from dmnotid.policy.reception import Rules
from dmnotid.policy.retry import Retry
from dmnotid.policy.servers import Server, Servers
from dmnotid.policy.sessions import Limits
from dmnotid.wire.notification import ConnectionType

DEFAULT_STATE: Final = Path("/var/lib/dmnotid")
# More than freshness.max_age: a repeat that is fresh enough to be accepted must still be known.
DEFAULT_REMEMBER: Final = 3 * 86_400.0

DEFAULT_RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Room for a burst of 1,000 notifications, in octets.

The kernel doubles it, and counts 832 octets for a notification of 150 over loopback, 4,928 if a network driver gives
each datagram a page of its own.
"""

DEFAULT_MODE: Final = 0o660
"""The mode of a door: its owner and its group may send."""

DEFAULT_SOURCES: Final = {"push": "sms", "package": "local"}
"""The name of a door as a source, by what it holds."""

NAMED_TYPES: Final = (ConnectionType.MOBILE, ConnectionType.WIRELESS, ConnectionType.WIRELINE)
"""The connection types whose interfaces the configuration can name, in the order in which their patterns are tried."""

PLACEHOLDERS: Final = ("server_id", "notification_id", "connection", "interface", "attempt")
"""The words in braces that are replaced in an argument of `hook.command`."""

MAX_INTERFACE_NAME: Final = 15
"""Longest name of a network interface, in octets (IFNAMSIZ without the NUL)."""

Reach = Literal["internet", "any"] | tuple[Network, ...]
"""The destination that an available connection must have a route to; with "any", an address is enough."""


def path_from(text: str) -> Path:
    """Return the path that a text names in UTF-8; Path alone would take the character set of the locale."""
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))


class HookConfig(NamedTuple):
    """The session starter: its argument list, the variables added to its environment, and its times in seconds.

    If another process starts the sessions, `socket` is its AF_UNIX socket, and `command` is ().
    """

    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    # A hook that hangs holds up the other sessions of its server, and with `concurrency` 1 those of all servers.
    timeout: float = 600
    kill_after: float = 10
    # With `kill_after`, well below TimeoutStopSec= of the unit, after which systemd kills the daemon too.
    stop_grace: float = 20
    socket: Path | None = None

    def __repr__(self) -> str:
        """Leave out the environment: it can hold secrets of the hook."""
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if name != "environment")
        return f"HookConfig({', '.join(shown)})"


class ListenAddress(NamedTuple):
    """An address to receive on: an IP literal (IPv6 with its zone, without brackets) and a port, 0 for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        """`127.0.0.1:2948` or `[::]:2948`."""
        return show_address(self.host, self.port)


class DoorConfig(NamedTuple):
    """A Unix datagram socket through which processes of this device hand in pushes, or packages without a push.

    `mode` and `group` (None for that of the daemon) decide which users may send; `source` is the sender's address of
    all of its datagrams.
    """

    path: Path
    holds: Literal["push", "package"]
    mode: int
    group: str | None
    source: str


class ConnectionsConfig(NamedTuple):
    """When a connection is available, and which interfaces are of a type by configuration.

    `interfaces` has fnmatch patterns for each of NAMED_TYPES; the first type with a matching pattern wins. `settle` is
    how long (seconds) a connection must have been available without a break before a session starts over it.
    """

    # A link to a local network alone is up, has an address, and leads to no server.
    reach: Reach = "internet"
    interfaces: Mapping[ConnectionType, tuple[str, ...]] = dict.fromkeys(NAMED_TYPES, ())
    # Below a second, a link that flaps would fill the log.
    settle: float = 2


Level = Literal["debug", "info", "warning", "error"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)
"""The levels of the log, the lowest first."""


class LogConfig(NamedTuple):
    """The level and format of the log; `discards` is the interval of the summary of discards, in seconds.

    Without `junk`, the kernel refuses datagrams that cannot be a push, and only counts them.
    """

    level: Level = "info"
    format: Literal["auto", "json", "text"] = "auto"
    discards: float = 60
    # Any host can send junk, and each datagram that is logged wakes the daemon.
    junk: bool = False


class Config(NamedTuple):
    """A whole configuration, checked. Times are in seconds.

    `listen_given` is whether the file has `listen`. `warnings` lists settings that are accepted but probably
    unintended. `control` is the path of the control socket, None without one.
    """

    # Read again by a reload.
    file: Path
    servers: tuple[Server, ...]
    hook: HookConfig
    listen: tuple[ListenAddress, ...]
    receive_buffer: int
    state: Path
    max_octets: int
    max_header_octets: int
    freshness: Freshness
    remember: float
    sessions: Limits
    retry: Retry
    connections: ConnectionsConfig
    log: LogConfig
    warnings: tuple[ConfigProblem, ...]
    listen_given: bool = False
    # Fixed while the daemon runs, as `state` is.
    control: Path | None = None
    doors: tuple[DoorConfig, ...] = ()

    @property
    def rules(self) -> Rules:
        """The part that decides about a datagram; built again by each access."""
        return Rules(Servers(self.servers), self.freshness, self.max_header_octets, self.max_octets)
