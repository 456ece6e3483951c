"""What flows: data types and functions. Nothing here starts an actor; vLLM and DeepSpeed are not imported."""
