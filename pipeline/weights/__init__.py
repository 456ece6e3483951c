"""Weights on their way from learners to generators: buckets of bytes, and the shared memory that carries them."""
