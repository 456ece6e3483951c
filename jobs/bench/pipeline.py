"""Generation in a whole training run against vLLM alone, offline, on the same prompts.

The run is `jobs.train` with all its parts: coordinator, generator, journal, scorers, tracker and learners. All groups
are in flight from the beginning and belong to one step, so the learners are idle until the last group is scored. Its
time is that from the first request to the last response. An agent that is the memory agent and notes its conversations
says when that was, which prompts there were, and how many tokens each response had.

Offline, one process does nothing but call the engine, with the same engine arguments, temperature and number of
threads. It generates responses of exactly the same lengths to the same prompts, as follows:

- "offline, turn by turn" begins a prompt when the response before it in its episode is complete. No system can begin
  it earlier, since the prompt holds that response. The ratio is to this variant.
- "offline, all at once" is `vllm.LLM.generate` on all prompts of all turns. No reader of documents can have them
  beforehand. It is shown as the upper bound.

Requests differ from the run's in three points. In the run, older groups have priority; offline all requests are equal,
so vLLM takes them in the order of their arrival. In the run, a prompt has the weight version as its cache salt; offline
it has none, which shares the same blocks, since the version does not change. In the run, a response ends with an end
token or at its limit; offline vLLM ignores end tokens and stops at the length that the response had in the run, so the
sampled tokens are others, but as many. A round begins with the run; the order of the two others alternates.

The second table shows where the run's time went: each process's CPU time as a share of the run's time. 100% is one
core. What the engine's share lacks to 100% is time in which the engine waited for work. The others run beside it,
and cost tokens only where they take its core.

The embedded model is the worst case: its responses have three tokens, so the generator's process needs as much CPU time
for a conversation as the engine. With a model that writes English the engine is the only one that matters; it takes
`make smollm2` and the second command.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil

from jobs.bench.measuring import cpu_seconds, finished, in_own_process, spread, started, table, to_first
from pipeline.agents import LanguageModel
from pipeline.agents.memory import MemoryAgent
from pipeline.agents.reader import TokenizedProblem
from pipeline.errors import ConfigError
from pipeline.rewards.advantages import GroupRewards
from pipeline.rollout.answer import Answer
from pipeline.rollout.episodes import Completion
from pipeline.run.config import TrainingConfig, load_training_config

if TYPE_CHECKING:  # importing vLLM takes seconds
    from vllm import LLM, SamplingParams, TokensPrompt

NOTES = "PALIMPSEST_BENCH_NOTES"  # environment variable: the file of the agent's notes
SAMPLE_S = 0.5  # between looks at the run's processes
RUN, BY_TURN, AT_ONCE = "run", "offline, turn by turn", "offline, all at once"
# The processes of a run by how their titles begin, and what each does.
PROCESSES = {
    "VLLM::EngineCore": "engine",
    "ray::Generator": "generator: agents, tokenizer, requests",
    "ray::Coordinator": "coordinator",
    "ray::Journal": "journal",
    "ray::Scorer": "scorers",
    "ray::Tracker": "tracker",
    "ray::Learner": "learners, idle",
}
OTHERS = "Ray itself and the driver"
PLACE = ("run.folder", "run.name")  # set for each run


@dataclass
class Settings:
    preset: str = "tiny"  # of the run
    groups: int = 256  # all of them in flight from the beginning
    arguments: str = ""  # further arguments of jobs.train, but none that the benchmark sets itself
    rounds: int = 3  # runs, each with its offline variants


class Turn(NamedTuple):
    """One conversation as the agent saw it."""

    begin: float  # seconds of the machine's monotonic clock
    end: float
    prompt: list[int]
    tokens: int  # of the response


Episodes = list[list[Turn]]


class NotingAgent(MemoryAgent):
    """The memory agent. It appends the turns of each of its episodes to the file that `NOTES` names."""

    async def run(self, problem: TokenizedProblem, llm: LanguageModel) -> Answer:
        turns: list[Turn] = []

        async def noted(prompt: list[int], max_tokens: int, role: str) -> Completion:
            begin = time.monotonic()
            response = await llm(prompt, max_tokens, role)
            turns.append(Turn(begin, time.monotonic(), prompt, len(response.tokens)))
            return response

        answer = await super().run(problem, noted)
        with open(os.environ[NOTES], "ab") as file:
            file.write(json.dumps(turns).encode() + b"\n")
        return answer


def no_advantage(group: GroupRewards) -> np.ndarray:
    """Zeros, float64 [G]: nothing is trained, so that the run ends soon after its last response."""
    return np.zeros_like(group.rewards)


def run(settings: Settings) -> str:
    """Measure all rounds; return the tables. Raises `ConfigError` if the run cannot be configured so."""
    if min(settings.groups, settings.rounds) < 1:
        raise ConfigError("groups and rounds must be at least 1")
    job = job_of(settings)
    config = load_training_config(job)
    if config.train.seeded_sampling:
        raise ConfigError("train.seeded_sampling must be false: the responses offline are not seeded")
    rates: dict[str, list[float]] = {RUN: [], BY_TURN: [], AT_ONCE: []}
    shares: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds):
            for variant in (RUN, BY_TURN, AT_ONCE) if number % 2 == 0 else (RUN, AT_ONCE, BY_TURN):
                print(f"· round {number + 1} of {settings.rounds}: {variant}", file=sys.stderr, flush=True)
                if variant == RUN:
                    notes = Path(folder) / f"notes-{number}"
                    shares.append(train(job, notes))
                    episodes = noted(notes)
                    check(config, episodes)
                    rates[RUN].append(tokens(episodes) / seconds(episodes))
                else:
                    rates[variant].append(in_own_process("pipeline", variant, job, str(notes)))
    return "\n\n".join([size(config, episodes), speeds(rates), processes(shares)])


def job_of(settings: Settings) -> list[str]:
    """The arguments of jobs.train: one step of all groups, of which nothing is trained, so that the run ends there.

    Raises:
        ConfigError: `settings.arguments` has a key that is set here, or a section of such keys.
    """
    preset, given = f"preset={settings.preset}", settings.arguments.split()
    own = [
        f"train.groups_per_step={settings.groups}",
        f"train.method={NotingAgent.__module__}:{NotingAgent.__name__}",
        *("train.steps=1", "train.max_staleness=0", "train.updates_per_step=1"),
        *("train.evaluation=none", "train.evaluate_every=0"),
        f"objective.advantage={no_advantage.__module__}:{no_advantage.__name__}",
        *("objective.entropy_coefficient=0", "objective.kl_coefficient=0"),
        *("generator.count=1", "wandb.mode=disabled"),
    ]
    taken = [*PLACE, *(argument.partition("=")[0] for argument in (preset, *own))]
    for argument in given:
        key = argument.partition("=")[0]
        if clash := [name for name in taken if name == key or name.startswith(f"{key}.")]:
            raise ConfigError(f"arguments: leave out {argument}, since the benchmark sets {', '.join(clash)} itself")
    return [preset, *given, *own]


# The run.


def train(job: list[str], notes: Path) -> dict[str, float]:
    """Run jobs.train in a Ray of its own, with notes in this file; return the shares of its processes (`shares_of`)."""
    place = [f"{name}={value}" for name, value in zip(PLACE, (notes.parent, f"run-{notes.name}"), strict=True)]
    process = started(["jobs.train", *job, *place], {NOTES: str(notes), "RAY_ADDRESS": "local"})
    samples: list[Sample] = []
    watching = threading.Thread(target=watch, args=(process.pid, samples), daemon=True)
    watching.start()
    finished(process)
    watching.join()
    return shares_of(samples, noted(notes))


def noted(notes: Path) -> Episodes:
    """The episodes of a file of notes, by the time at which they began."""
    lines = notes.read_text(encoding="utf-8").splitlines()
    episodes = [[Turn(*turn) for turn in json.loads(line)] for line in lines]
    return sorted(episodes, key=lambda turns: turns[0].begin)


def check(config: TrainingConfig, episodes: Episodes) -> None:
    """Raise `RuntimeError` if episodes are missing or were run again: the times would not be those of the tokens."""
    wanted = config.train.groups_per_step * config.train.group_size
    if len(episodes) != wanted:
        raise RuntimeError(f"the run had {len(episodes)} episodes instead of {wanted}: groups failed and were repeated")


def tokens(episodes: Episodes) -> int:
    """Response tokens of all episodes."""
    return sum(turn.tokens for turns in episodes for turn in turns)


def seconds(episodes: Episodes) -> float:
    """From the first request to the last response."""
    return max(turns[-1].end for turns in episodes) - episodes[0][0].begin


class Sample(NamedTuple):
    """CPU seconds so far of a run's processes, by what they do, at a time of the monotonic clock."""

    time: float
    used: dict[str, float]


