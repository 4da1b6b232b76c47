"""The site that `make site` builds from the documents: complete, without a broken link, and nothing from elsewhere."""

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

PROJECT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="needs mkdocs-material: the extra `site`"),
]


class Page(HTMLParser):
    """What a page links to (`a`), what it loads, and the names of its elements."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.names: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = {name: value or "" for name, value in attrs}
        self.names.add(facts.get("id", ""))
        if tag == "a" and "href" in facts:
            self.links.append(facts["href"])
        elif target := facts.get("src") or (facts.get("href") if tag == "link" else None):
            self.loaded.append(target)


read = cache(Page)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    subprocess.run(["make", "--silent", "site", f"PYTHON={sys.executable}", f"SITE={made}"], cwd=PROJECT, check=True)
    return made


def test_page_without_a_place_in_the_order_ends_the_build(tmp_path: Path) -> None:
    """Each of the warnings that mkdocs.yml lists does."""
    changed = (PROJECT / "mkdocs.yml").read_text().replace("      - Operating: docs/operating.md\n", "")
    for file in [
        *PROJECT.glob("[A-Z]*"),
        *(PROJECT / name for name in ("config", "contrib", "dmnotid", "docs", "examples")),
    ]:
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "mkdocs.yml").write_text(changed)
    command = ["make", "--silent", "site", f"PYTHON={sys.executable}", f"SITE={tmp_path}/site"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "docs/operating.md" in done.stderr


def broken(file: Path, targets: list[str]) -> Iterator[str]:
    """Find targets within the site that do not exist."""
    for target in targets:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        there = file.parent / unquote(parts.path) if parts.path else file
        there = there / "index.html" if there.is_dir() else there
        if not there.exists() or (parts.fragment and parts.fragment not in read(there).names):
            yield target


def test_site_has_every_page(site: Path) -> None:
    sources = [PROJECT / "CHANGELOG.md", *PROJECT.glob("docs/**/*.md")]
    made = [site / page.relative_to(PROJECT).with_suffix(".html") for page in sources]
    assert [page for page in [site / "index.html", *made] if not page.is_file()] == []


def test_every_link_and_every_picture_of_the_site_exists(site: Path) -> None:
    # Links of 404.html begin with the path of the server that shows it.
    pages = {file: read(file) for file in site.rglob("*.html") if file.name != "404.html"}
    found = {file.name: list(broken(file, page.links + page.loaded)) for file, page in pages.items()}
    assert {name: targets for name, targets in found.items() if targets} == {}
    assert "docs/pictures/ways.svg" in pages[site / "index.html"].loaded


def test_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = {target for file in site.rglob("*.html") for target in read(file).loaded}
    assert [target for target in loaded if urlsplit(target).netloc] == []
