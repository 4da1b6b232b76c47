"""Verification: a notification was made by its server, and is recent (5.3.5)."""

from typing import Literal, NamedTuple

from dmnotid.errors import DigestMismatch, DigestMissing, SecretNotProvisioned
from dmnotid.policy.addresses import Source
from dmnotid.policy.digest import is_signed_with
from dmnotid.policy.freshness import Clock, Freshness, check_age
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import Notification

Secret = Literal["current", "former"]
"""Which of the two secrets that a server may have while it changes them."""


class VerifiedNotification(NamedTuple):
    """A notification that passed `verify`; only `verify` makes one.

    `received_at` is the device's clock at its arrival (POSIX seconds), and `clock_believed` whether that clock is
    believed. `secret` is the secret that the digest was made with, None for an unsigned notification.
    """

    notification: Notification
    server_id: str
    source: Source
    received_at: float
    clock_believed: bool
    secret: Secret | None


def verify(
    notification: Notification, server: Server, source: Source, clock: Clock, freshness: Freshness
) -> VerifiedNotification:
    """Check the digest and the age of a notification of `server`.

    Raises SecretNotProvisioned, DigestMismatch or DigestMissing, then Stale or FromTheFuture.
    """
    sent_at, secret = notification.sent_at, None
    if sent_at is not None:
        secret = _find_secret(notification, server, clock)
        # After the digest, so that a forger learns nothing about the clock.
        check_age(sent_at, server.id, clock, freshness)
    elif server.require_digest:
        raise DigestMissing(server.id)
    # tuple.__new__ skips the Python-level constructor of the NamedTuple: this runs for every accepted notification.
    return tuple.__new__(VerifiedNotification, (notification, server.id, source, clock.now, clock.believed, secret))


def _find_secret(notification: Notification, server: Server, clock: Clock) -> Secret:
    if server.secret is None and server.former_secret is None:
        raise SecretNotProvisioned(server.id)
    # The current secret first: a server that still signs with the former one is the exception.
    if server.secret is not None and is_signed_with(notification, server.secret):
        return "current"
    if server.former_secret is None or not is_signed_with(notification, server.former_secret):
        raise DigestMismatch(server.id)
    # A clock that is not believed cannot end anything.
    if server.former_until is not None and clock.believed and clock.now >= server.former_until:
        raise DigestMismatch(server.id, former_until=server.former_until)
    return "former"
