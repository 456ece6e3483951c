"""The configuration of an evaluation, and the checks before it starts."""

from dataclasses import asdict, dataclass, field

from pipeline.agents import METHODS
from pipeline.data.documents.synthetic import EVALUATION_SEED
from pipeline.data.recipes import SyntheticSettings
from pipeline.errors import ConfigError
from pipeline.rules import check_rules, generation_rules, one_of, positive
from pipeline.sections import GenerationConfig, RowLimits, ScoringSection


@dataclass
class EvaluationData:
    source: str = "file"  # file, or synthetic (problems made on demand, pipeline/data/documents/synthetic.py)
    # file: samples (pipeline/data/rows.py) as JSON lines or parquet, or a folder of such files, as made by jobs.prepare
    path: str = ""
    synthetic_chunks: list[int] = field(default_factory=lambda: [8])  # synthetic: document lengths in chunks
    synthetic_count: int = 256  # synthetic: questions per task and length
    # synthetic: some of chains, needles, values, long_chains
    synthetic_tasks: list[str] = field(default_factory=lambda: ["chains"])
    synthetic_seed: int = EVALUATION_SEED  # synthetic: seed of the problems; a training run uses its run.seed
    sets: list[str] = field(default_factory=list)  # only these sets, as named in the samples' metadata; empty: all
    lengths: list[str] = field(default_factory=list)  # only these lengths, as named there; empty: all
    limit: int = 0  # only the first questions of each set and length, at most this many; 0: all
    max_bad_share: float = 0.05  # stop the evaluation if more than this share of the rows is quarantined
    limits: RowLimits = field(default_factory=RowLimits)
    passage_folders: list[str] = field(default_factory=list)  # folders of passage files besides the samples' folder


@dataclass
class EvaluateSection:
    methods: list[str] = field(default_factory=lambda: ["memory"])  # memory, direct, concat, closed_book, module:class
    temperature: float = 0.7  # sampling temperature; 0: the likeliest token
    top_p: float = 0.95  # sample from the likeliest tokens whose probabilities sum to this
    samples: int = 1  # answers per question and method, all seeded by run.seed
    memories: int = 8  # number of last memories of an episode to keep in results.jsonl
    successes: bool = False  # write the conversations of answers that score 1 to successes.jsonl, for fine-tuning
    max_attempts: int = 3  # a trial that failed this often is an error and counts as wrong


@dataclass
class EvaluationConfig(GenerationConfig):
    data: EvaluationData = field(default_factory=EvaluationData)
    scorer: ScoringSection = field(default_factory=ScoringSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)


def check_evaluation(config: EvaluationConfig) -> None:
    """Check the rules that need neither files nor a tokenizer.

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
    """The settings with which jobs.prepare would make the same questions."""
    return SyntheticSettings(
        seed=data.synthetic_seed,
        chunks=data.synthetic_chunks,
        count=data.synthetic_count,
        tasks=data.synthetic_tasks,
    )


# Keys that may differ when an evaluation is resumed: none of them changes an answer, except ANSWERS_DEPEND_ON.
FREE_TO_CHANGE = (
    *("wandb", "generator", "run.name", "run.folder"),
    *("data.max_bad_share", "data.passage_folders", "evaluate.max_attempts", "evaluate.memories"),
)
ANSWERS_DEPEND_ON = "generator.kv_cache_dtype"


def check_same(before: dict, now: dict) -> None:
    """Check that an evaluation is resumed with the configuration that it began with.

    Args:
        before: the configuration in the run folder, as nested dicts; missing keys had their defaults.
        now: the new configuration, as nested dicts.

    Raises:
        ConfigError: a key that affects the questions or the answers differs.
    """
    before, now = _flat(asdict(EvaluationConfig())) | _flat(before), _flat(now)
    different = [
        f"  {key}: {before.get(key)!r} then, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and (key == ANSWERS_DEPEND_ON or not key.startswith(FREE_TO_CHANGE))
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
