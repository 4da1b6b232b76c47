"""The benchmarks: their table, and that their load is as described. No time is judged here."""

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.__main__ import DOCUMENT, MARK
from benchmarks.bursts import send_all, send_in_pages
from benchmarks.figures import HEADINGS, WIDTH, Figure, Scale, quantile, table
from benchmarks.load import SEGMENTS, Sender, flooding
from benchmarks.machine import usage
from benchmarks.rest import watching
from tests.processes import ROOT, udp_socket
from tests.support import DEADLINE, wait_until


def test_figure_with_a_yardstick_is_judged_by_its_ratio() -> None:
    figure = Figure("x", [10, 30, 20], "{:.0f}/s", "y", [20, 20, 20], at_least=1)
    assert figure.ratios == [0.5, 1.5, 1.0]
    assert figure.met is True
    assert figure._replace(at_least=1.1).met is False
    assert figure.cells() == ("x", "20/s", "1.00", "0.50 to 1.50", "≥ 1", "yes")
    assert figure.note() == "y: 20/s"
    assert figure._replace(about="z").note() == "z; y: 20/s"


def test_figure_without_a_yardstick_is_judged_by_its_value() -> None:
    figure = Figure("x", [1.0, 3.0, 2.0], "{:.1f} ms", at_most=1.5)
    assert figure.met is False
    assert figure.cells() == ("x", "2.0 ms", "", "1.0 to 3.0", "≤ 1.5 ms", "no")
    assert figure.note() == ""
    assert figure._replace(at_most=None).cells()[-2:] == ("", "")


def test_table_has_one_line_for_each_figure() -> None:
    lines = table([Figure("x", [1], "{}"), Figure("a longer one", [2], "{}")]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert all(heading in lines[0] for heading in HEADINGS)


def test_details_of_a_figure_are_in_a_list_below_the_table() -> None:
    lines = table([Figure("x", [1], "{}"), Figure("y", [2], "{}", about="many " * 30)]).splitlines()
    assert [line[:10] for line in lines[4:]] == ["", "* **y**: m", "  many man"]
    assert max(map(len, lines)) <= WIDTH


def test_quantile_of_values() -> None:
    assert quantile(range(500), 0.5) == 250
    assert quantile(range(500), 0.99) == 495
    assert quantile([7], 0.99) == 7


def test_sender_sends_the_datagrams_it_counts() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(DEADLINE)
        datagrams = [bytes([number]) * 20 for number in range(SEGMENTS + 7)]
        with Sender(receiver.getsockname(), datagrams) as sender:
            assert sender.send() == SEGMENTS
            assert [receiver.recv(99) for _ in range(SEGMENTS)] == datagrams[:SEGMENTS]
            assert sender.send(3) == 3
            assert [len(receiver.recv(99)) for _ in range(3)] == [20] * 3


def test_sender_refuses_datagrams_of_different_sizes() -> None:
    with pytest.raises(ValueError, match="one size"):
        Sender(("127.0.0.1", 9), [b"a", b"bc"])


def test_flood_counts_the_datagrams_it_sends() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0)
        with flooding(receiver.getsockname(), [b"flood"] * 64) as flood:
            while not udp_socket(*receiver.getsockname()).drops:
                pass
        taken = 0
        with suppress(BlockingIOError):
            while receiver.recv(9):
                taken += 1
        assert taken + udp_socket(*receiver.getsockname()).drops == flood.sent


def test_datagram_sent_from_a_page_takes_a_page_of_the_buffer() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(DEADLINE)
        datagrams = [bytes([number]) * 79 for number in range(9)]
        for send, least, most in [(send_all, 79, 2_048), (send_in_pages, 4_096, 8_192)]:
            send(receiver.getsockname(), datagrams)
            assert least < udp_socket(*receiver.getsockname()).queued / len(datagrams) < most
            assert [receiver.recv(99) for _ in datagrams] == datagrams


def test_daemon_under_a_watchdog_pings_it(tmp_path: Path) -> None:
    with watching(tmp_path, 0.1) as manager:
        wait_until(lambda: manager.pings_for(0.05))
        before = usage(manager.service.process.pid)
        # A ping may have been on its way before, and a wake-up is counted when it ends.
        wait_until(lambda: manager.pings_for(0.05) and usage(manager.service.process.pid).wake_ups > before.wake_ups)


def test_document_has_one_place_for_the_table() -> None:
    assert DOCUMENT.read_text().count(MARK) == 1


@pytest.mark.slow
def test_short_run_prints_its_table_and_keeps_the_document() -> None:
    before = DOCUMENT.read_text()
    command = [sys.executable, "-m", "benchmarks", "--short", "pure"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=4 * DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    assert "through the pure half" in done.stdout
    assert DOCUMENT.read_text() == before


def test_short_scale_measures_a_hundredth() -> None:
    assert Scale(short=True).of(1_000) == 10
    assert Scale(short=True).of(10, 3) == 3
    assert Scale().of(1_000) == 1_000
    assert Scale(short=True).runs < Scale().runs
