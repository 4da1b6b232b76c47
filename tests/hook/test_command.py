"""Real commands in process groups of their own: how they start, and how the group is ended."""

import asyncio
import errno
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from dmnotid.config.values import HookConfig
from dmnotid.errors import HookError
from dmnotid.hook import command as command_module
from dmnotid.hook.command import Command, check_kernel, group_is_alive, start_command
from dmnotid.host.log import logger
from tests.hook.runs import WRITE_PIDS, children, is_reaped, pids_of
from tests.support import LogLines, Recorder, as_root, descriptors, eventually, is_alive, wait_until, write_script

FewDescriptors = Callable[[int], AbstractContextManager[None]]

NO_FORMAT = "neither a program for this machine nor a script whose first line is a #! line"

LEAVE_GROUP = "import os, time; os.setpgid(0, os.getpgid(os.getppid())); time.sleep(1000)"
"""Python that puts the leader into the group of its parent."""


def begin(file: Path | str, text: str = "", **more: Any) -> Command:  # noqa: ANN401
    """Start a command whose output is dropped."""
    options = {"kill_after": 60.0, "log": logger, "on_output": lambda *_: None, **more}
    return start_command([str(file)], {"PATH": os.environ["PATH"]}, text, **options)


async def run(file: Path | str, text: str = "", **more: Any) -> Command:  # noqa: ANN401
    """Run a command to its end."""
    async with begin(file, text, **more) as command:
        await command.exited.wait()
    return command


async def end(file: Path, pids: Path, **more: Any) -> Command:  # noqa: ANN401
    """Start a command, wait until it has written its process ids, and end it."""
    async with begin(file, **more) as command:
        await eventually(pids.exists)
        await command.end()
    return command


# Start


async def test_command_gets_its_arguments_environment_input_and_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    environment = {"DMNOTID_SESSION": "1", "DMNOTID_ATTEMPT": "2", "X": ""}
    arguments = [*recorder.command, "", "a b", "$HOME"]
    options: dict[str, Any] = {"kill_after": 60.0, "log": logger, "on_output": lambda *_: None}
    async with start_command(arguments, environment, "facts\n", **options) as command:
        await command.exited.wait()
    (found,) = recorder.runs
    assert (found["argv"], found["environment"], found["stdin"]) == (arguments, environment, "facts\n")
    assert found["cwd"] == "/"
    assert found["group"] == found["pid"]
    # The last one lists the others.
    assert found["descriptors"][:3] == [0, 1, 2]
    assert len(found["descriptors"]) == 4


async def test_input_larger_than_a_pipe_arrives_whole(tmp_path: Path) -> None:
    await run(write_script(tmp_path / "hook", f"cat > {tmp_path}/read"), "x" * 200_000)
    assert (tmp_path / "read").read_text() == "x" * 200_000


async def test_input_that_is_not_read_delays_nothing(tmp_path: Path) -> None:
    assert (await run(write_script(tmp_path / "hook", "exec <&-; exit 5"), "x" * 200_000)).exit_code == 5


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("exit 0", 0),
        ("exit 255", 255),
        ("kill -KILL $$", -signal.SIGKILL),
        ("exec 1>&- 2>&-; exit 3", 3),
        ("exec 1>&- 2>&-; exec sh -c 'exit 9'", 9),
    ],
)
async def test_exit_code_is_the_status_or_the_negative_signal(tmp_path: Path, text: str, code: int) -> None:
    assert (await run(write_script(tmp_path / "hook", text))).exit_code == code


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        ("exit 0", 0o644, "Permission denied"),
        ("#!/nonexistent/interpreter\n", 0o755, "its interpreter (the #! line) or its loader is missing"),
        ("#!\nexit 0", 0o755, NO_FORMAT),
        (None, 0, "No such file or directory"),
    ],
)
async def test_command_that_cannot_be_started_is_named(
    tmp_path: Path, text: str | None, mode: int, problem: str
) -> None:
    if text is not None:
        write_script(tmp_path / "hook", text, mode)
    before = descriptors()
    with pytest.raises(HookError) as caught:
        begin(tmp_path / "hook")
    assert str(caught.value) == f"{tmp_path}/hook: {problem}"
    assert caught.value.component == f"{tmp_path}/hook"
    assert descriptors() == before


