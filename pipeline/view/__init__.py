"""The page of a run: collected from its files, and written as one HTML file that needs nothing else."""
