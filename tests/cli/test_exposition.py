"""The metrics of a status, read by the official parsers and by promtool."""

import shutil
import subprocess
from collections.abc import Callable, Iterable
from typing import Any, Final

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from dmnotid.cli.exposition import families, render
from dmnotid.errors import discard_reasons
from dmnotid.policy.sessions import Closed, PendingState
from tests.cli.examples import NOW, changed
from tests.cli.examples import STATUS as EXAMPLE

Parser = Callable[[str], Iterable[Metric]]
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

STATUS: Final = changed(
    config={"reload_refused": {"at": NOW - 9_000, "problems": 9}},
    counts={"lost": 2, "not_accepted": 4, "bugs": 5, "duration_sum": 41.25},
    journal={"errors": 3},
    links=[*EXAMPLE["links"], {"interface": "tun0", "type": "any", "available": True, "why": None, "since": NOW}],
)
STARTED: Final[float] = STATUS["started"]

HOSTILE: Final = 'a"b\\c\nd\\n\r"} 1\u2028{\t#'
"""A SERVER-ID whose characters end labels, values, lines or comments of the text format."""


def read(text: str, parse: Parser = parse_plain) -> Samples:
    samples = [sample for family in parse(text) for sample in family.samples]
    values = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}
    assert len(values) == len(samples), "a series has two samples"
    return values


def plain(facts: dict[str, Any], *, servers: bool = True) -> Samples:
    return read(render(families(facts, servers=servers)))


def series(samples: Samples, name: str, label: str) -> dict[str, float]:
    """Return the samples of a metric by the value of its only label."""
    return {
        labels[0][1]: value for (found, labels), value in samples.items() if found == name and labels[0][0] == label
    }


EXPECTED: Final[dict[str, float]] = {
    "dmnotid_up": 1,
    "dmnotid_start_time_seconds": STARTED,
    "dmnotid_config_last_reload_successful": 0,
    "dmnotid_config_last_reload_success_timestamp_seconds": NOW - 11_400,
    "dmnotid_hook_startable": 1,
    "dmnotid_clock_believed": 1,
    "dmnotid_datagrams_received_total": 1003,
    "dmnotid_datagrams_refused_total": 12_403,
    "dmnotid_notifications_not_accepted_total": 4,
    "dmnotid_internal_errors_total": 5,
    "dmnotid_session_oldest_pending_timestamp_seconds": NOW - 7_920,
    "dmnotid_session_tries_total": 911,
    "dmnotid_session_duration_seconds_sum": 41.25,
    "dmnotid_session_duration_seconds_count": 909,
    "dmnotid_journal_bytes": 217_088,
    "dmnotid_journal_errors_total": 3,
}
"""The metrics without labels."""


def test_metric_without_label_has_the_value_of_the_status() -> None:
    assert {name: value for (name, labels), value in plain(STATUS).items() if not labels} == EXPECTED


def test_metric_with_labels_has_a_sample_for_each_value() -> None:
    samples = plain(STATUS)
    assert samples["dmnotid_build_info", (("loop", "uvloop"), ("version", "0.1.0"))] == 1
    assert series(samples, "dmnotid_datagrams_lost_total", "cause") == {"buffer": 2}
    accepted = {"acme.example": 905, "dm.example.com": 5, "third.example": 0}
    assert series(samples, "dmnotid_notifications_accepted_total", "server") == accepted
    heard = {"acme.example": NOW - 180, "dm.example.com": NOW - 7_860}
    assert series(samples, "dmnotid_notification_last_accepted_timestamp_seconds", "server") == heard
    types = {"mobile": 0, "wireless": 0, "wireline": 1}
    assert series(samples, "dmnotid_connection_available", "type") == types
    assert series(samples, "dmnotid_sessions", "state") == STATUS["counts"]["states"]
    assert series(samples, "dmnotid_sessions_closed_total", "outcome") == STATUS["counts"]["closed"]


def test_doors_have_a_sample_for_each_name_and_none_without_doors() -> None:
    names = {"/run/a": ("sms", 2), "/run/b": ("sms", 3), "/run/c": ("local", 0)}
    doors = [
        {"listen": path, "unit": None, "door": name, "received": received, "lost": 0, "junk": 0}
        for path, (name, received) in names.items()
    ]
    name = "dmnotid_door_datagrams_received_total"
    assert series(plain(changed(sockets=[*STATUS["sockets"], *doors])), name, "door") == {"sms": 5, "local": 0}
    assert name not in {found for found, _ in plain(STATUS)}


