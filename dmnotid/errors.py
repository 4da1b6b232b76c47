"""The exceptions that the rooms of dmnotid raise for one another.

DmnotidError
├─ Discard                    the datagram ends here; `reason` is a stable word
│  ├─ DecodeError             octets that break the specification, with field and offset
│  │  └─ Truncated, TrailingOctets, MalformedField, UnsupportedVersion
│  └─ Refusal                 well-formed, but not for this device
│     ├─ PushTooLong, NotAPush, PushHeaderTooLong
│     ├─ ContentTypeMismatch, ApplicationIdMissing, ApplicationIdMismatch, ApplicationIdConflict
│     ├─ UnknownServer, ServerUndiscovered, SourceNotAllowed
│     ├─ SecretNotProvisioned, DigestMismatch, DigestMissing
│     ├─ Stale, FromTheFuture
│     └─ Duplicate, QueueFull
├─ ConfigError                every problem of a configuration, each with its place
├─ UntrustedPath              a path that another user can change
│  └─ UnusablePath            a path that does not lead to a usable file
├─ EndpointError              a socket can't be opened
├─ JournalError               the durable queue can't be used
│  └─ JournalDamaged          … because its file is damaged; it is set aside for a new one
├─ NoSuchSession, NotPending  a session that can't be cancelled or retried: it is unknown, or in another state
│  └─ NotKept                 … because its notification was not kept
└─ HookError                  a hook can't be started

Those of commands, bearers and the control socket are where they are raised. An exception carries its facts as
attributes and builds its sentence in `__str__`: most discards are counted, and never written out.
"""

from collections.abc import Iterable
from typing import ClassVar, Final, NamedTuple, Self

from dmnotid.sentences import Facts, show_id, show_time, show_value

EXCERPT_OCTETS: Final = 16
"""Maximum number of octets of a datagram that an error shows."""


class DmnotidError(Exception):
    """The root of every exception of this module."""


class Discard(DmnotidError):
    """A datagram is discarded.

    `reason` is the stable word that logs, counters and `dmnotid decode` show. `server_id` and `notification_id` are
    claims of the datagram, as far as it was decoded; nothing has verified them.
    """

    reason: ClassVar[str] = "discarded"
    # Facts of the walk, not of a refusal: only the annotations of a refusal's own class are its facts.
    server_id: str | None = None
    notification_id: int | None = None

    def __init_subclass__(cls, *, reason: str = "") -> None:
        # A class without a reason of its own groups others.
        cls.reason = reason or cls.reason


class DecodeError(Discard):
    """Octets that the specification does not allow.

    `pdu` is "Push PDU" or "DM Notification", `field` the field as its specification spells it, `offset` the octet of
    that PDU (from 0) with the problem, and `octets` the whole PDU.
    """

    def __init__(self, pdu: str, field: str, offset: int, problem: str, octets: bytes = b"") -> None:
        super().__init__(pdu, field, offset, problem)
        self.pdu = pdu
        self.field = field
        self.offset = offset
        self.problem = problem
        # Not the octets themselves: an error may be kept long after its datagram.
        self.excerpt = octets[offset : offset + EXCERPT_OCTETS]
        # Whether the excerpt ends before the octets do.
        self._more = len(octets) > offset + EXCERPT_OCTETS

    def moved(self, by: int) -> Self:
        """Add `by` to the offset and return this error: the octets were a slice of the PDU from octet `by`."""
        self.offset += by
        return self

    def __str__(self) -> str:
        """`DM Notification: Option Value at octet 35: needs 36 octets, 35 are left [00 00 03 e8 …]`."""
        excerpt = f" [{self.excerpt.hex(' ')}{' …' if self._more else ''}]" if self.excerpt else ""
        return f"{self.pdu}: {self.field} at octet {self.offset}: {self.problem}{excerpt}"


class Truncated(DecodeError, reason="truncated"):
    """The octets, or a slice of them, end before the field does."""


class TrailingOctets(DecodeError, reason="trailing-octets"):
    """Octets follow the last Option: every length-extension forgery leaves some."""


class MalformedField(DecodeError, reason="malformed-field"):
    """A field is complete, and its octets are not legal."""


class UnsupportedVersion(DecodeError, reason="unsupported-version"):
    """VER is not 2: DM 1.3 has the same Content-Type and Application-ID, but another package."""


class Refusal(Facts, Discard):
    """Well-formed octets that this device does not act on."""


class NotAPush(Refusal, reason="not-a-push"):
    """A WSP PDU of another type than Push, or an SMS whose user data header ends at octet `sms_header` (0 for none)."""

    pdu_type: int
    sms_header: int = 0

    def __str__(self) -> str:
        # Over SMS a user data header comes before the push, and a message copied from a modem still has it.
        header = f"; the octets before octet {self.sms_header} look like an SMS user data header, leave them out"
        return f"the PDU type is 0x{self.pdu_type:02x}, Push is expected{header if self.sms_header else ''}"


