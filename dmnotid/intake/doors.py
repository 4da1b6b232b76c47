"""Doors: Unix datagram sockets through which other processes of this device hand in pushes, or bare packages (4).

A sender whose datagram does not fit into the queue has to wait, so nothing is lost while the daemon is busy. A sender
with an address gets one datagram as an answer, once the verdict is durable:

    {"verdict": "accepted", "session": 7}
    {"verdict": "discarded", "reason": "duplicate"}

A door is bound here, or passed by the service manager, which then also decides about its mode and group. Only root and
the daemon's user may be able to replace it, and not every user may send: otherwise its name as a source proves nothing.
"""

import grp
import json
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any, Final

from dmnotid.config.values import DoorConfig
from dmnotid.errors import EndpointError, UntrustedPath, UnusablePath
from dmnotid.host.log import logger
from dmnotid.host.trust import check_trusted_directory, check_trusted_socket
from dmnotid.host.unixsocket import bind_unix
from dmnotid.intake.batches import BatchReader, Deliver
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram, Handover
from dmnotid.wire.wsp import DEFAULT_MAX_OCTETS

# struct ucred: pid, uid, gid.
_CREDENTIALS: Final = Struct("=iII")

ANCILLARY_OCTETS: Final = socket.CMSG_SPACE(_CREDENTIALS.size)
"""Room for the credentials, which come first, and for nothing else: a sender can attach open files."""

SO_TIMESTAMP: Final = 29
"""asm-generic/socket.h. Turned off, it turns off SO_TIMESTAMPNS too."""

# The beginning of every answer.
_ANSWER: Final = b'{"verdict": '


class Door(BatchReader):
    """One door. `passed` sockets belong to the service manager, and stay at their path when the door is closed."""

    def __init__(self, sock: socket.socket, config: DoorConfig, deliver: Deliver, *, passed: bool) -> None:
        super().__init__(sock, deliver)
        # What its datagrams hold, and its name; a reload may change both.
        self.config = config
        # Whether the service manager bound it.
        self.passed = passed
        # Its file. The socket holds the inode, so no later file has that number.
        self._file = config.path.stat()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        # A socket unit may have requested it (Timestamping=); it would take the place of the credentials.
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 0)

    def __str__(self) -> str:
        """Return the path."""
        return str(self.config.path)

    @property
    def door(self) -> str:
        """The name of the door."""
        return self.config.source

    @property
    def lost(self) -> bool:
        """Whether no sender can reach it: its file was removed, or another one is in its place."""
        try:
            return not os.path.samestat(self._file, self.config.path.stat())
        except OSError:
            return True

    def read(self, now: float) -> Iterator[Datagram]:
        """Yield queued datagrams; see BatchReader."""
        source, bare = Source(self.config.source, None), self.config.holds == "package"
        # One octet too many shows that the datagram is too long.
        room = self.max_octets + 1
        while True:
            payload, records, _, address = self.socket.recvmsg(room, ANCILLARY_OCTETS)
            # SO_PASSCRED adds them to each datagram.
            pid, uid, _ = _CREDENTIALS.unpack(records[0][2])
            # The answer of a door is never answered: a sender may bind its socket, and put a link to a door in its
            # place. Two doors would answer each other forever. A door has a path: the same octets from an abstract
            # address are those of a bearer, which an SMS may have.
            echo = isinstance(address, str) and payload.startswith(_ANSWER)
            answer = partial(self._answer, address) if address and not echo else None
            yield Datagram(payload, source, now, Handover(bare, pid, uid, answer))

    def _answer(self, address: Any, verdict: dict[str, object]) -> None:  # noqa: ANN401 - text, or octets if abstract
        # A sender that is gone, or does not read, loses its answer: the daemon must not wait for it.
        with suppress(OSError):
            self.socket.sendto(json.dumps(verdict).encode(), socket.MSG_DONTWAIT, address)

    def close(self, deadline: float) -> None:
        """Deliver the queued datagrams, then close; a passed socket stays open."""
        # Before the queue is drained: a later sender finds no door, instead of one that is not read.
        self.remove()
        self.drain(deadline)
        if not self.passed:
            self.socket.close()

    def remove(self) -> None:
        """Remove the socket from its path, unless it was passed, or another file is there."""
        if not self.passed and not self.lost:
            with suppress(OSError):
                # An error is of no consequence: the next start replaces a socket that it finds.
                self.config.path.unlink()


