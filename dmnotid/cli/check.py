"""`dmnotid check`: every problem of a configuration, or its meaning on this machine.

Root checks for the user of the service, as that user: then the kernel itself decides what it can read and write.
"""

import argparse
import os
import pwd
import re
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Final

from dmnotid.cli.hook_report import describe_problem, find_problem, print_problem
from dmnotid.cli.parser import UsageError
from dmnotid.cli.process import DEFAULT_CONFIG, EXIT_OK, EXIT_PROBLEM, WARNING, operator_environ, print_error
from dmnotid.cli.table import titled
from dmnotid.config.loading import load_config
from dmnotid.config.values import DEFAULT_STATE, Config, DoorConfig
from dmnotid.errors import ConfigError, DmnotidError, EndpointError, HookError, JournalError
from dmnotid.host.trust import check_trusted_path
from dmnotid.intake.doors import check_door, check_passed
from dmnotid.journal.file import FILE_NAME, check_state
from dmnotid.links.availability import read_links
from dmnotid.policy.servers import Server
from dmnotid.sentences import show_time

SERVICE_USER: Final = "dmnotid"

RUNTIME_DIRECTORY: Final = Path("/run/dmnotid")
"""RuntimeDirectory= of the service."""

_PATIENCE: Final = 10
"""Maximum time for an answer of systemctl, in seconds."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `dmnotid check`."""
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="default: %(default)s")
    default = f"default for root: the owner of `state`, or {SERVICE_USER} if that exists"
    parser.add_argument("--user", metavar="NAME", help=f"name or number of the user to check for ({default})")
    parser.add_argument(
        "--skip-credentials",
        action="store_true",
        help="do not read secrets that are systemd credentials: only the daemon has them",
    )
    parser.add_argument("--quiet", action="store_true", help="print problems only")


def main(arguments: argparse.Namespace) -> int:
    """Print a summary and return 0, or print all problems and return 1. No secret is ever shown."""
    # Before the user changes: only root sees the credentials of the service and, without D-Bus, its units.
    environ = operator_environ()
    units = _show_units()
    # Still as root, who can read every configuration.
    user = _find_user(arguments, environ)
    try:
        with _acting_as(user):
            status = _check(arguments, environ, units, user)
    except DmnotidError as error:
        print_error(error)
        status = EXIT_PROBLEM
    if status != EXIT_OK and user is not None:
        print_error(f"checked for the user {user.pw_name}; --user NAME checks for another")
    return status


def _find_user(arguments: argparse.Namespace, environ: Mapping[str, str]) -> pwd.struct_passwd | None:
    """Return the user to check for, None for the one that runs this command. Raises UsageError."""
    own = os.geteuid()
    if arguments.user is not None:
        try:
            # As in User= of a unit, digits are a number.
            number = int(arguments.user) if re.fullmatch(r"[0-9]{1,10}", arguments.user) else None
            user = pwd.getpwnam(arguments.user) if number is None else pwd.getpwuid(number)
        except KeyError:
            raise UsageError(f"--user: there is no user {arguments.user!r}") from None
        if own not in {0, user.pw_uid}:
            raise UsageError("--user NAME: only root can check for another user")
        # To become oneself takes no privilege, and changes nothing.
        return None if user.pw_uid == own else user
    if own:
        return None
    # The daemon runs as the owner of its state directory. A problem of the configuration is left to the check itself.
    with suppress(ConfigError, OSError, KeyError):
        owner = load_config(arguments.config, environ, wanted=lambda *_: False).state.stat().st_uid
        return pwd.getpwuid(owner) if owner else None
    with suppress(KeyError):
        return pwd.getpwnam(SERVICE_USER)
    return None


