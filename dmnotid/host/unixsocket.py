"""Unix sockets that are bound at a path, in place of one that a killed process left there."""

import errno
import os
import socket
import stat
from pathlib import Path

from dmnotid.errors import EndpointError


def bind_unix(key: str, path: Path, kind: socket.SocketKind, mode: int) -> socket.socket:
    """Return a non-blocking socket that is bound at a path, with that mode.

    Raises EndpointError, which names the configuration's `key`: also if the path has another kind of file, or a socket
    that another process has open.
    """
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        if path.is_socket():
            _remove_stale(key, path, kind)
        # The file of the socket gets this mode, whatever the umask is: no other user can reach it before the next line.
        os.fchmod(sock.fileno(), 0)
        sock.bind(os.fspath(path))
        path.chmod(mode)
    except OSError as error:
        sock.close()
        # A path that is too long for an address is an error without a strerror.
        problem = error.strerror or str(error)
        # Also a link to nowhere. Not Path.exists(), which raises an error if a directory above cannot be entered.
        if os.path.lexists(path) and not path.is_socket():
            problem = "exists and is not a socket; remove it, or configure another path"
        raise EndpointError(f"{key}: {path}: {problem}") from error
    except EndpointError:
        sock.close()
        raise
    return sock


def _remove_stale(key: str, path: Path, kind: socket.SocketKind) -> None:
    """Remove a socket that no process has open. Raises OSError, and EndpointError if one does."""
    mode = path.stat().st_mode
    # A process that is killed before it sets the mode leaves none, with which its user cannot connect.
    if not mode & stat.S_IWUSR:
        path.chmod(stat.S_IMODE(mode) | stat.S_IWUSR)
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError as error:
            # Its queue of connections is full, or it is a socket of another kind: in both cases a process has it open.
            if error.errno not in {errno.EAGAIN, errno.EPROTOTYPE}:
                raise
    raise EndpointError(f"{key}: {path}: another process listens there")
