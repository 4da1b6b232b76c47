"""Mark packages of an SBOM as optional: `python -m tools.sbom FILE REQUIREMENTS` (Makefile).

An environment does not record which packages an extra has added, so they are taken from the lock file of the extra.
"""

import json
import re
import sys
from pathlib import Path


def mark_optional(sbom: Path, requirements: Path) -> None:
    """Set the scope of every package of a lock file to `optional` (CycloneDX 1.6, component.scope)."""
    optional = set(re.findall(r"(?m)^([\w.-]+)==", requirements.read_text()))
    document = json.loads(sbom.read_text())
    for component in document["components"]:
        # Lock files have names in lower case.
        if component["name"].lower() in optional:
            component["scope"] = "optional"
    # With the indentation of cyclonedx_py, which wrote the file.
    sbom.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    mark_optional(*map(Path, sys.argv[1:]))
