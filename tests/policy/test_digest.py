"""SHA256-DIGEST (5.3.5)."""

import hashlib

import pytest

from dmnotid.errors import DecodeError
from dmnotid.policy import digest as module
from dmnotid.policy.digest import compute_digest, is_signed_with, sign
from dmnotid.wire.notification import decode_notification, encode_notification

SECRET = b"seven gulls over the pier"

PACKAGES = {
    "digest-alone": ("20 80 00 01 50 24 6B 49 D2 00", ""),
    "digest-last": ("22 2A BE EF 10 02 64 6D 10 01 02 10 02 00 01 20 24 6B 49 D2 00", ""),
    "digest-inside": ("21 80 BE EF 10 02 64 6D 40 24 6B 49 D2 00", "10 02 AB CD"),
}


@pytest.mark.parametrize(("before", "after"), PACKAGES.values(), ids=PACKAGES)
@pytest.mark.parametrize("secret", [b"", b"s", SECRET, bytes(range(256))], ids=len)
def test_digest_is_over_secret_and_package_with_zeros(before: str, after: str, secret: bytes) -> None:
    """5.3.5: SHA-256(secret || package), with zeros in place of the digest; computed here by hashlib alone."""
    start, end = bytes.fromhex(before), bytes.fromhex(after)
    digest = hashlib.sha256(secret + start + bytes(32) + end).digest()
    package = start + digest + end
    notification = decode_notification(package)
    assert compute_digest(notification, secret) == digest
    assert is_signed_with(notification, secret)
    assert not is_signed_with(notification, secret + b"!")
    assert sign(start + b"\xff" * 32 + end, secret) == package


@pytest.mark.parametrize("secret", [b"", SECRET])
def test_unsigned_package_is_signed_with_no_secret(secret: bytes) -> None:
    assert not is_signed_with(decode_notification(encode_notification(1)), secret)


def test_digest_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """5.3.5: hmac.compare_digest decides."""
    compared = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return False

    monkeypatch.setattr(module, "compare_digest", compare)
    notification = decode_notification(sign(encode_notification(1, sent_at=0), SECRET))
    assert not is_signed_with(notification, SECRET)
    assert compared == [(notification.digest, notification.digest)]


def test_package_without_the_option_is_not_signed() -> None:
    with pytest.raises(ValueError, match=r"^the package has no SHA256-DIGEST Option for the digest$"):
        sign(encode_notification(1), SECRET)


def test_octets_that_are_no_package_are_not_signed() -> None:
    with pytest.raises(DecodeError):
        sign(encode_notification(1, sent_at=0) + b"\0", SECRET)
