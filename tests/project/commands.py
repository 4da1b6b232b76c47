"""Every command that the documents print, and how it is tested.

Commands are the lines of code blocks of the language `sh`, those after `$ ` in blocks of the language `console`, and
code within sentences that begins with one of PROGRAMS. tests/project/test_commands.py runs those of dmnotid itself as
they are printed; every other one is in a table below.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "contrib/**/*.md")
    for page in PROJECT.glob(pattern)
)

PROGRAMS: Final = (
    r"(?:\.venv/bin/\S+|adduser|apt|dmnotid|docker|make|pip|podman|promtool|systemctl|systemd/install|timedatectl)"
)
"""Programs whose name and arguments within a sentence are a command, and not only a name."""

MACHINE: Final = (
    # Installation, first steps
    (
        "systemd-ask-password 'Secret of dm.example.com:' | install -o dmnotid -m 0400 /dev/stdin "
        "/etc/dmnotid/dm.example.com.secret"
    ),
    "systemd-ask-password 'Secret of dm.example.com:' | install -m 0400 /dev/stdin /etc/dmnotid/dm.example.com",
    "mkdir -p -m 0700 /etc/credstore.encrypted",
    (
        "systemd-ask-password 'Secret of dm.example.com:' | systemd-creds encrypt --name=dm.example.com - "
        "/etc/credstore.encrypted/dm.example.com"
    ),
    "systemctl enable --now dmnotid.service",
    "systemctl status dmnotid.service",
    "runuser -u dmnotid -- dmnotid test-hook --run",
    "systemctl reload dmnotid.service",
    # Another port
    "systemctl stop dmnotid.socket dmnotid.service",
    "systemctl start dmnotid.service",
    "systemctl mask --now dmnotid.socket",
    "systemctl restart dmnotid.service",
    "systemctl stop dmnotid.service",
    "systemctl unmask dmnotid.socket",
    "systemctl start dmnotid",
    # Handing over
    "mkdir -p /etc/systemd/system/dmnotid.service.d",
    "ln -s /usr/share/dmnotid/handoff.conf /etc/systemd/system/dmnotid.service.d/",
    "systemctl daemon-reload",
    "systemctl enable --now dmnotid-session.socket",
    "systemctl try-restart dmnotid.service",
    # Metrics
    "systemctl enable --now dmnotid-metrics.timer",
    "systemctl enable --now dmnotid-metrics.socket",
    # The log
    "journalctl -u dmnotid DMNOTID_SERVER_ID=dm.example.com",
    'journalctl -u dmnotid DMNOTID_EVENT="datagram discarded" -o cat',
    "journalctl -u dmnotid DMNOTID_SESSION=607 -x",
    'journalctl -u dmnotid -x DMNOTID_EVENT="reload refused"',
    "journalctl -u dmnotid.service -b",
    "journalctl -u dmnotid.service DMNOTID_SECRET=former",
    "journalctl -u dmnotid.service -p err",
)
"""Commands that tests/system/test_commands.py runs on a booted machine with the Debian package, in this order."""

ELSEWHERE: Final = {
    "tests/system/test_install.py::test_the_virtual_environment_from_installation_to_purge": (
        "systemd/install",
        "systemd/install --uninstall",
        "systemd/install --purge",
    ),
    "tests/system/test_install.py::test_invalid_command_line_changes_nothing": ("systemd/install --help",),
    "tests/system/test_bearers.py::test_bearer_is_ready_when_the_bus_is_there": (
        "systemctl enable --now dmnotid-modemmanager.service",
        "systemctl enable --now dmnotid-ofono.service",
        "journalctl -u dmnotid-modemmanager -u dmnotid-ofono",
    ),
    "tests/system/test_reload.py::test_hangup_with_a_bad_file_is_told_in_the_status_line": (
        "systemctl kill --signal=HUP dmnotid.service",
    ),
    "tests/system/test_restart.py::test_killed_daemon_is_started_again": (
        "systemctl show -p NRestarts dmnotid.service",
        "systemctl reset-failed dmnotid.service",
    ),
    "tests/system/test_metrics.py::test_scrape_has_the_counts_of_the_daemon_until_it_stops": (
        "curl -s http://127.0.0.1:9948/metrics",
    ),
    "tests/system/test_doors.py::test_steps_of_the_installation_page_open_doors": (
        "systemctl enable dmnotid-doors.socket",
        "systemctl disable --now dmnotid-doors.socket",
        "dmnotid send --to unix:/run/dmnotid-doors/push.sock --config /etc/dmnotid/dmnotid.yaml",
    ),
    "tests/system/test_doors.py::test_door_whose_file_was_removed_is_opened_again_as_the_reload_says": (
        "systemctl stop dmnotid-doors.socket",
    ),
    "tests/system/test_varlinkctl.py::test_varlinkctl_describes_and_calls_every_kind_of_method": (
        "varlinkctl introspect unix:/run/dmnotid/control io.dmnotid",
        "varlinkctl call unix:/run/dmnotid/control io.dmnotid.Status '{}'",
        'varlinkctl call --more unix:/run/dmnotid/control io.dmnotid.Sessions \'{"states": ["failed"]}\'',
    ),
    "tests/project/packaging.py::build_deb": ("make deb",),
    "tests/project/test_man.py::pages": ("make man",),
    "tests/project/test_site.py::site": ("make site PYTHON=.venv/bin/python", ".venv/bin/pip install -q '.[site]'"),
    "tests/project/test_generated.py::test_schema_is_fresh": ("make docs PYTHON=.venv/bin/python",),
    "tests/project/test_release.py::test_distributions_are_those_of_another_place_and_time": (
        "make dist PYTHON=.venv/bin/python",
        "make dist deb sbom PYTHON=.venv/bin/python",
    ),
    "tests/project/test_release.py::test_sbom_follows_its_schema_and_names_every_package": ("make sbom",),
    "tests/project/test_release.py::test_release_writes_the_version_and_its_date_everywhere": (
        "make release VERSION=1.2.3 PYTHON=.venv/bin/python",
    ),
    "tests/project/test_alerts.py::test_promtool_accepts_the_rules": ("promtool check rules alerts.yml",),
    "tests/proofs/test_soak.py::test_a_quarter_of_a_minute_of_everything": (
        ".venv/bin/python -m tests.proofs.soak --seconds 600",
    ),
    "tests/proofs/test_crash.py::test_daemon_that_is_killed_loses_nothing": (
        ".venv/bin/python -m tests.proofs.crash --rounds 5000",
    ),
    "tests/proofs/test_power_cut.py::test_every_promise_is_kept_whenever_the_power_is_cut": (
        ".venv/bin/python -m tests.proofs.power_cut --cuts 1000",
    ),
}
"""By the function of a test that runs them, perhaps in another form or for a shorter time: commands."""

CI: Final = (
    "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/dmnotid demo",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]'",
    ".venv/bin/pip install -q -e '.[dev,release]'",
    ".venv/bin/pytest",
    ".venv/bin/python -m benchmarks",
    ".venv/bin/python -m benchmarks waking pure",
    ".venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy",
)
"""Commands that .ci/run runs, beside the tests: with other options, or for an environment of another name."""

NOWHERE: Final = {
    "needs a mirror of Debian; .ci/run installs the same packages": (
        "apt install python3-venv",
        "apt install build-essential debhelper dh-python pybuild-plugin-pyproject python3-setuptools pandoc",
    ),
    "needs a mirror of Debian; tests/system/test_install.py and test_upgrade.py do the same with dpkg": (
        "apt install ./dist/dmnotid_*_all.deb",
        "apt install ./dmnotid_NEW_all.deb",
        "apt remove dmnotid",
        "apt purge dmnotid",
    ),
    "needs node_exporter; test_timer_writes_the_file reads the file that it would publish": (
        "apt install prometheus-node-exporter",
        "curl -s http://localhost:9100/metrics | grep ^dmnotid_",
    ),
    "needs a release on the package index": ("pip install 'dmnotid[sms]'",),
    "opens an editor; the tests write the drop-in": (
        "systemctl edit dmnotid.service",
        "systemctl edit dmnotid.socket",
        "systemctl edit dmnotid-doors.socket",
        "systemctl edit dmnotid-session@.service",
        "systemctl edit dmnotid-metrics.service",
        "systemctl edit dmnotid-metrics.socket",
    ),
    "needs a build directory of OpenEmbedded; tests/project/test_yocto.py parses the layer with the same parser": (
        "bitbake-layers add-layer CHECKOUT/contrib/yocto/meta-dmnotid",
    ),
    "takes an hour, with emulated processors or another release of Debian": (
        "DMNOTID_TEST_RELEASE=trixie .venv/bin/pytest -m system tests/system tests/project/test_package.py",
        "apt install mmdebstrap qemu-user-static",
        "tests/foreign/run arm64 -n 2",
        "tests/foreign/run armhf --rest",
        'for emulator in /proc/sys/fs/binfmt_misc/qemu-*; do echo -1 >"$emulator"; done',
    ),
    "takes the latest versions of the dependencies, which change each day": ("make lock PYTHON=.venv/bin/python",),
    "needs systemd-timesyncd or systemd-timedated with D-Bus, which the machine of the tests has not": (
        "timedatectl",
        "timedatectl set-ntp true",
        "systemctl enable systemd-time-wait-sync.service",
    ),
    "the sqlite3 of Debian 12 has no .recover; test_file_that_an_operator_recovered_* has its result": (
        "cd /var/lib/dmnotid",
        "sqlite3 journal-corrupt-DATE.sqlite3 '.recover --ignore-freelist' | sqlite3 journal-damaged.sqlite3",
        "chown dmnotid: journal-damaged.sqlite3",
    ),
    "names a user of the reader's machine": ("adduser USER dmnotid",),
    "needs a container engine": ("docker run --init", "podman run --init"),
    "is a measurement of a few minutes; the page has its figures": (
        ".venv/bin/python -m benchmarks.journal_size",
        ".venv/bin/python -m benchmarks.links",
    ),
}
"""By the reason why no test runs them: commands."""


def listed() -> list[str]:
    """Return every command of the tables."""
    return [*MACHINE, *CI, *(command for table in (ELSEWHERE, NOWHERE) for row in table.values() for command in row)]


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Return the language and the text of every fenced code block of a page."""
    for indent, language, text in re.findall(r"(?ms)^( *)```(\w*)\n(.*?)^\1```$", page.read_text(encoding="utf-8")):
        yield language, re.sub(f"(?m)^{indent}", "", text)


