"""The alerts of docs/alerts.yml: sound to promtool, and each of them fires if it should, and not otherwise."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import yaml

from dmnotid.cli.exposition import families, render
from tests.cli.test_exposition import STATUS

ALERTS: Final = Path(__file__).parents[2] / "docs/alerts.yml"
RULES: Final = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
DAY: Final = 86_400

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")


class Case(NamedTuple):
    """Samples of one series, a minute apart from the time 0 on, and whether the alert fires at a time in minutes.

    The notation of the values is that of promtool: `5+0x9` is ten times 5.
    """

    alert: str
    name: str
    values: str
    minute: int
    fires: bool


def discarded(reason: str) -> str:
    return f'dmnotid_notifications_discarded_total{{reason="{reason}"}}'


HEARD: Final = 'dmnotid_notification_last_accepted_timestamp_seconds{server="dm.example.com"}'
OLDEST: Final = "dmnotid_session_oldest_pending_timestamp_seconds"
FILE: Final = 'node_textfile_mtime_seconds{file="/var/lib/prometheus/node-exporter/dmnotid.prom"}'

CASES: Final = [
    Case("DmnotidDown", "dmnotid_up", "0+0x10", 6, fires=True),
    Case("DmnotidDown", "dmnotid_up", "1+0x5 0 0 1+0x10", 8, fires=False),
    Case("DmnotidDown", "dmnotid_hook_startable", "1+0x10", 6, fires=True),
    Case("DmnotidMetricsOld", FILE, "60+0x20", 12, fires=True),
    Case("DmnotidMetricsOld", FILE, "0+60x20", 12, fires=False),
    Case("DmnotidMetricsOld", 'node_textfile_mtime_seconds{file="/srv/other.prom"}', "0+0x20", 12, fires=False),
    Case("DmnotidServerSilent", HEARD, f"{600 - 3 * DAY - 1}+0x10", 10, fires=True),
    Case("DmnotidServerSilent", HEARD, f"{600 - 3 * DAY}+0x10", 10, fires=False),
    Case("DmnotidForgeries", discarded("digest-mismatch"), "0+1x60", 60, fires=True),
    Case("DmnotidForgeries", discarded("trailing-octets"), "0+1x60", 60, fires=True),
    Case("DmnotidForgeries", discarded("digest-mismatch"), "0+0x30 0+1x10 10+0x20", 60, fires=False),
    Case("DmnotidForgeries", discarded("duplicate"), "0+1x60", 60, fires=False),
    Case("DmnotidSessionStuck", OLDEST, f"{600 - DAY // 4 - 1}+0x10", 10, fires=True),
    Case("DmnotidSessionStuck", OLDEST, f"{600 - DAY // 4}+0x10", 10, fires=False),
    Case("DmnotidHookNotStartable", "dmnotid_hook_startable", "0+0x10", 6, fires=True),
    Case("DmnotidHookNotStartable", "dmnotid_hook_startable", "1+0x10", 6, fires=False),
    Case("DmnotidReloadRefused", "dmnotid_config_last_reload_successful", "0+0x10", 6, fires=True),
    Case("DmnotidReloadRefused", "dmnotid_config_last_reload_successful", "1+0x10", 6, fires=False),
    Case("DmnotidDatagramsLost", 'dmnotid_datagrams_lost_total{cause="buffer"}', "0+0x30 7+0x30", 60, fires=True),
    Case("DmnotidDatagramsLost", 'dmnotid_datagrams_lost_total{cause="buffer"}', "7+0x60", 60, fires=False),
    Case("DmnotidJournalErrors", "dmnotid_journal_errors_total", "0+0x30 1+0x30", 60, fires=True),
    Case("DmnotidJournalErrors", "dmnotid_journal_errors_total", "1+0x60", 60, fires=False),
    Case("DmnotidRestarts", "dmnotid_start_time_seconds", "0+0x10 1+0x10 2+0x10 3+0x10 4+0x10", 54, fires=True),
    Case("DmnotidRestarts", "dmnotid_start_time_seconds", "0+0x10 1+0x50", 54, fires=False),
]


def fired(cases: list[Case], directory: Path) -> Counter[str]:
    """Return how often each alert fires; promtool reports those because none is expected."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": case.name, "values": case.values}],
            "alert_rule_test": [{"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": []}],
        }
        for case in cases
    ]
    file = directory / "test.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    found = re.findall(r"alertname: (\w+), time", done.stdout + done.stderr)
    assert bool(found) is bool(done.returncode), done.stdout + done.stderr
    return Counter(found)


@needs_promtool
def test_alert_fires_when_its_condition_holds(tmp_path: Path) -> None:
    cases = [case for case in CASES if case.fires]
    assert fired(cases, tmp_path) == Counter(case.alert for case in cases)


@needs_promtool
def test_no_alert_fires_when_its_condition_does_not_hold(tmp_path: Path) -> None:
    assert fired([case for case in CASES if not case.fires], tmp_path) == Counter()


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    done = subprocess.run(["promtool", "check", "rules", ALERTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(RULES)} rules found" in done.stdout


def test_every_alert_is_tried_in_both_directions() -> None:
    tried = {(case.alert, case.fires) for case in CASES}
    assert tried == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


def test_alerts_use_only_metrics_that_exist() -> None:
    names = set(re.findall(r"dmnotid_\w+", render(families(STATUS))))
    used = {name for rule in RULES for name in re.findall(r"dmnotid_\w+", rule["expr"])}
    assert used <= names


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_has_a_summary_and_an_advice(rule: dict[str, Any]) -> None:
    assert rule["annotations"].keys() == {"summary", "description"}
    assert rule["labels"]["severity"] in ("warning", "critical")
