"""GRPO here against TRL's GRPOTrainer: the same model, prompts, group size, tokens and cores.

A step generates the responses to some prompts, scores them, and takes one optimizer step on all of them. Generation and
training both count. The times are those of a real `jobs.train`, from its metrics.jsonl, and of a real
`GRPOTrainer.train()`. Start-up, the first steps and checkpoints count on neither side. The last step of an asynchronous
run does not count either, because nothing is generated during it.

Both sides get the model in float32, and the same prompts of random words, all of the same number of tokens, so that
nothing is padded. All responses have the same number of tokens, because both load a copy of the model whose end token
is one that it does not write. Both sample at temperature 1, reward the share of vowels in a response, divide
advantages by the group's standard deviation, and train with DAPO's loss and AdamW, without KL, entropy term, weight
decay and activation checkpointing, in micro-batches of at most the same number of tokens. All processes of a side
share the same cores.

- "TRL" is one process with a thread per core. It generates with transformers, its default, and is synchronous.
- "palimpsest" is an engine and two learner ranks, each a process with one thread: "synchronous" with
  `train.max_staleness` 0, "asynchronous" with 1.

TRL computes a prompt once for each of its responses. Here it is computed once for the group, in the engine and in the
learners, so the ratio grows with the group and with the prompt's share of the tokens. Both are the paper's by default:
groups of 16, and a prompt eleven times as long as its response, as a section of 5,000 tokens with a memory of 512 is to
the next memory. All of the prompt is shared, as in the first turn of an episode.

TRL can also generate with vLLM, but not on a CPU. In the same process, loading new weights fails, because vLLM has
packed the first ones for the CPU; to a server, TRL sends them by NCCL, which needs GPUs.

TRL is not in `.venv`: `make peers` installs it beside, in `.venv-peers`. It uses the torch and transformers of `.venv`.
"""

import json
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path

from jobs.bench.endless_model import write_endless_model
from jobs.bench.measuring import column, output_of, spread, table, take_turns, to_first
from pipeline.agents import LanguageModel, LongestPrompt
from pipeline.agents.reader import Reader, TokenizedProblem
from pipeline.data.documents.ruler.words import single_words
from pipeline.data.rows import write_problem_file
from pipeline.errors import ConfigError
from pipeline.files import write_text
from pipeline.problems import Problem
from pipeline.rollout.answer import Answer
from pipeline.text import encode_text, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-peers"  # TRL and what it needs beside .venv (`make peers`)

TRL, SYNCHRONOUS, ASYNCHRONOUS = "TRL", "palimpsest, synchronous", "palimpsest, asynchronous"
VARIANTS = (TRL, SYNCHRONOUS, ASYNCHRONOUS)  # ratios are to the first
STALENESS = {SYNCHRONOUS: 0, ASYNCHRONOUS: 1}  # of this system's variants
LEARNING_RATE = 1e-6
TRIES = 10_000  # words tried for a prompt

# The files that both sides read, in one folder.
MODEL, SAMPLES, TEMPLATE = "model", "samples.jsonl", "prompt.yaml"


@dataclass
class Settings:
    model: str = "models/smollm2"  # a folder; `make smollm2` makes this one
    prompts: int = 2  # per step, one group each
    group_size: int = 16  # responses per prompt
    prompt_tokens: int = 528  # of each prompt
    response_tokens: int = 48  # of each response
    micro_batch: int = 8  # conversations of one forward and backward pass of TRL; here as many tokens
    cores: int = 2  # that all processes of a side share
    steps: int = 1  # measured per turn
    rounds: int = 2  # turns per variant
    kv_cache_gib: float = 1.0  # of this system's engine


@dataclass(frozen=True)
class Step:
    """What one step did."""

    seconds: float
    episodes: int
    tokens: int  # response tokens trained


def run(settings: Settings) -> str:
    """Measure all variants; return the table. Raises `ConfigError` if something is missing or does not fit."""
    check(settings)
    with tempfile.TemporaryDirectory() as name, pinned(settings.cores):
        folder = Path(name)
        write_endless_model(settings.model, folder / MODEL)
        write_prompts(settings, folder)
        results = take_turns(VARIANTS, settings.rounds, lambda variant: rates(steps_of(settings, variant, folder)))
    return f"{size(settings)}\n\n{tables(results)}"


