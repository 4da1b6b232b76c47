"""The log: JSON lines, text lines, and a stream that can't be written."""

import fcntl
import io
import json
import os
import pty
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from dmnotid.host import log
from dmnotid.host.log import MAX_VALUE_OCTETS, Event, logger
from dmnotid.host.text import printable
from tests.support import LogLines

NASTY = "\x1b]0;owned\x07\x1b[31m\nforged line\r\x00\x7f\x9b2J\u2028\u202e\ud800<3>"
"""Characters that a terminal would interpret or take for a line break: ESC, BEL, CR, NUL, DEL, C1, separators."""


@pytest.fixture(autouse=True)
def _structlog_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def stumble(message: str = NASTY) -> None:
    raise ValueError(message)


def text_log(level: str = "debug") -> io.StringIO:
    stream = io.StringIO()
    log.configure(level, "text", stream)
    return stream


# Lines for a machine


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
@pytest.mark.parametrize("form", ["auto", "json"])
def test_json_line_is_json_alone(form: str, level: str) -> None:
    stream = io.StringIO()
    log.configure("debug", form, stream)
    getattr(logger, level)("notification accepted", session=3)
    assert stream.getvalue().count("\n") == 1
    assert json.loads(stream.getvalue())["level"] == level


def test_json_line_has_stable_keys(logged: LogLines) -> None:
    logger.info("notification accepted", session=3, server_id="dm", notification_id=7)
    (line,) = logged.all()
    assert list(line) == ["event", "level", "time", "session", "server_id", "notification_id"]
    assert line["event"] == "notification accepted"
    assert line["session"] == 3
    assert line["time"].endswith("Z")


def test_json_line_is_printable_ascii(logged: LogLines) -> None:
    logger.info("datagram discarded", problem=NASTY, server_id="dm\N{LATIN SMALL LETTER E WITH ACUTE}")
    text = logged.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert all(" " <= character <= "~" for character in text[:-1])
    assert json.loads(text)["problem"] == NASTY


def test_traceback_is_part_of_one_json_line(logged: LogLines) -> None:
    try:
        stumble()
    except ValueError:
        logger.exception("internal error", source="192.0.2.7:40000")
    assert logged.getvalue().count("\n") == 1
    (line,) = logged.all()
    assert line["level"] == "error"
    assert "Traceback" in line["exception"]
    assert "raise ValueError(message)" in line["exception"]
    assert "exc_info" not in line


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
@pytest.mark.parametrize("form", ["json", "text"])
def test_lines_below_the_level_are_omitted(level: str, seen: list[str], form: str) -> None:
    stream = io.StringIO()
    log.configure(level, form, stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(logger, name)(f"event-{name}")
    assert [name for name in ("debug", "info", "warning", "error") if f"event-{name}" in stream.getvalue()] == seen
    assert len(stream.getvalue().splitlines()) == len(seen)


# Subscribers


@pytest.mark.parametrize("form", ["json", "text"])
def test_subscriber_gets_each_record_with_its_sentence(form: str) -> None:
    records: list[Mapping[str, Any]] = []
    events = {"session started": Event("Session {session} starts")}
    log.configure("info", form, io.StringIO(), events)
    logger.info("before")
    unsubscribe = log.subscribe(records.append)
    begin = time.time()
    logger.info("session started", session=3, server_id=NASTY, outcome=None)
    logger.debug("below the level")
    logger.warning("unheard of", problem="x" * 5_000)
    unsubscribe()
    logger.info("after")
    first, second = map(dict, records)
    assert begin <= first.pop("at") <= time.time()
    facts = {"level": "info", "event": "session started", "sentence": "Session 3 starts"}
    assert first == facts | {"session": 3, "server_id": NASTY, "outcome": None}
    assert (second["level"], len(second["problem"])) == ("warning", MAX_VALUE_OCTETS - len("\\u2026") + 1)


def test_two_subscribers_get_the_same_records_until_they_leave(logged: LogLines) -> None:
    one: list[Mapping[str, Any]] = []
    two: list[Mapping[str, Any]] = []
    leave_one, leave_two = log.subscribe(one.append), log.subscribe(two.append)
    logger.info("first")
    leave_one()
    logger.info("second")
    leave_two()
    assert [it["event"] for it in one] == ["first"]
    assert [it["event"] for it in two] == ["first", "second"]
    assert [list(line) for line in logged.all()] == [["event", "level", "time"]] * 2


# Lines for people


def test_text_is_one_line_without_absent_values() -> None:
    stream = text_log()
    logger.warning("datagram discarded", reason="stale", server_id=None, octets=12)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert "discarded" in text
    assert "reason=stale" in text
    assert "octets=12" in text
    assert "warning" in text
    assert "server_id" not in text
    assert "<4>" not in text


def test_text_escapes_control_characters() -> None:
    stream = text_log()
    logger.info("datagram discarded", problem=NASTY, server_id="dm\N{LATIN SMALL LETTER E WITH ACUTE}")
    line, newline, rest = stream.getvalue().partition("\n")
    assert (newline, rest) == ("\n", "")
    assert line.isprintable()
    assert "\\x1b" in line
    assert "dm\N{LATIN SMALL LETTER E WITH ACUTE}" in line


def test_text_uses_nothing_deprecated() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_log()


def test_traceback_in_text_escapes_control_characters() -> None:
    stream = text_log()
    try:
        stumble()
    except ValueError:
        logger.exception("internal error")
    assert "Traceback" in stream.getvalue()
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))


