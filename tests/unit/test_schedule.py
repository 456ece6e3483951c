"""The learning rate by optimizer steps, against numbers worked by hand."""

import math
from dataclasses import replace

import pytest

from pipeline.learning.schedule import learning_rate_factor
from pipeline.run.config import load_training_config
from pipeline.run.plan import schedule_lines, schedule_table
from pipeline.sections import LearnerSection


def factors(total: int, **learner) -> list[float]:
    return [learning_rate_factor(update, LearnerSection(**learner), total) for update in range(total)]


def test_the_warm_up_is_a_line_whose_first_step_is_not_at_zero():
    assert factors(6, schedule="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(1, schedule="constant", warmup_steps=0) == [1]


def test_the_cosine_falls_from_the_end_of_the_warm_up_to_the_end_of_the_run():
    expected = [0.5, 1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    assert factors(6, schedule="cosine", warmup_steps=2) == pytest.approx(expected)


def test_the_cosine_may_fall_over_the_last_share_of_the_run_alone():
    expected = [0.5, 1, 1, 1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]
    assert factors(8, schedule="cosine", warmup_steps=2, decay_share=0.5) == pytest.approx(expected)


def config(**train):
    c = load_training_config(
        ["preset=tiny", "learner.schedule=constant", "learner.learning_rate=0.1", "learner.warmup_steps=3"]
    )
    return replace(c, train=replace(c.train, **train))


def test_the_table_counts_optimizer_steps():
    table = schedule_table(config(steps=3, updates_per_step=2))
    assert [(row.step, row.updates_total) for row in table] == [(1, 2), (2, 4), (3, 6)]
    assert [row.learning_rate for row in table] == pytest.approx([0.1 * 2 / 3, 0.1, 0.1])


def test_a_long_table_is_shown_from_its_first_to_its_last_row():
    table = schedule_table(config(steps=1000, updates_per_step=16))
    lines = schedule_lines(table)
    assert len(lines) < 20
    assert lines[1].split() == ["1", "16", "0.1"] and lines[-1].split() == ["1000", "16000", "0.1"]
    assert len(schedule_lines(table[:5])) == 6


def test_a_long_table_shows_the_end_of_the_warm_up():
    c = load_training_config(["preset=memagent_7b"])
    assert "20 320 1e-06" in [" ".join(line.split()) for line in schedule_lines(schedule_table(c))]
