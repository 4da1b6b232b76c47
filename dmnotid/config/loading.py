"""The configuration: one YAML file in, one frozen `Config` out, or every problem of it at once.

A problem reads `FILE:LINE:COLUMN: servers[1].secret: the value that was found; expected another`. Messages never
contain a secret, nor text that can be a misplaced one.
"""

import os
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from dmnotid.config.checker import Reader, Value, shown
from dmnotid.config.durations import spell
from dmnotid.config.files import CheckPath, read_regular
from dmnotid.config.keys import SECTIONS, read_section
from dmnotid.config.kinds import explain_unknown_door
from dmnotid.config.secrets import SECRET_KEYS, Unread, Wanted, check_distinct, check_mode, read_octets
from dmnotid.config.tree import KINDS, Node, Wrong, compose, decode, find_invisible, stray_spaces
from dmnotid.config.values import NAMED_TYPES, Config, ConnectionsConfig, DoorConfig, HookConfig, LogConfig
from dmnotid.errors import ConfigError, ConfigProblem
from dmnotid.policy.freshness import Freshness
from dmnotid.policy.retry import Retry
from dmnotid.policy.servers import MAX_TRIED_SECRETS, Server
from dmnotid.policy.sessions import Limits

MAX_FILE_OCTETS: Final = 4 * 1024 * 1024
"""Maximum size of the file: room for 10,000 servers, while a disk image given by mistake does not fill the memory."""


def load_config(
    file: Path,
    environ: Mapping[str, str],
    check_path: CheckPath | None = None,
    *,
    wanted: Wanted = lambda _id, _key, _form: True,
    unread: Unread | None = None,
) -> Config:
    """Read a configuration and its secrets; `environ` provides the directories that systemd makes.

    `check_path` is called with the absolute path of the file, and of each secret file, before that is read: the daemon
    and commands that run the hook pass `check_trusted_path`. Random octets replace a secret that is not `wanted`; with
    `unread`, a file or credential that cannot be read is no secret, and its problem goes there. Raises ConfigError with
    every problem.
    """
    tree, status = _read_tree(file, check_path)
    reader = Reader(file, environ, check_path)
    root = Value(tree, "", reader)
    found = read_section(root, "")
    # After the sections, because the id of a server decides whether its secret is wanted.
    for server in found["servers"]:
        server["former_until"] = server["former_secret"] and server["former_secret"].until
        for kind in SECRET_KEYS:
            server[kind] = read_octets(server, kind, wanted, unread)
    if found["control"] is None and (runtime := _systemd_directory(environ, "RUNTIME_DIRECTORY")):
        found["control"] = Path(runtime, "control")
    _check_servers(reader, found["servers"])
    _check_doors(reader, found)
    _check_hook(reader, root)
    _check_durations(reader, found)
    _check_patterns(reader, found["connections"])
    # After the keys, because the mode of the file matters only if it has a secret itself.
    check_mode(reader, status)
    for value in reader.given.values():
        if invisible := find_invisible(value.node.text):
            reader.add_warning(value, f"has {invisible}, which is invisible; delete it if it is not meant")
    # Raises for any problem, so that the configuration below has no gap.
    return _build(reader, found, reader.warnings())


def _systemd_directory(environ: Mapping[str, str], variable: str) -> str:
    """Return the directory that systemd has made for the service, the first of several; empty if there is none."""
    return environ.get(variable, "").partition(":")[0]


def _build(reader: Reader, found: Mapping[str, Any], warnings: tuple[ConfigProblem, ...]) -> Config:
    """Return the configuration of these keys."""
    state = _systemd_directory(reader.environ, "STATE_DIRECTORY")
    return Config(
        file=reader.file,
        servers=tuple(Server(**server) for server in found["servers"]),
        hook=HookConfig(**found["hook"]),
        listen=found["listen"],
        # Sockets of a socket unit replace the default without a warning.
        listen_given="listen" in reader.given,
        receive_buffer=found["receive_buffer"],
        # A path in the file goes before the directory that the unit has.
        state=Path(state) if state and "state" not in reader.given else found["state"],
        max_octets=found["push"]["max_octets"],
        max_header_octets=found["push"]["max_header_octets"],
        freshness=Freshness(**found["freshness"]),
        remember=found["duplicates"]["remember"],
        sessions=Limits(**found["sessions"]),
        retry=Retry(**found["retry"]),
        connections=_connections(found["connections"]),
        log=LogConfig(**found["log"]),
        warnings=warnings,
        # False is `off`.
        control=found["control"] or None,
        doors=tuple(DoorConfig(**door) for door in found["doors"]),
    )


