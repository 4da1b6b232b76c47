"""`dmnotid demo`: the whole story on one machine, and no file left afterwards."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.program import PATIENCE, PROGRAM, SCRIPT, Terminal, dmnotid, through_shell
from tests.netns import needs_namespace
from tests.support import wait_until

PROJECT = Path(__file__).parents[2]

ENDS = ["accepted", "duplicate", "digest-mismatch", "stale", "unknown-server", "truncated"]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the demo a temporary directory of its own, whose name a shell would trip over."""
    directory = tmp_path / "it's a {temporary} $place"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


def test_every_datagram_of_the_story_has_its_effect(temporary: Path) -> None:
    done = dmnotid("demo", "--once")
    assert (done.status, done.err) == (0, "")
    _, *steps, end = done.out.split("\n--- ")
    assert end.startswith("Everything as expected:\n")
    assert [step[:3] for step in steps] == [f"{number}. " for number in range(1, 7)]
    for step, wanted in zip(steps, ENDS, strict=True):
        became = re.findall(
            r"^\d\d:\d\d:\d\d \[\w+ *\] (?:notification (accepted)|datagram discarded +reason=([\w-]+)) ",
            step,
            re.MULTILINE,
        )
        assert ["".join(found) for found in became] == [wanted], step
    # The parts of the datagram are shown, and the output of the hook.
    assert "SERVER-ID             'dm.example.com'" in steps[0]
    assert "accepted: " not in done.out  # only the daemon detects duplicates
    assert "hook output" in steps[0]
    assert "DM session with dm.example.com over lo (mobile), facts:" in steps[0]
    facts = re.search(r"line='(\{.*\})'", steps[0])
    assert facts is not None
    assert json.loads(facts[1])["requested_mos"] == [1, 2]
    assert "outcome='exit 0'" in steps[0]
    assert "hook output" not in "".join(steps[1:])
    assert list(temporary.iterdir()) == []


def test_demo_ends_with_a_table_of_every_datagram_and_its_verdict() -> None:
    _, *steps, end = dmnotid("demo", "--once").out.split("\n--- ")
    heading, *rows = re.findall(r"^    (\S.*)$", end, re.MULTILINE)
    assert heading.split() == ["SENT", "VERDICT", "REASON"]
    cells = [re.split(r"  +", row) for row in rows]
    assert [title for title, _, _ in cells] == [step.partition("\n")[0] for step in steps]
    assert cells[0][1:] == ["accepted", "the hook ran"]
    assert [ends for _, *ends in cells[1:]] == [["discarded", reason] for reason in ENDS[1:]]
    assert max(map(len, rows)) <= 76
    assert "\n".join([heading, *rows]) in (PROJECT / "README.md").read_text()


@pytest.mark.parametrize(("options", "shown"), [((), 1), (("--full",), 5)])
def test_octets_are_shown_of_the_first_datagram_or_of_all(options: tuple[str, ...], shown: int) -> None:
    out = dmnotid("demo", "--once", *options).out
    # The sixth datagram is junk and has no such field.
    assert out.count("NOTIFICATION-ID ") == shown
    assert len(re.findall(r"(?m)^    \d+ octets from 127\.0\.0\.1:\d+:?$", out)) == 6


def test_secret_is_not_shown(temporary: Path) -> None:
    """It is made anew each time, and read from the file that the last line names."""
    with Terminal(SCRIPT, "demo") as terminal:
        text = terminal.read_until("send --to")
        secret = next(temporary.glob("dmnotid-demo-*/secret"))
        assert secret.stat().st_mode & 0o077 == 0
        assert secret.read_text().strip() not in text
        assert terminal.stop(signal.SIGINT) == 0


@pytest.mark.root
@needs_namespace
def test_demo_runs_without_a_network(temporary: Path) -> None:
    """A network namespace with loopback up and nothing else: the hook runs over lo."""
    assert shutil.which("unshare") is not None
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *PROGRAM, "demo", "--once"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DM session with dm.example.com over lo (mobile), facts:" in done.stdout
    assert "Everything as expected:" in done.stdout
    assert list(temporary.iterdir()) == []


def line_to_paste(text: str) -> str:
    (line,) = re.findall(r"^    (\S.* send --to .*)$", text, re.MULTILINE)
    return str(line)


def test_demo_stays_up_and_the_printed_command_works(temporary: Path) -> None:
    """More than once, until Ctrl-C."""
    with Terminal(SCRIPT, "demo", NO_COLOR="1") as terminal:
        line = line_to_paste(terminal.read_until("/secret'\n"))
        for number in (1, 2):
            sent = subprocess.run(["/bin/sh", "-c", line], capture_output=True, timeout=PATIENCE, check=True)
            found = re.search(r"NOTIFICATION-ID (\d+), ", sent.stdout.decode())
            assert found is not None
            facts = f"session={number + 1} server_id=dm.example.com notification_id={found[1]}"
            terminal.read_until(f"{facts} attempt=1 attempts=1")
        assert terminal.stop(signal.SIGINT) == 0
    assert list(temporary.iterdir()) == []


def test_demo_stops_at_sigterm(temporary: Path) -> None:
    with Terminal(SCRIPT, "demo") as terminal:
        terminal.read_until("send --to")
        assert terminal.stop(signal.SIGTERM) == 0
    assert list(temporary.iterdir()) == []


def test_printed_command_works_for_a_module() -> None:
    with Terminal(*PROGRAM, "demo", NO_COLOR="1") as terminal:
        line = line_to_paste(terminal.read_until("/secret'\n"))
        sent = subprocess.run(["/bin/sh", "-c", line], capture_output=True, timeout=PATIENCE, check=False)
        terminal.stop(signal.SIGINT)
    assert sent.returncode == 0, sent.stderr


def test_printed_command_is_flushed_into_a_pipe(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("w") as stream, subprocess.Popen([*PROGRAM, "demo"], stdout=stream) as process:
        wait_until(lambda: "send --to" in out.read_text())
        process.send_signal(signal.SIGINT)


def test_no_color_leaves_colour_out() -> None:
    with Terminal(SCRIPT, "demo", "--once", NO_COLOR="1") as terminal:
        assert "\x1b" not in terminal.read_all()


def test_terminal_gets_colour() -> None:
    with Terminal(SCRIPT, "demo", "--once", "--full") as terminal:
        text = terminal.read_all()
        assert terminal.process.wait() == 0
    assert "\x1b[31mdiscarded: stale\x1b[0m: " in text


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_demo_ends_when_its_reader_does(unbuffered: str, temporary: Path) -> None:
    line = '{ timeout 25 "$@" demo --once; echo "exit $?" >&2; } | head -n 1'
    done = through_shell(line, PYTHONUNBUFFERED=unbuffered)
    assert re.search("connection available|listening", done.out)
    assert done.err == "exit 1\n"
    assert list(temporary.iterdir()) == []
