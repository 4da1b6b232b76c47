"""Doors: real Unix sockets, senders of several kinds, and what is in the way of a socket."""

import array
import grp
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from dmnotid.config.values import DoorConfig
from dmnotid.errors import EndpointError
from dmnotid.intake.batches import BATCH
from dmnotid.intake.doors import Door
from dmnotid.intake.sockets import Endpoints
from dmnotid.policy.addresses import Source
from dmnotid.policy.reception import Datagram
from tests.intake.support import LOOPBACK, Inbox, fill, send
from tests.support import DEADLINE, IS_ROOT, LogLines, as_root, descriptors, eventually, without_privileges

MAX_QUEUE = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
OWN_GROUP = grp.getgrgid(os.getegid()).gr_name


class Desk(Inbox):
    """Takes batches as the receiver does, and answers each datagram with its number."""

    def __call__(self, batch: Iterable[Datagram]) -> None:
        before = len(self.datagrams)
        super().__call__(batch)
        for number, datagram in enumerate(self.datagrams[before:], before + 1):
            assert datagram.handover is not None
            if datagram.handover.answer is not None:
                datagram.handover.answer({"verdict": "accepted", "session": number})


def door_at(path: Path, *, mode: int = 0o660, group: str | None = None, source: str = "sms") -> DoorConfig:
    return DoorConfig(path, "push", mode, group, source)


@contextmanager
def endpoints_with(*doors: DoorConfig, passed: Sequence[socket.socket] = ()) -> Iterator[tuple[Endpoints, Desk]]:
    """Receive at doors alone, and close them at the end."""
    desk = Desk()
    with closing(Endpoints(desk, passed_doors=passed)) as endpoints:
        endpoints.bind([], doors)
        endpoints.open()
        yield endpoints, desk


@contextmanager
def sender(address: str | None = "") -> Iterator[socket.socket]:
    """Make a socket that sends: with an address that the kernel chooses, a path, or None for no address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        if address is not None:
            sock.bind(address)
        yield sock


def hand_in(path: Path, *payloads: bytes) -> None:
    for payload in payloads:
        # Each from a socket of its own: the datagrams that one has sent may not be larger than its buffer.
        with sender(None) as sock:
            sock.sendto(payload, str(path))


def refusal(door: DoorConfig) -> str:
    """Return why a door can't be opened."""
    with pytest.raises(EndpointError) as caught, endpoints_with(door):
        pass
    return str(caught.value)


