"""Why a hook can't be started, found out before it is: real files, links and mounts."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from dmnotid.config.values import HookConfig
from dmnotid.errors import HookError
from dmnotid.hook.startable import check_command, check_hook
from tests.support import IS_ROOT, without_privileges, write_script


def problem(*command: Path | str) -> HookError:
    with pytest.raises(HookError) as caught:
        check_command([str(word) for word in command])
    return caught.value


@pytest.mark.parametrize("text", ["#!/bin/sh\n", "#! /bin/sh -e", "#!\t/bin/sh\t\n", "#!bin/sh\n"])
def test_script_with_an_interpreter_can_be_started(tmp_path: Path, text: str) -> None:
    check_command([str(write_script(tmp_path / "hook", text))])
    subprocess.run([tmp_path / "hook"], cwd="/", check=True)


def test_binary_can_be_started() -> None:
    check_command([shutil.which("true") or sys.executable])


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"echo hello", "its first line, 'echo hello', is not a #! line, and it is not a binary"),
        (b"", "its first line, '', is not a #! line, and it is not a binary"),
        (b" #!/bin/sh\n", "its first line, ' #!/bin/sh', is not a #! line, and it is not a binary"),
        (b"\xef\xbb\xbf#!/bin/sh\n", "its first line, '\\ufeff#!/bin/sh', is not a #! line, and it is not a binary"),
        (b"#!\n/bin/sh\n", "its first line, '#!', names no interpreter"),
        (b"#!/bin/sh\r\nexit 0\r\n", "its interpreter '/bin/sh\\r' (the #! line) is missing"),
        (b"#!/no/such/interpreter -x\n", "its interpreter '/no/such/interpreter' (the #! line) is missing"),
        ("#!/bin/sh\n".encode("utf-16"), "it is text in UTF-16, UTF-8 without a byte order mark is expected"),
        ("#!/bin/sh\n".encode("utf-16-be"), "it is text in UTF-16, UTF-8 without a byte order mark is expected"),
        (b"#!/etc/passwd\n", "its interpreter '/etc/passwd' (the #! line): not executable"),
    ],
)
def test_script_without_an_interpreter_is_named(tmp_path: Path, octets: bytes, why: str) -> None:
    hook = tmp_path / "hook"
    hook.write_bytes(octets)
    hook.chmod(0o755)
    found = problem(hook)
    assert str(found) == f"{hook}: {why}"
    assert (found.component, found.trusted) == (str(hook), True)
    # The kernel agrees.
    with pytest.raises(OSError, match=r"Exec format error|No such file|Permission denied"):
        subprocess.run([hook], check=False)


BINFMT_MISC = Path("/proc/sys/fs/binfmt_misc")
OWN_HEADER = Path("/proc/self/exe").read_bytes()[:64]
BYTE_ORDER = "<" if OWN_HEADER[5] == 1 else ">"
NO_MACHINE = 0x1234
"""An e_machine that no machine has."""


@pytest.mark.skipif(BINFMT_MISC.is_dir() and len(list(BINFMT_MISC.iterdir())) > 2, reason="emulators are registered")
def test_binary_for_another_machine_is_named(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_bytes(OWN_HEADER[:18] + struct.pack(f"{BYTE_ORDER}H", NO_MACHINE) + OWN_HEADER[20:])
    hook.chmod(0o755)
    (own,) = struct.unpack(f"{BYTE_ORDER}H", OWN_HEADER[18:20])
    expected = f"{hook}: it is a binary for another machine (its ELF machine is {NO_MACHINE}, {own} is expected)"
    assert str(problem(hook)) == expected
    with pytest.raises(OSError, match="Exec format error"):
        subprocess.run([hook], check=False)


def test_binary_of_32_bits_is_left_to_the_kernel(tmp_path: Path) -> None:
    """A kernel for x86-64, ARM or PowerPC of 64 bits may run it."""
    (own,) = struct.unpack(f"{BYTE_ORDER}H", OWN_HEADER[18:20])
    other = {62: 3, 183: 40, 21: 20}.get(own, own)
    hook = tmp_path / "hook"
    hook.write_bytes(OWN_HEADER[:18] + struct.pack(f"{BYTE_ORDER}H", other) + OWN_HEADER[20:])
    hook.chmod(0o755)
    check_command([str(hook)])


@pytest.mark.parametrize(("mode", "why"), [(None, "No such file or directory"), (0o644, "not executable")])
def test_unusable_hook_is_not_distrusted(tmp_path: Path, mode: int | None, why: str) -> None:
    if mode is not None:
        write_script(tmp_path / "hook", "exit 0", mode)
    found = problem(tmp_path / "hook")
    assert (str(found), found.trusted) == (f"{tmp_path}/hook: {why}", True)
    with pytest.raises(HookError) as caught:
        check_hook(HookConfig((), socket=tmp_path / "socket"))
    assert caught.value.trusted


def test_writable_hook_is_distrusted(tmp_path: Path) -> None:
    assert not problem(write_script(tmp_path / "hook", "exit 0", 0o757)).trusted


@pytest.mark.parametrize("mode", [0o777, 0o666, 0o664])
def test_script_of_an_interpreter_that_others_can_write_is_distrusted(tmp_path: Path, mode: int) -> None:
    script = write_script(tmp_path / "script", "exit 0", mode)
    found = problem("/bin/sh", script)
    assert not found.trusted
    assert str(found).startswith(f"{script}: writable by ")
    assert found.component == str(script)
    script.chmod(0o644)
    check_command(["/bin/sh", str(script)])


def test_arguments_that_are_not_existing_files_are_not_checked(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    check_command(["/bin/echo", str(tmp_path), f"{tmp_path}/none", "{server_id}", "", "/dev/null", "relative"])


def test_argument_in_a_directory_that_cannot_be_entered_is_not_checked(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with without_privileges(tmp_path / "closed") if IS_ROOT else nullcontext():
        check_command(["/bin/echo", f"{tmp_path}/closed/script", "/" + "a" * 5_000])


@pytest.fixture
def noexec(tmp_path: Path) -> Iterator[Path]:
    """A file system that is mounted noexec."""
    mount = ["mount", "-t", "tmpfs", "-o", "noexec,mode=755", "t", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs root that may mount")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.root
def test_hook_on_a_noexec_mount_is_named(noexec: Path) -> None:
    hook = write_script(noexec / "hook", "exit 0")
    why = "on a file system that is mounted noexec: move it to another one, or mount that one with exec"
    found = problem(hook)
    assert (str(found), found.trusted) == (f"{hook}: {why}", True)
    hook.chmod(0o644)
    assert str(problem(hook)) == f"{hook}: not executable"


@pytest.mark.root
def test_interpreter_on_a_noexec_mount_is_named(noexec: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    interpreter = noexec / "sh"
    shutil.copy("/bin/sh", interpreter)
    hook = write_script(tmp_path_factory.mktemp("elsewhere") / "hook", f"#!{interpreter}\n")
    assert "(the #! line): on a file system that is mounted noexec" in str(problem(hook))
