"""The secrets of a server: their five forms, what is checked of one, and what is checked among all.

A secret is read after the rest of the file, and only if the caller needs it: another server's may be unreadable here.
"""

import base64
import os
import stat
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from dmnotid.config.checker import Reader, Value, read_path, read_some_text
from dmnotid.config.files import is_private, read_regular
from dmnotid.config.kinds import read_last_day
from dmnotid.config.tree import Wrong, find_invisible
from dmnotid.errors import ConfigProblem

MIN_SECRET_OCTETS: Final = 16
"""A shorter secret is accepted with a warning."""

MAX_SECRET_OCTETS: Final = 4_096
"""A longer file is not a secret: the path is wrong."""

SECRET_KEYS: Final = ("secret", "former_secret")
"""The keys of a server that have a secret."""

Wanted = Callable[[str | None, str, str], bool]
"""Decides by SERVER-ID, key (`secret` or `former_secret`) and form whether a secret is read."""

Unread = Callable[[ConfigProblem], None]
"""Is called with the problem of each secret in a file or a credential that cannot be read."""

_MARKS: Final = (BOM_UTF8, BOM_UTF16_LE, BOM_UTF16_BE)
# Paths of secrets whose octets are in the configuration file itself.
_INLINE: Final = tuple(f".{kind}.{form}" for kind in SECRET_KEYS for form in ("text", "hex", "base64"))


class Source(NamedTuple):
    """Where a secret is read from: the form, the value of its key, and the end of a former secret (POSIX seconds)."""

    form: str
    value: Value
    until: float | None = None


def without_line_break(octets: bytes) -> bytes:
    """Remove the one line break, LF or CR LF, that editors and echo leave at the end of a file."""
    return octets.removesuffix(b"\n").removesuffix(b"\r") if octets.endswith(b"\n") else octets


def read_secret(value: Value) -> Source | None:
    """Read a mapping with one of the five forms, but not the secret itself. Raises Wrong."""
    return _read_source(value, value.mapping(FORMS, "a mapping such as {file: PATH}", secretive=True))


def read_former_secret(value: Value) -> Source | None:
    """Read the same with an optional `until`. Raises Wrong."""
    given = value.mapping([*FORMS, "until"], "a mapping such as {file: PATH, until: 2026-12-31}", secretive=True)
    last = given.pop("until", None)
    until = None if last is None else last.attempt(read_last_day, None)
    source = _read_source(value, given)
    return None if source is None else source._replace(until=until)


def _read_source(value: Value, given: Mapping[str, Value]) -> Source | None:
    if len(given) != 1:
        # A mapping that only has unknown keys is a problem already.
        if given or value.reader.sound(value.path):
            found = " and ".join(given) or "none of its keys"
            raise Wrong(f"has {found}; expected exactly one of {', '.join(FORMS)}")
        return None
    ((form, inner),) = given.items()
    return Source(form, inner)


def read_octets(server: Mapping[str, Any], kind: str, wanted: Wanted, unread: Unread | None) -> bytes | None:
    """Read a secret of a server; if it is wrong, add the problem, or hand it to `unread`, and return None."""
    source: Source | None = server[kind]
    if source is None:
        return None
    value = source.value
    if not wanted(server["id"], kind, source.form):
        # The name is a part of the file, which is checked in any case.
        if source.form == "credential":
            value.attempt(_credential_name, "")
        # Random octets pass every check, and differ from each other.
        return os.urandom(MAX_SECRET_OCTETS)
    try:
        octets = _bounded(FORMS[source.form](value))
    except Wrong as wrong:
        if unread is None or source.form not in {"file", "credential"}:
            value.wrong(str(wrong))
        else:
            unread(value.problem(str(wrong)))
        return None
    # Accepted nevertheless: the server decides which octets are the secret.
    for doubt in _doubts(source, octets):
        value.reader.add_warning(value, doubt)
    return octets


def _bounded(octets: bytes) -> bytes:
    if not octets:
        raise Wrong(f"is empty; expected a secret of at least {MIN_SECRET_OCTETS} octets")
    if len(octets) > MAX_SECRET_OCTETS:
        raise Wrong(f"has more than {MAX_SECRET_OCTETS} octets")
    return octets


def _doubts(source: Source, octets: bytes) -> Iterator[str]:
    """Yield what is probably unintended about the octets of a secret."""
    if len(octets) < MIN_SECRET_OCTETS:
        yield f"has only {len(octets)} octets; a secret with fewer than {MIN_SECRET_OCTETS} can be guessed"
    if source.value.node.commented and source.form == "text":
        yield "ends before a comment; put the secret in quotes if the # belongs to it"
    if source.form in {"hex", "base64"}:
        return
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        # Octets that are not text are meant as they are, but for a mark of UTF-16.
        text = ""
    if octets.startswith(_MARKS):
        yield "begins with a byte order mark, which belongs to the secret; save the file without it if it is not meant"
    elif source.form != "text" and (found := find_invisible(text)):
        yield f"has {found}, which is invisible and belongs to the secret"
    if text.endswith("\n") and source.form == "text":
        yield "ends with a line break, which belongs to the secret; write |- instead of | if it is not meant"
    elif text[-1:].isspace():
        yield "ends with white space, which belongs to the secret; delete it if it is not meant"


