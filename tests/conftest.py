"""Shared by the tests: a random tiny model, and one Ray for all."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["RAY_ADDRESS"] = "local"  # a Ray of the tests' own, whatever runs on this machine
os.environ["RAY_worker_niceness"] = "0"  # Ray's 15 leaves its workers next to nothing of a busy machine
# Processes of the tests' Ray, and of the jobs, can be broken from within (tests/support/inject).
os.environ["CHAOS_FOLDER"] = tempfile.mkdtemp(prefix="faults-")
os.environ["PYTHONPATH"] = f"{Path(__file__).parent / 'support' / 'inject'}{os.pathsep}{Path(__file__).parent.parent}"

from typing import TYPE_CHECKING

import hypothesis
import pytest

from jobs.support.driver import stop_ray
from jobs.support.ray_token import require_token

if TYPE_CHECKING:
    from pipeline.run.config import TrainingConfig

require_token()
# Hypothesis fails an example that takes 200 ms, which on a busy machine means nothing.
hypothesis.settings.register_profile("palimpsest", deadline=None)
hypothesis.settings.load_profile("palimpsest")


def make_random_model(folder: Path, seed: int, **sizes: int) -> Path:
    """A model of the tiny architecture with random weights, large enough to make its tokens differ."""
    import torch
    from transformers import LlamaForCausalLM

    from pipeline.data.documents.synthetic import tiny_model_config, tiny_tokenizer

    torch.manual_seed(seed)
    config = tiny_model_config()
    for name, size in sizes.items():
        setattr(config, name, size)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def no_faults_left():
    """What a test has injected, and has not struck, strikes no other."""
    yield
    for trace in Path(os.environ["CHAOS_FOLDER"]).iterdir():
        trace.unlink()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("models") / "a", seed=1)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    return make_random_model(tmp_path_factory.mktemp("models") / "b", seed=2)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory) -> Path:
    """Its matrices have over 100,000 numbers each: smaller ones are never released by ZeRO-3."""
    sizes = {"hidden_size": 320, "intermediate_size": 384, "head_dim": 80, "vocab_size": 400}
    return make_random_model(tmp_path_factory.mktemp("models") / "wide", seed=3, **sizes)


@pytest.fixture(scope="session")
def tiny_config(random_model) -> "TrainingConfig":
    from pipeline.run.config import load_training_config

    return load_training_config(["preset=tiny", f"model.path={random_model}"])


@pytest.fixture(scope="session")
def ray_session():
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    stop_ray()


@pytest.fixture(scope="session")
def shared_ray(ray_session) -> dict[str, str]:
    """The environment of jobs that join the tests' Ray instead of starting one of their own."""
    return {"RAY_ADDRESS": ray_session.get_runtime_context().gcs_address}


@pytest.fixture
def short_folder():
    """For temporary files of Ray, whose sockets need a short path."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)
