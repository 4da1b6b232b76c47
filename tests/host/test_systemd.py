"""What systemd passes and is told, over real sockets, without systemd itself."""

import array
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dmnotid.errors import EndpointError
from dmnotid.host.systemd import STATUS_EVERY, Manager, StatusLine
from tests.processes import ENVIRONMENT, Run, Service, running
from tests.support import (
    DEADLINE,
    NOWHERE,
    SERVERS,
    WIRELINE,
    LogLines,
    eventually,
    push,
    wait_until,
    write_config,
    write_script,
)


class ManagersEnd:
    """The socket on which a service manager listens, and what it was told."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(DEADLINE)
        self.kept: list[socket.socket] = []

    def close(self) -> None:
        for sock in (self.socket, *self.kept):
            sock.close()

    def next(self) -> list[str]:
        """Wait for one message; its lines."""
        octets, ancillary, _, _ = self.socket.recvmsg(4_096, socket.CMSG_LEN(64))
        for level, kind, data in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            self.kept += [socket.socket(fileno=number) for number in array.array("i", data)]
        return octets.decode().splitlines()

    def until(self, line: str) -> list[str]:
        """Wait for a message with this line; its lines."""
        while line not in (message := self.next()):
            pass
        return message

    def until_status(self, text: str) -> str:
        while True:
            for line in self.next():
                if line.startswith("STATUS=") and text in line:
                    return line

    def is_silent(self) -> bool:
        self.socket.setblocking(False)  # noqa: FBT003 - by position
        try:
            self.socket.recv(4_096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(DEADLINE)
        return False


@pytest.fixture
def end(tmp_path: Path) -> Iterator[ManagersEnd]:
    end = ManagersEnd(str(tmp_path / "notify"))
    yield end
    end.close()


@pytest.fixture
def manager(end: ManagersEnd) -> Manager:
    return Manager({"NOTIFY_SOCKET": end.socket.getsockname()})


# What is told


def test_what_a_manager_is_told(manager: Manager, end: ManagersEnd) -> None:
    assert manager.listens
    manager.ready("2 servers")
    assert end.next() == ["READY=1", "STATUS=2 servers"]
    before = time.monotonic_ns() // 1000
    manager.reloading()
    reloading, at = end.next()
    assert reloading == "RELOADING=1"
    assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    manager.stopping()
    assert end.next() == ["STOPPING=1"]
    manager.alive()
    assert end.next() == ["WATCHDOG=1"]


def test_a_status_can_not_say_more_than_a_status(manager: Manager, end: ManagersEnd) -> None:
    manager.status("a\nREADY=1\x00" + "b" * 1_000)
    (line,) = end.next()
    assert line.startswith("STATUS=a\\nREADY=1\\x00bbb")
    assert len(line) < 300


def test_an_abstract_address_is_understood() -> None:
    name = f"dmnotid-test-{os.getpid()}"
    end = ManagersEnd(f"\0{name}")
    Manager({"NOTIFY_SOCKET": f"@{name}"}).alive()
    assert end.next() == ["WATCHDOG=1"]
    end.close()


def test_a_socket_is_kept_and_let_go(manager: Manager, end: ManagersEnd) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        manager.keep(sock)
        _, name, polled = end.next()
        assert name == f"FDNAME=listen-{os.fstat(sock.fileno()).st_ino}"
        assert polled == "FDPOLL=0"
        assert end.kept[0].getsockname() == sock.getsockname()
        manager.let_go(sock)
        assert end.next() == ["FDSTOREREMOVE=1", name]


def test_nobody_need_be_there(logged: LogLines) -> None:
    manager = Manager({})
    assert not manager.listens
    manager.ready("")
    manager.stopping()
    assert not logged.all()


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative/path"])
def test_an_address_of_another_kind_is_refused(address: str, logged: LogLines) -> None:
    assert not Manager({"NOTIFY_SOCKET": address}).listens
    (line,) = logged.of("service manager not notified")
    assert address in line["problem"]


def test_a_manager_that_went_away_is_complained_of_once(tmp_path: Path, logged: LogLines) -> None:
    manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    manager.ready("")
    manager.alive()
    (line,) = logged.of("service manager not notified")
    assert (line["message"], line["problem"]) == ("READY=1", "[Errno 2] No such file or directory")


def test_a_manager_that_does_not_listen_misses_a_status(manager: Manager, end: ManagersEnd, logged: LogLines) -> None:
    for number in range(10_000):
        manager.status(str(number))
    assert end.next() == ["STATUS=0"]
    assert not logged.all()


async def test_the_status_is_told_once_a_second_at_most(manager: Manager, end: ManagersEnd) -> None:
    said = 0

    def describe() -> str:
        return f"{said} said"

    line = StatusLine(manager, describe)
    line.change()
    await eventually(lambda: not line.is_due)
    assert end.next() == ["STATUS=0 said"]
    began = time.monotonic()
    for said in range(1, 1_000):  # noqa: B007 - describe reads it
        line.change()
    await eventually(lambda: not line.is_due)
    assert time.monotonic() - began > STATUS_EVERY / 2
    assert end.next() == ["STATUS=999 said"]
    line.change()
    line.close()
    assert end.is_silent()  # it is what it was
    said = 1_001
    line.change()
    line.close()
    assert end.next() == ["STATUS=1001 said"]
    assert not line.is_due


# What is passed

PASS = """
import os, sys
for number, descriptor in enumerate(map(int, sys.argv[1].split(",")), 3):
    os.dup2(descriptor, number + 100)
