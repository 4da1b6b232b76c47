"""The man pages: made of the documents, clean to groff and man-db, and complete."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dmnotid.cli.parser import COMMANDS
from tests.project.completion import actions_of

PROJECT = Path(__file__).parents[2]
PAGES = ("dmnotid.8", "dmnotid.yaml.5", "dmnotid-hook.7")
TOOLS = ("make", "pandoc", "man", "lexgrog")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
WIDTH = 80

pytestmark = [pytest.mark.system, pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("man")
    subprocess.run(["make", "--silent", "man", f"MAN={made}"], cwd=PROJECT, check=True)
    return made


def read(page: Path) -> tuple[str, str]:
    """Return what a terminal of 80 columns shows of a page, and what groff has to say about it."""
    environment = os.environ | {
        "LC_ALL": "C.UTF-8",
        "MANWIDTH": str(WIDTH),
        "MAN_KEEP_FORMATTING": "",
        "MANPAGER": "cat",
    }
    shown = subprocess.run(
        ["man", "--warnings=w", "-l", str(page)], env=environment, check=True, capture_output=True, text=True
    )
    return shown.stdout, shown.stderr


def section(text: str, title: str) -> str:
    """Return what stands below a title, up to the next one that is indented no deeper."""
    found = re.search(rf"(?ms)^( *){re.escape(title)}\n(.*?)(?=^ {{0,3}}\S|\Z)", text)
    assert found is not None, f"there is no {title}"
    return found[2]


def terms(text: str) -> list[str]:
    return re.findall(r"(?m)^ {7}(\S.*)$", text)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_nothing_that_groff_warns_of(pages: Path, name: str) -> None:
    text, warnings = read(pages / name)
    assert warnings == ""
    assert text.startswith(f"{name.rpartition('.')[0]}({name[-1]})")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_terminal(pages: Path, name: str) -> None:
    text, _ = read(pages / name)
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_itself_as_man_db_wants_it(pages: Path, name: str) -> None:
    found = subprocess.run(["lexgrog", str(pages / name)], check=True, capture_output=True, text=True).stdout
    assert re.search(rf': "{re.escape(name.rpartition(".")[0])} - \w.+"\n\Z', found)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_refers_to_pages_and_to_documents_that_are_there(pages: Path, name: str) -> None:
    text, _ = read(pages / name)
    referred = set(re.findall(r"(dmnotid[a-z.-]*)\((\d)\)", text))
    assert referred == {(page.rpartition(".")[0], page[-1]) for page in PAGES}
    documents = re.findall(r"([^\s(]*)(docs/[a-z/]+\.md)", text)
    assert [path for _, path in documents if not (PROJECT / path).is_file()] == []
    # As the package installs them: a reader of the page has no checkout.
    assert {before for before, _ in documents} <= {"/usr/share/doc/dmnotid/"}


def test_every_key_is_described(pages: Path) -> None:
    keys = re.findall(r"(?m)^\* `([^`]+)` \(.+?\)[:\n]", (PROJECT / "docs/configuration.md").read_text())
    assert len(keys) > 30
    text, _ = read(pages / "dmnotid.yaml.5")
    described = {term.partition(" ")[0] for term in terms(text)}
    assert [key for key in keys if key not in described] == []


def options_of(command: str) -> dict[str, str]:
    """Return the options of a command with what follows each, as it is spelt."""
    return {
        option: f"{option} {action.metavar}".replace("…", "...") if action.metavar else option
        for action in actions_of(command)
        for option in action.option_strings
        if option not in ("-h", "--help")
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_described_and_no_other(pages: Path, command: str) -> None:
    text, _ = read(pages / "dmnotid.8")
    described = {spelt for term in terms(section(text, command)) if term[0] == "-" for spelt in term_options(term)}
    assert described == set(options_of(command).values())


def term_options(term: str) -> list[str]:
    """Take the options out of a term, which may have its meaning on the same line."""
    return [option.rstrip(",") for option in re.findall(r"--[a-z-]+(?: [A-Z][A-Z:\[\],.]*)?", term)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_usage(pages: Path, command: str) -> None:
    text, _ = read(pages / "dmnotid.8")
    usage = section(text, command).lstrip().splitlines()[0]
    assert usage.startswith(f"dmnotid {command}")
    arguments = {str(action.metavar) for action in actions_of(command) if not action.option_strings}
    assert arguments <= set(re.findall(r"\b[A-Z]+\b", usage))
    assert "[OPTION...]" in usage or set(re.findall(r"--[a-z-]+", usage)) == set(options_of(command))


def test_fields_of_the_journal_are_described(pages: Path) -> None:
    text, _ = read(pages / "dmnotid.8")
    fields = [term for term in terms(section(text, "LOG")) if term.startswith("DMNOTID_")]
    assert "DMNOTID_SERVER_ID" in fields
    assert "MESSAGE_ID" in terms(section(text, "LOG"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_examples(pages: Path, name: str) -> None:
    text, _ = read(pages / name)
    assert "dmnotid" in section(text, "EXAMPLES")
