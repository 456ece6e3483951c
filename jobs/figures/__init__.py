"""The figures of the embedded model: the job (jobs/figures/job.py) and its steps (jobs/figures/recipe.py)."""

from jobs.figures.job import main

__all__ = ["main"]
