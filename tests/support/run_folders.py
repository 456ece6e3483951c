"""Run folders written by hand, as a training run leaves them."""

import json
from pathlib import Path

EVIL = '</script><script>document.title="run"</script><img src=x onerror="document.title=\'run\'"><!--'


def write_lines(path: Path, rows: list) -> None:
    """A file of JSON lines; a text is a line as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def conversation(response: str, role: str = "memory", version: int = 0, advantage: float = 0.5, **tokens) -> dict:
    """A conversation whose tokens are its words, each with the blank before it."""
    words = response.split(" ")
    characters = [len(word) + (i > 0) for i, word in enumerate(words)]
    numbers = {
        "characters": characters,
        "logprobs": [-0.25] * len(words),
        "learner": [-0.25 + 0.05 * (i % 5 - 2) for i in range(len(words))],
        "versions": [[version, 1], [version + 1, len(words) - 1]] if len(words) > 1 else [[version, 1]],
    }
    return {"role": role, "response": response, "advantage": advantage, "tokens": numbers | tokens}


def episode(read: int = 4, question: str = "city pet Sam", reward: float = 1.0, words: int = 3, **changed) -> dict:
    """A sampled episode with two needed facts, in the first and in the last but one section."""
    memories = [" ".join(f"word-{i}-{j}" for j in range(words)) for i in range(read)]
    held = [[0] if i < read - 2 else [0, 1] for i in range(read)]
    row = {
        "problem_id": f"id of {question}",
        "problem": question,
        "task": "qa",
        "answers": ["Paris"],
        "conversations": [*map(conversation, memories), conversation("\\boxed{ Paris }", "answer")],
        "answer": "\\boxed{ Paris }",
        "cut": False,
        "reward": reward,
        "penalty": 0.0,
        "advantage": 0.5,
        "document_tokens": 18 * read,
        "sections": [f"Adam Luna . section {i}" for i in range(read)],
        "memories": memories,
        "facts": [{"text": "Sam Rex .", "section": 0}, {"text": "Rex Paris .", "section": read - 2}],
        "held": held,
    }
    return row | changed


def answer(name: str, score: float, length: int = 144, **changed) -> dict:
    """A row of results.jsonl."""
    row = {"set": "synthetic", "length": length, "id": name, "method": "memory", "sample": 0, "task": "qa"}
    texts = {"question": f"question {name}", "answers": ["Paris"], "answer": f"answer {score}"}
    return row | texts | {"score": score, "error": None, "memories": ["none", "Sam Rex ."]} | changed


def write_run(folder: Path, episodes: dict[int, list] | None = None) -> Path:
    """A completed run of 12 steps with an evaluation and two validations.

    Args:
        folder: where to write it.
        episodes: the sampled episodes by step; None: two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("run: {}\n")
    summary = {"status": "completed", "model": "models/x", "steps": 12, "seconds": 134.5, "error": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    write_lines(folder / "metrics.jsonl", [{"step": s, "reward": s / 12, "entropy": 0.3} for s in range(1, 13)])
    cells = [
        {"set": "synthetic", "length": n, "score": 0.5, "low": 0.4, "high": 0.6, "version_mean": 1} for n in (144, 576)
    ]
    rows = [{"step": s, "version": s, "questions": "a", "score": s / 24, "cells": cells} for s in (0, 12)]
    write_lines(folder / "validation.jsonl", rows)
    for place, score in (("evaluation/before-RL", 0), ("evaluation/after-RL-12", 1)):
        write_lines(folder / place / "results.jsonl", [answer("a", score), answer("b", 0.5)])
    for step in (0, 12):
        write_lines(folder / f"validation/step-{step:06d}" / "results.jsonl", [answer("v", step / 12)])
    for step, rows in (episodes or {1: [episode(reward=0.0)], 12: [episode(reward=1.0)]}).items():
        write_lines(folder / "episodes" / f"step-{step:06d}.jsonl", rows)
    return folder
