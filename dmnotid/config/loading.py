"""The configuration: one YAML file in, one frozen `Config` out, or every problem of it at once.

Each problem stands as `FILE:LINE:COLUMN: servers[1].secret: what is wrong and what is expected`. No secret ever gets
into a message, nor does text that may be a misplaced one: unknown keys under `secret`, bare words, values of secrets.
"""

import base64
import fnmatch
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import combinations
from pathlib import Path
from typing import Final, Literal, NamedTuple, NoReturn, TypeVar

from dmnotid.config.tree import (
    KINDS,
    OPEN_TO_OTHERS,
    CheckPath,
    Node,
    Reader,
    Section,
    Value,
    Wrong,
    boolean,
    choice,
    compose,
    decode,
    duration,
    position,
    read_path,
    read_regular,
    read_text,
    refuse,
    shown,
    some_text,
    spell,
    whole,
)
from dmnotid.config.values import (
    DEFAULT_RECEIVE_BUFFER,
    NAMED_TYPES,
    PLACEHOLDERS,
    Config,
    ConnectionsConfig,
    HookConfig,
    ListenAddress,
    LogConfig,
    Reach,
)
from dmnotid.errors import ConfigError, ConfigProblem
from dmnotid.policy.addresses import MAX_PORT, Network, parse_address
from dmnotid.policy.freshness import Freshness
from dmnotid.policy.retry import Retry
from dmnotid.policy.servers import Server
from dmnotid.policy.sessions import Limits
from dmnotid.wire.notification import MAX_OPTION_LENGTH, ConnectionType
from dmnotid.wire.octets import normal_server_id
from dmnotid.wire.wsp import DEFAULT_MAX_HEADER_OCTETS, WAP_PUSH_PORT

MAX_RECEIVE_BUFFER: Final = 256 * 1024 * 1024
DEFAULT_STATE: Final = Path("/var/lib/dmnotid")
DEFAULT_REMEMBER: Final = 3 * 86_400.0

MIN_SECRET_OCTETS: Final = 16
"""A shorter secret is taken with a warning."""

MAX_SECRET_OCTETS: Final = 4_096
MAX_FILE_OCTETS: Final = 4 * 1024 * 1024
MAX_UDP_PAYLOAD: Final = 65_507
MAX_INTERFACE_NAME: Final = 15
MAX_SOCKET_PATH: Final = 107
"""How many octets of a path fit into an AF_UNIX address, with the NUL behind it."""

MAX_PATTERN: Final = 64
T = TypeVar("T")


def load_config(
    file: Path, environ: Mapping[str, str], check_path: CheckPath | None = None, *, credentials: bool = True
) -> Config:
    """Read a configuration and the secrets it names; `environ` is asked for STATE_DIRECTORY and CREDENTIALS_DIRECTORY.

    `check_path` is called with the absolute path of the file, and of each secret file, before that is read: the daemon
    and commands that run the hook pass `check_trusted_path`. Without `credentials` those are not read, and random
    octets stand for each. Raises ConfigError with all that is wrong.
    """
    root, mode = _read_file(file, check_path)
    reader = Reader(file, environ, check_path, credentials=credentials)
    with reader.section(Value(root, "")) as top:
        read = _read_config(top)
    reader.check_mode(mode)
    if reader.problems:
        raise ConfigError(tuple(sorted(reader.problems, key=position)))
    return read(tuple(sorted(reader.warnings, key=position)))


def load_connections(file: Path) -> ConnectionsConfig:
    """Read `connections` and nothing else of a configuration: no secret, so that anyone who may read the file can.

    Raises ConfigError with all that is wrong in that part.
    """
    root, _ = _read_file(file)
    reader = Reader(file, {})
    only = root._replace(pairs=tuple(pair for pair in root.pairs if pair[0].text == "connections"))
    connections = _read_connections(reader.section(Value(only, "")))
    if reader.problems:
        raise ConfigError(tuple(sorted(reader.problems, key=position)))
    return connections