class Doors:
    """The doors of a configuration. A reload opens and closes some of them, and changes others."""

    def __init__(self, deliver: Deliver, passed: Iterable[socket.socket] = ()) -> None:
        # Called with the datagrams of each door.
        self._deliver = deliver
        # The sockets that the service manager passed; those of doors that are not configured are not read. By path
        # without links: an entry may have /var/run, in place of which systemd binds /run.
        self._passed = {os.path.realpath(sock.getsockname()): sock for sock in passed}
        # The doors, in the order of the configuration, and by the same kind of path.
        self._doors: dict[str, Door] = {}
        # Maximum length of a datagram, also for doors that a reload opens.
        self._max_octets = DEFAULT_MAX_OCTETS
        # Whether `open` was called.
        self._receiving = False

    def __iter__(self) -> Iterator[Door]:
        """Iterate in the order of the configuration."""
        return iter(self._doors.values())

    def configure(self, max_octets: int) -> None:
        """Cut off longer datagrams, also at later doors."""
        self._max_octets = max_octets
        for door in self:
            door.max_octets = max_octets

    def bind(self, configs: Sequence[DoorConfig]) -> list[Door]:
        """Open new doors, change those with other settings, and return those that are gone, which the caller closes.

        A door whose file is gone is opened again. Raises EndpointError, and changes nothing then.
        """
        doors: dict[str, Door] = {}
        with ExitStack() as undo:
            for config in configs:
                path = os.path.realpath(config.path)
                door = self._doors.get(path)
                if door is None or (door.lost and not door.passed):
                    door = self._new_door(config)
                    undo.callback(door.close, 0)
                elif door.passed:
                    check_passed(config.path)
                elif config != door.config:
                    undo.callback(_permit, door.config)
                    _permit(config)
                doors[path] = door
            undo.pop_all()
        # Only when nothing can fail any more: undoing needs the former settings.
        for config, door in zip(configs, doors.values(), strict=True):
            door.config = config
        # Closed by the caller, so that one deadline is for addresses and doors together.
        gone = [door for path, door in self._doors.items() if doors.get(path) is not door]
        new = [door for path, door in doors.items() if self._doors.get(path) is not door]
        self._doors = doors
        if self._receiving:
            _open(new)
        for path in self._passed.keys() - doors.keys():
            problem = "the service manager passes it, and no entry of `doors` has its path"
            logger.warning("door ignored", door=path, problem=problem)
        return gone

    def _new_door(self, config: DoorConfig) -> Door:
        passed = self._passed.get(os.path.realpath(config.path))
        if passed is None:
            check_door(config)
            # No other user can reach it before it has its group.
            door = Door(bind_unix("doors", config.path, socket.SOCK_DGRAM, 0), config, self._deliver, passed=False)
            try:
                _permit(config)
            except EndpointError:
                door.close(0)
                raise
        else:
            # Its mode and its group are those of the socket unit, and are checked instead of set.
            check_passed(config.path)
            door = Door(passed, config, self._deliver, passed=True)
        door.max_octets = self._max_octets
        return door

    def open(self) -> None:
        """Receive on the running loop, also at doors that a reload opens later."""
        self._receiving = True
        _open(self)

    def close(self, deadline: float) -> None:
        """Close all doors as `Door.close` does, and every passed socket."""
        for door in self:
            door.close(deadline)
        for sock in self._passed.values():
            sock.close()
        self._doors, self._passed = {}, {}


def _open(doors: Iterable[Door]) -> None:
    for door in doors:
        door.open()
        logger.info("socket listening", listen=str(door), holds=door.config.holds, source=door.config.source)


def check_door(config: DoorConfig) -> None:
    """Ensure that a door can be bound: its group exists, and no other user can replace it. Raises EndpointError."""
    try:
        check_trusted_directory(config.path.parent)
    except UnusablePath as error:
        # The likely cause: the door is that of the socket unit, which is not in use.
        raise EndpointError(f"doors: {error}: make it, or enable dmnotid-doors.socket and restart dmnotid") from error
    except UntrustedPath as error:
        raise EndpointError(f"doors: {error}") from error
    _gid(config)


def check_passed(path: Path) -> None:
    """Ensure that no other user can replace a passed door, and that not every user may send. Raises EndpointError."""
    try:
        check_trusted_socket(path)
    except UnusablePath as error:
        # The unit can be opened again only while the service does not run.
        raise EndpointError(f"doors: {error}: stop dmnotid-doors.socket and restart dmnotid") from error
    except UntrustedPath as error:
        raise EndpointError(f"doors: {error}") from error
    if path.stat().st_mode & stat.S_IWOTH:
        raise EndpointError(f"doors: {path}: every user may send through it: set SocketMode=0660 and SocketGroup=")


def _permit(config: DoorConfig) -> None:
    """Apply group and mode to a bound socket. Raises EndpointError."""
    gid = _gid(config)
    try:
        if config.path.stat().st_gid != gid:
            # The group first: its former one must not get what the mode grants.
            os.chown(config.path, -1, gid)
        config.path.chmod(config.mode)
    except PermissionError as error:
        # The sandbox of the service has no chown.
        expected = f"dmnotid must be in the group {config.group!r}; under systemd use dmnotid-doors.socket"
        raise EndpointError(f"doors: {config.path}: {error.strerror}: {expected}") from error
    except OSError as error:
        raise EndpointError(f"doors: {config.path}: {error.strerror}") from error


def _gid(config: DoorConfig) -> int:
    if config.group is None:
        return os.getegid()
    try:
        return grp.getgrnam(config.group).gr_gid
    except KeyError:
        raise EndpointError(f"doors: {config.path}: this system has no group {config.group!r}") from None
