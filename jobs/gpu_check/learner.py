"""ZeRO-3 on one device: a step against one of plain torch, MFU, and the next step after a checkpoint.

Each run of the model has a process of its own, as in a real run, so that its memory is free for the next one.
"""

import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jobs.gpu_check.report import Measured, Missed, Report, Skipped
from jobs.gpu_check.samples import model_settings, random_group, write_model
from jobs.gpu_check.settings import Settings
from pipeline.learning.device_memory import architecture_of
from pipeline.learning.flops import FORWARD_AND_BACKWARD, Computed, peak_flops, speeds
from pipeline.learning.packing import Update, build_micro_batch, plan_update
from pipeline.rollout.episodes import EpisodeGroup
from pipeline.rollout.prefix_tree import PrefixTree, attended_pairs
from pipeline.run.config import TrainingConfig, load_training_config

GROUPS = 2  # of a step, each a micro-batch
LEARNING_RATE = 1e-3  # so high that a step changes weights in bfloat16
TIMED = 5  # steps, after one for warm-up
LOSS, NORM = 1e-3, 1e-2  # largest relative differences
# Largest distance of the weights, relative to how far they have moved: of all weights, and of any matrix. AdamW's first
# steps follow the signs of the gradient, and rounding turns those of the smallest gradients.
WEIGHTS = {"float32": (0.01, 0.05), "bfloat16": (0.3, 0.6)}
LEAST_MFU = 0.02  # below it something is wrong; small models on fast devices wait for Python
MODEL, STATE, START, PLAIN, ZERO, NEXT, RESUMED = (  # in the part's folder
    "model",
    "state",
    "start",
    "plain",
    "zero",
    "next",
    "resumed",
)


@dataclass(frozen=True)
class Step:
    """What a step made."""

    loss: float
    grad_norm: float | None  # None if it is not finite
    weights: Path  # file of the weights after it, by name


@dataclass(frozen=True)
class Trained:
    """What a process with ZeRO-3 found out."""

    steps: list[Step]
    buffers: dict[str, Any]  # of the model, by name
    seconds: list[float]  # of each timed step
    device: str  # its name; empty for a CPU
    attention: str  # the kernels that model.attention=auto chose


def run(settings: Settings, folder: Path, report: Report) -> None:
    with report.check("write the model"):
        write_model(folder / MODEL, settings, seed=0)
    with report.check("plain step"):
        plain, buffers = in_process(plain_step, settings, folder)
    with report.check("ZeRO-3 step equals the plain step") as measured:
        trained: Trained = in_process(zero_steps, settings, folder)
        first, following = trained.steps
        measured.note(f"conversations up to {settings.length} tokens")
        compare(settings, first, plain, folder / START, measured)
    with report.check("buffers of a plain load") as measured:
        measured.note(f"{len(buffers)} compared")
        different = [name for name, value in buffers.items() if not same(trained.buffers.get(name), value)]
        measured.at_most("different", len(different), 0)
    with report.check("MFU") as measured:
        speed(settings, trained, measured)
    with report.check("a checkpoint resumes with the same step") as measured:
        resumed = in_process(resumed_step, settings, folder)
        compare(settings, resumed, following, first.weights, measured)
    with report.check("Liger's kernels take the same step") as measured:
        if not settings.on_gpu or find_spec("liger_kernel") is None:
            raise Skipped("on a CPU" if not settings.on_gpu else "liger-kernel is not installed")
        with_liger: Trained = in_process(zero_steps, settings, folder, True)
        compare(settings, with_liger.steps[0], plain, folder / START, measured)
        speed(settings, with_liger, measured)