def test_text_is_escaped_if_the_stream_cannot_encode_it(tmp_path: Path) -> None:
    """A SERVER-ID of the network on a terminal that is not UTF-8."""
    file = tmp_path / "log"
    with file.open("w", encoding="iso8859-1") as stream:
        log.configure("debug", "text", stream)
        logger.info("datagram discarded", server_id="\N{SNOWMAN}\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert "server_id=\\u2603\N{LATIN SMALL LETTER E WITH ACUTE}\n" in file.read_text("iso8859-1")


@pytest.mark.parametrize(
    ("text", "shown"), [("plain \u00e9 \u4e2d", "plain \u00e9 \u4e2d"), ("\x1b[1m\n", "\\x1b[1m\\n")]
)
def test_printable_escapes_what_a_terminal_interprets(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(NASTY).isprintable()


def test_terminal_gets_coloured_text() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        log.configure("info", "auto", terminal)
        logger.info("notification accepted", server_id=NASTY)
        shown = os.read(ours, 65_536).decode()
        log.configure("info", "json", terminal)
        logger.info("notification accepted")
        assert os.read(ours, 65_536).startswith(b'{"event": ')
    os.close(ours)
    assert "accepted" in shown
    assert "\x1b[" in shown
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown
    assert shown.count("\n") == 1


def test_auto_is_json_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("w") as stream:
        log.configure("info", "auto", stream)
        logger.info("notification accepted")
        assert file.read_text().startswith('{"event": "notification accepted"'), "each line is flushed"


def test_log_goes_to_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    logger.info("notification accepted")
    logger.debug("left out")
    out, err = capsys.readouterr()
    assert out.startswith('{"event": "notification accepted"')
    assert out.count("\n") == 1
    assert err == ""


# Long lines

CHARACTERS = ["x", '"', "\x1b", "\u00e9", "\u4e2d", "\u2028", "\U0001f600", "\ud800"]
"""Characters of one to four octets in UTF-8 that are written as they are or escaped, in JSON or in text."""


@pytest.mark.parametrize("character", CHARACTERS, ids=ascii)
@pytest.mark.parametrize("form", ["json", "text"])
def test_long_text_is_shortened_by_the_octets_that_are_written(form: str, character: str) -> None:
    """As much of it is shown as fits."""

    def written(text: str) -> bytes:
        stream = io.StringIO()
        log.configure("info", form, stream)
        # With a space, the renderer of text quotes and escapes each value.
        logger.info("datagram discarded", problem=f" {text}")
        start, end = ('"problem": " ', '"}\n') if form == "json" else ("problem=' ", "'\n")
        return stream.getvalue().rpartition(start)[2].removesuffix(end).encode("utf-8", "backslashreplace")

    wide = len(written(character * 11)) - len(written(character * 10))
    shown = written(character * 5_000)
    ellipsis = len(written("…"))
    # One octet is the space.
    assert MAX_VALUE_OCTETS - wide <= len(shown) + 1 <= MAX_VALUE_OCTETS
    assert shown[-ellipsis:] == written("…")
    fits = character * ((MAX_VALUE_OCTETS - 1) // wide)
    assert len(written(fits)) == wide * len(fits)


def test_traceback_and_line_of_a_hook_are_not_shortened_again(logged: LogLines) -> None:
    long = "\u00e9" * 1_024
    try:
        stumble(long)
    except ValueError:
        logger.exception("internal error", line=long)
    (line,) = logged.all()
    assert line["line"] == long
    assert long in line["exception"]


# A log that can't be written


def closed_pipe() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("opened", [closed_pipe, partial(open, "/dev/full", "w")], ids=["closed pipe", "full disk"])
def test_stream_that_takes_nothing_raises_nothing(opened: Callable[[], TextIO], form: str) -> None:
    stream = opened()
    log.configure("info", form, stream)
    for _ in range(3):
        logger.info("notification accepted", problem="x" * 10_000)
    with suppress(OSError):
        stream.close()


@pytest.mark.parametrize(
    ("form", "report"),
    [("json", '"log lines dropped", "level": "warning", "count": 3'), ("text", "log lines dropped: 3")],
)
def test_lines_are_dropped_and_counted_while_a_pipe_is_full(form: str, report: str) -> None:
    """The next line that is written reports how many were dropped."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe, os.fdopen(writer, "w") as stream:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
        log.configure("debug", form, stream)
        logger.info("first", line="x" * 3_000)
        assert b"first" in pipe.read(4_096)
        os.write(writer, b"y" * 4_096)
        for _ in range(3):
            logger.info("dropped")
        assert set(pipe.read(4_096)) == {ord("y")}
        logger.info("written")
        text = pipe.read(4_096).decode()
    assert report in text
    assert "written" in text
    assert '"dropped"' not in text


def test_partly_written_line_is_completed_before_the_next() -> None:
    """A line of any length neither blocks nor merges with another."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe, os.fdopen(writer, "w") as stream:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
        log.configure("debug", "json", stream)
        logger.info("long", line="\x01" * 1_020)
        text = pipe.read(4_096)
        logger.info("dropped while the rest is written")
        text += pipe.read(65_536)
        logger.info("written")
        text += pipe.read(65_536)
    events = [json.loads(line)["event"] for line in text.decode().splitlines()]
    assert events[0] == "long"
    assert events[-1] == "written"


def test_stopped_terminal_does_not_block() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream, os.fdopen(master, "rb", buffering=0):
        log.configure("debug", "text", stream)
        for _ in range(100):
            logger.info("chatty", filler="x" * 1_000)
