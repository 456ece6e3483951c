"""The shipped start of the embedded default is the one that its record tells of."""

import json

import pytest

from pipeline.config import CONFIGS, load_config
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.fine_tuning.record import RECORD, fine_tuning_record, weights_hash
from pipeline.run.config import load_training_config

TINY = CONFIGS / "models" / "tiny"


@pytest.fixture(scope="module")
def shipped() -> dict:
    return json.loads((TINY / RECORD).read_text())


def test_the_shipped_weights_are_those_of_the_record_and_small(shipped):
    assert weights_hash(TINY) == shipped["weights_sha256"]
    assert sum(path.stat().st_size for path in TINY.iterdir()) < 4 * 2**20


def test_the_record_is_of_the_present_recipe(shipped):
    recipe = fine_tuning_record(load_config(["preset=fine_tune_tiny"], FineTuningConfig))
    assert {name: shipped[name] for name in recipe} == recipe
    trained = load_training_config(["preset=tiny"]).agent.prompt_template
    assert recipe["config"]["data"]["prompt_template"] == trained  # the start knows the prompts that it is trained with
    assert shipped["steps"] == shipped["curve"][-1]["step"] == recipe["config"]["fine_tuning"]["steps"]
