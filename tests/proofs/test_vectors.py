"""The project's own vectors (tests/proofs/vectors), through the pure functions."""

import json
from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from dmnotid import sender
from dmnotid.errors import Discard, Duplicate, QueueFull
from dmnotid.policy.addresses import Source
from dmnotid.policy.freshness import Clock, Freshness, ServerTimes
from dmnotid.policy.reception import Datagram, Rules, receive
from dmnotid.policy.routing import check_route
from dmnotid.policy.servers import Server, Servers
from dmnotid.wire.notification import decode_notification
from dmnotid.wire.wsp import DEFAULT_MAX_HEADER_OCTETS, DEFAULT_MAX_OCTETS, decode_push
from tests.proofs.vectors import make

Row = dict[str, Any]

HERE = Path(__file__).parent / "vectors"
FACTS = (
    "body_offset",
    "notification_id",
    "server_id",
    "preferred_connections",
    "requested_mos",
    "cached_mos",
    "sent_at",
    "signed",
)
PAIRS = ("cached_mos", "unknown_options")
BUILT = frozenset(FACTS) - {"body_offset", "signed"}


def read(name: str) -> tuple[Row, list[Row]]:
    head, *rows = [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]
    return head, rows


HEAD, RECEIVE = read("receive.jsonl")
RULES_HEAD, RULED = read("rules.jsonl")
DECODE = read("decode.jsonl")[1]
SEND = read("send.jsonl")[1]
FILES = {"decode.jsonl": DECODE, "receive.jsonl": RECEIVE, "rules.jsonl": RULED, "send.jsonl": SEND}
EVERY = DECODE + RECEIVE + RULED + SEND


def names(rows: Iterable[Row]) -> list[str]:
    return [row["name"] for row in rows]


def decoded(datagram: bytes) -> Row:
    """Decode a datagram as far as no server is needed; the form of a row's "decode"."""
    found: Row = {}
    try:
        push = decode_push(datagram)
        check_route(push.header)
        body = push.body
        found["body_offset"] = push.body_offset
        notification = decode_notification(body)
    except Discard as discard:
        return found | {"verdict": "discard", "reason": discard.reason}
    return found | {
        "verdict": "accept",
        "reason": None,
        "notification_id": notification.notification_id,
        "server_id": notification.server_id,
        "preferred_connections": list(notification.preferred_connections),
        "requested_mos": list(notification.requested_mos),
        "cached_mos": [[index, validator.hex()] for index, validator in notification.cached_mos],
        "sent_at": notification.sent_at,
        "signed": notification.signed,
    }


def received(datagram: bytes, servers: Row, at: float, row: Row) -> Row:
    """Take a datagram all the way; the form of a row's "receive"."""
    rules = Rules(
        Servers(server(identity, facts) for identity, facts in servers.items()),
        Freshness(row.get("max_age", 86_400), row.get("max_skew")),
        row.get("max_header_octets", DEFAULT_MAX_HEADER_OCTETS),
        row.get("max_octets", DEFAULT_MAX_OCTETS),
    )
    times = dict.fromkeys(servers, ServerTimes(row.get("newest", 0), row.get("forgotten", -1)))
    clock = Clock(at, row.get("believed", True), times, RULES_HEAD["released_at"])
    source = Source(row.get("source") or RULES_HEAD["source"], 40000)
    try:
        verified = receive(Datagram(datagram, source, at), rules, clock)
    except Discard as discard:
        return {"verdict": "discard", "reason": discard.reason}
    assert verified.source == source
    assert verified.received_at == at
    return {"verdict": "accept", "reason": None}


def server(identity: str, facts: Row) -> Server:
    secret = facts["secret_text"].encode() if "secret_text" in facts else None
    sources = tuple(map(ip_network, facts.get("sources", ())))
    return Server(identity, secret, require_digest=facts.get("require_digest", True), sources=sources)


def expected(rows: list[Row], kind: str) -> Row:
    """Return the verdict of each row, by its name."""
    return {row["name"]: row[kind] for row in rows}


def test_decode() -> None:
    """4 to 6.2, WAP-230 8: the meaning of the octets."""
    rows = DECODE + RECEIVE + SEND
    assert {row["name"]: decoded(bytes.fromhex(row["hex"])) for row in rows} == expected(rows, "decode")


def test_decode_rows_with_rules() -> None:
    """5: rules do not change the meaning of the octets."""
    assert {row["name"]: decoded(bytes.fromhex(row["hex"])) for row in RULED} == expected(RULED, "decode")


def test_receive() -> None:
    """5.1.4, 5.3.5: two servers, a believed clock."""
    servers, at = HEAD["servers"], HEAD["at"]
    found = {row["name"]: received(bytes.fromhex(row["hex"]), servers, at, HEAD) for row in RECEIVE}
    assert found == expected(RECEIVE, "receive")


def test_receive_by_rules() -> None:
    """5.3.5, 6.1: other servers, sources, clocks and limits."""
    rows = [{"at": RULES_HEAD["default_at"], **row} for row in RULED]
    found = {row["name"]: received(bytes.fromhex(row["hex"]), row["servers"], row["at"], row) for row in rows}
    assert found == expected(RULED, "receive")


def sent(row: Row) -> bytes:
    """Make the octets of a row of send.jsonl."""
    package = built(row["build"])
    signed = sender.sign(package, row["secret_text"].encode()) if "secret_text" in row else package
    return sender.push(signed, **row["push"])


def built(facts: Row) -> bytes:
    """Make a package of facts, in which octets are in hex."""
    pairs = {key: [(it, bytes.fromhex(octets)) for it, octets in facts[key]] for key in PAIRS if key in facts}
    return sender.build(**facts | pairs)


def test_sender_makes_the_octets() -> None:
    """5, 6: the arguments of a DM server give the octets that were put together by hand."""
    assert {row["name"]: sent(row).hex() for row in SEND} == {row["name"]: row["hex"] for row in SEND}


def test_sender_keeps_every_fact_of_an_accepted_datagram() -> None:
    """5: a package that is built from decoded facts has the same facts."""
    accepted = [row for row in EVERY if row["decode"]["verdict"] == "accept"]
    assert len(accepted) > len(EVERY) // 3
    for row in accepted:
        facts = {key: value for key, value in row["decode"].items() if key in BUILT}
        assert decoded(sender.push(built(facts))) == row["decode"] | {"body_offset": 6}, row["name"]


@pytest.mark.parametrize("name", sorted(FILES))
def test_files_are_what_make_writes(name: str) -> None:
    assert (HERE / name).read_text(encoding="utf-8").splitlines() == make.lines(name)


@pytest.mark.parametrize("name", sorted(FILES))
def test_names_stand_once(name: str) -> None:
    assert len(set(names(FILES[name]))) == len(FILES[name])


def test_rows_are_complete() -> None:
    """An accept tells every fact; a discard its reason."""
    for row in EVERY:
        if row["decode"]["verdict"] == "accept":
            assert set(row["decode"]) == {"verdict", "reason", *FACTS}, row["name"]
        else:
            assert row["decode"]["reason"], row["name"]


def test_every_reason_has_a_vector() -> None:
    """Every reason word but the journal's own two stands in a row."""
    said = {row[kind]["reason"] for row in EVERY for kind in ("decode", "receive") if kind in row}
    assert said - {None} == reasons(Discard) - {Duplicate.reason, QueueFull.reason}


def reasons(root: type[Discard]) -> set[str]:
    """Return the reasons of the classes nothing derives from."""
    below = root.__subclasses__()
    return set().union(*map(reasons, below)) if below else {root.reason}
