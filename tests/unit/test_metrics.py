"""A step's row and a run's summary against numbers worked by hand."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from pipeline.rollout.episodes import Completion, Conversation, Episode, pack_group
from pipeline.rollout.memory_counts import MemoryCounts, Ratio
from pipeline.run.history import RunTotals
from pipeline.run.metrics import step_row
from pipeline.run.report import step_line
from tests.support.groups import random_group, record_of
from tests.support.updates import rank, update


def records(*rewards):
    group = random_group(np.random.default_rng(0), episodes=2)
    return [record_of(group, f"g{i}", r) for i, r in enumerate(rewards)]


def test_a_row_averages_over_the_tokens_of_all_updates_and_ranks():
    row = step_row(
        3,
        5,
        records([1, 0], [0, 0]),
        [
            update(
                rank(tokens=20, clipped=3, ratio=30.0, loss=0.1, entropy=10.0),
                rank(
                    tokens=10,
                    clipped=1,
                    ratio=10.0,
                    same_version_tokens=5,
                    mismatch=0.01,
                    mismatch_max=0.004,
                ),
                tokens=30,
                staleness=[12, 18],
                computed=50,
                shared=60,
                recomputed=7,
            ),
            update(
                rank(
                    tokens=10,
                    loss=0.2,
                    ratio=4.0,
                    kl=2.0,
                    importance=8.0,
                    importance_max=1.5,
                    grad_norm=1.5,
                ),
                tokens=10,
                staleness=[4, 0, 6],
                computed=30,
                shared=20,
            ),
        ],
        [],
    )
    assert row["reward"] == row["reward_trained"] == 0.25 and row["groups_of_equal_reward"] == 1
    assert row["tokens_trained"] == 40 and row["updates"] == 2 and row["updates_skipped"] == 0
    assert row["clip_fraction"] == pytest.approx(0.1) and row["ratio_mean"] == pytest.approx(1.1)
    assert row["entropy"] == pytest.approx(0.25) and row["kl"] == pytest.approx(0.05)
    assert row["importance_mean"] == pytest.approx(0.2) and row["importance_max"] == 1.5
    assert row["grad_norm"] == 1.0 and row["grad_norm_max"] == 1.5
    assert row["staleness_mean"] == 0.75 and row["staleness_max"] == 2 and row["staleness_tokens"] == [16, 18, 6]
    assert (row["tokens_computed"], row["tokens_shared_share"], row["tokens_recomputed"]) == (80, 0.5, 7)
    assert row["loss"] == pytest.approx(0.15)  # an update's loss is the sum of its ranks'
    assert row["logprob_mismatch_mean"] == pytest.approx(0.002) and row["logprob_mismatch_max"] == 0.004


def test_the_reward_counts_what_dynamic_sampling_threw_away():
    trained, *discarded = records([1, 0], [1, 1], [0, 0], [0, 0])
    discarded[-1] = dataclasses.replace(discarded[-1], cut_answers=2)
    row = step_row(1, 1, [dataclasses.replace(trained, cut_answers=1)], [update(rank(tokens=3))], discarded)
    assert row["reward"] == pytest.approx(3 / 8) and row["reward_trained"] == 0.5
    assert row["cut_answer_fraction"] == 3 / 8  # of all that was generated, as the reward
    assert row["kept_fraction"] == 0.25 and row["groups_discarded"] == 3 and row["groups"] == 1


def test_a_row_tells_what_the_memories_of_the_trained_groups_did():
    def traced(name, rewards, *memory):
        return record_of(dataclasses.replace(random_group(np.random.default_rng(0)), memory=memory), name, rewards)

    complete = MemoryCounts(Ratio(2, 2), Ratio(3, 4), Ratio(0, 1), Ratio(6, 24), Ratio(24, 4))
    partial = MemoryCounts(Ratio(1, 2), Ratio(4, 4), Ratio(0, 0), Ratio(0, 12), Ratio(12, 4))
    trained = [traced("a", [1, 0, 0.5], complete, complete, complete), traced("b", [1, 1, 1], *[partial] * 3)]
    unknown = traced("c", [0, 0, 0], *[MemoryCounts(tokens=Ratio(36, 4))] * 3)
    row = step_row(1, 1, [*trained, unknown], [update(rank(tokens=3))], [traced("d", [0, 0, 0], *[partial] * 3)])
    assert row["memory_written"] == 9 / 12 and row["memory_kept"] == 21 / 24
    assert row["memory_answered"] == pytest.approx(1 / 3)  # only of the complete ones, and only a reward of 1
    assert row["memory_junk"] == 18 / 108 and row["memory_tokens"] == 6.0
    json.dumps(row, allow_nan=False)


def test_a_row_tells_what_the_engines_had_of_the_prompts_over_all_groups_and_by_version():
    def group(name, prompt, cached):
        record = record_of(random_group(np.random.default_rng(0), episodes=2), name, [1, 0])
        return dataclasses.replace(record, prompt_tokens=Counter(prompt), cached_tokens=Counter(cached))

    trained = [group("a", {9: 100, 10: 300}, {9: 80, 10: 120}), group("b", {10: 100}, {})]
    row = step_row(1, 1, trained, [update(rank(tokens=3))], [group("c", {11: 500}, {11: 300})])
    assert row["prompt_tokens"] == 1000 and row["prompt_tokens_computed"] == 500  # of all that was generated
    assert row["prefix_hit_share"] == 0.5 and row["prefix_hit_share_min"] == 0
    assert row["prefix_hit_shares"] == {"9": 0.8, "10": 0.3, "11": 0.6}
    json.dumps(row, allow_nan=False)


def test_a_record_counts_prompts_by_the_version_under_which_they_were_submitted():
    def conversation(prompt, version, cached):
        # Its tokens are of a newer version: the weights changed in flight.
        return Conversation("memory", [5] * prompt, Completion([6], [-1.0], [version + 1], "stop", version, 9, cached))

    episodes = [
        Episode([conversation(30, 3, 0), conversation(40, 4, 32)]),
        Episode([conversation(30, 3, 29), conversation(50, 3, 16)]),
    ]
    record = record_of(pack_group("p", episodes), "g", [1, 0])
    assert record.prompt_tokens == {3: 110, 4: 40} and record.cached_tokens == {3: 45, 4: 32}


def test_without_counts_of_the_memories_their_numbers_are_unknown():
    row = step_row(1, 1, records([1, 0]), [update(rank(tokens=3))], [])
    shares = ("written", "kept", "answered", "junk", "tokens")
    assert [row[f"memory_{name}"] for name in shares] == [None] * 5


def test_a_skipped_update_is_counted_and_left_out_of_the_averages():
    bad = update(rank(grad_norm=None, tokens=9, loss=float("nan"), not_finite=[1]), groups=[0, 1], tokens=9)
    row = step_row(1, 1, records([1, 0]), [update(rank(tokens=10, loss=0.2), tokens=10), bad], [])
    assert row["updates"] == 1 and row["updates_skipped"] == 1
    assert row["tokens_trained"] == 10 and row["loss"] == pytest.approx(0.2)
    assert bad.culprits == [1]
    assert update(rank(grad_norm=None), rank(grad_norm=None), groups=[0, 3]).culprits == [0, 3]


def test_a_step_whose_updates_were_all_skipped_has_a_row_and_a_line():
    row = step_row(1, 1, records([1, 0]), [update(rank(grad_norm=None, not_finite=[0]))], [])
    assert row["loss"] is None and row["tokens_trained"] == 0
    known = {"tokens_per_second": 1.0, "seconds": 1.0, "learner_mfu": None}
    assert "grad -" in step_line(row | known, 5) and "mfu" not in step_line(row | known, 5)
    assert "mfu 0.41  1.0 s" in step_line(row | known | {"learner_mfu": 0.41}, 5)
    json.dumps(row, allow_nan=False)


def test_without_tokens_of_the_learners_version_there_is_no_mismatch_to_report():
    assert step_row(1, 1, records([1, 0]), [update(rank(tokens=3))], [])["logprob_mismatch_mean"] is None


def test_the_summary_compares_the_first_and_the_last_tenth():
    totals = RunTotals()
    for reward in np.linspace(0, 1, 21):
        ranks = [rank(tokens=7, same_version_tokens=7, mismatch=0.7)]
        totals.add(step_row(1, 1, records([reward, reward]), [update(*ranks, tokens=7)], []))
    summary = totals.summary()
    assert summary["updates"] == 21
    assert summary["tokens_trained"] == 21 * 7 and summary["episodes"] == 42
    assert summary["reward_first"] == pytest.approx(0.025) and summary["reward_last"] == pytest.approx(0.975)
    assert summary["logprob_mismatch_mean"] == pytest.approx(0.1)


def test_the_reward_since_a_checkpoint_is_that_of_its_steps_though_rows_are_missing():
    totals = RunTotals()
    assert totals.reward_after(0) == 0
    counts = {"seconds": 1.0, "logprob_mismatch_mean": 0, "logprob_mismatch_tokens": 0}
    for step in (1, 2, 7, 8, 9, 10, 11, 12):  # rows 3 to 6 were lost to a full disk
        totals.add({"step": step, "reward": 0.9 if step > 10 else 0.1, **counts})
    assert totals.reward_after(10) == pytest.approx(0.9) and totals.reward_after(0) == pytest.approx(0.3)
    assert totals.reward_after(12) == 0
    totals.roll_back(7)
    assert totals.steps.tolist() == [1, 2, 7]


def test_a_run_without_a_step_has_a_summary_too():
    summary = RunTotals().summary()
    assert summary["updates"] == 0 and summary["reward_first"] is None and summary["logprob_mismatch_mean"] is None


def test_a_row_counts_the_preemptions_of_the_trained_groups():
    trained = [
        dataclasses.replace(record, preemptions=n) for record, n in zip(records([1, 0], [0, 0]), (3, 4), strict=True)
    ]
    discarded = [dataclasses.replace(record, preemptions=9) for record in records([1, 1])]
    assert step_row(1, 1, trained, [update(rank(tokens=10), tokens=10)], discarded)["preemptions"] == 7
