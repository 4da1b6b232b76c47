"""What breaks a connection, and what doesn't: real kernel links that are gone and back before anybody looks (5.3.4)."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import pytest

from dmnotid.config.values import ConnectionsConfig
from dmnotid.links.monitor import Link, Links, lasted, read_links
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType
from tests.conftest import loop_factories
from tests.netns import Namespace, needs_namespace
from tests.support import DEADLINE, eventually

pytestmark = [pytest.mark.root, needs_namespace]

SETTLE = 0.2
CONFIG: Final = ConnectionsConfig("internet", MappingProxyType({ConnectionType.WIRELINE: ("eth*",)}), SETTLE)
ETH0: Final = Connection(ConnectionType.WIRELINE, "eth0")

ADDRESS: Final = "addr add 192.0.2.1/24 dev eth0"
ROUTE: Final = "route append default via 192.0.2.254 dev eth0 metric 100"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A namespace with eth0, which is available."""
    with Namespace() as made:
        made.add_veth("eth0")
        made.ip_batch([ADDRESS, ROUTE])
        time.sleep(0.02)  # the kernel tells in hundredths of a second when an address was made
        yield made


def make_anew(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    namespace.ip_batch([ADDRESS, ROUTE])


def raise_again(namespace: Namespace, *lines: str) -> None:
    namespace.ip_batch(["link set eth0 up", *lines])
    namespace.wait_up("eth0")


def raise_far_end(namespace: Namespace) -> None:
    namespace.far_ip("link", "set", "eth0", "up")
    namespace.wait_up("eth0")


class Break(NamedTuple):
    """How eth0 is lost, and how it comes back."""

    lose: Callable[[Namespace], object]
    restore: Callable[[Namespace], object]


BREAKS: Final = {
    "carrier": Break(lambda made: made.far_ip("link", "set", "eth0", "down"), raise_far_end),
    "administration": Break(lambda made: made.ip("link", "set", "eth0", "down"), lambda made: raise_again(made, ROUTE)),
    "address": Break(
        lambda made: made.ip("addr", "flush", "dev", "eth0", "scope", "global"),
        lambda made: made.ip_batch([ADDRESS, ROUTE]),
    ),
    "interface": Break(lambda made: made.ip("link", "del", "eth0"), make_anew),
}

NO_BREAKS: Final = {
    "nothing": [],
    "another address came": ["addr add 198.51.100.1/24 dev eth0"],
    "another address came and went": ["addr add 198.51.100.1/24 dev eth0", "addr del 198.51.100.1/24 dev eth0"],
    "IPv6 came too": ["addr add 2001:db8::1/64 dev eth0", "route add ::/0 via fe80::1 dev eth0"],
    "a lease was renewed": ["addr change 192.0.2.1/24 dev eth0 valid_lft 600 preferred_lft 600"],
    "a better route came": ["route append default via 192.0.2.253 dev eth0 metric 50"],
    "a worse route came": ["route append default via 192.0.2.253 dev eth0 metric 150"],
    "another metric": [
        "route append default via 192.0.2.254 dev eth0 metric 50",
        "route del default dev eth0 metric 100",
    ],
    "another interface came": ["link add br0 type bridge"],
}

BREAKS_FOR_GOOD: Final = {
    "another address, and the first one gone": [
        "addr add 198.51.100.1/24 dev eth0",
        "addr del 192.0.2.1/24 dev eth0",
        "route replace default via 198.51.100.254 dev eth0 metric 100",
    ],
    "IPv6 instead of IPv4": [
        "addr add 2001:db8::1/64 dev eth0",
        "route add ::/0 via fe80::1 dev eth0",
        "addr del 192.0.2.1/24 dev eth0",
    ],
}


def eth0(namespace: Namespace) -> Link:
    (link,) = [link for link in namespace.call(read_links, CONFIG) if link.name == "eth0"]
    assert link.available
    return link


@pytest.mark.parametrize("way", BREAKS)
def test_what_was_gone_and_is_back_has_not_lasted(namespace: Namespace, way: str) -> None:
    """5.3.4: both reads find it available, and the second one shows the break."""
    before = eth0(namespace)
    BREAKS[way].lose(namespace)
    BREAKS[way].restore(namespace)
    assert not lasted(before, eth0(namespace), CONFIG.reach)


@pytest.mark.parametrize("what", BREAKS_FOR_GOOD)
def test_what_goes_by_other_means_now_has_not_lasted(namespace: Namespace, what: str) -> None:
    """What was open over the former address or route is gone, and the new one may go as quickly as it came."""
    before = eth0(namespace)
    namespace.ip_batch(BREAKS_FOR_GOOD[what])
    assert not lasted(before, eth0(namespace), CONFIG.reach)


@pytest.mark.parametrize("what", NO_BREAKS)
def test_what_takes_nothing_away_is_no_break(namespace: Namespace, what: str) -> None:
    before = eth0(namespace)
    namespace.ip_batch(NO_BREAKS[what])
    assert lasted(before, eth0(namespace), CONFIG.reach)


async def settle_anew(namespace: Namespace, way: Break) -> None:
    """The loop stands still from the loss until the link is back: no read can come in between."""
    with closing(Links(CONFIG)) as links:
        links.open(lambda: None)
        assert links.available() == ()
        await eventually(links.available)
        way.lose(namespace)
        back_at = time.monotonic()
        way.restore(namespace)
        await eventually(lambda: not links.available())
        await eventually(links.available)
        assert time.monotonic() >= back_at + SETTLE


async def find_nothing(namespace: Namespace, way: Break) -> None:
    """Without waiting for the kernel's notice."""
    with closing(Links(CONFIG)) as links:
        links.open(lambda: None)
        await eventually(links.available)
        assert links.read_now()
        way.lose(namespace)
        assert links.available() == (ETH0,), "as the last read found it"
        way.restore(namespace)
        assert links.read_now()
        assert links.available() == ()


async def look_at_one(namespace: Namespace, way: Break) -> None:
    """Without waiting for a notice either, and without a whole read."""
    with closing(Links(CONFIG)) as links:
        links.open(lambda: None)
        await eventually(lambda: links.still_has(ETH0))
        way.lose(namespace)
        assert not links.still_has(ETH0)
        way.restore(namespace)
        assert not links.still_has(ETH0)


@pytest.mark.parametrize("loop", loop_factories())
@pytest.mark.parametrize("way", BREAKS)
@pytest.mark.parametrize("scenario", [settle_anew, find_nothing, look_at_one])
def test_what_was_gone_and_is_back_settles_anew(
    namespace: Namespace, loop: str, way: str, scenario: Callable[[Namespace, Break], Any]
) -> None:
    """5.3.4: though it was gone within one pause between two reads."""

    def run() -> None:
        with asyncio.Runner(loop_factory=loop_factories()[loop]) as runner:
            runner.run(asyncio.wait_for(scenario(namespace, BREAKS[way]), DEADLINE))

    namespace.call(run)