def in_process(function: Callable, *arguments: object) -> Any:
    """Call a function of this module in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def same(a: Any, b: Any) -> bool:
    """Whether two buffers are equal in dtype and values."""
    return a is not None and a.dtype == b.dtype and a.equal(b)


def compare(settings: Settings, step: Step, expected: Step, start: Path, measured: Measured) -> None:
    """Compare a step to an expected one.

    Args:
        settings: the settings.
        step: the step.
        expected: what it should have made.
        start: file of the weights before it.
        measured: gets the differences.

    Raises:
        Missed: the steps have weights of other names, or one has a gradient that is not finite.
    """
    import torch

    if step.grad_norm is None or expected.grad_norm is None:
        raise Missed("the gradient is not finite")
    before, got, wanted = (torch.load(path) for path in (start, step.weights, expected.weights))
    if not before.keys() == got.keys() == wanted.keys():
        raise Missed(f"only one of the steps has {', '.join(sorted(got.keys() ^ wanted.keys()))}")
    measured.at_most("loss", abs(step.loss - expected.loss) / abs(expected.loss), LOSS)
    measured.at_most("gradient norm", abs(step.grad_norm - expected.grad_norm) / expected.grad_norm, NORM)
    off = {name: square(got[name], wanted[name]) for name in before}
    moved = {name: square(wanted[name], before[name]) for name in before}
    of_all, of_any = WEIGHTS[settings.dtype]
    measured.at_most("weights", ratio(sum(off.values()), sum(moved.values())), of_all)
    matrices = {name: ratio(off[name], moved[name]) for name in before if before[name].dim() > 1}
    worst = max(matrices, key=lambda name: matrices[name])
    measured.at_most(f"worst matrix ({worst})", matrices[worst], of_any)
    still = [name for name in before if got[name].equal(before[name]) and not wanted[name].equal(before[name])]
    measured.at_most("weights that should have moved", len(still), 0)


def square(a: Any, b: Any) -> float:
    """The squared distance of two tensors."""
    return float((a.double() - b.double()).square().sum())


def ratio(off: float, moved: float) -> float:
    """The ratio of two distances, given as squares; infinite if nothing has moved."""
    return math.sqrt(off / moved) if moved else math.inf


def speed(settings: Settings, trained: Trained, measured: Measured) -> None:
    """Note the speed of the timed steps."""
    architecture = architecture_of(model_settings(settings))
    peak, seconds = peak_flops(trained.device, settings.dtype), statistics.median(trained.seconds)
    found = speeds("learner", computed(settings), seconds, architecture, peak, FORWARD_AND_BACKWARD)
    measured.note(f"model.attention=auto: {trained.attention}")
    measured.note(f"{seconds:.3f} s per step")
    measured.note(f"{found['learner_tokens_per_device_second']:.0f} tokens/s")
    measured.note(f"{found['learner_tflops']:.3g} TFLOP/s")
    if (mfu := found["learner_mfu"]) is None:
        measured.note("no MFU: the device's peak is unknown")
    else:
        measured.at_least("MFU", mfu, LEAST_MFU)


# What the processes run.


def configuration(settings: Settings, folder: Path, liger: bool = False) -> TrainingConfig:
    """The preset of one GPU, with a learning rate that is seen in one step."""
    learner = {
        "learning_rate": LEARNING_RATE,
        "warmup_steps": 0,
        "micro_batch_tokens": 2 * settings.length,
        "liger": str(liger).lower(),
    }
    given = [f"learner.{key}={value}" for key, value in learner.items()]
    return load_training_config(
        ["preset=one_gpu", f"model.path={folder / MODEL}", f"model.dtype={settings.dtype}", *given]
    )


def batch_of(settings: Settings) -> tuple[dict[int, EpisodeGroup], dict[int, np.ndarray], Update]:
    """The groups of every step, the advantages of their conversations, and the update."""
    groups = {number: random_group(settings, seed=number) for number in range(GROUPS)}
    trees = {g: PrefixTree.of([group.inputs(c) for c in range(len(group.lengths))]) for g, group in groups.items()}
    (plan,) = plan_update(trees, ranks=1, budget=2 * settings.length)
    rng = np.random.default_rng(0)
    advantages = {g: rng.normal(size=len(group.lengths)).astype(np.float32) for g, group in groups.items()}
    return groups, advantages, Update(plan, sum(len(group.logprobs) for group in groups.values()))


def computed(settings: Settings) -> Computed:
    """What goes through the model in a step."""
    groups, _, update = batch_of(settings)
    total = Computed()
    for group, conversation, shared in (item for items in update.micro_batches for item in items):
        length, response = len(groups[group].inputs(conversation)), len(groups[group].response(conversation))
        pairs = attended_pairs(length) - attended_pairs(shared)
        total += Computed(length - shared, pairs, response)
    return total


def no_rewards(groups: dict[int, EpisodeGroup]) -> dict[int, np.ndarray]:
    """Rewards of the episodes, which only the entropy term would read."""
    return {g: np.zeros(len(group.episode_answers), np.float32) for g, group in groups.items()}


def plain_step(settings: Settings, folder: Path) -> tuple[Step, dict[str, Any]]:
    """A step of plain torch, and the buffers of the model: gradients and AdamW in float32, then rounded."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.learning.objective import token_losses
    from pipeline.learning.policy import Policy, inputs_of, tensors

    config, (groups, advantages, update) = configuration(settings, folder), batch_of(settings)
    dtype, learner = getattr(torch, settings.dtype), config.learner
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=dtype)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    policy = Policy(model.to(settings.device), config.train.temperature)
    policy.checkpoint_activations(len(policy.layers))
    parameters = dict(policy.model.named_parameters())
    torch.save({name: parameter.detach().cpu() for name, parameter in parameters.items()}, folder / START)
    masters = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}
    gradients = {name: torch.zeros_like(master) for name, master in masters.items()}
    total = 0.0
    for items in update.micro_batches:
        micro_batch = build_micro_batch(items, groups, advantages, no_rewards(groups))
        batch = tensors(micro_batch, settings.device)
        logprobs, entropy = policy(*inputs_of(batch))
        losses = token_losses(
            logprobs,
            entropy,
            batch["advantages"],
            batch["rewards"],
            behaviour=batch["behaviour"],
            proximal=None,
            reference=None,
            objective=config.objective,
        ).losses
        loss = losses.sum() / update.tokens
        loss.backward()
        total += loss.item()
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            gradients[name] += parameter.grad.float()
            parameter.grad = None
    for name, master in masters.items():
        master.grad = gradients[name]
    norm = torch.nn.utils.clip_grad_norm_(masters.values(), learner.max_grad_norm)
    torch.optim.AdamW(masters.values(), lr=learner.learning_rate, weight_decay=learner.weight_decay).step()
    torch.save({name: master.detach().to("cpu", dtype) for name, master in masters.items()}, folder / PLAIN)
    return Step(total, norm.item(), folder / PLAIN), buffers


