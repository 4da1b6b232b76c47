"""How much time goes into trials: each notification without SERVER-ID costs many digests, and anybody may send it."""

from collections.abc import Callable, Sequence
from typing import Final

from dmnotid.errors import NotTried
from dmnotid.policy.authenticity import find_signers
from dmnotid.policy.servers import Server
from dmnotid.wire.notification import Notification

FEW: Final = 16
"""So few secrets are always tried: of a small package they cost no more than the rest of its way."""

SMALL: Final = 512
"""Up to so many octets a package is small. Larger ones, of up to a hundred times the cost, have time of their own."""

SHARE: Final = 1 / 4
"""What part of the time goes into trials of small packages at most."""

SHARE_OF_LARGE: Final = 1 / 12
"""The same of large ones. Where other programs want the processor too, enough is left for all else."""

SAVED: Final = 0.125
"""How much time for trials (seconds) is saved up at rest: about as long all else waits at the begin of a flood."""

MOST_OWED: Final = 5.0
"""How much (seconds) is owed at most: more than a trial takes, but who was stopped in one doesn't owe it for ever."""


class Allowance:
    """An account of time (seconds): a `share` of it, more than nothing, comes in; `most` is saved up."""

    def __init__(self, share: float, most: float, owed: float = MOST_OWED) -> None:
        """All that may be saved up is there; no more than `owed` is ever owed."""
        self._share = share
        self._most = most
        self._owed = owed
        self._left = most
        self._at = float("-inf")

    def has_left(self, now: float) -> bool:
        """Tell whether there is anything left; `now` never goes back."""
        self._left = min(self._left + self._share * (now - self._at), self._most)
        self._at = now
        return self._left > 0

    def spend(self, seconds: float) -> None:
        """Book what was used, which may be more than is left."""
        self._left = max(self._left - seconds, -self._owed)


class Trials:
    """Finds out who signed as `find_signers` does, but of many secrets only as long as time is left for that."""

    def __init__(
        self, monotonic: Callable[[], float], small: Allowance | None = None, large: Allowance | None = None
    ) -> None:
        """`monotonic` tells the time (seconds); `small` and `large` have the time for packages of that size."""
        self._monotonic = monotonic
        self._small = Allowance(SHARE, SAVED) if small is None else small
        self._large = Allowance(SHARE_OF_LARGE, SAVED) if large is None else large

    def find_signers(self, notification: Notification, servers: Sequence[Server]) -> Sequence[Server]:
        """Return those whose secret made the digest. Raises NotTried."""
        if len(servers) <= FEW:
            return find_signers(notification, servers)
        allowance = self._small if len(notification.octets) <= SMALL else self._large
        began = self._monotonic()
        if not allowance.has_left(began):
            message = f"no SERVER-ID, and no time left to try {len(servers)} secrets"
            raise NotTried(message)
        found = find_signers(notification, servers)
        allowance.spend(self._monotonic() - began)
        return found
