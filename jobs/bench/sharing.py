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

Engine: vLLM with prefix caching runs the episodes of one group together and answers, in both layouts. The prompt tokens
that it computed are by its own count. All responses have the same length.

Models have random weights, since only their sizes matter here. Lengths are the paper's (sections of 5,000 tokens,
memories and responses of 512 on average) divided by sixteen.
"""

import asyncio
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from jobs.bench.measuring import column, in_own_process, memory_in_use, peak_memory, spread, table, take_turns, to_first
from pipeline.errors import ConfigError
from pipeline.learning.packing import Item, MicroBatch, build_micro_batch, plan_update
from pipeline.rollout.episodes import Completion, Conversation, Episode, EpisodeGroup, Sampling, pack_group
from pipeline.rollout.prefix_tree import PrefixTree

ROOT_TOKENS = 24  # of instruction and problem
REQUEST_TOKENS = 8
LONGEST = 32768  # positions of the model
PADDED, PACKED, TREES, TREES_FIRST = "padded", "packed", "trees", "trees, section first"
PAPER, SECTION_FIRST = "paper's order", "section first"


@dataclass
class Settings:
    groups: list[int] = field(default_factory=lambda: [4, 8, 16])  # sizes of the group
    sections: int = 2  # of the document, for the learner
    engine_sections: int = 6  # of the document, for the engine
    section_tokens: int = 312  # of each section
    response_tokens: int = 32  # of a memory or an answer, on average
    layers: int = 2  # of the model
    hidden: int = 576  # size of a hidden state
    vocabulary: int = 16384  # tokens
    dtype: str = "float32"  # of the weights
    micro_batch_tokens: int = 6144  # budget of a forward pass of the learner
    rounds: int = 3  # processes per variant


def prompt(settings: Settings, layout: str, rng: np.random.Generator, memory: list[int], section: int) -> list[int]:
    """The prompt of a turn; the last turn, which answers, has no section.

    Args:
        settings: the sizes.
        layout: `PAPER` or `SECTION_FIRST`.
        rng: draws the words, the same ones for the same state.
        memory: the memory's tokens.
        section: the section's number; -1: none.
    """
    root, request = ([int(x) for x in rng.integers(0, settings.vocabulary, n)] for n in (ROOT_TOKENS, REQUEST_TOKENS))
    sections = rng.integers(0, settings.vocabulary, (64, settings.section_tokens)).tolist()
    read = sections[section] if section >= 0 else []
    return root + (memory + read if layout == PAPER else read + memory) + request


def simulated_group(settings: Settings, layout: str, size: int) -> EpisodeGroup:
    """A group of random tokens, which are the same in both layouts. A memory is the response of the turn before."""
    rng = np.random.default_rng(1)
    episodes = []
    for _ in range(size):
        memory, conversations = [1, 2], []
        for section in [*range(settings.sections), -1]:
            n = int(rng.integers(settings.response_tokens // 2, settings.response_tokens * 3 // 2 + 1))
            tokens = rng.integers(0, settings.vocabulary, n).tolist()
            response = Completion(tokens, [-9.0] * n, [0] * n, "stop")
            asked = prompt(settings, layout, np.random.default_rng(0), memory, section)
            conversations.append(Conversation("memory", asked, response))
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
        from pipeline.learning.objective import token_losses
        from pipeline.learning.policy import inputs_of, tensors
        from pipeline.sections import ObjectiveSection

        self.policy.zero_grad()
        tokens = sum(len(batch.targets) for batch in micro_batches)
        for each in micro_batches:
            batch = tensors(each, self.device)
            logprobs, entropy = self.padded(batch) if variant == PADDED else self.policy(*inputs_of(batch))
            losses = token_losses(
                logprobs,
                entropy,
                batch["advantages"],
                batch["rewards"],
                behaviour=batch["behaviour"],
                proximal=None,
                reference=None,
                objective=ObjectiveSection(importance_cap=1e9),
            ).losses
            (losses.sum() / tokens).backward()
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

    heads = settings.hidden // 64
    return LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=8 * settings.hidden // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads,
        max_position_embeddings=LONGEST,
    )


def measure(what: str, variant: str, size: int, given: dict) -> dict[str, float]:
    """Measure a variant in this process.

    Args:
        what: learner, distance or engine.
        variant: of the learner, or the engine's layout.
        size: of the group.
        given: the fields of `Settings`.
    """
    settings = Settings(**given)
    if what == "engine":
        return asyncio.run(run_engine(settings, variant, size))
    learner = Learner(settings, size)
    return run_learner(learner, variant) if what == "learner" else {"distance": distance(learner, variant)}


def run_learner(learner: Learner, variant: str) -> dict[str, float]:
    """The `seconds` and `tokens` of a step, padding included, and its peak memory in `bytes`."""
    micro_batches = learner.micro_batches(variant)
    before = memory_in_use()
    learner.step(variant, micro_batches[-1:])  # warm-up
    begin = time.perf_counter()
    learner.step(variant, micro_batches)
    seconds = time.perf_counter() - begin
    widths = [np.diff(batch.forest.branches) for batch in micro_batches]
    tokens = sum(len(w) * w.max() if variant == PADDED else w.sum() for w in widths)
    return {"seconds": seconds, "bytes": peak_memory() - before, "tokens": int(tokens)}


def distance(learner: Learner, variant: str) -> float:
    """The distance of a variant's gradient to that of padded batches of the same prompts, relative to its norm."""
    group = simulated_group(learner.settings, SECTION_FIRST if variant == TREES_FIRST else PAPER, learner.size)
    gradients = []
    for how in (variant, PADDED):  # in this order: the padded one changes the model's attention
        learner.step(how, learner.micro_batches_of(how, group))
        gradients.append(learner.gradient())
    return float((gradients[0] - gradients[1]).norm() / gradients[1].norm())


