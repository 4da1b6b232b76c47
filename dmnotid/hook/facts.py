"""What the session starter is told of one try: its facts, and the arguments, environment and input made of them."""

import json
import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from dmnotid.config.values import PLACEHOLDERS
from dmnotid.errors import HookError
from dmnotid.policy.sessions import SessionStart

VERSION: Final = 1
"""The `version` of the facts."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MAX_INPUT_OCTETS: Final = 1_048_576
"""The longest input that is read: the largest notification makes a quarter of it."""

Facts = Mapping[str, Any]
"""What is known of a try, as JSON holds it: the keys are those of `build_facts`."""

_ALL_TIME: Final = 10**12
"""More seconds than any clock has counted, and few enough to be written."""

_PLACEHOLDER: Final = rf"(?<!\$)\{{({'|'.join(PLACEHOLDERS)})\}}"


def build_facts(start: SessionStart) -> dict[str, Any]:
    """Return the facts of a try."""
    request, notification = start.request, start.request.notification
    return {
        "version": VERSION,
        "session": request.session,
        "attempt": start.attempt,
        "server_id": request.server_id,
        "notification_id": notification.notification_id,
        "connection": str(start.connection.type),
        "interface": start.connection.interface,
        "preferred_connections": list(map(str, notification.preferred_connections)),
        "requested_mos": list(notification.requested_mos),
        "cached_mos": [[index, validator.hex()] for index, validator in notification.cached_mos],
        "unknown_options": [[number, value.hex()] for number, value in notification.unknown_options],
        "sent_at": notification.sent_at,
        "received_at": round(request.received_at, 3),
        "signed": notification.signed,
        "source": request.source,
    }


def build_input(facts: Facts) -> str:
    """Return what the hook reads, on its standard input or from its connection: one JSON object and a newline."""
    return json.dumps(facts) + "\n"


def build_arguments(command: Sequence[str], facts: Facts) -> list[str]:
    """Return the argument list with the placeholders inside its arguments replaced."""
    return [re.sub(_PLACEHOLDER, lambda found: str(facts[found[1]]), argument) for argument in command]


def build_environment(facts: Facts, more: Mapping[str, str], home: str) -> dict[str, str]:
    """Return the hook's whole environment, with `more` in it: nothing of the daemon's own is handed on."""
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": home,
        **more,
        "DMNOTID_SESSION": str(facts["session"]),
        "DMNOTID_ATTEMPT": str(facts["attempt"]),
        "DMNOTID_SERVER_ID": facts["server_id"],
        "DMNOTID_NOTIFICATION_ID": str(facts["notification_id"]),
        "DMNOTID_CONNECTION": facts["connection"],
        "DMNOTID_INTERFACE": facts["interface"],
        "DMNOTID_PREFERRED": " ".join(facts["preferred_connections"]),
        "DMNOTID_REQ_MO": " ".join(map(str, facts["requested_mos"])),
        "DMNOTID_REQ_MO_CV": " ".join(f"{index}:{validator}" for index, validator in facts["cached_mos"]),
        "DMNOTID_SENT_AT": "" if facts["sent_at"] is None else str(facts["sent_at"]),
        "DMNOTID_RECEIVED_AT": f"{facts['received_at']:.3f}",
        "DMNOTID_SIGNED": "1" if facts["signed"] else "0",
        "DMNOTID_SOURCE": facts["source"],
    }


def find_home() -> str:
    """Return the home directory of this process's user, or `/` where no name service knows one."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:  # a user of a container or a unit that no file lists
        return "/"


@contextmanager
def as_file(text: str) -> Iterator[int]:
    """Put text into a file without a name: unlike a pipe it takes any length without blocking. Gives its number."""
    descriptor = os.memfd_create("notification")
    try:
        octets = text.encode()
        while octets:
            octets = octets[os.write(descriptor, octets) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


# --- The other way: facts that came over a connection ------------------------------------------------------------


def read_facts(octets: bytes) -> Facts:
    """Read what `build_input` made, which may have more keys. Raises HookError with what is expected instead."""
    try:
        found: Any = json.loads(octets.decode()) if len(octets) <= MAX_INPUT_OCTETS else None
    except (ValueError, RecursionError) as error:
        raise _refusal(f"is no JSON: {error}" if octets.strip() else "is empty") from error
    problem = _find_problem(found)
    if problem:
        raise _refusal(problem)
    facts: Facts = found
    return facts


def _find_problem(found: object) -> str:
    if not isinstance(found, dict):
        return f"is no JSON object of {MAX_INPUT_OCTETS} octets at most"
    if found.get("version") != VERSION:
        return f"is of version {found.get('version')!r}, {VERSION} is expected"
    for key, (fits, expected) in _KINDS.items():
        if key not in found:
            return f"{key}: is missing"
        if not fits(found[key]):
            return f"{key}: {found[key]!r}: {expected} expected"
    return ""


def _refusal(problem: str) -> HookError:
    return HookError(f"the session on standard input {problem}", component="standard input")


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < _ALL_TIME


def _is_text(value: object) -> bool:
    """Tell what can stand in an environment."""
    return isinstance(value, str) and "\0" not in value


def _is_list(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == len(("index", "hex")) and _is_number(value[0]) and _is_text(value[1])
    )


_NUMBER: Final = (_is_number, "a whole number is")
_TEXT: Final = (_is_text, "text is")
_PAIRS: Final = (_is_list(_is_pair), "a list of pairs of a number and hex is")

_KINDS: Final[Mapping[str, tuple[Callable[[object], bool], str]]] = {
    "session": _NUMBER,
    "attempt": _NUMBER,
    "server_id": _TEXT,
    "notification_id": _NUMBER,
    "connection": _TEXT,
    "interface": _TEXT,
    "preferred_connections": (_is_list(_is_text), "a list of texts is"),
    "requested_mos": (_is_list(_is_number), "a list of whole numbers is"),
    "cached_mos": _PAIRS,
    "unknown_options": _PAIRS,
    "sent_at": (lambda value: value is None or _is_number(value), "a whole number or null is"),
    "received_at": (_is_time, "POSIX seconds are"),
    "signed": (lambda value: isinstance(value, bool), "true or false is"),
    "source": _TEXT,
}
