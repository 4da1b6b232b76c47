"""Which connections sessions may use, while real kernel links change; on both event loops."""

import asyncio
import os
import resource
import selectors
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from errno import EMFILE
from pathlib import Path
from typing import Self

import pytest

from dmnotid.config.values import ConnectionsConfig, Reach
from dmnotid.links.monitor import PAUSE, Links
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType
from tests.netns import Namespace, in_namespace
from tests.support import DEADLINE, LogLines, descriptors

SETTLE = 0.3
"""`connections.settle` in tests that wait for it, in seconds."""

ETH0 = Connection(ConnectionType.WIRELINE, "eth0")
LO = Connection(ConnectionType.WIRELINE, "lo")

Line = tuple[str, str, str, str | None]


def config(reach: Reach = "internet", *, settle: float = 0, **interfaces: str) -> ConnectionsConfig:
    """A configuration with patterns as `wireline="lo eth*"`; an available connection counts at once."""
    named = {ConnectionType(name): tuple(text.split()) for name, text in interfaces.items()}
    return ConnectionsConfig(reach=reach, interfaces=named, settle=settle)


def loopback(settle: float = 0) -> ConnectionsConfig:
    """A configuration in which loopback, which every machine has, is a connection."""
    return config("any", settle=settle, wireline="lo")


class Watched:
    """Links that are open, and a count of the calls of `on_change`."""

    def __init__(self, configured: ConnectionsConfig, only: str = "") -> None:
        self.links = Links(configured)
        self.changes = 0
        self._only = only
        self._changed = asyncio.Event()

    def __enter__(self) -> Self:
        self.links.open(self._on_change)
        return self

    def __exit__(self, *_: object) -> None:
        self.links.close()

    @property
    def names(self) -> list[str]:
        names = [connection.interface for connection in self.links.available()]
        return [name for name in names if name == self._only] if self._only else names

    async def until(self, *names: str) -> None:
        """Wait for the change after which these are available."""
        async with asyncio.timeout(DEADLINE):
            while self.names != list(names):
                self._changed.clear()
                await self._changed.wait()

    async def change(self) -> None:
        """Wait for the next change."""
        self._changed.clear()
        async with asyncio.timeout(DEADLINE):
            await self._changed.wait()

    def _on_change(self) -> None:
        self.changes += 1
        self._changed.set()


@contextmanager
def few_descriptors(free: int = 0) -> Iterator[None]:
    """Let this process open so many more descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + free, limits[1]))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)


def told(logged: LogLines) -> list[Line]:
    return [(line["event"], line["interface"], line["connection"], line.get("missing")) for line in logged.all()]


# On loopback


async def test_connection_is_available_after_settling() -> None:
    """5.3.4: a connection counts once it has been available at each read for `connections.settle`."""
    with Watched(loopback(SETTLE), "lo") as watched:
        opened = time.monotonic()
        assert watched.links.available() == ()
        assert watched.links.read_now()
        assert watched.links.available() == ()
        await watched.until("lo")
        assert time.monotonic() >= opened + SETTLE - 0.01
        assert LO in watched.links.available()


async def test_read_without_changes_is_not_announced() -> None:
    with Watched(loopback(), "lo") as watched:
        assert watched.links.read_now()
        assert (watched.names, watched.changes) == (["lo"], 0)


async def test_another_configuration_counts_at_once(logged: LogLines) -> None:
    with Watched(loopback(settle=3600), "lo") as watched:
        assert watched.names == []
        watched.links.configure(loopback())
        assert (watched.names, watched.changes) == (["lo"], 1)
        watched.links.configure(loopback(settle=3600))
        assert (watched.names, watched.changes) == ([], 2)
        watched.links.configure(loopback())
        watched.links.configure(config("any", wireless="lo"))
        assert (watched.names, watched.changes) == (["lo"], 4)
    assert [line for line in told(logged) if line[1] == "lo"] == [
        ("connection available", "lo", "wireline", None),
        ("connection lost", "lo", "wireline", "settling"),
        ("connection available", "lo", "wireline", None),
        ("connection lost", "lo", "wireline", "gone"),
        ("connection available", "lo", "wireless", None),
    ]


async def test_failed_read_is_logged_once_and_tried_again(logged: LogLines) -> None:
    with Watched(loopback(), "lo") as watched:
        with few_descriptors():
            assert [watched.links.read_now() for _ in range(3)] == [False] * 3
            assert (watched.names, watched.changes) == (["lo"], 0)
        # Nothing has changed, but a caller may have put something off because of the failure.
        await watched.change()
        assert (watched.names, watched.changes) == (["lo"], 1)
    lines = [line for line in logged.all() if line["event"].startswith("links")]
    assert [line["event"] for line in lines] == ["links unreadable", "links readable"]
    assert lines[0]["problem"] == f"[Errno {EMFILE}] {os.strerror(EMFILE)}"


@pytest.mark.parametrize("free", [0, 1])
async def test_failed_open_leaves_no_descriptor(free: int) -> None:
    """Neither the socket for notices nor the one for the first read can be opened."""
    before = descriptors()
    with few_descriptors(free), pytest.raises(OSError, match=os.strerror(EMFILE)):
        Links(loopback()).open(lambda: None)
    assert descriptors() == before


class RecordingSelector(selectors.DefaultSelector):
    """Sets `idle` when the loop has no timer left and no notice is queued."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        # Each timer of a poll ends one call, so a loop that polls reaches this bound.
        self.calls = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.calls += 1
        assert self.calls < 1_000, "the loop always has a timer"
        ready = super().select(0)
        if timeout is None and not ready and self.loop is not None:
            self.loop.call_soon_threadsafe(self.idle.set)
        return ready or super().select(timeout)


