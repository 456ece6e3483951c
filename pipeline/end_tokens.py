"""The tokens that end a response: all that a model names, not the tokenizer's alone.

Instruct models often have several. Qwen2.5's generation_config.json names <|im_end|> and <|endoftext|>; its tokenizer
knows the first as the end of a sequence.
"""

import json
from pathlib import Path

SETTINGS = ("generation_config.json", "config.json")  # of a model, each of which may have an `eos_token_id`


def end_tokens(tokenizer) -> frozenset[int]:
    """The ids of the tokens that end a response of the tokenizer's model.

    Args:
        tokenizer: `load_tokenizer` (pipeline/text.py) notes in its attribute `end_tokens` what the model's files
            name. Any other tokenizer, made by hand, has only its own end-of-sequence token.
    """
    own = set() if tokenizer.eos_token_id is None else {tokenizer.eos_token_id}
    return frozenset(own | getattr(tokenizer, "end_tokens", set()))


def named_end_tokens(path: str) -> set[int]:
    """The end tokens that a model's generation_config.json and config.json name; none if it has no such file.

    Args:
        path: of a Hugging Face folder, or a Hugging Face name.

    Raises:
        OSError: a Hugging Face name cannot be looked up.
        ValueError: a file is not JSON, or its `eos_token_id` is neither a token id nor a list of them.
    """
    found = set()
    for name in SETTINGS:
        if (file := _file(path, name)) is None:
            continue
        try:
            settings = json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
        named = settings.get("eos_token_id") if isinstance(settings, dict) else None
        ids = named if isinstance(named, list) else [] if named is None else [named]
        if not all(type(token) is int and token >= 0 for token in ids):
            raise ValueError(f"{file}: eos_token_id is {named!r}, neither a token id nor a list of them")
        found.update(ids)
    return found


def without_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The tokens of a response without the end token, if it has one."""
    return tokens[:-1] if tokens and tokens[-1] in ends else tokens


def _file(path: str, name: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.exists() else None
    from huggingface_hub import constants, hf_hub_download  # imported late: most models are folders
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name))
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:  # what is in the cache is all there is
            return None
        raise  # the Hub was not reached, so whether there is such a file is not known
    except EntryNotFoundError:
        return None
