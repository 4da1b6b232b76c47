"""File systems for tests, in a mount namespace that other processes do not see and that ends with its last process."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pytest

IMAGE_OCTETS: Final = 8 * 1024 * 1024

_TOOLS: Final = ("unshare", "nsenter", "mount", "losetup", "mkfs.ext4", "e2fsck")


class Mounts:
    """A mount namespace, held by a process that ends with this one in any case; all mounts are removed then."""

    def __init__(self) -> None:
        # cat ends at the end of its standard input, so nothing needs to be cleaned up.
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo there; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        if self._holder.stdout is None or not self._holder.stdout.readline():
            _, problem = self._holder.communicate()
            message = f"a mount namespace cannot be made: {problem.strip()}"
            raise OSError(message)
        self.prefix = ["nsenter", f"--target={self._holder.pid}", "--mount", "--"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holder.communicate()

    def run(self, *argv: str | Path, allowed: int = 0) -> str:
        """Run a command inside, and return its output. Raises OSError if its exit status is neither 0 nor `allowed`."""
        done = subprocess.run([*self.prefix, *argv], capture_output=True, check=False, text=True)
        if done.returncode not in (0, allowed):
            message = f"{' '.join(map(str, argv))}: {done.stderr.strip() or done.stdout.strip()}"
            raise OSError(message)
        return done.stdout

    def path(self, inside: Path) -> Path:
        """Return the path by which this process reaches a file of the namespace."""
        return Path(f"/proc/{self._holder.pid}/root", inside.relative_to("/"))

    def mount_tmpfs(self, directory: Path, size: str) -> None:
        """Mount memory of a size such as "512k", for its owner alone."""
        self.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", directory)

    def mount_ext4(self, image: Path, directory: Path) -> None:
        """Mount an image, which becomes read-only if the kernel finds an error in it."""
        self.run("mount", "-t", "ext4", "-o", "loop,errors=remount-ro", image, directory)
        self.path(directory).chmod(0o700)

    def device(self, directory: Path) -> str:
        """Return the name of the block device that was mounted last on a directory, such as "loop0"."""
        return Path(self.run("findmnt", "-n", "-o", "SOURCE", "--mountpoint", directory).split()[-1]).name

    def break_ext4(self, directory: Path) -> None:
        """Let the kernel find an error in the file system that is mounted there."""
        Path("/sys/fs/ext4", self.device(directory), "trigger_fs_error").write_text("1")


def make_ext4(image: Path) -> Path:
    """Make an empty file system in a file."""
    with image.open("wb") as stream:
        stream.truncate(IMAGE_OCTETS)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, capture_output=True)
    return image


def repaired(image: Path, copy: Path) -> Path:
    """Copy an image that is still mounted, and repair the copy before it is mounted."""
    shutil.copy(image, copy)
    done = subprocess.run(["e2fsck", "-f", "-y", copy], check=False, capture_output=True, text=True)
    # 1: errors were found and corrected.
    assert done.returncode in (0, 1), f"{done.stdout}{done.stderr}"
    return copy


def _why_not_mounted(mount: Callable[[Mounts, Path], None], directory: Path) -> str:
    if os.geteuid() != 0:
        return "needs root, to mount a file system of its own"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)} (mount, util-linux, e2fsprogs)"
    try:
        with Mounts() as mounts:
            mount(mounts, directory)
    except OSError as error:
        return f"a file system cannot be mounted here: {error}"
    return ""


def skip_without_tmpfs(directory: Path) -> None:
    """Skip the test, with the reason, if no tmpfs can be mounted."""
    _skip(_why_not_mounted(lambda mounts, at: mounts.mount_tmpfs(at, "64k"), directory))


def skip_without_ext4(directory: Path, image: Path) -> None:
    """Skip the test, with the reason, if this image can't be mounted, or can't be broken after that."""

    def mount(mounts: Mounts, at: Path) -> None:
        mounts.mount_ext4(make_ext4(image), at)
        Path("/sys/fs/ext4", mounts.device(at), "trigger_fs_error").stat()

    _skip(_why_not_mounted(mount, directory))


def _skip(reason: str) -> None:
    if reason:
        pytest.skip(reason)
