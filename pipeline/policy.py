"""The policy as the learner computes it: log-probs of response tokens in packed rows, and nothing else.

Only response positions go through the vocabulary projection, in chunks that are computed again in the backward
pass: the [tokens, vocabulary] matrix is never whole in memory.
"""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pipeline.attention  # noqa: F401  registers packed_sdpa with transformers

LOGITS_IN_MEMORY = 2**26  # float32 numbers: 256 MiB


def token_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, temperature: float, train_entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of `targets` under softmax(hidden · weightᵀ / temperature), and its entropy in nats, float32 [R] each.

    The logits have the model's dtype, as in vLLM, and their softmax is float32. (torch's own linear_cross_entropy
    returns log-probs in the model's dtype: in bfloat16 they are off by 0.016 on average, ten times as much.)

    Args:
        hidden: [R, D].
        weight: [V, D], same dtype.
        targets: int64 [R].
        train_entropy: give the entropy a gradient.
    """
    rows = max(1, LOGITS_IN_MEMORY // weight.shape[0])
    chunks = [
        checkpoint(_chunk, h, weight, t, temperature, train_entropy, use_reentrant=False)
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    logprobs, entropies = zip(*chunks, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _chunk(hidden, weight, targets, temperature, train_entropy):
    logits = (hidden @ weight.T).float() / temperature
    normalizer = logits.logsumexp(1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - normalizer
    # Last, so that an entropy without gradient is not computed again in the backward pass.
    with torch.set_grad_enabled(train_entropy and torch.is_grad_enabled()):
        entropy = normalizer - ((logits - normalizer[:, None]).exp() * logits).sum(1)
    return logprobs, entropy


class ResponseHead(nn.Module):
    """Stands in for a causal model's lm_head: hidden states [R, D] and target tokens [R] to log-probs and entropy [R].

    It is a module that owns the weight, so that ZeRO-3 gathers it for the forward and backward pass like any other.
    """

    def __init__(self, lm_head: nn.Linear, temperature: float, train_entropy: bool):
        super().__init__()
        if lm_head.bias is not None:
            raise ValueError("an lm_head with a bias is not supported")
        self.weight = lm_head.weight
        self.temperature, self.train_entropy = temperature, train_entropy

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return token_logprobs(hidden, self.weight, targets, self.temperature, self.train_entropy)


class Policy(nn.Module):
    """A causal language model of transformers, as a function from packed rows to response log-probs and entropies."""

    def __init__(self, model: nn.Module, temperature: float, train_entropy: bool = False):
        """
        Args:
            model: a causal language model; its lm_head is replaced.
            temperature: of the sampling, so that learner and generator mean the same distribution.
            train_entropy: give the entropies a gradient.

        Raises:
            ValueError: the model's logits are more than a projection of its hidden states.
        """
        super().__init__()
        for field in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(model.config, field, None) is not None:
                raise ValueError(f"models with {field} are not supported: their log-probs would be wrong")
        model.set_output_embeddings(ResponseHead(model.get_output_embeddings(), temperature, train_entropy))
        self.model = model

    def forward(self, tokens, positions, predict_at, targets) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of the response tokens of one micro-batch (pipeline/packing.py) and entropies, float32 [R] each.

        Attention is block-diagonal: it reads the segments off the positions, which start again from 0 in every
        conversation (pipeline/attention.py).
        """
        hidden = self.model.base_model(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False
        ).last_hidden_state[0]
        return self.model.get_output_embeddings()(hidden[predict_at], targets)
