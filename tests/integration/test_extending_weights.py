"""The weight transport of docs/extending.md: between a file and a real engine, and in a run of the training job."""

import asyncio
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.weights.transport import Weights, WeightsLost, load_transport
from tests.integration.test_vllm_engine import PROMPT, WARM, end_engine, learner_logprobs, start_engine
from tests.support.examples import write_examples
from tests.support.faults import run_job

NAME = "shared_folder:TRANSPORT"


@pytest.fixture
def examples(tmp_path, monkeypatch):
    return write_examples(tmp_path / "examples", monkeypatch)


def published(config, model, version: int) -> Weights:
    """What a gang of two ranks would publish of a model."""

    def parameters(group_bytes):
        seen.append(group_bytes)
        yield from load_file(model / "model.safetensors").items()
        seen.append("end")

    seen = []
    senders = [load_transport(NAME).sender(config, rank, 2) for rank in range(2)]
    for sender in senders:
        sender.copy(version, parameters)
    pieces = [sender.send() for sender in senders]
    assert seen == [seen[0], "end"] * 2  # the ranks gather in step
    return Weights(version, NAME, tuple(pieces))


def test_its_weights_are_loaded_and_a_version_that_is_gone_changes_nothing(
    examples, tmp_path, tiny_config, random_model, other_model
):
    from actors.generation.generator import Generator

    config = replace(tiny_config, run=replace(tiny_config.run, folder=str(tmp_path), name="run"))
    first, second, third = (published(config, m, v) for v, m in enumerate([random_model, random_model, other_model], 1))
    generator = Generator.__ray_metadata__.modified_class("generator-0", config, 0)
    with asyncio.Runner() as runner:
        generator.engine = engine = start_engine(runner, tiny_config, random_model)
        try:
            with pytest.raises(WeightsLost, match="1.safetensors is gone"):
                runner.run(generator.load_weights(first))
            response = runner.run(engine.generate(PROMPT, 5, WARM))
            assert response.versions == [0] * len(response.tokens)
            responses = []
            for weights in (second, third):
                assert runner.run(generator.load_weights(weights)) > 0
                responses.append(runner.run(engine.generate(PROMPT, 60, WARM)))
        finally:
            end_engine(engine)
    for response, version, model in zip(responses, (2, 3), (random_model, other_model), strict=True):
        assert response.versions == [version] * len(response.tokens)
        difference = learner_logprobs(model, 0.7, response.tokens) - torch.tensor(response.logprobs)
        assert difference.abs().mean() <= 1e-4


def test_a_run_trains_on_what_it_carries(examples, tmp_path, random_model):
    """On-policy, so that all tokens of a step are of the learner's own version: with other weights than the learner's,
    an engine would show in the log-probs' mismatch."""
    status, output = run_job(
        "jobs.train",
        *("preset=tiny", f"model.path={random_model}", f"run.folder={tmp_path}", "run.name=run"),
        *("train.steps=3", "train.groups_per_step=4", "train.group_size=4", "train.evaluation=none"),
        "train.evaluate_every=0",
        # Every token has a gradient, whatever the rewards.
        *("train.max_staleness=0", "objective.entropy_weight=one", "learner.learning_rate=0.01"),
        f"train.weight_transport={NAME}",
        environment={"PYTHONPATH": f"{examples}{os.pathsep}{os.environ['PYTHONPATH']}"},
    )
    assert status == 0, output
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["logprob_mismatch_mean"] <= 1e-4 for row in rows)
    assert sorted(path.name for path in (tmp_path / "run" / "weights").iterdir()) == ["2.safetensors", "3.safetensors"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    trained = load_file(f"{summary['checkpoint']}/hf/model.safetensors")
    carried = load_file(tmp_path / "run" / "weights" / "3.safetensors")
    before = load_file(random_model / "model.safetensors")
    assert all(torch.equal(carried[name], tensor) for name, tensor in trained.items())
    assert any(not torch.allclose(carried[name], tensor, atol=1e-4) for name, tensor in before.items())
