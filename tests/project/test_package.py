"""The Debian package: what it is made of, and what its scripts do, as far as no system must be booted for that."""

import os
import re
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

import dmnotid
from tests.project.packaging import PROJECT, build_deb, copy_sources, enter, path_in, sms_package


def test_the_package_has_the_version_of_the_program() -> None:
    assert (PROJECT / "debian/changelog").read_text().startswith(f"dmnotid ({dmnotid.__version__}) ")


def test_the_package_depends_on_what_the_program_requires() -> None:
    project = (PROJECT / "pyproject.toml").read_text()
    # The dependencies, and what the extra for the bearers adds.
    required = re.findall(r'(?m)^(?:    |sms = \[)"([A-Za-z]+)>=([\d.]+)', project)
    depends = dict(re.findall(r"(?m)^ python3-(\w+) \(>= ([\d.]+)\),$", (PROJECT / "debian/control").read_text()))
    names = {"PyYAML": "yaml"}
    assert depends == {names.get(name, name): version for name, version in required}


def test_the_preset_disables_every_unit_that_can_be_enabled() -> None:
    units = [path.name for path in (PROJECT / "systemd").iterdir() if "\n[Install]\n" in path.read_text()]
    preset = (PROJECT / "systemd/90-dmnotid.preset").read_text()
    assert sorted(re.findall(r"(?m)^disable (.*)$", preset)) == sorted(units)


def starts(within: float) -> int:
    """Return how often systemd 254 and later starts a service that always fails at once (systemd.service(5))."""
    pause = float(setting("dmnotid.service", "RestartSec").removesuffix("s"))
    steps = int(setting("restart-steps.conf", "RestartSteps"))
    longest = float(setting("restart-steps.conf", "RestartMaxDelaySec").removesuffix("min")) * 60
    count, at = 1, 0.0
    while (at := at + pause * (longest / pause) ** (min(count - 1, steps) / steps)) <= within:
        count += 1
    return count


def setting(unit: str, name: str) -> str:
    """Return a setting of a unit, which has it once."""
    (value,) = re.findall(rf"(?m)^{name}=(.*)$", (PROJECT / "systemd" / unit).read_text())
    return str(value)


def test_a_service_that_always_fails_is_started_15_times_in_its_first_hour() -> None:
    assert starts(within=3_600) == 15
    # Before systemd 254 the pause stays as it is.
    assert 60 / float(setting("dmnotid.service", "RestartSec").removesuffix("s")) <= 12


@pytest.mark.parametrize("unit", ["dmnotid.service", "dmnotid-session@.service"])
def test_no_core_dump_has_the_secrets_of_a_service(unit: str) -> None:
    assert setting(unit, "LimitCORE") == "0"


def test_the_service_starts_after_the_clock_was_set() -> None:
    assert "time-set.target" in setting("dmnotid.service", "After").split()


