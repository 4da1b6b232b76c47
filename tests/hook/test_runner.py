"""One run of the session starter: real processes, each row of hook.md."""

import asyncio
import errno
import itertools
import json
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config.values import HookConfig
from dmnotid.errors import JournalError
from dmnotid.hook.facts import VERSION, build_facts, build_input
from dmnotid.hook.processes import Identity
from dmnotid.hook.runner import (
    EXIT_REFUSED,
    MAX_LINE_OCTETS,
    MAX_OUTPUT_OCTETS,
    Hook,
    OutputLog,
    _until_ended,
)
from dmnotid.hook.turn import LOGGED
from dmnotid.policy.sessions import Connection, Outcome, Result, SessionRequest, SessionStart
from dmnotid.wire.notification import MAX_OPTION_LENGTH, ConnectionType, decode_notification
from tests.support import (
    IS_ROOT,
    OPEN_ID,
    SERVER_ID,
    LogLines,
    Recorder,
    descriptors,
    eventually,
    is_alive,
    package,
    wait_until,
    write_script,
)

ROOT = Path(__file__).parent.parent.parent
SENT_AT = 1_800_000_000
RECEIVED_AT = 1_800_000_001.23449
needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root, to give files away")


def start(*, attempt: int = 2, connection: Connection | None = None, **more: Any) -> SessionStart:  # noqa: ANN401
    """Make a try as the dispatcher does."""
    octets = package(more.pop("notification_id", 4_661), **{"sent_at": SENT_AT, **more})
    notification = decode_notification(octets)
    server_id = notification.server_id or SERVER_ID
    request = SessionRequest(12, server_id, notification, "192.0.2.1:40000", RECEIVED_AT, 1, 0.0, 1e9)
    return SessionStart(request, connection or Connection(ConnectionType.WIRELESS, "wlan0"), attempt)


RICH: dict[str, Any] = {
    "preferred": [ConnectionType.WIRELESS, ConnectionType.MOBILE, ConnectionType.ANY],
    "requested_mos": [1, 2, 65_535],
    "cached_mos": [(3, bytes.fromhex("deadbeef")), (0, bytes(4))],
    "unknown": [(6, b""), (9, b"\0\xff")],
}


def config(command: list[str], **more: Any) -> HookConfig:  # noqa: ANN401
    return HookConfig(tuple(command), **{"timeout": 60.0, "kill_after": 60.0, **more})


async def run(file: Path | list[str], try_: SessionStart | None = None, **more: Any) -> Outcome:  # noqa: ANN401
    """Run a hook to its end."""
    command = file if isinstance(file, list) else [str(file)]
    return await Hook(config(command, **more)).run(try_ or start())


def output(logged: LogLines, stream: str = "stdout") -> list[str]:
    return [line["line"] for line in logged.of("hook output") if line["stream"] == stream]


# What it is told


