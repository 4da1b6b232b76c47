"""What a DM session is, from its request to its end (5.3.4).

Times are seconds on a clock that never jumps, unless a name says otherwise.
"""

from enum import StrEnum
from typing import NamedTuple

from dmnotid.wire.notification import ConnectionType, Notification


class Connection(NamedTuple):
    """A connection that is available: its type (ANY where it is none of the three) and its network interface."""

    type: ConnectionType
    interface: str


class SessionRequest(NamedTuple):
    """A session that was accepted and is not closed: made by the journal, from its row, and by nothing else.

    `session` is the number that log lines and the hook carry. `attempts` counts the tries begun so far. `received_at`
    is wall clock time (POSIX seconds). (The command line makes some up to show them; they are never run from a queue.)
    """

    session: int
    server_id: str
    notification: Notification
    source: str
    received_at: float
    attempts: int
    not_before: float
    expires_at: float

    def tried(self, attempts: int) -> "SessionRequest":
        """Return the same request after that many tries."""
        return self._replace(attempts=attempts)

    def later(self, not_before: float) -> "SessionRequest":
        """Return the same request, not to be tried before that time."""
        return self._replace(not_before=not_before)

    def with_time(self, more: float, least: float) -> "SessionRequest":
        """Return the same request with that much more time before it expires.

        With less time, it still has until `least`, if it had.
        """
        return self._replace(expires_at=max(self.expires_at + more, min(self.expires_at, least)))


class SessionStart(NamedTuple):
    """One try: this request over this connection; `attempt` counts from 1."""

    request: SessionRequest
    connection: Connection
    attempt: int


class Result(StrEnum):
    """How one try ended, as far as trying again goes."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"


class Outcome(NamedTuple):
    """How one try ended; `detail` is for people ("exit 3", "killed by SIGKILL")."""

    result: Result
    detail: str


class Closed(StrEnum):
    """Why a request needs no further try."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    EXPIRED = "expired"


class Limits(NamedTuple):
    """How many sessions run at once, wait per server, and how long (seconds) a request may wait for its end.

    `min_interval` is the time in seconds that must lie between two starts for one server, tries included.
    """

    concurrency: int = 1
    max_pending: int = 16
    expire_after: float = 7 * 86_400
    min_interval: float = 0
