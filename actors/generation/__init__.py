"""Generators: the vLLM engine, the episodes that run on it, new weights in flight, and the journal of conversations."""
