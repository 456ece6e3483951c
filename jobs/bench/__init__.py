"""Benchmarks: one claim each, `python -m jobs.bench <claim> key=value …`.

A claim is a module of this package that `CLAIMS` (jobs/bench/claims.py) names. CONTRIBUTING.md says what it must have.
"""