def commands(language: str, text: str) -> Iterator[str]:
    """Return the commands of a code block, each on one line and without a comment after it."""
    if language == "console":
        text = "\n".join(re.findall(r"(?m)^\$ (.*)$", text))
    elif language != "sh" or text.startswith("#!"):
        return
    text = re.sub(r"\s*\\\n\s*", " ", text)
    text = re.sub(r"\|\n\s*", "| ", text)
    for line in text.splitlines():
        if command := re.sub(r"(^|\s+)# .*", "", line).strip():
            yield command


def scripts() -> dict[str, str]:
    """Return every script that the documents print, by its first command."""
    found = [text for page in PAGES for language, text in blocks(page) if language == "sh" and text.startswith("#!")]
    return {re.findall(r"(?m)^(?!#)(\S+)", text)[0]: text for text in found}


def mentions(page: Path) -> Iterator[str]:
    """Return the commands within the sentences of a page: code that begins with a program and has arguments."""
    text = re.sub(r"(?ms)^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"))
    for found in re.findall(rf"(?<!`)`({PROGRAMS}\s[^`]+)`(?!`)", text):
        yield " ".join(found.split())


def all_commands() -> dict[str, list[str]]:
    """Return every command, with the pages that have it; mentions of dmnotid itself are left out."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        # The README has two commands in indented blocks, which .ci/run reads.
        page_commands = re.findall(r"(?m)^    (python3 -m venv .*)$", page.read_text(encoding="utf-8"))
        page_commands += [command for block in blocks(page) for command in commands(*block)]
        page_commands += [command for command in mentions(page) if not command.startswith("dmnotid ")]
        for command in page_commands:
            found.setdefault(command, []).append(str(page.relative_to(PROJECT)))
    return found
