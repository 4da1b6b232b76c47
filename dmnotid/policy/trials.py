"""How much time goes into trials: each notification without SERVER-ID costs many digests, and anybody may send it."""

from collections.abc import Callable, Sequence
from typing import Final

from dmnotid.errors import NotTried
from dmnotid.policy.authenticity import find_signers
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import Notification

FEW: Final = 16
"""So many secrets cost no more than the rest of a datagram's way: they are always tried."""

SHARE: Final = 1 / 3
"""What part of the time goes into trials at most. Where others want the processor too, enough is left for all else."""

SAVED: Final = 0.125
"""How much time for trials (seconds) is saved up at rest: about as long all else waits at the begin of a flood."""


class Allowance:
    """An account of time (seconds): a `share` of it, more than nothing, comes in; `most` is saved up, or owed."""

    def __init__(self, share: float, most: float) -> None:
        """All that may be saved up is there."""
        self._share = share
        self._most = most
        self._left = most
        self._at = float("-inf")

    def has_left(self, now: float) -> bool:
        """Tell whether there is anything left; `now` never goes back."""
        self._left = min(self._left + self._share * (now - self._at), self._most)
        self._at = now
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """Book what was used; more than is left may be, and who was stopped meanwhile doesn't owe it for ever."""
        self._left = max(self._left - seconds, -self._most)


class Trials:
    """Finds out who signed as `find_signers` does, but of many secrets only as long as time is left for that."""

    def __init__(self, monotonic: Callable[[], float], allowance: Allowance | None = None) -> None:
        """`monotonic` tells the time (seconds)."""
        self._monotonic = monotonic
        self._allowance = Allowance(SHARE, SAVED) if allowance is None else allowance

    def find_signers(self, notification: Notification, servers: Sequence[Server]) -> Sequence[Server]:
        """Return those whose secret made the digest. Raises NotTried."""
        if len(servers) <= FEW:
            return find_signers(notification, servers)
        began = self._monotonic()
        if not self._allowance.has_left(began):
            message = f"no SERVER-ID, and no time left to try {len(servers)} secrets"
            raise NotTried(message)
        found = find_signers(notification, servers)
        self._allowance.spend(self._monotonic() - began)
        return found
