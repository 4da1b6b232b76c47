"""Fuzzes the pure half with atheris (`pip install atheris`).

    python tests/proofs/fuzz/fuzz_pure.py -max_total_time=60 -max_len=400 /tmp/fuzz tests/proofs/fuzz/corpus

atheris writes every unit it finds into the first directory named: let that be a scratch one, made before. A crash
leaves its octets in `crash-…`; run it again with that file as the only argument. Copy it to tests/proofs/fuzz/corpus,
so that tests/proofs/fuzz/test_corpus.py checks it from then on.
"""

import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

with atheris.instrument_imports(include=["dmnotid"]):
    from tests.proofs.fuzz.checks import check


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
