import os

os.environ.setdefault("RAY_AUTH_MODE", "token")  # as in jobs/__init__.py: Ray reads it once, when it is imported
