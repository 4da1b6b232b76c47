"""Which row makes a notification a duplicate, and when rows are forgotten."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dmnotid.errors import Duplicate, QueueFull, Stale
from dmnotid.journal.duplicates import CACHED_ROWS, PRUNE_EVERY, PRUNE_ROWS
from dmnotid.journal.queue import Journal
from dmnotid.policy.freshness import MARGIN
from dmnotid.policy.sessions import Closed
from dmnotid.wire.notification import ConnectionType
from tests.journal.journals import (
    DAY,
    NOW,
    REMEMBER,
    ROOMY,
    YEARS,
    admit,
    admit_done,
    ids,
    open_journal,
    refusal,
    times,
)
from tests.support import OPEN_ID, OTHER_ID, SERVER_ID, verified

LAST = 2**32 - 1


def rows_of(journal: Journal) -> list[int]:
    """Return the NOTIFICATION-IDs of all rows."""
    return [row.notification_id for row in journal.rows()]


# Duplicates


def test_duplicate_is_refused_before_and_after_the_commit(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.admit(verified(received_at=NOW))
        for _ in range(2):
            with pytest.raises(Duplicate, match="session 1") as caught:
                journal.admit(verified(received_at=NOW))
            assert caught.value.same_content
            assert (caught.value.server_id, caught.value.notification_id) == (SERVER_ID, 7)
            journal.commit()
        assert len(journal.pending()) == 1


@pytest.mark.parametrize("closed", [None, *Closed])
def test_duplicate_is_refused_after_a_restart(tmp_path: Path, closed: Closed | None) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal)
        if closed is not None:
            journal.close([(request, closed, "")])
    with open_journal(tmp_path) as journal:
        with pytest.raises(Duplicate) as caught:
            admit(journal)
        assert caught.value.same_content
        assert len(journal.pending()) == (closed is None)


def test_other_content_under_the_same_id_is_a_duplicate_that_says_so(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 7)
        for _ in range(2):
            for preferred, same in (None, True), ([ConnectionType.MOBILE], False):
                with pytest.raises(Duplicate) as caught:
                    admit(journal, 7, preferred=preferred)
                assert caught.value.same_content is same
        assert "other content" in str(caught.value)


def test_ids_are_counted_for_each_server(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for server_id in (SERVER_ID, OTHER_ID, OPEN_ID):
            admit(journal, server_id=server_id)
        assert [request.server_id for request in journal.pending()] == [SERVER_ID, OTHER_ID, OPEN_ID]


@pytest.mark.parametrize("believed", [True, False])
def test_rollback_makes_a_looked_up_row_no_duplicate(tmp_path: Path, *, believed: bool) -> None:
    with open_journal(tmp_path) as journal:
        made = verified(7, received_at=NOW, clock_believed=believed)
        journal.admit(made)
        with pytest.raises(Duplicate):
            journal.admit(made)
        journal.rollback()
        assert journal.admit(made).session == 1


def test_more_duplicates_than_are_cached_are_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path, limits=ROOMY) as journal:
        many = [verified(number, received_at=NOW) for number in range(CACHED_ROWS + 1)]
        for one in many:
            journal.admit(one)
        journal.commit()
        for one in many * 2:
            with pytest.raises(Duplicate):
                journal.admit(one)


def test_row_that_was_looked_up_and_closed_since_is_forgotten_in_its_time(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        request = admit(journal, 7)
        later = verified(7, received_at=NOW + REMEMBER + 1, sent_at=NOW + REMEMBER + 1)
        with pytest.raises(Duplicate):
            journal.admit(later)
        journal.close([(request, Closed.DONE, "")])
        assert journal.admit(later).session != request.session


@pytest.mark.parametrize("reopened", [False, True])
def test_closed_notification_is_forgotten_after_its_time(tmp_path: Path, *, reopened: bool) -> None:
    """5.1.4: remembered for `remember`, then the id is new again."""
    with open_journal(tmp_path) as journal:
        first = admit_done(journal)
        if not reopened:
            assert refusal(journal, received_at=NOW + REMEMBER) is Duplicate
            again = admit(journal, received_at=NOW + REMEMBER + 1)
    if reopened:
        with open_journal(tmp_path) as journal:
            assert refusal(journal, received_at=NOW + REMEMBER) is Duplicate
            again = admit(journal, received_at=NOW + REMEMBER + 1)
    assert again.session != first.session
    with open_journal(tmp_path) as journal:
        assert [request.session for request in journal.pending()] == [again.session]


def test_open_session_is_never_forgotten(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal)
        assert refusal(journal, received_at=NOW + YEARS) is Duplicate
        admit(journal, 8, received_at=NOW + YEARS)
        assert len(journal.pending()) == 2


def test_notification_received_before_the_clock_was_set_is_remembered(tmp_path: Path) -> None:
    """A device wakes in 1970, accepts a notification, NTP sets its clock, the server repeats itself: run twice."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, received_at=60.0, sent_at=NOW, clock_believed=False)
        assert refusal(journal, received_at=NOW + 60, sent_at=NOW) is Duplicate


