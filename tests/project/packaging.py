"""Sources to build packages and installations from, and a clean Debian to install them in."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

PROJECT: Final = Path(__file__).parents[2]

RELEASE: Final = "DMNOTID_TEST_RELEASE"
"""Environment variable: a release of Debian, such as trixie, to build the packages in and to boot."""

BUILD_PACKAGES: Final = (
    *("build-essential", "debhelper", "dh-python", "faketime", "lintian", "pandoc", "pybuild-plugin-pyproject"),
    "python3-setuptools",
)
"""What a root has besides the smallest Debian there is, to build and check the packages."""

_DEB_TOOLS: Final = ("make", "dpkg-buildpackage", "dpkg-checkbuilddeps")


def why_no_deb() -> str:
    """Say what this machine lacks to build the Debian package; "" where it lacks nothing."""
    missing = [tool for tool in _DEB_TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    lacks = subprocess.run(["dpkg-checkbuilddeps"], cwd=PROJECT, capture_output=True, text=True, check=False).stderr
    return f"needs what the build does: {lacks.strip().rpartition(': ')[2]}" if lacks else ""


def source_names() -> list[str]:
    """Return the names at the top of the repository, which a source distribution has."""
    found = re.search(r"(?m)^sources := ((?:.*\\\n)*.*)$", (PROJECT / "Makefile").read_text())
    assert found is not None
    return found[1].replace("\\\n", " ").split()


def copy_sources(target: Path, version: str | None = None) -> Path:
    """Copy the repository, perhaps as another version; `target`."""
    for name in source_names():
        source = PROJECT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, symlinks=True, ignore=ignored)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy2(source, target / name)
    if version is not None:
        _replace(target / "dmnotid/__init__.py", r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"')
        _replace(target / "debian/changelog", r"\A(\w+) \([^)]*\)", rf"\1 ({version})")
    return target


def _replace(file: Path, pattern: str, by: str) -> None:
    text, count = re.subn(pattern, by, file.read_text())
    assert count == 1, file
    file.write_text(text)


def repacked(package: Path, version: str, directory: Path, appended: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Pack the files of a package as another version, with text appended to some; faster than a build."""
    tree, built = directory / "tree", directory / f"dmnotid_{version}.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    _replace(tree / "DEBIAN/control", r"(?m)^Version: .*$", f"Version: {version}")
    module = tree / "usr/lib/python3/dist-packages/dmnotid/__init__.py"
    _replace(module, r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"')
    for name, text in appended.items():
        with Path(tree, name[1:]).open("a") as file:
            file.write(text)
    subprocess.run(["dpkg-deb", "--build", tree, built], check=True, capture_output=True)
    return built


def build_deb(sources: Path, dist: Path, *, root: Path | None = None, before: tuple[str, ...] = ()) -> Path:
    """Run `make deb`, perhaps as the arguments of another command; the package dmnotid, beside that of the bearers.

    With `root`, the command runs in another Debian, in whose directory `sources` and `dist` are.
    """
    directory = f"--directory={path_in(root, sources)}"
    done = subprocess.run(
        [*enter(root), *before, "make", directory, "deb", f"DIST={path_in(root, dist)}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    [package] = dist.glob("dmnotid_*.deb")
    return package


def enter(root: Path | None) -> list[str]:
    """Return the beginning of a command that runs in another Debian, or here."""
    return ["chroot", str(root), "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"] if root else []


def path_in(root: Path | None, path: Path) -> Path:
    """Return the path that a file in the directory of another Debian has inside."""
    return "/" / path.relative_to(root or "/")


def sms_package(package: Path) -> Path:
    """Return the package dmnotid-sms that was built with the package dmnotid."""
    [found] = package.parent.glob("dmnotid-sms_*.deb")
    return found
