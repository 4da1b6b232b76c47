"""The pure stages in a row, and their order (4, 6; 5.3.5)."""

from ipaddress import ip_network

import pytest

from dmnotid.errors import (
    ApplicationIdConflict,
    ApplicationIdMismatch,
    ApplicationIdMissing,
    ContentTypeMismatch,
    Discard,
    PushHeaderTooLong,
)
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import Clock, Freshness, VerifiedNotification, sign
from dmnotid.policy.reception import Datagram, Rules, authenticate, check_route, receive_push
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import decode_notification, encode_notification
from dmnotid.wire.octets import FieldValue
from dmnotid.wire.wsp import PushHeader, PushMessage, encode_push

NOW = 1_800_000_000
CLOCK = Clock(NOW)
SECRET = b"seven gulls over the pier"
NEAR = Source("192.0.2.7", 40000)
FAR = Source("198.51.100.7", 40000)
RULES = Rules(Servers([Server("dm", SECRET, sources=(ip_network("192.0.2.0/24"),)), Server("silent")]))

DM_TEXT = "application/vnd.syncml.dm.notification"
URI = "x-wap-application:syncml.dm"


def package(
    notification_id: int = 7, *, server_id: str | None = "dm", sent_at: int | None = NOW, secret: bytes = SECRET
) -> bytes:
    bare = encode_notification(notification_id, server_id=server_id, sent_at=sent_at)
    return bare if sent_at is None else sign(bare, secret)


def reason(payload: bytes, source: Source = NEAR, rules: Rules = RULES) -> str:
    with pytest.raises(Discard) as caught:
        receive_push(Datagram(payload, source, NOW), rules, CLOCK)
    return caught.value.reason


def push(content_type: int | str, *application_ids: FieldValue) -> PushMessage:
    return PushMessage(1, PushHeader(content_type, application_ids), 6, b"package")


def test_receive() -> None:
    """4, 5, 6: from the datagram to what is verified."""
    body = package()
    verified = receive_push(Datagram(encode_push(body), NEAR, 5.0), RULES, CLOCK)
    assert verified == VerifiedNotification(decode_notification(body), "dm", NEAR, NOW, clock_believed=True)


def test_rules_have_defaults() -> None:
    """5.3.5, 6.1."""
    rules = Rules(Servers([]))
    assert (rules.freshness, rules.max_header_octets) == (Freshness(86_400, 600), 48)


def test_rules_decide() -> None:
    """5.3.5, 6.1: the limit, the age and the skew are those of the rules."""
    payload = encode_push(package(sent_at=NOW - 11))
    assert reason(payload, rules=Rules(RULES.servers, max_header_octets=2)) == "push-header-too-long"
    assert reason(payload, rules=Rules(RULES.servers, Freshness(max_age=10))) == "stale"


@pytest.mark.parametrize(
    ("content_type", "ids"),
    [
        (0x58, (7,)),
        (0x58, (b"\x07",)),
        (0x58, (b"\x00\x07",)),
        (0x58, (URI,)),
        (DM_TEXT, (7,)),
        (DM_TEXT.upper() + " ;a=b", (URI.upper(),)),
        (0x58, (7, 7)),
        (0x58, (7, b"\x07", b"\x00\x07", URI, URI.title())),
    ],
)
def test_route(content_type: int | str, ids: tuple[FieldValue, ...]) -> None:
    """6: every legal form of Content-Type and Application-ID; the same Application-ID twice is fine."""
    check_route(push(content_type, *ids).header)


@pytest.mark.parametrize(
    ("message", "kind", "sentence"),
    [
        (push(0x44, 7), ContentTypeMismatch, "Content-Type 0x44 is no DM Notification"),
        (push(0x4E, 7), ContentTypeMismatch, "Content-Type 0x4e is no DM Notification"),
        (push(0x34, 7), ContentTypeMismatch, "Content-Type 0x34 is no DM Notification"),
        (push(0x310, 7), ContentTypeMismatch, "Content-Type 0x310 is no DM Notification"),
        (push("a/b\n", 7), ContentTypeMismatch, r"Content-Type 'a/b\n' is no DM Notification"),
        (push(0x58), ApplicationIdMissing, "no X-Wap-Application-Id: meant for wml.ua"),
        (push(0x58, 0), ApplicationIdMismatch, "X-Wap-Application-Id 0, only 7 is taken"),
        (push(0x58, "*"), ApplicationIdMismatch, "X-Wap-Application-Id '*', only 7 is taken"),
        (push(0x58, b"\x90\x5c"), ApplicationIdMismatch, "X-Wap-Application-Id 36956, only 7 is taken"),
        (push(0x58, b""), ApplicationIdMismatch, "X-Wap-Application-Id b'', only 7 is taken"),
        (push(0x58, 4, 4), ApplicationIdMismatch, "X-Wap-Application-Id 4, only 7 is taken"),
        (push(0x58, 7, 4), ApplicationIdConflict, "X-Wap-Application-Id given as 4 and 7"),
        (push(0x58, 4, 7), ApplicationIdConflict, "X-Wap-Application-Id given as 4 and 7"),
        (push(0x58, 7, "B\n", 7), ApplicationIdConflict, "X-Wap-Application-Id given as 'b' and 7"),
        (push(0x58, 4, 5), ApplicationIdConflict, "X-Wap-Application-Id given as 4 and 5"),
        (push(0x44), ContentTypeMismatch, "Content-Type 0x44 is no DM Notification"),
        (push(0x44, 7, 4), ContentTypeMismatch, "Content-Type 0x44 is no DM Notification"),
    ],
)
def test_route_refuses(message: PushMessage, kind: type[Discard], sentence: str) -> None:
    """6: Content-Type, then Application-ID: missing, in conflict, another."""
    with pytest.raises(kind) as caught:
        check_route(message.header)
    assert str(caught.value) == sentence