class Engine:
    """The learners' engine in this process alone, and the same update for every step."""

    def __init__(self, settings: Settings, folder: Path, liger: bool = False):
        import torch

        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")  # for DeepSpeed
        store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True)
        backend = "nccl" if settings.on_gpu else "gloo"
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        from actors.learning.zero_engine import ZeroEngine

        self._folder, self._config = folder, configuration(settings, folder, liger)
        self._batch = batch_of(settings)
        self.zero = ZeroEngine(
            self._config.model, self._config.learner, updates=100, temperature=self._config.train.temperature
        )

    def step(self) -> tuple[float, float | None]:
        """Take a step; return its loss and the norm of its gradient."""
        from actors.learning.step import StepTrainer

        groups, advantages, update = self._batch
        objective, rewards = self._config.objective, no_rewards(groups)
        (row,) = StepTrainer(self.zero, objective, groups, advantages, rewards, lambda: None).train(0, [update])
        return row["loss"], row["grad_norm"]

    def kept_step(self, file: str) -> Step:
        """Take a step and write the weights that it makes."""
        import torch

        step = Step(*self.step(), self._folder / file)
        torch.save(self.zero.copy_model(), step.weights)
        return step


def zero_steps(settings: Settings, folder: Path, liger: bool = False) -> Trained:
    """Two steps of ZeRO-3 with a checkpoint between them, and timed ones."""
    import torch

    engine = Engine(settings, folder, liger)
    buffers = {name: buffer.cpu() for name, buffer in engine.zero.model.named_buffers()}
    first = engine.kept_step(ZERO)
    for path, content in engine.zero.copy_state(folder / STATE).items():
        torch.save(content, path)
    following = engine.kept_step(NEXT)
    seconds = []
    for _ in range(1 + TIMED):
        begin = time.perf_counter()
        engine.step()
        if settings.on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    engine.zero.close()
    device = torch.cuda.get_device_name() if settings.on_gpu else ""
    return Trained([first, following], buffers, seconds[1:], device, str(engine.zero.attention))


def resumed_step(settings: Settings, folder: Path) -> Step:
    """The step after the checkpoint."""
    engine = Engine(settings, folder)
    engine.zero.load_state(folder / STATE)
    step = engine.kept_step(RESUMED)
    engine.zero.close()
    return step
