"""Processes, as /proc shows them: whether a process group lives on, and what a former daemon left running."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")

MAX_ENVIRONMENT_OCTETS: Final = 256 * 1024
"""How much of a process's environment is read: what tells a session stands in it whole, whatever else does."""

_ENDED: Final = (b"Z", b"X")


class Process(NamedTuple):
    """A process that has not ended."""

    pid: int
    group: int
    session: int


def list_processes() -> list[Process]:
    """Return every process that this one may see; one that ends meanwhile is not among them."""
    found = (_read(entry) for entry in PROC.glob("[0-9]*"))
    return [process for process in found if process is not None]


def group_lives(group: int) -> bool:
    """Tell whether anything of a process group is left that has not ended; where /proc can't be read, it is."""
    processes = list_processes()
    return not processes or any(process.group == group for process in processes)


def find_leaders(environments: Collection[Mapping[str, str]]) -> list[int]:
    """Return the process groups whose leader has all that one of the environments says in its own.

    Leaders of a session are none of them: they have gone their own way, as a service does that a hook leaves behind.
    """
    wanted = [frozenset(f"{name}={value}".encode() for name, value in found.items()) for found in environments]
    leaders = (it.pid for it in list_processes() if it.pid == it.group != it.session)
    return [pid for pid in leaders if _has_one(_environment(pid), wanted)]


def _has_one(environment: Collection[bytes], wanted: Iterable[frozenset[bytes]]) -> bool:
    return any(one.issubset(environment) for one in wanted)


def _environment(pid: int) -> frozenset[bytes]:
    try:
        with (PROC / str(pid) / "environ").open("rb") as file:
            return frozenset(file.read(MAX_ENVIRONMENT_OCTETS).split(b"\0"))
    except OSError:  # gone since, or somebody else's
        return frozenset()


def _read(entry: Path) -> Process | None:
    """Read /proc/PID/stat: state, parent, group and session stand behind the name and its last parenthesis."""
    try:
        state, _parent, group, session = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:4]
    except (OSError, ValueError):  # gone since
        return None
    return None if state in _ENDED else Process(int(entry.name), int(group), int(session))
