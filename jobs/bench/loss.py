"""Peak memory and speed of the learner's loss beside those of the plain loss over all logits, on the same batch.

Each variant runs in its own processes, so that their memory does not mix. Memory is torch's allocation on a GPU and
the growth of the process on a CPU. Ratios are to the first row of the same round. The model has random weights: only
its sizes matter. All variants compute the same loss, which the last column shows.

Left out on purpose: ZeRO-3 and the optimizer, which are the same for all variants.
"""

import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn.functional import linear_cross_entropy

from jobs.bench.measuring import column, in_own_process, memory_in_use, peak_memory, spread, table, take_turns, to_first
from pipeline.errors import ConfigError
from pipeline.learning.objective import token_losses
from pipeline.learning.packing import Item, build_micro_batch
from pipeline.learning.policy import Policy, inputs_of, tensors
from pipeline.rollout.episodes import Completion, Conversation, Episode, pack_group
from pipeline.sections import ObjectiveSection


@dataclass
class Settings:
    vocabulary: int = 49152  # tokens
    hidden: int = 576  # size of a hidden state
    layers: int = 4  # of the model
    conversations: int = 4  # in the batch
    prompt_tokens: int = 384  # per conversation
    response_tokens: int = 128  # per conversation
    dtype: str = "float32"  # of the weights
    rounds: int = 2  # processes per variant
    repeats: int = 1  # timed steps per process, after a warm-up step


def full(policy: Policy, batch: dict) -> torch.Tensor:
    """Logits and float32 log-softmax at all positions, of which only the targets are used."""
    logits = hidden_states(policy, batch) @ head(policy).T
    logprobs = torch.log_softmax(logits.float(), -1)
    return logprobs[batch["predict_at"], batch["targets"]]


def responses(policy: Policy, batch: dict) -> torch.Tensor:
    """Logits and float32 log-softmax at the response positions only, all at once."""
    hidden = hidden_states(policy, batch)[batch["predict_at"]]
    return torch.log_softmax((hidden @ head(policy).T).float(), -1).gather(1, batch["targets"][:, None])[:, 0]


def torch_chunks(policy: Policy, batch: dict) -> torch.Tensor:
    """torch.nn.functional.linear_cross_entropy at the response positions."""
    hidden = hidden_states(policy, batch)[batch["predict_at"]]
    return -linear_cross_entropy(hidden, head(policy), batch["targets"], reduction="none").float()


def chunks(policy: Policy, batch: dict) -> torch.Tensor:
    """This project's loss: response positions in chunks (pipeline/learning/policy.py), with the entropy metric."""
    return policy(*inputs_of(batch))[0]


def checkpointed(policy: Policy, batch: dict) -> torch.Tensor:
    """This project's loss with learner.checkpoint_layers=all."""
    policy.checkpoint_activations(len(policy.layers))
    return chunks(policy, batch)


VARIANTS = {
    "all logits": full,
    "logits of responses": responses,
    "torch's linear_cross_entropy": torch_chunks,
    "ours, in chunks": chunks,
    "ours, activations checkpointed": checkpointed,
}


def head(policy: Policy) -> torch.Tensor:
    return policy.model.get_output_embeddings().weight


def hidden_states(policy: Policy, batch: dict) -> torch.Tensor:
    return policy.hidden_states(batch["tokens"], batch["positions"], batch["forest"])


def make_policy(settings: Settings, device: str) -> Policy:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=8 * settings.hidden // 3,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.hidden // 64,
        max_position_embeddings=settings.prompt_tokens + settings.response_tokens,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.to(device, getattr(torch, settings.dtype))  # type: ignore[arg-type]  # transformers wraps it
    return Policy(model, temperature=1.0)


def make_batch(settings: Settings, device: str) -> dict[str, torch.Tensor]:
    """One micro-batch of random conversations."""
    rng, n = np.random.default_rng(0), settings.response_tokens

    def tokens(count: int) -> list[int]:
        return rng.integers(0, settings.vocabulary, count).tolist()

    episodes = [
        Episode(
            [Conversation("memory", tokens(settings.prompt_tokens), Completion(tokens(n), [-9.0] * n, [0] * n, "stop"))]
        )
        for _ in range(settings.conversations)
    ]
    items = [Item(0, c) for c in range(settings.conversations)]
    rewards = rng.choice([0.0, 1.0], settings.conversations).astype(np.float32)
    row = build_micro_batch(items, {0: pack_group("p", episodes)}, {0: rewards - 0.5}, {0: rewards})
    return tensors(row, device)


def losses_of(logprobs: torch.Tensor, batch: dict) -> torch.Tensor:
    """The losses of a micro-batch's response tokens by the project's objective, without its terms of the entropy."""
    return token_losses(
        logprobs,
        torch.zeros_like(logprobs),
        batch["advantages"],
        batch["rewards"],
        behaviour=batch["behaviour"],
        proximal=None,
        reference=None,
        objective=ObjectiveSection(importance_cap=1e9),
    ).losses


def run(settings: Settings) -> str:
    """Measure all variants; return the table. Raises `ConfigError` if nothing would be measured."""
    if min(settings.rounds, settings.repeats) < 1:
        raise ConfigError("rounds and repeats must be at least 1")
    turns = take_turns(list(VARIANTS), settings.rounds, lambda name: in_own_process("loss", name, asdict(settings)))
    return tables(settings, turns)


def tables(settings: Settings, turns: dict[str, list[dict[str, float]]]) -> str:
    """The table of each variant's results (`measure`)."""
    tokens = settings.conversations * (settings.prompt_tokens + settings.response_tokens)
    memory, seconds = column(turns, "bytes"), column(turns, "seconds")
    rates = {name: [tokens / s for s in of] for name, of in seconds.items()}
    less, faster = to_first(memory), to_first(rates)
    rows = [
        (
            name,
            spread([b / 2**20 for b in memory[name]], ".0f"),
            spread(less[name]),
            spread(rates[name], ".0f"),
            spread(faster[name]),
            format(statistics.median(row["loss"] for row in of), ".6f"),
        )
        for name, of in turns.items()
    ]
    return table(("loss", "peak MiB", "ratio", "tokens/s", "ratio", "value"), rows)


def measure(variant: str, given: dict) -> dict[str, float]:
    """Time forward and backward passes of one variant in this process.

    Args:
        variant: one of `VARIANTS`.
        given: the fields of `Settings`.

    Returns:
        Peak memory in `bytes`, median `seconds` per step, and the `loss`.
    """
    settings = Settings(**given)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy, batch = make_policy(settings, device), make_batch(settings, device)
    before = memory_in_use()

    def step() -> float:
        policy.zero_grad()
        logprobs = VARIANTS[variant](policy, batch)
        loss = losses_of(logprobs, batch).mean()
        loss.backward()
        return loss.item()  # waits for the device

    loss, seconds = step(), []
    for _ in range(settings.repeats):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return {"bytes": peak_memory() - before, "seconds": statistics.median(seconds), "loss": loss}
