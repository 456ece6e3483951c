"""What a group shares is computed once: time and memory of learner and engine, by layout of the prompt and group size.

Two layouts of the memory agent's prompt: the paper's order (problem, memory, section), and section first (problem,
section, memory), in which all episodes of a group share the prompt up to the end of the section.

Learner: the gradient of one group by the project's objective, computed as

- padded: a padded batch with a mask, in transformers' own attention,
- packed: rows without padding, in which nothing is shared,
- trees: rows in which a shared prefix is computed once, in both layouts.

All have the same micro-batch budget in tokens, padding included, and the same head, which computes response positions
only. ZeRO-3 and the optimizer, which are the same for all, are left out. Peak memory is torch's allocation on a GPU and
the growth of the process on a CPU. The last column is the distance of the gradient to that of the padded batches of the
same prompts, relative to its norm.

Engine: vLLM with prefix caching runs the episodes of one group together, in both layouts. The prompt tokens that it
computed are by its own count. Its KV cache has room for everything, so nothing is evicted. It finds a shared prefix in
whole blocks of tokens (32 on a CPU), so instruction, problem and section are exactly ten blocks here.

Ratios are within a round, and columns name their direction: "× faster" and "× less" are the other's time or memory
divided by the row's, so that more is better, and "computed ÷ paper's order" is the row's tokens divided by the other's,
so that less is better.

Lengths are about a sixteenth of the paper's: instruction and problem have 8 tokens together, a section 312, the request
that ends a prompt 8. A memory or an answer has 16 to 48 tokens in the learner, 32 on average, and always 32 in the
engine; the memory of the first turn has 2. A document has 6 sections, so an episode has 7 turns. The model has 2
layers, hidden states of 384, 6 heads of 64, 2 heads for keys and values, a vocabulary of 8,192 tokens, and float32
weights, which are random, since only sizes matter here. A micro-batch has up to 6,144 tokens.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from jobs.bench.measuring import column, in_own_process, memory_in_use, peak_memory, spread, table, take_turns
from pipeline.errors import ConfigError
from pipeline.learning.packing import Item, MicroBatch, build_micro_batch, plan_update
from pipeline.rollout.episodes import Completion, Conversation, Episode, EpisodeGroup, Sampling, pack_group
from pipeline.rollout.prefix_tree import PrefixTree

ROOT_TOKENS = 8  # of instruction and problem
REQUEST_TOKENS = 8
NO_MEMORY_TOKENS = 2  # of the memory before the first section
HEAD_SIZE = 64
KV_CACHE_GIB = 1.0  # a group of 16 needs a tenth of it
DTYPES = ("float32", "bfloat16")
PADDED, PACKED, TREES, TREES_FIRST = "padded", "packed", "trees", "trees, section first"
PAPER, SECTION_FIRST = "paper's order", "section first"


@dataclass
class Settings:
    groups: list[int] = field(default_factory=lambda: [4, 8, 16])  # sizes of the group
    sections: int = 6  # of the document
    section_tokens: int = 312  # of each section
    response_tokens: int = 32  # of a memory or an answer, on average
    layers: int = 2  # of the model
    hidden: int = 384  # size of a hidden state, a multiple of 64
    vocabulary: int = 8192  # tokens
    dtype: str = "float32"  # of the weights: float32 or bfloat16
    micro_batch_tokens: int = 6144  # budget of a forward pass of the learner
    rounds: int = 3  # processes per variant

    @property
    def longest_response(self) -> int:
        """Tokens of the longest response, which has half more than the average."""
        return self.response_tokens * 3 // 2

    @property
    def longest_conversation(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        memory = max(NO_MEMORY_TOKENS, self.longest_response)
        return ROOT_TOKENS + memory + self.section_tokens + REQUEST_TOKENS + self.longest_response


def check(settings: Settings) -> None:
    """Raise `ConfigError` if something could not be measured."""
    for key in (
        "sections",
        "section_tokens",
        "response_tokens",
        "layers",
        "hidden",
        "vocabulary",
        "micro_batch_tokens",
        "rounds",
    ):
        if getattr(settings, key) < 1:
            raise ConfigError(f"{key}={getattr(settings, key)} must be at least 1")
    if not settings.groups or min(settings.groups) < 1:
        raise ConfigError(f"groups={settings.groups} must be a list of sizes of at least 1")
    if settings.hidden % HEAD_SIZE:
        raise ConfigError(f"hidden={settings.hidden} must be a multiple of {HEAD_SIZE}, the size of a head")
    if settings.dtype not in DTYPES:
        raise ConfigError(f"dtype={settings.dtype} must be one of {', '.join(DTYPES)}")
    if settings.micro_batch_tokens < settings.longest_conversation:
        raise ConfigError(
            f"micro_batch_tokens={settings.micro_batch_tokens} must be at least {settings.longest_conversation}, "
            "the tokens of the longest conversation"
        )


@dataclass(frozen=True)
class Words:
    """The tokens that all prompts are made of, besides memories."""

    root: list[int]  # instruction and problem
    request: list[int]
    no_memory: list[int]  # the memory before the first section
    sections: list[list[int]]


def draw_words(settings: Settings) -> Words:
    """Draw random tokens, the same ones for the same settings."""
    rng = np.random.default_rng(0)

    def tokens(*shape: int) -> list:
        return rng.integers(0, settings.vocabulary, shape).tolist()

    return Words(
        tokens(ROOT_TOKENS),
        tokens(REQUEST_TOKENS),
        tokens(NO_MEMORY_TOKENS),
        tokens(settings.sections, settings.section_tokens),
    )


def prompt(words: Words, layout: str, memory: list[int], section: list[int]) -> list[int]:
    """The prompt of a turn.

    Args:
        words: the tokens that all prompts are made of.
        layout: `PAPER` or `SECTION_FIRST`.
        memory: the memory's tokens.
        section: the section's tokens; none in the last turn, which answers.
    """
    read = memory + section if layout == PAPER else section + memory
    return words.root + read + words.request


def simulated_group(settings: Settings, layout: str, size: int) -> EpisodeGroup:
    """A group of random tokens, which are the same in both layouts. A memory is the response of the turn before."""
    rng, words = np.random.default_rng(1), draw_words(settings)
    shortest = max(1, settings.response_tokens // 2)
    episodes = []
    for _ in range(size):
        memory, conversations = words.no_memory, []
        for section in [*words.sections, []]:
            n = int(rng.integers(shortest, settings.longest_response + 1))
            tokens = rng.integers(0, settings.vocabulary, n).tolist()
            response = Completion(tokens, [-9.0] * n, [0] * n, "stop")
            conversations.append(Conversation("memory", prompt(words, layout, memory, section), response))
            memory = tokens
        episodes.append(Episode(conversations))
    return pack_group("p", episodes)


def padded_plan(lengths: np.ndarray, budget: int) -> list[list[Item]]:
    """Micro-batches of conversations of like length, as many as the budget has room for with their padding."""
    order, plan = np.argsort(-lengths, kind="stable").tolist(), []
    while order:
        count = max(1, budget // int(lengths[order[0]]))
        plan.append([Item(0, c) for c in order[:count]])
        order = order[count:]
    return plan


class Learner:
    """A policy with random weights, and its gradient on a group in every variant."""

    def __init__(self, settings: Settings, size: int):
        import torch
        from transformers import LlamaForCausalLM

        from pipeline.learning.policy import Policy

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(model_config(settings))
        self.policy = Policy(model.to(self.device, getattr(torch, settings.dtype)), temperature=1.0)
        self.settings, self.size = settings, size

    def micro_batches(self, variant: str) -> list[MicroBatch]:
        layout = SECTION_FIRST if variant == TREES_FIRST else PAPER
        return self.micro_batches_of(variant, simulated_group(self.settings, layout, self.size))

    def micro_batches_of(self, variant: str, group: EpisodeGroup) -> list[MicroBatch]:
        budget = self.settings.micro_batch_tokens
        inputs = [group.inputs(c) for c in range(len(group.episodes))]
        lengths = np.array([len(tokens) for tokens in inputs])
        if variant == PADDED:
            plan = padded_plan(lengths, budget)
        else:
            tree = PrefixTree.without_sharing(lengths) if variant == PACKED else PrefixTree.of(inputs)
            (plan,) = plan_update({0: tree}, ranks=1, budget=budget)
        advantages = np.random.default_rng(2).normal(size=len(inputs)).astype(np.float32)
        rewards = np.zeros(self.size, np.float32)
        return [build_micro_batch(items, {0: group}, {0: advantages}, {0: rewards}) for items in plan]

    def step(self, variant: str, micro_batches: list[MicroBatch]) -> None:
        """Compute the gradient of the mean loss over all response tokens."""
        from jobs.bench.loss import losses_of
        from pipeline.learning.policy import inputs_of, tensors

        self.policy.zero_grad()
        tokens = sum(len(batch.targets) for batch in micro_batches)
        for each in micro_batches:
            batch = tensors(each, self.device)
            logprobs, _ = self.padded(batch) if variant == PADDED else self.policy(*inputs_of(batch))
            (losses_of(logprobs, batch).sum() / tokens).backward()
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def padded(self, batch: dict) -> tuple:
        """Log-probs and entropies of a micro-batch whose conversations become the rows of a padded batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ends = batch["forest"].branches
        rows = [torch.arange(a, b, device=self.device) for a, b in zip(ends, ends[1:], strict=False)]
        at = pad_sequence(rows, batch_first=True, padding_value=-1)
        model = self.policy.model
        model.set_attn_implementation("sdpa")
        hidden = model.base_model(
            input_ids=batch["tokens"][at], attention_mask=(at >= 0).long(), use_cache=False
        ).last_hidden_state
        place = torch.full((ends[-1],), -1, device=self.device)
        place[at[at >= 0]] = torch.arange(at.numel(), device=self.device)[(at >= 0).flatten()]
        return model.get_output_embeddings()(hidden.flatten(0, 1)[place[batch["predict_at"]]], batch["targets"])

    def gradient(self) -> Any:
        import torch

        return torch.cat([p.grad.flatten().double() for p in self.policy.parameters() if p.grad is not None])


