"""What the page of a run shows, collected from whole, old, broken and interrupted run folders."""

import json

import pytest

from pipeline.view import episodes as episodes_module
from pipeline.view.before_after import MOST_CHARACTERS, MOST_PAIRS
from pipeline.view.curves import MOST_STEPS, spread
from pipeline.view.episodes import memory_events
from pipeline.view.lines import Notes, json_lines, number, rounded
from pipeline.view.page import run_data
from tests.support.run_folders import answer, conversation, episode, write_lines, write_run


def collected(folder) -> tuple[dict, list[str]]:
    notes = Notes()
    return run_data(folder, notes), notes.texts()


def test_a_whole_run_is_shown_and_nothing_is_missing(tmp_path):
    data, notes = collected(write_run(tmp_path / "a run"))
    assert notes == []
    assert data["run"]["name"] == "a run" and data["run"]["status"] == "completed"
    assert ["steps", 12] in data["run"]["numbers"]
    assert data["curves"]["steps"] == list(range(1, 13))
    assert data["curves"]["metrics"]["reward"][:2] == [0.08333, 0.1667]
    assert data["validation"]["all"] == [[0, 0, None, None], [12, 0.5, None, None]]
    assert data["validation"]["576"][0] == [1, 0.5, 0.4, 0.6]  # answered by version 1
    assert [e["step"] for e in data["episodes"]] == [1, 12]
    evaluation, validation = data["comparisons"]
    assert (evaluation["before"], evaluation["after"], evaluation["of"]) == ("before RL", "after RL", 2)
    first = evaluation["pairs"][0]
    assert first[:3] == ["synthetic 144", "question a", ["Paris"]]
    assert first[3] == ["answer 0", 0, ["none", "Sam Rex ."]] and first[4][:2] == ["answer 1", 1]
    assert (validation["before"], validation["after"]) == ("step 0", "step 12")


def test_an_episode_has_numbers_for_its_tokens_and_the_events_of_its_facts(tmp_path):
    written = episode(conversations=[conversation("none at all", version=3, advantage=-0.5)] * 4)
    ((shown,), _) = (collected(write_run(tmp_path, {5: [written]}))[0]["episodes"], None)
    first = shown["conversations"][0]
    assert first[:3] == ["memory", "none at all", -0.5]
    assert first[3:] == [[4, 3, 4], [-250, -250, -250], [-100, -50, 0], [[3, 1], [4, 2]]]
    assert shown["facts"] == [["Sam Rex .", 0], ["Rex Paris .", 2]]
    assert shown["events"] == [[["written", 0]], [], [["written", 1]], []]
    assert shown["missing"] == []


def test_facts_are_written_missed_lost_and_appear():
    held = [[], [0], [0, 1], [1], []]
    assert memory_events([0, 2, 3, None], held) == [
        [["missed", 0]],
        [["appeared", 0]],
        [["written", 1]],
        [["missed", 2], ["lost", 0]],
        [["lost", 1]],
    ]
    assert memory_events([0], []) == []


def test_lengths_are_those_of_javascript(tmp_path):
    given = conversation("a 😀 b", characters=[1, 2, 2], learner=None)
    ((shown,), _) = (collected(write_run(tmp_path, {1: [episode(conversations=[given])]}))[0]["episodes"], None)
    assert shown["conversations"][0][3] == [1, 3, 2]
    assert shown["conversations"][0][5] is None and "no log-prob ratios" in shown["missing"][0]


def test_an_episode_of_an_earlier_version_is_shown_with_what_it_has(tmp_path):
    old = {
        "problem_id": "p",
        "problem": "city Rex",
        "conversations": [{"role": "memory", "response": "Rex Paris ."}, {"role": "answer", "response": "Paris"}],
        "answer": "Paris",
        "reward": 1.0,
        "advantage": 0.25,
    }
    data, notes = collected(write_run(tmp_path, {1: [old]}))
    (shown,) = data["episodes"]
    assert shown["memories"] == ["Rex Paris ."] and shown["task"] == "unknown" and shown["gold"] == []
    assert shown["conversations"][0] == ["memory", "Rex Paris .", None, None, None, None, None]
    assert "earlier version" in shown["missing"][0]
    assert notes == ["1 of 1 sampled episodes: no numbers for single tokens, no sections and no facts."]


