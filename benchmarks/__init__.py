"""Measurements that docs/results.md quotes: `python -m benchmarks.NAME` prints them again."""
