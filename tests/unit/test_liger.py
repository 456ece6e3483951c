"""Liger's kernels against transformers' own, where liger-kernel is installed: on a GPU or in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.fine_tuning.config import FineTuningConfig, check_fine_tuning
from pipeline.learning.device_memory import FAMILIES
from pipeline.learning.liger import use_liger

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_transformers(family):
    """In a process of its own: Liger changes transformers' modules, and Triton reads its variable at its import."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.liger", family],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},  # wherever Liger is
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    logprobs, gradient, norms, mlps, rotations = map(float, done.stdout.split())
    assert logprobs < 1e-4 and gradient < 1e-4
    # The numbers of calls: of two layers, forward, backward and recomputed.
    assert norms > 0 and mlps > 0 and rotations > 0


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.backends", None)
    with pytest.raises(ValueError, match=r"learner\.liger=true: .*Install liger-kernel \(requirements/gpu\.txt"):
        use_liger(SimpleNamespace(config=SimpleNamespace(model_type="llama")))


def test_a_family_that_is_not_compared_is_refused():
    with pytest.raises(ValueError, match="only for llama, mistral, qwen2, qwen3, and the model is of type gemma"):
        use_liger(SimpleNamespace(config=SimpleNamespace(model_type="gemma")))


def test_it_needs_gpus():
    config = load_config(["preset=fine_tune_tiny", "learner.liger=true"], FineTuningConfig)
    with pytest.raises(ConfigError, match="learner.liger=true needs GPUs: set learner.num_gpus"):
        check_fine_tuning(config)
    config.learner.num_gpus = 1
    check_fine_tuning(config)