async def test_argument_with_a_nul_is_a_problem_of_the_command() -> None:
    with pytest.raises(HookError, match="embedded null byte"):
        begin("/bin/tr\0ue")


async def test_command_without_descriptors_either_runs_to_its_end_or_is_not_started(
    tmp_path: Path, few_descriptors: FewDescriptors
) -> None:
    """For its input, its output, the report of what kept it from starting, or the notice of its exit."""
    mark, before, started = tmp_path / "mark", descriptors(), []
    hook = write_script(tmp_path / "hook", f"echo begun >>{mark}; sleep 0.1; echo ended >>{mark}")
    for free in range(12):
        command = None
        with suppress(HookError), few_descriptors(free):
            command = begin(hook)
        if command is None:
            assert not mark.exists()
        else:
            async with command:
                await command.exited.wait()
            started.append(command.exit_code)
            assert mark.read_text() == "begun\nended\n"
            mark.unlink()
        assert descriptors() == before
    assert children() == []
    assert 0 < len(started) < 12
    assert set(started) == {0}


@pytest.mark.parametrize("working", [0, 1])
async def test_command_whose_output_the_loop_cannot_watch_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, working: int
) -> None:
    """The kernel limits the descriptors in all epoll sets of a user; no test can use them up."""
    before = descriptors()
    refuse_readers(monkeypatch, working)
    with pytest.raises(HookError, match="No space left on device"):
        begin(write_script(tmp_path / "hook", f"touch {tmp_path}/begun"))
    monkeypatch.undo()
    assert children() == []
    assert not (tmp_path / "begun").exists()
    assert descriptors() == before


async def test_command_whose_exit_the_loop_cannot_watch_runs_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: LogLines
) -> None:
    found, before = bytearray(), descriptors()
    refuse_readers(monkeypatch, 2)
    hook = write_script(tmp_path / "hook", "sleep 0.1; echo ended; exit 3")
    async with begin(hook, on_output=lambda _, octets: found.extend(octets)) as command:
        monkeypatch.undo()
        await command.exited.wait()
    assert (command.exit_code, bytes(found)) == (3, b"ended\n")
    assert [line["level"] for line in logged.of("hook polled")] == ["warning"]
    assert children() == []
    assert descriptors() == before


def refuse_readers(monkeypatch: pytest.MonkeyPatch, working: int) -> None:
    """Let the loop watch so many descriptors and no more."""
    loop = asyncio.get_running_loop()
    add_reader, calls = loop.add_reader, itertools.count()

    def refuse(*arguments: Any) -> None:  # noqa: ANN401
        if next(calls) >= working:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add_reader(*arguments)

    monkeypatch.setattr(loop, "add_reader", refuse)


def test_kernel_of_this_machine_has_the_system_calls() -> None:
    check_kernel(HookConfig(("/bin/true",)))


# Output


async def test_output_is_passed_on_while_the_command_runs(tmp_path: Path) -> None:
    found: list[tuple[str, bytes]] = []
    text = f"echo one; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; printf two >&2"

    def take(stream: str, octets: bytes) -> None:
        found.append((stream, octets))

    async with begin(write_script(tmp_path / "hook", text), on_output=take) as command:
        await eventually(lambda: found)
        assert not command.exited.is_set()
        (tmp_path / "go").touch()
        await command.exited.wait()
    assert found == [("stdout", b"one\n"), ("stderr", b"two")]


