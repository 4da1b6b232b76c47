"""`dmnotid status`: the text for what a daemon reports, and the exit statuses."""

from typing import Any

import pytest

from dmnotid.cli.status import check
from dmnotid.cli.status_text import describe, list_servers, print_text, status_of
from tests.cli.examples import DISCARD, DONE, NOW, STATUS, changed, server

pytestmark = pytest.mark.usefixtures("utc")


def test_daemon_without_a_problem_is_described() -> None:
    assert list(describe(STATUS)) == [
        "dmnotid 0.1.0 runs since 2026-11-29 16:41:20 (3 h 12 min), pid 441",
        "listens   [::]:2948 (dmnotid.socket): 1,003 received, 0 lost, 12,403 refused as junk",
        "hook      /etc/dmnotid/start-dm-session: trusted",
        "journal   /var/lib/dmnotid/journal.sqlite3: 217 kB, 909 remembered, oldest 2026-11-26 19:53:20",
        "clock     believed",
        "links     eth0 wireline (since 16:45:00); wwan0 mobile: up, no address",
    ]


@pytest.mark.parametrize(
    ("facts", "lines"),
    [
        (
            {"problems": [{"place": "/etc/dmnotid/dmnotid.yaml:4:5: servers[1].secret", "message": "is missing"}]},
            ["PROBLEM   /etc/dmnotid/dmnotid.yaml:4:5: servers[1].secret: is missing"],
        ),
        (
            {
                "config": {"reload_refused": {"at": NOW - 60, "problems": 9}},
                "problems": [
                    {"place": "f:4:5: servers[1].secret", "message": "is missing"},
                    {"place": "journal", "message": "x"},
                ],
            },
            [
                "PROBLEM   reload refused 19:52:20, the configuration of 16:43:20 is in force:",
                "          f:4:5: servers[1].secret: is missing (1 of 9, dmnotid check has all)",
                "PROBLEM   journal: x",
            ],
        ),
        (
            {"problems": [{"place": "", "message": "doors: /run/door: Permission denied"}]},
            ["PROBLEM   doors: /run/door: Permission denied"],
        ),
        (
            {"journal": {"octets": None, "remembered": None, "oldest": None, "errors": 3}},
            ["journal   /var/lib/dmnotid/journal.sqlite3: 3 errors"],
        ),
        (
            {"journal": {"octets": None, "remembered": None, "oldest": None}},
            ["journal   /var/lib/dmnotid/journal.sqlite3"],
        ),
        ({"stopping": True}, ["dmnotid 0.1.0 stops; it ran since 2026-11-29 16:41:20 (3 h 12 min), pid 441"]),
        (
            {"hook": {"startable": False, "problem": "No such file"}},
            ["hook      /etc/dmnotid/start-dm-session: cannot be started"],
        ),
        ({"clock": {"believed": False}}, ["clock     not believed"]),
        ({"links": []}, ["links     none"]),
    ],
)  # fmt: skip
def test_fact_that_differs_is_described(facts: dict[str, Any], lines: list[str]) -> None:
    usual = list(describe(STATUS))
    assert [line for line in describe(changed(**facts)) if line not in usual] == lines


def test_servers_have_their_last_news_and_what_is_pending() -> None:
    assert list(list_servers(STATUS, every=False)) == [
        "Counts since the start, 3 h 12 min ago:",
        "SERVER          HEARD           ACCEPTED  DISCARDED  PENDING  LAST SESSION",
        "dm.example.com  2 h 11 min ago         5          1        1  done 19:52:20, exit 0",
        "acme.example    3 min ago            905         62        0  -",
        "third.example   never                  0          0        0  -",
        "discarded: digest-mismatch 60 (last 19:48:20 from 127.0.0.1:5000), truncated 24, unknown-server 1",
        "still signed with the former secret: acme.example",
        "",
        "1 session pending for 2 h 12 min: 1 waiting (dmnotid sessions)",
    ]