def _read_file(file: Path, check_path: CheckPath | None = None) -> tuple[Node, int]:
    """Return the mapping that a file holds, and the file's mode. Raises ConfigError."""
    try:
        octets, mode = read_regular(file, MAX_FILE_OCTETS, check_path)
        root = compose(decode(octets))
        if root.kind != "map":
            expected = "a mapping with servers and hook is expected"
            refuse(f"the top level is {KINDS[root.kind]}, {expected}", (root.line, root.column))
    except Wrong as wrong:
        line, column = wrong.place
        raise ConfigError((ConfigProblem(str(file), line, column, "", str(wrong)),)) from None
    return root, mode


def _network(value: Value) -> Network:
    expected = "a network such as 192.0.2.0/24 or 2001:db8::/32, or one address, is expected"
    text = value.of("str", "a network").text
    try:
        network = ip_network(text, strict=False)
        exact = "/" not in text or ip_address(text.partition("/")[0]) == network.network_address
    except ValueError:
        refuse(f"{shown(text)} is no network, {expected}")
    if not exact:
        refuse(f"{shown(text)} has bits set behind its prefix: write {network}")
    if "%" in text:
        refuse(f"{shown(text)} has a zone, {expected} without one")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        refuse(f"{shown(text)} is an IPv4 network as IPv6: write it as IPv4")
    return network


_MAPPED: Final = IPv6Network("::ffff:0:0/96")


# --- Servers and secrets -----------------------------------------------------------------------------------------


class _ServerRead(NamedTuple):
    """A server, and where it stands; `id` and `secret` are None where they are wrong or absent."""

    value: Value
    id: str | None
    secret: bytes | None
    require_digest: bool
    sources: tuple[Network, ...]

    def __str__(self) -> str:
        return self.value.path if self.id is None else f"{self.value.path} ({self.id!r})"


def _read_servers(top: Section) -> tuple[Server, ...]:
    def read(value: Value) -> list[_ServerRead]:
        return [_read_server(top.reader, item) for item in value.items("a list of servers")]

    servers = top.need("servers", read, [], "a list of servers")
    _check_ids(top.reader, servers)
    _check_secrets(top.reader, servers)
    return tuple(Server(it.id or "", it.secret, it.require_digest, it.sources) for it in servers)


def _read_server(reader: Reader, value: Value) -> _ServerRead:
    with reader.section(value) as section:
        identity = section.need("id", _server_id, None, "the SERVER-ID of the server")
        given = section.get("secret")
        secret = None if given is None else _read_secret(reader, given)
        require_digest = section.take("require_digest", boolean, default=True)
        sources = section.take("sources", lambda found: _networks(reader, found), ())
        unsigned = not require_digest or not reader.sound(f"{value.path}.require_digest")
        if section.value is not None and given is None and not unsigned:
            message = "is missing: a secret is expected, or require_digest: false to take what nobody signed"
            reader.wrong(value, message, section.path("secret"))
    return _ServerRead(value, identity, secret, require_digest, sources)


def _server_id(value: Value) -> str | None:
    text = read_text(value, "a SERVER-ID")
    try:
        identity = normal_server_id(text)
    except ValueError as error:
        refuse(f"{error}, the SERVER-ID of the server is expected")
    if len(identity.encode()) > MAX_OPTION_LENGTH:
        refuse(f"has more than {MAX_OPTION_LENGTH} octets, which no notification can hold")
    return identity


def _networks(reader: Reader, value: Value) -> tuple[Network, ...]:
    return tuple(network for _, network in reader.each(value, _network, "a list of networks"))


def _check_ids(reader: Reader, servers: Iterable[_ServerRead]) -> None:
    first: dict[str, _ServerRead] = {}
    for server in servers:
        if server.id is not None and first.setdefault(server.id, server) is not server:
            value = Value(_entry(server.value.node, "id"), f"{server.value.path}.id")
            reader.wrong(value, f"is the id of {first[server.id].value.path} already, each once is expected")


def _entry(node: Node, key: str) -> Node:
    """Return the value of a key that is known to be there."""
    return next(value for name, value in node.pairs if name.text == key)


