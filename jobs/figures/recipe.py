"""The steps of `make figures`: training runs of the embedded model, their evaluations, and the figures.

A step is a command of another job. A step whose summary.json says completed is done and not repeated.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from pipeline.config import load_config
from pipeline.data.documents.synthetic import EVALUATION_SEED
from pipeline.errors import ConfigError
from pipeline.evaluation.results import cells, length_label, read_results
from pipeline.evaluation.tables import escaped, markdown_lines, markdown_table
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.rules import check_rules
from pipeline.run.config import load_training_config

# Temperature and top-p: as in training, as in the paper's evaluation, and greedy.
SAMPLINGS = {"sampled": (1.0, 1.0), "paper": (0.7, 0.95), "greedy": (0.0, 1.0)}
SAMPLING_NAMES = {"sampled": "T = 1", "paper": "T = 0.7, top-p 0.95", "greedy": "greedy"}
TRANSFER_TASKS = ("needles", "values", "long_chains")
PROMPT_AND_RESPONSE = 33  # tokens per conversation of the embedded model, measured in an evaluation at 8 chunks


@dataclass
class FiguresConfig:
    folder: str = "runs/figures"  # an interrupted job resumes in the same folder
    preset: str = "tiny"  # preset of the training runs
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # one training run per seed; all are in the figures
    questions: int = 256  # per point, different ones for each seed
    chunks: list[int] = field(default_factory=lambda: [8, 32, 128, 512, 2048])  # document lengths of figure 1
    ablation_chunks: list[int] = field(default_factory=lambda: [8, 32, 128, 512])  # document lengths of figure 2
    transfer_chunks: list[int] = field(default_factory=lambda: [8, 32, 128])  # document lengths of figure 3
    # how answers are sampled: some of sampled (temperature 1), paper (0.7, top-p 0.95), greedy
    samplings: list[str] = field(default_factory=lambda: list(SAMPLINGS))
    at_once: int = 1  # steps that run at the same time


@dataclass(frozen=True)
class Step:
    """A job that runs once, in a run folder of the step's name."""

    name: str
    job: str  # module name
    arguments: tuple[str, ...]  # without run.folder and run.name
    model: str = ""  # the step whose checkpoint becomes model.path; empty: `arguments` set it
    data: str = ""  # the step whose successes become data.path; empty: `arguments` set it


@dataclass(frozen=True)
class Line:
    """A line of a figure: its name and its evaluations, one per training seed."""

    name: str
    evaluations: tuple[Step, ...]
    sampling: str


def check_figures(config: FiguresConfig) -> None:
    """Raise `ConfigError` with one line for each broken rule."""
    lengths = ("chunks", "ablation_chunks", "transfer_chunks")
    wrong = [name for name in config.samplings if name not in SAMPLINGS]
    rules = [
        *((bool(getattr(config, name)), f"{name} is empty") for name in ("seeds", "samplings", *lengths)),
        *((min(getattr(config, name), default=2) >= 2, f"{name} must be at least 2 each") for name in lengths),
        (len(set(config.seeds)) == len(config.seeds), f"seeds={config.seeds} names one twice"),
        (config.questions > 0, f"questions={config.questions} must be greater than 0"),
        (config.at_once > 0, f"at_once={config.at_once} must be greater than 0"),
        (not wrong, f"samplings={config.samplings} must be some of {', '.join(SAMPLINGS)}"),
    ]
    check_rules(iter(rules))


