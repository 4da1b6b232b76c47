"""Passed sockets, readiness, status line and watchdog, over real sockets, without systemd itself."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dmnotid.errors import EndpointError
from dmnotid.host.systemd import MAX_STATUS_OCTETS, Manager, StatusLine
from dmnotid.host.text import printable
from tests.processes import ENVIRONMENT, JOURNAL, Run, Service
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
    """The socket on which a service manager receives, and its messages."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.socket.settimeout(DEADLINE)

    def close(self) -> None:
        self.socket.close()

    def next(self) -> list[str]:
        """Wait for one message, and return its lines."""
        return self.socket.recv(4_096).decode().splitlines()

    def until(self, line: str) -> list[str]:
        """Wait for a message with a line, and return its lines."""
        while line not in (message := self.next()):
            pass
        return message

    def until_status(self, text: str) -> str:
        while True:
            for line in self.next():
                if line.startswith("STATUS=") and text in line:
                    return line

    def is_silent(self) -> bool:
        """Return whether no message is queued; one that is, is lost."""
        self.socket.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
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


# Messages


def test_messages_are_those_of_sd_notify(manager: Manager, end: ManagersEnd) -> None:
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


def test_status_text_cannot_add_assignments(manager: Manager, end: ManagersEnd) -> None:
    manager.status("a\nREADY=1\x00" + "b" * 1_000)
    (line,) = end.next()
    assert line.startswith("STATUS=a\\nREADY=1\\x00bbb")


@pytest.mark.parametrize("character", ["b", "\n", "\u00e9", "\u4e2d", "\U0001f600"])
def test_long_status_is_shortened_by_the_octets_that_are_sent(
    manager: Manager, end: ManagersEnd, character: str
) -> None:
    manager.status(character * 1_000)
    (line,) = end.next()
    size = len(line.removeprefix("STATUS=").encode())
    assert MAX_STATUS_OCTETS - len(printable(character).encode()) < size <= MAX_STATUS_OCTETS
    assert line.endswith("…")


def test_abstract_address_is_used() -> None:
    name = f"dmnotid-test-{os.getpid()}"
    end = ManagersEnd(f"\0{name}")
    Manager({"NOTIFY_SOCKET": f"@{name}"}).alive()
    assert end.next() == ["WATCHDOG=1"]
    end.close()


def test_nothing_is_sent_without_a_manager(logged: LogLines) -> None:
    manager = Manager({})
    assert not manager.listens
    manager.ready("")
    manager.stopping()
    assert not logged.all()


def test_manager_that_is_gone_is_logged_once(tmp_path: Path, logged: LogLines) -> None:
    manager = Manager({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    manager.ready("")
    manager.alive()
    (line,) = logged.of("service manager not notified")
    assert (line["message"], line["problem"]) == ("READY=1", "[Errno 2] No such file or directory")


def test_busy_manager_misses_a_status(manager: Manager, end: ManagersEnd, logged: LogLines) -> None:
    for number in range(10_000):
        manager.status(str(number))
    assert end.next() == ["STATUS=0"]
    assert not logged.all()


async def test_status_line_that_a_busy_manager_missed_is_sent_after_the_next_change(
    manager: Manager, end: ManagersEnd
) -> None:
    while manager.status("the queue is full then"):
        pass
    line = StatusLine(manager, lambda: "the same text")
    line.change()
    line.close()
    while not end_is_empty(end):
        assert end.next() == ["STATUS=the queue is full then"]
    line.change()
    line.close()
    assert not end_is_empty(end)
    assert end.next() == ["STATUS=the same text"]


async def test_status_line_reports_the_last_of_many_changes(manager: Manager, end: ManagersEnd) -> None:
    number = 0
    line = StatusLine(manager, lambda: f"number {number}")
    line.change()
    await eventually(lambda: not end_is_empty(end))
    assert end.next() == ["STATUS=number 0"]
    for number in range(1, 1_000):  # noqa: B007 - the status line reads it
        line.change()
    await eventually(lambda: not end_is_empty(end))
    assert end.next() == ["STATUS=number 999"]
    # The text is the same: no message.
    line.change()
    line.close()
    number = 1_001
    line.change()
    line.close()
    assert end.next() == ["STATUS=number 1001"]
    assert end.is_silent()


def end_is_empty(end: ManagersEnd) -> bool:
    """Return whether no message is queued, and take none."""
    end.socket.setblocking(False)  # noqa: FBT003 - the standard library takes it by position
    try:
        end.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    finally:
        end.socket.settimeout(DEADLINE)
    return False


# Passed sockets

PASS = """
import os, sys
for number, descriptor in enumerate(map(int, sys.argv[1].split(",")), 3):
    os.dup2(descriptor, number + 100)
for number in range(len(sys.argv[1].split(","))):
    os.dup2(number + 103, number + 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sys.argv[1].split(","))), LISTEN_FDNAMES=sys.argv[2])
if sys.argv[3:]:
    os.execvp(sys.argv[3], sys.argv[3:])
"""
"""The part of systemd between fork and exec: the program keeps the process number."""


def passing(sockets: Sequence[socket.socket], names: Sequence[str]) -> list[str]:
    """Return a command prefix that passes sockets to the command after it."""
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
    for sock in manager.sockets:
        print(*sock.getsockname()[:2], os.get_inheritable(sock.fileno()))
    for sock in manager.doors:
        print("door", sock.getsockname(), os.get_inheritable(sock.fileno()))
    print(sorted(name for name in os.environ if name.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))))
