"""Prompt templates: files of texts with slots, and the token prompts made from them.

Templates are files in configs/prompts, or a user's own. A file holds named prompts for one or more agents; an agent
declares which of them it uses and which slots it fills. A text is split at its slots. The text between slots is
trusted, so special tokens in it count as such. The content of a slot is data, so special tokens in it are encoded as
ordinary text (`encode_text`). A memory fills its slot with the tokens that the model wrote; it is never decoded and
encoded again.
"""

import functools
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import yaml

from pipeline.config import CONFIGS, names_file
from pipeline.errors import ConfigError, DataError
from pipeline.files import open_input
from pipeline.text import encode_text

TEMPLATES = CONFIGS / "prompts"
# A name in single braces. The arguments of a LaTeX command (\boxed{answer}, \frac{a}{b}) and doubled braces are text.
NAME_IN_BRACES = re.compile(
    r"\\[A-Za-z]+\*?(?:\[[^][{}]*\]|\{[^{}]*\})+|\{\{[^{}]*\}\}|\{(?P<name>[A-Za-z_]\w*)\}", re.ASCII
)
PROMPT_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
SETTINGS = {"chat": bool, "empty_memory": str}  # the keys of a template that are not prompts


@dataclass(frozen=True)
class PromptTemplate:
    """The content of a prompt template's file.

    Attributes:
        file: the file's path.
        chat: whether each prompt is a user message in the tokenizer's chat template.
        prompts: the texts by name, with slots in braces.
        empty_memory: the initial memory text; None if the file has none.
    """

    file: str
    chat: bool
    prompts: Mapping[str, str]
    empty_memory: str | None = None


def template_file(named: str) -> str:
    """The file of a prompt template: a path if it has a slash or ends in .yaml, else a name in `TEMPLATES`."""
    return named if names_file(named) else str(TEMPLATES / f"{named}.yaml")


@functools.cache
def load_template(named: str) -> PromptTemplate:
    """Load the prompt template with this name or path (`agent.prompt_template`); read once per process.

    Raises:
        ConfigError: the file does not exist or is not a prompt template; the message names the file and all its faults.
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or e.g. !!int abc
        raise ConfigError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    _raise_faults(file, _template_faults(content))
    settings = {name: content.pop(name) for name in SETTINGS if name in content}
    return PromptTemplate(file=file, prompts=content, **settings)


def _raise_faults(file: str, faults: Iterator[str]) -> None:
    """Raise a `ConfigError` that names the file and all faults, if there are any."""
    if lines := [f"{file}: {fault}" for fault in faults]:
        raise ConfigError("\n".join(lines))


def _template_faults(content: object) -> Iterator[str]:
    """The faults of a template file's content that do not depend on the agent."""
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        yield f"a prompt template has the key chat, and a key with a text for each prompt; the file is {found}"
        return
    if "chat" not in content:
        yield "the key chat is missing"
    if "update" in content and "memory" not in content:
        yield "the prompt update is called memory now: rename the key update to memory"
    for name, value in content.items():
        wanted = SETTINGS.get(name, str) if isinstance(name, str) else str
        if not isinstance(name, str) or not PROMPT_NAME.fullmatch(name):
            yield f"the key {reprlib.repr(name)[:100]} is no name of a prompt: letters, digits and _"
        elif not isinstance(value, wanted):
            kind = "text" if wanted is str else "true or false"
            yield f"{name} must be {kind}, not {reprlib.repr(value)[:100]}"


def _names_in_braces(text: str) -> Iterator[re.Match]:
    return (found for found in NAME_IN_BRACES.finditer(text) if found["name"])


def _prompt_faults(template: PromptTemplate, wanted: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """The prompts and slots that an agent needs and the template lacks, and the slots that the agent does not fill."""
    for name, slots in wanted.items():
        if name not in template.prompts:
            yield f"the prompt {name} is missing; the file has {', '.join(template.prompts) or 'none'}"
            continue
        there = {found["name"] for found in _names_in_braces(template.prompts[name])}
        for slot in slots:
            if slot not in there:
                yield f"{name} has no {{{slot}}}"
        for slot in sorted(there.difference(slots)):
            filled = ", ".join(f"{{{each}}}" for each in slots) or "no slots"
            yield f"{name} has a {{{slot}}}, which nothing fills; it can have {filled}"


class Prompts:
    """Builds the prompts that an agent uses as token lists.

    Args:
        tokenizer: the model's tokenizer.
        template: the texts; prompts that are not in `slots` are ignored.
        slots: the names of the prompts, and the slots of each.

    Raises:
        ConfigError: a prompt or slot is missing, or the template has a slot that is not in `slots`; the message names
            the file and all faults.
    """

    def __init__(self, tokenizer, template: PromptTemplate, slots: Mapping[str, tuple[str, ...]]):
        _raise_faults(template.file, _prompt_faults(template, slots))
        self._template, self._slots = template, {name: frozenset(names) for name, names in slots.items()}
        self._parts = {name: _split(tokenizer, template, name, self._slots[name]) for name in slots}
        self._empty_memory = None if template.empty_memory is None else encode_text(tokenizer, template.empty_memory)

    @property
    def empty_memory(self) -> list[int]:
        """The initial memory text as tokens. Raises `ConfigError` if the file has none."""
        if self._empty_memory is None:
            raise ConfigError(f"{self._template.file}: the key empty_memory is missing")
        return list(self._empty_memory)  # the agent's own, which it may change

    def layout(self, name: str) -> list[int | str]:
        """A prompt's slots by name, and the number of tokens of each text between them."""
        return [part if isinstance(part, str) else len(part) for part in self._parts[name]]

    def fill(self, name: str, **slots: list[int]) -> list[int]:
        """Return a prompt as tokens, with its slots filled.

        Raises:
            TypeError: the prompt was not declared, or the slots given are not the declared ones.
        """
        if name not in self._slots:
            raise TypeError(f"the prompt {name} is none that the agent declares in slots: {', '.join(self._slots)}")
        if slots.keys() != self._slots[name]:
            raise TypeError(f"the prompt {name} has the slots {sorted(self._slots[name])}, not {sorted(slots)}")
        return [token for part in self._parts[name] for token in (slots[part] if isinstance(part, str) else part)]


def estimated_layout(
    template: PromptTemplate, name: str, slots: Iterable[str], characters_of_a_token: float
) -> list[int | str]:
    """`Prompts.layout` without a tokenizer, from the number of characters. What a chat template adds is left out.

    Raises:
        ConfigError: the template lacks the prompt.
    """
    if name not in template.prompts:
        raise ConfigError(f"{template.file}: the prompt {name} is missing")
    text, end = template.prompts[name], 0
    parts: list[int | str] = []
    for found in _names_in_braces(text):
        if found["name"] in slots:
            parts += [round((found.start() - end) / characters_of_a_token), found["name"]]
            end = found.end()
    return [*parts, round((len(text) - end) / characters_of_a_token)]


def _split(tokenizer, template: PromptTemplate, name: str, slots: frozenset[str]) -> list[list[int] | str]:
    """Split a prompt's text into token lists (between slots) and slot names."""
    text = template.prompts[name]
    if template.chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    parts, end = [], 0
    for found in _names_in_braces(text):
        if found["name"] in slots:
            parts += [tokenizer.encode(text[end : found.start()], add_special_tokens=False), found["name"]]
            end = found.end()
    return [*parts, tokenizer.encode(text[end:], add_special_tokens=False)]
