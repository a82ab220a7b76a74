"""Benchmarks: ratios to a limit, with the peers beside us (``python -m tests.benchmarks``)."""
