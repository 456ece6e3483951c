"""The configuration of an evaluation, and the checks that are made before it starts."""

from dataclasses import asdict, dataclass, field

from pipeline.agents import METHODS
from pipeline.data.documents.synthetic import EVALUATION_SEED
from pipeline.data.recipes import SyntheticSettings
from pipeline.errors import ConfigError
from pipeline.rules import check_rules, generation_rules, one_of, positive
from pipeline.sections import GenerationConfig, RowLimits, ScoringSection


@dataclass
class EvaluationData:
    # file, or synthetic (problems of pipeline/data/documents/synthetic.py, made as they are asked)
    source: str = "file"
    path: str = ""  # file: samples (pipeline/problems.py) as JSON lines or parquet, or a folder of such files
    synthetic_chunks: list[int] = field(default_factory=lambda: [8])  # synthetic: lengths of documents
    synthetic_count: int = 256  # synthetic: questions of each task and length
    synthetic_tasks: list[str] = field(default_factory=lambda: ["chains"])  # synthetic: names in SYNTHETIC_TASKS
    synthetic_seed: int = EVALUATION_SEED  # synthetic: of the problems; a training run draws those of its run.seed
    sets: list[str] = field(default_factory=list)  # only these sets, as the samples' metadata name them; none: all
    lengths: list[str] = field(default_factory=list)  # only these lengths; none: all
    limit: int = 0  # questions of each set and length, the first ones; 0: all
    max_bad_share: float = 0.05  # more quarantined rows than this share stop the evaluation
    limits: RowLimits = field(default_factory=RowLimits)
    passage_folders: list[str] = field(default_factory=list)  # where passage files may be, beside the samples' folder


@dataclass
class EvaluateSection:
    methods: list[str] = field(default_factory=lambda: ["memory"])  # memory, direct, concat, closed_book, module:class
    temperature: float = 0.7  # of sampling; 0: the likeliest token
    top_p: float = 0.95  # sample among the likeliest tokens whose probabilities sum to this
    samples: int = 1  # answers to each question by each method; run.seed seeds them all
    memories: int = 8  # the last ones of an episode that results.jsonl keeps
    successes: bool = False  # write the conversations of answers that score 1 into successes.jsonl, to fine-tune on
    max_attempts: int = 3  # a question that failed this often is an error, and counts as wrong


@dataclass
class EvaluationConfig(GenerationConfig):
    data: EvaluationData = field(default_factory=EvaluationData)
    scorer: ScoringSection = field(default_factory=ScoringSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)


def check_evaluation(config: EvaluationConfig) -> None:
    """Check the rules that need no file and no tokenizer.

    Raises:
        ConfigError: one line for each broken rule.
    """
    check_rules(generation_rules(config), _rules(config))


def _rules(c: EvaluationConfig):
    yield from positive(c, "evaluate", "samples", "max_attempts")
    yield from one_of(c, "data", "source", ("file", "synthetic"))
    if c.data.source == "synthetic":
        yield not c.data.path, f"data.path={c.data.path} is not read with data.source=synthetic; set data.source=file"
        for fault in synthetic_settings(c.data).faults():
            yield False, f"data.synthetic_{fault}"
    e = c.evaluate
    yield 0 < e.top_p <= 1, f"evaluate.top_p={e.top_p} must be above 0 and at most 1"
    yield bool(e.methods), f"evaluate.methods is empty; name some of {', '.join(METHODS)}"
    yield len(set(e.methods)) == len(e.methods), f"evaluate.methods={e.methods} names one twice"


def synthetic_settings(data: EvaluationData) -> SyntheticSettings:
    """What jobs.prepare would make these questions by."""
    return SyntheticSettings(
        seed=data.synthetic_seed,
        chunks=data.synthetic_chunks,
        count=data.synthetic_count,
        tasks=data.synthetic_tasks,
    )


# What may differ when an evaluation is taken up: none of it changes an answer.
FREE_TO_CHANGE = (
    *("wandb", "generator", "run.name", "run.folder"),
    *("data.max_bad_share", "data.passage_folders", "evaluate.max_attempts", "evaluate.memories"),
)


def check_same(before: dict, now: dict) -> None:
    """What was configured when the evaluation began is what is configured now.

    Args:
        before: the configuration in the run's folder, as nested dicts; what it lacks had its default.
        now: that of the command line.

    Raises:
        ConfigError: something differs that changes what is asked or answered.
    """
    before, now = _flat(asdict(EvaluationConfig())) | _flat(before), _flat(now)
    different = [
        f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(FREE_TO_CHANGE)
    ]
    if different:
        raise ConfigError(
            "this run.name has results of another configuration:\n" + "\n".join(different) + "\nchoose another run.name"
        )


def _flat(values: dict, prefix: str = "") -> dict:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
