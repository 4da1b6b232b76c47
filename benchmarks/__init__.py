"""The figures of docs/performance.md (`.venv/bin/python -m benchmarks`), and two measurements of their own."""
