"""One run of the session starter: real processes, each row of docs/hook.md."""

import asyncio
import json
import signal
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from dmnotid.config.values import HookConfig
from dmnotid.hook.facts import build_environment, build_input, find_home, session_facts
from dmnotid.hook.output import LEFT_OUT
from dmnotid.hook.runner import EXIT_REFUSED, Hook, describe_exit
from dmnotid.policy.sessions import Connection, Outcome, Result
from dmnotid.wire.notification import ConnectionType
from tests.hook.runs import LARGE, RICH, children, output, run, start
from tests.support import SERVER_ID, TIME_OUTS, LogLines, Recorder, descriptors, eventually, write_script

# What the hook gets


async def test_arguments_environment_and_input_are_exactly_those_of_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5.3.4: the session starter receives all that the notification asks for."""
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "not inherited")
    recorder, try_, more = Recorder(tmp_path), start(**RICH), {"DM_PROFILE": "ad hoc"}
    arguments = ["--server={server_id}", "{notification_id}/{connection}/{interface}/{attempt}", "{other}"]
    assert await run(recorder.command + arguments, try_, environment=more) == Outcome(Result.DONE, "exit 0")
    (found,) = recorder.runs
    facts = session_facts(try_)
    assert found["argv"] == [*recorder.command, "--server=dm.example", "4661/wireless/wlan0/2", "{other}"]
    assert found["environment"] == build_environment(facts, more, find_home())
    assert found["stdin"] == build_input(facts)
    assert json.loads(found["stdin"]) == facts


async def test_values_from_the_network_are_not_read_by_a_shell(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    nasty = "{attempt} $(id) 'x' \N{SNOWMAN}"
    try_ = start(server_id=nasty, secret=b"x" * 16, connection=Connection(ConnectionType.MOBILE, "{server_id}"))
    await run([*recorder.command, "{server_id}", "{interface}"], try_)
    (found,) = recorder.runs
    assert found["argv"][1:] == [nasty, "{server_id}"]
    assert found["environment"]["DMNOTID_SERVER_ID"] == nasty
    assert json.loads(found["stdin"])["server_id"] == nasty


async def test_facts_of_the_largest_notification_arrive_whole(tmp_path: Path) -> None:
    recorder, try_ = Recorder(tmp_path), start(**LARGE)
    assert (await run(recorder.command, try_)).result is Result.DONE
    assert recorder.runs[0]["stdin"] == build_input(session_facts(try_))


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
    ],
)
async def test_outcome_follows_from_the_exit_status(tmp_path: Path, text: str, outcome: Outcome) -> None:
    assert await run(write_script(tmp_path / "hook", text)) == outcome


def test_signal_without_a_name_is_described_by_its_number() -> None:
    assert describe_exit(-(signal.SIGRTMIN + 3)) == f"killed by signal {signal.SIGRTMIN + 3}"


def missing(directory: Path) -> Path:
    return directory / "missing"


def not_executable(directory: Path) -> Path:
    return write_script(directory / "hook", "exit 0", mode=0o644)


def writable(directory: Path) -> Path:
    return write_script(directory / "hook", "exit 0", mode=0o777)


def bad_interpreter(directory: Path) -> Path:
    return write_script(directory / "hook", "#!/nonexistent/interpreter\n")


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
        (writable, "hook: writable by others: chmod go-w "),
        (bad_interpreter, "hook: its interpreter '/nonexistent/interpreter' (the #! line) is missing"),
        (a_directory, "not a regular file"),
        (a_socket, "not a regular file"),
    ],
)
async def test_hook_that_cannot_be_started_is_not_a_try(
    tmp_path: Path, logged: LogLines, make: Callable[[Path], Path], why: str
) -> None:
    file = make(tmp_path)
    await run(write_script(tmp_path / "warm", "exit 0"))
    before = descriptors()
    outcome = await run(file)
    assert outcome.result is Result.NOT_STARTED
    assert outcome.detail.startswith(str(file))
    assert why in outcome.detail
    assert logged.all() == []
    assert descriptors() == before


async def test_path_is_checked_before_each_run(tmp_path: Path) -> None:
    file = write_script(tmp_path / "hook", "exit 0")
    hook = Hook(HookConfig((str(file),)))
    assert (await hook.run(start())).result is Result.DONE
    file.chmod(0o757)
    assert "writable by others" in (await hook.run(start())).detail
    file.chmod(0o755)
    assert (await hook.run(start())).result is Result.DONE


# Output


async def test_both_streams_are_logged_while_the_hook_runs(tmp_path: Path, logged: LogLines) -> None:
    text = f"echo one; printf 'two\\nthree' >&2; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; printf four"
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(lambda: output(logged) == ["one"] and output(logged, "stderr") == ["two"])
    (tmp_path / "go").touch()
    assert (await task).result is Result.DONE
    assert output(logged) == ["one", "four"]
    assert output(logged, "stderr") == ["two", "three"]
    facts = {"session": 12, "server_id": SERVER_ID, "notification_id": 4_661, "attempt": 2}
    assert all(line["level"] == "info" and line.items() >= facts.items() for line in logged.of("hook output"))


async def test_each_run_has_a_limit_of_its_own(tmp_path: Path, logged: LogLines) -> None:
    hook = write_script(tmp_path / "hook", "yes 123456789012345 | head -n 6000; exit 3")
    for _ in range(2):
        assert (await run(hook)).detail == "exit 3"
        assert output(logged) == [*(384 * ["123456789012345"]), LEFT_OUT, *(128 * ["123456789012345"])]
        logged.seek(0)
        logged.truncate()


async def test_flood_of_output_is_neither_held_in_memory_nor_held_up(tmp_path: Path, logged: LogLines) -> None:
    file = write_script(tmp_path / "hook", "head -c 6000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 0")
    await run(file)
    tracemalloc.start()
    try:
        assert await run(file) == Outcome(Result.DONE, "exit 0")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(logged.getvalue()) < 100_000


# Time-out and stop


async def test_hook_that_times_out_gets_term(tmp_path: Path) -> None:
    outcome = await run(write_script(tmp_path / "hook", "exec sleep 1000"), timeout=0.1)
    assert outcome == Outcome(Result.FAILED, "timed out after 0.1 s, killed by SIGTERM")
    assert children() == []


async def test_hook_that_ignores_term_is_killed_after_kill_after(tmp_path: Path) -> None:
    # What this process ignores its children ignore from their start.
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        outcome = await run(write_script(tmp_path / "hook", "exec sleep 1000"), timeout=0.1, kill_after=0.1)
    finally:
        signal.signal(signal.SIGTERM, former)
    assert outcome == Outcome(Result.FAILED, "timed out after 0.1 s, killed by SIGKILL")
    assert children() == []


async def test_exit_status_after_a_time_out_is_part_of_the_outcome(tmp_path: Path, logged: LogLines) -> None:
    hook = write_script(tmp_path / "hook", "trap 'echo tidy; exit 0' TERM; while :; do sleep 0.02; done")
    for timeout in TIME_OUTS:
        outcome = await run(hook, timeout=timeout)
        if output(logged):
            break
    assert outcome == Outcome(Result.FAILED, f"timed out after {timeout:g} s, exit 0", "tidy")
    assert output(logged) == ["tidy"]


async def test_cancelled_run_gives_the_hook_time_to_clean_up(tmp_path: Path, logged: LogLines) -> None:
    text = "trap 'sleep 0.1; echo tidy; exit 0' TERM; echo ready; while :; do sleep 0.02; done"
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(lambda: output(logged) == ["ready"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert output(logged) == ["ready", "tidy"]


async def timed_out(hook: Path, logged: LogLines) -> "asyncio.Task[Outcome]":
    """Run a hook that writes "term" at TERM and goes on, until its time-out."""
    for timeout in TIME_OUTS:
        task = asyncio.create_task(run(hook, timeout=timeout))
        # It ends if TERM came before its trap.
        await eventually(lambda task=task: output(logged) or task.done())  # type: ignore[misc]
        if not task.done():
            break
    assert output(logged) == ["term"]
    return task


async def test_stop_does_not_shorten_the_time_that_a_time_out_gave(tmp_path: Path, logged: LogLines) -> None:
    text = f"trap 'echo term' TERM; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; echo tidy"
    task = await timed_out(write_script(tmp_path / "hook", text), logged)
    task.cancel()
    # A cancelled task that killed the hook would be done after these.
    for _ in range(10):
        await asyncio.sleep(0)
    (tmp_path / "go").touch()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert output(logged) == ["term", "tidy"]


async def test_second_cancellation_after_a_time_out_kills_the_hook(tmp_path: Path, logged: LogLines) -> None:
    text = "trap 'echo term' TERM; while :; do sleep 0.02; done"
    task = await timed_out(write_script(tmp_path / "hook", text), logged)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []


async def test_several_hooks_run_at_once(tmp_path: Path, logged: LogLines) -> None:
    text = f"echo $DMNOTID_ATTEMPT; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; exit $DMNOTID_ATTEMPT"
    hook = Hook(HookConfig((str(write_script(tmp_path / "hook", text)),)))
    runs = asyncio.gather(*(hook.run(start(attempt=number)) for number in range(1, 9)))
    await eventually(lambda: sorted(output(logged)) == [str(number) for number in range(1, 9)])
    (tmp_path / "go").touch()
    assert [outcome.detail for outcome in await runs] == [f"exit {number}" for number in range(1, 9)]
