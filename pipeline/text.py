"""Text and tokens: loads a model's tokenizer, and encodes plain text of any length."""

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline.end_tokens import named_end_tokens

BLOCK = 1 << 18  # characters of a document encoded at a time
WORD_END = re.compile(r"\S(?=\s)")
CONTEXT = 64  # characters on each side that decide whether a document can be cut at a place
PLACES = 100  # places tried for one cut


@functools.lru_cache(maxsize=2)
def load_tokenizer(path: str, trust_remote_code: bool = False):
    """The tokenizer of a Hugging Face folder or name, loaded once per process.

    Its attribute `end_tokens` holds the ids of the end tokens that the model's files name (pipeline/end_tokens.py).

    Raises:
        OSError, ValueError: there is no tokenizer, or the model's files are broken.
    """
    tokenizer = _load_tokenizer(path, trust_remote_code)
    tokenizer.end_tokens = named_end_tokens(path)
    return tokenizer


def _load_tokenizer(path: str, trust_remote_code: bool):
    if _is_plain(path):  # AutoTokenizer would choose the same, but takes seconds to import torch
        from transformers import PreTrainedTokenizerFast as Tokenizer

        return Tokenizer.from_pretrained(path)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)


def _is_plain(path: str) -> bool:
    """Whether this is the folder of a Llama whose tokenizer.json suffices.

    For other model families AutoTokenizer may choose a class of its own, whatever class the files name.
    """
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
    # verbose=False: documents are meant to exceed the model's window, so no warning is due.
    tokens = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} - {tokenizer.unk_token_id}
    if found := control.intersection(tokens):
        names = ", ".join(tokenizer.convert_ids_to_tokens(sorted(found)))
        raise ValueError(f"the tokenizer reads {names} in plain text as special tokens; documents must be data")
    return tokens


def token_starts(tokenizer, text: str) -> list[int]:
    """The character at which each token of `encode_text` begins. The tokenizer must be a fast one."""
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    return [begin for begin, _ in encoded["offset_mapping"]]


def encode_document(tokenizer, text: str) -> np.ndarray:
    """Encode a document of any length like `encode_text`; return int32 [N].

    A tokenizer takes some hundred bytes per token while it encodes, so a long text is encoded in blocks. Blocks end
    where the tokenizer itself cuts; if it never cuts between words, the text is encoded as a whole.

    Raises:
        ValueError: as `encode_text`.
    """
    blocks, begin = [], 0
    while begin < len(text):
        end = _place_to_cut(tokenizer, text, begin + BLOCK)
        blocks.append(np.array(encode_text(tokenizer, text[begin:end]), np.int32))
        begin = end
    return np.concatenate([np.zeros(0, np.int32), *blocks])


def encode_stream(tokenizer, pieces: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Encode a document that comes in pieces, block by block. Yield each block's text and tokens, int32 [n].

    The tokens are those of `encode_document`, as long as the tokenizer cuts between words. Of a tokenizer that never
    does, `encode_document` takes the whole text at once; here a block ends within two `BLOCK`s all the same, so that
    memory stays flat, and the tokens at its end may differ.

    Raises:
        ValueError: as `encode_text`.
    """
    text, pieces = "", iter(pieces)
    while True:
        waiting, characters = [text], len(text)
        while characters < 2 * BLOCK and (piece := next(pieces, None)) is not None:
            waiting.append(piece)
            characters += len(piece)
        is_last = characters < 2 * BLOCK
        text, begin = "".join(waiting), 0
        # A piece may be large. What is left is less than two blocks.
        while len(text) - begin >= 2 * BLOCK or (is_last and begin < len(text)):
            end = _place_to_cut(tokenizer, text, begin + BLOCK)
            if end == len(text) and not is_last:
                word = WORD_END.search(text, begin + BLOCK, begin + 2 * BLOCK)
                end = word.end() if word else begin + BLOCK
            yield text[begin:end], np.array(encode_text(tokenizer, text[begin:end]), np.int32)
            begin = end
        text = text[begin:]
        if is_last:
            return


def _place_to_cut(tokenizer, text: str, start: int) -> int:
    """The first word end from `start` on where the two halves of the surrounding text encode to the same as the whole.

    The end of the text if there is none among the first `PLACES`.
    """
    for word in itertools.islice(WORD_END.finditer(text, start), PLACES):
        before, after = text[word.end() - CONTEXT : word.end()], text[word.end() : word.end() + CONTEXT]
        if encode_text(tokenizer, before + after) == encode_text(tokenizer, before) + encode_text(tokenizer, after):
            return word.end()
    return len(text)
