"""The configured servers, and which of them a notification speaks for (5.3, 5.3.5)."""

from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from dmnotid.errors import DigestMismatch, Discard, ServerUndiscovered, SourceNotAllowed, UnknownServer
from dmnotid.policy.addresses import Source
from dmnotid.policy.servers import REMEMBERED_ADDRESSES, FindSigners, Server, Servers
from dmnotid.wire.notification import Notification, decode_notification, encode_notification

NEAR = Source("192.0.2.7", 40000)
FAR = Source("198.51.100.7", 40000)
NEARBY = (ip_network("192.0.2.0/24"),)


def notification(server_id: str | None = None, *, signed: bool = True) -> Notification:
    return decode_notification(encode_notification(1, server_id=server_id, sent_at=0 if signed else None))


def fits(*identities: str) -> FindSigners:
    """Stand in for the digest: it fits the secrets of these servers."""
    return lambda _, servers: [server for server in servers if server.id in identities]


def never(_: Notification, servers: Sequence[Server]) -> Sequence[Server]:
    """Stand in for the digest where it must not be computed."""
    assert not servers
    return []


def found(servers: Servers, source: Source, wanted: Notification, signers: FindSigners = never) -> str:
    """Return the id of the server found, or the reason of the Discard."""
    try:
        return servers.find(wanted, source, signers).id
    except Discard as discard:
        return discard.reason


def test_secret_is_not_shown() -> None:
    """A repr ends up in logs."""
    assert "rope" not in repr(Server("a", b"rope"))


def test_server_defaults() -> None:
    """5.3.5: a server must sign, and may send from anywhere, unless configured otherwise."""
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
def test_sources(sources: list[str], address: str, *, allowed: bool) -> None:
    """5.3.5: the networks a server may send from; an address that is none is in no network."""
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


def test_servers_in_the_order_of_the_configuration() -> None:
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
def test_servers_refuse_ids(ids: list[str], message: str) -> None:
    """5.3: what is configured can be received, and means one server."""
    with pytest.raises(ValueError, match=message):
        Servers(map(Server, ids))


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [("a", "a"), ("b", "b"), ("A", "unknown-server"), ("c", "unknown-server"), ("a ", "unknown-server")],
)
@pytest.mark.parametrize("signed", [True, False])
def test_found_by_server_id(wanted: str, answer: str, *, signed: bool) -> None:
    """5.3: the server of that id, case-sensitively; there is no default server."""
    assert found(Servers([Server("a"), Server("b")]), NEAR, notification(wanted, signed=signed)) == answer


def test_one_server_is_no_default() -> None:
    """5.3: not even the only one answers to another id."""
    with pytest.raises(UnknownServer, match=r"^no server 'b' is configured$"):
        Servers([Server("a", b"s", require_digest=False)]).find(notification("b"), NEAR, never)


@pytest.mark.parametrize("configured", ["möwe", "mo\u0308we"])
@pytest.mark.parametrize("wanted", ["C3 B6", "6F CC 88"], ids=["nfc", "nfd"])
def test_found_after_nfc_on_both_sides(configured: str, wanted: str) -> None:
    """5.3."""
    value = b"m" + bytes.fromhex(wanted) + b"we"
    package = bytes.fromhex("20 80 00 01 10") + bytes([len(value)]) + value
    assert found(Servers([Server(configured)]), NEAR, decode_notification(package)) == configured


@pytest.mark.parametrize("signed", [True, False])
def test_source_of_a_named_server(*, signed: bool) -> None:
    """5.3.5: before any digest is computed (`never`)."""
    servers = Servers([Server("a", sources=NEARBY), Server("b")])
    assert found(servers, NEAR, notification("a", signed=signed)) == "a"
    assert found(servers, FAR, notification("b", signed=signed)) == "b"
    with pytest.raises(SourceNotAllowed, match=r"^198.51.100.7 is not among the sources of 'a'$"):
        servers.find(notification("a", signed=signed), FAR, never)


@pytest.mark.parametrize(
    ("fitting", "answer"),
    [
        (["a"], "a"),
        (["b"], "b"),
        ([], "digest-mismatch"),
        (["a", "b"], "server-undiscovered"),
        (["none"], "digest-mismatch"),
    ],
)
def test_discovered_by_what_verifies(fitting: list[str], answer: str) -> None:
    """5.3.5: SERVER-ID absent, signed: the one server whose secret fits."""
    servers = Servers([Server("a", b"1"), Server("b", b"2"), Server("none")])
    assert found(servers, NEAR, notification(), fits(*fitting)) == answer


