"""The tracker: writes metrics.jsonl, sampled episodes and a figure into the run's folder, and sends all to wandb."""

import json
from dataclasses import asdict
from pathlib import Path

import ray

from pipeline.config import Config, GenerationConfig
from pipeline.episodes import EpisodeGroup, GroupRecord


@ray.remote(num_cpus=0)
class Tracker:
    def __init__(self, config: Config, folder: str):
        from transformers import AutoTokenizer

        self.folder = Path(folder)
        (self.folder / "episodes").mkdir(parents=True, exist_ok=True)
        self.tokenizer = AutoTokenizer.from_pretrained(
            config.model.path, trust_remote_code=config.model.trust_remote_code
        )
        self._run = start_wandb(config, self.folder)

    def where(self) -> str:
        """The address of the wandb run, or the folder of an offline one; empty when disabled."""
        return wandb_place(self._run)

    def log(self, row: dict) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._run.log({name: value for name, value in row.items() if value is not None}, step=row["step"])

    def episodes(self, step: int, samples: list[tuple[str, GroupRecord, list[ray.ObjectRef]]]) -> None:
        """Write one episode of each sample (question, record, reference to the group) to read, and to wandb."""
        shown = []
        for question, record, (ref,) in samples:
            try:
                group = ray.get(ref)
            except ray.exceptions.RayError:
                continue  # lost with its node; there will be others to read
            shown.append(readable_episode(self.tokenizer, question, record, group))
        with (self.folder / "episodes" / f"step-{step:06d}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(episode, ensure_ascii=False) + "\n" for episode in shown)
        import wandb

        columns = ["problem", "memories", "answer", "reward"]
        table = wandb.Table(columns=columns, data=[[_cell(e[c]) for c in columns] for e in shown])
        self._run.log({"episodes": table}, step=step)

    def draw(self) -> None:
        """Draw all steps so far into training.png."""
        from pipeline.training_plot import training_figure

        with (self.folder / "metrics.jsonl").open(encoding="utf-8") as file:
            training_figure([json.loads(line) for line in file], self.folder / "training.png")

    def finish(self, summary: dict) -> None:
        import wandb

        try:
            if (self.folder / "metrics.jsonl").exists():
                self.draw()
                self._run.log({"training": wandb.Image(str(self.folder / "training.png"))})
        finally:
            self._run.summary.update(summary)
            self._run.finish(exit_code=0 if summary["status"] == "completed" else 1)


def readable_episode(tokenizer, question: str, record: GroupRecord, group: EpisodeGroup) -> dict:
    """The first episode of a group as text: every memory in order, then the answer."""
    mine = [c for c, episode in enumerate(group.episodes) if episode == 0]
    return {
        "problem_id": record.problem_id,
        "problem": question,
        "memories": [tokenizer.decode(group.response(c)) for c in mine if group.roles[c] == "memory"],
        "answer": group.answers[0],
        "reward": float(record.rewards[0]),
        "advantage": float(record.advantages[0]),
    }


def _cell(value):
    return "\n---\n".join(value) if isinstance(value, list) else value


def start_wandb(config: GenerationConfig, folder: Path):
    """The wandb run of a job, with its files in `folder`."""
    import wandb

    mode = config.wandb.mode
    if mode == "auto":
        mode = "online" if wandb.login(prompt=False) else "offline"
    return wandb.init(
        project=config.wandb.project,
        entity=config.wandb.entity or None,
        name=config.run.name,
        dir=str(folder),
        config=asdict(config),
        mode=mode,
    )


def wandb_place(run) -> str:
    """The address of a wandb run, or the folder of an offline one; empty when disabled."""
    return run.url or ("" if run.disabled else str(Path(run.dir).parent))
