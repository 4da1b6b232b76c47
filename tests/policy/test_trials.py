"""The account of the time that trials take: plain numbers, no clock."""

from collections.abc import Sequence
from itertools import count

import pytest

from dmnotid.errors import Discard, NotTried
from dmnotid.policy.authenticity import sign
from dmnotid.policy.servers import Server
from dmnotid.policy.trials import FEW, SMALL, Allowance, Trials
from dmnotid.wire.notification import Notification, decode_notification, encode_notification

MANY = [Server(f"dm{number}.example", b"%d" % number) for number in range(FEW + 1)]


def notification(secret: bytes = b"0", more: bytes = b"") -> Notification:
    options = [(6, more)] if more else []
    return decode_notification(sign(encode_notification(1, sent_at=0, unknown_options=options), secret))


def trials(*times: float) -> Trials:
    """Tell these times one after the other, and no more."""
    return Trials(iter(times).__next__, Allowance(share=0.5, most=4.0), Allowance(share=0.5, most=4.0))


def test_what_was_saved_up_can_be_spent_at_once() -> None:
    allowance = Allowance(0.5, 8.0)
    for _ in range(4):
        assert allowance.has_left(100.0)
        allowance.spend(2.0)
    assert not allowance.has_left(100.0)


def test_what_is_left_may_be_overspent_and_is_owed_then() -> None:
    allowance = Allowance(0.5, 8.0)
    assert allowance.has_left(0.0)
    allowance.spend(10.0)
    assert not allowance.has_left(4.0)
    assert allowance.has_left(4.5)


def test_the_share_comes_in_with_time() -> None:
    allowance = Allowance(0.25, 1.0)
    assert allowance.has_left(0.0)
    allowance.spend(1.0)
    assert not allowance.has_left(0.0)
    assert allowance.has_left(2.0)
    allowance.spend(0.5)
    assert not allowance.has_left(2.0)


def test_no_more_is_saved_up_than_the_most() -> None:
    allowance = Allowance(0.5, 1.0)
    assert allowance.has_left(0.0)
    assert allowance.has_left(1_000_000.0)
    allowance.spend(1.0)
    assert not allowance.has_left(1_000_000.0)


def test_no_more_is_owed_than_the_most() -> None:
    """A process that was stopped in the middle of a trial booked an hour."""
    allowance = Allowance(0.5, 4.0, 1.0)
    assert allowance.has_left(0.0)
    allowance.spend(3_600.0)
    assert not allowance.has_left(2.0)
    assert allowance.has_left(2.5)


@pytest.mark.parametrize("cost", [0.125, 2.0, 4.0])
def test_over_time_no_more_than_the_share_is_spent(cost: float) -> None:
    """Whatever a trial costs, with one waiting at any time."""
    allowance, now, spent = Allowance(0.5, 2.0), 0.0, 0.0
    while now < 1_000:
        if allowance.has_left(now):
            allowance.spend(cost)
            spent += cost
            now += cost
        else:
            now += 0.015625
    assert spent == pytest.approx(502.0, abs=2 * cost)


def test_trials_take_time_and_end() -> None:
    """The first takes twice what there is, and half of that comes in meanwhile."""
    tried = trials(10.0, 18.0, 18.0, 18.0, 18.5, 19.0)
    assert tried.find_signers(notification(), MANY) == MANY[:1]
    for _ in range(2):
        with pytest.raises(NotTried, match=r"^no SERVER-ID, and no time left to try 17 secrets$"):
            tried.find_signers(notification(), MANY)
    assert tried.find_signers(notification(), MANY) == MANY[:1]


def test_large_packages_take_no_time_of_small_ones() -> None:
    """Nor the other way round: one that takes long uses up what there is for its size."""
    small, large = notification(), notification(more=bytes(SMALL))
    assert len(large.octets) > SMALL >= len(notification(more=bytes(SMALL - len(small.octets) - 2)).octets)
    for first, second in ((small, large), (large, small)):
        tried = trials(0.0, 8.0, 8.0, 8.0, 8.0)
        assert tried.find_signers(first, MANY) == MANY[:1]
        assert tried.find_signers(second, MANY) == MANY[:1]
        with pytest.raises(NotTried):
            tried.find_signers(first, MANY)


@pytest.mark.parametrize("servers", [MANY[:FEW], MANY[:1], []], ids=len)
def test_few_secrets_are_tried_always(servers: Sequence[Server]) -> None:
    """And no clock is asked: here is none."""
    tried = trials()
    for _ in range(1_000):
        assert tried.find_signers(notification(), servers) == servers[:1]


def test_some_hundreds_are_tried_at_once() -> None:
    """A burst of 400 where each takes half a millisecond, and what is between two of them as long."""
    tried = Trials(count(step=0.0005).__next__)
    for _ in range(400):
        assert tried.find_signers(notification(b"7"), MANY) == [MANY[7]]


def test_what_was_not_tried_is_not_judged() -> None:
    assert not issubclass(NotTried, Discard)
