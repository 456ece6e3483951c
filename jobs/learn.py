"""SmolLM2-135M learns to read with a memory: `python -m jobs.learn [key=value …] [--dry-run]` (`make learn`).

Makes documents of hidden facts and demonstrations, fine-tunes the model on them (`preset=fine_tune_learn`), and trains
it by reinforcement (`preset=learn`). `measure=true` then compares the models before and after at up to 64 times the
training length, for hours. After an interruption, the same command resumes. `--dry-run` lists the steps.
docs/learn.md has the task and the results.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.support.driver import asks_for_help, show_help
from jobs.support.inputs import whole_path
from jobs.support.progress import JobProgress
from jobs.support.run_folder import RunFolder, configuration_of
from jobs.support.steps import Step, checkpoint_of, is_done, run_steps
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.results import read_results, row_key
from pipeline.evaluation.tables import escaped, markdown_lines
from pipeline.rules import check_rules
from pipeline.run.config import load_training_config

TOKENS = 560  # of a training document: five chunks
SHORT, LONG = (1, 4), (16, 64)  # lengths of the measured documents, in training lengths
UNTRAINED = ("niah_multikey_1", "vt")  # RULER's tasks that are measured, too
SEED_OF_VALIDATION, SEED_OF_MEASURING = 2_000_000, 1_000_000  # seeds of documents that no training run has
TRAINING, VALIDATION = 3000, 8  # documents for each number of hops (and length)
MODELS = {"": "SmolLM2", "start": "fine-tuned", "rl": "after RL"}  # what is measured: the step that made it, its name


@dataclass
class LearnConfig:
    folder: str = "runs/learn"  # an interrupted job resumes in the same folder
    model: str = "models/smollm2"  # the model that learns; `make smollm2` makes the default
    prose: str = "configs/prose/training.txt"  # text around the facts: a file, or a folder of .txt files
    held_out_prose: str = "configs/prose/held_out.txt"  # text of the questions for validation and measuring
    seed: int = 0  # of the documents, the demonstrations and both trainings
    measure: bool = False  # compare the models before and after; takes hours
    questions: int = 48  # measuring: questions per set at the training length and at four times that
    long_questions: int = 8  # measuring: the same at 16 and 64 times the training length


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 a step failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__, LearnConfig)
    dry_run = "--dry-run" in arguments
    try:
        config = load_config([a for a in arguments if a != "--dry-run"], LearnConfig)
        check_learn(config)
        return list_steps(config) if dry_run else learn(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted; the same command resumes", flush=True)
        return 130


def check_learn(config: LearnConfig) -> None:
    """Raise `ConfigError` if a key is wrong or a file is missing."""
    rules = [
        *(
            (getattr(config, name) > 0, f"{name}={getattr(config, name)} must be greater than 0")
            for name in ("questions", "long_questions")
        ),
        (Path(config.model).is_dir(), f"model={config.model}: no such folder; `make smollm2` makes the default"),
        *(
            (Path(getattr(config, name)).exists(), f"{name}={getattr(config, name)}: no such file")
            for name in ("prose", "held_out_prose")
        ),
    ]
    check_rules(iter(rules))


def list_steps(config: LearnConfig) -> int:
    folder = Path(config.folder).resolve()
    for step in all_steps(config):
        print(f"{'done' if is_done(step, folder) else '    '}  {step.name:<24} {' '.join(step.arguments)}")
    return 0


def learn(config: LearnConfig) -> int:
    """Run the steps that are not done, and compare what was measured; return the exit status.

    Raises:
        ConfigError: another process works in the folder, it cannot be written, or it began with other settings.
    """
    folder = Path(config.folder).resolve()
    with RunFolder(folder) as place:
        check_same(config, folder)
        place.save_config(config)
        missing = [step for step in all_steps(config) if not is_done(step, folder)]
        with JobProgress() as progress:
            status = run_steps(missing, folder, 1, progress)
        if status == 0 and config.measure:
            compare_models(config, folder)
    if status == 0:
        print(f"· the model that learned: {checkpoint_of('rl', folder)}")
        print(f"· reward and validation, step by step: {folder / 'rl' / 'training.png'}")
    return status


def all_steps(config: LearnConfig) -> list[Step]:
    return [*learning_steps(config), *(measuring_steps(config) if config.measure else [])]


def learning_steps(config: LearnConfig) -> list[Step]:
    """From the model to the model that has learned."""
    folder, seed = Path(config.folder).resolve(), f"run.seed={config.seed}"
    model = f"model.path={whole_path(config.model)}"
    validation = f"validation.data.path={folder / 'validation'}"
    return [
        samples(config, "training", [TOKENS], TRAINING, seed=config.seed),
        samples(config, "validation", [TOKENS, 4 * TOKENS], VALIDATION, seed=SEED_OF_VALIDATION, held_out=True),
        Step(
            "demonstrations",
            "jobs.prepare",
            ("demonstrations", "preset=demonstrations", model, f"path={folder / 'training'}", f"seed={config.seed}"),
        ),
        Step(
            "start",
            "jobs.fine_tune",
            ("preset=fine_tune_learn", model, f"data.path={folder / 'demonstrations' / 'conversations.jsonl'}", seed),
        ),
        Step(
            "rl",
            "jobs.train",
            ("preset=learn", f"data.path={folder / 'training'}", validation, seed, "resume=auto"),
            model="start",
        ),
    ]


def samples(
    config: LearnConfig, name: str, tokens: list[int], count: int, seed: int, forms="trained", held_out=False
) -> Step:
    """Documents of hidden facts, `count` for each length and number of hops; `held_out`: in the held-out prose."""
    arguments = (
        "facts",
        f"tokenizer={whole_path(config.model)}",
        f"tokens={tokens}".replace(" ", ""),
        "hops=[1,2]",
        f"count={count}",
        f"seed={seed}",
        f"forms={forms}",
        f"prose={whole_path(config.held_out_prose if held_out else config.prose)}",
        f"chunk_tokens={load_training_config(['preset=learn']).agent.chunk_tokens}",
    )
    return Step(name, "jobs.prepare", arguments)


def measuring_steps(config: LearnConfig) -> list[Step]:
    """The samples that are measured, and the answers of each model at each length."""
    steps = []
    for name, factors, count in (("short", SHORT, config.questions), ("long", LONG, config.long_questions)):
        tokens = [factor * TOKENS for factor in factors]
        made = [
            samples(config, f"{name}-trained", tokens, count, SEED_OF_MEASURING, held_out=True),
            samples(config, f"{name}-held_out", tokens, count, SEED_OF_MEASURING, "held_out", held_out=True),
            untrained_samples(config, f"{name}-untrained", tokens, count),
        ]
        steps += [*made, *(answers(config, data, model) for model in MODELS for data in made)]
    return steps


def untrained_samples(config: LearnConfig, name: str, tokens: list[int], count: int) -> Step:
    arguments = (
        "ruler",
        f"tokenizer={whole_path(config.model)}",
        f"tasks=[{','.join(UNTRAINED)}]",
        f"tokens={tokens}".replace(" ", ""),
        f"count={count}",
        f"seed={SEED_OF_MEASURING}",
        f"essay={whole_path(config.held_out_prose)}",
    )
    return Step(name, "jobs.prepare", arguments)


def answers(config: LearnConfig, data: Step, model: str) -> Step:
    """The answers of a model of `MODELS` to the questions that a step made."""
    arguments = (
        "preset=eval_learn",
        f"data.path={Path(config.folder).resolve() / data.name}",
        f"run.seed={config.seed}",
        *([] if model else [f"model.path={whole_path(config.model)}"]),
    )
    return Step(f"{data.name}-{model or 'base'}", "jobs.evaluate", arguments, model=model)


def compare_models(config: LearnConfig, folder: Path) -> None:
    """Draw the score of each model by length, compare the first and the last, and show an episode side by side."""
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it imports matplotlib

    rows: dict[str, list[dict]] = {name: [] for name in MODELS.values()}
    for step in measuring_steps(config):
        if not step.prepares:
            rows[MODELS[step.model]] += read_results(folder / step.name / "results.jsonl")
    accuracy_figure(rows, folder / "learn.png")
    first, *_, last = rows
    table = compare(rows[last], rows[first], last, first)
    (folder / "learn.md").write_text(table, encoding="utf-8")
    print(table, f"· table {folder / 'learn.md'}", f"· figure {folder / 'learn.png'}", sep="\n", flush=True)
    if episode := episode_table(rows["fine-tuned"], rows[last]):
        (folder / "episode.md").write_text(episode, encoding="utf-8")
        print(f"· an episode before and after RL {folder / 'episode.md'}", flush=True)


def episode_table(before: list[dict], after: list[dict]) -> str:
    """The memories of both models, side by side, for the first question that only the second answers.

    Of those with the most needed facts, the shortest. Empty if there is none.
    """
    followed = [row for row in before if row.get("memory_trace") and not row["error"]]
    wrong = {row_key(row): row for row in followed if row["score"] == 0}
    learned = [row for row in after if row["score"] == 1 and row_key(row) in wrong]
    if not learned:
        return ""
    chosen = min(learned, key=lambda row: (-row["memory_trace"]["written"][1], row["document_tokens"], row["id"]))
    other = wrong[row_key(chosen)]
    header = ["section", *(f"memory {when} RL" for when in ("before", "after"))]
    first = chosen["conversations"] - len(chosen["memories"])  # results.jsonl has the last memories
    lines = [
        [str(number), escaped(left), escaped(right)]
        for number, (left, right) in enumerate(zip(other["memories"], chosen["memories"], strict=True), first)
    ]
    lines.append(["answer", escaped(other["answer"]), escaped(chosen["answer"])])
    return f"{escaped(chosen['question'])}\n\n{markdown_lines(header, lines)}\n"


def check_same(config: LearnConfig, folder: Path) -> None:
    """Raise `ConfigError` if the folder began with other settings; `measure` may change."""
    if (before := folder / "config.yaml").exists():
        there, here = configuration_of(before), asdict(config)
        for name in here:
            if name != "measure" and there.get(name) != here[name]:
                raise ConfigError(
                    f"{folder} began with {name}={there.get(name)}, not {here[name]}; choose another folder"
                )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
