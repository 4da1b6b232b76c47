"""Output becomes log lines, cut at 1 KiB a line and 64 KiB a run."""

import pytest

from dmnotid.hook.output import MAX_LINE_OCTETS, MAX_OUTPUT_OCTETS, OutputLog
from dmnotid.host.log import logger
from tests.hook.runs import output
from tests.support import LogLines

LIMIT_LINE = "output ends here: 65536 octets of one run are logged"


def feed(*pieces: tuple[str, bytes]) -> None:
    """Log the output of one run."""
    log = OutputLog(logger.bind(session=12))
    for stream, octets in pieces:
        log.feed(stream, octets)
    log.flush()
    log.flush()


def in_pieces(octets: bytes, size: int) -> list[tuple[str, bytes]]:
    return [("stdout", octets[at : at + size]) for at in range(0, len(octets), size)]


def test_lines_are_joined_from_pieces_and_empty_lines_are_left_out(logged: LogLines) -> None:
    pieces = [("stdout", b"a"), ("stderr", b"x"), ("stdout", b"b\n\nc"), ("stderr", b"y\n"), ("stdout", b"\xe2\x98")]
    feed(*pieces, ("stdout", b"\x83"), ("stdout", b""))
    assert output(logged) == ["ab", "c\u2603"]
    assert output(logged, "stderr") == ["xy"]
    lines = logged.of("hook output")
    assert {(line["level"], line["session"]) for line in lines} == {("info", 12)}
    assert all("cut" not in line for line in lines)


def test_octets_that_are_not_utf_8_are_escaped(logged: LogLines) -> None:
    feed(("stdout", b"\033[31m\0\xff\n"))
    assert output(logged) == ["\x1b[31m\0\\xff"]


@pytest.mark.parametrize("size", [1, 7, 1_000, 4_096])
def test_long_line_is_cut_at_the_same_octet_however_it_is_read(logged: LogLines, size: int) -> None:
    assert MAX_LINE_OCTETS == 1_024
    feed(*in_pieces(b"x" * 1_024 + b"\n" + b"y" * 1_025 + b"\n" + b"z" * 3_000, size))
    assert output(logged) == ["x" * 1_024, "y" * 1_024, "z" * 1_024]
    assert [line.get("cut") for line in logged.of("hook output")] == [None, True, True]


@pytest.mark.parametrize("size", [1_000, MAX_OUTPUT_OCTETS - 1, MAX_OUTPUT_OCTETS + 1, 3 * MAX_OUTPUT_OCTETS])
def test_run_is_cut_at_64_kib_and_reports_it_once(logged: LogLines, size: int) -> None:
    octets = b"123456789\n" * 20_000
    feed(*in_pieces(octets, size))
    *lines, last = output(logged)
    assert "".join(f"{line}\n" for line in lines) == octets[:65_536].decode() + "\n"
    assert last == LIMIT_LINE
    assert logged.of("hook output")[-1]["cut"] is True


def test_streams_of_a_run_share_its_limit(logged: LogLines) -> None:
    feed(("stdout", b"x" * 65_000), ("stderr", b"1234567890\n" * 100), ("stdout", b"more\n"))
    assert output(logged) == ["x" * 1_024]
    assert sum(len(line) + 1 for line in output(logged, "stderr")[:-1]) == 536 + 1
    assert output(logged, "stderr")[-1] == LIMIT_LINE


def test_nothing_is_logged_without_output(logged: LogLines) -> None:
    feed()
    feed(("stdout", b""), ("stderr", b"\n\n"))
    assert logged.all() == []
