"""The fine-tuner: a job actor that draws examples, trains the learner gang on them, and saves models with a record."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import ray

from actors.job_actor import JobActor, Outcome
from actors.learning.checkpointing import CheckpointKeeper
from actors.learning.gang import FineTuningGang
from actors.tracking import Tracking, start_tracker
from pipeline.alerts import Alert
from pipeline.data.problem_stream import START
from pipeline.data.quarantine import Quarantine
from pipeline.errors import RunFailed, reason_of
from pipeline.files import write_text
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.fine_tuning.conversations import conversation_examples, open_conversations
from pipeline.fine_tuning.demonstrations import demonstrations
from pipeline.fine_tuning.examples import Example, ExampleBatch, pack_examples
from pipeline.fine_tuning.record import RECORD, fine_tuning_record, weights_hash
from pipeline.lease import Lease
from pipeline.run.checkpoints import MODEL, Checkpoint, Checkpoints, FileEntry, RunState, file_entries
from pipeline.text import load_tokenizer

MAX_SKIPPED = 3  # updates in a row with a gradient that is not finite


@ray.remote(num_cpus=0, max_concurrency=100)
class FineTuner(JobActor):
    def __init__(self, config: FineTuningConfig, folder: str, lease: Lease):
        super().__init__(folder, lease)
        self.config = config
        self.quarantine = Quarantine.outliving(self.quarantine_file, config.data.max_bad_share)
        self.digest = hashlib.sha256()
        self.curve: list[dict] = []  # losses and data hashes for the record
        self.step = self.tokens = 0  # trained
        self.drawn = 0  # steps whose examples are drawn
        self.losses: list[float | None] = []  # of the steps since the last point of the curve; None: skipped
        checkpoints = Checkpoints(self.folder / "checkpoints")
        self.keeper = CheckpointKeeper(checkpoints, config.fine_tuning.keep_last, 0, self.say)
        self.gang: FineTuningGang | None = None
        self.wandb_run = self.wandb_id = ""
        self.tracker: Tracking | None = None

    async def stop(self) -> None:
        """End the run after the current step and save the model."""
        self.say("· stopping after this step")
        await super().stop()

    def alert(self, alert: Alert) -> None:
        if self.tracker:
            self.tracker.alert(alert)

    async def work(self) -> str:
        if self.config.resume == "auto":
            await self.keeper.find()
            with contextlib.suppress(OSError):  # the same bad rows will be found
                await self.stored(self.quarantine_file.path.unlink, True)
        examples = await asyncio.to_thread(self._examples)
        if self.keeper.newest:
            await self.unless_failed(self._draw_again(examples, self.keeper.newest))
            if self._stop.is_set():
                return "interrupted"
        await self._begin_tracking()
        await self._start()
        await self.unless_failed(self._train(examples))
        await self._save_the_last()
        return "completed" if self.step >= self._last else "interrupted"

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
            "loss": self._loss(),
            "rows_quarantined": self.quarantine.bad,
            "checkpoints_failed": self.keeper.failed,
            "checkpoint": self.keeper.newest.folder if self.keeper.newest else None,
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
                lambda: self.drawn / c.fine_tuning.steps,
                c.data.prompt_template,
            )
        source = open_conversations(c.data.path)
        return conversation_examples(source, tokenizer, c.fine_tuning.max_tokens, c.run.seed, self.quarantine)

    async def _draw_again(self, examples: Iterator[Example], checkpoint: Checkpoint) -> None:
        """Draw what was trained before the checkpoint again: the data are a function of the seed.

        Raises:
            RunFailed: the data are others, or the checkpoint has no record of them.
        """
        self.say(f"· resuming after step {checkpoint.step}, whose data are drawn again")
        self.wandb_id = checkpoint.state.wandb_id
        try:
            record = json.loads(await self.stored((Path(checkpoint.folder) / MODEL / RECORD).read_text, "utf-8"))
            self.curve, self.losses = record["curve"], record["losses"]
            self.step, self.tokens, data = checkpoint.step, record["tokens"], record["data_sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunFailed(f"{checkpoint.folder}: {RECORD} cannot be read: {reason_of(error)}") from error
        while self.drawn < checkpoint.step:
            if self._stop.is_set():
                return
            await asyncio.to_thread(self._batch, examples)
        if self.digest.hexdigest() != data:
            raise RunFailed(
                f"the first {self.step} steps would get other data than those of {checkpoint.folder}; choose another "
                "run.name"
            )

    async def _begin_tracking(self) -> None:
        self.check_lease()  # the tracker changes files
        self.tracker = Tracking(start_tracker(self.config, str(self.folder), self.step, self.wandb_id), self.say)
        try:
            _, _, self.wandb_run, self.wandb_id = await self.tracker.begun()
        except OSError as error:
            raise RunFailed(f"the rows of this run so far cannot be read: {reason_of(error)}") from error

    async def _start(self) -> None:
        le = self.config.learner
        self.say(f"· starting {le.ranks} learner ranks (DeepSpeed ZeRO-3)")
        self.say_what_is_missing([(le, le.ranks)])
        self.gang = FineTuningGang(self.config, le.ranks)
        checkpoint = self.keeper.newest.folder if self.keeper.newest else ""
        await self.unless_failed(self.start_all({"learners (DeepSpeed)": self._start_gang(self.gang, checkpoint)}))

    async def _start_gang(self, gang: FineTuningGang, checkpoint: str) -> None:
        await gang.up()
        await gang.check_folder(self.folder, self.lease.run, "Choose a run.folder that they share")
        await gang.start(checkpoint)
        for line in (await gang.describe()).choices(self.config):
            self.say(line)

    @property
    def _last(self) -> int:
        return self.config.fine_tuning.stop_after or self.config.fine_tuning.steps

    async def _train(self, examples: Iterator[Example]) -> None:
        s, skipped = self.config.fine_tuning, 0
        while self.step < self._last and not self._stop.is_set():
            begin = time.monotonic()
            batch = await asyncio.to_thread(self._batch, examples)
            ranks = await self.gang.train(batch)
            self.step += 1
            self.tokens += len(batch.tokens)
            was_skipped = ranks[0]["grad_norm"] is None
            self.losses.append(None if was_skipped else sum(rank["loss"] for rank in ranks))
            row = {
                "step": self.step,
                "loss": self.losses[-1],
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
            if was_skipped:
                line = f"· step {self.step} was skipped: its loss or gradient is not finite"
                self.say(Alert("update skipped", line))
            skipped = skipped + 1 if was_skipped else 0
            if skipped == MAX_SKIPPED:
                raise RunFailed(f"{skipped} steps in a row were skipped: their gradient is not finite")
            due = self.step % s.record_every == 0 or self.step == s.steps
            if due:
                self._record()
            if due or self.step == self._last:
                loss = self._loss()
                self.say(
                    f"step {self.step}/{self._last}  loss {'-' if loss is None else format(loss, '.4f')}  "
                    f"tokens/s {len(batch.tokens) / row['seconds']:.0f}  {row['seconds']:.1f} s"
                )
            if self.step % s.checkpoint_every == 0:
                await self._save()

    def _batch(self, examples: Iterator[Example]) -> ExampleBatch:
        """Draw the examples of the next step."""
        drawn, tokens = [], 0
        while tokens < self.config.fine_tuning.tokens_per_step:
            drawn.append(next(examples))
            tokens += len(drawn[-1].tokens)
        batch = pack_examples(drawn)
        batch.hash_into(self.digest)
        self.drawn += 1
        return batch

    def _record(self) -> None:
        """Add a point to the curve."""
        self.curve.append({"step": self.step, "loss": self._loss(), "data_sha256": self.digest.hexdigest()})
        self.losses = []

    def _loss(self) -> float | None:
        """The mean loss of the steps since the last point of the curve, or that point's loss.

        None before the first step, and if all those steps were skipped.
        """
        if self.losses:
            known = [loss for loss in self.losses if loss is not None]
            return round(sum(known) / len(known), 4) if known else None
        return self.curve[-1]["loss"] if self.curve else None

    async def _save(self) -> None:
        """Write a checkpoint, unless this step has one. The model's folder has the record of how it was made.

        Raises:
            GangLost: a rank died.
        """
        if self.step == self.keeper.step:
            return
        self.check_lease()
        state = RunState(self.step, self.step, START, self.config.learner.ranks, self.wandb_id)
        gang = cast(FineTuningGang, self.gang)
        if await self.keeper.copy(gang, self.step):
            folder = Path(self.keeper.checkpoints.folder(self.step))
            await self.keeper.write(gang, state, lambda: self._write_record(folder))

    async def _save_the_last(self) -> None:
        """Save the last step unless it is already saved. Raises `RunFailed` if it cannot be saved."""
        await self._save()
        if self.keeper.step != self.step:
            raise RunFailed(f"checkpoints/{self.step}, the last, could not be saved; see the lines above")

    def _write_record(self, folder: Path) -> list[FileEntry]:
        record = fine_tuning_record(self.config) | {
            "steps": self.step,
            "tokens": self.tokens,
            "curve": self.curve,
            "losses": self.losses,
            "data_sha256": self.digest.hexdigest(),
            "weights_sha256": weights_hash(folder / MODEL),
        }
        path = folder / MODEL / RECORD
        write_text(path, json.dumps(record, indent=1) + "\n")
        return file_entries(folder, [path])

    def abandon_folder(self) -> None:
        self.keeper.storage.close(self.lease_lost)
        if self.gang:
            self.gang.kill()
        if self.tracker:
            self.tracker.abandon()

    async def close(self, summary: dict) -> None:
        self.cancel_all()
        closing = [self.gang.close()] if self.gang else []
        closing += [self.tracker.finish(summary)] if self.tracker and not self.lease_lost else []
        await self.close_all(closing)
