"""Benchmarks: `python -m jobs.bench.<name> key=value …`. Each compares its variants in one run."""
