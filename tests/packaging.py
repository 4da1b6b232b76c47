"""Sources to build packages and installations from, and a clean Debian to install them in."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).parents[1]

_DEB_TOOLS: Final = ("make", "dpkg-buildpackage", "dpkg-checkbuilddeps")
_ROOT_TOOLS: Final = ("mmdebstrap", "unshare", "chroot")
_INCLUDED: Final = "systemd,python3-structlog,python3-uvloop,python3-venv,python3-yaml"
"""What dmnotid depends on, and what systemd/install needs."""


def why_no_deb() -> str:
    """Say what this machine lacks to build the Debian package; "" where it lacks nothing."""
    missing = [tool for tool in _DEB_TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    lacks = subprocess.run(["dpkg-checkbuilddeps"], cwd=PROJECT, capture_output=True, text=True, check=False).stderr
    return f"needs what the build does: {lacks.strip().rpartition(': ')[2]}" if lacks else ""


def why_no_root() -> str:
    """Say what this machine lacks to install into a clean Debian; "" where it lacks nothing but perhaps the network."""
    if os.geteuid():
        return "needs root, for a Debian of its own"
    missing = [tool for tool in _ROOT_TOOLS if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else ""


def source_names() -> list[str]:
    """Return the names of all that a package is made of."""
    found = re.search(r"(?m)^sources := (.*)$", (PROJECT / "Makefile").read_text())
    assert found is not None
    return found[1].split()


def copy_sources(target: Path, version: str | None = None) -> Path:
    """Copy what a source distribution has, perhaps as of another version; `target`."""
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


def build_deb(sources: Path, dist: Path) -> Path:
    """Run `make deb`; the package."""
    done = subprocess.run(
        ["make", "deb", f"DIST={dist}"], cwd=sources, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    [package] = dist.glob("*.deb")
    return package


class CleanDebian:
    """A minimal Debian 12 in a directory, in which nothing runs but what is told to; what dmnotid needs is there."""

    def __init__(self, directory: Path) -> None:
        """Make it; skips the test where its packages can't be had."""
        self.path = directory
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_INCLUDED}", "bookworm", str(directory)]
        done = subprocess.run([*command, *_sources()], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs the packages of Debian 12: {done.stderr.strip()[-300:]}")

    def run(self, *argv: str, status: int = 0) -> str:
        """Run a command in it; what it says. It must end with `status`."""
        inside = ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={self.path}/proc", "chroot", str(self.path)]
        environment = {"PATH": "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        done = subprocess.run(
            [*inside, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def bring(self, source: Path) -> str:
        """Copy a file or directory into its /srv; the path there."""
        target = self.path / "srv" / source.name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
        return f"/srv/{source.name}"

    def find(self) -> set[str]:
        """Return every path that has to do with dmnotid: none is deeper than the first directory of that name."""
        found = subprocess.run(
            ["find", ".", "-xdev", "-path", "./srv", "-prune", "-o", "-name", "*dmnotid*", "-prune", "-print"],
            cwd=self.path, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {path.removeprefix(".") for path in found.splitlines()}


def _sources() -> list[str]:
    """Return where this machine has its packages from, if it is a Debian 12 too; else mmdebstrap knows."""
    release = Path("/etc/os-release")
    if not release.exists() or "VERSION_CODENAME=bookworm" not in release.read_text():
        return []
    places = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("debian*.sources")]
    return [str(place) for place in places if place.exists()]
