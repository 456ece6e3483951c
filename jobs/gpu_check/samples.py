"""What is computed in the checks: a model of random weights, and conversations of random tokens."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from jobs.gpu_check.settings import Settings
from pipeline.config import CONFIGS
from pipeline.rollout.episodes import Completion, Conversation, Episode, EpisodeGroup, pack_group

MODEL = CONFIGS / "models" / "Qwen2.5-0.5B-Instruct" / "config.json"
SMALL = {
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_size": 128,
    "intermediate_size": 1024,  # matrices of less than 100,000 numbers are never released by ZeRO-3
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
}
SHARPER = 2.0  # factor of the weights of queries and keys, so that attention depends on where a token stands
SHARED = 3 / 4  # of a conversation, with the others of its group
RESPONSE = 1 / 16  # of a conversation
CONVERSATIONS = 4  # of a group


def model_settings(settings: Settings) -> dict[str, Any]:
    """The content of the model's config.json: Qwen2.5-0.5B on a GPU, a small one of its kind on a CPU."""
    return json.loads(MODEL.read_text(encoding="utf-8")) | ({} if settings.on_gpu else SMALL)


def write_model(folder: Path, settings: Settings, seed: int) -> Path:
    """Write a model of random weights, without a tokenizer; return its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = model_settings(settings)
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(SHARPER)
            layer.self_attn.k_proj.weight.mul_(SHARPER)
    model.to(getattr(torch, settings.dtype)).save_pretrained(folder)
    return folder


def random_group(settings: Settings, seed: int) -> EpisodeGroup:
    """Conversations that begin with the same tokens. The longest has `settings.length`, the others a little less."""
    vocabulary, rng = model_settings(settings)["vocab_size"], np.random.default_rng(seed)
    n, common = int(settings.length * RESPONSE), int(settings.length * SHARED)

    def tokens(count: int) -> list[int]:
        return rng.integers(0, vocabulary, count).tolist()

    shared = tokens(common)
    conversations = [
        Conversation(
            "memory",
            shared + tokens(settings.length - common - n - number * n // 2),
            Completion(tokens(n), [-math.log(vocabulary)] * n, [0] * n, "stop"),
        )
        for number in range(CONVERSATIONS)
    ]
    return pack_group(f"p{seed}", [Episode([conversation]) for conversation in conversations])
