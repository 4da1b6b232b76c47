"""The control socket as varlinkctl of systemd 257 uses it: a Varlink client that this project has not written."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dmnotid
from tests.processes import running
from tests.support import NOWHERE, WIRELINE, push, write_config

pytestmark = [pytest.mark.root, pytest.mark.system]

ADDRESS = "unix:/mnt/control"

# $1 is the directory of the socket, $2 the root. The mount is seen by this process alone.
INSIDE = """
mount --bind "$1" "$2/mnt"
root=$2
shift 2
exec chroot "$root" varlinkctl "$@"
"""

Varlinkctl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def varlinkctl(later_root: Path, tmp_path: Path) -> Iterator[Varlinkctl]:
    """Run varlinkctl beside a daemon that has accepted two notifications and discarded a datagram."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--mount", "sh", "-ec", INSIDE, "sh", str(tmp_path), str(later_root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    file = write_config(tmp_path, control={"socket": str(tmp_path / "control")})
    with running(tmp_path) as start:
        service = start(file)
        service.send(push(1, preferred=NOWHERE), push(2, preferred=WIRELINE), b"junk")
        service.wait("session done")
        service.wait("datagram discarded")
        yield run


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    """Read the replies that it printed: one JSON object a line, perhaps after a record separator."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.replace("\x1e", "").splitlines() if line]


def test_varlinkctl_describes_and_calls_every_kind_of_method(varlinkctl: Varlinkctl) -> None:
    info = varlinkctl("info", ADDRESS).stdout
    assert re.search(rf"Version: {re.escape(dmnotid.__version__)}\n", info)
    assert "io.dmnotid\n" in info
    # It parses the description, and writes it in its own form.
    described = varlinkctl("introspect", ADDRESS, "io.dmnotid")
    assert (described.returncode, described.stderr) == (0, "")
    assert "error NotPending(" in described.stdout
    methods = varlinkctl("list-methods", ADDRESS).stdout.split()
    assert {name for name in methods if name.startswith("io.")} == {
        f"io.dmnotid.{name}" for name in ("Status", "Sessions", "Discards", "Follow", "Retry", "Cancel", "Reload")
    }

    (status,) = records(varlinkctl("call", ADDRESS, "io.dmnotid.Status", "{}"))
    assert status["version"] == 1
    sessions = records(varlinkctl("call", "--more", ADDRESS, "io.dmnotid.Sessions", '{"since": 0}'))
    assert [record["session"]["state"] for record in sessions] == ["waiting", "done"]  # type: ignore[index]
    (discard,) = records(varlinkctl("call", "--more", ADDRESS, "io.dmnotid.Discards", "{}"))
    assert discard["discard"]["octets"] == b"junk".hex()  # type: ignore[index]
    assert records(varlinkctl("call", ADDRESS, "io.dmnotid.Cancel", '{"session": 1}')) == [{"was": "waiting"}]
    assert records(varlinkctl("call", ADDRESS, "io.dmnotid.Reload", "{}")) == [{"warnings": []}]

    failures = {
        ("call", ADDRESS, "io.dmnotid.Cancel", '{"session": 9}'): "io.dmnotid.NoSuchSession",
        ("call", ADDRESS, "io.dmnotid.Cancel", '{"session": 1}'): "io.dmnotid.NotPending",
        ("call", ADDRESS, "io.dmnotid.Cancel", '{"session": "1"}'): "org.varlink.service.InvalidParameter",
        ("call", ADDRESS, "io.dmnotid.Nothing", "{}"): "org.varlink.service.MethodNotFound",
        ("call", ADDRESS, "io.dmnotid.Sessions", "{}"): "org.varlink.service.ExpectedMore",
        ("introspect", ADDRESS, "io.other"): "org.varlink.service.InterfaceNotFound",
    }
    for command, error in failures.items():
        done = varlinkctl(*command)
        assert done.returncode != 0
        assert error in done.stderr
