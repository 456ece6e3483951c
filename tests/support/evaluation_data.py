"""Questions of all kinds for evaluations, some of which cannot be used, and the arguments of an evaluation of them."""

import json
from pathlib import Path

from pipeline.data.documents.synthetic import SyntheticRecipe
from pipeline.data.rows import row_of
from tests.support.bad_scorers import ARGUMENTS
from tests.support.faults import ROOT

COUNT, CHUNKS = 12, (8, 60)


def write_questions(folder: Path) -> None:
    """Two lengths of a set by reference and by value, and a user's own questions, some of which cannot be used."""
    for chunks in CHUNKS:
        recipe = SyntheticRecipe(5, chunks, COUNT)
        rows = [row_of(recipe.sample(i)) for i in range(COUNT)]
        (folder / f"synthetic-{chunks}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "paragraphs").mkdir()
    (folder / "paragraphs/p.jsonl").write_text('{"title": "Rex", "text": "Rex Paris ."}\n')
    own = {"question": "city Rex", "answers": ["Paris"]}
    rows = [
        own | {"id": "by reference", "passages": [0, 0], "passage_file": "paragraphs/p.jsonl"},
        own | {"id": "long question", "question": "city pet Sam pet pet", "document": "Rex Paris ."},
        own | {"id": "scorer raises", "document": "Rex Paris .", "task": "raises"},
        own | {"id": "own scorer", "document": "Rex Paris .", "task": "counts_letters"},
        own | {"id": "row gone", "passages": [7], "passage_file": "paragraphs/p.jsonl"},
        own | {"id": "by reference", "document": "the same id again"},
        {"id": "no answer", "question": "city Rex", "document": "Rex Paris ."},
    ]
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluation_arguments(data: Path, runs: Path) -> list[str]:
    return [
        "preset=eval_tiny",
        f"model.path={ROOT}/configs/models/tiny",
        f"data.path={data}",
        "data.max_bad_share=0.5",
        "generator.max_sequences=2",  # slow enough to be stopped
        f"run.folder={runs}",
        "run.name=whole",
        "evaluate.max_attempts=2",
        "evaluate.memories=3",
        "evaluate.successes=true",
        "data.source=file",  # the preset's is synthetic
        "generator.count=1",
        *ARGUMENTS,
    ]
