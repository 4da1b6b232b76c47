"""Both ways to install, in a clean Debian: install, upgrade, remove, purge. No system is booted in it."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import dmnotid
from tests.project.packaging import copy_sources, repacked, sms_package

pytestmark = [pytest.mark.root, pytest.mark.system]

NEWER = "9999.0"
UNITS = ("dmnotid.service", "dmnotid.socket", "dmnotid-doors.socket", "dmnotid-session.socket")
USERS = ("dmnotid", "dmnotid-session")
CONFIG = "/etc/dmnotid/dmnotid.yaml"
HOOK = "/etc/dmnotid/start-dm-session"
DROP_INS = "etc/systemd/system/dmnotid.service.d"


class CleanDebian:
    """A minimal Debian in a directory, in which nothing runs but what is told to; what dmnotid needs is there."""

    def __init__(self, root: Path, directory: Path) -> None:
        """Make it in a new directory, as a copy of a root that `make_root` made."""
        self.path = directory
        subprocess.run(["cp", "--archive", "--reflink=auto", root, directory], check=True)

    def run(self, *argv: str, status: int = 0) -> str:
        """Run a command in it; what it says. It must end with `status`."""
        inside = ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={self.path}/proc", "chroot", str(self.path)]
        environment = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
        done = subprocess.run(
            [*inside, *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def bring(self, source: Path) -> str:
        """Copy a file or directory into its /srv; the path there."""
        target = self.path / "srv" / source.name
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)
        return f"/srv/{source.name}"

    def find(self) -> set[str]:
        """Return every path that has to do with dmnotid: none is deeper than the first directory of that name."""
        found = subprocess.run(
            ["find", ".", "-xdev", "-path", "./srv", "-prune", "-o", "-name", "*dmnotid*", "-prune", "-print"],
            cwd=self.path, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        return {path.removeprefix(".") for path in found.splitlines()}


@pytest.fixture(scope="module")
def fresh(base_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CleanDebian]:
    directory = tmp_path_factory.mktemp("debian")
    directory.chmod(0o755)
    yield CleanDebian(base_root, directory / "root")
    subprocess.run(["rm", "-rf", directory], check=True)  # it is large


@pytest.fixture
def debian(fresh: CleanDebian) -> Iterator[CleanDebian]:
    """A Debian without dmnotid; users stay in it from one test to the next, as they do."""
    assert fresh.find() == set()
    yield fresh
    subprocess.run(["rm", "-rf", fresh.path / "etc/dmnotid", fresh.path / "srv"], check=True)
    (fresh.path / "srv").mkdir()


def provision(debian: CleanDebian) -> Path:
    """Do the first steps of docs/install.md; the secret's file."""
    secret = (
        "printf %s 'a secret of some length' | install -o dmnotid -m 0400 /dev/stdin /etc/dmnotid/dm.example.com.secret"
    )
    debian.run("sh", "-c", secret)
    hook = debian.path / HOOK.removeprefix("/")
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    journal = debian.path / "var/lib/dmnotid/journal.sqlite3"
    journal.parent.mkdir()
    journal.touch()
    debian.run("chown", "-R", "dmnotid:", "/var/lib/dmnotid")
    with (debian.path / CONFIG.removeprefix("/")).open("a") as config:
        config.write("# changed here\n")
    return debian.path / "etc/dmnotid/dm.example.com.secret"


def enabled(debian: CleanDebian) -> list[str]:
    known = [
        line.split() for line in debian.run("systemctl", "list-unit-files", "--no-legend", "dmnotid*").splitlines()
    ]
    return sorted(unit for unit, state, *_ in known if state == "enabled")


def linked(debian: CleanDebian) -> list[str]:
    """Return the names of the drop-ins of dmnotid.service."""
    return sorted(path.name for path in (debian.path / DROP_INS).glob("*"))


def restart_steps(debian: CleanDebian) -> list[str]:
    """Return the drop-in that an installation links: systemd has its settings since 254, and warned of them before."""
    version = int(debian.run("systemctl", "--version").split()[1])
    return ["restart-steps.conf"] if version >= 254 else []