def check(settings: Settings) -> None:
    """Check the settings and what has to be installed. Raises `ConfigError` that says what to do."""
    s, there = settings, len(os.sched_getaffinity(0))
    counts = asdict(s) | {"model": 1}
    if low := [name for name, count in counts.items() if count < 1]:
        raise ConfigError(f"{', '.join(low)} must be at least 1")
    if s.group_size < 2:
        raise ConfigError(f"group_size={s.group_size} must be at least 2: the group is the baseline")
    if s.prompts * s.group_size % s.micro_batch:
        raise ConfigError(
            f"prompts × group_size = {s.prompts * s.group_size} must be a multiple of micro_batch={s.micro_batch}"
        )
    if s.cores > there:
        raise ConfigError(f"cores={s.cores}: this process may use only {there}")
    if not (Path(s.model) / "config.json").exists():
        raise ConfigError(f"model={s.model}: no such model; `make smollm2` makes models/smollm2")
    if version_of_trl() is None:
        raise ConfigError(f"TRL is not installed in {PEERS.name}: run `make peers`")


def version_of_trl() -> str | None:
    """The version of TRL in `PEERS`; None if it is not there."""
    return next((found.version for found in distributions(name="trl", path=[str(PEERS)])), None)


@contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Keep this process and those that it starts on the first `cores` cores that it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def vowels(answer: str, answers: Sequence[str] = ()) -> float:
    """The reward: the share of vowels among the characters of a response. It differs within almost every group."""
    return sum(map(answer.count, "aeiou")) / max(1, len(answer))


class PromptAgent(Reader):
    """One conversation, whose prompt is the problem alone. Its answer counts, although it always reaches its limit."""

    slots = {"prompt": ("problem",)}

    def tokenize(self, problem: Problem) -> TokenizedProblem:
        return TokenizedProblem(self.encode_question(problem), document=None)

    async def run(self, problem: TokenizedProblem, llm: LanguageModel) -> Answer:
        prompt = self.prompts.fill("prompt", problem=problem.question)
        return Answer(self.text_of(await llm(prompt, self.config.answer_tokens, "answer")), cut=False)

    def longest_prompts(self) -> list[LongestPrompt]:
        c = self.config
        return [self.longest("prompt", c.answer_tokens, "agent.answer_tokens", problem=c.problem_tokens)]


# What both sides read.


def write_prompts(settings: Settings, folder: Path) -> None:
    """Write the samples of the longest variant, and a template whose prompt is the problem alone."""
    tokenizer, rng = load_tokenizer(str(folder / MODEL)), random.Random(0)
    count = settings.prompts * max(steps_in_all(settings, variant) for variant in VARIANTS)
    texts = [random_words(tokenizer, rng, settings.prompt_tokens) for _ in range(count)]
    problems = [Problem(f"{number}", text, ("-",), document="-", task="vowels") for number, text in enumerate(texts)]
    write_problem_file(problems, folder / SAMPLES)
    write_text(folder / TEMPLATE, "chat: false\nprompt: '{problem}'\n")


def random_words(tokenizer, rng: random.Random, tokens: int) -> str:
    """A text of random words that encodes to exactly this many tokens.

    Raises:
        ConfigError: none was found.
    """
    text = ""
    for _ in range(TRIES):
        longer = f"{text} {rng.choice(single_words())}".strip()
        count = len(encode_text(tokenizer, longer))
        if count == tokens:
            return longer
        text = longer if count < tokens else text.rpartition(" ")[0]  # too long: replace its last words
    raise ConfigError(f"found no words of exactly prompt_tokens={tokens} tokens")


# The runs.


def steps_of(settings: Settings, variant: str, folder: Path) -> list[Step]:
    """Run a variant; return its measured steps. Raises `RuntimeError` if the run failed."""
    steps = of_palimpsest(settings, variant, folder) if variant in STALENESS else of_trl(settings, folder)
    return steps[warm_up(variant) :][: settings.steps]


def warm_up(variant: str) -> int:
    """Steps before the measured ones. In an asynchronous run the first ones fill the buffer."""
    return 1 + STALENESS.get(variant, 0)


def steps_in_all(settings: Settings, variant: str) -> int:
    """All steps of a run. While the last measured one is trained, groups of further steps have to be generated."""
    return warm_up(variant) + settings.steps + STALENESS.get(variant, 0)