def test_authenticate_takes_a_bare_package() -> None:
    """4, 6.2: what came by another bearer goes the same way from here on."""
    notification = decode_notification(package())
    assert authenticate(notification, NEAR, RULES, CLOCK).notification is notification


@pytest.mark.parametrize(
    ("body", "reason", "server_id"),
    [
        (package(server_id="nobody"), "unknown-server", "nobody"),
        (package(secret=b"other"), "digest-mismatch", "dm"),
        (package(sent_at=0), "stale", "dm"),
        (package(sent_at=None), "digest-missing", "dm"),
        (package(server_id=None, sent_at=None), "server-undiscovered", None),
    ],
)
def test_refusals_tell_which_ids_were_claimed(body: bytes, reason: str, server_id: str | None) -> None:
    """5.1, 5.3."""
    with pytest.raises(Discard) as caught:
        authenticate(decode_notification(body), NEAR, RULES, CLOCK)
    assert (caught.value.reason, caught.value.server_id, caught.value.notification_id) == (reason, server_id, 7)


def test_earlier_refusals_claim_nothing() -> None:
    with pytest.raises(PushHeaderTooLong) as caught:
        receive_push(Datagram(encode_push(package()), NEAR, NOW), Rules(RULES.servers, max_header_octets=2), CLOCK)
    assert (caught.value.server_id, caught.value.notification_id) == (None, None)


LADDER = [
    ("not-a-push", b"\x01\x07\x00"),
    ("truncated", b"\x01\x06\x7f"),
    ("push-header-too-long", b"\x01\x06\x31" + bytes(49)),
    ("malformed-field", b"\x01\x06\x02\xc4\x00" + b"\x10"),
    ("content-type-mismatch", b"\x01\x06\x01\xc4" + b"\x10"),
    ("application-id-missing", b"\x01\x06\x01\xd8" + b"\x10"),
    ("application-id-conflict", encode_push(b"\x10", application=4, further=[(0x2F, 5)])),
    ("application-id-mismatch", encode_push(b"\x10", application=4)),
    ("unsupported-version", encode_push(b"\x10")),
    ("truncated", encode_push(package(server_id="nobody")[:-1])),
    ("trailing-octets", encode_push(package(server_id="nobody") + b"\0")),
    ("unknown-server", encode_push(package(server_id="nobody", sent_at=0, secret=b"x"))),
    ("secret-not-provisioned", encode_push(package(server_id="silent", sent_at=0, secret=b"x"))),
    ("digest-mismatch", encode_push(package(sent_at=0, secret=b"x"))),
    ("stale", encode_push(package(sent_at=0))),
]
"""Each datagram passes what stands above it and fails twice or more: the first failure is the reason."""


@pytest.mark.parametrize(("expected", "payload"), LADDER, ids=[f"{step}-{rung[0]}" for step, rung in enumerate(LADDER)])
def test_order_of_checks(expected: str, payload: bytes) -> None:
    """4, 5, 6: a security property, never configurable."""
    assert reason(payload) == expected


@pytest.mark.parametrize(
    "body", [package(), package(secret=b"x"), package(sent_at=None), package(server_id=None), package(sent_at=0)]
)
def test_source_comes_before_digest_and_age(body: bytes) -> None:
    """5.3.5: nobody makes the device compute digests from where no server sends."""
    assert reason(encode_push(body), FAR) == "source-not-allowed"


@pytest.mark.parametrize("further", [(), ((0x2F, 7),)], ids=["mismatch", "conflict"])
def test_huge_application_id_is_a_refusal(further: tuple[tuple[int | str, FieldValue], ...]) -> None:
    """6, 6.1: where the header limit is configured that high."""
    payload = encode_push(package(), application=None, further=[(0x2F, b"\xff" * 1800), *further])
    rules = Rules(RULES.servers, max_header_octets=4096)
    assert reason(payload, rules=rules).startswith("application-id-")