def _check_secrets(reader: Reader, servers: list[_ServerRead]) -> None:
    """See that no secret begins with another's: each next secret in order is held against those it may begin with."""
    shorter: list[tuple[int, bytes]] = []
    for secret, index in sorted((it.secret, at) for at, it in enumerate(servers) if it.secret is not None):
        while shorter and not secret.startswith(shorter[-1][1]):
            shorter.pop()
        if shorter:
            _wrong_pair(reader, servers, index, shorter[-1][0])
        shorter.append((index, secret))


def _wrong_pair(reader: Reader, servers: list[_ServerRead], longer: int, shorter: int) -> None:
    relation = "begins with" if longer > shorter else "is the beginning of"
    if servers[longer].secret == servers[shorter].secret:
        relation = "equals"
    first, second = (servers[at] for at in sorted((longer, shorter)))
    value = Value(_entry(second.value.node, "secret"), f"{second.value.path}.secret")
    reader.wrong(value, f"{relation} the secret of {first}: one of its own is expected for each server")


def _read_secret(reader: Reader, value: Value) -> bytes | None:
    """Read a secret; None, and the problem noted, where it is wrong."""
    with reader.section(value, secretive=True, expected="a mapping such as {file: PATH}") as section:
        given = [found for key in _SECRET_FORMS if (found := section.get(key))]
    if section.value is None:
        return None
    if len(given) != 1:
        forms = " and ".join(found.path.rpartition(".")[2] for found in given) or "none of its keys"
        if given or not value.node.pairs:
            reader.wrong(value, f"has {forms}, exactly one of {', '.join(_SECRET_FORMS)} is expected")
        return None
    form = given[0].path.rpartition(".")[2]
    if form in _INLINE and reader.inline_secret is None:
        reader.inline_secret = given[0]
    secret = reader.attempt(given[0], lambda found: _bounded_secret(_SECRET_FORMS[form](reader, found)), None)
    if secret is not None:
        _look_at_secret(reader, given[0], secret)
    return secret


def _bounded_secret(secret: bytes) -> bytes | None:
    if not secret:
        refuse(f"is empty, a secret of {MIN_SECRET_OCTETS} octets or more is expected")
    if len(secret) > MAX_SECRET_OCTETS:
        refuse(f"has more than {MAX_SECRET_OCTETS} octets")
    return secret


def _look_at_secret(reader: Reader, value: Value, secret: bytes) -> None:
    if len(secret) < MIN_SECRET_OCTETS:
        reader.warn(value, f"has only {len(secret)} octets: fewer than {MIN_SECRET_OCTETS} can be guessed")
    if value.path.endswith(".text") and secret.endswith(b"\n"):
        reader.warn(value, "ends with a line break, which belongs to the secret: write |- instead of | if it does not")


def _secret_text(_: Reader, value: Value) -> bytes:
    # Not by read_text: a secret may hold any octet, NUL too.
    try:
        return value.free_text("text").encode()
    except UnicodeEncodeError:
        refuse("holds half of a surrogate pair, text is expected")


def _secret_hex(_: Reader, value: Value) -> bytes:
    text = value.free_text("hex")
    try:
        return bytes.fromhex(text)
    except ValueError:
        refuse("is not hex, pairs of hex digits are expected, with or without spaces between them")


def _secret_base64(_: Reader, value: Value) -> bytes:
    text = value.free_text("base64")
    try:
        octets = base64.b64decode(text)
    except ValueError:  # binascii.Error is one
        octets = None
    # The way back tells what decoding lets pass: foreign characters, bits left over.
    if octets is None or base64.b64encode(octets).decode() != text:
        refuse("is not base64, its strict form is expected: A-Z a-z 0-9 + / with = at the end and no spaces")
    return octets


def _secret_file(reader: Reader, value: Value) -> bytes:
    path = read_path(value, reader.file)
    octets, mode = read_regular(path, MAX_SECRET_OCTETS + 2, reader.check_path)
    if mode & OPEN_TO_OTHERS:
        refuse(f"group or others can read or write {path} (mode {mode:04o}), mode 0600 or 0400 is expected")
    return _without_line_break(octets)