async def test_arguments_environment_and_input_are_exactly_those_of_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5.3.4: the session starter is told all that the notification asks for."""
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "never handed on")
    monkeypatch.setenv("PATH", "/nowhere:" + os.environ["PATH"])
    recorder = Recorder(tmp_path)
    arguments = [
        "--server={server_id}",
        "{notification_id}/{connection}/{interface}/{attempt}",
        "{other} {{x}}",
        "",
        "a b",
    ]
    outcome = await run(recorder.command + arguments, start(**RICH), environment={"DM_PROFILE": "ad hoc", "LANG": "C"})
    assert outcome == Outcome(Result.DONE, "exit 0")
    (found,) = recorder.runs
    assert found["argv"] == [
        *recorder.command, "--server=dm.example", "4661/wireless/wlan0/2", "{other} {{x}}", "", "a b",
    ]  # fmt: skip
    assert found["environment"] == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C",
        "HOME": pwd.getpwuid(os.geteuid()).pw_dir,
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
    assert found["stdin"].endswith("}\n")
    assert found["stdin"].count("\n") == 1
    assert json.loads(found["stdin"]) == {
        "version": VERSION,
        "session": 12,
        "attempt": 2,
        "server_id": "dm.example",
        "notification_id": 4661,
        "connection": "wireless",
        "interface": "wlan0",
        "preferred_connections": ["wireless", "mobile", "any"],
        "requested_mos": [1, 2, 65_535],
        "cached_mos": [[3, "deadbeef"], [0, "00000000"]],
        "unknown_options": [[6, ""], [9, "00ff"]],
        "sent_at": SENT_AT,
        "received_at": 1_800_000_001.234,
        "signed": True,
        "source": "192.0.2.1:40000",
    }
    assert found["cwd"] == "/"
    assert found["group"] == found["pid"], "it leads a process group of its own"
    assert found["descriptors"][:3] == [0, 1, 2]
    assert len(found["descriptors"]) == 4, "and the one that lists them: nothing of the daemon's is handed on"


async def test_what_an_unsigned_notification_without_options_tells(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    await run(recorder.command, start(attempt=1, server_id=OPEN_ID, connection=Connection(ConnectionType.ANY, "lo")))
    (found,) = recorder.runs
    told = {key: value for key, value in found["environment"].items() if key.startswith("DMNOTID_")}
    assert len(told) == 13
    assert {key for key, value in told.items() if not value} == {
        f"DMNOTID_{name}" for name in ("PREFERRED", "REQ_MO", "REQ_MO_CV", "SENT_AT")
    }
    assert (told["DMNOTID_SIGNED"], told["DMNOTID_CONNECTION"], told["DMNOTID_ATTEMPT"]) == ("0", "any", "1")
    assert found["environment"]["LANG"] == "C.UTF-8"
    facts = json.loads(found["stdin"])
    assert (facts["sent_at"], facts["signed"], facts["connection"]) == (None, False, "any")
    assert facts["preferred_connections"] == facts["requested_mos"] == facts["cached_mos"] == []
    assert facts["unknown_options"] == []


async def test_a_placeholder_is_replaced_once_and_by_nothing_that_a_shell_would_read(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    nasty = "{attempt} $(id) 'x' \N{SNOWMAN}"
    interface = Connection(ConnectionType.MOBILE, "{server_id}")
    await run(
        [*recorder.command, "{server_id}", "{interface}"],
        start(server_id=nasty, secret=b"x" * 16, connection=interface),
    )
    (found,) = recorder.runs
    assert found["argv"][1:] == [nasty, "{server_id}"]
    assert found["environment"]["DMNOTID_SERVER_ID"] == nasty
    assert json.loads(found["stdin"])["server_id"] == nasty


def big() -> SessionStart:
    """Make a notification as large as one can be: its JSON is larger than a pipe holds."""
    return start(unknown=[(number, os.urandom(MAX_OPTION_LENGTH)) for number in range(6, 22)])


async def test_input_larger_than_a_pipe_arrives_whole(tmp_path: Path) -> None:
    recorder, try_ = Recorder(tmp_path), big()
    assert len(build_input(build_facts(try_))) > 2 * 65_536
    assert (await run(recorder.command, try_)).result is Result.DONE
    assert recorder.runs[0]["stdin"] == build_input(build_facts(try_))


async def test_input_that_nobody_reads_delays_nothing(tmp_path: Path) -> None:
    async with asyncio.timeout(30):
        assert await run(write_script(tmp_path / "hook", "exit 0"), big()) == Outcome(Result.DONE, "exit 0")
        outcome = await run(write_script(tmp_path / "hook2", "exec <&-; exit 5"), big())
    assert outcome == Outcome(Result.FAILED, "exit 5")


# How it ends


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("exit 0", Outcome(Result.DONE, "exit 0")),
        (f"exit {EXIT_REFUSED}", Outcome(Result.REFUSED, "exit 78")),
        ("exit 1", Outcome(Result.FAILED, "exit 1")),
        ("exit 255", Outcome(Result.FAILED, "exit 255")),
        ("kill -KILL $$", Outcome(Result.FAILED, "killed by SIGKILL")),
        ("kill -HUP $$", Outcome(Result.FAILED, "killed by SIGHUP")),
        (f"kill -{signal.SIGRTMIN + 3} $$", Outcome(Result.FAILED, f"killed by signal {signal.SIGRTMIN + 3}")),
        ("exec 1>&- 2>&-; exit 0", Outcome(Result.DONE, "exit 0")),
        ("exec 1>&- 2>&-; exec sh -c 'exit 9'", Outcome(Result.FAILED, "exit 9")),
    ],
)
async def test_outcomes(tmp_path: Path, text: str, outcome: Outcome) -> None:
    assert EXIT_REFUSED == 78
    assert await run(write_script(tmp_path / "hook", text)) == outcome


def missing(directory: Path) -> Path:
    return directory / "missing"


def not_executable(directory: Path) -> Path:
    return write_script(directory / "hook", "exit 0", mode=0o644)


def bad_interpreter(directory: Path) -> Path:
    return write_script(directory / "hook", "#!/nonexistent/interpreter\n")


def no_program(directory: Path) -> Path:
    return write_script(directory / "hook", "#!\nexit 0")


def a_directory(directory: Path) -> Path:
    return directory


def a_socket(directory: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "s"))
    (directory / "s").chmod(0o755)
    return directory / "s"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (missing, "missing: No such file or directory"),
        (not_executable, "hook: not executable"),
        (bad_interpreter, "hook: its interpreter (the #! line) or its loader is missing"),
        (no_program, "hook: Exec format error"),
        (a_directory, "not a regular file"),
        (a_socket, "not a regular file"),
    ],
)
async def test_what_cannot_be_started_is_a_failed_try(
    tmp_path: Path, logged: LogLines, make: Callable[[Path], Path], why: str
) -> None:
    file = make(tmp_path)
    await run(write_script(tmp_path / "warm", "exit 0"))
    before = descriptors()
    outcome = await run(file)
    assert outcome.result is Result.FAILED
    assert outcome.detail.startswith(f"not started: {file}")
    assert why in outcome.detail
    (line,) = logged.of("hook not started")
    assert (line["level"], line["session"]) == ("error", 12)
    assert line["problem"] in outcome.detail
    assert descriptors() == before


@pytest.mark.parametrize("working", [0, 1, 2])
async def test_a_hook_that_can_not_be_watched_is_not_left_alone(
    tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch, working: int
) -> None:
    """As where the loop's epoll set may hold no more: for the process's own descriptor, or for one of its pipes."""
    await run(write_script(tmp_path / "warm", "exit 0"))
    before = descriptors()
    loop = asyncio.get_running_loop()
    add_reader, calls = loop.add_reader, itertools.count()

    def refuse(*arguments: Any) -> None:  # noqa: ANN401
        if next(calls) >= working:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add_reader(*arguments)

    monkeypatch.setattr(loop, "add_reader", refuse)
    outcome = await run(write_script(tmp_path / "hook", f"sleep 1000 & {CHILDREN.format(pids=pids)}; wait"))
    monkeypatch.undo()
    assert outcome.result is Result.FAILED
    assert outcome.detail.startswith(f"not started: {tmp_path}/hook: ")
    assert outcome.detail.endswith("No space left on device")
    assert descriptors() == before
    assert LOGGED.share == 512
    assert children() == []


async def test_a_hook_without_a_descriptor_is_not_left_alone(
    tmp_path: Path, pids: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> int:
        wait_until(pids.exists)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    await run(write_script(tmp_path / "warm", "exit 0"))
    before = descriptors()
    monkeypatch.setattr(os, "pidfd_open", refuse)
    outcome = await run(write_script(tmp_path / "hook", f"sleep 1000 & {CHILDREN.format(pids=pids)}; wait"))
    assert outcome.result is Result.FAILED
    leader, child = pids_of(pids)
    assert outcome.detail.startswith(f"not started: {tmp_path}/hook: ")
    assert outcome.detail.endswith("Too many open files")
    assert is_reaped(leader)
    await eventually(lambda: not is_alive(child))
    assert descriptors() == before


async def test_a_hook_that_goes_away_after_it_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmnotid.hook.runner.check_hook", lambda _: None)
    outcome = await run(missing(tmp_path))
    assert outcome == Outcome(Result.FAILED, f"not started: {tmp_path}/missing: No such file or directory")


async def test_no_memory_for_a_hook_is_a_failed_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(subprocess, "Popen", refuse)
    outcome = await run(write_script(tmp_path / "hook", "exit 0"))
    assert outcome == Outcome(Result.FAILED, f"not started: {tmp_path}/hook: MemoryError()")


# What it says


def children() -> list[int]:
    """Return the processes that this one has started and not asked about."""
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


async def test_both_streams_are_logged_line_by_line(tmp_path: Path, logged: LogLines) -> None:
    text = "echo one; echo two >&2; printf 'three\\nfour'; printf five >&2; echo; printf '\\033[31m\\000\\377\\n'"
    assert (await run(write_script(tmp_path / "hook", text))).result is Result.DONE
    assert output(logged) == ["one", "three", "four", "\x1b[31m\0\\xff"]
    assert output(logged, "stderr") == ["two", "five"]
    lines = logged.of("hook output")
    assert {line["session"] for line in lines} == {12}
    assert {line["level"] for line in lines} == {"info"}
    assert all("cut" not in line for line in lines)


async def test_output_comes_while_the_hook_runs(tmp_path: Path, logged: LogLines) -> None:
    text = f"echo started; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo ended"
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(lambda: output(logged) == ["started"])
    assert not task.done()
    (tmp_path / "go").touch()
    assert (await task).result is Result.DONE
    assert output(logged) == ["started", "ended"]


async def test_what_is_in_the_pipes_at_the_end_is_logged_too(tmp_path: Path, logged: LogLines) -> None:
    text = "seq 1 6000; seq 1 6000 >&2"
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await asyncio.sleep(0)
    wait_until(lambda: children() and not any(map(is_alive, children())))  # the loop has no turn meanwhile
    assert logged.of("hook output") == []
    assert (await task).result is Result.DONE
    assert output(logged) == output(logged, "stderr") == [str(number) for number in range(1, 6_001)]


async def test_a_long_line_is_cut(tmp_path: Path, logged: LogLines) -> None:
    text = f"head -c {MAX_LINE_OCTETS} /dev/zero | tr '\\0' x; echo; head -c 5000 /dev/zero | tr '\\0' y; echo; echo z"
    await run(write_script(tmp_path / "hook", text))
    lines = logged.of("hook output")
    assert [line["line"] for line in lines] == ["x" * 1_024, "y" * 1_024, "z"]
    assert [line.get("cut") for line in lines] == [None, True, None]


async def test_a_run_is_cut_and_that_is_said_once(tmp_path: Path, logged: LogLines) -> None:
    text = "for n in 1 2; do yes 123456789012345 | head -n 6000; yes abcdefg | head -n 3000 >&2; done; exit 3"
    assert await run(write_script(tmp_path / "hook", text)) == Outcome(Result.FAILED, "exit 3")
    said = [line for line in logged.of("hook output") if "output ends here" in line["line"]]
    assert len(said) == 1
    assert said[0]["line"] == "output ends here: 65536 octets of one run are logged"
    assert said[0]["cut"] is True
    assert logged.of("hook output")[-1] == said[0]
    octets = sum(len(line["line"]) + 1 for line in logged.of("hook output")[:-1])
    assert MAX_OUTPUT_OCTETS - 32 <= octets <= MAX_OUTPUT_OCTETS + 2
    logged.truncate(0)
    await run(write_script(tmp_path / "hook2", "echo again"))
    assert output(logged) == ["again"], "each run has its own bound"


async def test_a_flood_is_neither_held_nor_held_up(tmp_path: Path, logged: LogLines) -> None:
    text = "head -c 30000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 0"
    file = write_script(tmp_path / "hook", text)
    await run(file)
    tracemalloc.start()
    try:
        assert await run(file) == Outcome(Result.DONE, "exit 0")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(logged.getvalue()) < 100_000


async def test_many_floods_at_once_leave_the_loop_its_turns(tmp_path: Path, logged: LogLines) -> None:
    """A line for each two octets: together they give no more of them at a turn than one would alone."""
    hook = write_script(tmp_path / "hook", "yes a | head -c 6000 & yes b | head -c 6000 >&2; wait")
    runs = asyncio.gather(*(run(hook) for _ in range(12)))
    turns = [0]
    while not runs.done():
        await asyncio.sleep(0)
        turns.append(logged.tell())
    assert {outcome.detail for outcome in await runs} == {"exit 0"}
    lines = len(logged.of("hook output"))
    assert lines == 12 * 6_000
    assert max(after - before for before, after in itertools.pairwise(turns)) * lines / turns[-1] < 2 * 512
    assert LOGGED.share == 512, "all are closed"


def emitted(*fed: tuple[str, bytes]) -> list[tuple[str, str, bool]]:
    lines: list[tuple[str, str, bool]] = []
    log = OutputLog(lambda stream, line, cut: lines.append((stream, line, cut)))
    for stream, octets in fed:
        log.feed(stream, octets)
    log.flush()
    log.flush()
    return lines


def test_lines_are_put_together_from_pieces_and_empty_ones_left_out() -> None:
    pieces = [("stdout", b"a"), ("stderr", b"x"), ("stdout", b"b\n\nc"), ("stderr", b"y\n"), ("stdout", b"\xe2\x98")]
    assert emitted(*pieces, ("stdout", b"\x83")) == [
        ("stdout", "ab", False),
        ("stderr", "xy", False),
        ("stdout", "c\u2603", False),
    ]


@pytest.mark.parametrize("size", [1_000, MAX_OUTPUT_OCTETS - 1, MAX_OUTPUT_OCTETS + 1, 3 * MAX_OUTPUT_OCTETS])
def test_the_bound_of_a_run_is_exact(size: int) -> None:
    octets = b"123456789\n" * 20_000
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)]
    lines = emitted(*[("stdout", piece) for piece in pieces])
    assert "".join(f"{line}\n" for _, line, _ in lines[:-1]) == octets[:MAX_OUTPUT_OCTETS].decode() + "\n"
    assert lines[-1] == ("stdout", "output ends here: 65536 octets of one run are logged", True)


def test_nothing_fed_nothing_said() -> None:
    assert emitted() == []
    assert emitted(("stdout", b"")) == []


@pytest.mark.parametrize("size", [1, 7, 1_000, 4_096])
def test_cuts_do_not_depend_on_the_pieces(size: int) -> None:
    octets = b"x" * 1_024 + b"\n" + b"y" * 1_025 + b"\n" + b"z" * 3_000
    lines = emitted(*[("stdout", octets[at : at + size]) for at in range(0, len(octets), size)])
    assert lines == [
        ("stdout", "x" * 1_024, False), ("stdout", "y" * 1_024, True), ("stdout", "z" * 1_024, True),
    ]  # fmt: skip


# Time-outs, groups and what is left behind

CHILDREN = "echo $$ $! > {pids}.new; mv {pids}.new {pids}"


def is_reaped(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def pids_of(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()]


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """A file for the process ids of a hook and its child; what of them still runs at the end is killed."""
    file = tmp_path / "pids"
    yield file
    if file.exists():
        for pid in pids_of(file):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


async def test_a_time_out_ends_the_whole_group_by_term(tmp_path: Path, pids: Path) -> None:
    text = f"sleep 1000 & {CHILDREN.format(pids=pids)}; wait"
    outcome = await run(write_script(tmp_path / "hook", text), timeout=0.3)
    assert outcome == Outcome(Result.FAILED, "timed out after 0.3 s, killed by SIGTERM")
    leader, child = pids_of(pids)
    assert is_reaped(leader), "reaped"
    await eventually(lambda: not is_alive(child))


async def test_what_ignores_term_is_killed(tmp_path: Path, pids: Path) -> None:
    text = f"trap '' TERM; sleep 1000 & {CHILDREN.format(pids=pids)}; while :; do sleep 0.05; done"
    outcome = await run(write_script(tmp_path / "hook", text), timeout=0.3, kill_after=0.1)
    assert outcome == Outcome(Result.FAILED, "timed out after 0.3 s, killed by SIGKILL")
    leader, child = pids_of(pids)
    assert is_reaped(leader)
    await eventually(lambda: not is_alive(child))


async def test_a_child_that_ignores_term_is_killed_too(tmp_path: Path, pids: Path) -> None:
    text = f"(trap '' TERM; exec sleep 1000) & {CHILDREN.format(pids=pids)}; wait"
    await run(write_script(tmp_path / "hook", text), timeout=0.5, kill_after=0.1)
    await eventually(lambda: not is_alive(pids_of(pids)[1]))


async def test_a_leader_that_has_left_its_group_is_ended_with_it(tmp_path: Path, pids: Path) -> None:
    leave = "import os, time; os.setpgid(0, os.getpgid(os.getppid())); time.sleep(1000)"
    text = f"sleep 1000 & {CHILDREN.format(pids=pids)}; exec {sys.executable} -ISc '{leave}'"
    outcome = await run(write_script(tmp_path / "hook", text), timeout=0.5)
    assert outcome == Outcome(Result.FAILED, "timed out after 0.5 s, killed by SIGTERM")
    leader, child = pids_of(pids)
    assert is_reaped(leader)
    await eventually(lambda: not is_alive(child))


async def test_a_leader_that_has_left_its_group_and_ignores_term_is_killed(tmp_path: Path) -> None:
    leave = "import os, signal, time; signal.signal(15, 1); os.setpgid(0, os.getpgid(os.getppid())); time.sleep(1000)"
    hook = write_script(tmp_path / "hook", f"exec {sys.executable} -ISc '{leave}'")
    outcome = await run(hook, timeout=0.5, kill_after=0.1)
    assert outcome == Outcome(Result.FAILED, "timed out after 0.5 s, killed by SIGKILL")


async def test_term_comes_once(tmp_path: Path, logged: LogLines) -> None:
    text = "trap 'echo term' TERM; echo ready; for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done"
    await run(write_script(tmp_path / "hook", text), timeout=0.2)
    assert output(logged).count("term") == 1


async def test_a_hook_that_tidies_up_after_term_may_say_how_it_went(tmp_path: Path, logged: LogLines) -> None:
    text = "trap 'echo tidy; exit 7' TERM; while :; do sleep 0.02; done"
    outcome = await run(write_script(tmp_path / "hook", text), timeout=0.3)
    assert outcome == Outcome(Result.FAILED, "timed out after 0.3 s, exit 7")
    assert output(logged) == ["tidy"]


async def test_the_group_has_kill_after_to_tidy_up(tmp_path: Path, pids: Path) -> None:
    """A shell script that waits for its DM client: the shell ends at once, the client says good-bye to its server."""
    tidy = f"trap 'sleep 0.2; touch {tmp_path}/tidy; exit 0' TERM; while :; do sleep 0.02; done"
    text = f"{write_script(tmp_path / 'client', tidy)} & {CHILDREN.format(pids=pids)}; wait"
    outcome = await run(write_script(tmp_path / "hook", text), timeout=0.5)
    assert outcome.detail == "timed out after 0.5 s, killed by SIGTERM"
    await eventually(lambda: not is_alive(pids_of(pids)[1]))
    assert (tmp_path / "tidy").exists()


async def test_a_grandchild_that_holds_the_output_delays_nothing(tmp_path: Path, pids: Path, logged: LogLines) -> None:
    text = f"sleep 1000 & {CHILDREN.format(pids=pids)}; echo done; exit 0"
    async with asyncio.timeout(30):
        assert await run(write_script(tmp_path / "hook", text)) == Outcome(Result.DONE, "exit 0")
    leader, child = pids_of(pids)
    assert is_alive(child), "neither waited for nor killed"
    assert is_reaped(leader)
    assert output(logged) == ["done"]


async def test_a_grandchild_that_floods_the_output_delays_nothing(tmp_path: Path, pids: Path) -> None:
    text = f"yes & {CHILDREN.format(pids=pids)}; sleep 0.05; exit 0"
    async with asyncio.timeout(30):
        assert await run(write_script(tmp_path / "hook", text)) == Outcome(Result.DONE, "exit 0")


async def test_cancelling_ends_the_group(tmp_path: Path, pids: Path) -> None:
    text = f"sleep 1000 & {CHILDREN.format(pids=pids)}; wait"
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(pids.exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    leader, child = pids_of(pids)
    assert is_reaped(leader)
    await eventually(lambda: not is_alive(child))


async def test_cancelling_gives_time_to_tidy_up(tmp_path: Path, logged: LogLines) -> None:
    text = "trap 'sleep 0.1; echo tidy; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(lambda: output(logged) == ["ready"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert output(logged) == ["ready", "tidy"]


async def break_off(task: asyncio.Task[Outcome]) -> None:
    """Cancel a run, and cancel the wait for its end too."""
    task.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_twice_kills_what_ignores_term(tmp_path: Path, pids: Path) -> None:
    text = f"trap '' TERM; sleep 1000 & {CHILDREN.format(pids=pids)}; while :; do sleep 0.05; done"
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(pids.exists)
    await break_off(task)
    leader, child = pids_of(pids)
    await eventually(lambda: is_reaped(leader))
    await eventually(lambda: not is_alive(child))


async def test_what_a_broken_off_wait_leaves_is_reaped_when_it_ends(
    tmp_path: Path, pids: Path, logged: LogLines
) -> None:
    hook = write_script(tmp_path / "hook", f"trap '' TERM; {CHILDREN.format(pids=pids)}; while :; do sleep 0.05; done")
    before = descriptors()
    task = asyncio.create_task(run(hook))
    await eventually(pids.exists)
    await break_off(task)
    await eventually(lambda: descriptors() == before)
    assert is_reaped(pids_of(pids)[0])
    assert children() == []
    assert logged.of("hook can't be ended") == []


@pytest.mark.root
@needs_root
async def test_what_can_not_be_ended_blocks_nothing_is_said_and_reaped_at_last(
    tmp_path: Path, pids: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmnotid.hook.runner.KILLED_AFTER", 0.3)
    hook = write_script(tmp_path / "hook", f"{CHILDREN.format(pids=pids)}; exec sleep 1000")
    before = descriptors()
    task = asyncio.create_task(run(hook))
    await eventually(pids.exists)
    (leader,) = pids_of(pids)
    os.setresuid(65_534, 65_534, 0)  # the hook is another user's now
    try:
        began = time.monotonic()
        await break_off(task)
        assert time.monotonic() - began < 0.1
        assert {line["signal"] for line in logged.of("hook can't be signalled")} == {"SIGTERM", "SIGKILL"}
        assert logged.of("hook can't be ended") == []
        await eventually(lambda: logged.of("hook can't be ended"))
    finally:
        os.setresuid(0, 0, 0)
    assert logged.of("hook can't be ended")[0]["pid"] == leader
    assert is_alive(leader)
    os.kill(leader, signal.SIGKILL)
    await eventually(lambda: descriptors() == before)
    assert is_reaped(leader)
    assert len(logged.of("hook can't be ended")) == 1


async def test_nothing_is_left_open_and_no_zombie_either(tmp_path: Path, pids: Path) -> None:
    scripts = [
        "exit 0",
        "exit 3",
        "kill -KILL $$",
        "head -c 60000 /dev/zero",
        "exec 1>&- 2>&-; exit 0",
        f"sleep 1000 & {CHILDREN.format(pids=pids)}",
        "exec sleep 1000",
    ]
    files = [write_script(tmp_path / f"hook{number}", text) for number, text in enumerate(scripts)]
    await run(files[0])
    before = descriptors()
    for file in files:
        await run(file, timeout=0.3)
    assert descriptors() == before
    assert LOGGED.share == 512
    assert [pid for pid in children() if not is_alive(pid)] == []


async def test_the_home_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name service may be far away, and the loop waits for it."""
    looked_up: list[int] = []

    def look_up(user: int) -> pwd.struct_passwd:
        looked_up.append(user)
        return pwd.struct_passwd(("dm", "x", user, 0, "", "/srv/dm", "/bin/false"))

    monkeypatch.setattr(pwd, "getpwuid", look_up)
    recorder = Recorder(tmp_path)
    hook = Hook(config(recorder.command))
    for attempt in (1, 2):
        await hook.run(start(attempt=attempt))
    assert looked_up == [os.geteuid()]
    assert [found["environment"]["HOME"] for found in recorder.runs] == ["/srv/dm"] * 2


