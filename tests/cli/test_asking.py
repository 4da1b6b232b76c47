"""Commands that ask the daemon, where none answers: each names the cause, and exits with 3 or 4."""

import os
import re
import socket
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dmnotid.cli.asking import refusal
from dmnotid.control.client import Failed
from tests import forked
from tests.cli.program import PATIENCE, PROGRAM, Done, call, write_config
from tests.peers import listening, served
from tests.processes import WITHOUT_PRIVILEGES, needs_setpriv
from tests.support import further

COMMANDS = (
    *(["status"], ["status", "--all"], ["sessions", "cancel", "7"]),
    *further(["follow"], ["discards"], ["reload"], ["sessions"], ["sessions", "retry", "7"]),
)


def printed(done: Done) -> str:
    """Return what a command printed first about a daemon that does not answer: status shows it as its answer."""
    return (done.out or done.err).splitlines()[0]


def as_nobody(*words: str, directory: Path) -> Done:
    """Run a command as a user without privileges, for the daemon of a directory."""
    done = forked.run(words, os.environ | {"RUNTIME_DIRECTORY": str(directory)}, prefix=WITHOUT_PRIVILEGES)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_daemon_is_exit_status_3(words: list[str], tmp_path: Path) -> None:
    # systemd separates several directories with colons.
    done = call(*words, RUNTIME_DIRECTORY=f"{tmp_path}:/run/other")
    assert done.status == 3
    assert printed(done) == f"dmnotid does not run ({tmp_path}/control: no daemon listens there)"


def test_daemon_that_does_not_accept_may_be_starting(tmp_path: Path) -> None:
    with listening(tmp_path / "control"):
        done = call("status", RUNTIME_DIRECTORY=str(tmp_path))
    assert done.status == 3
    problem = "the daemon does not answer; it may be starting or stopping"
    assert printed(done) == f"dmnotid does not answer ({tmp_path}/control: {problem})"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_daemon_that_closes_the_connection_is_exit_status_3(words: list[str], tmp_path: Path) -> None:
    with listening(tmp_path / "control") as sock:
        command = [*PROGRAM, *words, "--socket", str(tmp_path / "control")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            sock.settimeout(PATIENCE)
            connection, _ = sock.accept()
            # The request is read first: unread octets would reset the connection.
            connection.recv(65_536)
            connection.close()
            out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    problem = "the daemon closed the connection before its answer was complete"
    assert out == f"dmnotid does not answer ({tmp_path}/control: {problem})\n"


@needs_setpriv
@pytest.mark.parametrize("words", [*COMMANDS, ["metrics"]], ids=" ".join)
@pytest.mark.parametrize("closed", ["run/control", "run"])
def test_user_without_permission_is_exit_status_4(words: list[str], closed: str, tmp_path: Path) -> None:
    """For the socket, or for its directory."""
    directory = tmp_path / "run"
    directory.mkdir()
    with listening(directory / "control"):
        (tmp_path / closed).chmod(0)
        done = as_nobody(*words, directory=directory)
        directory.chmod(0o700)
    assert done.status == 4
    assert (done.out or done.err).startswith(f"dmnotid does not answer ({directory}/control: only root, ")


@needs_setpriv
@pytest.mark.parametrize(
    ("mode", "status", "word"),
    [(None, 2, "CRITICAL dmnotid does not run"), (0, 3, "UNKNOWN dmnotid does not answer")],
)
def test_check_without_an_answer_is_critical_or_unknown(
    mode: int | None, status: int, word: str, tmp_path: Path
) -> None:
    with listening(tmp_path / "control") as sock:
        sock.close() if mode is None else (tmp_path / "control").chmod(mode)
        done = as_nobody("status", "--check", directory=tmp_path)
    assert (done.status, done.err) == (status, "")
    assert done.out.startswith(word)


@pytest.mark.parametrize(
    ("error", "facts", "lines"),
    [
        (
            "Refused",
            {"problems": [{"place": "f:4:5: hook", "message": "is missing"}, {"place": "", "message": "no\nmemory"}]},
            ["f:4:5: hook: is missing", "no\\nmemory"],
        ),
        (
            "NoSuchSession",
            {"session": 7},
            ["session 7 does not exist, or is forgotten; dmnotid sessions --all lists the others"],
        ),
        ("NotPending", {"session": 7, "state": "done"}, ["session 7 is not pending (done), so nothing has changed"]),
        (
            "NotKept",
            {"session": 7, "state": "failed"},
            [
                (
                    "session 7 (failed) cannot be opened again: an older dmnotid has not kept its notification;"
                    " its server has to send a new one"
                )
            ],
        ),
        (
            "TooManyClients",
            {"most": 8},
            ["the daemon has 8 clients, the maximum; try again once one of them has ended"],
        ),
        ("NotPermitted", {}, ["only root and the daemon's own user may do this"]),
        ("org.varlink.service.MethodNotFound", {"method": "x"}, ["org.varlink.service.MethodNotFound: method x"]),
    ],
)
def test_refusal_is_explained(error: str, facts: dict[str, object], lines: list[str]) -> None:
    assert refusal(Failed(error, facts)) == lines


def answering(path: Path, reply: bytes) -> AbstractContextManager[None]:
    """Answer each request with the same reply."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(reply)

    return served(path, serve)


@pytest.mark.parametrize(
    "words",
    [
        *(["status"], ["status", "--check"], ["sessions"], ["sessions", "retry", "7"]),
        *further(["sessions", "7"], ["sessions", "cancel", "7"], ["follow"], ["discards"], ["reload"], ["metrics"]),
    ],
    ids=" ".join,
)
def test_answer_of_another_form_is_explained(words: list[str], tmp_path: Path) -> None:
    with answering(tmp_path / "control", b'{"parameters":{"other":1}}\0'):
        done = call(*words, RUNTIME_DIRECTORY=str(tmp_path))
    assert done.status == 3
    assert re.fullmatch(
        r"(UNKNOWN )?the daemon's answer is not as this dmnotid expects it \(KeyError\('\w+'\)\); if it is of another"
        r" version, restart it\n",
        done.out or done.err,
    )


def test_check_of_a_daemon_with_too_many_clients_is_unknown(tmp_path: Path) -> None:
    error = b'{"error":"io.dmnotid.TooManyClients","parameters":{"most":8}}\0'
    with answering(tmp_path / "control", error):
        done = call("status", "--check", RUNTIME_DIRECTORY=str(tmp_path))
    text = "the daemon has 8 clients, the maximum; try again once one of them has ended"
    assert done == Done(3, f"UNKNOWN {text}\n", "")


def test_configuration_names_the_socket(tmp_path: Path) -> None:
    config = write_config(tmp_path, more=f"control: {{socket: {tmp_path}/other}}\n")
    done = call("sessions", "--config", str(config))
    assert printed(done) == f"dmnotid does not run ({tmp_path}/other: no daemon listens there)"


def test_configuration_with_a_problem_is_reported(tmp_path: Path) -> None:
    config = write_config(tmp_path, more="control: {socket: 5}\n")
    done = call("sessions", "--config", str(config))
    assert (done.status, done.out) == (1, "")
    assert done.err.startswith(f"{config}:")
    assert "control.socket" in done.err
