"""What a release consists of: one version, the same octets from every build, a lock file and an SBOM."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

import dmnotid
from tests.project.packaging import PROJECT, copy_sources
from tests.support import further

NEXT = "9.8.7"


def make(directory: Path, *arguments: str, before: tuple[str, ...] = (), status: int = 0) -> str:
    """Run make with this Python; its output."""
    command = [*before, "make", *arguments, f"PYTHON={sys.executable}"]
    done = subprocess.run(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert (done.returncode == 0) == (status == 0), done.stdout
    return done.stdout


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs dmnotid[release]: {', '.join(missing)} missing")


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def copy_unreleased(target: Path) -> Path:
    """Copy the repository, with changes that no release has. The sources of a release have none."""
    sources = copy_sources(target)
    changelog = sources / "CHANGELOG.md"
    head, unreleased, _ = changelog.read_text().partition("## [Unreleased]\n")
    changes = "\n### Added\n\n- One.\n- Two.\n\n### Fixed\n\n- Three.\n\n## [0.0.1] - 2026-01-02\n\n- Former.\n"
    changelog.write_text(head + unreleased + changes)
    return sources


@needs_make
def test_release_writes_the_version_and_its_date_everywhere(tmp_path: Path) -> None:
    sources = copy_unreleased(tmp_path / "sources")
    before = {name: (sources / name).read_text() for name in ("CHANGELOG.md", "debian/changelog")}
    today = time.strftime("%Y-%m-%d", time.gmtime())
    printed = make(sources, "release", f"VERSION={NEXT}")
    if time.strftime("%Y-%m-%d", time.gmtime()) != today:
        pytest.skip("the day has changed meanwhile")
    assert f"git tag --annotate v{NEXT} --file build/tag.txt" in printed
    assert "make dist deb sbom PYTHON=.venv/bin/python\n" in printed

    module = (sources / "dmnotid/__init__.py").read_text()
    assert f'\n__version__ = "{NEXT}"\n' in module
    released = int(re.findall(r"(?m)^RELEASED_AT = (\d+)$", module)[0])
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(released)) == f"{today} 00:00:00"

    changelog = (sources / "CHANGELOG.md").read_text()
    assert f"## [Unreleased]\n\n## [{NEXT}] - {today}\n" in changelog
    assert changelog.replace(f"\n## [{NEXT}] - {today}\n", "", 1) == before["CHANGELOG.md"]
    section = changelog.partition(f"## [{NEXT}] - {today}\n")[2].partition("\n## [")[0]

    tag = (sources / "build/tag.txt").read_text()
    assert tag.startswith(f"dmnotid {NEXT}\n\n")
    assert not re.search("(?m)^#", tag)
    assert tag.count("\n- ") == section.count("\n- ") == 3

    debian = (sources / "debian/changelog").read_text()
    assert debian.startswith(f"dmnotid ({NEXT}) bookworm; urgency=medium\n")
    assert debian.endswith(before["debian/changelog"])
    signed = re.findall(r"(?m)^ -- [^<>]+ <[^<>]+>  (.*)$", debian)
    assert parsedate_to_datetime(signed[0]).timestamp() == released

    [recipe] = (sources / "contrib/yocto").rglob("dmnotid_*.bb")
    assert recipe.name == f"dmnotid_{NEXT}.bb"

    # A later release begins with an empty section; headings alone describe nothing.
    assert "nothing under Unreleased" in make(sources, "release", "VERSION=9.8.8", status=1)
    (sources / "CHANGELOG.md").write_text(changelog.replace("## [Unreleased]\n", "## [Unreleased]\n\n### Added\n", 1))
    assert "nothing under Unreleased" in make(sources, "release", "VERSION=9.8.8", status=1)


@needs_make
def test_first_release_of_the_version_in_the_sources_dates_it(tmp_path: Path) -> None:
    sources = copy_unreleased(tmp_path / "sources")
    before = (sources / "debian/changelog").read_text().splitlines()
    make(sources, "release", f"VERSION={dmnotid.__version__}")
    after = (sources / "debian/changelog").read_text().splitlines()
    assert len(after) == len(before)
    assert [line for line in after if not line.startswith(" -- ")] == [
        line for line in before if not line.startswith(" -- ")
    ]
    assert "choose a later version" in make(sources, "release", f"VERSION={dmnotid.__version__}", status=1)


def contents(sources: Path) -> dict[Path, bytes]:
    """Return every file; Python may have compiled modules beside them."""
    files = (path for path in sources.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: path.read_bytes() for path in files}


@needs_make
@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("1.2", "three numbers are expected"),
        ("0.0.1", f"before the version in dmnotid/__init__.py, {dmnotid.__version__}"),
        *further(*((version, "three numbers are expected") for version in ("", "v1.2.3", "1.02.3", "1.2\u0663.0"))),
    ],
)
def test_release_of_another_version_changes_nothing(tmp_path: Path, version: str, reason: str) -> None:
    sources = copy_unreleased(tmp_path / "sources")
    before = contents(sources)
    assert reason in make(sources, "release", f"VERSION={version}", status=1)
    assert contents(sources) == before


def test_lock_file_has_every_dependency_with_hashes() -> None:
    locked = "".join(file.read_text() for file in (PROJECT / "systemd").glob("*requirements.txt"))
    # Up to the extras of developers.
    required = dict(
        re.findall(r'"([A-Za-z]+)>=([\d.]+)', (PROJECT / "pyproject.toml").read_text().partition("\ntest = ")[0])
    )
    versions = dict(re.findall(r"(?m)^([\w-]+)==([\d.]+)", locked))
    assert {name.lower() for name in required} <= versions.keys()
    for name, least in required.items():
        assert [int(n) for n in versions[name.lower()].split(".")] >= [int(n) for n in least.split(".")], name
    for requirement in re.split(r"(?m)^(?=\w)", locked)[1:]:
        assert "--hash=sha256:" in requirement


@pytest.mark.system
@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="needs a checkout")
@needs("build", "twine")
@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
def test_distributions_are_those_of_another_place_and_time(tmp_path: Path) -> None:
    make(PROJECT, "dist", f"DIST={tmp_path / 'one'}")
    sources = copy_sources(tmp_path / "elsewhere/sources")
    for path in sources.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (10**9, 10**9))
            path.chmod(path.stat().st_mode & ~0o077)
    make(sources, "dist", f"DIST={tmp_path / 'two'}", before=("faketime", "2031-02-03 04:05:06"))
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert sorted(one) == [f"dmnotid-{dmnotid.__version__}-py3-none-any.whl", f"dmnotid-{dmnotid.__version__}.tar.gz"]

    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, (tmp_path / "one").iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout

    with tarfile.open(tmp_path / f"one/dmnotid-{dmnotid.__version__}.tar.gz") as archive:
        files = {member.name.partition("/")[2]: member for member in archive.getmembers() if not member.isdir()}
        metadata = archive.extractfile(files["PKG-INFO"])
        assert metadata is not None
        assert "\nLicense-Expression: MIT\n" in metadata.read().decode()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert files.keys() == {*tracked.split("\0")[:-1], "PKG-INFO"}


@pytest.mark.system
@needs("cyclonedx", "cyclonedx_py", "uv")
def test_sbom_follows_its_schema_and_names_every_package(tmp_path: Path) -> None:
    make(PROJECT, "sbom", f"DIST={tmp_path}")
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415 - optional
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    [file] = tmp_path.iterdir()
    assert file.name == f"dmnotid-{dmnotid.__version__}.cdx.json"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(file.read_text()) is None
    sbom = json.loads(file.read_text())
    about = sbom["metadata"]["component"]
    assert (about["name"], about["version"]) == ("dmnotid", dmnotid.__version__)
    locked = {
        (name, version, scope)
        for file_name, scope in (("requirements.txt", None), ("sms-requirements.txt", "optional"))
        for name, version in re.findall(r"(?m)^([\w-]+)==([\d.]+)", (PROJECT / "systemd" / file_name).read_text())
    }
    assert {(part["name"].lower(), part["version"], part.get("scope")) for part in sbom["components"]} == locked
    assert all(part["licenses"] for part in [about, *sbom["components"]])
    [depends] = [entry["dependsOn"] for entry in sbom["dependencies"] if entry["ref"] == about["bom-ref"]]
    assert len(depends) == len(locked)
