"""What commands share as processes: exit statuses, environment, and problems on standard error."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dmnotid.host.journald import leads_to_journal

DEFAULT_CONFIG: Final = Path("/etc/dmnotid/dmnotid.yaml")

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h: a configuration that can't be used. systemd shows it as 78/CONFIG."""
EXIT_INTERRUPTED: Final = 128 + 2
"""What a shell reports for a process that SIGINT ended."""

# Levels of syslog(3), in the form that the systemd journal reads at the beginning of a line.
ERROR: Final = 3
WARNING: Final = 4
_STANDARD_ERROR: Final = 2


def in_journal() -> bool:
    """Return whether standard error leads to the systemd journal."""
    return leads_to_journal(_STANDARD_ERROR, os.environ.get("JOURNAL_STREAM"))


def print_error(text: object, level: int = ERROR) -> None:
    """Print lines on standard error; if that is the systemd journal, each gets a level (sd-daemon(3))."""
    prefix = f"<{level}>" if in_journal() else ""
    # A problem of a configuration has several lines, and journald reads a level for each.
    for line in str(text).splitlines():
        print(f"{prefix}{line}", file=sys.stderr)


SERVICE_CREDENTIALS: Final = Path("/run/credentials/dmnotid.service")
"""Where systemd keeps the credentials of the running service."""


def operator_environ() -> Mapping[str, str]:
    """Return the environment for reading a configuration by hand: root has the credentials of the running service."""
    # systemd opens that directory to the service and to root alone.
    if os.geteuid() or os.environ.get("CREDENTIALS_DIRECTORY") or not SERVICE_CREDENTIALS.is_dir():
        return os.environ
    return os.environ | {"CREDENTIALS_DIRECTORY": str(SERVICE_CREDENTIALS)}
