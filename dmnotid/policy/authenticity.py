"""Is it really that server, and is it of now: SHA256-DIGEST (5.3.5) and age."""

from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

from dmnotid import RELEASED_AT
from dmnotid.errors import DigestMismatch, DigestMissing, FromTheFuture, SecretNotProvisioned, Stale
from dmnotid.policy.addresses import Source
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import DIGEST_OCTETS, ZERO_DIGEST, Notification, decode_notification


class Freshness(NamedTuple):
    """How old (`max_age`) and how far ahead (`max_skew`) a signed notification may be, in seconds."""

    max_age: float = 86_400
    max_skew: float = 600


class Clock(NamedTuple):
    """The device's clock at the arrival of a datagram.

    `newest` is the newest authenticated time known, None before there is one. A clock that is not `believed` refuses
    nothing as from the future, and age is then measured from `newest`.
    """

    now: float
    believed: bool = True
    newest: int | None = None


class VerifiedNotification(NamedTuple):
    """A notification that is what it says: made by `verify` and by nothing else.

    `clock_believed` tells what `received_at` is worth.
    """

    notification: Notification
    server_id: str
    source: Source
    received_at: float
    clock_believed: bool


def judge_clock(now: float, newest: int | None, max_skew: float, *, released_at: int = RELEASED_AT) -> Clock:
    """Judge whether the clock is believed: a device without a battery clock starts in 1970.

    It is, unless it stands before the program's release, or more than `max_skew` before the newest authenticated time.
    """
    behind_newest = newest is not None and now < newest - max_skew
    return Clock(now, now >= released_at and not behind_newest, newest)


def show_time(seconds: float) -> str:
    """Write POSIX seconds for people: `2025-01-01T00:00:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def compute_digest(notification: Notification, secret: bytes) -> bytes:
    """SHA-256 over the secret and the package with zeros in the place of the digest (5.3.5)."""
    return sha256(secret + _zeroed(notification)).digest()


def _zeroed(notification: Notification) -> bytes:
    octets, at = notification.octets, notification.digest_at
    return octets[:at] + ZERO_DIGEST + octets[at + DIGEST_OCTETS :]


def find_signers(notification: Notification, servers: Iterable[Server]) -> list[Server]:
    """Return those whose secret made the digest: each is tried, so that the time taken doesn't tell which one fits."""
    digest = notification.digest
    if digest is None:
        return []
    zeroed = _zeroed(notification)  # as for compute_digest, but once: there may be a thousand secrets
    return [
        server
        for server in servers
        if server.secret is not None and compare_digest(sha256(server.secret + zeroed).digest(), digest)
    ]


def sign(package: bytes, secret: bytes) -> bytes:
    """Put the digest into a package that has a SHA256-DIGEST Option (5.3.5, steps 1 to 3).

    Raises DecodeError for octets that are no package; ValueError without that Option.
    """
    notification = decode_notification(package)
    if not notification.signed:
        message = "the package has no SHA256-DIGEST Option to put the digest into"
        raise ValueError(message)
    at = notification.digest_at
    return package[:at] + compute_digest(notification, secret) + package[at + DIGEST_OCTETS :]


def verify(
    notification: Notification, server: Server, source: Source, clock: Clock, freshness: Freshness
) -> VerifiedNotification:
    """See that a notification was made by `server` and is of now. The digest is compared in constant time.

    Raises SecretNotProvisioned, DigestMismatch or DigestMissing, then Stale or FromTheFuture.
    """
    digest, sent_at = notification.digest, notification.sent_at
    if digest is not None and sent_at is not None:
        if server.secret is None:
            message = f"signed, and no secret is provisioned for {server.id!r}"
            raise SecretNotProvisioned(message)
        if not compare_digest(compute_digest(notification, server.secret), digest):
            message = f"the digest was not made with the secret of {server.id!r} over these octets"
            raise DigestMismatch(message)
        _check_age(sent_at, clock, freshness)
    elif server.require_digest:
        message = f"{server.id!r} must sign, and SHA256-DIGEST is absent"
        raise DigestMissing(message)
    # Without a detour through Python, as a Notification is made.
    return tuple.__new__(VerifiedNotification, (notification, server.id, source, clock.now, clock.believed))


def _check_age(sent_at: int, clock: Clock, freshness: Freshness) -> None:
    believed = clock.believed
    reference = clock.now if believed else clock.newest
    if reference is None:
        return
    age = reference - sent_at
    if age > freshness.max_age:
        by = "the clock" if believed else f"the newest authenticated time ({show_time(reference)})"
        message = f"sent {age:.0f} s before {by}, at most {freshness.max_age:.0f} are taken"
        raise Stale(message)
    if -age > freshness.max_skew and believed:
        message = f"sent {-age:.0f} s ahead of the clock, at most {freshness.max_skew:.0f} are taken"
        raise FromTheFuture(message)
