"""The account of discarded datagrams: their log lines, bounded in number."""

import asyncio
from collections import Counter
from typing import Final

from dmnotid.errors import (
    DigestMismatch,
    DigestMissing,
    Discard,
    Duplicate,
    FromTheFuture,
    QueueFull,
    SecretNotProvisioned,
    SourceNotAllowed,
    Stale,
    TrailingOctets,
)
from dmnotid.host.log import logger

FIRST_DISCARDS: Final = 5
"""Number of discards of one reason that are logged one by one in each interval."""

# Discards that an operator should see: a sender claims to be a server, or a known server makes an error.
_SUSPICIOUS: Final = (
    DigestMismatch,
    DigestMissing,
    FromTheFuture,
    QueueFull,
    SecretNotProvisioned,
    SourceNotAllowed,
    Stale,
    TrailingOctets,
)


class DiscardLog:
    """Logs the first few events of a kind in each interval (seconds), and the number of the others at its end.

    A kind is the reason of a discard, or another counter. There is one number for each kind, and no timer runs while
    there is nothing to log.
    """

    def __init__(self, interval: float) -> None:
        # Length of an interval; a change applies from the next one on.
        self.interval = interval
        # Number of events of each kind in this interval.
        self._seen: Counter[str] = Counter()
        # The end of the interval, None before its first event.
        self._timer: asyncio.TimerHandle | None = None

    def note(self, discard: Discard, source: object) -> None:
        """Log or count a discard; a running event loop is needed."""
        if self.count(discard.reason):
            # Other content under the same id shows a server that has lost its counter (5.1.4).
            odd = isinstance(discard, Duplicate) and not discard.same_content
            log = logger.warning if odd or isinstance(discard, _SUSPICIOUS) else logger.info
            log(
                "datagram discarded",
                reason=discard.reason,
                server_id=discard.server_id,
                notification_id=discard.notification_id,
                source=str(source),
                problem=str(discard),
            )

    def count(self, kind: str) -> bool:
        """Count an event, and return whether it is to be logged; a running event loop is needed."""
        self._seen[kind] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self.flush)
        return self._seen[kind] <= FIRST_DISCARDS

    def flush(self) -> None:
        """End the interval, and log how many events of each kind were counted only."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for kind, number in sorted(self._seen.items()):
            if number > FIRST_DISCARDS:
                count = number - FIRST_DISCARDS
                logger.warning("datagrams discarded", reason=kind, count=count, interval=self.interval)
        self._seen.clear()
