"""The prompts of the agents, as text templates and as tokens.

A template is split at its slots. The text between them is ours, so special tokens in it count as such;
what goes into a slot is data, so special tokens in it are spelled out as ordinary text (`encode_text`).
The memory goes into its slot as the tokens that the model wrote, never decoded and encoded again.
"""

import functools
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.end_tokens import named_end_tokens

SLOT = re.compile(r"\{(problem|memory|chunk|document)\}")
BLOCK = 1 << 18  # characters of a document that are encoded at a time
WORD_END = re.compile(r"\S(?=\s)")
CONTEXT = 64  # characters on both sides by which a place to cut a document is judged
PLACES = 100  # that are tried


@dataclass(frozen=True)
class PromptTemplate:
    """Texts with slots in braces; `chat`: wrap them in the tokenizer's chat template."""

    update: str  # problem, memory, chunk
    answer: str  # problem, memory
    direct: str  # problem, document
    closed_book: str  # problem
    empty_memory: str
    chat: bool


# The same instructions in training and in evaluation, so that what is asked for is what is scored.
PROMPT_TEMPLATES = {
    # The paper's order (arXiv 2507.02259, section 2.2): problem, memory, chunk.
    "memagent": PromptTemplate(
        update=(
            "You are given a problem, one section of a long article, and the memory of what you have read so far. "
            "Read the section carefully and write the updated memory: keep everything in the previous memory that "
            "helps to answer the problem, and add what this section contributes.\n\n"
            "<problem>\n{problem}\n</problem>\n\n"
            "<memory>\n{memory}\n</memory>\n\n"
            "<section>\n{chunk}\n</section>\n\n"
            "Updated memory:\n"
        ),
        answer=(
            "You are given a problem and the memory of an article that you have read. "
            "Answer the problem from the memory alone and put the answer in \\boxed{}.\n\n"
            "<problem>\n{problem}\n</problem>\n\n"
            "<memory>\n{memory}\n</memory>\n\n"
            "Your answer:\n"
        ),
        direct=(
            "You are given a problem and an article. "
            "Answer the problem from the article and put the answer in \\boxed{}.\n\n"
            "<problem>\n{problem}\n</problem>\n\n"
            "<article>\n{document}\n</article>\n\n"
            "Your answer:\n"
        ),
        closed_book=(
            "You are given a problem. Answer it and put the answer in \\boxed{}.\n\n"
            "<problem>\n{problem}\n</problem>\n\n"
            "Your answer:\n"
        ),
        empty_memory="No previous memory",
        chat=True,
    ),
    # For the embedded model of a hundred words (pipeline/documents/synthetic.py): the question comes again
    # at the end, without which so small a model does not learn to look it up.
    "tiny": PromptTemplate(
        update="<bos> <problem> {problem} <memory> {memory} <section> {chunk} <update> {problem}",
        answer="<bos> <problem> {problem} <memory> {memory} <answer> {problem}",
        direct="<bos> <problem> {problem} <section> {document} <answer> {problem}",
        closed_book="<bos> <problem> {problem} <answer> {problem}",
        empty_memory="none",
        chat=False,
    ),
}


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


class Prompts:
    """A prompt template bound to a tokenizer: builds prompts as token lists."""

    def __init__(self, tokenizer, template: PromptTemplate):
        self._update = _split(tokenizer, template, template.update)
        self._answer = _split(tokenizer, template, template.answer)
        self._direct = _split(tokenizer, template, template.direct)
        self._closed_book = _split(tokenizer, template, template.closed_book)
        self.empty_memory: list[int] = encode_text(tokenizer, template.empty_memory)

    def update(self, problem: list[int], memory: list[int], chunk: list[int]) -> list[int]:
        """The prompt of a memory conversation."""
        return _fill(self._update, problem=problem, memory=memory, chunk=chunk)

    def answer(self, problem: list[int], memory: list[int]) -> list[int]:
        """The prompt of the answer conversation."""
        return _fill(self._answer, problem=problem, memory=memory)

    def direct(self, problem: list[int], document: list[int]) -> list[int]:
        """The prompt that holds the document itself."""
        return _fill(self._direct, problem=problem, document=document)

    def closed_book(self, problem: list[int]) -> list[int]:
        """The prompt of the question alone."""
        return _fill(self._closed_book, problem=problem)

    def longest(self, problem: int, memory: int, chunk: int) -> tuple[int, int]:
        """The lengths in tokens of the longest update and answer prompts for slots of these lengths."""
        memory = max(memory, len(self.empty_memory))
        return (
            len(self.update([0] * problem, [0] * memory, [0] * chunk)),
            len(self.answer([0] * problem, [0] * memory)),
        )


def _split(tokenizer, template: PromptTemplate, text: str) -> list[list[int] | str]:
    """Turn a text with slots into token lists (between slots) and slot names."""
    if template.chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts = SLOT.split(text)  # text, slot, text, slot, …, text
    return [part if i % 2 else tokenizer.encode(part, add_special_tokens=False) for i, part in enumerate(parts)]


def _fill(parts: list[list[int] | str], **slots: list[int]) -> list[int]:
    return [token for part in parts for token in (slots[part] if isinstance(part, str) else part)]
