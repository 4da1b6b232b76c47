"""The configured servers, and the one that a notification is from (5.3, 5.3.5)."""

from ipaddress import ip_network

import pytest

from dmnotid.errors import Discard
from dmnotid.policy import servers as module
from dmnotid.policy.addresses import Network, Source
from dmnotid.policy.digest import sign
from dmnotid.policy.servers import MAX_TRIED_OCTETS, MAX_TRIED_SECRETS, Server, Servers
from dmnotid.wire.notification import Notification, decode_notification, encode_notification
from tests.support import count_calls

NEAR = Source("192.0.2.7", 40000)
FAR = Source("198.51.100.7", 40000)
NEARBY = (ip_network("192.0.2.0/24"),)


def named(server_id: str, *, signed: bool = True) -> Notification:
    return decode_notification(encode_notification(1, server_id=server_id, sent_at=0 if signed else None))


def anonymous(secret: bytes, octets: int = 42) -> Notification:
    """Return a signed notification without SERVER-ID of that size: 42 octets at least, else 44 and more."""
    filler = [] if octets == 42 else [(6, bytes(octets - 44))]
    package = sign(encode_notification(1, sent_at=0, unknown_options=filler), secret)
    assert len(package) == octets
    return decode_notification(package)


UNSIGNED = decode_notification(encode_notification(1))


def find(servers: Servers, source: Source, notification: Notification) -> str:
    """Return the id of the server found, or the reason of the Discard."""
    try:
        return servers.find(notification, source).id
    except Discard as discard:
        return discard.reason


def find_untried(servers: Servers, source: Source, notification: Notification, monkeypatch: pytest.MonkeyPatch) -> str:
    """Do the same, and fail if a digest is computed."""
    with monkeypatch.context() as patch:
        patch.delattr(module, "is_signed_with")
        return find(servers, source, notification)


def test_secret_is_not_in_the_repr() -> None:
    """A repr ends up in logs."""
    assert "rope" not in repr(Server("a", b"rope", former_secret=b"old rope"))


def test_server_must_sign_and_may_send_from_anywhere_by_default() -> None:
    """5.3.5."""
    server = Server("a")
    assert (server.secret, server.require_digest, server.sources) == (None, True, ())


@pytest.mark.parametrize(
    ("sources", "address", "allowed"),
    [
        ([], "192.0.2.1", True),
        ([], "no address", True),
        (["192.0.2.0/24"], "192.0.2.255", True),
        (["192.0.2.0/24"], "192.0.3.0", False),
        (["192.0.2.0/24", "198.51.100.7/32"], "198.51.100.7", True),
        (["192.0.2.0/24"], "2001:db8::1", False),
        (["2001:db8::/32"], "2001:db8:ffff::1", True),
        (["2001:db8::/32"], "2001:db9::1", False),
        (["fe80::/10"], "fe80::1%eth0", True),
        (["fe80::/10"], "2001:db8::1%eth0", False),
        (["0.0.0.0/0"], "::1", False),
        (["0.0.0.0/0", "::/0"], "no address", False),
        (["0.0.0.0/0", "::/0"], "", False),
        (["0.0.0.0/0", "::/0"], "::ffff:192.0.2.1", False),
    ],
)
def test_server_may_send_from_its_sources_alone(sources: list[str], address: str, *, allowed: bool) -> None:
    """5.3.5: text that is not an address is in no network."""
    server = Server("a", sources=tuple(map(ip_network, sources)))
    assert server.allows(Source(address, 1)) is allowed


@pytest.mark.parametrize(
    ("sources", "found"),
    [([[]], False), ([[], ["::/0"]], False), ([["::/0", "192.0.2.0/24"]], True), ([[], ["192.0.2.0/24"]], True)],
)
def test_ipv4_sources_are_found_among_all_servers(sources: list[list[str]], *, found: bool) -> None:
    servers = Servers(
        Server(f"server {number}", sources=tuple(map(ip_network, networks))) for number, networks in enumerate(sources)
    )
    assert servers.ipv4_sources is found


