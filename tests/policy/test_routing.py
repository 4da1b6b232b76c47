"""Whether a push is for the DM client (6)."""

import pytest

from dmnotid.errors import (
    ApplicationIdConflict,
    ApplicationIdMismatch,
    ApplicationIdMissing,
    ContentTypeMismatch,
    Discard,
)
from dmnotid.policy.routing import check_route
from dmnotid.wire.octets import FieldValue
from dmnotid.wire.wsp import PushHeader

DM_TEXT = "application/vnd.syncml.dm.notification"
URI = "x-wap-application:syncml.dm"


@pytest.mark.parametrize(
    ("content_type", "ids"),
    [
        (0x58, (7,)),
        (0x58, (b"\x07",)),
        (0x58, (b"\x00\x07",)),
        (0x58, (URI,)),
        (DM_TEXT, (7,)),
        (DM_TEXT.upper() + " ;a=b", (URI.upper(),)),
        (0x58, (7, 7)),
        (0x58, (7, b"\x07", b"\x00\x07", URI, URI.title())),
    ],
)
def test_push_for_the_dm_client_passes(content_type: int | str, ids: tuple[FieldValue, ...]) -> None:
    """6, 6.1, 6.1.1: every legal form of Content-Type and Application-ID; the same Application-ID twice is fine."""
    check_route(PushHeader(content_type, ids))


@pytest.mark.parametrize(
    ("content_type", "ids", "kind", "sentence"),
    [
        (0x44, (7,), ContentTypeMismatch, "Content-Type is 0x44, "),
        (0x4E, (7,), ContentTypeMismatch, "Content-Type is 0x4e, "),
        (0x34, (7,), ContentTypeMismatch, "Content-Type is 0x34, "),
        (0x310, (7,), ContentTypeMismatch, "Content-Type is 0x310, "),
        ("a/b\n", (7,), ContentTypeMismatch, r"Content-Type is 'a/b\n', "),
        (0x58, (), ApplicationIdMissing, "X-Wap-Application-Id is missing, "),
        (0x58, (0,), ApplicationIdMismatch, "X-Wap-Application-Id is 0, "),
        (0x58, ("*",), ApplicationIdMismatch, "X-Wap-Application-Id is the text '*', "),
        (0x58, (b"\x90\x5c",), ApplicationIdMismatch, "X-Wap-Application-Id is 36956, "),
        (0x58, (b"",), ApplicationIdMismatch, "X-Wap-Application-Id is the text '', "),
        (0x58, (b"", ""), ApplicationIdMismatch, "X-Wap-Application-Id is the text '', "),
        (0x58, (4, 4), ApplicationIdMismatch, "X-Wap-Application-Id is 4, "),
        (0x58, (7, 4), ApplicationIdConflict, "X-Wap-Application-Id is given as 4 and 7"),
        (0x58, (4, 7), ApplicationIdConflict, "X-Wap-Application-Id is given as 4 and 7"),
        (0x58, (7, "B\n", 7), ApplicationIdConflict, r"X-Wap-Application-Id is given as 7 and the text 'b\n'"),
        (0x58, (4, 5), ApplicationIdConflict, "X-Wap-Application-Id is given as 4 and 5"),
        # Content-Type is checked before the Application-IDs.
        (0x44, (), ContentTypeMismatch, "Content-Type is 0x44, "),
        (0x44, (7, 4), ContentTypeMismatch, "Content-Type is 0x44, "),
    ],
)
def test_push_for_another_application_is_refused(
    content_type: int | str, ids: tuple[FieldValue, ...], kind: type[Discard], sentence: str
) -> None:
    """6: Content-Type, then Application-ID: missing, in conflict, another."""
    with pytest.raises(kind) as caught:
        check_route(PushHeader(content_type, ids))
    assert str(caught.value).startswith(sentence)