async def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    hook = Hook(config([str(tmp_path / "hook")]))
    monkeypatch.undo()
    assert hook._home == "/"


async def test_a_long_look_is_followed_by_a_long_pause() -> None:
    looks: list[float] = []

    def lives() -> bool:
        time.sleep(0.03)  # many processes
        looks.append(time.monotonic())
        return len(looks) < 2

    async with asyncio.timeout(30):
        await _until_ended(lives, 60)
    assert looks[1] - looks[0] >= 20 * 0.03


async def test_several_hooks_at_once(tmp_path: Path, logged: LogLines) -> None:
    recorder = Recorder(
        tmp_path, "print(environment['DMNOTID_ATTEMPT']); sys.exit(int(environment['DMNOTID_ATTEMPT']))"
    )
    hook = Hook(config(recorder.command))
    outcomes = await asyncio.gather(*(hook.run(start(attempt=number)) for number in range(1, 9)))
    assert [outcome.detail for outcome in outcomes] == [f"exit {number}" for number in range(1, 9)]
    assert sorted(output(logged)) == [str(number) for number in range(1, 9)]


async def test_the_loop_goes_on_while_a_hook_runs(tmp_path: Path) -> None:
    task = asyncio.create_task(run(write_script(tmp_path / "hook", "sleep 0.2")))
    turns = 0
    while not task.done():
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 10
    assert (await task).result is Result.DONE


