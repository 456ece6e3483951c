"""The figures of the embedded model: the job (jobs/figures/job.py), its steps (jobs/figures/recipe.py), and
what is drawn (jobs/figures/drawing.py)."""

from jobs.figures.job import main

__all__ = ["main"]
