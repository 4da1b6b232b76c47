"""The figures of docs/developers/performance.md, and two other measurements: `.venv/bin/python -m benchmarks`."""