def lacks_only_servers(debian: CleanDebian, program: str) -> bool:
    """Tell whether a fresh installation works, as far as it can without a server."""
    return "dm.example.com.secret cannot be read" in debian.run(program, "check", status=1)


def test_the_package_from_installation_to_purge(debian: CleanDebian, package: Path, tmp_path: Path) -> None:
    newer = debian.bring(repacked(package, NEWER, tmp_path))

    debian.run("dpkg", "--install", debian.bring(package))
    assert debian.run("dmnotid", "--version") == f"dmnotid {dmnotid.__version__}\n"
    assert " dmnotid: Reload refused\n" in debian.run("journalctl", "--list-catalog")
    debian.run("getent", "passwd", *USERS)
    assert enabled(debian) == []
    assert lacks_only_servers(debian, "/usr/bin/dmnotid")
    secret = provision(debian)
    assert "(checked for the user dmnotid)" in debian.run("dmnotid", "check")

    debian.run("systemctl", "enable", "dmnotid.service")
    drop_ins = debian.path / DROP_INS
    assert linked(debian) == restart_steps(debian)
    drop_ins.mkdir(exist_ok=True)
    (drop_ins / "handoff.conf").symlink_to("/usr/share/dmnotid/handoff.conf")
    debian.run("dpkg", "--install", newer)
    assert debian.run("dmnotid", "--version") == f"dmnotid {NEWER}\n"
    assert enabled(debian) == ["dmnotid.service", "dmnotid.socket"]
    debian.run("grep", "-q", "changed here", CONFIG)

    debian.run("dpkg", "--remove", "dmnotid")
    assert list((debian.path / "etc/systemd/system").glob("*.wants/dmnotid*")) == []
    debian.run("test", "-e", CONFIG, "-a", "-e", "/var/lib/dmnotid/journal.sqlite3")

    debian.run("dpkg", "--purge", "dmnotid")
    assert debian.find() == {"/etc/dmnotid"}
    assert set(secret.parent.iterdir()) == {secret, debian.path / HOOK.removeprefix("/")}
    debian.run("getent", "passwd", *USERS)


def test_package_of_the_bearers_from_installation_to_purge(debian: CleanDebian, package: Path) -> None:
    debian.run("dpkg", "--install", debian.bring(package), debian.bring(sms_package(package)))
    assert "dmnotid-bearer" in debian.run("getent", "group", "dmnotid-doors")
    assert enabled(debian) == []
    # With the jeepney of Debian.
    debian.run("python3", "-c", "import dmnotid.bearers.ofono, dmnotid.bearers.modemmanager")
    debian.run("systemctl", "enable", "dmnotid-ofono.service", "dmnotid-modemmanager.service")
    debian.run("dpkg", "--remove", "dmnotid-sms")
    assert enabled(debian) == []
    debian.run("dpkg", "--purge", "dmnotid-sms", "dmnotid")
    assert debian.find() == set()
    debian.run("getent", "passwd", "dmnotid-bearer")


