"""The life cycle of pooled actors: starting, replacing and closing them, and why one failed."""
