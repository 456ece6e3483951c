"""What a job's terminal shows of its workers: all but the lines that are known to say nothing."""

import re

import pytest

from jobs.support.noise import is_noise

PATH = "/venv/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    "line",
    [
        "(EngineCore pid=4966) WARNING 11-26 01:16:46 [layerwise.py:266] RotaryEmbedding: Failed to load weights",
        "(EngineCore pid=4966) WARNING 11-26 01:16:46 [layerwise.py:266] ParallelLMHead: Failed to load weights",
        f"{PATH}/torch/distributed/c10d_logger.py:83: FutureWarning: `torch.distributed.all_gather_into_tensor` is "
        "deprecated. Please use `torch.distributed.all_gather_single` instead.",
        "  return func(*args, **kwargs)",
        "(MainProcess pid=4826) WARNING 11-26 01:16:25 [cpu.py:224] Triton is not installed. triton-cpu is expected on "
        "x86 CPUs.",
        "[W1126 01:16:33.051222460 utils.cpp:68] Warning: NUMA binding: Using MEMBIND policy for memory allocation",
        "Using blocking ray.get inside async actor. This blocks the event loop.",
        "wandb: Tracking run with wandb version 0.31.0",
        "wandb: 🚀 View run at https://wandb.example/runs/1",
        "wandb: ",
    ],
)
def test_known_lines_are_not_shown(line):
    assert is_noise(line)


@pytest.mark.parametrize(
    "line",
    [
        "(EngineCore pid=4966) WARNING 11-26 01:16:46 [layerwise.py:266] QKVParallelLinear: Failed to load weights",
        f"{PATH}/torch/nn/modules/module.py:1: FutureWarning: something new",
        "    return func(*args, **kwargs)",  # of a traceback
        "wandb: ERROR could not upload",
        "wandb: WARNING disk is full",
        "a user's scorer prints",
        "",
    ],
)
def test_unknown_lines_are(line):
    assert not is_noise(line)


def test_only_known_lines_are_taken_from_what_ray_prints():
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as printers

    from jobs.support.noise import hush_workers

    printed = []
    printers.add_handler("test", printed.append)
    try:
        hush_workers()
        printers.emit({"lines": ["wandb: ", "loss is falling"], "pid": 1})
        printers.emit({"lines": ["wandb: "], "pid": 1})
    finally:
        printers.remove_handler("test")
    assert printed == [{"lines": ["loss is falling"], "pid": 1}]


def test_no_actor_with_an_event_loop_waits_for_ray_in_it():
    """Ray's own warning is among the known lines, since it comes for threads too (Ray Data)."""
    from pathlib import Path

    actors = Path(__file__).resolve().parents[2] / "actors"
    with_threads_alone = {"learner.py", "fine_tuning_learner.py", "learner_rank.py", "tracker.py"}
    found = [path.name for path in actors.glob("*.py") if re.search(r"\bray\.(get|wait)\(", path.read_text())]
    assert set(found) <= with_threads_alone
