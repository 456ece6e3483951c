"""The commands that a person starts."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")  # for all jobs and benchmarks: Ray reads it once, at import
