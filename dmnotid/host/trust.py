"""Whether only root and the daemon's own user can change what a path leads to: configuration, hook, journal."""

import grp
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dmnotid.errors import UntrustedPath, UnusablePath

MAX_LINKS: Final = 40
"""Maximum number of symbolic links on a path, as in the kernel."""

_EXECUTABLE: Final = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def check_trusted(file: Path) -> None:
    """Ensure that only root and the daemon's user can change a program: the file, and every directory on its path.

    Symbolic links are followed, and each target is checked. Raises UntrustedPath, also for a file that cannot be run.
    """
    target, found = _trusted_target(file)
    if not stat.S_ISREG(found.st_mode):
        raise UnusablePath(str(file), "not a regular file")
    # access(2) also considers access control lists and mounts, which the mode does not show.
    if not os.access(target, os.X_OK):
        raise UnusablePath(target, explain_not_executable(target))


def explain_not_executable(file: str) -> str:
    """Return why this process can't execute an existing file, and the way out."""
    # A mount can forbid what the mode allows.
    if Path(file).stat().st_mode & _EXECUTABLE and os.statvfs(file).f_flag & os.ST_NOEXEC:
        return "on a file system that is mounted noexec: move it to another one, or mount that one with exec"
    return "not executable"


def check_trusted_path(path: Path) -> None:
    """Ensure that only root and the daemon's user can change what an absolute path leads to; else as `check_trusted`.

    The kind of the file is not checked.
    """
    _trusted_target(path)


def check_trusted_socket(path: Path) -> None:
    """Ensure that only root and the daemon's user can replace a socket; else as `check_trusted`."""
    _, found = _trusted_target(path)
    if not stat.S_ISSOCK(found.st_mode):
        raise UnusablePath(str(path), "not a socket")


def check_trusted_directory(path: Path) -> None:
    """Ensure that only root and the daemon's user can write to a directory; else as `check_trusted`."""
    _, found = _trusted_target(path)
    if not stat.S_ISDIR(found.st_mode):
        raise UntrustedPath(str(path), "not a directory")


def check_trusted_if_there(path: Path) -> None:
    """Ensure that only root and the daemon's user can change a file, if there is one; else as `check_trusted`."""
    try:
        # Not stat(), for which a link without a target is a missing file.
        path.lstat()
    except OSError:
        return
    try:
        _trusted_target(path)
    except UntrustedPath as error:
        # The target of a link may not exist yet.
        if not isinstance(error.__cause__, FileNotFoundError):
            raise


def _trusted_target(path: Path) -> tuple[str, os.stat_result]:
    """Check every component of a path; return the last, and its status."""
    # It would depend on the working directory, whose components are not checked.
    if not path.is_absolute():
        raise UntrustedPath(str(path), "not an absolute path")
    for component, found in _components(path):
        _check_owner(component, found)
    return component, found


def _components(file: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Walk a path from the root, link by link; yield each component of the file system with its status."""
    # Before each session: building text is cheaper than building Path objects.
    parts, at, links = list(reversed(file.parts[1:])), "", 0
    yield "/", _lstat("/")
    while parts:
        part = parts.pop()
        if part == "..":
            # `at` has no links left in it, so its parent is the text before the last slash.
            at = at.rpartition("/")[0]
            continue
        component = f"{at}/{part}"
        found = _lstat(component)
        yield component, found
        if not stat.S_ISLNK(found.st_mode):
            at = component
            continue
        links += 1
        if links > MAX_LINKS:
            raise UntrustedPath(str(file), f"more than {MAX_LINKS} symbolic links")
        try:
            target = Path(component).readlink()
        except OSError as error:
            raise _refusal(component, error) from error
        at = "" if target.is_absolute() else at
        # The target comes before the rest of the path, and `parts` is a stack.
        parts += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _lstat(component: str) -> os.stat_result:
    try:
        return os.lstat(component)
    except OSError as error:
        raise _refusal(component, error) from error


def _refusal(component: str, error: OSError) -> UnusablePath:
    return UnusablePath(component, str(error.strerror))


def _check_owner(component: str, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        problem = f"belongs to user {found.st_uid}, only root and the daemon's own user are trusted"
        # Root may be checking files of the user that the daemon will have.
        otherwise = "" if os.geteuid() else f", or run dmnotid as user {found.st_uid}"
        raise UntrustedPath(component, f"{problem}: chown root {shlex.quote(component)}{otherwise}")
    # The mode of a symbolic link is always 0777, and has no meaning.
    # The mode of a socket decides which users may connect to it.
    if stat.S_ISLNK(found.st_mode) or stat.S_ISSOCK(found.st_mode) or not found.st_mode & _WRITABLE_BY_OTHERS:
        return
    # In a sticky directory of root's, such as /tmp, only the owner of a file can replace it.
    if stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX and found.st_uid == 0:
        return
    if found.st_mode & stat.S_IWOTH:
        raise UntrustedPath(component, f"writable by others: chmod go-w {shlex.quote(component)}")
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    problem = f"writable by its group ({group}): chmod g-w {shlex.quote(component)}"
    # As /usr/local is on Debian: root:staff 2775.
    if stat.S_ISDIR(found.st_mode):
        problem += ", or use another directory, because that group could exchange the files in this one"
    raise UntrustedPath(component, problem)