def bound(path: Path, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    return sock


# Receiving


async def test_datagram_has_the_name_of_its_door_and_its_process(tmp_path: Path) -> None:
    """4, 6: other bearers than WAP Push over UDP; the kernel names the process."""
    push, package = tmp_path / "push", tmp_path / "package"
    configs = door_at(push), DoorConfig(package, "package", 0o600, None, "local")
    with endpoints_with(*configs) as (endpoints, desk):
        hand_in(push, b"a push")
        hand_in(package, b"a package")
        await eventually(lambda: len(desk.datagrams) == 2)
        assert [str(door) for door in endpoints] == [str(push), str(package)]
        assert [door.received for door in endpoints] == [1, 1]
    found = {datagram.payload: datagram for datagram in desk.datagrams}
    assert found[b"a push"].source == Source("sms", None)
    assert found[b"a package"].source == Source("local", None)
    assert [found[payload].bare for payload in (b"a push", b"a package")] == [False, True]
    for datagram in desk.datagrams:
        assert datagram.handover is not None
        assert datagram.handover[1:3] == (os.getpid(), os.geteuid())


@pytest.mark.parametrize("length", [0, 1, 4_096, 100_000])
async def test_datagram_is_whole_or_cut_one_octet_after_the_limit(tmp_path: Path, length: int) -> None:
    payload = os.urandom(length)
    with endpoints_with(door_at(tmp_path / "door")) as (_, desk):
        hand_in(tmp_path / "door", payload, b"next")
        await eventually(lambda: len(desk.datagrams) == 2)
    assert desk.payloads == [payload[:4_097], b"next"]


async def test_full_queue_blocks_the_sender_and_loses_nothing(tmp_path: Path) -> None:
    """4: back pressure instead of loss."""
    count = 3 * MAX_QUEUE
    with endpoints_with(door_at(tmp_path / "door")) as (_, desk):
        with sender() as sock:
            sock.setblocking(False)  # noqa: FBT003
            sent = 0
            # The loop does not run, so nothing is read.
            with suppress(BlockingIOError):
                while sent < count:
                    sock.sendto(b"%d" % sent, str(tmp_path / "door"))
                    sent += 1
            assert sent < count
        await eventually(lambda: len(desk.datagrams) == sent)
    assert desk.payloads == [b"%d" % number for number in range(sent)]


async def test_files_that_a_sender_attaches_are_not_opened(tmp_path: Path) -> None:
    """A process could use up the descriptors of the daemon."""
    with endpoints_with(door_at(tmp_path / "door")) as (_, desk):
        before = descriptors()
        with sender() as sock, socket.socket() as file:
            rights = array.array("i", [file.fileno()] * 100)
            for _ in range(3):
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                sock.sendmsg([b"with files"], ancillary, 0, str(tmp_path / "door"))
        await eventually(lambda: len(desk.datagrams) == 3)
        assert descriptors() == before


# Answers


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("abstract", [False, True])
async def test_sender_with_an_address_gets_one_answer(tmp_path: Path, *, abstract: bool, connected: bool) -> None:
    me = "" if abstract else str(tmp_path / "me")
    with endpoints_with(door_at(tmp_path / "door")) as (_, desk), sender(me) as sock:
        if connected:
            sock.connect(str(tmp_path / "door"))
        # A second answer would arrive before that to the next datagram.
        for number in (1, 2):
            sock.send(b"x") if connected else sock.sendto(b"x", str(tmp_path / "door"))
            await eventually(lambda at=number: len(desk.datagrams) == at)  # type: ignore[misc]
            assert json.loads(sock.recv(100)) == {"verdict": "accepted", "session": number}


async def test_sender_without_an_address_gets_no_answer(tmp_path: Path) -> None:
    with endpoints_with(door_at(tmp_path / "door")) as (_, desk):
        hand_in(tmp_path / "door", b"x")
        await eventually(lambda: desk.datagrams)
    assert desk.datagrams[0].handover is not None
    assert desk.datagrams[0].handover.answer is None


@pytest.mark.parametrize("gone", [False, True])
async def test_sender_that_does_not_read_loses_its_answers_alone(tmp_path: Path, *, gone: bool) -> None:
    """4: nothing waits for it."""
    count = 2 * MAX_QUEUE + BATCH
    with endpoints_with(door_at(tmp_path / "door")) as (_, desk), sender() as other, sender() as deaf:
        for number in range(count):
            deaf.sendto(b"x", str(tmp_path / "door"))
            if gone and number == 3:
                deaf.close()
                break
            await eventually(lambda at=number: len(desk.datagrams) > at)  # type: ignore[misc]
        other.sendto(b"y", str(tmp_path / "door"))
        await eventually(lambda: b"y" in desk.payloads)
        assert json.loads(other.recv(100))["session"] == len(desk.datagrams)


async def test_answer_is_never_answered(tmp_path: Path) -> None:
    """A sender can put a link to a door in the place of its own socket; the doors would answer each other for ever."""
    one, other = tmp_path / "one", tmp_path / "other"
    with endpoints_with(door_at(one), door_at(other)) as (_, desk):
        with sender(str(tmp_path / "me")) as sock:
            sock.sendto(b"x", str(one))
            (tmp_path / "me").unlink()
            (tmp_path / "me").symlink_to(other)
        await eventually(lambda: len(desk.datagrams) == 2)
        # The answer to an answer would be in a queue by now, so that it would be read before these.
        hand_in(one, b"fence")
        hand_in(other, b"fence")
        await eventually(lambda: desk.payloads.count(b"fence") == 2)
    assert [payload for payload in desk.payloads if payload != b"fence"] == [
        b"x",
        b'{"verdict": "accepted", "session": 1}',
    ]


async def test_octets_of_an_answer_are_answered_at_an_abstract_address(tmp_path: Path) -> None:
    """A bearer would offer an SMS that consists of them forever."""
    with endpoints_with(door_at(tmp_path / "door")) as (_, desk), sender() as sock:
        sock.sendto(b'{"verdict": "accepted", "session": 1}', str(tmp_path / "door"))
        await eventually(lambda: desk.datagrams)
        assert json.loads(sock.recv(100)) == {"verdict": "accepted", "session": 1}


# Floods


class Flooded(Inbox):
    """Takes batches while a sender puts a datagram into the door for each one that is read from it."""

    def __init__(self, door: Path) -> None:
        super().__init__()
        self.left = 100 * BATCH
        self._door = door

    def __call__(self, batch: Iterable[Datagram]) -> None:
        super().__call__(map(self._flood, batch))

    def _flood(self, datagram: Datagram) -> Datagram:
        if datagram.handover is not None and self.left:
            self.left -= 1
            hand_in(self._door, b"flood")
        return datagram


async def test_flooded_door_leaves_other_sockets_their_turn(tmp_path: Path) -> None:
    """4: of a door that is never empty, at most one batch is read before an endpoint with a datagram has its turn."""
    inbox = Flooded(tmp_path / "door")
    with closing(Endpoints(inbox)) as endpoints:
        endpoints.bind([LOOPBACK], [door_at(tmp_path / "door")])
        udp, _ = endpoints
        await fill(udp.socket, 3 * BATCH)
        hand_in(tmp_path / "door", b"flood")
        endpoints.open()
        await eventually(lambda: udp.received == 3 * BATCH)
        assert inbox.left
        inbox.left = 0
    kinds = ["udp" if batch[0].handover is None else "door" for batch in inbox.batches]
    assert kinds.count("udp") == 3
    assert "door door udp" not in " ".join(kinds)
    assert "door" in kinds[: kinds.index("udp") + 2]
    assert all(len(batch) <= BATCH for batch in inbox.batches)


# What is at the path


@pytest.mark.parametrize("mode", [0o660, 0o060, 0])
async def test_stale_socket_of_a_killed_daemon_is_replaced(tmp_path: Path, mode: int) -> None:
    """Also if the daemon was killed before the socket had its mode, and without the rights of root."""
    if IS_ROOT:
        os.chown(tmp_path, 65_534, -1)
    with without_privileges(tmp_path) if IS_ROOT else nullcontext():
        bound(tmp_path / "door").close()
        (tmp_path / "door").chmod(mode)
        with endpoints_with(door_at(tmp_path / "door")) as (_, desk):
            hand_in(tmp_path / "door", b"x")
            await eventually(lambda: desk.datagrams)
    assert not (tmp_path / "door").exists()


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("datagram", "another process listens there"),
        ("stream", "another process listens there"),
        ("file", "exists and is not a socket; remove it, or configure another path"),
        ("directory", "exists and is not a socket; remove it, or configure another path"),
        ("broken link", "exists and is not a socket; remove it, or configure another path"),
    ],
)
def test_what_is_in_the_way_of_a_door_is_left_alone(tmp_path: Path, kind: str, problem: str) -> None:
    door = tmp_path / "door"
    with ExitStack() as stack:
        match kind:
            case "file":
                door.write_text("precious")
            case "directory":
                door.mkdir()
            case "broken link":
                door.symlink_to("nowhere")
            case _:
                stack.enter_context(bound(door, socket.SOCK_STREAM if kind == "stream" else socket.SOCK_DGRAM))
        before = door.lstat()
        assert refusal(door_at(door)) == f"doors: {door}: {problem}"
        assert door.lstat() == before


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        (None, "No such file or directory: make it, or enable dmnotid-doors.socket and restart dmnotid"),
        (0o777, "writable by others: "),
        (0o775, "writable by its group "),
        (0o757, "writable by others: "),
    ],
)
def test_directory_that_is_missing_or_that_others_can_write_is_refused(
    tmp_path: Path, mode: int | None, problem: str
) -> None:
    """4: another user could put its own socket in the place of the door."""
    directory = tmp_path / "directory"
    if mode is not None:
        directory.mkdir()
        directory.chmod(mode)
    assert refusal(door_at(directory / "door")).startswith(f"doors: {directory}: {problem}")
    assert not (directory / "door").exists()


