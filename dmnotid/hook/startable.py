"""Whether the configured hook could be started now, found out without starting it."""

import os
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dmnotid.config.values import HookConfig, path_from
from dmnotid.errors import HookError, UntrustedPath, UnusablePath
from dmnotid.host.trust import check_trusted, check_trusted_path, check_trusted_socket, explain_not_executable
from dmnotid.sentences import shortened

# Number of octets in which the kernel looks for the #! line (BINPRM_BUF_SIZE).
_FIRST_OCTETS: Final = 256

_MAX_SHOWN: Final = 32

_UTF16: Final = (BOM_UTF16_LE, BOM_UTF16_BE, b"#\0!\0", b"\0#\0!")

_ELF: Final = b"\x7fELF"
# e_machine of x86, ARM and PowerPC in elf(5): a kernel for one of a pair may run programs of the other.
_MACHINES: Final = ({3, 62}, {40, 183}, {20, 21})

_BINFMT_MISC: Final = "/proc/sys/fs/binfmt_misc"

# The kernel ends a name at a space, a tab or the end of the line, and at nothing else: a carriage return is part of it.
_INTERPRETER: Final = re.compile(rb"#![ \t]*([^ \t\n]*)")


def check_hook(config: HookConfig) -> None:
    """Ensure that the configured hook, a command or a socket, is trusted and can be started. Raises HookError."""
    if config.socket is None:
        check_command(config.command)
        return
    try:
        # Whether a process listens there is not tried: a connection starts a session.
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
            # A path that this user cannot reach, or that is too long for one, is not a file that the hook could run.
            if argument.is_absolute() and os.path.isfile(argument):  # noqa: PTH113 - Path.is_file() raises errors
                check_trusted_path(argument)
    except UntrustedPath as error:
        raise _as_hook_error(error) from error
    _check_format(program)


def _as_hook_error(error: UntrustedPath) -> HookError:
    # A missing file is trusted: no other user can have replaced it.
    return HookError(str(error), component=error.component, trusted=isinstance(error, UnusablePath))


def _check_format(program: Path) -> None:
    """Ensure that the kernel has a way to run a file: a binary, or a script whose interpreter is there."""
    try:
        with program.open("rb") as file:
            first = file.read(_FIRST_OCTETS)
    except OSError:  # a binary can be run without being readable
        return
    # Text has no NUL, unless it is in UTF-16.
    if first.startswith(_UTF16):
        problem = "it is text in UTF-16, UTF-8 without a byte order mark is expected"
    elif first.startswith(_ELF):
        problem = _find_machine_problem(first)
    else:
        # A file with a NUL is a binary of another format, which binfmt_misc may know.
        problem = "" if b"\0" in first else _find_script_problem(first)
    if problem:
        raise HookError(f"{program}: {problem}", component=str(program))


def _find_machine_problem(header: bytes) -> str:
    """Return why an ELF binary can't run on this machine, "" if it can or a registered interpreter might run it."""
    with open("/proc/self/exe", "rb") as file:  # noqa: PTH123
        headers = file.read(_FIRST_OCTETS), header
    # EI_DATA and e_machine: the octet 5 has the byte order of the octets 18 and 19.
    own, machine = (int.from_bytes(it[18:20], "big" if it[5:6] == b"\2" else "little") for it in headers)
    if own == machine or any({own, machine} <= pair for pair in _MACHINES):
        return ""
    try:
        # The kernel can start binaries of any machine by an emulator that is registered here.
        emulated = set(os.listdir(_BINFMT_MISC)) - {"register", "status"}  # noqa: PTH208
    except OSError:
        emulated = set()
    return "" if emulated else f"it is a binary for another machine (its ELF machine is {machine}, {own} is expected)"


def _find_script_problem(first: bytes) -> str:
    """Return why a script with these first octets can't be started, "" if it can."""
    line = shortened(first.partition(b"\n")[0].decode("utf-8", "backslashreplace"), _MAX_SHOWN)
    found = _INTERPRETER.match(first)
    if found is None:
        return f"its first line, {line!r}, is not a #! line, and it is not a binary"
    if not found[1]:
        return f"its first line, {line!r}, names no interpreter"
    name = os.fsdecode(found[1])
    # The working directory of a hook.
    interpreter = os.path.join("/", name)  # noqa: PTH118 - the kernel takes the name as it is
    if not os.path.exists(interpreter):  # noqa: PTH110
        return f"its interpreter {name!r} (the #! line) is missing"
    if not os.access(interpreter, os.X_OK):
        return f"its interpreter {name!r} (the #! line): {explain_not_executable(interpreter)}"
    return ""