def test_the_documented_example_of_the_input_has_the_keys_that_the_hook_gets() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "hook.md").read_text(encoding="utf-8")
    example = re.search(r'\{"version".*?\}', page, re.DOTALL)
    assert example is not None
    assert list(json.loads(example[0])) == list(json.loads(build_input(build_facts(start()))))


# What a former daemon left behind


LEAVE_BEHIND = """
import asyncio, os, sys
from pathlib import Path
from tests.hook.test_runner import config, start
from dmnotid.hook.runner import Hook
def note(process):
    Path(sys.argv[2] + ".new").write_text(process)
    os.rename(sys.argv[2] + ".new", sys.argv[2])
asyncio.run(Hook(config([sys.argv[1]])).run(start(), note))
"""


@dataclass
class Left:
    """What a killed daemon left: the hook's number, and what was noted of it."""

    pid: int
    note: str


def killed_daemon(hook: Path, pids: Path) -> Left:
    """Start a hook from a process that is killed then."""
    note = hook.with_suffix(".note")
    daemon = subprocess.Popen([sys.executable, "-c", LEAVE_BEHIND, str(hook), str(note)], cwd=ROOT)
    wait_until(lambda: note.exists() and pids.exists() and pids.read_text().endswith("\n"))
    daemon.kill()
    daemon.wait()
    left = Left(pids_of(pids)[0], note.read_text())
    assert is_alive(left.pid)
    return left