def test_unsigned_notification_does_not_make_a_signed_one_forgotten(tmp_path: Path) -> None:
    """Otherwise the replay of the signed one would be new to a device whose clock is lost."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, sent_at=NOW)
        unsigned = verified(server_id=OPEN_ID, received_at=NOW + YEARS)._replace(server_id=SERVER_ID)
        with pytest.raises(Duplicate):
            journal.admit(unsigned)
        assert journal.times.servers == {SERVER_ID: times(NOW)}


def test_replay_is_a_duplicate_whatever_the_clock_says(tmp_path: Path) -> None:
    """A device that starts in 1970 again and again: the same signed octets are accepted once, not once a `remember`."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, sent_at=NOW, received_at=60.0, clock_believed=False)
        for received_at in (61.0, 60.0 + 2 * REMEMBER, 1.0, NOW + YEARS):
            believed = received_at >= NOW
            assert refusal(journal, sent_at=NOW, received_at=received_at, clock_believed=believed) is Duplicate
        assert refusal(journal, sent_at=NOW + REMEMBER + 1, received_at=NOW + REMEMBER + 2) is None


def test_id_of_a_signed_notification_is_new_for_an_unsigned_one_once_its_row_is_pruned(tmp_path: Path) -> None:
    """Otherwise anyone could make the notifications of a server that need not sign forgotten."""
    unsigned = verified(7, server_id=OPEN_ID, received_at=NOW + YEARS)._replace(server_id=SERVER_ID)
    with open_journal(tmp_path) as journal:
        admit_done(journal, 7, sent_at=NOW)
        with pytest.raises(Duplicate):
            journal.admit(unsigned)
    with open_journal(tmp_path) as journal:
        admit(journal, 8, server_id=OTHER_ID, received_at=NOW + REMEMBER + 1)
        journal.admit(unsigned)
        assert journal.times.servers[SERVER_ID] == times(NOW, NOW)


def test_unsigned_row_makes_no_signed_notification_a_duplicate(tmp_path: Path) -> None:
    """5.1.4: anyone may have sent it. Beside its open session, the signed one is refused and not remembered."""
    unsigned = verified(7, server_id=OPEN_ID, received_at=NOW)._replace(server_id=SERVER_ID)
    with open_journal(tmp_path) as journal:
        request = journal.admit(unsigned)
        journal.commit()
        for _ in range(2):
            with pytest.raises(QueueFull) as caught:
                admit(journal, 7)
            assert (caught.value.blocked_by, caught.value.notification_id) == (request.session, 7)
        assert journal.times.servers == {}
        journal.close([(request, Closed.DONE, "")])
        signed = admit(journal, 7)
        assert [row.session for row in journal.rows()] == [signed.session]
        with pytest.raises(Duplicate):
            journal.admit(unsigned)


