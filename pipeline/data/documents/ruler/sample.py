"""The sample that every RULER task makes: a question, its gold answers, and a document fitted to a length."""

from dataclasses import dataclass

from pipeline.data.documents.ruler.fitting import Fitted


@dataclass(frozen=True)
class Sample:
    """A question, its gold answers and its document.

    `question` includes the task's introduction, so that an agent knows from the first chunk on what to look for.
    `needles` holds what answers the question, and at what depth; `needed` its sentences, each with the value that
    shows it. `name` is the end of the problem's id, if any.
    """

    question: str
    answers: tuple[str, ...]
    document: Fitted
    needles: tuple[dict, ...] = ()
    name: tuple[str, ...] = ()
    needed: tuple[tuple[str, str], ...] = ()


def depth(text: str, needle: str) -> float:
    """Where `needle` begins in `text`: 0 at its beginning, 1 at its end, by characters."""
    return text.index(needle) / len(text)


def listed(words: list[str]) -> str:
    """The words as an English list: "a", "a and b", "a, b, and c"."""
    if len(words) <= 2:
        return " and ".join(words)
    return f"{', '.join(words[:-1])}, and {words[-1]}"
