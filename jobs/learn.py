"""SmolLM2-135M learns to read with a memory: `python -m jobs.learn [key=value …] [--dry-run]` (`make learn`).

Makes documents of hidden facts and demonstrations, fine-tunes the model on them (`preset=fine_tune_learn`), and trains
it by reinforcement (`preset=learn`). `measure=true` then compares the models before and after at up to 64 times the
training length, which takes hours. After an interruption, the same command resumes. `--dry-run` lists the steps.
docs/learn.md has the task and the results.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.support.driver import asks_for_help, show_help
from jobs.support.inputs import whole_path
from jobs.support.progress import JobProgress
from jobs.support.run_folder import RunFolder
from jobs.support.steps import Step, check_steps, checkpoint_of, is_done, list_steps, recorded_arguments, run_steps
from pipeline.config import load_config
from pipeline.data.documents.synthetic import EVALUATION_SEED, VALIDATION_SEED
from pipeline.data.recipes import PROSE
from pipeline.dtype import chosen_dtype
from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.results import read_results, row_key
from pipeline.evaluation.tables import escaped, markdown_lines
from pipeline.rules import check_rules
from pipeline.run.config import load_training_config
from pipeline.sections import from_repository

DTYPES = ("auto", "float32", "bfloat16")
TOKENS = 560  # of a training document: five chunks
EVALUATE_EVERY = 17  # steps of reinforcement learning: before, in the middle, after
SHORT, LONG = (1, 4), (16, 64)  # lengths of the measured documents, in training lengths
UNTRAINED = ("niah_multikey_1", "vt")  # RULER's tasks that are measured, too
TRAINING, VALIDATION = 3000, 8  # documents for each number of hops (and length)
# The models that are measured, by the step that made them. The base model was never shown how to write an answer.
BASE, START, RL = "", "start", "rl"
MODELS = {BASE: "base", START: "before RL", RL: "after RL"}


@dataclass
class LearnConfig:
    folder: str = "runs/learn"  # an interrupted job resumes in the same folder
    model: str = "models/smollm2"  # the model that learns; `make smollm2` makes the default
    dtype: str = "auto"  # float32, bfloat16, or auto: bfloat16 on CPUs that compute it, else float32, which is slower
    prose: str = PROSE[0]  # text around the facts: a file, or a folder of .txt files
    held_out_prose: str = PROSE[1]  # text around the facts of validation and measuring
    seed: int = 0  # seed of the training documents, the demonstrations and all sampling
    measure: bool = False  # compare the models before and after; takes hours
    questions: int = 32  # measuring: questions per set at the training length and at four times that
    long_questions: int = 6  # measuring: the same at 16 and 64 times the training length, without the base model


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 a step failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__, LearnConfig)
    dry_run = "--dry-run" in arguments
    try:
        config = with_whole_paths(load_config([a for a in arguments if a != "--dry-run"], LearnConfig))
        check_learn(config)
        return list_steps(all_steps(config), Path(config.folder)) if dry_run else learn(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted; the same command resumes", flush=True)
        return 130


def with_whole_paths(config: LearnConfig) -> LearnConfig:
    """The configuration with absolute paths, except the repository's prose, which is the same everywhere."""
    prose, held_out = (p if p in PROSE else whole_path(p) for p in (config.prose, config.held_out_prose))
    folder, model = str(Path(config.folder).resolve()), whole_path(from_repository(config.model))
    return replace(config, folder=folder, model=model, prose=prose, held_out_prose=held_out)


def check_learn(config: LearnConfig) -> None:
    """Raise `ConfigError` if a key is wrong or a file is missing."""
    rules = [
        *(
            (getattr(config, name) > 0, f"{name}={getattr(config, name)} must be greater than 0")
            for name in ("questions", "long_questions")
        ),
        (Path(config.model).is_dir(), f"model={config.model}: no such folder; `make smollm2` makes the default"),
        *(
            (Path(from_repository(getattr(config, name))).exists(), f"{name}={getattr(config, name)}: no such file")
            for name in ("prose", "held_out_prose")
        ),
        (config.dtype in DTYPES, f"dtype={config.dtype} must be one of {', '.join(DTYPES)}"),
        (
            len({Path(from_repository(path)).resolve() for path in (config.prose, config.held_out_prose)}) == 2,
            f"held_out_prose={config.held_out_prose} is also prose",
        ),
        (
            config.seed not in (VALIDATION_SEED, EVALUATION_SEED),
            f"seed={config.seed} is the seed of the questions for validation or measuring",
        ),
    ]
    check_rules(iter(rules))
    check_steps(all_steps(config), Path(config.folder))


def learn(config: LearnConfig) -> int:
    """Run the steps that are not done, and compare what was measured; return the exit status.

    Raises:
        ConfigError: another process works in the folder, or it cannot be written.
    """
    folder = Path(config.folder)
    with RunFolder(folder):
        missing = [step for step in all_steps(config) if not is_done(step, folder)]
        with JobProgress() as progress:
            status = run_steps(missing, folder, 1, progress)
        if status == 0 and config.measure:
            try:
                compare_models(config)
            except (OSError, ValueError) as error:
                print(f"the models cannot be compared: {error}", file=sys.stderr)
                return 1
    if status == 0:
        print(f"· reward and validation, step by step: {folder / RL / 'training.png'}")
        print(f"· the model that learned: {checkpoint_of(RL, folder)}")
    return status


