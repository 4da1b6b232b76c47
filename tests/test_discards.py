"""The account of discarded datagrams: lines, summaries of the others, and the last datagrams."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dmnotid.discards import (
    FIRST_DISCARDS,
    MAX_KEPT_OCTETS,
    MAX_SOURCES,
    RECENT_DISCARDS,
    Discarded,
    DiscardLog,
    RecentDiscards,
)
from dmnotid.errors import (
    DigestMismatch,
    Discard,
    Duplicate,
    MalformedField,
    NotAPush,
    QueueFull,
    Stale,
    TrailingOctets,
    Truncated,
    UnknownServer,
)
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram, Handover
from dmnotid.wire.notification import decode_notification
from tests.support import SOURCE, LogLines, eventually, package

# The log of discards

SENT = Datagram(b"", SOURCE, 0)


def discard(refusal: Discard | None = None) -> Discard:
    found = Stale(0, 86_401, 86_400) if refusal is None else refusal
    found.server_id, found.notification_id = "dm.example", 7
    return found


@contextmanager
def discard_log(interval: float = 3_600) -> Iterator[DiscardLog]:
    discards = DiscardLog(interval)
    yield discards
    discards.flush()


async def test_discard_is_one_line_with_stable_keys(logged: LogLines) -> None:
    with discard_log() as discards:
        discards.note(discard(), SENT)
    (line,) = logged.all()
    assert list(line) == ["event", "level", "time", "reason", "server_id", "notification_id", "source", "problem"]
    assert (line["event"], line["reason"]) == ("datagram discarded", "stale")
    assert (line["server_id"], line["notification_id"]) == ("dm.example", 7)
    assert (line["source"], line["problem"]) == ("192.0.2.7:40000", str(Stale(0, 86_401, 86_400)))


async def test_discard_shows_a_long_server_id_until_the_line_is_full(logged: LogLines) -> None:
    """Shortened once, by the log."""
    for length in (1_024, 1_025):
        found = UnknownServer("x" * length)
        found.server_id = "x" * length
        with discard_log() as discards:
            discards.note(found, SENT)
    whole, cut = (line["server_id"] for line in logged.of("datagram discarded"))
    assert (whole, cut) == ("x" * 1_024, "x" * (1_024 - len("\\u2026")) + "…")


async def test_first_discards_of_each_reason_are_logged_and_the_rest_summed_up(logged: LogLines) -> None:
    with discard_log() as discards:
        for _ in range(FIRST_DISCARDS + 7):
            discards.note(discard(), SENT)
        for _ in range(FIRST_DISCARDS):
            discards.note(discard(UnknownServer("dm.example")), SENT)
        assert [line["reason"] for line in logged.all()] == ["stale"] * 5 + ["unknown-server"] * 5
        discards.flush()
    (summary,) = logged.of("datagrams discarded")
    assert (summary["reason"], summary["count"], summary["interval"]) == ("stale", 7, 3_600)
    assert summary["level"] == "warning"


async def test_summary_names_the_address_that_sent_most(logged: LogLines) -> None:
    with discard_log() as discards:
        for number in range(FIRST_DISCARDS):
            discards.note(discard(), Datagram(b"", Source("192.0.2.1", number), 0))
        for number in range(3):
            discards.note(discard(), Datagram(b"", Source("192.0.2.2", number), 0))
        discards.note(discard(), Datagram(b"", Source("192.0.2.3", 1), 0))
        discards.flush()
        for _ in range(FIRST_DISCARDS + 1):
            discards.note(discard(), Datagram(b"", Source("192.0.2.4", 1), 0))
    first, second = logged.of("datagrams discarded")
    assert (first["count"], first["source"], first["source_count"], first["sources"]) == (4, "192.0.2.2", 3, 2)
    assert (second["count"], second["source"], second["source_count"], second["sources"]) == (1, "192.0.2.4", 1, 1)


async def test_flood_from_any_number_of_addresses_is_counted_for_the_first_of_them(logged: LogLines) -> None:
    with discard_log() as discards:
        for number in range(FIRST_DISCARDS + 1_000):
            discards.note(discard(), Datagram(b"", Source(f"2001:db8::{number:x}", 1), 0))
        discards.note(discard(), Datagram(b"", Source(f"2001:db8::{FIRST_DISCARDS:x}", 2), 0))
    (summary,) = logged.of("datagrams discarded")
    assert (summary["count"], summary["sources"]) == (1_001, MAX_SOURCES)
    assert (summary["source"], summary["source_count"]) == (f"2001:db8::{FIRST_DISCARDS:x}", 2)


async def test_interval_ends_by_itself_and_another_begins(logged: LogLines) -> None:
    with discard_log(0.02) as discards:
        for number in (1, 2):
            for _ in range(FIRST_DISCARDS + 3):
                discards.note(discard(), SENT)
            await eventually(lambda number=number: len(logged.of("datagrams discarded")) == number)  # type: ignore[misc]
    assert [line["count"] for line in logged.of("datagrams discarded")] == [3, 3]
    assert len(logged.of("datagram discarded")) == 2 * FIRST_DISCARDS


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (NotAPush(7), "info"),
        (UnknownServer("dm.example"), "info"),
        (Duplicate(3, same_content=True), "info"),
        (Duplicate(3, same_content=False), "warning"),
        (DigestMismatch("dm.example"), "warning"),
        (QueueFull("dm.example", 1, 1), "warning"),
        (TrailingOctets("DM Notification", "end", 4, "1 more"), "warning"),
    ],
)
async def test_suspicious_discard_is_a_warning(logged: LogLines, found: Discard, level: str) -> None:
    with discard_log() as discards:
        discards.note(found, SENT)
    assert [line["level"] for line in logged.all()] == [level]


async def test_octets_of_a_decode_error_are_logged_in_hex(logged: LogLines) -> None:
    junk = b"\x1b]0;owned\x07\n"
    with pytest.raises(TrailingOctets) as caught:
        decode_notification(package() + junk)
    with discard_log() as discards:
        discards.note(caught.value, SENT)
    assert junk.hex(" ") in logged.all()[0]["problem"]
    assert logged.getvalue().rstrip("\n").isprintable()


# The last datagrams


def test_last_datagrams_of_each_reason_are_kept_in_the_order_of_arrival() -> None:
    recent = RecentDiscards()
    for number in range(RECENT_DISCARDS + 2):
        recent.add(discard(), Datagram(b"%d" % number, SOURCE, number))
    recent.add(discard(UnknownServer("nobody.example")), Datagram(b"other", SOURCE, 4.5))
    assert [it.octets for it in recent] == [b"2", b"3", b"4", b"other", b"5"]


def test_kept_datagram_has_its_sender_its_claims_and_the_sentence() -> None:
    recent = RecentDiscards()
    recent.add(discard(), Datagram(bytes(MAX_KEPT_OCTETS + 1), SOURCE, 86_401.5))
    ends = "dm.example", "stale", str(Stale(0, 86_401, 86_400)), bytes(MAX_KEPT_OCTETS)
    assert list(recent) == [Discarded(86_401.5, SOURCE, *ends, bare=False)]


def test_kept_datagram_of_a_door_is_known_as_a_package_and_keeps_no_way_to_answer() -> None:
    """The way to answer leads to the door, which a reload may close."""
    recent = RecentDiscards()
    door = Source("local", None)
    kept = recent.add(discard(), Datagram(b"x", door, 5, Handover(bare=True, pid=1, uid=2, answer=lambda _: None)))
    assert [(it.source, it.bare) for it in recent] == [(door, True)]
    assert kept[1].handover == Handover(bare=True, pid=1, uid=2)


def test_kept_discard_keeps_no_frames() -> None:
    """They hold the datagram, its batch, and much else."""
    kept: list[Discard] = []
    for octets in (b"", package() + b"\0", b"\x20\x80\0\1\x30\x03odd"):
        try:
            decode_notification(octets)
        except Discard as found:
            RecentDiscards().add(found, Datagram(octets, SOURCE, 0))
            kept.append(found)
    assert [(type(it), it.__traceback__, it.__context__) for it in kept] == [
        (Truncated, None, None),
        (TrailingOctets, None, None),
        (MalformedField, None, None),
    ]