def test_openmetrics_has_the_same_samples_and_the_creation_of_each_counter() -> None:
    text = render(families(STATUS), created=STARTED)
    samples = read(text, parse_openmetrics)
    created = {key: value for key, value in samples.items() if key[0].endswith("_created")}
    assert {key: value for key, value in samples.items() if key not in created} == plain(STATUS)
    assert set(created.values()) == {STARTED}
    counters = {(name.removesuffix("_total"), labels) for name, labels in plain(STATUS) if name.endswith("_total")}
    counters.add(("dmnotid_session_duration_seconds", ()))
    assert {(name.removesuffix("_created"), labels) for name, labels in created} == counters


@pytest.mark.parametrize("parse", [parse_plain, parse_openmetrics])
def test_every_metric_has_help_and_a_type(parse: Parser) -> None:
    text = render(families(STATUS), created=None if parse is parse_plain else STARTED)
    for family in parse(text):
        assert family.documentation.endswith("."), family.name
        assert family.type in ("gauge", "counter", "summary"), family.name


@pytest.mark.parametrize("found", [{}, {"digest-mismatch": 60}, {"made-up": 7, "stale": 1}])
def test_reasons_are_those_of_the_program_when_the_daemon_counts_others(found: dict[str, int]) -> None:
    samples = series(plain(changed(counts={"discarded": found})), "dmnotid_notifications_discarded_total", "reason")
    assert samples == {reason: found.get(reason, 0) for reason in discard_reasons()}
    assert len(samples) > 20


def test_states_and_outcomes_begin_at_0_when_the_daemon_has_none() -> None:
    samples = plain(changed(counts={"states": {}, "closed": {}}, links=[]))
    assert series(samples, "dmnotid_sessions", "state") == dict.fromkeys(PendingState, 0)
    assert series(samples, "dmnotid_sessions_closed_total", "outcome") == dict.fromkeys(Closed, 0)
    assert set(series(samples, "dmnotid_connection_available", "type").values()) == {0}


@pytest.mark.parametrize(
    ("facts", "absent"),
    [
        ({"journal": {"octets": None}}, "dmnotid_journal_bytes"),
        ({"counts": {"oldest_pending": None}}, "dmnotid_session_oldest_pending_timestamp_seconds"),
    ],
    ids=["unreadable journal", "no pending session"],
)
def test_metric_is_absent_when_it_has_no_value(facts: dict[str, Any], absent: str) -> None:
    assert EXPECTED.keys() - {name for name, _ in plain(changed(**facts))} == {absent}


@pytest.mark.parametrize("parse", [parse_plain, parse_openmetrics])
def test_hostile_server_id_is_the_value_of_one_label(parse: Parser) -> None:
    servers = [{"id": HOSTILE, "last_accepted": 7.5, "accepted": 3}]
    text = render(families(changed(servers=servers)), created=None if parse is parse_plain else STARTED)
    samples = read(text, parse)
    assert series(samples, "dmnotid_notifications_accepted_total", "server") == {HOSTILE: 3}
    assert series(samples, "dmnotid_notification_last_accepted_timestamp_seconds", "server") == {HOSTILE: 7.5}
    honest = render(families(STATUS), created=None if parse is parse_plain else STARTED)
    assert {name for name, _ in samples} == {name for name, _ in read(honest, parse)}


def test_one_sample_replaces_those_of_servers_when_they_are_left_out() -> None:
    samples = plain(STATUS, servers=False)
    assert {name for (name, labels) in samples if labels and labels[0][0] == "server"} == set()
    assert samples["dmnotid_notifications_accepted_total", ()] == 910
    assert samples["dmnotid_notification_last_accepted_timestamp_seconds", ()] == NOW - 180


def test_no_time_is_given_when_no_server_was_ever_accepted() -> None:
    servers = [{"id": "dm.example.com", "last_accepted": None, "accepted": 0}]
    for one_each in (True, False):
        names = {name for name, _ in plain(changed(servers=servers), servers=one_each)}
        assert "dmnotid_notification_last_accepted_timestamp_seconds" not in names


PROMTOOL: Final = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool (Debian: prometheus)")
@pytest.mark.parametrize("servers", [True, False])
def test_promtool_finds_nothing_to_criticise(servers: bool) -> None:  # noqa: FBT001 - a parameter of the test's
    text = render(families(STATUS, servers=servers))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