for number in range(len(sys.argv[1].split(","))):
    os.dup2(number + 103, number + 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sys.argv[1].split(","))), LISTEN_FDNAMES=sys.argv[2])
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""What systemd does between fork and exec; it is replaced by the program, which so keeps its number."""


def passing(sockets: Sequence[socket.socket], names: Sequence[str]) -> list[str]:
    """Return a command that becomes another with these sockets passed; they must be inheritable."""
    numbers = ",".join(str(sock.fileno()) for sock in sockets)
    return [sys.executable, "-c", PASS, numbers, ":".join(names)]


SHOW = """
import os
from dmnotid.errors import EndpointError
from dmnotid.host.systemd import Manager
try:
    manager = Manager(os.environ)
except EndpointError as error:
    print(error)
else:
    for sock, stored in manager.sockets:
        print(*sock.getsockname()[:2], stored, os.get_inheritable(sock.fileno()))
    print(sorted(name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))))
"""


def show(sockets: Sequence[socket.socket], names: Sequence[str]) -> list[str]:
    """Say what a process makes of passed sockets."""
    done = subprocess.run(
        [*passing(sockets, names), sys.executable, "-c", SHOW],
        env=ENVIRONMENT, pass_fds=[sock.fileno() for sock in sockets], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def bound(kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_passed_sockets_are_taken() -> None:
    with bound() as one, bound() as other:
        lines = show([one, other], ["dmnotid.socket", "listen-77"])
        assert lines == [
            f"127.0.0.1 {one.getsockname()[1]} False False",
            f"127.0.0.1 {other.getsockname()[1]} True False",
            "[]",
        ]


def test_sockets_of_the_wrong_sort_are_refused() -> None:
    expected = "a bound UDP socket (ListenDatagram=) is expected"
    with bound(socket.SOCK_STREAM) as stream, bound() as good:
        where = "LISTEN_FDS: descriptor 4 (my.socket)"
        assert show([good, stream], ["dmnotid.socket", "my.socket"]) == [
            f"{where}: is another sort of socket: {expected}"
        ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound:
        where = "LISTEN_FDS: descriptor 3 (unnamed)"
        assert show([unbound], [""]) == [f"{where}: is another sort of socket: {expected}"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        assert show([ours], ["a"]) == [f"LISTEN_FDS: descriptor 3 (a): is another sort of socket: {expected}"]


def test_what_is_no_socket_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PASS, "0", "x", sys.executable, "-c", SHOW],
        env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("LISTEN_FDS: descriptor 3 (x): Socket operation on non-socket: a bound UDP socket")


def test_what_is_meant_for_another_process_is_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "1000000"}
    manager = Manager(environ)
    assert not manager.sockets
    assert manager.watchdog is None
    assert not environ


@pytest.mark.parametrize("count", ["", "x", "-1", "1.5", "²"])
def test_a_number_of_sockets_that_is_none_is_refused(count: str) -> None:
    with pytest.raises(EndpointError, match=r"LISTEN_FDS: .*how many descriptors"):
        Manager({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_the_watchdog_says_its_time(logged: LogLines) -> None:
    assert Manager({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}).watchdog == 2.5
    assert Manager({"WATCHDOG_USEC": "2500000"}).watchdog == 2.5
    assert Manager({}).watchdog is None
    assert not logged.all()
    for wrong in ("0", "soon", ""):
        assert Manager({"WATCHDOG_USEC": wrong}).watchdog is None
    assert [line["problem"] for line in logged.of("watchdog ignored")] == [
        f"WATCHDOG_USEC: {wrong!r}: microseconds are expected" for wrong in ("0", "soon", "")
    ]


# The daemon


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with running(tmp_path) as run:
        yield run


def told(end: ManagersEnd, **more: str) -> dict[str, str]:
    """Return the environment of a daemon that tells this manager."""
    return {**ENVIRONMENT, "NOTIFY_SOCKET": end.socket.getsockname(), **more}


def send(port: int, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, ("127.0.0.1", port))


def accepted(service: Service) -> list[int]:
    return [line["notification_id"] for line in service.of("notification accepted")]


def test_a_daemon_tells_how_it_is(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    config = write_config(tmp_path)
    service = run(config, environment=told(end))
    assert end.next()[0] == "FDSTORE=1"
    none = "sessions: 0 running, 0 pending; 0 accepted, 0 discarded"
    assert end.next() == ["READY=1", f"STATUS=3 servers; {none}"]
    service.send(push(1, preferred=NOWHERE), push(1, preferred=NOWHERE), b"junk")
    status = end.until_status("2 discarded")
    assert "sessions: 0 running, 1 pending; 1 accepted, 2 discarded (" in status
    assert "duplicate 1" in status

    write_config(tmp_path, servers=SERVERS[:1])
    service.process.send_signal(signal.SIGHUP)
    assert end.next()[0] == "RELOADING=1"
    assert end.next()[1].startswith("STATUS=1 server; ")

    config.write_text("servers: 5\n")
    service.process.send_signal(signal.SIGHUP)
    assert end.next()[0] == "RELOADING=1"
    ready, status = end.next()
    assert ready == "READY=1"
    assert status.startswith(f"STATUS=reload refused: {config}:1:")
    assert service.stop() == 0
    assert end.next() == ["STOPPING=1"]
    assert end.is_silent()


def test_a_session_that_runs_shows(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    wait = tmp_path / "go on"
    script = write_script(tmp_path / "hook", f"#!/bin/sh\nwhile [ ! -e '{wait}' ]; do sleep 0.05; done\n")
    service = run(write_config(tmp_path, [str(script)]), environment=told(end))
    service.send(push(1, preferred=WIRELINE), push(2, preferred=WIRELINE))
    end.until_status("sessions: 1 running, 1 pending")
    wait.touch()
    end.until_status("sessions: 0 running, 0 pending; 2 accepted, 0 discarded")


def test_what_the_kernel_dropped_shows_though_nothing_else_comes(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    """It is looked for after the datagram that it came beside, whose status may have been told by then."""
    service = run(write_config(tmp_path, log={"junk": False}), environment=told(end))
    service.send(b"junk", push(1, preferred=NOWHERE))
    end.until_status("1 accepted, 1 discarded (")


def test_a_refused_reload_shows_however_much_was_discarded(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    config = write_config(tmp_path)
    service = run(config, environment=told(end))
    service.wait("daemon ready")
    good, now = push(1, preferred=NOWHERE), time.time()
    service.send(
        good, good, good[:-5], good + b"x", push(2, secret=b"another"), push(3, sent_at=now - 1e9), b"\1\7\0",
        push(4, sent_at=now + 1e6), push(5, server_id="unknown.example", secret=b"another"), b"\1\6\1\xd8x",
        b"\1\6\3\x80\xaf\x87x",
    )  # fmt: skip
    end.until_status("10 discarded")
    config.write_text("servers: 5\n")
    service.process.send_signal(signal.SIGHUP)
    end.until("RELOADING=1")
    _, status = end.next()
    assert status.startswith("STATUS=reload refused: ")


def test_what_a_reload_told_does_not_stay(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    """A try that begins before a reload and ends after it: then it is as it was before both."""
    script = write_script(tmp_path / "hook", f"while [ ! -e {tmp_path}/$DMNOTID_ATTEMPT ]; do sleep 0.02; done; exit 1")
    service = run(
        write_config(tmp_path, [str(script)], retry={"first": "200ms", "longest": "1s"}), environment=told(end)
    )
    service.send(push(1, preferred=WIRELINE))
    end.until_status("sessions: 1 running, 0 pending")
    time.sleep(STATUS_EVERY)
    (tmp_path / "1").touch()
    end.until_status("sessions: 0 running, 1 pending")
    service.wait("session starts", 2)
    write_config(tmp_path, [str(script)], retry={"first": "600s", "longest": "600s"})
    service.process.send_signal(signal.SIGHUP)
    end.until("RELOADING=1")
    end.until("READY=1")
    (tmp_path / "2").touch()
    service.wait("session try failed", 2)
    end.until_status("sessions: 0 running, 1 pending")


def test_a_passed_socket_is_used_and_left_open(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    with bound() as sock:
        port = sock.getsockname()[1]
        send(port, push(1, preferred=NOWHERE))  # before there is a daemon at all
        begin = {"prefix": passing([sock], ["dmnotid.socket"]), "pass_fds": [sock.fileno()], "environment": told(end)}
        config = write_config(tmp_path, listen=["127.0.0.1:2949"])
        service = run(config, **begin)
        assert service.wait("notification accepted")["notification_id"] == 1
        assert [line["listen"] for line in service.of("socket listening")] == [f"127.0.0.1:{port}"]
        (line,) = service.of("listen ignored")
        assert (line["configured"], line["instead"]) == (["127.0.0.1:2949"], [f"127.0.0.1:{port}"])
        assert end.next()[0] == "READY=1"  # it is not for us to have it kept

        write_config(tmp_path, listen=[f"127.0.0.1:{port}"])
        service.process.send_signal(signal.SIGHUP)
        service.wait("configuration reloaded")
        send(port, push(2, preferred=NOWHERE))
        service.wait("notification accepted", 2)
        assert len(service.of("listen ignored")) == 1
        assert service.stop() == 0
        send(port, push(3, preferred=NOWHERE))
        assert accepted(service) == [1, 2]

        service = run(config, **begin)
        assert service.wait("notification accepted")["notification_id"] == 3
        service.stop(signal.SIGKILL)
        send(port, push(4, preferred=NOWHERE))
        assert run(config, **begin).wait("notification accepted")["notification_id"] == 4


def test_own_sockets_are_kept_over_a_crash(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    with bound() as free:
        port = free.getsockname()[1]
    config = write_config(tmp_path, listen=[f"127.0.0.1:{port}"])
    service = run(config, environment=told(end))
    stored, name, _ = end.next()
    assert stored == "FDSTORE=1"
    name = name.removeprefix("FDNAME=")
    service.wait("daemon ready")
    service.stop(signal.SIGKILL)
    send(port, push(1, preferred=NOWHERE))

    kept = end.kept[0]
    begin = {"prefix": passing([kept], [name]), "pass_fds": [kept.fileno()], "environment": told(end)}
    service = run(config, **begin)
    assert service.wait("notification accepted")["notification_id"] == 1
    end.until("READY=1")
    assert len(end.kept) == 1  # it is kept already
    service.stop(signal.SIGKILL)
    send(port, push(2, preferred=NOWHERE))

    # Meanwhile the configuration has changed: what waits is taken all the same, then the manager is rid of it.
    write_config(tmp_path, listen=["127.0.0.1:0"])
    service = run(config, **begin)
    assert service.wait("notification accepted")["notification_id"] == 2
    end.until("FDSTOREREMOVE=1")
    assert service.address[1] != port


def test_the_watchdog_is_fed_while_the_loop_turns(tmp_path: Path, run: Run, end: ManagersEnd) -> None:
    service = run(write_config(tmp_path), environment=told(end, WATCHDOG_USEC="200000"))
    end.until("READY=1")
    for _ in range(4):
        end.until("WATCHDOG=1")
    service.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "State:\tT" in Path(f"/proc/{service.process.pid}/status").read_text())
    while not end.is_silent():
        pass
    time.sleep(0.5)  # more than two pings
    assert end.is_silent()
    service.process.send_signal(signal.SIGCONT)
    end.until("WATCHDOG=1")


@pytest.mark.parametrize("microseconds", ["9" * 400, "9" * 5_000])
def test_a_watchdog_of_no_sensible_time_is_no_reason_not_to_start(microseconds: str) -> None:
    assert Manager({"WATCHDOG_USEC": microseconds}).watchdog is None


def test_a_start_that_fails_says_which_socket_is_wrong(tmp_path: Path, run: Run) -> None:
    with bound(socket.SOCK_STREAM) as sock:
        service = run(write_config(tmp_path), passing([sock], ["my.socket"]), pass_fds=[sock.fileno()])
        assert "descriptor 3 (my.socket): is another sort of socket" in service.problem()
