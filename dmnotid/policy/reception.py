"""From a datagram to a verified notification: the pure stages in a row.

    WSP        decode_push                        octets -> PushMessage
    route      check_route                        the push is for the DM client
    DM         decode_notification                package -> Notification
    server     Servers.find                       Notification, sender -> Server
    verify     verify                             Notification, Server, clock -> VerifiedNotification

A bearer that needs no push hands in the package alone, which begins at the stage DM (4).

The order of these checks is a security property. This module is the only place that has it, and no configuration
changes it.
"""

from collections.abc import Callable
from typing import NamedTuple

from dmnotid.errors import Discard, PushTooLong
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import VerifiedNotification, verify
from dmnotid.policy.freshness import Clock, Freshness
from dmnotid.policy.routing import check_route
from dmnotid.policy.servers import Servers
from dmnotid.wire.notification import Notification, decode_notification
from dmnotid.wire.wsp import DEFAULT_MAX_HEADER_OCTETS, DEFAULT_MAX_OCTETS, decode_push


class Handover(NamedTuple):
    """How a process of this device handed in a datagram through a door.

    `bare` octets are a package without a push. `pid` and `uid` are those of the process. `answer` sends it the verdict,
    and is None if it has no address.
    """

    bare: bool
    pid: int
    uid: int
    answer: Callable[[dict[str, object]], None] | None = None


class Datagram(NamedTuple):
    """A received datagram: its octets, its sender, and the wall clock at its arrival (POSIX seconds)."""

    payload: bytes
    source: Source
    received_at: float
    handover: Handover | None = None

    @property
    def bare(self) -> bool:
        """Whether the octets are a package without a push."""
        return self.handover is not None and self.handover.bare

    def log_facts(self) -> dict[str, object]:
        """Return the sender as log records have it."""
        facts: dict[str, object] = {"source": str(self.source)}
        return facts if self.handover is None else facts | {"pid": self.handover.pid, "uid": self.handover.uid}


class Rules(NamedTuple):
    """The part of the configuration that decides about a datagram."""

    servers: Servers
    freshness: Freshness = Freshness()
    max_header_octets: int = DEFAULT_MAX_HEADER_OCTETS
    max_octets: int = DEFAULT_MAX_OCTETS


class Progress:
    """How far a datagram came: the results of the stages that it passed, for a caller that shows them.

    `body_offset` is the offset of the package in the datagram, and None unless the push is good; `notification` is None
    unless the package is.
    """

    def __init__(self, body_offset: int | None = None) -> None:
        """`body_offset` is given for a package that no push contains."""
        # The offset of the package in the datagram.
        self.body_offset = body_offset
        # The package.
        self.notification: Notification | None = None


def receive(datagram: Datagram, rules: Rules, clock: Clock, progress: Progress | None = None) -> VerifiedNotification:
    """Take a datagram through every pure check. Raises the Discard of the first that fails."""
    payload, source, _, handover = datagram
    if handover is not None and handover.bare:
        # The endpoint cuts off the octets of a datagram after the first one too many.
        if len(payload) > rules.max_octets:
            raise PushTooLong(rules.max_octets)
        return receive_package(payload, source, rules, clock, progress)
    push = decode_push(payload, max_octets=rules.max_octets, max_header_octets=rules.max_header_octets)
    check_route(push.header)
    # Recorded after the route: the body of a push for another application is not a package.
    if progress is not None:
        progress.body_offset = push.body_offset
    return receive_package(push.body, source, rules, clock, progress)


def receive_package(
    package: bytes, source: Source, rules: Rules, clock: Clock, progress: Progress | None = None
) -> VerifiedNotification:
    """Take a package, of a push or of a bearer without one, through the checks after those of the push.

    Raises the Discard of the first that fails, which carries the ids that the package claims, or the server that its
    digest fits.
    """
    notification = decode_notification(package)
    if progress is not None:
        progress.notification = notification
    # Read before the search, which may fail: a Discard carries the id that the package claims.
    server_id = notification.server_id
    try:
        server = rules.servers.find(notification, source)
        # Without SERVER-ID it was discovered.
        server_id = server.id
        return verify(notification, server, source, clock, rules.freshness)
    except Discard as discard:
        # Claims, not facts: they let an operator find the notification in the logs of the server.
        discard.server_id = server_id
        discard.notification_id = notification.notification_id
        raise
