"""Facts of a try, and the arguments, environment and input built from them."""

import json
import os
import pwd
import re
from pathlib import Path

import pytest

from dmnotid.hook.facts import (
    PATH,
    VERSION,
    build_arguments,
    build_environment,
    build_input,
    find_home,
    package_facts,
    session_facts,
)
from dmnotid.policy.sessions import Connection
from dmnotid.wire.notification import ConnectionType, decode_notification
from tests.hook.runs import RICH, SENT_AT, start
from tests.support import OPEN_ID, SECRET, as_root, package

ROOT = Path(__file__).parents[2]

FACTS = {
    "version": VERSION,
    "session": 12,
    "attempt": 2,
    "notification_id": 4_661,
    "server_id": "dm.example",
    "preferred_connections": ["wireless", "mobile", "any"],
    "requested_mos": [1, 2, 65_535],
    "cached_mos": [[3, "deadbeef"], [0, "00000000"]],
    "sent_at": SENT_AT,
    "signed": True,
    "unknown_options": [[6, ""], [9, "00ff"]],
    "server_id_from": "given",
    "connection": "wireless",
    "interface": "wlan0",
    "received_at": 1_800_000_001.234,
    "source": "192.0.2.1:40000",
}


def test_facts_have_every_field_of_the_notification() -> None:
    """5.3, 5.3.2, 5.3.3, 5.3.4: the session starter receives all that the notification asks for."""
    assert session_facts(start(**RICH)) == FACTS


def test_facts_of_an_unsigned_notification_without_options() -> None:
    facts = session_facts(start(server_id=OPEN_ID))
    assert (facts["sent_at"], facts["signed"]) == (None, False)
    for key in ("preferred_connections", "requested_mos", "cached_mos", "unknown_options"):
        assert facts[key] == []


def test_discovered_server_is_named_if_the_package_names_none() -> None:
    """5.3: the hook learns whether SERVER-ID was given or discovered."""
    octets = package(server_id=None, secret=SECRET)
    assert package_facts(decode_notification(octets))["server_id"] is None
    facts = session_facts(start(server_id=None, secret=SECRET))
    assert (facts["server_id"], facts["server_id_from"]) == ("dm.example", "discovered")


def test_input_is_one_line_of_json() -> None:
    text = build_input(session_facts(start(**RICH, server_id="\N{SNOWMAN}", secret=SECRET)))
    assert text.endswith("}\n")
    assert text.count("\n") == 1
    assert text.isascii()
    assert json.loads(text) == {**FACTS, "server_id": "\N{SNOWMAN}"}


def test_input_has_the_keys_of_the_documented_example() -> None:
    page = (ROOT / "docs" / "hook.md").read_text(encoding="utf-8")
    example = re.search(r'\{"version".*?\}', page, re.DOTALL)
    assert example is not None
    assert list(json.loads(example[0])) == list(session_facts(start()))


@pytest.mark.parametrize(
    ("argument", "built"),
    [
        ("--server={server_id}", "--server=dm.example"),
        ("{notification_id}/{connection}/{interface}/{attempt}", "4661/wireless/wlan0/2"),
        ("{attempt}{attempt}", "22"),
        ("{{attempt}}", "{2}"),
        ("{other} {{x}} {} {session}", "{other} {{x}} {} {session}"),
        ("${attempt}", "${attempt}"),
        ("", ""),
        ("a b", "a b"),
    ],
)
def test_placeholders_inside_an_argument_are_replaced(argument: str, built: str) -> None:
    assert build_arguments(["/bin/hook", argument], FACTS) == ["/bin/hook", built]


def test_placeholder_in_a_replaced_value_is_left_alone() -> None:
    assert build_arguments(["{server_id}"], {**FACTS, "server_id": "{attempt} $(id)"}) == ["{attempt} $(id)"]


def test_environment_is_exactly_that_of_the_contract() -> None:
    more = {"DM_PROFILE": "ad hoc", "LANG": "C", "DMNOTID_SIGNED": "0"}
    assert build_environment(FACTS, more, "/srv/dm") == {
        "PATH": PATH,
        "LANG": "C",
        "HOME": "/srv/dm",
        "DM_PROFILE": "ad hoc",
        "DMNOTID_SERVER_ID": "dm.example",
        "DMNOTID_NOTIFICATION_ID": "4661",
        "DMNOTID_CONNECTION": "wireless",
        "DMNOTID_INTERFACE": "wlan0",
        "DMNOTID_PREFERRED": "wireless mobile any",
        "DMNOTID_REQ_MO": "1 2 65535",
        "DMNOTID_REQ_MO_CV": "3:deadbeef 0:00000000",
        "DMNOTID_SENT_AT": "1800000000",
        "DMNOTID_RECEIVED_AT": "1800000001.234",
        "DMNOTID_SIGNED": "1",
        "DMNOTID_SOURCE": "192.0.2.1:40000",
        "DMNOTID_ATTEMPT": "2",
        "DMNOTID_SESSION": "12",
    }


def test_environment_has_empty_variables_for_options_that_are_missing() -> None:
    connection = Connection(ConnectionType.ANY, "lo")
    facts = session_facts(start(attempt=1, server_id=OPEN_ID, connection=connection))
    environment = build_environment(facts, {}, "/")
    empty = {name for name, value in environment.items() if not value}
    assert empty == {f"DMNOTID_{name}" for name in ("PREFERRED", "REQ_MO", "REQ_MO_CV", "SENT_AT")}
    assert (environment["DMNOTID_SIGNED"], environment["DMNOTID_CONNECTION"]) == ("0", "any")
    assert environment["LANG"] == "C.UTF-8"


def test_home_is_that_of_the_user() -> None:
    assert find_home() == pwd.getpwuid(os.geteuid()).pw_dir


@as_root
def test_home_of_a_user_that_is_not_listed_is_the_root_directory() -> None:
    os.seteuid(4_000_000)
    try:
        assert find_home() == "/"
    finally:
        os.seteuid(0)
