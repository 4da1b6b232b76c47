"""Every exception that dmnotid raises on purpose.

DmnotidError
├─ Discard                    the datagram ends here; `reason` is a stable word
│  ├─ DecodeError             what is wrong with the octets, and where
│  │  ├─ Truncated            truncated
│  │  ├─ TrailingOctets       trailing-octets
│  │  ├─ MalformedField       malformed-field
│  │  └─ UnsupportedVersion   unsupported-version
│  └─ Refusal                 well-formed, but not for this device
│     ├─ NotAPush             not-a-push
│     ├─ PushHeaderTooLong    push-header-too-long
│     ├─ ContentTypeMismatch, ApplicationIdMissing, ApplicationIdMismatch, ApplicationIdConflict
│     ├─ UnknownServer, ServerUndiscovered, SourceNotAllowed
│     ├─ SecretNotProvisioned, DigestMismatch, DigestMissing
│     ├─ Stale, FromTheFuture
│     └─ Duplicate, QueueFull
├─ NotTried                   the datagram ends here unjudged: no `reason`, it is lost
├─ ConfigError                every problem of a configuration, each with its place
├─ UntrustedPath              a file that another user can change, or a path that can't be followed
├─ UsageError                 a command line that asks for what can't be done
├─ EndpointError              a socket can't be opened
├─ JournalError               the durable queue can't be used
│  └─ JournalDamaged          … because its file is damaged: it is set aside for a new one
└─ HookError                  a hook can't be started
"""

from typing import ClassVar, NamedTuple, Self

EXCERPT_OCTETS = 16
"""How many octets of a datagram an error shows at most."""


def shortened(text: str, most: int) -> str:
    """Return text for display, cut after `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


class DmnotidError(Exception):
    """The root of all that is raised on purpose."""


class Discard(DmnotidError):
    """A datagram ends its walk here.

    `reason` is the stable word that logs, counters and `dmnotid decode` show. `server_id` and `notification_id` are
    what the datagram itself says, as far as it was read: ink from the network, not yet to be believed.
    """

    reason: ClassVar[str] = "discarded"
    server_id: str | None = None
    notification_id: int | None = None


class DecodeError(Discard):
    """Octets that are not what the specification asks for.

    `pdu` names what was read ("Push PDU" or "DM Notification"), `field` the field as its specification spells it,
    `offset` the octet of that PDU at which the problem stands (from 0), `octets` the whole PDU.
    """

    def __init__(self, pdu: str, field: str, offset: int, problem: str, octets: bytes = b"") -> None:
        """Remember the place; the sentence is built when somebody reads it."""
        super().__init__(pdu, field, offset, problem)
        self.pdu = pdu
        self.field = field
        self.offset = offset
        self.problem = problem
        self.excerpt = octets[offset : offset + EXCERPT_OCTETS]
        self._more = len(octets) > offset + EXCERPT_OCTETS

    def moved(self, by: int) -> Self:
        """Return this error counted from `by` octets before: what was cut out of a PDU is told from the PDU's start."""
        self.offset += by
        return self

    def __str__(self) -> str:
        """`DM Notification: Option Value at octet 35: needs 36, 35 left [00 00 03 e8 …]`."""
        sentence = f"{self.pdu}: {self.field} at octet {self.offset}: {self.problem}"
        if not self.excerpt:
            return sentence
        return f"{sentence} [{self.excerpt.hex(' ')}{' …' if self._more else ''}]"


class Truncated(DecodeError):
    """The octets end, or a slice of them, before the field does."""

    reason = "truncated"


class TrailingOctets(DecodeError):
    """Octets follow the last Option: what a length-extension forgery always leaves behind."""

    reason = "trailing-octets"


class MalformedField(DecodeError):
    """A field is there in full and its octets are not legal."""

    reason = "malformed-field"


class UnsupportedVersion(DecodeError):
    """VER is not 2 (DM 1.3 shares Content-Type and Application-ID, not the package)."""

    reason = "unsupported-version"


class Refusal(Discard):
    """Well-formed octets that this device doesn't act on."""


class NotAPush(Refusal):
    """A WSP PDU other than Push."""

    reason = "not-a-push"


