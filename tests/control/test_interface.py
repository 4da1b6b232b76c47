"""The methods of the control socket: parameters as the IDL has them, typed errors, permissions, followers."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dmnotid.control
from dmnotid.cli.follow import line_of
from dmnotid.control.interface import MAX_UNREAD_RECORDS, PARAMETERS
from tests.control.plain import WARNING, connected, serving
from tests.support import IS_ROOT, LogLines, eventually

SESSIONS = "io.dmnotid.Sessions"
SERVICE = "org.varlink.service"


async def ask(path: Path, method: str, parameters: object = None, **flags: object) -> Any:  # noqa: ANN401 - JSON
    async with connected(path) as client:
        client.call(method, parameters, **flags)
        return await client.reply()


async def answers(path: Path, method: str, parameters: object = None) -> list[Any]:
    """Return the parameters of all replies."""
    found = []
    async with connected(path) as client:
        client.call(method, parameters, more=True)
        while True:
            reply = await client.reply()
            found.append(reply["parameters"])
            if not reply.get("continues"):
                return found


# The interface description


def idl(name: str) -> str:
    return (Path(dmnotid.control.__file__).parent / f"{name}.varlink").read_text()


@pytest.mark.parametrize("interface", ["io.dmnotid", SERVICE])
def test_parameters_are_those_of_the_idl(interface: str) -> None:
    kinds = {int: "int", float: "float", str: "string", bool: "bool", list: "[]string"}
    ours = {
        name.rpartition(".")[2]: {field: kinds[kind] for field, kind in fields.items()}
        for name, fields in PARAMETERS.items()
        if name.startswith(f"{interface}.")
    }
    methods = re.findall(r"(?m)^method (\w+)\((.*?)\) ->", idl(interface))
    assert ours == {
        name: {it.partition(":")[0].strip(): it.partition(":")[2].strip(" ?") for it in fields.split(",") if it}
        for name, fields in methods
    }


def test_page_has_the_idl() -> None:
    page = Path(dmnotid.control.__file__).parents[2] / "docs/control.md"
    assert f"```text\n{idl('io.dmnotid')}```\n" in page.read_text()


async def test_info_and_description_are_served(tmp_path: Path) -> None:
    async with serving(tmp_path / "control"):
        info = (await ask(tmp_path / "control", f"{SERVICE}.GetInfo"))["parameters"]
        assert (info["product"], info["version"]) == ("dmnotid", dmnotid.__version__)
        for interface in info["interfaces"]:
            reply = await ask(tmp_path / "control", f"{SERVICE}.GetInterfaceDescription", {"interface": interface})
            assert reply["parameters"]["description"] == idl(interface)


# Requests that do not fit


@pytest.mark.parametrize(
    ("method", "parameters", "error", "facts"),
    [
        ("io.dmnotid.Nothing", {}, "MethodNotFound", {"method": "io.dmnotid.Nothing"}),
        ("io.other.Status", {}, "InterfaceNotFound", {"interface": "io.other"}),
        ("Status", {}, "InterfaceNotFound", {"interface": ""}),
        (f"{SERVICE}.GetInterfaceDescription", {"interface": "../x"}, "InterfaceNotFound", {"interface": "../x"}),
        (f"{SERVICE}.GetInterfaceDescription", {}, "InvalidParameter", {"parameter": "interface"}),
        ("io.dmnotid.Status", {"all": True}, "InvalidParameter", {"parameter": "all"}),
        ("io.dmnotid.Cancel", {}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Cancel", {"session": None}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Cancel", {"session": "8"}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Cancel", {"session": True}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Cancel", {"session": 8.0}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Cancel", {"session": 2**63}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Retry", {}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Retry", {"all": False}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Retry", {"session": 1, "server": "a"}, "InvalidParameter", {"parameter": "session"}),
        ("io.dmnotid.Retry", {"all": 1}, "InvalidParameter", {"parameter": "all"}),
        ("io.dmnotid.Retry", {"server": ["x"]}, "InvalidParameter", {"parameter": "server"}),
        (SESSIONS, {"states": "done"}, "InvalidParameter", {"parameter": "states"}),
        (SESSIONS, {"states": ["done", 1]}, "InvalidParameter", {"parameter": "states"}),
        (SESSIONS, {"since": "yesterday"}, "InvalidParameter", {"parameter": "since"}),
        (SESSIONS, {"since": False}, "InvalidParameter", {"parameter": "since"}),
        (SESSIONS, {"since": 2**63}, "InvalidParameter", {"parameter": "since"}),
        (SESSIONS, {"since": -(10**400)}, "InvalidParameter", {"parameter": "since"}),
    ],
)
async def test_request_that_does_not_fit_the_idl_is_refused(
    tmp_path: Path, method: str, parameters: object, error: str, facts: object
) -> None:
    async with serving(tmp_path / "control") as operations:
        reply = await ask(tmp_path / "control", method, parameters)
        assert reply == {"error": f"{SERVICE}.{error}", "parameters": facts}
        assert operations.calls == []


@pytest.mark.parametrize("method", ["Sessions", "Discards", "Follow"])
async def test_list_without_more_is_refused(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path / "control"):
        reply = await ask(tmp_path / "control", f"io.dmnotid.{method}")
        assert reply == {"error": f"{SERVICE}.ExpectedMore", "parameters": {}}


# Answers


async def test_status_has_its_lists_whole(tmp_path: Path) -> None:
    async with serving(tmp_path / "control"):
        status = (await ask(tmp_path / "control", "io.dmnotid.Status"))["parameters"]
    assert status == {"version": 1, "servers": [{"id": f"server {number}"} for number in range(200)]}


async def test_sessions_get_the_filters_and_skip_those_that_do_not_match(tmp_path: Path) -> None:
    async with serving(tmp_path / "control") as operations:
        assert await answers(tmp_path / "control", SESSIONS) == [
            {"session": {"session": 1}},
            {"session": {"session": 2}},
        ]
        nothing = dict.fromkeys(("session", "server", "states", "since"))
        assert len(await answers(tmp_path / "control", SESSIONS, nothing)) == 2
        wanted = {"session": 3, "server": "a", "states": ["done", "failed"], "since": 5}
        await answers(tmp_path / "control", SESSIONS, wanted)
        assert operations.calls == [*[(None, None, None, None)] * 2, (3, "a", {"done", "failed"}, 5)]


@pytest.mark.parametrize("listed", [[], [None, None]])
async def test_list_without_entries_has_one_empty_reply(tmp_path: Path, listed: list[None]) -> None:
    async with serving(tmp_path / "control") as operations:
        operations.listed = listed
        assert await answers(tmp_path / "control", SESSIONS) == [{}]
        assert await answers(tmp_path / "control", "io.dmnotid.Discards", {"reason": "stale"}) == [{}]


async def test_errors_have_their_types_and_facts(tmp_path: Path) -> None:
    path, cancel = tmp_path / "control", "io.dmnotid.Cancel"
    async with serving(path) as operations:
        assert (await ask(path, cancel, {"session": 8}))["parameters"] == {"was": "waiting"}
        closed = {"error": "io.dmnotid.NotPending", "parameters": {"session": 7, "state": "done"}}
        assert await ask(path, cancel, {"session": 7}) == closed
        not_kept = {"error": "io.dmnotid.NotKept", "parameters": {"session": 6, "state": "failed"}}
        assert await ask(path, cancel, {"session": 6}) == not_kept
        assert await ask(path, cancel, {"session": 9}) == {
            "error": "io.dmnotid.NoSuchSession",
            "parameters": {"session": 9},
        }
        problem = {"place": "/etc/dmnotid/dmnotid.yaml:4:5: servers[1].secret", "message": "is missing"}
        assert (await ask(path, "io.dmnotid.Reload"))["parameters"] == {"warnings": [problem]}
        operations.problems = (WARNING, WARNING._replace(line=0, path="", message=f"{WARNING.file}: is too large"))
        refused = [problem, {"place": "/etc/dmnotid/dmnotid.yaml", "message": "is too large"}]
        reply = await ask(path, "io.dmnotid.Reload")
        assert reply == {"error": "io.dmnotid.Refused", "parameters": {"problems": refused}}


# Permissions


async def test_change_carries_the_process_that_asked(tmp_path: Path) -> None:
    by = f"pid {os.getpid()}, uid {os.geteuid()}"
    async with serving(tmp_path / "control") as operations:
        await ask(tmp_path / "control", "io.dmnotid.Retry", {"server": "dm.example"})
        await ask(tmp_path / "control", "io.dmnotid.Retry", {"session": 4})
        await ask(tmp_path / "control", "io.dmnotid.Retry", {"all": True})
        await ask(tmp_path / "control", "io.dmnotid.Cancel", {"session": 8})
        await ask(tmp_path / "control", "io.dmnotid.Reload")
        assert operations.calls == [(None, "dm.example", by), (4, None, by), (None, None, by), (8, by), by]


AS_NOBODY = """
import json, os, sys
sys.path.insert(0, {root!r})
from dmnotid.control.client import Failed, call, stream
os.setgroups([])
os.setgid({gid})
os.setuid(65534)
found = [sorted(call({path!r}, "Status")), len(list(stream({path!r}, "Sessions")))]
for method, parameters in (("Retry", {{"all": True}}), ("Cancel", {{"session": 8}}), ("Reload", {{}})):
    try:
        call({path!r}, method, parameters)
    except Failed as error:
        found.append(error.error)
