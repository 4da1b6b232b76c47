"""The event loop of the daemon, and the signals that its child processes inherit."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from dmnotid.host.loop import loop_factory, run_to_completion
from tests.support import LogLines, further


def test_asyncio_is_used_if_uvloop_is_missing(monkeypatch: pytest.MonkeyPatch, logged: LogLines) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert loop_factory() is asyncio.new_event_loop
    (line,) = logged.of("uvloop missing")
    assert line["level"] == "warning"


def test_uvloop_is_used_if_it_is_there(logged: LogLines) -> None:
    uvloop = pytest.importorskip("uvloop")
    assert loop_factory() is uvloop.new_event_loop
    assert not logged.all()


def test_exception_of_the_coroutine_is_raised() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_to_completion(fail())


def run_python(code: str, *, parent: str = "") -> str:
    """Run code in a new process, after another process has prepared its signals."""
    prepare = f"import os, signal, sys\n{parent}\nos.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    done = subprocess.run(
        [sys.executable, "-c", prepare, code], capture_output=True, text=True, check=True, env=os.environ
    )
    return done.stdout


IGNORING = """
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1): signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
"""


def test_ignored_and_blocked_signals_of_the_parent_are_reset() -> None:
    code = """
from dmnotid.host.loop import reset_signals
reset_signals()
import subprocess
subprocess.run(["grep", "-E", "Sig(Ign|Blk):", "/proc/self/status"])
"""
    assert run_python(code, parent=IGNORING).split() == ["SigBlk:", f"{0:016x}", "SigIgn:", f"{0:016x}"]


@pytest.mark.parametrize("number", [signal.SIGTERM, *further(signal.SIGINT, signal.SIGHUP)])
def test_signal_after_the_end_does_not_change_the_exit_status(number: signal.Signals) -> None:
    code = f"""
import os
from dmnotid.host.loop import run_to_completion
async def nothing(): pass
run_to_completion(nothing())
os.kill(os.getpid(), {int(number)})
print("the end")
"""
    assert run_python(code) == "the end\n"
