"""Reports on steps (rows of metrics, progress lines, sampled episodes, skipped updates) and on validations."""

from collections.abc import Callable, Sequence

from actors.groups import Step
from actors.tracking import Tracking
from pipeline.alerts import Alert
from pipeline.dtype import MISMATCH_WARNING
from pipeline.errors import RunFailed
from pipeline.run.config import TrainingConfig
from pipeline.run.metrics import UpdateResult
from pipeline.run.report import step_line, validation_line
from pipeline.run.sampled_episode import samples_at

PREEMPTED_SHARE = 0.05  # preemptions per conversation above which a step's report warns


class StepReports:
    """Lives in the coordinator.

    Args:
        config: the run's configuration.
        say: called with each progress line.
    """

    def __init__(self, config: TrainingConfig, say: Callable[[str], None]):
        self.config, self._say = config, say
        self._skipped_in_a_row = 0

    async def report(self, tracker: Tracking, row: dict, step: Step, updates: Sequence[UpdateResult] = ()) -> None:
        """Log a step's row and report its progress line; write sampled episodes every `episodes_every` steps."""
        t, number = self.config.train, row["step"]
        await tracker.log(row)
        self._say(step_line(row, t.steps))  # the row is on disk before the line is shown
        mismatch_warning = t.mismatch_warning or MISMATCH_WARNING[self.config.model.dtype]
        if (row["logprob_mismatch_mean"] or 0) > mismatch_warning:
            line = (
                f"· warning: vLLM's and the learner's log-probs differ by {row['logprob_mismatch_mean']:.2g} on "
                f"average, more than train.mismatch_warning={mismatch_warning:g}; with the same weights they should "
                "agree"
            )
            self._say(Alert("log-probs do not match", line))
        if row["preemptions"] > PREEMPTED_SHARE * row["conversations"]:
            cache = "gpu_kv_cache_gib or gpu_memory_share" if self.config.generator.num_gpus else "kv_cache_gib"
            line = (
                f"· warning: engines stopped conversations {row['preemptions']:,} times to compute them again, because "
                f"their KV cache was full ({row['conversations']:,} conversations in this step); lower "
                f"generator.max_sequences, or raise generator.{cache}"
            )
            self._say(Alert("KV cache full", line))
        if number == 1 or number % t.episodes_every == 0 or number == t.steps:
            shown = list(zip(step.problems, step.groups, strict=True))[: samples_at(t, number)]
            # Ray passes references inside lists unresolved.
            samples = [(problem.without_document(), record, [ref]) for problem, (record, ref) in shown]
            logprobs = [rank["shown"] for update in updates for rank in update.ranks if "shown" in rank]
            await tracker.episodes(number, samples, logprobs)
            tracker.draw()  # in the background

    async def report_validation(self, tracker: Tracking, row: dict, answers: list[dict]) -> None:
        """Log a validation's row and its answers, and report its progress line."""
        await tracker.validated(row, answers)
        self._say(validation_line(row))

    def check_updates(self, number: int, step: Step, updates: list[UpdateResult]) -> None:
        """Report the groups of a step's skipped updates. Raises `RunFailed` after too many in a row."""
        for update_number, update in enumerate(updates, 1):
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if update.skipped else 0
            if update.skipped:
                names = ", ".join(step.groups[index][0].group_id for index in update.culprits)
                line = (
                    f"· step {number}: update {update_number} of {len(updates)} was skipped: its loss or gradient "
                    f"is not finite; groups: {names}"
                )
                self._say(Alert("update skipped", line))
            if self._skipped_in_a_row >= self.config.train.max_skipped_updates:
                raise RunFailed(
                    f"{self._skipped_in_a_row} updates in a row were skipped: their loss or gradient is not finite; "
                    "the weights are those of the last good update. Look at the groups named above, or lower "
                    "learner.learning_rate"
                )
