"""Routing: whether a push is meant for the DM client (6)."""

from dmnotid.errors import ApplicationIdConflict, ApplicationIdMismatch, ApplicationIdMissing, ContentTypeMismatch
from dmnotid.wire.wsp import APPLICATION_ID_DM, PushHeader, application_id, is_dm_content_type


def check_route(header: PushHeader) -> None:
    """Check that the body of a push is a DM Notification package.

    Raises ContentTypeMismatch, then ApplicationIdMissing, ApplicationIdConflict or ApplicationIdMismatch.
    """
    content_type, values = header
    # Content-Type first: its reason says more about another gateway's push than a missing id does.
    if not is_dm_content_type(content_type):
        raise ContentTypeMismatch(content_type)
    if not values:
        raise ApplicationIdMissing
    # The same application in several forms (7, its URI) is one member.
    ids = set(map(application_id, values))
    # Before the comparison with 7: which of two ids a gateway meant cannot be known.
    if len(ids) > 1:
        raise ApplicationIdConflict(ids)
    if APPLICATION_ID_DM not in ids:
        raise ApplicationIdMismatch(ids.pop())
