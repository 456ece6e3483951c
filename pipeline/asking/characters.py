"""A tokenizer whose tokens are characters: for a server that takes text, whose own tokenizer is not known.

The agents work with tokens. With this tokenizer their prompts decode to the very text of the prompt template and its
slots, without a chat template, which the server adds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.sections import AgentSection

CHARACTERS_PER_TOKEN = 3  # for lengths given in tokens: fewer than in English prose (4 to 5), so that prompts fit
# The servers' tokenizers read special tokens spelled out in text. In the document and the question, those with <| and
# |>, as of ChatML, Llama 3, Phi and gpt-oss, get a broken bar, which keeps all characters in their places.
DEFUSED = (("<|", "<¦"), ("|>", "¦>"))


class CharacterTokenizer:
    """Encodes each character as its code point. Has what `Reader` and `StreamedDocument` use of a tokenizer."""

    is_fast = True
    eos_token_id = None
    unk_token_id = None
    chat_template = "text"
    added_tokens_decoder: dict[int, object] = {}
    end_tokens: set[int] = set()

    def encode(self, text: str, add_special_tokens=True, split_special_tokens=False, verbose=True) -> list[int]:
        """The text's code points. With `split_special_tokens` the text is data, and `DEFUSED` applies."""
        if split_special_tokens:
            for spelled, shown in DEFUSED:
                text = text.replace(spelled, shown)
        return list(map(ord, text))

    def __call__(self, text: str, **options) -> dict[str, Sequence]:
        """The offsets of the text's tokens."""
        return {"offset_mapping": [(i, i + 1) for i in range(len(text))]}

    def decode(self, tokens: Iterable[int], skip_special_tokens=False) -> str:
        return "".join(map(chr, tokens))

    def apply_chat_template(self, messages: list[dict], tokenize=True, add_generation_prompt=True) -> str:
        """The text of the only message."""
        (message,) = messages
        return message["content"]


def in_characters(agent: AgentSection) -> AgentSection:
    """The agent's lengths in characters instead of tokens."""
    names = ("window", "problem_tokens", "document_tokens", "chunk_tokens", "memory_tokens", "answer_tokens")
    return replace(agent, **{name: getattr(agent, name) * CHARACTERS_PER_TOKEN for name in names})
