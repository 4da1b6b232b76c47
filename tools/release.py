"""Prepare a release: `make release VERSION=1.2.3` (CONTRIBUTING.md).

The version and its date are in dmnotid/__init__.py. This program writes them there and into both changelogs, renames
the recipe for Yocto, and writes the text of the tag to build/tag.txt. It commits nothing, and checks every file before
it writes the first.
"""

import re
import sys
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

MODULE: Final = "dmnotid/__init__.py"
CHANGELOG: Final = "CHANGELOG.md"
DEBIAN: Final = "debian/changelog"
TAG: Final = "build/tag.txt"
RECIPE: Final = "contrib/yocto/meta-dmnotid/recipes-connectivity/dmnotid/dmnotid_{}.bb"
"""The recipe, with its version in place of {}."""

_UNRELEASED: Final = "## [Unreleased]\n"

_NEXT: Final = """Prepared {version}. Review the changes (git diff), then:
    git add --all && git commit --message 'release: {version}'
    git tag --annotate v{version} --file {tag}
    make dist deb sbom PYTHON=.venv/bin/python
"""


class ReleaseError(Exception):
    """The release cannot be prepared; no file is changed."""


def prepare(project: Path, version: str, day: datetime) -> None:
    """Write the version and, as its release date, the midnight (UTC) at which `day` begins. Raises ReleaseError."""
    midnight = day.replace(hour=0, minute=0, second=0, microsecond=0)
    module = (project / MODULE).read_text()
    former = _find(r'(?m)^__version__ = "(.*)"$', module, MODULE)
    if not re.fullmatch(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}", version):
        raise ReleaseError(f"VERSION is {version!r}; three numbers are expected, such as VERSION=1.2.3")
    if _numbers(version) < _numbers(former):
        raise ReleaseError(f"VERSION is {version}, which is before the version in {MODULE}, {former}")

    changelog = (project / CHANGELOG).read_text()
    if f"\n## [{version}]" in changelog:
        raise ReleaseError(f"{CHANGELOG} has a section for {version} already; choose a later version")
    # The section ends at the next version, or at the end of the file.
    section = changelog.partition(_UNRELEASED)[2].partition("\n## [")[0].strip()
    if not re.search("(?m)^- ", section):
        raise ReleaseError(f"{CHANGELOG} has nothing under Unreleased; describe there what changes for users")

    files = {
        MODULE: re.sub(
            r"(?m)^RELEASED_AT = \d+$",
            f"RELEASED_AT = {midnight.timestamp():.0f}",
            module.replace(f'"{former}"', f'"{version}"', 1),
        ),
        CHANGELOG: changelog.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{version}] - {midnight:%Y-%m-%d}\n", 1),
        DEBIAN: _debian_changelog((project / DEBIAN).read_text(), version, midnight),
        # git takes a line that begins with # for a comment.
        TAG: f"dmnotid {version}\n\n" + re.sub(r"(?m)^#+ (.*)$", r"\1:", section) + "\n",
    }
    for name, text in files.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    (project / RECIPE.format(former)).rename(project / RECIPE.format(version))


def _find(pattern: str, text: str, name: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ReleaseError(f"{name} has no text that matches {pattern}")
    return found[1]


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def _debian_changelog(text: str, version: str, midnight: datetime) -> str:
    """Return debian/changelog with the version on top; an entry of the same version gets the date alone."""
    head, maintainer = _find(r"\A(.*)\n", text, DEBIAN), _find(r"(?m)^ -- (.*>)  ", text, DEBIAN)
    signed = f" -- {maintainer}  {format_datetime(midnight)}\n"
    if f"({version})" in head:
        return re.sub(r"(?m)^ -- .*\n", signed, text, count=1)
    head = re.sub(r"\(.*?\)", f"({version})", head)
    return f"{head}\n\n  * Release {version}, whose changes CHANGELOG.md describes.\n\n{signed}\n{text}"


def main() -> None:
    """Prepare the release of the version on the command line, as of today, in the current directory."""
    version = sys.argv[1]
    try:
        prepare(Path(), version, datetime.now(UTC))
    except ReleaseError as error:
        sys.exit(f"release: {error}")
    print(_NEXT.format(version=version, tag=TAG), end="")


if __name__ == "__main__":
    main()