def test_an_empty_run_and_one_that_was_stopped_by_force(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    data, notes = collected(tmp_path)
    assert data["run"]["status"] == "without a summary" and data["episodes"] == [] == data["comparisons"]
    assert data["curves"] == {"steps": [], "metrics": {}} and data["validation"] == {}
    assert any("not over" in note for note in notes) and "No episode was sampled." in notes


def test_an_interrupted_run_has_what_it_left(tmp_path):
    folder = write_run(tmp_path)
    (folder / "summary.json").write_text(json.dumps({"status": "interrupted", "steps": 12, "error": None}))
    (folder / "evaluation" / "after-RL-12" / "results.jsonl").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "rewa')
    data, notes = collected(folder)
    assert data["run"]["status"] == "interrupted" and data["curves"]["steps"][-1] == 12
    assert [one["title"] for one in data["comparisons"]] == ["Validation"]
    assert notes == ["metrics.jsonl: 1 line could not be read."]


BROKEN = [
    *("not json", "[1, 2]", "null", '"text"', "[" * 100_000, "{}", '{"step": "two"}', '{"step": NaN}', "1e999"),
    *('{"step": true, "reward": 1}', "\x00", '{"step": null}'),
]


def test_broken_lines_are_counted_and_nothing_else_is_lost(tmp_path):
    folder = write_run(tmp_path)
    rows = [{"step": 1, "reward": 0.5, "text": "x", "list": [1], "none": None}, *BROKEN, {"step": 2, "reward": 10**400}]
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "validation.jsonl", [{"step": 0, "score": 0.5, "cells": "none"}, *BROKEN])
    (folder / "summary.json").write_text("{")
    data, notes = collected(folder)
    assert data["curves"] == {"steps": [1, 2], "metrics": {"reward": [0.5, None]}}
    assert data["validation"] == {"all": [[0, 0.5, None, None]]}
    assert f"metrics.jsonl: {len(BROKEN)} lines could not be read." in notes
    assert "summary.json cannot be read." in notes


@pytest.mark.parametrize(
    "changed",
    [
        {"conversations": None},
        {"conversations": [None, 3, {}, {"role": 3, "response": None, "tokens": []}]},
        {"conversations": [conversation("a b", characters=[1, 1])]},  # not the text's length
        {"conversations": [conversation("a b", characters=[-1, 4])]},
        {"conversations": [conversation("a b", logprobs=[1.0], learner=["x", None], versions=[[0, 5]])]},
        {"memories": 3, "sections": {"a": 1}, "facts": [3, {}], "held": [[9], "x"], "reward": "one"},
        {"facts": [{"text": None, "section": -1}], "held": [[0], [0], [0], [True]]},
        {"answers": "Paris", "answer": None, "problem": ["a"], "problem_id": {"a": 1}, "task": 3, "cut": "yes"},
    ],
)
def test_rows_of_any_shape_are_shown(tmp_path, changed):
    data, _ = collected(write_run(tmp_path, {1: [episode(**changed)]}))
    (shown,) = data["episodes"]
    lengths = [c[3] for c in shown["conversations"] if c[3] is not None]
    assert all(n >= 0 for of_response in lengths for n in of_response)
    json.dumps(data, allow_nan=False)


def test_of_many_steps_and_episodes_evenly_spread_ones_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(episodes_module, "MOST_EPISODES", 6)
    folder = write_run(tmp_path, {step: [episode(), episode()] for step in range(1, 11)})
    write_lines(folder / "metrics.jsonl", [{"step": s, "reward": 1} for s in range(1, 3 * MOST_STEPS)])
    data, notes = collected(folder)
    assert [e["step"] for e in data["episodes"]] == [1, 3, 5, 6, 8, 10]
    assert len(data["curves"]["steps"]) == MOST_STEPS and data["curves"]["steps"][-1] == 3 * MOST_STEPS - 1
    assert any("6 sampled episodes of 6 steps are shown; 10 steps have some" in note for note in notes)


