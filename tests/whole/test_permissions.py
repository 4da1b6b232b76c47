"""Permissions, file by file, for a real process without privileges: the message names the file and the way out."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.program import call
from tests.processes import JOURNAL, WITHOUT_PRIVILEGES, Run, Service, needs_setpriv, running
from tests.support import (
    SECRET,
    SERVER_ID,
    WIRELINE,
    Recorder,
    as_root,
    further,
    group_of,
    push,
    wait_until,
    write_config,
    write_script,
)

pytestmark = needs_setpriv


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start daemons as a user to whom permissions apply."""
    with running(tmp_path) as start:
        yield lambda config: start(config, WITHOUT_PRIVILEGES)


@contextmanager
def mode(file: Path, permissions: int) -> Iterator[None]:
    """Change the permissions of a file for a while."""
    before = file.stat().st_mode & 0o7777
    file.chmod(permissions)
    try:
        yield
    finally:
        file.chmod(before)


def works(service: Service, notification_id: int) -> None:
    """Check that a new notification leads to a session."""
    done = len(service.of("session done"))
    service.send(push(notification_id, preferred=WIRELINE))
    service.wait("session done", done + 1)


def stops_clean(service: Service) -> None:
    assert service.stop() == 0
    assert "bugs" not in service.lines()[-1]
    assert service.errors == ""


# Configuration and secrets


def test_start_fails_if_the_configuration_file_is_unreadable(tmp_path: Path, run: Run) -> None:
    config = write_config(tmp_path)
    with mode(config, 0):
        assert run(config).problem() == f"{config}: cannot be read: Permission denied\n"
    works(run(config), 1)


@pytest.mark.parametrize("which", ["secret", *further("directory")])
def test_start_fails_if_a_secret_file_is_unreadable(tmp_path: Path, run: Run, which: str) -> None:
    """The file itself, and the directory that it is in."""
    directory = tmp_path / "secrets"
    directory.mkdir()
    secret = directory / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(SECRET)
    config = write_config(tmp_path, servers=[{"id": SERVER_ID, "secret": {"file": str(secret)}}])
    with mode(secret if which == "secret" else directory, 0):
        problem = run(config).problem()
    assert problem.startswith(f"{config}:")
    assert problem.endswith(f": servers[0].secret.file: {secret} cannot be read: Permission denied\n")


# The state directory


def test_start_fails_if_the_state_directory_cannot_be_created(tmp_path: Path, run: Run) -> None:
    parent = tmp_path / "var"
    parent.mkdir()
    config = write_config(tmp_path, state=str(parent / "state"))
    with mode(parent, 0o500):
        problem = run(config).problem()
    assert problem == f"state: {parent}/state: Permission denied; a directory that dmnotid can write to is expected"
    works(run(config), 1)


def after_a_stop(config: Path, run: Run) -> None:
    service = run(config)
    works(service, 1)
    stops_clean(service)


def after_a_kill(config: Path, run: Run) -> None:
    """Leave a write-ahead log that has the accepted notification."""
    service = run(config)
    works(service, 1)
    service.process.kill()
    service.process.wait()


def at_first(config: Path, run: Run) -> None:
    assert not config.with_name("state").exists(), f"nothing was started yet by {run}"
    config.with_name("state").mkdir(mode=0o700)


@pytest.mark.parametrize(
    ("before", "file", "permissions"),
    [
        (after_a_stop, JOURNAL, 0o400),
        *further(
            (at_first, "", 0o500),
            (at_first, "", 0),
            (after_a_stop, "", 0),
            (after_a_stop, JOURNAL, 0),
            (after_a_kill, f"{JOURNAL}-wal", 0),
            (after_a_kill, f"{JOURNAL}-wal", 0o400),
        ),
    ],
)
def test_start_fails_without_permission_for_the_journal_and_loses_nothing(
    tmp_path: Path, run: Run, before: Callable[[Path, Run], None], file: str, permissions: int
) -> None:
    """The message names the directory or the file, and no file is replaced."""
    config, state = write_config(tmp_path), tmp_path / "state"
    before(config, run)
    found = sorted(state.iterdir())
    with mode(state / file, permissions):
        problem = run(config).problem()
    assert str(state) in problem
    assert "Permission denied" in problem
    assert "expected" in problem
    assert sorted(state.iterdir()) == found, "nothing is set aside for want of a permission"
    service = run(config)
    works(service, 2)
    if before is not at_first:
        service.send(push(1, preferred=WIRELINE))
        wait_until(lambda: "duplicate" in service.reasons())
    stops_clean(service)


