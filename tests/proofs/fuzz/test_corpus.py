"""Every unit of the corpus, without the fuzzer."""

from pathlib import Path

from tests.proofs.fuzz.checks import check

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


def test_units() -> None:
    for unit in CORPUS:
        check(unit.read_bytes())


def test_corpus_is_there() -> None:
    assert len(CORPUS) > 20
    assert all(unit.stat().st_size < 400 for unit in CORPUS)