def _read_text(value: Value) -> bytes:
    # Unlike other text, a secret may have any octet, NUL included.
    try:
        return value.free_text("text").encode()
    except UnicodeEncodeError:
        raise Wrong("has half of a surrogate pair; expected text") from None


def _read_hex(value: Value) -> bytes:
    text = value.free_text("hex")
    try:
        # fromhex() skips white space, so hex in groups can be pasted.
        return bytes.fromhex(text)
    except ValueError:
        raise Wrong("is not hex; expected pairs of hex digits, with or without spaces between them") from None


def _read_base64(value: Value) -> bytes:
    text = value.free_text("base64")
    try:
        octets = base64.b64decode(text)
    except ValueError:
        octets = None
    # Decoding accepts foreign characters and left-over bits; encoding the result again reveals them.
    if octets is None or base64.b64encode(octets).decode() != text:
        raise Wrong("is not base64; expected its strict form: A-Z a-z 0-9 + / with = at the end and no spaces")
    return octets


def _read_file(value: Value) -> bytes:
    path = read_path(value)
    # Two octets more: a line break does not count.
    octets, found = read_regular(path, MAX_SECRET_OCTETS + 2, value.reader.check_path)
    if not is_private(found):
        mode = f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid} and group {found.st_gid}"
        usual = f"or root as owner, mode 0640 or 0440 and dmnotid's own group ({os.getegid()})"
        raise Wrong(f"{mode}, so other users can read or write it; expected 0600 or 0400, {usual}")
    return without_line_break(octets)


def _credential_name(value: Value) -> str:
    name = read_some_text(value, "the name of a credential")
    # A path would lead out of the directory of credentials.
    if "/" in name or name in {".", ".."}:
        raise Wrong("is a path; expected the name of a credential")
    return name


def _read_credential(value: Value) -> bytes:
    name = _credential_name(value)
    directory = value.reader.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise Wrong("$CREDENTIALS_DIRECTORY is not set; systemd sets it for services with LoadCredential=")
    # systemd makes the directory accessible to the user of the service alone, so neither path nor mode is checked.
    return without_line_break(read_regular(Path(directory, name), MAX_SECRET_OCTETS + 2)[0])


FORMS: Final[dict[str, Callable[[Value], bytes]]] = {
    "text": _read_text,
    "hex": _read_hex,
    "base64": _read_base64,
    "file": _read_file,
    "credential": _read_credential,
}
"""The keys of a secret, each with its reader."""


def check_mode(reader: Reader, found: os.stat_result) -> None:
    """Warn if the configuration itself has a secret and other users can read the file."""
    inline = next((value for path, value in reader.given.items() if path.endswith(_INLINE)), None)
    if inline is not None and not is_private(found):
        mode = f"mode {stat.S_IMODE(found.st_mode):04o}"
        reader.add_warning(inline, f"is a secret in a file that its group or others can read ({mode}): chmod 600")


def check_distinct(reader: Reader, servers: Sequence[Mapping[str, Any]]) -> None:
    """Ensure that no secret equals or begins with the secret of another server, nor equals another of its own server.

    A notification without SERVER-ID belongs to the server whose secret its digest was made with.
    """
    # The digest covers secret and package without a border between them: a digest made with a secret that begins with
    # another secret also fits that other one, with the rest of the secret as the beginning of the package.
    # In sorted order, a secret can only begin with those kept here: each begins with the one before it.
    shorter: list[tuple[bytes, tuple[int, int]]] = []
    secrets = [
        (it[kind], (at, rank)) for at, it in enumerate(servers) for rank, kind in enumerate(SECRET_KEYS) if it[kind]
    ]
    for secret, place in sorted(secrets):
        while shorter and not secret.startswith(shorter[-1][0]):
            shorter.pop()
        # The secrets of one server may begin alike: it is the server in either case.
        rivals = [it for it in shorter if it[1][0] != place[0] or it[0] == secret]
        if rivals:
            beginning, other = rivals[-1]
            relation = "begins with" if place > other else "is the beginning of"
            relation = "equals" if secret == beginning else relation
            (first, first_rank), (second, rank) = sorted((place, other))
            name = "" if servers[first]["id"] is None else f" ({servers[first]['id']!r})"
            kind = SECRET_KEYS[first_rank].replace("_", " ")
            expected = "expected a different secret for each server" if first != second else "expected another one"
            message = f"{relation} the {kind} of servers[{first}]{name}; {expected}"
            reader.given[f"servers[{second}].{SECRET_KEYS[rank]}"].wrong(message)
        shorter.append((secret, place))