async def end_left_over(*notes: str, **more: Any) -> None:  # noqa: ANN401
    await Hook(config(["/bin/true"], **more)).end_left_over(notes)


async def test_a_command_is_told_as_soon_as_it_is_started(tmp_path: Path, pids: Path) -> None:
    told: list[str] = []
    hook = write_script(tmp_path / "hook", f"echo $$ > {pids}; sleep 0.1")
    task = asyncio.create_task(Hook(config([str(hook)])).run(start(), told.append))
    await asyncio.sleep(0)
    assert len(told) == 1, "nothing was waited for"
    assert (await task).result is Result.DONE
    assert [Identity.parse(text) for text in told] == [Identity.parse(told[0])]
    assert int(told[0].split()[1]) == pids_of(pids)[0]


async def test_what_is_not_started_is_not_told(tmp_path: Path) -> None:
    told: list[str] = []
    await Hook(config([str(missing(tmp_path))])).run(start(), told.append)
    assert told == []


@pytest.mark.parametrize("error", [JournalError("disk full"), ValueError("a bug"), OSError(28, "No space")])
async def test_a_hook_that_can_not_be_noted_runs_all_the_same(
    tmp_path: Path, logged: LogLines, error: Exception
) -> None:
    def refuse(_: str) -> None:
        raise error

    hook = Hook(config([str(write_script(tmp_path / "hook", "exit 3"))]))
    assert await hook.run(start(), refuse) == Outcome(Result.FAILED, "exit 3")
    (line,) = logged.of("hook not noted")
    assert (line["level"], line["session"]) == ("error", 12)
    assert str(error) in json.dumps(line)
    assert ("exception" in line) is isinstance(error, ValueError), "a bug shows its traceback"


