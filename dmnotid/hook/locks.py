"""One lock for each server, so that two processes never run a session of one server at once.

    free --take--> held by this process --hook started--> held by both --hook ended--> free
    both --daemon killed--> held by the hook --hook ended, or patience of the next daemon is over--> free

A lock is a flock(2) of a file. It belongs to the open file, which the hook inherits: it outlives a killed daemon.
"""

import fcntl
import os
import time
from contextlib import suppress
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Final, Self

from dmnotid.errors import HookError
from dmnotid.host.log import logger

LOCK_POLL: Final = 0.5
"""Interval between two looks at a lock that another process holds, in seconds: no event reports its end."""

DIRECTORY: Final = "locks"

_HELD: Final = "a process that another dmnotid started still runs for this server"


class ServerLock:
    """The lock of one server, held by this process. Leaving the context frees it, unless `keep` was called."""

    def __init__(self, file: Path | None, descriptor: int) -> None:
        # None if no file could be made: then nothing is locked.
        self._file = file
        # The open file that is locked; a command inherits it.
        self.descriptor = descriptor
        # Whether a command that has inherited the lock still runs.
        self._is_kept = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()

    def keep(self) -> None:
        """Leave the lock to the command that has inherited it."""
        self._is_kept = True

    def free(self) -> None:
        """Free the lock, also if a child that the command has left behind has inherited it, and remove its file."""
        if self._file is not None and not self._is_kept:
            # While the file still has its name, no other process can lock another file of that name.
            with suppress(OSError):
                self._file.unlink()
            # Closing would not free it while a child that the command left behind has the same open file.
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        os.close(self.descriptor)


class Locks:
    """The locks in a state directory."""

    def __init__(self, state: Path) -> None:
        # The directory of the lock files, made by the first `take`.
        self._directory = state / DIRECTORY
        # When a lock that another process holds was first found, on the monotonic clock, by server.
        self._held_since: dict[str, float] = {}

    def take(self, server_id: str, patience: float = inf) -> ServerLock | None:
        """Lock a server; None while another process holds its lock, for at most `patience` seconds from the first call.

        If the file can't be made, that is logged, and nothing is locked. Raises HookError if no descriptor is left.
        """
        # The name of a file is shorter than a server's id may be, and has no slash.
        file = self._directory / sha256(server_id.encode("utf-8", "surrogatepass")).hexdigest()
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            lock = _lock(file)
            if lock is None:
                now = time.monotonic()
                if server_id not in self._held_since:
                    logger.warning("lock held", server_id=server_id, file=str(file), problem=_HELD)
                if now - self._held_since.setdefault(server_id, now) < patience:
                    return None
                logger.warning("lock ignored", server_id=server_id, file=str(file), waited=round(patience, 1))
                # Its holder keeps a lock without a name.
                file.unlink(missing_ok=True)
                lock = _lock(file)
        except OSError as error:
            # The state directory was usable at the start, when former hooks may run; a full disk delays no session.
            logger.warning("lock missing", server_id=server_id, file=str(file), problem=error.strerror)
            try:
                return ServerLock(None, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                raise HookError(f"{file}: {error.strerror}", component=str(file)) from error
        self._held_since.pop(server_id, None)
        return lock


def _lock(file: Path) -> ServerLock | None:
    """Open and lock a file; None if another open file has the lock."""
    while True:
        # A command inherits the lock of its own server alone (`pass_fds`), and a symbolic link is not followed.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have removed the file between the two calls above: then another one has the name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(file), os.fstat(descriptor)):  # noqa: PTH116 - beside fstat
                    return ServerLock(file, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