class PushHeaderTooLong(Refusal):
    """HeadersLen above `push.max_header_octets` (6.1)."""

    reason = "push-header-too-long"


class ContentTypeMismatch(Refusal):
    """A push of something else than a DM Notification."""

    reason = "content-type-mismatch"


class ApplicationIdMissing(Refusal):
    """No X-Wap-Application-Id: such a push is for the browser (wml.ua)."""

    reason = "application-id-missing"


class ApplicationIdMismatch(Refusal):
    """A push for another application."""

    reason = "application-id-mismatch"


class ApplicationIdConflict(Refusal):
    """Two X-Wap-Application-Id fields that don't agree."""

    reason = "application-id-conflict"


class UnknownServer(Refusal):
    """SERVER-ID names no configured server."""

    reason = "unknown-server"


class ServerUndiscovered(Refusal):
    """SERVER-ID is absent, and none or more than one server can be meant."""

    reason = "server-undiscovered"


class SourceNotAllowed(Refusal):
    """The sender's address is outside the server's `sources`."""

    reason = "source-not-allowed"


class SecretNotProvisioned(Refusal):
    """Signed, for a server without a secret."""

    reason = "secret-not-provisioned"


class DigestMismatch(Refusal):
    """SHA256-DIGEST was not made with the server's secret over these octets."""

    reason = "digest-mismatch"


class DigestMissing(Refusal):
    """Unsigned, and the server must sign."""

    reason = "digest-missing"


class Stale(Refusal):
    """Older than `freshness.max_age`."""

    reason = "stale"


class FromTheFuture(Refusal):
    """Further ahead of the clock than `freshness.max_skew`."""

    reason = "from-the-future"


class Duplicate(Refusal):
    """A NOTIFICATION-ID of this server was accepted before (5.1.4).

    `session` is the number of the one that was accepted. `same_content` is False where the octets differ from its
    own: the server lost its counter.
    """

    reason = "duplicate"

    def __init__(self, session: int, *, same_content: bool) -> None:
        """Remember which; the sentence is built when somebody reads it."""
        super().__init__(session)
        self.session = session
        self.same_content = same_content

    def __str__(self) -> str:
        """Write `accepted before as session 12`."""
        return f"accepted before as session {self.session}{'' if self.same_content else ', with other content'}"


class QueueFull(Refusal):
    """The server has `sessions.max_pending` sessions waiting; nothing is remembered of this one."""

    reason = "queue-full"


class NotTried(DmnotidError):
    """Too much of the time went into digests by trial already: nobody judged this notification, so it is no Discard."""


class ConfigProblem(NamedTuple):
    """One thing that is wrong with a configuration, and where (line and column from 1; 0 where no line is at fault)."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        """`FILE:LINE:COLUMN: servers[1].secret: what is wrong and what is expected`."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class ConfigError(DmnotidError):
    """A configuration that can't be used; `problems` holds all that is wrong with it."""

    def __init__(self, problems: tuple[ConfigProblem, ...]) -> None:
        """At least one problem."""
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        """One problem a line."""
        return "\n".join(map(str, self.problems))


class UntrustedPath(DmnotidError):
    """A path that another user can change, or that leads to no usable file.

    `component` is the file, directory or link that is at fault; `problem` says what is wrong with it, and the way out.
    """

    def __init__(self, component: str, problem: str) -> None:
        """Keep both; the sentence is built in `__str__`."""
        super().__init__(component, problem)
        self.component = component
        self.problem = problem

    def __str__(self) -> str:
        """`/srv/hook: writable by others: chmod go-w /srv/hook`."""
        return f"{self.component}: {self.problem}"


class UsageError(DmnotidError):
    """A command line whose words don't go together."""


class EndpointError(DmnotidError):
    """A socket to receive on can't be opened."""


class JournalError(DmnotidError):
    """The durable queue can't be opened, read or written."""


class JournalDamaged(JournalError):
    """The file is there and is no journal any more."""


class HookError(DmnotidError):
    """A hook that can't be started. `component` is the part of its path that is at fault, where one is."""

    def __init__(self, message: str, *, component: str | None = None) -> None:
        """`message` as for any exception."""
        super().__init__(message)
        self.component = component
