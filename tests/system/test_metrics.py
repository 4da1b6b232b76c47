"""The units that give the metrics to Prometheus: each asks the daemon with no more rights than that needs."""

from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.support import SERVER_ID, wait_until
from tests.system.device import Device, notification

pytestmark = [pytest.mark.root, pytest.mark.system]

FILE: Final = "/var/lib/prometheus/node-exporter/dmnotid.prom"
SCRAPE: Final = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9948/metrics').read().decode())"

OTHER_MACHINE: Final = """
ip netns add other
ip link add eth0 type veth peer name eth1 netns other
ip address add 192.0.2.7/24 dev eth0
ip link set eth0 up
ip -n other address add 192.0.2.9/24 dev eth1
ip -n other address add 192.0.2.11/24 dev eth1
ip -n other link set eth1 up
"""

TWO_CLIENTS: Final = """
import select, socket
from http.client import HTTPConnection

# The second one begins after the first, and so ends after it would have ended.
stranger = socket.socket()
stranger.bind(("192.0.2.11", 0))
stranger.setblocking(False)
stranger.connect_ex(("192.0.2.7", 9948))
friend = HTTPConnection("192.0.2.7", 9948, source_address=("192.0.2.9", 0))
friend.request("GET", "/metrics")
text = friend.getresponse().read().decode()
print("an answer" if select.select([], [stranger], [], 0)[1] else "no answer")
print(text)
"""


def read(text: str) -> dict[str, float]:
    """Return the samples by name and labels, as Prometheus writes them."""
    samples = [sample for family in parse(text) for sample in family.samples]
    return {
        sample.name + "".join(f"{{{name}={value}}}" for name, value in sample.labels.items()): sample.value
        for sample in samples
    }


def scrape(device: Device) -> dict[str, float]:
    return read(device.run("python3", "-c", SCRAPE))


def written(device: Device) -> dict[str, float]:
    return read(device.machine.path(FILE).read_text())


def test_scrape_has_the_counts_of_the_daemon_until_it_stops(device: Device) -> None:
    device.start("dmnotid-metrics.socket")
    assert scrape(device) == {"dmnotid_up": 0}
    device.start()
    device.send(notification(1))
    device.wait_record("session done")
    samples = scrape(device)
    assert samples["dmnotid_up"] == 1
    assert samples[f"dmnotid_notifications_accepted_total{{server={SERVER_ID}}}"] == 1
    assert samples["dmnotid_sessions_closed_total{outcome=done}"] == 1
    device.run("systemctl", "stop", "dmnotid.service", "dmnotid.socket")
    assert scrape(device)["dmnotid_up"] == 0
    # Scrapes would fill the log.
    assert device.machine.attempt("journalctl", "--quiet", "--unit=dmnotid-metrics@*.service").stdout == ""


def test_file_has_what_the_journal_has_when_the_daemon_stops(device: Device) -> None:
    device.run("install", "--directory", FILE.rpartition("/")[0])
    device.start()
    device.send(notification(1))
    device.wait_record("session done")
    device.start("dmnotid-metrics.service")
    last = f"dmnotid_notification_last_accepted_timestamp_seconds{{server={SERVER_ID}}}"
    running = written(device)
    assert running["dmnotid_up"] == 1
    assert device.run("stat", "--format=%U %a", FILE) == "root 644\n"
    device.run("systemctl", "stop", "dmnotid.service", "dmnotid.socket")
    device.start("dmnotid-metrics.service")
    stopped = written(device)
    assert stopped["dmnotid_up"] == 0
    assert stopped[last] == running[last]
    assert device.run("ls", "-A", FILE.rpartition("/")[0]) == "dmnotid.prom\n"


def test_timer_writes_the_file(device: Device) -> None:
    device.run("install", "--directory", FILE.rpartition("/")[0])
    device.start("dmnotid-metrics.timer")
    wait_until(lambda: device.machine.path(FILE).exists())
    assert written(device)["dmnotid_up"] == 0


def test_service_fails_with_the_reason_when_the_directory_is_missing(device: Device) -> None:
    assert device.machine.attempt("systemctl", "start", "dmnotid-metrics.service").returncode != 0
    (problem,) = [entry for entry in device.log(unit="dmnotid-metrics.service") if entry.fields["_COMM"] != "systemd"]
    assert problem.fields["MESSAGE"] == f"{FILE} cannot be written: No such file or directory"


def test_only_addresses_that_are_allowed_are_answered_when_another_machine_asks(device: Device) -> None:
    device.run("sh", "-ec", OTHER_MACHINE)
    listen = "[Socket]\nListenStream=\nListenStream=192.0.2.7:9948\nFreeBind=yes\nIPAddressAllow=192.0.2.9\n"
    device.drop_in(listen, "dmnotid-metrics.socket")
    device.start("dmnotid-metrics.socket")
    shown = device.run("ip", "netns", "exec", "other", "python3", "-c", TWO_CLIENTS)
    stranger, _, answer = shown.partition("\n")
    assert stranger == "no answer"
    assert read(answer) == {"dmnotid_up": 0}
    device.run("ip", "netns", "delete", "other")
