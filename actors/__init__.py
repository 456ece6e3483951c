"""Who works: the Ray actors, with their state, their concurrency and what happens when they fail."""
