"""How sessions are shown: rows of a table, and all facts of one."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dmnotid.cli.table import moment
from dmnotid.host.text import span
from dmnotid.policy.sessions import Closed
from dmnotid.sentences import shortened

TITLES: Final = ("SESSION", "SERVER", "ID", "AGE", "STATE", "TRY", "NEXT", "WHY")
"""The titles of a list of pending sessions."""
TITLES_OF_ALL: Final = ("SESSION", "SERVER", "ID", "ACCEPTED", "STATE", "TRY", "NEXT OR END", "WHY")

MAX_WHY: Final = 100
"""Maximum length of the last column, in characters."""

_ENDED: Final = frozenset({Closed.DONE, Closed.REFUSED, Closed.FAILED})

Session = Mapping[str, Any]
"""A session as the control socket describes it; times are POSIX seconds."""


def row(session: Session, now: float, *, times: bool = False) -> tuple[str, ...]:
    """Return the cells of a session in a table; with `times`, when it was accepted instead of how long ago."""
    accepted, closed = session["accepted_at"], session["closed"]
    return (
        str(session["session"]),
        session["server"],
        str(session["notification_id"]),
        moment(accepted, now) if times else span(now - accepted),
        session["state"],
        _tries(session, "/"),
        # One column, because a session never has both.
        moment(closed, now) if closed else next_try(session, now),
        # All of it is among the facts of that session.
        shortened(why(session), MAX_WHY),
    )


def _tries(session: Session, separator: str) -> str:
    # The journal of a stopped daemon does not have the maximum.
    most = session["attempts_most"]
    return str(session["attempts"]) if most is None else f"{session['attempts']}{separator}{most}"


def next_try(session: Session, now: float) -> str:
    """Return when the next try begins, if time alone decides that."""
    return f"in {span(session['next'] - now)}" if session["next"] and session["next"] > now else "-"


def why(session: Session) -> str:
    """Return why a session is in its state."""
    text = session["why"] or session["outcome"] or "-"
    # The other closed ones did not end with the end of their hook.
    return f"{text} over {_over(session)}" if session["state"] in _ENDED and session["interface"] else text


def _over(session: Session) -> str:
    return f"{session['interface']} ({session['connection']})"


def facts(session: Session) -> Iterator[tuple[str, str]]:
    """Yield all facts of a session with their names, and the commands that print its log."""
    number, server, notification_id = session["session"], session["server"], session["notification_id"]
    yield "session", str(number)
    yield "server", server
    yield "NOTIFICATION-ID", str(notification_id)
    yield "accepted", f"{moment(session['accepted_at'])} from {session['source']}"
    yield "signed", "yes" if session["signed"] else "no"
    if session["preferred"]:
        yield "prefers", ", ".join(session["preferred"])
    yield "state", session["state"]
    because = why(session)
    yield "because", because
    yield "tries", _tries(session, " of ")
    if session["started"]:
        yield "last try", f"{moment(session['started'])} over {_over(session)}"
    # Of an ended session, the reason usually is its outcome.
    if session["outcome"] and session["outcome"] not in because:
        yield "outcome", session["outcome"]
    for name, key in (("next try", "next"), ("expires", "expires"), ("closed", "closed")):
        if session[key]:
            yield name, moment(session[key])
    yield "log", f"journalctl -u dmnotid DMNOTID_SESSION={number}"
    # Repeats, which have no session of their own, are found by the id.
    fields = f"DMNOTID_SERVER_ID={server}", f"DMNOTID_NOTIFICATION_ID={notification_id}"
    yield "with repeats", f"journalctl -u dmnotid {' '.join(map(shlex.quote, fields))}"


def after_retry(before: Session, after: Session, now: float) -> str:
    """Return what a retry has changed: `session 607 of acme.example: running, eth0 (wireline) (was paused until …)`."""
    # Only a pause has an end that is known.
    until = f" until {moment(before['next'], now)}" if before["next"] else ""
    return f"{_named(after)}: {after['state']}, {why(after)} (was {before['state']}{until})"


def not_retried(session: Session) -> str:
    """Return why a retry has changed nothing."""
    return f"{_named(session)} is not paused: {session['state']}, {why(session)}"


def _named(session: Session) -> str:
    return f"session {session['session']} of {session['server']}"
