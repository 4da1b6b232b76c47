"""The pure stages in a row, and their order (4, 6; 5.3.5)."""

from collections.abc import Iterable
from ipaddress import ip_network
from typing import ClassVar

import pytest

from dmnotid.errors import Discard
from dmnotid.policy.addresses import Network, Source
from dmnotid.policy.authenticity import VerifiedNotification
from dmnotid.policy.digest import sign
from dmnotid.policy.freshness import Clock, Freshness
from dmnotid.policy.reception import Datagram, Handover, Progress, Rules, receive, receive_package
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import decode_notification, encode_notification
from dmnotid.wire.octets import FieldValue
from dmnotid.wire.wsp import encode_push

NOW = 1_800_000_000
CLOCK = Clock(NOW)
SECRET = b"seven gulls over the pier"
NEAR = Source("192.0.2.7", 40000)
FAR = Source("198.51.100.7", 40000)
RULES = Rules(Servers([Server("dm", SECRET, sources=(ip_network("192.0.2.0/24"),)), Server("silent")]))


def package(*, server_id: str | None = "dm", sent_at: int | None = NOW, secret: bytes = SECRET) -> bytes:
    bare = encode_notification(7, server_id=server_id, sent_at=sent_at)
    return bare if sent_at is None else sign(bare, secret)


def refuse_push(
    payload: bytes, source: Source = NEAR, rules: Rules = RULES, progress: Progress | None = None
) -> Discard:
    """Return the Discard that a datagram ends in."""
    with pytest.raises(Discard) as caught:
        receive(Datagram(payload, source, NOW), rules, CLOCK, progress)
    return caught.value


def test_push_is_received_and_verified() -> None:
    """4, 5, 6: from the datagram to the verified notification; the clock is the argument."""
    body = package()
    verified = receive(Datagram(encode_push(body), NEAR, 5.0), RULES, CLOCK)
    assert verified == VerifiedNotification(
        decode_notification(body), "dm", NEAR, NOW, clock_believed=True, secret="current"
    )


def test_bare_package_is_received_and_verified() -> None:
    """4, 6.2: a package of another bearer takes the same way from here on."""
    body = package()
    pushed = receive(Datagram(encode_push(body), NEAR, 5.0), RULES, CLOCK)
    assert receive_package(body, NEAR, RULES, CLOCK) == pushed


PUSH_DOOR, PACKAGE_DOOR = (Handover(bare, pid=5, uid=0) for bare in (False, True))


def test_log_facts_name_the_sender_at_a_door_by_its_process() -> None:
    assert Datagram(b"", NEAR, NOW).log_facts() == {"source": "192.0.2.7:40000"}
    handed_in = Datagram(b"", Source("sms", None), NOW, PUSH_DOOR)
    assert handed_in.log_facts() == {"source": "sms", "pid": 5, "uid": 0}


@pytest.mark.parametrize(("handover", "bare"), [(None, False), (PUSH_DOOR, False), (PACKAGE_DOOR, True)])
def test_datagram_is_bare_at_a_door_for_packages_alone(handover: Handover | None, bare: bool) -> None:  # noqa: FBT001
    """4, 6.2: what `dmnotid discards` marks."""
    assert Datagram(b"", NEAR, NOW, handover).bare is bare


def outcome(payload: bytes, handover: Handover | None, rules: Rules = RULES) -> str:
    """Return the server of a datagram, or the reason of the Discard."""
    try:
        return receive(Datagram(payload, NEAR, NOW, handover), rules, CLOCK).server_id
    except Discard as discard:
        return discard.reason


@pytest.mark.parametrize("handover", [None, PUSH_DOOR])
def test_push_of_a_door_takes_the_way_of_one_over_udp(handover: Handover | None) -> None:
    """4, 6: from its start, with the same reasons."""
    assert outcome(encode_push(package()), handover) == "dm"
    assert outcome(package(), handover) == "not-a-push"
    assert outcome(encode_push(package(sent_at=0)), handover) == "stale"
    assert outcome(b"", handover) == "truncated"


def test_bare_package_of_a_door_takes_the_way_of_a_package_from_ver_on() -> None:
    """4, 6.2: with the same reasons, and the limit of a datagram."""
    assert outcome(package(), PACKAGE_DOOR) == "dm"
    assert outcome(encode_push(package()), PACKAGE_DOOR) == "unsupported-version"
    assert outcome(package(sent_at=0), PACKAGE_DOOR) == "stale"
    assert outcome(b"", PACKAGE_DOOR) == "truncated"
    most = len(package())
    assert outcome(package(), PACKAGE_DOOR, RULES._replace(max_octets=most)) == "dm"
    assert outcome(package(), PACKAGE_DOOR, RULES._replace(max_octets=most - 1)) == "push-too-long"


def test_rules_have_defaults() -> None:
    """5.3.5, 6.1."""
    rules = Rules(Servers([]))
    assert (rules.freshness, rules.max_header_octets) == (Freshness(86_400, None), 48)


