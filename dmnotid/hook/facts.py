"""The facts of one try, and the arguments, environment and standard input that the hook receives them as."""

import json
import os
import pwd
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dmnotid.config.values import PLACEHOLDERS
from dmnotid.policy.sessions import SessionStart
from dmnotid.wire.notification import Notification

VERSION: Final = 1
"""The `version` of the facts. A later one may add keys."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Facts = Mapping[str, Any]
"""The facts of a try in JSON's types; the keys are those of `session_facts`."""

# `${server_id}` is left alone: a shell that the command names may have a variable of that name.
_PLACEHOLDER: Final = rf"(?<!\$)\{{({'|'.join(PLACEHOLDERS)})\}}"


def package_facts(notification: Notification) -> dict[str, Any]:
    """Return the fields of a package in JSON's types; cache validators and unknown Options are in hex."""
    return {
        "notification_id": notification.notification_id,
        "server_id": notification.server_id,
        "preferred_connections": list(map(str, notification.preferred_connections)),
        "requested_mos": list(notification.requested_mos),
        # In hex, because JSON has no type for octets.
        "cached_mos": [[index, validator.hex()] for index, validator in notification.cached_mos],
        "sent_at": notification.sent_at,
        "signed": notification.signed,
        "unknown_options": [[number, value.hex()] for number, value in notification.unknown_options],
    }


def session_facts(start: SessionStart) -> dict[str, Any]:
    """Return the facts of a try: those of its package, its connection and its place in the queue."""
    request = start.request
    return {
        "version": VERSION,
        "session": request.session,
        "attempt": start.attempt,
        **package_facts(request.notification),
        # A package may name no server; the session always has one.
        "server_id": request.server_id,
        "server_id_from": request.server_id_from,
        "connection": str(start.connection.type),
        "interface": start.connection.interface,
        # Milliseconds, as the environment has them.
        "received_at": round(request.received_at, 3),
        "source": request.source,
    }


def build_input(facts: Facts) -> str:
    """Return the hook's input, on its standard input or over its connection: one JSON object and a newline."""
    # Without an indent, JSON has no newline inside: a reader of lines gets all of it as one.
    return json.dumps(facts) + "\n"


def build_arguments(command: Sequence[str], facts: Facts) -> list[str]:
    """Return the argument list with the placeholders inside its arguments replaced."""
    # One pass: a placeholder inside a replaced value stays as it is.
    return [re.sub(_PLACEHOLDER, lambda found: str(facts[found[1]]), argument) for argument in command]


def build_environment(facts: Facts, more: Mapping[str, str], home: str) -> dict[str, str]:
    """Return the hook's whole environment with `more` added; the daemon's own environment is not inherited."""
    return {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "HOME": home,
        # These replace the ones above, and never those below.
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
        # Always there, so that a hook in sh may use `set -u`.
        "DMNOTID_SENT_AT": "" if facts["sent_at"] is None else str(facts["sent_at"]),
        "DMNOTID_RECEIVED_AT": f"{facts['received_at']:.3f}",
        "DMNOTID_SIGNED": "1" if facts["signed"] else "0",
        "DMNOTID_SOURCE": facts["source"],
    }


def find_home() -> str:
    """Return the home directory of this process's user, or `/` if the user is not listed."""
    try:
        return from_locale(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:  # a user of a container or of a unit
        return "/"


def from_locale(text: str) -> str:
    """Return a text that Python decoded by the locale (an argument, a home directory) as UTF-8 has it."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")
