"""Questions about a user's own files: each file becomes text."""
