"""The policy as the learner computes it: log-probs of response tokens in packed rows, and nothing else.

Only response positions go through the vocabulary projection, in chunks: the [tokens, vocabulary] matrix is
never whole in memory, forward or backward (`torch.nn.functional.linear_cross_entropy`).
"""

import torch
from torch import nn
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear_cross_entropy

import pipeline.attention  # noqa: F401  registers packed_sdpa with transformers


class ResponseHead(nn.Module):
    """Stands in for a causal model's lm_head: hidden states and target tokens to log-probs.

    It is a module that owns the weight, so that ZeRO-3 gathers it for the forward and backward pass like any other.
    """

    def __init__(self, lm_head: nn.Linear):
        super().__init__()
        if lm_head.bias is not None:
            raise ValueError("an lm_head with a bias is not supported")
        self.weight = lm_head.weight

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden: float [R, D]; targets: int64 [R]. Returns log-probs, float32 [R]."""
        options = LinearCrossEntropyOptions()
        return -linear_cross_entropy(hidden, self.weight, targets, reduction="none", options=options).float()


class Policy(nn.Module):
    """A causal language model of transformers, as a function from packed rows to response log-probs."""

    def __init__(self, model: nn.Module, temperature: float):
        """
        Args:
            model: a causal language model; its lm_head is replaced.
            temperature: of the sampling, so that learner and generator mean the same distribution.

        Raises:
            ValueError: the model's logits are more than a projection of its hidden states.
        """
        super().__init__()
        for field in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(model.config, field, None) is not None:
                raise ValueError(f"models with {field} are not supported: their log-probs would be wrong")
        model.set_output_embeddings(ResponseHead(model.get_output_embeddings()))
        self.model = model
        self.temperature = temperature

    def forward(self, tokens, positions, predict_at, targets) -> torch.Tensor:
        """Log-probs of the response tokens of one micro-batch (pipeline/packing.py), float32 [R].

        Attention is block-diagonal: it reads the segments off the positions, which start again from 0 in every
        conversation (pipeline/attention.py).
        """
        hidden = self.model.base_model(
            input_ids=tokens[None], position_ids=positions[None], use_cache=False
        ).last_hidden_state[0]
        return self.model.get_output_embeddings()(hidden[predict_at] / self.temperature, targets)
