"""Kinds of values that only some keys have: identities, networks, addresses, commands, names of interfaces."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, Literal

from dmnotid.config.checker import Value, read_boolean, read_path, read_some_text, read_text, shown
from dmnotid.config.tree import Wrong
from dmnotid.config.values import MAX_INTERFACE_NAME, PLACEHOLDERS, ListenAddress, Reach
from dmnotid.policy.addresses import MAX_PORT, Network, parse_address
from dmnotid.wire.notification import MAX_OPTION_LENGTH
from dmnotid.wire.octets import normal_server_id

MAX_SOCKET_PATH: Final = 107
"""Longest path of an AF_UNIX address, in octets, without the NUL at its end."""

# No such name is an IP address: those have a colon, or begin with a digit.
DOOR_NAME: Final = "[a-z][a-z0-9-]*"

MAX_PATTERN: Final = 64
"""Longest pattern for names of interfaces, in characters."""

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_ZONE: Final = rf"[^\s/:%]{{1,{MAX_INTERFACE_NAME}}}"
_NETWORK: Final = "a network such as 192.0.2.0/24 or 2001:db8::/32, or one address"
_OTHERS_WRITE: Final = 0o002
_ADDRESS: Final = 'an IP address such as "[::]:2948" or "127.0.0.1:2948"'

# ${this} is for the hook itself.
_PLACEHOLDER: Final = r"(?<!\$)\{([a-z][a-z0-9_]*)\}"
_VARIABLE: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_OWN_VARIABLES: Final = "DMNOTID_"
# What a shell or an argument list would replace, and a variable of the environment keeps as it is.
_UNEXPANDED: Final = rf"\$[A-Za-z_{{(][A-Za-z0-9_]*[)}}]?|{_PLACEHOLDER}|(?:^|(?<=:))~(?=/|$)"
# What a warning repeats of the text after a `$`: any other word may be a part of a secret.
_SHOWN: Final = frozenset({"", "PATH", "HOME", "LANG", *PLACEHOLDERS})


def read_server_id(value: Value) -> str:
    """Read a SERVER-ID in its normal form (NFC)."""
    try:
        identity = normal_server_id(read_text(value, "a SERVER-ID"))
    except ValueError as error:
        raise Wrong(f"{error}; expected a SERVER-ID") from None
    if len(identity.encode()) > MAX_OPTION_LENGTH:
        raise Wrong(f"has more than {MAX_OPTION_LENGTH} octets, the most that a notification can have")
    return identity


def read_last_day(value: Value) -> float:
    """Read a date, as the end of that day in UTC (POSIX seconds)."""
    expected = "a date such as 2026-12-31"
    # YAML resolves a date to a timestamp, unless it is in quotes.
    text = value.node.text if value.node.kind == "timestamp" else value.of("str", expected).text
    try:
        # Without the other forms of ISO 8601, which fromisoformat takes too.
        day = datetime.fromisoformat(text if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else "")
    except ValueError:
        # Without the text: it can be a misplaced secret.
        raise Wrong(f"is not a date; expected {expected}") from None
    # The last day is accepted as a whole. In UTC each day has 86,400 POSIX seconds.
    return day.replace(tzinfo=UTC).timestamp() + 86_400


def read_sources(value: Value) -> tuple[Network | str, ...]:
    """Read a list of networks and names of doors; whether there are such doors is not checked here."""
    return value.each(_read_source, "a list of networks and names of doors")


def _read_source(value: Value) -> Network | str:
    text = value.of("str", "a network, or the name of a door").text
    return text if re.fullmatch(DOOR_NAME, text) else _read_network(value)


def explain_unknown_door(name: str, doors: Iterable[str]) -> str:
    """Return the problem of a source that is neither a network nor the name of one of these doors."""
    known = ", ".join(sorted(set(doors)))
    expected = f"{_NETWORK}, or a door ({known})" if known else f"{_NETWORK}; there are no doors"
    return f"{shown(name)} is neither a network nor the name of a door; expected {expected}"


def _read_matching(value: Value, pattern: str, expected: str) -> str:
    text = read_some_text(value, expected)
    if not re.fullmatch(pattern, text):
        raise Wrong(f"is {shown(text)}; expected {expected}")
    return text


def read_door_name(value: Value) -> str:
    """Read the name of a door."""
    return _read_matching(value, DOOR_NAME, "lower-case letters, digits and -, a letter first")


def read_mode(value: Value) -> int:
    """Read the mode of a socket to which others must not write."""
    # As text, because YAML 1.1 reads 0660 as octal and 660 as decimal.
    text = _read_matching(value, "0?[0-7]{3}", 'an octal mode such as "0660"')
    mode = int(text, 8)
    if mode & _OTHERS_WRITE:
        raise Wrong(f"{shown(text)} lets every user send through this door; use `group` for those that may")
    return mode


def read_group(value: Value) -> str:
    """Read the name of a group, which this system may lack: the configuration can be that of another one."""
    # group(5) separates fields by colons, and members by commas.
    return _read_matching(value, r"[^\s:,/]+", "the name of a group")


def _read_network(value: Value) -> Network:
    text = value.of("str", "a network").text
    try:
        # A strict parser would refuse host bits without the network that is probably meant.
        network = ip_network(text, strict=False)
        exact = "/" not in text or ip_address(text.partition("/")[0]) == network.network_address
    except ValueError:
        raise Wrong(f"{shown(text)} is not a network; expected {_NETWORK}") from None
    if not exact:
        raise Wrong(f"{shown(text)} has bits set after its prefix; write {network}")
    # A sender is compared without its zone, so a zone here would have no effect.
    if "%" in text:
        raise Wrong(f"{shown(text)} has a zone; expected {_NETWORK}, without one")
    # The sender of an IPv4 packet is compared as IPv4, so such a network would never match.
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise Wrong(f"{shown(text)} is an IPv4 network in IPv6 form; write it as IPv4")
    return network


def read_reach(value: Value) -> Reach:
    """Read `internet`, `any` or a list of networks."""
    if value.node.kind == "seq":
        return value.each(_read_network, "a list of networks")
    if value.of("str", "internet, any or a list of networks").text == "any":
        return "any"
    if value.node.text != "internet":
        raise Wrong(f"is {shown(value.node.text)}; expected internet, any or a list of networks")
    return "internet"


def read_listen(value: Value) -> tuple[ListenAddress, ...]:
    """Read an address or a list of addresses that can all be bound at once."""
    if value.node.kind != "seq":
        return (_read_address(value),)
    taken: list[ListenAddress] = []
    for item in value.items("an address or a list of addresses"):
        address = item.attempt(_read_address, None)
        if address is None:
            continue
        # Found here with its place in the file; bind() would report it only when the daemon starts.
        rival = next((it for it in taken if _overlap(it, address)), None)
        if rival is not None:
            item.wrong(f"{address} overlaps with {rival} of this list; expected each address once")
        taken.append(address)
    return tuple(taken)


def _read_address(value: Value) -> ListenAddress:
    text = value.of("str", _ADDRESS).text
    try:
        name, port = parse_address(text)
        host: IPv4Address | IPv6Address | None = ip_address(name)
    except ValueError:
        host = None
    # Without brackets, the last part of ::1:2948 belongs to the address.
    if host is None or isinstance(host, IPv6Address) is not text.startswith("["):
        raise Wrong(f"is {shown(text)}; expected {_ADDRESS}: IPv6 in brackets, and no port above {MAX_PORT}")
    if isinstance(host, IPv6Address):
        # The kernel binds a link-local address only together with an interface.
        if host.scope_id is None and host.is_link_local:
            raise Wrong(f"{host} is link-local; expected its zone, such as [{host}%eth0]")
        if host.scope_id is not None and not re.fullmatch(_ZONE, host.scope_id):
            raise Wrong(f"has the zone {shown(host.scope_id)}; expected the name of an interface")
    return ListenAddress(str(host), port)


def _overlap(one: ListenAddress, other: ListenAddress) -> bool:
    """Return whether two addresses cannot both be bound; [::] leaves the IPv4 of a port to the IPv4 addresses."""
    # Port 0 is another free port for each socket, so two of them never collide.
    if one.port != other.port or not one.port or (":" in one.host) != (":" in other.host):
        return False
    return one.host == other.host or not {one.host, other.host}.isdisjoint({"::", "0.0.0.0"})  # noqa: S104


def read_command(value: Value) -> tuple[str, ...]:
    """Read an argument list: an absolute path, and arguments with known placeholders."""
    program, *arguments = value.items("a list of arguments (they are not split by a shell)")
    return program.attempt(_read_program, ""), *(it.attempt(_read_argument, "") for it in arguments)


def _read_program(value: Value) -> str:
    text = read_some_text(value, "an absolute path")
    if not text.startswith("/"):
        raise Wrong(f"is {shown(text)}; expected an absolute path")
    # A notification must not choose the program, whose path is checked before any arrives.
    if re.search(_PLACEHOLDER, text):
        raise Wrong("has a placeholder, which only the arguments after the program may have")
    return text


def _read_argument(value: Value) -> str:
    text = read_text(value, "an argument as text")
    for name in re.findall(_PLACEHOLDER, text):
        if name not in PLACEHOLDERS:
            raise Wrong(f"has the unknown placeholder {{{name[:40]}}}; expected one of {', '.join(PLACEHOLDERS)}")
    return text


def read_environment(value: Value) -> Mapping[str, str]:
    """Read variables for the hook, in a mapping of names to text."""
    environment: dict[str, str] = {}
    for key, found in value.entries():
        name = key.node.text
        if not re.fullmatch(_VARIABLE, name):
            key.wrong("is not a name of a variable; expected letters, digits and _, without a digit first")
        # Otherwise the file could replace a fact of the session.
        elif name.startswith(_OWN_VARIABLES):
            key.wrong(f"begins with {_OWN_VARIABLES}; dmnotid itself sets such variables")
        else:
            environment[name] = found.attempt(read_text, "")
            literal = re.search(_UNEXPANDED, environment[name])
            if literal:
                # A value can be a secret, of which no part is shown but these words.
                shown_part = literal[0] if literal[0].strip("${}()~") in _SHOWN else f"{literal[0][:1]}…"
                key.reader.add_warning(found, f"has {shown_part}, which is not expanded; write its value instead")
    return environment


def read_socket(value: Value) -> Path:
    """Read the absolute path of an AF_UNIX socket."""
    path = read_path(value).absolute()
    # The bound of sun_path counts octets in the encoding of file names, not characters.
    length = len(bytes(path))
    if length > MAX_SOCKET_PATH:
        raise Wrong(f"{shown(str(path))} has {length} octets; the address of a socket has at most {MAX_SOCKET_PATH}")
    return path


def read_control(value: Value) -> Path | Literal[False] | None:
    """Read `off` as False, or a mapping with the path of the control socket."""
    expected = "off, or a mapping such as {socket: PATH}"
    if value.node.kind == "bool":
        if read_boolean(value):
            raise Wrong(f"is {shown(value.node.text)}; expected {expected}")
        return False
    given = value.mapping(["socket"], expected).get("socket")
    if given is not None:
        return given.attempt(read_socket, None)
    # A mapping that only has unknown keys is a problem already.
    if not value.node.pairs:
        raise Wrong(f"is an empty mapping; expected {expected}")
    return None


def read_interfaces(value: Value) -> tuple[str, ...]:
    """Read a list of patterns for names of interfaces, as fnmatch takes them."""
    return value.each(_read_pattern, "a list of names")


def _read_pattern(value: Value) -> str:
    # A name without wildcards must be one that an interface can have.
    most = MAX_PATTERN if re.search(r"[*?\[]", value.node.text) else MAX_INTERFACE_NAME
    expected = f"the name of an interface, with * ? [...] if needed, at most {most} characters"
    # The kernel refuses these characters in the name of an interface, so no interface would match.
    return _read_matching(value, rf"[^\s/:]{{1,{most}}}", expected)