def load_connections(file: Path) -> ConnectionsConfig:
    """Read only `connections`, as `load_keys` does. Raises ConfigError with every problem of that part."""
    reader, found = _read_keys(file, ["connections"])
    _check_patterns(reader, found["connections"])
    # Called for its exception.
    reader.warnings()
    return _connections(found["connections"])


def load_keys(file: Path, *names: str) -> dict[str, Any]:
    """Read only these keys, which have no secret: any user who can read the file can call it.

    Raises ConfigError with every problem of those keys.
    """
    reader, found = _read_keys(file, names)
    reader.warnings()
    return found


def _read_keys(file: Path, names: Sequence[str]) -> tuple[Reader, dict[str, Any]]:
    tree, _ = _read_tree(file)
    reader = Reader(file, {})
    # The other keys would be unknown here, and their problems do not concern the caller.
    only = tree._replace(pairs=tuple(pair for pair in tree.pairs if pair[0].text in names))
    given, found = Value(only, "", reader).mapping(names), {}
    for name in names:
        key, value = SECTIONS[""][name], given.get(name)
        if key.read is None:
            found[name] = read_section(value, name)
        else:
            found[name] = key.default if value is None else value.attempt(key.read, key.default)
    return reader, found


def _read_tree(file: Path, check_path: CheckPath | None = None) -> tuple[Node, os.stat_result]:
    """Return the mapping in a file, and the status of the file. Raises ConfigError."""
    # Still empty if the file cannot be read: no line can then have a stray space.
    text = ""
    try:
        octets, status = read_regular(file, MAX_FILE_OCTETS, check_path)
        text = decode(octets)
        root = compose(text)
    except Wrong as wrong:
        # An invisible character in an earlier line is often the reason, and the error in this one cannot be understood.
        found = {it.place: it for it in (wrong, *stray_spaces(text, wrong.place[0]))}
        # A problem begins with its file, and so does the message of `read_regular`.
        messages = {place: str(it).removeprefix(f"{file} ") for place, it in found.items()}
        problems = (ConfigProblem(str(file), *place, "", messages[place]) for place in sorted(found))
        raise ConfigError(tuple(problems)) from None
    if root.kind != "map":
        message = f"the file is {KINDS[root.kind]}; expected a mapping with servers and hook"
        raise ConfigError((ConfigProblem(str(file), root.line, root.column, "", message),))
    return root, status


def _connections(found: Mapping[str, Any]) -> ConnectionsConfig:
    interfaces = {kind: found[kind]["interfaces"] for kind in NAMED_TYPES}
    return ConnectionsConfig(found["reach"], interfaces, found["settle"])


# --- Checks of several keys together ---------------------------------------------------------------------------------


def _check_servers(reader: Reader, servers: Sequence[Mapping[str, Any]]) -> None:
    first: dict[str, int] = {}
    for at, server in enumerate(servers):
        place = f"servers[{at}]"
        identity = server["id"]
        if identity is not None and first.setdefault(identity, at) != at:
            message = (
                f"is also the id of servers[{first[identity]}]; expected a different id for each server, and a second "
                "secret of one server as its former_secret"
            )
            reader.given[f"{place}.id"].wrong(message)
        # A require_digest that cannot be read may be meant as false, so a secret is not required because of it.
        unsigned = not server["require_digest"] or not reader.sound(f"{place}.require_digest")
        if reader.given[place].node.kind == "map" and f"{place}.secret" not in reader.given and not unsigned:
            message = "is missing; add a secret, or require_digest: false to accept unsigned notifications"
            reader.add_problem(reader.given[place], f"{place}.secret", message)
        elif f"{place}.former_secret" in reader.given and f"{place}.secret" not in reader.given:
            reader.given[f"{place}.former_secret"].wrong(
                "is given without a secret; expected the current one as secret"
            )
    # A notification without SERVER-ID is discovered by its secret, so the secrets must differ.
    check_distinct(reader, servers)
    secrets = sum(server["secret"] is not None or server["former_secret"] is not None for server in servers)
    if secrets > MAX_TRIED_SECRETS:
        message = f"{secrets} servers have a secret, more than {MAX_TRIED_SECRETS}: notifications without SERVER-ID"
        reader.add_warning(reader.given["servers"], f"{message} are not tried with any")


