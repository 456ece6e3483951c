"""The one place that knows DeepSpeed: a policy under ZeRO-3 with AdamW, and a reference model that is only read.

Written against DeepSpeed 0.19; tests/test_learner.py is the contract that an upgrade must keep.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402
from deepspeed.ops import __compatible_ops__  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.integrations import HfDeepSpeedConfig  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from pipeline.config import Config  # noqa: E402
from pipeline.plan import GATHERED_PARAMETERS, REDUCE_BUCKET  # noqa: E402
from pipeline.policy import Policy  # noqa: E402
from pipeline.schedule import learning_rate  # noqa: E402

ZERO_STAGE = 3

transformers_logging.disable_progress_bar()


class ZeroEngine:
    """One rank of the learner gang. All ranks call the same methods in the same order."""

    def __init__(self, config: Config):
        """Join the process group named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and load the model."""
        on_gpu = torch.cuda.is_available()
        # DeepSpeed would compile a shared-memory collective for one-node CPU groups; gloo does without a compiler.
        __compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
        self.rank = torch.distributed.get_rank()
        self.ranks = torch.distributed.get_world_size()
        settings = _settings(config)
        policy = _load_policy(config, settings)
        self.model = policy.model
        le = config.learner
        if le.activation_checkpointing:
            policy.checkpoint_activations()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=le.learning_rate, weight_decay=le.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: learning_rate(config, update) / le.learning_rate
        )
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, lr_scheduler=schedule, config=settings, dist_init_required=False
        )
        self.device = self._engine.device
        self._reference = None
        if config.objective.kl_coefficient:
            settings = _reference_settings(config)
            reference = _load_policy(config, settings).requires_grad_(False)
            self._reference, *_ = deepspeed.initialize(model=reference, config=settings, dist_init_required=False)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Response log-probs and entropies of a micro-batch (pipeline/policy.py), with gradient if enabled."""
        return self._engine(*inputs)

    @torch.no_grad()
    def reference(self, *inputs: torch.Tensor) -> torch.Tensor | None:
        """Response log-probs under the initial model; None if no KL is asked for."""
        return None if self._reference is None else self._reference(*inputs)[0]

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradients of `loss`, to be summed over ranks and micro-batches; `last` ends the update's batch."""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks.
        self._engine.backward(loss * self.ranks, scale_wrt_gas=False)

    def step(self) -> tuple[float | None, float]:
        """Clip, update the weights, advance the schedule. Returns the gradient norm and the learning rate.

        When the gradient is not finite on any rank, no rank changes its weights, its optimizer state or its place in
        the schedule, and the norm is None.
        """
        (rate,) = self._engine.get_lr()
        self._engine.step()
        if self._engine.optimizer.overflow:
            return None, rate
        return float(self._engine.get_global_grad_norm()), rate

    def parameters(self, group_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every named parameter whole, in the names of the Hugging Face checkpoint, on all ranks.

        They are gathered in groups of about `group_bytes`; a tensor is valid until the next one is asked for.
        """
        group, size = [], 0
        for name, parameter in self.model.named_parameters():
            group.append((name, parameter))
            size += parameter.ds_numel * parameter.element_size()
            if size >= group_bytes:
                yield from _gathered(group)
                group, size = [], 0
        if group:
            yield from _gathered(group)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder in safetensors (rank 0 writes; all ranks must call)."""
        state = {
            name: tensor.detach().cpu().clone()
            for name, tensor in self.parameters(group_bytes=2**28)
            if self.rank == 0  # the others only take part in the gathering
        }
        if self.rank == 0:
            self.model.save_pretrained(folder, state_dict=state, safe_serialization=True)

    def close(self) -> None:
        torch.distributed.destroy_process_group()


def _gathered(group: list[tuple[str, torch.nn.Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
    with deepspeed.zero.GatheredParameters([parameter for _, parameter in group]):
        yield from ((name, parameter.data) for name, parameter in group)


def _load_policy(config: Config, settings: dict) -> Policy:
    """Load the model with every parameter split over the ranks from the start."""
    sharded_loading = HfDeepSpeedConfig(settings)  # transformers looks at it while it lives
    model = AutoModelForCausalLM.from_pretrained(
        config.model.path,
        dtype=getattr(torch, config.model.dtype),
        attn_implementation=config.model.attention,
        trust_remote_code=config.model.trust_remote_code,
        use_safetensors=True,
    )
    del sharded_loading
    return Policy(model, config.train.temperature, train_entropy=config.objective.entropy_coefficient != 0)


def _settings(config: Config) -> dict:
    zero = {
        "stage": ZERO_STAGE,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
        "stage3_max_live_parameters": GATHERED_PARAMETERS,
        "reduce_bucket_size": REDUCE_BUCKET,
    }
    if config.learner.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return _common_settings(config, zero) | {
        "gradient_clipping": config.learner.max_grad_norm,
        # torch's AdamW: no compiler needed, and the same arithmetic as the reference in the tests.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _reference_settings(config: Config) -> dict:
    """Split over the ranks and kept in host memory; the device holds what is being computed."""
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return _common_settings(config, {"stage": ZERO_STAGE, "offload_param": offload})


def _common_settings(config: Config, zero: dict) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,  # a packed row; the boundary of an update is set by hand
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": config.model.dtype == "bfloat16"},
        # Gradients of bfloat16 weights are added up over micro-batches and ranks in float32.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "steps_per_print": 2**31,
    }
