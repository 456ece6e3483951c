"""Rows of results.jsonl, made up."""


def row(
    score: float = 1.0,
    *,
    set: str = "niah",
    length: int | str | None = 8192,
    id: str = "q0",
    method: str = "memory",
    sample: int = 0,
    task: str = "qa",
    error: str | None = None,
    cut: bool = False,
    document_tokens: int | None = 8000,
    **metrics: float,
) -> dict:
    """A row of results; the other metrics are the score where nothing else is said."""
    scores = {name: score for name in ("score", "exact_match", "containment", "f1", "recall", "sub_em")} | metrics
    return {
        "set": set,
        "length": length,
        "id": id,
        "method": method,
        "sample": sample,
        "task": task,
        "question": f"What is {id}?",
        "answers": ["x"],
        "answer": None if error else "\\boxed{x}",
        **scores,
        "cut": cut,
        "error": error,
        "document_tokens": document_tokens,
        "prompt_tokens": 10,
        "response_tokens": 5,
        "seconds": 0.1,
        "memories": [],
    }


def rows_of(scores: list[float], **fields) -> list[dict]:
    """One row a question."""
    return [row(score, id=f"q{i}", **fields) for i, score in enumerate(scores)]