@pytest.mark.parametrize("file", [JOURNAL, *further("", f"{JOURNAL}-wal")])
def test_daemon_goes_on_when_permissions_are_removed(tmp_path: Path, run: Run, file: str) -> None:
    """No file is opened again for each notification."""
    service = run(write_config(tmp_path))
    works(service, 1)
    with mode(tmp_path / "state" / file, 0):
        service.send(push(2, preferred=WIRELINE))
        wait_until(lambda: service.of("notification not accepted") or len(service.of("session done")) == 2)
        assert service.of("notification not accepted") == []
    works(service, 3)
    stops_clean(service)


# Other users


@pytest.mark.parametrize(
    ("name", "permissions", "from_root"),
    [("dmnotid.yaml", 0o666, False), *further((".", 0o777, False)), (".", 0o777, True)],
)
def test_start_is_refused_if_others_can_write_the_configuration(
    tmp_path: Path, run: Run, name: str, permissions: int, *, from_root: bool
) -> None:
    """Its path may be relative: the daemon runs in the root directory here."""
    config = write_config(tmp_path)
    if from_root:
        config = config.relative_to("/")
    with mode(tmp_path / name, permissions):
        problem = f"{config}: {tmp_path / name}: writable by others: chmod go-w {tmp_path / name}\n"
        assert run(config).problem() == problem


@pytest.mark.parametrize("which", ["secret", *further("configuration")])
def test_reload_is_refused_if_others_can_write_the_files(tmp_path: Path, run: Run, which: str) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "key").touch(mode=0o600)
    (secrets / "key").write_bytes(SECRET)
    servers = [{"id": SERVER_ID, "secret": {"file": "secrets/key"}}]
    config = write_config(tmp_path, servers=servers)
    service = run(config)
    works(service, 1)
    component, permissions = (config, 0o666) if which == "configuration" else (secrets, 0o777)
    # A daemon that took this file over would discard what `works` sends.
    write_config(tmp_path, servers=[{**servers[0], "sources": ["192.0.2.1"]}])
    with mode(component, permissions):
        service.process.send_signal(signal.SIGHUP)
        service.wait("reload refused")
    (line,) = service.of("configuration problem")
    assert line["problem"].endswith(f": {component}: writable by others: chmod go-w {component}")
    assert line["problem"].startswith(f"{config}:")
    works(service, 2)
    write_config(tmp_path, servers=servers)
    service.process.send_signal(signal.SIGHUP)
    service.wait("configuration reloaded")
    works(service, 3)
    stops_clean(service)


ANOTHER = "or use another directory, because that group could exchange the files in this one"


@pytest.mark.parametrize(
    ("permissions", "whose", "above"),
    [(0o770, "its group", False), *further((0o777, "others", False), (0o777, "others", True))],
)
def test_start_is_refused_if_others_can_write_the_state_directory(
    tmp_path: Path,
    run: Run,
    permissions: int,
    whose: str,
    above: bool,  # noqa: FBT001 - two cases
) -> None:
    """Another user who can add a row could start sessions without a secret."""
    parent = tmp_path / "var"
    (parent / "state").mkdir(parents=True, mode=0o700)
    config = write_config(tmp_path, state=str(parent / "state"))
    at_fault = parent if above else parent / "state"
    way_out = f"chmod go-w {at_fault}" if whose == "others" else f"chmod g-w {at_fault}, {ANOTHER}"
    whose += "" if whose == "others" else f" ({group_of(at_fault)})"
    expected = (
        f"state: {at_fault}: writable by {whose}: {way_out}; a directory that no other user can write to is expected"
    )
    with mode(at_fault, permissions):
        assert run(config).problem() == expected
        checked = call("check", "--config", str(config))
    assert (checked.status, checked.err) == (1, f"{expected}\n")
    assert list((parent / "state").iterdir()) == []