def _secret_credential(reader: Reader, value: Value) -> bytes:
    name = some_text(value, "the name of a credential")
    if "/" in name or name in {".", ".."}:
        refuse("is a path, the name of a credential is expected")
    if not reader.credentials:
        return os.urandom(MAX_SECRET_OCTETS)
    directory = reader.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        refuse("$CREDENTIALS_DIRECTORY is not set: systemd sets it for services with LoadCredential=")
    return _without_line_break(read_regular(Path(directory, name), MAX_SECRET_OCTETS + 2)[0])


def _without_line_break(octets: bytes) -> bytes:
    """Take off the one line break that editors and echo leave at the end."""
    return octets.removesuffix(b"\n").removesuffix(b"\r") if octets.endswith(b"\n") else octets


_SECRET_FORMS: Final[dict[str, Callable[[Reader, Value], bytes]]] = {
    "text": _secret_text,
    "hex": _secret_hex,
    "base64": _secret_base64,
    "file": _secret_file,
    "credential": _secret_credential,
}
_INLINE: Final = frozenset({"text", "hex", "base64"})


# --- The other sections ------------------------------------------------------------------------------------------

_SHORTEST: Final = 0.001
"""For durations to which 0 would give no meaning."""

_LEVELS: Final[dict[str, Literal["debug", "info", "warning", "error"]]] = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
}
_FORMATS: Final[dict[str, Literal["auto", "json", "text"]]] = {"auto": "auto", "json": "json", "text": "text"}
_REACHES: Final[dict[str, Reach]] = {"internet": "internet", "any": "any"}


def _read_config(top: Section) -> Callable[[tuple[ConfigProblem, ...]], Config]:
    """Read every section; what comes back makes the Config once the warnings are all known."""
    reader = top.reader
    servers = _read_servers(top)
    hook = _read_hook(top)
    listen = top.take("listen", lambda value: _read_listen(reader, value), (ListenAddress("::", WAP_PUSH_PORT),))
    receive_buffer = top.take("receive_buffer", whole(4_096, MAX_RECEIVE_BUFFER), DEFAULT_RECEIVE_BUFFER)
    state = top.take("state", lambda value: read_path(value, reader.file), _default_state(reader.environ))
    with top.section("push") as push:
        max_header_octets = push.take("max_header_octets", whole(1, MAX_UDP_PAYLOAD), DEFAULT_MAX_HEADER_OCTETS)
    freshness, remember = _read_freshness(top)
    sessions = _read_sessions(top, remember)
    retry = _read_retry(top)
    connections = _read_connections(top)
    log = _read_log(top)
    return lambda warnings: Config(
        file=reader.file,
        servers=servers,
        hook=hook,
        listen=listen,
        receive_buffer=receive_buffer,
        state=state,
        max_header_octets=max_header_octets,
        freshness=freshness,
        remember=remember,
        sessions=sessions,
        retry=retry,
        connections=connections,
        log=log,
        warnings=warnings,
    )


def _default_state(environ: Mapping[str, str]) -> Path:
    first = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(first) if first else DEFAULT_STATE


def _read_freshness(top: Section) -> tuple[Freshness, float]:
    default = Freshness()
    with top.section("freshness") as section:
        freshness = Freshness(
            section.take("max_age", duration(_SHORTEST), default.max_age),
            section.take("max_skew", duration(0), default.max_skew),
        )
    with top.section("duplicates") as duplicates:
        remember = duplicates.take("remember", duration(_SHORTEST), DEFAULT_REMEMBER)
    window = freshness.max_age + freshness.max_skew
    paths = ("duplicates.remember", "freshness.max_age", "freshness.max_skew")
    if remember < window and top.reader.sound(*paths):
        message = (
            f"{spell(remember)} is less than freshness.max_age + freshness.max_skew ({spell(window)}), at least that "
            "is expected: what is still fresh would be taken again"
        )
        _wrong_together(top, paths, message)
    return freshness, remember


