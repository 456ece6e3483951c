"""The record of how a fine-tuned model was made, fine_tuning.json in its folder, and what a resumed run may change."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.fine_tuning.config import FineTuningConfig

RECORD = "fine_tuning.json"
# Learner keys without influence on the result.
WAITS = ("min_ranks", "wait_s", "stall_s", "resources", "environment", "weight_deltas")
# Keys of the record that may change when a run is resumed. Paths may: the data are compared, and the weights are the
# checkpoint's.
CHANGEABLE = frozenset(
    "model.path model.attention data.path data.max_bad_share learner.ranks learner.num_cpus learner.num_gpus "
    "learner.liger learner.offload learner.micro_batch_tokens learner.checkpoint_layers learner.bucket_mib "
    "fine_tuning.stop_after fine_tuning.checkpoint_every fine_tuning.record_every".split()
)


def fine_tuning_record(config: FineTuningConfig) -> dict:
    """The part of a configuration that determines the model."""
    values = asdict(config)
    for name in WAITS:
        del values["learner"][name]
    del values["fine_tuning"]["keep_last"]
    if config.fine_tuning.from_scratch:
        del values["model"]["path"]  # the folder of the random weights, which the seed reproduces
    kept = ("model", "data", "learner", "fine_tuning")
    return {"config": {name: values[name] for name in kept}, "seed": config.run.seed}


def check_unchanged(config: FineTuningConfig, earlier: dict) -> None:
    """Check that a resumed run has the settings with which it began.

    Args:
        config: the run's configuration now.
        earlier: the configuration with which it began.

    Raises:
        ConfigError: a key that determines the model has another value.
    """
    there = {name: values for name, values in earlier.items() if isinstance(values, dict)}
    changed = [
        f"{section}.{key}={value}"
        for section, values in fine_tuning_record(config)["config"].items()
        for key, value in values.items()
        if f"{section}.{key}" not in CHANGEABLE and there.get(section, {}).get(key) != value
    ]
    if changed:
        raise ConfigError(f"the run began with other values than {', '.join(changed)}; choose another run.name")


def weights_hash(folder: Path) -> str:
    """SHA-256 over the safetensors files of a model folder, in order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