# Mode and group


@pytest.mark.parametrize("mode", [0o660, 0o600, 0o620])
async def test_mode_and_group_decide_which_users_may_send(tmp_path: Path, mode: int) -> None:
    mask = os.umask(0o777)
    try:
        with endpoints_with(door_at(tmp_path / "door", mode=mode, group=OWN_GROUP)):
            found = (tmp_path / "door").stat()
    finally:
        os.umask(mask)
    assert stat.S_IMODE(found.st_mode) == mode
    assert found.st_gid == os.getegid()


def test_group_that_this_system_lacks_is_refused(tmp_path: Path) -> None:
    before = descriptors()
    problem = refusal(door_at(tmp_path / "door", group="no-such-group"))
    assert problem == f"doors: {tmp_path / 'door'}: this system has no group 'no-such-group'"
    assert not (tmp_path / "door").exists()
    assert descriptors() == before


@as_root
def test_group_that_the_daemon_is_not_in_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65_534, -1)
    before = descriptors()
    with without_privileges(tmp_path):
        problem = refusal(door_at(tmp_path / "door", group="mail"))
    assert problem.startswith(
        f"doors: {tmp_path / 'door'}: Operation not permitted: dmnotid must be in the group 'mail'; "
    )
    assert not (tmp_path / "door").exists()
    assert descriptors() == before


