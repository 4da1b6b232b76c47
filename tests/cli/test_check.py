"""`dmnotid check`: every problem of a configuration, or its meaning on this machine."""

import grp
import os
import pwd
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cli.program import PROGRAM, SECRET, Done, call, shows_secret, write_config
from tests.netns import Namespace, needs_namespace
from tests.support import IS_ROOT, wait_until, write_script

SERVERS = """\
- {id: dm.example.com, secret: {text: lantern-and-rope-0042}, sources: [192.0.2.0/24, "2001:db8::/32"]}
- {id: open, require_digest: false}
- {id: "a'b", secret: {hex: 00112233445566778899aabbccddeeff}}
"""


needs_root = pytest.mark.skipif(not IS_ROOT, reason="needs root, to become another user")


def config_without_state(directory: Path, *servers: str) -> Path:
    config = write_config(directory, *servers)
    config.write_text(config.read_text().replace(f"state: {directory}/state\n", ""))
    return config


def checked(config: Path, *words: str) -> Done:
    return call("check", *words, "--config", str(config))


def test_summary_has_a_line_for_each_fact(tmp_path: Path) -> None:
    config = write_config(tmp_path, SERVERS, f"listen: ['127.0.0.1:2948', '[::1]:40000']\nstate: {tmp_path}/there\n")
    done = checked(config)
    assert (done.status, done.err) == (0, "")
    assert done.out.partition("connections")[0].splitlines() == [
        f"{config}: well-formed",
        "servers      'dm.example.com': a secret of 21 octets, must sign, from 192.0.2.0/24, 2001:db8::/32",
        "             'open': no secret, may come unsigned, from anywhere",
        """             "a'b": a secret of 16 octets, must sign, from anywhere""",
        "listen       127.0.0.1:2948, [::1]:40000 (UDP)",
        f"state        {tmp_path}/there",
        "hook         '/bin/true': its path is trusted",
    ]


def test_credentials_are_skipped_if_asked(tmp_path: Path) -> None:
    servers = "- {id: a, secret: {credential: a}}\n- {id: b, secret: {credential: b}}\n"
    config = write_config(tmp_path, servers)
    assert "$CREDENTIALS_DIRECTORY is not set" in checked(config).err
    done = checked(config, "--skip-credentials")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1:3] == [
        "servers      'a': a secret, must sign, from anywhere",
        "             'b': a secret, must sign, from anywhere",
    ]
    config.write_text(config.read_text().replace("credential: b", "credential: /b"))
    assert "is a path; expected the name of a credential" in checked(config, "--skip-credentials").err


def test_summary_has_the_former_secret_with_its_end(tmp_path: Path) -> None:
    forms = [
        "{text: former-lantern-1}",
        "{hex: 00112233445566778899aabbccddeeff, until: 2999-12-31}",
        "{file: old, until: 1999-12-31}",
    ]
    (tmp_path / "old").touch(mode=0o600)
    (tmp_path / "old").write_bytes(SECRET)
    servers = "".join(
        f"- {{id: s{at}, secret: {{text: current-lantern-{at}}}, former_secret: {former}}}\n"
        for at, former in enumerate(forms)
    )
    done = checked(write_config(tmp_path, servers))
    assert done.status == 0
    assert [line[13:] for line in done.out.splitlines()[1:4]] == [
        "'s0': a secret of 17 octets, a former secret of 16 octets, must sign, from anywhere",
        "'s1': a secret of 17 octets, a former secret of 16 octets until 2999-12-31, must sign, from anywhere",
        "'s2': a secret of 17 octets, a former secret of 21 octets until 1999-12-31 (over), must sign, from anywhere",
    ]
    assert not shows_secret(done.out + done.err, b"former-lantern-1")
    assert not shows_secret(done.out + done.err)


def test_nothing_but_problems_is_printed_if_asked(tmp_path: Path) -> None:
    """At a reload the daemon itself logs the warnings."""
    config = write_config(tmp_path, "- {id: dm, secret: {text: hush-hush}}")
    assert checked(config, "--quiet") == Done(0, "", "")
    config.write_text("listen: 5\n")
    assert "listen: is a number" in checked(config, "--quiet").err


OWN_GROUP = grp.getgrgid(os.getegid()).gr_name

