"""The cost of an idle bearer, connected to a bus of its own without a telephony daemon."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import Figure, Scale
from benchmarks.machine import ENVIRONMENT, program, scratch, usage
from tests.processes import memory
from tests.telephony.bus import PrivateBus

BARE = "print('ready', flush=True)\nimport time; time.sleep(3600)"


def idle_bearer(scale: Scale) -> Iterator[Figure]:
    """Measure memory and an idle minute of `dmnotid bearer ofono`."""
    with scratch() as directory, PrivateBus(directory) as bus, program(BARE) as (bare, _):
        script = "import sys; from dmnotid.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", script, "bearer", "ofono", "--door", str(Path(directory, "push.sock"))]
        environment = ENVIRONMENT | dict(bus.environment)
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as bearer:
            if bearer.stdout is None:
                raise AssertionError
            for line in bearer.stdout:
                if b"telephony missing" in line:
                    break
            # The last steps after that line.
            time.sleep(1)
            before = usage(bearer.pid)
            time.sleep(scale.seconds(60))
            after = usage(bearer.pid)
            own, other = (memory(pid).rss / 1000 for pid in (bearer.pid, bare.pid))
            bearer.terminate()
    yield Figure("idle memory of a bearer, RSS", [own], "{:.1f} MB", "a bare interpreter", [other])
    yield Figure("idle minute of a bearer, wake-ups", [after.wake_ups - before.wake_ups], "{:.0f}", at_most=0)
