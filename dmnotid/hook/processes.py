"""Processes, as /proc shows them: which one it is, whether a group lives on, and what a former daemon left running."""

import errno
import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, NamedTuple, Self

MAX_SEEN: Final = 4
"""How many processes of a group, its leader aside, are held by a descriptor at once."""

_PROC: Final = "/proc"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MAX_STAT_OCTETS: Final = 4_096
_ENDED: Final = (b"Z", b"X")
_IDENTITY: Final = r"([0-9a-f-]{36}) ([1-9][0-9]{0,8}) ([0-9]{1,20})"

# Of what stands in /proc/PID/stat behind the name (proc(5) counts from 1, and the name is its second field).
_STATE: Final = 3 - 3
_GROUP: Final = 5 - 3
_STARTED_AT: Final = 22 - 3


class Identity(NamedTuple):
    """One process of all that there ever were here: a number alone is given again, and again after a boot."""

    boot_id: str
    pid: int
    started_at: int
    """Clock ticks after the boot."""

    def __str__(self) -> str:
        """`BOOT_ID PID STARTED_AT`: what `parse` reads."""
        return f"{self.boot_id} {self.pid} {self.started_at}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read what `str` made of one; None where it is something else."""
        found = re.fullmatch(_IDENTITY, text)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]))


def identify(pid: int) -> Identity:
    """Say which process has this number now. Raises OSError where there is none, or /proc doesn't tell."""
    return Identity(_BOOT_ID.read_text(encoding="ascii").strip(), pid, int(_read_stat(str(pid))[_STARTED_AT]))


class LeftOver:
    """A process that somebody else has started as the leader of a group, and its group: descriptors hold on to them.

    A signal to a descriptor reaches that process or nobody, but a group is signalled by its number, which another one
    may have by and by. A number isn't given anew while it is anybody's, as a process or as a group: so this one is the
    group's as long as the leader has not ended, or one is in the group that was seen there before and is held since.
    """

    def __init__(self, leader: Identity) -> None:
        """Take hold. Raises ProcessLookupError where exactly this process has ended, OSError without a descriptor."""
        self.group = leader.pid
        pidfd = _open(leader)
        if pidfd is None:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self._leader = pidfd
        self._seen: dict[int, int] = {}

    def __enter__(self) -> Self:
        """Go on: it is held."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go."""
        for pidfd in (self._leader, *self._seen.values()):
            os.close(pidfd)

    def lives(self) -> bool:
        """Tell whether the leader or anything of its group has not ended."""
        members = self._members()  # whatever the leader does: who is there now may be all that tells the group later
        return bool(members) or not _has_ended(self._leader)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the group, and to a leader that has left it. Raises PermissionError where none may be sent.

        The last look at whose number it is is microseconds old then, and numbers are given in turn: in that time all
        of the group would have to end, and some ten thousand others to start.
        """
        members = self._members()
        if members:
            with suppress(ProcessLookupError):
                os.killpg(self.group, number)
        if self.group not in members:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._leader, number)

    def _members(self) -> set[int]:
        """Return what of the group has not ended; nothing where its number may be another's by now."""
        processes = list_processes()
        if not processes:  # not even this one: nothing can be read now, for want of descriptors say
            return {pid for pid, pidfd in self._seen.items() if not _has_ended(pidfd)}
        members = {process.pid for process in processes if process.group == self.group}
        # Asked after the look: who has not ended by now was the one that was seen there.
        for pid in [pid for pid, pidfd in self._seen.items() if _has_ended(pidfd)]:
            os.close(self._seen.pop(pid))
        if _has_ended(self._leader) and members.isdisjoint(self._seen):
            return set()
        for pid in sorted(members - self._seen.keys() - {self.group})[: MAX_SEEN - len(self._seen)]:
            with suppress(OSError):  # gone since, or no descriptor is left: fewer do as well
                self._seen[pid] = os.pidfd_open(pid)
        return members


def _open(identity: Identity) -> int | None:
    """Return a descriptor of exactly this process; None where it has ended. Raises OSError where none can be had."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):  # nobody has the number, or a thread
            return None
        raise
    with ExitStack() as stack:
        stack.callback(os.close, pidfd)
        # Asked now that the descriptor is there: had it got another process, that one would have started later.
        try:
            is_it = identify(identity.pid) == identity
        except (FileNotFoundError, ProcessLookupError):
            is_it = False
        if not is_it or _has_ended(pidfd):
            return None
        stack.pop_all()
    return pidfd


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class Process(NamedTuple):
    """A process that has not ended."""

    pid: int
    group: int


def list_processes() -> list[Process]:
    """Return every process that this one may see; one that ends meanwhile is not among them."""
    found: list[Process] = []
    for name in _names():
        with suppress(OSError):  # gone since
            stat = _read_stat(name)
            if stat[_STATE] not in _ENDED:
                found.append(Process(int(name), int(stat[_GROUP])))
    return found


def group_lives(group: int) -> bool:
    """Tell whether anything of a process group is left that has not ended; where /proc can't be read, it is."""
    processes = list_processes()
    return not processes or any(process.group == group for process in processes)


def _names() -> Iterator[str]:
    with suppress(OSError), os.scandir(_PROC) as entries:
        yield from (entry.name for entry in entries if entry.name.isdecimal())


def _read_stat(name: str) -> list[bytes]:
    """Return what stands in /proc/PID/stat behind the process's name, which may hold anything. Raises OSError."""
    descriptor = os.open(f"{_PROC}/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _MAX_STAT_OCTETS).rpartition(b")")[2].split()
    finally:
        os.close(descriptor)