SYSTEMCTL = """#!/bin/sh
printf '%s\n' LoadState={load} ActiveState={active} 'Listen=[::]:2948 (Datagram)' 'Listen=192.0.2.7:5 (Datagram)'
printf '%s\n' '' LoadState={load} ActiveState={active} 'Listen={doors} (Datagram)'
"""


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a systemctl first in the path that answers as that of a machine with these units."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def answer(load: str, active: str, doors: str = "") -> None:
        write_script(directory / "systemctl", SYSTEMCTL.format(load=load, active=active, doors=doors))

    return answer


@pytest.mark.parametrize("listen", ["", "listen: '127.0.0.1:7'\n"])
@pytest.mark.parametrize(
    ("load", "active"), [("loaded", "active"), ("loaded", "inactive"), ("masked", "inactive"), ("", "")]
)
def test_addresses_are_those_of_the_socket_unit_if_it_is_in_force(
    tmp_path: Path, systemctl: Callable[..., None], listen: str, load: str, active: str
) -> None:
    systemctl(load, active)
    done = checked(write_config(tmp_path, more=listen))
    assert done.status == 0
    own = "127.0.0.1:7" if listen else "[::]:2948"
    # A unit that is loaded and inactive matters for the configuration of the service only.
    passed = active == "active"
    shown = "[::]:2948, 192.0.2.7:5 (UDP, passed by dmnotid.socket)" if passed else f"{own} (UDP)"
    assert f"\nlisten       {shown}\n" in done.out
    ignored = "warning: listen: is ignored, because dmnotid.socket passes its sockets\n"
    assert done.err == (ignored if listen and passed else "")


def test_doors_are_those_of_their_unit_or_are_to_be_bound(tmp_path: Path, systemctl: Callable[..., None]) -> None:
    doors = f"""doors:
  - {{path: {tmp_path}/link/push, holds: push}}
  - {{path: {tmp_path}/package, holds: package, mode: "0600", group: {OWN_GROUP}, source: mqtt}}
"""
    # As systemd has /run for a unit with /var/run.
    (tmp_path / "link").symlink_to(tmp_path / "no")
    systemctl("loaded", "active", f"{tmp_path}/no/push (Datagram)\nListen={tmp_path}/no/other")
    config = write_config(tmp_path, more=doors)
    done = checked(config)
    assert done.status == 0
    assert (
        f"\ndoors        {tmp_path}/link/push (push, source sms, passed by dmnotid-doors.socket)\n"
        f"             {tmp_path}/package (package, source mqtt, mode 0600, group {OWN_GROUP})\n"
    ) in done.out
    assert f"warning: doors: {tmp_path}/no/other of dmnotid-doors.socket has no entry, so it is not read\n" in done.err
    assert done.err.count("warning") == 1
    # Without the unit, the daemon would have to bind it where it cannot.
    systemctl("masked", "inactive")
    done = checked(config)
    assert done.status == 1
    assert f"doors: {tmp_path}/no: No such file or directory: make it, or enable dmnotid-doors.socket" in done.err


@pytest.mark.parametrize("active", ["active", "inactive"])
def test_door_that_others_can_replace_is_a_problem(tmp_path: Path, systemctl: Callable[..., None], active: str) -> None:
    """If it is to be bound, and if systemd has bound it."""
    systemctl("masked", active, f"{tmp_path}/open/x")
    (tmp_path / "open").mkdir()
    if active == "active":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(f"{tmp_path}/open/x")
    (tmp_path / "open").chmod(0o777)
    done = checked(write_config(tmp_path, more=f"doors: [{{path: {tmp_path}/open/x, holds: push}}]\n"))
    assert done.status == 1
    assert f"doors: {tmp_path}/open: writable by others" in done.err


# --- For another user ------------------------------------------------------------------------------------------------


