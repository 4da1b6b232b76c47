"""Every unit of the corpus, without the fuzzer."""

from pathlib import Path

import pytest

from tests.proofs.fuzz.checks import check

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


@pytest.mark.parametrize("unit", CORPUS, ids=lambda unit: unit.name)
def test_unit(unit: Path) -> None:
    check(unit.read_bytes())


def test_corpus_is_there() -> None:
    assert len(CORPUS) > 20
    assert all(unit.stat().st_size < 400 for unit in CORPUS)
