"""Results of optimizer steps, made up."""

from pipeline.learning.packing import Work
from pipeline.learning.token_metrics import Max, Mean, Total
from pipeline.run.metrics import UpdateResult

MEANS = {  # over the tokens, by the names of their sums
    "clipped": "clip_fraction",
    "ratio": "ratio_mean",
    "importance": "importance_mean",
    "importance_capped": "importance_capped",
    "entropy": "entropy",
    "kl": "kl",
}


def rank(
    tokens: int = 0,
    *,
    importance_max: float | None = None,
    same_version_tokens: int = 0,
    mismatch: float = 0.0,
    mismatch_max: float | None = None,
    **sums,
) -> dict:
    """What a rank says of an update: `sums` over its tokens, and whatever else `Learner.train` returns."""
    metrics = {name: Mean(sums.pop(total, 0.0), tokens) for total, name in MEANS.items()} | {
        "importance_max": Max(importance_max),
        "logprob_mismatch_mean": Mean(mismatch, same_version_tokens),
        "logprob_mismatch_max": Max(mismatch_max),
        "logprob_mismatch_tokens": Total(same_version_tokens),
    }
    known = {"grad_norm": 0.5, "learning_rate": 1e-6, "micro_batches": 2, "not_finite": [], "proximal_seconds": 0.0}
    return {"loss": 0.0, "metrics": metrics} | known | sums


def update(*ranks, groups=(0, 1), tokens: int = 0, staleness=(), **work: int) -> UpdateResult:
    """The result of an update; `work`: fields of `Work`."""
    known = dict.fromkeys(("computed", "shared", "recomputed", "pairs", "predicted"), 0) | work
    return UpdateResult(list(groups), list(ranks), Work(tokens, tuple(staleness), **known))
