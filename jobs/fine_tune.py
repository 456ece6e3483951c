"""Supervised fine-tuning under DeepSpeed ZeRO-3: `python -m jobs.fine_tune preset=<name> key=value … [--dry-run]`.

Without a preset it makes the embedded default's model from random weights, on demonstrations of the tiny language
(docs/tiny-model.md). To train a Hugging Face model on a file of conversations (README.md, "Fine-tune"):

    python -m jobs.fine_tune preset=fine_tune model.path=Qwen/Qwen2.5-7B-Instruct data.path=conversations.jsonl

Runs on the cluster that RAY_ADDRESS names (inside a Ray job: the job's cluster). Without RAY_ADDRESS it joins your
cluster on this machine, or starts Ray.
After an interruption, the same command with its run.name and resume=auto goes on.
The model is in the run folder, in checkpoints/<step>/hf. fine_tuning.json beside it has the configuration, the hash of
the data, and the losses.
"""

import sys
from pathlib import Path

from jobs.support.driver import EXIT_STATUS, asks_for_help, show_help, start_actor, start_ray, summary_of, then_stop_ray
from jobs.support.inputs import check_layers, check_samples, load_model_files, whole_path
from jobs.support.run_folder import RunFolder, check_earlier, check_unused, leave_interrupted, run_folder
from jobs.support.stop_signals import StopSignals
from pipeline.config import config_yaml, load_config
from pipeline.errors import ConfigError
from pipeline.fine_tuning.config import FineTuningConfig, check_fine_tuning
from pipeline.text import load_tokenizer

DEFAULT_PRESET = "preset=fine_tune_tiny"
MODEL_S = 3600.0  # limit for making and writing a model with random weights


def main(arguments: list[str]) -> int:
    """Run the job; return the exit status: 0 completed, 1 failed, 2 wrong configuration, 130 interrupted."""
    if asks_for_help(arguments):
        return show_help(__doc__, FineTuningConfig)
    dry_run = "--dry-run" in arguments
    arguments = [a for a in arguments if a != "--dry-run"]
    if not any(a.startswith("preset=") for a in arguments):
        arguments = [DEFAULT_PRESET, *arguments]
    try:
        config = load_config(arguments, FineTuningConfig)
        check_fine_tuning(config)
        if config.data.source == "file":
            check_samples(config.data.path)
        _, settings = load_model_files(config.model)
        check_layers(config.learner, settings)
        if dry_run:
            print(config_yaml(config))
            return 0
        return fine_tune(config)
    except ConfigError as error:
        print(f"configuration error:\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("· interrupted before the run began", flush=True)
        return EXIT_STATUS["interrupted"]


def fine_tune(config: FineTuningConfig) -> int:
    """Run fine-tuning with a checked configuration; return the exit status.

    Raises:
        ConfigError: the run folder cannot be used, or its run cannot be resumed.
        KeyboardInterrupt: interrupted before the run began.
    """
    from actors.fine_tuner import FineTuner

    config.model.path, config.data.path = whole_path(config.model.path), whole_path(config.data.path)
    folder = run_folder(config, in_job=start_ray())
    with StopSignals() as signals:
        place = RunFolder(folder, signals)
        place.call(check_unused, config, folder)  # fail before waiting for a lease
        with place:
            signals.add(lambda: leave_interrupted(folder, {"steps": 0}))
            place.call(check_unused, config, folder)
            place.call(check_earlier, config, folder)
            place.save_config(config)
            print(f"· run folder {folder}", flush=True)
            if config.fine_tuning.from_scratch:
                config.model.path = str(place.call(random_model, config, folder / "start", limit_s=MODEL_S))
            actor = start_actor(FineTuner, config, str(folder), place.lease)
            summary = summary_of(actor, signals, folder, lambda error: {"status": "failed", "error": error})
    if summary["error"]:
        print(summary["error"], file=sys.stderr)
    print(f"· {summary['status']}; summary in {folder / 'summary.json'}", flush=True)
    return EXIT_STATUS.get(summary["status"], 1)


def random_model(config: FineTuningConfig, folder: Path) -> Path:
    """Write a model with random weights (run.seed) and the architecture and tokenizer of `model.path`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    m = config.model
    torch.manual_seed(config.run.seed)
    architecture = AutoConfig.from_pretrained(m.path, trust_remote_code=m.trust_remote_code)
    model = AutoModelForCausalLM.from_config(
        architecture, dtype=getattr(torch, m.dtype), trust_remote_code=m.trust_remote_code
    )
    model.save_pretrained(folder)
    load_tokenizer(m.path, m.trust_remote_code).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.exit(then_stop_ray(main, sys.argv[1:]))