def model_config(settings: Settings):
    from transformers import LlamaConfig

    heads = settings.hidden // HEAD_SIZE
    return LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=8 * settings.hidden // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        max_position_embeddings=settings.longest_conversation,
    )


def measure(what: str, variant: str, size: int, given: dict) -> dict[str, float]:
    """Measure a variant in this process.

    Args:
        what: one of `MEASURES`.
        variant: of the learner, or the engine's layout.
        size: of the group.
        given: the fields of `Settings`.
    """
    return MEASURES[what](Settings(**given), variant, size)


def measure_learner(settings: Settings, variant: str, size: int) -> dict[str, float]:
    """The `seconds` and `tokens` of a step, padding included, and its peak memory in `bytes`."""
    learner = Learner(settings, size)
    micro_batches = learner.micro_batches(variant)
    before = memory_in_use()
    learner.step(variant, micro_batches[-1:])  # warm-up
    begin = time.perf_counter()
    learner.step(variant, micro_batches)
    seconds = time.perf_counter() - begin
    widths = [np.diff(batch.forest.branches) for batch in micro_batches]
    tokens = sum(len(w) * w.max() if variant == PADDED else w.sum() for w in widths)
    return {"seconds": seconds, "bytes": peak_memory() - before, "tokens": int(tokens)}


