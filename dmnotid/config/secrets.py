"""The secret of a server: its five forms, what is checked of one, and what is checked among all."""

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from dmnotid.config.checker import Reader, Value, read_path, read_some_text
from dmnotid.config.files import OPEN_TO_OTHERS, READABLE_BY_OTHERS, read_regular
from dmnotid.config.tree import Wrong

MIN_SECRET_OCTETS: Final = 16
"""A shorter secret is accepted with a warning."""

MAX_SECRET_OCTETS: Final = 4_096

_INLINE: Final = (".secret.text", ".secret.hex", ".secret.base64")


def without_line_break(octets: bytes) -> bytes:
    """Remove the one line break that editors and echo leave at the end of a file."""
    return octets.removesuffix(b"\n").removesuffix(b"\r") if octets.endswith(b"\n") else octets


def read_secret(value: Value) -> bytes | None:
    """Read a mapping with one of the five forms. Raises Wrong; problems of the form itself are added."""
    given = value.mapping(FORMS, "a mapping such as {file: PATH}", secretive=True)
    if len(given) != 1:
        # A mapping that only has unknown keys is a problem already.
        if given or not value.node.pairs:
            found = " and ".join(given) or "none of its keys"
            raise Wrong(f"has {found}; expected exactly one of {', '.join(FORMS)}")
        return None
    ((form, inner),) = given.items()
    secret = inner.attempt(FORMS[form], None)
    if secret is None:
        return None
    if not secret:
        inner.wrong(f"is empty; expected a secret of at least {MIN_SECRET_OCTETS} octets")
    elif len(secret) > MAX_SECRET_OCTETS:
        inner.wrong(f"has more than {MAX_SECRET_OCTETS} octets")
    elif len(secret) < MIN_SECRET_OCTETS:
        warning = f"has only {len(secret)} octets; a secret with fewer than {MIN_SECRET_OCTETS} can be guessed"
        value.reader.add_warning(inner, warning)
    if form == "text" and secret.endswith(b"\n"):
        warning = "ends with a line break, which belongs to the secret; write |- instead of | if it is not meant"
        value.reader.add_warning(inner, warning)
    return secret


def _read_text(value: Value) -> bytes:
    # Unlike other text, a secret may have any octet, NUL included.
    try:
        return value.free_text("text").encode()
    except UnicodeEncodeError:
        raise Wrong("has half of a surrogate pair; expected text") from None


def _read_hex(value: Value) -> bytes:
    text = value.free_text("hex")
    try:
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
    octets, mode = read_regular(path, MAX_SECRET_OCTETS + 2, value.reader.check_path)
    if mode & OPEN_TO_OTHERS:
        raise Wrong(f"{path} has mode {mode:04o}, so its group or others can read or write it; expected 0600 or 0400")
    return without_line_break(octets)


def _read_credential(value: Value) -> bytes:
    name = read_some_text(value, "the name of a credential")
    if "/" in name or name in {".", ".."}:
        raise Wrong("is a path; expected the name of a credential")
    if not value.reader.credentials:
        # Random octets pass every check, and differ from each other.
        return os.urandom(MAX_SECRET_OCTETS)
    directory = value.reader.environ.get("CREDENTIALS_DIRECTORY")
    if not directory:
        raise Wrong("$CREDENTIALS_DIRECTORY is not set; systemd sets it for services with LoadCredential=")
    return without_line_break(read_regular(Path(directory, name), MAX_SECRET_OCTETS + 2)[0])


FORMS: Final[dict[str, Callable[[Value], bytes]]] = {
    "text": _read_text,
    "hex": _read_hex,
    "base64": _read_base64,
    "file": _read_file,
    "credential": _read_credential,
}
"""The keys of a secret, each with its reader."""


def check_mode(reader: Reader, mode: int) -> None:
    """Warn if the configuration itself has a secret and other users can read the file."""
    inline = next((value for path, value in reader.given.items() if path.endswith(_INLINE)), None)
    if inline is not None and mode & READABLE_BY_OTHERS:
        warning = f"is a secret in a file that its group or others can read (mode {mode:04o}): chmod 600"
        reader.add_warning(inline, warning)


def check_distinct(reader: Reader, servers: Sequence[Mapping[str, Any]]) -> None:
    """Ensure that no secret equals or begins with the secret of another server.

    A notification without SERVER-ID belongs to the server whose secret its digest was made with.
    """
    # In sorted order, a secret can only begin with one of those kept here: each begins with the one before it.
    shorter: list[tuple[int, bytes]] = []
    for secret, index in sorted((it["secret"], at) for at, it in enumerate(servers) if it["secret"]):
        while shorter and not secret.startswith(shorter[-1][1]):
            shorter.pop()
        if shorter:
            other, beginning = shorter[-1]
            relation = "begins with" if index > other else "is the beginning of"
            relation = "equals" if secret == beginning else relation
            first, second = sorted((index, other))
            name = "" if servers[first]["id"] is None else f" ({servers[first]['id']!r})"
            message = f"{relation} the secret of servers[{first}]{name}; expected a different secret for each server"
            reader.given[f"servers[{second}].secret"].wrong(message)
        shorter.append((index, secret))