def _wrong_together(top: Section, paths: tuple[str, ...], message: str) -> None:
    """Note a problem of several keys, one of them given at least: at the first given, under the path of the first."""
    nodes = (_find(top, path) for path in paths)
    node = next(node for node in nodes if node is not None)
    top.reader.wrong(Value(node, paths[0]), message)


def _find(top: Section, path: str) -> Node | None:
    node = top.value.node if top.value else None
    for key in path.split("."):
        node = next((found for name, found in node.pairs if name.text == key), None) if node else None
    return node


def _read_sessions(top: Section, remember: float) -> Limits:
    default = Limits()
    with top.section("sessions") as section:
        limits = Limits(
            section.take("concurrency", whole(1, 1_024), default.concurrency),
            section.take("max_pending", whole(1, 65_536), default.max_pending),
            section.take("expire_after", duration(_SHORTEST), default.expire_after),
            section.take("min_interval", duration(0), default.min_interval),
        )
    for path, most in (("duplicates.remember", remember), ("sessions.expire_after", limits.expire_after)):
        paths = ("sessions.min_interval", path)
        if limits.min_interval > most and top.reader.sound(*paths):
            message = f"{spell(limits.min_interval)} is more than {path} ({spell(most)}), at most that is expected"
            _wrong_together(top, paths, message)
            break
    return limits


def _read_retry(top: Section) -> Retry:
    default = Retry()
    with top.section("retry") as section:
        retry = Retry(
            section.take("first", duration(_SHORTEST), default.first),
            section.take("longest", duration(_SHORTEST), default.longest),
            section.take("attempts", whole(1, 1_000), default.attempts),
        )
    paths = ("retry.longest", "retry.first")
    if retry.longest < retry.first and top.reader.sound(*paths):
        message = f"{spell(retry.longest)} is less than retry.first ({spell(retry.first)}), at least that is expected"
        _wrong_together(top, paths, message)
    return retry


def _read_log(top: Section) -> LogConfig:
    default = LogConfig()
    with top.section("log") as section:
        return LogConfig(
            section.take("level", choice(_LEVELS), default.level),
            section.take("format", choice(_FORMATS), default.format),
            section.take("discards", duration(_SHORTEST), default.discards),
            section.take("junk", boolean, default=default.junk),
        )


# --- hook --------------------------------------------------------------------------------------------------------

# Patterns are compiled where they are used first: most of them never are. ${this} is the hook's own business.
_PLACEHOLDER: Final = r"(?<!\$)\{([a-z][a-z0-9_]*)\}"
_VARIABLE: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_OWN_VARIABLES: Final = "DMNOTID_"


def _read_hook(top: Section) -> HookConfig:
    default = HookConfig(())
    reader = top.reader
    given = top.get("hook")
    if given is None and top.value is not None:
        reader.wrong(top.value, f"is missing, {_ONE_OF_TWO}", "hook.command")
    with reader.section(given) as section:
        command, socket = section.get("command"), section.get("socket")
        _check_one_of_two(section, command, socket)
        of_command = socket is None or command is not None
        return HookConfig(
            () if command is None else reader.attempt(command, lambda found: _read_command(reader, found), ()),
            section.take(
                "environment",
                (lambda found: _read_environment(reader, found)) if of_command else _not_for_socket,
                {},
            ),
            section.take("timeout", duration(_SHORTEST), default.timeout),
            section.take("kill_after", duration(0) if of_command else _not_for_socket, default.kill_after),
            section.take("stop_grace", duration(0), default.stop_grace),
            None if socket is None else reader.attempt(socket, lambda found: _read_socket(reader, found), None),
        )


_ONE_OF_TWO: Final = "the argument list that starts a session is expected, or hook.socket in its place"


def _check_one_of_two(section: Section, command: Value | None, socket: Value | None) -> None:
    if command is None and socket is None and section.value is not None:
        section.reader.wrong(section.value, f"is missing, {_ONE_OF_TWO}", section.path("command"))
    if command is not None and socket is not None:
        section.reader.wrong(socket, "is given beside hook.command, one of the two is expected")


def _not_for_socket(_: Value) -> NoReturn:
    refuse("is for hook.command: what runs behind hook.socket has its own from who starts it")