def test_what_is_too_long_loses_its_numbers_then_its_texts(tmp_path, monkeypatch):
    rows = {1: [episode(read=8, words=100), episode(read=2)]}
    folder = write_run(tmp_path, rows)

    def shown(most: int) -> list[dict]:
        monkeypatch.setattr(episodes_module, "MOST_BYTES", most)
        found = collected(folder)[0]["episodes"]
        assert all(len(json.dumps(e)) <= most / 2 + 500 for e in found)
        return found

    long, short = shown(40_000)
    assert long["conversations"][0][3] is None and "numbers for its tokens are left out" in long["missing"][-1]
    assert long["memories"][0].endswith("word-0-99") and short["conversations"][0][3]
    long, _ = shown(10_000)
    assert long["memories"][0].endswith("…") and "texts are cut" in long["missing"][-1]
    long, _ = shown(2_000)
    assert long["conversations"] == [] and long["question"] == "city pet Sam"


def test_questions_whose_score_changed_come_first_and_answers_are_cut(tmp_path):
    folder = write_run(tmp_path)
    names = [f"q{i}" for i in range(MOST_PAIRS + 5)]
    before = [answer(name, 0, answer="x" * 5000) for name in names]
    after = [*(answer(name, 0) for name in names[:-1]), answer(names[-1], 1), answer("new", 1), "torn {"]
    write_lines(folder / "evaluation/before-RL/results.jsonl", before)
    write_lines(folder / "evaluation/after-RL-12/results.jsonl", after)
    data, notes = collected(folder)
    one = data["comparisons"][0]
    assert one["of"] == MOST_PAIRS + 5 and len(one["pairs"]) == MOST_PAIRS
    assert one["pairs"][0][1] == f"question {names[-1]}" and one["pairs"][1][1] == "question q0"
    assert len(one["pairs"][0][3][0]) == MOST_CHARACTERS + 1
    assert notes == ["evaluation/after-RL-12/results.jsonl: 1 line could not be read."]


def test_a_run_that_went_on_is_shown_with_its_last_model(tmp_path):
    folder = write_run(tmp_path)
    write_lines(folder / "evaluation/after-RL-9/results.jsonl", [answer("a", 0, answer="of step 9")])
    write_lines(folder / "evaluation/after-RL-100/results.jsonl", [answer("a", 1, answer="of step 100")])
    write_lines(folder / "evaluation/after-RL/results.jsonl", [answer("a", 1, answer="of an earlier version")])
    assert collected(folder)[0]["comparisons"][0]["pairs"][0][4][0] == "of step 100"
    for step in (9, 12, 100):
        (folder / f"evaluation/after-RL-{step}/results.jsonl").unlink()
        (folder / f"evaluation/after-RL-{step}").rmdir()
    assert collected(folder)[0]["comparisons"][0]["pairs"][0][4][0] == "of an earlier version"


def test_an_error_is_shown_as_the_answer(tmp_path):
    folder = write_run(tmp_path)
    rows = [answer("a", 0, answer=None, error="TimeoutError: no response"), answer("b", 0)]
    write_lines(folder / "evaluation/before-RL/results.jsonl", rows)
    assert collected(folder)[0]["comparisons"][0]["pairs"][0][3][0] == "no answer: TimeoutError: no response"


def test_validations_of_other_questions_make_no_line(tmp_path):
    folder = write_run(tmp_path)
    rows = [{"step": s, "questions": "ab"[s > 4], "score": 0.5, "cells": []} for s in (0, 4, 8, 12)]
    write_lines(folder / "validation.jsonl", rows)
    data, notes = collected(folder)
    assert [point[0] for point in data["validation"]["all"]] == [8, 12]
    assert notes == ["2 validations asked other questions than the last one: not shown."]


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    notes = Notes()
    assert list(json_lines(tmp_path / "metrics.jsonl", "metrics.jsonl", notes)) == []
    assert "metrics.jsonl cannot be read" in notes.texts()[0]


def test_numbers():
    assert [number(x) for x in (1, 0.5, True, "1", None, float("nan"), 10**400)] == [1, 0.5, *[None] * 5]
    assert [rounded(x) for x in (0.123456, 123456.0, 2.0, 1e300)] == [0.1235, 123500, 2, 1e300]
    assert spread(list(range(100)), 3) == [0, 50, 99] and spread([1, 2], 3) == [1, 2]
