"""The fine-tuner: a job actor that draws examples, trains the learner gang on them, and saves models with a record."""

import asyncio
import functools
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import ray

from actors.job_actor import JobActor, Outcome
from actors.learning.gang import FineTuningGang, GangLost
from actors.tracker import Tracker, Tracking
from pipeline.data.quarantine import Quarantine
from pipeline.data.sample_files import SampleFiles
from pipeline.errors import RunFailed
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.fine_tuning.conversations import conversation_examples
from pipeline.fine_tuning.demonstrations import demonstrations
from pipeline.fine_tuning.examples import Example, ExampleBatch, pack_examples
from pipeline.lease import Lease
from pipeline.text import load_tokenizer

RECORD = "fine_tuning.json"  # in the model's folder: how the model was made
WAITS = ("min_ranks", "wait_s", "stall_s")  # learner keys without influence on the result
HASHING_S = 3600.0  # limit for reading the weights back
MAX_SKIPPED = 3  # updates in a row with a gradient that is not finite


@ray.remote(num_cpus=0, max_concurrency=100)
class FineTuner(JobActor):
    def __init__(self, config: FineTuningConfig, folder: str, lease: Lease):
        super().__init__(folder, lease)
        self.config = config
        self.quarantine = Quarantine.outliving(self.quarantine_file, config.data.max_bad_share)
        self.digest = hashlib.sha256()
        self.curve: list[dict] = []  # losses and data hashes for the record
        self.step = self.tokens = 0
        self.checkpoint: Path | None = None
        self.gang: FineTuningGang | None = None
        self.wandb_run = ""
        self.tracker: Tracking | None = None

    async def stop(self) -> None:
        """End the run after the current step and save the model."""
        self.say("· stopping after this step")
        await super().stop()

    async def work(self) -> str:
        examples = await asyncio.to_thread(self._examples)
        self.tracker = Tracking(Tracker.remote(self.config, str(self.folder)), self.say)
        _, _, self.wandb_run, _ = await self.tracker.begun()
        await self._start()
        await self.unless_failed(self._train(examples))
        await self._save()
        return "completed" if self.step == self._last else "interrupted"

    async def put_away(self, outcome: Outcome) -> dict[str, int]:
        unwritten = await self.tracker.flush() if self.tracker and not self.lease_lost else {}
        return unwritten | await self.finish_files(self.quarantine_file)

    def summary(self, outcome: Outcome, seconds: float, unwritten: dict[str, int]) -> dict:
        return {
            "status": outcome.status,
            "seconds": seconds,
            "model": self.config.model.path,
            "dtype": self.config.model.dtype,
            "learner_ranks": self.config.learner.ranks,
            "steps": self.step,
            "tokens": self.tokens,
            "loss": self.curve[-1]["loss"] if self.curve else None,
            "rows_quarantined": self.quarantine.bad,
            "checkpoint": str(self.checkpoint) if self.checkpoint else None,
            "wandb_run": self.wandb_run,
            "unwritten": unwritten,
            "error": outcome.error,
        }

    def _examples(self) -> Iterator[Example]:
        c = self.config
        tokenizer = load_tokenizer(c.model.path, c.model.trust_remote_code)
        if c.data.source == "demonstrations":
            return demonstrations(
                tokenizer,
                c.data.curriculum,
                c.run.seed,
                lambda: self.step / c.fine_tuning.steps,
                c.data.prompt_template,
            )
        source = SampleFiles.open(c.data.path)
        return conversation_examples(source, tokenizer, c.fine_tuning.max_tokens, c.run.seed, self.quarantine)

    async def _start(self) -> None:
        le = self.config.learner
        self.say(f"· starting {le.ranks} learner ranks (DeepSpeed ZeRO-3)")
        self.say_what_is_missing([(le, le.ranks)])
        self.gang = FineTuningGang(self.config, le.ranks)
        await self.unless_failed(self.start_all({"learners (DeepSpeed)": self.gang.start()}))

    @property
    def _last(self) -> int:
        return self.config.fine_tuning.stop_after or self.config.fine_tuning.steps

    async def _train(self, examples: Iterator[Example]) -> None:
        s, losses, skipped = self.config.fine_tuning, [], 0
        while self.step < self._last and not self._stop.is_set():
            begin = time.monotonic()
            batch = await asyncio.to_thread(self._batch, examples)
            ranks = await self.gang.train(batch)
            self.step += 1
            self.tokens += len(batch.tokens)
            batch.hash_into(self.digest)
            losses.append(sum(rank["loss"] for rank in ranks))
            row = {
                "step": self.step,
                "loss": losses[-1],
                "grad_norm": ranks[0]["grad_norm"],
                "learning_rate": ranks[0]["learning_rate"],
                "examples": len(batch.lengths),
                "tokens_trained": int(batch.learned.sum()),
                "tokens_total": self.tokens,
                "rows_quarantined": self.quarantine.bad,
                "seconds": time.monotonic() - begin,
            }
            await self.tracker.log(row)
            self.say_of(self.quarantine_file)
            skipped = skipped + 1 if row["grad_norm"] is None else 0
            if skipped == MAX_SKIPPED:
                raise RunFailed(f"{skipped} steps in a row were skipped: their gradient is not finite")
            if self.step % s.record_every == 0 or self.step == self._last:
                self._record(losses)
                losses = []
                self.say(
                    f"step {self.step}/{self._last}  loss {self.curve[-1]['loss']:.4f}  "
                    f"tokens/s {len(batch.tokens) / row['seconds']:.0f}  {row['seconds']:.1f} s"
                )
            if self.step % s.checkpoint_every == 0:
                await self._save()

    def _batch(self, examples: Iterator[Example]) -> ExampleBatch:
        drawn, tokens = [], 0
        while tokens < self.config.fine_tuning.tokens_per_step:
            drawn.append(next(examples))
            tokens += len(drawn[-1].tokens)
        return pack_examples(drawn)

    def _record(self, losses: list[float]) -> None:
        loss = sum(losses) / len(losses)
        self.curve.append({"step": self.step, "loss": round(loss, 4), "data_sha256": self.digest.hexdigest()})

    async def _save(self) -> None:
        """Write the model as a Hugging Face folder, with the record of how it was made."""
        folder = self.folder / "checkpoints" / str(self.step)
        if self.step == 0 or folder == self.checkpoint:
            return
        try:
            await self.stored(functools.partial(folder.mkdir, parents=True, exist_ok=True))
            await self.gang.save(str(folder / "hf"))
            record = fine_tuning_record(self.config) | {"steps": self.step, "tokens": self.tokens, "curve": self.curve}
            record["weights_sha256"] = await self.stored(weights_hash, folder / "hf", limit_s=HASHING_S)
            await self.stored((folder / "hf" / RECORD).write_text, json.dumps(record, indent=1) + "\n", "utf-8")
        except (OSError, GangLost) as error:
            raise RunFailed(f"checkpoints/{self.step} could not be saved: {error}") from error
        self.checkpoint = folder
        self.say(f"· saved checkpoints/{self.step}")

    def abandon_folder(self) -> None:
        if self.gang:
            self.gang.kill()
        if self.tracker:
            self.tracker.abandon()

    async def close(self, summary: dict) -> None:
        self.cancel_all()
        closing = [self.gang.close()] if self.gang else []
        closing += [self.tracker.finish(summary)] if self.tracker and not self.lease_lost else []
        await self.close_all(closing)


def fine_tuning_record(config: FineTuningConfig) -> dict:
    """The part of a configuration that determines the model."""
    values = asdict(config)
    for name in WAITS:
        del values["learner"][name]
    if config.fine_tuning.from_scratch:
        del values["model"]["path"]  # the folder of the random weights, which the seed reproduces
    kept = ("model", "data", "learner", "fine_tuning")
    return {"config": {name: values[name] for name in kept}, "seed": config.run.seed}


def weights_hash(folder: Path) -> str:
    """SHA-256 over the safetensors files of a model folder, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