def _check_doors(reader: Reader, found: Mapping[str, Any]) -> None:
    first = {os.path.realpath(found["control"]): "control.socket"} if found["control"] else {}
    for at, door in enumerate(found["doors"]):
        # Without links: /var/run is another name for /run.
        path = door["path"] and os.path.realpath(door["path"])
        if path is not None and first.setdefault(path, f"doors[{at}]") != f"doors[{at}]":
            message = f"is also the path of {first[path]}; expected a different path for each socket"
            reader.given[f"doors[{at}].path"].wrong(message)
    names = [door["source"] for door in found["doors"]]
    # A door with a problem may be the one that is meant.
    if not reader.sound("doors", *(f"doors[{at}].{key}" for at in range(len(names)) for key in ("holds", "source"))):
        return
    for at, server in enumerate(found["servers"]):
        for index, source in enumerate(server["sources"]):
            if isinstance(source, str) and source not in names:
                reader.given[f"servers[{at}].sources[{index}]"].wrong(explain_unknown_door(source, names))


def _check_hook(reader: Reader, root: Value) -> None:
    # Without the section, its missing key is a problem of the whole file.
    section = reader.given.get("hook", root)
    command, socket = reader.given.get("hook.command"), reader.given.get("hook.socket")
    if command is not None and socket is not None:
        socket.wrong("conflicts with hook.command; give one of them")
    elif socket is not None:
        for name in ("hook.environment", "hook.kill_after"):
            if name in reader.given:
                reader.given[name].wrong("is for hook.command only; set it for the process behind hook.socket")
    elif command is None and section.node.kind == "map":
        reader.add_problem(section, "hook.command", "is missing; give hook.command or hook.socket")


def _check_durations(reader: Reader, found: Mapping[str, Any]) -> None:
    remember, expire_after = found["duplicates"]["remember"], found["sessions"]["expire_after"]
    interval = found["sessions"]["min_interval"]
    first, longest = found["retry"]["first"], found["retry"]["longest"]
    max_age = found["freshness"]["max_age"]
    if remember < max_age:
        # A late notification would be refused as forgotten while it is still fresh.
        message = f"{spell(remember)} is less than freshness.max_age ({spell(max_age)}); expected at least that"
        reader.conflict(("duplicates.remember", "freshness.max_age"), message)
    if longest < first:
        message = f"{spell(longest)} is less than retry.first ({spell(first)}); expected at least that"
        reader.conflict(("retry.longest", "retry.first"), message)
    path, most = min(("sessions.expire_after", expire_after), ("duplicates.remember", remember), key=itemgetter(1))
    # A longer interval would outlive the session that it delays, or the row from which a restart learns the last start.
    if interval > most:
        message = f"{spell(interval)} is more than {path} ({spell(most)}); expected at most that"
        reader.conflict(("sessions.min_interval", path), message)


def _check_patterns(reader: Reader, connections: Mapping[str, Any]) -> None:
    first: dict[str, str] = {}
    for kind in NAMED_TYPES:
        for at, pattern in enumerate(connections[kind]["interfaces"]):
            path = f"connections.{kind}.interfaces[{at}]"
            # The first type with a matching pattern wins, so the second pattern would have no effect.
            if pattern is not None and first.setdefault(pattern, path) != path:
                reader.given[path].wrong(f"{shown(pattern)} is also {first[pattern]}; expected each pattern once")
