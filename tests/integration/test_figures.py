"""What `make figures` runs and draws, on results that are made up."""

import json
from dataclasses import replace

import pytest

from jobs.figures.drawing import draw, run_interval
from jobs.figures.job import main, make_figures
from jobs.figures.recipe import (
    LAYOUTS,
    SAMPLINGS,
    FiguresConfig,
    all_steps,
    check_figures,
    figures,
    training_steps,
)
from jobs.support.steps import record_arguments
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluation import plots
from pipeline.evaluation.config import EvaluationConfig
from pipeline.evaluation.plots import accuracy_figure
from pipeline.fine_tuning.config import FineTuningConfig
from pipeline.lease import LEASE
from pipeline.run.config import load_training_config
from tests.support.result_rows import rows_of

CONFIG = FiguresConfig(seeds=[0, 1], chunks=[8, 2048])


def test_every_evaluation_stands_behind_the_training_it_needs():
    names = [step.name for step in all_steps(CONFIG)]
    for place, step in enumerate(all_steps(CONFIG)):
        assert all(names.index(need) < place for need in (step.model, step.data) if need)


def test_the_ablation_trains_as_many_steps_of_as_many_tokens_everywhere():
    runs = training_steps(CONFIG)
    tiny = load_training_config(["preset=tiny"])
    for step in runs["demonstrator"]:
        config = load_config(list(step.arguments), FineTuningConfig)
        assert config.fine_tuning.steps == tiny.train.steps and not config.fine_tuning.from_scratch
        assert config.model.path == tiny.model.path
        conversations = tiny.train.groups_per_step * tiny.train.group_size * 9
        assert 30 * conversations < config.fine_tuning.tokens_per_step < 36 * conversations  # counted: 32.8
    (direct,) = [load_config(list(step.arguments), FineTuningConfig).fine_tuning for step in runs["direct"]]
    first = load_config(["preset=fine_tune_tiny"], FineTuningConfig).fine_tuning
    trained = config.fine_tuning.steps * config.fine_tuning.tokens_per_step  # by every other line
    both = first.steps * first.tokens_per_step + trained
    assert direct.steps * direct.tokens_per_step == pytest.approx(both, rel=0.001)


def test_rejection_sampling_samples_and_trains_as_much_as_reinforcement_learning():
    runs, tiny = training_steps(CONFIG), load_training_config(["preset=tiny"])
    for seed, (sampled, rejection) in enumerate(zip(runs["sampled"], runs["rejection"], strict=True)):
        assert rejection.data == sampled.name
        evaluation = load_config(list(sampled.arguments), EvaluationConfig)
        assert evaluation.model.path == tiny.model.path and evaluation.evaluate.successes
        assert evaluation.evaluate.temperature == tiny.train.temperature
        assert evaluation.data.synthetic_seed == evaluation.run.seed == seed  # none of the questions of a figure
        episodes = evaluation.data.synthetic_count * evaluation.evaluate.samples
        assert episodes == tiny.train.steps * tiny.train.groups_per_step * tiny.train.group_size
        fine_tuning, demonstrator = (
            load_config([*step.arguments, "data.path=x"], FineTuningConfig)
            for step in (rejection, runs["demonstrator"][seed])
        )
        assert fine_tuning.fine_tuning == demonstrator.fine_tuning and fine_tuning.learner == demonstrator.learner
        assert fine_tuning.data.source == "file" and fine_tuning.run.seed == seed


def test_the_figures_have_every_sampling_and_all_seeds():
    made = figures(CONFIG)
    assert list(made) == ["length", "ablation", "transfer", "layout"]
    assert list(figures(replace(CONFIG, only=["layout", "length"]))) == ["length", "layout"]
    for lines in made.values():
        assert {line.sampling for line in lines} == set(SAMPLINGS)
        assert all(len(line.evaluations) == 2 for line in lines if line.name == "after RL")
    after, before, _ = made["length"][:3]
    assert "data.synthetic_chunks=[8,2048]" in after.evaluations[0].arguments
    for line, counts in ((after, [128, 128]), (before, [256])):
        data = [load_config([*e.arguments, "model.path=x"], EvaluationConfig).data for e in line.evaluations]
        assert [d.synthetic_count for d in data] == counts
        assert len({d.synthetic_seed for d in data}) == len(data)


