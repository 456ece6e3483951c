"""The steps of `make figures`: training runs of the embedded model and their evaluations.

A step is a command of another job (jobs/support/steps.py).
"""

from dataclasses import dataclass, field

from jobs.support.steps import Step
from pipeline.config import load_config
from pipeline.data.documents.synthetic import EVALUATION_SEED
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.rules import check_rules
from pipeline.run.config import load_training_config

# Temperature and top-p: as in training, as in the paper's evaluation, and greedy.
SAMPLINGS = {"sampled": (1.0, 1.0), "paper": (0.7, 0.95), "greedy": (0.0, 1.0)}
SAMPLING_NAMES = {"sampled": "T = 1", "paper": "T = 0.7, top-p 0.95", "greedy": "greedy"}
TRANSFER_TASKS = ("needles", "values", "long_chains")
FIGURES = ("length", "ablation", "transfer", "layout")
# The lines of figure `layout`, each with the prompt template that its model is made, trained and evaluated with.
LAYOUTS = {"paper's order": "tiny", "section first": "tiny_chunk_first"}
PROMPT_AND_RESPONSE = 33  # tokens per conversation of the embedded model, measured in an evaluation at 8 chunks


@dataclass
class FiguresConfig:
    folder: str = "runs/figures"  # an interrupted job resumes in the same folder
    only: list[str] = field(
        default_factory=lambda: list(FIGURES)
    )  # figures to make: some of length, ablation, transfer, layout
    preset: str = "tiny"  # preset of the training runs, or its file
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # one training run per seed; all are in the figures
    questions: int = 256  # per point, different ones for each seed
    chunks: list[int] = field(default_factory=lambda: [8, 32, 128, 512, 2048])  # document lengths of `length`
    ablation_chunks: list[int] = field(default_factory=lambda: [8, 32, 128, 512])  # document lengths of `ablation`
    transfer_chunks: list[int] = field(default_factory=lambda: [8, 32, 128])  # document lengths of `transfer`
    layout_chunks: list[int] = field(default_factory=lambda: [8, 32, 128, 512])  # document lengths of `layout`
    # how answers are sampled: some of sampled (temperature 1), paper (0.7, top-p 0.95), greedy
    samplings: list[str] = field(default_factory=lambda: list(SAMPLINGS))
    at_once: int = 1  # steps that run at the same time


@dataclass(frozen=True)
class Line:
    """A line of a figure: its name and its evaluations, one per training seed."""

    name: str
    evaluations: tuple[Step, ...]
    sampling: str


def check_figures(config: FiguresConfig) -> None:
    """Raise `ConfigError` with one line for each broken rule."""
    lengths = ("chunks", "ablation_chunks", "transfer_chunks", "layout_chunks")
    wrong = [name for name in config.samplings if name not in SAMPLINGS]
    unknown = [name for name in config.only if name not in FIGURES]
    rules = [
        *((bool(getattr(config, name)), f"{name} is empty") for name in ("seeds", "samplings", "only", *lengths)),
        *((min(getattr(config, name), default=2) >= 2, f"{name} must be at least 2 each") for name in lengths),
        (len(set(config.seeds)) == len(config.seeds), f"seeds={config.seeds} names one twice"),
        (config.questions > 0, f"questions={config.questions} must be greater than 0"),
        (config.at_once > 0, f"at_once={config.at_once} must be greater than 0"),
        (not wrong, f"samplings={config.samplings} must be some of {', '.join(SAMPLINGS)}"),
        (not unknown, f"only={config.only} must be some of {', '.join(FIGURES)}"),
        (
            len(config.seeds) != 1 or "layout" not in config.only,
            f"seeds={config.seeds}: the intervals of figure layout need two seeds; leave it out: "
            f"only=[{','.join(name for name in config.only if name != 'layout')}]",
        ),
    ]
    check_rules(iter(rules))


def training_steps(config: FiguresConfig) -> dict[str, list[Step]]:
    """The training steps by kind, one per seed. "sampled" are evaluations that "rejection" trains on."""
    c = load_training_config([f"preset={config.preset}"])
    train = (f"preset={config.preset}", "train.evaluation=none", "train.evaluate_every=0")
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

    def each_seed(name: str, job: str, arguments: tuple[str, ...], model: str = "", data: str = "") -> list[Step]:
        arguments = (*arguments, "run.seed={seed}")
        return [
            Step(
                f"{name}-{seed}",
                job,
                tuple(a.format(seed=seed) for a in arguments),
                model=model,
                data=data and f"{data}-{seed}",
            )
            for seed in config.seeds
        ]

    # A start by the same recipe in each layout, but the preset's, which has one.
    other_layouts = {}
    for template in LAYOUTS.values():
        if template != c.agent.prompt_template:
            start, rl = f"start-{template}", f"rl-{template}"
            recipe = ("preset=fine_tune_tiny", f"data.prompt_template={template}")
            other_layouts[start] = [Step(start, "jobs.fine_tune", recipe)]
            arguments = (*train, f"agent.prompt_template={template}")
            other_layouts[rl] = each_seed(rl, "jobs.train", arguments, model=start)
    return {
        **other_layouts,
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
    figure: str = "length",
    template: str = "",
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
        figure: the figure whose evaluations have these lengths and tasks.
        template: the prompt template; empty: the preset's.
    """
    temperature, top_p = SAMPLINGS[sampling]
    start = load_training_config([f"preset={config.preset}"]).model.path
    return Step(
        f"{figure}-{model or 'start'}-{sampling}",
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
            *([f"agent.prompt_template={template}"] if template else []),
        ),
        model,
    )


def figures(config: FiguresConfig) -> dict[str, list[Line]]:
    """The lines of each chosen figure, by figure name."""
    runs = training_steps(config)
    transfer: dict = {"tasks": TRANSFER_TASKS, "figure": "transfer"}

    def line(name: str, steps: list[Step] | None, sampling: str, chunks: list[int], **how) -> Line:
        models = [""] if steps is None else [step.name for step in steps]
        parts = [(i, len(models)) for i in range(len(models))]
        evaluations = [
            evaluation_step(config, model, sampling, chunks, part=part, **how)
            for model, part in zip(models, parts, strict=True)
        ]
        return Line(name, tuple(evaluations), sampling)

    made: dict[str, list[Line]] = {name: [] for name in FIGURES}
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
            line("after RL", runs["rl"], sampling, config.transfer_chunks, **transfer),
            line("before RL", None, sampling, config.transfer_chunks, **transfer),
        ]
        made["layout"] += [
            line(
                name,
                runs.get(f"rl-{template}", runs["rl"]),
                sampling,
                config.layout_chunks,
                figure="layout",
                template=template,
            )
            for name, template in LAYOUTS.items()
        ]
    return {name: made[name] for name in FIGURES if name in config.only}


def steps_of(lines: list[Line], config: FiguresConfig) -> list[Step]:
    """The steps for the lines of a figure, in order: what a step needs comes before it."""
    training = {step.name: step for steps in training_steps(config).values() for step in steps}

    def with_needs(step: Step) -> list[Step]:
        needs = [training[name] for name in (step.model, step.data) if name]
        return [*(one for need in needs for one in with_needs(need)), step]

    steps = [one for line in lines for evaluation in line.evaluations for one in with_needs(evaluation)]
    return list(dict.fromkeys(steps))


def all_steps(config: FiguresConfig) -> list[Step]:
    """The steps of the chosen figures, each once."""
    return list(dict.fromkeys(step for lines in figures(config).values() for step in steps_of(lines, config)))
