"""A directory with a configuration for every test of this room."""

from pathlib import Path

import pytest

from tests.config.support import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
