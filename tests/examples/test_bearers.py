"""The bearers of examples/: MQTT with a real broker, UnifiedPush with a stand-in for a distributor, and C."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from jeepney import DBusAddress, new_method_call

from tests.examples.support import EXAMPLES, PATIENCE
from tests.processes import ENVIRONMENT, Run, Service, running
from tests.support import Recorder, package, push, wait_until, write_config
from tests.telephony.bus import PrivateBus
from tests.telephony.bus import Service as Named

BEARERS: Final = EXAMPLES / "bearers"
MQTT: Final = ("mosquitto", "mosquitto_pub", "mosquitto_sub")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


@pytest.fixture
def recorder(short: Path) -> Recorder:
    return Recorder(short)


@pytest.fixture
def start(short: Path) -> Iterator[Run]:
    with running(short) as start:
        yield start


def with_door(short: Path, start: Run, recorder: Recorder, holds: str) -> tuple[Service, Path]:
    """Start a daemon with one door; the daemon, and the path of the door."""
    path = short / "door.sock"
    service = start(write_config(short, recorder.command, doors=[{"path": str(path), "holds": holds}]))
    service.wait("daemon ready")
    return service, path


@contextmanager
def program(command: Sequence[str], **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a program of the examples and its children until the block ends."""
    process = subprocess.Popen(
        command, env=ENVIRONMENT | environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def broker(short: Path) -> Iterator[str]:
    """The port of a broker that keeps the messages of clients that are away."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    file = short / "mosquitto.conf"
    file.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n")
    with subprocess.Popen(["mosquitto", "-c", file], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: listens(int(port)))
        yield port
        process.terminate()


@needs(*MQTT)
def test_packages_by_mqtt_start_their_hooks_once(short: Path, start: Run, recorder: Recorder, broker: str) -> None:
    """Also those that were published while the device was away; a package may have any octets."""
    service, door = with_door(short, start, recorder, "package")
    topic = ["-p", broker, "-t", "devices/17/dm", "-q", "1"]
    command = [str(BEARERS / "mqtt-door"), *topic, "-c", "-i", "17"]

    def publish(*octets: bytes) -> None:
        for one in octets:
            subprocess.run(["mosquitto_pub", *topic, "-s"], input=one, check=True, timeout=PATIENCE)

    def subscribed() -> bool:
        publish(package(9))
        return bool(service.of("notification accepted"))

    first = package(1)
    with program(command, DOOR=str(door)) as process:
        # The broker keeps messages for a client that it has seen.
        wait_until(subscribed)
        publish(first, package(2, unknown=[(9, bytes(range(256)))]))
        service.wait("session done", 3)
        assert process.poll() is None
    publish(first, package(3))
    with program(command, DOOR=str(door)):
        service.wait("session done", 4)
    assert sorted(recorder.notification_ids) == [1, 2, 3, 9]
    assert {run["environment"]["DMNOTID_SOURCE"] for run in recorder.runs} == {"local"}
    assert set(service.reasons()) == {"duplicate"}


@needs("dbus-daemon")
def test_messages_of_a_distributor_are_handed_in(short: Path, start: Run, recorder: Recorder) -> None:
    """A message with another token is not from the distributor."""
    service, door = with_door(short, start, recorder, "package")
    name, app = "org.unifiedpush.Distributor.kde", "org.example.dmnotid"
    registered: list[object] = []

    def answer(member: str, *arguments: object) -> tuple[str, tuple[str, str]] | None:
        registered.append((member, *arguments))
        return "ss", ("NEW_ENDPOINT", "")

    with PrivateBus(short) as bus, Named(bus, name, answer):
        command = [sys.executable, str(BEARERS / "unifiedpush-door"), "a-token"]
        with program(command, DOOR=str(door), DBUS_SESSION_BUS_ADDRESS=bus.address) as process:
            wait_until(lambda: registered == [("Register", app, "a-token", "DM notifications")])
            with bus.connect() as connection:
                address = DBusAddress("/org/unifiedpush/Connector", app, "org.unifiedpush.Connector1")
                for member, signature, *body in [
                    ("NewEndpoint", "ss", "a-token", "https://push.example/abc"),
                    ("Message", "says", "a guess", package(8), ""),
                    ("Message", "says", "a-token", package(7), ""),
                ]:
                    connection.send(new_method_call(address, member, signature, tuple(body)))
                service.wait("session done")
            assert process.stdout is not None
            assert process.stdout.readline() == "https://push.example/abc\n"
    assert sorted(recorder.notification_ids) == [7]


@needs("cc")
def test_push_from_a_library_in_c_is_handed_in(short: Path, start: Run, recorder: Recorder) -> None:
    service, door = with_door(short, start, recorder, "push")
    main = short / "main.c"
    main.write_text("""
#include <stddef.h>
#include <stdio.h>
int hand_in(const char *, const void *, size_t);
int main(int count, char **arguments)
{
    static char octets[65536];
    return count != 2 || hand_in(arguments[1], octets, fread(octets, 1, sizeof octets, stdin));
}
""")
    warnings = ["-Wall", "-Wextra", "-Werror", "-std=gnu11"]
    subprocess.run(["cc", *warnings, "-o", short / "vendor", main, BEARERS / "hand_in.c"], check=True)
    for path, status in ((door, 0), (short / "gone.sock", 1)):
        done = subprocess.run([short / "vendor", path], input=push(7), check=False, timeout=PATIENCE)
        assert done.returncode == status
    service.wait("session done")
    assert sorted(recorder.notification_ids) == [7]


@needs("systemd-analyze")
def test_unit_for_mqtt_is_clean(tmp_path: Path) -> None:
    """With a program that is there in place of the installed one."""
    unit = tmp_path / "mqtt-door.service"
    unit.write_text((BEARERS / unit.name).read_text().replace("/usr/local/bin/mqtt-door", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])
