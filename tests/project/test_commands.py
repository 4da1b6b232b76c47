"""Every command that the documents print is run, or listed with the reason why it can't be."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Service
from tests.project.commands import CI, ELSEWHERE, PAGES, PROJECT, all_commands, blocks, listed, mentions, scripts
from tests.project.completion import actions_of
from tests.project.test_conformance import functions_in
from tests.project.test_events import PROVOKED
from tests.support import further, wait_until

COMMANDS = all_commands()
LISTED = {*listed(), *PROVOKED.values()}
OURS = re.compile(r"(cat|install|ip|ls|ss|dmnotid)\b")
"""What is run here, unless it is listed: what a test can run anywhere, and every command of dmnotid."""
RUN_HERE = [command for command in COMMANDS if command not in LISTED and OURS.match(command)]

LANGUAGES = {"console", "ini", "json", "python", "sh", "text", "yaml"}

STATUS = {
    "dmnotid test-hook --run": 1,
    "dmnotid decode 01 06 03 d8 af 87 20 80 12 34 10 0e 64 6d 2e": 1,
    "dmnotid discards | dmnotid decode --config /etc/dmnotid/dmnotid.yaml": 1,
}
"""Exit statuses other than 0: `decode` fails for a discarded datagram, and the hook of this test always fails."""


def test_every_command_is_run_or_listed() -> None:
    known = {*LISTED, *RUN_HERE}
    # A sentence may name a command without its last arguments, such as `make release`.
    found = [command for command in COMMANDS if not any(f"{other} ".startswith(f"{command} ") for other in known)]
    assert found == [], "run it in a test, or add it to a table of tests/project/commands.py"


def test_every_listed_command_is_in_a_document() -> None:
    assert [command for command in LISTED if command not in COMMANDS] == []


def test_every_command_is_listed_once() -> None:
    commands = [*listed(), *PROVOKED.values()]
    assert [command for command in LISTED if commands.count(command) > 1] == []


@pytest.mark.parametrize("place", ELSEWHERE)
def test_function_that_runs_commands_exists(place: str) -> None:
    path, _, name = place.partition("::")
    assert name in functions_in(path)


MENTIONS = sorted({command for page in PAGES for command in mentions(page) if command.startswith("dmnotid ")})


@pytest.mark.parametrize("command", MENTIONS)
def test_command_in_a_sentence_has_options_that_exist(command: str) -> None:
    _, name, *words = command.split()
    options = {option for action in actions_of(name) for option in action.option_strings} if name[0] != "-" else set()
    assert [word for word in words if word[:2] == "--" and word not in {*options, "--help"}] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_code_block_has_a_language(page: Path) -> None:
    """An indented block, or one without a language, would hide its commands."""
    assert {language for language, _ in blocks(page)} <= LANGUAGES
    text = re.sub(r"(?ms)^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"))
    indented = re.findall(r"(?m)^\n {4,}(?![*-] |\d+\. )(\S.*)$", text)
    assert [line for line in indented if line not in CI] == []
    assert "```" not in text


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in place of /etc/dmnotid, with the configuration of a server whose sessions fail."""
    directory = tmp_path_factory.mktemp("etc")
    file = directory / "dmnotid.yaml"
    file.touch(mode=0o600)
    file.write_text(f"""\
servers:
  - {{id: dm.example.com, secret: {{file: test.example.secret}}}}
  - {{id: test.example, secret: {{text: another secret of some length}}}}
hook: {{command: [/bin/false]}}
listen: 127.0.0.1:0
state: {directory}/state
control: {{socket: {directory}/run/control}}
connections: {{reach: any, settle: 0, wireline: {{interfaces: [lo]}}}}
""")
    secret = directory / "test.example.secret"
    secret.touch(mode=0o600)
    secret.write_text("a secret of some length")
    (directory / "run").mkdir()
    # The name that the documents use, for a shell.
    program = directory / "bin/dmnotid"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dmnotid "$@"\n')
    program.chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def service(directory: Path) -> Iterator[Service]:
    """A daemon with two paused sessions and a discarded datagram."""
    service = Service(directory / "dmnotid.yaml", directory / "log", forked=True)
    try:
        for more in ("--id 1", "--id 2", "--break digest-mismatch"):
            run(directory, service, f"dmnotid send --config FILE --server dm.example.com {more}")
        wait_until(lambda: len(service.of("session try failed")) == 2 and service.reasons() == ["digest-mismatch"])
        yield service
    finally:
        service.stop()


def run(directory: Path, service: Service, command: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the documents with what this test has in place of the names that they use."""
    host, port = service.address
    command = re.sub(r"dmnotid (check|test-hook|reload)\b(?!.*--config)", r"dmnotid \1 --config FILE", command)
    changes = {
        # First, because the path of a directory and a port can have these digits too.
        "607": "1", "608": "2",
        "/etc/dmnotid/dmnotid.yaml": "FILE", "/etc/dmnotid": str(directory), "FILE": str(directory / "dmnotid.yaml"),
        "dmnotid send": f"dmnotid send --to {host}:{port}", "wwan0": "lo",
        "examples/": f"{PROJECT}/examples/",
    }  # fmt: skip
    for printed, here in changes.items():
        command = command.replace(printed, here)
    environment = {
        **os.environ,
        "PATH": f"{directory}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "RUNTIME_DIRECTORY": str(directory / "run"),
        "XDG_STATE_HOME": str(directory),
    }
    return subprocess.run(
        ["/bin/sh", "-c", command], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", [*RUN_HERE[:4], *further(*RUN_HERE[4:])])
def test_command_of_the_documents_works(directory: Path, service: Service, command: str) -> None:
    program = command.split(maxsplit=1)[0]
    if program != "dmnotid" and shutil.which(program) is None:
        pytest.skip(f"needs {program}")
    done = run(directory, service, command)
    assert done.returncode == STATUS.get(command, 0), done.stdout + done.stderr


def test_output_of_decode_is_as_the_page_shows_it(directory: Path, service: Service) -> None:
    (shown,) = re.findall(r"(?ms)^\$ (dmnotid decode [^\n]+)\n…\n(.*?)```", (PROJECT / "docs/operating.md").read_text())
    assert run(directory, service, shown[0]).stdout.rstrip().endswith(shown[1].rstrip())


@pytest.mark.parametrize(("client", "status"), [(0, 0), (4, 78), (9, 75)])
def test_hook_of_the_page_translates_the_status_of_its_client(tmp_path: Path, client: int, status: int) -> None:
    assert run_script("dm-client", tmp_path, client).returncode == status


@pytest.mark.parametrize("status", [0, 75])
def test_program_behind_a_socket_answers_with_the_status_of_its_command(tmp_path: Path, status: int) -> None:
    assert run_script("start-dm-session", tmp_path, status).stdout == f'{{"exit": {status}}}\n'


def run_script(name: str, directory: Path, status: int) -> "subprocess.CompletedProcess[str]":
    """Run the script of a page that begins with a command, of which this test makes one that ends with `status`."""
    for file, text in ((name, f"#!/bin/sh\nexit {status}\n"), ("script", scripts()[name])):
        (directory / file).write_text(text)
        (directory / file).chmod(0o755)
    environment = {"PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run([directory / "script"], env=environment, capture_output=True, text=True, check=False)


def test_every_script_of_the_documents_is_run() -> None:
    assert scripts().keys() == {"dm-client", "start-dm-session"}