def test_servers_keep_the_order_of_the_configuration() -> None:
    servers = Servers([Server("b"), Server("a"), Server("c")])
    assert [server.id for server in servers] == ["b", "a", "c"]
    assert len(servers) == 3


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "SERVER-ID 'a' is configured twice"),
        (["möwe", "mo\u0308we"], "SERVER-ID 'möwe' is configured twice"),
        (["a", ""], "is empty"),
        (["a\n"], r"holds U\+000A"),
    ],
)
def test_id_that_is_ambiguous_or_never_received_is_refused(ids: list[str], message: str) -> None:
    """5.3."""
    with pytest.raises(ValueError, match=message):
        Servers(map(Server, ids))


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [("a", "a"), ("b", "b"), ("A", "unknown-server"), ("c", "unknown-server"), ("a ", "unknown-server")],
)
@pytest.mark.parametrize("signed", [True, False])
def test_server_is_found_by_its_exact_id(wanted: str, answer: str, *, signed: bool) -> None:
    """5.3: case-sensitively; there is no default server."""
    assert find(Servers([Server("a"), Server("b")]), NEAR, named(wanted, signed=signed)) == answer


def test_only_server_is_not_a_default() -> None:
    """5.3."""
    assert find(Servers([Server("a", b"s", require_digest=False)]), NEAR, named("b")) == "unknown-server"


@pytest.mark.parametrize("configured", ["möwe", "mo\u0308we"])
@pytest.mark.parametrize("wanted", ["C3 B6", "6F CC 88"], ids=["nfc", "nfd"])
def test_ids_are_compared_after_nfc_on_both_sides(configured: str, wanted: str) -> None:
    """5.3."""
    value = b"m" + bytes.fromhex(wanted) + b"we"
    package = bytes.fromhex("20 80 00 01 10") + bytes([len(value)]) + value
    assert find(Servers([Server(configured)]), NEAR, decode_notification(package)) == configured


@pytest.mark.parametrize("signed", [True, False])
def test_named_server_must_allow_the_source(monkeypatch: pytest.MonkeyPatch, *, signed: bool) -> None:
    """5.3.5: before any digest is computed."""
    servers = Servers([Server("a", b"1", sources=NEARBY), Server("b")])
    assert find_untried(servers, NEAR, named("a", signed=signed), monkeypatch) == "a"
    assert find_untried(servers, FAR, named("b", signed=signed), monkeypatch) == "b"
    assert find_untried(servers, FAR, named("a", signed=signed), monkeypatch) == "source-not-allowed"


THREE = [Server("a", b"1"), Server("near", b"2", sources=NEARBY), Server("b", b"3"), Server("none"), Server("c", b"1")]


@pytest.mark.parametrize(
    ("source", "secret", "answer"),
    [
        (NEAR, b"3", "b"),
        (NEAR, b"2", "near"),
        (FAR, b"3", "b"),
        # The secret of a server that may not send from there is not tried.
        (FAR, b"2", "digest-mismatch"),
        (NEAR, b"1", "server-undiscovered"),
        (NEAR, b"4", "digest-mismatch"),
        # A server without a secret is not one with the empty secret.
        (NEAR, b"", "digest-mismatch"),
    ],
)
def test_signed_notification_without_server_id_is_from_the_server_whose_secret_fits(
    source: Source, secret: bytes, answer: str
) -> None:
    """5.3.5: the one server, among those that may send from there."""
    assert find(Servers(THREE), source, anonymous(secret)) == answer


@pytest.mark.parametrize(
    ("secret", "answer"), [(b"1", "a"), (b"2", "a"), (b"3", "b"), (b"4", "only former"), (b"5", "digest-mismatch")]
)
def test_signed_notification_without_server_id_is_tried_with_former_secrets_too(secret: bytes, answer: str) -> None:
    """5.3.5: an end of the former secret is for `verify`, which has the clock."""
    servers = [
        Server("a", b"1", former_secret=b"2", former_until=0.0),
        Server("b", b"3"),
        Server("only former", former_secret=b"4"),
    ]
    assert find(Servers(servers), NEAR, anonymous(secret)) == answer


