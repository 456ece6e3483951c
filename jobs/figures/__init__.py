"""The figures of the embedded model (jobs/figures/job.py), and what they are made of (jobs/figures/recipe.py)."""

from jobs.figures.job import main

__all__ = ["main"]