def training_steps(config: FiguresConfig) -> dict[str, list[Step]]:
    """The training steps by kind, one per seed. "sampled" are evaluations that "rejection" trains on."""
    c = load_training_config([f"preset={config.preset}"])
    train = (f"preset={config.preset}", "train.evaluation=''")
    conversations = c.train.groups_per_step * c.train.group_size * (c.data.synthetic_chunks + 1)
    learner = ("optimizer", "learning_rate", "schedule", "decay_share", "warmup_steps", "max_grad_norm")
    after = (
        "preset=fine_tune_tiny",
        f"fine_tuning.steps={c.train.steps}",
        f"fine_tuning.tokens_per_step={conversations * PROMPT_AND_RESPONSE}",
        *(f"learner.{name}={getattr(c.learner, name)}" for name in learner),
        f"model.path={c.model.path}",
        "fine_tuning.from_scratch=false",
    )
    first = load_config(["preset=fine_tune_tiny"], FineTuningConfig).fine_tuning
    # The direct reader gets as many tokens as fine-tuning and RL training together.
    both = first.steps + c.train.steps * conversations * PROMPT_AND_RESPONSE // first.tokens_per_step
    # As many episodes of the untrained model as RL training samples, on problems of the same kind.
    sampled = (
        "preset=eval_tiny",
        f"model.path={c.model.path}",
        "evaluate.methods=[memory]",
        "evaluate.temperature=1.0",
        "evaluate.top_p=1.0",
        "evaluate.successes=true",
        f"evaluate.samples={c.train.group_size}",
        f"data.synthetic_chunks=[{c.data.synthetic_chunks}]",
        f"data.synthetic_count={c.train.steps * c.train.groups_per_step}",
        "data.synthetic_seed={seed}",
    )

    def each_seed(name: str, job: str, arguments: tuple[str, ...], data: str = "") -> list[Step]:
        arguments = (*arguments, "run.seed={seed}")
        return [
            Step(f"{name}-{seed}", job, tuple(a.format(seed=seed) for a in arguments), data=data and f"{data}-{seed}")
            for seed in config.seeds
        ]

    return {
        "rl": each_seed("rl", "jobs.train", train),
        "demonstrator": each_seed("demonstrator", "jobs.fine_tune", (*after, "data.curriculum=careful")),
        "sampled": each_seed("sampled", "jobs.evaluate", sampled),
        "rejection": each_seed("rejection", "jobs.fine_tune", (*after, "data.source=file"), data="sampled"),
        "direct": [
            Step(
                "direct",
                "jobs.fine_tune",
                ("preset=fine_tune_tiny", "data.curriculum=direct", f"fine_tuning.steps={both}"),
            )
        ],
    }


def evaluation_step(
    config: FiguresConfig,
    model: str,
    sampling: str,
    chunks: list[int],
    method: str = "memory",
    tasks: tuple[str, ...] = (),
    part: tuple[int, int] = (0, 1),
) -> Step:
    """The evaluation of a step's checkpoint, or of the model before training.

    Args:
        config: the figures' configuration.
        model: name of the training step; empty: the model before training.
        sampling: a key of `SAMPLINGS`.
        chunks: document lengths in chunks.
        method: the reading method.
        tasks: the synthetic tasks of the questions; empty: the trained one.
        part: (i, n): ask part i (from 0) of n parts of each point's questions.
    """
    temperature, top_p = SAMPLINGS[sampling]
    start = load_training_config([f"preset={config.preset}"]).model.path
    return Step(
        f"{'transfer' if tasks else 'length'}-{model or 'start'}-{sampling}",
        "jobs.evaluate",
        (
            "preset=eval_tiny",
            *([] if model else [f"model.path={start}"]),
            f"evaluate.temperature={temperature}",
            f"evaluate.top_p={top_p}",
            f"data.synthetic_chunks={chunks}".replace(" ", ""),
            f"data.synthetic_count={-(-config.questions // part[1])}",
            f"data.synthetic_seed={EVALUATION_SEED + part[0]}",
            f"evaluate.methods=[{method}]",
            *([f"data.synthetic_tasks=[{','.join(tasks)}]"] if tasks else []),
        ),
        model,
    )


def figures(config: FiguresConfig) -> dict[str, list[Line]]:
    """The lines of each figure, by figure name."""
    runs = training_steps(config)

    def line(name: str, steps: list[Step] | None, sampling: str, chunks: list[int], **how) -> Line:
        models = [""] if steps is None else [step.name for step in steps]
        parts = [(i, len(models)) for i in range(len(models))]
        evaluations = [
            evaluation_step(config, model, sampling, chunks, part=part, **how)
            for model, part in zip(models, parts, strict=True)
        ]
        return Line(name, tuple(evaluations), sampling)

    made: dict[str, list[Line]] = {"length": [], "ablation": [], "transfer": []}
    for sampling in config.samplings:
        after, before = (
            line(name, steps, sampling, config.chunks)
            for name, steps in (("after RL", runs["rl"]), ("before RL", None))
        )
        made["length"] += [after, before, line("direct", runs["direct"], sampling, config.chunks, method="direct")]
        made["ablation"] += [
            after,
            line("rejection sampling", runs["rejection"], sampling, config.ablation_chunks),
            line("perfect demonstrator (upper bound)", runs["demonstrator"], sampling, config.ablation_chunks),
            before,
        ]
        made["transfer"] += [
            line("after RL", runs["rl"], sampling, config.transfer_chunks, tasks=TRANSFER_TASKS),
            line("before RL", None, sampling, config.transfer_chunks, tasks=TRANSFER_TASKS),
        ]
    return made