def test_discovery_asks_for_every_secret_at_once() -> None:
    """5.3.5."""
    asked: list[list[str]] = []

    def first(_: Notification, servers: Sequence[Server]) -> Sequence[Server]:
        asked.append([server.id for server in servers])
        return servers[:1]

    servers = Servers([Server("a", b"1"), Server("none"), Server("b", b"2"), Server("c", b"3")])
    assert servers.find(notification(), NEAR, first).id == "a"
    assert asked == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("source", "fitting", "answer"),
    [
        (NEAR, ["near"], "near"),
        (NEAR, ["any"], "any"),
        (NEAR, ["near", "any"], "server-undiscovered"),
        (FAR, ["any"], "any"),
        (FAR, ["near", "any"], "any"),
        (FAR, ["near"], "digest-mismatch"),
    ],
)
def test_discovery_asks_only_servers_that_may_send_from_there(source: Source, fitting: list[str], answer: str) -> None:
    """5.3.5: sources come before hashing, here too."""
    servers = Servers([Server("near", b"1", sources=NEARBY), Server("any", b"2")])
    assert found(servers, source, notification(), fits(*fitting)) == answer


def test_discovery_from_a_source_nobody_may_use() -> None:
    """5.3.5: and no digest is computed (`never`)."""
    servers = Servers([Server("near", b"1", sources=NEARBY), Server("open", require_digest=False)])
    with pytest.raises(SourceNotAllowed, match=r"^no SERVER-ID, and 198\.51\.100\.7 is not among the sources"):
        servers.find(notification(), FAR, never)


@pytest.mark.parametrize("servers", [Servers([]), Servers([Server("a"), Server("b", sources=NEARBY)])])
def test_discovery_without_any_secret(servers: Servers) -> None:
    """5.3.5: none fits."""
    with pytest.raises(DigestMismatch, match=r"^no SERVER-ID, and the digest fits none of 0 secrets$"):
        servers.find(notification(), FAR, never)


def test_discovery_messages() -> None:
    servers = Servers([Server("a", b"1"), Server("b", b"1"), Server("c", b"2", sources=NEARBY)])
    with pytest.raises(ServerUndiscovered, match=r"^no SERVER-ID, and the digest fits the secrets of 2 servers$"):
        servers.find(notification(), FAR, fits("a", "b"))
    with pytest.raises(DigestMismatch, match=r"^no SERVER-ID, and the digest fits none of 2 secrets$"):
        servers.find(notification(), FAR, fits())


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
def test_neither_server_id_nor_digest(servers: list[Server], source: Source, answer: str) -> None:
    """5.3.5: the only server that takes unsigned notifications from there."""
    assert found(Servers(servers), source, notification(signed=False)) == answer


def test_neither_server_id_nor_digest_message() -> None:
    with pytest.raises(
        ServerUndiscovered, match=r"^neither SERVER-ID nor digest, and 2 servers take that from 192\.0\.2\.7$"
    ):
        Servers([OPEN, OPEN_NEAR]).find(notification(signed=False), NEAR, never)


def test_the_secrets_tried_for_a_sender_are_remembered_for_some_senders() -> None:
    """And always are those of its `sources`, however many senders there are."""
    near, far = (Server(name, b"x", sources=(ip_network(net),)) for name, net in NETS.items())
    servers = Servers([near, far])
    tried: list[str] = []

    def fits_none(_: Notification, servers: Sequence[Server]) -> Sequence[Server]:
        tried.extend(server.id for server in servers)
        return []

    for number in [*range(2 * REMEMBERED_ADDRESSES), *range(5)]:
        assert found(servers, Source(f"192.0.2.{number}", number), notification(), fits_none) == "digest-mismatch"
        assert found(servers, Source(f"198.51.100.{number}", 7), notification(), fits_none) == "digest-mismatch"
        assert tried[-2:] == ["near", "far"]
    assert len(servers._from_address) == REMEMBERED_ADDRESSES


NETS = {"near": "192.0.2.0/24", "far": "198.51.100.0/24"}
