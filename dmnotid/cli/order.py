"""A notification to be built, as a DM server must build it (5.3.5, steps 1 to 3)."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from dmnotid import sender
from dmnotid.sentences import show_time
from dmnotid.wire.notification import CachedMo, ConnectionType
from dmnotid.wire.wsp import header_border

MAX_UDP_OCTETS: Final = 65_507
"""Maximum size of a datagram over IPv4."""


def _change(octets: bytes, at: int, value: int) -> bytes:
    return octets[:at] + bytes([value]) + octets[at + 1 :]


BREAKS: Final[Mapping[str, Callable[[bytes, int, int], bytes]]] = {
    "push-too-long": lambda push, _start, _end: push.ljust(MAX_UDP_OCTETS, b"\0"),
    # ConfirmedPush.
    "not-a-push": lambda push, _start, _end: _change(push, 1, 0x07),
    # The last Option lacks an octet.
    "truncated": lambda push, _start, _end: push[:-1],
    # Code page 0, which is not one.
    "malformed-field": lambda push, start, _end: _change(push, start + 1, 0x00),
    # application/vnd.wap.sic
    "content-type-mismatch": lambda push, start, _end: _change(push, start, 0xAE),
    # The field becomes Push-Flag.
    "application-id-missing": lambda push, start, _end: _change(push, start + 1, 0xB4),
    # The browser (wml.ua).
    "application-id-mismatch": lambda push, start, _end: _change(push, start + 2, 0x82),
    # VER is 1.
    "unsupported-version": lambda push, _start, end: _change(push, end, 0x10),
    "trailing-octets": lambda push, _start, _end: push + b"\0",
    # SHA256-DIGEST is the last Option.
    "digest-mismatch": lambda push, _start, _end: _change(push, len(push) - 1, push[-1] ^ 1),
}
"""By reason: what breaks a good push so that it is discarded for that reason.

The push headers, of which the first are Content-Type (`D8`) and X-Wap-Application-Id (`AF 87`), begin and end at the
two offsets.
"""


PACKAGE_BREAKS: Final = ("push-too-long", "truncated", "unsupported-version", "trailing-octets", "digest-mismatch")
"""Those that break a package without a push, which begins at offset 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the notifications of one command have in common.

    An Option that is None is left out: no SERVER-ID without `server_id`, and no SHA256-DIGEST without `secret`.
    `headers` are further push headers, encoded. Without `tid` the TID is the last octet of the NOTIFICATION-ID, and
    without `sent_at` (POSIX seconds) the signed time is the current one. `bare` datagrams are packages without a push.
    With `broken`, a reason among BREAKS, each datagram is broken so that it is discarded for that reason.
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
    bare: bool = False
    broken: str | None = None

    def build(self, notification_id: int) -> bytes:
        """Return one datagram. Raises ValueError as `build_package` does."""
        datagram = self.build_package(notification_id)
        if not self.bare:
            # Devices do not use it, and one that differs is easier to find in a capture.
            tid = notification_id & 0xFF if self.tid is None else self.tid
            datagram = sender.push(datagram, tid=tid, headers=self.headers)
        if self.broken is None:
            return datagram
        # Broken last, because a digest is made over the good octets.
        return BREAKS[self.broken](datagram, *((0, 0) if self.bare else header_border(datagram)))

    def build_package(self, notification_id: int) -> bytes:
        """Return the package alone. Raises ValueError for a value that does not fit its field."""
        # The time of each datagram, and not of the command: many may be sent at a low rate.
        sent_at = time.time() if self.sent_at is None else self.sent_at
        # The Option carries the time, so an unsigned package has none.
        package = sender.build(
            notification_id,
            server_id=self.server_id,
            preferred_connections=self.preferred,
            requested_mos=self.requested_mos,
            cached_mos=self.cached_mos,
            sent_at=None if self.secret is None else sent_at,
        )
        return package if self.secret is None else sender.sign(package, self.secret)

    def describe(self, notification_id: int) -> str:
        """Return a datagram in words: `NOTIFICATION-ID 7, SERVER-ID 'dm.example.com', signed as of now`."""
        server = "no SERVER-ID" if self.server_id is None else f"SERVER-ID {self.server_id!r}"
        signed_at = "now" if self.sent_at is None else show_time(self.sent_at)
        signature = "unsigned" if self.secret is None else f"signed as of {signed_at}"
        return f"NOTIFICATION-ID {notification_id}, {server}, {signature}"
