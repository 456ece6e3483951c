"""Data types and functions that need neither vLLM nor DeepSpeed, nor Ray, except for pipeline/data/samples.py."""