def measure_distance(settings: Settings, variant: str, size: int) -> dict[str, float]:
    """The `distance` of a variant's gradient to that of padded batches of the same prompts, relative to its norm."""
    learner = Learner(settings, size)
    group = simulated_group(settings, SECTION_FIRST if variant == TREES_FIRST else PAPER, size)
    gradients = []
    for how in (variant, PADDED):  # in this order: the padded one changes the model's attention
        learner.step(how, learner.micro_batches_of(how, group))
        gradients.append(learner.gradient())
    return {"distance": float((gradients[0] - gradients[1]).norm() / gradients[1].norm())}


def measure_engine(settings: Settings, layout: str, size: int) -> dict[str, float]:
    """The `seconds` of a group in vLLM, its tokens of `prompts`, and how many of them were `computed`."""
    return asyncio.run(run_engine(settings, layout, size))


async def run_engine(settings: Settings, layout: str, size: int) -> dict[str, float]:
    import torch
    from transformers import LlamaForCausalLM

    from actors.generation.vllm_engine import VllmEngine
    from pipeline.run.config import load_training_config

    config, words = load_training_config(["preset=tiny"]), draw_words(settings)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(model_config(settings))
        model.to(getattr(torch, settings.dtype)).save_pretrained(folder)
        config = replace(
            config,
            model=replace(config.model, path=folder, dtype=settings.dtype),
            agent=replace(config.agent, window=settings.longest_conversation),
            generator=replace(config.generator, kv_cache_gib=KV_CACHE_GIB),
        )
        engine = VllmEngine(config, [], seed=0)
    await engine.start()

    async def episode(number: int, sections: list[list[int]]) -> list[tuple[int, int]]:
        """Prompt tokens and cached ones of each turn."""
        memory, turns = words.no_memory, []
        for section in [*sections, []]:
            asked = prompt(words, layout, memory, section)
            response = await engine.generate(asked, settings.response_tokens, Sampling(1.0, seed=number))
            memory = response.tokens
            turns.append((len(asked), response.cached_tokens))
        return turns

    await episode(-1, [])  # warm-up: a turn without a section, which shares no block with the others
    begin = time.perf_counter()
    episodes = await asyncio.gather(*(episode(number, words.sections) for number in range(size)))
    seconds = time.perf_counter() - begin
    engine.shutdown()
    in_all, cached = (sum(turn[i] for turns in episodes for turn in turns) for i in (0, 1))
    return {"seconds": seconds, "prompts": in_all, "computed": in_all - cached}


