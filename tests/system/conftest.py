"""Machines for the tests: a root with Debian alone, one with dmnotid's package, and machines booted from them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import pytest

from tests.system.device import Device
from tests.system.machine import Machine, make_root, why_not

OWN_ROOT: Final = "DMNOTID_TEST_ROOT"
"""Environment variable: a directory for the root, made if it is missing and kept, which saves half a minute."""

LATER: Final = "trixie"
"""A release whose systemd differs from that of Debian 12 where the documents say so."""


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    """Turn a termination into an interrupt, so that fixtures clean up."""
    raise KeyboardInterrupt(number)


@pytest.fixture(scope="session")
def base_root() -> Iterator[Path]:
    """A Debian without dmnotid."""
    if reason := why_not():
        pytest.skip(reason)
    former = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield from _base_root()
    finally:
        signal.signal(signal.SIGTERM, former)


def _base_root() -> Iterator[Path]:
    if kept := os.environ.get(OWN_ROOT):
        if not Path(kept).exists():
            _make_root(Path(kept))
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="dmnotid-root-") as directory:
        _make_root(Path(directory, "root"))
        yield Path(directory, "root")


def _make_root(root: Path, release: str = "") -> None:
    try:
        make_root(root, release)
    except OSError as error:
        pytest.skip(f"needs the packages of Debian: {str(error).strip()[-300:]}")


@pytest.fixture(scope="session")
def device_root(base_root: Path, package: Path) -> Iterator[Path]:
    """A Debian with dmnotid's package installed."""
    with tempfile.TemporaryDirectory(prefix="dmnotid-root-") as directory:
        root = Path(directory, "root")
        subprocess.run(["cp", "--archive", "--reflink=auto", base_root, root], check=True)
        _install(package, root)
        yield root


def _install(package: Path, root: Path) -> None:
    shutil.copy(package, root / "tmp/dmnotid.deb")
    done = subprocess.run(
        ["chroot", root, "dpkg", "--install", "/tmp/dmnotid.deb"],  # noqa: S108 - in there
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of all that dmnotid needs to be built and run, as the machine has no network."""
    directory = tmp_path_factory.mktemp("packages") / "wheels"
    needed = ["PyYAML>=6.0", "structlog>=22.3", "uvloop>=0.17", "setuptools>=61", "wheel"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=3.11"]
    done = subprocess.run([*command, f"--dest={directory}", *needed], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs packages of Python: {done.stderr.strip()[-300:]}")
    return directory


@pytest.fixture
def bare_machine(base_root: Path) -> Iterator[Machine]:
    """A booted machine without dmnotid."""
    with Machine(base_root) as machine:
        yield machine


@pytest.fixture(scope="module")
def device_machine(device_root: Path) -> Iterator[Machine]:
    """A booted machine with dmnotid's package, one for all tests of a file."""
    with Machine(device_root) as machine:
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


@pytest.fixture(scope="session")
def later_root(package: Path) -> Iterator[Path]:
    """A Debian 13, which has systemd 257, with dmnotid's package."""
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="dmnotid-root-") as directory:
        root = Path(directory, "root")
        _make_root(root, LATER)
        _install(package, root)
        yield root


@pytest.fixture
def later_device(later_root: Path) -> Iterator[Device]:
    """dmnotid in a booted machine with systemd 257, as `device`."""
    with Machine(later_root) as machine:
        device = Device(machine)
        device.configure()
        yield device
        print(machine.attempt("journalctl", "--lines=60", "--output=short-precise").stdout)  # noqa: T201
