"""The prompts of the agents, as text templates and as tokens.

The templates are files, those in configs/prompts and a user's own. A template is split at its slots. The text between
them is ours, so special tokens in it count as such; what goes into a slot is data, so special tokens in it are spelled
out as ordinary text (`encode_text`).
The memory goes into its slot as the tokens that the model wrote, never decoded and encoded again.
"""

import functools
import itertools
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

import yaml

from pipeline.config import CONFIGS
from pipeline.errors import ConfigError, DataError
from pipeline.files import open_input
from pipeline.text import encode_text

TEMPLATES = CONFIGS / "prompts"
# A name in single braces. The arguments of a LaTeX command (\boxed{answer}, \frac{a}{b}) and doubled braces are text.
NAME_IN_BRACES = re.compile(
    r"\\[A-Za-z]+\*?(?:\[[^][{}]*\]|\{[^{}]*\})+|\{\{[^{}]*\}\}|\{(?P<name>[A-Za-z_]\w*)\}", re.ASCII
)


@dataclass(frozen=True)
class PromptTemplate:
    """Texts with slots in braces (`SLOTS`); `chat`: wrap them in the tokenizer's chat template."""

    memory: str
    answer: str
    direct: str
    closed_book: str
    empty_memory: str
    chat: bool


SLOTS = {
    "memory": ("problem", "memory", "chunk"),
    "answer": ("problem", "memory"),
    "direct": ("problem", "document"),
    "closed_book": ("problem",),
}
SLOT_NAMES = frozenset(itertools.chain(*SLOTS.values()))


def template_file(named: str) -> str:
    """The file of a prompt template: what has a slash or ends in .yaml is its path, else it is a name in TEMPLATES."""
    return named if is_template_path(named) else str(TEMPLATES / f"{named}.yaml")


def is_template_path(named: str) -> bool:
    return "/" in named or named.endswith((".yaml", ".yml"))


@functools.cache
def load_template(named: str) -> PromptTemplate:
    """The prompt template of this name or path (`agent.prompt_template`), read once in a process.

    Raises:
        ConfigError: there is no such file, or it is no prompt template; the message names the file and all its faults.
    """
    file = template_file(named)
    try:
        with open_input(file) as opened:
            content = yaml.safe_load(opened.read().decode())
    except FileNotFoundError:
        names = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.yaml")))
        raise ConfigError(
            f"agent.prompt_template={named}: there is no file {file}; take one of {names}, or the path of a .yaml file"
        ) from None
    except (DataError, OSError) as error:
        raise ConfigError(f"agent.prompt_template={named}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: no UTF-8, or !!int abc
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if faults := list(_template_faults(content)):
        raise ConfigError("\n".join(f"{file}: {fault}" for fault in faults))
    return PromptTemplate(**content)


def _template_faults(content: object) -> Iterator[str]:
    """What is wrong with the content of a template's file."""
    types = {field.name: field.type for field in fields(PromptTemplate)}
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        yield f"a prompt template has the keys {', '.join(types)}; the file is {found}"
        return
    for key in content:
        if key not in types:
            yield f"unknown key {reprlib.repr(key)[:100]}; there are: {', '.join(types)}"
    for name, wanted in types.items():
        if name not in content:
            yield f"the key {name} is missing"
        elif not isinstance(content[name], wanted):
            kind = "text" if wanted is str else "true or false"
            yield f"{name} must be {kind}, not {reprlib.repr(content[name])[:100]}"
        elif name in SLOTS:
            yield from _slot_faults(name, content[name])


def _names_in_braces(text: str) -> Iterator[re.Match]:
    return (found for found in NAME_IN_BRACES.finditer(text) if found["name"])


def _slot_faults(name: str, text: str) -> Iterator[str]:
    there = {found["name"] for found in _names_in_braces(text)}
    for slot in SLOTS[name]:
        if slot not in there:
            yield f"{name} has no {{{slot}}}"
    for slot in sorted(there.difference(SLOTS[name])):
        slots = ", ".join(f"{{{each}}}" for each in SLOTS[name])
        yield f"{name} has a {{{slot}}}, which nothing fills; it can have {slots}"


class Prompts:
    """A prompt template bound to a tokenizer: builds prompts as token lists."""

    def __init__(self, tokenizer, template: PromptTemplate):
        self._memory = _split(tokenizer, template, template.memory)
        self._answer = _split(tokenizer, template, template.answer)
        self._direct = _split(tokenizer, template, template.direct)
        self._closed_book = _split(tokenizer, template, template.closed_book)
        self.empty_memory: list[int] = encode_text(tokenizer, template.empty_memory)

    def memory(self, problem: list[int], memory: list[int], chunk: list[int]) -> list[int]:
        """The prompt of a memory conversation."""
        return _fill(self._memory, problem=problem, memory=memory, chunk=chunk)

    def answer(self, problem: list[int], memory: list[int]) -> list[int]:
        """The prompt of the answer conversation."""
        return _fill(self._answer, problem=problem, memory=memory)

    def direct(self, problem: list[int], document: list[int]) -> list[int]:
        """The prompt that holds the document itself."""
        return _fill(self._direct, problem=problem, document=document)

    def closed_book(self, problem: list[int]) -> list[int]:
        """The prompt of the question alone."""
        return _fill(self._closed_book, problem=problem)

    def longest(self, problem: int, memory: int, chunk: int) -> dict[str, int]:
        """The length in tokens of the longest prompt of each kind for slots of these lengths.

        A document is cut to what the window leaves it, one token at least, so `direct` counts one.
        """
        memory = max(memory, len(self.empty_memory))
        return {
            "memory": len(self.memory([0] * problem, [0] * memory, [0] * chunk)),
            "answer": len(self.answer([0] * problem, [0] * memory)),
            "direct": len(self.direct([0] * problem, [0])),
            "closed_book": len(self.closed_book([0] * problem)),
        }


def _split(tokenizer, template: PromptTemplate, text: str) -> list[list[int] | str]:
    """Turn a text with slots into token lists (between slots) and slot names."""
    if template.chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts, end = [], 0
    for found in _names_in_braces(text):
        if found["name"] in SLOT_NAMES:
            parts += [tokenizer.encode(text[end : found.start()], add_special_tokens=False), found["name"]]
            end = found.end()
    return [*parts, tokenizer.encode(text[end:], add_special_tokens=False)]


def _fill(parts: list[list[int] | str], **slots: list[int]) -> list[int]:
    return [token for part in parts for token in (slots[part] if isinstance(part, str) else part)]
