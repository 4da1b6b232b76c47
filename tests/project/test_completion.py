"""The completion in bash."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dmnotid.cli.parser import COMMANDS
from tests.project.completion import COMPLETION_FILE

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# compopt works only while bash completes a line.
SCRIPT = """
compopt() { :; }
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_dmnotid
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words: str, directory: Path | None = None) -> list[str]:
    """Return what bash offers for the last of these words."""
    done = subprocess.run(
        ["bash", "-euc", SCRIPT, "bash", str(COMPLETION_FILE), *words],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["sta"], ["status"]),
        ([""], [*COMMANDS, "--help", "--version"]),
        (["nothing"], []),
        (["status", "--c"], ["--check", "--config"]),
        (["sessions", "re"], ["retry"]),
        (["sessions", "retry", "--a"], ["--all"]),
        (["discards", "digest"], ["digest-mismatch", "digest-missing"]),
        (["follow", "--level", ""], ["debug", "info", "warning", "error"]),
        (["links", "--prefer", "w"], ["wireless", "wireline"]),
        (["send", "--server", ""], []),
        (["help", "li"], ["links"]),
    ],
)
def test_word_is_completed_as_the_parser_accepts_it(words: list[str], offered: list[str]) -> None:
    assert completed("dmnotid", *words) == offered


def test_path_is_completed_with_files(tmp_path: Path) -> None:
    (tmp_path / "dmnotid.yaml").touch()
    assert completed("dmnotid", "run", "--config", "dmn", directory=tmp_path) == ["dmnotid.yaml"]
