"""Whether the configured hook could be started now, found out without starting it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dmnotid.config.values import HookConfig, path_from
from dmnotid.errors import HookError, UntrustedPath, UnusablePath, shortened
from dmnotid.host.trust import check_trusted, check_trusted_path, check_trusted_socket, explain_not_executable

_FIRST_OCTETS: Final = 256
"""Number of octets in which the kernel looks for the #! line (BINPRM_BUF_SIZE)."""

_MAX_SHOWN: Final = 32

# The kernel ends a name at a space, a tab or the end of the line, and at nothing else: a carriage return is part of it.
_INTERPRETER: Final = re.compile(rb"#![ \t]*([^ \t\n]*)")


def check_hook(config: HookConfig) -> None:
    """Ensure that the configured hook, a command or a socket, is trusted and can be started. Raises HookError."""
    if config.socket is None:
        check_command(config.command)
        return
    try:
        check_trusted_socket(config.socket)
    except UntrustedPath as error:
        raise _as_hook_error(error) from error


def check_command(command: Sequence[str]) -> None:
    """Ensure that a command is trusted and can be started. Raises HookError.

    An argument that is the absolute path of a regular file may be the script of an interpreter, so it has to be trusted
    as the program has.
    """
    program = path_from(command[0])
    try:
        check_trusted(program)
        for argument in map(path_from, command[1:]):
            if argument.is_absolute() and argument.is_file():
                check_trusted_path(argument)
    except UntrustedPath as error:
        raise _as_hook_error(error) from error
    _check_format(program)


def _as_hook_error(error: UntrustedPath) -> HookError:
    return HookError(str(error), component=error.component, trusted=isinstance(error, UnusablePath))


def _check_format(program: Path) -> None:
    """Ensure that the kernel has a way to run a file: a binary, or a script whose interpreter is there."""
    try:
        with program.open("rb") as file:
            first = file.read(_FIRST_OCTETS)
    except OSError:  # a binary can be run without being readable
        return
    # No text has a NUL. Whether a binary is one for this machine shows when it is started.
    if b"\0" in first:
        return
    line = shortened(first.partition(b"\n")[0].decode("utf-8", "backslashreplace"), _MAX_SHOWN)
    found = _INTERPRETER.match(first)
    problem = ""
    if found is None:
        problem = f"its first line, {line!r}, is not a #! line, and it is not a binary"
    elif not found[1]:
        problem = f"its first line, {line!r}, names no interpreter"
    else:
        name = os.fsdecode(found[1])
        # The working directory of a hook.
        interpreter = os.path.join("/", name)  # noqa: PTH118 - the kernel takes the name as it is
        if not os.path.exists(interpreter):  # noqa: PTH110
            problem = f"its interpreter {name!r} (the #! line) is missing"
        elif not os.access(interpreter, os.X_OK):
            problem = f"its interpreter {name!r} (the #! line): {explain_not_executable(interpreter)}"
    if problem:
        message = f"{program}: {problem}"
        raise HookError(message, component=str(program))
