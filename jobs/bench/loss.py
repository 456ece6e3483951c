"""Peak memory and speed of the learner's loss, compared with the plain loss over all logits on the same batch:

    python -m jobs.bench.loss vocabulary=151936 hidden=896 layers=24 dtype=bfloat16

Each variant runs in its own processes, so that their memory does not mix, and the variants take turns, so that all run
under the same machine load. Memory is torch's allocation on a GPU and the growth of the process on a CPU. Ratios are to
the first row. The model has random weights: only its sizes matter.

Left out on purpose: ZeRO-3 and the optimizer, which are the same for all variants.
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import psutil
import torch
from torch.nn.functional import linear_cross_entropy

from jobs.support.driver import asks_for_help, show_help
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.learning.objective import token_losses
from pipeline.learning.packing import build_micro_batch
from pipeline.learning.policy import Policy
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
    return policy(*(batch[name] for name in ("tokens", "positions", "predict_at", "targets")))[0]


def checkpointed(policy: Policy, batch: dict) -> torch.Tensor:
    """This project's loss with learner.activation_checkpointing."""
    policy.checkpoint_activations()
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
    states = policy.model.base_model(
        input_ids=batch["tokens"][None], position_ids=batch["positions"][None], use_cache=False
    )
    return states.last_hidden_state[0]


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
    items = [(0, c) for c in range(settings.conversations)]
    rewards = rng.choice([0.0, 1.0], settings.conversations).astype(np.float32)
    row = build_micro_batch(items, {0: pack_group("p", episodes)}, {0: rewards - 0.5}, {0: rewards})
    return {name: torch.tensor(value, device=device) for name, value in vars(row).items()}


def measure(variant: str, settings: Settings) -> dict[str, float]:
    """Time forward and backward passes of one variant in this process.

    Returns:
        Peak memory in `bytes`, median `seconds` per step, and the `loss`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy, batch = make_policy(settings, device), make_batch(settings, device)
    before = psutil.Process().memory_info().rss
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()

    def step() -> float:
        policy.zero_grad()
        logprobs = VARIANTS[variant](policy, batch)
        losses = token_losses(
            logprobs,
            torch.zeros_like(logprobs),
            batch["advantages"],
            batch["rewards"],
            behaviour=batch["behaviour"],
            proximal=None,
            reference=None,
            objective=ObjectiveSection(importance_cap=1e9),
        ).losses
        loss = losses.mean()
        loss.backward()
        return loss.item()  # waits for the device

    loss, seconds = step(), []
    for _ in range(settings.repeats):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _peak_rss()
    return {"bytes": peak - before, "seconds": statistics.median(seconds), "loss": loss}


def _peak_rss() -> int:
    """The process's peak resident memory in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(settings: Settings, results: dict[str, list[dict]]) -> list[str]:
    """The table's lines: medians over the rounds, and ratios to the first variant."""
    tokens = settings.conversations * (settings.prompt_tokens + settings.response_tokens)
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in results.items()
    }
    first = next(iter(medians.values()))
    lines = [f"{'':32}{'peak MiB':>10}{'ratio':>8}{'tokens/s':>10}{'ratio':>8}{'loss':>12}"]
    for name, row in medians.items():
        lines.append(
            f"{name:32}{row['bytes'] / 2**20:10.0f}{row['bytes'] / first['bytes']:8.2f}"
            f"{tokens / row['seconds']:10.0f}{first['seconds'] / row['seconds']:8.2f}{row['loss']:12.6f}"
        )
    return lines


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] == "--measure":  # the process of one variant
        print(json.dumps(measure(arguments[1], Settings(**json.loads(arguments[2])))))
        return 0
    if asks_for_help(arguments):
        return show_help(__doc__, Settings)
    try:
        settings = load_config(arguments, Settings)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    results: dict[str, list[dict]] = {name: [] for name in VARIANTS}
    for number in range(settings.rounds):
        for name in VARIANTS:
            print(f"· round {number + 1} of {settings.rounds}: {name}", file=sys.stderr, flush=True)
            command = [sys.executable, "-m", "jobs.bench.loss", "--measure", name, json.dumps(asdict(settings))]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results[name].append(json.loads(output.splitlines()[-1]))
    print(*table(settings, results), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