@contextmanager
def _acting_as(user: pwd.struct_passwd | None) -> Iterator[None]:
    if user is None:
        yield
        return
    groups = os.getgroups()
    try:
        # The groups first: without root's user id the kernel refuses to set them.
        os.initgroups(user.pw_name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, 0)
        # The real id changes too, because os.access() checks with that one and not with the effective id.
        # The saved id remains root's, for the way back.
        os.setresuid(user.pw_uid, user.pw_uid, 0)
    except PermissionError as error:
        # In a container, root may lack CAP_SETUID or CAP_SETGID.
        raise DmnotidError(f"root cannot act as the user {user.pw_name} here; use --user root") from error
    try:
        yield
    finally:
        # The user id first, because only root may set groups.
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


def _check(
    arguments: argparse.Namespace, environ: Mapping[str, str], units: Sequence[str], user: pwd.struct_passwd | None
) -> int:
    skip = arguments.skip_credentials
    config = load_config(
        arguments.config,
        environ,
        check_trusted_path,
        wanted=lambda _id, _key, form: not (skip and form == "credential"),
    )
    # For another file than that of the service, only a unit that has its sockets open matters.
    own, active = arguments.config == DEFAULT_CONFIG, {"ActiveState=active"}
    # The service starts its socket unit, but that of the doors only if it is enabled.
    passed = _passed_addresses(units[0], {*active, "LoadState=loaded"} if own else active)
    listed = _passed_addresses(units[1], {*active, "UnitFileState=enabled"} if own else active)
    # As the daemon compares them: an entry may have /var/run in place of /run.
    doors = [os.path.realpath(path) for path in listed]
    problem = find_problem(config.hook)
    # StateDirectory= of the service.
    state_made = user is not None and config.state == DEFAULT_STATE and not os.path.lexists(config.state)
    # Warnings too are left out: the daemon logs them at a reload.
    if not arguments.quiet:
        for warning in config.warnings:
            # On standard error, so that the summary alone is on standard output.
            print_error(f"warning: {warning}", WARNING)
        if passed and config.listen_given:
            print_error("warning: listen: is ignored, because dmnotid.socket passes its sockets", WARNING)
        for path in sorted({*doors} - {os.path.realpath(door.path) for door in config.doors}):
            print_error(f"warning: doors: {path} of dmnotid-doors.socket has no entry, so it is not read", WARNING)
        print(f"{config.file}: well-formed" + ("" if user is None else f" (checked for the user {user.pw_name})"))
        for line in summary(config, problem, passed, doors, read=not skip, made=state_made):
            print(line)
    if problem is not None:
        print_problem(config.hook, problem)
    _check_doors(config.doors, doors)
    if not state_made:
        check_state(config.state)
        _check_writable(config.state.absolute())
    return EXIT_OK if problem is None else EXIT_PROBLEM


def _check_writable(state: Path) -> None:
    """Ensure that this user can write to a state directory, or to the nearest directory above that exists."""
    # The daemon makes the missing directories below it.
    nearest = next(it for it in (state, *state.parents) if os.path.lexists(it))
    # SQLite also writes the files beside the journal, -wal and -shm, which can have another owner. Listed one by one,
    # because this user may not be able to enter the directory.
    for path in chain((nearest,), state.glob(f"{FILE_NAME}*")):
        if not os.access(path, os.W_OK | (os.X_OK if path == nearest else os.R_OK)):
            expected = "a directory and a journal that dmnotid can write to are expected"
            raise JournalError(f"state: {path}: Permission denied; {expected}")


def _check_doors(doors: Sequence[DoorConfig], passed: Collection[str]) -> None:
    """Ensure that this user can bind doors, and that no other user can replace them. Raises EndpointError."""
    for door in doors:
        directory = door.path.parent
        if os.path.realpath(door.path) in passed:
            # Its unit may be enabled, and not active yet.
            if door.path.exists():
                check_passed(door.path)
            continue
        # RuntimeDirectory= of the service, which systemd makes.
        if directory == RUNTIME_DIRECTORY and not directory.exists():
            continue
        check_door(door)
        if not os.access(directory, os.W_OK | os.X_OK):
            expected = "a directory that dmnotid can write to is expected, or a socket of dmnotid-doors.socket"
            raise EndpointError(f"doors: {directory}: Permission denied; {expected}")


