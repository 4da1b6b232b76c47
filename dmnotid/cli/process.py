"""The exit statuses that commands share."""

from typing import Final

EXIT_OK: Final = 0
EXIT_PROBLEM: Final = 1
EXIT_INTERRUPTED: Final = 128 + 2
"""What a shell reports for a process that SIGINT ended."""