print(json.dumps(found))
"""


@pytest.mark.root
@pytest.mark.skipif(not IS_ROOT, reason="needs root, to be another user")
async def test_member_of_the_group_may_read_and_change_nothing(tmp_path: Path, logged: LogLines) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        directory.chmod(directory.stat().st_mode | 0o011)
    path = tmp_path / "control"
    async with serving(path) as operations:
        os.chown(path, -1, 65_534)
        script = AS_NOBODY.format(root=str(Path(__file__).parents[2]), path=str(path), gid=65_534)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        assert output.decode().strip() == (
            '[["servers", "version"], 2, "NotPermitted", "NotPermitted", "NotPermitted"]'
        )
        assert operations.calls == [(None, None, None, None)]
    lines = logged.of("control request refused")
    assert [(line["method"], line["pid"]) for line in lines] == [
        (method, process.pid) for method in ("Retry", "Cancel", "Reload")
    ]


# Followers


async def test_follower_gets_records_as_they_are_made_that_match(tmp_path: Path) -> None:
    async with serving(tmp_path / "control") as operations, connected(tmp_path / "control") as client:
        client.call("io.dmnotid.Follow", {"levels": ["warning"], "server": "a", "session": 4}, more=True)
        await eventually(lambda: operations.followers)
        operations.log(event="one", level="info", server_id="a", session=4)
        operations.log(event="two", level="warning", server_id="b", session=4)
        operations.log(event="three", level="warning", server_id="a")
        operations.log(event="four", level="warning", server_id="a", session=4)
        reply = await client.reply()
        assert reply["continues"]
        assert reply["parameters"]["event"]["event"] == "four"
        operations.log(event="five", level="warning", server_id="a", session=4)
        assert (await client.reply())["parameters"]["event"]["event"] == "five"


async def test_follower_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    async with serving(tmp_path / "control") as operations:
        async with connected(tmp_path / "control") as client:
            client.call("io.dmnotid.Follow", more=True)
            await eventually(lambda: operations.followers)
        await eventually(lambda: not operations.followers)


async def test_follower_that_is_behind_is_told_how_many_it_missed(tmp_path: Path) -> None:
    # No client is cut off for its patience: a stopped terminal may go on later.
    async with serving(tmp_path / "control", patience=0.05) as operations, connected(tmp_path / "control") as client:
        client.call("io.dmnotid.Follow", more=True)
        await eventually(lambda: operations.followers)
        for number in range(MAX_UNREAD_RECORDS + 7):
            operations.log(event="one", level="info", number=number)
        events = [(await client.reply())["parameters"]["event"] for _ in range(MAX_UNREAD_RECORDS + 1)]
        assert [event["number"] for event in events[:-1]] == list(range(MAX_UNREAD_RECORDS))
        assert (events[-1]["event"], events[-1]["count"]) == ("records missed", 7)
        assert line_of(events[-1]).endswith(" warning: Records were left out because they were not read: 7")
        operations.log(event="two", level="info")
        assert (await client.reply())["parameters"]["event"]["event"] == "two"