class PushTooLong(Refusal, reason="push-too-long"):
    """A datagram of more than `push.max_octets`; its octets after the first one too many were not read."""

    sentence = "the datagram has more than {most} octets, the limit of push.max_octets"
    most: int


class PushHeaderTooLong(Refusal, reason="push-header-too-long"):
    """HeadersLen is above `push.max_header_octets` (6.1)."""

    sentence = "the push headers have {octets} octets, at most {most} are expected"
    octets: int
    most: int


class ContentTypeMismatch(Refusal, reason="content-type-mismatch"):
    """The content of a push is not a DM Notification."""

    content_type: int | str

    def __str__(self) -> str:
        # In hex, as the tables of WSP list well-known media types.
        return f"Content-Type is {show_value(self.content_type, '#04x')}, a DM Notification is expected"


class ApplicationIdMissing(Refusal, reason="application-id-missing"):
    """A push without X-Wap-Application-Id is for the browser (wml.ua)."""

    sentence = "X-Wap-Application-Id is missing, which means the browser (wml.ua)"


class ApplicationIdMismatch(Refusal, reason="application-id-mismatch"):
    """A push for another application."""

    application_id: int | str

    def __str__(self) -> str:
        return f"X-Wap-Application-Id is {show_id(self.application_id)}, the integer 7 or its URI is expected"


class ApplicationIdConflict(Refusal, reason="application-id-conflict"):
    """X-Wap-Application-Id fields with different values."""

    application_ids: Iterable[int | str]

    def __str__(self) -> str:
        # A set has no order, and equal conflicts must give equal sentences.
        return f"X-Wap-Application-Id is given as {' and '.join(sorted(map(show_id, self.application_ids)))}"


class UnknownServer(Refusal, reason="unknown-server"):
    """SERVER-ID names no configured server."""

    # The id comes from the network: !r escapes its control characters.
    sentence = "no server {server!r} is configured"
    server: str


class ServerUndiscovered(Refusal, reason="server-undiscovered"):
    """SERVER-ID is absent, and the server can't be derived from the rest."""

    # Servers whose secret fits, or that accept unsigned notifications from the sender; exactly one is expected.
    servers: int
    signed: bool
    # If no secret was tried: the size of the package. `servers` have a secret, and one of the two is above its limit.
    untried_octets: int | None = None
    limits: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        # Both factors of the work, because either can be the one above its limit.
        if self.untried_octets is not None:
            found = f"{self.servers} servers have a secret and the package has {self.untried_octets} octets"
            most = "at most {} servers and {} octets are accepted".format(*self.limits)
            return f"SERVER-ID is absent, and no secret is tried: {found}, {most}"
        if self.signed:
            return f"SERVER-ID is absent, and the digest fits the secrets of {self.servers} servers"
        return f"SERVER-ID and SHA256-DIGEST are absent, and {self.servers} servers accept that from this sender"


class SourceNotAllowed(Refusal, reason="source-not-allowed"):
    """The sender's address is outside the `sources` of `server`, or of every server with a secret if that is None."""

    sentence = "{address} is not among the sources of {server!r}"
    nameless = "SERVER-ID is absent, and {address} is not among the sources of any server with a secret"
    address: str
    server: str | None = None


class SecretNotProvisioned(Refusal, reason="secret-not-provisioned"):
    """A signed notification of a `server` without a secret or, if that is None, without any server that has one."""

    sentence = "the notification is signed, and no secret is provisioned for {server!r}"
    nameless = "the notification is signed, and no secret is provisioned for any server"
    server: str | None = None


class DigestMismatch(Refusal, reason="digest-mismatch"):
    """SHA256-DIGEST does not fit the secret of `server` or, if that is None, any of the `tried` secrets."""

    sentence = "the digest was not made with the secret of {server!r} over these octets"
    nameless = "SERVER-ID is absent, and the digest fits none of {tried} secrets"
    server: str | None = None
    tried: int = 1
    # If it fits the former secret: the time until which that was accepted, in POSIX seconds.
    former_until: float | None = None

    def __str__(self) -> str:
        if self.former_until is None:
            return super().__str__()
        ended = f"which has not been accepted since {show_time(self.former_until)}"
        return f"the digest was made with the former secret of {self.server!r}, {ended}"


class DigestMissing(Refusal, reason="digest-missing"):
    """An unsigned notification of a server that must sign."""

    sentence = "SHA256-DIGEST is absent, and {server!r} must sign"
    server: str


