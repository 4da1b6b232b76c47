"""Build notifications as a DM server does: for the authors of DM servers, push gateways and test equipment.

    package = build(4711, server_id="dm.example.com", sent_at=time.time())
    datagram = push(sign(package, secret))
    socket.sendto(datagram, (device, WAP_PUSH_PORT))

A package may also be sent without `push`, over a bearer that needs no WAP Push.

The names in `__all__` are stable: they follow Semantic Versioning as if this were version 1. Within a major version
calls stay valid and give the same octets; later versions may add optional arguments. All other modules of dmnotid are
internal. This one imports the standard library alone, does no I/O and reads no clock.
"""

from collections.abc import Iterable
from typing import Final

from dmnotid.errors import DecodeError
from dmnotid.policy import digest
from dmnotid.wire import notification, wsp

__all__ = ["CONNECTION_TYPES", "WAP_PUSH_PORT", "build", "push", "sign"]

WAP_PUSH_PORT: Final = wsp.WAP_PUSH_PORT
"""The UDP port of connectionless WAP Push, 2948."""

CONNECTION_TYPES: Final = tuple(str(kind) for kind in notification.CONNECTION_TYPES)
"""The names of the connection types, by the octet of each: any (0, "not specified"), mobile, wireless, wireline."""


def build(
    notification_id: int,
    *,
    server_id: str | None = None,
    preferred_connections: Iterable[str] | None = None,
    requested_mos: Iterable[int] | None = None,
    cached_mos: Iterable[tuple[int, bytes]] | None = None,
    sent_at: float | None = None,
    unknown_options: Iterable[tuple[int, bytes]] = (),
    reserved: int = 0,
) -> bytes:
    """Return a package (section 5), without the Options whose argument is None.

    `notification_id` (NOTIFICATION-ID) is 0 to 65535: a device discards an id that it has accepted from the server
    before. `server_id` (SERVER-ID) is encoded in NFC. `preferred_connections` (PREFERRED-CON-TYPE) are names among
    CONNECTION_TYPES, the most wanted first. `requested_mos` (REQ-MO) are MO indexes, `cached_mos` (REQ-MO-CV) are MO
    indexes with their cache validators of 4 octets. `sent_at` (POSIX seconds, without their fraction) adds a
    SHA256-DIGEST of that time whose digest is zero: pass the package to `sign`. `unknown_options` are Option Numbers
    from 6 with their values, `reserved` is RESERVED.

    Raises ValueError for a value that does not fit its field.
    """
    return notification.encode_notification(
        notification_id,
        server_id=server_id,
        preferred_connections=None if preferred_connections is None else map(_connection, preferred_connections),
        requested_mos=requested_mos,
        cached_mos=cached_mos,
        # The field has whole seconds.
        sent_at=None if sent_at is None else int(sent_at),
        unknown_options=tuple(unknown_options),
        reserved=reserved,
    )


def sign(package: bytes, secret: bytes) -> bytes:
    """Return a package of `build` with its digest: SHA-256 over the secret and the package (5.3.5, steps 1 to 3).

    Raises ValueError for a package that was built without `sent_at`, and for octets that are not a package.
    """
    try:
        return digest.sign(package, secret)
    except DecodeError as error:
        # One class of errors for callers: the tree of Discards belongs to the receiver.
        raise ValueError(f"the octets are not a package: {error}") from error


def push(package: bytes, *, tid: int = 0, headers: Iterable[tuple[int | str, int | str | bytes] | bytes] = ()) -> bytes:
    """Return the datagram that carries a package: a Push PDU (WAP-230, 8.2.4.1), addressed to the DM client (6.1).

    `tid` is 0 to 255, and devices do not use it. `headers` are added after Content-Type and X-Wap-Application-Id, each
    as (well-known number or name, value), or encoded. A value is an integer, text, or octets that follow a length.
    Devices may discard a push whose headers have more than 48 octets in all (6.1); these two have 3.

    Raises ValueError for a value that can't be encoded.
    """
    return wsp.encode_push(package, tid=tid, further=headers)


def _connection(name: str) -> notification.ConnectionType:
    # The error of the enumeration would name a class that is internal.
    if name not in CONNECTION_TYPES:
        raise ValueError(f"{name!r} is not a connection type: expected one of {', '.join(CONNECTION_TYPES)}")
    return notification.ConnectionType(name)
