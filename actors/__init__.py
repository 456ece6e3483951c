"""Who works: one Ray actor class a file, with its state, its concurrency and what happens when it fails."""
