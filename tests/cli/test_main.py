"""The program itself: commands, exit status, closed and full streams, signals."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmnotid import __version__
from dmnotid.cli import main
from dmnotid.cli.parser import COMMANDS
from tests.cli.program import PATIENCE, PROGRAM, SCRIPT, Done, dmnotid

GOOD = "010603d8af87 20000001"
JUNK = "0106"


def usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a wrong command line, and return the last line of its message: exit status 2, nothing on stdout."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("usage: dmnotid")
    return told.err.splitlines()[-1]


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"dmnotid {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert re.search(rf"^    {name}\s+{re.escape(summary)}$", told, re.MULTILINE)


def test_option_in_place_of_the_file_of_run_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A plain `run` is read without argparse, and must refuse the same."""
    assert usage_error(["run", "--config", "--json"], capsys).endswith("argument --config: expected one argument")


@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_has_80_columns_in_every_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """argparse would import shutil at each start, to find out about the terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main(["send", "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) in range(70, 81)


OPTIONS = {
    "run": ["--config FILE"],
    "status": ["--json", "--check", "--all", "--socket PATH", "--config FILE"],
    "sessions": [
        *["N", "--all", "--server ID", "--since TIME", "--watch", "--json", "--socket PATH", "--config FILE"],
    ],
    "follow": ["--server ID", "--session N", "--level LEVEL", "--json", "--socket PATH", "--config FILE"],
    "discards": ["REASON", "--socket PATH", "--config FILE"],
    "reload": ["--socket PATH", "--config FILE"],
    "metrics": ["--no-servers", "--openmetrics", "--write FILE", "--http", "--socket PATH", "--config FILE"],
    "check": ["--config FILE", "--user NAME", "--skip-credentials", "--quiet"],
    "decode": ["HEX", "--file FILE", "--package", "--json", "--config FILE", "--at TIME", "--source SOURCE"],
    "send": [
        *[
            "--to DESTINATION",
            "--package",
            "--print",
            "--count N",
            "--rate N",
            "--server ID",
            "--no-server-id",
            "--config FILE",
        ],
        *["--secret-file FILE", "--unsigned", "--id N", "--prefer TYPE", "--req-mo N", "--req-mo-cv N:HEX"],
        *["--time TIME", "--tid N", "--header NAME:VALUE"],
    ],
    "links": ["--config FILE", "--prefer TYPE", "--watch", "--json"],
    "test-hook": [
        *["--config FILE", "--run", "--json", "--server ID", "--prefer TYPE", "--req-mo N", "--req-mo-cv N:HEX"],
        *["--unsigned", "--connection TYPE", "--interface NAME", "--attempt N"],
    ],
    "session": ["COMMAND"],
    "bearer": ["TELEPHONY", "--door PATH"],
    "demo": ["--once"],
    "help": ["COMMAND"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_explains_every_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    listed = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    for option in OPTIONS[name]:
        at = [index for index, line in enumerate(listed) if line.startswith(f"  {option}")]
        assert len(at) == 1, option
        words = listed[at[0]].removeprefix(f"  {option}") + listed[min(at[0] + 1, len(listed) - 1)]
        assert len(words.split()) > 1, f"{option} has no help"


@pytest.mark.parametrize("words", [[], ["check"], ["help"]])
def test_help_command_prints_what_the_option_prints(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["help", *words])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    assert printed == capsys.readouterr().out


def test_help_names_the_default_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run", "check", "links", "test-hook"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "default: /etc/dmnotid/dmnotid.yaml" in capsys.readouterr().out


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
def test_wrong_command_line_is_exit_status_2(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wanted in usage_error(words, capsys)


def test_exit_status_is_that_of_the_command() -> None:
    assert dmnotid("decode", GOOD).status == 0
    assert dmnotid("decode", JUNK).status == 1
    assert dmnotid("decode", "--file").status == 2


def test_installed_script_is_the_same_program() -> None:
    done = subprocess.run([SCRIPT, "decode", GOOD], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert Done(done.returncode, done.stdout, done.stderr) == dmnotid("decode", GOOD)


def test_error_of_a_command_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--file", str(tmp_path / "none")]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"{tmp_path}/none: No such file or directory\n")


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


def through_shell(line: str, *, given: str = "", **environ: str) -> Done:
    """Run a shell command in which "$@" is dmnotid."""
    done = subprocess.run(
        ["/bin/sh", "-c", line, "sh", *PROGRAM],
        input=given,
        capture_output=True,
        text=True,
        env=os.environ | environ,
        timeout=PATIENCE,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


MANY = f"{JUNK}\n" * 5000


def test_reader_that_closes_the_pipe_early_sees_no_traceback() -> None:
    """The output is longer than a pipe."""
    done = through_shell('{ "$@" decode; echo "exit $?" >&2; } | head -n 1', given=MANY)
    assert done.out == "        0  01                        TID   1\n"
    assert done.err == "exit 1\n"


def test_reader_that_closed_the_pipe_before_sees_no_traceback() -> None:
    """The output is still buffered at exit."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        command = [*PROGRAM, "decode", JUNK]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_full_disk_is_reported() -> None:
    done = through_shell('"$@" decode > /dev/full', given=MANY)
    assert done.status == 1
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err


def test_full_disk_is_reported_for_buffered_output() -> None:
    done = through_shell('"$@" decode 0106 > /dev/full')
    assert done.status == 1
    assert "No space left on device" in done.err
    assert "Exception ignored" not in done.err


def test_closed_standard_input_is_no_traceback() -> None:
    done = dmnotid("decode", given=None)
    assert done.status == 1
    assert "Traceback" not in done.err


def test_closed_standard_output_is_no_traceback() -> None:
    done = through_shell('"$@" decode 0106 >&-')
    assert done.status == 1
    assert "Traceback" not in done.err


@pytest.mark.parametrize("words", [["decode", f"{JUNK}7f{'00' * 20}"], ["send", "--help"]])
def test_output_is_escaped_on_a_terminal_that_is_not_utf8(words: list[str]) -> None:
    """For example with the locale de_DE.ISO-8859-1."""
    done = dmnotid(*words, PYTHONIOENCODING="latin-1")
    assert "Traceback" not in done.err
