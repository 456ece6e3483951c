"""The agent's own use: documents of any kind become text."""
