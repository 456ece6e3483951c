"""The rules for a training run's configuration, checked before any process starts."""

from pathlib import Path

from pipeline.evaluation.config import synthetic_settings
from pipeline.learning.objectives import LOSSES
from pipeline.learning.rules import learner_rules
from pipeline.rewards.advantages import ADVANTAGES
from pipeline.rules import Rules, at_most, check_rules, generation_rules, named_function, one_of, positive, resume_rule
from pipeline.run.config import TrainingConfig
from pipeline.weights.transport import BUCKETS


def check_config(config: TrainingConfig) -> None:
    """Check a training run's rules that need neither files nor a tokenizer.

    Raises:
        ConfigError: one line for each broken rule.
    """
    check_rules(generation_rules(config), training_rules(config))


def training_rules(c: TrainingConfig) -> Rules:
    """A training run's rules beside the generation rules: pairs of whether a rule holds and the message if not."""
    yield from learner_rules(c)
    yield from positive(c, "scorer", "count", "timeout_s")
    yield from at_most(c, "scorer", "min_count", "count")
    yield from positive(c, "objective", "importance_cap")
    yield from positive(c, "train", "steps", "groups_per_step", "updates_per_step", "temperature", "episodes_every")
    yield from positive(c, "train", "max_discarded", "max_attempts", "max_skipped_updates")
    yield from positive(c, "train", "checkpoint_every", "keep_last")
    yield from validation_rules(c)
    yield resume_rule(c)
    profiled = c.train.profile_steps
    yield (
        not profiled or (len(profiled) == 2 and 1 <= profiled[0] <= profiled[1] <= c.train.steps),
        f"train.profile_steps={profiled} must be the first and the last step to profile, between 1 and "
        f"train.steps={c.train.steps}: train.profile_steps=[3,4]",
    )
    place = c.train.checkpoint_folder
    yield (
        not place or "://" in place or Path(place).is_absolute(),
        f"train.checkpoint_folder={place} must be a URI or an absolute path: all nodes write to it",
    )
    yield from one_of(c, "data", "source", ("synthetic", "file"))
    yield from named_function(c, "objective", "advantage", ADVANTAGES)
    yield from named_function(c, "objective", "loss", LOSSES)
    yield from one_of(c, "objective", "entropy_weight", ("one", "reward"))
    a, le, o, t = c.agent, c.learner, c.objective, c.train
    yield (
        le.micro_batch_tokens >= a.window,
        f"learner.micro_batch_tokens={le.micro_batch_tokens} must be at least agent.window={a.window}, "
        "so that the longest conversation fits one forward pass",
    )
    yield (
        o.advantage != "none" or bool(o.terms()) or o.loss not in LOSSES,
        "objective.advantage=none trains nothing without objective.entropy_coefficient or objective.kl_coefficient",
    )
    yield (
        o.advantage != "gru_mem" or bool(c.scorer.modules),
        "objective.advantage=gru_mem needs rewards of conversations, which no built-in scorer gives: name a scorer of "
        "whole episodes in scorer.modules",
    )
    yield t.group_size >= 2, f"train.group_size={t.group_size} must be at least 2: the group is the baseline"
    yield (
        t.updates_per_step < 1 or t.groups_per_step % t.updates_per_step == 0,
        f"train.groups_per_step={t.groups_per_step} must be a multiple of train.updates_per_step={t.updates_per_step}: "
        "all updates of a step train the same number of groups",
    )
    yield (
        0 < o.clip_low < 1 and o.clip_high > 0 and o.dual_clip > 1,
        "objective.clip_low must lie in (0, 1), objective.clip_high above 0 and objective.dual_clip above 1",
    )
    yield (
        not c.learner.weight_deltas or (c.train.weight_transport == BUCKETS and c.model.dtype != "float32"),
        f"learner.weight_deltas needs train.weight_transport={BUCKETS} and weights in bfloat16: a step changes nearly "
        "all float32 weights",
    )
    yield (
        0 < o.overlong_share <= 1,
        f"objective.overlong_share={o.overlong_share} must be above 0 and at most 1 (a share of a limit)",
    )
    yield (
        c.data.synthetic_chunks >= 2,
        f"data.synthetic_chunks={c.data.synthetic_chunks} must be at least 2: the two hops lie in different chunks",
    )


def validation_rules(c: TrainingConfig) -> Rules:
    """The rules of the validation, if there is one."""
    v = c.validation
    yield from positive(c, "validation", "samples")
    yield 0 < v.top_p <= 1, f"validation.top_p={v.top_p} must be above 0 and at most 1"
    yield 0 < v.max_share <= 1, f"validation.max_share={v.max_share} must be above 0 and at most 1"
    yield (
        v.data.source in ("file", "synthetic"),
        f"validation.data.source={v.data.source!r} must be one of file, synthetic",
    )
    if not c.train.evaluate_every:
        return
    t = c.train
    yield (
        not t.keep_best or t.checkpoint_every % t.evaluate_every == 0,
        f"train.checkpoint_every={t.checkpoint_every} must be a multiple of train.evaluate_every={t.evaluate_every}: "
        "the best checkpoints are chosen by a validation at their step; or set train.keep_best=0",
    )
    yield (
        v.data.source != c.data.source or v.data.source != "file" or v.data.path != c.data.path,
        f"validation.data.path={v.data.path} is also data.path: its questions are not held out",
    )
    yield (
        v.data.source != "synthetic" or c.data.source != "synthetic" or v.data.synthetic_seed != c.run.seed,
        f"validation.data.synthetic_seed={v.data.synthetic_seed} is also run.seed: its questions are not held out",
    )
    yield (
        v.data.source != "file" or bool(v.data.path),
        f"train.evaluate_every={c.train.evaluate_every} needs held-out questions: set validation.data.path",
    )
    if v.data.source == "synthetic":
        yield not v.data.path, f"validation.data.path={v.data.path} is not read with validation.data.source=synthetic"
        for fault in synthetic_settings(v.data).faults():
            yield False, f"validation.data.synthetic_{fault}"
