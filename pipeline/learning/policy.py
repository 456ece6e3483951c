"""The policy as the learner computes it: log-probs of response tokens in packed rows, and their entropies.

Only response positions go through the vocabulary projection, in chunks that are recomputed in the backward pass. The
whole [tokens, vocabulary] matrix is never in memory.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline.learning import attention
from pipeline.learning.attention_choice import AUTO
from pipeline.learning.device_memory import LOGITS_IN_MEMORY
from pipeline.learning.flash_attention import Heads, select_attention
from pipeline.learning.forest import Forest

PRODUCT_IN_MEMORY = 2**22  # float32 numbers of a product before it is added to a sum: 16 MiB


def token_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, train_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of `targets` under softmax(hidden · weightᵀ / temperature), and its entropy in nats, float32 [R] each.

    The softmax is computed in float32. On GPUs the logits are float32 too, as in vLLM there
    (actors/generation/vllm_engine.py): a logit of 20 rounded to bfloat16 is off by up to 0.06. On CPUs the logits have
    the model's dtype in both, which takes half the time. The weight's gradient is summed over the chunks in float32.

    Args:
        hidden: hidden states, [R, D].
        weight: the projection, [V, D], of the same dtype.
        targets: tokens, int64 [R].
        temperature: the sampling temperature.
        train_entropy: whether the entropy has a gradient.
    """
    return _TokenLogprobs.apply(hidden, weight, targets, temperature, train_entropy)


