"""The journal's native protocol, over a real socket, and the log on it."""

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from dmnotid.host import log
from dmnotid.host.journald import Journald, encode, leads_to_journal
from dmnotid.host.log import Event, logger

pytestmark = pytest.mark.usefixtures("_log_as_before")


@pytest.fixture
def _log_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as the journal does. Reading without a queued record raises BlockingIOError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listening:
        listening.bind(str(tmp_path / "journal"))
        yield listening


def decode(octets: bytes) -> dict[str, str]:
    """Read a record by the rules of the protocol."""
    fields = {}
    while octets:
        name, _, rest = octets.partition(b"\n")
        if b"=" in name:
            name, _, value = name.partition(b"=")
        else:
            length = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest.startswith(b"\n")
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        octets = rest
    return fields


def test_each_field_is_a_line() -> None:
    assert encode([("MESSAGE", "hello"), ("PRIORITY", "6")]) == b"MESSAGE=hello\nPRIORITY=6\n"


def test_value_with_a_newline_has_its_length() -> None:
    assert encode([("DMNOTID_SERVER_ID", "a\nPRIORITY=0")]) == (
        b"DMNOTID_SERVER_ID\n\x0c\x00\x00\x00\x00\x00\x00\x00a\nPRIORITY=0\n"
    )
    assert decode(encode([("A", "x\ny"), ("B", ""), ("C", "=")])) == {"A": "x\ny", "B": "", "C": "="}


def test_lone_surrogate_is_escaped() -> None:
    assert encode([("A", "\ud800")]) == b"A=\\ud800\n"


def test_record_arrives(journal: socket.socket) -> None:
    channel = Journald(Path(journal.getsockname()))
    channel.send([("MESSAGE", "hello")])
    assert decode(journal.recv(4_096)) == {"MESSAGE": "hello"}
    channel.close()


def fill(channel: Journald) -> None:
    for _ in range(100_000):
        channel.send([("MESSAGE", "hello" * 100)])


def test_busy_or_missing_journal_raises_at_once(journal: socket.socket, tmp_path: Path) -> None:
    channel = Journald(Path(journal.getsockname()))
    with pytest.raises(BlockingIOError):
        fill(channel)
    (tmp_path / "journal").unlink()
    with pytest.raises(FileNotFoundError):
        channel.send([("MESSAGE", "hello")])
    channel.close()


def test_stream_to_the_journal_is_identified_by_device_and_inode() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        about = os.fstat(ours.fileno())
        name = f"{about.st_dev}:{about.st_ino}"
        assert leads_to_journal(ours.fileno(), name)
        assert not leads_to_journal(theirs.fileno(), name)
        assert not leads_to_journal(ours.fileno(), None)
    assert not leads_to_journal(-1, name)


EVENTS = {
    "session try failed": Event("Try {attempt} of session {session} failed: {outcome}", "0" * 32),
    "daemon ready": Event("Ready for {servers} servers", others=("Ready",)),
}