@as_root
async def test_user_whom_the_mode_excludes_cannot_send(tmp_path: Path) -> None:
    with endpoints_with(door_at(tmp_path / "door", mode=0o600)) as (_, desk):
        with without_privileges(tmp_path / "door"), pytest.raises(PermissionError):
            hand_in(tmp_path / "door", b"x")
        hand_in(tmp_path / "door", b"y")
        await eventually(lambda: desk.datagrams)
    assert desk.payloads == [b"y"]


# Passed by the service manager


async def test_passed_socket_is_read_as_the_door_of_its_path_and_stays(tmp_path: Path, logged: LogLines) -> None:
    path = tmp_path / "door"
    with bound(path) as unit:
        path.chmod(0o660)
        with endpoints_with(door_at(path, mode=0o600), passed=[unit.dup()]) as (_, desk):
            hand_in(path, b"x")
            await eventually(lambda: desk.datagrams)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert desk.datagrams[0].source == Source("sms", None)
        # The queue of the unit goes on without the daemon.
        hand_in(path, b"later")
        assert unit.recv(10) == b"later"
    assert logged.of("socket listening")[0] | {"listen": str(path), "holds": "push", "source": "sms"}


@pytest.mark.parametrize("option", [29, 35], ids=["SO_TIMESTAMP", "SO_TIMESTAMPNS"])
async def test_passed_socket_has_the_process_of_its_sender_when_its_unit_requests_timestamps(
    tmp_path: Path, option: int
) -> None:
    path = tmp_path / "door"
    with bound(path) as unit:
        path.chmod(0o660)
        unit.setsockopt(socket.SOL_SOCKET, option, 1)
        hand_in(path, b"early")
        with endpoints_with(door_at(path), passed=[unit.dup()]) as (_, desk):
            hand_in(path, b"x")
            await eventually(lambda: len(desk.datagrams) == 2)
    assert desk.payloads == [b"early", b"x"]
    assert [it.handover and it.handover.pid for it in desk.datagrams][1] == os.getpid()


