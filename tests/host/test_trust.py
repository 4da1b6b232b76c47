"""The walk of a path: real files, owners, modes and links."""

import os
from pathlib import Path

import pytest

from dmnotid.errors import UntrustedPath
from dmnotid.host.trust import MAX_LINKS, check_trusted
from tests.support import IS_ROOT, as_root, group_of, without_privileges, write_script

UNPRIVILEGED = 65_534


def refusal(file: Path) -> tuple[str | None, str]:
    """Return the component and the sentence of a refusal, or neither if the file is trusted."""
    try:
        check_trusted(file)
    except UntrustedPath as error:
        return error.component, str(error)
    return None, ""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A file below two directories of its own."""
    file = tmp_path / "a" / "b" / "hook"
    file.parent.mkdir(parents=True, mode=0o755)
    return write_script(file, "exit 0")


def test_own_file_is_trusted(tree: Path) -> None:
    assert refusal(tree) == (None, "")
    check_trusted(Path("/bin/true"))


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        (0o775, "its group ({group}): chmod g-w {path}"),
        (0o757, "others: chmod go-w {path}"),
        (0o777, "others: chmod go-w {path}"),
        (0o1775, "its group ({group}): chmod g-w {path}"),
        (0o2775, "its group ({group}): chmod g-w {path}"),
    ],
)
@pytest.mark.parametrize("up", [0, 1, 2])
def test_file_or_directory_that_others_can_write_is_refused(tree: Path, mode: int, problem: str, up: int) -> None:
    """/usr/local of Debian is such a directory: root:staff 2775."""
    component = [tree, *tree.parents][up]
    component.chmod(mode)
    if up and mode & 0o1000 and IS_ROOT:
        assert refusal(tree) == (None, "")
        return
    expected = f"{component}: writable by {problem.format(group=group_of(component), path=component)}"
    if up and "group" in problem:
        expected += ", or use another directory, because that group could exchange the files in this one"
    assert refusal(tree) == (str(component), expected)


@as_root
@pytest.mark.parametrize("mode", [0o1777, 0o1775, 0o3777])
def test_sticky_directory_of_root_is_trusted(tree: Path, mode: int) -> None:
    tree.parent.chmod(mode)
    assert refusal(tree) == (None, "")


@as_root
def test_sticky_directory_of_another_user_is_refused(tree: Path) -> None:
    tree.parent.chmod(0o1777)
    os.chown(tree.parent, UNPRIVILEGED, -1)
    assert "belongs to user" in refusal(tree)[1]
    # Also for that user itself: only root's are shared safely.
    with without_privileges(tree):
        assert refusal(tree) == (str(tree.parent), f"{tree.parent}: writable by others: chmod go-w {tree.parent}")


@as_root
def test_group_without_a_name_is_shown_by_its_number(tree: Path) -> None:
    os.chown(tree, -1, 987_654)
    tree.chmod(0o775)
    assert refusal(tree)[1] == f"{tree}: writable by its group (987654): chmod g-w {tree}"


def test_sticky_file_is_refused(tree: Path) -> None:
    tree.chmod(0o1777)
    assert refusal(tree) == (str(tree), f"{tree}: writable by others: chmod go-w {tree}")


@as_root
@pytest.mark.parametrize("up", [0, 1, 2])
def test_file_or_directory_of_another_user_is_refused(tree: Path, up: int) -> None:
    component = [tree, *tree.parents][up]
    os.chown(component, UNPRIVILEGED, -1)
    text = f"{component}: belongs to user 65534, only root and the daemon's own user are trusted"
    text += f": chown root {component}, or run dmnotid as user 65534"
    assert refusal(tree) == (str(component), text)


@as_root
def test_group_without_write_permission_is_trusted(tree: Path) -> None:
    os.chown(tree, -1, UNPRIVILEGED)
    os.chown(tree.parent, -1, UNPRIVILEGED)
    assert refusal(tree) == (None, "")


@as_root
def test_file_of_the_daemons_user_or_of_root_is_trusted(tree: Path) -> None:
    os.chown(tree, UNPRIVILEGED, -1)
    with without_privileges(tree):
        assert refusal(tree) == (None, "")
        assert refusal(Path("/bin/true")) == (None, "")


def test_links_are_followed_and_each_target_is_checked(tree: Path, tmp_path: Path) -> None:
    last = tmp_path / "last"
    last.symlink_to("a/b")
    first = tmp_path / "first"
    first.symlink_to(last)
    file = first / "hook"
    assert refusal(file) == (None, "")
    tree.parent.chmod(0o777)
    assert refusal(file) == (str(tree.parent), f"{tree.parent}: writable by others: chmod go-w {tree.parent}")
    tree.parent.chmod(0o755)
    tree.chmod(0o775)
    assert refusal(file) == (str(tree), f"{tree}: writable by its group ({group_of(tree)}): chmod g-w {tree}")
    tree.chmod(0o755)
    assert refusal(file) == (None, "")
    hook = tmp_path / "hook"
    hook.symlink_to(tree)
    assert refusal(hook) == (None, "")
    tree.chmod(0o644)
    assert refusal(hook) == (str(tree), f"{tree}: not executable")


@as_root
def test_link_of_another_user_is_refused(tree: Path, tmp_path: Path) -> None:
    # In a sticky directory, any user can make one.
    link = tmp_path / "link"
    link.symlink_to(tree)
    os.chown(link, UNPRIVILEGED, -1, follow_symlinks=False)
    assert refusal(link)[0] == str(link)
    assert "belongs to user 65534" in refusal(link)[1]


def test_directory_that_a_link_passes_through_is_checked(tree: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    link = tmp_path / "link"
    link.symlink_to("beside/../a/b/hook")
    assert refusal(link) == (None, "")
    beside.chmod(0o777)
    assert refusal(link)[0] == str(beside)
    assert tree.exists()


def test_two_dots_after_a_link_are_the_parent_of_its_target(tree: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tree.parent)
    write_script(tree.parent.parent / "other", "exit 0", mode=0o775)
    assert refusal(link / ".." / "other")[0] == str(tree.parent.parent / "other")
    assert refusal(tmp_path / "a" / "b" / ".." / ".." / "a" / "b" / "hook") == (None, "")
    assert refusal(Path("/../..") / tree.relative_to("/")) == (None, "")


@pytest.mark.parametrize("count", [MAX_LINKS, MAX_LINKS + 1])
def test_links_are_followed_as_far_as_the_kernel_does(tree: Path, tmp_path: Path, count: int) -> None:
    target = tree
    for number in range(count):
        link = tmp_path / f"link{number}"
        link.symlink_to(target)
        target = link
    if count <= MAX_LINKS:
        assert refusal(target) == (None, "")
        assert os.access(target, os.X_OK)
    else:
        assert refusal(target) == (str(target), f"{target}: more than 40 symbolic links")
        assert not os.access(target, os.X_OK)


def test_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert "more than 40 symbolic links" in refusal(tmp_path / "one")[1]


@pytest.mark.parametrize("path", ["hook", "./hook", "../hook", ""])
def test_relative_path_is_refused(path: str) -> None:
    assert refusal(Path(path)) == (str(Path(path)), f"{Path(path)}: not an absolute path")


def test_path_that_leads_nowhere_is_refused(tree: Path, tmp_path: Path) -> None:
    assert refusal(tree / "x") == (str(tree / "x"), f"{tree / 'x'}: Not a directory")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert refusal(tmp_path / "dangling") == (
        str(tmp_path / "nowhere"),
        f"{tmp_path / 'nowhere'}: No such file or directory",
    )


@as_root
def test_unreadable_link_is_refused() -> None:
    os.seteuid(UNPRIVILEGED)
    try:
        assert refusal(Path("/proc/1/exe")) == ("/proc/1/exe", "/proc/1/exe: Permission denied")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("path", ["/", "/bin", "/bin/..", "/dev/null"])
def test_path_to_anything_but_a_regular_file_is_refused(path: str) -> None:
    assert "not a regular file" in refusal(Path(path))[1] or "writable by others" in refusal(Path(path))[1]