async def test_output_left_in_the_pipes_is_read_after_the_exit(tmp_path: Path) -> None:
    found = {"stdout": b"", "stderr": b""}

    def take(stream: str, octets: bytes) -> None:
        found[stream] += octets

    text = "head -c 65536 /dev/zero; head -c 65536 /dev/zero >&2"
    async with begin(write_script(tmp_path / "hook", text), on_output=take) as command:
        # The loop has no iteration meanwhile.
        wait_until(lambda: not any(map(is_alive, children())))
        assert not any(found.values())
        await command.exited.wait()
    assert found == {"stdout": bytes(65_536), "stderr": bytes(65_536)}


async def test_command_inherits_output_that_is_not_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    await run(write_script(tmp_path / "hook", "echo one; echo two >&2"), on_output=None)
    assert capfd.readouterr() == ("one\n", "two\n")


@pytest.mark.parametrize("child", ["sleep 1000", "yes"])
async def test_child_that_holds_the_output_is_neither_waited_for_nor_killed(
    tmp_path: Path, pids: Path, child: str
) -> None:
    text = f"{child} & {WRITE_PIDS.format(pids=pids)}; exit 3"
    assert (await run(write_script(tmp_path / "hook", text))).exit_code == 3
    leader, left = pids_of(pids)
    assert is_reaped(leader)
    # `yes` ends by SIGPIPE once the pipe is closed.
    assert child == "yes" or is_alive(left)


# End of the group


@pytest.mark.parametrize(
    ("before", "after", "kill_after", "number"),
    [("", "wait", 60.0, signal.SIGTERM), ("trap '' TERM;", "while :; do sleep 0.05; done", 0.1, signal.SIGKILL)],
    ids=["term", "kill"],
)
async def test_end_reaches_the_whole_group(
    tmp_path: Path, pids: Path, before: str, after: str, kill_after: float, number: signal.Signals
) -> None:
    """By SIGKILL after `kill_after`, if the leader ignores SIGTERM."""
    text = f"{before} sleep 1000 & {WRITE_PIDS.format(pids=pids)}; {after}"
    assert (await end(write_script(tmp_path / "hook", text), pids, kill_after=kill_after)).exit_code == -number
    leader, child = pids_of(pids)
    assert is_reaped(leader)
    await eventually(lambda: not is_alive(child))


async def test_end_kills_a_child_that_ignores_term_and_outlives_the_leader(tmp_path: Path, pids: Path) -> None:
    text = f"trap '' TERM; sleep 1000 & trap - TERM; {WRITE_PIDS.format(pids=pids)}; wait"
    await end(write_script(tmp_path / "hook", text), pids, kill_after=0.1)
    await eventually(lambda: not is_alive(pids_of(pids)[1]))


async def test_end_gives_the_whole_group_time_to_clean_up(tmp_path: Path, pids: Path) -> None:
    """A shell script that waits for its DM client: the shell ends at once, the client logs off from its server."""
    ready, done = tmp_path / "ready", tmp_path / "done"
    text = f"trap 'sleep 0.2; touch {done}; exit 0' TERM; touch {ready}; while :; do sleep 0.02; done"
    client = write_script(tmp_path / "client", text)
    text = f"{client} & while [ ! -e {ready} ]; do sleep 0.01; done; {WRITE_PIDS.format(pids=pids)}; wait"
    await end(write_script(tmp_path / "hook", text), pids)
    assert done.exists()


async def test_end_sends_term_once(tmp_path: Path, pids: Path) -> None:
    count = "while [ $n = 0 ]; do sleep 0.02; done; sleep 0.1; exit $n"
    text = f"n=0; trap 'n=$((n+1))' TERM; {WRITE_PIDS.format(pids=pids)}; {count}"
    assert (await end(write_script(tmp_path / "hook", text), pids)).exit_code == 1


