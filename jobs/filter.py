"""`python -m jobs.prepare filter`: drop the samples that a model answers without their document.

They teach nothing about reading. The questions are asked through the evaluation (jobs/evaluate.py, method closed_book),
so an interrupted filter is taken up by the same command.
"""

import itertools
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from omegaconf import MISSING

from jobs.driver import EXIT_STATUS
from jobs.evaluate import check, evaluate
from pipeline.config import ConfigError, load_config
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.questions import open_source, read_questions
from pipeline.evaluation.results import read_results
from pipeline.files import file_state, is_local, local_path
from pipeline.problems import Problem, Quarantine, write_problem_file
from pipeline.scoring import reward


@dataclass
class FilterConfig(EvaluationConfig):
    output: str = MISSING  # folder: kept.jsonl, dropped/dropped.jsonl, filter.json, and the answers in evaluation/


def filter_samples(arguments: list[str]) -> int:
    """Ask, and split the samples by what came of it; returns the exit status. Raises `ConfigError`."""
    if fixed := [a for a in arguments if a.startswith(("run.name=", "run.folder="))]:
        raise ConfigError(f"{fixed[0]}: a filter leaves all its files in output=…")
    config = load_config([*arguments, "preset=filter"], FilterConfig)  # after the presets that are given
    if config.evaluate.methods != ["closed_book"]:
        raise ConfigError(f"evaluate.methods={config.evaluate.methods}: a filter asks by closed_book alone")
    if not is_local(config.output):
        raise ConfigError(f"output={config.output}: a filter writes to a local folder")
    config.run.folder, config.run.name = config.output, "evaluation"
    check(config)
    summary, folder = evaluate(config)
    if summary["error"] or summary["status"] != "completed":
        print(f"· {summary['status']}; the same command goes on")
        return EXIT_STATUS.get(summary["status"], 1)
    report = split(config, folder)
    (folder.parent / "filter.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(
        f"· {report['dropped']} of {report['asked']} samples ({report['dropped_share']:.1%}) were answered without "
        f"their document and dropped; {report['kept']} kept, of which {report['errors']} could not be asked; "
        f"{report['quarantined']} quarantined\n· kept {folder.parent / 'kept.jsonl'}\n"
        f"· dropped {folder.parent / 'dropped' / 'dropped.jsonl'}"
    )
    return 0


def split(config: FilterConfig, evaluation: Path) -> dict:
    """Write the samples with a right answer among theirs to dropped.jsonl, the others to kept.jsonl; return counts."""
    best: dict[tuple, float] = defaultdict(float)
    failed = set()
    for row in read_results(evaluation / "results.jsonl"):
        key = (row["set"], row["length"], row["id"])
        best[key] = max(best[key], row["score"])
        if row["cut"]:  # wrong in an evaluation, but who goes on after the right answer knew it
            best[key] = max(best[key], reward(row["task"], row["answer"], tuple(row["answers"]), config.scorer.modules))
        failed |= {key} if row["error"] else set()
    source = open_source(config)
    quarantine = Quarantine(Path(os.devnull), max_share=1.0)  # counted and written by the evaluation
    questions = read_questions(source, config, quarantine)
    right = [best[q.set, q.length, q.id] >= 1 for q in questions]
    counts = {}
    for name, wanted in (("kept", False), ("dropped/dropped", True)):
        path = evaluation.parent / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        chosen = (source.sample(q.index) for q, is_right in zip(questions, right, strict=True) if is_right == wanted)
        counts[path.stem] = write_problem_file(seen_from(path.parent, chosen), path)
    return {
        "model": config.model.path,
        "data": config.data.path or config.data.source,
        "answers_to_each": config.evaluate.samples,
        "asked": len(questions),
        **counts,
        "dropped_share": counts["dropped"] / len(questions),
        "errors": len(failed - {key for key, score in best.items() if score >= 1}),
        "quarantined": quarantine.bad,
    }


def seen_from(folder: Path, problems: Iterable[Problem]) -> Iterable[Problem]:
    """The problems with their passage files in `folder`, where those of a sample file in it have to be."""
    names: dict[str, str] = {}  # in the folder, by path
    for problem in problems:
        file = problem.passage_file
        if file and is_local(file) and local_path(file).exists():
            if file not in names:
                names[file] = _link(local_path(file).resolve(), folder, set(names.values()))
            problem = replace(problem, passage_file=names[file])
        yield problem


def _link(file: Path, folder: Path, taken: set[str]) -> str:
    """Make a link of its own to a file in a folder, or a copy where the file system allows none; return its name."""
    for name in itertools.chain([file.name], (f"{number}-{file.name}" for number in itertools.count(2))):
        there = folder / name
        if name in taken or there.exists() and not _same(file, there):
            continue
        if not there.exists():
            try:
                os.link(file, there)
            except OSError:
                shutil.copy2(file, there)
        return name


def _same(file: Path, other: Path) -> bool:
    """Whether they are one file, or one is a copy of the other that was made here."""
    return file.samefile(other) or file_state(file) == file_state(other)
