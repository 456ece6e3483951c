"""What every task makes: a question, its answers, and a document that was fitted to a length."""

from dataclasses import dataclass

from pipeline.data.documents.ruler.fitting import Fitted


@dataclass(frozen=True)
class Sample:
    """`question`: with the task's introduction, so that an agent knows from the first chunk what to look for.
    `needles`: what answers it and how deep it stands. `name`: what the problem's id ends with, if any."""

    question: str
    answers: tuple[str, ...]
    document: Fitted
    needles: tuple[dict, ...] = ()
    name: tuple[str, ...] = ()


def depth(text: str, needle: str) -> float:
    """Where `needle` begins in `text`: 0 at its beginning, 1 at its end, by characters."""
    return text.index(needle) / len(text)


def listed(words: list[str]) -> str:
    """The words as an English list: "a", "a and b", "a, b, and c"."""
    if len(words) <= 2:
        return " and ".join(words)
    return f"{', '.join(words[:-1])}, and {words[-1]}"
