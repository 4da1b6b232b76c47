"""What a log record costs on its way to the systemd journal: as a line, and with fields that can be searched for.

`.venv/bin/python -m benchmarks.log_records`, where a systemd journal runs, from the top of the repository.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final, TextIO

from dmnotid.events import EVENTS
from dmnotid.host import log
from dmnotid.host.log import logger
from tests.processes import processor

STREAM: Final = Path("/run/systemd/journal/stdout")
HEADER: Final = b"dmnotid\n\n6\n1\n0\n0\n0\n"
"""What comes first on a stream to the journal: name, unit, priority, that lines begin with theirs, and no copies."""

RUNS: Final = 7
RECORDS: Final = 500
FACTS: Final = {
    "session": 12,
    "server_id": "dm.example.com",
    "notification_id": 4661,
    "source": "192.0.2.1:40000",
    "signed": True,
    "preferred": "wireless mobile",
}


def main() -> int:
    """Print both costs and their ratio."""
    try:
        rows = [(run("json"), run("auto")) for _ in range(RUNS)]
    except (FileNotFoundError, ConnectionRefusedError) as error:
        print(f"not measured here: {STREAM}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{processor()}, Python {sys.version.split()[0]}; each of {RUNS} runs writes {RECORDS} records both ways")
    lines, records = zip(*rows, strict=True)
    for what, costs in (("a line", lines), ("a record with fields", records)):
        own, journals = zip(*costs, strict=True)
        print(f"{what}: {median(own):.1f} µs here, {median(journals):.1f} µs in the journal")
    ratios = [sum(record) / sum(line) for line, record in rows]
    print(f"a record costs {median(ratios):.2f} lines ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


def run(form: str) -> tuple[float, float]:
    """Write records; what one costs (microseconds of the processor) in this process, and in the journal's."""
    with stream() as to_journal:
        log.configure("info", form, to_journal, EVENTS)
        journal_before, own_before = journals_time(), time.process_time()
        for _ in range(RECORDS):
            logger.info("notification accepted", **FACTS)
            time.sleep(0.001)  # so that the journal keeps up, and none goes another way
        own = time.process_time() - own_before
        idle = time.process_time()
        for _ in range(RECORDS):
            time.sleep(0.001)
        own -= time.process_time() - idle
        return own / RECORDS * 1e6, (journals_time() - journal_before) / RECORDS * 1e6


@contextmanager
def stream() -> Iterator[TextIO]:
    """Open a stream to the journal, as a service's standard output is one."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(STREAM))
        sock.sendall(HEADER)
        about = os.fstat(sock.fileno())
        os.environ["JOURNAL_STREAM"] = f"{about.st_dev}:{about.st_ino}"
        with os.fdopen(sock.detach(), "w") as file:
            yield file


def journals_time() -> float:
    """Return how long (seconds) the journal has been on a processor."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        if comm.read_text().strip() == "systemd-journal":
            return int(comm.with_name("schedstat").read_text().split()[0]) / 1e9
    message = "no systemd-journald runs"
    raise FileNotFoundError(0, message)


if __name__ == "__main__":
    sys.exit(main())
