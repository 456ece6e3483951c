"""What the tests of RULER share: tokenizers to count with, an essay, and question files."""

import json
import re
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from pipeline.data.documents.ruler import RulerSources, load_questions
from pipeline.data.quarantine import Quarantine

WORDS = "old men plant trees whose shade they never sit in while young winds carry every seed to another hill".split()


def essay(sentences: int = 200) -> tuple[str, ...]:
    """Different sentences of 4 to 20 words."""
    return tuple(
        " ".join([f"Sentence{i}", *(WORDS[(i * 7 + k * 5) % len(WORDS)] for k in range(3 + i * 11 % 17))]) + "."
        for i in range(sentences)
    )


def count_bytes(text: str) -> int:
    """As the tokenizer of tests/support/byte_tokenizer.py counts."""
    return len(text.encode())


def count_words(text: str) -> int:
    return len(text.split())


PIECES = re.compile(r"\s?[^\W\d]{1,4}|\s?\d|[^\w\s]+|\s")


def count_pieces(text: str) -> int:
    """Four letters, one digit, or marks are a token, with the blank before it: near to what large models count."""
    return sum(1 for _ in PIECES.finditer(text))


@cache
def bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*essay(), "One of the special magic numbers for is: The grass is green."], trainer)
    return tokenizer


def count_bpe(text: str) -> int:
    return len(bpe().encode(text).ids)


COUNTERS = (count_bytes, count_words, count_pieces, count_bpe)


def squad(articles: int = 40, paragraphs: int = 6) -> dict:
    """Each paragraph has a word of its own, its answer."""

    def paragraph(a: int, p: int) -> dict:
        qa = {"id": f"s{a}.{p}", "question": f"Which seed is {a} {p}?", "answers": [{"text": f"gold{a}x{p}"}] * 2}
        text = f"Paragraph of {a} and {p}. " + " ".join(WORDS[(a + k * p) % len(WORDS)] for k in range(10 + 9 * p))
        return {"context": f"{text}, so gold{a}x{p} it is.", "qas": [qa]}

    return {
        "data": [
            {"title": f"A{a}", "paragraphs": [paragraph(a, p) for p in range(paragraphs)]} for a in range(articles)
        ]
    }


def hotpotqa(questions: int = 40, paragraphs: int = 10) -> list[dict]:
    def row(i: int) -> dict:
        titles = [f"Title {i} {n}" for n in range(paragraphs)]
        context = [[t, [f"{t} has word{n}x{i}. ", " ".join(WORDS[: 3 + n]) + "."]] for n, t in enumerate(titles)]
        facts = [[titles[3], 0], [titles[7], 1]]
        return {"_id": f"h{i}", "question": f"Q {i}?", "answer": "yes", "supporting_facts": facts, "context": context}

    return [row(i) for i in range(questions)]


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def sources(folder: Path, task: str) -> RulerSources:
    """All that `task` needs."""
    if not task.startswith("qa"):
        return RulerSources(essay=essay())
    path = written(folder / f"{task}.json", squad() if task == "qa_1" else hotpotqa())
    return RulerSources(questions=load_questions(task, path, Quarantine(folder / "quarantine.jsonl")))
