"""The processes that are measured: real daemons and their yardsticks, each on a processor of its own."""

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from tests.processes import ENVIRONMENT as OUR_ENVIRONMENT
from tests.processes import Service, processor, udp_socket
from tests.support import wait_until, write_config

CPUS: Final = sorted(os.sched_getaffinity(0))
RECEIVER: Final = CPUS[-1]
"""The processor of what is measured."""
SENDERS: Final = CPUS[:-1] or CPUS
"""Those of everything else."""

ENVIRONMENT: Final = {name: value for name, value in OUR_ENVIRONMENT.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""An installed program is compiled; the first run sees to that here."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def pinned(cpu: int = RECEIVER) -> list[str]:
    """Return the command that becomes another one on this processor."""
    return ["taskset", "--cpu-list", str(cpu)]


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a directory on a disk, not in memory, that nobody else may write to."""
    with TemporaryDirectory(dir="/var/tmp") as name:
        yield Path(name)


@contextmanager
def daemon(
    directory: Path,
    prefix: Sequence[str] = (),
    environment: dict[str, str] = ENVIRONMENT,
    **sections: Any,  # noqa: ANN401
) -> Iterator[Service]:
    """Run a daemon that is ready to receive; it is killed at the end."""
    sections = {"command": ["/bin/true"], "log": {"junk": False}, **sections}
    config = write_config(directory, **sections)
    service = Service(config, directory / "log", prefix or pinned(), environment=environment)
    try:
        service.wait("daemon ready")
        yield service
    finally:
        service.process.kill()
        service.process.wait()


@contextmanager
def program(code: str, prefix: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a Python program that prints one line once it is ready; that line."""
    command = [*(prefix or pinned()), sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            if process.stdout is None:
                raise AssertionError
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


class Usage(NamedTuple):
    """What a process has used so far: processor time (seconds), and how often it slept and was woken."""

    seconds: float
    wake_ups: int


def usage(pid: int) -> Usage:
    """Read what /proc says of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # Finer than the ticks of stat: nanoseconds on the processor.
    seconds = int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    # The involuntary ones are the doing of others, who wanted the processor while it was awake.
    switches = re.search(r"(?m)^voluntary_ctxt_switches:\s+(\d+)$", Path(f"/proc/{pid}/status").read_text())
    if switches is None:
        raise AssertionError
    return Usage(max(seconds, (int(fields[11]) + int(fields[12]) - 1) / _TICKS), int(switches[1]))


def taken_of(address: tuple[str, int], sent: int, drops_before: int) -> int:
    """Wait until a socket is empty; how many of the datagrams sent were not dropped."""
    wait_until(lambda: not udp_socket(*address).queued)
    return sent - (udp_socket(*address).drops - drops_before)


def about() -> list[str]:
    """Say when and on what this was measured."""
    versions = f"Python {platform.python_version()}, uvloop {version('uvloop')}"
    return [
        time.strftime("%Y-%m-%d"),
        f"{processor()}, {len(CPUS)} processors",
        f"Linux {platform.release()}",
        versions,
    ]
