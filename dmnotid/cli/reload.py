"""`dmnotid reload`: apply a changed configuration, and report its problems here."""

import argparse
from typing import Final

from dmnotid.cli.asking import asks_daemon, problem_lines
from dmnotid.cli.places import add_places, find_socket
from dmnotid.cli.process import EXIT_OK, WARNING, in_journal, print_error
from dmnotid.control.client import call

PATIENCE: Final = 60.0
"""Maximum time to wait for the daemon, in seconds: the files and secrets may be on a slow disk."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid reload`."""
    add_places(parser)


@asks_daemon
def main(arguments: argparse.Namespace) -> int:
    """Reload; 0 once the new configuration is in force, 1 if it has problems, 3 or 4 if the daemon can't be asked."""
    warnings = problem_lines(call(find_socket(arguments), "Reload", patience=PATIENCE)["warnings"])
    # At `systemctl reload`, those of the daemon's own log are enough.
    for line in () if in_journal() else warnings:
        print_error(f"warning: {line}", WARNING)
    return EXIT_OK