def steps_of(lines: list[Line], config: FiguresConfig) -> list[Step]:
    """The steps for the lines of a figure, in order: what a step needs comes before it."""
    training = {step.name: step for steps in training_steps(config).values() for step in steps}

    def with_needs(step: Step) -> list[Step]:
        needs = [training[name] for name in (step.model, step.data) if name]
        return [*(one for need in needs for one in with_needs(need)), step]

    steps = [one for line in lines for evaluation in line.evaluations for one in with_needs(evaluation)]
    return list(dict.fromkeys(steps))


def all_steps(config: FiguresConfig) -> list[Step]:
    """The steps of all figures, each once."""
    return list(dict.fromkeys(step for lines in figures(config).values() for step in steps_of(lines, config)))


TITLES = {
    "length": "Accuracy by document length: memory agent before and after RL, and a direct reader",
    "ablation": "Accuracy by document length after training on equally many tokens from the same model",
    "transfer": "Accuracy on untrained tasks, before and after RL",
}

POOLED = (
    "Intervals are over questions. A line over several training runs pools the questions of all runs; its intervals "
    "do not include the spread between training seeds, which has its own table in the file."
)


def draw(name: str, lines: list[Line], folder: Path) -> str:
    """Draw a figure from the results of its evaluations; write it and its tables; return the first table.

    Intervals are over questions. For a line over several training runs they pool the questions of all runs and do not
    include the spread between seeds. The second table has that spread; the third has each run separately.

    Args:
        name: the figure's name.
        lines: the figure's lines.
        folder: the folder with the steps' run folders; receives the figure and the tables.
    """
    rows, by_seed = [], []
    for line in lines:
        for step in line.evaluations:
            for row in read_results(folder / step.name / "results.jsonl"):
                task = f"{row['set']}, " if name == "transfer" else ""
                row["set"] = f"{task}{SAMPLING_NAMES[line.sampling]}"
                rows.append(row | {"method": line.name})
                if len(line.evaluations) > 1:
                    by_seed.append(row | {"method": step.model})
    from pipeline.evaluation.plots import accuracy_figure  # imported late: it imports matplotlib

    accuracy_figure(
        {name: rows},
        folder / f"{name}.png",
        title=f"{TITLES[name]}, with 95% intervals over questions{', not over training seeds' if by_seed else ''}",
        with_average=False,
        columns=len(SAMPLINGS),  # one row of panels per task
    )
    table, seeds = f"# {TITLES[name]}\n\n{markdown_table(rows)}", ""
    if by_seed:
        table = table.replace("\n\n", f"\n\n{POOLED}\n\n", 1)
        runs = {line.name: [step.model for step in line.evaluations] for line in lines if len(line.evaluations) > 1}
        seeds = f"\n# Spread between training seeds\n\n{seed_spread(by_seed, runs)}\n"
        seeds += f"\n# Each training seed\n\n{markdown_table(by_seed)}"
    (folder / f"{name}.md").write_text(table + seeds, encoding="utf-8")
    return table


def seed_spread(rows: list[dict], runs: dict[str, list[str]]) -> str:
    """A Markdown table of the spread between the training runs of each line, in percent.

    Args:
        rows: rows of results.jsonl, with the run's name as method.
        runs: the runs of each line, by the line's name.

    Returns:
        One table row per set, length and line of the figure: the mean of each run, the mean of these means, and their
        sample standard deviation (n - 1).
    """
    of_run = {(cell.method, cell.set, cell.length): 100 * cell.interval.mean for cell in cells(rows)}
    lines = []
    for name, models in runs.items():
        for place in dict.fromkeys(key[1:] for key in of_run if key[0] in models):
            means = [of_run[model, *place] for model in models]
            each = ", ".join(f"{mean:.1f}" for mean in means)
            lines.append([escaped(place[0]), length_label(place[1]), escaped(name), each])
            lines[-1] += [f"{fmean(means):.1f}", f"{stdev(means):.1f}"]
    header = ["Set", "Length", "Line", "Runs", "Mean of the runs", "Standard deviation"]
    return markdown_lines(header, lines)


def is_done(step: Step, folder: Path) -> bool:
    """Whether the step has completed."""
    try:
        return json.loads((folder / step.name / "summary.json").read_text())["status"] == "completed"
    except (OSError, ValueError):
        return False


def checkpoint_of(name: str, folder: Path) -> str:
    """The model folder of a finished training step.

    Raises:
        ConfigError: the step left no checkpoint.
    """
    try:
        return str(Path(json.loads((folder / name / "summary.json").read_text())["checkpoint"]) / "hf")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{name} left no checkpoint: {error}") from None
