"""Regular files, read whole, bounded, and only on a path that the caller trusts."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dmnotid.config.tree import Wrong
from dmnotid.errors import UntrustedPath

CheckPath = Callable[[Path], None]
"""Raises UntrustedPath if another user can change what an absolute path leads to."""

_READABLE: Final = stat.S_IRGRP | stat.S_IROTH
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


def read_regular(path: Path, limit: int, check_path: CheckPath | None = None) -> tuple[bytes, os.stat_result]:
    """Return the octets of a regular file and its status; with `check_path` only if the path passes it.

    Raises Wrong if there is no such file, if it has more than `limit` octets, or if the path is not trusted.
    """
    try:
        # Checked before the file is opened: on a path that has passed, no other user can exchange the file.
        if check_path is not None:
            # Not resolve(), which would hide the symbolic links that the check has to follow.
            check_path(path.absolute())
        # A FIFO or a device must not be opened at all: that alone can block, or have an effect.
        _ensure_regular(path, path.stat().st_mode)
        # If one replaces the file at this moment, O_NONBLOCK keeps the call from blocking.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with open(descriptor, "rb") as stream:  # noqa: PTH123 - a descriptor, not a path
            # The path can lead to another file by now, so the open file is checked.
            found = os.fstat(descriptor)
            _ensure_regular(path, found.st_mode)
            # Not by st_size, which is 0 in /proc, and outdated if the file grows.
            octets = stream.read(limit + 1)
    except UntrustedPath as error:
        # A missing component is found by the check first, and is the same problem as without the check.
        if isinstance(error.__cause__, OSError):
            raise Wrong(f"{path} cannot be read: {error.__cause__.strerror}") from None
        raise Wrong(str(error)) from None
    except OSError as error:
        raise Wrong(f"{path} cannot be read: {error.strerror}") from None
    # One octet more than the limit was requested, so that a file of exactly that size passes.
    if len(octets) > limit:
        raise Wrong(f"{path} is larger than {limit} octets")
    return octets, found


def is_private(found: os.stat_result) -> bool:
    """Return whether only root and this process can read and write a file.

    That includes the usual way of packages: root's file, which the primary group of this process may read.
    """
    others = found.st_mode & (_READABLE | _WRITABLE)
    if found.st_uid == 0 and found.st_gid == os.getegid():
        others &= ~stat.S_IRGRP
    return not others


def _ensure_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise Wrong(f"{path} is not a regular file")