def watch(pid: int, samples: list[Sample]) -> None:
    """Sample the processes that process `pid` started, until it ends."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            samples.append(sample(root))
            time.sleep(SAMPLE_S)


def sample(root: psutil.Process) -> Sample:
    def kind_of(process: psutil.Process) -> str:
        title = " ".join(process.cmdline())
        return next((kind for begin, kind in PROCESSES.items() if title.startswith(begin)), OTHERS)

    return Sample(time.monotonic(), cpu_seconds([root, *root.children(recursive=True)], kind_of))


def shares_of(samples: list[Sample], episodes: Episodes) -> dict[str, float]:
    """CPU time of each kind of process over the time of the episodes, as a share of that time.

    Raises:
        RuntimeError: the run was too short to be sampled twice.
    """
    begin = episodes[0][0].begin
    during = [one for one in samples if begin <= one.time <= begin + seconds(episodes)]
    if len(during) < 2:
        raise RuntimeError(f"the run generated for {seconds(episodes):.1f} s only; measure more groups")
    first, last = during[0], during[-1]
    took = last.time - first.time
    return {kind: (used - first.used.get(kind, 0.0)) / took for kind, used in last.used.items()}


# Offline.


def measure(variant: str, job: list[str], notes: str) -> float:
    """Generate the responses of a run offline, in this process; return tokens per second.

    Args:
        variant: `BY_TURN` or `AT_ONCE`.
        job: the run's arguments of jobs.train.
        notes: the file of its notes.
    """
    import torch
    from vllm import LLM, EngineArgs
    from vllm.platforms import current_platform

    from actors.generation.vllm_engine import engine_args

    config, episodes = load_training_config(job), noted(Path(notes))
    if current_platform.is_cpu() and config.generator.enforce_eager:
        torch.compiler.set_stance("force_eager")  # as in actors/generation/vllm_engine.py
    arguments = engine_args(config, config.run.seed)
    llm = LLM.from_engine_args(
        EngineArgs(**{field.name: getattr(arguments, field.name) for field in fields(EngineArgs)})
    )
    begin = time.monotonic()
    made = by_turn(llm, config, episodes) if variant == BY_TURN else at_once(llm, config, episodes)
    took = time.monotonic() - begin
    if made != tokens(episodes):
        raise RuntimeError(f"offline there were {made} tokens instead of {tokens(episodes)}")
    return made / took


def by_turn(llm: "LLM", config: TrainingConfig, episodes: Episodes) -> int:
    """Generate each episode's responses one after the other, all episodes at a time; return the number of tokens."""
    engine, made = llm.llm_engine, 0

    def begin(episode: int, number: int) -> None:
        engine.add_request(f"{episode} {number}", *request_of(config, episodes[episode][number]))

    for episode in range(len(episodes)):
        begin(episode, 0)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                made += len(output.outputs[0].token_ids)  # type: ignore[index]  # it generates
                episode, number = map(int, output.request_id.split())
                if number + 1 < len(episodes[episode]):
                    begin(episode, number + 1)
    return made