def test_every_secret_is_tried_after_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """5.3.5: so that the time taken does not reveal which one fits."""
    tried: list[bytes] = []

    def note(_: Notification, secret: bytes) -> bool:
        tried.append(secret)
        return len(tried) == 1

    monkeypatch.setattr(module, "is_signed_with", note)
    assert find(Servers(THREE), FAR, anonymous(b"1")) == "a"
    assert tried == [b"1", b"3", b"1"]


def test_no_secret_is_tried_for_a_source_that_no_server_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """5.3.5."""
    servers = Servers([Server("near", b"1", sources=NEARBY), Server("open", require_digest=False)])
    assert find_untried(servers, FAR, anonymous(b"1"), monkeypatch) == "source-not-allowed"


@pytest.mark.parametrize("servers", [[], [Server("a"), Server("b", sources=NEARBY)]])
@pytest.mark.parametrize("octets", [42, MAX_TRIED_OCTETS + 1])
def test_signed_notification_without_any_secret_has_none_provisioned(servers: list[Server], octets: int) -> None:
    """5.3.5: of whatever size, and wherever it comes from."""
    assert find(Servers(servers), FAR, anonymous(b"1", octets)) == "secret-not-provisioned"


def many(secrets: int, **of_all: tuple[object, ...]) -> Servers:
    """Return servers with so many secrets, and one without."""
    return Servers([Server("none"), *(Server(str(at), b"%d" % at, **of_all) for at in range(secrets))])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("secrets", "octets", "answer"),
    [
        (MAX_TRIED_SECRETS, MAX_TRIED_OCTETS, "7"),
        (MAX_TRIED_SECRETS + 1, 42, "server-undiscovered"),
        (8, MAX_TRIED_OCTETS + 1, "server-undiscovered"),
    ],
)
def test_only_so_many_secrets_and_octets_are_tried(secrets: int, octets: int, answer: str) -> None:
    """5.3.5: 64 servers with a secret, and packages of 1,024 octets."""
    assert (MAX_TRIED_SECRETS, MAX_TRIED_OCTETS) == (64, 1_024)
    assert find(many(secrets), NEAR, anonymous(b"7", octets)) == answer


