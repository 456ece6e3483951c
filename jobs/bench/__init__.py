"""Benchmarks: `python -m jobs.bench.<name> key=value …`. Each compares its variants side by side in one run."""
