"""The adapter for DeepSpeed, the only module that uses it: a policy under ZeRO-3 with AdamW or Muon, and a frozen
reference model.

Written for DeepSpeed 0.19; tests/integration/test_learner.py is the contract that an upgrade must keep.
"""

import contextlib
import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402
from accelerate import init_empty_weights  # noqa: E402
from deepspeed.ops import __compatible_ops__  # noqa: E402
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine  # noqa: E402
from deepspeed.runtime.fp16.loss_scaler import LossScaler  # noqa: E402
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.initialization import no_init_weights  # noqa: E402
from transformers.integrations import HfDeepSpeedConfig  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from pipeline.learning.device_memory import (  # noqa: E402
    GATHERED_PARAMETERS,
    REDUCE_BUCKET,
    built_architecture,
    layers_to_checkpoint,
)
from pipeline.learning.liger import use_liger  # noqa: E402
from pipeline.learning.policy import Policy  # noqa: E402
from pipeline.learning.schedule import learning_rate_factor  # noqa: E402
from pipeline.learning.zero_shards import (  # noqa: E402
    MODEL_FILE,
    files_to_read,
    ranks_to_read,
    read_file,
    read_ranks,
    resharded,
)
from pipeline.sections import LearnerSection, ModelSection, TrainedModelSection  # noqa: E402

ZERO_STAGE = 3
STATE_TAG = "state"  # name of DeepSpeed's folder in a checkpoint folder
SAVED_CLASSES = (LossScaler, ZeroStageEnum)  # of DeepSpeed, in its checkpoints

transformers_logging.disable_progress_bar()