async def run_engine(settings: Settings, layout: str, size: int) -> dict[str, float]:
    """The `seconds` of a group in vLLM, its prompt tokens, and how many of them were `computed`."""
    import torch
    from transformers import LlamaForCausalLM

    from actors.generation.vllm_engine import VllmEngine
    from pipeline.run.config import load_training_config

    config = load_training_config(["preset=tiny"])
    window = ROOT_TOKENS + REQUEST_TOKENS + settings.section_tokens + 2 * settings.response_tokens
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(model_config(settings))
        model.to(getattr(torch, settings.dtype)).save_pretrained(folder)
        config = replace(
            config,
            model=replace(config.model, path=folder, dtype=settings.dtype),
            agent=replace(config.agent, window=window),
            generator=replace(config.generator, kv_cache_gib=1.0),
        )
        engine = VllmEngine(config, [], seed=0)
    await engine.start()

    async def episode(number: int, sections: int) -> list[tuple[int, int]]:
        """Prompt tokens and cached ones of each turn."""
        memory, turns = [1, 2], []
        for section in [*range(sections), -1]:
            asked = prompt(settings, layout, np.random.default_rng(0), memory, section)
            response = await engine.generate(asked, settings.response_tokens, Sampling(1.0, seed=number))
            memory = response.tokens
            turns.append((len(asked), response.cached_tokens))
        return turns

    await episode(-1, 0)  # warm-up: a turn without a section, which shares no block with the others
    begin = time.perf_counter()
    episodes = await asyncio.gather(*(episode(number, settings.engine_sections) for number in range(size)))
    seconds = time.perf_counter() - begin
    engine.shutdown()
    in_all, cached = (sum(turn[i] for turns in episodes for turn in turns) for i in (0, 1))
    return {"seconds": seconds, "prompts": in_all, "computed": in_all - cached}


def run(settings: Settings) -> str:
    """Measure all variants for every size of the group; return the tables.

    Raises:
        ConfigError: nothing would be measured.
    """
    if settings.rounds < 1 or not settings.groups or min(settings.groups) < 1:
        raise ConfigError("rounds and groups must be at least 1")
    given = asdict(settings)

    def turns(what: str, variants: list[str], size: int, rounds: int = settings.rounds) -> dict[str, list[dict]]:
        return take_turns(variants, rounds, lambda variant: in_own_process("sharing", what, variant, size, given))

    learners, engines = [], []
    for size in settings.groups:
        measured = turns("learner", [PADDED, PACKED, TREES, TREES_FIRST], size)
        distances = turns("distance", [PACKED, TREES, TREES_FIRST], size, rounds=1)
        learners += learner_rows(size, measured, distances)
        engines += engine_rows(size, turns("engine", [PAPER, SECTION_FIRST], size))
    head = ("G", "learner", "tokens computed", "time", "ratio", "peak MiB", "ratio", "gradient's distance")
    other = ("G", "engine", "prompt tokens", "computed", "ratio", "time", "ratio")
    return f"{table(head, learners)}\n\n{table(other, engines)}"


def learner_rows(size: int, measured: dict[str, list[dict]], distances: dict[str, list[dict]]) -> list[tuple]:
    """The table's rows of a group size. Ratios are padded ÷ variant, so more is better."""
    seconds, memory = column(measured, "seconds"), column(measured, "bytes")
    faster, smaller = inverse(to_first(seconds)), inverse(to_first(memory))
    return [
        (
            size,
            name,
            f"{of[0]['tokens']:,}",
            spread(seconds[name], ".2f") + " s",
            spread(faster[name]),
            spread([b / 2**20 for b in memory[name]], ".0f"),
            spread(smaller[name]),
            f"{distances[name][0]['distance']:.1e}" if name in distances else "",
        )
        for name, of in measured.items()
    ]


def engine_rows(size: int, measured: dict[str, list[dict]]) -> list[tuple]:
    """The table's rows of a group size. The ratio of tokens is to the paper's order; that of time, the paper's ÷ it."""
    seconds, computed = column(measured, "seconds"), column(measured, "computed")
    return [
        (
            size,
            layout,
            f"{of[0]['prompts']:,}",
            f"{statistics.median(computed[layout]):,.0f}",
            spread(to_first(computed)[layout]),
            spread(seconds[layout], ".2f") + " s",
            spread(inverse(to_first(seconds))[layout]),
        )
        for layout, of in measured.items()
    ]


def inverse(numbers: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [1 / x for x in of] for name, of in numbers.items()}