def test_of_many_servers_those_with_news_are_listed_unless_all_are_wanted() -> None:
    old = NOW - 86_401
    facts = {"last_accepted": old, "last_discard": DISCARD | {"at": old}, "last_session": DONE | {"closed": old}}
    quiet = [server(f"quiet{number}.example", **facts) for number in range(20)]
    news = [
        server("heard.example", last_accepted=NOW - 86_399),
        server("discarded.example", last_discard=DISCARD),
        server("pending.example", pending=1),
        server("ended.example", last_session=DONE),
    ]
    status = changed(servers=[*quiet, *news], started=NOW - 86_400)
    listed = list(list_servers(status, every=False))
    assert [line.split()[0] for line in listed[:6]] == ["SERVER", *(it["id"] for it in news), "20"]
    assert listed[5] == "20 more without news in the last day (--all)"
    assert sum(".example" in line for line in list_servers(status, every=True)) == 24


def test_text_of_the_network_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[2J\nb"
    links = [STATUS["links"][1] | {"interface": evil, "why": evil}]
    last = server(evil, last_discard=DISCARD | {"source": evil}, last_session=DONE | {"outcome": evil})
    problems = [{"place": evil, "message": evil}]
    status = changed(links=links, servers=[last], hook={"what": evil}, problems=problems)
    print_text(status, every=True)
    assert capsys.readouterr().out.count("\\x1b[2J") >= 6
    assert check(lambda: status) == 1
    assert capsys.readouterr().out.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("facts", "status"),
    [({}, 0), ({"problems": [{"place": "hook", "message": "No such file"}]}, 1), ({"stopping": True}, 3)],
)
def test_exit_status_is_that_of_the_daemons_state(facts: dict[str, Any], status: int) -> None:
    assert status_of(changed(**facts)) == status


FIGURES = "pending=1 accepted=910c discarded=85c lost=0c failed=1c"


@pytest.mark.parametrize(
    ("facts", "status", "line"),
    [
        ({}, 0, f"OK 1 session pending for 2 h 12 min|{FIGURES}"),
        (
            {"problems": [{"place": "control", "message": "read | write"}]},
            1,
            f"WARNING control: read / write; 1 session pending for 2 h 12 min|{FIGURES}",
        ),
        (
            {
                "problems": [{"place": "f:4:5", "message": "servers[1].secret: is missing"}],
                "config": {**STATUS["config"], "reload_refused": {"at": NOW, "problems": 9}},
            },
            1,
            f"WARNING reload refused: f:4:5: servers[1].secret: is missing; 1 session pending for 2 h 12 min|{FIGURES}",
        ),
        (
            {
                "problems": [{"place": "", "message": "listen: [::]:1: Permission denied"}],
                "config": {**STATUS["config"], "reload_refused": {"at": NOW, "problems": 1}},
            },
            1,
            f"WARNING reload refused: listen: [::]:1: Permission denied; 1 session pending for 2 h 12 min|{FIGURES}",
        ),
        (
            {"problems": [{"place": "hook", "message": "No such file"}], "hook": {"startable": False}},
            2,
            f"CRITICAL hook: No such file; 1 session pending for 2 h 12 min|{FIGURES}",
        ),
        (
            {"problems": [{"place": "journal", "message": "disk I/O error"}]},
            2,
            f"CRITICAL journal: disk I/O error; 1 session pending for 2 h 12 min|{FIGURES}",
        ),
        ({"stopping": True}, 2, f"CRITICAL the daemon is stopping; 1 session pending for 2 h 12 min|{FIGURES}"),
    ],
)
def test_check_is_one_line_with_figures(
    facts: dict[str, Any], status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(lambda: changed(**facts)) == status
    assert capsys.readouterr().out == f"{line}\n"


def test_check_of_an_answer_that_lacks_figures_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(lambda: {name: value for name, value in STATUS.items() if name != "counts"}) == 3
    assert capsys.readouterr().out.startswith("UNKNOWN the daemon's answer is not as this dmnotid expects it (")
