"""Liger's Triton kernels in place of transformers' norms, SwiGLU and rotary embeddings (`learner.liger`).

Not its fused cross-entropy: that gives the loss of a batch, and its gradient. The objective needs each response token's
log-prob and entropy, at the sampling temperature, before it has a loss (pipeline/learning/policy.py).
"""

from typing import Any

from pipeline.learning.device_memory import FAMILIES

PACKAGE = "liger-kernel (requirements/gpu.txt; or pip install --no-deps liger-kernel==0.8.5)"


def use_liger(model: Any) -> None:
    """Make a transformers model compute with Liger's kernels. Later models of its family in this process do so too.

    Raises:
        ValueError: Liger is not installed, or the model's family is none of those that are compared with transformers'.
    """
    family = model.config.model_type
    if family not in FAMILIES:
        raise ValueError(f"learner.liger=true: only for {', '.join(FAMILIES)}, and the model is of type {family}")
    try:
        from liger_kernel.backends import set_impl
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise ValueError(f"learner.liger=true: {error}. Install {PACKAGE}") from error
    # Liger would take another implementation of rotary embeddings where it finds CuTe's compiler, which vLLM brings.
    set_impl("nvidia-triton")
    MODEL_TYPE_TO_APPLY_LIGER_FN[family](model=model, fused_linear_cross_entropy=False)
