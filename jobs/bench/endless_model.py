"""A copy of a model that does not end its responses: each reaches its limit, so that all have the same length."""

from pathlib import Path

from pipeline.errors import ConfigError


def write_endless_model(source: str, folder: Path) -> None:
    """Copy a model with its tokenizer, in float32, with an end token that it does not write.

    Raises:
        ConfigError: the tokenizer has no such token.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.eos_token = unused_token(tokenizer, source)
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)


def unused_token(tokenizer, source: str) -> str:
    """The last special token that has no purpose in a text. Raises `ConfigError` if there is none."""
    used = {tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token, tokenizer.unk_token}
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    if not (unused := [token for token in special if token not in used]):
        raise ConfigError(f"model={source}: its tokenizer has no special token that is never written")
    return unused[-1]
