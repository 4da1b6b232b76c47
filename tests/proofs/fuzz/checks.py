"""What must hold of any octets; the fuzzer looks for some of which it does not."""

import hashlib
from ipaddress import ip_network

from dmnotid.errors import DecodeError, Discard
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import Clock
from dmnotid.policy.reception import Datagram, Rules, receive
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import Notification, decode_notification, encode_notification
from dmnotid.wire.wsp import DEFAULT_MAX_HEADER_OCTETS, decode_push, encode_push

NOW = 1_800_000_000
CLOCK = Clock(NOW)
BLIND = Clock(NOW, believed=False, released_at=0)  # refuses no time
SOURCE = Source("192.0.2.7", 40000)
SECRETS = {"dm.harbour.example": b"lantern-and-rope-0042", "möwe.example": b"seven gulls over the pier"}
RULES = Rules(
    Servers(
        [
            *(Server(identity, secret) for identity, secret in SECRETS.items()),
            Server("open.example", require_digest=False, sources=(ip_network("192.0.2.0/24"),)),
            Server("silent.example"),
        ]
    )
)


def check(octets: bytes) -> None:
    """See that octets give a value that holds, or a Discard that can be told: as a push, and as a bare package."""
    check_push(octets)
    check_receive(octets, CLOCK)
    check_package(octets)


def check_push(octets: bytes) -> None:
    try:
        push = decode_push(octets)
    except Discard as discard:
        check_discard(discard, octets)
        return
    assert push.tid == octets[0]
    assert octets[1] == 6
    assert push.body == octets[push.body_offset :]
    # 2 octets in front, and 5 of HeadersLen at most
    assert 4 <= push.body_offset <= 7 + DEFAULT_MAX_HEADER_OCTETS


def check_receive(octets: bytes, clock: Clock) -> VerifiedNotification | None:
    try:
        verified = receive(Datagram(octets, SOURCE, NOW), RULES, clock)
    except Discard as discard:
        check_discard(discard, octets)
        return None
    notification = verified.notification
    assert octets.endswith(notification.octets)
    assert notification.server_id in (None, verified.server_id)
    assert ends_with_its_options(notification)
    if verified.server_id != "open.example":
        assert fits(notification, SECRETS[verified.server_id])
    return verified


def fits(notification: Notification, secret: bytes) -> bool:
    """Verify once more, by other means."""
    octets, at = notification.octets, notification.digest_at
    zeroed = octets[:at] + bytes(32) + octets[at + 32 :]
    return hashlib.sha256(secret + zeroed).digest() == octets[at : at + 32] == notification.digest


def ends_with_its_options(notification: Notification) -> bool:
    """Step over the Options once more: nothing is behind them."""
    octets, at = notification.octets, 4
    for _ in range((octets[0] & 0x0F) << 1 | octets[1] >> 7):
        at += 2 + ((octets[at] & 0x0F) << 8 | octets[at + 1])
    return at == len(octets)


def check_package(octets: bytes) -> None:
    try:
        notification = decode_notification(octets)
    except DecodeError as error:
        check_discard(error, octets)
        return
    assert notification.octets == octets
    assert ends_with_its_options(notification)
    check_encoded_again(notification)
    if notification.sent_at is not None:
        check_signed(notification)


def check_encoded_again(notification: Notification) -> None:
    """Encode what was decoded: it decodes to the same, but for what has more than one form."""
    again = encode_notification(
        notification.notification_id,
        server_id=notification.server_id,
        preferred_connections=notification.preferred_connections,
        requested_mos=notification.requested_mos,
        cached_mos=notification.cached_mos,
        sent_at=notification.sent_at,
        digest=notification.digest or bytes(32),
    )
    assert of_one_form(decode_notification(again)) == of_one_form(notification)


def of_one_form(notification: Notification) -> Notification:
    return notification._replace(octets=b"", digest_at=0, skipped_connections=b"", unknown_options=())


def check_signed(notification: Notification) -> None:
    """Sign it, for the server that it names: then it passes, and with one octet more it doesn't."""
    secret = SECRETS.get(notification.server_id or "dm.harbour.example")
    if secret is None:
        return
    package = sign(notification.octets, secret)
    assert check_receive(encode_push(package), BLIND)
    assert not check_receive(encode_push(package + b"\0"), BLIND)


def check_discard(discard: Discard, octets: bytes) -> None:
    assert len(str(discard).splitlines()) == 1
    assert discard.reason != Discard.reason
    if isinstance(discard, DecodeError):
        assert 0 <= discard.offset <= len(octets)
        assert len(discard.excerpt) <= 16
        assert discard.excerpt in octets