def test_the_virtual_environment_from_installation_to_purge(debian: CleanDebian, wheels: Path, tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    newer = debian.bring(copy_sources(tmp_path / "newer", NEWER))
    before = {path: path.lstat().st_mtime_ns for path in sources.rglob("*")}
    install = f"{debian.bring(sources)}/systemd/install"
    home = debian.path / "opt/dmnotid"

    offline = ("--find-links", debian.bring(wheels))
    debian.run(install, *offline)
    assert {debian.path / "srv/sources" / path.relative_to(sources) for path in before} == set(
        (debian.path / "srv/sources").rglob("*")
    )
    assert debian.run("/usr/local/bin/dmnotid", "--version") == f"dmnotid {dmnotid.__version__}\n"
    debian.run("getent", "passwd", *USERS)
    assert enabled(debian) == []
    assert {path.name for path in home.glob("*/lib/python*/site-packages/*") if "-" not in path.name} == {
        *("_yaml", "yaml", "structlog", "uvloop", "dmnotid")
    }
    assert lacks_only_servers(debian, "/opt/dmnotid/bin/dmnotid")
    service = (debian.path / "usr/local/lib/systemd/system/dmnotid.service").read_text()
    assert "ExecStart=/opt/dmnotid/bin/dmnotid run\n" in service
    assert "/usr/bin/" not in service
    secret = provision(debian)
    assert "(checked for the user dmnotid)" in debian.run("dmnotid", "check")
    debian.run("systemctl", "enable", "dmnotid.service")
    first = (home / "bin").readlink()

    forged = debian.path / "srv/forged"
    shutil.copytree(wheels, forged)
    for wheel in forged.glob("structlog-*.whl"):
        with wheel.open("ab") as file:
            file.write(b"\0")
    failed = debian.run(f"{newer}/systemd/install", "--find-links", "/srv/forged", status=1)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in failed
    assert "failed at: installing dmnotid into it" in failed
    assert (home / "bin").readlink() == first
    assert [path.name for path in home.iterdir() if path.is_dir() and not path.is_symlink()] == [first.parts[0]]

    # What a source distribution needs to be built has no hashes, so one is not even read.
    debian.run("sh", "-c", 'cd /srv/forged; set setuptools-*.whl; mv "$1" "${1%-py3*}.tar.gz"')
    failed = debian.run(f"{newer}/systemd/install", "--find-links", "/srv/forged", status=1)
    assert "No matching distribution found for setuptools" in failed

    (home / "half-made/bin").mkdir(parents=True)  # as by a power cut
    assert not (debian.path / "usr/local/lib/systemd/system/dmnotid-ofono.service").exists()
    upgraded = debian.run(f"{newer}/systemd/install", "--sms", *offline)
    assert f"To go back: ln -sfn {first} /opt/dmnotid/bin" in upgraded
    assert "dmnotid-bearer" in debian.run("getent", "group", "dmnotid-doors")
    debian.run("test", "-e", "/etc/dbus-1/system.d/dmnotid-ofono.conf", "-a", "-e", "/etc/polkit-1/rules.d")
    assert debian.run("dmnotid", "--version") == f"dmnotid {NEWER}\n"
    second = (home / "bin").readlink()
    debian.run(f"/opt/dmnotid/{second}/python", "-c", "import dmnotid.bearers.ofono")
    assert {path.name for path in home.iterdir() if path.is_dir()} == {first.parts[0], second.parts[0], "bin"}
    assert enabled(debian) == ["dmnotid.service", "dmnotid.socket"]
    debian.run("grep", "-q", "changed here", CONFIG)

    debian.run(install, "--uninstall")
    assert debian.find() == {"/etc/dmnotid", "/var/lib/dmnotid"}
    debian.run("test", "-e", CONFIG, "-a", "-e", "/var/lib/dmnotid/journal.sqlite3")
    debian.run(install, "--purge")
    assert debian.find() == {"/etc/dmnotid"}
    assert set(secret.parent.iterdir()) == {secret, debian.path / HOOK.removeprefix("/")}


def test_invalid_command_line_changes_nothing(debian: CleanDebian, tmp_path: Path) -> None:
    install = f"{debian.bring(copy_sources(tmp_path / 'sources'))}/systemd/install"
    assert "--force: is not an option of systemd/install" in debian.run(install, "--force", status=1)
    assert "--wheel /nowhere: there is no such file" in debian.run(install, "--wheel", "/nowhere", status=1)
    assert "this needs root" in debian.run("setpriv", "--reuid=65534", install, status=1)
    assert debian.run(install, "--help").startswith("usage: ")
    assert debian.find() == set()


def test_incomplete_source_is_refused(debian: CleanDebian, tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    (sources / "config/dmnotid.yaml").unlink()
    told = debian.run(f"{debian.bring(sources)}/systemd/install", status=1)
    assert "/srv/sources/config/dmnotid.yaml is missing" in told
    assert debian.find() == set()
