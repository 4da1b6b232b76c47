"""The facts of a session that another process handed over a connection, checked before a command gets them."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from dmnotid.errors import HookError
from dmnotid.hook.facts import VERSION, Facts

MAX_REQUEST_OCTETS: Final = 1_048_576
"""Maximum size of a request. The largest notification takes a quarter of it."""

# More seconds than any clock has counted, and few enough digits to write into an environment.
_MAX_TIME: Final = 10**12


def read_request(octets: bytes) -> Facts:
    """Read the JSON object that `build_input` writes; it may have more keys. Raises HookError for anything else."""
    if len(octets) > MAX_REQUEST_OCTETS:
        raise _refusal(f"has more than {MAX_REQUEST_OCTETS} octets")
    # A unit of the template that is started by hand gets no session.
    if not octets.strip():
        raise _refusal("is empty")
    try:
        # RecursionError: brackets that are nested deeper than Python allows.
        found: Any = json.loads(octets.decode())
    except (ValueError, RecursionError) as error:
        raise _refusal(f"is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _refusal(f"is JSON of type {type(found).__name__}, an object is expected")
    if found.get("version") != VERSION:
        raise _refusal(f"has version {found.get('version')!r}, {VERSION} is expected")
    # Every fact goes into the command's environment or arguments, so a missing one would fail later and less clearly.
    for key, (fits, expected) in _KINDS.items():
        if key not in found:
            raise _refusal(f"has no key {key}")
        if not fits(found[key]):
            raise _refusal(f"has {found[key]!r} for {key}, {expected} is expected")
    facts: Facts = found
    return facts


def _refusal(problem: str) -> HookError:
    return HookError(f"the session on standard input {problem}", component="standard input")


def _is_number(value: object) -> bool:
    # bool is a subclass of int.
    return type(value) is int and value >= 0


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < _MAX_TIME  # type: ignore[operator] # narrowed by type()


def _is_text(value: object) -> bool:
    # A NUL can be in neither an argument nor an environment.
    return isinstance(value, str) and "\0" not in value


def _is_pair(value: object) -> bool:
    match value:
        case [index, validator]:
            return _is_number(index) and _is_text(validator)
    return False


def _is_list(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


_NUMBER: Final = (_is_number, "a whole number")
_TEXT: Final = (_is_text, "text")
_PAIRS: Final = (_is_list(_is_pair), "a list of pairs of a number and hex")

_KINDS: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "session": _NUMBER,
    "attempt": _NUMBER,
    "notification_id": _NUMBER,
    "server_id": _TEXT,
    "preferred_connections": (_is_list(_is_text), "a list of texts"),
    "requested_mos": (_is_list(_is_number), "a list of whole numbers"),
    "cached_mos": _PAIRS,
    "sent_at": (lambda value: value is None or _is_number(value), "a whole number or null"),
    "signed": (lambda value: isinstance(value, bool), "true or false"),
    "unknown_options": _PAIRS,
    "connection": _TEXT,
    "interface": _TEXT,
    "received_at": (_is_time, "POSIX seconds"),
    "source": _TEXT,
}
