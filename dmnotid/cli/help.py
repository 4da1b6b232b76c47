"""`dmnotid help [COMMAND]`: what `dmnotid COMMAND --help` prints."""

import argparse

from dmnotid.cli.parser import parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid help`."""
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="the command to explain (default: all, briefly)")


def main(arguments: argparse.Namespace) -> int:
    """Print the help, which exits with status 0."""
    parse([*filter(None, [arguments.command]), "--help"])
    # Not reached: --help ends the program.
    raise AssertionError
