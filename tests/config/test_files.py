"""Regular files: read whole and bounded; anything else is never opened."""

import os
import stat
from pathlib import Path

import pytest

from dmnotid.config.files import read_regular
from dmnotid.config.tree import Wrong
from dmnotid.errors import UntrustedPath
from tests.config.support import unprivileged


def refusal(path: Path, limit: int = 10) -> str:
    with pytest.raises(Wrong) as caught:
        read_regular(path, limit)
    return str(caught.value)


def test_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    file.chmod(0o640)
    octets, found = read_regular(file, 10)
    assert (octets, stat.S_IMODE(found.st_mode)) == (b"0123456789", 0o640)
    assert refusal(file, 9) == f"{file} is larger than 9 octets"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing", "PATH cannot be read: No such file or directory"),
        ("file/x", "PATH cannot be read: Not a directory"),
        ("loop", "PATH cannot be read: Too many levels of symbolic links"),
        ("x" * 300, "PATH cannot be read: File name too long"),
        ("", "PATH is not a regular file"),
        ("fifo", "PATH is not a regular file"),
        ("device", "PATH is not a regular file"),
    ],
)
def test_other_paths_are_refused(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "fifo")
    assert refusal(tmp_path / name) == problem.replace("PATH", str(tmp_path / name))


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o000)
    tmp_path.chmod(0o755)
    # Relative, because the directories above belong to the user that runs the tests alone.
    monkeypatch.chdir(tmp_path)
    with unprivileged():
        assert refusal(Path("file")) == "file cannot be read: Permission denied"


def test_fifo_that_replaces_the_file_before_it_is_opened_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()

    class Swapped(type(tmp_path)):  # type: ignore[misc]
        """A path whose file is replaced after its first stat."""

        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            found: os.stat_result = super().stat(follow_symlinks=follow_symlinks)
            self.unlink()
            os.mkfifo(self)
            return found

    assert refusal(Swapped(file)) == f"{file} is not a regular file"


def test_path_is_checked_before_the_file_is_read(tmp_path: Path) -> None:
    checked: list[Path] = []

    def refuse(path: Path) -> None:
        checked.append(path)
        raise UntrustedPath(str(tmp_path), "writable by others")

    with pytest.raises(Wrong, match=f"^{tmp_path}: writable by others$"):
        read_regular(tmp_path / "missing", 10, refuse)
    assert checked == [tmp_path / "missing"]
