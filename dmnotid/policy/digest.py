"""SHA256-DIGEST (5.3.5): compute it, check it, put it into a package."""

from hashlib import sha256
from hmac import compare_digest

from dmnotid.wire.notification import DIGEST_OCTETS, ZERO_DIGEST, Notification, decode_notification


def compute_digest(notification: Notification, secret: bytes) -> bytes:
    """Return SHA-256 over the secret and the package, with zeros in place of the digest."""
    # Over the octets as received, not encoded again: SERVER-ID may not be in NFC, and RESERVED is covered too.
    octets, at = notification.octets, notification.digest_at
    return sha256(secret + octets[:at] + ZERO_DIGEST + octets[at + DIGEST_OCTETS :]).digest()


def is_signed_with(notification: Notification, secret: bytes) -> bool:
    """Return whether the package carries the digest that this secret makes."""
    # Compared in constant time: the time of `==` would reveal how many leading octets of a forged digest are right.
    return notification.digest is not None and compare_digest(compute_digest(notification, secret), notification.digest)


def sign(package: bytes, secret: bytes) -> bytes:
    """Return the package with its digest filled in (5.3.5, steps 1 to 3).

    Raises DecodeError for octets that are not a package, and ValueError for a package without a SHA256-DIGEST Option.
    """
    # The offset of the digest depends on the Options before it, so the decoder has to find it.
    notification = decode_notification(package)
    if not notification.signed:
        raise ValueError("the package has no SHA256-DIGEST Option for the digest")
    at = notification.digest_at
    return package[:at] + compute_digest(notification, secret) + package[at + DIGEST_OCTETS :]