async def test_what_a_killed_daemon_left_running_is_ended(tmp_path: Path, pids: Path, logged: LogLines) -> None:
    hook = write_script(tmp_path / "hook", f"sleep 1000 & echo $$ $! > {pids}; wait")
    left = killed_daemon(hook, pids)
    _, child = pids_of(pids)
    before = descriptors()
    await end_left_over(left.note, left.note)
    assert not is_alive(left.pid)
    assert not is_alive(child), "its whole group"
    assert logged.of("hooks left over")[0]["groups"] == [left.pid]
    assert descriptors() == before


async def test_another_environment_hides_nothing_that_is_left(tmp_path: Path, pids: Path) -> None:
    run_on = f"exec env -i /bin/sh -c 'echo $$ > {pids}; sleep 1000; :'"
    left = killed_daemon(write_script(tmp_path / "hook", run_on), pids)
    await end_left_over(left.note)
    assert not is_alive(left.pid)


async def test_what_is_left_and_ignores_term_is_killed(tmp_path: Path, pids: Path) -> None:
    hook = write_script(tmp_path / "hook", f"trap '' TERM; echo $$ > {pids}; while :; do sleep 1; done")
    left = killed_daemon(hook, pids)
    await end_left_over(left.note, kill_after=0.1)
    assert not is_alive(left.pid)


