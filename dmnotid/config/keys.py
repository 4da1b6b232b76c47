"""The one table of configuration keys.

The reader follows it; `make docs` writes config/dmnotid.schema.json and the tables of docs/configuration.md from it.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from dmnotid.config import kinds
from dmnotid.config.checker import Choice, Duration, Number, Value, read_boolean, read_path
from dmnotid.config.secrets import FORMS, read_former_secret, read_secret
from dmnotid.config.values import (
    DEFAULT_MODE,
    DEFAULT_RECEIVE_BUFFER,
    DEFAULT_REMEMBER,
    DEFAULT_SOURCES,
    DEFAULT_STATE,
    LEVELS,
    ConnectionsConfig,
    HookConfig,
    ListenAddress,
    LogConfig,
)
from dmnotid.policy.freshness import Freshness
from dmnotid.policy.retry import Retry
from dmnotid.policy.sessions import Limits
from dmnotid.wire.wsp import DEFAULT_MAX_HEADER_OCTETS, DEFAULT_MAX_OCTETS, WAP_PUSH_PORT

# For durations of which 0 has no meaning.
POSITIVE: Final = Duration(0.001)
FROM_ZERO: Final = Duration(0)
# For durations of which null means that there is no limit.
UNLIMITED: Final = Duration(0, optional=True)

# The least is one datagram of push.max_octets: with a smaller buffer, which the kernel accepts, most would be lost.
_BUFFER: Final = Number(DEFAULT_MAX_OCTETS, 256 * 1024 * 1024, "octets")
# The longest payload of a UDP datagram.
_PAYLOAD: Final = Number(1, 65_507, "octets")


class Key(NamedTuple):
    """A key: its path, reader (None for a mapping of further keys), default as read, and a sentence about it."""

    path: str
    read: Callable[[Value], Any] | None
    default: Any
    sentence: str
    required: bool = False


def read_section(value: Value | None, path: str) -> dict[str, Any]:
    """Read the keys of one mapping; a key that is absent or wrong has its default. Problems are added to the reader."""
    keys = SECTIONS[path]
    given = {} if value is None else value.attempt(lambda found: found.mapping(keys), None)
    found: dict[str, Any] = {}
    for name, key in keys.items():
        entry = None if given is None else given.get(name)
        # Read even if the mapping is absent: its keys then have their defaults.
        if key.read is None:
            found[name] = read_section(entry, key.path)
        elif entry is not None:
            found[name] = entry.attempt(key.read, key.default)
        else:
            found[name] = key.default
            # A mapping that is wrong itself has one problem already, and not one more for each of its keys.
            if key.required and value is not None and given is not None:
                value.reader.add_problem(value, value.child(name), "is missing; this key is required")
    return found


def _read_sections(value: Value) -> tuple[dict[str, Any], ...]:
    found = tuple(read_section(item, f"{value.path}[]") for item in value.items(f"a list of {value.path}"))
    # This default depends on another key, so the table below cannot have it.
    for door in found if value.path == "doors" else ():
        door["source"] = door["source"] or DEFAULT_SOURCES.get(door["holds"])
    return found


# The defaults are those of the values, so that a value made without a file has the same ones.
_HOOK: Final = HookConfig(())
_AGE: Final = Freshness()
_LIMITS: Final = Limits()
_RETRY: Final = Retry()
_LINKS: Final = ConnectionsConfig()
_LOG: Final = LogConfig()
_LISTEN: Final = (ListenAddress("::", WAP_PUSH_PORT),)
_LEVELS: Final = Choice(*LEVELS)
_FORMATS: Final = Choice("auto", "json", "text")

_FORMS: Final = {
    "text": "The secret itself, as UTF-8.",
    "hex": "The secret in hex, spaces allowed.",
    "base64": "The secret in base64, with padding and without spaces.",
    "file": "A file with the secret, which no other user can read or write.",
    "credential": "The name of a systemd credential with the secret.",
}


def _forms(path: str) -> tuple[Key, ...]:
    return tuple(Key(f"{path}.{form}", FORMS[form], None, sentence) for form, sentence in _FORMS.items())


_FORMER: Final = "A second secret that is accepted too, while the server changes it: one of the same five keys."
_UNTIL: Final = "The last day, in UTC, on which the former secret is accepted; without it, there is no end."

_DOOR_NAME: Final = "The name of the door as a source; `sms` for pushes and `local` for packages, unless given."
_HOLDS: Final = Choice(*DEFAULT_SOURCES)

KEYS: Final = (
    Key("servers", _read_sections, (), "The DM servers whose notifications are accepted.", required=True),
    Key("servers[].id", kinds.read_server_id, None, "The SERVER-ID, as in the server's notifications.", required=True),
    Key("servers[].secret", read_secret, None, "The secret shared with this server: exactly one of five keys."),
    *_forms("servers[].secret"),
    Key("servers[].former_secret", read_former_secret, None, _FORMER),
    *_forms("servers[].former_secret"),
    Key("servers[].former_secret.until", kinds.read_last_day, None, _UNTIL),
    Key("servers[].require_digest", read_boolean, True, "Whether every notification must be signed."),  # noqa: FBT003
    Key(
        "servers[].sources",
        kinds.read_sources,
        (),
        "The networks and doors that notifications come from; all, if absent.",
    ),
    Key("hook", None, None, "The session starter: `command` or `socket`, and the keys that belong to it."),
    Key("hook.command", kinds.read_command, (), "The argument list that starts a session, run without a shell."),
    Key("hook.socket", kinds.read_socket, None, "The `AF_UNIX` stream socket of another process that starts sessions."),
    Key("hook.environment", kinds.read_environment, _HOOK.environment, "Variables added to a command's environment."),
    Key("hook.timeout", POSITIVE, _HOOK.timeout, "The longest run, after which TERM ends it."),
    Key("hook.kill_after", FROM_ZERO, _HOOK.kill_after, "The time from TERM to KILL for a command."),
    Key("hook.stop_grace", FROM_ZERO, _HOOK.stop_grace, "The time that hooks have to end when dmnotid stops."),
    Key("listen", kinds.read_listen, _LISTEN, "The address to receive on, or a list of addresses."),
    Key("doors", _read_sections, (), "The doors: Unix sockets through which other processes hand in notifications."),
    Key("doors[].path", kinds.read_socket, None, "The path of the `AF_UNIX` datagram socket.", required=True),
    Key("doors[].holds", _HOLDS, None, "What one datagram is: a whole push, or only a package.", required=True),
    Key("doors[].mode", kinds.read_mode, DEFAULT_MODE, "The mode, in octal and in quotes; a socket unit has its own."),
    Key("doors[].group", kinds.read_group, None, "The group of the socket; that of the daemon, unless given."),
    Key("doors[].source", kinds.read_door_name, None, _DOOR_NAME),
    Key("receive_buffer", _BUFFER, DEFAULT_RECEIVE_BUFFER, "The size of the kernel's buffer in front of each socket."),
    Key("state", read_path, DEFAULT_STATE, "The directory of the journal; `$STATE_DIRECTORY` if that is set."),
    Key("push", None, None, "Limits of the Push PDU."),
    Key("push.max_octets", _PAYLOAD, DEFAULT_MAX_OCTETS, "The longest datagram that is read."),
    Key("push.max_header_octets", _PAYLOAD, DEFAULT_MAX_HEADER_OCTETS, "The longest push headers that are read."),
    Key("freshness", None, None, "The age of signed notifications."),
    Key("freshness.max_age", POSITIVE, _AGE.max_age, "The greatest age of a signed notification."),
    Key("freshness.max_skew", UNLIMITED, _AGE.max_skew, "The longest time ahead of the clock; null for any time."),
    Key("duplicates", None, None, "The memory for repeated notifications."),
    Key("duplicates.remember", POSITIVE, DEFAULT_REMEMBER, "The time for which a notification is remembered."),
    Key("sessions", None, None, "Sessions that run or are queued."),
    # As many as MaxConnections= of dmnotid-session.socket.
    Key("sessions.concurrency", Number(1, 1_024), _LIMITS.concurrency, "The number of sessions that run at once."),
    # A server has no more NOTIFICATION-IDs than that.
    Key(
        "sessions.max_pending",
        Number(1, 65_536),
        _LIMITS.max_pending,
        "The number of sessions that wait, for each server.",
    ),
    Key("sessions.expire_after", POSITIVE, _LIMITS.expire_after, "The time after which an open session is discarded."),
    Key("sessions.min_interval", FROM_ZERO, _LIMITS.min_interval, "The shortest time between starts for one server."),
    Key("retry", None, None, "Further tries after a failure."),
    Key("retry.first", POSITIVE, _RETRY.first, "The pause after the first failed try; it doubles with each try."),
    Key("retry.longest", POSITIVE, _RETRY.longest, "The longest pause; at least `retry.first`."),
    Key("retry.attempts", Number(1, 1_000), _RETRY.attempts, "The number of tries in all."),
    Key("connections", None, None, "When a connection is available, and of which type."),
    Key("connections.reach", kinds.read_reach, _LINKS.reach, "The destinations that a connection needs a route to."),
    Key("connections.settle", FROM_ZERO, _LINKS.settle, "The time without a break before a session uses a connection."),
    Key("connections.mobile", None, None, "Which interfaces are mobile."),
    Key("connections.mobile.interfaces", kinds.read_interfaces, (), "Mobile interfaces: names or patterns (`*?[]`)."),
    Key("connections.wireless", None, None, "Which interfaces are wireless."),
    Key("connections.wireless.interfaces", kinds.read_interfaces, (), "The same for wireless interfaces."),
    Key("connections.wireline", None, None, "Which interfaces are wireline."),
    Key("connections.wireline.interfaces", kinds.read_interfaces, (), "The same for wireline interfaces."),
    Key("log", None, None, "The log."),
    Key("log.level", _LEVELS, _LOG.level, "The lowest level that is logged."),
    Key("log.format", _FORMATS, _LOG.format, "`text` for people, `json` for programs; `auto` looks for a terminal."),
    Key("log.discards", POSITIVE, _LOG.discards, "The interval of the summaries of discarded datagrams."),
    Key("log.junk", read_boolean, _LOG.junk, "Whether datagrams that cannot be a push are logged too."),
    Key(
        "control",
        kinds.read_control,
        None,
        "The control socket; `off` for none. Without the key, `$RUNTIME_DIRECTORY/control`, or none.",
    ),
    Key("control.socket", kinds.read_socket, None, "The path of the control socket.", required=True),
)

SECTIONS: Final[dict[str, dict[str, Key]]] = {}
"""The keys of every mapping, by its path and by their names."""

for _key in KEYS:
    _section, _, _name = _key.path.rpartition(".")
    SECTIONS.setdefault(_section, {})[_name] = _key