NOBODY = 65_534


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory of root's that every user can search, as /etc/dmnotid is."""
    with TemporaryDirectory(dir="/var/tmp") as name:
        directory = Path(name)
        directory.chmod(0o755)
        yield directory


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    ("mode", "group", "problem"),
    [
        (0o640, NOBODY, ""),
        (0o440, NOBODY, ""),
        (0o644, NOBODY, "has mode 0644, owner 0 and group 65534, so other users can read or write it"),
        (0o640, 0, "cannot be read: Permission denied"),
        (0o600, NOBODY, "cannot be read: Permission denied"),
    ],
)
def test_secret_is_checked_for_the_user_of_the_service(shared: Path, mode: int, group: int, problem: str) -> None:
    (shared / "key").write_bytes(SECRET)
    os.chown(shared / "key", 0, group)
    (shared / "key").chmod(mode)
    config = write_config(shared, "- {id: dm, secret: {file: key}}", f"state: {shared}/state\n")
    config.chmod(0o644)
    (shared / "state").mkdir()
    os.chown(shared / "state", NOBODY, NOBODY)
    for user in ([], ["--user", "nobody"]):
        done = checked(config, *user)
        assert done.status == bool(problem)
        assert problem in done.err
        assert "checked for the user nobody" in done.err if problem else "checked for the user nobody" in done.out
    assert os.getresuid() == (0, 0, 0)


@pytest.mark.root
@needs_root
@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ("own", ""),
        ("own/below/it", ""),
        ("roots", "{shared}/roots: Permission denied"),
        ("below/it", "{shared}: Permission denied"),
        ("closed/below", "{shared}/closed: Permission denied; a directory and a journal"),
        ("others", "{shared}/others: belongs to user 65533"),
        ("others/below", "{shared}/others: belongs to user 65533"),
        ("file/below", "{shared}/file: not a directory"),
    ],
)
def test_state_is_checked_for_the_user_of_the_service(shared: Path, state: str, problem: str) -> None:
    """Or the nearest directory above it that exists."""
    for name, owner in (("own", NOBODY), ("roots", 0), ("others", NOBODY - 1), ("closed", 0)):
        (shared / name).mkdir(0o700 if name == "closed" else 0o755)
        os.chown(shared / name, owner, owner)
    (shared / "file").touch()
    config = write_config(shared, "- {id: dm, require_digest: no}", f"state: {shared}/{state}\n")
    config.chmod(0o644)
    done = checked(config, "--user", "nobody")
    assert done.status == bool(problem)
    assert problem.format(shared=shared) in done.err


@pytest.mark.root
@needs_root
def test_journal_that_the_user_of_the_service_cannot_write_is_a_problem(shared: Path) -> None:
    """As after a start by root."""
    (shared / "state").mkdir()
    (shared / "state/journal.sqlite3").touch(mode=0o600)
    os.chown(shared / "state", NOBODY, NOBODY)
    config = write_config(shared, "- {id: dm, require_digest: no}", f"state: {shared}/state\n")
    config.chmod(0o644)
    assert checked(config).err.startswith(f"state: {shared}/state/journal.sqlite3: Permission denied; ")


@pytest.mark.root
@needs_root
def test_hook_that_the_user_of_the_service_cannot_run_is_a_problem(shared: Path) -> None:
    hook = write_script(shared / "hook", "exit 0", mode=0o700)
    config = write_config(shared, "- {id: dm, require_digest: no}", f"state: {shared}/state\n", hook=str(hook))
    config.chmod(0o644)
    (shared / "state").mkdir()
    assert checked(config).status == 0
    os.chown(shared / "state", NOBODY, NOBODY)
    assert f"{hook}: not executable" in checked(config).err


def test_state_below_a_directory_of_another_user_is_a_problem_as_for_run(tmp_path: Path) -> None:
    above = tmp_path / "o"
    above.mkdir()
    above.chmod(0o777)
    done = checked(write_config(tmp_path, more=f"state: {above}/state\n"))
    assert done.status == 1
    assert done.err.startswith(f"state: {above}: writable by others")


@pytest.mark.root
@needs_root
@pytest.mark.skipif(os.path.lexists("/var/lib/dmnotid"), reason="dmnotid is installed here")
def test_missing_state_that_systemd_makes_is_no_problem(shared: Path) -> None:
    config = config_without_state(shared, "- {id: dm, require_digest: no}")
    config.chmod(0o644)
    done = checked(config, "--user", "nobody")
    assert done.status == 0
    assert "\nstate        /var/lib/dmnotid (systemd makes it)\n" in done.out