async def test_passed_socket_that_no_entry_names_is_not_read(tmp_path: Path, logged: LogLines) -> None:
    path, other = tmp_path / "door", tmp_path / "other"
    with bound(path) as unit, endpoints_with(door_at(other), passed=[unit.dup()]) as (endpoints, desk):
        path.chmod(0o660)
        hand_in(path, b"early")
        hand_in(other, b"fence")
        await eventually(lambda: desk.datagrams)
        assert desk.payloads == [b"fence"]
        assert [line["door"] for line in logged.of("door ignored")] == [str(path)]
        # A reload adds the entry, and removes it again.
        endpoints.bind([], [door_at(other), door_at(path)])
        await eventually(lambda: len(desk.datagrams) == 2)
        endpoints.bind([], [door_at(other)])
        hand_in(path, b"late")
        hand_in(other, b"fence")
        await eventually(lambda: len(desk.datagrams) == 3)
        endpoints.bind([], [door_at(path)])
        await eventually(lambda: len(desk.datagrams) == 4)
    assert desk.payloads == [b"fence", b"early", b"fence", b"late"]


async def test_passed_socket_is_read_when_its_entry_has_another_path_to_it(tmp_path: Path, logged: LogLines) -> None:
    """As systemd binds /run for a unit with /var/run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "var").symlink_to("run")
    for unit_path, path in (("run/door", "var/door"), ("var/other", "run/other")):
        with bound(tmp_path / unit_path) as unit:
            (tmp_path / path).chmod(0o660)
            with endpoints_with(door_at(tmp_path / path), passed=[unit.dup()]) as (endpoints, desk):
                for number in (1, 2):
                    hand_in(tmp_path / unit_path, b"x")
                    await eventually(lambda at=desk, count=number: len(at.datagrams) == count)  # type: ignore[misc]
                    endpoints.bind([], [door_at(tmp_path / unit_path)])
    assert not logged.of("door ignored")


@pytest.mark.parametrize("when", ["start", "reload"])
@pytest.mark.parametrize(
    ("mode", "directory", "problem"),
    [
        (0o666, 0o755, "run/door: every user may send through it: set SocketMode=0660 and SocketGroup="),
        (0o660, 0o777, "run: writable by others"),
        (None, 0o755, "run/door: No such file or directory: stop dmnotid-doors.socket and restart dmnotid"),
    ],
    ids=["mode", "directory", "gone"],
)
async def test_passed_socket_that_cannot_be_trusted_or_reached_is_refused(
    tmp_path: Path, when: str, mode: int | None, directory: int, problem: str
) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "door"
    with bound(path) as unit:
        path.chmod(0o660)
        with endpoints_with(*[door_at(path)] * (when == "reload"), passed=[unit.dup()]) as (endpoints, _):
            (tmp_path / "run").chmod(directory)
            path.unlink() if mode is None else path.chmod(mode)
            with pytest.raises(EndpointError, match=re.escape(f"doors: {tmp_path}/{problem}")):
                endpoints.bind([], [door_at(path)])


# Reload and stop


async def test_reload_opens_closes_and_changes_doors(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with endpoints_with(door_at(first)) as (endpoints, desk):
        # The loop does not run before the door is closed.
        hand_in(first, b"queued")
        endpoints.bind([], [door_at(second)])
        assert desk.payloads == [b"queued"]
        assert not first.exists()
        inode = second.stat().st_ino
        hand_in(second, b"x")
        await eventually(lambda: len(desk.datagrams) == 2)
        endpoints.bind([], [DoorConfig(second, "package", 0o600, OWN_GROUP, "mqtt")])
        hand_in(second, b"y")
        await eventually(lambda: len(desk.datagrams) == 3)
        assert (second.stat().st_ino, stat.S_IMODE(second.stat().st_mode)) == (inode, 0o600)
    found = desk.datagrams[2]
    assert (found.source, found.bare) == (Source("mqtt", None), True)


async def test_refused_reload_changes_nothing(tmp_path: Path) -> None:
    first, blocked = tmp_path / "first", tmp_path / "blocked"
    blocked.write_text("in the way")
    with endpoints_with(door_at(first)) as (endpoints, desk):
        before = descriptors()
        wanted = [door_at(tmp_path / "new"), door_at(first, mode=0o600, source="other"), door_at(blocked)]
        with pytest.raises(EndpointError, match="blocked"):
            endpoints.bind([LOOPBACK], wanted)
        assert descriptors() == before
        assert [str(door) for door in endpoints] == [str(first)]
        assert not (tmp_path / "new").exists()
        assert stat.S_IMODE(first.stat().st_mode) == 0o660
        hand_in(first, b"x")
        await eventually(lambda: desk.datagrams)
    assert desk.datagrams[0].source == Source("sms", None)


async def test_first_door_of_a_reload_is_read(tmp_path: Path) -> None:
    with endpoints_with() as (endpoints, desk):
        endpoints.bind([], [door_at(tmp_path / "door")])
        hand_in(tmp_path / "door", b"x")
        await eventually(lambda: desk.datagrams)


async def test_door_whose_file_was_removed_is_opened_again_by_a_reload(tmp_path: Path) -> None:
    path, blocked = tmp_path / "door", tmp_path / "blocked"
    blocked.write_text("in the way")
    with endpoints_with(door_at(path)) as (endpoints, desk):
        hand_in(path, b"queued")
        path.unlink()
        with pytest.raises(EndpointError, match="blocked"):
            endpoints.bind([], [door_at(path), door_at(blocked)])
        assert not path.exists()
        endpoints.bind([], [door_at(path, mode=0o600)])
        assert desk.payloads == [b"queued"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        hand_in(path, b"x")
        await eventually(lambda: len(desk.datagrams) == 2)
    assert not path.exists()


async def test_socket_in_the_place_of_a_door_is_left_alone(tmp_path: Path) -> None:
    """By a reload, and at the stop: it belongs to another process."""
    path = tmp_path / "door"
    with endpoints_with(door_at(path)) as (endpoints, _):
        path.unlink()
        other = bound(path)
        with pytest.raises(EndpointError, match="another process listens there"):
            endpoints.bind([], [door_at(path)])
    hand_in(path, b"x")
    with other:
        assert other.recv(10) == b"x"


async def test_door_is_removed_before_its_queue_is_drained(tmp_path: Path) -> None:
    """A later sender finds no door, instead of one that is not read."""
    found: list[bool] = []
    with closing(Endpoints(lambda _: found.append((tmp_path / "door").exists()))) as endpoints:
        endpoints.bind([], [door_at(tmp_path / "door")])
        endpoints.open()
        hand_in(tmp_path / "door", b"queued")
    assert found == [False]


async def test_flood_does_not_keep_a_door_open(tmp_path: Path) -> None:
    with endpoints_with(door_at(tmp_path / "door")) as (endpoints, desk):
        hand_in(tmp_path / "door", b"x")
        (door,) = endpoints
        assert isinstance(door, Door)
        door.close(time.monotonic())
    assert desk.payloads == []


async def test_udp_datagram_beside_a_door_has_no_handover(tmp_path: Path) -> None:
    """No answer goes over UDP."""
    inbox = Inbox()
    with closing(Endpoints(inbox)) as endpoints:
        endpoints.bind([LOOPBACK], [door_at(tmp_path / "door")])
        endpoints.open()
        udp, _ = endpoints
        source = send(udp.socket.getsockname(), b"x")
        await eventually(lambda: inbox.datagrams)
    assert (inbox.datagrams[0].source, inbox.datagrams[0].handover) == (source, None)