def all_steps(config: LearnConfig) -> list[Step]:
    return [*learning_steps(config), *(measuring_steps(config) if config.measure else [])]


def learning_steps(config: LearnConfig) -> list[Step]:
    """From the model to the model that has learned."""
    folder, seed, (model, dtype) = Path(config.folder), f"run.seed={config.seed}", model_of(config)
    conversations = folder / "demonstrations" / "conversations.jsonl"
    return [
        facts(config, "training", [TOKENS], TRAINING, config.seed, config.prose),
        facts(config, "validation", [TOKENS, 4 * TOKENS], VALIDATION, VALIDATION_SEED, config.held_out_prose),
        Step(
            "demonstrations",
            "jobs.prepare",
            ("demonstrations", "preset=demonstrations", model, f"path={folder / 'training'}", f"seed={config.seed}"),
        ),
        Step(
            START,
            "jobs.fine_tune",
            ("preset=fine_tune_learn", model, dtype, f"data.path={conversations}", seed, "resume=auto"),
        ),
        Step(
            RL,
            "jobs.train",
            (
                "preset=learn",
                dtype,
                f"data.path={folder / 'training'}",
                f"train.evaluate_every={EVALUATE_EVERY}",
                f"validation.data.path={folder / 'validation'}",
                seed,
                "resume=auto",
            ),
            model=START,
        ),
    ]


def model_of(config: LearnConfig) -> tuple[str, str]:
    """The model and the dtype of its weights as arguments. With dtype=auto, a job resumes in the dtype of its start."""
    chosen = f"model.dtype={chosen_dtype(load_training_config(['preset=learn', f'model.dtype={config.dtype}']))}"
    begun = [a for a in recorded_arguments(START, Path(config.folder)) if a.startswith("model.dtype=")]
    return f"model.path={config.model}", begun[0] if begun and config.dtype == "auto" else chosen


def facts(
    config: LearnConfig, name: str, tokens: list[int], count: int, seed: int, prose: str, forms: str = "trained"
) -> Step:
    """Documents of hidden facts, `count` for each length and number of hops."""
    chunk_tokens = load_training_config(["preset=learn"]).agent.chunk_tokens
    drawn = (f"seed={seed}", f"count={count}", lengths(tokens), "hops=[1,2]", f"forms={forms}")
    read = (f"tokenizer={config.model}", f"chunk_tokens={chunk_tokens}", f"prose={prose}")
    return Step(name, "jobs.prepare", ("facts", *drawn, *read))


def lengths(tokens: list[int]) -> str:
    return f"tokens=[{','.join(map(str, tokens))}]"


def measuring_steps(config: LearnConfig) -> list[Step]:
    """The samples that are measured, and the answers of each model at each length."""
    short = samples_to_measure(config, "short", SHORT, config.questions)
    long = samples_to_measure(config, "long", LONG, config.long_questions)
    return [
        *short,
        *(answers(config, data, model) for model in MODELS for data in short),
        *long,
        *(answers(config, data, model) for model in (START, RL) for data in long),
    ]


def samples_to_measure(config: LearnConfig, name: str, factors: tuple[int, ...], count: int) -> list[Step]:
    tokens, seed, prose = [factor * TOKENS for factor in factors], EVALUATION_SEED, config.held_out_prose
    drawn = (f"seed={seed}", f"count={count}", lengths(tokens), f"tasks=[{','.join(UNTRAINED)}]")
    read = (f"tokenizer={config.model}", f"essay={whole_path(from_repository(prose))}")
    return [
        facts(config, f"{name}-trained-forms", tokens, count, seed, prose),
        facts(config, f"{name}-held-out-forms", tokens, count, seed, prose, forms="held_out"),
        Step(f"{name}-untrained-tasks", "jobs.prepare", ("ruler", *drawn, *read)),
    ]


def answers(config: LearnConfig, data: Step, model: str) -> Step:
    """The answers of a model of `MODELS` to the questions that a step made."""
    path, dtype = model_of(config)
    arguments = ("preset=eval_learn", dtype, f"data.path={Path(config.folder) / data.name}", f"run.seed={config.seed}")
    return Step(
        f"{data.name}-{model or 'base'}",
        "jobs.evaluate",
        (*arguments, *([] if model else [path])),
        model=model,
    )


def compare_models(config: LearnConfig) -> None:
    """Draw the score of each model by length, compare them, and show an episode side by side.

    Raises:
        OSError: results cannot be read, or the files cannot be written.
        ValueError: results are damaged.
    """
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it imports matplotlib

    folder = Path(config.folder)
    rows: dict[str, list[dict]] = {model: [] for model in MODELS}
    for step in measuring_steps(config):
        if not step.prepares:
            rows[step.model] += read_results(folder / step.name / "results.jsonl")
    accuracy_figure({MODELS[model]: of_model for model, of_model in rows.items()}, folder / "learn.png")
    pairs = [(RL, START), (START, BASE)]
    tables = [compare(rows[one], rows[other], MODELS[one], MODELS[other]) for one, other in pairs]
    (folder / "learn.md").write_text("\n".join(tables), encoding="utf-8")
    print(*tables, f"· table {folder / 'learn.md'}", f"· figure {folder / 'learn.png'}", sep="\n", flush=True)
    if episode := episode_table(rows[START], rows[RL]):
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