@pytest.mark.parametrize(("secrets", "octets"), [(MAX_TRIED_SECRETS + 1, 42), (1, MAX_TRIED_OCTETS + 1)])
@pytest.mark.parametrize("source", [NEAR, FAR])
def test_too_much_work_is_refused_before_any_of_it(
    secrets: int, octets: int, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5.3.5: before a digest is computed, and whatever the sources of the servers are."""
    servers = many(secrets, sources=NEARBY)
    assert find_untried(servers, source, anonymous(b"0", octets), monkeypatch) == "server-undiscovered"


def calls_of(servers: Servers, notification: Notification) -> int:
    """Return the number of calls that finding the server of a notification from elsewhere takes."""
    return count_calls(lambda: find(servers, FAR, notification))


def near(number: int) -> tuple[Network, ...]:
    """Return four networks of their own for a server."""
    first, second = divmod(number, 256)
    names = f"10.{first}.{second}.0/24", f"11.{first}.{second}.0/24", f"12.{first}.{second}.0/24"
    return *(ip_network(name) for name in names), ip_network(f"2001:db8:{number:x}::/48")


@pytest.mark.parametrize("notification", [UNSIGNED, anonymous(b"x")], ids=["unsigned", "signed"])
def test_stranger_costs_the_same_with_however_many_servers(notification: Notification) -> None:
    """5.3.5: a sender outside all sources causes no work for each server."""
    few, most = (
        Servers(Server(str(at), b"%d" % at, require_digest=False, sources=near(at)) for at in range(count))
        for count in (1, MAX_TRIED_SECRETS)
    )
    assert calls_of(few, notification) == calls_of(most, notification)
    thousand = Servers(Server(str(at), b"%d" % at, require_digest=False, sources=near(at)) for at in range(1_000))
    assert calls_of(thousand, notification) <= calls_of(few, notification)


@pytest.mark.parametrize(("address", "answer"), [("192.0.2.7", "a"), ("", "b"), ("::ffff:192.0.2.7", "b")])
def test_text_that_is_not_an_address_is_in_no_network(address: str, answer: str) -> None:
    """5.3.5: such a source is that of the servers without `sources` alone."""
    near, anywhere = Server("a", b"1", sources=NEARBY), Server("b", b"2")
    secret = near.secret if answer == "a" else anywhere.secret
    assert secret is not None
    assert find(Servers([near, anywhere]), Source(address, 1), anonymous(secret)) == answer


SMS, MQTT = Source("sms", None), Source("mqtt", None)


@pytest.mark.parametrize(
    ("sources", "found"),
    [((), [NEAR, FAR, SMS, MQTT]), (NEARBY, [NEAR]), (("sms",), [SMS]), ((*NEARBY, "sms", "sms"), [NEAR, SMS])],
)
def test_server_is_reached_through_the_doors_that_its_sources_name(
    sources: tuple[Network | str, ...], found: list[Source]
) -> None:
    """4: also if the server is discovered, by its secret or as the only one that may be unsigned."""
    server = Server("a", b"1", require_digest=False, sources=sources)
    everywhere = [NEAR, FAR, SMS, MQTT]
    assert [source for source in everywhere if server.allows(source)] == found
    for notification in (named("a"), anonymous(b"1"), UNSIGNED):
        assert [source for source in everywhere if find(Servers([server]), source, notification) == "a"] == found


def test_address_is_never_a_door_nor_a_door_an_address() -> None:
    """4: not even a sender whose address in ::ffff:0:0/96 has no network to be compared with."""
    anywhere = Server("a", b"1", sources=(ip_network("0.0.0.0/0"), ip_network("::/0")))
    assert find(Servers([anywhere]), SMS, named("a")) == "source-not-allowed"
    assert not Server("a", sources=("sms",)).allows(Source("::ffff:192.0.2.7", 40000))


def test_server_with_overlapping_sources_is_one() -> None:
    """5.3.5."""
    sources = tuple(map(ip_network, ("192.0.2.0/24", "192.0.0.0/16", "0.0.0.0/0", "::/0", "192.0.2.0/24")))
    servers = Servers([Server("a", b"1", require_digest=False, sources=sources)])
    assert find(servers, NEAR, UNSIGNED) == "a"
    assert find(servers, NEAR, anonymous(b"1")) == "a"


def test_named_server_is_found_among_more_than_are_tried() -> None:
    """5.3."""
    assert find(many(MAX_TRIED_SECRETS + 1), NEAR, named("64")) == "64"


OPEN = Server("open", require_digest=False)
OPEN_NEAR = Server("near", require_digest=False, sources=NEARBY)
CLOSED = Server("closed", b"1")


@pytest.mark.parametrize(
    ("servers", "source", "answer"),
    [
        ([], NEAR, "server-undiscovered"),
        ([CLOSED], NEAR, "server-undiscovered"),
        ([OPEN], NEAR, "open"),
        ([CLOSED, OPEN], NEAR, "open"),
        ([OPEN, OPEN_NEAR], NEAR, "server-undiscovered"),
        ([OPEN, OPEN_NEAR], FAR, "open"),
        ([CLOSED, OPEN_NEAR], NEAR, "near"),
        ([CLOSED, OPEN_NEAR], FAR, "server-undiscovered"),
    ],
)
def test_unsigned_notification_without_server_id_is_from_the_only_server_that_allows_it(
    servers: list[Server], source: Source, answer: str
) -> None:
    """5.3.5."""
    assert find(Servers(servers), source, UNSIGNED) == answer
