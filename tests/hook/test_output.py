"""Output becomes log lines, cut at 1 KiB a line; a run has 64 KiB and 512 lines."""

import pytest

from dmnotid.hook.output import LEFT_OUT, MAX_LINE_OCTETS, MAX_OUTPUT_OCTETS, OutputLog
from dmnotid.host.log import logger
from tests.hook.runs import output
from tests.support import LogLines


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


@pytest.mark.parametrize("size", [1, 7, 4_096])
def test_carriage_return_ends_a_line(logged: LogLines, size: int) -> None:
    states = [f"{percent:3}% [=====>            ] 12.3 kB/s" for percent in range(100)]
    octets = "".join(f"\r{state}" for state in states) + "\rfailed: no space left on device\n" + "one\r\ntwo\r\n"
    feed(*in_pieces(octets.encode(), size))
    assert output(logged) == [*states, "failed: no space left on device", "one", "two"]


@pytest.mark.parametrize("size", [1_000, MAX_OUTPUT_OCTETS - 1, MAX_OUTPUT_OCTETS + 1, 3 * MAX_OUTPUT_OCTETS])
def test_run_with_more_than_512_lines_is_logged_with_its_first_384_and_last_128(logged: LogLines, size: int) -> None:
    lines = [str(number) for number in range(20_000)]
    feed(*in_pieces("\n".join(lines).encode(), size))
    assert output(logged) == [*lines[:384], LEFT_OUT, *lines[-128:]]
    assert [line["line"] for line in logged.of("hook output") if line.get("cut")] == [LEFT_OUT]


@pytest.mark.parametrize("size", [1_000, 3 * MAX_OUTPUT_OCTETS])
def test_run_with_more_than_64_kib_is_logged_with_its_first_48_and_last_16(logged: LogLines, size: int) -> None:
    lines = [f"{number:0511}" for number in range(1_000)]
    feed(*in_pieces("".join(f"{line}\n" for line in lines).encode(), size))
    assert output(logged) == [*lines[:96], LEFT_OUT, *lines[-32:]]


@pytest.mark.parametrize("lines", [512 * ["x"], 64 * ["x" * 1_023]])
def test_run_at_the_limit_is_logged_whole(logged: LogLines, lines: list[str]) -> None:
    feed(("stdout", "\n".join(lines).encode()))
    assert output(logged) == lines


def test_lines_keep_their_order_at_the_limit(logged: LogLines) -> None:
    """The line that has no room among the first is followed by one that would have it."""
    lines = [*(47 * ["x" * 1_023]), "y" * 1_000, "z" * 1_000, "short"]
    feed(("stdout", "\n".join(lines).encode()))
    assert output(logged) == lines


def test_streams_of_a_run_share_its_limit(logged: LogLines) -> None:
    feed(*(("stdout", b"out\n"), ("stderr", b"err\n")) * 400)
    assert len(output(logged)) + len(output(logged, "stderr")) == 512 + 1


def test_nothing_is_logged_without_output(logged: LogLines) -> None:
    feed()
    feed(("stdout", b""), ("stderr", b"\n\n"))
    assert logged.all() == []