@pytest.mark.parametrize(
    ("ignore", "kill_after", "number"), [("", 60.0, signal.SIGTERM), ("trap '' TERM;", 0.1, signal.SIGKILL)]
)
async def test_end_reaches_a_leader_that_has_left_its_group(
    tmp_path: Path, pids: Path, ignore: str, kill_after: float, number: signal.Signals
) -> None:
    text = f"{ignore} sleep 1000 & {WRITE_PIDS.format(pids=pids)}; exec {sys.executable} -ISc '{LEAVE_GROUP}'"
    async with begin(write_script(tmp_path / "hook", text), kill_after=kill_after) as command:
        await eventually(pids.exists)
        leader, child = pids_of(pids)
        await eventually(lambda: os.getpgid(leader) != leader)
        await command.end()
    assert command.exit_code == -number
    assert is_reaped(leader)
    await eventually(lambda: not is_alive(child))


async def cancelled(task: asyncio.Task[Command], times: int) -> None:
    """Cancel a task so many times, an iteration of the loop apart."""
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_wait_gives_the_command_time_to_clean_up(tmp_path: Path, pids: Path) -> None:
    text = f"trap 'sleep 0.1; touch {tmp_path}/done; exit 0' TERM; {WRITE_PIDS.format(pids=pids)}; while :; do sleep 0.02; done"  # noqa: E501
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(pids.exists)
    await cancelled(task, 1)
    assert (tmp_path / "done").exists()
    assert is_reaped(pids_of(pids)[0])


async def test_second_cancellation_kills_the_command_and_reaps_it(tmp_path: Path, pids: Path, logged: LogLines) -> None:
    text = f"trap '' TERM; sleep 1000 & {WRITE_PIDS.format(pids=pids)}; while :; do sleep 0.05; done"
    before = descriptors()
    task = asyncio.create_task(run(write_script(tmp_path / "hook", text)))
    await eventually(pids.exists)
    await cancelled(task, 2)
    leader, child = pids_of(pids)
    assert is_reaped(leader)
    await eventually(lambda: not is_alive(child))
    assert descriptors() == before
    assert logged.all() == []


@as_root
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
async def test_command_that_cannot_be_ended_is_logged_and_left(
    tmp_path: Path, pids: Path, logged: LogLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_module, "KILL_PATIENCE", 0.1)
    before = descriptors()
    hook = write_script(tmp_path / "hook", f"{WRITE_PIDS.format(pids=pids)}; exec sleep 1000")
    try:
        async with begin(hook, kill_after=0.1) as command:
            await eventually(pids.exists)
            # The command belongs to another user from now on.
            os.setresuid(65_534, 65_534, 0)
            await command.end()
            assert not command.exited.is_set()
    finally:
        os.setresuid(0, 0, 0)
    (leader,) = pids_of(pids)
    refused = logged.of("hook not signalled")
    assert [(line["signal"], line["pid"]) for line in refused] == [("SIGTERM", leader), ("SIGKILL", leader)]
    assert refused[0]["problem"] == "Operation not permitted"
    (line,) = logged.of("hook not ended")
    assert (line["level"], line["pid"]) == ("error", leader)
    assert descriptors() == before
    # The next process that is started reaps it.
    del command
    os.kill(leader, signal.SIGKILL)
    await eventually(lambda: not is_alive(leader))
    await run(write_script(tmp_path / "other", "exit 0"))
    assert is_reaped(leader)


async def test_no_descriptor_and_no_zombie_is_left(tmp_path: Path, pids: Path) -> None:
    texts = ["exit 0", "kill -KILL $$", "head -c 60000 /dev/zero", "exec 1>&- 2>&-; exit 0"]
    texts.append(f"sleep 1000 & {WRITE_PIDS.format(pids=pids)}")
    files = [write_script(tmp_path / f"hook{number}", text) for number, text in enumerate(texts)]
    await run(files[0])
    before = descriptors()
    for file in files:
        await run(file)
    assert descriptors() == before
    assert children() == []


def test_group_is_alive_until_its_last_process_has_ended() -> None:
    argv = ["/bin/sh", "-c", "sleep 1000 & echo $!; wait"]
    with subprocess.Popen(argv, process_group=0, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        assert group_is_alive(leader.pid)
        leader.kill()
        wait_until(lambda: not is_alive(leader.pid))
        assert group_is_alive(leader.pid)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda: not group_is_alive(leader.pid))