def _read_socket(reader: Reader, value: Value) -> Path:
    path = read_path(value, reader.file).absolute()
    try:
        length = len(bytes(path))
    except UnicodeEncodeError:
        refuse("is no path that this system can open")
    if length > MAX_SOCKET_PATH:
        refuse(f"{shown(str(path))} has {length} octets, {MAX_SOCKET_PATH} at most fit into the address of a socket")
    return path


def _read_command(reader: Reader, value: Value) -> tuple[str, ...]:
    items = value.items("a list of arguments (no shell splits them)")
    return tuple(reader.attempt(item, _argument if at else _program, "") for at, item in enumerate(items))


def _program(value: Value) -> str:
    text = some_text(value, "an absolute path")
    if not text.startswith("/"):
        refuse(f"is {shown(text)}, an absolute path is expected")
    if re.search(_PLACEHOLDER, text):
        refuse("has a placeholder, and the program is always the same: placeholders are for its arguments")
    return text


def _argument(value: Value) -> str:
    text = read_text(value, "an argument as text")
    for name in re.findall(_PLACEHOLDER, text):
        if name not in PLACEHOLDERS:
            refuse(f"has the unknown placeholder {{{name[:40]}}}, known are {', '.join(PLACEHOLDERS)}")
    return text


def _read_environment(reader: Reader, value: Value) -> Mapping[str, str]:
    environment: dict[str, str] = {}
    for key, found in reader.entries(value):
        name = key.node.text
        if not re.fullmatch(_VARIABLE, name):
            reader.wrong(key, "is no name of a variable: letters, digits and _ are expected, no digit first")
        elif name.startswith(_OWN_VARIABLES):
            reader.wrong(key, f"begins with {_OWN_VARIABLES}, which dmnotid sets itself")
        else:
            environment[name] = reader.attempt(found, read_text, "")
    return environment


# --- listen ------------------------------------------------------------------------------------------------------

_ANY_IPV4: Final = "0.0.0.0"  # noqa: S104 - compared with, not bound to
_LISTEN_EXPECTED: Final = 'an address such as "[::]:2948" or "127.0.0.1:2948"'
_ZONE: Final = rf"[^\s/:%]{{1,{MAX_INTERFACE_NAME}}}"


def _read_listen(reader: Reader, value: Value) -> tuple[ListenAddress, ...]:
    if value.node.kind != "seq":
        return (_listen_address(value),)
    taken: list[ListenAddress] = []
    for item, address in reader.each(value, _listen_address, "an address, or a list of them,"):
        rival = next((before for before in taken if _overlap(before, address)), None)
        if rival is None:
            taken.append(address)
        else:
            reader.wrong(item, f"{address} is taken by {rival} already, each address once is expected")
    return tuple(taken)


def _listen_address(value: Value) -> ListenAddress:
    text = value.of("str", _LISTEN_EXPECTED).text
    try:
        name, port = parse_address(text)
        host: IPv4Address | IPv6Address | None = ip_address(name)
    except ValueError:
        host = None
    # Without brackets, the last part of ::1:2948 belongs to the address.
    if host is None or isinstance(host, IPv6Address) is not text.startswith("["):
        refuse(f"is {shown(text)}, {_LISTEN_EXPECTED} is expected (no names; IPv6 in brackets; ports 0 to {MAX_PORT})")
    if isinstance(host, IPv6Address):
        _check_zone(host)
    return ListenAddress(str(host), port)


def _check_zone(host: IPv6Address) -> None:
    if host.scope_id is None and host.is_link_local:
        refuse(f"{host} is link-local: its zone is expected, such as [{host}%eth0]")
    if host.scope_id is not None and not re.fullmatch(_ZONE, host.scope_id):
        refuse(f"has the zone {shown(host.scope_id)}, the name of an interface is expected")


def _overlap(one: ListenAddress, other: ListenAddress) -> bool:
    """Tell whether two addresses can't be bound at once; [::] leaves a port's IPv4 to what is listed beside it."""
    if one.port != other.port or not one.port or (":" in one.host) != (":" in other.host):
        return False
    hosts = {one.host, other.host}
    return len(hosts) == 1 or not hosts.isdisjoint({"::", _ANY_IPV4})