def test_replaced_row_is_forgotten(tmp_path: Path) -> None:
    """A device that never has the time: its server wraps its counter, and the old one is sent again."""
    lost: dict[str, Any] = {"received_at": 60.0, "clock_believed": False}
    with open_journal(tmp_path) as journal:
        admit_done(journal, sent_at=NOW, **lost)
        assert refusal(journal, sent_at=NOW + REMEMBER, **lost) is Duplicate
        assert journal.times.servers[SERVER_ID] == times(NOW)
        admit_done(journal, sent_at=NOW + REMEMBER + 1, **lost)
        assert journal.times.servers[SERVER_ID] == times(NOW + REMEMBER + 1, NOW)
        assert journal.times.floor is None
        assert refusal(journal, 8, sent_at=NOW, **lost) is Stale
    with open_journal(tmp_path) as journal:
        assert journal.times.servers[SERVER_ID] == times(NOW + REMEMBER + 1, NOW)


# Arrivals under a worse clock


def test_unsigned_row_is_dated_once_the_clock_is_believed(tmp_path: Path) -> None:
    """Received in 1970, an unsigned notification is remembered for `remember` from the first believed time on."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, server_id=OPEN_ID, received_at=60.0, clock_believed=False)
        assert refusal(journal, server_id=OPEN_ID, received_at=61.0, clock_believed=False) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER + 1) is None


def test_unsigned_row_is_forgotten_though_no_clock_is_ever_believed(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit_done(journal, server_id=OPEN_ID, received_at=60.0, clock_believed=False)
        lost = partial(refusal, journal, server_id=OPEN_ID, clock_believed=False)
        assert lost(received_at=60.0 + REMEMBER) is Duplicate
        assert lost(received_at=61.0 + REMEMBER) is None


@pytest.mark.parametrize("ahead", [14 * YEARS, 60])
@pytest.mark.parametrize("reopened", [False, True])
def test_unsigned_row_of_a_clock_that_was_ahead_is_dated_again(tmp_path: Path, ahead: float, *, reopened: bool) -> None:
    """NTP steps the clock back while the daemon runs, or between two starts."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, server_id=OPEN_ID, received_at=NOW + ahead)
        if not reopened:
            assert refusal(journal, server_id=OPEN_ID, received_at=NOW) is Duplicate
    with open_journal(tmp_path) as journal:
        for back in (NOW, NOW + REMEMBER):
            assert refusal(journal, server_id=OPEN_ID, received_at=back) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER + 1) is None