def test_user_may_be_a_number(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    by_number = checked(config, "--user", str(os.geteuid()))
    assert by_number.status == 0
    assert checked(config, "--user", pwd.getpwuid(os.geteuid()).pw_name) == by_number


@pytest.mark.parametrize("user", ["no such user", "", "4294967295", "-1", "99999999999999999999"])
def test_unknown_user_is_a_wrong_command_line(tmp_path: Path, user: str) -> None:
    done = checked(write_config(tmp_path), "--user", user)
    assert done.status == 2
    assert f"there is no user {user!r}" in done.err


def test_summary_has_every_connection(tmp_path: Path) -> None:
    more = "connections: {reach: any, wireline: {interfaces: [lo]}}\n"
    lines = checked(write_config(tmp_path, more=more)).out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("connections  "))
    found = [line[13:] for line in lines[first:]]
    assert [line for line in found if line.startswith("lo: ")] == ["lo: available (wireline: configured: lo)"]
    interfaces = {line.partition(":")[0].split(" ")[0] for line in found}
    assert interfaces <= set(os.listdir("/sys/class/net"))  # noqa: PTH208 - names are all that is wanted


@pytest.mark.root
@needs_namespace
def test_summary_has_the_missing_condition_of_an_interface(tmp_path: Path) -> None:
    """5.3.4: the first condition of an available connection that is not met."""
    config = write_config(tmp_path, more="connections: {wireless: {interfaces: ['wlan*']}}\n")
    with Namespace() as namespace:

        def state() -> str:
            done = namespace.run(*PROGRAM, "check", "--config", str(config))
            assert (done.returncode, done.stderr) == (0, "")
            (line,) = [line[13:] for line in done.stdout.splitlines() if "wlan0" in line]
            return line.removesuffix(" (wireless: configured: wlan*)")

        namespace.add_veth("wlan0", up=False)
        assert state() == "wlan0: down"
        namespace.ip("link", "set", "wlan0", "up")
        namespace.wait_up("wlan0")
        assert state() == "wlan0: up, no address"
        namespace.ip("addr", "add", "192.0.2.1/24", "dev", "wlan0")
        assert state() == "wlan0: up, no route"
        namespace.ip("route", "add", "default", "via", "192.0.2.2")
        assert state() == "wlan0: available"
        namespace.far_ip("link", "set", "wlan0", "down")
        wait_until(lambda: state() == "wlan0: up, no carrier")


def test_summary_has_the_defaults(tmp_path: Path, systemctl: Callable[..., None]) -> None:
    systemctl("masked", "inactive")
    done = checked(config_without_state(tmp_path))
    assert "\nlisten       [::]:2948 (UDP)\nstate        /var/lib/dmnotid" in done.out


def test_summary_has_the_state_directory_of_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/other")
    assert f"\nstate        {tmp_path}/other\n" in checked(config_without_state(tmp_path)).out


def test_problems_are_printed_all_at_once(tmp_path: Path) -> None:
    config = tmp_path / "dmnotid.yaml"
    config.touch(mode=0o600)
    config.write_text(
        "servers:\n"
        "  - {id: a, secret: {text: lantern-and-rope-0042}}\n"
        "  - {id: a, secret: {text: lantern-and-rope-0042x}}\n"
        "hook: {}\n"
        "listen: 5\n"
        "freshnes: {}\n"
    )
    done = checked(config)
    assert (done.status, done.out) == (1, "")
    places = [line.removeprefix(f"{config}:").split(" ")[:2] for line in done.err.splitlines()]
    assert places == [
        ["3:10:", "servers[1].id:"],
        ["3:21:", "servers[1].secret:"],
        ["4:7:", "hook.command:"],
        ["5:9:", "listen:"],
        ["6:1:", "freshnes:"],
    ]
    assert not shows_secret(done.err)


def test_missing_configuration_is_a_problem(tmp_path: Path) -> None:
    done = checked(tmp_path / "none")
    assert done == Done(1, "", f"{tmp_path}/none: cannot be read: No such file or directory\n")


