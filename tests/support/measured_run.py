"""A measured run for tests/unit/test_measured_runs.py: `python -m tests.support.measured_run <folder> <name> cores=2`.

Reads config.yaml and metrics.jsonl of a training run on a CPU, and prints what the test needs as JSON: an entry of
tests/support/measured_runs.json. Add `"calibrates": false` by hand if another run of this model is there already. Steps
with validation in them are left out.
"""

import dataclasses
import json
import sys
from math import ceil
from pathlib import Path
from statistics import mean

from jobs.plan import workload_of
from jobs.support.inputs import load_model_files
from jobs.train import architecture
from pipeline.data.documents.passages import document_text
from pipeline.data.rows import row_rules
from pipeline.data.sample_files import SampleFiles
from pipeline.run.cluster_config import PlanConfig, load_plan_config

KEYS = (
    "step seconds train_seconds publish_seconds update_pause_max generators_waited learner_ranks learner_tflops "
    "generator_tflops prompt_tokens prompt_tokens_computed tokens_trained tokens_computed episodes memory_tokens "
    "kept_fraction groups groups_of_equal_reward"
).split()


def trained_groups(row: dict) -> int:
    """Groups of a step that learners computed."""
    return row["groups"] - row["groups_of_equal_reward"]


def lengths(config: PlanConfig) -> tuple[int, int]:
    """Mean tokens of the documents and of the questions of a file."""
    tokenizer, _ = load_model_files(config.model)
    source = SampleFiles.open(config.data.path, row_rules(config))
    samples = [source.sample(i) for i in range(len(source))]
    documents = [document_text(sample, config.agent.document_characters) for sample in samples]
    counted = [[len(tokenizer.encode(text)) for text in texts] for texts in (documents, [s.question for s in samples])]
    return round(mean(counted[0])), round(mean(counted[1]))


def entry(folder: Path, name: str, cores: str) -> dict:
    """The entry of a run folder."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    rows = [row for row in map(json.loads, text.splitlines()) if not row["validation_share"]]
    config = load_plan_config([f"preset={folder / 'config.yaml'}", f"cluster.{cores}"])
    sizes = architecture(config)
    assert sizes is not None
    c, t = config.cluster, config.train
    chunks = round(mean(row["conversations"] / row["episodes"] for row in rows)) - 1
    document = chunks * config.agent.chunk_tokens
    if config.data.source == "file":
        document, c.problem_tokens = lengths(config)
    c.memory_tokens = round(mean(row["memory_tokens"] for row in rows)) + 1  # and the end token
    written = sum(row["tokens_trained"] for row in rows) / sum(row["episodes"] for row in rows)
    c.answer_tokens = max(1, round(written - chunks * c.memory_tokens))
    workload = dataclasses.replace(workload_of(config, document), chunks=chunks, chunk=ceil(document / chunks))
    computed = sum(row["tokens_computed"] for row in rows) / sum(trained_groups(row) for row in rows)
    one, two = (dataclasses.replace(workload, distinct=n).learned().tokens for n in (1, 2))
    distinct = min(t.group_size, max(1.0, 1 + (computed - one) / (two - one)))
    return {
        "name": name,
        "cores": c.cores,
        "architecture": dataclasses.asdict(sizes),
        "workload": dataclasses.asdict(dataclasses.replace(workload, distinct=round(distinct, 2))),
        "arguments": [
            *(
                f"generator.{key}={getattr(config.generator, key)}"
                for key in ("count", "max_sequences", "kv_cache_gib")
            ),
            *(f"learner.{key}={getattr(config.learner, key)}" for key in ("ranks", "micro_batch_tokens")),
            *(f"train.{key}={getattr(t, key)}" for key in ("groups_per_step", "updates_per_step", "group_size")),
            *(f"train.{key}={str(getattr(t, key)).lower()}" for key in ("max_staleness", "dynamic_sampling")),
            *(f"objective.{key}={getattr(config.objective, key)}" for key in ("kl_coefficient",)),
            f"model.dtype={config.model.dtype}",
            f"agent.window={config.agent.window}",
        ],
        "rows": [{key: row[key] for key in KEYS} for row in rows],
    }


if __name__ == "__main__":
    print(json.dumps(entry(Path(sys.argv[1]), *sys.argv[2:])))