def test_a_figure_is_drawn_from_all_seeds_with_a_table(tmp_path):
    lines = [line for line in figures(CONFIG)["length"] if line.sampling == "paper"]
    for line in lines:
        for seed, step in enumerate(line.evaluations):
            folder = tmp_path / step.name
            folder.mkdir()
            score = float(line.name == "after RL" and seed == 0)
            rows = [r for length in (144, 36864) for r in rows_of([score] * 4, set="synthetic", length=length)]
            rows = [r | {"id": f"{seed}-{r['id']}"} for r in rows]
            (folder / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    table, drawn = draw("length", lines, tmp_path)
    assert drawn == [tmp_path / "length.png"] and drawn[0].stat().st_size > 0
    text, seeds = (tmp_path / "length.md").read_text().split("# Each training seed")
    both, spread = text.split("# Spread between training seeds")
    assert both.strip() == table.strip() and "do not include the spread between training seeds" in table
    # Of 100 and 0: 50 and √(50² + 50²); the t interval is 12.7 times half of the difference to each side.
    of_both = "100.0, 0.0 | 50.0 [-585.3, 685.3] | 70.7 |"
    assert f"| T = 0.7, top-p 0.95 | 144 | after RL | {of_both}" in spread
    assert f"| T = 0.7, top-p 0.95 | 36K | after RL | {of_both}" in spread
    assert spread.count("| after RL |") == 2 and "before RL" not in spread and "direct" not in spread
    of_seed = {text.split(" |")[0]: text for text in seeds.splitlines() if text.startswith("| rl-")}
    assert "100.0" in of_seed["| rl-0"] and "0.0 [" in of_seed["| rl-1"]
    after = next(text for text in table.splitlines() if text.startswith("| after RL"))
    assert "50.0" in after  # the mean of a seed that is always right and one that never is


def test_the_layouts_have_starts_by_one_recipe_and_differ_in_nothing_but_the_template():
    runs, tiny = training_steps(CONFIG), load_training_config(["preset=tiny"])
    (start,) = runs["start-tiny_chunk_first"]
    recipe = load_config(list(start.arguments), FineTuningConfig)
    first = load_config(["preset=fine_tune_tiny"], FineTuningConfig)
    assert recipe.data == replace(first.data, prompt_template="tiny_chunk_first")
    assert (recipe.fine_tuning, recipe.learner, recipe.model) == (first.fine_tuning, first.learner, first.model)
    papers, ours = figures(CONFIG)["layout"][:2]
    assert (papers.name, ours.name) == tuple(LAYOUTS)
    training = {step.name: step for step in all_steps(CONFIG)}
    for seed, (one, other) in enumerate(zip(papers.evaluations, ours.evaluations, strict=True)):
        assert training[one.model].model == "" and training[other.model].model == start.name
        a, b = (load_training_config([*training[step.model].arguments, "run.name=x"]) for step in (one, other))
        assert (a.run.seed, a.train, a.data, a.objective, a.learner) == (seed, b.train, b.data, b.objective, b.learner)
        assert b.run.seed == seed and a.model.path == tiny.model.path
        assert b.agent == replace(a.agent, prompt_template="tiny_chunk_first") and a.agent.prompt_template == "tiny"
        a, b = (load_config([*step.arguments, "model.path=x"], EvaluationConfig) for step in (one, other))
        assert b.agent == replace(a.agent, prompt_template="tiny_chunk_first") and a.agent.prompt_template == "tiny"
        assert (a.data, a.evaluate) == (b.data, b.evaluate)  # the same questions
        assert a.data.synthetic_chunks == [8, 32, 128, 512] and a.data.synthetic_count == 128


def test_the_layouts_are_compared_by_training_seed(tmp_path, monkeypatch):
    pictures = []
    monkeypatch.setattr(
        plots, "accuracy_figure", lambda *about, **how: pictures.append(how) or accuracy_figure(*about, **how)
    )
    lines = [line for line in figures(CONFIG)["layout"] if line.sampling == "paper"]
    right = {"rl-0": 1, "rl-1": 2, "rl-tiny_chunk_first-0": 2, "rl-tiny_chunk_first-1": 4}  # of four questions
    for line in lines:
        for seed, step in enumerate(line.evaluations):
            for name in (step.name, step.model):
                (tmp_path / name).mkdir()
            rows = rows_of([1.0] * right[step.model] + [0.0] * (4 - right[step.model]), set="synthetic", length=144)
            rows = [r | {"id": f"{seed}-{r['id']}"} for r in rows]
            (tmp_path / step.name / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            rewards = [0.0] * 10 + [right[step.model] / 4] * 10
            steps = [{"step": n, "reward": reward, "tokens_trained": 50} for n, reward in enumerate(rewards, 1)]
            (tmp_path / step.model / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in steps))
    _, drawn = draw("layout", lines, tmp_path)
    assert [path.name for path in drawn] == ["layout.png", "layout-reward.png"]
    assert all(path.stat().st_size > 0 for path in drawn)
    assert pictures[0]["interval"] is run_interval and pictures[0]["title"].endswith("intervals over training seeds")
    text = (tmp_path / "layout.md").read_text()
    parts = dict(part.split("\n", 1) for part in text.split("\n# ")[1:])
    assert list(parts) == [
        "Spread between training seeds",
        "Difference between the layouts",
        "Reward in training",
        "Each training seed",
    ]
    # 25 and 50, 50 and 100: differences of 25 and 50, whose mean is 37.5 ± 12.706 · 17.68 / √2.
    assert "| 144 | paper's order | 25.0, 50.0 | 37.5 [" in parts["Spread between training seeds"]
    assert "| 144 | section first | 50.0, 100.0 | 75.0 [" in parts["Spread between training seeds"]
    difference = "25.0, 50.0 | 37.5 [-121.3, 196.3] | 17.7 |"
    assert f"| T = 0.7, top-p 0.95 | 144 | {difference}" in parts["Difference between the layouts"]
    assert f"| last 10 steps | section first − paper's order | {difference}" in parts["Reward in training"]
    assert "| all steps | paper's order | 12.5, 25.0 | 18.8 [" in parts["Reward in training"]
    assert "paper's order 1,000, 1,000; section first 1,000, 1,000." in parts["Reward in training"]


def test_intervals_over_runs_in_a_figure_end_where_scores_end():
    rows = [r | {"run": run} for run, score in (("a", 1.0), ("b", 0.5)) for r in rows_of([score] * 4)]
    assert run_interval(rows, "score") == (0.75, 0.0, 1.0, 2)
    rows = [r | {"run": run} for run, score in (("a", 0.51), ("b", 0.5)) for r in rows_of([score] * 4)]
    assert run_interval(rows, "score")[1:3] == pytest.approx((0.505 - 12.706 * 0.005, 0.505 + 12.706 * 0.005), abs=1e-4)


@pytest.fixture
def quick(monkeypatch):
    from pipeline import lease as module

    monkeypatch.setattr(module, "BEAT_S", 0.1)
    monkeypatch.setattr(module, "SETTLE_S", 0.01)


def test_the_figures_are_made_once_at_a_time(tmp_path, monkeypatch, quick):
    from jobs.figures import job as module

    config = replace(CONFIG, folder=str(tmp_path / "figures"))

    def steps(*_):
        with pytest.raises(ConfigError, match="is in use by"):
            make_figures(config)
        return 1

    monkeypatch.setattr(module, "run_steps", steps)
    assert make_figures(config) == 1
    assert not (tmp_path / "figures" / LEASE).exists()


def test_steps_of_other_settings_are_refused(tmp_path, capsys):
    step = all_steps(FiguresConfig())[0]
    (tmp_path / step.name).mkdir()
    record_arguments(step, tmp_path)
    assert main(["--dry-run", f"folder={tmp_path}"]) == 0
    (tmp_path / f"{step.name}.arguments").write_text("python -m jobs.train\n")
    assert main(["--dry-run", f"folder={tmp_path}"]) == 2
    assert f"{tmp_path / step.name}: now " in capsys.readouterr().err


def test_wrong_settings_are_named(tmp_path, capsys):
    with pytest.raises(ConfigError, match="seeds is empty\nat_once=0 must be.*\n.*must be some of sampled, paper"):
        check_figures(replace(CONFIG, seeds=[], at_once=0, samplings=["hot"]))
    assert main(["questions=many"]) == 2
    assert "questions=many" in capsys.readouterr().err
    assert main(["--dry-run", "only=[length]", "seeds=[0]", f"folder={tmp_path}"]) == 0
    assert "python -m jobs.train preset=tiny" in capsys.readouterr().out