def test_configuration_is_a_problem_if_others_can_write_it(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    config.chmod(0o666)
    assert checked(config) == Done(1, "", f"{config}: {config}: writable by others: chmod go-w {config}\n")


def test_secret_file_is_a_problem_if_others_can_write_its_directory(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    secret = secrets / "key"
    secret.touch(mode=0o600)
    secret.write_bytes(SECRET)
    config = write_config(tmp_path, "- {id: a, secret: {file: secrets/key}}")
    secrets.chmod(0o777)
    problem = f"servers[0].secret.file: {secrets}: writable by others: chmod go-w {secrets}"
    assert checked(config) == Done(1, "", f"{config}:2:28: {problem}\n")


@pytest.mark.parametrize(
    "words",
    [["send", "--to", "127.0.0.1:9"], ["decode", "00"], ["links"], ["test-hook"]],
    ids=["send", "decode", "links", "test-hook"],
)
def test_command_that_starts_no_program_reads_a_configuration_that_others_can_write(
    words: list[str], tmp_path: Path
) -> None:
    """As in the directories of developers whose umask is 002."""
    config = write_config(tmp_path)
    tmp_path.chmod(0o777)
    assert "chmod go-w" in checked(config).err
    assert "chmod go-w" not in call(words[0], "--config", str(config), *words[1:]).err


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        (0o775, "writable by its group"),
        (0o757, "writable by others"),
        (0o755, "its first line, '', is not a #! line"),
        (0o644, "not executable"),
        (None, "No such file"),
    ],
)
def test_hook_that_would_not_be_started_is_a_problem_after_the_summary(
    mode: int | None, problem: str, tmp_path: Path
) -> None:
    hook = tmp_path / "hook"
    if mode is not None:
        hook.touch()
        hook.chmod(mode)
    done = checked(write_config(tmp_path, hook=str(hook)))
    assert done.status == 1
    state = "not trusted" if "writable" in problem else "not startable"
    assert f"\nhook         '{hook}': {state} ({hook}: {problem}" in done.out
    assert done.err.startswith(f"hook.command: {state}, so no session would start: {hook}: {problem}")
    assert len(done.err.splitlines()) == 1


def write_socket_config(directory: Path, path: str) -> Path:
    config = write_config(directory)
    config.write_text(config.read_text().replace("command: ['/bin/true']", f"socket: '{path}'"))
    return config


def test_trusted_socket_is_reported_with_its_absolute_path(tmp_path: Path) -> None:
    config, path = write_socket_config(tmp_path, "session"), tmp_path / "session"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o666)
        done = checked(config)
    assert (done.status, done.err) == (0, "")
    assert f"\nhook         socket '{path}': its path is trusted\n" in done.out


@pytest.mark.parametrize(("kind", "problem"), [("none", "No such file or directory"), ("file", "not a socket")])
def test_unusable_socket_is_a_problem(kind: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    done = checked(write_socket_config(tmp_path, str(tmp_path / kind)))
    assert done.status == 1
    assert f"\nhook         socket '{tmp_path}/{kind}': not startable ({tmp_path}/{kind}: {problem})\n" in done.out
    why = f"{tmp_path}/{kind}: {problem}"
    assert done.err == f"hook.socket: not startable, so no session would start: {why}\n"


def test_warning_does_not_fail(tmp_path: Path) -> None:
    config = write_config(tmp_path, "- {id: a, secret: {text: hush-hush}}")
    done = checked(config)
    assert done.status == 0
    assert done.err.startswith(f"warning: {config}:2:28: servers[0].secret.text: has only 9 octets")
    assert not shows_secret(done.out + done.err, b"hush-hush")


SECRETS = {
    "text": "{text: lantern-and-rope-0042}",
    "hex": f"{{hex: {SECRET.hex()}}}",
    "base64": "{base64: bGFudGVybi1hbmQtcm9wZS0wMDQy}",
    "file": "{file: secret}",
    "credential": "{credential: dm}",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("more", ["", "listen: 5\n", "sources: [\n"])
def test_secret_is_not_shown(
    kind: str, more: str, secret_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    secret_file.with_name("dm").symlink_to(secret_file)
    config = write_config(tmp_path, f"- {{id: dm, secret: {SECRETS[kind]}}}", more)
    done = checked(config)
    assert done.status == bool(more)
    assert "a secret of 21 octets" in done.out or more
    assert not shows_secret(done.out + done.err)
