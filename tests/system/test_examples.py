"""The examples that need a system of their own: sessions as units, and the image of the container.

No container engine runs here: the instructions of the Containerfile are carried out in a copy of a Debian, without the
isolation that an engine or Compose adds.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from tests.examples.support import EXAMPLES, ROOT, DmServer, serving
from tests.support import SERVER_ID
from tests.system.device import Device, notification
from tests.system.test_receive import hand_over

pytestmark = [pytest.mark.root, pytest.mark.system]

CONTAINER: Final = EXAMPLES / "container"
USER: Final = "2948"
SECRET: Final = "dm.example.com.secret"


# --- hand-over.conf


def test_session_as_a_unit_of_its_own_sends_package_1(device: Device) -> None:
    """The steps in the head of the drop-in, with a server on loopback in place of https://dm.example.com."""
    hand_over(device)
    described = json.loads((EXAMPLES / "dm2.json").read_text())
    with serving(device.machine.call(DmServer, ("127.0.0.1", 0), (200, {"CMD": [["END"]]}))) as server:
        described["servers"] = {SERVER_ID: server.url}
        device.machine.write("/etc/dmnotid/dm2.json", json.dumps(described))
        device.machine.write("/etc/dmnotid/dm2-initiate", (EXAMPLES / "dm2-initiate").read_text(), mode=0o755)
        device.drop_in((EXAMPLES / "hand-over.conf").read_text(), "dmnotid-session@.service")
        verified = device.machine.attempt("systemd-analyze", "verify", "--man=no", "dmnotid-session@1.service")
        assert (verified.returncode, verified.stderr) == (0, "")
        device.start("dmnotid-session.socket", "dmnotid.service")
        device.send(notification(1))
        assert device.wait_record("session done")["outcome"] == "exit 0"
    [request] = server.requests
    assert request.headers["OMADM-DevID"] == described["DevID"]
    assert request.body["Alert"][0]["Data"] == {"NotificationID": 1}


# --- The container


class Instruction(NamedTuple):
    """An instruction of a Containerfile."""

    name: str
    value: str


def instructions() -> list[Instruction]:
    """Read the Containerfile: a backslash at the end of a line continues it."""
    lines = (CONTAINER / "Containerfile").read_text().replace("\\\n", " ").splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def given(name: str) -> list[str]:
    """Return the values of all instructions of that name."""
    return [it.value for it in instructions() if it.name == name]


def execute(root: Path, *argv: str, user: str = "0", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a root directory, as process 1 of a namespace, with its own /proc and /tmp."""
    inside = 'mount -t proc proc "$1/proc"; mount -t tmpfs tmpfs "$1/tmp"; mount --bind /dev "$1/dev"; shift; exec "$@"'
    chroot = ["chroot", f"--userspec={user}:{user}", str(root), "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]
    environment = [f"{name}={value}" for name, value in environ.items()]
    return subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", inside, "sh", root,
         *chroot, *environment, *argv],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def image(base_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root directory that the Containerfile makes; debian:12-slim is a Debian with a little more."""
    root = tmp_path_factory.mktemp("image") / "root"
    subprocess.run(["cp", "--archive", "--reflink=auto", base_root, root], check=True)
    # An engine provides this file, too.
    (root / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())
    assert instructions()[0] == ("FROM", "debian:12-slim")
    for name, value in instructions():
        if name == "COPY":
            source, destination = value.split()
            target = Path(f"{root}{destination}")
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--recursive", ROOT / source, target], check=True)
        elif name == "RUN":
            done = execute(root, "/bin/sh", "-c", value, DEBIAN_FRONTEND="noninteractive")
            assert done.returncode == 0, done.stdout + done.stderr
    for file, text in ((SECRET, "lantern-and-rope-0042\n"), ("dmnotid.yaml", (CONTAINER / "dmnotid.yaml").read_text())):
        mounted = root / "etc/dmnotid" / file
        mounted.write_text(text)
        mounted.chmod(0o600)
        os.chown(mounted, int(USER), int(USER))
    return root


def enter(image: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point with a command, as the user and with the environment of the Containerfile."""
    [entry], [environment] = given("ENTRYPOINT"), given("ENV")
    return execute(image, *json.loads(entry), *command, user=USER, **dict(it.split("=") for it in environment.split()))


def test_image_accepts_the_configuration_of_the_example(image: Path) -> None:
    done = enter(image, "check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_image_receives_and_runs_hooks(image: Path) -> None:
    """`demo` starts the daemon as it is and sends it six datagrams over loopback."""
    done = enter(image, "demo", "--once")
    assert done.returncode == 0, done.stdout + done.stderr


def test_first_process_of_the_image_reaps_what_hooks_leave_behind(image: Path) -> None:
    """A child whose parent has ended becomes one of process 1; a zombie would keep its directory in /proc."""
    [entry] = given("ENTRYPOINT")
    init = json.loads(entry)[: json.loads(entry).index("--") + 1]
    orphan = "pid=$(sh -c 'sleep 0.1 >/dev/null & echo $!'); while [ -e /proc/$pid ]; do :; done"
    done = execute(image, *init, "sh", "-ec", f"cat /proc/1/comm; {orphan}", user=USER)
    assert (done.returncode, done.stdout) == (0, "tini\n"), done.stderr


def test_compose_file_fits_the_containerfile() -> None:
    compose: Any = yaml.safe_load((CONTAINER / "compose.yaml").read_text())
    service = compose["services"]["dmnotid"]
    build = service["build"]
    assert (CONTAINER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).samefile(CONTAINER / "Containerfile")
    [volume], [user] = given("VOLUME"), given("USER")
    [runtime] = re.findall(r"RUNTIME_DIRECTORY=(\S+)", " ".join(given("ENV")))
    mounts = dict(mount.split(":")[:2] for mount in service["volumes"])
    assert mounts.pop("./dmnotid.yaml") == "/etc/dmnotid/dmnotid.yaml"
    assert mounts.pop(f"./{SECRET}") == f"/etc/dmnotid/{SECRET}"
    assert mounts == dict.fromkeys(compose["volumes"], volume)
    assert user == "dmnotid"
    # The control socket; podman refuses `uid=`, with which Docker gives the directory to a user.
    assert [mount for mount in service["tmpfs"] if "uid=" in mount] == []
    assert [mount for mount in service["tmpfs"] if "dmnotid" in mount] == [f"{runtime}:mode=1777"]
    assert f"--uid {USER} " in " ".join(given("RUN"))
