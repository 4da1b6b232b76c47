"""The documents: their links lead somewhere, the README lists every page, and no command gives a secret away."""

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
"""The target of a link or a picture; the text may be broken over lines."""
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


def anchors(page: Path) -> set[str]:
    """Return the names of the headings of a page, as GitHub and MkDocs make them."""
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    found = []
    for target in LINK.findall(page.read_text()):
        path, _, anchor = target.partition("#")
        if re.match("[a-z]+:", target):
            continue
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n\n[one](page.md#a-title) [two\nlines](gone.md) [three](#gone) [four](https://varlink.org)\n"
    )
    assert broken_links(page) == ["gone.md", "#gone"]


def test_readme_lists_every_page() -> None:
    listed = LINK.findall((PROJECT / "README.md").read_text())
    pages = [str(page.relative_to(PROJECT)) for page in PROJECT.glob("docs/**/*.md")]
    assert [page for page in pages if page not in listed] == []
