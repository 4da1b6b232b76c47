"""The layer for Yocto: bitbake parses it, its linter finds nothing, and it installs what the package does."""

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dmnotid
from tests.project.packaging import PROJECT, copy_sources

LAYER = PROJECT / "contrib/yocto/meta-dmnotid"
RECIPES = sorted(map(str, LAYER.glob("recipes-*/*/*.bb")))

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("bb", "oelint_adv"))),
        reason="needs dmnotid[yocto]: bb or oelint_adv missing",
    ),
]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What bitbake has parsed, by the name of the recipe."""
    return parse(tmp_path_factory.mktemp("bitbake"), *RECIPES)


def parse(directory: Path, *files: str) -> dict[str, dict[str, Any]]:
    """Have bitbake parse recipes and what is appended to them; the values of each, by the name of the recipe."""
    command = [sys.executable, *map(str, (Path(__file__).with_name("bitbake.py"), directory, LAYER)), *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    parsed: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return parsed


def test_recipes_have_the_versions_of_the_release_and_the_lock_file(recipes: dict[str, dict[str, Any]]) -> None:
    locked = dict(re.findall(r"(?m)^([\w-]+)==([\d.]+)", (PROJECT / "systemd/requirements.txt").read_text()))
    assert {name: values["PV"] for name, values in recipes.items()} == {
        "dmnotid": dmnotid.__version__,
        "python3-structlog": locked["structlog"],
    }
    hashes = (PROJECT / "systemd/requirements.txt").read_text()
    structlog = next(recipe for recipe in RECIPES if "structlog" in recipe)
    assert all(found in hashes for found in re.findall(r'sha256sum\] = "(\w+)"', Path(structlog).read_text()))


def test_recipe_takes_the_source_distribution_with_its_licence(recipes: dict[str, dict[str, Any]]) -> None:
    recipe = recipes["dmnotid"]
    archive = Path(recipe["SRC_URI"].removeprefix("file://"))
    assert Path(archive.parent).resolve() == PROJECT / "dist"
    assert archive.name == f"dmnotid-{dmnotid.__version__}.tar.gz"
    md5 = hashlib.md5((PROJECT / "LICENSE").read_bytes(), usedforsecurity=False).hexdigest()
    assert recipe["LIC_FILES_CHKSUM"] == f"file://LICENSE;md5={md5}"
    assert {"python3-structlog", "python3-pyyaml"} <= set(recipe["RDEPENDS"])


def test_recipe_unpacks_in_the_directory_of_the_core_layer(recipes: dict[str, dict[str, Any]]) -> None:
    # The core layer empties that directory first, so it must not be WORKDIR, which has the logs of the running task.
    recipe = recipes["dmnotid"]
    assert recipe["S"] == f"{recipe['WORKDIR']}/sources/dmnotid-{dmnotid.__version__}"


def test_recipe_makes_the_users_of_the_units_with_their_homes(recipes: dict[str, dict[str, Any]]) -> None:
    wanted = (PROJECT / "systemd/dmnotid.sysusers").read_text()
    made = [user.split() for user in recipes["dmnotid"]["USERADD_PARAM"].split(";")]
    homes = {user[-1]: user[user.index("--home-dir") + 1] for user in made if "--user-group" in user}
    assert homes == dict(re.findall(r'(?m)^u (\S+) - ".*" (\S+)$', wanted))
    assert recipes["dmnotid"]["GROUPADD_PARAM"].split()[1:] == re.findall(r"(?m)^g (\S+)", wanted)


def test_recipe_installs_what_the_debian_package_does(recipes: dict[str, dict[str, Any]], package: Path) -> None:
    recipe = recipes["dmnotid"]
    copy_sources(Path(recipe["S"]))
    subprocess.run(["sh", "-euc", recipe["do_install"]], check=True)
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    files = {line.split()[5].removeprefix(".") for line in listed.splitlines() if not line.startswith("d")}
    # Debian 12 has its units in /lib. Debian's own places, the documents and the program are installed otherwise.
    elsewhere = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/bash-completion/", "/usr/lib/python3/", "/usr/bin/")
    wanted = {f"/usr{file}" if file.startswith("/lib/") else file for file in files}
    wanted = {
        file
        for file in wanted
        if not file.startswith((*elsewhere, "/usr/lib/systemd/system-preset/", "/usr/lib/sysusers"))
    }
    image = Path(recipe["D"])
    installed = {f"/{path.relative_to(image)}" for path in image.rglob("*") if path.is_file() or path.is_symlink()}
    assert installed == wanted | {"/etc/systemd/system/dmnotid.service.d/restart-steps.conf"}
    example = (image / "etc/dmnotid/dmnotid.yaml").read_text().splitlines()
    assert example[0] == "# yaml-language-server: $schema=/usr/share/dmnotid/dmnotid.schema.json"


def test_append_in_the_readme_adds_a_configuration_and_enables_the_service(tmp_path: Path) -> None:
    appended = re.search(r"(?ms)^```text\n(FILESEXTRAPATHS.*?)^```$", (LAYER.parent / "README.md").read_text())
    assert appended is not None
    append = tmp_path / "dmnotid_%.bbappend"
    append.write_text(appended[1])
    recipe = parse(tmp_path / "bitbake", *RECIPES, str(append))["dmnotid"]
    assert recipe["SYSTEMD_AUTO_ENABLE"] == "enable"
    copy_sources(Path(recipe["S"]))
    for name in re.findall(r" file://(\S+)", recipe["SRC_URI"]):
        Path(recipe["UNPACKDIR"], name).write_text(f"{name} of the image")
    subprocess.run(["sh", "-euc", recipe["do_install"]], check=True)
    installed = {
        file.name: (f"{file.stat().st_mode:o}", file.read_text()) for file in Path(recipe["D"], "etc/dmnotid").iterdir()
    }
    assert installed == {
        "dmnotid.yaml": ("100644", "dmnotid.yaml of the image"),
        "start-dm-session": ("100755", "start-dm-session of the image"),
    }


def test_linter_finds_nothing() -> None:
    # Whether a site answers is not asked: tests use no network but the package indexes.
    command = [
        sys.executable,
        "-m",
        "oelint_adv",
        "--quiet",
        "--hide=info",
        "--mode=all",
        "--suppress=oelint.vars.homepageping",
    ]
    done = subprocess.run([*command, *RECIPES, LAYER / "conf/layer.conf"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