@pytest.fixture(scope="module")
def contents(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    unpacked = tmp_path_factory.mktemp("contents")
    subprocess.run(["dpkg-deb", "--raw-extract", package, unpacked], check=True)
    return unpacked


def system_files(contents: Path) -> Path:
    """Return the directory of systemd's files: Debian 12 has it in /lib, later releases in /usr/lib."""
    return next(
        path for name in ("lib/systemd", "usr/lib/systemd") if (path := contents / name / "system").exists()
    ).parent


@pytest.mark.system
def test_what_lies_where(contents: Path) -> None:
    units = {
        *("dmnotid.service", "dmnotid.socket", "dmnotid-session.socket", "dmnotid-session@.service"),
        "dmnotid-doors.socket",
        *("dmnotid-metrics.service", "dmnotid-metrics.timer", "dmnotid-metrics.socket", "dmnotid-metrics@.service"),
    }
    assert {unit.name for unit in (system_files(contents) / "system").iterdir()} == units
    for unit in units:
        assert (system_files(contents) / "system" / unit).read_bytes() == (PROJECT / "systemd" / unit).read_bytes()
    shared = {"handoff.conf", "restart-steps.conf", "dmnotid.schema.json"}
    assert {file.name for file in (contents / "usr/share/dmnotid").iterdir()} == shared
    pages = {page.name for page in (contents / "usr/share/man").rglob("*.gz")}
    assert pages == {"dmnotid.8.gz", "dmnotid.yaml.5.gz", "dmnotid-hook.7.gz"}
    assert (contents / "usr/bin/dmnotid").stat().st_mode & stat.S_IXOTH
    assert {path.name for path in (contents / "usr/lib/python3/dist-packages/dmnotid").iterdir()} >= {"cli", "py.typed"}
    documents = contents / "usr/share/doc/dmnotid"
    for name in (
        "CHANGELOG.md",
        "README.md",
        "docs/install.md",
        "docs/journal.md",
        "docs/alerts.yml",
        "examples/hook-curl",
    ):
        assert (documents / name).read_bytes() == (PROJECT / name).read_bytes()
    preset = "90-dmnotid.preset"
    assert (system_files(contents) / "system-preset" / preset).read_bytes() == (
        PROJECT / "systemd" / preset
    ).read_bytes()
    completion = contents / "usr/share/bash-completion/completions/dmnotid"
    assert completion.read_bytes() == (PROJECT / "completions/dmnotid").read_bytes()
    users = PROJECT / "systemd/dmnotid.sysusers"
    # Where the package systemd has a trigger for catalogs.
    assert (contents / "usr/lib/systemd/catalog/dmnotid.catalog").read_bytes() == (
        PROJECT / "systemd/dmnotid.catalog"
    ).read_bytes()
    assert (contents / "usr/lib/sysusers.d/dmnotid.conf").read_bytes() == users.read_bytes()


@pytest.mark.system
def test_bearers_are_a_package_of_their_own(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--raw-extract", sms_package(package), tmp_path], check=True)
    units, policy, users = system_files(tmp_path) / "system", "usr/share/dbus-1/system.d", "usr/lib/sysusers.d"
    units = units.relative_to(tmp_path)
    found = {str(path.relative_to(tmp_path)): path for path in tmp_path.rglob("*") if path.is_file()}
    shipped = {
        f"{units}/dmnotid-modemmanager.service": "dmnotid-modemmanager.service",
        f"{policy}/dmnotid-modemmanager.conf": "dmnotid-modemmanager.conf",
        "usr/share/polkit-1/rules.d/dmnotid-modemmanager.rules": "dmnotid-modemmanager.rules",
        f"{units}/dmnotid-ofono.service": "dmnotid-ofono.service",
        f"{policy}/dmnotid-ofono.conf": "dmnotid-ofono.conf",
        f"{users}/dmnotid-sms.conf": "dmnotid-sms.sysusers",
    }
    assert {name for name in found if not name.startswith(("DEBIAN", "usr/share/doc"))} == set(shipped)
    for name, source in shipped.items():
        assert found[name].read_bytes() == (PROJECT / "systemd" / source).read_bytes()
    assert commands_to_systemd(tmp_path / "DEBIAN/postinst") == [
        "systemctl --system daemon-reload",
        "deb-systemd-invoke try-restart 'dmnotid-modemmanager.service' 'dmnotid-ofono.service'",
    ]


@pytest.mark.system
def test_the_configuration_is_the_administrators(contents: Path, package: Path) -> None:
    assert (contents / "DEBIAN/conffiles").read_text() == "/etc/dmnotid/dmnotid.yaml\n"
    listed = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True).stdout
    archive = contents.parent / "files.tar"
    archive.write_bytes(listed)
    with tarfile.open(archive) as files:
        facts = {
            name: (stat.filemode(member.mode)[1:], member.uname, member.gname)
            for name in ("./etc/dmnotid", "./etc/dmnotid/dmnotid.yaml")
            for member in [files.getmember(name)]
        }
    assert facts == {
        "./etc/dmnotid": ("rwxr-xr-x", "root", "root"),
        "./etc/dmnotid/dmnotid.yaml": ("rw-r--r--", "root", "root"),
    }
    example = (contents / "etc/dmnotid/dmnotid.yaml").read_text().splitlines()
    assert example[0] == "# yaml-language-server: $schema=/usr/share/dmnotid/dmnotid.schema.json"
    assert example[1:] == (PROJECT / "config/dmnotid.yaml").read_text().splitlines()[1:]


def commands_to_systemd(script: Path) -> list[str]:
    text = script.read_text().replace("\\\n", " ")
    return [" ".join(found.split()) for found in re.findall(r"(?:deb-systemd-invoke|systemctl) [^>]*", text)]


@pytest.mark.system
def test_an_upgrade_restarts_the_service_and_leaves_the_sockets_alone(contents: Path) -> None:
    # What was not in the first package can't have been stopped: of a former package prerm alone runs in an upgrade.
    assert not (contents / "DEBIAN/preinst").exists()
    restart = ["systemctl --system daemon-reload", "deb-systemd-invoke try-restart 'dmnotid.service'"]
    assert commands_to_systemd(contents / "DEBIAN/postinst") == restart
    prerm = (contents / "DEBIAN/prerm").read_text()
    at_removal = re.search(r'(?ms)^if \[ "\$1" = remove \]; then\n(.*?)^fi\n', prerm)
    assert at_removal is not None
    assert not re.search(r"systemd|systemctl", prerm.replace(at_removal[0], ""))


@pytest.mark.system
def test_nothing_is_enabled_and_all_is_stopped_and_disabled_at_removal(contents: Path) -> None:
    postinst = (contents / "DEBIAN/postinst").read_text()
    # An "enable" is for what was enabled before: debhelper asks for that first.
    assert postinst.count("deb-systemd-helper enable") == postinst.count("deb-systemd-helper --quiet was-enabled") == 6
    sockets = "dmnotid.socket dmnotid-doors.socket dmnotid-session.socket dmnotid-metrics.socket"
    units = f"{sockets} dmnotid-metrics.timer dmnotid.service"
    stop = f"deb-systemd-invoke stop {units} 'dmnotid-session@*.service' 'dmnotid-metrics*.service'"
    assert commands_to_systemd(contents / "DEBIAN/prerm") == [stop]
    prerm = (contents / "DEBIAN/prerm").read_text().replace("\\\n", " ")
    assert f"deb-systemd-helper disable {units} " in " ".join(prerm.split())


@pytest.mark.system
@pytest.mark.skipif(shutil.which("lintian") is None, reason="needs lintian")
def test_package_passes_lintian(package: Path, build_root: Path | None) -> None:
    packages = [package, sms_package(package)]
    if build_root is not None:
        packages = [path_in(build_root, Path(shutil.copy(file, build_root / "srv"))) for file in packages]
    # In the other Debian it runs as root.
    command = [*enter(build_root), "lintian", "--allow-root", "--fail-on=error,warning", *map(str, packages)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.system
@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
def test_build_elsewhere_years_later_leaves_the_sources_alone_and_makes_the_same_octets(
    package: Path, build_root: Path | None, tmp_path: Path
) -> None:
    place = (build_root or tmp_path) / "elsewhere"
    sources = copy_sources(place / "sources")
    for path in sources.rglob("*"):
        os.utime(path, (10**9, 10**9), follow_symlinks=False)
    before = {path: path.lstat().st_mtime_ns for path in sources.rglob("*")}
    again = build_deb(sources, place / "dist", root=build_root, before=("faketime", "2031-02-03 04:05:06"))
    assert {path: path.lstat().st_mtime_ns for path in sources.rglob("*")} == before
    assert again.read_bytes() == package.read_bytes()


@pytest.mark.system
@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize(
    "script",
    [
        "systemd/install",
        "debian/dmnotid.postinst",
        "debian/dmnotid.prerm",
        "debian/dmnotid.postrm",
        "debian/dmnotid-sms.prerm",
        "completions/dmnotid",
        "tests/foreign/run",
    ],
)
def test_scripts_pass_shellcheck(script: str) -> None:
    done = subprocess.run(["shellcheck", PROJECT / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
