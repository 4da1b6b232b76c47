"""The commands that the documents print: they work as they are, and give nothing away."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), PROJECT / "debian/README.Debian"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_runs_the_python_of_the_environment(page: Path) -> None:
    assert re.findall(r"(?<![\w./-])python3? -m (?!venv).*", page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_line_has_a_secret_in_it(page: Path) -> None:
    """Other users see the arguments of a process, and the shell keeps them in its history."""
    assert re.findall(r"\b(?:printf|echo)\b.*\|\s*(?:\\\n\s*)?(?:install|systemd-creds)\b", page.read_text()) == []


def test_stop_of_the_service_takes_its_socket_along() -> None:
    """The next datagram would start it again; only without its socket unit it has none to stop."""
    stops = [line for page in PAGES for line in re.findall(r"systemctl stop dmnotid.*", page.read_text())]
    assert [line for line in stops if "dmnotid.socket" not in line] == ["systemctl stop dmnotid.service"]
    assert "systemctl stop dmnotid.service\n    systemctl unmask dmnotid.socket" in (
        (PROJECT / "docs/install.md").read_text()
    )
