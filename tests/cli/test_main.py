"""The program itself: commands, exit status, closed and full streams, signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmnotid import __version__
from dmnotid.cli.parser import COMMANDS
from tests.cli.program import PATIENCE, PROGRAM, SCRIPT, Done, call, interpreted, through_shell, without_reader
from tests.project.completion import actions_of

GOOD = "010603d8af87 20000001"
JUNK = "0106"


def test_version_is_printed() -> None:
    assert call("--version") == Done(0, f"dmnotid {__version__}\n", "")


def test_help_names_every_command() -> None:
    done = call("--help")
    assert done.status == 0
    for name, summary in COMMANDS.items():
        assert re.search(rf"^    {name}\s+{re.escape(summary)}$", done.out, re.MULTILINE)


@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_has_80_columns_in_every_terminal(columns: str) -> None:
    """argparse would import shutil at each start, to find out about the terminal."""
    assert max(map(len, call("send", "--help", COLUMNS=columns).out.splitlines())) in range(70, 81)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_every_argument(name: str) -> None:
    """tests/project/test_man.py compares the arguments with the page of each command."""
    assert call(name, "--help").status == 0
    assert [action.dest for action in actions_of(name) if not action.help] == []


@pytest.mark.parametrize("words", [[], ["check"], ["help"]])
def test_help_command_prints_what_the_option_prints(words: list[str]) -> None:
    printed = call("help", *words)
    assert printed.status == 0
    assert printed == call(*words, "--help")


def test_help_names_the_default_configuration() -> None:
    for name in ("run", "check", "links", "test-hook"):
        assert "default: /etc/dmnotid/dmnotid.yaml" in call(name, "--help").out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "dmnotid: error: the following arguments are required: COMMAND"),
        (["chekc"], "dmnotid: error: 'chekc' is not a command; did you mean check?"),
        (["Test_Hook"], "dmnotid: error: 'Test_Hook' is not a command; did you mean test-hook?"),
        (["receive"], "dmnotid: error: 'receive' is not a command; dmnotid help lists the commands"),
        (["help", "chekc"], "dmnotid: error: 'chekc' is not a command; did you mean check?"),
        (["decode", "--bogus"], "dmnotid: error: unrecognized arguments: --bogus"),
        (["demo", "--twice"], "dmnotid: error: unrecognized arguments: --twice"),
        (["run", "here"], "dmnotid: error: unrecognized arguments: here"),
        (["check", "--config"], "dmnotid check: error: argument --config: expected one argument"),
        # A plain `run` is read without argparse, and must refuse the same.
        (["run", "--config", "--json"], "dmnotid run: error: argument --config: expected one argument"),
        (["decode", "--at", "then", "00"], "dmnotid decode: error: argument --at: 'then': POSIX seconds"),
        (
            ["links", "--prefer", "wifi"],
            "argument --prefer: 'wifi': a list of any, mobile, wireless, wireline is expected",
        ),
        (["links", "--prefer", "mobile,,any"], "argument --prefer: 'mobile,,any': a list of any, mobile, "),
        (["links", "wlan0"], "dmnotid: error: unrecognized arguments: wlan0"),
        (["decode", "--source", "Here", "00"], "argument --source: 'Here': an IPv4 or IPv6 address"),
    ],
)
def test_wrong_command_line_is_exit_status_2(words: list[str], wanted: str) -> None:
    done = call(*words)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("usage: dmnotid")
    assert wanted in done.err.splitlines()[-1]


def test_exit_status_is_that_of_the_command() -> None:
    assert interpreted("decode", GOOD).status == 0
    assert interpreted("decode", JUNK).status == 1
    assert interpreted("decode", "--file").status == 2


def test_installed_script_is_the_same_program() -> None:
    done = subprocess.run([SCRIPT, "decode", GOOD], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert Done(done.returncode, done.stdout, done.stderr) == interpreted("decode", GOOD)


def test_error_of_a_command_is_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert call("decode", "--file", str(missing)) == Done(1, "", f"{missing}: No such file or directory\n")


def test_command_imports_no_other_command() -> None:
    """Decoding needs no event loop, for example."""
    script = (
        "import sys; from dmnotid.cli import main; main(['decode', '0106'])\n"
        "print([name for name in sys.modules if name in ('asyncio', 'uvloop', 'sqlite3', 'dmnotid.cli.send')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_interrupted_command_has_the_status_of_sigint() -> None:
    """No traceback, and the status that a shell would report."""
    with subprocess.Popen(
        [*PROGRAM, "decode", "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        # Text is read in blocks: only a whole one gives the first line.
        process.stdin.write(f"{JUNK}\n{'# more' * 2000}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b'{"verdict"')
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == b""


MANY = f"{JUNK}\n".encode() * 5000


def test_reader_that_closes_the_pipe_early_sees_no_traceback() -> None:
    """The output is longer than a pipe."""
    done = through_shell('{ "$@" decode; echo "exit $?" >&2; } | head -n 1', given=MANY)
    assert done.out == "        0  01                        TID   1\n"
    assert done.err == "exit 1\n"


def test_reader_that_closed_the_pipe_before_sees_no_traceback() -> None:
    """The output is still buffered at exit."""
    assert without_reader("decode", JUNK) == Done(1, "", "")


@pytest.mark.parametrize("given", [MANY, JUNK.encode()], ids=["long", "buffered"])
def test_full_disk_is_reported(given: bytes) -> None:
    done = through_shell('"$@" decode > /dev/full', given=given)
    assert (done.status, done.err) == (1, "dmnotid: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("line", ['"$@" decode <&-', '"$@" decode --file - <&-', '"$@" decode 0106 >&-'])
def test_closed_stream_is_no_traceback(line: str) -> None:
    done = through_shell(line)
    assert done.status == 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize("words", [["decode", f"{JUNK}7f{'00' * 20}"], ["send", "--help"]])
def test_output_is_escaped_on_a_terminal_that_is_not_utf8(words: list[str]) -> None:
    """For example with the locale de_DE.ISO-8859-1."""
    done = interpreted(*words, PYTHONIOENCODING="latin-1")
    assert "Traceback" not in done.err
