"""A value becomes a row, and a row a value again."""

import time
from pathlib import Path

import pytest

from dmnotid.errors import DecodeError
from dmnotid.journal.database import connect
from dmnotid.journal.file import FILE_NAME
from dmnotid.journal.rows import (
    COLUMNS,
    INSERT,
    INSERT_IF_NEW,
    REPLACE,
    SELECT_KNOWN,
    SELECT_ROW,
    STATES,
    UNREADABLE,
    Row,
    fingerprint,
    is_sealed,
    is_text,
    is_whole,
    new_row,
    read_request,
    read_text,
    row_of,
)
from dmnotid.policy.sessions import Closed, Limits, SessionRequest
from tests.support import SERVER_ID, verified

LIMITS = Limits(expire_after=5_000)


def make_row(**more: object) -> Row:
    made = verified(7)
    values = new_row(made.server_id, made.notification, str(made.source), made.received_at, believed=True, session=3)
    return Row._make(values)._replace(**more)  # type: ignore[arg-type]


def read(row: Row) -> SessionRequest:
    return read_request(row, LIMITS, 100)


def test_request_becomes_a_row_and_a_request_again() -> None:
    request = read(make_row())._replace(attempts=4, not_before=time.monotonic() + 50)
    row = Row._make(row_of(request))
    assert is_whole(row)
    again = read(row)
    assert again[:6] == request[:6]
    assert again.not_before == pytest.approx(request.not_before, abs=1)
    assert again.expires_at == pytest.approx(request.expires_at, abs=1)


def test_new_row_is_pending_and_sealed() -> None:
    row = make_row()
    assert (row.session, row.server_id, row.state, row.attempts, row.closed_at) == (3, SERVER_ID, "pending", 0, None)
    assert row.package is not None
    assert row.fingerprint == fingerprint(row.package)
    assert is_sealed(row)


@pytest.mark.parametrize("column", ["server_id", "notification_id", "fingerprint", "sent_at"])
def test_seal_covers_each_column_that_never_changes(column: str) -> None:
    assert not is_sealed(make_row(**{column: None}))
    assert not is_whole(make_row(**{column: None}))


@pytest.mark.parametrize("column", ["server_id", "source", "state", "attempts", "closed_at"])
def test_text_that_is_not_utf8_makes_a_row_unusable(column: str) -> None:
    assert not is_whole(make_row(**{column: read_text(b"\xffa")}))


@pytest.mark.parametrize("state", [*Closed, "pending", UNREADABLE, "", "done2", None, 5, b"done"])
def test_row_is_whole_only_with_a_state_that_is_known(state: object) -> None:
    assert is_whole(make_row(state=state)) is (state in STATES)


@pytest.mark.parametrize("column", ["source", "received_at", "clock_believed", "attempts", "not_before", "seal"])
def test_row_without_a_value_that_each_row_has_is_not_whole(column: str) -> None:
    assert not is_whole(make_row(**{column: None}))


@pytest.mark.parametrize(
    ("column", "value"),
    [("package", None), ("package", "text"), ("attempts", "many"), ("received_at", b"\0"), ("source", ""),
     ("state", "done"), ("notification_id", 8), ("fingerprint", bytes(16)), ("server_id", 5)],
)  # fmt: skip
def test_row_that_is_not_as_written_is_refused(column: str, value: object) -> None:
    with pytest.raises(ValueError, match=column if column not in ("notification_id", "fingerprint") else "package"):
        read(make_row(**{column: value}))


def test_package_that_is_not_a_notification_is_refused() -> None:
    with pytest.raises(DecodeError):
        read(make_row(package=b"\x21\x80junk"))


@pytest.mark.parametrize(("octets", "text"), [(b"dm.example", True), (b"", False), (b"\xff", False)])
def test_text_is_what_is_not_empty_and_utf8(octets: bytes, *, text: bool) -> None:
    assert is_text(read_text(octets)) is text
    assert not is_text(octets)


def test_statements_write_and_read_every_column(tmp_path: Path) -> None:
    row = Row(5, SERVER_ID, 7, b"f", b"p", "s", 1, 2.0, 1, "done", 3, 4.0, 6.0, 8.0, 9, "exit 0", "wireline", "lo")
    database = connect(tmp_path / FILE_NAME)
    for statement, change in ((INSERT, {}), (INSERT_IF_NEW, {}), (REPLACE, {"session": 6, "attempts": 4})):
        database.execute(statement, row._replace(**change))  # type: ignore[arg-type]
        written = row._replace(**change)  # type: ignore[arg-type]
        assert database.execute(SELECT_ROW, (written.session,)).fetchall() == [written]
        assert database.execute(SELECT_KNOWN, (SERVER_ID, 7)).fetchall() == [written._replace(package=None)]
    database.close()
    assert len(COLUMNS) == len(row)
