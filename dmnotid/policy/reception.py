"""From a datagram to a verified notification: the pure stages in a row. Their order is a security property."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from dmnotid.errors import (
    ApplicationIdConflict,
    ApplicationIdMismatch,
    ApplicationIdMissing,
    ContentTypeMismatch,
    Discard,
    shortened,
)
from dmnotid.policy.addresses import Source
from dmnotid.policy.authenticity import Clock, Freshness, VerifiedNotification, find_signers, verify
from dmnotid.policy.servers import FindSigners, Servers
from dmnotid.wire.notification import Notification, decode_notification
from dmnotid.wire.wsp import (
    APPLICATION_ID_DM,
    DEFAULT_MAX_HEADER_OCTETS,
    REMEMBERED_BLOCKS,
    PushHeader,
    application_id,
    decode_push,
    is_dm_content_type,
)

MAX_SHOWN_BITS: Final = 64
MAX_SHOWN_TEXT: Final = 64
"""How much of what came from the network a message shows at most."""


class Datagram(NamedTuple):
    """What the socket gave: octets, their sender, and the wall clock at their arrival (POSIX seconds)."""

    payload: bytes
    source: Source
    received_at: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What of the configuration decides over a datagram."""

    servers: Servers
    freshness: Freshness = field(default_factory=Freshness)
    max_header_octets: int = DEFAULT_MAX_HEADER_OCTETS


def receive_push(
    datagram: Datagram, rules: Rules, clock: Clock, signers: FindSigners = find_signers
) -> VerifiedNotification:
    """Take a Push PDU through every pure check. Raises the Discard of the first that fails, and what `signers` does."""
    push = decode_push(datagram.payload, max_header_octets=rules.max_header_octets)
    check_route(push.header)
    return authenticate(decode_notification(push.body), datagram.source, rules, clock, signers)


@lru_cache(REMEMBERED_BLOCKS)
def check_route(header: PushHeader) -> None:
    """See that a push is for the DM client (section 6); its body is a package then.

    Raises ContentTypeMismatch, then ApplicationIdMissing, ApplicationIdConflict or ApplicationIdMismatch.
    """
    content_type, values = header
    if not is_dm_content_type(content_type):
        message = f"Content-Type {_shown(content_type, '#04x')} is no DM Notification"
        raise ContentTypeMismatch(message)
    if not values:
        message = "no X-Wap-Application-Id: meant for wml.ua"
        raise ApplicationIdMissing(message)
    ids = {application_id(value) for value in values}
    if len(ids) > 1:
        message = f"X-Wap-Application-Id given as {' and '.join(sorted(map(_shown, ids)))}"
        raise ApplicationIdConflict(message)
    if APPLICATION_ID_DM not in ids:
        message = f"X-Wap-Application-Id {_shown(ids.pop())}, only {APPLICATION_ID_DM} is taken"
        raise ApplicationIdMismatch(message)


def _shown(said: int | str | bytes, form: str = "d") -> str:
    """Show a code or a name from the push header; a long-integer may have thousands of digits."""
    if isinstance(said, int):
        return format(said, form) if said.bit_length() <= MAX_SHOWN_BITS else f"of {said.bit_length()} bits"
    return shortened(repr(said), MAX_SHOWN_TEXT)


def authenticate(
    notification: Notification, source: Source, rules: Rules, clock: Clock, signers: FindSigners = find_signers
) -> VerifiedNotification:
    """Find the server of a notification and verify that it made it. A Discard tells which ids were claimed."""
    try:
        server = rules.servers.find(notification, source, signers)
        return verify(notification, server, source, clock, rules.freshness)
    except Discard as discard:
        discard.server_id = notification.server_id
        discard.notification_id = notification.notification_id
        raise