@in_namespace
def test_no_timer_is_left_after_settling_and_after_a_notice(namespace: Namespace) -> None:
    """The daemon wakes up only for the kernel."""
    selector = RecordingSelector()

    async def scenario() -> None:
        selector.loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with closing(Links(loopback(settle=0.05))) as links:
            links.open(changed.set)
            await selector.idle.wait()
            assert links.available() == (LO,)
            changed.clear()
            namespace.ip("addr", "add", "192.0.2.7/32", "dev", "lo")
            await changed.wait()
            selector.idle.clear()
            await selector.idle.wait()

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(scenario())


# On links that change


@in_namespace
async def test_changes_are_followed(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    with Watched(config(wireline="eth*")) as watched:
        assert watched.links.available() == ()
        namespace.ip_batch(["addr add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.2"])
        await watched.until("eth0")
        assert watched.links.available() == (ETH0,)
        assert [link.name for link in watched.links.links] == ["lo", "eth0"]
        namespace.ip("addr", "del", "192.0.2.1/24", "dev", "eth0")
        await watched.until()
        namespace.ip("addr", "add", "2001:db8::1/64", "dev", "eth0")
        namespace.ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0")
        await watched.until("eth0")
        namespace.far_ip("link", "set", "eth0", "down")
        await watched.until()
        namespace.far_ip("link", "set", "eth0", "up")
        await watched.until("eth0")
        namespace.ip("link", "del", "eth0")
        await watched.until()


@in_namespace
async def test_route_is_lost_with_its_next_hop(namespace: Namespace) -> None:
    """The kernel sends a notice about the next hop alone."""
    namespace.add_veth("eth0")
    namespace.ip("addr", "add", "192.0.2.1/24", "dev", "eth0")
    namespace.ip("nexthop", "add", "id", "1", "via", "192.0.2.2", "dev", "eth0")
    namespace.ip("route", "add", "default", "nhid", "1")
    with Watched(config()) as watched:
        assert watched.names == ["eth0"]
        namespace.ip("nexthop", "del", "id", "1")
        await watched.until()


@in_namespace
async def test_lost_connection_settles_again(namespace: Namespace, logged: LogLines) -> None:
    """5.3.4: a link that comes and goes starts nothing; the log names each loss and its reason."""
    namespace.add_uplink("eth0")
    with Watched(config(wireline="eth*", settle=SETTLE)) as watched:
        await watched.until("eth0")
        namespace.ip("addr", "del", "198.51.1.1/24", "dev", "eth0")
        await watched.until()
        namespace.ip_batch(["addr add 198.51.1.1/24 dev eth0", "route add default via 198.51.1.254"])
        back_at = time.monotonic()
        await watched.until("eth0")
        assert time.monotonic() >= back_at + SETTLE - 0.01
        namespace.ip("link", "del", "eth0")
        await watched.until()
    assert told(logged) == [
        ("connection available", "eth0", "wireline", None),
        ("connection lost", "eth0", "wireline", "no address"),
        ("connection available", "eth0", "wireline", None),
        ("connection lost", "eth0", "wireline", "gone"),
    ]


@in_namespace
async def test_each_connection_settles_by_itself(namespace: Namespace) -> None:
    with Watched(config(settle=SETTLE)) as watched:
        namespace.add_uplink("eth0")
        await watched.until("eth0")
        namespace.add_uplink("eth1", 2, metric=50)
        added_at = time.monotonic()
        await watched.until("eth1", "eth0")
        assert time.monotonic() >= added_at + SETTLE - 0.01


@in_namespace
async def test_renamed_interface_is_another_connection(namespace: Namespace, logged: LogLines) -> None:
    namespace.add_uplink("eth0")
    with Watched(config(wireline="eth*", wireless="wlan*")) as watched:
        # Before Linux 6.2 an interface has to be down to be renamed.
        namespace.ip_batch(["link set eth0 down", "link set eth0 name wlan0", "link set wlan0 up"])
        namespace.wait_up("wlan0")
        namespace.ip("route", "add", "default", "via", "198.51.1.254")
        await watched.until("wlan0")
    assert [line[:3] for line in told(logged)] == [
        ("connection available", "eth0", "wireline"),
        ("connection lost", "eth0", "wireline"),
        ("connection available", "wlan0", "wireless"),
    ]


@in_namespace
async def test_read_now_finds_a_change_before_its_notice_is_read(namespace: Namespace) -> None:
    """5.3.4: a connection is available when the session starts over it, not only when it was chosen."""
    namespace.add_uplink("eth0")
    with Watched(config(wireline="eth*")) as watched:
        assert watched.links.read_now()
        assert (watched.links.available(), watched.changes) == ((ETH0,), 0)
        namespace.ip("link", "set", "eth0", "down")
        assert watched.links.available() == (ETH0,)
        assert watched.links.read_now()
        assert (watched.names, watched.changes) == ([], 1)


def drops() -> int:
    """Return how many notices the kernel dropped for the netlink sockets of this process, in the thread's namespace."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
    own = {os.stat(entry).st_ino for entry in Path("/proc/self/fd").iterdir() if entry.exists()}  # noqa: PTH116
    return sum(int(line.split()[-2]) for line in lines if int(line.split()[-1]) in own)


@in_namespace
async def test_overrun_is_another_notice(namespace: Namespace) -> None:
    namespace.add_veth("eth0")
    with Watched(config()) as watched:
        namespace.ip_batch([f"addr add 10.0.{n >> 8}.{n & 255}/32 dev lo" for n in range(2000)])
        assert drops() > 0
        namespace.ip_batch(["addr add 192.0.2.1/24 dev eth0", "route add default via 192.0.2.2"])
        await watched.until("eth0")
        namespace.ip("route", "del", "default")
        await watched.until()


@in_namespace
async def test_reads_of_a_flapping_link_are_apart(namespace: Namespace) -> None:
    """The pause after each read is left to reception, however many notices the kernel sends."""
    namespace.add_uplink("eth0")
    with Watched(config()) as watched:
        began = time.monotonic()
        for number in range(50):
            # Each read finds another address, so each read calls on_change.
            namespace.ip("addr", "add", f"192.0.2.{number}/32", "dev", "lo")
            await asyncio.sleep(0)
        namespace.ip("route", "del", "default")
        await watched.until()
        assert 1 <= watched.changes <= 1 + (time.monotonic() - began) / PAUSE


@in_namespace
async def test_close_ends_everything(namespace: Namespace) -> None:
    """Closed in the pause after a notice, with a planned read; links that stay open are the fence."""
    before = descriptors()
    troubles: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: troubles.append(context))
    namespace.add_uplink("eth0")
    with Watched(config("any", settle=PAUSE / 2)) as closed, Watched(config("any")) as fence:
        namespace.ip("addr", "add", "192.0.2.7/24", "dev", "eth0")
        await closed.change()
        closed.links.close()
        closed.links.close()
        state = closed.changes, closed.names
        # The third change is read after the pause in which the others were closed.
        for _ in range(3):
            seen = fence.change()
            namespace.ip("addr", "add", f"192.0.2.{fence.changes}/32", "dev", "lo")
            await seen
        assert ((closed.changes, closed.names), troubles) == (state, [])
        closed.links.open(lambda: None)
        closed.links.open(lambda: None)
        assert len(closed.links.links) == 2
    assert descriptors() == before
