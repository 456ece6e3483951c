"""Text and tokens: a model's tokenizer, and plain text of any length as its tokens."""

import functools
import itertools
import json
import re
from pathlib import Path

import numpy as np

from pipeline.end_tokens import named_end_tokens

BLOCK = 1 << 18  # characters of a document that are encoded at a time


WORD_END = re.compile(r"\S(?=\s)")


CONTEXT = 64  # characters on both sides by which a place to cut a document is judged


PLACES = 100  # that are tried


@functools.lru_cache(maxsize=2)
def load_tokenizer(path: str, trust_remote_code: bool = False):
    """The tokenizer of a Hugging Face folder or name, loaded once in a process.

    Its attribute `end_tokens` has the end tokens that the model's files name (pipeline/end_tokens.py).

    Raises:
        OSError, ValueError: there is none, or the model's files are broken.
    """
    tokenizer = _load_tokenizer(path, trust_remote_code)
    tokenizer.end_tokens = named_end_tokens(path)
    return tokenizer


def _load_tokenizer(path: str, trust_remote_code: bool):
    if _is_plain(path):  # what AutoTokenizer would choose, without the seconds in which it imports torch
        from transformers import PreTrainedTokenizerFast as Tokenizer

        return Tokenizer.from_pretrained(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def _is_plain(path: str) -> bool:
    """Whether it is the folder of a Llama whose tokenizer.json says all. Of other families AutoTokenizer may choose
    a class of their own whatever is named."""
    folder = Path(path)
    try:
        named = json.loads((folder / "tokenizer_config.json").read_bytes())
        model = json.loads((folder / "config.json").read_bytes())
        plain = named.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
        return plain and "auto_map" not in named and model.get("model_type") == "llama"
    except (OSError, ValueError, AttributeError):
        return False


def encode_text(tokenizer, text: str) -> list[int]:
    """Encode `text` as plain text: a special token spelled out in it becomes ordinary tokens.

    Raises:
        ValueError: the tokenizer cannot do that for this text.
    """
    # verbose=False: a document is meant to be longer than the model's window, no warning is due.
    tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.unk_token_id}
    if found := control.intersection(tokens):
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(found)))
        raise ValueError(f"the tokenizer reads {names} in plain text as special tokens; documents must be data")
    return tokens


def encode_document(tokenizer, text: str) -> np.ndarray:
    """Encode a document of any length as `encode_text` does, int32 [N].

    On its way a tokenizer takes some hundred bytes for every token, so a long text is encoded in blocks. They are cut
    where the tokenizer itself cuts; if it does not between words, the text is encoded as a whole.

    Raises:
        ValueError: as `encode_text`.
    """
    blocks, begin = [], 0
    while begin < len(text):
        end = _place_to_cut(tokenizer, text, begin + BLOCK)
        blocks.append(np.array(encode_text(tokenizer, text[begin:end]), np.int32))
        begin = end
    return np.concatenate([np.zeros(0, np.int32), *blocks])


def _place_to_cut(tokenizer, text: str, start: int) -> int:
    """The first end of a word from `start` on at which the text around encodes in two to the same as whole."""
    for word in itertools.islice(WORD_END.finditer(text, start), PLACES):
        before, after = text[word.end() - CONTEXT : word.end()], text[word.end() : word.end() + CONTEXT]
        if encode_text(tokenizer, before + after) == encode_text(tokenizer, before) + encode_text(tokenizer, after):
            return word.end()
    return len(text)