async def test_a_child_that_outlives_a_left_hook_is_killed(tmp_path: Path, pids: Path) -> None:
    """The leader ends at once, and its number may be another's by and by: its child holds the group's."""
    ignore = "(trap '' TERM; while :; do sleep 1; done)"
    hook = write_script(tmp_path / "hook", f"{ignore} & echo $$ $! > {pids}; wait")
    left = killed_daemon(hook, pids)
    _, child = pids_of(pids)
    await end_left_over(left.note, kill_after=0.6)
    assert not is_alive(left.pid)
    await eventually(lambda: not is_alive(child))


async def test_what_is_not_exactly_what_was_noted_is_let_be(tmp_path: Path, pids: Path, logged: LogLines) -> None:
    hook = write_script(tmp_path / "hook", f"echo $$ > {pids}; exec sleep 1000")
    left = killed_daemon(hook, pids)
    boot, pid, started_at = left.note.split()
    try:
        another_boot = "01234567-89ab-cdef-0123-456789abcdef"
        others = [f"{another_boot} {pid} {started_at}", f"{boot} {pid} {int(started_at) + 1}", f"{boot} {pid}", pid, ""]
        await end_left_over(*others)
        assert is_alive(left.pid)
        assert logged.all() == []
    finally:
        os.kill(left.pid, signal.SIGKILL)