def of_palimpsest(settings: Settings, variant: str, folder: Path) -> list[Step]:
    """Run jobs.train in a Ray of its own; return all its steps.

    Raises:
        RuntimeError: the run failed, or had less to compute than TRL (`steps_in`).
    """
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        output_of(["jobs.train", *job_of(settings, variant, folder), f"run.folder={runs}"], {"RAY_ADDRESS": "local"})
        lines = (Path(runs) / "bench" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return steps_in(list(map(json.loads, lines)))


def job_of(settings: Settings, variant: str, folder: Path) -> list[str]:
    """The arguments of jobs.train, all but the run's folder."""
    s, staleness = settings, STALENESS[variant]
    window = s.prompt_tokens + s.response_tokens
    keys = {
        "run.name": "bench",
        "wandb.mode": "disabled",
        "model.path": folder / MODEL,
        "model.dtype": "float32",
        "data.path": folder / SAMPLES,
        "scorer.modules.vowels": f"{vowels.__module__}:{vowels.__name__}",
        "scorer.num_cpus": 0.1,
        "agent.prompt_template": folder / TEMPLATE,
        "agent.window": window,
        "agent.problem_tokens": s.prompt_tokens,
        "agent.answer_tokens": s.response_tokens,
        "generator.count": 1,
        "generator.num_cpus": 0.4,
        "generator.max_sequences": s.prompts * s.group_size * (1 + staleness),
        "generator.kv_cache_gib": s.kv_cache_gib,
        "generator.enforce_eager": "true",
        "learner.ranks": 2,
        "learner.num_cpus": 0.2,
        "learner.micro_batch_tokens": s.micro_batch * window,
        "learner.learning_rate": LEARNING_RATE,
        "learner.warmup_steps": 0,
        "learner.weight_decay": 0,
        "objective.advantage": "std",
        "train.method": f"{PromptAgent.__module__}:{PromptAgent.__name__}",
        "train.steps": steps_in_all(s, variant),
        "train.groups_per_step": s.prompts,
        "train.group_size": s.group_size,
        "train.max_staleness": staleness,
        "train.checkpoint_every": steps_in_all(s, variant),
        "train.episodes_every": steps_in_all(s, variant),
        "train.evaluation": "none",
    }
    return [f"{key}={value}" for key, value in keys.items()]


def steps_in(rows: list[dict]) -> list[Step]:
    """The steps of the rows of a metrics.jsonl.

    Raises:
        RuntimeError: a group had equal rewards: it trains nothing, so that this system would have less to compute.
    """
    if any(row["groups_of_equal_reward"] for row in rows):
        raise RuntimeError(
            "a group had equal rewards, so the work of the sides is not the same; use more response_tokens"
        )
    return [Step(row["seconds"], row["episodes"], row["tokens_trained"]) for row in rows]


def of_trl(settings: Settings, folder: Path) -> list[Step]:
    """Run TRL in a process of its own; return all its steps. Raises `RuntimeError` if it failed."""
    arguments = {"settings": asdict(settings), "folder": str(folder), "steps": steps_in_all(settings, TRL)}
    environment = {
        "PYTHONPATH": str(PEERS),
        "OMP_NUM_THREADS": str(settings.cores),
        "MKL_NUM_THREADS": str(settings.cores),
        "HF_HUB_OFFLINE": "1",
    }
    output = output_of(["jobs.bench.peers_trl", json.dumps(arguments)], environment)
    return [Step(*step) for step in json.loads(output.splitlines()[-1])]


# The table.


def rates(steps: Sequence[Step]) -> dict[str, float]:
    """Rates over all the steps, and the mean seconds per step."""
    seconds = sum(step.seconds for step in steps)
    return {
        "seconds": seconds / len(steps),
        "episodes": sum(step.episodes for step in steps) / seconds,
        "tokens": sum(step.tokens for step in steps) / seconds,
    }


def size(settings: Settings) -> str:
    """What was measured, in a sentence."""
    s = settings
    return (
        f"{s.model} in float32, {s.prompts} prompts of {s.prompt_tokens} tokens per step, {s.group_size} responses of "
        f"{s.response_tokens} tokens each, micro-batches of {s.micro_batch}; measured steps per turn: {s.steps}; "
        f"TRL {version_of_trl()}; {s.cores} cores."
    )


def tables(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A table with one row per variant; ratios are to the first one in the same round."""
    seconds, episodes, tokens = (column(results, key) for key in ("seconds", "episodes", "tokens"))
    ratios = to_first(tokens)
    rows = [
        (v, f"{spread(seconds[v], '.1f')} s", spread(episodes[v]), spread(tokens[v], ".1f"), spread(ratios[v]))
        for v in results
    ]
    return table(("variant", "step", "episodes/s", "trained tokens/s", "ratio"), rows)
