"""What a DM session is, from its request to its end (5.3.4).

Times are seconds on a clock that never jumps, unless a name says otherwise.
"""

from enum import StrEnum
from typing import Literal, NamedTuple

from dmnotid.wire.notification import ConnectionType, Notification


class Connection(NamedTuple):
    """An available connection: its type (ANY if it is none of the three) and its network interface."""

    type: ConnectionType
    interface: str


class LastTry(NamedTuple):
    """The last try of a session: its connection, its start (POSIX seconds), and how it ended; None if not known."""

    connection: str | None = None
    interface: str | None = None
    started_at: float | None = None
    outcome: str | None = None


class SessionRequest(NamedTuple):
    """An accepted session whose row is not closed. Only the journal makes one, from a row.

    `session` is the number that log lines and the hook carry. `attempts` counts the tries begun so far. `received_at`
    is wall clock time (POSIX seconds). The session starts at `not_before` or later, and before `expires_at`.
    (`dmnotid test-hook` makes up a request to show it; that one is never queued.)
    """

    session: int
    server_id: str
    notification: Notification
    source: str
    received_at: float
    attempts: int
    not_before: float
    expires_at: float
    # For an operator alone: no decision depends on it.
    last_try: LastTry = LastTry()

    @property
    def server_id_from(self) -> Literal["given", "discovered"]:
        """Whether the package names its server, or the server was found by its secret or its address."""
        return "discovered" if self.notification.server_id is None else "given"

    def log_facts(self, attempt: int | None = None) -> dict[str, object]:
        """Return the facts that every log record of this session carries; `attempt` is the last try by default."""
        return {
            "session": self.session,
            "server_id": self.server_id,
            "notification_id": self.notification.notification_id,
            "attempt": self.attempts if attempt is None else attempt,
        }

    def with_time(self, more: float, least: float) -> "SessionRequest":
        """Return the same request with `more` seconds added before it expires; a negative number takes time away.

        Taking time away leaves it until `least`, or until its former expiry if that is earlier.
        """
        return self._replace(expires_at=max(self.expires_at + more, min(self.expires_at, least)))


class SessionStart(NamedTuple):
    """One try: this request over this connection; `attempt` counts from 1."""

    request: SessionRequest
    connection: Connection
    attempt: int


class Result(StrEnum):
    """How one try ended, as far as the next try depends on it."""

    DONE = "done"
    # The hook has exited with EX_CONFIG: a further try would end in the same way.
    REFUSED = "refused"
    FAILED = "failed"
    # The device's fault, not the session's: it spends no try.
    NOT_STARTED = "not started"


class Outcome(NamedTuple):
    """How one try ended; `detail` is for people ("exit 3", "killed by SIGKILL").

    `last_line` is the last line of output of a hook that failed.
    """

    result: Result
    detail: str
    last_line: str = ""

    @property
    def summary(self) -> str:
        """What a row keeps: the detail, and the last line, which often has the reason of a failure."""
        return f"{self.detail}: {self.last_line}" if self.last_line else self.detail


class Closed(StrEnum):
    """Why a session needs no further try."""

    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    # Not done within `sessions.expire_after`.
    EXPIRED = "expired"
    # By an operator.
    CANCELLED = "cancelled"


class PendingState(StrEnum):
    """The state of a session that is not closed, as an operator sees it."""

    # Its hook runs.
    RUNNING = "running"
    # The sessions before it have their turn first.
    QUEUED = "queued"
    # `min_interval` since the last try for its server is not over.
    RESTING = "resting"
    # Its last try failed.
    PAUSED = "paused"
    # None of its preferred connections is available.
    WAITING = "waiting"
    # Its server is not configured.
    HELD = "held"
    # The hook could not be started.
    HOOK = "hook"


class SessionView(NamedTuple):
    """A session as an operator sees it; all times are wall clock times (POSIX seconds).

    `state` is a value of `PendingState` or `Closed`, and `why` explains it in a sentence; in the journal of a daemon
    that does not run, a session that is not closed is `pending`. `pid` is the process of a hook that runs.

    `connection` and `interface` are those of the last try, `started_at` its start and `outcome` its end, if known.
    """

    session: int
    server_id: str
    notification_id: int
    state: str
    accepted_at: float
    source: str
    signed: bool
    attempts: int
    connection: str | None
    interface: str | None
    started_at: float | None
    outcome: str | None
    # Only a running daemon decides about these.
    preferred: tuple[str, ...] = ()
    next_at: float | None = None
    expires_at: float | None = None
    why: str = ""
    pid: int | None = None
    # Only a row of the journal has this.
    closed_at: float | None = None


class Limits(NamedTuple):
    """The bounds of the queue; times in seconds.

    At most `concurrency` sessions run at once, at most `max_pending` of one server wait, and a queued session
    expires after `expire_after`. At least `min_interval` lies between two starts for one server, tries included.
    """

    # Most DM clients can run one session at a time.
    concurrency: int = 1
    max_pending: int = 16
    expire_after: float = 7 * 86_400
    min_interval: float = 0