async def test_a_child_that_an_ended_hook_left_behind_is_let_be(tmp_path: Path, pids: Path) -> None:
    """Only what still runs as a hook would run beside the next try."""
    told: list[str] = []
    hook = write_script(tmp_path / "hook", f"sleep 1000 & echo $! > {pids}")
    assert (await Hook(config([str(hook)])).run(start(), told.append)).result is Result.DONE
    (child,) = pids_of(pids)
    await end_left_over(*told)
    assert is_alive(child)


async def test_a_cancelled_wait_for_what_is_left_kills_it(tmp_path: Path, pids: Path) -> None:
    hook = write_script(tmp_path / "hook", f"trap '' TERM; echo $$ > {pids}; while :; do sleep 1; done")
    left = killed_daemon(hook, pids)
    before = descriptors()
    ending = asyncio.ensure_future(end_left_over(left.note))
    await asyncio.sleep(0.1)
    ending.cancel()
    await asyncio.wait([ending])
    await eventually(lambda: not is_alive(left.pid))
    assert descriptors() == before


@pytest.mark.root
@needs_root
async def test_what_is_left_and_may_not_be_signalled_is_said(
    tmp_path: Path, pids: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmnotid.hook.runner.KILLED_AFTER", 0.1)
    left = killed_daemon(write_script(tmp_path / "hook", f"echo $$ > {pids}; exec sleep 1000"), pids)
    os.setresuid(65_534, 65_534, 0)
    try:
        await end_left_over(left.note, kill_after=0.1)
    finally:
        os.setresuid(0, 0, 0)
    assert [line["signal"] for line in logged.of("hook can't be signalled")] == ["SIGTERM", "SIGKILL"]
    assert logged.of("hook can't be signalled")[0]["problem"] == "Operation not permitted"
    assert logged.of("hook can't be ended")[0]["group"] == left.pid
    assert is_alive(left.pid)
