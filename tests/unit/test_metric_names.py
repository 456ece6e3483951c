"""The sections in which wandb shows metrics."""

import pytest

from actors import tracker as tracker_module
from pipeline.run.config import load_training_config
from pipeline.run.metric_names import KEYS, SECTIONS, SUMMARIES, wandb_name
from pipeline.run.validation import validation_row
from tests.support.result_rows import row as result


def test_each_key_of_a_row_is_in_one_section():
    names = [name for names in SECTIONS.values() for name in names]
    assert len(names) == len(set(names)) and set(names) == KEYS - {"step"}
    assert set(SUMMARIES) - KEYS == {"validation_score"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("step", "step"),
        ("reward", "reward/reward"),
        ("turn_reward_gate", "reward/turn_reward_gate"),
        ("validation_score_144", "validation/validation_score_144"),
        ("validation_share", "pools/validation_share"),
        ("clip_fraction", "objective/clip_fraction"),
        ("weight_max", "objective/weight_max"),  # of a user's own objective
        ("examples", "tokens/examples"),  # of fine-tuning
    ],
)
def test_a_name_in_wandb(name, shown):
    assert wandb_name(name) == shown


def test_a_tracker_sends_each_number_to_its_section_and_keeps_the_names_of_the_row(tmp_path, monkeypatch):
    sent = []

    class Wandb:
        def __init__(self, *_):
            pass

        def log(self, make_row):
            sent.append(make_row(self))

        def news(self):
            return []

        def Histogram(self, np_histogram):
            return list(np_histogram[0])

    monkeypatch.setattr(tracker_module, "was_started_again", lambda: False)
    monkeypatch.setattr(tracker_module, "WandbRun", Wandb)
    config = load_training_config(["preset=tiny", "run.name=named"])
    tracker = tracker_module.Tracker.__ray_metadata__.modified_class(config, str(tmp_path))
    tracker.log({"step": 1, "reward": 0.5, "loss": None, "positions": [3], "staleness_tokens": [2, 1]})
    answers = [result(id="q", length=144) | {"versions": [1, 1], "prompt_tokens_computed": 3}]
    tracker.validated(validation_row(1, 1, "questions", answers, 1.0), [])
    assert sent[0] == {"step": 1, "reward/reward": 0.5, "staleness/staleness_tokens": [2, 1]}
    assert sent[1]["step"] == 1 and {"validation/validation_score", "validation/validation_score_144"} < sent[1].keys()
    assert '"reward": 0.5' in (tmp_path / "metrics.jsonl").read_text()
