"""The log: lines that a machine reads, lines that people read, and floods that are counted."""

import fcntl
import io
import json
import os
import pty
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import structlog

from dmnotid.errors import DigestMismatch, Discard, Duplicate, NotAPush, QueueFull, Stale, TrailingOctets, UnknownServer
from dmnotid.host import log
from dmnotid.host.log import FIRST_DISCARDS, DiscardLog, logger, printable
from dmnotid.wire.notification import decode_notification
from tests.support import SOURCE, LogLines, eventually, package

NASTY = "\x1b]0;owned\x07\x1b[31m\nforged line\r\x00\x7f\x9b2J\u2028\u202e\ud800<3>"
"""What a terminal would act on or take for the end of a line: ESC, BEL, CR, NUL, DEL, C1, separators, overrides."""


@pytest.fixture(autouse=True)
def _structlog_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def stumble() -> None:
    raise ValueError(NASTY)


def text_log(level: str = "debug") -> io.StringIO:
    stream = io.StringIO()
    log.configure(level, "text", stream)
    return stream


# Lines for a machine


@pytest.mark.parametrize(("level", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3)])
def test_a_json_line_begins_with_the_level_of_the_journal(logged: LogLines, level: str, priority: int) -> None:
    getattr(logger, level)("notification accepted", session=3)
    assert logged.getvalue().startswith(f"<{priority}>{{")
    assert logged.getvalue().count("\n") == 1
    assert logged.all()[0]["level"] == level


def test_keys_of_a_json_line_are_stable(logged: LogLines) -> None:
    logger.info("notification accepted", session=3, server_id="dm", notification_id=7)
    (line,) = logged.all()
    assert list(line) == ["event", "level", "time", "session", "server_id", "notification_id"]
    assert line["event"] == "notification accepted"
    assert line["session"] == 3
    assert line["time"].endswith("Z")


def test_json_holds_nothing_but_printable_ascii(logged: LogLines) -> None:
    logger.info("datagram discarded", problem=NASTY, server_id="dm\N{LATIN SMALL LETTER E WITH ACUTE}")
    text = logged.getvalue()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert all(" " <= character <= "~" for character in text[:-1])
    assert json.loads(text.partition(">")[2])["problem"] == NASTY


