"""The names of a run's metrics, by section. wandb shows these sections, and docs/metrics.md explains each name."""

# The keys of a step's row, without the metrics of the objective.
SECTIONS = {
    name: names.split()
    for name, names in {
        "reward": """
            reward reward_std reward_trained overlong_penalty groups_of_equal_reward kept_fraction cut_answer_fraction
            cut_conversations""",
        "memory": "memory_written memory_kept memory_answered memory_junk memory_tokens",
        "policy": "entropy logprob_mismatch_mean logprob_mismatch_max logprob_mismatch_tokens",
        "update": "loss grad_norm grad_norm_max learning_rate updates updates_skipped updates_total micro_batches",
        "staleness": """
            version staleness_mean staleness_max staleness_tokens mixed_version_episodes groups_dropped_stale""",
        "groups": """
            groups episodes conversations groups_discarded groups_discarded_total groups_failed groups_running
            groups_buffered groups_unscored positions rows_quarantined""",
        "tokens": """
            tokens_trained tokens_computed tokens_shared_share tokens_recomputed tokens_generated_total prompt_tokens
            prompt_tokens_computed prefix_hit_share prefix_hit_share_min prefix_hit_shares preemptions""",
        "time": """
            seconds wait_seconds train_seconds publish_seconds weight_bytes_share proximal_seconds update_pause_max
            group_seconds_mean group_seconds_max""",
        "speed": """
            tokens_per_second learner_tokens_per_device_second learner_tflops learner_mfu
            generator_tokens_per_device_second generator_tflops generator_mfu""",
        "pools": """
            generators scorers learner_ranks generators_waited scorers_waited learners_waited validation_share""",
        "faults": """
            effective_time_ratio group_moves groups_lost conversations_redone generator_restarts scorer_restarts
            learner_restarts steps_lost checkpoints_failed coordinator_restarts""",
    }.items()
}
STEP = "step"  # the horizontal axis
KEYS = frozenset((STEP, *(name for names in SECTIONS.values() for name in names)))
TURN_REWARD = "turn_reward"  # begins the keys of rewards of conversations
OBJECTIVE = "objective"  # the section of the metrics that an objective returns
VALIDATION = "validation"  # that of validations, whose names begin with it

# The keys of a step's row in fine-tuning, and the section of those that a training run lacks.
FINE_TUNING_ONLY = {"examples": "tokens", "tokens_total": "tokens"}
FINE_TUNING_KEYS = frozenset(
    (STEP, "loss", "grad_norm", "learning_rate", "tokens_trained", "rows_quarantined", "seconds", *FINE_TUNING_ONLY)
)

# What wandb's summary has of a metric, where it is not the last value alone.
SUMMARIES = {
    "reward": "last,max",
    "validation_score": "last,max",
    "entropy": "last,min",
    "loss": "last,min",
    "logprob_mismatch_mean": "last,max",
    "grad_norm_max": "last,max",
    "staleness_max": "last,max",
    "update_pause_max": "last,max",
    "tokens_per_second": "last,mean",
    "learner_mfu": "last,mean",
    "generator_mfu": "last,mean",
}

_SECTION_OF = {name: section for section, names in SECTIONS.items() for name in names} | FINE_TUNING_ONLY


def is_taken(name: str) -> bool:
    """Whether a metric of the objective would hide a key of the row."""
    return name in KEYS or name.startswith(TURN_REWARD)


def section_of(name: str) -> str:
    """The section of a metric of a row, or of a validation (`validation_metrics`)."""
    if name.startswith(TURN_REWARD):
        return "reward"
    if name.startswith(f"{VALIDATION}_") and name not in KEYS:
        return VALIDATION
    return _SECTION_OF.get(name, OBJECTIVE)


def wandb_name(name: str) -> str:
    """A metric's name in wandb, which makes a section of what stands before the slash."""
    return name if name == STEP else f"{section_of(name)}/{name}"