@as_root
@pytest.mark.parametrize("name", [JOURNAL, f"{JOURNAL}-wal", "journal-damaged.sqlite3"])
def test_start_is_refused_if_a_journal_file_belongs_to_another_user(tmp_path: Path, run: Run, name: str) -> None:
    """In a sticky directory every user can create files, and no one can remove those of others."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o1777)
    config = write_config(tmp_path)
    works(run(config), 1)
    shutil.rmtree(state)
    state.mkdir()
    state.chmod(0o1777)
    (state / name).touch(mode=0o600)
    os.chown(state / name, 65_534, -1)
    assert run(config).problem().startswith(f"state: {state / name}: belongs to user 65534, only root")


@pytest.mark.parametrize("umask", ["000", *further("002", "077")])
def test_created_files_are_trusted_at_the_next_start(tmp_path: Path, umask: str) -> None:
    state = tmp_path / "var" / "lib" / "state"
    config = write_config(tmp_path, state=str(state))
    with running(tmp_path) as start:
        for number in (1, 2):
            service = start(config, [*WITHOUT_PRIVILEGES, "sh", "-c", f'umask {umask}; exec "$@"', "sh"])
            works(service, number)
            stops_clean(service)
    assert state.stat().st_mode & 0o777 == 0o700
    assert state.parent.stat().st_mode & 0o022 == 0


def test_journal_files_are_created_for_the_daemon_alone(tmp_path: Path, run: Run) -> None:
    """Also in a directory that others can read: the files contain signed notifications."""
    (tmp_path / "state").mkdir(mode=0o755)
    service = run(write_config(tmp_path))
    works(service, 1)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "state").iterdir()}
    assert modes == {JOURNAL: 0o600, f"{JOURNAL}-wal": 0o600, "locks": 0o700}
    stops_clean(service)


# The hook


class Refused:
    """A daemon whose hook is made unusable while it runs."""

    def __init__(self, directory: Path, run: Run) -> None:
        self.home = directory / "hooks"
        self.home.mkdir()
        self.recorder = Recorder(self.home)
        self.service = run(write_config(directory, self.recorder.command, retry={"attempts": 1_000}))
        works(self.service, 1)

    def stays_unstarted(self, problem: str) -> None:
        """Check that the hook of notification 2 is not started, for this reason, and that reception goes on."""
        service = self.service
        service.send(push(2, preferred=WIRELINE))
        line = service.wait("hook not started")
        assert line["problem"] == problem
        assert line["level"] == "error"
        service.send(push(3, sent_at=time.time() - 10 * 86_400))
        wait_until(lambda: "stale" in service.reasons())
        assert len(service.of("session done")) == 1

    def starts_later(self) -> None:
        """Check that the hook of notification 2 is started once without a repeat, and that of another one too."""
        self.service.wait("session done", 2)
        works(self.service, 4)
        assert [session for session, _ in self.recorder.names] == [1, 2, 3]
        stops_clean(self.service)


@pytest.fixture
def refused(tmp_path: Path, run: Run) -> Refused:
    return Refused(tmp_path, run)


@pytest.mark.parametrize(
    ("permissions", "problem"),
    [
        (0o775, "writable by its group ({group}): chmod g-w {file}"),
        *further(
            (0o644, "not executable"), (0o000, "not executable"), (0o757, "writable by others: chmod go-w {file}")
        ),
    ],
)
def test_untrusted_hook_file_is_not_started(refused: Refused, permissions: int, problem: str) -> None:
    file = refused.recorder.file
    with mode(file, permissions):
        refused.stays_unstarted(f"{file}: {problem.format(file=file, group=group_of(file))}")
    refused.starts_later()


@pytest.mark.parametrize(
    ("permissions", "problem"),
    [
        (0o757, "{home}: writable by others: chmod go-w {home}"),
        *further(
            (0o600, "{home}/recorder: Permission denied"),
            (0o775, "{home}: writable by its group ({group}): chmod g-w {home}, " + ANOTHER),
        ),
    ],
)
def test_hook_in_an_untrusted_directory_is_not_started(refused: Refused, permissions: int, problem: str) -> None:
    with mode(refused.home, permissions):
        refused.stays_unstarted(problem.format(home=refused.home, group=group_of(refused.home)))
    refused.starts_later()


def test_replaced_hook_file_is_checked_again(refused: Refused) -> None:
    """Another user can write the new file."""
    file, own = refused.recorder.file, refused.home / "own"
    file.rename(own)
    write_script(file, "exit 0", 0o777)
    refused.stays_unstarted(f"{file}: writable by others: chmod go-w {file}")
    own.rename(file)
    refused.starts_later()


def test_missing_hook_file_is_started_once_it_is_back(refused: Refused) -> None:
    file, away = refused.recorder.file, refused.home / "away"
    file.rename(away)
    refused.stays_unstarted(f"{file}: No such file or directory")
    away.rename(file)
    refused.starts_later()
