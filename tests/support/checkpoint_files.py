"""Checkpoints, made up."""

from pathlib import Path

from pipeline.data.problem_stream import Cursor
from pipeline.run.checkpoints import Checkpoints, RunState, file_entries


def write(checkpoints: Checkpoints, step: int, reward: float = 0.0) -> None:
    folder = Path(checkpoints.folder(step))
    for name in ("hf/model.safetensors", "learner/state/rank_0.pt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name} of {step}".encode() * 1000)
    checkpoints.finish(state(step, reward), file_entries(folder, [p for p in folder.rglob("*") if p.is_file()]))


def state(step: int, reward: float = 0.0) -> RunState:
    return RunState(step, step + 1, Cursor(10 * step, (1, 2)), ranks=2, wandb_id="id", reward=reward)
