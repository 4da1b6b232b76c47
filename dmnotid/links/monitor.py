"""Which connections a session may use now, kept up to date by the kernel's notices (5.3.4).

The kernel's state is always read as a whole: a notice is only a reason to read, whatever it says. A read is made
after a notice, when a connection may have settled, right before a session starts, and each RETRY_PAUSE while reads
fail. Each read moves each connection:

    absent ----available at this read----> settling ----available at each read for `settle` seconds----> available
       ^                                       |                                                             |
       +------------------ not available at this read, or under another name or type ------------------------+

The subscription to notices is in one of two states:

    listening ----notice, read----> pausing ----PAUSE is over----> listening
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from dmnotid.config.values import ConnectionsConfig
from dmnotid.host.log import logger
from dmnotid.links.availability import Link, available_connections, read_links
from dmnotid.links.kernel import drain, subscribe
from dmnotid.policy.sessions import Connection

PAUSE: Final = 0.1
"""Time after a read in which notices wait, in seconds: a flapping link leaves this time for reception."""

RETRY_PAUSE: Final = 1.0
"""Time between a read that failed and the next one, in seconds."""

# Time by which a timer of uvloop may ring early, in seconds.
_TIMER_ERROR: Final = 0.001


class Links:
    """The connections of this machine, kept up to date without polling.

    Owns a socket and timers while open. Never wakes up while the kernel sends no notice and no connection is settling.
    """

    def __init__(self, config: ConnectionsConfig) -> None:
        # What counts as a connection, and for how long it has to be available.
        self._config = config
        # Every interface at the last read that succeeded, in the order of the indexes.
        self.links: tuple[Link, ...] = ()
        # The first of the reads, in a row up to the last one, at which a connection was available (monotonic seconds).
        self._since: dict[Connection, float] = {}
        # The connections that have settled, the best route first.
        self._available: tuple[Connection, ...] = ()
        # Whether the last read failed. Only the first failure in a row is logged.
        self._unreadable = False
        # Called after a read that changed anything; does nothing while closed.
        self._on_change: Callable[[], None] = _ignore_change
        # Causes the reads between those of the caller; None while closed.
        self._watch: _Watch | None = None

    def available(self) -> tuple[Connection, ...]:
        """Return what sessions may use, as of the last read, the best route first."""
        return self._available

    def since(self, connection: Connection) -> float | None:
        """Return since when a connection has been available (monotonic), settling included; None if it is not."""
        return self._since.get(connection)

    def open(self, on_change: Callable[[], None]) -> None:
        """Read once, and follow changes on the running loop; call `on_change` after each read that changed anything.

        `on_change` must not close or open this. Raises OSError, and is closed then.
        """
        self.close()
        # Subscribe before the read, so that a change in between causes another read.
        self._watch = _Watch(self.read_now)
        try:
            self._update(tuple(read_links(self._config)))
        except OSError:
            self.close()
            raise
        # Set after the first read, whose result the caller sees when this returns.
        self._on_change = on_change

    def close(self) -> None:
        """Close the socket and cancel the timers. Closing twice is harmless."""
        self._on_change = _ignore_change
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def configure(self, config: ConnectionsConfig) -> None:
        """Use another configuration, and read again. A read that fails is tried again, as by `read_now`."""
        self._config = config
        self.read_now()

    def read_now(self) -> bool:
        """Read again, and call `on_change` if anything changed; return whether the read succeeded.

        If it failed, everything stays as it was, and the read is tried again after RETRY_PAUSE. The read that succeeds
        calls `on_change` in any case, because the caller may have put something off.
        """
        try:
            links = tuple(read_links(self._config))
        except OSError as error:
            if not self._unreadable:
                logger.warning("links unreadable", problem=str(error), again_every=RETRY_PAUSE)
            self._unreadable = True
            if self._watch is not None:
                self._watch.plan(RETRY_PAUSE)
            return False
        self._update(links)
        return True

    def _update(self, links: tuple[Link, ...]) -> None:
        """Move each connection to its next state, and announce what changed."""
        former_links, former = self.links, self._available
        now, settle = time.monotonic(), self._config.settle
        self.links = links
        self._since = {link.connection: self._since.get(link.connection, now) for link in links if link.available}
        left = {connection: since + settle - now for connection, since in self._since.items() if since + settle > now}
        self._available = available_connections(link for link in links if link.connection not in left)
        if self._watch is not None:
            # The read at that time decides: a connection may be lost by then without a notice, as by an expired route.
            self._watch.plan(min(left.values()) + _TIMER_ERROR if left else None)
        recovered, self._unreadable = self._unreadable, False
        if recovered:
            logger.info("links readable")
        self._log(former)
        if recovered or (links, self._available) != (former_links, former):
            self._on_change()

    def _log(self, former: tuple[Connection, ...]) -> None:
        """Log which connections were lost since `former`, and which ones came."""
        links = {link.connection: link for link in self.links}
        for connection in dict.fromkeys((*former, *self._available)):
            facts = {"interface": connection.interface, "connection": str(connection.type)}
            if connection not in former:
                logger.info("connection available", **facts)
            elif connection not in self._available:
                link = links.get(connection)
                # A reload can lengthen `settle`.
                missing = "gone" if link is None else link.missing or "settling"
                logger.info("connection lost", **facts, missing=missing)


def _ignore_change() -> None:
    pass


class _Watch:
    """Calls `read` on the running loop: after notices of the kernel, and when a read is planned."""

    def __init__(self, read: Callable[[], object]) -> None:
        """Subscribe. Raises OSError."""
        # Reads the whole state, after a notice and when a planned read is due.
        self._read = read
        # The loop of the reader and of both timers.
        self._loop = asyncio.get_running_loop()
        # Readable when a link, an address, a route or a next hop has changed.
        self._subscription = subscribe()
        # The planned read: when a connection may have settled, or after a read that failed.
        self._planned: asyncio.TimerHandle | None = None
        # The end of the pause after a notice; None before the first one.
        self._pause: asyncio.TimerHandle | None = None
        self._listen()

    def plan(self, pause: float | None) -> None:
        """Plan a read in `pause` seconds, or none, instead of the one that was planned."""
        if self._planned is not None:
            self._planned.cancel()
        self._planned = None if pause is None else self._loop.call_later(pause, self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._subscription)
        for timer in (self._planned, self._pause):
            if timer is not None:
                timer.cancel()
        self._subscription.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._subscription, self._on_notice)

    def _on_notice(self) -> None:
        # Notices wait in the socket until the pause is over. Listening again is also needed after an overrun: libuv
        # stops polling a socket that has reported an error.
        self._loop.remove_reader(self._subscription)
        # Drained before the read: a later change causes another one.
        drain(self._subscription)
        try:
            self._read()
        finally:
            # The pause begins after the read, however long that took.
            self._pause = self._loop.call_later(PAUSE, self._listen)