def test_limit_and_age_are_those_of_the_rules() -> None:
    """5.3.5, 6.1."""
    payload = encode_push(package(sent_at=NOW - 11))
    assert refuse_push(payload, rules=Rules(RULES.servers, max_header_octets=2)).reason == "push-header-too-long"
    assert refuse_push(payload, rules=Rules(RULES.servers, max_octets=len(payload) - 1)).reason == "push-too-long"
    assert refuse_push(payload, rules=Rules(RULES.servers, Freshness(max_age=10))).reason == "stale"


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
def test_refusal_of_a_decoded_package_carries_the_claimed_ids(body: bytes, reason: str, server_id: str | None) -> None:
    """5.1, 5.3."""
    discard = refuse_push(encode_push(body))
    assert (discard.reason, discard.server_id, discard.notification_id) == (reason, server_id, 7)


def test_earlier_refusal_carries_no_ids() -> None:
    discard = refuse_push(encode_push(package()), rules=Rules(RULES.servers, max_header_octets=2))
    assert (discard.server_id, discard.notification_id) == (None, None)


@pytest.mark.parametrize(
    ("payload", "body_offset", "decoded"),
    [
        (b"\x01\x07\x00", None, False),
        (encode_push(package(), application=4), None, False),
        (encode_push(b"\x10"), 6, False),
        (encode_push(package(sent_at=0)), 6, True),
    ],
    ids=["push", "route", "package", "age"],
)
def test_progress_ends_with_the_stage_that_refused(payload: bytes, body_offset: int | None, *, decoded: bool) -> None:
    progress = Progress()
    refuse_push(payload, progress=progress)
    assert progress.body_offset == body_offset
    assert progress.notification == (decode_notification(payload[6:]) if decoded else None)


def test_progress_of_an_accepted_datagram_is_complete() -> None:
    progress = Progress()
    verified = receive(Datagram(encode_push(package()), NEAR, NOW), RULES, CLOCK, progress)
    assert (progress.body_offset, progress.notification) == (6, verified.notification)


LADDER = [
    ("push-too-long", b"\x01\x07\x00" + bytes(4_094)),
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
"""Each datagram passes the checks above it and fails at least two more: the first of them gives the reason."""


@pytest.mark.parametrize(("expected", "payload"), LADDER, ids=[f"{step}-{rung[0]}" for step, rung in enumerate(LADDER)])
def test_first_failed_check_gives_the_reason(expected: str, payload: bytes) -> None:
    """4, 5, 6: a security property, never configurable."""
    assert refuse_push(payload).reason == expected


@pytest.mark.parametrize(
    "body", [package(), package(secret=b"x"), package(sent_at=None), package(server_id=None), package(sent_at=0)]
)
def test_source_is_checked_before_digest_and_age(body: bytes) -> None:
    """5.3.5: a sender outside the sources of every server does not make the device compute digests."""
    assert refuse_push(encode_push(body), FAR).reason == "source-not-allowed"


@pytest.mark.parametrize("further", [(), ((0x2F, 7),)], ids=["mismatch", "conflict"])
def test_huge_application_id_is_refused(further: tuple[tuple[int | str, FieldValue], ...]) -> None:
    """6: the longest integer that the encoding has."""
    payload = encode_push(package(), application=None, further=[(0x2F, b"\xff" * 30), *further])
    discard = refuse_push(payload)
    assert discard.reason.startswith("application-id-")
    assert len(str(discard)) < 100


class CountedSecret(bytes):
    """A secret that counts the digests made with it: each begins with the secret."""

    digests: ClassVar[int] = 0

    def __add__(self, octets: bytes, /) -> bytes:  # type: ignore[override] # bytes takes any buffer
        CountedSecret.digests += 1
        return super().__add__(octets)


def digests_of(servers: Iterable[Server], body: bytes, source: Source) -> int:
    """Return the number of digests that a refused push costs."""
    CountedSecret.digests = 0
    refuse_push(encode_push(body), source, Rules(Servers(servers), max_octets=65_507))
    return CountedSecret.digests


def far_networks(number: int) -> tuple[Network, ...]:
    return tuple(ip_network(f"10.{number >> 6}.{number * 4 + part & 0xFF}.0/24") for part in range(4))


LONG = [(6 + number, bytes(4_095)) for number in range(15)]

FLOODS = {
    "named": (16, False, sign(encode_notification(7, server_id="0", sent_at=NOW), b"forged"), 1),
    "nameless, 1,000 servers": (1_000, False, sign(encode_notification(7, sent_at=NOW), b"forged"), 0),
    "nameless, 1,000 servers with sources": (1_000, True, sign(encode_notification(7, sent_at=NOW), b"forged"), 0),
    "nameless, from elsewhere": (64, True, sign(encode_notification(7, sent_at=NOW), b"forged"), 0),
    "nameless, 61 kB": (16, False, sign(encode_notification(7, sent_at=NOW, unknown_options=LONG), b"forged"), 0),
    "nameless, few servers": (16, False, sign(encode_notification(7, sent_at=NOW), b"forged"), 16),
    "unsigned": (16, False, encode_notification(7), 0),
}
"""Number of servers, whether they have sources, a forged package, and the digests that it may cost."""


@pytest.mark.parametrize(("count", "near", "body", "digests"), FLOODS.values(), ids=FLOODS)
def test_digests_that_a_stranger_causes_are_bounded(count: int, body: bytes, digests: int, *, near: bool) -> None:
    """5.3, 5.3.5: as many as a forgery's, except with few servers and short packages."""
    servers = [
        Server(str(at), CountedSecret(b"%d" % at), sources=far_networks(at) if near else ()) for at in range(count)
    ]
    for last in range(3):
        assert digests_of(servers, body, Source(f"198.51.100.{last}", 40_000 + last)) == digests
