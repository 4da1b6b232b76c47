"""Machines for the tests: a root with Debian alone, one with dmnotid's package, and machines booted from them."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.project.packaging import PROJECT, RELEASE, sms_package
from tests.shared import made_once
from tests.system.device import Device
from tests.system.machine import Machine, make_root, why_not

OWN_ROOT: Final = "DMNOTID_TEST_ROOT"
"""Environment variable: a directory for the root, made if it is missing and kept, which saves half a minute."""

LATER: Final = "trixie"
"""A release whose systemd differs from that of Debian 12 where the documents say so."""

BOTH: Final = ("test_start", "test_units")
"""Files whose tests run in both releases; DMNOTID_TEST_RELEASE=trixie runs all tests in that one."""


def _make_root(root: Path, release: str = "") -> None:
    if reason := why_not():
        pytest.skip(reason)
    try:
        make_root(root, release)
    except OSError as error:
        pytest.skip(f"needs the packages of Debian: {str(error).strip()[-300:]}")


@pytest.fixture(scope="session")
def base_root() -> Path:
    """A Debian without dmnotid: of this machine's release, or of the one that is asked for."""
    if kept := os.environ.get(OWN_ROOT):
        if not Path(kept).exists():
            _make_root(Path(kept), os.environ.get(RELEASE, ""))
        return Path(kept)
    return made_once("root", lambda root: _make_root(root, os.environ.get(RELEASE, "")))


@pytest.fixture(scope="session")
def device_root(base_root: Path, package: Path) -> Path:
    """A Debian with dmnotid's packages installed."""

    def make(root: Path) -> None:
        subprocess.run(["cp", "--archive", "--reflink=auto", f"{base_root}/.", root], check=True)
        _install(package, root)

    return made_once("device-root", make)


@pytest.fixture(scope="session")
def later_root(request: pytest.FixtureRequest, package: Path) -> Path:
    """A Debian 13, which has systemd 257, with dmnotid's packages."""
    if os.environ.get(RELEASE) == LATER:
        found: Path = request.getfixturevalue("device_root")
        return found

    def make(root: Path) -> None:
        _make_root(root, LATER)
        _install(package, root)

    return made_once("later-root", make)


def _install(package: Path, root: Path) -> None:
    shutil.copy(package, root / "tmp/dmnotid.deb")
    shutil.copy(sms_package(package), root / "tmp/dmnotid-sms.deb")
    done = subprocess.run(
        ["chroot", root, "dpkg", "--install", "/tmp/dmnotid.deb", "/tmp/dmnotid-sms.deb"],  # noqa: S108 - in there
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheels(base_root: Path) -> Path:
    """Wheels of everything in the lock files, for the Python of the machine, which has no network."""

    def make(directory: Path) -> None:
        locked = [f"--requirement={file}" for file in sorted((PROJECT / "systemd").glob("*requirements.txt"))]
        version = (base_root / "usr/bin/python3").readlink().name.removeprefix("python")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
        command += [f"--python-version={version}"]
        done = subprocess.run(
            [*command, "--require-hashes", f"--dest={directory}", *locked], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"needs packages of Python: {done.stderr.strip()[-300:]}")

    return made_once("wheels", make)


@pytest.fixture
def bare_machine(base_root: Path) -> Iterator[Machine]:
    """A booted machine without dmnotid."""
    with Machine(base_root) as machine:
        yield machine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of some files in two releases."""
    both = metafunc.module.__name__.rpartition(".")[2] in BOTH and RELEASE not in os.environ
    if both and "device_machine" in metafunc.fixturenames:
        metafunc.parametrize("device_machine", ["device_root", "later_root"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def device_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A booted machine with dmnotid's package, one for all tests of a file (and release)."""
    with Machine(request.getfixturevalue(getattr(request, "param", "device_root"))) as machine:
        yield machine


@pytest.fixture
def device(device_machine: Machine) -> Iterator[Device]:
    """dmnotid in that machine, as just installed: configured, and neither enabled nor started."""
    device = Device(device_machine)
    device.configure()
    yield device
    # pytest shows it if the test failed.
    print(device_machine.attempt("journalctl", "--lines=60", "--output=short-precise").stdout)  # noqa: T201
    device.reset()


@pytest.fixture
def later_device(later_root: Path) -> Iterator[Device]:
    """dmnotid in a booted machine with systemd 257, as `device`."""
    with Machine(later_root) as machine:
        device = Device(machine)
        device.configure()
        yield device
        print(machine.attempt("journalctl", "--lines=60", "--output=short-precise").stdout)  # noqa: T201
