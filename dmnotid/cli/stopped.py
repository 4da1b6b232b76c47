"""The journal of a daemon that does not run, as `dmnotid status` and `dmnotid sessions` show it."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from dmnotid.cli.asking import EXIT_DOWN, EXIT_FORBIDDEN
from dmnotid.cli.session_text import Session
from dmnotid.cli.status_text import describe_journal, describe_session
from dmnotid.cli.table import columns, count_pending, moment
from dmnotid.control.client import Failed
from dmnotid.control.interface import session_facts
from dmnotid.errors import JournalError
from dmnotid.host.text import printable, span
from dmnotid.journal.listing import view_of
from dmnotid.journal.reading import JournalCopy, read_copy
from dmnotid.journal.rows import PENDING, Row, shown_time

_TITLES: Final = ("SERVER", "HEARD", "PENDING", "LAST SESSION")


def show_copy(directory: Path, show: Callable[[JournalCopy], object]) -> int:
    """Show a journal, and return the exit status: 3, or 4 if this user may not read it."""
    try:
        with read_copy(directory) as journal:
            show(journal)
    except JournalError as error:
        print(printable(str(error)), file=sys.stderr)
        # Even a journal that cannot be read does not change that the daemon is down.
        return EXIT_FORBIDDEN if isinstance(error.__cause__, PermissionError) else EXIT_DOWN
    return EXIT_DOWN


def print_journal(journal: JournalCopy) -> None:
    """Print when each server was heard, what is pending, and the last session."""
    now = time.time()
    rows = [row for row in journal.rows() if row.state == PENDING]
    pending = Counter(row.server_id for row in rows)
    count, oldest = journal.extent()
    # Failed operations are counted by the running daemon, not in the journal.
    facts = {"octets": journal.octets, "remembered": count, "oldest": oldest, "errors": 0}
    # The copy may be old: the daemon can have been down for weeks.
    written = moment(journal.written_at, now)
    print(printable(f"journal   {journal.file} as of {written}{describe_journal(facts, now)}"))
    last, heard = journal.last_sessions(), journal.last_accepted
    # Times are kept longer than sessions, and sessions longer than they are pending.
    servers = sorted({*heard, *last, *pending})
    print()
    lines = []
    for server in servers:
        at, row = heard.get(server), last.get(server)
        # Which servers are configured is not in the journal either.
        session = {"last_session": None if row is None else session_of(row), "held_back": False}
        ago = "never" if at is None else f"{span(now - at)} ago"
        lines.append((server, ago, str(pending[server]), describe_session(session, now)))
    print("\n".join(columns([_TITLES, *lines], right=[2])))
    print(f"\n{count_pending(len(rows), min((shown_time(row.received_at) for row in rows), default=None), now)}")


def find_sessions(journal: JournalCopy, wanted: Mapping[str, Any]) -> list[Session]:
    """Return the sessions that match the parameters of the method `Sessions`. Raises Failed as the daemon does."""
    session, server = wanted["session"], wanted["server"]
    # As in the daemon: a number alone finds a closed session too.
    closed_too = session is not None or "states" in wanted
    found = [
        session_of(row)
        for row in journal.rows(wanted.get("since"))
        if session in {None, row.session} and server in {None, row.server_id} and (closed_too or row.state == PENDING)
    ]
    if session is not None and not found:
        raise Failed("NoSuchSession", {"session": session})
    return found


def session_of(row: Row) -> Session:
    """Return a row in the form of the control socket."""
    return session_facts(view_of(row), None)
