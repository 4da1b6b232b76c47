"""Parse recipes with bitbake's own parser, in a process of its own: `python bitbake.py DIRECTORY LAYER FILE ...`.

A file `NAME_%.bbappend` is applied to the recipe of that name.

OpenEmbedded itself is not on a package index. So the core layer here has empty classes, and of bitbake.conf only the
variables that the recipes use. Prints one JSON object: the values of some variables of each recipe.
"""

import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

# The distribution lacks these two packages, which only a server of bitbake uses.
for name in ("hashserv", "hashserv.client", "prserv", "prserv.serv"):
    sys.modules[name] = ModuleType(name)
vars(sys.modules["hashserv"]).update(create_client=None, client=SimpleNamespace())

from bb.cookerdata import CookerConfiguration, CookerDataBuilder  # noqa: E402 - needs the modules above

CLASSES = "features_check pypi python_hatchling python_setuptools_build_meta systemd useradd"
BITBAKE_CONF = """
TOPDIR := "${@os.getcwd()}"
TMPDIR = "${TOPDIR}/tmp"
CACHE = "${TMPDIR}/cache"
WORKDIR = "${TOPDIR}/work"
D = "${TOPDIR}/image"
UNPACKDIR ??= "${WORKDIR}/sources"
S = "${UNPACKDIR}/${PN}-${PV}"
PN = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[0]}"
PV = "${@bb.parse.vars_from_file(d.getVar('FILE', False), d)[1]}"
FILE_DIRNAME = "${@os.path.dirname(d.getVar('FILE', False))}"
THISDIR = "${@os.path.dirname(d.getVar('FILE'))}"
OVERRIDES = "pn-${PN}"
sysconfdir = "/etc"
datadir = "/usr/share"
nonarch_libdir = "/usr/lib"
localstatedir = "/var"
systemd_system_unitdir = "/usr/lib/systemd/system"
"""
BASE = """
do_build() {
    :
}
addtask build
do_install() {
    :
}
addtask install before do_build
"""
LAYER = """
BBPATH .= ":${LAYERDIR}"
BBFILE_COLLECTIONS += "core"
BBFILE_PATTERN_core = "^${LAYERDIR}/"
LAYERSERIES_CORENAMES = "blacksail"
"""
WANTED = (
    *("PV", "LICENSE", "LIC_FILES_CHKSUM", "SRC_URI", "WORKDIR", "UNPACKDIR", "S", "D"),
    *("do_install", "USERADD_PARAM", "GROUPADD_PARAM", "SYSTEMD_AUTO_ENABLE"),
)


def parse(directory: Path, layer: Path, files: list[Path]) -> dict[str, Any]:
    """Return the values of WANTED for each recipe, and its run-time dependencies."""
    for name, text in {
        "conf/bblayers.conf": f'BBPATH = "{directory}"\nBBFILES ?= ""\nBBLAYERS = "{directory}/core {layer}"\n',
        "core/conf/layer.conf": LAYER,
        "core/conf/bitbake.conf": BITBAKE_CONF,
        "core/classes/base.bbclass": BASE,
        **{f"core/classes/{name}.bbclass": "" for name in CLASSES.split()},
    }.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    os.chdir(directory)
    os.environ["BBPATH"] = str(directory)
    builder = CookerDataBuilder(CookerConfiguration(), worker=False)
    builder.parseBaseConfiguration()
    found = {}
    for recipe in [file for file in files if file.suffix == ".bb"]:
        appended = f"{recipe.name.partition('_')[0]}_%.bbappend"
        appends = [str(file) for file in files if file.name == appended]
        data = builder.parseRecipeVariants(str(recipe), appends, layername=layer.name)[""]
        pn = data.getVar("PN")
        found[pn] = {name: data.getVar(name) or data.getVar(f"{name}:{pn}") for name in WANTED}
        found[pn]["RDEPENDS"] = data.getVar(f"RDEPENDS:{pn}").split()
    return found


if __name__ == "__main__":
    print(json.dumps(parse(Path(sys.argv[1]), Path(sys.argv[2]), [Path(file) for file in sys.argv[3:]])))  # noqa: T201
