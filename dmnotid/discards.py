"""The account of discarded datagrams: log lines, bounded in number, and the last datagrams with their octets."""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from dmnotid import errors
from dmnotid.errors import Discard, Duplicate
from dmnotid.host.log import logger
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram

FIRST_DISCARDS: Final = 5
"""Number of discards of one reason that are logged one by one in each interval."""

MAX_SOURCES: Final = 64
"""Maximum number of addresses that are counted for one summary; a forger of sources can use any number of them."""

FLOOD: Final = 64
"""Number of discards of one reason in an interval from which on only every 64th is kept, because keeping costs time."""

RECENT_DISCARDS: Final = 4
"""Number of discarded datagrams of each reason that are kept."""

MAX_KEPT_OCTETS: Final = 600
"""Maximum number of octets that are kept of one of them: most notifications have fewer."""

SUSPICIOUS: Final = (
    errors.DigestMismatch, errors.DigestMissing, errors.FromTheFuture, errors.QueueFull, errors.SecretNotProvisioned,
    errors.SourceNotAllowed, errors.Stale, errors.TrailingOctets,
)  # fmt: skip
"""Discards that an operator should see: a sender claims to be a server, or a known server makes an error."""


class Discarded(NamedTuple):
    """A discarded datagram, as it is shown; `at` is its arrival (POSIX seconds), `server_id` a claim.

    `bare` octets are a package without a push.
    """

    at: float
    source: Source
    server_id: str | None
    reason: str
    problem: str
    octets: bytes
    bare: bool


# A discarded datagram as it is kept. Its sentence, which costs most in a flood, is built when it is shown.
_Kept = tuple[Discard, Datagram]


def _show(kept: _Kept) -> Discarded:
    discard, datagram = kept
    ends = discard.server_id, discard.reason, str(discard)
    return Discarded(datagram.received_at, datagram.source, *ends, datagram.payload, datagram.bare)


class RecentDiscards:
    """The last RECENT_DISCARDS discarded datagrams of each reason that were added. Iteration is in order of arrival."""

    def __init__(self) -> None:
        # By reason, the oldest first. There are as many reasons as classes of discards.
        self._by_reason: defaultdict[str, deque[_Kept]] = defaultdict(lambda: deque(maxlen=RECENT_DISCARDS))

    def __iter__(self) -> Iterator[Discarded]:
        # Each ring is in order of arrival; a reader wants one order for all reasons.
        every = (kept for ring in self._by_reason.values() for kept in ring)
        return map(_show, sorted(every, key=lambda kept: kept[1].received_at))

    def add(self, discard: Discard, datagram: Datagram) -> _Kept:
        """Keep a discarded datagram in place of the oldest one of its reason."""
        # The traceback would keep the frames that judged the datagram, with all of their values.
        discard.__traceback__ = discard.__context__ = None
        if len(datagram.payload) > MAX_KEPT_OCTETS:
            datagram = datagram._replace(payload=datagram.payload[:MAX_KEPT_OCTETS])
        # The way to answer would keep the door, which a reload may close.
        if datagram.handover is not None:
            datagram = datagram._replace(handover=datagram.handover._replace(answer=None))
        kept = discard, datagram
        self._by_reason[discard.reason].append(kept)
        return kept


class ServerCounts:
    """Notifications of a server since the start of the daemon; the discarded ones are those that claimed its id."""

    def __init__(self) -> None:
        # Numbers of accepted and of discarded ones.
        self.accepted = self.discarded = 0
        # Which secret has signed the last accepted one; None if it was not signed.
        self.last_secret: str | None = None
        # The last discarded one that was kept.
        self.kept: _Kept | None = None

    @property
    def last_discard(self) -> Discarded | None:
        """The last discarded one, as it is shown."""
        return None if self.kept is None else _show(self.kept)


class DiscardLog:
    """Logs the first few events of a kind in each interval (seconds), and the number of the others at its end.

    A kind is the reason of a discard, or another counter. The summary names the address that sent most of the others.
    No timer runs while there is nothing to log.
    """

    def __init__(self, interval: float) -> None:
        # Length of an interval; a change applies from the next one on.
        self.interval = interval
        # Number of events of each kind in this interval.
        self._seen: defaultdict[str, int] = defaultdict(int)
        # Number of events of each kind that are not logged one by one, by the address of the sender.
        self._senders: defaultdict[str, dict[str, int]] = defaultdict(dict)
        # The end of the interval, None before its first event.
        self._timer: asyncio.TimerHandle | None = None

    def note(self, discard: Discard, datagram: Datagram) -> int:
        """Log or count a discard, and return its number, as `count` does; a running event loop is needed."""
        number = self.count(discard.reason, datagram.source)
        if number <= FIRST_DISCARDS:
            # Other content under the same id shows a server that has lost its counter (5.1.4).
            odd = isinstance(discard, Duplicate) and not discard.same_content
            log = logger.warning if odd or isinstance(discard, SUSPICIOUS) else logger.info
            log(
                "datagram discarded",
                reason=discard.reason,
                server_id=discard.server_id,
                notification_id=discard.notification_id,
                **datagram.log_facts(),
                problem=str(discard),
            )
        return number

    def count(self, kind: str, source: Source) -> int:
        """Count an event, and return its number of this kind in the interval; a running event loop is needed.

        The caller logs those up to FIRST_DISCARDS.
        """
        number = self._seen[kind] = self._seen[kind] + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self.flush)
        if number <= FIRST_DISCARDS:
            return number
        senders = self._senders[kind]
        # By address alone, because a sender can use any port. The addresses after the first ones are not counted.
        if len(senders) < MAX_SOURCES or source.address in senders:
            senders[source.address] = senders.get(source.address, 0) + 1
        return number

    def flush(self) -> None:
        """End the interval, and log how many events of each kind were counted only."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kind, senders in sorted(self._senders.items()):
            address = max(senders, key=senders.__getitem__)
            logger.warning(
                "datagrams discarded",
                reason=kind,
                count=self._seen[kind] - FIRST_DISCARDS,
                interval=self.interval,
                source=address,
                source_count=senders[address],
                sources=len(senders),
            )
        self._seen.clear()
        self._senders.clear()