class Stale(Refusal, reason="stale"):
    """Signed more than `freshness.max_age` ago, or no later than a notification of this server that is forgotten."""

    # Times are in POSIX seconds, `max_age` is in seconds, `now` is the device's clock.
    sent_at: int
    now: float
    # Not used for a forgotten notification: no limit of age applies to it.
    max_age: float = 0
    forgotten: int | None = None
    # The time that replaces a clock that is not believed.
    reference: float | None = None

    def __str__(self) -> str:
        signed, clock = f"signed at {show_time(self.sent_at)}", f"the device's clock ({show_time(self.now)})"
        if self.forgotten is not None:
            kept = f"what this server signed up to {show_time(self.forgotten)} is forgotten and never accepted again"
            return f"{signed}; {kept}, whatever {clock} shows"
        # The sentences show the device's clock, because a wrong clock is as likely a cause as an old notification.
        most = f"at most {self.max_age:.0f} s are accepted"
        if self.reference is None:
            return f"{signed}, {self.now - self.sent_at:.0f} s before {clock}, which may be wrong; {most}"
        known = f"the latest time known of this server ({show_time(self.reference)})"
        return f"{signed}, {self.reference - self.sent_at:.0f} s before {known}; {most}; {clock} is not believed"


class FromTheFuture(Refusal, reason="from-the-future"):
    """Signed more than `freshness.max_skew` (seconds) ahead of the device's clock `now`; times are in POSIX seconds."""

    sent_at: int
    now: float
    max_skew: float

    def __str__(self) -> str:
        ahead = f"signed at {show_time(self.sent_at)}, {self.sent_at - self.now:.0f} s ahead of the device's clock"
        most = f"freshness.max_skew accepts at most {self.max_skew:.0f} s"
        return f"{ahead} ({show_time(self.now)}), which may be wrong; {most}"


class Duplicate(Refusal, reason="duplicate"):
    """A NOTIFICATION-ID of this server was accepted before, as the session of number `session` (5.1.4)."""

    # Written out, because one is made for each datagram of a flood of repeats.
    def __init__(self, session: int, *, same_content: bool) -> None:
        self.session = session
        # False if its octets differ: the server has lost its counter.
        self.same_content = same_content

    def __str__(self) -> str:
        return f"accepted before as session {self.session}{'' if self.same_content else ', with other content'}"


class QueueFull(Refusal, reason="queue-full"):
    """The queue of `server` is full (`sessions.max_pending`); nothing of this notification is remembered."""

    # The server and not the whole queue, because the bound is for each server: one cannot fill the queue of another.
    server: str
    pending: int
    max_pending: int
    # The pending session of an unsigned notification that has the NOTIFICATION-ID of this signed one.
    blocked_by: int | None = None

    def __str__(self) -> str:
        if self.blocked_by is not None:
            return f"session {self.blocked_by}, of an unsigned notification with the same id, is pending; send it later"
        return f"{self.pending} sessions of {self.server!r} wait, sessions.max_pending is {self.max_pending}"


def discard_reasons() -> list[str]:
    """Return the reason of every kind of discard, sorted."""
    return sorted(kind.reason for group in Discard.__subclasses__() for kind in group.__subclasses__())


class ConfigProblem(NamedTuple):
    """One problem of a configuration, and its place: line and column from 1, or 0 for a problem of no single line."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        """`FILE:LINE:COLUMN: servers[1].secret: what is wrong and what is expected`."""
        return f"{self.place}: {self.message}"

    @property
    def place(self) -> str:
        """`FILE:LINE:COLUMN: servers[1].secret`, as far as the problem has them."""
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path}" if self.path else place


class ConfigError(Facts, DmnotidError):
    """A configuration that can't be used; `problems` holds every problem, at least one."""

    problems: tuple[ConfigProblem, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


class UntrustedPath(DmnotidError):
    """A path that another user can change, at the file, directory or link `component`; `problem` has the way out."""

    def __init__(self, component: str, problem: str) -> None:
        super().__init__(f"{component}: {problem}")
        self.component = component
        self.problem = problem


# A caller that refuses an untrusted path also refuses one that leads nowhere.
class UnusablePath(UntrustedPath):
    """A path that does not lead to a usable file: it is missing, of another kind, or can't be executed."""


class EndpointError(DmnotidError):
    """A socket to receive on can't be opened."""


class JournalError(DmnotidError):
    """The durable queue can't be opened, read or written."""


class JournalDamaged(JournalError):
    """The journal's file exists and is not a readable journal."""


class NoSuchSession(Facts, DmnotidError):
    """The journal has no session of this number: there never was one, or its row was pruned."""

    sentence = "the journal has no session {session}"
    session: int


class NotPending(Facts, DmnotidError):
    """A session is in a `state` in which it can't be cancelled or retried."""

    sentence = "session {session} is {state}, a pending session is expected"
    session: int
    state: str


class NotKept(NotPending):
    """A session that failed or expired can't be opened again, because its notification was not kept."""

    sentence = "session {session} is {state}, and its notification was not kept"
    session: int
    state: str


class HookError(DmnotidError):
    """A hook can't be started. `component` is the part of its path with the problem, if a part has one."""

    def __init__(self, message: str, *, component: str | None = None, trusted: bool = True) -> None:
        super().__init__(message)
        self.component = component
        # False if another user can change it: maybe an attacker, so `check` and `test-hook` name that apart.
        self.trusted = trusted
