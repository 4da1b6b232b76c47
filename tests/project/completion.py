"""The completion of the command line in bash, written from its parser by `make docs`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from dmnotid.cli.arguments import parse_connection_types
from dmnotid.cli.bearer import BEARERS
from dmnotid.cli.parser import COMMANDS, build_parser
from dmnotid.errors import discard_reasons
from dmnotid.wire.notification import ConnectionType

ROOT: Final = Path(__file__).parents[2]
COMPLETION_FILE: Final = ROOT / "completions/dmnotid"

WORDS: Final[Mapping[str, Sequence[str]]] = {
    "bearer": BEARERS,
    "discards": discard_reasons(),
    "help": tuple(COMMANDS),
    "sessions": ("retry", "cancel"),
}
"""Words that a command takes beside its options, as far as they are known before."""

SCRIPT: Final = """\
# shellcheck shell=bash
# Completes dmnotid in bash. `make docs` writes this file from the parser of the command line.

_dmnotid() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} words=''
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W '{commands} --help --version' -- "$word")
        return
    fi
    case $before in
{values}
    esac
    case ${{COMP_WORDS[1]}} in
{options}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}

complete -F _dmnotid dmnotid
"""

FILES: Final = """\
        {options})
            compopt -o filenames
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
            ;;"""
CHOICE: Final = """\
        {options})
            mapfile -t COMPREPLY < <(compgen -W '{words}' -- "$word")
            return
            ;;"""
NOTHING: Final = """\
        {options})
            COMPREPLY=()
            return
            ;;"""


def actions_of(command: str) -> Iterator[argparse.Action]:
    """Yield the arguments of a command."""
    for action in build_parser([command])._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices[command]._actions


def completion() -> str:
    """Return the script."""
    files, others, choices = set[str](), set[str](), dict[str, set[str]]()
    options = []
    for command in COMMANDS:
        found = [action for action in actions_of(command) if action.option_strings]
        for action in found:
            # The long form is the last one, and the short one of --help is not offered.
            name = action.option_strings[-1]
            if action.nargs == 0:
                continue
            if action.type is Path:
                files.add(name)
            elif action.type is parse_connection_types or action.choices:
                choices.setdefault(" ".join(action.choices or ConnectionType), set()).add(name)
            else:
                others.add(name)
        words = [*WORDS.get(command, ()), *sorted(action.option_strings[-1] for action in found)]
        options.append(f"        {command}) words='{' '.join(words)}' ;;")
    values = [FILES.format(options=" | ".join(sorted(files)))]
    values += [CHOICE.format(options=" | ".join(sorted(names)), words=words) for words, names in choices.items()]
    values.append(NOTHING.format(options=" | ".join(sorted(others))))
    return SCRIPT.format(commands=" ".join(COMMANDS), values="\n".join(values), options="\n".join(options))
