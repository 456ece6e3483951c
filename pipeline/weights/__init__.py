"""Weight transports from learners to generators, and the built-in one: byte buckets through shared memory."""