class ZeroEngine:
    """One rank of the learner gang. All ranks call the same methods in the same order."""

    def __init__(
        self,
        model: TrainedModelSection,
        learner: LearnerSection,
        *,
        updates: int,
        temperature: float = 1.0,
        train_entropy: bool = False,
        with_reference: bool = False,
    ):
        """Load the model on the ranks of torch's default process group.

        Args:
            model: the section of the model to train.
            learner: the learner section.
            updates: optimizer steps of the whole run, which the learning rate schedule spans.
            temperature: temperature of the log-probs.
            train_entropy: whether entropies get a gradient.
            with_reference: whether to load the model a second time, as the frozen reference.
        """
        on_gpu = torch.cuda.is_available()
        # DeepSpeed would compile a shared-memory collective for one-node CPU groups; gloo needs no compiler.
        __compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")  # uses the process group that there is
        self.rank = torch.distributed.get_rank()
        self.ranks = torch.distributed.get_world_size()
        settings = _settings(model, learner)
        policy = _load_policy(model, settings, temperature, train_entropy, learner.liger)
        self.model, self.attention = policy.model, policy.attention
        self.checkpointed = _layers_to_checkpoint(policy, model, learner)
        policy.checkpoint_activations(self.checkpointed)
        optimizer = _optimizer(policy, learner)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: learning_rate_factor(update, learner, updates)
        )
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, lr_scheduler=schedule, config=settings, dist_init_required=False
        )
        _check_buffers(self._engine, model)
        self.device = self._engine.device
        self._reference = None
        if with_reference:
            settings = _reference_settings(model)
            reference = _load_policy(model, settings, temperature, False, learner.liger).requires_grad_(False)
            self._reference, *_ = deepspeed.initialize(model=reference, config=settings, dist_init_required=False)
            _check_buffers(self._reference, model)

    def forward(self, *inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Response log-probs and entropies of a micro-batch (`Policy.forward`), with gradients if enabled."""
        return self._engine(*inputs)

    @torch.no_grad()
    def reference(self, *inputs) -> torch.Tensor | None:
        """Response log-probs under the reference model; None if it is not loaded."""
        return None if self._reference is None else self._reference(*inputs)[0]

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add the gradients of `loss`, summed over ranks and micro-batches; `last` marks the last one of an update."""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks.
        self._engine.backward(loss * self.ranks, scale_wrt_gas=False)

    def step(self) -> tuple[float | None, float]:
        """Clip the gradient, update the weights and advance the schedule.

        If the gradient is not finite on some rank, no rank changes its weights, optimizer state or schedule.

        Returns:
            The gradient norm, None if it is not finite; and AdamW's learning rate. Under Muon the norm is that of the
            optimizer's input, in which matrices are already orthogonalized.
        """
        *_, rate = self._engine.get_lr()
        self._engine.step()
        if self._engine.optimizer.overflow:
            return None, rate
        return float(self._engine.get_global_grad_norm()), rate

    def parameters(self, group_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every parameter whole on all ranks, under its name in the Hugging Face checkpoint.

        Parameters are gathered in groups of about `group_bytes` bytes. A tensor is valid until the next one is drawn.
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

    def copy_model(self) -> dict[str, torch.Tensor]:
        """All parameters in host memory on rank 0, an empty dict on other ranks. All ranks must call."""
        return {
            name: tensor.detach().cpu().clone()
            for name, tensor in self.parameters(group_bytes=2**28)
            if self.rank == 0  # other ranks only take part in the gathering
        }

    def write_model(self, folder: Path, parameters: dict[str, torch.Tensor]) -> None:
        """Write the result of `copy_model` as a Hugging Face folder on rank 0; other ranks do nothing."""
        if self.rank == 0:
            self.model.save_pretrained(folder, state_dict=parameters, safe_serialization=True)

    def copy_state(self, folder: Path) -> dict[Path, dict]:
        """Copy this rank's part of DeepSpeed's checkpoint to host memory. All ranks must call; DeepSpeed makes folders.

        Returns:
            The content of each file, to write with torch.save.
        """
        writer, self._engine.checkpoint_engine = self._engine.checkpoint_engine, StateCopies()
        try:
            self._engine.save_checkpoint(str(folder), tag=STATE_TAG, save_latest=False)
            return self._engine.checkpoint_engine.files
        finally:
            self._engine.checkpoint_engine = writer

    def files_to_read(self, names: Collection[str]) -> set[str]:
        """Which of the files in a checkpoint's folder `STATE_TAG` this rank's `load_state` reads."""
        sizes = [size for group in self._sub_groups() for size in group.values()]
        return files_to_read(names, sizes, self.ranks, self.rank)

    def load_state(self, folder: Path, moved: Callable[[], None] = lambda: None) -> None:
        """Load the weights, the optimizer state and the position in the schedule from a checkpoint's folder.

        Any number of ranks may have written it. All ranks must call.

        Args:
            folder: the folder.
            moved: called while work makes progress, from several threads.

        Raises:
            RuntimeError: the folder has no such state, or it is of another model.
        """
        if not (folder / STATE_TAG / MODEL_FILE).is_file():
            raise RuntimeError(f"{folder} has no state of DeepSpeed")
        common = read_file(folder / STATE_TAG / MODEL_FILE, SAVED_CLASSES)
        if common["dp_world_size"] == self.ranks:
            loaded, _ = self._engine.load_checkpoint(str(folder), tag=STATE_TAG)
            if loaded is None:
                raise RuntimeError(f"DeepSpeed found no state in {folder}")
        else:
            self._load_resharded(folder / STATE_TAG, common, moved)

    def _load_resharded(self, folder: Path, common: dict, moved: Callable[[], None]) -> None:
        """Load the state that another number of ranks wrote. DeepSpeed itself would first convert all of it.

        Args:
            folder: the folder with the files.
            common: the content of `MODEL_FILE`.
            moved: see `load_state`.
        """
        engine, optimizer, groups = self._engine, self._engine.optimizer, self._sub_groups()
        old_groups = [{name: shape.numel() for name, shape in group.items()} for group in common["param_shapes"]]
        old_ranks, sizes = common["dp_world_size"], [size for group in groups for size in group.values()]
        saved = read_ranks(folder, ranks_to_read(sizes, old_ranks, self.ranks, self.rank), SAVED_CLASSES)
        weights, states = resharded(saved, old_ranks, old_groups, groups, self.ranks, self.rank, moved)
        state = dict(next(iter(saved.values()))["optimizer_state_dict"])
        settings = [dict(group) for group in state["optimizer_state_dict"]["param_groups"]]
        for number, group in enumerate(settings):
            group["params"] = [sub for sub, owner in optimizer.sub_group_to_group_id.items() if owner == number]
        state["optimizer_state_dict"] = {"state": states, "param_groups": settings}
        state["fp32_flat_groups"], state["partition_count"] = weights, self.ranks
        optimizer.checkpoint_event_prologue()
        optimizer.load_state_dict([state if rank == self.rank else None for rank in range(self.ranks)])
        optimizer.checkpoint_event_epilogue()
        engine.lr_scheduler.load_state_dict(common["lr_scheduler"])
        for name in ("global_steps", "global_samples", "skipped_steps"):
            setattr(engine, name, common[name])

    def _sub_groups(self) -> list[dict[str, int]]:
        """The optimizer's sub-groups of parameters: numbers in each parameter, by name, in order."""
        names = self._engine.param_names
        return [{names[p]: p.ds_numel for p in group} for group in self._engine.optimizer.fp16_groups]

    def close(self) -> None:
        torch.distributed.destroy_process_group()


class StateCopies(CheckpointEngine):
    """Copies to host memory what DeepSpeed would write, so that training can continue during the writing."""

    def __init__(self):
        super().__init__()
        self.files: dict[Path, dict] = {}

    def create(self, info) -> None:
        """Nothing to prepare."""

    def save(self, state_dict: dict, path: str) -> None:
        self.files[Path(path)] = _copied(state_dict)

    def load(self, path: str, map_location=None) -> dict:
        raise NotImplementedError("this engine only saves")

    def commit(self, info) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False


def _copied(state):
    """A copy of a nested state with all tensors in host memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if type(state) in (dict, OrderedDict, list, tuple):
        items = (
            ((key, _copied(value)) for key, value in state.items()) if isinstance(state, dict) else map(_copied, state)
        )
        return type(state)(items)
    return state


def _gathered(group: list[tuple[str, torch.nn.Parameter]]) -> Iterator[tuple[str, torch.Tensor]]:
    with deepspeed.zero.GatheredParameters([parameter for _, parameter in group]):
        yield from ((name, parameter.data) for name, parameter in group)


def _load_policy(
    model: TrainedModelSection, settings: dict, temperature: float, train_entropy: bool, liger: bool
) -> Policy:
    """Load the model, with every parameter sharded over the ranks from the start."""
    sharded_loading = HfDeepSpeedConfig(settings)  # affects transformers as long as this object lives
    loaded = AutoModelForCausalLM.from_pretrained(
        model.path,
        dtype=getattr(torch, model.dtype),
        trust_remote_code=model.trust_remote_code,
        use_safetensors=True,
    )
    del sharded_loading
    _restore_buffers(loaded, model)
    if liger:
        use_liger(loaded)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Policy(loaded, temperature, train_entropy, model.attention, device)


def _layers_to_checkpoint(policy: Policy, model: ModelSection, learner: LearnerSection) -> int:
    """The number of layers to checkpoint, the same on all ranks: the most that any of them needs."""
    memory, sizes, ranks = None, None, torch.distributed.get_world_size()
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda:{torch.cuda.current_device()}"
        memory = torch.cuda.get_device_properties(device).total_memory
    if learner.checkpoint_layers == "auto" and memory is not None:
        with contextlib.suppress(Exception):  # any exception, for any model
            sizes = built_architecture(policy.model.config)
    count = layers_to_checkpoint(learner, model.dtype, sizes, ranks, len(policy.layers), memory)
    most = torch.tensor(count, device=device)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    return int(most)


def _plain_buffers(loaded: torch.nn.Module, model: ModelSection) -> dict[str, torch.Tensor]:
    """The buffers that are not in the checkpoint, by name, with their values without DeepSpeed."""
    with no_init_weights(), init_empty_weights(include_buffers=False):
        plain = AutoModelForCausalLM.from_config(
            copy.deepcopy(loaded.config), dtype=getattr(torch, model.dtype), trust_remote_code=model.trust_remote_code
        )
    in_checkpoint = loaded.state_dict().keys()
    return {name: buffer for name, buffer in plain.named_buffers() if name not in in_checkpoint}


def _restore_buffers(loaded: torch.nn.Module, model: ModelSection) -> None:
    """Reset the buffers that are not in the checkpoint to their values without DeepSpeed.

    While a model is built, `zero.Init` casts the results of torch.arange and similar functions to the model's dtype. In
    bfloat16 this changes the frequencies of rotary embeddings by up to 0.4%, which is radians at position 8,000
    (DeepSpeed issue 4932).
    """
    for name, buffer in _plain_buffers(loaded, model).items():
        owner, _, attribute = name.rpartition(".")
        setattr(loaded.get_submodule(owner), attribute, buffer)


def _check_buffers(engine: deepspeed.DeepSpeedEngine, model: ModelSection) -> None:
    """Raise a RuntimeError if DeepSpeed changed a buffer, so that its model differs from vLLM's.

    The log-prob mismatch would not reveal it: in bfloat16, rounding alone is larger.
    """
    held = dict(engine.module.model.named_buffers())
    for name, buffer in _plain_buffers(engine.module.model, model).items():
        if held[name].dtype != buffer.dtype or not torch.equal(held[name].cpu(), buffer):
            raise RuntimeError(
                f"{model.path}: DeepSpeed has changed the buffer {name} ({held[name].dtype}, without DeepSpeed "
                f"{buffer.dtype}), so the learners would train a different model than vLLM samples from"
            )


def _optimizer(policy: Policy, learner: LearnerSection) -> torch.optim.Optimizer:
    """AdamW for all parameters, or Muon for the layers' matrices with AdamW for embeddings, head, norms and biases."""
    adamw: dict[str, Any] = {"lr": learner.learning_rate, "weight_decay": learner.weight_decay}
    if learner.optimizer == "adamw":
        return torch.optim.AdamW(policy.parameters(), **adamw)
    if not torch.cuda.is_available():
        torch._dynamo.config.disable = True  # DeepSpeed compiles Muon's kernels; a CPU machine may lack a compiler
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    ends = {
        id(p)
        for module in (policy.model.get_input_embeddings(), policy.model.get_output_embeddings())
        for p in module.parameters()
    }
    halves: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for parameter in policy.parameters():
        parameter.use_muon = len(parameter.ds_shape) == 2 and id(parameter) not in ends
        halves[parameter.use_muon].append(parameter)
    muon = {"lr": learner.muon_learning_rate, "weight_decay": learner.weight_decay, "momentum": 0.95}
    return MuonWithAuxAdam(
        [
            {"params": halves[True], "use_muon": True, **muon},
            {"params": halves[False], "use_muon": False, "betas": (0.9, 0.95), "eps": 1e-8, **adamw},
        ]
    )


def _settings(model: ModelSection, learner: LearnerSection) -> dict:
    zero: dict[str, Any] = {
        "stage": ZERO_STAGE,
        "contiguous_gradients": True,
        "overlap_comm": torch.cuda.is_available(),
        "stage3_max_live_parameters": GATHERED_PARAMETERS,
        "reduce_bucket_size": REDUCE_BUCKET,
    }
    if learner.optimizer == "muon":
        zero["reduce_scatter"] = False  # Muon needs whole gradients
    if learner.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return _common_settings(model, zero) | {
        "gradient_clipping": learner.max_grad_norm,
        # Keep torch's AdamW: it needs no compiler, and its arithmetic equals that of the reference in the tests.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _reference_settings(model: ModelSection) -> dict:
    """Settings for a model sharded over the ranks in host memory; the device holds only the layers in use."""
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return _common_settings(model, {"stage": ZERO_STAGE, "offload_param": offload})


def _common_settings(model: ModelSection, zero: dict) -> dict:
    return {
        "train_micro_batch_size_per_gpu": 1,  # one packed row; `backward` sets the boundary of an update
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": model.dtype == "bfloat16"},
        # Accumulate gradients of bfloat16 weights over micro-batches and ranks in float32.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero
        | {
            # DeepSpeed's defaults, in numbers. While a module computes, the next parameters are gathered until this
            # many numbers are on their way: one matrix of a 7B model, or two small ones. More would hide a slower
            # network, and take its part of GATHERED_PARAMETERS.
            "stage3_prefetch_bucket_size": 5 * 10**7,
            # Smaller parameters stay whole on every rank: norms and biases, whose gathering would be all latency.
            "stage3_param_persistence_threshold": 10**5,
        },
        "steps_per_print": 2**31,
    }
