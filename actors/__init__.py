"""The Ray actors: their state, their concurrency, and how they recover from failures."""
