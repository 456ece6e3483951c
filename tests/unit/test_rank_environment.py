"""The environment of learner ranks: what the user gives, and torch's allocator on GPUs."""

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import actors.learning.gang as module
from pipeline.errors import ConfigError
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.fine_tuning.record import fine_tuning_record
from pipeline.learning.environment import ALLOCATOR, rank_environment
from pipeline.run.config import load_training_config
from pipeline.sections import LearnerSection, ModelSection

GPU = LearnerSection(num_gpus=1.0)
GROWING = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


def with_variables(**environment: str) -> LearnerSection:
    return replace(GPU, environment=environment)


def test_the_allocator_is_set_on_gpus_unless_somebody_has_set_it():
    assert rank_environment(GPU, {}) == GROWING
    assert rank_environment(LearnerSection(), {}) == {}
    assert rank_environment(GPU, {"PYTORCH_CUDA_ALLOC_CONF": ""}) == {}
    assert rank_environment(GPU, {"PYTORCH_ALLOC_CONF": "backend:native"}) == {}
    own = {"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}
    assert rank_environment(with_variables(**own), {}) == own


def test_what_the_user_gives_is_passed_on_as_it_is_written(tmp_path):
    arguments = ["NCCL_SOCKET_IFNAME=eth0", "NCCL_IB_DISABLE=1", "NCCL_IB_TIMEOUT=007", "NCCL_X=yes", "NCCL_Y=1e3"]
    config = load_training_config(["preset=tiny", *(f"learner.environment.{a}" for a in arguments)])
    assert rank_environment(config.learner, {}) == dict(a.split("=") for a in arguments)
    preset = tmp_path / "cluster.yaml"
    preset.write_text("preset: tiny\nlearner:\n  environment:\n    NCCL_IB_DISABLE: 1\n    NCCL_DEBUG: INFO\n")
    both = load_training_config([f"preset={preset}", "learner.environment.NCCL_DEBUG=WARN"])
    assert rank_environment(both.learner, {}) == {"NCCL_IB_DISABLE": "1", "NCCL_DEBUG": "WARN"}


def test_a_value_with_a_password_is_refused():
    with pytest.raises(ConfigError, match="learner.environment holds credentials in a URI"):
        load_training_config(["preset=tiny", "learner.environment.ALL_PROXY=http://me:secret@proxy:3128"])


@pytest.mark.parametrize(
    ("gpus", "expected"), [(1.0, {"NCCL_DEBUG": "INFO", **GROWING}), (0.0, {"NCCL_DEBUG": "INFO"})]
)
def test_a_gang_starts_its_ranks_with_their_environment(monkeypatch, tiny_config, gpus, expected):
    started = []

    def options(**given):
        return SimpleNamespace(remote=lambda *arguments: started.append(given))

    class Gang(module.Gang):
        LEARNER = SimpleNamespace(options=options)

    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "PlacementGroupSchedulingStrategy", lambda group, rank: rank)
    learner = replace(tiny_config.learner, num_gpus=gpus, environment={"NCCL_DEBUG": "INFO"})
    Gang(replace(tiny_config, learner=learner), 2, placement="room")
    assert [given["runtime_env"] for given in started] == [{"env_vars": expected}] * 2
    Gang(replace(tiny_config, learner=replace(learner, num_gpus=0.0, environment={})), 1, placement="room")
    assert "runtime_env" not in started[-1]


def test_torch_understands_the_setting():
    code = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **GROWING}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == GROWING["PYTORCH_CUDA_ALLOC_CONF"], done.stderr


def test_the_environment_is_no_part_of_how_a_model_was_made():
    def record(**environment: str) -> dict:
        return fine_tuning_record(FineTuningConfig(model=ModelSection(path="m"), learner=with_variables(**environment)))

    assert record(NCCL_DEBUG="INFO") == record()