# --- connections -------------------------------------------------------------------------------------------------

_Pattern = tuple[ConnectionType, Value, str]
_SAMPLE: Final = frozenset(map(chr, range(0x21, 0x7F))) | {"\u00e9"}
"""The characters that patterns are compared over, besides those of the patterns themselves."""


def _read_connections(top: Section) -> ConnectionsConfig:
    reader, default = top.reader, ConnectionsConfig()
    patterns: list[_Pattern] = []
    with top.section("connections") as section:
        reach = section.take("reach", lambda found: _read_reach(reader, found), default.reach)
        settle = section.take("settle", duration(0), default.settle)
        for kind in NAMED_TYPES:
            with section.section(kind.value) as own:
                named = own.take("interfaces", lambda found: reader.each(found, _pattern, "a list of names"), [])
            patterns += [(kind, value, pattern) for value, pattern in named]
    _check_patterns(reader, patterns)
    interfaces = {kind: tuple(pattern for it, _, pattern in patterns if it is kind) for kind in NAMED_TYPES}
    return ConnectionsConfig(reach, interfaces, settle)


def _read_reach(reader: Reader, value: Value) -> Reach:
    if value.node.kind == "seq":
        return _networks(reader, value)
    return choice(_REACHES, "internet, any or a list of networks")(value)


def _pattern(value: Value) -> str:
    expected = "the name of an interface, * ? [...] allowed,"
    text = some_text(value, expected)
    characters = sum(it != "*" for it in _tokens(text))
    if re.search(r"[\s/:]", text) or characters > MAX_INTERFACE_NAME or len(text) > MAX_PATTERN:
        refuse(f"is {shown(text)}, {expected} is expected")
    return text


def _check_patterns(reader: Reader, patterns: Sequence[_Pattern]) -> None:
    """See that no name can be of two types, nor a pattern stand twice."""
    alphabet = _SAMPLE.union(*(pattern for _, _, pattern in patterns))
    told: set[str] = set()
    for (kind, first, one), (other_kind, second, other) in combinations(patterns, 2):
        if second.path in told:
            continue
        if kind is other_kind and one == other:
            reader.wrong(second, f"{shown(other)} is given twice")
        elif kind is not other_kind and _share_a_name(one, other, alphabet):
            rival = f"{first.path} ({shown(one)})"
            reader.wrong(
                second, f"{shown(other)} takes interfaces that {rival} takes too, one type for each is expected"
            )
        else:
            continue
        told.add(second.path)


def _tokens(pattern: str) -> list[str]:
    """Cut a pattern as fnmatch reads it: `*`, and what stands for one character: itself, `?` or `[...]`."""
    return re.findall(r"\[!?+\]?+[^\]]*\]|.", pattern)


@functools.lru_cache(1024)
def _characters(cut: str, alphabet: frozenset[str]) -> frozenset[str] | None:
    """Return what a part of a pattern stands for, None for a star."""
    if cut == "*":
        return None
    if len(cut) == 1 and cut != "?":
        return frozenset(cut)  # a pattern for each letter of a name would take its time
    return frozenset(it for it in alphabet if fnmatch.fnmatchcase(it, cut))


def _share_a_name(one: str, other: str, alphabet: frozenset[str]) -> bool:
    """Tell whether some name, of characters of this alphabet, matches both patterns."""
    left, right = ([_characters(cut, alphabet) for cut in _tokens(pattern)] for pattern in (one, other))
    if frozenset() in left + right:
        return False

    @functools.cache
    def meet(at: int, there: int) -> bool:
        if at == len(left) or there == len(right):
            return all(wanted is None for wanted in left[at:] + right[there:])
        mine, theirs = left[at], right[there]
        if mine is None or theirs is None:  # a star ends here, or takes what the other side has here
            return meet(at + 1, there) or meet(at, there + 1)
        return not mine.isdisjoint(theirs) and meet(at + 1, there + 1)

    return meet(0, 0)