class _TokenLogprobs(torch.autograd.Function):
    """Computes the rows in chunks. The backward pass recomputes the logits."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, train_entropy):
        logprobs, entropies, normalizers = hidden.new_empty(3, len(hidden), dtype=torch.float32)
        for rows in _chunks(len(hidden), weight):
            logits = _logits(hidden[rows], weight, temperature)
            normalizer = normalizers[rows] = logits.logsumexp(1)
            logprobs[rows] = logits.gather(1, targets[rows, None])[:, 0] - normalizer
            probabilities = (logits - normalizer[:, None]).exp_()
            entropies[rows] = normalizer - _dot(probabilities, logits)
        ctx.save_for_backward(hidden, weight, targets, normalizers, entropies)
        ctx.temperature, ctx.train_entropy = temperature, train_entropy
        if not train_entropy:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx, by_logprobs, by_entropies):
        hidden, weight, targets, normalizers, entropies = ctx.saved_tensors
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(len(hidden), weight):
            # With logits z and p = softmax(z): dlog p_t/dz_j = [j = t] - p_j and dH/dz_j = -p_j (log p_j + H).
            log_p = _logits(hidden[rows], weight, ctx.temperature).sub_(normalizers[rows, None])
            scale = by_logprobs[rows, None]
            if ctx.train_entropy:
                scale = scale + by_entropies[rows, None] * (log_p + entropies[rows, None])
            by_logits = log_p.exp_().mul_(-scale)
            by_logits.scatter_add_(1, targets[rows, None], by_logprobs[rows, None])
            by_logits = by_logits.div_(ctx.temperature).to(hidden.dtype)
            by_hidden[rows] = by_logits @ weight
            _add_product(by_weight, by_logits, hidden[rows])
        return by_hidden, by_weight.to(weight.dtype), None, None, None


def _chunks(rows: int, weight: torch.Tensor) -> list[slice]:
    size = max(1, LOGITS_IN_MEMORY // len(weight))
    return [slice(start, start + size) for start in range(0, rows, size)]


def _logits(hidden: torch.Tensor, weight: torch.Tensor, temperature: float) -> torch.Tensor:
    return _product(hidden, weight.T).div_(temperature)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a · b as float32. On GPUs the product is not rounded to the inputs' dtype first; CPUs cannot avoid that."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add aᵀ · b to `total` in place.

    Args:
        total: float32 [V, D].
        a: [R, V].
        b: [R, D].
    """
    if a.dtype == torch.float32:
        total.addmm_(a.T, b)
        return
    size = max(1, PRODUCT_IN_MEMORY // total.shape[1])
    for start in range(0, len(total), size):
        rows = slice(start, start + size)
        total[rows] += _product(a[:, rows].T, b)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Row-wise dot products, without the elementwise product in memory."""
    return torch.bmm(a[:, None], b[:, :, None])[:, 0, 0]


class ResponseHead(nn.Module):
    """Replaces a causal model's lm_head: maps hidden states [R, D] and targets [R] to log-probs and entropies [R].

    It is a module that owns the weight, so that ZeRO-3 gathers it in the forward and backward pass like any other.
    """

    def __init__(self, lm_head: nn.Linear, temperature: float, train_entropy: bool):
        super().__init__()
        if getattr(lm_head, "bias", None) is not None:
            raise ValueError("an lm_head with a bias is not supported")
        self.weight = lm_head.weight
        self.temperature, self.train_entropy = temperature, train_entropy

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(hidden, self.weight, targets, self.temperature, self.train_entropy)


class Policy(nn.Module):
    """A transformers causal language model as a function from packed rows to response log-probs and entropies.

    Attributes:
        attention: the kernels that compute its attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float,
        train_entropy: bool = False,
        attention_kernels: str = AUTO,
        device: torch.device | None = None,
    ):
        """
        Args:
            model: a causal language model; its lm_head is replaced.
            temperature: the sampling temperature, so that learner and generator use the same distribution.
            train_entropy: whether the entropies have a gradient.
            attention_kernels: `model.attention`. The choice holds for the whole process.
            device: where the model computes; None: where it is.

        Raises:
            ValueError: the model's logits are not a plain projection of its hidden states, or its attention cannot be
                computed as asked.
        """
        super().__init__()
        for field in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(model.config, field, None) is not None:
                raise ValueError(f"models with {field} are not supported: their log-probs would be wrong")
        self.attention = select_attention(attention_kernels, device or model.device, model.dtype, _heads(model.config))
        model.set_attn_implementation(attention.NAME)
        model.set_output_embeddings(ResponseHead(model.get_output_embeddings(), temperature, train_entropy))
        self.model = model

    @property
    def layers(self) -> list[nn.Module]:
        """The model's layers whose activations can be checkpointed, in order."""
        return [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def checkpoint_activations(self, count: int) -> None:
        """Keep only the inputs of the first `count` layers for the backward pass from now on, and recompute the rest.

        The last layers' activations are freed before the first layers are recomputed, so checkpointing the first ones
        has the lower peak.

        Raises:
            ValueError: the model does not have so many layers.
        """
        layers = self.layers
        if count > len(layers):
            raise ValueError(f"learner.checkpoint_layers={count}, but the model has {len(layers)} layers")
        if count:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        for number, layer in enumerate(layers):
            # Checkpointing is active in training mode only; the inner modules stay in evaluation mode, without dropout.
            layer.training = number < count

    def forward(self, tokens, positions, predict_at, targets, forest: Forest) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs and entropies of a micro-batch's response tokens (pipeline/learning/packing.py), float32 [R]."""
        hidden = self.hidden_states(tokens, positions, forest)
        return self.model.get_output_embeddings()(hidden[predict_at], targets)

    def hidden_states(self, tokens, positions, forest: Forest) -> torch.Tensor:
        """The hidden states of a row, [T, D]."""
        parts = attention.parts_of(forest, tokens.device, self.attention.name)
        states = self.model.base_model(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False, forest=parts
        )
        return states.last_hidden_state[0]


def _heads(config: Any) -> Heads | None:
    """The heads of a model, from its transformers config; None: unknown."""
    if (queries := getattr(config, "num_attention_heads", None)) is None:
        return None
    keys = getattr(config, "num_key_value_heads", None) or queries
    return Heads(queries, keys, getattr(config, "head_dim", None) or config.hidden_size // queries)


def tensors(batch: Any, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The fields of a micro-batch by name, arrays as tensors on a device."""
    return {
        name: torch.tensor(value, device=device) if isinstance(value, np.ndarray) else value
        for name, value in vars(batch).items()
    }


def inputs_of(batch: dict[str, Any]) -> list:
    """The part of a micro-batch that the policy takes as input."""
    return [batch[name] for name in ("tokens", "positions", "predict_at", "targets", "forest")]