def at_once(llm: "LLM", config: TrainingConfig, episodes: Episodes) -> int:
    """Generate all responses, the first turns first; return the number of tokens."""
    most = max(len(turns) for turns in episodes)
    turns = [turns[number] for number in range(most) for turns in episodes if number < len(turns)]
    requests, parameters = zip(*(request_of(config, turn) for turn in turns), strict=True)
    return sum(len(output.outputs[0].token_ids) for output in llm.generate(requests, parameters, use_tqdm=False))


def request_of(config: TrainingConfig, turn: Turn) -> tuple["TokensPrompt", "SamplingParams"]:
    """A turn's request: sampled as in the run, but of exactly as many tokens as its response had."""
    from vllm import SamplingParams, TokensPrompt
    from vllm.sampling_params import RequestOutputKind

    return TokensPrompt(prompt_token_ids=turn.prompt), SamplingParams(
        temperature=config.train.temperature,
        max_tokens=turn.tokens,
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


# The tables.


def size(config: TrainingConfig, episodes: Episodes) -> str:
    """What was generated, in a sentence."""
    train, conversations = config.train, sum(map(len, episodes))
    prompts = sum(len(turn.prompt) for turns in episodes for turn in turns)
    return (
        f"{train.groups_per_step} groups of {train.group_size} episodes had {conversations:,} conversations, with "
        f"{prompts / conversations:.0f} prompt and {tokens(episodes) / conversations:.0f} response tokens on average. "
        f"At most {config.generator.max_sequences} are decoded together."
    )


def speeds(rates: dict[str, list[float]]) -> str:
    """The table of tokens/s, and of ratios to `BY_TURN` on the same prompts."""
    ratios = to_first({BY_TURN: rates[BY_TURN], **rates})
    rows = [(name, spread(of, ".0f"), spread(ratios[name])) for name, of in rates.items()]
    return table(("generation", "tokens/s", "ratio"), rows)


def processes(shares: list[dict[str, float]]) -> str:
    """The table of CPU shares in the runs, one of `shares` each."""
    rows = [(kind, spread([share.get(kind, 0.0) for share in shares], ".0%")) for kind in (*PROCESSES.values(), OTHERS)]
    return table(("process of the run", "CPU time ÷ time"), rows)
