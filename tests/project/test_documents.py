"""The documents: their links lead somewhere, the README lists every page, and no command gives a secret away."""

import re
from pathlib import Path

import pytest
import yaml

from tests.cli.program import dmnotid

PROJECT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
"""The target of a link or a picture; the text may be broken over lines."""
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "contrib/**/*.md", "debian/README.Debian")
    for page in PROJECT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_runs_the_python_of_the_environment(page: Path) -> None:
    assert re.findall(r"(?<![\w./-])python3? -m (?!venv).*", page.read_text()) == []


@pytest.mark.parametrize("page", [*PAGES, PROJECT / "config/dmnotid.yaml"], ids=lambda page: page.name)
def test_no_command_line_has_a_secret_in_it(page: Path) -> None:
    """Other users see the arguments of a process, and the shell keeps them in its history."""
    kept = r"\|\s*(?:\\\n\s*)?(?:install|systemd-creds)\b|>\s*\S*secret"
    assert re.findall(rf"\b(?:printf|echo)\b.*(?:{kept})", page.read_text()) == []


def test_stop_of_the_service_takes_its_socket_along() -> None:
    """The next datagram would start it again; only without its socket unit it has none to stop."""
    stops = [line for page in PAGES for line in re.findall(r"systemctl stop dmnotid\..*", page.read_text())]
    assert [line for line in stops if "dmnotid.socket" not in line] == ["systemctl stop dmnotid.service"]
    assert "systemctl stop dmnotid.service\nsystemctl unmask dmnotid.socket" in (
        (PROJECT / "docs/install.md").read_text()
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_table_fits_a_terminal(page: Path) -> None:
    """A row can't be wrapped; what needs more than 100 columns is a list."""
    assert [row for row in re.findall(r"(?m)^ *\|.*", page.read_text()) if len(row) > 100] == []


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
        # A site shows no directory.
        if not there.is_file() or (anchor and anchor not in anchors(there)):
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


def examples(page: Path) -> list[str]:
    """Return the configurations of a page that are complete."""
    blocks = re.findall(r"(?ms)^```yaml\n(.*?)^```$", page.read_text())
    return [block for block in blocks if re.search("(?m)^servers:", block) and re.search("(?m)^hook:", block)]


EXAMPLES = [pytest.param(text, id=f"{page.name}-{at}") for page in PAGES for at, text in enumerate(examples(page), 1)]


@pytest.mark.parametrize("text", EXAMPLES)
def test_example_of_a_configuration_passes_the_check(tmp_path: Path, text: str) -> None:
    """With a directory of this test in place of the real ones, a hook and the secrets that the example names."""
    text = re.sub(r"/etc/dmnotid|/tmp/dmnotid-try", str(tmp_path), text)
    if "state:" not in text:
        text += f"state: {tmp_path}/state\n"
    for name in re.findall(r"file: ([\w.-]+)", text):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(f"a secret of its own: {name}")
    hook = tmp_path / "start-dm-session"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    file = tmp_path / "dmnotid.yaml"
    file.touch(mode=0o600)
    file.write_text(text)
    done = dmnotid("check", "--config", str(file))
    assert (done.status, done.err) == (0, "")


def test_configuration_page_has_an_example_of_two_servers() -> None:
    most = max(examples(PROJECT / "docs/configuration.md"), key=len)
    assert len(yaml.safe_load(most)["servers"]) == 2
