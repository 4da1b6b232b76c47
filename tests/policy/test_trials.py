"""The account of the time that trials take: plain numbers, no clock."""

from collections.abc import Sequence
from itertools import count

import pytest

from dmnotid.errors import Discard, NotTried
from dmnotid.policy.authenticity import sign
from dmnotid.policy.servers import Server
from dmnotid.policy.trials import FEW, Allowance, Trials
from dmnotid.wire.notification import Notification, decode_notification, encode_notification

MANY = [Server(f"dm{number}.example", b"%d" % number) for number in range(FEW + 1)]


def notification(secret: bytes = b"0") -> Notification:
    return decode_notification(sign(encode_notification(1, sent_at=0), secret))


def trials(*times: float) -> Trials:
    """Tell these times one after the other, and no more."""
    return Trials(iter(times).__next__, Allowance(share=0.5, most=4.0))


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
    allowance = Allowance(0.5, 1.0)
    assert allowance.has_left(0.0)
    allowance.spend(3_600.0)
    assert not allowance.has_left(2.0)
    assert allowance.has_left(2.5)


def test_over_time_no_more_than_the_share_is_spent() -> None:
    """Whatever a trial costs, here a tenth of a second, with one waiting at any time."""
    allowance, now, spent = Allowance(0.5, 2.0), 0.0, 0.0
    while now < 1_000:
        if allowance.has_left(now):
            allowance.spend(0.125)
            spent += 0.125
            now += 0.125
        else:
            now += 0.015625
    assert spent == pytest.approx(502.0, abs=0.25)


def test_trials_take_time_and_end() -> None:
    """The first takes twice what there is, and half of that comes in meanwhile."""
    tried = trials(10.0, 18.0, 18.0, 18.0, 18.5, 19.0)
    assert tried.find_signers(notification(), MANY) == MANY[:1]
    for _ in range(2):
        with pytest.raises(NotTried, match=r"^no SERVER-ID, and no time left to try 17 secrets$"):
            tried.find_signers(notification(), MANY)
    assert tried.find_signers(notification(), MANY) == MANY[:1]


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
