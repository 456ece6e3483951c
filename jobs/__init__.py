"""What a person starts."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "token")  # for all jobs and benches: Ray reads it once, when it is imported