def test_the_traceback_of_a_bug_is_one_json_line(logged: LogLines) -> None:
    try:
        stumble()
    except ValueError:
        logger.exception("internal error", source="192.0.2.7:40000")
    assert logged.getvalue().startswith("<3>")
    assert logged.getvalue().count("\n") == 1
    (line,) = logged.all()
    assert line["level"] == "error"
    assert "Traceback" in line["exception"]
    assert "raise ValueError(NASTY)" in line["exception"]
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
def test_lines_below_the_level_are_left_out(level: str, seen: list[str], form: str) -> None:
    stream = io.StringIO()
    log.configure(level, form, stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(logger, name)(f"event-{name}")
    assert [name for name in ("debug", "info", "warning", "error") if f"event-{name}" in stream.getvalue()] == seen
    assert len(stream.getvalue().splitlines()) == len(seen)


# Lines for people


def test_text_is_one_line_an_event_without_what_is_absent() -> None:
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


def test_text_holds_no_control_character_of_the_network() -> None:
    stream = text_log()
    logger.info("datagram discarded", problem=NASTY, server_id="dm\N{LATIN SMALL LETTER E WITH ACUTE}")
    line, newline, rest = stream.getvalue().partition("\n")
    assert (newline, rest) == ("\n", "")
    assert line.isprintable()
    assert "\\x1b" in line
    assert "dm\N{LATIN SMALL LETTER E WITH ACUTE}" in line


def test_text_needs_nothing_deprecated() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text_log()


def test_the_traceback_in_text_holds_no_control_character_of_the_network() -> None:
    stream = text_log()
    try:
        stumble()
    except ValueError:
        logger.exception("internal error")
    assert "Traceback" in stream.getvalue()
    assert all(line.isprintable() for line in stream.getvalue().split("\n"))


def test_text_that_the_stream_cannot_write_does_not_raise(tmp_path: Path) -> None:
    """A SERVER-ID of the network on a terminal that is not UTF-8."""
    file = tmp_path / "log"
    with file.open("w", encoding="iso8859-1") as stream:
        log.configure("debug", "text", stream)
        logger.info("datagram discarded", server_id="\N{SNOWMAN}\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert "server_id=\\u2603\N{LATIN SMALL LETTER E WITH ACUTE}\n" in file.read_text("iso8859-1")


@pytest.mark.parametrize(
    ("text", "shown"), [("plain \u00e9 \u4e2d", "plain \u00e9 \u4e2d"), ("\x1b[1m\n", "\\x1b[1m\\n")]
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(NASTY).isprintable()


def test_a_terminal_gets_coloured_text() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        log.configure("info", "auto", terminal)
        logger.info("notification accepted", server_id=NASTY)
        shown = os.read(ours, 65_536).decode()
        log.configure("info", "json", terminal)
        logger.info("notification accepted")
        assert os.read(ours, 65_536).startswith(b"<6>{")
    os.close(ours)
    assert "accepted" in shown
    assert "\x1b[" in shown
    assert "\x1b]0;" not in shown
    assert "\x07" not in shown
    assert shown.count("\n") == 1


def test_elsewhere_auto_is_json(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("w") as stream:
        log.configure("info", "auto", stream)
        logger.info("notification accepted")
        assert file.read_text().startswith('<6>{"event": "notification accepted"'), "each line is flushed"


def test_standard_output_is_where_it_goes_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure()
    logger.info("notification accepted")
    logger.debug("left out")
    out, err = capsys.readouterr()
    assert out.startswith('<6>{"event": "notification accepted"')
    assert out.count("\n") == 1
    assert err == ""


# A log that can't be written


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_reader_that_left_is_no_reason_to_stop(form: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    log.configure("info", form, stream)
    for _ in range(3):
        logger.info("notification accepted", problem="x" * 10_000)
    with suppress(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize(
    ("form", "said"), [("json", '"log lines dropped", "level": "warning", "count": 3'), ("text", "3 log")]
)
def test_a_pipe_that_nobody_reads_blocks_nothing(form: str, said: str) -> None:
    """Lines are dropped while it is full; the next that comes through says how many."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe, os.fdopen(writer, "w") as stream:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
        log.configure("debug", form, stream)
        logger.info("first", filler="x" * 3_000)
        assert b"first" in pipe.read(4_096)
        os.write(writer, b"y" * 4_096)
        for _ in range(3):
            logger.info("lost")
        assert set(pipe.read(4_096)) == {ord("y")}
        logger.info("heard")
        text = pipe.read(4_096).decode()
    assert said in text
    assert "heard" in text
    assert "lost" not in text


def test_a_line_longer_than_the_room_in_a_pipe_is_finished_before_the_next() -> None:
    """Whatever its length: neither blocked, nor cut, nor glued to another."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as pipe, os.fdopen(writer, "w") as stream:
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4_096)
        log.configure("debug", "json", stream)
        logger.info("long", line="\x01" * 1_020)
        text = pipe.read(4_096)
        logger.info("lost while the rest is written")
        text += pipe.read(65_536)
        logger.info("heard")
        text += pipe.read(65_536)
    events = [json.loads(line[3:])["event"] for line in text.decode().splitlines()]
    assert events[0] == "long"
    assert events[-1] == "heard"


def test_a_terminal_that_is_stopped_blocks_nothing() -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream, os.fdopen(master, "rb", buffering=0):
        log.configure("debug", "text", stream)
        for _ in range(100):
            logger.info("chatty", filler="x" * 1_000)


def test_a_full_disk_is_no_reason_to_stop() -> None:
    stream = Path("/dev/full").open("w")  # noqa: SIM115 - closing it raises
    log.configure("info", "json", stream)
    for _ in range(3):
        logger.info("notification accepted", problem="x" * 10_000)
    with suppress(OSError):
        stream.close()


# Floods


def discard(refusal: Discard | None = None) -> Discard:
    found = Stale(86_401, 86_400) if refusal is None else refusal
    found.server_id, found.notification_id = "dm.example", 7
    return found


async def test_a_discard_is_one_line_with_stable_keys(logged: LogLines) -> None:
    discards = DiscardLog(3_600)
    discards.note(discard(), SOURCE)
    discards.flush()
    (line,) = logged.all()
    assert list(line) == ["event", "level", "time", "reason", "server_id", "notification_id", "source", "problem"]
    assert line["event"] == "datagram discarded"
    assert line["reason"] == "stale"
    assert (line["server_id"], line["notification_id"]) == ("dm.example", 7)
    assert line["source"] == "192.0.2.7:40000"
    assert line["problem"] == str(Stale(86_401, 86_400))


async def test_the_first_discards_of_a_reason_are_told_one_by_one(logged: LogLines) -> None:
    discards = DiscardLog(3_600)
    for _ in range(FIRST_DISCARDS + 7):
        discards.note(discard(), SOURCE)
    for _ in range(FIRST_DISCARDS):
        discards.note(discard(UnknownServer("dm.example")), SOURCE)
    assert FIRST_DISCARDS == 5
    assert [line["reason"] for line in logged.of("datagram discarded")] == ["stale"] * 5 + ["unknown-server"] * 5
    assert logged.of("datagrams discarded") == []
    discards.flush()
    (summary,) = logged.of("datagrams discarded")
    assert (summary["reason"], summary["count"], summary["interval"]) == ("stale", 7, 3_600)
    assert summary["level"] == "warning"


async def test_many_discards_alike_are_told_as_if_each_had_come_alone(logged: LogLines) -> None:
    discards = DiscardLog(3_600)
    for times in (1, FIRST_DISCARDS - 2, 4, 3):
        discards.note(discard(), SOURCE, times)
    assert len(logged.of("datagram discarded")) == FIRST_DISCARDS
    discards.flush()
    assert [line["count"] for line in logged.of("datagrams discarded")] == [
        1 + FIRST_DISCARDS - 2 + 4 + 3 - FIRST_DISCARDS
    ]


def ended(discards: DiscardLog) -> bool:
    return discards._timer is None


async def test_the_interval_ends_by_itself_and_another_begins(logged: LogLines) -> None:
    discards = DiscardLog(0.02)
    for counted in (1, 2):
        for _ in range(FIRST_DISCARDS + 3):
            discards.note(discard(), SOURCE)
        assert len(logged.of("datagram discarded")) == counted * FIRST_DISCARDS
        await eventually(partial(ended, discards))
        assert len(logged.of("datagrams discarded")) == counted
    assert [line["count"] for line in logged.of("datagrams discarded")] == [3, 3]


async def test_the_timer_runs_only_while_it_is_needed(logged: LogLines) -> None:
    discards = DiscardLog(0.01)
    assert ended(discards)
    discards.note(discard(), SOURCE)
    timer = discards._timer
    assert timer is not None
    discards.note(discard(), SOURCE)
    assert discards._timer is timer, "one for the interval, not one for each"
    await eventually(partial(ended, discards))
    assert logged.of("datagrams discarded") == [], "nothing was only counted"


async def test_flush_at_stop_leaves_no_timer_and_says_all_once(logged: LogLines) -> None:
    discards = DiscardLog(3_600)
    for _ in range(FIRST_DISCARDS + 1):
        discards.note(discard(), SOURCE)
    timer = discards._timer
    discards.flush()
    discards.flush()
    assert timer is not None
    assert timer.cancelled()
    assert discards._timer is None
    assert len(logged.of("datagrams discarded")) == 1


@pytest.mark.parametrize(
    ("found", "level"),
    [
        (discard(NotAPush(7)), "info"),
        (discard(UnknownServer("dm.example")), "info"),
        (Duplicate(3, same_content=True), "info"),
        (Duplicate(3, same_content=False), "warning"),
        (discard(DigestMismatch("dm.example")), "warning"),
        (discard(QueueFull("dm.example", 1, 1)), "warning"),
        (TrailingOctets("DM Notification", "end", 4, "1 more"), "warning"),
    ],
)
async def test_what_somebody_should_look_at_is_a_warning(logged: LogLines, found: Discard, level: str) -> None:
    discards = DiscardLog(3_600)
    discards.note(found, SOURCE)
    discards.flush()
    assert [line["level"] for line in logged.all()] == [level]


async def test_the_octets_of_a_decode_error_are_hex(logged: LogLines) -> None:
    octets = package() + NASTY.encode("utf-8", "surrogatepass")
    discards = DiscardLog(3_600)
    with pytest.raises(TrailingOctets) as caught:
        decode_notification(octets)
    discards.note(caught.value, SOURCE)
    discards.flush()
    assert NASTY[:8].encode().hex(" ") in logged.all()[0]["problem"]
    assert logged.getvalue().replace("\n", "").isprintable()