def _passed_addresses(shown: str, in_force: Collection[str]) -> list[str]:
    """Return the addresses or paths of a socket unit with one of the properties `in_force`: systemd binds them."""
    # A unit that is not in use has addresses too, which the service then binds itself.
    if set(in_force).isdisjoint(shown.splitlines()):
        return []
    return re.findall(r"(?m)^Listen=(\S+) \(Datagram\)$", shown)


def _show_units() -> tuple[str, str]:
    """Return properties of the two socket units, for addresses and doors, a line each; nothing without systemd."""
    properties = "--property=LoadState,UnitFileState,ActiveState,Listen"
    command = ["systemctl", "show", properties, "dmnotid.socket", "dmnotid-doors.socket"]
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, and the systemctl of this system
            command, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        # Without systemd there is no socket unit, so `listen` applies.
        return "", ""
    # An empty line is between the units.
    addresses, _, doors = done.stdout.partition("\n\n")
    return addresses, doors


def summary(
    config: Config, problem: HookError | None, passed: Sequence[str], doors: Sequence[str], *, read: bool, made: bool
) -> Iterator[str]:
    """Describe a configuration, one fact a line.

    `problem` is why its hook would not be started. `passed` are the addresses, and `doors` the paths of doors without
    links, that the socket units pass. Secrets may not have been `read`, and the state may still have to be `made`.
    """
    yield from titled("servers", (_describe_server(server, read=read) for server in config.servers))
    # As in the daemon, passed sockets replace `listen`.
    addresses = ", ".join(passed or map(str, config.listen))
    yield f"listen       {addresses} ({'UDP, passed by dmnotid.socket' if passed else 'UDP'})"
    if config.doors:
        lines = []
        for door in config.doors:
            group = "" if door.group is None else f", group {door.group}"
            by_unit = os.path.realpath(door.path) in doors
            owner = "passed by dmnotid-doors.socket" if by_unit else f"mode {door.mode:04o}{group}"
            lines.append(f"{door.path} ({door.holds}, source {door.source}, {owner})")
        yield from titled("doors", lines)
    yield f"state        {config.state}{' (systemd makes it)' if made else ''}"
    socket = f"socket {str(config.hook.socket)!r}"
    hook = " ".join(map(repr, config.hook.command)) if config.hook.socket is None else socket
    yield f"hook         {hook}: {describe_problem(problem)}"
    yield from titled("connections", _links(config))


def _describe_server(server: Server, *, read: bool) -> str:
    # Random octets replace a secret that was not read, and their number has no meaning.
    def describe(name: str, secret: bytes) -> str:
        return f"a {name}" + (f" of {len(secret)} octets" if read else "")

    facts = ["no secret" if server.secret is None else describe("secret", server.secret)]
    if server.former_secret is not None:
        facts.append(describe("former secret", server.former_secret))
        if server.former_until is not None:
            # The end is midnight after the day that the file names.
            over = " (over)" if time.time() >= server.former_until else ""
            facts[-1] += f" until {show_time(server.former_until - 1)[:10]}{over}"
    # The meaning, and not the key, which few configurations have.
    facts.append("must sign" if server.require_digest else "may come unsigned")
    facts.append(f"from {', '.join(map(str, server.sources)) or 'anywhere'}")
    return f"{server.id!r}: {', '.join(facts)}"


def _links(config: Config) -> Iterator[str]:
    try:
        found = read_links(config.connections)
    except OSError as error:
        yield f"unknown: the network interfaces cannot be read: {error.strerror}"
        return
    for link in found:
        yield f"{link} ({link.type}: {link.why})"
    if not found:
        yield "no network interface at all"
