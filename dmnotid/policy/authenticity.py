"""Verification: a notification was made by its server, and is recent (5.3.5)."""

from typing import NamedTuple

from dmnotid.errors import DigestMismatch, DigestMissing, SecretNotProvisioned
from dmnotid.policy.addresses import Source
from dmnotid.policy.digest import is_signed_with
from dmnotid.policy.freshness import Clock, Freshness, check_age
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import Notification


class VerifiedNotification(NamedTuple):
    """A notification that passed `verify`; only `verify` makes one.

    `received_at` is the device's clock at its arrival (POSIX seconds), and `clock_believed` whether that clock is
    believed.
    """

    notification: Notification
    server_id: str
    source: Source
    received_at: float
    clock_believed: bool


def verify(
    notification: Notification, server: Server, source: Source, clock: Clock, freshness: Freshness
) -> VerifiedNotification:
    """Check the digest and the age of a notification of `server`.

    Raises SecretNotProvisioned, DigestMismatch or DigestMissing, then Stale or FromTheFuture.
    """
    sent_at = notification.sent_at
    if sent_at is not None:
        if server.secret is None:
            raise SecretNotProvisioned(server.id)
        if not is_signed_with(notification, server.secret):
            raise DigestMismatch(server.id)
        # After the digest, so that a forger learns nothing about the clock.
        check_age(sent_at, clock, freshness)
    elif server.require_digest:
        raise DigestMissing(server.id)
    # tuple.__new__ skips the Python-level constructor of the NamedTuple: this runs for every accepted notification.
    return tuple.__new__(VerifiedNotification, (notification, server.id, source, clock.now, clock.believed))
