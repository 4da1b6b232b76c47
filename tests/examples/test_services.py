"""The ways to run dmnotid in examples/, as far as they can be run here: the init script for procd.

The unit and the container are in tests/system/test_examples.py.
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.examples.support import EXAMPLES, ROOT
from tests.processes import ENVIRONMENT, Run
from tests.support import configuration

INIT: Final = EXAMPLES / "openwrt/dmnotid.init"
SCRIPTS: Final = [EXAMPLES / "hook-curl", EXAMPLES / "within-hours", INIT]

PARAMETERS: Final = frozenset({"command", "env", "user", "respawn", "term_timeout", "stdout", "stderr"})
"""Parameters of procd_set_param that the script uses, among those that procd.sh of OpenWrt handles."""


def recorded(action: str) -> list[list[str]]:
    """Return the calls that the init script makes for an action."""
    command = ["sh", str(Path(__file__).with_name("rc.common")), str(INIT), action]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line.split("\x1f") for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_init_script_describes_one_instance_to_procd() -> None:
    variables, mkdir, chown, opened, *parameters, closed = recorded("start")
    # The third variable makes rc.common load procd's functions.
    assert variables == ["variables", "95", "10", "1"]
    assert mkdir == ["mkdir", "-p", "/srv/dmnotid", "/var/run/dmnotid"]
    assert chown == ["chown", "dmnotid:", "/srv/dmnotid", "/var/run/dmnotid"]
    assert (opened[0], closed[0]) == ("open", "close")
    assert {name for name, *_ in parameters} == PARAMETERS


def test_command_of_the_init_script_runs_and_its_reload_reloads(start: Run, tmp_path: Path) -> None:
    """With the paths of this test, and as its user; the signal is the one that the script has procd send."""
    calls = {name: words for name, *words in recorded("start")}
    _, (_, service_name, instance, sent) = recorded("reload")
    assert (service_name, instance) == ("dmnotid", "*")
    file = tmp_path / "dmnotid.yaml"
    file.touch(mode=0o600)
    whole = configuration(tmp_path, ["/bin/true"], listen=["127.0.0.1:0"])
    del whole["state"]
    file.write_text(yaml.safe_dump(whole))
    places = {"/srv/dmnotid": tmp_path / "state", "/var/run/dmnotid": tmp_path / "run"}
    variables = dict(word.split("=") for word in calls["env"])
    environment = ENVIRONMENT | {name: str(places[path]) for name, path in variables.items()}
    for place in places.values():
        place.mkdir(mode=0o700)
    assert calls["command"] == ["/usr/bin/dmnotid", "run", "--config", "/etc/dmnotid/dmnotid.yaml"]
    service = start(file, environment=environment)
    service.wait("daemon ready")
    assert (places["/srv/dmnotid"] / "journal.sqlite3").exists()
    status = [sys.executable, "-m", "dmnotid", "status", "--json"]
    assert subprocess.run(status, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 0
    service.process.send_signal(signal.Signals[f"SIG{sent}"])
    service.wait("configuration reloaded")
    assert service.stop() == 0
