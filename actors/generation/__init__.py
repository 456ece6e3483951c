"""Generators: the vLLM engine, episodes on it, weight updates in flight, and the journal of conversations."""
