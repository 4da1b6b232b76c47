"""Every command that the documents print, and how it is tested.

Commands are the lines of code blocks of the language `sh`, and those after `$ ` in blocks of the language `console`.
tests/project/test_commands.py runs those of dmnotid itself as they are printed; every other one is in a table below.
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
    "systemd/install": "tests/system/test_install.py::test_the_virtual_environment_from_installation_to_purge",
    "make deb": "tests/project/packaging.py::build_deb",
    "make dist deb sbom PYTHON=.venv/bin/python": (
        "tests/project/test_release.py::test_distributions_are_those_of_another_place_and_time"
    ),
    "make release VERSION=1.2.3 PYTHON=.venv/bin/python": (
        "tests/project/test_release.py::test_release_writes_the_version_and_its_date_everywhere"
    ),
    "varlinkctl introspect unix:/run/dmnotid/control io.dmnotid": (
        "tests/system/test_varlinkctl.py::test_varlinkctl_describes_and_calls_every_kind_of_method"
    ),
    "varlinkctl call unix:/run/dmnotid/control io.dmnotid.Status '{}'": (
        "tests/system/test_varlinkctl.py::test_varlinkctl_describes_and_calls_every_kind_of_method"
    ),
    'varlinkctl call --more unix:/run/dmnotid/control io.dmnotid.Sessions \'{"states": ["failed"]}\'': (
        "tests/system/test_varlinkctl.py::test_varlinkctl_describes_and_calls_every_kind_of_method"
    ),
    "curl -s http://127.0.0.1:9948/metrics": (
        "tests/system/test_metrics.py::test_scrape_has_the_counts_of_the_daemon_until_it_stops"
    ),
}
"""Commands that other tests run, perhaps in another form: the function that does."""

CI: Final = (
    "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin/dmnotid demo",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest",
    "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]'",
    ".venv/bin/pip install -q -e '.[dev,release]'",
    ".venv/bin/pytest",
    ".venv/bin/python -m benchmarks",
    ".venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy",
)
"""Commands that .ci/run runs, beside the tests: with other options, or for an environment of another name."""

NOWHERE: Final = {
    "apt install python3-venv": "it needs a mirror of Debian; .ci/run installs the same package",
    "apt install build-essential debhelper dh-python pybuild-plugin-pyproject python3-setuptools pandoc": (
        "it needs a mirror of Debian; .ci/run installs the same packages"
    ),
    "apt install ./dist/dmnotid_*_all.deb": "it needs a mirror of Debian; test_install.py installs the file with dpkg",
    "apt install prometheus-node-exporter": "it needs a mirror of Debian",
    "curl -s http://localhost:9100/metrics | grep ^dmnotid_": (
        "it needs node_exporter; test_timer_writes_the_file reads the file that it would publish"
    ),
    "systemctl edit dmnotid.service": "it opens an editor; the tests write the drop-in",
    "make lock PYTHON=.venv/bin/python": "it takes the latest versions of the dependencies, which change each day",
    "timedatectl": "it needs systemd-timedated and D-Bus, which the machine of the tests has not",
    "cd /var/lib/dmnotid": "it is a step of the recipe with .recover, below",
    "sqlite3 journal-corrupt-DATE.sqlite3 '.recover --ignore-freelist' | sqlite3 journal-damaged.sqlite3": (
        "the sqlite3 of Debian 12 has no .recover; test_file_that_an_operator_recovered_* has its result"
    ),
    "chown dmnotid: journal-damaged.sqlite3": "it is a step of that recipe",
}
"""Commands that no test runs, and why."""


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


def all_commands() -> dict[str, list[str]]:
    """Return every command, with the pages that have it."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        name = str(page.relative_to(PROJECT))
        for block in blocks(page):
            for command in commands(*block):
                found.setdefault(command, []).append(name)
        # The README has these two in indented blocks, which .ci/run reads.
        for command in re.findall(r"(?m)^    (python3 -m venv .*)$", page.read_text(encoding="utf-8")):
            found.setdefault(command, []).append(name)
    return found
