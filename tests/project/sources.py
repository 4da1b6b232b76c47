"""The modules of the program, which several tests look through."""

import ast
from functools import cache
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "dmnotid"


@cache
def modules() -> dict[str, ast.Module]:
    """Return every module by its path in the package; they are parsed once, because that takes half a second."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {str(file.relative_to(PACKAGE)): ast.parse(file.read_text(encoding="utf-8")) for file in files}