"""


def show(sockets: Sequence[socket.socket], names: Sequence[str]) -> list[str]:
    """Return what a process prints about passed sockets."""
    interpreter, option, code, *words = passing(sockets, names)
    done = subprocess.run(
        [interpreter, option, code + SHOW, *words],
        env=ENVIRONMENT, pass_fds=[sock.fileno() for sock in sockets], capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def bound(kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    return sock


def test_passed_sockets_are_used_and_not_inherited() -> None:
    with bound() as one, bound() as other:
        lines = show([one, other], ["dmnotid.socket", "other.socket"])
        assert lines == [*(f"127.0.0.1 {sock.getsockname()[1]} False" for sock in (one, other)), "[]"]


def test_passed_socket_of_another_kind_is_refused() -> None:
    expected = "a bound UDP socket, or a Unix datagram socket at a path, is expected (ListenDatagram=)"
    with bound(socket.SOCK_STREAM) as stream, bound() as good:
        where = "LISTEN_FDS: descriptor 4 (my.socket)"
        assert show([good, stream], ["dmnotid.socket", "my.socket"]) == [
            f"{where}: is another kind of socket: {expected}"
        ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unbound:
        where = "LISTEN_FDS: descriptor 3 (unnamed)"
        assert show([unbound], [""]) == [f"{where}: is another kind of socket: {expected}"]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    # Every user may send to an abstract name.
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    abstract.bind("")
    with ours, theirs, abstract:
        for sock in (ours, abstract):
            assert show([sock], ["a"]) == [f"LISTEN_FDS: descriptor 3 (a): is another kind of socket: {expected}"]


def test_passed_unix_socket_is_a_door(tmp_path: Path) -> None:
    with bound() as udp, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.bind(str(tmp_path / "door"))
        lines = show([door, udp], ["dmnotid-doors.socket", "dmnotid.socket"])
        assert lines == [f"127.0.0.1 {udp.getsockname()[1]} False", f"door {tmp_path / 'door'} False", "[]"]


def test_passed_descriptor_that_is_not_a_socket_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PASS, "0", "x", sys.executable, "-c", SHOW],
        env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("LISTEN_FDS: descriptor 3 (x): Socket operation on non-socket: a bound UDP socket")


def test_variables_for_another_process_are_ignored(logged: LogLines) -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "1000000"}
    manager = Manager(environ)
    assert not manager.sockets
    assert manager.watchdog is None
    assert not environ
    # A script between systemd and the daemon: without this line the systemd socket would stay unread in silence.
    (line,) = logged.of("passed sockets ignored")
    problem = f"LISTEN_PID: the sockets were passed to process 1, this is {os.getpid()}: start it with exec"
    assert (line["level"], line["problem"]) == ("warning", problem)


@pytest.mark.parametrize("variable", ["LISTEN_FDS", "WATCHDOG_USEC"])
@pytest.mark.parametrize("number", ["", "x", "-1", "1.5", "²", "9" * 5_000])
def test_malformed_number_of_the_service_manager_is_refused(variable: str, number: str) -> None:
    with pytest.raises(EndpointError, match=rf"{variable}: .*a number is expected"):
        Manager({"LISTEN_PID": str(os.getpid()), variable: number})


def test_watchdog_time_of_zero_is_no_watchdog() -> None:
    assert Manager({"WATCHDOG_USEC": "0"}).watchdog is None


def test_watchdog_time_is_read_in_microseconds(logged: LogLines) -> None:
    assert Manager({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}).watchdog == 2.5
    assert Manager({"WATCHDOG_USEC": "2500000"}).watchdog == 2.5
    # WatchdogSec=infinity
    assert Manager({"WATCHDOG_USEC": str(2**64 - 1)}).watchdog == (2**64 - 1) / 1_000_000
    assert Manager({}).watchdog is None
    assert not logged.all()


# The daemon


def notifying(end: ManagersEnd, **more: str) -> dict[str, str]:
    """Return the environment of a daemon that notifies a manager."""
    return {**ENVIRONMENT, "NOTIFY_SOCKET": end.socket.getsockname(), **more}


def send(port: int, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for datagram in datagrams:
            sock.sendto(datagram, ("127.0.0.1", port))


def accepted(service: Service) -> list[int]:
    return [line["notification_id"] for line in service.of("notification accepted")]


def test_daemon_reports_readiness_status_reloads_and_stop(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    config = write_config(tmp_path)
    service = start(config, environment=notifying(end))
    none = "sessions: 0 running, 0 pending; 0 accepted, 0 discarded"
    assert end.next() == ["READY=1", f"STATUS=3 servers; {none}"]
    service.send(push(1, preferred=NOWHERE), push(1, preferred=NOWHERE), b"junk")
    status = end.until_status("2 discarded")
    assert "sessions: 0 running, 1 pending; 1 accepted, 2 discarded (" in status
    assert "duplicate 1" in status

    write_config(tmp_path, servers=SERVERS[:1])
    service.process.send_signal(signal.SIGHUP)
    end.until("RELOADING=1")
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


def test_status_begins_with_a_hook_that_cannot_be_started(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    # The status line is cut, so the name is short.
    hook = tmp_path / "h"
    config = write_config(tmp_path, [str(hook)], retry={"first": "100ms", "longest": "100ms"})
    service = start(config, environment=notifying(end))
    problem = f"STATUS=hook not startable: {hook}: No such file"
    assert end.next()[1].startswith(problem)
    service.send(push(1, preferred=WIRELINE))
    assert end.until_status("1 accepted").startswith(problem)
    # A failure of another kind replaces the first one; the hook is repaired without a reload.
    write_script(hook, "exit 0", 0o644)
    end.until_status(f"hook not startable: {hook}: not executable; ")
    hook.chmod(0o755)
    assert end.until_status("0 running, 0 pending").startswith("STATUS=3 servers; ")
    assert service.wait("session done")["attempts"] == 1
    # A reload looks at the hook too, and one that is refused does not hide it.
    hook.unlink()
    service.process.send_signal(signal.SIGHUP)
    assert end.until_status("hook not startable").startswith(problem)
    config.write_text("servers: 5\n")
    service.process.send_signal(signal.SIGHUP)
    both = end.until_status("reload refused")
    assert re.match(
        rf"{re.escape(problem[:60])}[^;]*; reload refused: [^;]*; 3 servers; sessions: 0 running, 0 p", both
    )
    assert both.endswith("; 1 accepted, 0 discarded")


def test_status_shows_running_sessions(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    go_on = tmp_path / "go on"
    script = write_script(tmp_path / "hook", f"#!/bin/sh\nwhile [ ! -e '{go_on}' ]; do sleep 0.05; done\n")
    service = start(write_config(tmp_path, [str(script)]), environment=notifying(end))
    service.send(push(1, preferred=WIRELINE), push(2, preferred=WIRELINE))
    end.until_status("sessions: 1 running, 1 pending")
    go_on.touch()
    end.until_status("sessions: 0 running, 0 pending; 2 accepted, 0 discarded")


def test_status_shows_drops_that_are_found_after_the_last_datagram(
    tmp_path: Path, start: Run, end: ManagersEnd
) -> None:
    service = start(write_config(tmp_path, log={"junk": False}), environment=notifying(end))
    service.send(b"junk", push(1, preferred=NOWHERE))
    end.until_status("1 accepted, 1 discarded (")


def test_refused_reload_comes_first_in_a_long_status(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    config = write_config(tmp_path, freshness={"max_skew": "10m"})
    service = start(config, environment=notifying(end))
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


def test_refused_reload_stays_in_the_status_until_a_reload_succeeds(
    tmp_path: Path, start: Run, end: ManagersEnd
) -> None:
    config = write_config(tmp_path)
    good = config.read_text()
    service = start(config, environment=notifying(end))
    service.wait("daemon ready")
    config.write_text("servers: 5\n")
    service.process.send_signal(signal.SIGHUP)
    end.until("RELOADING=1")
    # Datagrams and sessions change the rest of the line alone.
    service.send(push(1, preferred=WIRELINE), b"junk")
    refused = f"STATUS=reload refused: {config}:1:"
    assert end.until_status("sessions: 0 running, 0 pending; 1 accepted, 1 discarded").startswith(refused)
    config.write_text(good)
    service.process.send_signal(signal.SIGHUP)
    end.until("RELOADING=1")
    assert end.next()[1].startswith("STATUS=3 servers; ")
    assert service.stop() == 0


def test_passed_socket_is_used_and_keeps_datagrams_between_daemons(
    tmp_path: Path, start: Run, end: ManagersEnd
) -> None:
    with bound() as sock:
        port = sock.getsockname()[1]
        # Before there is a daemon at all.
        send(port, push(1, preferred=NOWHERE))
        begin = {"prefix": passing([sock], ["dmnotid.socket"]), "pass_fds": [sock.fileno()]}
        config = write_config(tmp_path, listen=["127.0.0.1:2949"])
        service = start(config, **begin, environment=notifying(end))
        assert service.wait("notification accepted")["notification_id"] == 1
        assert [line["listen"] for line in service.of("socket listening")] == [f"127.0.0.1:{port}"]
        (line,) = service.of("listen ignored")
        assert (line["configured"], line["instead"]) == (["127.0.0.1:2949"], [f"127.0.0.1:{port}"])

        write_config(tmp_path, listen=[f"127.0.0.1:{port}"])
        service.process.send_signal(signal.SIGHUP)
        service.wait("configuration reloaded")
        send(port, push(2, preferred=NOWHERE))
        service.wait("notification accepted", 2)
        assert len(service.of("listen ignored")) == 1
        assert service.stop() == 0
        send(port, push(3, preferred=NOWHERE))
        assert accepted(service) == [1, 2]

        service = start(config, **begin)
        assert service.wait("notification accepted")["notification_id"] == 3
        service.stop(signal.SIGKILL)
        send(port, push(4, preferred=NOWHERE))
        assert start(config, **begin).wait("notification accepted")["notification_id"] == 4


def test_junk_alone_is_reported_at_a_ping_of_the_watchdog(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    config = write_config(tmp_path, log={"junk": False})
    service = start(config, environment=notifying(end, WATCHDOG_USEC="200000"))
    service.send(b"hello")
    # It is taken for lost if another socket of this machine has lost a datagram meanwhile.
    (line,) = wait_until(lambda: service.of("junk refused") + service.of("datagrams lost"))
    assert line["count"] == 1
    end.until_status("1 discarded (junk 1)" if line["event"] == "junk refused" else "1 discarded (lost 1)")


def test_signal_of_log_rotation_is_ignored_and_logged(tmp_path: Path, start: Run) -> None:
    service = start(write_config(tmp_path))
    service.wait("daemon ready")
    for count, number in enumerate((signal.SIGUSR1, signal.SIGUSR2), 1):
        service.process.send_signal(number)
        assert service.wait("signal ignored", count)["signal"] == number.name
    service.send(push(1, preferred=NOWHERE))
    service.wait("notification accepted")
    assert service.stop() == 0


def test_problems_of_a_configuration_are_in_the_status_line(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    config = write_config(tmp_path, listen=5, bogus=1, receive_buffer="much", push=7)
    service = start(config, environment=notifying(end))
    assert service.process.wait(DEADLINE) == 78
    # systemd starts the daemon again and again: one line each time.
    (line,) = service.errors.splitlines()
    assert line.startswith(f"{config}:")
    assert line.endswith(" (and 3 more: dmnotid check shows them)")
    (status,) = end.next()
    assert f"STATUS=configuration: {line}".startswith(status.removesuffix("…"))
    assert end.is_silent()


def test_status_line_names_why_the_daemon_does_not_start(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    with bound() as sock:
        listen = f"127.0.0.1:{sock.getsockname()[1]}"
        service = start(write_config(tmp_path, listen=[listen]), environment=notifying(end))
        assert "Address already in use" in service.problem()
    end.until_status(f"not started: listen: {listen}: Address already in use")


def test_watchdog_is_pinged_after_a_look_into_the_journal(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    """A deleted file is found although no datagram arrives."""
    service = start(write_config(tmp_path), environment=notifying(end, WATCHDOG_USEC="100000"))
    service.wait("daemon ready")
    (tmp_path / "state" / JOURNAL).unlink()
    while not end_is_empty(end):
        end.next()
    # The look that came before the first of these may have found the file.
    for _ in range(2):
        end.until("WATCHDOG=1")
    assert service.of("journal recreated")


def test_watchdog_is_pinged_while_the_journal_is_unreadable(tmp_path: Path, start: Run, end: ManagersEnd) -> None:
    """No restart repairs it."""
    service = start(write_config(tmp_path), environment=notifying(end, WATCHDOG_USEC="100000"))
    service.wait("daemon ready")
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").touch()
    service.wait("journal unreadable", 2)
    while not end_is_empty(end):
        end.next()
    end.until("WATCHDOG=1")


def test_start_fails_if_a_passed_socket_is_of_another_kind(tmp_path: Path, start: Run) -> None:
    with bound(socket.SOCK_STREAM) as sock:
        service = start(write_config(tmp_path), passing([sock], ["my.socket"]), pass_fds=[sock.fileno()])
        assert "descriptor 3 (my.socket): is another kind of socket" in service.problem()
