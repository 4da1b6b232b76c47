"""What docs/performance.md comes from: `python -m benchmarks`, and two measurements of their own beside it."""