MEASURES: dict[str, Callable[[Settings, str, int], dict[str, float]]] = {
    "learner": measure_learner,
    "distance": measure_distance,
    "engine": measure_engine,
}


def run(settings: Settings) -> str:
    """Measure all variants for every size of the group; return the tables. Raises `ConfigError` (`check`)."""
    check(settings)
    given = asdict(settings)

    def turns(what: str, variants: list[str], size: int, rounds: int = settings.rounds) -> dict[str, list[dict]]:
        return take_turns(variants, rounds, lambda variant: in_own_process("sharing", what, variant, size, given))

    learners, engines = [], []
    for size in settings.groups:
        measured = turns("learner", [PADDED, PACKED, TREES, TREES_FIRST], size)
        distances = turns("distance", [PACKED, TREES, TREES_FIRST], size, rounds=1)
        learners += learner_rows(size, measured, distances)
        engines += engine_rows(size, turns("engine", [PAPER, SECTION_FIRST], size))
    return f"{table(LEARNER_HEAD, learners)}\n\n{table(ENGINE_HEAD, engines)}"


LEARNER_HEAD = (
    "G",
    "learner",
    "tokens computed",
    "time",
    "× faster than padded",
    "× faster than packed",
    "peak MiB",
    "× less memory than padded",
    "gradient's distance",
)
ENGINE_HEAD = (
    "G",
    "engine",
    "prompt tokens",
    "computed",
    "computed ÷ paper's order",
    "time",
    "× faster than paper's order",
)


def learner_rows(size: int, measured: dict[str, list[dict]], distances: dict[str, list[dict]]) -> list[tuple]:
    """The rows of a group size, by `LEARNER_HEAD`."""
    seconds, memory = column(measured, "seconds"), column(measured, "bytes")
    return [
        (
            size,
            name,
            f"{of[0]['tokens']:,}",
            spread(seconds[name], ".2f") + " s",
            spread(ratios(seconds[PADDED], seconds[name])),
            spread(ratios(seconds[PACKED], seconds[name])),
            spread([b / 2**20 for b in memory[name]], ".0f"),
            spread(ratios(memory[PADDED], memory[name])),
            f"{distances[name][0]['distance']:.1e}" if name in distances else "",
        )
        for name, of in measured.items()
    ]


def engine_rows(size: int, measured: dict[str, list[dict]]) -> list[tuple]:
    """The rows of a group size, by `ENGINE_HEAD`."""
    seconds, computed = column(measured, "seconds"), column(measured, "computed")
    return [
        (
            size,
            layout,
            f"{of[0]['prompts']:,}",
            f"{statistics.median(computed[layout]):,.0f}",
            spread(ratios(computed[layout], computed[PAPER])),
            spread(seconds[layout], ".2f") + " s",
            spread(ratios(seconds[PAPER], seconds[layout])),
        )
        for layout, of in measured.items()
    ]


def ratios(numbers: list[float], to: list[float]) -> list[float]:
    """The ratio of two numbers in every round."""
    return [x / y for x, y in zip(numbers, to, strict=True)]