def test_clock_that_goes_on_dates_nothing_again(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for number in range(3):
            admit(journal, number, server_id=OPEN_ID, received_at=NOW + number / 2)
        before = [row.received_at for row in journal.rows()]
        assert refusal(journal, 2, server_id=OPEN_ID, received_at=NOW + 0.1) is Duplicate
        assert [row.received_at for row in journal.rows()] == before


def test_rollback_takes_back_that_rows_were_dated(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit_done(journal, server_id=OPEN_ID, received_at=60.0, clock_believed=False)
        with pytest.raises(Duplicate):
            journal.admit(verified(server_id=OPEN_ID, received_at=NOW))
        journal.rollback()
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + 5) is Duplicate
        assert refusal(journal, server_id=OPEN_ID, received_at=NOW + REMEMBER + 6) is None


# Pruning


def test_old_closed_rows_are_pruned(tmp_path: Path) -> None:
    with open_journal(tmp_path, limits=ROOMY) as journal:
        for number in range(10):
            (admit if number == 4 else admit_done)(journal, number, received_at=NOW + number)
        admit_done(journal, 20, received_at=NOW + REMEMBER)
        assert ids(journal) == [4]
    with open_journal(tmp_path, limits=ROOMY) as journal:
        admit(journal, 21, received_at=NOW + REMEMBER + 3_600)
        assert rows_of(journal) == [4, 20, 21]


def test_pruning_is_done_by_the_first_admission_and_not_by_the_next(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        later = NOW + REMEMBER
        admit(journal, 1, received_at=later)
        admit_done(journal, 2, received_at=NOW + 1)
        admit(journal, 3, received_at=later + 2 * PRUNE_EVERY)
        assert 2 in rows_of(journal)
    with open_journal(tmp_path) as journal:
        admit(journal, 4, received_at=later + 2 * PRUNE_EVERY)
        assert 2 not in rows_of(journal)


def test_pruning_that_was_rolled_back_is_done_by_the_next_admission(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1)
    with open_journal(tmp_path) as journal:
        for end in (journal.rollback, journal.commit):
            journal.admit(verified(2, received_at=NOW + REMEMBER + 1, sent_at=NOW + REMEMBER + 1))
            end()
        assert rows_of(journal) == [2]


def test_backlog_is_pruned_in_parts(tmp_path: Path) -> None:
    with open_journal(tmp_path, limits=ROOMY) as journal:
        requests = [journal.admit(verified(number, received_at=NOW, sent_at=NOW)) for number in range(PRUNE_ROWS + 5)]
        journal.commit()
        journal.close([(request, Closed.DONE, "") for request in requests])
    with open_journal(tmp_path, limits=ROOMY) as journal:
        for number, left in ((10_001, 5), (10_002, 0)):
            admit(journal, number, sent_at=NOW + REMEMBER + 1, received_at=NOW + REMEMBER + 1)
            assert sum(number < 10_000 for number in rows_of(journal)) == left


def test_pending_rows_do_not_keep_old_ones_from_being_pruned(tmp_path: Path) -> None:
    with open_journal(tmp_path, limits=ROOMY) as journal:
        for number in range(PRUNE_ROWS + 5):
            journal.admit(verified(number, received_at=NOW, sent_at=NOW))
        journal.commit()
        admit_done(journal, 10_000, sent_at=NOW)
    with open_journal(tmp_path, limits=ROOMY) as journal:
        admit(journal, 20_000, sent_at=NOW + REMEMBER + 1, received_at=NOW + REMEMBER + 1)
        assert 10_000 not in rows_of(journal)


def test_signed_row_is_pruned_by_the_floor_and_its_time_is_forgotten(tmp_path: Path) -> None:
    """Neither a clock that is ahead nor a server that signs ahead prunes it, only both together."""
    with open_journal(tmp_path) as journal:
        for number, sent_at in ((1, NOW), (2, NOW + 5), (3, NOW + 1)):
            admit_done(journal, number, sent_at=sent_at, received_at=NOW + 9)
    later = NOW + REMEMBER + 5
    for number, server_id, facts in (
        (10, OPEN_ID, {"received_at": NOW + YEARS}),
        (11, SERVER_ID, {"sent_at": NOW + 6, "received_at": NOW + YEARS}),
        (12, OTHER_ID, {"sent_at": NOW + YEARS, "received_at": NOW + 10}),
        (13, OTHER_ID, {"sent_at": later, "received_at": 60.0, "clock_believed": False}),
    ):
        with open_journal(tmp_path, limits=ROOMY) as journal:
            admit(journal, number, server_id=server_id, **facts)
            assert {1, 2, 3} < set(rows_of(journal))
    with open_journal(tmp_path, limits=ROOMY) as journal:
        admit(journal, 14, server_id=OTHER_ID, sent_at=later, received_at=later)
        assert rows_of(journal) == [2, 10, 11, 12, 13, 14]
        assert journal.times.servers[SERVER_ID].forgotten == NOW + 1
        assert refusal(journal, 3, sent_at=NOW + 1) is Stale
    with open_journal(tmp_path, limits=ROOMY) as journal:
        assert journal.times.servers[SERVER_ID].forgotten == NOW + 1


def test_nothing_signed_is_pruned_without_a_floor(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit_done(journal, 1, sent_at=NOW, received_at=60.0, clock_believed=False)
    with open_journal(tmp_path) as journal:
        admit(journal, 2, sent_at=NOW + YEARS, received_at=90.0, clock_believed=False)
        assert journal.times.floor is None
        assert rows_of(journal) == [1, 2]


def test_clock_that_was_ahead_makes_nothing_signed_forgotten(tmp_path: Path) -> None:
    """Four days ahead for a moment, and an unsigned notification of another server arrives just then."""
    with open_journal(tmp_path) as journal:
        admit_done(journal, sent_at=NOW)
    with open_journal(tmp_path) as journal:
        admit(journal, 1, server_id=OPEN_ID, received_at=NOW + 4 * DAY)
        assert refusal(journal, sent_at=NOW, received_at=NOW + 60) is Duplicate


# The times of the servers, and the floor


def test_newest_time_is_kept_for_each_server(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1, server_id=OPEN_ID)
        assert (journal.times.servers, journal.times.floor) == ({}, None)
    with open_journal(tmp_path) as journal:
        admit(journal, 2, sent_at=NOW)
        admit(journal, 3, sent_at=NOW - 100)
        admit(journal, 4, sent_at=NOW + 100, server_id=OTHER_ID)
        known = {SERVER_ID: times(NOW), OTHER_ID: times(NOW + 100)}
        assert journal.times.servers == known
    with open_journal(tmp_path) as journal:
        assert journal.times.servers == known


def test_newest_time_ahead_of_a_believed_clock_is_lowered(tmp_path: Path) -> None:
    """2106, signed while the clock is in 1970; the clock is right when another server is heard."""
    with open_journal(tmp_path) as journal:
        admit(journal, 1, sent_at=LAST, received_at=60.0, clock_believed=False)
        admit(journal, 2, sent_at=NOW, received_at=90.0, clock_believed=False, server_id=OTHER_ID)
        assert journal.times.servers == {SERVER_ID: times(LAST), OTHER_ID: times(NOW)}
    with open_journal(tmp_path) as journal:
        journal.admit(verified(3, sent_at=NOW, received_at=NOW + 0.5, server_id=OTHER_ID))
        journal.rollback()
        assert journal.times.servers[SERVER_ID] == times(LAST)
        admit(journal, 4, sent_at=NOW, received_at=NOW + 0.5, server_id=OTHER_ID)
        assert journal.times.servers == {SERVER_ID: times(NOW + MARGIN), OTHER_ID: times(NOW)}
        admit(journal, 5, sent_at=LAST, received_at=NOW + 5)
        assert journal.times.servers[SERVER_ID] == times(NOW + 5 + MARGIN)
    with open_journal(tmp_path) as journal:
        assert journal.times.servers[SERVER_ID] == times(NOW + 5 + MARGIN)


@pytest.mark.parametrize(
    ("sent_at", "received_at", "believed", "floor"),
    [
        (NOW + 5, NOW + 7.5, True, NOW + 5),
        (NOW + 9, NOW + 7.5, True, NOW + 7),
        (LAST, NOW - 3.0, True, NOW),
        (NOW - 3, NOW + YEARS, True, NOW),
        (NOW + 5, NOW + 7.5, False, NOW),
    ],
)
def test_floor_is_the_latest_time_that_a_believed_clock_and_a_signature_have_reached(
    tmp_path: Path, sent_at: float, received_at: float, floor: float, *, believed: bool
) -> None:
    with open_journal(tmp_path) as journal:
        admit(journal, 1, sent_at=NOW, received_at=NOW)
        admit(journal, 2, server_id=OPEN_ID, received_at=NOW + YEARS)
        admit(journal, 3, sent_at=sent_at, received_at=received_at, clock_believed=believed, server_id=OTHER_ID)
        assert journal.times.floor == floor
        journal.admit(verified(4, sent_at=NOW + YEARS, received_at=NOW + YEARS))
        assert journal.times.floor == NOW + YEARS
        journal.rollback()
        assert journal.times.floor == floor
    with open_journal(tmp_path) as journal:
        assert journal.times.floor == floor
