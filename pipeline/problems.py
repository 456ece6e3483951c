"""A problem: one question about one document, with its gold answers. pipeline/data/rows.py has its form in a file."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Problem:
    """One question about one document.

    `answers` are the gold answers: alternatives for a task with one answer, all wanted values for a task with
    several. The scorer, which `task` names, decides (pipeline/rewards/scoring.py). The document is a text, or the rows
    `passages` of `passage_file`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    document: str = ""
    task: str = "qa"
    metadata: dict = field(default_factory=dict)
    passages: tuple[int, ...] = ()
    passage_file: str = ""

    def without_document(self) -> "Problem":
        """The problem as its scorer gets it: a document may be large, and is not scored."""
        return replace(self, document="", passages=(), passage_file="")