class Stream:
    """Standard output that leads to the journal, and the end at which the journal reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, form: str, path: str) -> None:
        ours, self._theirs = socket.socketpair()
        about = os.fstat(ours.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{about.st_dev}:{about.st_ino}")
        monkeypatch.setattr(log, "Journald", lambda: Journald(Path(path)))
        self._stream = os.fdopen(ours.detach(), "w")
        log.configure("debug", form, self._stream, EVENTS)

    def close(self) -> None:
        self._stream.close()
        self._theirs.close()

    def text(self) -> str:
        self._theirs.setblocking(False)  # noqa: FBT003 - by position
        try:
            return self._theirs.recv(65_536).decode()
        except BlockingIOError:
            return ""


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch, journal: socket.socket) -> Iterator[Stream]:
    stream = Stream(monkeypatch, "auto", journal.getsockname())
    yield stream
    stream.close()


def record(journal: socket.socket) -> dict[str, str]:
    return decode(journal.recv(65_536))


def test_record_is_a_sentence_with_every_key_as_a_field(stream: Stream, journal: socket.socket) -> None:
    logger.warning("session try failed", session=3, server_id="dm", attempt=0, outcome="exit 1", signed=True, why=None)
    assert record(journal) == {
        "MESSAGE": "Try 0 of session 3 failed: exit 1",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "dmnotid",
        "MESSAGE_ID": "0" * 32,
        "DMNOTID_EVENT": "session try failed",
        "DMNOTID_SESSION": "3",
        "DMNOTID_SERVER_ID": "dm",
        "DMNOTID_ATTEMPT": "0",
        "DMNOTID_OUTCOME": "exit 1",
        "DMNOTID_SIGNED": "true",
    }
    assert not stream.text()


def test_key_that_is_not_the_name_of_a_field_becomes_one(stream: Stream, journal: socket.socket) -> None:
    """The counters of a daemon that stops are keys."""
    logger.info("daemon stopped", **{"digest-mismatch": 2, "not accepted": 1}, listen=["[::]:2948"])
    fields = record(journal)
    assert (fields["DMNOTID_DIGEST_MISMATCH"], fields["DMNOTID_NOT_ACCEPTED"]) == ("2", "1")
    assert fields["DMNOTID_LISTEN"] == '["[::]:2948"]'
    assert not stream.text()


@pytest.mark.parametrize(
    ("event", "keys", "sentence"),
    [
        ("daemon ready", {"servers": 2}, "Ready for 2 servers"),
        ("daemon ready", {}, "Ready"),
        ("unheard of", {"problem": "x"}, "unheard of: x"),
        ("unheard of", {}, "unheard of"),
        ("unheard of", {"problem": "\x1b[1m\nPRIORITY=0 {session}"}, "unheard of: \\x1b[1m\\nPRIORITY=0 {session}"),
    ],
)
def test_sentence_fits_the_keys_of_the_record(
    stream: Stream, journal: socket.socket, event: str, keys: dict[str, object], sentence: str
) -> None:
    logger.info(event, **keys)
    assert record(journal)["MESSAGE"] == sentence
    assert not stream.text()


def test_level_of_a_record_is_its_priority(stream: Stream, journal: socket.socket) -> None:
    for level in ("debug", "info", "warning", "error"):
        getattr(logger, level)("daemon ready", servers=2)
    assert [record(journal)["PRIORITY"] for _ in range(4)] == ["7", "6", "4", "3"]
    assert not stream.text()


def fail(message: str) -> None:
    raise ValueError(message)


def test_traceback_follows_the_sentence(stream: Stream, journal: socket.socket) -> None:
    try:
        fail("\x1b[1m")
    except ValueError:
        logger.exception("internal error")
    message = record(journal)["MESSAGE"].splitlines()
    assert message[:2] == ["internal error", "Traceback (most recent call last):"]
    assert message[-1] == "ValueError: \\x1b[1m"
    assert not stream.text()


def test_text_from_the_network_cannot_add_fields(stream: Stream, journal: socket.socket) -> None:
    logger.info("datagram discarded", reason="unknown-server", server_id="x\nPRIORITY=0\nMESSAGE=forged")
    fields = decode(journal.recv(4_096))
    assert fields["DMNOTID_SERVER_ID"] == "x\nPRIORITY=0\nMESSAGE=forged"
    assert fields["PRIORITY"] == "6"
    assert not stream.text()


def test_record_that_the_journal_refuses_becomes_a_line_with_its_level(stream: Stream, tmp_path: Path) -> None:
    (tmp_path / "journal").unlink()
    logger.error("session try failed", session=3, attempt=1, outcome="exit 1\n<0>forged")
    assert stream.text() == "<3>Try 1 of session 3 failed: exit 1\\n<0>forged\n"


def test_configured_text_is_records_with_fields_too(monkeypatch: pytest.MonkeyPatch, journal: socket.socket) -> None:
    stream = Stream(monkeypatch, "text", journal.getsockname())
    logger.warning("daemon ready", servers=3)
    fields = record(journal)
    assert (fields["MESSAGE"], fields["PRIORITY"], fields["DMNOTID_SERVERS"]) == ("Ready for 3 servers", "4", "3")
    assert not stream.text()
    stream.close()


def test_configured_json_is_lines_alone(monkeypatch: pytest.MonkeyPatch, journal: socket.socket) -> None:
    stream = Stream(monkeypatch, "json", journal.getsockname())
    logger.info("notification accepted", session=3)
    assert json.loads(stream.text())["session"] == 3
    stream.close()
