"""`python -m jobs.prepare filter`: drop the questions that a model answers without their document.

Such questions teach nothing about reading. Each question is asked once, so the same ones are kept at all document
lengths. An evaluation asks them (jobs/evaluate.py, method closed_book), so the same command resumes an interrupted
filter.
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from omegaconf import MISSING

from jobs.support.driver import EXIT_STATUS, start_ray
from jobs.support.evaluation import check, evaluate
from jobs.support.inputs import check_model
from jobs.support.run_folder import RunFolder, base_folder
from pipeline.config import config_yaml, load_config
from pipeline.data.filtered_sets import KEPT, kept_file, kept_ids
from pipeline.data.quarantine import Quarantine
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.config import EvaluationConfig, check_evaluation
from pipeline.evaluation.filtering import RULES, hotpotqa_problems, split, verdicts, write_asked
from pipeline.evaluation.questions import open_source, read_questions
from pipeline.files import exists, is_local, local_path
from pipeline.problems import Problem
from pipeline.rules import check_data_given, check_rules

EVALUATION = "evaluation"  # folder of the output
ASKED = "asked/questions.jsonl"
QUARANTINE = "quarantine/questions.jsonl"


@dataclass
class FilterConfig(EvaluationConfig):
    """The samples whose questions a model does not answer without the document.

    `data.path` is HotpotQA's JSON (a name ending in .json), or samples as in an evaluation.
    """

    output: str = MISSING  # folder for kept.jsonl, dropped/dropped.jsonl, filter.json, and the answers in evaluation/
    only: list[str] = field(default_factory=list)  # HotpotQA's JSON: only questions that these filters kept
    rule: str = "score"  # a question is dropped if an answer scores 1; containment: or contains a gold answer


def filter_samples(arguments: list[str]) -> int:
    """Ask the questions and split the samples by the answers; return the exit status.

    Raises:
        ConfigError: the filter cannot work, or another one is working in its folder.
    """
    if fixed := [a for a in arguments if a.startswith(("run.name=", "run.folder="))]:
        raise ConfigError(f"{fixed[0]}: a filter writes all its files to output=…")
    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    config = load_config([*arguments, "preset=filter"], FilterConfig)  # after presets in the arguments
    if dry_run:
        print(config_yaml(config))
    check_filter(config)
    if dry_run:
        return 0
    folder = base_folder(in_job=start_ray()) / local_path(config.output)
    with RunFolder(folder):
        return filter_into(folder, config)


def filter_into(folder: Path, config: FilterConfig) -> int:
    """`filter_samples` in a folder whose lease this process holds."""
    asking = evaluation_of(config, folder)
    quarantine = Quarantine(folder / QUARANTINE, config.data.max_bad_share)
    quarantine.path.unlink(missing_ok=True)  # a resumed filter finds the same rows
    try:
        asked = write_asked(problems(config, quarantine), folder / ASKED, begun=has_answers(folder))
        quarantine.finish()
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"· {asked} questions to ask", flush=True)
    summary, evaluation = evaluate(asking)
    if summary["error"] or summary["status"] != "completed":
        print(f"· {summary['status']}; the same command resumes it")
        return EXIT_STATUS.get(summary["status"], 1)
    report = {"asked": asked, "quarantined": quarantine.bad} | split_by_answers(config, evaluation, folder)
    (folder / "filter.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(
        f"· {report['dropped']} of {report['dropped'] + report['kept']} samples ({report['dropped_share']:.1%}) were "
        f"answered without their document and dropped; {report['kept']} kept\n"
        f"· {report['errors']} of {asked} questions could not be asked or scored and are kept; "
        f"{quarantine.bad} quarantined\n"
        f"· kept {folder / KEPT}\n· dropped {folder / 'dropped' / 'dropped.jsonl'}"
    )
    return 0


def split_by_answers(config: FilterConfig, evaluation: Path, folder: Path) -> dict:
    """Write the filtered set to `folder` by the answers in the folder `evaluation`; return filter.json's content."""
    judged = verdicts(evaluation / "results.jsonl", config.rule)
    again = Quarantine(Path(os.devnull), max_share=1.0)  # bad rows are already counted and written
    counts = split(problems(config, again), judged.answered, folder)
    return {
        "model": config.model.path,
        "data": config.data.path or config.data.source,
        "only": config.only,
        "rule": config.rule,
        "answers_to_each": config.evaluate.samples,
        **counts,
        "dropped_share": counts["dropped"] / sum(counts.values()),
        "errors": judged.errors,
    }


def check_filter(config: FilterConfig) -> None:
    """Raise `ConfigError` if the filter cannot work."""
    hotpotqa = is_hotpotqa(config)
    check_rules(
        [
            (
                config.evaluate.methods == ["closed_book"],
                f"evaluate.methods={config.evaluate.methods}: a filter asks with closed_book only",
            ),
            (is_local(config.output), f"output={config.output}: a filter writes to a local folder"),
            (config.rule in RULES, f"rule={config.rule!r} must be one of {', '.join(RULES)}"),
            (
                hotpotqa or not config.only,
                f"only={config.only} selects among the questions of HotpotQA's .json file; to filter samples that a "
                "filter kept, set data.path=<its output>",
            ),
            (
                not hotpotqa or not (config.data.sets or config.data.lengths),
                "data.sets and data.lengths select samples; the questions of HotpotQA's .json file have neither",
            ),
        ]
    )
    if not hotpotqa:
        check(config)
        return
    check_evaluation(config)
    check_data_given(config)
    for path in (config.data.path, *map(kept_file, config.only)):
        try:
            if not exists(path):
                raise ConfigError(f"{path}: no such file" + ("" if "://" in path else f" (from {Path.cwd()})"))
        except DataError as error:
            raise ConfigError(str(error)) from None
    check_model(config, config.evaluate.methods)


def is_hotpotqa(config: FilterConfig) -> bool:
    return config.data.source == "file" and config.data.path.endswith(".json")


def problems(config: FilterConfig, quarantine: Quarantine) -> Iterable[Problem]:
    """The samples to filter, one by one. Raises `DataError` or OSError, also during iteration."""
    if is_hotpotqa(config):
        only = kept_ids(config.only) if config.only else None
        return hotpotqa_problems(config.data.path, only, config.data.limit, quarantine)
    source = open_source(config)
    return (source.sample(question.index) for question in read_questions(source, config, quarantine))


def evaluation_of(config: FilterConfig, folder: Path) -> EvaluationConfig:
    """The evaluation that asks the questions. Keys that only judge the answers, such as `rule`, are not part of it."""
    asking = EvaluationConfig(**{each.name: getattr(config, each.name) for each in fields(EvaluationConfig)})
    asking.data = replace(config.data, source="file", path=str(folder / ASKED), sets=[], lengths=[], limit=0)
    asking.run.folder, asking.run.name = str(folder), EVALUATION
    return asking


def has_answers(folder: Path) -> bool:
    results = folder / EVALUATION / "results.jsonl"
    return results.exists() and results.stat().st_size > 0
