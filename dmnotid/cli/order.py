"""A notification to be built, as a DM server must build it (5.3.5, steps 1 to 3)."""

import time
from dataclasses import dataclass, field

from dmnotid.policy.digest import sign
from dmnotid.wire.notification import CachedMo, ConnectionType, encode_notification
from dmnotid.wire.wsp import encode_push


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the notifications of one command have in common.

    An Option that is None is left out: no SERVER-ID without `server_id`, and no SHA256-DIGEST without `secret`.
    `headers` are further push headers, encoded. Without `tid` the TID is the last octet of the NOTIFICATION-ID, and
    without `sent_at` (POSIX seconds) the signed time is the current one.
    """

    server_id: str | None
    # Not in the repr, which can get into a traceback.
    secret: bytes | None = field(repr=False)
    preferred: tuple[ConnectionType, ...] | None = None
    requested_mos: tuple[int, ...] | None = None
    cached_mos: tuple[CachedMo, ...] | None = None
    headers: tuple[bytes, ...] = ()
    tid: int | None = None
    sent_at: float | None = None

    def build(self, notification_id: int) -> bytes:
        """Return one datagram: the package in a push. Raises ValueError as `build_package` does."""
        tid = notification_id & 0xFF if self.tid is None else self.tid
        return encode_push(self.build_package(notification_id), tid=tid, further=self.headers)

    def build_package(self, notification_id: int) -> bytes:
        """Return the package alone. Raises ValueError for a value that does not fit its field."""
        sent_at = int(time.time() if self.sent_at is None else self.sent_at)
        # The Option carries the time, so an unsigned package has none.
        package = encode_notification(
            notification_id,
            server_id=self.server_id,
            preferred_connections=self.preferred,
            requested_mos=self.requested_mos,
            cached_mos=self.cached_mos,
            sent_at=None if self.secret is None else sent_at,
        )
        return package if self.secret is None else sign(package, self.secret)
